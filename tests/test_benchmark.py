"""The benchmark: arithmetic against a clock that is known, memory against what the profiler counts, and every error."""

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.profiler import ProfilerActivity, profile

import trailseg.benchmark
import trailseg.memory_use
import trailseg.networks.build
from trailseg.benchmark import (
    Figures,
    Subject,
    benchmark,
    durations,
    memory,
    open_subject,
    plot,
    time_rounds,
    time_training,
)
from trailseg.cli import run
from trailseg.config import BenchmarkOptions, NetworkOptions, Size
from trailseg.errors import FileError, OptionError
from trailseg.memory_use import apart
from trailseg.networks.cost import cost

TINY = BenchmarkOptions(stem="x2", channels=8, depth=1, size=Size(48, 64), device="cpu", repeats=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs and two steps, of which the first epoch alone is not validated."""
    out = tmp_path_factory.mktemp("runs") / "v4"
    words = ["network=iterative-v4", "stem=x4", "channels=4", "depth=1", "size=16,24", "steps=2", "pictures=4"]
    assert run(["train", *words, "epochs=2", "val_every=2", "device=cpu", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def measured(trained: Path) -> tuple[Figures, Figures]:
    """The figures of a row and of a run."""
    row, of_run = benchmark(replace(TINY, networks=["single", str(trained)]))
    return row, of_run


class Clock:
    """Seconds that pass only in answers, each of which is written down."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[tuple[str, int]]()

    def __call__(self) -> float:
        return self.now

    def subject(self, name: str, seconds: Callable[[int, int], float], most: int) -> Subject:
        """Answers after seconds(steps, calls so far)."""

        def answer(steps: int) -> None:
            self.now += seconds(steps, self.calls.count((name, steps)))
            self.calls.append((name, steps))

        return Subject(
            name=name, runtime="", device="cpu", precision="32", size=Size(1, 1), most=most,
            parameters=1, weights=4, macs_stem=1, macs_step=1, run=None, answer=answer, train=None,
        )  # fmt: skip


# Time


def test_rounds_alternate_and_the_first_ones_only_warm_up():
    clock = Clock()

    def slow_at_first(steps: int, calls: int) -> float:
        return 2 + 8 * steps + (1000 if calls < 2 else 0)

    subjects = [clock.subject("a", slow_at_first, 3), clock.subject("b", lambda steps, _: 1 * steps, 4)]
    assert time_rounds(subjects, 3, clock) == [[(10, 26)] * 3, [(1, 4)] * 3]
    forth = [("a", 1), ("a", 1), ("a", 3), ("b", 1), ("b", 1), ("b", 4)]  # the first of each is not timed
    back = [("a", 1), ("a", 3), ("a", 1), ("b", 1), ("b", 4), ("b", 1)]
    assert clock.calls == [*forth, *back, *forth, *back, *forth]


def test_training_is_timed_in_turn_and_the_first_rounds_only_warm_up():
    clock = Clock()

    def train(name: str, seconds: int) -> None:
        clock.now += seconds if len(clock.calls) >= 4 else 1000
        clock.calls.append((name, 0))

    subjects = [
        replace(clock.subject("a", lambda *_: 0, 1), train=lambda: train("a", 3)),
        clock.subject("b", lambda *_: 0, 1),
        replace(clock.subject("c", lambda *_: 0, 1), train=lambda: train("c", 5)),
    ]
    assert time_training(subjects, 2, clock) == [[3, 3], [], [5, 5]]
    assert [name for name, _ in clock.calls] == ["a", "c"] * 4


@pytest.mark.parametrize("options", [{"channels_last": False}, {"recompute": True}, {"precision": "bf16"}])
def test_a_row_can_be_measured_as_it_would_be_trained(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]):
    networks, build = list[Any](), trailseg.networks.build.build
    monkeypatch.setattr(
        trailseg.networks.build, "build", lambda *given, **more: networks.append(build(*given, **more)) or networks[-1]
    )
    subject = open_subject("iterative-v6", replace(TINY, **options))
    (network,) = networks
    assert network.channels_last == options.get("channels_last", True)
    assert network.recompute == options.get("recompute", False)
    assert subject.train is not None
    before = network.head.weight.clone() if hasattr(network.head, "weight") else network.alpha.clone()
    subject.train()
    assert (before != (network.head.weight if hasattr(network.head, "weight") else network.alpha)).any()
    assert not network.training


