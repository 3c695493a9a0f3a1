"""The run directory: options and facts in config.yaml, one line an epoch in log.jsonl, weights in checkpoints/."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trailseg.config import TrainOptions
from trailseg.errors import FileError, OptionError
from trailseg.networks.build import build
from trailseg.networks.recurrence import Recurrence
from trailseg.parsing import from_mapping, read_yaml
from trailseg.version import __version__
from trailseg.writing import write_whole

# Options that say where and how a run is computed and kept, not what it computes.
PLACE = ("device", "devices", "nodes", "root", "out", "resume", "memory", "recompute", "channels_last", "compile")


@dataclass(frozen=True)
class Run:
    """A run directory that exists."""

    folder: Path

    @staticmethod
    def create(
        folder: Path, *, name: str, options: TrainOptions, network: Mapping[str, Any], data: Mapping[str, Any]
    ) -> "Run":
        """Makes the directory, which `require_free` has found free."""
        kept = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items() if k not in ("out", "resume")
        }
        versions = {"trailseg": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
        config = {
            "name": name, "options": kept, "network": dict(network), "data": dict(data), "versions": versions
        }  # fmt: skip
        write_whole(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        return Run(folder)

    @staticmethod
    def require_free(folder: Path) -> None:
        """FileError where the folder already holds a run or anything else."""
        if (folder / "config.yaml").exists():
            summary = Run(folder).summary()
            raise FileError(folder, f"already holds a run ({summary})", f"say resume={folder}, or another out=")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
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
        """What config.yaml holds: name, options, network, data, versions."""
        config = read_yaml(self.folder / "config.yaml")
        parts = [config.get(key) for key in ("options", "network", "data", "versions")]
        if not all(isinstance(part, dict) for part in parts) or not isinstance(config["data"].get("classes"), list):
            raise FileError(self.folder / "config.yaml", "is no configuration of a run", "restore it, or train anew")
        return config

    @cached_property
    def options(self) -> TrainOptions:
        """The options it was trained with."""
        try:
            return from_mapping(TrainOptions, self.config["options"], "options")
        except OptionError as error:
            raise FileError(self.folder / "config.yaml", str(error), "restore it, or train anew") from None

    def differences(self, options: TrainOptions) -> list[str]:
        """What those options would compute differently, such as 'lr 0.001, not 0.01'."""
        mine, theirs = asdict(self.options), asdict(options)
        return [f"{k} {mine[k]}, not {theirs[k]}" for k in mine if k not in PLACE and mine[k] != theirs[k]]

    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl, of one epoch each; a half-written last line is left out."""
        path = self.folder / "log.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        try:
            return [json.loads(line) for line in lines[:-1]]
        except ValueError as error:
            raise FileError(path, f"is damaged ({error})", "restore it, or train anew") from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds the line of an epoch to log.jsonl and flushes it to the disk."""
        with (self.folder / "log.jsonl").open("ab") as file:
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
        return self.epoch >= self.options.epochs

    @property
    def epoch(self) -> int:
        """The epochs that checkpoints/last has behind it; 0 where there is none."""
        path = self.checkpoint("last")
        return int(_metadata(path)["epoch"]) if path.exists() else 0

    def summary(self) -> str:
        """Such as 'iterative-v6, 3 of 100 epochs'."""
        return f"{self.config.get('name')}, {self.epoch} of {self.options.epochs} epochs"

    def checkpoint(self, which: str) -> Path:
        """The file of the checkpoint "last" or "best"."""
        return self.folder / "checkpoints" / f"{which}.safetensors"

    def save(
        self,
        which: str,
        network: Recurrence,
        epoch: int,
        optimizer: torch.optim.Optimizer | None = None,
        average: Recurrence | None = None,
    ) -> None:
        """Writes weights, the optimiser's state and averaged weights if given, as one file; beside it the config."""
        beside = self.folder / "checkpoints" / "config.json"
        if not beside.exists():
            write_whole(beside, json.dumps(self.config, indent=1))
        tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
        if average is not None:
            tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
        if optimizer is not None:
            names = [name for name, _ in network.named_parameters()]
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{key}.{names[index]}": value for key, value in state.items()}
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_whole(self.checkpoint(which), safetensors.torch.save(plain, metadata={"epoch": str(epoch)}))

    def load(
        self,
        network: Recurrence,
        which: str = "last",
        optimizer: torch.optim.Optimizer | None = None,
        average: Recurrence | None = None,
    ) -> None:
        """Loads weights, the optimiser's state and averaged weights if asked for.

        FileError where they are of another network.
        """
        path = self.checkpoint(which)
        tensors = read_tensors(path)
        load_weights(network, strip(tensors, "network."), path)
        if average is not None:
            load_weights(average, strip(tensors, "average."), path)
        if optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for index, (name, _) in enumerate(network.named_parameters()):
                keys = [k for k in tensors if k.startswith("optimizer.") and k.split(".", 2)[2] == name]
                if keys:
                    state[index] = {key.split(".", 2)[1]: tensors[key] for key in keys}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def build(self) -> Recurrence:
        """The network with its first weights."""
        try:
            return build_network(self.options, classes=len(self.config["data"]["classes"]))
        except OptionError as error:
            raise FileError(self.folder / "config.yaml", str(error), "restore it, or train anew") from None

    def network(self, which: str = "last") -> Recurrence:
        """The trained network, or the average of its weights where there is one, in evaluation mode."""
        network = self.build()
        path = self.checkpoint(which)
        tensors = read_tensors(path)
        load_weights(network, strip(tensors, "average.") or strip(tensors, "network."), path)
        return network.eval()


def build_network(options: TrainOptions, *, classes: int) -> Recurrence:
    """The network of these options, its first weights a function of options.seed alone."""
    torch.manual_seed(options.seed)
    return build(**network_options(options), classes=classes)


def network_options(options: Any) -> dict[str, Any]:
    """The options that `networks.build` takes, without the number of classes."""
    names = ("network", "stem", "core", "norm", "channels", "depth", "growth", "finer", "steps", "size")
    return {name: getattr(options, name) for name in names}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; FileError where it cannot be read."""
    if not path.exists():
        raise FileError(path, "there is no such checkpoint", "train the run until its first epoch ends")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise FileError(path, f"is damaged ({error})", "restore it, or train anew") from None


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_weights(module: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads exactly these weights; FileError that names the first that is missing, left over or of another shape."""
    own = module.state_dict()
    for name in [*own, *weights]:
        shapes = [tuple(where[name].shape) if name in where else "absent" for where in (own, weights)]
        if shapes[0] != shapes[1]:
            problem = f"is of another network: {name} is {shapes[1]} in the file and {shapes[0]} in the network"
            raise FileError(path, problem, "name the run that it belongs to")
    module.load_state_dict(dict(weights))


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise FileError(path, f"is damaged ({error})", "restore it, or train anew") from None
