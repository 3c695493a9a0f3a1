"""Cost of networks on this machine: milliseconds to the first prediction, per step and to train; memory; a plot.

Time is that of one call from uint8 pictures to class ids and probabilities at the pictures' size, both on the host, so
that a device is synchronised when the clock stops. Networks take turns, round by round, so that a machine that slows
down slows them all; the first rounds warm up and are not counted.

Memory is what a call adds at its peak to a process that holds nothing but the opened network (and in training Adam's
moments, which are counted). On CUDA it is what PyTorch's allocator gave out; on the processor it is the resident set
of a process of its own, told to hand freed memory back at once, after another copy of the network has done the same
call and so has loaded all code. Compared once, it agreed with the allocations that torch.profiler sums to 0.3 % for a
training step and to 0.2 MB for an answer. ONNX Runtime's figure holds its arena, which it rounds up and keeps.
"""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trailseg.config import BenchmarkOptions, NetworkOptions, PartsOptions, Size
from trailseg.errors import OptionError, require
from trailseg.memory_use import apart, grown
from trailseg.networks.table import BASELINE, NAMED, ROWS
from trailseg.writing import figure_png, write_whole

Key = TypeVar("Key")

WARM_UP = 2  # rounds that are not counted


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A network, and what it is asked for."""

    name: str
    """As it was asked for: a row of the table, a run directory, or an exported file."""
    runtime: str
    device: str
    precision: str
    size: Size
    """Height and width in pixels of the pictures that it answers."""
    most: int
    """Steps of the longest answer: those that it is asked for, or as many as it takes."""
    parameters: int
    weights: int
    """Bytes of float32 weights, or of the exported file."""
    macs_stem: int
    """Multiply-accumulates for one picture of `size`."""
    macs_step: int
    """Multiply-accumulates of a further step."""


@dataclass(frozen=True, kw_only=True)
class Subject(Asked):
    """One that is opened and ready to answer."""

    run: Path | None
    """The run directory, where it is one."""
    answer: Callable[[int], object]
    """Answers `batch` pictures after that many steps; returns when the answer is on the host."""
    train: Callable[[], object] | None
    """A step of training on `batch` pictures; None where it cannot be trained."""


@dataclass(frozen=True, kw_only=True)
class Figures(Asked):
    """What one costs; milliseconds are for `batch` pictures."""

    batch: int
    first_ms: float
    """Milliseconds to the first answer: the median of the rounds."""
    first_spread_ms: float
    """Half the distance between the quartiles of the rounds."""
    step_ms: float | None
    """Milliseconds per further step: the median of the rounds' differences; None where there is no further step."""
    step_spread_ms: float | None
    training_ms: float | None
    """Milliseconds of a training step (loss, gradients, Adam): the median of the rounds; None without training."""
    training_spread_ms: float | None
    answer_memory: int | None
    """Bytes at the peak of an answer of `most` steps, beyond the weights; None where they cannot be measured."""
    training_memory: int | None
    """Bytes at the peak of a training step (loss, gradients and Adam's moments), beyond the weights."""
    miou: tuple[float, ...] | None
    """mIoU 0..1 of each step at the last validated epoch; None where it is not a run."""


def benchmark(options: BenchmarkOptions) -> list[Figures]:
    """The figures of each network, in the order in which they are named.

    OptionError or FileError where a word is neither a row of the table, nor a run directory, nor an exported file, and
    where `out` is given but no run is named, so that there is nothing to plot.
    """
    words = options.networks or [*NAMED, *BASELINE]
    subjects = [open_subject(word, options) for word in words]
    if options.out and not any(subject.run for subject in subjects):
        raise OptionError(f"out={options.out}: the plot is of runs' accuracy; name a run directory, or leave out= away")
    memories = [apart(memory, word, options) for word in words]
    rounds = time_rounds(subjects, options.repeats)
    trained = time_training(subjects, options.repeats)
    return [
        Figures(
            **{field.name: getattr(subject, field.name) for field in fields(Asked)},
            **durations(seconds, subject.most - 1, training),
            batch=options.batch,
            answer_memory=answer_memory,
            training_memory=training_memory,
            miou=_miou(subject.run),
        )
        for subject, seconds, training, (answer_memory, training_memory) in zip(
            subjects, rounds, trained, memories, strict=True
        )
    ]


