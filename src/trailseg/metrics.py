"""Segmentation measures from integer confusion matrices: count over the whole split, divide once at the end.

Legend: B batch, S steps, K classes, H x W picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trailseg.labels import IGNORE


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Confusion matrix (K, K) int64, rows truth, columns prediction, over the pixels whose truth is not IGNORE.

    Both arguments hold class ids and have the same shape. ValueError on an id outside 0..K-1, also where a prediction
    is not scored.
    """
    scored = truth != IGNORE
    truth = truth[scored].long()
    for name, ids in (("truth", truth), ("prediction", prediction)):
        if ids.numel() and (ids.min() < 0 or ids.max() >= classes):
            raise ValueError(f"{name} holds class ids outside 0..{classes - 1}")
    places = truth * classes + prediction[scored].long()
    return torch.bincount(places, minlength=classes**2).view(classes, classes)


def measures(confusion: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Pixel accuracy, mIoU and IoU per class (each 0..1) of one confusion matrix (K, K).

    A class that occurs neither in truth nor in prediction has the IoU None, is left out of the mean and is not in
    `classes_counted`. Without a single scored pixel, accuracy and mIoU are None.
    """
    agreed = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - agreed
    iou = {name: int(a) / int(u) if u else None for name, a, u in zip(names, agreed, union, strict=True)}
    counted = [value for value in iou.values() if value is not None]
    pixels = int(confusion.sum())
    return {
        "pixel_accuracy": int(agreed.sum()) / pixels if pixels else None,
        "miou": sum(counted) / len(counted) if counted else None,
        "classes_counted": len(counted),
        "iou": iou,
    }


def measures_per_step(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """`measures` of every step of confusion (S, K, K), each with its `step` from 1."""
    return [{"step": step} | measures(matrix, names) for step, matrix in enumerate(confusion, start=1)]


def trivial_confusion(confusion: np.ndarray) -> np.ndarray:
    """The confusion matrix (K, K) that always answering the commonest class of the truth would have had."""
    truth = confusion.sum(1)
    answer = np.zeros_like(confusion)
    answer[:, truth.argmax()] = truth
    return answer
