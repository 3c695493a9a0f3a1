"""Losses against numbers worked by hand, and their behaviour where nothing is scored."""

import math

import pytest
import torch

from trailseg.labels import IGNORE
from trailseg.losses import StepLoss, class_weights, lovasz_softmax, soft_dice


def loss_of(logits, labels, dice=1.0):
    sums, counts = StepLoss(dice=dice, gamma=1)(logits, labels)
    return (sums / counts.clamp(min=1)).sum()


def test_cross_entropy_by_hand():
    # Two pixels, two classes, one step: log-odds 0 (p = 1/2) and ln 3 for the right class (p = 3/4).
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]).view(1, 1, 2, 1, 2)
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    assert loss_of(logits, labels, dice=0.0).item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_dice_by_hand():
    probabilities = torch.tensor([[0.5, 0.25], [0.5, 0.75]]).view(1, 2, 1, 2)
    target = torch.tensor([[[0, 1]]])
    first = (2 * 0.5 + 1) / (0.75 + 1 + 1)
    second = (2 * 0.75 + 1) / (1.25 + 1 + 1)
    assert soft_dice(probabilities, target).item() == pytest.approx(1 - (first + second) / 2)


def test_ignored_pixels_count_nowhere():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6)
    labels = torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    labels[:, :, 3:] = IGNORE
    changed = logits.clone()
    changed[..., 3:] = 100 * torch.randn(2, 3, 4, 5, 3)
    assert loss_of(logits, labels).item() == pytest.approx(loss_of(changed, labels).item())
    assert loss_of(logits, labels).item() == pytest.approx(loss_of(logits[..., :3], labels[..., :3]).item())


def test_the_loss_is_the_mean_over_steps_and_over_pictures():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6)
    labels = torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    parts = [loss_of(logits[b : b + 1, s : s + 1], labels[b : b + 1]) for b in range(2) for s in range(3)]
    assert loss_of(logits, labels).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-5)


