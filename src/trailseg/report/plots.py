"""The plots of a study: one function each, from a table to a figure, and the one that writes them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from trailseg.report.table import Row, Table
from trailseg.writing import figure_png, write_whole

STYLE: dict[Any, Any] = {
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.labelsize": 10,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a name may hold a dollar sign
}
# Okabe and Ito's colours, told apart by all readers.
FAMILIES = {"iterative": ("#0072b2", "o"), "hourglass": ("#d55e00", "s"), "single": ("#333333", "D")}
RESIDUAL = {True: ("#0072b2", "residual"), False: ("#e69f00", "no residual")}
PUBLISHED: dict[str, Any] = {
    "color": "#808080",
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 7,
}
OWN: dict[str, Any] = {"color": "#0072b2", "linewidth": 1, "zorder": 3}  # a panel's network, and behind it the others
OTHERS: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.7}
MARKERS = "osv^DP"  # of the contexts of a table, in their order

End = tuple[float, float, str, Any]  # x, y, name and colour of a line's last point


@dataclass(frozen=True)
class Plot:
    """A plot that was written."""

    path: Path
    width: int
    """CSS pixels at which its letters have the size of the page's small print."""
    title: str
    caption: str


def draw(table: Table, folder: Path, number: int = 1) -> list[Plot]:
    """Write all plots of `table` that show something into `folder`; from the second table on, their names end in its
    number.
    """
    table = _shortened(table)
    plots = []
    with matplotlib.rc_context(STYLE):
        for name, (plot, title, caption) in PLOTS.items():
            figure = plot(table)
            if figure is None:
                continue
            path = write_whole(folder / f"{name}{f'-{number}' if number > 1 else ''}.png", figure_png(figure, dpi=160))
            plots.append(Plot(path, round(100 * figure.get_figwidth()), title, caption))
    return plots


def _shortened(table: Table) -> Table:
    """`table` with names that fit beside a plot."""
    data = replace(table.data, classes=tuple(map(_short, table.data.classes)))
    rows = tuple(replace(row, name=_short(row.name)) for row in table.rows)
    published = tuple(replace(one, name=_short(one.name)) for one in table.published)
    return replace(table, data=data, rows=rows, published=published)


def _short(name: str) -> str:
    return name if len(name) < 30 else f"{name[:28]}…"


def _refinement(table: Table) -> Figure:
    refining = [row for row in table.rows if row.family != "single"] or list(table.rows)
    stages = _stages(table)
    markers = dict(zip(sorted({row.network.context for row in refining}), MARKERS, strict=False))
    figure, panels = _family_panels(refining)
    ends: list[list[End]] = []
    for axes, rows in panels:
        for row in rows:
            values = [100 * miou.mean for miou in row.miou]
            colour, marker = RESIDUAL[row.network.residual][0], markers.get(row.network.context, "x")
            style = {"alpha": 0.3, "markersize": 3, "linewidth": 0.8} if row.name in stages else {"markersize": 5}
            axes.plot(range(1, len(values) + 1), values, color=colour, marker=marker, **style)
        named = [row for row in rows if row.name not in stages]
        singles = [row for row in table.rows if row.family == "single" and row not in rows and row.name not in stages]
        for row in singles:
            axes.axhline(100 * row.miou[0].mean, color="#555555", linestyle=(0, (4, 3)), linewidth=1)
        axes.set_xticks(range(1, table.steps + 1))
        axes.set_xlabel("step")
        ends.append([(len(r.miou), 100 * r.miou[-1].mean, r.name, RESIDUAL[r.network.residual][0]) for r in named])
        ends[-1] += [(table.steps, 100 * row.miou[0].mean, row.name, "#555555") for row in singles]
    panels[0][0].set_ylabel("mIoU, %")
    for residual in sorted({row.network.residual for row in refining}):
        panels[0][0].plot([], [], color=RESIDUAL[residual][0], label=RESIDUAL[residual][1])
    for context, marker in markers.items():
        panels[0][0].plot([], [], color="#777777", marker=marker, linestyle="", label=f"context: {context}")
    figure.legend(loc="outside upper left", ncols=5)
    _label_ends(figure, [axes for axes, _ in panels], ends)
    return figure


def _stages(table: Table) -> set[str]:
    """The rows that others go on from, by their shortened names: for the eye they are a way, not an end."""
    sources = [source for row in table.rows for run in row.runs for source in run.options["start_from"] or []]
    return set(map(_short, sources))


