"""The decoded split: every picture read once and kept as uint8, and the order in which an epoch visits it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol
from zlib import crc32

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trailseg.data.files import Picture
from trailseg.device import send
from trailseg.errors import FileError
from trailseg.labels import IGNORE
from trailseg.prefetch import prefetch

READERS = 4  # threads that decode


@dataclass(frozen=True)
class Counts:
    """What is counted once over a whole split."""

    fingerprint: str
    """SHA-256 over the names and every value: equal exactly where the training sees the same data."""
    channels: list[list[int]]
    """For red, green and blue the pixels of each value 0..255."""
    classes: list[int]
    """The pixels of each class id 0..255."""


class Mapped(Protocol):
    """The file that a split is read from, when it is used."""

    def check(self, where: Tensor, images: Tensor, labels: Tensor) -> None:
        """FileError where what has been read at the places `where` (B,) is not what was written."""


@dataclass(frozen=True)
class Memory:
    """A split of N pictures at the network's size (H, W), and their truth at full size."""

    names: list[str]
    images: Tensor
    """(N, 3, H, W) uint8 RGB."""
    labels: Tensor
    """(N, H, W) uint8 class ids, 0..K-1 or IGNORE."""
    truths: Sequence[np.ndarray]
    """N class ids (H', W') uint8 at each picture's own size."""
    known: Counts | None = None
    """Where they have been counted before."""
    mapped: Mapped | None = None
    """None where all this is held in memory."""
    left_out: Sequence[FileError] = ()
    """Why pictures of the split are not among the N, where these may be left out."""

    def take(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B, H, W), both uint8, at the places `where` (B,).

        FileError where they are mapped from a file that has been damaged.
        """
        where = send(where, self.images.device)
        images, labels = self.images[where], self.labels[where]
        if self.mapped is not None:
            self.mapped.check(where, images, labels)
        return images, labels

    @cached_property
    def counts(self) -> Counts:
        """See `Counts`."""
        if self.known is not None:
            return self.known
        digest = hashlib.sha256("\n".join(self.names).encode())
        channels, classes = np.zeros((3, 256), np.int64), np.zeros(256, np.int64)
        for part in self._parts():
            images = self.take(part)[0].numpy()
            digest.update(images.data)
            channels += [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(3)]
        for part in self._parts():
            labels = self.take(part)[1].numpy()
            digest.update(labels.data)
            classes += np.bincount(labels.ravel(), minlength=256)
        return Counts(digest.hexdigest(), channels.tolist(), classes.tolist())

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3,) float32 of the channels, in 0..1; the deviation is at least 1/255."""
        counts = np.array(self.counts.channels)
        values, weights = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
        mean = weights @ values
        std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1)).clip(min=1 / 255)
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)

    def class_pixels(self, classes: int) -> Tensor:
        """How many pixels each of that many classes has, (K,) int64."""
        return torch.tensor(self.counts.classes[:classes])

    def also_in(self, other: "Memory") -> int:
        """How many of its pictures the other has as well, by name and content."""
        shared = set(self.names) & set(other.names)
        mine, its = (
            {(name, crc32(image.numpy())) for name, image in zip(one.names, one.images, strict=True) if name in shared}
            for one in (self, other)
        )
        return len(mine & its)

    def held(self, device: torch.device | str = "cpu") -> "Memory":
        """The same with images and labels held in memory, or in that of a device."""
        images, labels = (torch.empty_like(values, device=device) for values in (self.images, self.labels))
        for part in self._parts():
            images[part], labels[part] = (values.to(device) for values in self.take(part))
        return replace(self, images=images, labels=labels, known=self.counts, mapped=None)

    def _parts(self) -> Iterator[Tensor]:
        """The places of all pictures, in blocks that memory holds."""
        for first in range(0, len(self.names), 64):
            yield torch.arange(first, min(first + 64, len(self.names)))

    def on(self, device: torch.device) -> "Memory":
        """The same with images and labels on the device, if half the free memory of a CUDA device holds them."""
        if device.type == "cpu":
            return self
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes + self.labels.nbytes > free // 2:
                return self
        return self.held(device)


class Resized(NamedTuple):
    """A picture at the network's size, all uint8."""

    name: str
    image: np.ndarray
    """(3, H, W) RGB, bilinear."""
    label: np.ndarray
    """(H, W) class ids, nearest."""
    truth: np.ndarray
    """(H', W') class ids, as they are."""


