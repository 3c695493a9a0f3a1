"""The loss of a trail of predictions: cross-entropy plus Dice, a weighted mean over the steps.

Legend: B batch, S steps, K classes, h x w feature map.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trailseg.labels import IGNORE


@dataclass(frozen=True)
class StepLoss:
    """Cross-entropy per scored pixel plus `dice` times the soft Dice loss per picture.

    A step weighs `gamma` times as much as the one after it (RAFT, Teed and Deng 2020, section 3.3); with 1 all weigh
    the same (the original study's). It is returned as sums and counts, so that processes which share a batch can divide
    by what they have together.
    """

    dice: float
    gamma: float

    def __call__(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (2,) and counts (2,), float32, of logits (B, S, K, h, w) against labels (B, h, w) uint8.

        Cross-entropy is summed over scored pixels, Dice over pictures with any, both in the weighted mean of
        the steps. Without a scored pixel sums, counts and gradients are 0.
        """
        batch, steps = logits.shape[:2]
        weights = self.gamma ** torch.arange(steps - 1, -1, -1, device=logits.device, dtype=torch.float32)  # 0^0 is 1
        total, weight = weights.sum(), weights.repeat(batch)  # (B*S,)
        flat = logits.float().flatten(0, 1)  # (B*S, K, h, w)
        target = labels.long().repeat_interleave(steps, 0)  # (B*S, h, w)
        scored = target != IGNORE
        log_p = F.log_softmax(flat, 1)
        weighted = log_p * weight.view(-1, 1, 1, 1)
        entropy = F.nll_loss(weighted, target, ignore_index=IGNORE, reduction="sum") / total
        dice = (soft_dice(log_p.exp(), target) * weight).sum() / total
        pictures = scored.flatten(1).any(1).sum() / steps
        sums = torch.stack([entropy, self.dice * dice])
        return sums, torch.stack([scored.sum() / steps, pictures]).to(sums)


def soft_dice(probabilities: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss (N,), 0..1, of probabilities (N, K, h, w) against target (N, h, w): 1 - the classes' mean of
    (2 |P and T| + 1) / (|P| + |T| + 1), over scored pixels (Milletari et al., "V-Net", 2016, section 3, smoothed).

    A class that is neither there nor predicted counts as right; a picture without a scored pixel has the loss 0.
    """
    classes = probabilities.shape[1]
    scored = (target != IGNORE)[:, None]
    truth = F.one_hot(target.where(target != IGNORE, 0), classes).movedim(-1, 1) * scored
    predicted = probabilities * scored
    both = (predicted * truth).sum((2, 3))
    return 1 - ((2 * both + 1) / (predicted.sum((2, 3)) + truth.sum((2, 3)) + 1)).mean(1)
