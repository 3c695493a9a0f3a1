"""Accuracy against cost: what `trailseg evaluate anytime=true` writes, and where it agrees with the plain measures."""

import json
import shutil
from itertools import pairwise

import pytest

from trailseg.anytime import TOLERANCES, measure, write
from trailseg.cli import run
from trailseg.config import EvaluateOptions, StepRange
from trailseg.evaluation import evaluate_run
from trailseg.runs import Position, Run

TRAIN = "train network=iterative-v4 stem=x2 channels=8 depth=1 size=32,48 steps=3 pictures=8 epochs=2 lr=0.01"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anytime") / "run"
    assert run([*TRAIN.split(), f"out={folder}"]) == 0
    return Run.open(folder)


@pytest.fixture(scope="module")
def measured(trained):
    return measure(trained, EvaluateOptions(run=str(trained.folder), steps=StepRange(1, 6)))


def test_its_accuracies_are_those_of_evaluate(trained, measured):
    plain = evaluate_run(trained, EvaluateOptions(run=str(trained.folder), steps=StepRange(1, 6)))
    for anytime, step in zip(measured["steps"], plain["steps"], strict=True):
        assert {key: anytime[key] for key in step} == step


def test_costs_grow_by_a_step_from_step_to_step(measured):
    steps = measured["steps"]
    assert steps[0]["macs"] == measured["macs_stem"] + measured["macs_step"]
    assert {b["macs"] - a["macs"] for a, b in pairwise(steps)} == {measured["macs_step"]}
    assert steps[0]["ms"] == pytest.approx(measured["first_ms"], abs=1e-3)
    assert steps[5]["ms"] == pytest.approx(measured["first_ms"] + 5 * measured["step_ms"], abs=1e-2)


def test_stopping_by_itself_is_tried_within_the_trained_steps_and_within_all(measured):
    tried = [(stop["most_steps"], stop["tolerance"]) for stop in measured["auto"]]
    assert tried == [(limit, tolerance) for limit in (3, 6) for tolerance in TOLERANCES]
    for stop in measured["auto"]:
        assert stop["saved_core_macs"] == pytest.approx(1 - stop["mean_steps"] / stop["most_steps"])
        steps = stop["mean_steps"]
        assert stop["macs"] == pytest.approx(measured["macs_stem"] + steps * measured["macs_step"], abs=1)
        assert min(2, stop["most_steps"]) <= steps <= stop["most_steps"]
    means = [stop["mean_steps"] for stop in measured["auto"][len(TOLERANCES) :]]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1], "the tolerances make no difference to this network"


def test_an_answer_that_never_settles_is_that_of_all_steps(trained, monkeypatch):
    monkeypatch.setattr("trailseg.anytime.TOLERANCES", (0.0, 1.0))
    found = measure(trained, EvaluateOptions(run=str(trained.folder), steps=StepRange(2, 5)))
    by_limit = {(stop["most_steps"], stop["tolerance"]): stop for stop in found["auto"]}
    assert [step["step"] for step in found["steps"]] == [2, 3, 4, 5]
    for limit in (3, 5):
        step = next(step for step in found["steps"] if step["step"] == limit)
        assert by_limit[limit, 0.0]["mean_steps"] == limit
        assert by_limit[limit, 0.0]["miou"] == step["miou"]
        assert by_limit[limit, 1.0]["mean_steps"] == 2
        assert by_limit[limit, 1.0]["miou"] == found["steps"][0]["miou"]


def test_what_is_told_is_of_the_checkpoint_and_of_the_run_even_where_it_is_called_like_a_network(
    trained, measured, tmp_path, monkeypatch
):
    shutil.copytree(trained.folder, tmp_path / "gated")
    monkeypatch.chdir(tmp_path)
    run = Run.open("gated")
    run.save("best", run.weights(), Position(1))
    found = measure(run, EvaluateOptions(run="gated", steps=StepRange(1, 2), checkpoint="best", precision="auto"))
    assert (found["macs_stem"], found["macs_step"]) == (measured["macs_stem"], measured["macs_step"])
    assert found["epoch"] == 1
    assert found["precision"] in ("bf16", "32")


def test_the_command_prints_a_table_and_writes_json_and_a_plot(trained, capsys):
    assert run(["evaluate", str(trained.folder), "steps=1..4", "--anytime"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((trained.folder / "anytime-val.json").read_text())
    assert [step["step"] for step in written["steps"]] == [1, 2, 3, 4]
    assert f"{100 * written['steps'][3]['miou']:.2f}" in printed
    assert (trained.folder / "plots" / "anytime-val.png").read_bytes().startswith(b"\x89PNG")
    assert run(["evaluate", str(trained.folder), "steps=1..4", "--anytime", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trained_steps"] == 3


def test_a_network_of_one_step_has_nothing_to_stop(tmp_path):
    folder = tmp_path / "single"
    assert run([*TRAIN.replace("iterative-v4", "single").split(), f"out={folder}"]) == 0
    found = measure(Run.open(folder), EvaluateOptions(run=str(folder)))
    assert (len(found["steps"]), found["auto"], found["step_ms"]) == (1, [], None)
    assert write(folder, found)[1].read_bytes().startswith(b"\x89PNG")