def test_the_time_of_a_step_is_the_median_of_differences_not_the_difference_of_medians():
    seconds = [(0.010, 0.050), (0.020, 0.030), (0.030, 0.080), (0.040, 0.060), (0.050, 0.110)]
    assert durations(seconds, 2, [0.04, 0.01, 0.02]) == {
        "first_ms": pytest.approx(30),
        "first_spread_ms": pytest.approx(10),  # quartiles 20 and 40
        "step_ms": pytest.approx(20),  # 20, 5, 25, 10, 30; the medians are 30 and 60, 15 apart a step
        "step_spread_ms": pytest.approx(7.5),  # quartiles 10 and 25
        "training_ms": pytest.approx(20),
        "training_spread_ms": pytest.approx(7.5),
    }
    assert durations(seconds, 0, []) == {
        "first_ms": pytest.approx(30), "first_spread_ms": pytest.approx(10), "step_ms": None, "step_spread_ms": None,
        "training_ms": None, "training_spread_ms": None,
    }  # fmt: skip


def test_an_answer_of_more_steps_is_another():
    subject = open_subject("iterative-v6", TINY)
    assert subject.most == 3
    (probability, ids), (_, later) = subject.answer(1), subject.answer(3)  # type: ignore[misc, attr-defined]
    assert ids.shape == probability.shape == (1, 48, 64)
    assert (ids != later).any()


# Figures


def test_a_packed_run_which_has_no_log_has_no_accuracy(trained: Path, tmp_path: Path):
    packed = shutil.copytree(trained, tmp_path / "packed")
    assert trailseg.benchmark._miou(packed) is not None
    (packed / "log.jsonl").unlink()
    assert trailseg.benchmark._miou(packed) is None


def test_the_figures_of_a_row_and_a_run(measured: tuple[Figures, Figures], trained: Path):
    row, of_run = measured
    for one in measured:
        assert (one.runtime, one.device, one.precision, one.batch) == ("PyTorch", "cpu", "32", 1)
        assert one.weights == 4 * (one.parameters + 6)  # with mean and deviation of three channels
        assert one.first_ms > 0
        assert all(math.isfinite(v) for v in vars(one).values() if isinstance(v, float))
    assert (row.name, row.size, row.most, row.step_ms, row.step_spread_ms) == ("single", (48, 64), 1, None, None)
    assert (of_run.name, of_run.size, of_run.most) == (str(trained), (16, 24), 3)
    assert of_run.step_ms is not None
    options = NetworkOptions(network="single", stem="x2", channels=8, depth=1, size=Size(48, 64))
    price = cost(options, classes=9)
    assert (row.parameters, row.macs_stem, row.macs_step) == (price.parameters, price.macs_stem, price.macs_step)
    last = json.loads((trained / "log.jsonl").read_text().splitlines()[-1])["val"]["steps"]
    assert row.miou is None
    assert of_run.miou == pytest.approx([step["miou"] for step in last])


