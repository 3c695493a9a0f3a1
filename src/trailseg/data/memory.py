"""The decoded split: every picture read once and kept as uint8, and the order in which an epoch visits it."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trailseg.data.files import Picture
from trailseg.labels import IGNORE


@dataclass(frozen=True)
class Memory:
    """A split of N pictures at the network's size (H, W), and their truth at full size."""

    names: list[str]
    images: Tensor
    """(N, 3, H, W) uint8 RGB."""
    labels: Tensor
    """(N, H, W) uint8 class ids, 0..K-1 or IGNORE."""
    truths: list[np.ndarray]
    """N class ids (H', W') uint8 at each picture's own size."""

    def fingerprint(self) -> str:
        """SHA-256 over the names and every value: equal exactly where the training sees the same data."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        digest.update(self.images.numpy().data)
        digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3,) float32 of the channels, in 0..1; the deviation is at least 1/255."""
        counts = np.zeros((3, 256), np.int64)
        for image in self.images.numpy():
            counts += [np.bincount(channel.ravel(), minlength=256) for channel in image]
        values, weights = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
        mean = weights @ values
        std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1)).clip(min=1 / 255)
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)

    def class_pixels(self, classes: int) -> Tensor:
        """How many pixels each of that many classes has, (K,) int64."""
        return torch.bincount(self.labels.flatten(), minlength=IGNORE + 1)[:classes].cpu()

    def on(self, device: torch.device) -> "Memory":
        """The same with images and labels on the device, if half its free memory holds them."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes + self.labels.nbytes > free // 2:
                return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def decode(pictures: Sequence[Picture], size: tuple[int, int]) -> Memory:
    """Reads every picture and resizes it to (H, W) = `size`: bilinear for the image, nearest for the label."""
    height, width = size
    memory = Memory(
        names=[picture.name for picture in pictures],
        images=torch.empty(len(pictures), 3, height, width, dtype=torch.uint8),
        labels=torch.empty(len(pictures), height, width, dtype=torch.uint8),
        truths=[np.empty(0, np.uint8)] * len(pictures),
    )

    def read(position: int) -> None:
        image, truth = pictures[position].read()
        small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        label = Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST)
        memory.images[position] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
        memory.labels[position] = torch.from_numpy(np.array(label))
        memory.truths[position] = truth

    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(read, range(len(pictures))))  # the first failure is raised here
    return memory


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


def labels_at_scale(labels: Tensor, scale: int) -> Tensor:
    """Labels (B, ceil(H/scale), ceil(W/scale)) of (B, H, W): the class at the centre of each `scale` x `scale` square.

    A square whose centre lies outside the picture is IGNORE.
    """
    height, width = labels.shape[-2:]
    padded = torch.nn.functional.pad(labels, (0, -width % scale, 0, -height % scale), value=IGNORE)
    return padded[..., scale // 2 :: scale, scale // 2 :: scale]
