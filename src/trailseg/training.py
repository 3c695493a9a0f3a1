"""The training loop: explicit, resumable after every epoch, the same on one process and on several.

Everything random in it is a function of (seed, epoch, place), so that a run repeated, or cut anywhere and resumed,
ends bit for bit the same on the same device and number of threads.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from trailseg.ahead import ahead
from trailseg.config import Size, TrainOptions
from trailseg.data import augment
from trailseg.data.memory import Batch, Memory, batches, labels_at_scale
from trailseg.device import settle
from trailseg.errors import FileError
from trailseg.labels import IGNORE
from trailseg.losses import StepLoss, class_weights
from trailseg.networks.recurrence import Recurrence
from trailseg.runs import Run

AHEAD = 4  # batches that threads fetch, where they are memory-mapped

Validate = Callable[[Recurrence], dict[str, Any]]
"""Measures a network; every process calls it at the same time and gets the same answer."""

Report = Callable[[dict[str, Any]], None]
"""Is told of every epoch: the line that goes into the log."""


def make_fabric(device: str, precision: str, *, devices: int = 1, nodes: int = 1, strategy: str = "auto") -> Fabric:
    """Fabric for a device and a precision by the names of the options; OptionError where the device is not there."""
    compute = settle(device, precision)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of every precision and process group
    return Fabric(
        accelerator=compute.device.type,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if compute.precision == "bf16" else "32-true",
    )


def make_repeatable() -> None:
    """Asks torch for the same bits every time, where it has an algorithm that gives them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS picks algorithms by chance
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def fit(
    *,
    fabric: Fabric,
    run: Run,
    network: Recurrence,
    options: TrainOptions,
    memory: Memory,
    classes: int,
    validate: Validate,
    report: Report,
) -> Recurrence:
    """Trains `network` on `memory` from the run's last checkpoint (or the network's own weights) to the last epoch.

    Returns it, or the average of its weights where options.ema asks for one: that is also what is validated. After each
    epoch the log gets its line and then checkpoints/last is replaced; checkpoints/best holds the weights of the best
    validated mIoU of the last step. FileError where a loss or weight is not finite; no checkpoint holds such.
    """
    network.place(fabric.device, channels_last=options.channels_last)
    if options.recompute:
        network.save_memory()
    if options.freeze_stem:
        network.stem.requires_grad_(False)
    adam = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    average = copy.deepcopy(network) if options.ema else None
    if options.compile:
        network.compile_parts()
    done = run.epoch
    if done:
        run.load(network, "last", adam, average)
    best = max((miou_of(record) for record in run.log() if record["epoch"] <= done), default=-1.0)
    if fabric.is_global_zero:
        run.forget_after(done)
    wrapped, optimizer = fabric.setup(network, adam)
    memory = memory.on(fabric.device)
    weights = None if options.balance is None else class_weights(memory.class_pixels(classes), options.balance)
    criterion = StepLoss(options.dice, options.gamma, options.lovasz, weights, recompute=options.recompute)
    for epoch in range(done + 1, options.epochs + 1):
        started = time.perf_counter()
        network.train()
        if options.freeze_stem:
            network.stem.eval()
        adam.param_groups[0]["lr"] = learning_rate(options, epoch)
        loss = train_epoch(fabric, network, wrapped, optimizer, criterion, average, memory, options, epoch, run)
        if not all(weights.isfinite().all() for weights in network.parameters()):
            problem = f"weights are no longer finite after epoch {epoch}"
            raise FileError(run.folder, problem, "train anew with a smaller lr; the last checkpoint is whole")
        seconds = time.perf_counter() - started
        due = epoch % options.val_every == 0 or epoch == options.epochs
        record = {
            "epoch": epoch,
            "loss": loss,
            "lr": learning_rate(options, epoch),
            "seconds": round(seconds, 3),
            "pictures_per_second": round(len(memory.names) / seconds, 2),
            "val": validate(average or network) if due else None,
        }
        if fabric.is_global_zero:
            run.append(record)
            if miou_of(record) > best:
                run.save("best", average or network, epoch)
            run.save("last", network, epoch, adam, average)
            report(record)
        best = max(best, miou_of(record))
        fabric.barrier()
    return average or network