def time_rounds(
    subjects: Sequence[Subject], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[tuple[float, float]]]:
    """For each subject the seconds of its first and of its longest answer, in each of `repeats` rounds.

    The two change places from round to round. Each turn begins with an answer that is not timed, because the networks
    before it have filled the caches with theirs.
    """
    rounds: list[list[tuple[float, float]]] = [[] for _ in subjects]
    for number in range(WARM_UP + repeats):
        for subject, seconds in zip(subjects, rounds, strict=True):
            subject.answer(1)
            taken = {}
            for steps in (1, subject.most)[:: -1 if number % 2 else 1]:
                started = clock()
                subject.answer(steps)
                taken[steps] = clock() - started
            if number >= WARM_UP:
                seconds.append((taken[1], taken[subject.most]))
    return rounds


def time_training(
    subjects: Sequence[Subject], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """For each subject the seconds of a training step in each of `repeats` rounds; none for those without training."""
    calls = {place: subject.train for place, subject in enumerate(subjects) if subject.train is not None}
    seconds = in_turn(calls, repeats, warm_up=WARM_UP, clock=clock)
    return [seconds.get(place, []) for place in range(len(subjects))]


def in_turn(
    calls: Mapping[Key, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Seconds of each call in each of `rounds` rounds, in which all take turns, after `warm_up` that do not count.

    >>> {name: len(seconds) for name, seconds in in_turn({"a": list, "b": dict}, 3).items()}
    {'a': 3, 'b': 3}
    """
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for number in range(warm_up + rounds):
        for key, call in calls.items():
            started = clock()
            call()
            if number >= warm_up:
                seconds[key].append(clock() - started)
    return seconds


def durations(seconds: Sequence[tuple[float, float]], further: int, training: Sequence[float] = ()) -> dict[str, Any]:
    """Medians and spreads in milliseconds, as `Figures` names them.

    seconds: of the first and of the longest answer of each round, at least two; further: the steps between the two;
    training: seconds of a training step in each round, or nothing.

    >>> found = durations([(1.0, 3.0), (2.0, 5.0), (3.0, 4.0)], 2)
    >>> found["first_ms"], found["first_spread_ms"], found["step_ms"], found["step_spread_ms"]
    (2000.0, 500.0, 1000.0, 250.0)
    """
    nothing = (None, None)
    first = _median_and_spread([1000 * one for one, _ in seconds])
    step = _median_and_spread([1000 * (all_ - one) / further for one, all_ in seconds]) if further else nothing
    train = _median_and_spread([1000 * one for one in training]) if training else nothing
    keys = ("first_ms", "first_spread_ms", "step_ms", "step_spread_ms", "training_ms", "training_spread_ms")
    return dict(zip(keys, (*first, *step, *train), strict=True))


def memory(word: str, options: BenchmarkOptions) -> tuple[int | None, int | None]:
    """Bytes at the peak of an answer and of a training step, each beyond the weights; call it in a process of its own.

    None where there is no training, and where neither CUDA nor Linux counts what is used.
    """

    def peak(choose: Callable[[Subject], Callable[[], object] | None]) -> int | None:
        subject = open_subject(word, options)
        call = choose(subject)
        if call is None or (subject.device == "cuda" and subject.runtime != "PyTorch"):  # whose memory nobody counts
            return None
        call()
        subject = open_subject(word, options)
        call = choose(subject)
        gc.collect()
        return call and grown(call, subject.device)

    def twice(train: Callable[[], object] | None) -> Callable[[], object] | None:
        return train and (lambda: (train(), train()))  # Adam makes its moments in the first

    return peak(lambda subject: partial(subject.answer, subject.most)), peak(lambda subject: twice(subject.train))


def plot(figures: Sequence[Figures], path: Path) -> Path:
    """Writes a PNG of the runs' mIoU after each step against the milliseconds to it: a line a run, a dot a step.

    Only the first step is plotted where no further step was timed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from trailseg.report.plots import STYLE

    runs = [one for one in figures if one.miou]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.8))
        axes = figure.subplots()
        for one, colour in zip(runs, matplotlib.colormaps["viridis"](np.linspace(0, 0.78, len(runs))), strict=True):
            mious = (one.miou or ())[: 1 if one.step_ms is None else None]
            milliseconds = [one.first_ms + step * (one.step_ms or 0) for step in range(len(mious))]
            axes.plot(milliseconds, 100 * np.array(mious), color=colour, marker="o", markersize=5, label=one.name)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"milliseconds to the answer of each step (median; {runs[0].device}, batch {runs[0].batch})")
        axes.set_ylabel("mIoU, %")
        figure.legend(loc="outside upper left", ncols=3)
        return write_whole(path, figure_png(figure, dpi=160))


