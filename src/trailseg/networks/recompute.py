"""Gradient checkpointing: the backward pass recomputes activations; less memory, more time, the same gradients.

Chen et al., "Training deep nets with sublinear memory cost", 2016, section 3; for norms and activations alone Pleiss et
al., "Memory-efficient implementation of DenseNets", 2017.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, call: Callable[..., Any], *inputs: Any) -> Any:
    """What `call`, a part of `module`, gives for these inputs; of what it computes on the way nothing is kept."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _counted_once(module)

    return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class Layers(nn.Sequential):
    """Layers one after the other; with `recompute` training keeps only what their convolutions give.

    Norms, activations and pools are cheap to compute again, and hold most of the memory.
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Sequential."""
        if not (self.recompute and torch.is_grad_enabled()):
            return _through(self, x)
        part: list[nn.Module] = []
        for layer in self:
            part.append(layer)
            if isinstance(layer, nn.Conv2d):
                x, part = recomputed(self, partial(_through, part), x), []
        return recomputed(self, partial(_through, part), x)


def _through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


@contextmanager
def _counted_once(module: nn.Module) -> Iterator[None]:
    """Meanwhile batch norms leave their running statistics as they are."""
    kept = [(n, n.momentum, n.num_batches_tracked) for n in module.modules() if isinstance(n, _BatchNorm)]
    try:
        for norm, _, _ in kept:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
