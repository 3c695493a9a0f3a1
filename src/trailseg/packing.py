"""Packing a finished run for others: its weights alone, an ONNX file, and a model card."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from trailseg.card import card
from trailseg.config import OF_RUNS, ExportOptions, PackOptions
from trailseg.errors import FileError
from trailseg.export import export
from trailseg.predictor import find_model
from trailseg.runs import Run, folder_names
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
    found = measures(run, [Run.open(folder) for folder in options.measured_by or []])
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


def measures(run: Run, sisters: Sequence[Run]) -> dict[str, Any]:
    """The last validation of a run, or that of its sisters on average, with what they were trained on.

    See `card.read_measures`; FileError where a sister differs in more than seed and splits, or from the first in those,
    or where the runs that they started from do.
    """
    for sister in sisters:
        _require_alike(run, sister, ["train_on", "val_on", "val_every", "seed"])
        _require_alike(sisters[0], sister, ["val_every", "seed"])
    measured = sisters or [run]
    ends = [_last(one) for one in measured]
    return {
        "runs": [one.folder.resolve().name for one in measured],
        "own": not sisters,
        "train_on": measured[0].options.train_on,
        "train": measured[0].config["data"]["train"],
        "before": measured[0].before.get(run.options.data, ""),
        "epoch": ends[0]["epoch"],
        "miou": [end["val"]["steps"][-1]["miou"] for end in ends],
        "val": _mean([{key: value for key, value in end["val"].items() if key != "confusion"} for end in ends]),
    }


def _require_alike(run: Run, sister: Run, may_differ: list[str]) -> None:
    """Trained alike but for those options, and so were the runs that the two started from."""
    allowed = list(may_differ)
    for option in OF_RUNS:
        mine, theirs = (getattr(one.options, option) or [] for one in (run, sister))
        if len(mine) == len(theirs):
            for first, other in zip(mine, theirs, strict=True):
                if first != other:
                    _require_alike(Run.open(find_model(first)), Run.open(find_model(other)), may_differ)
            allowed.append(option)
    if abs(_optimiser_steps(run) / _optimiser_steps(sister) - 1) < 0.01:
        allowed.append("epochs")  # fewer of more pictures
    same = replace(sister.options, **{name: getattr(run.options, name) for name in allowed})
    if differences := run.differences(same):
        problem = f"was trained otherwise than {run.folder} ({'; '.join(differences)})"
        raise FileError(sister.folder, problem, "name a run that differs in its splits or seed alone")
    if sister.config["data"]["classes"] != run.config["data"]["classes"]:
        raise FileError(sister.folder, f"has other classes than {run.folder}", "name another run")


def _last(run: Run) -> dict[str, Any]:
    """The record of the last epoch."""
    log = run.log()
    if not log or log[-1]["epoch"] < run.options.epochs:
        raise FileError(run.folder / "log.jsonl", "does not reach the last epoch", "finish the run, or restore it")
    return log[-1]


def _mean(records: Sequence[Any]) -> Any:
    """The mean, number by number, of nested records of one shape; what is no number is that of the first."""
    first = records[0]
    if isinstance(first, dict):
        return {key: _mean([record[key] for record in records]) for key in first}
    if isinstance(first, list):
        return [_mean(values) for values in zip(*records, strict=True)]
    if first is None or isinstance(first, float):  # a measure, or None where there was nothing to measure
        numbers = [record for record in records if record is not None]
        return fmean(numbers) if numbers else None
    return first


def _optimiser_steps(run: Run) -> int:
    return run.options.epochs * -(-run.config["data"]["train"] // run.options.batch)


def placeless(run: Run) -> dict[str, Any]:
    """A run's configuration without the paths of the machine that it was trained on."""
    return run.config | {"options": run.config["options"] | {"root": None} | folder_names(run.options)}
