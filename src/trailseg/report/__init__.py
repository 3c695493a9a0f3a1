"""The report of a study: tables, plots and one page, from nothing but study.yaml and the runs' config and log."""

from dataclasses import dataclass
from pathlib import Path

from trailseg.errors import FileError
from trailseg.parsing import read_yaml
from trailseg.report.formats import to_csv, to_markdown
from trailseg.report.logs import Run, read_runs
from trailseg.report.page import render
from trailseg.report.plots import Plot, draw
from trailseg.report.published import read_published
from trailseg.report.table import Table, build_tables
from trailseg.writing import write_whole

__all__ = ["Report", "write_report"]


@dataclass(frozen=True)
class Report:
    """What was written, and the figures in it."""

    markdown: Path
    csv: Path
    page: Path
    plots: tuple[Path, ...]
    tables: tuple[Table, ...]
    """One per validation set; their rows hold the figures."""
    unfinished: tuple[Run, ...]
    """Runs without a validated epoch, which no table can hold yet."""


def write_report(folder: Path) -> Report:
    """Write table.md, table.csv, plots/*.png and report.html into `folder`, a run or a folder of runs.

    FileError if the folder is missing, holds no run, or none of its runs has a validated epoch.
    """
    runs = read_runs(folder)
    unfinished = tuple(run for run in runs if not run.validations)
    if len(unfinished) == len(runs):
        raise FileError(
            folder, f"none of its {len(runs)} runs has a validated epoch", "train until the first validation"
        )
    file = folder / "study.yaml"  # kept there by `trailseg study`
    study = read_yaml(file) if file.exists() else {}
    title = str(study.get("title", folder.resolve().name))
    tables = build_tables([run for run in runs if run.validations], read_published(study, file))
    plots: list[list[Plot]] = [draw(table, folder / "plots", number) for number, table in enumerate(tables, start=1)]
    return Report(
        markdown=write_whole(folder / "table.md", to_markdown(tables, unfinished, title)),
        csv=write_whole(folder / "table.csv", to_csv(tables)),
        page=write_whole(folder / "report.html", render(folder, title, tables, plots, unfinished)),
        plots=tuple(plot.path for group in plots for plot in group),
        tables=tuple(tables),
        unfinished=unfinished,
    )
