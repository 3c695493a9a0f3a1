"""Studies: many experiments from one YAML file, and their report."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from trailseg.config import TrainOptions
from trailseg.errors import FileError, OptionError, lacks_memory, require
from trailseg.experiment import check, check_same, resolve, train
from trailseg.parsing import from_mapping, read_yaml
from trailseg.predictor import find_model
from trailseg.report import write_report
from trailseg.report.published import read_published
from trailseg.runs import Run
from trailseg.writing import sweep, write_whole


@dataclass(frozen=True)
class Planned:
    """A run that a study asks for."""

    name: str
    folder: Path
    options: TrainOptions


def plan(file: Path, out: Path, overrides: Mapping[str, Any]) -> list[Planned]:
    """The runs of a study file.

    The file maps `title`, `defaults` (options for all), `seeds` (each row without one is run with each) and `runs`, a
    list of rows: options, and a `name` where two rows have the same network. A row that `extends` an earlier one, by
    its name, takes from there what it does not say itself. Each row is also run with each of `splits`, a list of
    train_on and val_on, where there is one. A row's `start_from`, `stem_from` and `teacher` may name earlier rows, for
    their runs on the same split with the same seed, or with another, as NAME-seedN. For the report it may list
    `published` figures. OptionError where a row is not right.
    """
    content = read_yaml(file)
    for key in content:
        if key not in ("title", "defaults", "seeds", "splits", "runs", "published"):
            raise FileError(file, f"has the key {key}", "a study holds title, defaults, seeds, splits, runs, published")
    rows, defaults, seeds = content.get("runs"), content.get("defaults") or {}, content.get("seeds") or [None]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in [defaults, *rows]):
        raise FileError(file, "is no study", "list its runs under 'runs', each a mapping of options")
    splits = content.get("splits") or [{}]
    if not isinstance(splits, list) or not all(
        isinstance(s, dict) and set(s) <= {"train_on", "val_on"} for s in splits
    ):
        raise FileError(file, f"has splits: {splits}", "list mappings of train_on and val_on, each a split")
    if not isinstance(seeds, list):
        raise FileError(file, f"has seeds: {seeds}", "write a list, such as seeds: [0, 1, 2]")
    read_published(content, file)  # the report will need them: better now than after the training
    if "network" in overrides:
        raise OptionError("network: the rows of a study name theirs; leave it out")
    planned: dict[Path, Planned] = {}
    earlier: dict[str, dict[str, str]] = {}
    named: dict[str, dict[str, Any]] = {}
    for row in rows:
        if "extends" in row:
            row = named[require(f"{file}: extends", str(row["extends"]), named)] | row
        name = str(row.get("name", {**defaults, **row}.get("network", TrainOptions.network)))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise OptionError(f"{file}: name={name}: use letters, digits, '.', '_' and '-'")
        named.setdefault(name, row)
        given = {k: v for k, v in row.items() if k not in ("name", "extends")}
        for split, seed in product(splits, [None] if "seed" in {**row, **overrides} else seeds):
            values = {**defaults, **given, **split, **({} if seed is None else {"seed": seed}), **overrides}
            if {"out", "resume"} & set(values):
                raise OptionError(
                    f"{file}: {name}: a study names the folders of its runs; say neither out nor resume in it"
                )
            options = resolve(from_mapping(TrainOptions, values, f"{file}: {name}"))
            folder = out / "-".join([name, *([options.val_on] if split else []), f"seed{options.seed}"])
            if folder in planned:
                raise OptionError(f"{file}: two rows are called {name}; give each a name of its own")
            if options.processes > 1:
                raise OptionError("a study trains on one device; train its rows by themselves to use several")
            alike = earlier.setdefault(str(split), {})
            found: dict[str, Any] = {
                option: [alike.get(f"{s}-seed{options.seed}", alike.get(s, s)) for s in sources]
                for option, sources in options.sources.items()
            }
            options = replace(options, **found)
            planned[folder] = Planned(name, folder, options)
            alike[f"{name}-seed{options.seed}"] = str(folder)
    return list(planned.values())


def run_study(file: Path, out: Path, overrides: Mapping[str, Any], console: Console) -> list[FileError]:
    """Trains what is missing, resumes what was cut off, skips what is done, then writes the report into `out`.

    It keeps a copy of the file there. A run that fails, for its data or for want of memory, is passed over, so that the
    others are not lost; the failures are returned. FileError with the first where nothing at all could be trained.
    """
    planned = plan(file, out, overrides)
    here = {str(run.folder) for run in planned}
    for wanted in planned:
        if (wanted.folder / "config.yaml").exists():
            check_same(Run.open(wanted.folder), wanted.options)
        else:
            check(wanted.options)
            for names in wanted.options.sources.values():
                for name in names:
                    if name not in here:
                        find_model(name)
    write_whole(out / "study.yaml", file.read_bytes())
    for folder in (out, out / "plots"):
        sweep(folder)
    failures: list[FileError] = []
    for wanted in planned:
        begun = (wanted.folder / "config.yaml").exists()
        if begun and _is_done(wanted.folder):
            console.print(f"{wanted.name}  seed {wanted.options.seed}  is done", highlight=False)
            continue
        try:
            train(wanted.options, wanted.folder, name=wanted.name, console=console, resume=begun)
        except FileError as error:
            failures.append(error)
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            remedy = "give it a smaller batch, crop or size, or recompute: true"
            failures.append(FileError(wanted.folder, "there is not enough memory", remedy))
    if len(failures) == len(planned):
        raise failures[0]
    write_report(out)
    return failures


def _is_done(folder: Path) -> bool:
    """Whether a run is whole; one whose last checkpoint is damaged goes on, and tells."""
    try:
        return Run.open(folder).done
    except FileError:
        return False
