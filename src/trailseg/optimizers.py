"""The optimisers: a table from the option's name to the constructor."""

import torch
from torch import Tensor


class Muon(torch.optim.AdamW):
    """AdamW, but kernels of convolutions move along their orthogonalised momentum: as far in every direction.

    A kernel (O, I, h, w) is taken as the matrix (O, I h w) (Jordan et al., "Muon", 2024,
    kellerjordan.github.io/posts/muon). The factor 0.2 sqrt(max(O, I h w)) makes its steps as long as those of AdamW, so
    that both share a learning rate (Liu et al., "Muon is scalable for LLM training", 2025, section 2.2).
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One optimiser step; the gradients of kernels are used up by it."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.ndim != 4 or kernel.grad is None:
                    continue
                state = self.state[kernel]
                if not state:
                    state["step"] = torch.tensor(0.0)  # without which AdamW would not load the state
                    state["momentum"] = torch.zeros_like(kernel)
                momentum = state["momentum"].lerp_(kernel.grad, 1 - self.MOMENTUM)
                ahead = kernel.grad.lerp(momentum, self.MOMENTUM).flatten(1)  # Nesterov's
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                length = 0.2 * max(ahead.shape) ** 0.5
                kernel.add_(orthogonalised(ahead).view_as(kernel), alpha=-group["lr"] * length)
                kernel.grad = None
        super().step(closure)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix (m, n) with singular values of 0.7 to 1.2, and its singular vectors: five steps of Newton and Schulz.

    The coefficients are Jordan's: near enough to 1, and soon. A matrix of zeros stays one.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide is matrix else x.T


OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}
