"""The comparison table as text: cells, Markdown, CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trailseg import markdown
from trailseg.markdown import escape
from trailseg.report.claims import claims
from trailseg.report.logs import Run
from trailseg.report.published import Published
from trailseg.report.table import NONE, Row, Stat, Table

READING = (
    "Measured after the last validated epoch, never the best one, at full picture resolution unless a column says logit"
    " scale. Several seeds: mean ± sample standard deviation. Growth: mIoU of the last step less that of the first."
)
PUBLISHED = "As others report them. Nothing of this was measured here: before comparing, see what it was measured on."
ACROSS = "mIoU % of the last step, on each split"
WORDS = ("network", "trained on", "measured on", "source")  # columns that begin at the left


def cells(tables: Sequence[Table]) -> list[list[dict[str, str]]]:
    """The rows of each table as text by column title, the trivial answer first.

    Where the tables were trained or measured on different splits, a column says on which.
    """
    trained = len({table.trained_on for table in tables}) > 1
    measured = len({table.validation.split for table in tables}) > 1
    return [[_cells(row, table, trained, measured) for row in (table.trivial, *table.rows)] for table in tables]


def _cells(row: Row, table: Table, trained: bool, measured: bool) -> dict[str, str]:
    titles = ("cores", "context", "residual", "parameters (M)", "MACs per picture (G)", "epochs", "seeds")
    miou = [stat.percent() for stat in row.miou] + [NONE] * (table.steps - len(row.miou))
    return {
        "network": row.name,
        **({"trained on": table.trained_on if row.runs else NONE} if trained else {}),
        **({"measured on": table.validation.split} if measured else {}),
        **dict(zip(titles, _facts(row) if row.runs else (NONE,) * len(titles), strict=True)),
        "pixel accuracy %": row.accuracy.percent(),
        **{f"mIoU % step {step}": text for step, text in enumerate(miou, start=1)},
        "growth (points)": row.growth.percent("+") if row.growth else NONE,
        "mIoU % at logit scale": row.stem_miou.percent() if row.stem_miou else NONE,
    }


def _facts(row: Row) -> tuple[str, ...]:
    network = row.network
    done = sorted({run.epochs_done for run in row.runs})
    return (
        str(network.cores),
        network.context,
        "yes" if network.residual else "no",
        f"{network.parameters / 1e6:.2f}",
        f"{row.macs / 1e9:.2f}",
        f"{'–'.join(str(n) for n in (done if len(done) < 3 else (done[0], done[-1])))}/{row.runs[0].epochs_planned}",
        ", ".join(str(run.seed) for run in row.runs),
    )


def across(tables: Sequence[Table]) -> list[dict[str, str]]:
    """The mIoU of each network on each split, as text by column title; none unless there are several splits.

    The last column is the mean over the splits, of those networks that were measured on all.
    """
    splits = list(dict.fromkeys(table.validation.split for table in tables))
    if len(splits) < 2 or len(splits) < len(tables):
        return []
    found = {(row.name, table.validation.split): row.miou[-1] for table in tables for row in table.rows}
    lines = []
    for name in dict.fromkeys(name for name, _ in found):
        here = [found.get((name, split)) for split in splits]
        mean = Stat(sum(stat.mean for stat in here if stat) / len(splits), None).percent() if all(here) else NONE
        texts = [stat.percent() if stat else NONE for stat in here]
        lines.append({"network": name, **dict(zip(splits, texts, strict=True)), "mean of all": mean})
    return lines


def published_cells(published: Sequence[Published]) -> list[dict[str, str]]:
    """The figures of others as text by column title."""
    return [
        {
            "network": one.name,
            "parameters (M)": f"{one.parameters / 1e6:.2f}",
            "mIoU %": f"{one.miou:.1f}",
            "measured on": one.on,
            "source": one.source,
        }
        for one in published
    ]


def to_markdown(tables: Sequence[Table], unfinished: Sequence[Run], title: str) -> str:
    """The tables as one Markdown document."""
    parts = [f"# {escape(title)}", READING]
    if len(tables) > 1:
        parts.append(f"**{several(tables)}**")
    if lines := across(tables):
        parts += [f"## {ACROSS}", _grid(lines)]
    for table, rows in zip(tables, cells(tables), strict=True):
        parts += [f"## {escape(table.heading)}", escape(summary(table)), _grid(rows)]
        parts.append("\n".join(f"- {escape(note)}" for note in table.notes))
        parts.append("\n".join(f"- {claim}" for claim in claims(table.rows)))
        if table.published:
            parts += ["### Published figures", PUBLISHED, _grid(published_cells(table.published))]
    parts.append("\n".join(f"- {escape(unfinished_note(run))}" for run in unfinished))
    return "\n\n".join(filter(None, parts)) + "\n"


def _grid(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of Markdown."""
    return markdown.table(list(rows[0]), [list(map(escape, row.values())) for row in rows], left=WORDS)


