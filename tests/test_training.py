"""Training: repeatable to the bit, resumable after kill -9, equal on one process and two, and safe where it fails."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console

from trailseg import checkpoints, experiment, study, training
from trailseg.config import EvaluateOptions, NetworkOptions, Size, TrainOptions
from trailseg.data import augment, memory
from trailseg.data.readers import TERMS
from trailseg.errors import FileError, OptionError
from trailseg.evaluation import evaluate, evaluate_run
from trailseg.inference import facts_of
from trailseg.losses import StepLoss
from trailseg.parsing import from_mapping, read_words
from trailseg.predictor import find_model
from trailseg.runs import Run, build_network
from trailseg.training import draw_position, draw_steps, learning_rate

TINY = TrainOptions(
    network="iterative-v4", stem="x2", channels=4, depth=1, steps=2, size=Size(16, 24), pictures=7, epochs=3, batch=3,
    lr=0.01, device="cpu",
)  # fmt: skip


def train(folder, **options):
    return experiment.train(replace(TINY, **options), folder, name="tiny", console=Console(quiet=True), resume=False)


def go_on(folder, **options):
    return experiment.train(replace(TINY, **options), folder, name="tiny", console=Console(quiet=True), resume=True)


def weights(run, which="last"):
    return safetensors.torch.load_file(run.checkpoint(which))


def without_times(run):
    return [{k: v for k, v in r.items() if k not in ("seconds", "pictures_per_second")} for r in run.log()]


def words(folder, **options):
    """A `trailseg train` command line for a run like TINY, in a process of its own."""
    given = {
        "network": "iterative-v4", "stem": "x2", "channels": 8, "depth": 2, "steps": 2, "size": "32,48", "pictures": 13,
        "epochs": 3, "batch": 4, "lr": 0.01, "device": "cpu", "out": folder,
    } | options  # fmt: skip
    return [sys.executable, "-m", "trailseg", "train", *(f"{k}={v}" for k, v in given.items())]


ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}

# As the accurate networks are trained, and in their later phases.
ACCURATE = {"network": "gated", "stem": "s8", "core": "dilated", "norm": "step", "depth": 1, "finer": 2,
    "size": Size(64, 96), "optimizer": "muon", "ema": 0.9, "balance": 1.1, "standardize": "picture"}  # fmt: skip
GUIDED = {"guided": 2, "target": "area", "lovasz": 1.0, "augment": "classmix"}


def test_a_run_repeated_ends_the_same_to_the_bit(tmp_path):
    one, two = train(tmp_path / "one"), train(tmp_path / "two")
    assert one.checkpoint("last").read_bytes() == two.checkpoint("last").read_bytes()
    assert without_times(one) == without_times(two)
    other = train(tmp_path / "other", seed=1)
    assert other.checkpoint("last").read_bytes() != one.checkpoint("last").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.05, "augment": "none"},  # is best after its first epoch
        {"steps": 4, "fewest_steps": 1, "prefix": 3, "gamma": 0.8},
        {"ema": 0.9, "weight_decay": 0.1, "warmup": 2, "augment": "robust", "crop": Size(8, 12), "balance": 1.1},
        {"optimizer": "muon", "weight_decay": 0.1},
        ACCURATE | GUIDED,
        pytest.param(
            ACCURATE | GUIDED | {"device": "cuda", "precision": "bf16"},
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator"),
        ),
    ],
)
def test_a_run_cut_after_any_epoch_and_resumed_ends_the_same_to_the_bit(tmp_path, monkeypatch, options):
    whole = train(tmp_path / "whole", **options)
    for cut in (1, 2):
        save = Run.save

        def save_then_die(self, which, weights, at, *state, cut=cut, save=save):
            if which == "last" and at.epoch > cut:
                raise KeyboardInterrupt  # the log already has this epoch; the checkpoint does not
            save(self, which, weights, at, *state)

        monkeypatch.setattr(Run, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / f"cut{cut}", **options)
        monkeypatch.undo()
        run = Run.open(tmp_path / f"cut{cut}")
        assert (run.position().epoch, len(run.log())) == (cut, cut + 1)
        go_on(run.folder, **options)
        for which in ("last", "best"):
            assert run.checkpoint(which).read_bytes() == whole.checkpoint(which).read_bytes()
        assert without_times(run) == without_times(whole)


@pytest.mark.parametrize("preset", ["drive", "classmix"])
def test_two_processes_train_and_measure_like_one(preset, tmp_path):
    """15 pictures in batches of 4: two processes cannot share the three pictures of the last batch evenly."""
    for processes in (1, 2):
        command = words(tmp_path / str(processes), devices=processes, pictures=15, augment=preset)
        subprocess.run(command, check=True, env=ONE_THREAD)
    one, two = (Run.open(tmp_path / str(processes)) for processes in (1, 2))
    for a, b in zip(one.log(), two.log(), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["val"]["images"] == a["val"]["images"] == 3
        assert b["val"]["pixels"] == a["val"]["pixels"] == 3 * 32 * 48
        scored = a["val"]["pixels"] - a["val"]["ignored_pixels"]
        for step in range(2):  # every scored pixel of every picture once
            assert sum(map(sum, a["val"]["confusion"][step])) == sum(map(sum, b["val"]["confusion"][step])) == scored
            truth = [[sum(row) for row in r["val"]["confusion"][step]] for r in (a, b)]
            assert truth[0] == truth[1]
    for name, value in weights(one).items():  # Adam turns a rounding of a tiny gradient into a visible share of lr
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-3)


def test_the_network_learns(tmp_path):
    run = train(tmp_path / "run", size=Size(32, 64), channels=8, depth=2, pictures=16, epochs=12, augment="none")
    first, last = run.log()[0], run.log()[-1]
    assert last["loss"] < 0.6 * first["loss"]
    truth = [sum(row) for row in last["val"]["confusion"][0]]
    assert last["val"]["steps"][-1]["pixel_accuracy"] > max(truth) / sum(truth) + 0.1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_pictures(tmp_path):
    with pytest.raises(
        FileError, match=r"loss is (nan|inf) in epoch \d+, step \d+, with the pictures scene-\d+"
    ) as error:
        train(tmp_path / "run", lr=1e29, epochs=20)
    run = Run.open(tmp_path / "run")
    assert re.search(r"smaller lr", str(error.value))
    assert not list(run.folder.rglob("*.safetensors"))


def test_a_trained_stem_is_taken_over_and_stays_as_it_is_if_frozen(tmp_path):
    source = train(tmp_path / "source")
    frozen = train(tmp_path / "frozen", network="hourglass", stem_from=[str(source.folder)], freeze_stem=True, seed=5)
    free = train(tmp_path / "free", network="hourglass", stem_from=[str(source.folder)], seed=5)
    stem = {k: v for k, v in weights(source).items() if k.startswith("network.stem.")}
    assert stem
    assert all(torch.equal(weights(frozen)[k], v) for k, v in stem.items())
    assert not any(k.startswith("optimizer.") and ".stem." in k for k in weights(frozen))
    assert any(not torch.equal(weights(free)[k], v) for k, v in stem.items())
    with pytest.raises(FileError, match=r"its weights are for stem=x2, not stem=x4"):
        train(tmp_path / "wrong", stem="x4", stem_from=[str(source.folder)])
    with pytest.raises(FileError, match=r"its weights are for standardize=data, not standardize=picture"):
        train(tmp_path / "other", standardize="picture", stem_from=[str(source.folder)])
    assert not (tmp_path / "wrong").exists()


def test_a_training_begins_with_the_weights_of_another_run(tmp_path):
    source = train(tmp_path / "source")
    still = {"start_from": [str(source.folder)], "lr": 1e-29, "epochs": 1, "seed": 5}
    same = train(tmp_path / "same", **still, pictures=4).weights()
    assert same.keys() == source.weights().keys()
    assert all(torch.equal(same[name], value) for name, value in source.weights().items())
    others = train(tmp_path / "others", **still, labels="fine").weights()
    anew = {name for name, value in source.weights().items() if not torch.equal(others[name], value)}
    assert {name.split(".")[0] for name in anew} == {"head", "feedback"}
    assert others["head.bias"].shape == (23,)


def test_a_training_begins_with_the_mean_of_the_weights_of_several_runs(tmp_path):
    sources = [train(tmp_path / str(seed), seed=seed) for seed in range(3)]
    heir = train(tmp_path / "heir", start_from=[str(source.folder) for source in sources], lr=1e-29, epochs=1)
    for name, value in heir.weights().items():
        mean = sum(source.weights()[name].double() for source in sources) / 3
        assert torch.allclose(value.double(), mean, rtol=1e-6, atol=0), name


def test_a_training_begins_with_the_network_of_the_package_as_the_docs_say(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    (line,) = re.findall(r"^    trailseg train (start_from=camvid .*)$", text, re.M)
    small = {
        "data": "procedural",
        "root": None,
        "size": Size(32, 48),
        "pictures": 4,
        "epochs": 1,
        "lr": 1e-29,
        "device": "cpu",
    }
    options = replace(from_mapping(TrainOptions, read_words(TrainOptions, line.split())), **small)
    heir = experiment.train(options, tmp_path / "heir", name="heir", console=Console(quiet=True), resume=False)
    packed = Run.open(find_model("camvid")).weights()
    kernels = {name: value for name, value in packed.items() if name.startswith("cores.") and value.dim() == 4}
    assert kernels
    assert all(torch.equal(heir.weights()[name], value) for name, value in kernels.items())
    further = train(
        tmp_path / "further",
        **{field.name: getattr(options, field.name) for field in fields(NetworkOptions)},
        teacher=[str(heir.folder)],
        target="area",
        epochs=1,
    )
    for run in (heir, further):  # the pictures of the first data set bind whoever learnt of them, however late
        assert facts_of(run).licence == f"{TERMS['procedural'][1]}; {TERMS['camvid'][1]}"


def test_best_holds_the_weights_of_the_best_validation_and_last_those_of_the_last(tmp_path):
    run = train(tmp_path / "run", epochs=6, augment="none", lr=0.05)
    mious = [record["val"]["steps"][-1]["miou"] for record in run.log()]
    best = 1 + mious.index(max(mious))
    assert best < 6, "choose options with which the last epoch is not the best"
    assert run.position("best").epoch == best
    shorter = train(tmp_path / "shorter", epochs=best, augment="none", lr=0.05)
    assert all(torch.equal(v, weights(shorter, "best")[k]) for k, v in weights(run, "best").items())
    assert run.position().epoch == 6


def test_validation_comes_every_so_many_epochs_and_at_the_end(tmp_path):
    run = train(tmp_path / "run", epochs=5, val_every=2)
    assert [record["epoch"] for record in run.log() if record["val"]] == [2, 4, 5]


def test_schedules(tmp_path):
    assert [learning_rate(replace(TINY, schedule="constant"), e) for e in (1, 3)] == [0.01, 0.01]
    cosine = [learning_rate(replace(TINY, schedule="cosine", epochs=4), e) for e in range(1, 5)]
    assert cosine == pytest.approx([0.01, 0.00853553, 0.005, 0.00146447], rel=1e-5)
    constant, falling = (train(tmp_path / schedule, schedule=schedule) for schedule in ("constant", "cosine"))
    losses = [[record["loss"] for record in run.log()] for run in (constant, falling)]
    assert losses[0][0] == losses[1][0]  # the first epoch has the same rate, the second learns with another
    assert losses[0][1] != losses[1][1]


@pytest.mark.parametrize(("dice", "target"), [(0.0, "centre"), (0.7, "centre"), (0.7, "area")])
def test_the_logged_loss_is_that_of_the_augmented_pictures(tmp_path, dice, target):
    """With a rate of next to nothing the weights stay, so that an epoch's loss can be worked out from outside."""
    options = replace(TINY, lr=1e-20, dice=dice, target=target, seed=3, augment="drive", epochs=2)
    run = study_of(options, tmp_path / "run")
    source = experiment.check(options)
    pictures = memory.decode(source.split("train"), options.size)
    network = run.network().requires_grad_(False)
    for epoch in (1, 2):
        order = memory.epoch_order(7, seed=3, epoch=epoch)
        total = 0.0
        for places in ([0, 1, 2], [3, 4, 5], [6]):
            drawn = augment.draw(augment.PRESETS["drive"], seed=3, epoch=epoch, places=places)
            whole = pictures.images[order[places]] / 255, pictures.labels[order[places]]
            images, labels = augment.apply(*whole, drawn, options.size)
            truth = memory.labels_at_scale(labels, 2) if target == "centre" else memory.shares_at_scale(labels, 2, 9)
            sums, counts = StepLoss(dice=dice, gamma=1)(network(images, 2), truth)
            total += float((sums / counts).sum()) * len(places)
        assert run.log()[epoch - 1]["loss"] == pytest.approx(total / 7, rel=1e-5)


