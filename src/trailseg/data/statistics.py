"""How often each class occurs in a split: pixels and pictures, as counts and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trailseg.data.files import Picture
from trailseg.labels import IGNORE, LabelSet
from trailseg.writing import figure_png, write_whole


@dataclass(frozen=True)
class ClassCount:
    """One class of a split; the last of a list is what has no class."""

    name: str
    colour: tuple[int, int, int]
    pixels: int
    share: float
    """Of all pixels, 0..1."""
    pictures: int
    """In which it occurs."""


def count(pictures: Sequence[Picture], labels: LabelSet) -> list[ClassCount]:
    """A ClassCount for each class, in the order of the ids, and one for the ignored pixels."""
    pixels, seen = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for picture in pictures:
        here = np.bincount(picture.read()[1].ravel(), minlength=256)
        pixels += here
        seen += here > 0
    ids = [*range(len(labels.classes)), IGNORE]
    names, colours = [*labels.classes, "(ignored)"], [*labels.colours, (0, 0, 0)]
    total = max(1, int(pixels.sum()))
    return [
        ClassCount(name, colour, int(pixels[i]), int(pixels[i]) / total, int(seen[i]))
        for i, name, colour in zip(ids, names, colours, strict=True)
    ]


def plot(counts: Sequence[ClassCount], title: str, path: Path) -> Path:
    """Writes a PNG with the share of pixels per class, on a logarithmic scale, in the classes' own colours."""
    figure = Figure(figsize=(7, 1 + 0.3 * len(counts)), layout="constrained")
    axes = figure.subplots()
    names = [f"{c.name} ({c.pictures} pictures)" for c in counts]
    shares = [max(100 * c.share, 1e-4) for c in counts]
    axes.barh(names, shares, color=[np.divide(c.colour, 255) for c in counts], edgecolor="#555555", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlim(1e-4, 200)
    axes.bar_label(axes.containers[0], [f" {100 * c.share:.3g} %" for c in counts], fontsize=8)  # type: ignore[arg-type]
    axes.invert_yaxis()
    axes.set_xlabel("share of pixels (%)")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return write_whole(path, figure_png(figure, dpi=130))
