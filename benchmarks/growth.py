"""What do time and memory grow with: pixels, steps, channels, or pictures at a time?

    python benchmarks/growth.py [rounds=5] [stems=s8,x8] [quick=true] [json=PATH] [png=PATH]

From one modest network a single thing is varied at a time. All points take turns, round by round, so that a busy
machine slows all; milliseconds are medians, of an answer and of a training step, and megabytes are peaks beyond the
weights (see trailseg.benchmark), all measured in one process of their own. A slope is that of a straight line through
the logarithms: 1 is in proportion, 2 with the square. What steps cost is affine: a first, which holds the stem, and
each further one. The last table says which share of a plain matrix product's rate the networks reach. quick=true is a
trial of seconds.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import script
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from trailseg.benchmark import Subject, memory, open_subject, time_rounds, time_training
from trailseg.config import BenchmarkOptions, Size
from trailseg.device import resolve
from trailseg.memory_use import apart
from trailseg.report.plots import STYLE
from trailseg.writing import figure_png, write_whole

NETWORK = "iterative-v6"
BASE = BenchmarkOptions(channels=32, depth=3, size=Size(192, 256), steps=3, batch=2)
SIZES = [Size(64, 192), Size(128, 192), Size(192, 256), Size(256, 384), Size(384, 512)]  # each twice the one before
VALUES: dict[str, list[Any]] = {
    "pixels": SIZES,
    "steps": [1, 2, 4, 8, 16],
    "channels": [16, 32, 64, 128],
    "pictures": [1, 2, 4, 8, 16],
}
QUICK_BASE = BenchmarkOptions(channels=8, depth=1, size=Size(96, 96), steps=1, batch=1)
QUICK_VALUES: dict[str, list[Any]] = {
    "pixels": [Size(96, 96), Size(96, 192)],
    "steps": [1, 2],
    "channels": [8, 16],
    "pictures": [1, 2],
}
OPTIONS = {"pixels": "size", "steps": "steps", "channels": "channels", "pictures": "batch"}
EXPECTED = {"pixels": (1, 1), "steps": None, "channels": (2, 1), "pictures": (1, 1)}  # of time and of memory
FIGURES = ("answer_ms", "training_ms", "answer_megabytes", "training_megabytes")
RECOMPUTED = "recomputed_training_megabytes"

TITLES = ("Points", "Slopes, beside the expected", "What steps cost", "Rates, the best of five medians")
COLOURS = {"s8": "#0072b2", "x8": "#d55e00"}
LOOKS = {  # of the figures: marker, whether it is filled, and name
    "answer_": ("o", False, "an answer"),
    "training_": ("o", True, "a training step"),
    "recomputed_training_": ("^", True, "a training step with recompute=true"),
}
GREY: dict[str, Any] = {"color": "#a0a0a0", "linewidth": 0.9, "zorder": 1}
AXES = {"pixels": "pixels of a picture", "steps": "steps", "channels": "channels", "pictures": "pictures at a time"}

Point = dict[str, Any]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The power of x that y grows with: of the least-squares line through the logarithms.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def affine(steps: Sequence[int], ys: Sequence[float]) -> tuple[float, float]:
    """What the first step costs and what each further one, by least squares of the relative errors.

    >>> [round(cost, 6) for cost in affine([1, 2, 4], [5, 7, 11])]
    [5.0, 2.0]
    """
    further, first = np.polyfit(np.array(steps) - 1, ys, 1, w=1 / np.array(ys))
    return float(first), float(further)


def gmac(subject: Subject, batch: int) -> float:
    """Thousand million multiply-accumulates of an answer."""
    return batch * (subject.macs_stem + subject.most * subject.macs_step) / 1e9


def measure(base: BenchmarkOptions, values: dict[str, list[Any]], stems: Sequence[str], rounds: int) -> list[Point]:
    """A flat object for each stem, varied thing and value of it."""
    wanted = [
        (varied, value, replace(base, stem=stem, **{OPTIONS[varied]: value}))
        for stem, varied in product(stems, values)
        for value in values[varied]
    ]
    different: list[BenchmarkOptions] = []
    for _, _, options in wanted:
        different += [options] * (options not in different)  # the base is a point of several lines
    recomputing = [replace(options, recompute=True) for varied, _, options in wanted if varied == "steps"]
    memories = apart(peaks, [*different, *recomputing])
    subjects = [open_subject(NETWORK, options) for options in different]
    answers = [statistics.median(all_ for _, all_ in taken) for taken in time_rounds(subjects, rounds)]
    trainings = [statistics.median(taken) for taken in time_training(subjects, rounds)]
    points = []
    for varied, value, options in wanted:
        place, twin = different.index(options), replace(options, recompute=True)
        recomputed = memories[len(different) + recomputing.index(twin)][1] if varied == "steps" else None
        points.append(
            {
                "stem": options.stem,
                "varied": varied,
                "value": value.height * value.width if varied == "pixels" else value,
                "answer_ms": round(1e3 * answers[place], 2),
                "training_ms": round(1e3 * trainings[place], 2),
                "answer_megabytes": round(memories[place][0], 2),
                "training_megabytes": round(memories[place][1], 2),
                RECOMPUTED: None if recomputed is None else round(recomputed, 2),
                "gmac": round(gmac(subjects[place], options.batch), 4),
            }
        )
    return points


def peaks(different: Sequence[BenchmarkOptions]) -> list[list[float]]:
    """Megabytes of an answer and of a training step with each of these options; in a process of its own."""
    return [[(size or 0) / 1e6 for size in memory(NETWORK, options)] for options in different]


def lines(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """The points by what is varied and by their stem."""
    keys = dict.fromkeys((point["varied"], point["stem"]) for point in points)
    return {key: [point for point in points if (point["varied"], point["stem"]) == key] for key in keys}


def slopes(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each line the slopes of its figures and of its arithmetic, and those that theory expects (steps: None)."""
    rows = []
    for (varied, stem), line in lines(points).items():
        xs = [point["value"] for point in line]
        found = {name: round(slope(xs, [point[name] for point in line]), 3) for name in (*FIGURES, "gmac")}
        time_slope, memory_slope = EXPECTED[varied] or (None, None)
        rows.append(
            {"varied": varied, "stem": stem, **found, "expected_ms": time_slope, "expected_megabytes": memory_slope}
        )
    return rows


