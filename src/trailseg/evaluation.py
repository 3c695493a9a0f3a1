"""Measuring a network on a whole split: a confusion matrix per step, at full size and at the stem's scale.

Legend: B batch, S steps, K classes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from trailseg.config import EvaluateOptions
from trailseg.data.memory import Memory, decode, labels_at_scale
from trailseg.data.readers import open_data
from trailseg.errors import FileError
from trailseg.labels import IGNORE
from trailseg.metrics import confusion_matrix, measures_per_step
from trailseg.networks.recurrence import Recurrence
from trailseg.runs import Run
from trailseg.training import make_fabric


@torch.inference_mode()
def evaluate(
    network: Recurrence,
    memory: Memory,
    *,
    split: str,
    steps: int,
    classes: Sequence[str],
    batch: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    rank: int = 0,
    world: int = 1,
    add_up: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> dict[str, Any]:
    """The measures of a split, as the log and `trailseg evaluate --json` hold them.

    Keys: split, images, pixels (all of them), ignored_pixels (those without a class), steps (a list of
    `metrics.measures` with `step` from 1), the last three again under at_stem_scale, and confusion (S, K, K), rows
    truth, at full size. Process `rank` of `world` counts its own pictures once and `add_up` sums over processes.
    """
    network.eval()
    k = len(classes)
    full, small = (torch.zeros(steps, k, k, dtype=torch.int64, device=device) for _ in range(2))
    counts = torch.zeros(4, dtype=torch.int64, device=device)  # pixels and ignored ones, full and small
    mine = torch.arange(len(memory.names))[rank::world]  # none, where there are more processes than pictures
    for where in (mine[first : first + batch] for first in range(0, len(mine), batch)):
        images = memory.images[where.to(memory.images.device)].to(device).float() / 255
        truths = labels_at_scale(memory.labels[where.to(memory.labels.device)].to(device), network.scale)
        with autocast():
            logits = network(images.contiguous(memory_format=torch.channels_last), steps).float()
        if not logits.isfinite().all():
            names = ", ".join(memory.names[i] for i in where.tolist())
            raise FileError(split, f"the network's answer to {names} is not finite", "train anew with a smaller lr")
        size = (images.shape[2], images.shape[3])
        for position, trail, truth in zip(where.tolist(), logits, truths, strict=True):
            whole = torch.from_numpy(memory.truths[position]).to(device)
            sized = network.upsample(trail, size, (whole.shape[0], whole.shape[1]))
            for step in range(steps):
                full[step] += confusion_matrix(sized[step].argmax(0), whole, k)
                small[step] += confusion_matrix(trail[step].argmax(0), truth, k)
            counts += torch.tensor(
                [whole.numel(), (whole == IGNORE).sum(), truth.numel(), (truth == IGNORE).sum()], device=device
            )
    full, small, counts = add_up(full).cpu(), add_up(small).cpu(), add_up(counts).cpu()
    at_full, at_stem = (
        {"pixels": int(pixels), "ignored_pixels": int(ignored), "steps": measures_per_step(matrix.numpy(), classes)}
        for matrix, (pixels, ignored) in zip((full, small), counts.view(2, 2), strict=True)
    )
    images_seen = {"split": split, "images": len(memory.names)}
    return images_seen | at_full | {"at_stem_scale": at_stem, "confusion": full.tolist()}


def evaluate_run(run: Run, options: EvaluateOptions) -> dict[str, Any]:
    """`evaluate` for a run's checkpoint, on a split of the data it was trained on.

    FileError where that data has other classes now.
    """
    trained = run.options
    network = run.network(options.checkpoint)
    steps = options.steps or network.up_to(trained.steps)
    network.check_steps(steps)
    root = options.root or trained.root
    source = open_data(trained.data, root=root, labels=trained.labels, size=trained.size, pictures=trained.pictures)
    if list(source.labels.classes) != run.config["data"]["classes"]:
        raise FileError(run.folder, "was trained on other classes than the data has now", "say its own root=")
    pictures = source.split(options.split)
    fabric = make_fabric(options.device, options.precision or trained.precision)
    return evaluate(
        network.to(fabric.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        decode(pictures, trained.size),
        split=options.split,
        steps=steps,
        classes=source.labels.classes,
        batch=options.batch,
        device=fabric.device,
        autocast=fabric.autocast,
    )
