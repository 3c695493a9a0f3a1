"""The core: a recursive hourglass of residual blocks, (B, F, h, w) -> (B, F, h, w).

The original study's "base" networks; the recursion is Newell et al., "Stacked Hourglass Networks", 2016, section 3.1.
"""

import torch
from torch import Tensor, nn

from trailseg.networks.norms import Norm, Size

# Whether skips are concatenated (the "U" of the original's names), and whether the features are doubled by a
# transposed convolution or by nearest neighbour (its "UP").
CORES = {
    "resnet": {"skips": False, "transposed": True},
    "resunet": {"skips": True, "transposed": True},
    "upresnet": {"skips": False, "transposed": False},
    "upresunet": {"skips": True, "transposed": False},
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


class Hourglass(nn.Module):
    """One level around a smaller hourglass: halve, widen, recurse, narrow, double, merge.

    widths: the channels of this level and of every level below it, finest first.
    size: (h, w) of this level, which 2 ** (len(widths) - 1) divides.
    skips, transposed: the switches of CORES.
    """

    def __init__(self, widths: list[int], *, skips: bool, transposed: bool, norm: Norm, size: Size) -> None:
        super().__init__()
        outer, inner, *_ = widths
        half = (size[0] // 2, size[1] // 2)
        self.skips = skips
        self.down = nn.Sequential(nn.MaxPool2d(2), ResidualBlock(outer, inner, norm=norm, size=half))
        self.inner: nn.Module = nn.Identity()
        if len(widths) > 2:
            self.inner = Hourglass(widths[1:], skips=skips, transposed=transposed, norm=norm, size=half)
        self.up: nn.Module = (
            nn.ConvTranspose2d(inner, outer, 2, stride=2)
            if transposed
            else nn.Sequential(nn.Conv2d(inner, outer, 1), nn.Upsample(scale_factor=2, mode="nearest"))
        )
        self.merge = ResidualBlock(outer * (1 + skips), outer, norm=norm, size=size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, F, h, w)."""
        coarse = self.up(self.inner(self.down(x)))
        return self.merge(torch.cat([x, coarse], 1) if self.skips else coarse)


def make_core(
    *, channels: int, depth: int, growth: float, skips: bool, transposed: bool, norm: Norm, size: Size
) -> Hourglass:
    """An hourglass of `depth` halvings for feature maps of (h, w) = `size`.

    Widths grow by `growth` a level, rounded to a multiple of four so that group norm's four groups divide them.
    """
    widths = [channels] + [max(4, round(channels * growth**level / 4) * 4) for level in range(1, depth + 1)]
    return Hourglass(widths, skips=skips, transposed=transposed, norm=norm, size=size)