def decode(pictures: Sequence[Picture], size: tuple[int, int], *, skip_bad: bool = False) -> Memory:
    """Reads every picture into memory at (H, W) = `size`; see `resized`."""
    names, truths, left_out = list[str](), list[np.ndarray](), list[FileError]()
    images = torch.empty(len(pictures), 3, *size, dtype=torch.uint8)
    labels = torch.empty(len(pictures), *size, dtype=torch.uint8)
    for picture in resized(pictures, size, left_out if skip_bad else None):
        images[len(names)], labels[len(names)] = torch.from_numpy(picture.image), torch.from_numpy(picture.label)
        names.append(picture.name)
        truths.append(picture.truth)
    return Memory(names, images[: len(names)], labels[: len(names)], truths, left_out=left_out)


def resized(
    pictures: Sequence[Picture], size: tuple[int, int], left_out: list[FileError] | None = None
) -> Iterator[Resized]:
    """Each picture at (H, W) = `size`, in order; threads read a few of them ahead.

    FileError with the first that cannot be read rightly. Where there is a list `left_out`, it gets all of these, and
    the others are yielded; FileError only where there are none.
    """

    def read(picture: Picture) -> Resized | FileError:
        try:
            return _resized(picture, size)
        except FileError as fault:
            return fault

    for found in prefetch(read, pictures, depth=2 * READERS, workers=READERS):
        if isinstance(found, Resized):
            yield found
        elif left_out is None:
            raise found
        else:
            left_out.append(found)
    if left_out and len(left_out) == len(pictures):
        first = left_out[0]
        raise FileError(first.path, f"{first.problem} (and none of {len(pictures)} pictures is whole)", first.remedy)


def _resized(picture: Picture, size: tuple[int, int]) -> Resized:
    image, truth = picture.read()
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    label = Image.fromarray(truth).resize(size[::-1], Image.Resampling.NEAREST)
    return Resized(picture.name, np.array(np.array(small).transpose(2, 0, 1), order="C"), np.array(label), truth)


@dataclass(frozen=True)
class Batch:
    """What one process does of one optimiser step."""

    places: np.ndarray
    """Places in the epoch's order."""
    pictures: Tensor
    """The picture at each place."""
    repeated: Tensor
    """Whether a place only fills up the batch, so that every process has equally many; it does not count."""
    everyone: Tensor
    """The pictures of all processes."""


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The pictures 0..count-1 in the order of that epoch: a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(count: int, *, batch: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The batches of one epoch for process `rank` of `world`; together they visit every picture exactly once."""
    order = epoch_order(count, seed=seed, epoch=epoch)
    for first in range(0, count, batch):
        whole = np.arange(first, min(first + batch, count))
        filled = np.resize(whole, -(-len(whole) // world) * world)
        places, repeated = (values[rank::world] for values in (filled, np.arange(len(filled)) >= len(whole)))
        yield Batch(places, *(torch.from_numpy(v) for v in (order[places], repeated, order[whole])))


def in_squares(labels: Tensor, scale: int) -> Tensor:
    """Labels (B, H, W) with rows and columns of IGNORE after the last, until `scale` divides both sides."""
    height, width = labels.shape[-2:]
    return torch.nn.functional.pad(labels, (0, -width % scale, 0, -height % scale), value=IGNORE)


def labels_at_scale(labels: Tensor, scale: int) -> Tensor:
    """Labels (B, ceil(H/scale), ceil(W/scale)) of (B, H, W): the class at the centre of each `scale` x `scale` square.

    A square whose centre lies outside the picture is IGNORE.
    """
    return in_squares(labels, scale)[..., scale // 2 :: scale, scale // 2 :: scale]


def shares_at_scale(labels: Tensor, scale: int, classes: int) -> Tensor:
    """The share (B, K, ceil(H/scale), ceil(W/scale)) float32 that each class of labels (B, H, W) has of each `scale` x
    `scale` square; what is IGNORE, or outside the picture, has no class.
    """
    each = torch.arange(classes, dtype=labels.dtype, device=labels.device).view(-1, 1, 1)
    count = (in_squares(labels, scale)[:, None] == each).view(torch.uint8)
    for side in (3, 2):  # in bytes, and one side after the other, for speed
        count = torch.unflatten(count, side, (-1, scale)).sum(side + 1, dtype=torch.uint8)
    return count / scale**2