def open_subject(word: str, options: BenchmarkOptions) -> Subject:
    """The network that `word` names, ready to answer; OptionError or FileError where it names none."""
    path = Path(word)
    if path.suffix.lower() == ".onnx":
        return _open_file(path, options)
    if word not in ROWS and not path.exists() and len(path.parts) == 1:
        require("networks", word, [*ROWS, "a run directory", "a file ending in .onnx"])
    return _open_torch(word, options)


def _open_torch(word: str, options: BenchmarkOptions) -> Subject:
    """A row of the table, with weights of its own, or a run."""
    import torch

    from trailseg.device import resolve
    from trailseg.inference import classify, refine
    from trailseg.losses import StepLoss
    from trailseg.networks.build import build
    from trailseg.networks.cost import cost
    from trailseg.runs import Run

    run = None if word in ROWS else Run.open(word)
    asked: NetworkOptions
    if run is None:
        parts = {field.name: getattr(options, field.name) for field in fields(PartsOptions)}
        classes, asked = options.classes, NetworkOptions(network=word, **parts)
        network = build(asked, classes=classes).eval()
    else:
        classes, asked = len(run.config["data"]["classes"]), run.options
        network = run.network()
    size, most = asked.size, network.up_to(options.steps)
    compute = resolve(options.device, options.precision)
    network.to_device(compute.device, channels_last=options.channels_last)
    if options.recompute:
        network.save_memory()
    if options.compile:
        network.compile_parts()
    images = _pictures(options.batch, size)

    def load() -> torch.Tensor:
        return torch.from_numpy(images).to(compute.device).permute(0, 3, 1, 2).float() / 255

    @torch.inference_mode()
    def answer(steps: int) -> list[np.ndarray]:
        with compute.autocast():
            logits = refine(network, load(), steps=steps).logits[-1]
        return [values.cpu().numpy() for values in classify(network, logits, size, size)]

    adam, criterion = torch.optim.Adam(network.parameters()), StepLoss(dice=1, gamma=1, recompute=options.recompute)
    side = [-(-pixels // network.scale) for pixels in size]
    # Noise, too: what can be learnt soon leaves gradients so small that processors compute them in the slow way.
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, classes, (options.batch, *side), np.uint8))
    labels = labels.to(compute.device)

    def train() -> None:
        network.train()
        with compute.autocast():
            logits = network(load(), most)
        sums, counts = criterion(logits, labels)
        adam.zero_grad()
        (sums / counts).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        network.eval()
        if compute.device.type == "cuda":
            torch.cuda.synchronize()

    return Subject(
        name=word,
        runtime="PyTorch",
        device=compute.device.type,
        precision=compute.precision,
        size=size,
        most=most,
        weights=sum(tensor.nbytes for tensor in network.state_dict().values()),
        **asdict(cost(asked, classes=classes)),
        run=None if run is None else run.folder,
        answer=answer,
        train=train,
    )


def _open_file(path: Path, options: BenchmarkOptions) -> Subject:
    """An exported file; needs no PyTorch. One of S cores takes all its steps, so that further ones cost nothing."""
    from trailseg.onnx_model import OnnxModel

    model = OnnxModel(path, device=options.device)
    facts = model.facts
    images = _pictures(options.batch, facts.size)
    return Subject(
        name=str(path),
        runtime="ONNX Runtime",
        device="cuda" if options.device == "cuda" else "cpu",
        precision="32",
        size=facts.size,
        most=min(options.steps, facts.max_steps or options.steps),
        parameters=facts.parameters,
        weights=path.stat().st_size,
        macs_stem=facts.macs_stem,
        macs_step=facts.macs_step,
        run=None,
        answer=lambda steps: model.answer(images, to=facts.size, steps=steps, tolerance=0, trail=False),
        train=None,
    )


def _pictures(batch: int, size: Size) -> np.ndarray:
    """Noise (B, H, W, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)


def _median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, (high - low) / 2


def _miou(folder: Path | None) -> tuple[float, ...] | None:
    """mIoU 0..1 of each step at the last validated epoch of a run; None where none is validated."""
    if folder is None:
        return None
    from trailseg.runs import Run

    vals = [record["val"] for record in Run.open(folder).log() if record["val"]]
    return tuple(step["miou"] for step in vals[-1]["steps"]) if vals else None
