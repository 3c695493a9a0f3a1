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


@given(masks())
@settings(max_examples=200, deadline=None)
def test_measures_equal_a_count_over_sets_of_pixels(pair):
    prediction, truth = pair
    scored = [i for i, t in enumerate(truth.ravel()) if t != IGNORE]
    t, p = truth.ravel()[scored], prediction.ravel()[scored]
    got = measures(confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), K).numpy(), "abcd")
    ious = {}
    for k, name in enumerate("abcd"):
        mine, theirs = {i for i, x in enumerate(t) if x == k}, {i for i, x in enumerate(p) if x == k}
        ious[name] = len(mine & theirs) / len(mine | theirs) if mine | theirs else None
    present = [v for v in ious.values() if v is not None]
    assert got["iou"] == ious
    assert got["classes_counted"] == len(present)
    assert got["miou"] == (pytest.approx(sum(present) / len(present)) if present else None)
    assert got["pixel_accuracy"] == (pytest.approx(float((t == p).mean())) if scored else None)


def test_an_id_outside_the_classes_is_refused():
    good, bad = torch.tensor([0, 1]), torch.tensor([0, 4])
    with pytest.raises(ValueError, match="prediction"):
        confusion_matrix(bad, good, 4)
    with pytest.raises(ValueError, match="truth"):
        confusion_matrix(good, bad, 4)


def test_counts_beyond_double_precision_stay_whole():
    huge = 2**53
    got = measures(np.array([[huge + 1, 0], [0, 0]]), "ab")
    assert got["pixel_accuracy"] == 1.0
    assert measures(np.array([[huge, 1], [0, 0]]), "ab")["pixel_accuracy"] == huge / (huge + 1)


def test_the_trivial_answer_is_always_the_commonest_class_of_the_truth():
    confusion = np.array([[5, 1, 0], [2, 7, 1], [0, 0, 2]])
    trivial = trivial_confusion(confusion)
    assert trivial.tolist() == [[0, 6, 0], [0, 10, 0], [0, 2, 0]]
    assert measures(trivial, "abc")["miou"] == pytest.approx((0 + 10 / 18 + 0) / 3)


def test_steps_are_numbered_from_one():
    steps = measures_per_step(np.stack([np.eye(2, dtype=int), np.ones((2, 2), int)]), "ab")
    assert [s["step"] for s in steps] == [1, 2]
    assert [s["miou"] for s in steps] == [1.0, pytest.approx(1 / 3)]
