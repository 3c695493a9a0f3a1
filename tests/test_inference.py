"""Answering step by step: the same numbers as training's loop, and each picture of a batch stops by itself."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from trailseg.config import NetworkOptions, Size
from trailseg.inference import changed_share, classify, refine
from trailseg.networks.build import build

STEPS = 6


def network(name="iterative-v4", **options):
    """A network whose classes change less and less from step to step."""
    small = NetworkOptions(network=name, stem="x2", channels=8, depth=1, size=Size(16, 24))
    torch.manual_seed(4)
    made = build(replace(small, **options), classes=5).eval()
    with torch.no_grad():
        made.alpha.fill_(0.6)
        made.beta.fill_(0.4)
    return made


def pictures(count=5, size=(17, 31)):
    """Pictures of more and more contrast, so that they need different numbers of steps."""
    noise = torch.rand((count, 3, *size), generator=torch.Generator().manual_seed(1))
    return 0.5 + (noise - 0.5) * torch.linspace(0.02, 1, count).view(-1, 1, 1, 1)


def shares(trail):
    """The share of changed classes (B, S - 1), counted pixel by pixel, of logits (B, S, K, h, w)."""
    classes = trail.argmax(2).flatten(2).tolist()
    return [[sum(p != q for p, q in zip(a, b, strict=True)) / len(a) for a, b in pairwise(one)] for one in classes]


def stops(changes, tolerance):
    """The step, from 1, at which each picture is done."""
    return [next((t for t, share in enumerate(one, 2) if share < tolerance), STEPS) for one in changes]


def between(changes):
    """A tolerance, equal to no share, at which the pictures stop after as many different steps as possible."""
    found = sorted({share for one in changes for share in one})
    middles = [(a + b) / 2 for a, b in pairwise(found)]
    return max(middles, key=lambda tolerance: len(set(stops(changes, tolerance))))


@pytest.mark.parametrize("name", ["iterative-v4", "iterative-v5", "res-hourglass-iter-ex", "1-own-residual"])
def test_a_fixed_number_of_steps_gives_what_the_training_loop_gives(name):
    net, images = network(name), pictures()
    for steps in (1, 3):
        with torch.no_grad():
            expected = net(images, steps)
        refined = refine(net, images, steps=steps)
        assert torch.equal(torch.stack(refined.logits, 1), expected)
        assert refined.used.tolist() == [steps] * 5
        assert refined.state.hidden.shape == (5, 8, 10, 16)  # padded to a multiple of 4
        assert torch.equal(net.crop(refined.state.logits, (17, 31)), expected[:, -1])


@pytest.mark.parametrize("name", ["iterative-v4", "iterative-v5"])
def test_each_picture_of_a_batch_stops_by_itself_and_costs_nothing_from_then_on(name):
    net, images = network(name), pictures()
    with torch.no_grad():
        trail = net(images, STEPS)
    tolerance = between(shares(trail))
    expected = stops(shares(trail), tolerance)
    assert len(set(expected)) >= 3, f"pictures that stop at several steps, not at {expected}"
    seen = []
    for core in net.cores:
        core.register_forward_hook(lambda core, given, out: seen.append(len(given[0])))
    refined = refine(net, images, steps=STEPS, tolerance=tolerance)
    assert refined.used.tolist() == expected
    assert seen == [sum(used > t for used in expected) for t in range(max(expected))]
    for place, used in enumerate(expected):
        alone = refine(net, images[place : place + 1], steps=STEPS, tolerance=tolerance)
        assert (alone.used.tolist(), len(alone.logits)) == ([used], used)
        for step in range(max(expected)):  # a picture that is done repeats its answer
            last = min(step, used - 1)
            torch.testing.assert_close(refined.logits[step][place], trail[place, last], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(refined.state.hidden[place], alone.state.hidden[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(refined.state.logits[place], alone.state.logits[0], rtol=1e-4, atol=1e-4)


def test_a_share_that_equals_the_tolerance_goes_on_and_one_below_it_stops():
    net, image = network(), pictures()[4:]
    with torch.no_grad():
        change = changed_share(*net(image, 2)[0][:, None]).item()
    assert 0 < change < 1
    assert refine(net, image, steps=3, tolerance=change).used.tolist() == [3]
    assert refine(net, image, steps=3, tolerance=change * 1.001).used.tolist() == [2]


def test_the_tolerance_bounds_how_many_steps_there_can_be():
    net, images = network(), pictures()
    assert refine(net, images, steps=STEPS, tolerance=1).used.tolist() == [2] * 5
    assert refine(net, images, steps=1, tolerance=1).used.tolist() == [1] * 5
    same = images[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        for part in (net.alpha, net.beta, net.head.weight):
            part.zero_()  # every answer is the first
    assert refine(net, same, steps=STEPS, tolerance=0).used.tolist() == [STEPS] * 2
    assert refine(net, same, steps=STEPS, tolerance=1e-9).used.tolist() == [2] * 2


@pytest.mark.parametrize("name", ["iterative-v4", "iterative-v5", "iterative-v6"])
@pytest.mark.parametrize("before", [1, 2])
def test_going_on_from_a_state_with_the_same_picture_gives_the_further_steps(name, before):
    net, images = network(name), pictures()
    with torch.no_grad():
        trail = net(images, before + 3)
    state = refine(net, images, steps=before).state
    kept = state.hidden.clone()
    refined = refine(net, images, steps=3, state=state)
    assert torch.equal(torch.stack(refined.logits, 1), trail[:, before:])
    assert refined.used.tolist() == [3] * 5
    assert torch.equal(state.hidden, kept)


def test_going_on_from_a_settled_picture_stops_sooner_than_starting_anew():
    net, images = network(), pictures()
    tolerance = between(shares(net(images, STEPS).detach()))
    cold = refine(net, images, steps=STEPS, tolerance=tolerance)
    warm = refine(net, images, steps=STEPS, tolerance=tolerance, state=cold.state)
    assert warm.used.sum() < cold.used.sum()
    assert warm.used.min() == 2  # whether the state suits the picture shows after two steps of it


def test_the_padding_counts_for_nothing_when_a_picture_is_judged():
    """Of a picture of one pixel, 1 of 4 predictions is its own; the others may change as they like."""
    net = network(stem="x1", depth=1)
    logits = torch.zeros(3, 1, 5, 2, 2)
    logits[0, 0, 1], logits[1, 0, 2], logits[2, 0, 3] = 1, 1, 1
    logits[:, 0, :, 0, 0] = 0
    logits[:, 0, 4, 0, 0] = 9  # the one that is its own stays
    answers = iter(logits)
    net.head.register_forward_hook(lambda head, given, out: next(answers))
    refined = refine(net, torch.zeros(1, 3, 1, 1), steps=3, tolerance=0.5)
    assert refined.used.tolist() == [2]
    assert [step.shape for step in refined.logits] == [(1, 5, 1, 1)] * 2


def test_the_changed_share_by_hand():
    before = torch.tensor([[[[0.0, 2.0, 0.0, 1.0]], [[1.0, 0.0, 1.0, 0.0]]]] * 2)
    after = before.clone()
    after[1, :, 0, 0] = torch.tensor([1.0, 0.0])  # of the second picture the first of four pixels
    after[0, 1, 0, 2] = 7.0  # another number, the same class
    assert changed_share(before, after).tolist() == [0, 0.25]


@pytest.mark.parametrize("classes", [1, 2, 9])
def test_classify_is_the_softmax_of_the_resized_logits_class_by_class(classes):
    net = network()
    logits = 4 * torch.randn((3, classes, 9, 16), generator=torch.Generator().manual_seed(2))
    logits[0, :, 0] = 1  # of equal ones the first is chosen
    for to in ((17, 31), (40, 50), (1, 1)):
        ids, probability = classify(net, logits, (17, 31), to)
        sized = net.upsample(logits, (17, 31), to)
        assert (ids.dtype, probability.dtype) == (torch.uint8, torch.float32)
        assert torch.equal(ids.long(), sized.argmax(1))
        torch.testing.assert_close(probability, sized.softmax(1).amax(1), rtol=1e-5, atol=1e-6)
    steep = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).expand(1, 3, 9, 16)
    ids, probability = classify(net, steep, (17, 31), (17, 31))
    assert not ids.any()
    assert (probability == 1).all()
