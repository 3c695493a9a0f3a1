"""Reading run directories: config.yaml and log.jsonl into frozen values.

Legend: S steps, K classes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from trailseg import runs
from trailseg.config import OF_RUNS
from trailseg.errors import FileError
from trailseg.labels import RGB
from trailseg.metrics import measures


@dataclass(frozen=True)
class Network:
    """What was trained, and what it costs."""

    cores: int | str
    """1, 2 or "S" (one per step)."""
    context: str
    residual: bool
    parameters: int
    macs_stem: int
    """Multiply-accumulates per picture, once."""
    macs_step: int
    """Multiply-accumulates per picture and step."""


@dataclass(frozen=True)
class Data:
    """What a run was trained and validated on."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    """K names in the order of the class ids."""
    colours: tuple[RGB, ...]
    """K display colours, 0-255."""
    train: int
    """Training pictures."""
    seen: int
    """Validation pictures that are among them."""
    before: str
    """Further splits that those runs were trained on which it began with or was taught by, joined by "+"."""


@dataclass(frozen=True, eq=False)
class Validation:
    """The measurement after one epoch."""

    epoch: int
    split: str
    images: int
    ignored_pixels: int
    confusion: np.ndarray
    """(S, K, K) int64, full resolution, rows truth, columns prediction."""
    stem_miou: tuple[float, ...]
    """mIoU 0..1 of each step at the logits' resolution; NaN without a scored pixel."""

    @property
    def truth(self) -> tuple[int, ...]:
        """Scored pixels of each class."""
        return tuple(int(n) for n in self.confusion[0].sum(1))


@dataclass(frozen=True, eq=False)
class Run:
    """One trained network."""

    path: Path
    name: str
    seed: int
    epochs_planned: int
    options: Mapping[str, Any]
    """What it computes: all options but where it was computed and kept; of those younger than the run the default. What
    it started from is called by its name where it was read as well, and else by its folder."""
    network: Network
    data: Data
    versions: Mapping[str, str]
    losses: tuple[tuple[int, float], ...]
    """(epoch, training loss) of every epoch done."""
    validations: tuple[Validation, ...]
    """Those that scored a pixel."""

    @property
    def epochs_done(self) -> int:
        return self.losses[-1][0] if self.losses else 0

    @property
    def last(self) -> Validation:
        """The last validated epoch, the only one compared: choosing the best by the same split would flatter."""
        return self.validations[-1]

    @cached_property
    def miou(self) -> np.ndarray:
        """mIoU 0..1 (validated epochs, S)."""
        values = [[measures(step, self.data.classes)["miou"] for step in v.confusion] for v in self.validations]
        return np.array(values, float)


def read_runs(folder: Path) -> list[Run]:
    """The run that `folder` is, or else all runs below it by path; FileError if there is none."""
    if not folder.is_dir():
        raise FileError(folder, "is not a folder", "name a run or a folder of runs")
    found = [folder] if _is_run(folder) else sorted(path.parent for path in folder.rglob("config.yaml"))
    if not any(map(_is_run, found)):
        raise FileError(
            folder, "holds no run (config.yaml with log.jsonl)", "train one into it, or name another folder"
        )
    return _name_sources([_read(path) for path in found if _is_run(path)])


def _name_sources(found: list[Run]) -> list[Run]:
    """The runs, each with the names of those that it started from in place of their folders, where these are here."""
    names = {run.path.name: run.name for run in found}
    for number, run in enumerate(found):
        called = {}
        for option in OF_RUNS:
            if folders := run.options[option]:
                called[option] = [names.get(PurePath(folder).name, folder) for folder in folders]
        found[number] = replace(run, options={**run.options, **called})
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "log.jsonl").is_file()


def _read(folder: Path) -> Run:
    stored = runs.Run.open(folder)
    config, options, log = stored.config, stored.options, stored.log()
    network, data = config["network"], config["data"]
    try:
        losses = tuple((int(line["epoch"]), float(line["loss"])) for line in log)
        measured = [_validation(line["epoch"], line["val"], len(data["classes"])) for line in log if line["val"]]
    except (KeyError, TypeError, ValueError) as error:
        problem = f"is not the log of a run ({type(error).__name__}: {error})"
        raise FileError(folder / "log.jsonl", problem, "restore the file, or train the run again") from error
    return Run(
        path=folder,
        name=config["name"],
        seed=options.seed,
        epochs_planned=options.epochs,
        options={name: value for name, value in asdict(options).items() if name not in runs.PLACE},
        network=Network(**{name: network[name] for name in Network.__dataclass_fields__}),
        data=Data(
            name=data["name"],
            fingerprint=data["fingerprint"],
            classes=tuple(data["classes"]),
            colours=tuple(map(tuple, data["colours"])),
            train=data["train"],
            seen=data.get("val_seen_in_training", 0),
            before=stored.before.get(data["name"], ""),
        ),
        versions={name: str(version) for name, version in config["versions"].items()},
        losses=losses,
        validations=tuple(v for v in measured if v.confusion.any()),
    )


def _validation(epoch: int, val: dict[str, Any], classes: int) -> Validation:
    confusion = np.array(val["confusion"], np.int64)
    if confusion.shape[1:] != (classes, classes):
        raise ValueError(f"epoch {epoch} has a confusion of shape {confusion.shape} for {classes} classes")
    stem = (step["miou"] for step in val["at_stem_scale"]["steps"])
    return Validation(
        epoch=int(epoch),
        split=str(val["split"]),
        images=int(val["images"]),
        ignored_pixels=int(val["ignored_pixels"]),
        confusion=confusion,
        stem_miou=tuple(float("nan" if value is None else value) for value in stem),
    )
