"""The stem: makes the picture smaller by `scale` each way and lifts it to F channels, (B, 3, H, W) -> (B, F, h, w)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trailseg.networks.norms import Norm, Size
from trailseg.networks.recompute import Layers


class Stem(NamedTuple):
    """A way from the picture to features."""

    scale: int
    """How much smaller the features are than the picture, each way."""
    make: Callable[..., nn.Module]
    """Makes it of (scale, channels, norm, size): the picture's (H, W) = `size`, which `scale` divides."""


def make_pooled(*, scale: int, channels: int, norm: Norm, size: Size) -> Layers:
    """Pairs of 5x5 convolutions, each pair followed by a 2x2 max-pool: the original study's "prenet".

    Scale 1 is one pair without a pool.
    """
    layers: list[nn.Module] = []
    inputs = 3
    for shrunk in (2**i for i in range(max(1, scale.bit_length() - 1))):
        here = (size[0] // shrunk, size[1] // shrunk)
        for width in (inputs, channels):
            layers += [nn.Conv2d(width, channels, 5, padding=2), norm(channels, here), nn.LeakyReLU(inplace=True)]
        if scale > 1:
            layers.insert(-1, nn.MaxPool2d(2))  # a maximum passes through LeakyReLU, which is cheaper after it
        inputs = channels
    return Layers(*layers)


class StridedStem(nn.Module):
    """Three strided 3x3 convolutions to 1/8 of the picture, where what 1/4 of it shows arrives twice.

    Once through the third convolution, and once as it is: four neighbours side by side as channels (space to depth, Shi
    et al., "Real-time single image and video super-resolution", 2016, section 3.2), so that a head which unfolds
    channels again (`build`, option `finer`) has the detail that striding loses.
    """

    DETAIL = 12  # channels of 1/4 that are kept as they are

    def __init__(self, *, scale: int, channels: int, norm: Norm, size: Size) -> None:
        super().__init__()
        assert scale == 8
        half, quarter, eighth = ((size[0] // s, size[1] // s) for s in (2, 4, 8))

        def strided(inputs: int, outputs: int, here: Size, stride: int = 2) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
            return [conv, norm(outputs, here), nn.LeakyReLU(inplace=True)]

        thin, wide = 24, 48
        self.quarter = Layers(
            *strided(3, thin, half), *strided(thin, wide, quarter), *strided(wide, wide, quarter, stride=1)
        )
        self.eighth = Layers(*strided(wide, channels, eighth))
        self.detail = nn.Sequential(nn.Conv2d(wide, self.DETAIL, 1), nn.PixelUnshuffle(2))
        self.merge = nn.Conv2d(channels + 4 * self.DETAIL, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, F, H/8, W/8)."""
        quarter = self.quarter(image)
        return self.merge(torch.cat([self.eighth(quarter), self.detail(quarter)], 1))


STEMS = {
    "x1": Stem(1, make_pooled),
    "x2": Stem(2, make_pooled),
    "x4": Stem(4, make_pooled),
    "x8": Stem(8, make_pooled),
    "s8": Stem(8, StridedStem),
}
