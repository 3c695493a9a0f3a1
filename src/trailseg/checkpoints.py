"""A checkpoint: tensors and metadata in one safetensors file with a checksum, written and read whole or not at all.

Safetensors holds numbers and text alone: reading a file of unknown origin carries out nothing that it says.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trailseg.errors import FileError
from trailseg.writing import write_whole

MOST_HEADER = 4_000_000
"""Bytes of the list of tensors at the beginning: that of the largest network takes a tenth of it."""

REMEDY = "restore it, or train anew"


class Checkpoint(NamedTuple):
    """What a file holds."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """Numbers, text, lists and mappings."""


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], keep: Path | None = None) -> None:
    """Writes a checkpoint, and keeps that which was there under the name `keep`.

    FileError where that fails, or a number is not finite: then the old one is still there.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    for name, value in plain.items():
        if value.is_floating_point() and not value.isfinite().all():
            problem = f"is not written, since {name} is no longer finite"
            raise FileError(path, problem, "train anew with a smaller lr; the checkpoint before is whole")
    told = json.dumps({**facts, "sha256": checksum(plain, facts)})  # one text, since safetensors shuffles several
    write_whole(path, safetensors.torch.save(plain, metadata={"trailseg": told}), keep)


def read(path: Path) -> Checkpoint:
    """The checkpoint in a file; FileError where there is none, or it is not what `write` wrote to the last bit."""
    if not path.is_file():
        raise FileError(path, "there is no such checkpoint", "train the run until its first epoch ends")
    try:
        with path.open("rb") as file:
            if (size := int.from_bytes(file.read(8), "little")) > MOST_HEADER:
                raise ValueError("its header is too large")
            header = file.read(size)
        facts = dict(json.loads(json.loads(header)["__metadata__"]["trailseg"]))
        told = facts.pop("sha256")
        tensors = safetensors.torch.load(path.read_bytes())
        if told != checksum(tensors, facts):
            raise ValueError("its checksum is another")
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        reason = "it has no checksum" if isinstance(error, KeyError) else str(error)
        raise FileError(path, f"is damaged ({' '.join(reason.split())[:200]})", REMEDY) from None
    return Checkpoint(tensors, facts)


def checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """SHA-256 of all that a checkpoint holds, or would hold, in hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads exactly these weights; FileError that names the first that is missing, left over or of another shape.

    A module on the meta device, which takes no memory, takes over the tensors themselves.
    """
    own = module.state_dict()
    for name in [*own, *weights]:
        mine, its = (_kind(where[name]) if name in where else "absent" for where in (own, weights))
        if mine != its:
            problem = f"is of another network: {name} is {its} in the file and {mine} in the network"
            raise FileError(path, problem, "name the run that it belongs to")
    module.load_state_dict(dict(weights), assign=any(value.is_meta for value in own.values()))


def _kind(value: Tensor) -> str:
    """Such as 'float32 (3, 4)'."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
