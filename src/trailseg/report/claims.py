"""The original study's three claims, held against a table: what its figures say of each, in a sentence."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from trailseg.networks import table as networks
from trailseg.report.table import Row


def claims(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each claim that these rows can test; figures are of the last step, in percent or points."""
    named = {row.name: row for row in rows if row.name in networks.NAMED}
    yield from _residual(named)
    yield from _steps([row for row in rows if row.growth])
    yield from _parameters(named)


def _residual(named: dict[str, Row]) -> Iterator[str]:
    """Pairs of rows that differ in nothing but the residual."""
    twins = {row: name for name, row in networks.NAMED.items()}
    pairs = [
        (named[plain], named[twin])
        for plain, row in networks.NAMED.items()
        if not row.residual and plain in named and (twin := twins.get(replace(row, residual=True))) in named
    ]
    if pairs:
        gains = [100 * (residual.miou[-1].mean - plain.miou[-1].mean) for plain, residual in pairs]
        better = sum(gain > 0 for gain in gains)
        names = ", ".join(f"{r.name} over {p.name} {gain:+.1f}" for (p, r), gain in zip(pairs, gains, strict=True))
        yield (
            f"**Residual connections matter most**: {_verdict(better, len(gains))}. Of {len(gains)} pairs that differ "
            f"in nothing else, the residual one is better in {better}, by {np.mean(gains):+.1f} points of mIoU on "
            f"average ({names})."
        )


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


def _verdict(good: int, of: int) -> str:
    if good == of:
        return "holds in these figures"
    return "does not hold in these figures" if good <= of / 2 else "holds for most in these figures, not for all"
