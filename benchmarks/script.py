"""What the scripts share: options read as those of `trailseg`, and rows as a table and as JSON."""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trailseg.config import Size
from trailseg.errors import OptionError
from trailseg.parsing import from_mapping, read_words
from trailseg.writing import write_whole

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every script."""

    json: str | None = None
    """File to write what was found to."""


@dataclass(frozen=True, kw_only=True)
class TimedOptions(Options):
    """Options of a script that takes time."""

    rounds: int = 5
    """Rounds that count."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(TimedOptions):
    """Options of a script that times one network."""

    network: str = "iterative-v6"
    """Row of the table of networks."""
    size: Size = Size(192, 256)
    """Height,width in pixels."""
    batch: int = 4
    """Pictures at a time."""
    device: str = "cpu"
    """Device: cpu, cuda or mps."""

    @property
    def title(self) -> str:
        """What was timed, in a line."""
        return f"{self.network}, {self.size.height} x {self.size.width}, batch {self.batch}, {self.device}"


def run(main: Callable[[T], None], kind: type[T]) -> None:
    """Calls `main` with the options of the command line; a wrong one is one line and exit code 2."""
    try:
        options = from_mapping(kind, read_words(kind, sys.argv[1:]))
    except OptionError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    main(options)


def ratio(seconds: Sequence[float], plain: Sequence[float]) -> float:
    """The median of the rounds' ratios.

    >>> ratio([2, 9, 4], [1, 3, 4])
    2.0
    """
    return round(statistics.median(one / other for one, other in zip(seconds, plain, strict=True)), 3)


def show(rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Prints rows of the same keys as a table."""
    print(f"\n{title}" if title else "")
    cells = [list(rows[0]), *(["–" if value is None else str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), flush=True)


def keep(found: Any, path: str | None) -> None:
    """Writes what was found as JSON, where a file is named."""
    if path:
        write_whole(Path(path), json.dumps(found, indent=1) + "\n")
