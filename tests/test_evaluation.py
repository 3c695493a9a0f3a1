"""Evaluation: against a count of its own, over parts of a split, and where there is nothing to score."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trailseg.cli import run
from trailseg.config import EvaluateOptions, NetworkOptions, Size, StepRange
from trailseg.data.memory import Memory
from trailseg.errors import FileError, OptionError
from trailseg.evaluation import Stop, evaluate, evaluate_run
from trailseg.inference import classify, refine
from trailseg.labels import IGNORE
from trailseg.metrics import measures
from trailseg.networks.build import build
from trailseg.runs import Run

CLASSES = ["grass", "trail", "sky"]
CPU = torch.device("cpu")


def split(count=5, full=(24, 36), size=(16, 24)):
    """Random pictures whose truth is larger than the network's size."""
    random = np.random.default_rng(0)
    truths = [random.choice([0, 1, 1, IGNORE], full).astype(np.uint8) for _ in range(count)]
    images = torch.from_numpy(random.integers(0, 256, (count, 3, *size), dtype=np.uint8))
    labels = torch.from_numpy(random.choice([0, 1, 2, IGNORE], (count, *size)).astype(np.uint8))
    return Memory([f"p{i}" for i in range(count)], images, labels, truths)


def network():
    torch.manual_seed(3)
    options = NetworkOptions(network="iterative-v4", stem="x2", channels=8, depth=1, steps=2, size=Size(16, 24))
    made = build(options, classes=3)
    with torch.no_grad():
        made.head.bias.copy_(torch.tensor([0.1, 0.0, -0.3]))
    return made.eval()


def measured(memory, **options):
    return evaluate(network(), memory, split="val", steps=2, classes=CLASSES, **({"batch": 2, "device": CPU} | options))


def test_pictures_are_in_two_splits_where_name_and_content_are():
    one = split()
    other = replace(one, names=one.names[:3], images=one.images[:3].clone(), labels=one.labels[:3])
    assert one.also_in(other) == 3
    other.images[1, 0, 0, 0] ^= 1
    assert one.also_in(other) == other.also_in(one) == 2
    assert one.also_in(replace(other, names=["a", "b", "p2"])) == 1


def test_confusion_at_full_size_and_at_the_stems_scale_equals_a_plain_count():
    memory, net = split(), network()
    full, small = np.zeros((2, 3, 3), int), np.zeros((2, 3, 3), int)
    for image, label, truth in zip(memory.images, memory.labels.numpy(), memory.truths, strict=True):
        trail = net(image[None].float() / 255, 2)[0].detach()
        for step in range(2):
            sized = F.interpolate(trail[None, step], (24, 36), mode="bilinear", align_corners=False)[0].argmax(0)
            for t, p in zip(truth.ravel(), sized.numpy().ravel(), strict=True):
                if t != IGNORE:
                    full[step, t, p] += 1
            for i in range(8):
                for j in range(12):  # the label at the centre of each 2 x 2 square
                    if (t := label[2 * i + 1, 2 * j + 1]) != IGNORE:
                        small[step, t, trail[step, :, i, j].argmax()] += 1
    got = measured(memory)
    assert got["confusion"] == full.tolist()
    assert (got["split"], got["images"], got["pixels"]) == ("val", 5, 5 * 24 * 36)
    assert got["pixels"] - got["ignored_pixels"] == full[0].sum()
    stem = got["at_stem_scale"]
    assert stem["pixels"] - stem["ignored_pixels"] == small[0].sum()
    assert [s["pixel_accuracy"] for s in stem["steps"]] == [pytest.approx(np.trace(c) / c.sum()) for c in small]
    assert [s["pixel_accuracy"] for s in got["steps"]] == [pytest.approx(np.trace(c) / c.sum()) for c in full]


@pytest.mark.parametrize("world", [2, 7])  # with seven processes two of them have no picture
def test_the_parts_of_a_split_add_up_to_the_whole(world):
    memory = split()
    whole = measured(memory)
    parts = [measured(memory, rank=rank, world=world)["confusion"] for rank in range(world)]
    assert np.sum(parts, 0).tolist() == whole["confusion"]


def test_the_batch_changes_nothing():
    assert measured(split(), batch=1)["confusion"] == measured(split(), batch=5)["confusion"]


def test_prediction_and_evaluation_agree():
    memory, net = split(count=2, full=(16, 24)), network()
    confusion = np.zeros((2, 3, 3), int)
    for image, truth in zip(memory.images, memory.truths, strict=True):
        refined = refine(net, image[None].float() / 255, steps=2)
        for step, logits in enumerate(refined.logits):
            ids, _ = classify(net, logits, (16, 24), (16, 24))
            scored = truth != IGNORE
            np.add.at(confusion[step], (truth[scored], ids[0].numpy()[scored]), 1)
    assert measured(memory)["confusion"] == confusion.tolist()


