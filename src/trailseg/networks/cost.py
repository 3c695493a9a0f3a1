"""What a network costs: parameters and multiply-accumulates, counted without computing anything."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trailseg.networks.build import build
from trailseg.networks.norms import Size
from trailseg.networks.recurrence import Recurrence


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates (MACs) for one picture."""

    parameters: int
    macs_stem: int
    macs_step: int
    """Of a further step: core, head, feedback and fuse; the first step has no feedback."""


def cost(*, size: Size, **options: Any) -> Cost:
    """The cost of `build(size=size, **options)` for one picture of (H, W) = `size`."""
    with torch.device("meta"):
        network = build(size=size, **options)
        image = torch.empty(1, 3, *size)
    macs = {steps: _macs(network, image, steps) for steps in (1, 2) if steps <= (network.max_steps or 2)}
    with FlopCounterMode(display=False) as counter:
        network.stem(network.pad(image))
    stem = counter.get_total_flops() // 2
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        macs_stem=stem,
        macs_step=macs[2] - macs[1] if 2 in macs else macs[1] - stem,
    )


def _macs(network: Recurrence, image: torch.Tensor, steps: int) -> int:
    with FlopCounterMode(display=False) as counter:
        network(image, steps)
    return counter.get_total_flops() // 2