def _accuracy_against_parameters(table: Table) -> Figure:
    figure = Figure(figsize=(10, 5.2))
    axes = figure.subplots()
    labels = []
    stages = _stages(table)

    def label(name: str, x: float, y: float, colour: str) -> None:
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 4}
        style: dict[str, Any] = {"color": colour, "fontsize": 8.5, "va": "bottom", "arrowprops": line}
        labels.append(axes.annotate(name, (x, y), (0, 0), textcoords="offset points", **style))

    for family, (colour, marker) in FAMILIES.items():
        for i, row in enumerate(row for row in table.rows if row.family == family):
            x, y, sd = row.network.parameters / 1e6, 100 * row.miou[-1].mean, 100 * (row.miou[-1].sd or 0)
            size = 3 if row.name in stages else 7
            axes.errorbar(x, y, sd or None, color=colour, marker=marker, markersize=size, elinewidth=0.8, capsize=2.5)
            if i == 0:
                where = f", on {table.validation.split}" if table.published else ""
                axes.plot([], [], color=colour, marker=marker, markersize=7, linestyle="", label=family + where)
            if row.name not in stages:
                label(row.name, x, y, colour)
    for one in table.published:
        axes.plot(one.parameters / 1e6, one.miou, **PUBLISHED)
        label(one.name, one.parameters / 1e6, one.miou, PUBLISHED["color"])
    if table.published:
        pictures = " and ".join(dict.fromkeys(one.pictures for one in table.published))
        axes.plot([], [], label=f"published, on the {pictures} pictures", linestyle="", **PUBLISHED)
    axes.set_xscale("log")
    axes.margins(x=0.22, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("parameters, million (logarithmic)")
    axes.set_ylabel("mIoU of the last step, %")
    figure.legend(loc="outside upper left", ncols=4)
    _place_apart(figure, labels)
    return figure


def _miou_per_step(table: Table) -> Figure | None:
    shown = [row for row in table.rows if any(len(run.validations) > 1 for run in row.runs)]
    if not shown:
        return None
    figure, panels = _panel_each(shown, "mIoU, %")
    ends = []
    for axes, row in zip(panels, shown, strict=True):
        shades = matplotlib.colormaps["Blues"](np.linspace(0.45, 1, len(row.miou)))
        _training_panel(axes, row, shades)
        end = max(run.last.epoch for run in row.runs)
        ends.append([(end, 100 * row.miou[i].mean, str(i + 1), shade) for i, shade in enumerate(shades)])
    _label_ends(figure, panels, ends)
    return figure


def _training_panel(axes: Axes, row: Row, shades: np.ndarray) -> None:
    """mIoU of each step over the epochs: a thin line for each seed, and their mean where all are validated."""
    curves = [dict(zip((v.epoch for v in run.validations), 100 * run.miou, strict=True)) for run in row.runs]
    shared = sorted(set.intersection(*map(set, curves)))
    for step, shade in enumerate(shades):
        for curve in curves:
            axes.plot(list(curve), [miou[step] for miou in curve.values()], color=shade, linewidth=0.7, alpha=0.4)
        mean = [np.mean([curve[epoch][step] for curve in curves]) for epoch in shared]
        axes.plot(shared, mean, color=shade, linewidth=1.6, marker="." if len(shared) == 1 else "")


def _iou_per_class(table: Table) -> Figure:
    names = [*table.data.classes, "mIoU"]
    figure = Figure(figsize=(max(2.4 + 0.5 * len(names), 5), 1.9 + 0.36 * len(table.rows)))
    axes = figure.subplots()
    percent = 100 * np.array([[*row.iou, row.miou[-1].mean] for row in table.rows])
    _heat_map(axes, percent, [row.name for row in table.rows], names)
    axes.axvline(len(names) - 1.5, color="white", linewidth=5)
    return figure


def _confusion(table: Table) -> Figure:
    best, names = table.ranked[0], table.data.classes
    steps = sorted({1, len(best.miou)})
    beside = len(names) <= 12  # more would make the numbers too small to read
    across, down = (len(steps), 1) if beside else (1, len(steps))
    side = max(0.42 * len(names), 2.5)
    figure = Figure(figsize=(across * (side + 0.4) + 1.4, down * side + 1.7))
    panels = figure.subplots(down, across, squeeze=False)
    for axes, step in zip(panels.flat, steps, strict=True):
        counts = best.confusion[step - 1]
        pixels = counts.sum(1, keepdims=True)
        _heat_map(axes, 100 * counts / np.where(pixels, pixels, np.nan), names, names, least=0.5)
        axes.set(title=f"{best.name}, step {step} of {len(best.miou)}", xlabel="predicted", ylabel="truth")
        axes.label_outer()
    return figure


def _loss(table: Table) -> Figure:
    figure, panels = _panel_each(table.rows, "training loss")
    for axes, row in zip(panels, table.rows, strict=True):
        for other in table.rows:
            for run in other.runs:
                style = OWN if other is row else OTHERS
                axes.plot(*zip(*run.losses, strict=True), marker="" if run.losses[1:] else ".", **style)
    return figure


PLOTS: dict[str, tuple[Callable[[Table], Figure | None], str, str]] = {
    "refinement": (
        _refinement,
        "What refinement brings",
        "mIoU after each step at the last validated epoch, mean over the seeds; dashed: a network of one step; "
        "pale, without a name: what another row starts from.",
    ),
    "accuracy_against_parameters": (
        _accuracy_against_parameters,
        "Accuracy against size",
        "mIoU of the last step against parameters; whiskers are one standard deviation over the seeds; small, without "
        "a name: what another row starts from.",
    ),
    "miou_per_step": (
        _miou_per_step,
        "mIoU of each step while training",
        "One panel a network that was measured more than once: the darker the line, the later the step, numbered at "
        "its end; thin: single seeds.",
    ),
    "iou_per_class": (
        _iou_per_class,
        "IoU of each class",
        "IoU in percent of the last step, mean over the seeds; a dash is an absent class.",
    ),
    "confusion": (
        _confusion,
        "Where the most accurate network errs",
        "Percent of each true class's pixels by predicted class, all seeds together; a blank is below 0.5 %.",
    ),
    "loss": (
        _loss,
        "Training loss",
        "One panel a network, a line a seed, grey those of all others: mean over the steps; compare only networks that "
        "were trained with the same steps and the same loss.",
    ),
}


def _family_panels(rows: Sequence[Row]) -> tuple[Figure, list[tuple[Axes, list[Row]]]]:
    """Hourglasses and the other rows in panels side by side on one scale, each titled by its families."""
    groups = [[row for row in rows if (row.family == "hourglass") == hourglass] for hourglass in (False, True)]
    groups = [group for group in groups if group]
    figure = Figure(figsize=(10.8 if len(groups) > 1 else 7, 4.6))
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        axes.set_title(" and ".join(dict.fromkeys(row.family for row in group)))
    return figure, list(zip(panels, groups, strict=True))


def _panel_each(rows: Sequence[Row], what: str) -> tuple[Figure, list[Axes]]:
    """A panel a row, titled by its name, of what is plotted over the epochs; all on one scale."""
    columns = min(5, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(max(2.25 * columns, 5), 0.5 + max(2.0 * lines, 2.6)))
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, row in zip(panels.flat, rows, strict=False):
        axes.set_title(row.name, fontsize=9.5)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for i in range(len(rows), lines * columns):
        panels[-1, i % columns].set_axis_off()
        panels[-2, i % columns].tick_params(labelbottom=True)
    figure.supxlabel("epoch")
    figure.supylabel(what)
    return figure, list(panels.flat)[: len(rows)]


def _heat_map(axes: Axes, percent: np.ndarray, rows: Sequence[str], columns: Sequence[str], least: float = 0) -> None:
    """Cells of 0..100 with their numbers from `least` on; NaN is a dash."""
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    for (y, x), value in np.ndenumerate(percent):
        text = "–" if np.isnan(value) else f"{value:.0f}"
        if not value < least:
            axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color="white" if value > 55 else "#333333")


