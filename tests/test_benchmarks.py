"""The scripts under benchmarks/: their arithmetic by hand, and that their trials write what the documents read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small import content

from trailseg.config import Size

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(SCRIPTS))

import folder  # noqa: E402
import growth  # noqa: E402
import loop  # noqa: E402
import original  # noqa: E402

QUICK = {"pixels": (9216, 18432), "steps": (1, 2), "channels": (8, 16), "pictures": (1, 2)}


def trial(script: str, out: Path, *words: str) -> Any:
    """What the script writes as JSON, computed on one thread."""
    path = out / "found.json"
    given = [sys.executable, str(SCRIPTS / f"{script}.py"), *words, f"json={path}"]
    done = subprocess.run(given, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_bytes())


def point(varied: str, value: int, figure: float) -> growth.Point:
    figures = dict.fromkeys((*growth.FIGURES, growth.RECOMPUTED, "gmac"), figure)
    return {"stem": "s8", "varied": varied, "value": value} | figures


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_a_slope_is_the_power_whatever_the_factor(power):
    xs = [1, 2, 5, 16]
    assert growth.slope(xs, [7 * x**power for x in xs]) == pytest.approx(power)


def test_a_slope_of_points_on_no_line_is_that_of_least_squares():
    assert growth.slope([1, 10, 100], [1, 100, 100]) == pytest.approx(1)  # (0, 0), (1, 2), (2, 2): rises 2 in 2
    assert growth.slope([1, 10, 100], [1, 1, 1000]) == pytest.approx(1.5)


def test_the_cost_of_steps_is_that_of_the_first_and_of_each_further_one():
    assert growth.affine([1, 2, 4, 8], [10, 13, 19, 31]) == pytest.approx((10, 3))
    assert growth.affine([1, 3], [4, 4]) == pytest.approx((4, 0))


def test_points_become_slopes_and_costs_line_by_line():
    points = [point("pixels", value, value**2) for value in (10, 20)] + [point("steps", s, 2 + s) for s in (1, 2, 4)]
    pixels, steps = growth.slopes(points)
    assert {pixels[name] for name in (*growth.FIGURES, "gmac")} == {2}
    assert (pixels["expected_ms"], pixels["expected_megabytes"]) == (1, 1)
    assert steps["expected_ms"] is None
    assert 0 < steps["answer_ms"] < 1
    costs = growth.costs_of_steps(points)
    assert {row["figure"] for row in costs} == {*growth.FIGURES, growth.RECOMPUTED}
    assert all((row["stem"], row["first"], row["further"]) == ("s8", 3, 1) for row in costs)


def test_growth_measures_every_line_and_draws_it(tmp_path):
    found = trial("growth", tmp_path, "quick=true", "rounds=1", "stems=s8", f"png={tmp_path / 'found.png'}")
    keys = {"stem", "varied", "value", *growth.FIGURES, growth.RECOMPUTED, "gmac"}
    assert all(point.keys() == keys for point in found["points"])
    values = {(point["varied"], point["value"]) for point in found["points"]}
    assert values == {(varied, value) for varied, two in QUICK.items() for value in two}
    assert all((point[growth.RECOMPUTED] is None) == (point["varied"] != "steps") for point in found["points"])
    one, two = (point for point in found["points"] if point["varied"] == "pictures")
    assert two["gmac"] == pytest.approx(2 * one["gmac"], rel=0.05)
    assert two["training_megabytes"] > one["training_megabytes"]
    assert [row["varied"] for row in found["slopes"]] == list(QUICK)
    assert {row["figure"] for row in found["steps"]} == {*growth.FIGURES, growth.RECOMPUTED}
    assert found["rates"][0]["share_of_matrix_product"] == 1
    assert all(row["gmac_per_second"] > 0 for row in found["rates"])
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_cache_measures_every_work_with_few_and_with_many_pictures(tmp_path):
    found = trial("cache", tmp_path, "pictures=120", "ways=mapped")
    assert [list(row) for row in found] == [["what", "pictures", "seconds", "megabytes", "held"]] * 8
    works = ("first start", "second start", "an epoch's batches", "evaluation")
    assert [(row["what"], row["pictures"]) for row in found] == [(work, count) for count in (12, 120) for work in works]
    assert not any(row["held"] for row in found)
    seconds = {(row["what"], row["pictures"]): row["seconds"] for row in found}
    assert seconds["second start", 120] < seconds["first start", 120]


def test_startup_compares_every_command_with_the_import_of_torch(tmp_path):
    rows = trial("startup", tmp_path, "rounds=1")
    assert [list(row) for row in rows] == [["command", "seconds", "ratio_to_import_torch"]] * 4
    assert rows[0]["ratio_to_import_torch"] == 1


def test_the_loop_is_compared_with_the_same_steps_on_one_batch():
    parts = {
        "network": "gated",
        "norm": "step",
        "channels": 4,
        "depth": 1,
        "finer": 2,
        "guided": 2,
        "size": Size(64, 64),
    }
    training = {"pictures": 7, "batch": 3, "target": "area", "lovasz": 1, "augment": "classmix", "ema": 0.9}
    taken = loop.ratios(loop.Options(**parts, **training, rounds=2))
    assert len(taken) == 2
    assert all(seconds > 0 for pair in taken for seconds in pair)


@pytest.mark.parametrize("name", original.SUBJECTS)
def test_the_original_and_what_is_held_against_it_train_and_answer(name):
    calls = original.make(name, original.Options(size=Size(128, 128), batch=1))
    for call in calls.values():
        call()


def test_both_ways_of_predicting_a_folder_write_the_same_files(tmp_path):
    pictures = folder.draw(tmp_path / "pictures", 2, Size(48, 64))
    for way, work in folder.WORKS.items():
        work(pictures, tmp_path / way, 1)
    plain, overlapped = (content(tmp_path / way) for way in folder.WORKS)
    assert len(plain) == 4
    assert plain.items() <= overlapped.items()


def test_a_misspelt_option_of_a_script_is_one_line():
    words = [sys.executable, str(SCRIPTS / "startup.py"), "rund=1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean 'rounds'" in done.stderr
