"""Training from options to a finished run, and studies: many such runs from one YAML file."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trailseg.config import TrainOptions
from trailseg.data.augment import PRESETS
from trailseg.data.memory import Memory, decode
from trailseg.data.readers import open_data
from trailseg.errors import FileError, OptionError, require
from trailseg.evaluation import evaluate
from trailseg.labels import LabelSet
from trailseg.networks.cost import cost
from trailseg.networks.recurrence import Recurrence
from trailseg.networks.table import ROWS
from trailseg.parsing import from_mapping, read_yaml
from trailseg.prediction import example_sheet
from trailseg.progress import EpochProgress
from trailseg.report import write_report
from trailseg.runs import Run, build_network, load_weights, network_options, read_tensors, strip
from trailseg.training import fit, make_fabric, make_repeatable, together
from trailseg.writing import write_whole


def train(options: TrainOptions, folder: Path, *, name: str, console: Console, resume: bool) -> Run:
    """Trains into a free folder, or goes on with the run of the same options and data that it holds.

    OptionError and FileError before anything is written, where something does not fit; see also `training.fit`.
    """
    require("augment", options.augment, PRESETS)
    fabric = make_fabric(options)
    console.quiet = not fabric.is_global_zero
    if fabric.is_global_zero and resume:
        check_same(Run.open(folder), options)
    elif fabric.is_global_zero:
        Run.require_free(folder)
    make_repeatable()
    labels, memory, val = _decoded(options.data, options.root, options.labels, options.size, options.pictures)
    network = build_network(options, classes=len(labels.classes))
    mean, std = memory.mean_and_std()
    network.mean.copy_(mean)
    network.std.copy_(std)
    if options.stem_from is not None and not (resume and Run(folder).epoch):
        take_stem(network, options, Run.open(options.stem_from))
    run = Run(folder)
    if fabric.is_global_zero:
        data = facts_of_data(options, labels, memory, val)
        if resume:
            check_same_data(run, data)
        else:
            Run.create(folder, name=name, options=options, network=facts_of_network(options, labels), data=data)
    fabric.launch()
    val = val.on(fabric.device)
    with EpochProgress(console, name, done=run.epoch, epochs=options.epochs) as progress:
        fit(
            fabric=fabric,
            run=run,
            network=network,
            options=options,
            memory=memory,
            validate=lambda trained: evaluate(
                trained,
                val,
                split="val",
                steps=trained.up_to(options.steps),
                classes=labels.classes,
                batch=options.batch,
                device=fabric.device,
                autocast=fabric.autocast,
                rank=fabric.global_rank,
                world=fabric.world_size,
                add_up=lambda counts: together(fabric, counts),
            ),
            report=progress,
        )
    if fabric.is_global_zero:
        steps = network.up_to(options.steps)
        sheet = example_sheet(
            network, val, size=options.size, steps=steps, palette=labels.palette(), device=fabric.device
        )
        write_whole(run.folder / "plots" / "pictures.png", sheet)
        console.print(f"{folder}: {run.summary()}", highlight=False, soft_wrap=True)
    return run


def take_stem(network: Recurrence, options: TrainOptions, source: Run) -> None:
    """Copies the stem and the pictures' mean and deviation of another run; FileError where its stem is another."""
    for option in ("stem", "channels", "norm"):
        mine, theirs = getattr(options, option), getattr(source.options, option)
        if mine != theirs:
            raise FileError(source.folder, f"its stem has {option}={theirs}, not {mine}", f"say {option}={theirs}")
    path = source.checkpoint("last")
    weights = strip(read_tensors(path), "network.")
    load_weights(network.stem, strip(weights, "stem."), path)
    network.mean.copy_(weights["mean"])
    network.std.copy_(weights["std"])


@lru_cache(maxsize=1)  # the rows of a study share their data: read it once
def _decoded(
    data: str, root: str | None, labels: str | None, size: tuple[int, int], pictures: int
) -> tuple[LabelSet, Memory, Memory]:
    """The classes, train and val of a data set."""
    source = open_data(data, root=root, labels=labels, size=size, pictures=pictures)
    train, val = (decode(source.split(split), size) for split in ("train", "val"))
    return source.labels, train, val


