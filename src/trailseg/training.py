"""The training loop: explicit, resumable after every optimiser step, the same on one process and on several.

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
from itertools import compress
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from trailseg.config import Size, TrainOptions
from trailseg.data import augment
from trailseg.data.memory import Batch, Memory, batches, in_squares, labels_at_scale, shares_at_scale
from trailseg.device import resolve, send
from trailseg.errors import FileError
from trailseg.labels import IGNORE
from trailseg.losses import StepLoss, class_weights
from trailseg.networks.recurrence import Recurrence
from trailseg.optimizers import OPTIMIZERS
from trailseg.prefetch import prefetch
from trailseg.runs import Position, Run
from trailseg.teachers import Teachers

AHEAD = 4  # batches that threads fetch, where they are memory-mapped

Validate = Callable[[Recurrence], dict[str, Any]]
"""Measures a network; every process calls it at the same time and gets the same answer."""

Report = Callable[[dict[str, Any]], None]
"""Is told of every epoch: the line that goes into the log."""


def make_fabric(device: str, precision: str, *, devices: int = 1, nodes: int = 1, strategy: str = "auto") -> Fabric:
    """Fabric for a device and a precision by the names of the options; OptionError where the device is not there."""
    compute = resolve(device, precision)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells of every precision and process group
    return Fabric(
        accelerator=compute.device.type,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision="bf16-mixed" if compute.precision == "bf16" else "32-true",
    )


def make_deterministic() -> None:
    """Asks torch for the same bits every time, where it has an algorithm that gives them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS picks algorithms by chance
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as slow as it is safe
    torch.backends.cudnn.benchmark = False


