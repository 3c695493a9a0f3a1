"""Inference in PyTorch: any number of steps, or as many as each picture needs.

Legend: B batch, S steps, K classes, h x w feature map.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trailseg.checkpoints import checksum
from trailseg.config import Size
from trailseg.data.readers import TERMS
from trailseg.device import resolve
from trailseg.errors import FileError, OptionError
from trailseg.model import Answers, Facts
from trailseg.networks.recurrence import Recurrence, State
from trailseg.runs import Run


class Refined(NamedTuple):
    """A trail of predictions, and where it ended."""

    logits: list[Tensor]
    """S of (B, K, h, w); a picture that is done repeats its last."""
    used: Tensor
    """(B,) int64, the steps that each picture took."""
    state: State


@torch.inference_mode()
def refine(
    network: Recurrence, images: Tensor, *, steps: int, tolerance: float = 0.0, state: State | None = None
) -> Refined:
    """Refines images (B, 3, H, W), RGB in 0..1, until `steps` steps are taken or every picture is done.

    A picture is done, and costs no more, once a step changed the class of fewer than `tolerance` (0..1) of its
    predictions. With the `state` of another picture even the first step refines that state.
    """
    first = 0 if state is None else 1
    size = (images.shape[-2], images.shape[-1])
    context = network.encode(images)
    state = network.step(first, context, state)
    trail = [network.crop(state.logits, size)]
    used = torch.ones(len(images), dtype=torch.int64, device=images.device)
    open_ = torch.arange(len(images), device=images.device)
    for t in range(1, steps):
        if not len(open_):
            break
        whole = len(open_) == len(images)
        before = state if whole else State(state.hidden[open_], state.logits[open_])
        after = network.step(first + t, context if whole else context.of(open_), before)
        state = after if whole else State(*(a.index_copy(0, open_, b) for a, b in zip(state, after, strict=True)))
        trail.append(network.crop(state.logits, size))
        used[open_] += 1
        if tolerance:
            changed = changed_share(network.crop(before.logits, size), network.crop(after.logits, size))
            open_ = open_[changed >= tolerance]
    return Refined(trail, used, state)


def changed_share(before: Tensor, after: Tensor) -> Tensor:
    """The share (B,), 0..1, of the predictions whose class differs between two logits (B, K, h, w)."""
    return (before.argmax(1) != after.argmax(1)).float().mean((1, 2))


def classify(network: Recurrence, logits: Tensor, size: tuple[int, int], to: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Class ids (B, *to) uint8 and their probability (B, *to) float32 of logits (B, K, h, w) for pictures of `size`.

    It upsamples class by class, so that memory does not grow with the classes; on a CPU that is also faster.
    """
    planes = (network.upsample(plane[:, None], size, to)[:, 0] for plane in logits.float().contiguous().unbind(1))
    best = next(planes)
    ids, total = torch.zeros_like(best, dtype=torch.uint8), torch.ones_like(best)
    for k, plane in enumerate(planes, 1):
        ids.masked_fill_(plane > best, k)
        highest = torch.maximum(best, plane)
        total = total * (best - highest).exp_() + (plane - highest).exp_()  # of exp(logit - highest), over the classes
        best = highest
    return ids, 1 / total


class TorchModel:
    """The network of a run directory, as a `model.Model`."""

    def __init__(self, run: Run, *, device: str, precision: str, checkpoint: str) -> None:
        """FileError where the run has no such checkpoint, OptionError where the device is not there."""
        self._compute = resolve(device, precision)
        self.network = run.network(checkpoint).to_device(self._compute.device, channels_last=run.options.channels_last)
        self.facts, self._folder = facts_of(run), run.folder

    @property
    def fingerprint(self) -> str:
        """Of the weights: see `model.Model`."""
        return checksum(self.network.state_dict(), {})[:16]

    @torch.inference_mode()
    def answer(
        self, images: np.ndarray, *, to: Size, steps: int, tolerance: float, trail: bool, state: Any = None
    ) -> Answers:
        """See `model.Model`."""
        self.network.check_steps(steps)
        if state is not None:
            self._check_state(images, state)
        size = Size(*images.shape[1:3])
        batch = torch.from_numpy(images).to(self._compute.device).permute(0, 3, 1, 2).float() / 255
        with self._compute.autocast():
            refined = refine(self.network, batch, steps=steps, tolerance=tolerance, state=state)
        if not torch.stack([logits.isfinite().all() for logits in refined.logits]).all():
            raise FileError(self._folder, "gives an answer that is not finite", "train anew with a smaller lr")
        ids, probability = classify(self.network, refined.logits[-1], size, to)
        every = None
        if trail:
            before = [classify(self.network, logits, size, to)[0] for logits in refined.logits[:-1]]
            every = torch.stack([*before, ids]).cpu().numpy()
        return Answers(
            ids=ids.cpu().numpy(),
            probability=probability.cpu().numpy(),
            used=refined.used.cpu().numpy(),
            trail=every,
            state=refined.state if self.facts.recalls else None,
        )

    def _check_state(self, images: np.ndarray, state: State) -> None:
        """OptionError where that state is not this network's, of as many pictures of the same size."""
        multiple, stride = self.network.multiple, self.network.stride
        wanted = (len(images), *(-(-side // multiple) * multiple // stride for side in images.shape[1:3]))
        if not isinstance(state, State) or (len(state.hidden), *state.hidden.shape[2:]) != wanted:
            raise OptionError("before: that answer is of pictures of another size or number; start without it")


def facts_of(run: Run) -> Facts:
    """What a run directory says of its network, without its weights."""
    options, config = run.options, run.config
    network = run.build()
    return Facts(
        name=config["name"],
        network=options.network,
        classes=tuple(config["data"]["classes"]),
        colours=tuple((r, g, b) for r, g, b in config["data"]["colours"]),
        size=options.size,
        scale=network.scale,
        trained_steps=network.up_to(options.steps),
        max_steps=network.max_steps,
        recalls=network.recalls,
        parameters=config["network"]["parameters"],
        macs_stem=config["network"]["macs_stem"],
        macs_step=config["network"]["macs_step"],
        data=TERMS[options.data][0],
        licence="; ".join(TERMS[name][1] for name in dict.fromkeys([options.data, *run.before])),
    )
