"""Distillation: trained networks whose predictions are targets beside ground truth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trailseg.errors import FileError
from trailseg.networks.recurrence import Recurrence
from trailseg.runs import Run


class Teachers:
    """One trained network or several, and the mean of what they answer.

    Hinton et al., "Distilling the knowledge in a neural network", 2015, section 2, at a temperature of 1.
    """

    def __init__(self, runs: Sequence[Run], *, learner: Recurrence, classes: Sequence[str]) -> None:
        """FileError where one's classes, or the squares that its logits stand for, are not the learner's."""
        self.networks = [run.network().requires_grad_(False) for run in runs]
        self.steps = [network.up_to(run.options.steps) for network, run in zip(self.networks, runs, strict=True)]
        for network, run in zip(self.networks, runs, strict=True):
            if run.config["data"]["classes"] != list(classes):
                raise FileError(run.folder, "has other classes than its learner", "name another teacher")
            its, mine = ((one.scale, one.guided) for one in (network, learner))
            if its != mine:
                problem = "a logit of its stands for {0} x {0} pixels with guided={1}".format(*its)
                problem += ", one of its learner for {0} x {0} with guided={1}".format(*mine)
                raise FileError(run.folder, problem, "say the stem, finer and guided that it has")

    def to_device(self, device: torch.device, *, channels_last: bool) -> None:
        """Moves them to the device, as `Recurrence.to_device` does."""
        for network in self.networks:
            network.to_device(device, channels_last=channels_last)

    @torch.no_grad()
    def answer(self, images: Tensor, position: int | None = None) -> Tensor:
        """Probabilities (B, K, h, w) float32 for images (B, 3, H, W) in 0..1, after as many steps as each trained with.

        All of them, or those of one position as in `Recurrence.forward`.
        """
        answers = [
            network(images, 1, steps - 1, position)[:, 0].float().softmax(1)
            for network, steps in zip(self.networks, self.steps, strict=True)
        ]
        return torch.stack(answers).mean(0)