def shares(net, memory, steps):
    """The share of predictions that each step changed (pictures, steps - 1), as exact fractions."""
    with torch.no_grad():
        classes = net(memory.images.float() / 255, steps).argmax(2)
    changed = (classes[:, 1:] != classes[:, :-1]).sum((2, 3))
    return [[int(n) / classes[0, 0].numel() for n in one] for one in changed]


def test_stopping_is_measured_as_refine_stops_picture_by_picture():
    """Also where a share equals the tolerance: every share that occurs is a tolerance here."""
    memory, net, most = split(count=8), network(), 6
    with torch.no_grad():
        net.head.weight.mul_(8)
        net.beta.fill_(2)
    found = shares(net, memory, most)
    exact = sorted({share for one in found for share in one} - {0})
    assert len(exact) > 6
    tolerances = [*exact, *((a + b) / 2 for a, b in pairwise(exact)), 1.0]
    stops = [Stop(limit, tolerance) for limit in (1, 3, most) for tolerance in tolerances]
    options = {"split": "val", "steps": most, "classes": CLASSES, "batch": 4, "device": CPU}
    got = evaluate(net, memory, **options, stops=stops)
    assert "auto" not in evaluate(net, memory, **options)
    several = 0
    for stop, auto in zip(stops, got["auto"], strict=True):
        confusion, used = np.zeros((3, 3), int), []
        for image, truth in zip(memory.images, memory.truths, strict=True):
            one = refine(net, image[None].float() / 255, steps=stop.most_steps, tolerance=stop.tolerance)
            ids, _ = classify(net, one.logits[-1], (16, 24), truth.shape)
            scored = truth != IGNORE
            np.add.at(confusion, (truth[scored], ids[0].numpy()[scored]), 1)
            used.append(one.used.item())
        several += len(set(used)) > 1
        assert (auto["most_steps"], auto["tolerance"]) == (stop.most_steps, stop.tolerance)
        assert auto["mean_steps"] == pytest.approx(np.mean(used)), stop
        expected = measures(confusion, CLASSES)
        assert {name: auto[name] for name in expected} == expected
    assert several > 10, "tolerances at which the pictures stop at different steps"


@pytest.mark.parametrize("world", [2, 7])
def test_the_parts_of_a_split_stop_on_average_where_the_whole_does(world):
    memory, stops = split(), [Stop(2, 0.1), Stop(2, 1.0), Stop(1, 1.0)]
    parts = []
    for rank in range(world):
        sums = []
        measured(memory, stops=stops, rank=rank, world=world, add_up=lambda x, sums=sums: sums.append(x) or x)
        parts.append(sums)
    totals = iter([sum(values) for values in zip(*parts, strict=True)])
    whole = measured(memory, stops=stops)
    assert measured(memory, stops=stops, world=world, add_up=lambda _: next(totals)) == whole
    assert [auto["mean_steps"] for auto in whole["auto"]][1:] == [2, 1]


@pytest.mark.parametrize(("asked", "steps"), [(None, 3), (StepRange(1, 5), 5), (StepRange(4, 8), 8)])
def test_a_run_is_measured_up_to_the_last_step_that_is_asked_for(asked, steps, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "evaluated-run"
    if not folder.exists():
        options = ["network=iterative-v4", "stem=x2", "channels=4", "depth=1", "size=16,24", "pictures=4", "epochs=1"]
        assert run(["train", *options, "device=cpu", f"out={folder}"]) == 0
    measures = evaluate_run(Run.open(folder), EvaluateOptions(run=str(folder), steps=asked, device="cpu"))
    assert [step["step"] for step in measures["steps"]] == list(range(1, steps + 1))


@pytest.mark.parametrize("steps", [(0, 3), (4, 3), (1, 257)])
def test_a_wrong_range_of_steps_is_told(steps):
    with pytest.raises(OptionError, match=rf"^steps={steps[0]}\.\.{steps[1]}: take "):
        EvaluateOptions(run="x", steps=StepRange(*steps))


def test_a_split_with_nothing_to_score_has_no_accuracy():
    memory = split(count=1)
    memory.truths[0][:] = IGNORE
    got = measured(memory)
    assert got["ignored_pixels"] == got["pixels"]
    assert got["steps"][0]["pixel_accuracy"] is None
    assert got["steps"][0]["miou"] is None
    assert got["steps"][0]["classes_counted"] == 0


def test_an_answer_that_is_not_finite_is_never_class_0():
    broken = network()
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    with pytest.raises(FileError, match="p0, p1 is not finite"):
        evaluate(broken, split(), split="val", steps=1, classes=CLASSES, batch=2, device=CPU)