def costs_of_steps(points: Sequence[Point]) -> list[dict[str, Any]]:
    """For each stem and figure what the first step costs, and each further one."""
    rows = []
    for (varied, stem), line in lines(points).items():
        for name in (*FIGURES, RECOMPUTED) if varied == "steps" else ():
            first, further = affine([point["value"] for point in line], [point[name] for point in line])
            rows.append({"stem": stem, "figure": name, "first": round(first, 3), "further": round(further, 3)})
    return rows


def rates(base: BenchmarkOptions, stems: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """GMAC per second of a matrix product, of a large convolution and of the networks: the best of five medians."""
    device = resolve(base.device, base.precision).device
    square, image = torch.rand(1024, 1024, device=device), torch.rand(1, 60, 192, 384, device=device)
    convolution = torch.nn.Conv2d(60, 60, 5, padding=2).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=torch.channels_last)
    works: dict[str, tuple[float, Callable[[], object]]] = {
        "matrix product, 1024 cubed": (1024**3 / 1e9, lambda: (square @ square)[0, 0].item()),
        "5x5 convolution, 60 channels, 192x384": (
            60 * 60 * 25 * 192 * 384 / 1e9,
            lambda: convolution(image)[0, 0, 0, 0].item(),
        ),
    }
    for stem in stems:
        subject = open_subject(NETWORK, replace(base, stem=stem))
        works[f"network with stem {stem}"] = (
            gmac(subject, base.batch),
            partial(subject.answer, subject.most),
        )
    medians: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode():
        for _ in range(5):
            for name, (_, work) in works.items():
                medians[name].append(statistics.median(seconds(work) for _ in range(rounds)))
    found = {name: amount / min(medians[name]) for name, (amount, _) in works.items()}
    best = next(iter(found.values()))
    return [
        {"what": name, "gmac_per_second": round(rate, 2), "share_of_matrix_product": round(rate / best, 3)}
        for name, rate in found.items()
    ]


