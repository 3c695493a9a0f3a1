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
        """One optimiser step; the gradients of kernels are used up by it. Kernels of one shape are computed at once."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for kernel in group["params"]:
                if kernel.ndim == 4 and kernel.grad is not None:
                    alike.setdefault(kernel.shape, []).append(kernel)
            for shape, kernels in alike.items():
                gradients = [kernel.grad for kernel in kernels if kernel.grad is not None]
                momenta = [self._momentum(kernel) for kernel in kernels]
                torch._foreach_lerp_(momenta, gradients, 1 - self.MOMENTUM)
                ahead = torch.stack(torch._foreach_lerp(gradients, momenta, self.MOMENTUM)).flatten(2)  # Nesterov's
                torch._foreach_mul_(kernels, 1 - group["lr"] * group["weight_decay"])
                length = 0.2 * max(ahead.shape[1:]) ** 0.5
                steps = orthogonalised(ahead).reshape(-1, *shape).unbind()
                torch._foreach_add_(kernels, steps, alpha=-group["lr"] * length)
                for kernel in kernels:
                    kernel.grad = None
        super().step(closure)

    def _momentum(self, kernel: Tensor) -> Tensor:
        """That of a kernel, of its shape; of zeros at first."""
        state = self.state[kernel]
        if not state:
            state["step"] = torch.tensor(0.0)  # without which AdamW would not load the state
            state["momentum"] = torch.zeros_like(kernel)
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (N, m, n) with singular values of 0.7 to 1.2, and their singular vectors: five Newton-Schulz steps.

    The coefficients are Jordan's: near enough to 1, and soon. A matrix of zeros stays one.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if wide is matrices else x.mT


OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}