def test_the_keys_of_json(measured: tuple[Figures, Figures]):
    assert list(json.loads(json.dumps(asdict(measured[1])))) == [
        "name", "runtime", "device", "precision", "size", "most", "parameters", "weights",
        "macs_stem", "macs_step", "batch", "first_ms", "first_spread_ms", "step_ms", "step_spread_ms", "training_ms",
        "training_spread_ms", "answer_memory",
        "training_memory", "miou",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the memory of a process so")
def test_memory_is_what_the_profiler_counts():
    options = replace(TINY, size=Size(96, 128), batch=4)
    answer, training = apart(memory, "iterative-v4", options)
    subject = open_subject("iterative-v4", options)
    assert subject.train is not None
    assert answer == pytest.approx(_allocated(lambda: subject.answer(3)), rel=0.05)
    assert training == pytest.approx(_allocated(lambda: (subject.train(), subject.train())), rel=0.05)  # type: ignore[misc]
    one_answer, one_training = apart(memory, "iterative-v4", replace(options, batch=1))
    assert one_answer is not None
    assert one_training is not None
    assert one_answer < one_training < training  # type: ignore[operator]
    assert 3 * one_answer < answer  # type: ignore[operator]


def _allocated(call: Callable[[], object]) -> int:
    """Bytes at the peak of PyTorch's own allocations."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    now = peak = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def test_adam_has_its_moments_before_the_training_step_that_counts(monkeypatch: pytest.MonkeyPatch):
    moments, step = list[int](), torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (moments.append(len(self.state)), step(self)))

    def seen(call: Callable[[], object], device: str) -> list[int]:
        moments.clear()
        call()
        return list(moments)

    monkeypatch.setattr(trailseg.benchmark, "grown", seen)
    _, (before, after) = memory("iterative-v4", TINY)  # type: ignore[misc]
    assert before == 0
    assert after > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_memory_on_an_accelerator():
    answer, training = apart(memory, "iterative-v4", replace(TINY, device="cuda"))
    assert 0 < answer < training  # type: ignore[operator]


def test_where_nobody_counts_memory_there_is_none(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert trailseg.memory_use.grown(lambda: None, "mps") is None


def test_an_exported_file_is_asked_for_no_more_steps_than_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    class OnnxModel:
        facts = SimpleNamespace(size=Size(16, 24), max_steps=2, parameters=5, macs_stem=6, macs_step=7)

        def __init__(self, path: Path, *, device: str) -> None:
            pass

        def answer(self, images: np.ndarray, *, to: Size, steps: int, tolerance: float, trail: bool) -> None:
            asked.append((images.shape, images.dtype, to, steps, tolerance, trail))

    monkeypatch.setitem(sys.modules, "trailseg.onnx_model", SimpleNamespace(OnnxModel=OnnxModel))
    file = tmp_path / "model.onnx"
    file.write_bytes(bytes(1234))
    subject = open_subject(str(file), replace(TINY, batch=2))
    assert (subject.runtime, subject.weights, subject.parameters, subject.most) == ("ONNX Runtime", 1234, 5, 2)
    assert (subject.train, subject.run) == (None, None)
    subject.answer(2)
    assert asked == [((2, 16, 24, 3), np.uint8, (16, 24), 2, 0, False)]


# The plot


def test_the_plot_names_each_run_and_has_a_dot_a_step(
    measured: tuple[Figures, Figures], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    first = replace(measured[1], name="runs/first", first_ms=5.0, step_ms=2.0, miou=(0.25, 0.5, 0.75))
    single = replace(measured[1], name="runs/single", first_ms=4.0, step_ms=None, miou=(0.5, 0.6))
    assert Image.open(plot([measured[0], first, single], tmp_path / "plot.png")).format == "PNG"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["runs/first", "runs/single"]
    lines = [line.get_xydata().tolist() for line in drawn[0].axes[0].lines]
    assert lines == [[[5, 25], [7, 50], [9, 75]], [[4, 50]]]


# Errors


@pytest.mark.parametrize(
    ("word", "kind", "text"),
    [
        ("itertive-v4", OptionError, "networks=itertive-v4 is not known: did you mean 'iterative-v4'?"),
        ("runs/none", FileError, "runs/none: there is no such run directory"),
        ("none.onnx", FileError, "none.onnx: "),
    ],
)
def test_a_word_that_names_nothing(word: str, kind: type[Exception], text: str):
    with pytest.raises(kind) as raised:
        benchmark(replace(TINY, networks=[word]))
    assert str(raised.value).startswith(text)


def test_a_plot_is_refused_where_no_run_is_named(tmp_path: Path):
    with pytest.raises(OptionError, match="name a run directory"):
        benchmark(replace(TINY, networks=["single"], out=str(tmp_path / "plot.png")))


def test_a_process_that_is_killed_lacked_memory():
    with pytest.raises(MemoryError):
        apart(signal.raise_signal, signal.SIGKILL)


def test_what_a_process_of_its_own_raises_is_raised_here():
    with pytest.raises(FileError, match="no such run directory"):
        apart(memory, "nowhere/run", TINY)


def test_an_exported_file_needs_no_torch():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import trailseg.benchmark"], capture_output=True, text=True
    )
    modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in modules  # the list of modules was read rightly
    assert not modules & {"torch", "lightning_fabric", "matplotlib"}
