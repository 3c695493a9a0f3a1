"""The original study's claims tested against a table, and whether one step would do: a sentence each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trailseg.networks import table as networks
from trailseg.report.table import Row


def claims(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each claim that these rows can test; figures are of the last step, in percent or points."""
    named = {row.name: row for row in rows if row.name in networks.NAMED}
    yield from _residual(named)
    yield from _steps([row for row in rows if row.growth])
    yield from _parameters(named)
    yield from _baseline(named, [row for row in rows if row.name in networks.BASELINE])


def _residual(named: dict[str, Row]) -> Iterator[str]:
    """What the residual brings, beside what the other two axes of the table bring."""
    pairs = _gains(named, "residual", False, True)
    others = {
        "copying the context": _gains(named, "context", "none", "shared"),
        "a second core": _gains(named, "cores", 1, 2),
        "a core for each step": _gains(named, "cores", 1, "S"),
    }
    effects = {change: float(np.mean(list(gains.values()))) for change, gains in others.items() if gains}
    if pairs and effects:
        mean, better = float(np.mean(list(pairs.values()))), sum(gain > 0 for gain in pairs.values())
        holds = mean > 0 and mean >= max(map(abs, effects.values()))
        yield (
            f"**Residual connections matter most**: {'holds' if holds else 'does not hold'} in these figures. Of "
            f"{len(pairs)} pairs of networks that differ in nothing else, the residual one is better in {better}, by "
            f"{mean:+.1f} points of mIoU on average ({_listed(pairs)}). Changed alone, the other axes gain, in points: "
            f"{_listed(effects)}."
        )


def _gains(named: dict[str, Row], axis: str, before: Any, after: Any) -> dict[str, float]:
    """Points of mIoU that each network of the table gains when its row changes from `before` to `after` on one axis."""
    names = {row: name for name, row in networks.NAMED.items()}
    twins = {
        name: names.get(replace(row, **dict[str, Any]({axis: after})))
        for name, row in networks.NAMED.items()
        if getattr(row, axis) == before
    }
    return {
        f"{twin} over {name}": 100 * (named[twin].miou[-1].mean - named[name].miou[-1].mean)
        for name, twin in twins.items()
        if name in named and twin in named
    }


def _listed(gains: dict[str, float]) -> str:
    return ", ".join(f"{name} {gain:+.1f}" for name, gain in gains.items())


def _steps(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        means = [[stat.mean for stat in row.miou] for row in rows]
        always = sum(bool((np.diff(steps) > 0).all()) for steps in means)
        grown = sum(steps[-1] > steps[0] for steps in means)
        changes = 100 * np.array([steps[-1] - steps[0] for steps in means])
        yield (
            f"**Each step improves on the one before**: {_verdict(always, len(rows))}. In {always} of {len(rows)} "
            f"networks every step is better than the one before, in {grown} the last is better than the first; from "
            f"first to last mIoU changes by {changes.min():+.1f} to {changes.max():+.1f} points, {changes.mean():+.1f} "
            "on average."
        )


def _parameters(named: dict[str, Row]) -> Iterator[str]:
    """The best network of one core against the best stack of hourglasses."""
    one, many = (
        max((row for row in named.values() if row.network.cores == cores), key=lambda r: r.miou[-1].mean, default=None)
        for cores in (1, "S")
    )
    if one and many:
        ratio = many.network.parameters / one.network.parameters
        behind = 100 * (one.miou[-1].mean - many.miou[-1].mean)
        small, large = (f"{row.name} with {row.network.parameters / 1e6:.2f}M" for row in (one, many))
        yield (
            f"**Iterative networks need a fifth of the hourglass's parameters**: at {len(many.miou)} steps the ratio "
            f"is {ratio:.1f} (a fifth would be 5). The best network of one core, {small}, has "
            f"{one.miou[-1].percent()} % mIoU; the best stack, {large}, has {many.miou[-1].percent()} % "
            f"({behind:+.1f} points for the iterative one)."
        )


def _baseline(named: dict[str, Row], baselines: Sequence[Row]) -> Iterator[str]:
    for one in baselines:
        leads = {name: 100 * (row.miou[-1].mean - one.miou[-1].mean) for name, row in named.items()}
        if leads:
            yield (
                f"**Is it refinement, or would one step do?** Trained for a single step, {one.name} has "
                f"{one.miou[-1].percent()} % mIoU; {sum(lead > 0 for lead in leads.values())} of {len(leads)} networks "
                f"end above that ({_listed(leads)})."
            )


def _verdict(good: int, of: int) -> str:
    if good == of:
        return "holds in these figures"
    return "does not hold in these figures" if good <= of / 2 else "holds for most in these figures, not for all"
