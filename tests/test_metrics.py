"""Measures against torchmetrics, against a plain-Python count, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torchmetrics.functional.classification import multiclass_confusion_matrix

from trailseg.labels import IGNORE
from trailseg.metrics import confusion_matrix, measures, measures_per_step, trivial_confusion

K = 4
IDS = st.sampled_from([*range(K), IGNORE])


@st.composite
def masks(draw):
    shape = draw(array_shapes(min_dims=2, max_dims=2, max_side=6))
    truth = draw(arrays(np.uint8, shape, elements=IDS))
    return draw(arrays(np.uint8, shape, elements=st.integers(0, K - 1))), truth


@given(masks())
@settings(max_examples=200, deadline=None)
def test_confusion_equals_torchmetrics_and_a_plain_count(pair):
    prediction, truth = pair
    ours = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), K)
    assert ours.dtype == torch.int64
    plain = [[0] * K for _ in range(K)]
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t != IGNORE:
            plain[t][p] += 1
    assert ours.tolist() == plain
    theirs = multiclass_confusion_matrix(
        torch.from_numpy(prediction).long(), torch.from_numpy(truth).long(), K, ignore_index=IGNORE
    )
    assert torch.equal(ours, theirs)


def test_the_trivial_answer_is_always_the_commonest_class_of_the_truth():
    confusion = np.array([[5, 1, 0], [2, 7, 1], [0, 0, 2]])
    trivial = trivial_confusion(confusion)
    assert trivial.tolist() == [[0, 6, 0], [0, 10, 0], [0, 2, 0]]
    assert measures(trivial, "abc")["miou"] == pytest.approx((0 + 10 / 18 + 0) / 3)


def test_steps_are_numbered_from_one():
    steps = measures_per_step(np.stack([np.eye(2, dtype=int), np.ones((2, 2), int)]), "ab")
    assert [s["step"] for s in steps] == [1, 2]
    assert [s["miou"] for s in steps] == [1.0, pytest.approx(1 / 3)]
