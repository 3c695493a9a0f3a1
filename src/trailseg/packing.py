"""Packing a finished run for others: its weights alone, an ONNX file, and a model card."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from trailseg.card import card
from trailseg.config import ExportOptions, PackOptions
from trailseg.errors import FileError
from trailseg.export import export
from trailseg.runs import Run
from trailseg.writing import write_whole


def pack(options: PackOptions) -> Path:
    """Writes a folder that serves as a run directory, and without PyTorch as an exported file; whole or not at all.

    FileError where it would be overwritten, where a run is not finished, or where the one that was measured differs in
    more than the splits; see also `export.export`.
    """
    run, out = Run.open(options.run), Path(options.out)
    if out.exists():
        raise FileError(out, "is there already", "say another out=, or remove it")
    if not run.done:
        raise FileError(run.folder, f"is not finished ({run.summary()})", f"say `trailseg train resume={run.folder}`")
    found = measures(run, Run.open(options.measured_by) if options.measured_by else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as beside:
        folder = Path(beside) / out.name
        write_whole(folder / "config.yaml", yaml.safe_dump(placeless(run), sort_keys=False, allow_unicode=True))
        Run(folder).save("last", run.weights(), run.position())
        write_whole(folder / "measures.json", json.dumps(found, indent=1) + "\n")
        export(ExportOptions(run=str(folder), out=str(folder / "model.onnx")))
        write_whole(folder / "card.md", card(folder))
        folder.rename(out)
    return out


def measures(run: Run, sister: Run | None) -> dict[str, Any]:
    """The last validation of a run, or of its sister, with what that was trained on: see `card.read_measures`."""
    measured = sister or run
    trained = measured.options
    if sister is not None:
        may_differ = ["train_on", "val_on", "val_every"]
        if abs(_optimiser_steps(run) / _optimiser_steps(sister) - 1) < 0.01:
            may_differ.append("epochs")  # fewer of more pictures
        same = replace(trained, **{name: getattr(run.options, name) for name in may_differ})
        if differences := run.differences(same):
            problem = f"was trained otherwise than {run.folder} ({'; '.join(differences)})"
            raise FileError(sister.folder, problem, "name a run that differs in its splits alone")
        if sister.config["data"]["classes"] != run.config["data"]["classes"]:
            raise FileError(sister.folder, f"has other classes than {run.folder}", "name another run")
    log = measured.log()
    if not log or log[-1]["epoch"] < trained.epochs:
        raise FileError(measured.folder / "log.jsonl", "does not reach the last epoch", "finish the run, or restore it")
    return {
        "run": measured.folder.resolve().name,
        "own": sister is None,
        "train_on": trained.train_on,
        "train": measured.config["data"]["train"],
        "epoch": log[-1]["epoch"],
        "val": {key: value for key, value in log[-1]["val"].items() if key != "confusion"},
    }


def _optimiser_steps(run: Run) -> int:
    return run.options.epochs * -(-run.config["data"]["train"] // run.options.batch)


def placeless(run: Run) -> dict[str, Any]:
    """A run's configuration without the paths of the machine that it was trained on."""
    given = run.config["options"]
    stem = given.get("stem_from") and Path(given["stem_from"]).name
    return run.config | {"options": given | {"root": None, "stem_from": stem}}