def summary(table: Table) -> str:
    """What the table says, in a few sentences."""
    best, *others = table.ranked
    trail = ", ".join(f"{100 * stat.mean:.1f}" for stat in best.miou)
    seeds = f" (mean ± standard deviation of {len(best.runs)} seeds)" if len(best.runs) > 1 else ""
    text = (
        f"{f'Of {len(table.rows)} networks, {best.name} is the most accurate:' if others else f'{best.name} scores'} "
        f"{best.miou[-1].percent()} % mIoU{seeds}, where {table.trivial.name} would score "
        f"{table.trivial.miou[-1].percent()} %."
    )
    if best.growth:
        text += f" Its steps score {trail} %, a growth of {best.growth.percent('+')} points."
    grown = [row.growth.mean for row in table.rows if row.growth]
    if len(grown) > 1:
        better = sum(growth > 0 for growth in grown)
        text += (
            f" {better} of the {len(grown)} networks with several steps improve from the first step to the last; "
            f"the mean growth of all is {100 * np.mean(grown):+.1f} points."
        )
    return text + _caution(best, others)


def _caution(best: Row, others: Sequence[Row]) -> str:
    """What the seeds do not allow to say about who is first."""
    if not others:
        return ""
    first = best.miou[-1]
    if first.sd is None or any(row.miou[-1].sd is None for row in others):
        return " Rows with one seed have no known spread: a small lead may be the seed's, not the network's."
    near = [row.name for row in others if first.mean - row.miou[-1].mean < np.hypot(first.sd, row.miou[-1].sd or 0)]
    if near:
        return (
            f" The seeds do not tell it from {', '.join(near)}: the lead is within the spread of two runs' difference."
        )
    return " Its lead over every other row is above the spread of two runs' difference."


def several(tables: Sequence[Table]) -> str:
    """The warning that a study with several tables needs."""
    return (
        f"These runs were trained or measured on {len(tables)} different sets (data, classes, split or truth differ): "
        "compare figures within a table only."
    )


def unfinished_note(run: Run) -> str:
    """The line for a run that no table can hold yet."""
    return (
        f"Unfinished: {run.name}, seed {run.seed}: {run.epochs_done} of {run.epochs_planned} epochs, not yet validated."
    )


def to_csv(tables: Sequence[Table]) -> str:
    """Raw numbers, one line per row of each table; measures are fractions 0..1, sd is empty with one seed."""
    lines = [_raw(table, row) for table in tables for row in (table.trivial, *table.rows)]
    columns = max((list(line) for line in lines), key=len)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _raw(table: Table, row: Row) -> dict[str, Any]:
    facts = row.network if row.runs else None
    measured = {
        "pixel_accuracy": row.accuracy,
        "growth": row.growth,
        "miou_stem_scale": row.stem_miou,
        **{f"miou_step_{i + 1}": row.miou[i] if i < len(row.miou) else None for i in range(table.steps)},
    }
    return {
        "data": table.heading,
        "network": row.name,
        "cores": facts.cores if facts else "",
        "context": facts.context if facts else "",
        "residual": facts.residual if facts else "",
        "parameters": facts.parameters if facts else "",
        "macs_per_picture": row.macs if facts else "",
        "epochs_done": min((run.epochs_done for run in row.runs), default=""),
        "epochs_planned": row.runs[0].epochs_planned if row.runs else "",
        "seeds": " ".join(str(run.seed) for run in row.runs),
    } | {
        f"{name}_{part}": "" if value is None or np.isnan(value) else value
        for name, stat in measured.items()
        for part, value in (("mean", stat.mean if stat else None), ("sd", stat.sd if stat else None))
    }