def facts_of_network(options: TrainOptions, labels: LabelSet) -> dict[str, Any]:
    """The row of the table and the cost, as config.yaml holds them."""
    row = ROWS[options.network]
    price = cost(classes=len(labels.classes), **network_options(options))
    return {"cores": row.cores, "context": row.context, "residual": row.residual} | asdict(price)


def facts_of_data(options: TrainOptions, labels: LabelSet, memory: Memory, val: Memory) -> dict[str, Any]:
    """What was trained and validated on, as config.yaml holds it."""
    return {
        "name": options.data,
        "classes": list(labels.classes),
        "colours": [list(colour) for colour in labels.colours],
        "train": len(memory.names),
        "val": len(val.names),
        "fingerprint": f"sha256:{memory.fingerprint()} {val.fingerprint()}",
    }


def check_same_data(run: Run, data: Mapping[str, Any]) -> None:
    """FileError where the run was trained on other data."""
    if different := [key for key in data if run.config["data"].get(key) != data[key]]:
        raise FileError(run.folder, f"was trained on other data ({', '.join(different)} differ)", "say its root=")


def check_same(run: Run, options: TrainOptions) -> None:
    """FileError where the run has other options."""
    if differences := run.differences(options):
        raise FileError(run.folder, f"holds another run ({'; '.join(differences)})", "say another out=")


@dataclass(frozen=True)
class Planned:
    """A run that a study asks for."""

    name: str
    folder: Path
    options: TrainOptions


def plan(file: Path, out: Path, overrides: Mapping[str, Any]) -> tuple[str, list[Planned]]:
    """The title and the runs of a study file, each checked before any is trained.

    The file maps `title`, `defaults` (options for all), `seeds` (each row is run with each) and `runs`, a list of rows:
    options, and a `name` where two rows have the same network. OptionError where a row is not right.
    """
    content = read_yaml(file)
    for key in content:
        require("key", str(key), ("title", "defaults", "seeds", "runs"))
    rows, defaults = content.get("runs"), content.get("defaults") or {}
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in [defaults, *rows]):
        raise FileError(file, "is no study", "list its runs under 'runs', each a mapping of options")
    planned: dict[Path, Planned] = {}
    for row in rows:
        name = str(row.get("name", row.get("network", TrainOptions.network)))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise OptionError(f"{file}: name={name}: use letters, digits, '.', '_' and '-'")
        given = {k: v for k, v in row.items() if k != "name"}
        for seed in content.get("seeds") or [None]:
            values = {**defaults, **given, **({} if seed is None else {"seed": seed}), **overrides}
            options = from_mapping(TrainOptions, values, f"{file}: {name}")
            folder = out / f"{name}-seed{options.seed}"
            if folder in planned:
                raise OptionError(f"{file}: two rows are called {name}; give each a name of its own")
            if options.devices * options.nodes > 1:
                raise OptionError("a study trains on one device; train its rows by themselves to use several")
            with torch.device("meta"):  # finds a wrong network before the first one has trained
                build_network(options, classes=2)
            planned[folder] = Planned(name, folder, options)
    return str(content.get("title", file.stem)), list(planned.values())


def run_study(file: Path, out: Path, overrides: Mapping[str, Any], console: Console) -> list[FileError]:
    """Trains what is missing, resumes what was cut off, skips what is done, then writes the report; returns failures.

    A run that fails is told and passed over, so that the others are not lost.
    """
    title, planned = plan(file, out, overrides)
    for wanted in planned:
        if (wanted.folder / "config.yaml").exists():
            check_same(Run.open(wanted.folder), wanted.options)
    failures = []
    for wanted in planned:
        begun = (wanted.folder / "config.yaml").exists()
        if begun and Run.open(wanted.folder).done:
            console.print(f"{wanted.name}  seed {wanted.options.seed}  is done", highlight=False)
            continue
        try:
            train(wanted.options, wanted.folder, name=wanted.name, console=console, resume=begun)
        except FileError as error:
            console.print(f"{wanted.name}: {error}", highlight=False, soft_wrap=True)
            failures.append(error)
    write_report(out, title)
    return failures
