"""Evaluation: against a count of its own, over parts of a split, and where there is nothing to score."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trailseg.config import Size
from trailseg.data.memory import Memory
from trailseg.errors import FileError
from trailseg.evaluation import evaluate
from trailseg.labels import IGNORE
from trailseg.networks.build import build
from trailseg.prediction import predict

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
    made = build(
        network="iterative-v4", stem="x2", core="resunet", norm="group", channels=8, depth=1, growth=1.5, steps=2,
        classes=3, size=(16, 24),
    )  # fmt: skip
    with torch.no_grad():
        made.head.bias.copy_(torch.tensor([0.1, 0.0, -0.3]))
    return made.eval()


def measured(memory, **options):
    return evaluate(network(), memory, split="val", steps=2, classes=CLASSES, **({"batch": 2, "device": CPU} | options))


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
    memory = split(count=2, full=(16, 24))
    ids = [
        predict(network(), i.permute(1, 2, 0).numpy(), size=Size(16, 24), steps=2, device=CPU) for i in memory.images
    ]
    confusion = np.zeros((2, 3, 3), int)
    for trail, truth in zip(ids, memory.truths, strict=True):
        for step in range(2):
            scored = truth != IGNORE
            np.add.at(confusion[step], (truth[scored], trail[step][scored]), 1)
    assert measured(memory)["confusion"] == confusion.tolist()


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
