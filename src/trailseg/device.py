"""Devices: which one computes and how precisely, and sending to it, without the imports that only training needs."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from trailseg.errors import OptionError, require


@dataclass(frozen=True)
class Compute:
    """A device and a precision."""

    device: torch.device
    precision: Literal["32", "bf16"]

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it operations that bear it compute in bf16, where that is the precision."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def resolve(device: str, precision: str) -> Compute:
    """What the options mean here: auto is CUDA before MPS before the processor, and bf16 where CUDA computes in it.

    OptionError where the device is not there.
    """
    require("device", device, ("auto", "cpu", "cuda", "mps"))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, usable in there.items() if usable)
    if not there[device]:
        raise OptionError(f"device={device}: there is none here; say device=cpu, or leave it out")
    if require("precision", precision, ("auto", "32", "bf16")) == "auto":
        fast = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if fast else "32"
    return Compute(torch.device(device), "bf16" if precision == "bf16" else "32")


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on the device, without waiting for all that it has yet to compute.

    MPS is waited for: it may read what is sent after it is gone (pytorch/pytorch issue 189690).
    """
    return values.to(device, non_blocking=device.type != "mps")
