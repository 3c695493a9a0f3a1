"""Published figures that a study lists: shown beside those measured here, never mixed with them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

from trailseg.errors import FileError


@dataclass(frozen=True)
class Published:
    """A network's accuracy as somebody reported it."""

    name: str
    parameters: float
    miou: float
    """Percent."""
    on: str
    """The pictures it was measured on; after a comma what else matters, as in "test, trained on train + val"."""
    source: str
    """Who says so, and where: authors, year, arXiv number or DOI."""

    @property
    def pictures(self) -> str:
        """The pictures alone."""
        return self.on.partition(",")[0]


KEYS = [field.name for field in fields(Published)]
MOST = {"parameters": inf, "miou": 100}
REMEDY = f"list mappings of {', '.join(KEYS)}, such as parameters: 360000 and miou: 51.3"


def read_published(study: Mapping[str, Any], file: Path) -> tuple[Published, ...]:
    """The list `published` of a study, which is what `file` holds; empty without one. FileError where it is wrong."""
    entries = study.get("published", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise FileError(file, "has published figures that are no list of mappings", REMEDY)
    return tuple(_entry(entry, f"published figure {number}", file) for number, entry in enumerate(entries, start=1))


def _entry(entry: Mapping[Any, Any], which: str, file: Path) -> Published:
    values = {"on" if key is True else key: value for key, value in entry.items()}  # YAML 1.1: a bare on is true
    for key in values:
        if key not in KEYS:
            raise FileError(file, f"{which} has the key {key}", REMEDY)
    for key in KEYS:
        if key not in values:
            raise FileError(file, f"{which} has no {key}", REMEDY)
        if not (_number(values[key], MOST[key]) if key in MOST else _text(values[key])):
            kind = "number" if key in MOST else "text"
            raise FileError(file, f"{which} has {key}: {values[key]}, which is no such {kind}", REMEDY)
    return Published(**values)


def _number(value: object, most: float) -> bool:
    """Whether it is above 0, at most `most` and finite. To YAML 1.1 0.36e6 is text, for its exponent has no sign."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most and value < inf


def _text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