def _label_ends(figure: Figure, panels: Sequence[Axes], ends: Sequence[Sequence[End]]) -> None:
    """Name the lines of each panel at its right, moved apart where the names would touch."""
    figure.draw_without_rendering()  # settles the height of a panel, from which follows how far apart names must be
    for axes, unsorted in zip(panels, ends, strict=False):
        low, high = axes.get_ylim()
        height = axes.get_position().height * figure.get_figheight() * 72
        named = sorted(unsorted, key=lambda end: end[1])
        places = spread([end[1] for end in named], (high - low) * 10 / height)
        for (x, y, name, colour), place in zip(named, places, strict=True):
            line = {
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.4,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            }
            style: dict[str, Any] = {"color": colour, "fontsize": 8.5, "va": "center", "arrowprops": line}
            style |= {"textcoords": axes.get_yaxis_transform(), "annotation_clip": False}
            axes.annotate(name, (x, y), (1.04, place), **style)
        axes.set_ylim(low, high)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The ascending places nearest to the ascending `values` that are at least `gap` apart.

    >>> spread([1.0, 1.0, 5.0], 2.0)
    [0.0, 2.0, 5.0]
    """
    blocks: list[list[float]] = []
    for i, value in enumerate(values):
        blocks.append([value - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) >= np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [float(np.mean(block)) for block in blocks for _ in block]
    return [place + i * gap for i, place in enumerate(places)]


def _place_apart(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Move each label to the nearest place around its point that covers no other label and no point."""
    figure.draw_without_rendering()
    points = [np.array(label.get_window_extent().min) for label in labels]  # every label begins at its point, still
    angles = np.radians([0, 180, 30, -30, 150, -150, 60, -60, 120, -120])
    taken = [Bbox.from_extents(*(point - 5), *(point + 5)) for point in points]
    for label, point in zip(labels, points, strict=True):
        size = np.array(label.get_window_extent().size) + 4
        for radius, angle in ((r, a) for r in range(10, 200, 6) for a in angles):
            way = np.array([np.cos(angle), np.sin(angle)])
            corner = point + radius * way - size * [way[0] < 0, 0.5]
            box = Bbox.from_bounds(*corner, *size)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        label.set_position(tuple((corner + 2 - point) * 72 / figure.dpi))
