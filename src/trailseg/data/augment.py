"""Augmentation: one affine resampling per picture and label together, then light and colour, on the training device.

What is drawn is a function of (seed, epoch, place in the epoch's order) alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trailseg.labels import IGNORE


@dataclass(frozen=True)
class Augmentation:
    """Ranges to draw from; the defaults change nothing."""

    flip: float = 0.0
    """Probability of a left-right flip."""
    angles: tuple[float, ...] = (0.0,)
    """Rotations to choose from, in degrees."""
    tilt: float = 0.0
    """Further rotation of at most so many degrees either way."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Least and greatest scale, drawn on a logarithmic scale; above 1 things grow."""
    shift: float = 0.0
    """Greatest shift either way, as a share of the height and width."""
    light: float = 0.0
    """Greatest relative change of brightness, contrast and saturation, each drawn by itself."""


PRESETS = {
    "none": Augmentation(),
    "seed": Augmentation(flip=0.5, angles=(-30.0, -15.0, 0.0, 15.0, 30.0)),
    "drive": Augmentation(flip=0.5, tilt=5.0, zoom=(0.75, 1.5), shift=0.1, light=0.3),
}


def draw(augmentation: Augmentation, *, seed: int, epoch: int, places: Iterable[int]) -> Tensor:
    """Parameters (B, 9) float32: the 2x3 matrix from output to input pixels, relative to the centre and the size; then
    brightness, contrast and saturation, where 1 changes nothing.
    """
    return torch.tensor(np.stack([_draw(augmentation, seed, epoch, place) for place in places]), dtype=torch.float32)


def _draw(a: Augmentation, seed: int, epoch: int, place: int) -> np.ndarray:
    random = np.random.default_rng([seed, epoch, place])
    mirror = -1.0 if random.random() < a.flip else 1.0
    angle = np.deg2rad(random.choice(a.angles) + random.uniform(-a.tilt, a.tilt))
    zoom = np.exp(random.uniform(*np.log(a.zoom)))
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    dx, dy = random.uniform(-a.shift, a.shift, 2)
    light = random.uniform(1 - a.light, 1 + a.light, 3)
    return np.array([mirror * cos, -sin, dx, mirror * sin, cos, dy, *light])


def apply(images: Tensor, labels: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) float in 0..1 and labels (B, H, W) uint8, moved together by `drawn` (B, 9).

    Bilinear for the image, whose edge is repeated outside; nearest for the label, which is IGNORE outside.
    """
    height, width = images.shape[-2:]
    matrix = drawn[:, :6].view(-1, 2, 3).to(images.device)
    # affine_grid measures x in half widths and y in half heights: a rotation in pixels needs the ratio of the two.
    ratio = torch.tensor([[1.0, height / width, 2.0], [width / height, 1.0, 2.0]], device=images.device)
    grid = F.affine_grid(matrix * ratio, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    shifted = F.grid_sample(labels[:, None].float() - IGNORE, grid, mode="nearest", align_corners=False)
    labels = (shifted[:, 0] + IGNORE).to(torch.uint8)

    brightness, contrast, saturation = drawn[:, 6:, None, None, None].to(images.device).unbind(1)
    images = images * brightness
    images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)
    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp(0, 1), labels
