"""Guided upsampling: each finer logit is a mean of its nine neighbours, weighted by picture features.

The convex upsampling of Teed and Deng, "RAFT", 2020, section 3.3, but guided by features of the picture, not by the
hidden state: paid once a picture, however many steps, and sharp where the picture is.

Legend: B batch, K classes, C channels, h x w logits, r how much finer they become each way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Guide(nn.Module):
    """The weights of the nine logits around each, (B, C, h, w) -> (B, 9 r r, h, w): in each of r x r positions they sum
    to 1. The nine go row by row, and so do the positions, which come last.

    It starts near bilinear interpolation.
    """

    def __init__(self, channels: int, finer: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, 9 * finer**2, 1)
        place = (torch.arange(finer) + 0.5) / finer - 0.5  # of a finer logit, from the centre of its square
        near = 1 - (torch.arange(-1, 2)[:, None] - place).abs()  # (3, r)
        tent = near.clamp(min=0.02)  # not 0, or else no training would ever change it
        assert self.weigh.bias is not None
        with torch.no_grad():
            self.weigh.weight.zero_()
            self.weigh.bias.copy_((tent[:, None, :, None] * tent[None, :, None, :]).log().flatten())

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 9 r r, h, w)."""
        return torch.unflatten(self.weigh(features), 1, (9, -1)).softmax(1).flatten(1, 2)


def convex_upsample(logits: Tensor, weights: Tensor) -> Tensor:
    """Logits (B, K, r h, r w) of logits (B, K, h, w) and weights (B, 9 r r, h, w) as `Guide` gives them."""
    rows, columns = logits.shape[-2:]
    padded = F.pad(logits.contiguous(), (1, 1, 1, 1), mode="replicate")
    around = [padded[..., y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    weights = torch.unflatten(weights, 1, (9, -1)).to(logits.dtype)
    if weights.shape[2] == 1:
        mean = around[0] * weights[:, 0]
        for n in range(1, 9):
            mean = torch.addcmul(mean, around[n], weights[:, n])
        return mean
    finer = torch.einsum("bknhw,bnphw->bkphw", torch.stack(around, 2), weights)
    return F.pixel_shuffle(finer.flatten(1, 2), round(weights.shape[2] ** 0.5))


def at_position(weights: Tensor, position: int) -> Tensor:
    """Of weights (B, 9 r r, h, w) those (B, 9, h, w) of one position, from 0 row by row."""
    return torch.unflatten(weights, 1, (9, -1))[:, :, position].contiguous()
