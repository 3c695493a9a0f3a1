"""The stem: makes the picture smaller by `scale` each way and lifts it to F channels: the context of every step."""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from trailseg.networks.guide import Guide
from trailseg.networks.norms import Norm, Size
from trailseg.networks.recompute import Layers


class Context(NamedTuple):
    """What every step sees of a picture."""

    features: Tensor
    """(B, F, h, w)."""
    guide: Tensor | None = None
    """(B, 9 r r, h', w'), what `Guide` gives for logits of h' x w'; None where nothing guides them."""

    def of(self, pictures: Tensor) -> Self:
        """That of some of the pictures, by their places (N,) in the batch."""
        return type(self)(self.features[pictures], None if self.guide is None else self.guide[pictures])


class Stem(NamedTuple):
    """A way from the picture to features."""

    scale: int
    """How much smaller the features are than the picture, each way."""
    make: Callable[..., nn.Module]
    """Makes it of (scale, channels, norm, size, guided): the picture's (H, W) = `size`, which `scale` divides.

    (B, 3, H, W) -> a Context, with a guide to logits that are `guided` times finer where that is more than 1.
    """


class PooledStem(Layers):
    """Layers, and no guide."""

    def forward(self, image: Tensor) -> Context:  # type: ignore[override]
        """(B, 3, H, W) -> features (B, F, h, w)."""
        return Context(super().forward(image))


def make_pooled(*, scale: int, channels: int, norm: Norm, size: Size, guided: int) -> PooledStem:
    """Pairs of 5x5 convolutions, each pair followed by a 2x2 max-pool: the original study's "prenet".

    Scale 1 is one pair without a pool.
    """
    assert guided == 1
    layers: list[nn.Module] = []
    inputs = 3
    for shrunk in (2**i for i in range(max(1, scale.bit_length() - 1))):
        here = (size[0] // shrunk, size[1] // shrunk)
        for width in (inputs, channels):
            layers += [nn.Conv2d(width, channels, 5, padding=2), norm(channels, here), nn.LeakyReLU(inplace=True)]
        if scale > 1:
            layers.insert(-1, nn.MaxPool2d(2))  # a maximum passes through LeakyReLU, which is cheaper after it
        inputs = channels
    return PooledStem(*layers)


class StridedStem(nn.Module):
    """Three strided 3x3 convolutions to 1/8 of the picture, where what 1/4 of it shows arrives twice.

    Once through the third convolution, and once as it is: four neighbours side by side as channels (space to depth, Shi
    et al., "Real-time single image and video super-resolution", 2016, section 3.2), so that a head which unfolds
    channels again (`build`, option `finer`) has the detail that striding loses.
    """

    DETAIL = 12  # channels of 1/4 that are kept as they are

    def __init__(self, *, scale: int, channels: int, norm: Norm, size: Size, guided: int) -> None:
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
        self.guide = Guide(wide, guided) if guided > 1 else None

    def forward(self, image: Tensor) -> Context:
        """(B, 3, H, W) -> features (B, F, H/8, W/8), and a guide to logits of H/4 x W/4 where that was asked for."""
        quarter = self.quarter(image)
        features = self.merge(torch.cat([self.eighth(quarter), self.detail(quarter)], 1))
        return Context(features, None if self.guide is None else self.guide(quarter))


STEMS = {
    "x1": Stem(1, make_pooled),
    "x2": Stem(2, make_pooled),
    "x4": Stem(4, make_pooled),
    "x8": Stem(8, make_pooled),
    "s8": Stem(8, StridedStem),
}