@pytest.mark.parametrize("target", ["centre", "area"])
def test_each_batch_of_a_guided_network_trains_one_of_the_positions(tmp_path, target):
    options = replace(
        TINY, network="gated", stem="s8", finer=2, guided=2, target=target, size=Size(33, 50), augment="none", lr=1e-29,
        epochs=2, batch=2,
    )  # fmt: skip
    run = study_of(options, tmp_path / "run")
    pictures = memory.decode(experiment.check(options).split("train"), options.size)
    network = run.network().requires_grad_(False)
    at_scale = memory.labels_at_scale if target == "centre" else partial(memory.shares_at_scale, classes=9)
    drawn = set()
    for epoch in (1, 2):
        order, total = memory.epoch_order(7, seed=0, epoch=epoch), 0.0
        for number, places in enumerate(([0, 1], [2, 3], [4, 5], [6])):
            position = draw_position(options, epoch=epoch, number=number)
            drawn.add(position)
            logits = network(pictures.images[order[places]] / 255, 2)
            labels = F.pad(pictures.labels[order[places]], (0, 2, 0, 3), value=255)  # to squares of 4
            where = (..., slice(position // 2, None, 2), slice(position % 2, None, 2))
            truth = at_scale(labels, 2)[where]
            logits = F.pad(logits.flatten(1, 2), (0, 1, 0, 1)).unflatten(1, (2, 9))[where]
            sums, counts = StepLoss(dice=1, gamma=1)(logits, truth)
            total += float((sums / counts).sum()) * len(places)
        assert run.log()[epoch - 1]["loss"] == pytest.approx(total / 7, rel=1e-4)
    assert len(drawn) > 1


def test_a_guide_is_added_to_the_weights_of_a_run_without_one(tmp_path):
    parts = {"network": "gated", "stem": "s8", "finer": 2, "size": Size(32, 48), "lr": 1e-29, "epochs": 1}
    source = train(tmp_path / "source", **parts)
    heir = train(tmp_path / "heir", **parts, guided=2, start_from=[str(source.folder)]).weights()
    assert all(torch.allclose(heir[name], value, rtol=0, atol=1e-20) for name, value in source.weights().items())
    assert {name for name in heir if name not in source.weights()} == {
        "stem.guide.weigh.weight",
        "stem.guide.weigh.bias",
    }
    with pytest.raises(FileError, match=r"is of another network: stem\.guide"):
        train(tmp_path / "back", **parts, start_from=[str(tmp_path / "heir")])


GUIDED = {"network": "gated", "stem": "s8", "finer": 2, "guided": 2, "size": Size(32, 48), "epochs": 1}


def test_what_is_learned_is_part_truth_and_part_the_mean_of_what_teachers_answer(tmp_path):
    teachers = [train(tmp_path / str(steps), **GUIDED, seed=steps, steps=steps, lr=0.1) for steps in (1, 3)]
    taught = {"teacher": [str(teacher.folder) for teacher in teachers], "taught": 0.3, "target": "area"}
    run = train(tmp_path / "run", **GUIDED, **taught, augment="none", lr=1e-29)
    pictures = memory.decode(experiment.check(run.options).split("train"), run.options.size)
    assert (pictures.labels == 255).any()
    order, total = memory.epoch_order(7, seed=0, epoch=1), 0.0
    for number, places in enumerate(([0, 1, 2], [3, 4, 5], [6])):
        position = draw_position(run.options, epoch=1, number=number)
        where = (..., slice(position // 2, None, 2), slice(position % 2, None, 2))
        images, truth = (
            pictures.images[order[places]] / 255,
            memory.shares_at_scale(pictures.labels[order[places]], 2, 9),
        )
        with torch.no_grad():
            answers = [teacher.network()(images, teacher.options.steps)[:, -1].softmax(1) for teacher in teachers]
            logits = run.network()(images, 2)
        assert (answers[0] - answers[1]).abs().max() > 0.05
        mixed = 0.7 * truth + 0.3 * truth.sum(1, keepdim=True) * (answers[0] + answers[1]) / 2
        sums, counts = StepLoss(dice=1, gamma=1)(logits[where], mixed[where])
        total += float((sums / counts).sum()) * len(places)
    assert run.log()[0]["loss"] == pytest.approx(total / 7, rel=5e-6)
    alone = train(tmp_path / "alone", **GUIDED, target="area", augment="none", lr=1e-29).log()[0]["loss"]
    assert alone != pytest.approx(total / 7, rel=1e-3)


def test_a_teacher_whose_answers_do_not_fit_is_refused_before_anything_is_written(tmp_path):
    teacher = [str(train(tmp_path / "teacher", **GUIDED).folder)]
    for wrong, problem in (
        (
            {"guided": 1},
            "stands for 2 x 2 pixels with guided=2, one of its learner for 4 x 4 with guided=1; say the stem",
        ),
        ({"labels": "fine"}, "has other classes than its learner"),
    ):
        with pytest.raises(FileError, match=problem):
            train(tmp_path / "run", **{**GUIDED, "target": "area", "teacher": teacher, **wrong})
    assert not (tmp_path / "run").exists()


VARIED = replace(TINY, steps=5, fewest_steps=2, prefix=3, gamma=0.7, batch=1)


def test_every_batch_draws_its_own_steps_and_its_own_prefix():
    drawn = [draw_steps(VARIED, most=5, epoch=e, number=n) for e in range(1, 21) for n in range(20)]
    prefixes, steps = zip(*drawn, strict=True)
    assert set(steps) == {2, 3, 4, 5}
    assert set(prefixes) == {0, 1, 2, 3}
    assert all(steps.count(s) == pytest.approx(100, abs=35) for s in set(steps))
    assert all(prefixes.count(p) == pytest.approx(100, abs=35) for p in (0, 1, 2, 3))
    assert drawn == [draw_steps(VARIED, most=5, epoch=e, number=n) for e in range(1, 21) for n in range(20)]
    other = replace(VARIED, seed=1)
    assert drawn != [draw_steps(other, most=5, epoch=e, number=n) for e in range(1, 21) for n in range(20)]
    assert drawn[:20] != drawn[20:40]  # another epoch
    # A network that takes fewer steps, and the original's: always the same.
    assert {draw_steps(VARIED, most=1, epoch=1, number=n)[1] for n in range(20)} == {1}
    assert {draw_steps(VARIED, most=2, epoch=1, number=n)[1] for n in range(20)} == {2}
    assert {draw_steps(TINY, most=2, epoch=1, number=n) for n in range(20)} == {(0, 2)}
    fixed = replace(VARIED, fewest_steps=None)
    assert {draw_steps(fixed, most=5, epoch=1, number=n)[1] for n in range(20)} == {5}


def test_the_steps_are_drawn_apart_from_the_augmentation_and_change_nothing_in_it(tmp_path, monkeypatch):
    seen = {}
    for name, options in (("varied", VARIED), ("plain", replace(VARIED, fewest_steps=None, prefix=0))):
        apply, kept = augment.apply, []

        def watched(images, labels, drawn, size, apply=apply, kept=kept):
            images, labels = apply(images, labels, drawn, size)
            kept.append((images.clone(), labels.clone()))
            return images, labels

        with monkeypatch.context() as patch:
            patch.setattr(augment, "apply", watched)
            study_of(replace(options, augment="drive", epochs=1), tmp_path / name)
        seen[name] = kept
    assert len(seen["varied"]) == len(seen["plain"]) == 7
    for one, other in zip(seen["varied"], seen["plain"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batch", [2, 3])
def test_the_logged_loss_is_that_of_the_drawn_steps(tmp_path, batch):
    options = replace(VARIED, lr=1e-20, augment="none", epochs=2, batch=batch)
    run = study_of(options, tmp_path / "run")
    pictures = memory.decode(experiment.check(options).split("train"), options.size)
    network = run.network().requires_grad_(False)
    used = []
    for epoch in (1, 2):
        order, total = memory.epoch_order(7, seed=options.seed, epoch=epoch), 0.0
        for number, first in enumerate(range(0, 7, batch)):
            where = order[first : first + batch]
            prefix, steps = draw_steps(options, most=5, epoch=epoch, number=number)
            used.append((prefix, steps))
            trail = network(pictures.images[where] / 255, prefix + steps)[:, prefix:]
            labels = memory.labels_at_scale(pictures.labels[where], 2)
            sums, counts = StepLoss(dice=1, gamma=0.7)(trail, labels)
            total += float((sums / counts).sum()) * len(where)
        assert run.log()[epoch - 1]["loss"] == pytest.approx(total / 7, rel=1e-5)
    assert len(set(used)) > 3
    assert [len(record["val"]["steps"]) for record in run.log()] == [5, 5]  # it is measured at all steps


def test_two_processes_draw_the_same_steps_as_one(tmp_path):
    """Two cores and a prefix: in some batches the first core gets no gradient."""
    options = {"network": "iterative-v1", "steps": 3, "fewest_steps": 1, "prefix": 2, "gamma": 0.8, "pictures": 6}
    options |= {"epochs": 1, "batch": 2, "depth": 1}
    subprocess.run(words(tmp_path / "two", devices=2, size="16,24", **options), check=True, env=ONE_THREAD)
    one, two = train(tmp_path / "one", channels=8, **options), Run.open(tmp_path / "two")
    assert one.differences(two.options) == []
    drawn = [draw_steps(one.options, most=3, epoch=1, number=number) for number in range(3)]
    assert len({steps for _, steps in drawn}) > 1
    assert {prefix > 0 for prefix, _ in drawn} == {True, False}
    assert two.log()[0]["loss"] == pytest.approx(one.log()[0]["loss"], rel=1e-5)
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(two)[name], value, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"gamma": -0.1}, "gamma=-0.1: take at least 0"),
        ({"gamma": 1.1}, "gamma=1.1: take at most 1"),
        ({"gamma": float("nan")}, "gamma=nan: take"),
        ({"prefix": -1}, "prefix=-1: take at least 0"),
        ({"prefix": 257}, "prefix=257: take at most 256"),
        ({"fewest_steps": 0}, "fewest_steps=0: take at least 1"),
        ({"fewest_steps": 3}, "fewest_steps=3: take at most 2"),
    ],
)
def test_wrong_numbers_of_steps_are_told(options, problem):
    with pytest.raises(OptionError) as error:
        replace(TINY, **options)
    assert str(error.value).startswith(problem)


@pytest.mark.parametrize("network", ["hourglass", "single"])
def test_a_prefix_needs_a_network_that_takes_further_steps(tmp_path, network):
    with pytest.raises(OptionError, match=f"prefix=1: {network} takes no further steps; it needs 1 or 2 cores"):
        train(tmp_path / "run", network=network, prefix=1)
    assert not (tmp_path / "run").exists()


def study_of(options, folder):
    return experiment.train(options, folder, name="tiny", console=Console(quiet=True), resume=False)


def test_the_pictures_mean_and_deviation_travel_with_the_weights_and_the_stem(tmp_path):
    run = train(tmp_path / "run", pictures=3)
    mean, std = memory.decode(experiment.check(replace(TINY, pictures=3)).split("train"), TINY.size).mean_and_std()
    assert torch.equal(weights(run)["network.mean"], mean)
    assert torch.equal(weights(run)["network.std"], std)
    heir = train(tmp_path / "heir", stem_from=[str(run.folder)])  # trained on other pictures
    assert torch.equal(weights(heir)["network.mean"], mean)
    assert torch.equal(weights(heir)["network.std"], std)


def test_batch_norm_learns_its_statistics_in_training_and_keeps_them_in_evaluation(tmp_path):
    run = train(tmp_path / "run", norm="batch", size=Size(16, 32))
    name = "network.stem.1.running_mean"
    assert weights(run)[name].any()
    network = run.network().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    source = experiment.check(replace(TINY, norm="batch", size=Size(16, 32)))
    val = memory.decode(source.split("val"), Size(16, 32))
    evaluate(network, val, split="val", steps=2, classes=source.labels.classes, batch=1, device=torch.device("cpu"))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_bf16_is_computed_and_evaluated_as_it_was_trained(tmp_path):
    full, half = (train(tmp_path / precision, precision=precision, seed=3) for precision in ("32", "bf16"))
    assert full.log()[0]["loss"] != half.log()[0]["loss"]
    assert full.log()[0]["loss"] == pytest.approx(half.log()[0]["loss"], rel=0.02)
    logged = half.log()[-1]["val"]["confusion"]
    assert evaluate_run(half, EvaluateOptions(run=str(half.folder)))["confusion"] == logged
    assert evaluate_run(half, EvaluateOptions(run=str(half.folder), precision="32"))["confusion"] != logged


@pytest.mark.parametrize(("name", "without"), [("iterative-v3", "iterative-v5"), ("hourglass-iter-ex", "hourglass")])
def test_fuses_that_start_with_the_state_change_no_answer_until_they_have_learnt(name, without):
    options = replace(TINY, network=name, fuse_start="state", steps=3)
    network = build_network(options, classes=4)
    weights = {key: value for key, value in network.state_dict().items() if not key.startswith("fuses.")}
    plain, image = build_network(replace(options, network=without), classes=4), torch.rand(1, 3, *TINY.size)
    assert len(network.fuses) > len(plain.fuses) == 0
    plain.load_state_dict(weights)
    torch.testing.assert_close(network(image, 3), plain(image, 3))
    network(image, 3).square().sum().backward()
    for fuse in network.fuses:
        assert fuse.weight.grad[:, : fuse.out_channels].abs().min() > 0  # from the context, too
    mixed = build_network(replace(options, fuse_start="random"), classes=4)
    assert not torch.allclose(mixed(image, 3), plain(image, 3))


def test_the_first_weights_are_a_function_of_the_seed():
    one, same, other = (build_network(replace(TINY, seed=seed), classes=9).head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", 1), ("augment", "none"), ("schedule", "cosine"), ("batch", 2), ("size", Size(16, 32)), ("epochs", 9)],
)
def test_every_option_that_changes_a_result_is_told(tmp_path, option, value):
    network = dict.fromkeys(("cores", "context", "residual", "parameters", "macs_stem", "macs_step"), 1)
    data = {"name": "x", "classes": ["a"], "colours": [[0, 0, 0]], "train": 1, "val": 1, "fingerprint": "sha256:1"}
    run = Run.create(tmp_path / "run", name="x", options=TINY, network=network, data=data, machine={})
    assert run.differences(TINY) == []
    assert run.differences(replace(TINY, device="cuda", root="elsewhere", out="x")) == []
    assert [d.split()[0] for d in run.differences(replace(TINY, **{option: value}))] == [option]


def test_weights_that_are_not_finite_stop_the_run_and_are_never_saved(tmp_path, monkeypatch):
    step, calls = torch.optim.AdamW.step, []

    def poison(self, *given):
        step(self, *given)
        calls.append(0)
        if len(calls) == 3:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("inf")

    monkeypatch.setattr(torch.optim.AdamW, "step", poison)
    found = (
        r"(weights are no longer finite|the loss is (nan|inf)) in epoch 1, step 3, with the pictures scene-\d+, scene"
    )
    with pytest.raises(FileError, match=found):
        train(tmp_path / "run", pictures=20, batch=4)
    assert len(calls) <= 4
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path):
    whole = {"a": torch.ones(2), "b": torch.tensor(3)}
    checkpoints.write(tmp_path / "it", whole, {})
    with pytest.raises(FileError, match="is not written, since a is no longer finite"):
        checkpoints.write(tmp_path / "it", whole | {"a": torch.tensor([0, float("nan")])}, {})
    assert checkpoints.read(tmp_path / "it").tensors["a"].tolist() == [1, 1]


def test_the_average_is_what_is_validated_saved_and_used(tmp_path):
    run = train(tmp_path / "run", ema=0.9)
    tensors = weights(run)
    average, last = (
        {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("average.", "network.")
    )
    assert average.keys() == last.keys()
    assert not torch.equal(average["head.weight"], last["head.weight"])
    assert all(torch.equal(value, average[name]) for name, value in run.network().state_dict().items())
    measured = evaluate_run(run, EvaluateOptions(run=str(run.folder), split="val", batch=3, device="cpu"))
    assert measured["steps"] == run.log()[-1]["val"]["steps"]
    assert weights(train(tmp_path / "plain")).keys() == {k for k in tensors if not k.startswith("average.")}


def test_the_average_by_hand():
    network, average = (build_network(replace(TINY, seed=seed), classes=3) for seed in (0, 1))
    first, new = average.head.weight.clone(), network.head.weight.clone()
    training.update_average(average, network, ema=0.9, step=0)  # keeps 1 / 10
    torch.testing.assert_close(average.head.weight, 0.1 * first + 0.9 * new)
    before = average.head.weight.clone()
    training.update_average(average, network, ema=0.9, step=1000)
    torch.testing.assert_close(average.head.weight, 0.9 * before + 0.1 * new)


def test_warm_up_grows_evenly_and_then_leaves_the_schedule_alone():
    options = replace(TINY, lr=1.0, epochs=10, warmup=4)
    assert [learning_rate(options, epoch) for epoch in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    cosine = replace(options, schedule="cosine")
    plain = replace(cosine, warmup=0)
    assert learning_rate(cosine, 2) == pytest.approx(0.4 * learning_rate(plain, 2))
    assert learning_rate(cosine, 9) == learning_rate(plain, 9)


def test_decay_shrinks_the_weights(tmp_path):
    norms = [
        sum(float(v.square().sum()) for k, v in weights(train(tmp_path / str(decay), weight_decay=decay)).items()
            if k.startswith("network.cores"))
        for decay in (0.0, 5.0)
    ]  # fmt: skip
    assert norms[1] < 0.9 * norms[0]


def test_crops_are_trained_on_at_their_own_size(tmp_path, monkeypatch):
    sizes, load = set(), training.load

    def watched(*given):
        images, labels = load(*given)
        sizes.add((*images.shape[2:], *labels.shape[1:]))
        return images, labels

    monkeypatch.setattr(training, "load", watched)
    run = train(tmp_path / "run", crop=Size(8, 12), augment="robust", epochs=1)
    assert sizes == {(8, 12, 8, 12)}
    val = run.log()[0]["val"]  # measured on whole pictures all the same
    assert val["pixels"] == val["images"] * 16 * 24
    with pytest.raises(OptionError, match="crop=20,24: take no more than size=16,24"):
        replace(TINY, crop=Size(20, 24))
    for norm, problem in (("layerHW", "does not fit"), ("instance", "are a single point")):
        with pytest.raises(OptionError, match=problem):
            train(tmp_path / norm, norm=norm, crop=Size(4, 4))
        assert not (tmp_path / norm).exists()


def test_a_folder_that_is_taken_is_refused_and_kept(tmp_path):
    run = train(tmp_path / "run")
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    with pytest.raises(FileError, match=r"already holds a run \(tiny, 3 of 3 epochs\); say resume="):
        train(run.folder)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileError, match="not an empty folder"):
        train(tmp_path / "notes")
    assert before == {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}


def test_a_log_is_not_begun_anew_where_its_weights_are_gone(tmp_path):
    run = train(tmp_path / "run")
    whole = without_times(run)
    run.checkpoint("last").unlink()  # "before" is there, of the last epoch but one
    go_on(tmp_path / "run")
    assert (run.position().epoch, without_times(run)) == (3, whole)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    log = run.log()
    with pytest.raises(FileError, match="is gone, and the log is not; restore it, or train anew with another out="):
        go_on(tmp_path / "run")
    assert run.log() == log


def test_other_options_or_other_data_are_not_resumed(tmp_path, monkeypatch):
    run = train(tmp_path / "run")
    with pytest.raises(FileError, match=r"lr 0\.01, not 0\.1"):
        go_on(run.folder, lr=0.1)
    facts = experiment.facts_of_data
    monkeypatch.setattr(experiment, "facts_of_data", lambda *given: facts(*given) | {"val": 4, "fingerprint": "x"})
    with pytest.raises(FileError, match=r"other data: val 4, not 1; fingerprint x, not sha256:.*\.\.\."):
        go_on(run.folder)
    monkeypatch.undo()
    config = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(config.replace("lr: 0.01", "lr: 0.1"))
    with pytest.raises(FileError, match=r"config.yaml: is not what .* was trained with \(lr 0\.1, not 0\.01\)"):
        go_on(run.folder, lr=0.1)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    one, other = train(tmp_path / "one"), train(tmp_path / "other", channels=8)
    other.checkpoint("last").write_bytes(one.checkpoint("last").read_bytes())
    with pytest.raises(FileError, match=r"config.yaml: is not what .* was trained with \(.*channels 8, not 4"):
        other.network()
    one.checkpoint("last").write_bytes(one.checkpoint("last").read_bytes()[:-7])
    with pytest.raises(FileError, match="is damaged"):
        one.network()


def test_batch_norm_on_several_processes_is_refused():
    with pytest.raises(OptionError, match="norm=batch"):
        replace(TINY, norm="batch", devices=2)


def test_a_study_is_checked_whole_before_anything_is_trained(tmp_path):
    file = tmp_path / "study.yaml"
    row = "{network: single, stem: x2, channels: 4, depth: 1, size: [16, 24], pictures: 5, epochs: 1, device: cpu}"
    file.write_text(f"runs:\n  - {row}\n  - {{network: hourglass, augment: driv}}\n")
    with pytest.raises(OptionError, match="did you mean 'drive'"):
        study.run_study(file, tmp_path / "out", {}, Console(quiet=True))
    file.write_text(f"runs:\n  - {row}\n  - {{network: hourglass, val_on: vall}}\n")
    with pytest.raises(OptionError, match="val_on=vall is not known: did you mean 'val'"):
        study.run_study(file, tmp_path / "out", {}, Console(quiet=True))
    file.write_text(f"runs:\n  - {row}\n  - {{network: hourglass, out: elsewhere}}\n")
    with pytest.raises(OptionError, match="a study names the folders of its runs"):
        study.run_study(file, tmp_path / "out", {}, Console(quiet=True))
    for option in ("start_from", "stem_from", "target: area, teacher"):
        file.write_text(f"runs:\n  - {row}\n  - {{network: single, name: heir, {option}: singel-seed0}}\n")
        with pytest.raises(FileError, match="singel-seed0: there is no such run directory"):
            study.run_study(file, tmp_path / "out", {}, Console(quiet=True))
    assert not (tmp_path / "out").exists()
    file.write_text(f"seeds: [0, 1]\nruns:\n  - {row}\n")
    assert [run.options.seed for run in study.plan(file, tmp_path / "out", {"seed": 4})] == [4]


def test_a_study_passes_over_a_row_that_finds_no_memory(tmp_path, monkeypatch):
    def short_of_memory(options, folder, inner=study.train, **more):
        if options.seed == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(options, folder, **more)

    monkeypatch.setattr(study, "train", short_of_memory)
    file = tmp_path / "study.yaml"
    row = "{network: single, stem: x2, channels: 4, depth: 1, size: [16, 24], pictures: 5, epochs: 1, device: cpu}"
    file.write_text(f"seeds: [0, 1]\nruns: [{row}]\n")
    (failure,) = study.run_study(file, tmp_path / "out", {}, Console(quiet=True))
    assert str(failure).startswith(
        f"{tmp_path / 'out' / 'single-seed0'}: there is not enough memory; give it a smaller"
    )
    assert "| single |" in (tmp_path / "out" / "table.md").read_text()


def test_a_study_runs_each_row_on_each_of_its_splits(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("""
        seeds: [0, 1]
        splits: [{train_on: train, val_on: val}, {train_on: without-a, val_on: only-a}]
        runs: [{network: gated}, {name: other, network: gated, seed: 5}]
    """)
    planned = study.plan(file, tmp_path, {})
    assert [(run.name, run.options.train_on, run.folder.name) for run in planned[:4]] == [
        ("gated", "train", "gated-val-seed0"),
        ("gated", "train", "gated-val-seed1"),
        ("gated", "without-a", "gated-only-a-seed0"),
        ("gated", "without-a", "gated-only-a-seed1"),
    ]
    assert [run.folder.name for run in planned[4:]] == ["other-val-seed5", "other-only-a-seed5"]
    file.write_text("defaults: {network: gated}\nruns: [{lr: 0.1}, {network: single}]")
    assert [run.name for run in study.plan(file, tmp_path, {})] == ["gated", "single"]
    file.write_text("splits: [{lr: 1}]\nruns: [{network: gated}]")
    with pytest.raises(FileError, match="list mappings of train_on and val_on"):
        study.plan(file, tmp_path, {})


def test_a_row_goes_on_from_an_earlier_row_or_learns_from_it_on_the_same_split(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("""
        splits: [{val_on: val}, {val_on: only-a}]
        seeds: [0, 2]
        runs: [{name: first, network: gated, start_from: second-seed1},
               {name: second, network: gated, seed: 1},
               {name: mean, network: gated, start_from: [first, second-seed1, second]},
               {name: taught, network: gated, target: area, teacher: [first, camvid]}]
    """)
    runs = {run.folder.name: run.options.start_from or run.options.teacher for run in study.plan(file, tmp_path, {})}
    assert runs["first-only-a-seed0"] == ["second-seed1"]
    assert runs["taught-only-a-seed2"] == [str(tmp_path / "first-only-a-seed2"), "camvid"]
    for split, seed in product(("val", "only-a"), (0, 2)):
        named = [str(tmp_path / run) for run in (f"first-{split}-seed{seed}", f"second-{split}-seed1")]
        assert runs[f"mean-{split}-seed{seed}"] == [*named, "second"]


def test_a_row_extends_an_earlier_one(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("""
        defaults: {network: gated, lr: 1}
        runs: [{name: first, lr: 2, gamma: 0.5},
               {extends: first, seed: 1},
               {extends: first, name: second, lr: 3},
               {extends: second, seed: 2, network: single}]
    """)
    planned = study.plan(file, tmp_path, {})
    assert [(run.folder.name, run.options.network, run.options.lr, run.options.gamma) for run in planned] == [
        ("first-seed0", "gated", 2, 0.5),
        ("first-seed1", "gated", 2, 0.5),
        ("second-seed0", "gated", 3, 0.5),
        ("second-seed2", "single", 3, 0.5),
    ]
    file.write_text("runs: [{name: first, network: gated}, {extends: frist}]")
    with pytest.raises(OptionError, match="did you mean 'first'"):
        study.plan(file, tmp_path, {})


def test_a_study_trains_what_is_missing_and_leaves_what_is_done(tmp_path):
    file = tmp_path / "study.yaml"
    options = "{stem: x2, channels: 4, depth: 1, steps: 2, size: [16, 24], pictures: 5, epochs: 1, device: cpu}"
    file.write_text(
        f"defaults: {options}\nseeds: [0, 1]\nruns:\n  - network: single\n"
        "  - {network: single, name: mean, start_from: [single-seed0, single-seed1]}\n"
    )
    out = tmp_path / "out"
    assert study.run_study(file, out, {}, Console(quiet=True)) == []
    names = ["mean-seed0", "mean-seed1", "single-seed0", "single-seed1"]
    assert sorted(p.parent.name for p in out.glob("*/config.yaml")) == names
    stamp = {name: (out / name / "log.jsonl").stat().st_mtime_ns for name in names}
    shutil.rmtree(out / "mean-seed1")
    assert study.run_study(file, out, {}, Console(quiet=True)) == []
    again = {name: (out / name / "log.jsonl").stat().st_mtime_ns for name in names}
    assert [name for name in names if again[name] != stamp[name]] == ["mean-seed1"]
    assert (out / "report.html").exists()
    with pytest.raises(FileError, match="holds a run with other options"):
        study.run_study(file, out, {"lr": 0.5}, Console(quiet=True))
    moved = out.rename(tmp_path / "moved")  # as if it were said in other words
    assert study.run_study(file, moved, {}, Console(quiet=True)) == []
    assert {name: (moved / name / "log.jsonl").stat().st_mtime_ns for name in names} == again


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("options", [{}, ACCURATE, ACCURATE | GUIDED])
def test_training_on_an_accelerator_repeats_to_the_bit(tmp_path, options):
    one, two = (train(tmp_path / n, **options | {"device": "cuda", "precision": "bf16"}) for n in ("one", "two"))
    assert one.checkpoint("last").read_bytes() == two.checkpoint("last").read_bytes()
