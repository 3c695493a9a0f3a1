"""The loss over all steps: a weighted mean of cross-entropy plus Dice, and Lovasz-softmax of the last step.

Legend: B batch, S steps, K classes, h x w feature map.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trailseg.labels import IGNORE


@dataclass(frozen=True)
class StepLoss:
    """Cross-entropy per scored pixel, plus `dice` times soft Dice and `lovasz` times Lovasz-softmax per picture.

    A step weighs `gamma` times as much as the one after it (RAFT, Teed and Deng 2020, section 3.3); with 1 all weigh
    the same (the original study's). It is returned as sums and counts, so that processes which share a batch can divide
    by what they have together.
    """

    dice: float
    gamma: float
    lovasz: float = 0.0
    weights: Tensor | None = None
    """(K,) of the classes in cross-entropy, which is then a weighted mean over the pixels; None for all alike."""
    recompute: bool = False
    """Whether the backward pass computes the loss of each step again, so that nothing of it is kept."""

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (2,) and counts (2,), float32, of logits (B, S, K, h, w) against labels (B, h, w) uint8, or against the
        shares (B, K, h, w) float32 that the classes have of each pixel: what is missing to 1 is not scored.

        Cross-entropy is summed over scored pixels, Dice over pictures with any, both in the weighted mean of
        the steps; Lovasz-softmax, of the last step, over the same pictures. Without a scored pixel sums, counts and
        gradients are 0.
        """
        steps = logits.shape[1]
        target = labels if labels.is_floating_point() else labels.long()
        weights = self.gamma ** torch.arange(steps - 1, -1, -1, device=logits.device, dtype=torch.float32)  # 0^0 is 1
        found = [
            checkpoint(self._of_step, step, target, use_reentrant=False, preserve_rng_state=False)
            if self.recompute
            else self._of_step(step, target)
            for step in logits.unbind(1)
        ]
        sums = (torch.stack(found) * weights[:, None]).sum(0) / weights.sum()
        if self.lovasz:
            last = logits[:, -1].float().softmax(1)
            term = self.lovasz * lovasz_softmax(last, _largest(target)).sum()
            sums = sums + torch.stack([torch.zeros_like(term), term])
        truth, scored = _truth(target, logits.shape[2])
        pixels = scored if self.weights is None else truth * self.weights.to(sums)[:, None, None]
        return sums, torch.stack([pixels.sum(), scored.flatten(1).any(1).sum()]).to(sums)

    def _of_step(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy and weighted Dice, sums (2,), of one step's logits (B, K, h, w) against classes or shares."""
        log_p = F.log_softmax(logits.float(), 1)
        weights = None if self.weights is None else self.weights.to(log_p)
        if target.is_floating_point():
            entropy = -(target * (log_p if weights is None else weights[:, None, None] * log_p)).sum()
        else:
            entropy = F.nll_loss(log_p, target, weights, ignore_index=IGNORE, reduction="none").sum()
        return torch.stack([entropy, self.dice * soft_dice(log_p.exp(), target).sum()])


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss (N,), 0..1, of probabilities (N, K, h, w) against target (N, h, w), or shares (N, K, h, w): 1 -
    the classes' mean of (2 |P and T| + 1) / (|P| + |T| + 1), over scored pixels (Milletari et al., "V-Net", 2016,
    section 3, smoothed).

    A class that is neither there nor predicted counts as right; a picture without a scored pixel has the loss 0.
    """
    truth, scored = _truth(target, probabilities.shape[1])
    both, predicted = ((probabilities * where).sum((2, 3)) for where in (truth, scored))
    return 1 - ((2 * both + 1) / (predicted + truth.sum((2, 3)) + 1)).mean(1)


def lovasz_softmax(probabilities: Tensor, target: Tensor) -> Tensor:
    """Lovasz-softmax loss (N,), 0..1, of probabilities (N, K, h, w) against target (N, h, w), over scored pixels.

    The convex extension of 1 - IoU, meaned over the classes of a picture's truth (Berman et al., "The Lovasz-softmax
    loss", 2018, section 3.1); a picture without a scored pixel has the loss 0.
    """
    truth, scored = (part.flatten(2).float() for part in _truth(target, probabilities.shape[1]))
    error = (truth - probabilities.flatten(2)).abs() * scored
    error, order = error.sort(2, descending=True)
    truth = truth.gather(2, order)
    # 1 - IoU of the class where the pixels up to each are wrong: what one more wrong pixel costs is its weight.
    there = truth.sum(2, keepdim=True)
    so_far = truth.cumsum(2, dtype=torch.int32)  # whole numbers, whose sum is the same every time on a GPU too
    rank = torch.arange(1, truth.shape[2] + 1, device=truth.device)
    wrong = 1 - (there - so_far) / (there + (rank - so_far))
    weight = torch.diff(wrong, dim=2, prepend=wrong.new_zeros(()).expand(*wrong.shape[:2], 1))
    seen = there[:, :, 0] > 0
    return ((error * weight).sum(2) * seen).sum(1) / seen.sum(1).clamp(min=1)


def _largest(target: Tensor) -> Tensor:
    """The class (N, h, w) int64 with the largest of the shares (N, K, h, w), or IGNORE; classes stay as they are."""
    return target.argmax(1).where(target.any(1), IGNORE) if target.is_floating_point() else target


def _truth(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """How much of each pixel is of each class (N, K, h, w), and is scored (N, 1, h, w): bool, or float32 of shares."""
    if target.is_floating_point():
        return target, target.sum(1, keepdim=True)
    truth = target[:, None] == torch.arange(classes, device=target.device)[:, None, None]
    return truth, (target != IGNORE)[:, None]


def class_weights(counts: Tensor, balance: float) -> Tensor:
    """Weights (K,) of classes with these pixel counts (K,): 1 / ln(balance + share), scaled to a mean of 1 over pixels.

    Paszke et al., "ENet", 2016, section 4.
    """
    share = counts / counts.sum().clamp(min=1)
    weights = 1 / (balance + share).log()
    return (weights / (weights * share).sum().clamp(min=1e-12)).float()
