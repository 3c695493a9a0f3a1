"""Measuring a network on a whole split: a confusion matrix per step, at full size and at the logits' scale.

Legend: B batch, S steps, K classes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trailseg.config import EvaluateOptions
from trailseg.data.cache import decoded
from trailseg.data.memory import Memory, labels_at_scale
from trailseg.data.readers import open_data, select
from trailseg.device import resolve
from trailseg.errors import FileError
from trailseg.inference import changed_share, classify
from trailseg.labels import IGNORE
from trailseg.metrics import confusion_matrix, measures, measures_per_step
from trailseg.networks.recurrence import Recurrence
from trailseg.runs import Run


class Stop(NamedTuple):
    """When an answer is done: see `inference.refine`."""

    most_steps: int
    tolerance: float

    def step(self, changed: Sequence[float]) -> int:
        """The last step, from 1, where the t-th step after the first changed the share changed[t] of the classes.

        >>> Stop(most_steps=4, tolerance=0.1).step([0.3, 0.05, 0.2])
        3
        """
        tolerance = float(np.float32(self.tolerance))  # as `refine` compares: equal shares are equal
        settled = (step for step, share in enumerate(changed[: self.most_steps - 1], 2) if share < tolerance)
        return next(settled, self.most_steps)


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
    stops: Sequence[Stop] = (),
) -> dict[str, Any]:
    """The measures of a split, as the log and `trailseg evaluate --json` hold them.

    Keys: split, images, pixels (all of them), ignored_pixels (those without a class), steps (a list of
    `metrics.measures` with `step` from 1), the last three again under at_stem_scale, and confusion (S, K, K), rows
    truth, at full size. With `stops` also auto: for each its most_steps, tolerance, mean_steps (per picture) and the
    measures of answers that end there, as `inference.refine` would end them. Process `rank` of `world` counts its own
    pictures once and `add_up` sums over processes.
    """
    network.eval()
    k = len(classes)
    full, small = (torch.zeros(steps, k, k, dtype=torch.int64, device=device) for _ in range(2))
    stopped = torch.zeros(len(stops), k, k, dtype=torch.int64, device=device)
    used = torch.zeros(len(stops), dtype=torch.int64, device=device)
    counts = torch.zeros(4, dtype=torch.int64, device=device)  # pixels and ignored ones, full and small
    mine = torch.arange(len(memory.names))[rank::world]  # none, where there are more processes than pictures
    for where in (mine[first : first + batch] for first in range(0, len(mine), batch)):
        pictures, labels = memory.take(where)
        images, truths = pictures.to(device).float() / 255, labels_at_scale(labels.to(device), network.scale)
        with autocast():
            logits = network(images, steps).float()
        if not logits.isfinite().all():
            names = ", ".join(memory.names[i] for i in where.tolist())
            raise FileError(split, f"the network's answer to {names} is not finite", "train anew with a smaller lr")
        size = (images.shape[2], images.shape[3])
        for position, trail, truth in zip(where.tolist(), logits, truths, strict=True):
            whole = torch.from_numpy(memory.truths[position]).to(device)
            ids, _ = classify(network, trail, size, (whole.shape[0], whole.shape[1]))
            matrices = torch.stack([confusion_matrix(one, whole, k) for one in ids])
            full += matrices
            small += torch.stack([confusion_matrix(one.argmax(0), truth, k) for one in trail])
            changed = changed_share(trail[:-1], trail[1:]).tolist() if stops else []
            for i, stop in enumerate(stops):
                step = stop.step(changed)
                stopped[i] += matrices[step - 1]
                used[i] += step
            counts += torch.tensor(
                [whole.numel(), (whole == IGNORE).sum(), truth.numel(), (truth == IGNORE).sum()], device=device
            )
    full, small, counts, stopped, used = (add_up(x).cpu() for x in (full, small, counts, stopped, used))
    at_full, at_stem = (
        {"pixels": int(pixels), "ignored_pixels": int(ignored), "steps": measures_per_step(matrix.numpy(), classes)}
        for matrix, (pixels, ignored) in zip((full, small), counts.view(2, 2), strict=True)
    )
    images_seen = {"split": split, "images": len(memory.names)}
    auto = [
        {**stop._asdict(), "mean_steps": int(total) / len(memory.names), **measures(matrix.numpy(), classes)}
        for stop, total, matrix in zip(stops, used, stopped, strict=True)
    ]
    found = images_seen | at_full | {"at_stem_scale": at_stem, "confusion": full.tolist()}
    return found | ({"auto": auto} if stops else {})


def evaluate_run(run: Run, options: EvaluateOptions, stops: Sequence[Stop] = ()) -> dict[str, Any]:
    """`evaluate` for a run's checkpoint, on a split of the data it was trained on.

    Of a run with skip_bad also left_out, the number of bad pictures that are not measured. FileError where that data
    has other classes now.
    """
    trained = run.options
    network = run.network(options.checkpoint)
    steps = options.steps.last if options.steps else network.up_to(trained.steps)
    network.check_steps(steps)
    source = open_data(replace(trained, root=options.root or trained.root), size=trained.size)
    if list(source.labels.classes) != run.config["data"]["classes"]:
        raise FileError(run.folder, "was trained on other classes than the data has now", "say its own root=")
    pictures = select(source, options.split, skip_bad=trained.skip_bad)
    memory = decoded(pictures, trained.size, budget=1e9 * trained.memory, skip_bad=trained.skip_bad)
    compute = resolve(options.device, options.precision or trained.precision)
    found = evaluate(
        network.to_device(compute.device, channels_last=trained.channels_last),
        memory,
        split=options.split,
        steps=steps,
        classes=source.labels.classes,
        batch=options.batch,
        device=compute.device,
        autocast=compute.autocast,
        stops=stops,
    )
    return found | ({"left_out": len(memory.left_out)} if trained.skip_bad else {})
