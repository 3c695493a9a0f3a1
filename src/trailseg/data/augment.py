"""Augmentation: one affine resampling per picture and label together, light and colour, and mixing of two pictures.

It is computed on the training device; what is drawn is a function of (seed, epoch, place in the epoch's order) alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trailseg.device import send
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
    roam: float = 0.0
    """Greatest further shift either way, as a share of what the view leaves of the picture, or the picture of it."""
    gamma: float = 1.0
    """Greatest exponent of the values in 0..1, drawn on a logarithmic scale from its inverse: darker or lighter."""
    tint: float = 0.0
    """Greatest relative change of each of red, green and blue."""
    mix: float = 0.0
    """Probability that another picture covers a part: a rectangle (Yun et al., "CutMix", 2019, section 3.1)."""
    classes: float = 0.0
    """Probability that what covers is not a rectangle but about half of the other's classes, wherever they lie (Olsson
    et al., "ClassMix", 2021, section 3.1, with the truth in place of predictions)."""


_VIEWS = Augmentation(flip=0.5, tilt=5.0, zoom=(0.7, 2.0), roam=1.0)
_MILD = replace(_VIEWS, light=0.2, gamma=1.5, mix=0.5)
_WEATHER = replace(_VIEWS, light=0.5, gamma=1.8, tint=0.15)

PRESETS = {
    "none": Augmentation(),
    "seed": Augmentation(flip=0.5, angles=(-30.0, -15.0, 0.0, 15.0, 30.0)),
    "drive": Augmentation(flip=0.5, tilt=5.0, zoom=(0.75, 1.5), shift=0.1, light=0.3),
    "views": _VIEWS,
    "mild": _MILD,
    "classmix": replace(_MILD, classes=0.5),
    "weather": _WEATHER,
    "robust": replace(_WEATHER, mix=0.5),
}


def draw(
    augmentation: Augmentation, *, seed: int, epoch: int, places: Iterable[int], view: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Parameters (B, 13) float32: the 2x3 matrix from output to input pixels, relative to the centre and the size; then
    brightness, contrast, saturation, gamma, red, green and blue, where 1 changes nothing.

    `view` is the output's height and width as shares of the input's.
    """
    drawn = [_draw(augmentation, np.random.default_rng([seed, epoch, place]), view) for place in places]
    return torch.tensor(np.stack(drawn), dtype=torch.float32)


def draw_mixes(
    augmentation: Augmentation, count: int, *, seed: int, epoch: int, places: Iterable[int], view: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What covers a part of each place's picture: which of `count` pictures (B,) int64, -1 for none; as what `draw`
    gives; the rectangle (B, 4) float32, its top, left, bottom and right in 0..1, of any position and an area drawn
    evenly from 0..1, or everything; and which labels of the other are seen in it (B, 256) bool.
    """
    partners, drawn, boxes, seen = [], [], [], []
    for place in places:
        random = np.random.default_rng([seed, epoch, place, 2])  # 2 tells it from `draw`
        partners.append(int(random.integers(count)) if random.random() < augmentation.mix else -1)
        side = np.sqrt(random.random())
        top, left = random.uniform(0, 1 - side, 2)
        drawn.append(_draw(augmentation, random, view))
        if random.random() < augmentation.classes:
            boxes.append([0.0, 0.0, 1.0, 1.0])
            seen.append((random.random(256) < 0.5) & (np.arange(256) != IGNORE))
        else:
            boxes.append([top, left, top + side, left + side])
            seen.append(np.full(256, True))
    parameters, rectangles = (torch.tensor(np.stack(x), dtype=torch.float32) for x in (drawn, boxes))
    return torch.tensor(partners), parameters, rectangles, torch.tensor(np.stack(seen))


def _draw(a: Augmentation, random: np.random.Generator, view: tuple[float, float]) -> np.ndarray:
    mirror = -1.0 if random.random() < a.flip else 1.0
    angle = np.deg2rad(random.choice(a.angles) + random.uniform(-a.tilt, a.tilt))
    zoom = np.exp(random.uniform(*np.log(a.zoom)))
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    dx, dy = random.uniform(-a.shift, a.shift, 2)
    light = random.uniform(1 - a.light, 1 + a.light, 3)
    free = [abs(1 - share / zoom) / 2 for share in view]
    down, right = random.uniform(-a.roam, a.roam, 2) * free
    gamma = np.exp(random.uniform(-1, 1) * np.log(a.gamma))
    tint = random.uniform(1 - a.tint, 1 + a.tint, 3)
    return np.array([mirror * cos, -sin, dx + right, mirror * sin, cos, dy + down, *light, gamma, *tint])


def apply(images: Tensor, labels: Tensor, drawn: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views (B, 3, *size) of images (B, 3, H, W) float in 0..1 and labels (B, H, W) uint8, moved together by `drawn`.

    Bilinear for the image, whose edge is repeated outside; nearest for the label, which is IGNORE outside.
    """
    height, width = images.shape[-2:]
    recolours = bool((drawn[:, 9:] != 1).any())  # asked before `drawn` is where the answer would have to be waited for
    # affine_grid measures x in half widths and y in half heights: a rotation in pixels needs the ratio of the two.
    ratio = torch.tensor([[1.0, height / width, 2.0], [width / height, 1.0, 2.0]])
    # What it measures in the output's halves is a share of the input's.
    share = torch.tensor([size[1] / width, size[0] / height, 1.0])
    matrix = send(drawn[:, :6].view(-1, 2, 3) * ratio * share, images.device)
    drawn = send(drawn, images.device)
    grid = F.affine_grid(matrix, [len(images), 3, *size], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    shifted = F.grid_sample(labels[:, None].float() - IGNORE, grid, mode="nearest", align_corners=False)
    labels = (shifted[:, 0] + IGNORE).to(torch.uint8)

    brightness, contrast, saturation = drawn[:, 6:9, None, None, None].unbind(1)
    images.mul_(brightness)  # in place from here on: fresh memory costs more than the arithmetic
    torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast, out=images)
    red, green, blue = torch.split(images, 1, 1)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    torch.lerp(grey, images, saturation, out=images).clamp_(0, 1)
    if recolours:
        images.pow_(drawn[:, 9, None, None, None]).mul_(drawn[:, 10:, None, None]).clamp_(0, 1)
    return images, labels


def paste(
    images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, boxes: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Images and labels as of `apply`, in whose rectangles `boxes` (B, 4) the others are, where `seen` (B, 256) says so
    of their labels.
    """
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(side, device=images.device) / side for side in (height, width))
    top, left, bottom, right = send(boxes, images.device)[:, :, None].unbind(1)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None]
    seen = send(seen, images.device)
    inside &= seen.gather(1, other_labels.flatten(1).long()).view_as(other_labels)
    return torch.where(inside[:, None], others, images), torch.where(inside, other_labels, labels)
