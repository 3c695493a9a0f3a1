"""What a network costs: parameters and multiply-accumulates, counted without computing anything."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from trailseg.config import NetworkOptions
from trailseg.networks.build import build


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates (MACs) for one picture."""

    parameters: int
    macs_stem: int
    macs_step: int
    """Of a further step: core, gate, head, feedback, fuse, and upsampling where it is guided; the first step has no
    feedback and no fuse."""


def cost(options: NetworkOptions, *, classes: int) -> Cost:
    """The cost of `build(options, classes=classes)` for one picture of `options.size`."""
    with torch.device("meta"):
        network = build(options, classes=classes)
        image = torch.empty(1, 3, *options.size)
    stem = _macs(lambda: network.encode(image))
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
