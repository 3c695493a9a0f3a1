"""The comparison table of a study: rows of networks, each with its seeds summed up.

All figures are those of the last validated epoch. Legend: S steps, K classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from trailseg.data.readers import share
from trailseg.metrics import measures, trivial_confusion
from trailseg.networks.table import BASELINE, GATED, NAMED
from trailseg.report.logs import Data, Network, Run, Validation
from trailseg.report.published import Published

ORDER = [*NAMED, *BASELINE, *GATED]
"""The rows that come first, in this order; any other name follows by the alphabet."""

NONE = "–"  # what a cell shows that has no value


@dataclass(frozen=True)
class Stat:
    """A measure over the seeds of a row."""

    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None with one seed."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Stat":
        numbers = np.array(list(values), float)
        return cls(float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None)

    def percent(self, sign: str = "") -> str:
        """'63.4' or '63.4 ± 1.2', in percent."""
        if np.isnan(self.mean):
            return NONE
        return f"{100 * self.mean:{sign}.1f}" + (f" ± {100 * self.sd:.1f}" if self.sd is not None else "")


@dataclass(frozen=True, eq=False)
class Row:
    """One network: its runs, and what they started from, differ in nothing but the seed. All measures are 0..1."""

    name: str
    runs: tuple[Run, ...]
    """Empty for the trivial answer."""
    accuracy: Stat
    """Pixel accuracy of the last step."""
    miou: tuple[Stat, ...]
    """mIoU of each of the S steps."""
    growth: Stat | None
    """mIoU of the last step less that of the first, run by run; None with one step."""
    stem_miou: Stat | None
    """mIoU of the last step at the logits' resolution."""
    iou: tuple[float, ...]
    """IoU of the K classes at the last step, mean over the seeds; NaN for an absent class."""

    @property
    def network(self) -> Network:
        return self.runs[0].network

    @property
    def family(self) -> str:
        """'single', 'iterative' or 'hourglass', by the values of the network."""
        if len(self.miou) == 1:
            return "single"
        return "hourglass" if self.network.cores == "S" else "iterative"

    @property
    def macs(self) -> int:
        """Multiply-accumulates per picture, all steps."""
        return self.network.macs_stem + len(self.miou) * self.network.macs_step

    @property
    def confusion(self) -> np.ndarray:
        """(S, K, K) over all seeds."""
        return np.array([run.last.confusion for run in self.runs]).sum(0)