def seconds(work: Callable[[], object]) -> float:
    """What one call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def plot(points: Sequence[Point], path: Path) -> Path:
    """Writes a PNG: time above memory, a column for each thing that is varied, a colour for each stem.

    Grey is what is expected: time in proportion to the arithmetic, memory to what is varied; for steps the fitted line.
    """
    found = lines(points)
    columns = list(dict.fromkeys(varied for varied, _ in found))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 5.6))
        panels = figure.subplots(2, len(columns), sharex="col", sharey="row")
        for (varied, stem), line in found.items():
            for row, unit in enumerate(("ms", "megabytes")):
                _panel(panels[row, columns.index(varied)], line, unit, COLOURS[stem])
        for axes, varied in zip(panels[1], columns, strict=True):
            axes.set_xlabel(AXES[varied])
        for axes, label in zip(panels[:, 0], ("milliseconds", "megabytes at the peak"), strict=True):
            axes.set_ylabel(label)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_locator(NullLocator())
        _legend(figure, panels[0, 0], list(dict.fromkeys(stem for _, stem in found)))
        return write_whole(path, figure_png(figure, dpi=160))


def _panel(axes: Axes, line: Sequence[Point], unit: str, colour: str) -> None:
    """One stem's measured points; in grey, through the last, how the arithmetic grows, or a slope of 1 for bytes."""
    xs, arithmetic = ([point[name] for point in line] for name in ("value", "gmac"))
    for figure, (marker, filled, _) in LOOKS.items():
        ys: list[Any] = [point.get(figure + unit) for point in line]
        if None in ys:
            continue
        expected = arithmetic if unit == "ms" else xs
        grey = np.multiply(expected, ys[-1] / expected[-1])
        if unit == "megabytes" and line[0]["varied"] == "steps":
            first, further = affine(xs, ys)
            grey = first + further * (np.array(xs) - 1)
        axes.plot(xs, grey, **GREY)
        axes.plot(xs, ys, marker, color=colour, markersize=5, markerfacecolor=colour if filled else "white")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(xs, [f"{x / 1000:.0f}k" if x >= 10000 else f"{x}" for x in xs])
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axes: Axes, stems: Sequence[str]) -> None:
    """Colours, markers, and what grey is."""
    for stem in stems:
        axes.plot([], [], "s", color=COLOURS[stem], label=f"stem {stem}")
    for marker, filled, name in LOOKS.values():
        axes.plot([], [], marker, color="#555555", markerfacecolor="#555555" if filled else "white", label=name)
    axes.plot([], [], label="as expected", **GREY)
    figure.legend(loc="outside upper left", ncols=len(stems) + 4, columnspacing=1.4, handletextpad=0.4)


@dataclass(frozen=True, kw_only=True)
class Options(script.TimedOptions):
    """Options of this script."""

    stems: list[str] = field(default_factory=lambda: ["s8", "x8"])
    """Stems to compare."""
    quick: bool = False
    """Whether to make a trial of seconds."""
    png: str | None = None
    """File to plot to."""


def main(options: Options) -> None:
    """Prints points, slopes, the cost of steps and rates."""
    base, values = (QUICK_BASE, QUICK_VALUES) if options.quick else (BASE, VALUES)
    points = measure(base, values, options.stems, options.rounds)
    found = {
        "points": points,
        "slopes": slopes(points),
        "steps": costs_of_steps(points),
        "rates": rates(base, options.stems, options.rounds),
    }
    for rows, title in zip(found.values(), TITLES, strict=True):
        script.show(rows, title)
    script.keep(found, options.json)
    if options.png:
        plot(points, Path(options.png))


if __name__ == "__main__":
    script.run(main, Options)