def test_an_all_ignored_batch_gives_a_finite_loss_and_no_gradient():
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    loss = loss_of(logits, torch.full((2, 5, 6), IGNORE, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_sums_and_counts_add_up_over_parts_of_a_batch():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 2, 4, 5, 6), torch.randint(0, 4, (3, 5, 6), dtype=torch.uint8)
    labels[0] = IGNORE
    labels[1, :3] = IGNORE
    whole = StepLoss(dice=0.5, gamma=1)(logits, labels)
    parts = [StepLoss(dice=0.5, gamma=1)(logits[s], labels[s]) for s in (slice(0, 1), slice(1, 3))]
    for i in range(2):
        torch.testing.assert_close(whole[i], parts[0][i] + parts[1][i])


def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_more_than_a_guess():
    labels = torch.randint(0, 3, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    right = 40.0 * torch.nn.functional.one_hot(labels.long(), 3).movedim(-1, 1)[:, None]
    assert loss_of(right, labels).item() == pytest.approx(0, abs=1e-4)
    assert loss_of(-right, labels) > loss_of(0 * right, labels) > 1


def test_gamma_by_hand():
    """One pixel, two classes, three steps that give the right class 1/2, 3/4 and 7/8."""
    odds = torch.tensor([0.0, math.log(3), math.log(7)])
    logits = torch.stack([torch.zeros(3), odds], 1).view(1, 3, 2, 1, 1)
    labels = torch.ones(1, 1, 1, dtype=torch.uint8)
    entropies = [math.log(2), math.log(4 / 3), math.log(8 / 7)]
    dices = [1 - (1 / (q + 1) + (2 * p + 1) / (p + 2)) / 2 for p, q in ((1 / 2, 1 / 2), (3 / 4, 1 / 4), (7 / 8, 1 / 8))]
    for gamma, weights in ((1, (1, 1, 1)), (0.8, (0.64, 0.8, 1)), (0.5, (0.25, 0.5, 1)), (0, (0, 0, 1))):
        sums, counts = StepLoss(dice=2, gamma=gamma)(logits, labels)
        entropy, dice = (
            sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
            for values in (entropies, dices)
        )
        assert sums.tolist() == pytest.approx([entropy, 2 * dice], rel=1e-5)
        assert counts.tolist() == [1, 1]


@pytest.mark.parametrize("gamma", [0, 0.7, 1])
def test_gamma_weighs_whole_steps_and_their_gradients(gamma):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    labels[0, :2] = IGNORE
    sums, counts = StepLoss(dice=0.5, gamma=gamma)(logits, labels)
    steps = [StepLoss(dice=0.5, gamma=1)(logits[:, s : s + 1], labels) for s in range(3)]
    weights = [gamma**2, gamma, 1]
    expected = sum(w * one[0] for w, one in zip(weights, steps, strict=True)) / sum(weights)
    torch.testing.assert_close(sums, expected)
    assert all(torch.equal(counts, one[1]) for one in steps)
    mine, theirs = (torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (sums, expected))
    torch.testing.assert_close(mine, theirs)
    assert [bool(mine[:, s].any()) for s in range(3)] == [gamma > 0, gamma > 0, True]


def test_lovasz_by_hand():
    """Two classes, three pixels of the truth 0, 0, 1 with errors 0.1, 0.4 and 0.8.

    Class 0: by falling error wrong are the pixel of class 1, then both of class 0; 1 - IoU grows 1/3, 2/3, 1.
    Class 1: the same errors; 1 - IoU is 1 as soon as its only pixel is wrong.
    """
    first = torch.tensor([0.9, 0.6, 0.8])
    probabilities = torch.stack([first, 1 - first]).view(1, 2, 1, 3)
    target = torch.tensor([[[0, 0, 1]]])
    class_0, class_1 = (0.8 + 0.4 + 0.1) / 3, 0.8
    assert lovasz_softmax(probabilities, target).item() == pytest.approx((class_0 + class_1) / 2)
    with_void = torch.cat([probabilities, torch.full((1, 2, 1, 3), 0.5)], 3)
    target = torch.cat([target, torch.full((1, 1, 3), IGNORE)], 2)
    assert lovasz_softmax(with_void, target).item() == pytest.approx((class_0 + class_1) / 2)


def test_lovasz_of_a_hard_answer_is_one_minus_iou():
    truth = torch.tensor([[[0, 0, 0, 1, 1, 2]]])
    answer = torch.tensor([[[0, 0, 1, 1, 1, 1]]])
    hard = torch.nn.functional.one_hot(answer, 4).movedim(-1, 1).float()
    iou = [2 / 3, 2 / 4, 0]  # class 3 is not in the truth
    assert lovasz_softmax(hard, truth).item() == pytest.approx(1 - sum(iou) / 3)


def test_lovasz_is_of_the_last_step_alone():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    sums, counts = StepLoss(dice=0, gamma=1, lovasz=2)(logits, labels)
    expected = 2 * lovasz_softmax(logits[:, -1].softmax(1), labels.long()).sum()
    assert (sums[1].item(), counts[1].item()) == (pytest.approx(expected.item()), 2)
    assert torch.equal(sums[0], StepLoss(dice=0, gamma=1)(logits, labels)[0][0])


def test_shares_that_are_all_or_nothing_cost_what_classes_do():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 2, 4, 5, 6), torch.randint(0, 4, (3, 5, 6), dtype=torch.uint8)
    labels[0, 0], labels[2] = IGNORE, IGNORE
    shares = (labels[:, None] == torch.arange(4).view(4, 1, 1)).float()
    for weights in (None, torch.tensor([0.5, 1, 2, 3])):
        loss = StepLoss(dice=0.5, gamma=0.7, lovasz=0.3, weights=weights)
        for mine, theirs in zip(loss(logits, shares), loss(logits, labels), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_shares_by_hand():
    """Two pixels of the probabilities 1/2, 1/2 and 3/4, 1/4; the second is not scored for a half of it."""
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(1, 1, 2, 1, 2)
    shares = torch.tensor([[0.25, 0.5], [0.75, 0.0]]).view(1, 2, 1, 2)
    sums, counts = StepLoss(dice=1, gamma=1)(logits, shares)
    first = (2 * (0.25 * 0.5 + 0.5 * 0.75) + 1) / (0.5 + 0.5 * 0.75 + 0.75 + 1)
    second = (2 * 0.75 * 0.5 + 1) / (0.5 + 0.5 * 0.25 + 0.75 + 1)
    assert sums.tolist() == pytest.approx([math.log(2) + 0.5 * math.log(4 / 3), 1 - (first + second) / 2])
    assert counts.tolist() == [1.5, 1]


def test_class_weights_are_enets_and_cross_entropy_their_weighted_mean():
    counts = torch.tensor([900, 100, 0])
    weights = class_weights(counts, 1.1)
    raw = [1 / math.log(1.1 + share) for share in (0.9, 0.1, 0)]
    mean = 0.9 * raw[0] + 0.1 * raw[1]
    assert weights.tolist() == pytest.approx([w / mean for w in raw])
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 1, 3, 5, 6), torch.randint(0, 3, (2, 5, 6), dtype=torch.uint8)
    labels[0, 0] = IGNORE
    sums, counts = StepLoss(dice=0, gamma=1, weights=weights)(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits[:, 0], labels.long(), weights, ignore_index=IGNORE)
    assert (sums[0] / counts[0]).item() == pytest.approx(expected.item(), rel=1e-5)
