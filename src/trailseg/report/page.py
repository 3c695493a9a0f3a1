"""The page of a study: one self-contained HTML file that loads nothing from the network."""

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from trailseg.report.claims import claims
from trailseg.report.formats import (
    ACROSS,
    PUBLISHED,
    READING,
    across,
    cells,
    published_cells,
    several,
    summary,
    unfinished_note,
)
from trailseg.report.logs import Run
from trailseg.report.plots import Plot
from trailseg.report.table import Row, Table, settings


def render(
    folder: Path, title: str, tables: Sequence[Table], plots: Sequence[Sequence[Plot]], unfinished: Sequence[Run]
) -> str:
    """The page of `tables`, each with its plots."""
    environment = Environment(
        loader=PackageLoader("trailseg.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    rows = [row for table in tables for row in table.rows]
    runs = [run for row in rows for run in row.runs]
    common, differing = settings(runs)
    return environment.get_template("page.html.jinja").render(
        title=title,
        reading=READING,
        warning=several(tables) if len(tables) > 1 else None,
        sections=[_section(*parts) for parts in zip(tables, cells(tables), plots, strict=True)],
        across=across(tables),
        about_across=ACROSS,
        about_published=PUBLISHED,
        unfinished=[unfinished_note(run) for run in unfinished],
        common={name: _text(value) for name, value in common.items()},
        differing=differing,
        rows=[(row.name, [_values(row.runs, name) for name in differing]) for row in rows],
        versions={name: ", ".join(sorted({run.versions.get(name, "?") for run in runs})) for name in runs[0].versions},
        command=f"trailseg report {shlex.quote(str(folder))}",
    )


def _section(table: Table, rows: Sequence[Mapping[str, str]], plots: Sequence[Plot]) -> dict[str, Any]:
    classes = zip(table.data.classes, table.data.colours, strict=True)
    return {
        "table": table,
        "summary": summary(table),
        "cells": rows,
        "published": published_cells(table.published),
        "claims": [re.sub(r"\*\*(.*?)\*\*", r"\1", claim) for claim in claims(table.rows)],
        "best": table.ranked[0].name,
        "plots": [(plot, _embed(plot.path)) for plot in plots],
        "pictures": [(row.name, picture) for row in table.ranked if (picture := _picture(row))],
        "colours": [(name, "#{:02x}{:02x}{:02x}".format(*rgb)) for name, rgb in classes],
    }


def _picture(row: Row) -> str | None:
    """The example pictures of the first seed that has some."""
    paths = (run.path / "plots" / "pictures.png" for run in row.runs)
    return next((_embed(path) for path in paths if path.is_file()), None)


def _embed(path: Path) -> str:
    return f"data:image/png;base64,{b64encode(path.read_bytes()).decode()}"


def _values(runs: Sequence[Run], name: str) -> str:
    """The values of an option among `runs`, each once."""
    return ", ".join(dict.fromkeys(_text(run.options[name]) for run in runs))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
