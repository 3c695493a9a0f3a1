"""The distillation stem: makes the picture smaller by `scale` each way and lifts it to F channels.

(B, 3, H, W) -> (B, F, H/scale, W/scale), by pairs of 5x5 convolutions, each pair followed by a 2x2 max-pool (the
original study's "prenet"). x1 is one pair without a pool.
"""

from torch import nn

from trailseg.networks.norms import Norm, Size

STEMS = {"x1": 1, "x2": 2, "x4": 4, "x8": 8}  # name to scale


def make_stem(*, scale: int, channels: int, norm: Norm, size: Size) -> nn.Sequential:
    """The stem of scale 1, 2, 4 or 8 for pictures of (H, W) = `size`, which `scale` divides."""
    layers: list[nn.Module] = []
    inputs = 3
    for shrunk in (2**i for i in range(max(1, scale.bit_length() - 1))):
        here = (size[0] // shrunk, size[1] // shrunk)
        for width in (inputs, channels):
            layers += [nn.Conv2d(width, channels, 5, padding=2), norm(channels, here), nn.LeakyReLU(inplace=True)]
        if scale > 1:
            layers.append(nn.MaxPool2d(2))
        inputs = channels
    return nn.Sequential(*layers)