@dataclass(frozen=True, eq=False)
class Table:
    """The rows trained and measured on one and the same data, and so comparable."""

    data: Data
    validation: Validation
    """Of any run: its split, pictures and truth are those of all."""
    trivial: Row
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What a reader must know before trusting a row."""
    published: tuple[Published, ...]
    """Figures of others, to be shown beside the rows."""

    @property
    def steps(self) -> int:
        return max(len(row.miou) for row in self.rows)

    @property
    def trained_on(self) -> str:
        """The splits that its rows were trained on."""
        return self.rows[0].runs[0].options["train_on"]

    @property
    def heading(self) -> str:
        v = self.validation
        return (
            f"{self.data.name}, {v.split}: {v.images:,} pictures, {len(self.data.classes)} classes, "
            f"{sum(v.truth):,} scored pixels, {self.data.fingerprint[:19]}"
        )

    @property
    def ranked(self) -> list[Row]:
        """The rows by mIoU of the last step, best first."""
        return sorted(self.rows, key=lambda row: -row.miou[-1].mean)


def build_tables(runs: Sequence[Run], published: tuple[Published, ...] = ()) -> list[Table]:
    """A table for each set of data among `runs`, which all have a validated epoch, with the figures of others."""
    sets: dict[Any, dict[tuple[str, int], list[Run]]] = {}
    prints: dict[Any, list[str]] = {}
    for run in runs:
        v = run.last
        measured = (run.data.name, run.data.classes, v.split, v.images, v.truth, run.options["train_on"])
        # A fingerprint is of pictures at the size they are trained at: of other sizes it says nothing.
        seen = prints.setdefault((measured, run.options["size"]), [])
        if run.data.fingerprint not in seen:
            seen.append(run.data.fingerprint)
        key = (measured, seen.index(run.data.fingerprint))
        sets.setdefault(key, {}).setdefault((run.name, len(v.confusion)), []).append(run)
    return [_table(rows, published) for rows in sets.values()]


def _table(groups: dict[tuple[str, int], list[Run]], published: tuple[Published, ...]) -> Table:
    names = [name for name, _ in groups]
    rows = [
        _row(name if names.count(name) == 1 else f"{name}, steps={steps}", group)
        for (name, steps), group in sorted(groups.items(), key=lambda item: _place(*item[0]))
    ]
    first = rows[0].runs[0]
    trivial = measures(trivial_confusion(first.last.confusion[0]), first.data.classes)
    commonest = first.data.classes[int(np.argmax(first.last.truth))]
    answer = Row(
        name=f"always {commonest}",
        runs=(),
        accuracy=Stat.of([trivial["pixel_accuracy"]]),
        miou=(Stat.of([trivial["miou"]]),) * max(len(row.miou) for row in rows),
        growth=None,
        stem_miou=None,
        iou=_numbers(trivial["iou"].values()),
    )
    notes = tuple(chain.from_iterable(map(_notes, rows)))
    return Table(first.data, first.last, answer, tuple(rows), notes, published)


def _place(name: str, steps: int) -> tuple[int, str, int]:
    return ORDER.index(name) if name in ORDER else len(ORDER), name, steps


def _row(name: str, runs: list[Run]) -> Row:
    runs = sorted(runs, key=lambda run: run.seed)
    last = [measures(run.last.confusion[-1], run.data.classes) for run in runs]
    miou = np.array([run.miou[-1] for run in runs])  # (runs, S)
    iou = np.array([_numbers(m["iou"].values()) for m in last])  # (runs, K)
    # A class that only some seeds count is in no truth, and its IoU is 0 with all of them.
    mean_iou = np.where(np.isnan(iou).all(0), np.nan, np.nan_to_num(iou).mean(0))
    return Row(
        name=name,
        runs=tuple(runs),
        accuracy=Stat.of(m["pixel_accuracy"] for m in last),
        miou=tuple(Stat.of(step) for step in miou.T),
        growth=Stat.of(miou[:, -1] - miou[:, 0]) if miou.shape[1] > 1 else None,
        stem_miou=Stat.of(run.last.stem_miou[-1] for run in runs),
        iou=tuple(map(float, mean_iou)),
    )


def _numbers(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(float("nan") if value is None else value for value in values)


def _notes(row: Row) -> Iterable[str]:
    for run in row.runs:
        if run.last.epoch < run.epochs_planned:
            yield (
                f"{row.name}, seed {run.seed}: {run.epochs_done} of {run.epochs_planned} epochs done, "
                f"measured after epoch {run.last.epoch}."
            )
    if seen := row.runs[0].data.seen:
        yield f"{row.name} was trained on {seen} of the {row.runs[0].last.images} pictures that it was measured on."
    if share(row.runs[0].data.before, row.runs[0].last.split):
        yield (
            f"{row.name} was measured on pictures that runs which it began with or learned from had been trained on "
            f"({row.runs[0].data.before})."
        )
    differing = [name for name in settings(row.runs)[1] if name != "seed"]
    if differing:
        yield f"{row.name}: its runs differ in more than the seed ({', '.join(differing)}), so it is not one network."
    if len({run.seed for run in row.runs}) < len(row.runs):
        yield f"{row.name}: two runs have the same seed, so its spread is too small."


def settings(runs: Sequence[Run]) -> tuple[dict[str, Any], list[str]]:
    """The options that all `runs` share, and the names of those that differ."""
    first = runs[0].options
    differing = [name for name in first if any(run.options[name] != first[name] for run in runs)]
    return {name: value for name, value in first.items() if name not in differing}, differing
