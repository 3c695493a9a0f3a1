"""Normalisation: the one table from which every part takes its norm.

Every norm maps (B, C, h, w) to the same shape and learns an affine map. All but the last two take any picture size.
"""

from collections.abc import Callable
from math import gcd

from torch import Tensor, nn

Size = tuple[int, int]
Norm = Callable[[int, Size], nn.Module]
"""Makes the norm of a feature map: (channels, (h, w)) -> module."""


class StepNorm(nn.Module):
    """Batch normalisation with statistics of its own for the first step, and others for all later ones.

    Whoever takes steps sets `step` before each: 0 for the first. "Recurrent Batch Normalization" (Cooijmans et al.,
    2017) keeps some for every step (section 3); with two sets any number of steps can follow.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.step = 0
        self.first, self.later = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return self.later(x) if self.step else self.first(x)


NORMS: dict[str, Norm] = {
    # Wu and He, "Group Normalization", 2018; four groups, or as many as divide the channels.
    "group": lambda channels, size: nn.GroupNorm(gcd(channels, 4), channels),
    # One group: mean and variance of a whole picture's features, weights per channel.
    "layer": lambda channels, size: nn.GroupNorm(1, channels),
    # Ulyanov et al., "Instance Normalization", 2016: one group per channel.
    "instance": lambda channels, size: nn.GroupNorm(channels, channels),
    # Ioffe and Szegedy, "Batch Normalization", 2015. Its running statistics mix those of all steps.
    "batch": lambda channels, size: nn.BatchNorm2d(channels),
    # The same, but for the first step apart from the others; where nothing is repeated it is "batch".
    "step": lambda channels, size: StepNorm(channels),
    # The original study's two: Ba et al., "Layer Normalization", 2016, with a weight per position (and per channel).
    "layerHW": lambda channels, size: nn.LayerNorm(size),
    "layerCHW": lambda channels, size: nn.LayerNorm((channels, *size)),
}

SIZE_BOUND = ("layerHW", "layerCHW")
