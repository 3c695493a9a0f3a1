"""The core: a recursive hourglass of residual blocks, (B, F, h, w) -> (B, F, h, w).

The original study's "base" networks; the recursion is Newell et al., "Stacked Hourglass Networks", 2016, section 3.1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trailseg.networks.norms import Norm, Size

# Whether skips are concatenated (the "U" of the original's names), whether the features are doubled by a transposed
# convolution or by nearest neighbour (its "UP"), and the dilations of the blocks at the coarsest level.
CORES: dict[str, dict[str, Any]] = {
    "resnet": {"skips": False, "transposed": True, "dilations": ()},
    "resunet": {"skips": True, "transposed": True, "dilations": ()},
    "upresnet": {"skips": False, "transposed": False, "dilations": ()},
    "upresunet": {"skips": True, "transposed": False, "dilations": ()},
    "dilated": {"skips": True, "transposed": False, "dilations": (2, 4, 8, 4)},
}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity, or a 1x1 convolution where the widths differ (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, *, norm: Norm, size: Size) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            norm(outputs, size),
            nn.LeakyReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            norm(outputs, size),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.activation = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return self.activation(self.body(x) + self.shortcut(x))


class DilatedBlock(nn.Module):
    """Two 3x3 convolutions side by side, plain and dilated, to half the channels each, around an identity.

    One look at what is near and one at what is far (Yu and Koltun, "Multi-scale context aggregation by dilated
    convolutions", 2016), with dense kernels: they are paid for once, however many steps share them.
    """

    def __init__(self, channels: int, dilation: int, *, norm: Norm, size: Size) -> None:
        super().__init__()
        self.near = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.far = nn.Conv2d(channels, channels - channels // 2, 3, padding=dilation, dilation=dilation)
        self.norm = norm(channels, size)
        self.activation = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return x + self.activation(self.norm(torch.cat([self.near(x), self.far(x)], 1)))


class PooledContext(nn.Module):
    """Adds to every position what the mean over all of them says (Cao et al., "GCNet", 2019, without its attention)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return x + self.mix(x.mean((2, 3), keepdim=True))


class Hourglass(nn.Module):
    """One level around a smaller hourglass: halve, widen, recurse, narrow, double, merge.

    widths: the channels of this level and of every level below it, finest first.
    inner: what the coarsest level has beyond its residual block.
    size: (h, w) of this level, which 2 ** (len(widths) - 1) divides.
    skips, transposed: the switches of CORES.
    """

    def __init__(
        self, widths: list[int], inner: nn.Module, *, skips: bool, transposed: bool, norm: Norm, size: Size
    ) -> None:
        super().__init__()
        outer, below, *_ = widths
        half = (size[0] // 2, size[1] // 2)
        self.skips = skips
        self.down = nn.Sequential(nn.MaxPool2d(2), ResidualBlock(outer, below, norm=norm, size=half))
        self.inner = inner
        if len(widths) > 2:
            self.inner = Hourglass(widths[1:], inner, skips=skips, transposed=transposed, norm=norm, size=half)
        self.up: nn.Module = (
            nn.ConvTranspose2d(below, outer, 2, stride=2)
            if transposed
            else nn.Sequential(nn.Conv2d(below, outer, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        )
        self.merge = ResidualBlock(outer * (1 + skips), outer, norm=norm, size=size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, F, h, w)."""
        coarse = self.up(self.inner(self.down(x)))
        return self.merge(torch.cat([x, coarse], 1) if self.skips else coarse)


def make_core(
    *,
    channels: int,
    depth: int,
    growth: float,
    skips: bool,
    transposed: bool,
    dilations: Sequence[int],
    norm: Norm,
    size: Size,
) -> nn.Module:
    """An hourglass of `depth` halvings, or none, for feature maps of (h, w) = `size`, around blocks of those dilations.

    Widths grow by `growth` a level, rounded to a multiple of four so that group norm's four groups divide them.
    """
    widths = [channels] + [max(4, round(channels * growth**level / 4) * 4) for level in range(1, depth + 1)]
    coarsest = (size[0] >> depth, size[1] >> depth)
    blocks = [DilatedBlock(widths[-1], dilation, norm=norm, size=coarsest) for dilation in dilations]
    inner = nn.Sequential(*blocks, PooledContext(widths[-1])) if blocks else nn.Identity()
    if not depth:
        return inner
    return Hourglass(widths, inner, skips=skips, transposed=transposed, norm=norm, size=size)
