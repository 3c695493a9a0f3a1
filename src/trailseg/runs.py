"""The run directory: options and facts in config.yaml, one line an epoch in log.jsonl, weights in checkpoints/."""

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from trailseg import checkpoints
from trailseg.checkpoints import REMEDY, load_weights, strip
from trailseg.config import TrainOptions
from trailseg.data.readers import TERMS
from trailseg.errors import FileError, OptionError
from trailseg.labels import IGNORE
from trailseg.networks.build import build, pass_states_on
from trailseg.networks.recurrence import Recurrence
from trailseg.parsing import from_mapping, read_yaml
from trailseg.version import __version__
from trailseg.writing import sweep, write_whole

# Options that say where and how a run is computed and kept, not what it computes.
PLACE = ("device", "devices", "nodes", "root", "out", "resume", "memory", "recompute", "channels_last", "compile")


@dataclass(frozen=True)
class Run:
    """A run directory that exists."""

    folder: Path

    @staticmethod
    def create(
        folder: Path,
        *,
        name: str,
        options: TrainOptions,
        network: Mapping[str, Any],
        data: Mapping[str, Any],
        machine: Mapping[str, Any],
    ) -> "Run":
        """Makes the directory, which `require_free` has found free."""
        kept = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items() if k not in ("out", "resume")
        }
        facts = {"network": dict(network), "data": dict(data), "versions": versions(), "machine": dict(machine)}
        config = {"name": name, "options": kept, **facts}
        write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return Run(folder)

    @staticmethod
    def require_free(folder: Path) -> None:
        """FileError where the folder already holds a run or anything else."""
        if (folder / "config.yaml").exists():
            summary = Run(folder).summary()
            raise FileError(folder, f"already holds a run ({summary})", f"say resume={folder}, or another out=")
        ours = re.compile(r"\.lock|\..*\.part")  # which a killed process may leave
        if folder.exists() and (not folder.is_dir() or not all(ours.fullmatch(file.name) for file in folder.iterdir())):
            raise FileError(folder, "is not an empty folder", "say another out=")

    @staticmethod
    def open(folder: str | Path) -> "Run":
        """FileError unless a run is there."""
        run = Run(Path(folder))
        if not run.folder.is_dir():
            raise FileError(folder, "there is no such run directory", "name the folder that `trailseg train` wrote")
        if not (run.folder / "config.yaml").is_file():
            raise FileError(folder, "holds no run: it has no config.yaml", "name the folder that `trailseg train` made")
        return run

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.yaml holds: name, options, network, data, versions, machine."""
        config = read_yaml(self.folder / "config.yaml")
        if not _is_configuration(config):
            raise FileError(self.folder / "config.yaml", "is no configuration of a run", REMEDY)
        return config

    @cached_property
    def options(self) -> TrainOptions:
        """The options it was trained with."""
        try:
            return from_mapping(TrainOptions, self.config["options"], "options")
        except OptionError as error:
            raise FileError(self.folder / "config.yaml", str(error), REMEDY) from None

    @property
    def before(self) -> dict[str, str]:
        """What else those have seen that it began with or was taught by: of each data set the splits, joined by "+"."""
        return self.config["data"].get("before", {})

    def differences(self, options: TrainOptions) -> list[str]:
        """What those options would compute differently, such as 'lr 0.001, not 0.01'."""
        mine, theirs = (asdict(one) | folder_names(one) for one in (self.options, options))
        return [f"{k} {mine[k]}, not {theirs[k]}" for k in mine if k not in PLACE and mine[k] != theirs[k]]

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl, of one epoch each; a half-written last line is left out."""
        path = self.folder / "log.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        try:
            return [json.loads(line) for line in lines[:-1]]
        except ValueError as error:
            raise FileError(path, f"is damaged ({error})", REMEDY) from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds the line of an epoch to log.jsonl and flushes it to the disk."""
        with (self.folder / "log.jsonl").open("r+b") as file:  # and makes none anew where the folder has gone away
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def forget_after(self, epoch: int) -> None:
        """Drops the lines of later epochs, which a cut run wrote before their checkpoint."""
        kept = "".join(json.dumps(record) + "\n" for record in self.log() if record["epoch"] <= epoch)
        write_whole(self.folder / "log.jsonl", kept)

    @property
    def done(self) -> bool:
        """Whether every epoch is in a checkpoint."""
        return self.position().epoch >= self.options.epochs

    def position(self, which: str = "last") -> "Position":
        """How far that checkpoint is; at the beginning where there is none. FileError where it is damaged."""
        path = self.checkpoint(which)
        return self._read(which)[1] if path.exists() else Position()

    def summary(self) -> str:
        """Such as 'iterative-v6, 3 of 100 epochs'."""
        return f"{self.config['name']}, {self.position().epoch} of {self.options.epochs} epochs"

    def checkpoint(self, which: str) -> Path:
        """The file of the checkpoint "last", "before" (that was the last before) or "best"."""
        return self.folder / "checkpoints" / f"{which}.safetensors"

    def recover(self) -> FileError | None:
        """Sweeps what a killed process left half-written, and replaces a damaged last checkpoint by the one before.

        Returns what was wrong with that, which is kept as "damaged". FileError where no checkpoint is whole, or where
        all are gone though the log tells of more than one epoch: to begin anew would lose it.
        """
        for folder in (self.folder, self.folder / "checkpoints", self.folder / "plots"):
            sweep(folder)
        last, before = self.checkpoint("last"), self.checkpoint("before")
        try:
            if not last.exists() and len(self.log()) > 1:
                raise FileError(last, "is gone, and the log is not", "restore it, or train anew with another out=")
            self.position()
        except FileError as damage:
            if damage.path != last or not before.exists():
                raise
            self.position("before")
            if last.exists():
                last.replace(self.checkpoint("damaged"))
            before.replace(last)
            return damage
        return None

    def save(
        self,
        which: str,
        weights: Mapping[str, Tensor],
        at: "Position",
        network: Recurrence | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        average: Recurrence | None = None,
    ) -> None:
        """Writes the weights of a network, the state of its optimiser and its averaged weights, if given, as one file.

        With them go the position and the configuration. A last checkpoint that is there becomes the one before.
        """
        tensors = {f"network.{name}": value for name, value in weights.items()}
        if average is not None:
            tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
        if network is not None and optimizer is not None:
            names = [name for name, _ in network.named_parameters()]
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{key}.{names[index]}": value for key, value in state.items()}
        keep = self.checkpoint("before") if which == "last" else None
        checkpoints.write(self.checkpoint(which), tensors, {"at": at._asdict(), "config": self._bound()}, keep)

    def load(self, network: Recurrence, optimizer: torch.optim.Optimizer, average: Recurrence | None) -> "Position":
        """Loads what `save` wrote as "last", and returns its position; FileError where it is of another network."""
        path, (tensors, at) = self.checkpoint("last"), self._read("last")
        load_weights(network, strip(tensors, "network."), path)
        if average is not None:
            load_weights(average, strip(tensors, "average."), path)
        state: dict[int, dict[str, Tensor]] = {}
        for index, (name, _) in enumerate(network.named_parameters()):
            keys = [k for k in tensors if k.startswith("optimizer.") and k.split(".", 2)[2] == name]
            if keys:
                state[index] = {key.split(".", 2)[1]: tensors[key] for key in keys}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return at

    def build(self) -> Recurrence:
        """The network without weights, on the meta device: what a configuration asks for takes no memory yet."""
        try:
            with torch.device("meta"):
                return build(self.options, classes=len(self.config["data"]["classes"]))
        except OptionError as error:
            raise FileError(self.folder / "config.yaml", str(error), REMEDY) from None

    def weights(self, which: str = "last") -> dict[str, Tensor]:
        """The trained weights, or their average where there is one, as `Recurrence.state_dict` names them."""
        tensors, _ = self._read(which)
        return strip(tensors, "average.") or strip(tensors, "network.")

    def network(self, which: str = "last") -> Recurrence:
        """The trained network with `weights`, in evaluation mode."""
        network = self.build()
        load_weights(network, self.weights(which), self.checkpoint(which))
        return network.eval()

    def _read(self, which: str) -> tuple[dict[str, Tensor], "Position"]:
        """The tensors of a checkpoint and its position; FileError where it is damaged, or config.yaml has changed."""
        path = self.checkpoint(which)
        try:
            tensors, facts = checkpoints.read(path)
            at, config = Position(**facts["at"]), facts["config"]
        except FileError as error:
            if which == "last" and self.checkpoint("before").exists():
                remedy = "say checkpoint=before, or go on with the training"
                raise FileError(error.path, error.problem, remedy) from None
            raise
        except (TypeError, LookupError):
            raise FileError(path, "is no checkpoint of a run", REMEDY) from None
        if different := changed(config, self._bound()):
            problem = f"is not what {path} was trained with ({'; '.join(different)})"
            raise FileError(self.folder / "config.yaml", problem, "restore it")
        return tensors, at

    def _bound(self) -> dict[str, Any]:
        """What config.yaml and a checkpoint must agree on: all but where and how a run is computed and kept."""
        options = {name: value for name, value in self.config["options"].items() if name not in PLACE}
        return {key: value for key, value in self.config.items() if key != "machine"} | {"options": options}


class Position(NamedTuple):
    """How far a training is."""

    epoch: int = 0
    """Whole epochs behind it."""
    step: int = 0
    """Optimiser steps behind it of the next."""
    loss: float = 0.0
    """The sum of the losses of the pictures of these."""
    seconds: float = 0.0
    """Seconds that the next epoch has taken so far."""


def _is_configuration(config: Mapping[str, Any]) -> bool:
    """Whether it holds what `Run.create` writes: what is not an option is read without further questions."""
    parts = [config.get(key) for key in ("options", "network", "data", "versions")]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(config.get("name"), str):
        return False
    network, data = config["network"], config["data"]
    classes, colours, before = data.get("classes"), data.get("colours"), data.get("before", {})
    return (
        isinstance(before, dict)
        and all(str(name) in TERMS for name in [config["options"].get("data", TrainOptions.data), *before])
        and all(isinstance(splits, str) for splits in before.values())
        and all(isinstance(network.get(key), int) for key in ("parameters", "macs_stem", "macs_step"))
        and all(key in network for key in ("cores", "context", "residual"))
        and all(isinstance(data.get(key), int) for key in ("train", "val"))
        and isinstance(data.get("val_seen_in_training", 0), int)
        and all(isinstance(data.get(key), str) for key in ("name", "fingerprint"))
        and all(isinstance(names, list) and 0 < len(names) < IGNORE for names in (classes, colours))
        and len(classes) == len(colours)
        and all(isinstance(name, str) for name in classes)
        and all(
            isinstance(c, list) and len(c) == 3 and all(type(n) is int and 0 <= n <= 255 for n in c) for c in colours
        )
    )


def versions() -> dict[str, str]:
    """Of what decides the last bits of a training, as config.yaml holds them."""
    return {"trailseg": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def build_network(options: TrainOptions, *, classes: int) -> Recurrence:
    """The network of these options, its first weights a function of options.seed alone."""
    torch.manual_seed(options.seed)
    network = build(options, classes=classes)
    if options.fuse_start == "state":
        pass_states_on(network)
    return network


def folder_names(options: TrainOptions) -> dict[str, list[str]]:
    """The options that name other runs, without the folders that these lie in."""
    return {option: [Path(run).name for run in runs] for option, runs in options.sources.items()}


def changed(stored: Any, given: Any, name: str = "") -> list[str]:
    """Where two configurations differ, such as 'lr 0.001, not 0.01'."""
    if not isinstance(stored, dict) or not isinstance(given, dict):
        return [] if stored == given else [f"{name} {_short(given)}, not {_short(stored)}"]
    names = dict.fromkeys([*stored, *given])
    return [line for key in names for line in changed(stored.get(key), given.get(key), key)]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
