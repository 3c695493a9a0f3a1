"""What a network costs: parameters and multiply-accumulates, counted without computing anything."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trailseg.networks.build import build
from trailseg.networks.norms import Size


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates (MACs) for one picture."""

    parameters: int
    macs_stem: int
    macs_step: int
    """Of a further step: core, gate, head, feedback, fuse, and sharpening where it is guided; the first step has no
    feedback and no fuse."""


def cost(*, size: Size, **options: Any) -> Cost:
    """The cost of `build(size=size, **options)` for one picture of (H, W) = `size`."""
    with torch.device("meta"):
        network = build(size=size, **options)
        image = torch.empty(1, 3, *size)
    stem = _macs(lambda: network.begin(image))
    one, two = (_macs(partial(network, image, network.up_to(steps))) for steps in (1, 2))
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        macs_stem=stem,
        macs_step=two - one if two > one else one - stem,
    )


def _macs(compute: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2