class Training:
    """A run in training: what changes while it goes on, and where it is."""

    def __init__(
        self,
        *,
        fabric: Fabric,
        run: Run,
        network: Recurrence,
        options: TrainOptions,
        memory: Memory,
        classes: int,
        teachers: Teachers | None,
        validate: Validate,
        report: Report,
    ) -> None:
        """Prepares to train `network` on `memory`, from the run's last checkpoint or else the network's own weights."""
        self.fabric, self.run, self.network, self.options = fabric, run, network, options
        self.validate, self.report = validate, report
        network.to_device(fabric.device, channels_last=options.channels_last)
        if teachers is not None:
            teachers.to_device(fabric.device, channels_last=options.channels_last)
        self.teachers = teachers
        if options.recompute:
            network.save_memory()
        if options.freeze_stem:
            network.stem.requires_grad_(False)
        optimizer = OPTIMIZERS[options.optimizer]
        self.optimizer = optimizer(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        self.average = copy.deepcopy(network) if options.ema else None
        if options.compile:
            network.compile_parts()
        begun = run.checkpoint("last").exists()
        self.at = run.load(network, self.optimizer, self.average) if begun else Position()
        self.best = max((miou_of(record) for record in run.log() if record["epoch"] <= self.at.epoch), default=-1.0)
        if fabric.is_global_zero:
            run.forget_after(self.at.epoch)
        self.wrapped_network, self.wrapped_optimizer = fabric.setup(network, self.optimizer)
        self.memory = memory.on(fabric.device)
        balance = options.balance
        weights = None
        if balance is not None:
            weights = class_weights(self.memory.class_pixels(classes), balance).to(fabric.device)
        self.criterion = StepLoss(options.dice, options.gamma, options.lovasz, weights, recompute=options.recompute)
        self.classes = classes
        self._changing = Lock()  # held while weights, position and log do not belong together
        self._buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        self._told: Callable[[], float] | None = None  # the loss of the last step, which is not yet in the position

    def fit(self) -> Recurrence:
        """Trains to the last epoch; returns the network, or the average of its weights where options.ema asks for one.

        That is also what is validated. After each epoch the log gets its line and then checkpoints/last is replaced;
        checkpoints/best holds the weights of the best validated mIoU of the last step. FileError where a loss or weight
        is not finite; no checkpoint holds such.
        """
        for epoch in range(self.at.epoch + 1, self.options.epochs + 1):
            started = time.perf_counter() - self.at.seconds
            self.train_epoch(epoch, started)
            seconds, count = time.perf_counter() - started, len(self.memory.names)
            due = epoch % self.options.val_every == 0 or epoch == self.options.epochs
            record = {
                "epoch": epoch,
                "loss": self.at.loss / count,
                "lr": learning_rate(self.options, epoch),
                "seconds": round(seconds, 3),
                "pictures_per_second": round(count / seconds, 2),
                "val": self.validate(self.average or self.network) if due else None,
            }
            with self._changing:
                self.at = Position(epoch)
                if self.fabric.is_global_zero:
                    self.run.append(record)
                    if miou_of(record) > self.best:
                        self.run.save("best", (self.average or self.network).state_dict(), self.at)
                    self._save()
            if self.fabric.is_global_zero:
                self.report(record)
            self.best = max(self.best, miou_of(record))
            self.fabric.barrier()
        return self.average or self.network

    def train_epoch(self, epoch: int, started: float = 0.0) -> None:
        """What is left of one pass over the pictures; self.at.loss is then the sum of their losses.

        started: when it began, in the seconds of `time.perf_counter`.
        """
        options, memory, network = self.options, self.memory, self.network
        network.train()
        if options.freeze_stem:
            network.stem.eval()
        self.optimizer.param_groups[0]["lr"] = learning_rate(options, epoch)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        order = list(
            batches(len(memory.names), batch=options.batch, seed=options.seed, epoch=epoch, rank=rank, world=world)
        )
        numbers = range(self.at.step, len(order))
        rest, fetching = order[self.at.step :], partial(fetch, memory, options, epoch)
        found = map(fetching, rest) if memory.mapped is None else prefetch(fetching, rest, depth=AHEAD, workers=AHEAD)
        for number, batch, fetched in zip(numbers, rest, found, strict=True):
            images, labels = load(fetched, options.crop or options.size, self.fabric.device)
            loss = self.compute_gradients(images, labels, epoch=epoch, number=number)
            with self._changing:
                largest = self.update_weights(step=(epoch - 1) * len(order) + number)
                self._collect_loss()
                self._told = partial(self._finite, Underway(torch.stack([loss, largest])), batch, epoch)
                self.at = Position(epoch - 1, number + 1, self.at.loss, time.perf_counter() - started)
                if self._buffers:
                    torch._foreach_copy_(list(self._buffers.values()), list(network.buffers()))
        with self._changing:
            self._collect_loss()

    def compute_gradients(self, images: Tensor, labels: Tensor, *, epoch: int, number: int) -> Tensor:
        """The loss (), mean over all processes, of a batch: images (B, 3, H, W) in 0..1 and labels (B, H, W) uint8.

        `number` is its place in the epoch, from 0, of which its steps are a function.
        """
        options, world = self.options, self.fabric.world_size
        prefix, steps = draw_steps(options, most=self.network.up_to(options.steps), epoch=epoch, number=number)
        position = draw_position(options, epoch=epoch, number=number)
        logits = self.wrapped_network(images, steps, prefix, position)
        sums, counts = self.criterion(logits, self.target(images, labels, position))
        # DDP takes the mean of the processes' gradients; dividing by the counts of all makes it that of one.
        loss = (world * sums / sum_over_processes(self.fabric, counts).clamp(min=1)).sum()
        self.wrapped_optimizer.zero_grad()
        self.fabric.backward(loss)
        return sum_over_processes(self.fabric, loss.detach()) / world

    def update_weights(self, *, step: int) -> Tensor:
        """Moves the weights and their average by the gradients; the largest weight () then. `step` counts from 0."""
        self.wrapped_optimizer.step()
        if self.average is not None:
            update_average(self.average, self.network, ema=self.options.ema, step=step)
        return torch.nn.utils.get_total_norm([w.detach() for w in self.network.parameters() if w.numel()], math.inf)

    def target(self, images: Tensor, labels: Tensor, position: int | None = None) -> Tensor:
        """What `StepLoss` holds logits of images (B, 3, H, W) against, by their labels (B, H, W) and the teachers.

        Classes or their shares, of all logits or of one position.
        """
        scale, guided = self.network.scale, self.network.guided
        if position is not None:
            labels = in_squares(labels, scale * guided)
        area = self.options.target == "area"
        truth = shares_at_scale(labels, scale, self.classes) if area else labels_at_scale(labels, scale)
        if position is not None:
            truth = truth[..., position // guided :: guided, position % guided :: guided]
        if self.teachers is None:
            return truth
        with self.fabric.autocast():
            answer = self.teachers.answer(images, position)
        return torch.lerp(truth, answer * truth.sum(1, keepdim=True), self.options.taught)

    def store(self) -> None:
        """Replaces checkpoints/last by what is done so far; in any thread, at any time. FileError as in `fit`."""
        with self._changing:
            if self.fabric.is_global_zero:
                self._collect_loss()
                self._save()

    def _save(self) -> None:
        weights = {**self.network.state_dict(), **self._buffers}
        self.run.save("last", weights, self.at, self.network, self.optimizer, self.average)

    def _collect_loss(self) -> None:
        """Adds the loss of the last step to the position: a step later, lest the device be waited for at every one."""
        if self._told:
            self.at = self.at._replace(loss=self.at.loss + self._told())
            self._told = None

    def _finite(self, told: "Underway", batch: Batch, epoch: int) -> float:
        """The sum of a batch's losses, from their mean and the largest weight after its step.

        FileError that names its pictures where one of the two is not finite.
        """
        loss, largest = told.arrived()
        if not math.isfinite(loss) or not math.isfinite(largest):
            what = "weights are no longer finite" if math.isfinite(loss) else f"the loss is {loss}"
            pictures = ", ".join(self.memory.names[i] for i in batch.everyone.tolist())
            raise FileError(
                self.run.folder,
                f"{what} in epoch {epoch}, step {1 + int(batch.places[0]) // self.options.batch}, with the pictures "
                f"{pictures}",
                "look at these pictures, or train anew with a smaller lr; the last checkpoint is whole",
            )
        return float(loss * len(batch.everyone))


class Underway:
    """Numbers (N,) of a device on their way to the host, which goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        """Begins to copy them, behind what the device has been asked to compute so far."""
        self.numbers = numbers.to("cpu", non_blocking=True) if numbers.is_cuda else numbers
        self.ready = torch.cuda.current_stream(numbers.device).record_event() if numbers.is_cuda else None

    def arrived(self) -> list[float]:
        """The numbers, once they are there."""
        if self.ready is not None:
            self.ready.synchronize()
        return self.numbers.tolist()


class Mixed(NamedTuple):
    """Those M pictures of a batch that another picture covers in part, and what covers them; see `augment.paste`."""

    where: Tensor
    """(M,) their places in the batch."""
    images: Tensor
    """(M, 3, H, W) uint8: the pictures that cover them, with labels (M, H, W)."""
    labels: Tensor
    drawn: Tensor
    """See `augment.draw`."""
    boxes: Tensor
    """See `augment.draw_mixes`, as of `seen`."""
    seen: Tensor


class Fetched(NamedTuple):
    """A batch as it lies in memory, and what has been drawn for it: all but the arithmetic."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B, H, W) uint8."""
    drawn: Tensor | None
    """See `augment.draw`; None where nothing is changed."""
    mixed: Mixed | None
    """None where no picture covers another."""


def fetch(memory: Memory, options: TrainOptions, epoch: int, batch: Batch) -> Fetched:
    """Reads and draws one batch; with images that are memory-mapped, threads do this ahead."""
    images, labels = memory.take(batch.pictures)
    labels = labels.masked_fill(send(batch.repeated, labels.device)[:, None, None], IGNORE)
    preset = augment.PRESETS[options.augment]
    size = options.crop or options.size
    if preset == augment.PRESETS["none"] and size == options.size:
        return Fetched(images, labels, None, None)
    view = (size[0] / options.size[0], size[1] / options.size[1])
    drawing: dict[str, Any] = {"seed": options.seed, "epoch": epoch, "places": batch.places.tolist(), "view": view}
    drawn = augment.draw(preset, **drawing)
    if not preset.mix:
        return Fetched(images, labels, drawn, None)
    partners, partners_drawn, boxes, seen = augment.draw_mixes(preset, len(memory.names), **drawing)
    where = ((partners >= 0) & ~batch.repeated).nonzero()[:, 0]  # what does not count stays so
    if not len(where):
        return Fetched(images, labels, drawn, None)
    mixed = Mixed(where, *memory.take(partners[where]), partners_drawn[where], boxes[where], seen[where])
    return Fetched(images, labels, drawn, mixed)


def load(fetched: Fetched, size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Augmented images (B, 3, *size) in 0..1 and labels (B, *size) of one batch, on the device."""
    images, labels = send(fetched.images, device).float() / 255, send(fetched.labels, device)
    if fetched.drawn is None:
        return images, labels
    images, labels = augment.apply(images, labels, fetched.drawn, size)
    if mixed := fetched.mixed:
        others, other_labels = send(mixed.images, device).float() / 255, send(mixed.labels, device)
        views = augment.apply(others, other_labels, mixed.drawn, size)
        here = send(mixed.where, device)
        images[here], labels[here] = augment.paste(images[here], labels[here], *views, mixed.boxes, mixed.seen)
    return images, labels


@torch.no_grad()
def update_average(average: Recurrence, network: Recurrence, *, ema: float, step: int) -> None:
    """Moves `average` towards the weights of `network`, and the statistics of its norms, after an optimiser step.

    `step` counts these from 0. It keeps the share `ema` of itself, in the first steps less: (1 + step) / (10 + step),
    so that the average is of about the last ninth of the steps so far.
    """
    kept = min(ema, (1 + step) / (10 + step))
    mine, new = ([*one.parameters(), *one.buffers()] for one in (average, network))
    moves = [tensor.is_floating_point() for tensor in mine]
    torch._foreach_lerp_(list(compress(mine, moves)), list(compress(new, moves)), 1 - kept)
    for count, its in zip(mine, new, strict=True):
        if not count.is_floating_point():  # how often a norm has been asked
            count.copy_(its)


def draw_steps(options: TrainOptions, *, most: int, epoch: int, number: int) -> tuple[int, int]:
    """The steps of an epoch's batch by its number from 0: those without gradient, then those with.

    Random numbers of steps with such a prefix are from Bansal et al., "End-to-end algorithm synthesis with recurrent
    networks", 2022, section 3.2.
    """
    generator = np.random.default_rng([options.seed, epoch, number, 1])  # the 1 tells it from those of augmentation
    fewest = most if options.fewest_steps is None else min(options.fewest_steps, most)
    return int(generator.integers(options.prefix + 1)), int(generator.integers(fewest, most + 1))


def draw_position(options: TrainOptions, *, epoch: int, number: int) -> int | None:
    """Which of the finer logits of a guided network an epoch's batch trains, as in `Recurrence.forward`; or None.

    One of them costs what unguided logits do, and over the batches each has its turn.
    """
    if options.guided == 1:
        return None
    return int(np.random.default_rng([options.seed, epoch, number, 2]).integers(options.guided**2))


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


def sum_over_processes(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of `values` over all processes."""
    return fabric.all_reduce(values, reduce_op="sum")  # type: ignore[return-value]
