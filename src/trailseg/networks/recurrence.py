"""The recurrence: the only loop over steps, through which every network of the table runs.

    input_0     = context = stem(image)                                 (B, F, h, w)
    input_t     = alpha_t * state_t + beta_t * feedback(logits_{t-1})   for t > 0
    hidden_t    = core_t(input_t)              + input_t where residual (B, F, h, w)
    logits_t    = head(hidden_t)                                        (B, K, r h, r w)
    state_{t+1} = hidden_t, or fuse_t(concat(context, hidden_t)) where the context is copied

`encode` and `advance` are these equations; `forward` is the loop that trains, and who stops earlier loops over `step`.

A gated row scales core_t(input_t) by sigmoid(gate(concat(input_t, core_t(input_t)))), as a GRU does its candidate (Cho
et al., "Learning phrase representations using RNN encoder-decoder", 2014, section 2.3).

A guided network's logits are what `guide.convex_upsample` makes of those of the head; the feedback hears the head's.

Legend: B batch, S steps, K classes, F feature channels, H x W picture, h x w features, r how much finer logits are.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trailseg.errors import OptionError
from trailseg.networks.guide import at_position, convex_upsample
from trailseg.networks.norms import Size, StepNorm
from trailseg.networks.recompute import Layers, recomputed
from trailseg.networks.stems import Context


class State(NamedTuple):
    """What a step leaves to the next."""

    hidden: Tensor
    """(B, F, h, w)."""
    logits: Tensor
    """(B, K, r h, r w), of the padded picture."""


class Recurrence(nn.Module):
    """A stem, and a core applied again and again; every step gives a full prediction.

    cores, fuses: step t uses the t-th, or the last where there are fewer; no fuses where no context is copied.
    feedback: from logits to what is added to the next input; None only where there is never a second step.
    by_picture: whether a picture is standardised by its own mean and deviation, not by the training pictures'.
    gate: from concat(input, output) of a core to the logits of the share of its output that counts; None for all of it.
    scalars: how many alphas and betas to learn, one for all steps or one for each step after the first.
    max_steps: the most steps `forward` accepts; None for any number.
    stride, scale: how much smaller than the picture the features, and the logits, are each way.
    guided: how much finer, each way, the logits are than those of the head; 1 where the stem gives no guide to that.
    multiple: what a padded picture's height and width must be divisible by.
    bound_to: the padded (H, W) that size-bound norms tie the weights to; None where any size fits.
    """

    FAINT = 4e-4  # variance of a channel in 0..1 from which on a picture counts as one that shows something
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        stem: nn.Module,
        cores: Sequence[nn.Module],
        head: nn.Module,
        feedback: nn.Module | None,
        fuses: Sequence[nn.Module],
        gate: nn.Module | None,
        by_picture: bool,
        residual: bool,
        scalars: int,
        max_steps: int | None,
        stride: int,
        scale: int,
        guided: int,
        multiple: int,
        bound_to: Size | None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.cores = nn.ModuleList(cores)
        self.head = head
        self.feedback = feedback
        self.fuses = nn.ModuleList(fuses)
        self.gate = gate
        self.step_norms = [module for core in cores for module in core.modules() if isinstance(module, StepNorm)]
        self.by_picture, self.residual = by_picture, residual
        self.max_steps, self.bound_to = max_steps, bound_to
        self.recompute = self.channels_last = False
        self.stride, self.scale, self.guided, self.multiple = stride, scale, guided, multiple
        # alpha: 0 forgets the state, 1 passes it unchanged. beta: 0 hears nothing of the last prediction (and gives
        # the feedback no gradient), 1 adds it at full strength.
        self.alpha = nn.Parameter(torch.full((scalars,), 1.0), requires_grad=scalars > 0)
        self.beta = nn.Parameter(torch.full((scalars,), 0.1), requires_grad=scalars > 0)
        # Mean and standard deviation of the training pictures' channels; they travel with the weights.
        self.register_buffer("mean", torch.full((3,), 0.5))
        self.register_buffer("std", torch.full((3,), 0.25))

    def forward(self, image: Tensor, steps: int, prefix: int = 0, position: int | None = None) -> Tensor:
        """Logits (B, S, K, ceil(H/scale), ceil(W/scale)) of every step for image (B, 3, H, W), RGB in 0..1.

        `prefix` steps come before them, through which no gradient flows. Of a guided network `position` asks for the
        one in each square of guided x guided that lies there, from 0 row by row. OptionError where the steps or the
        picture's size do not suit these weights.
        """
        self.check_steps(prefix + steps)
        (features, guide), state, trail = self.encode(image), None, []
        spare = self.recompute and torch.is_grad_enabled()
        advance = partial(recomputed, self, self.advance) if spare else self.advance
        for t in range(prefix + steps):
            state = advance(t, features, state)
            if t < prefix:
                state = State(state.hidden.detach(), state.logits.detach())
            else:
                trail.append(state.logits)
        logits, scale = torch.stack(trail, 1), self.scale
        if guide is not None:  # all steps at once, which costs less
            if position is not None:
                guide, scale = at_position(guide, position), scale * self.guided
            logits = torch.unflatten(convex_upsample(logits.flatten(1, 2), guide), 1, (steps, -1))
        return self.crop(logits, (image.shape[-2], image.shape[-1]), scale)

    def encode(self, image: Tensor) -> Context:
        """The context of image (B, 3, H, W), RGB in 0..1; OptionError on a size that does not suit."""
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        context: Context = self.stem(self.pad(self.standardize(image)))
        return context

    def standardize(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) with each channel's mean and deviation, its own or those of training, taken out."""
        if self.by_picture:
            centred = image - image.mean((2, 3), keepdim=True)
            return centred / (centred.square().mean((2, 3), keepdim=True) + self.FAINT).sqrt()
        return (image - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)

    def step(self, t: int, context: Context, before: State | None) -> State:
        """Step t, from 0, after the state that the step `before` it left; None only before step 0."""
        features, guide = context
        if guide is None:
            return self.advance(t, features, before)
        state = self.advance(t, features, before and State(before.hidden, self.head(before.hidden)))
        return State(state.hidden, convex_upsample(state.logits, guide))

    def advance(self, t: int, features: Tensor, before: State | None) -> State:
        """Step t: features (B, F, h, w) and the state before to hidden state and logits of the head, not yet guided."""
        if before is None:
            x = features
        else:
            assert self.feedback is not None
            state = _at(self.fuses, t - 1)(torch.cat([features, before.hidden], 1)) if self.fuses else before.hidden
            x = _at(self.alpha, t - 1) * state + _at(self.beta, t - 1) * self.feedback(before.logits)
        for norm in self.step_norms:
            norm.step = min(t, 1)  # no more than it asks for, lest torch.compile makes code for every step
        hidden = _at(self.cores, t)(x)
        if self.gate is not None:
            hidden = hidden * self.gate(torch.cat([x, hidden], 1)).sigmoid()
        if self.residual:
            hidden = hidden + x
        return State(hidden, self.head(hidden))

    def to_device(self, device: torch.device, *, channels_last: bool = True) -> Self:
        """Moves the weights to the device; with `channels_last` they and the features lie there pixel by pixel."""
        self.channels_last = channels_last
        return self.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]

    def compile_parts(self) -> None:
        """From now on stem and cores are what torch.compile makes of them, for each shape that they are given.

        No code depends on the number of steps. What it has made for other networks of this process is forgotten.
        """
        torch.compiler.reset()
        for part in (self.stem, *self.cores):
            part.compile(dynamic=False)

    def save_memory(self) -> None:
        """From now on the backward pass recomputes each step, and the stem but for its convolutions."""
        self.recompute = True
        for module in self.modules():
            if isinstance(module, Layers):
                module.recompute = True

    def crop(self, logits: Tensor, size: Size, scale: int | None = None) -> Tensor:
        """Logits (..., h, w) without the rows and columns that only the padding of a picture of (H, W) = `size` has.

        `scale`: how much smaller than the picture they are, where that is not the network's.
        """
        scale = scale or self.scale
        return logits[..., : -(-size[0] // scale), : -(-size[1] // scale)]

    @property
    def recalls(self) -> bool:
        """Whether every step sees the context, and any number of steps can follow."""
        return bool(self.fuses) and self.max_steps is None

    def up_to(self, steps: int) -> int:
        """`steps`, or as many as these weights take."""
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def check_steps(self, steps: int) -> None:
        """OptionError unless these weights can take `steps` steps."""
        if steps < 1:
            raise OptionError(f"steps={steps}: take at least one step")
        if self.max_steps is not None and steps > self.max_steps:
            raise OptionError(
                f"steps={steps}: these weights were made for at most {self.max_steps}; "
                "a network with one or two cores takes any number of steps"
            )

    def upsample(self, logits: Tensor, size: Size, to: Size) -> Tensor:
        """Logits (S, K, *to) of logits (S, K, h, w) that `forward` gave for a picture of (H, W) = `size`, bilinearly.

        `to` is the height and width of the picture before it was resized to `size`.
        """
        # The last row and column of features may reach beyond the picture; so does what is then cut off.
        sides = zip(logits.shape[-2:], size, to, strict=True)
        reach = [-(-features * self.scale * full // small) for features, small, full in sides]
        return F.interpolate(logits, reach, mode="bilinear", align_corners=False)[..., : to[0], : to[1]]

    def pad(self, image: Tensor) -> Tensor:
        """Repeats the right and bottom edge until `multiple` divides height and width; OptionError on a bad size."""
        height, width = image.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        padded = (height + down, width + right)
        if self.bound_to is not None and padded != self.bound_to:
            fits = [f"{side - self.multiple + 1} to {side}" for side in self.bound_to]
            raise OptionError(
                f"a picture of {height} x {width} (height x width) does not fit: this norm ties the weights to one "
                f"size; fitting are heights of {fits[0]} and widths of {fits[1]}; resize it, or train with norm=group"
            )
        return F.pad(image, (0, right, 0, down), mode="replicate") if down or right else image


def _at(items: Tensor | nn.ModuleList, t: int) -> Any:
    """The t-th item, or the last where there are fewer."""
    return items[min(t, len(items) - 1)]
