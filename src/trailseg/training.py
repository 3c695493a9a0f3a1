"""The training loop: explicit, resumable after every epoch, the same on one process and on several.

Everything random in it is a function of (seed, epoch, place), so that a run repeated, or cut anywhere and resumed,
ends bit for bit the same on the same device and number of threads.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from trailseg.config import TrainOptions
from trailseg.data import augment
from trailseg.data.memory import Batch, Memory, batches, labels_at_scale
from trailseg.errors import FileError, OptionError
from trailseg.labels import IGNORE
from trailseg.losses import StepLoss
from trailseg.networks.recurrence import Recurrence
from trailseg.runs import Run

Validate = Callable[[Recurrence], dict[str, Any]]
"""Measures a network; every process calls it at the same time and gets the same answer."""

Report = Callable[[dict[str, Any]], None]
"""Is told of every epoch: the line that goes into the log."""


def make_fabric(device: str, precision: str, *, devices: int = 1, nodes: int = 1, strategy: str = "auto") -> Fabric:
    """Fabric for a device and a precision by the names of the options; OptionError where the device is not there."""
    if device in ("cuda", "mps"):
        there = torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available()
        if not there:
            raise OptionError(f"device={device}: there is none here; say device=cpu, or leave it out")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of every precision and process group
    return Fabric(
        accelerator=device,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
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
    validate: Validate,
    report: Report,
) -> None:
    """Trains `network` on `memory` from the run's last checkpoint (or the network's own weights) to the last epoch.

    After each epoch the log gets its line and then checkpoints/last is replaced; checkpoints/best holds the weights of
    the best validated mIoU of the last step. FileError where a loss or weight is not finite; no checkpoint holds such.
    """
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.freeze_stem:
        network.stem.requires_grad_(False)
    adam = torch.optim.Adam(network.parameters(), lr=options.lr)
    done = run.epoch
    if done:
        run.load(network, "last", adam)
    best = max((miou_of(record) for record in run.log() if record["epoch"] <= done), default=-1.0)
    if fabric.is_global_zero:
        run.forget_after(done)
    wrapped, optimizer = fabric.setup(network, adam)
    memory = memory.on(fabric.device)
    for epoch in range(done + 1, options.epochs + 1):
        started = time.perf_counter()
        network.train()
        if options.freeze_stem:
            network.stem.eval()
        adam.param_groups[0]["lr"] = learning_rate(options, epoch)
        loss = train_epoch(fabric, network, wrapped, optimizer, memory, options, epoch, run)
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
            "val": validate(network) if due else None,
        }
        if fabric.is_global_zero:
            run.append(record)
            if miou_of(record) > best:
                run.save("best", network, None, epoch)
            run.save("last", network, adam, epoch)
            report(record)
        best = max(best, miou_of(record))
        fabric.barrier()


def train_epoch(
    fabric: Fabric,
    network: Recurrence,
    wrapped: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    memory: Memory,
    options: TrainOptions,
    epoch: int,
    run: Run,
) -> float:
    """One pass over the pictures through `network`, which Fabric has `wrapped`; the mean loss of the pictures."""
    criterion = StepLoss(dice=options.dice, gamma=options.gamma)
    total = torch.zeros((), dtype=torch.float64)
    rank, world = fabric.global_rank, fabric.world_size
    for number, batch in enumerate(
        batches(len(memory.names), batch=options.batch, seed=options.seed, epoch=epoch, rank=rank, world=world)
    ):
        images, labels = load(memory, batch, options, epoch, fabric.device)
        prefix, steps = draw_steps(options, most=network.up_to(options.steps), epoch=epoch, number=number)
        logits = wrapped(images.contiguous(memory_format=torch.channels_last), steps, prefix)
        sums, counts = criterion(logits, labels_at_scale(labels, network.scale))
        # DDP takes the mean of the processes' gradients; dividing by the counts of all makes it that of one process.
        counts = together(fabric, counts)
        loss = (world * sums / counts.clamp(min=1)).sum()
        whole = together(fabric, loss.detach()) / world
        if not whole.isfinite():
            pictures = ", ".join(memory.names[i] for i in batch.everyone.tolist())
            step = 1 + int(batch.places[0]) // options.batch
            raise FileError(
                run.folder,
                f"the loss is {whole.item()} in epoch {epoch}, step {step}, with the pictures {pictures}",
                "look at these pictures, or train anew with a smaller lr; the last checkpoint is whole",
            )
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        total += whole.cpu().double() * len(batch.everyone)
    return float(total) / len(memory.names)


def load(
    memory: Memory, batch: Batch, options: TrainOptions, epoch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Augmented images (B, 3, H, W) in 0..1 and labels (B, H, W) of one batch, on the device."""
    where = batch.pictures.to(memory.images.device)
    images = memory.images[where].to(device).float() / 255
    labels = memory.labels[where].to(device).masked_fill(batch.repeated.to(device)[:, None, None], IGNORE)
    preset = augment.PRESETS[options.augment]
    if preset == augment.PRESETS["none"]:
        return images, labels
    drawn = augment.draw(preset, seed=options.seed, epoch=epoch, places=batch.places.tolist())
    return augment.apply(images, labels, drawn)


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
    if options.schedule == "constant":
        return options.lr
    return options.lr * (1 + math.cos(math.pi * (epoch - 1) / options.epochs)) / 2


def miou_of(record: dict[str, Any]) -> float:
    """The validated mIoU of the last step, 0..1; -1 where an epoch was not validated."""
    val = record["val"]
    return -1.0 if val is None or val["steps"][-1]["miou"] is None else float(val["steps"][-1]["miou"])


def together(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of `values` over all processes."""
    return fabric.all_reduce(values, reduce_op="sum")  # type: ignore[return-value]