def train_epoch(
    fabric: Fabric,
    network: Recurrence,
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    criterion: StepLoss,
    average: Recurrence | None,
    memory: Memory,
    options: TrainOptions,
    epoch: int,
    run: Run,
) -> float:
    """One pass over the pictures through `network`, which Fabric has `wrapped`; the mean loss of the pictures."""
    per_epoch = -(-len(memory.names) // options.batch)
    total, told = 0.0, None
    rank, world = fabric.global_rank, fabric.world_size
    order = list(
        batches(len(memory.names), batch=options.batch, seed=options.seed, epoch=epoch, rank=rank, world=world)
    )
    fetching = partial(fetch, memory, options, epoch)
    found = map(fetching, order) if memory.mapped is None else ahead(fetching, order, depth=AHEAD, workers=AHEAD)
    for number, (batch, fetched) in enumerate(zip(order, found, strict=True)):
        images, labels = load(fetched, options.crop or options.size, fabric.device)
        prefix, steps = draw_steps(options, most=network.up_to(options.steps), epoch=epoch, number=number)
        logits = wrapped(images, steps, prefix)
        sums, counts = criterion(logits, labels_at_scale(labels, network.scale))
        # DDP takes the mean of the processes' gradients; dividing by the counts of all makes it that of one process.
        counts = together(fabric, counts)
        loss = (world * sums / counts.clamp(min=1)).sum()
        whole = together(fabric, loss.detach()) / world
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if average is not None:
            average_in(average, network, ema=options.ema, step=(epoch - 1) * per_epoch + number)
        total += told() if told else 0.0
        told = partial(_finite, whole, batch, memory, options, epoch, run)  # a step later, lest the device wait for it
    total += told() if told else 0.0
    return total / len(memory.names)


def _finite(whole: Tensor, batch: Batch, memory: Memory, options: TrainOptions, epoch: int, run: Run) -> float:
    """The sum of a batch's losses; FileError that names its pictures where it is not finite."""
    loss = whole.item()
    if not math.isfinite(loss):
        pictures = ", ".join(memory.names[i] for i in batch.everyone.tolist())
        step = 1 + int(batch.places[0]) // options.batch
        raise FileError(
            run.folder,
            f"the loss is {loss} in epoch {epoch}, step {step}, with the pictures {pictures}",
            "look at these pictures, or train anew with a smaller lr; the last checkpoint is whole",
        )
    return loss * len(batch.everyone)


class Fetched(NamedTuple):
    """A batch as it lies in memory, and what has been drawn for it: all but the arithmetic."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B, H, W) uint8."""
    drawn: Tensor | None
    """See `augment.draw`; None where nothing is changed."""
    others: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None
    """The places in the batch of those pictures that another covers in part, and images, labels, drawn and boxes of the
    pictures that do; None where there are none."""


def fetch(memory: Memory, options: TrainOptions, epoch: int, batch: Batch) -> Fetched:
    """Reads and draws one batch; with images that are memory-mapped, threads do this ahead."""
    images, labels = memory.take(batch.pictures)
    labels = labels.masked_fill(batch.repeated.to(labels.device)[:, None, None], IGNORE)
    preset = augment.PRESETS[options.augment]
    size = options.crop or options.size
    if preset == augment.PRESETS["none"] and size == options.size:
        return Fetched(images, labels, None, None)
    view = (size[0] / options.size[0], size[1] / options.size[1])
    drawing: dict[str, Any] = {"seed": options.seed, "epoch": epoch, "places": batch.places.tolist(), "view": view}
    drawn = augment.draw(preset, **drawing)
    if not preset.mix:
        return Fetched(images, labels, drawn, None)
    partners, partners_drawn, boxes = augment.draw_partners(preset, len(memory.names), **drawing)
    mixed = (partners >= 0).nonzero()[:, 0]
    others = (mixed, *memory.take(partners[mixed]), partners_drawn[mixed], boxes[mixed]) if len(mixed) else None
    return Fetched(images, labels, drawn, others)


def load(fetched: Fetched, size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Augmented images (B, 3, *size) in 0..1 and labels (B, *size) of one batch, on the device."""
    images, labels = fetched.images.to(device).float() / 255, fetched.labels.to(device)
    if fetched.drawn is None:
        return images, labels
    images, labels = augment.apply(images, labels, fetched.drawn, size)
    if fetched.others is not None:
        mixed, others, other_labels, drawn, boxes = fetched.others
        views = augment.apply(others.to(device).float() / 255, other_labels.to(device), drawn, size)
        here = mixed.to(device)
        images[here], labels[here] = augment.cover(images[here], labels[here], *views, boxes)
    return images, labels


@torch.no_grad()
def average_in(average: Recurrence, network: Recurrence, *, ema: float, step: int) -> None:
    """Moves `average` towards the weights of `network`, and the statistics of its norms, after an optimiser step.

    `step` counts these from 0. It keeps the share `ema` of itself, in the first steps less: (1 + step) / (10 + step).
    """
    kept = min(ema, (1 + step) / (10 + step))
    for weight, new in zip(average.parameters(), network.parameters(), strict=True):
        weight.lerp_(new, 1 - kept)
    for buffer, its in zip(average.buffers(), network.buffers(), strict=True):
        buffer.copy_(torch.lerp(buffer, its, 1 - kept) if buffer.is_floating_point() else its)


def draw_steps(options: TrainOptions, *, most: int, epoch: int, number: int) -> tuple[int, int]:
    """The steps of an epoch's batch by its number from 0: those without gradient, then those with.

    Random numbers of steps with such a prefix are from Bansal et al., "End-to-end algorithm synthesis with recurrent
    networks", 2022, section 3.2.
    """
    generator = np.random.default_rng([options.seed, epoch, number, 1])  # the 1 tells it from those of augmentation
    fewest = most if options.fewest_steps is None else min(options.fewest_steps, most)
    return int(generator.integers(options.prefix + 1)), int(generator.integers(fewest, most + 1))


def learning_rate(options: TrainOptions, epoch: int) -> float:
    """The learning rate of an epoch, from 1 to options.epochs."""
    lr = options.lr * min(1, epoch / (options.warmup + 1))
    if options.schedule == "constant":
        return lr
    return lr * (1 + math.cos(math.pi * (epoch - 1) / options.epochs)) / 2


def miou_of(record: dict[str, Any]) -> float:
    """The validated mIoU of the last step, 0..1; -1 where an epoch was not validated."""
    val = record["val"]
    return -1.0 if val is None or val["steps"][-1]["miou"] is None else float(val["steps"][-1]["miou"])


def together(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of `values` over all processes."""
    return fabric.all_reduce(values, reduce_op="sum")  # type: ignore[return-value]
