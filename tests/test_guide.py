"""Guided upsampling: weights by hand, where each position lies, and that a step answers as the whole does."""

import pytest
import torch
import torch.nn.functional as F
from test_networks import make, picture

from trailseg.errors import OptionError
from trailseg.networks.guide import Guide, at_position, convex_upsample

GUIDED = {"network": "gated", "stem": "s8", "core": "dilated", "depth": 1, "finer": 2, "size": (32, 48)}


def test_all_weight_on_one_neighbour_moves_the_logits_by_one():
    logits = torch.arange(12.0).view(1, 1, 3, 4)
    above = torch.zeros(1, 9, 3, 4)
    above[:, 1] = 1  # the middle of the first of three rows
    expected = torch.cat([logits[:, :, :1], logits[:, :, :2]], 2)
    assert torch.equal(convex_upsample(logits, above), expected)
    weights = torch.zeros(1, 9, 4, 3, 4)
    weights[:, 4] = 1  # each its own square's
    weights[:, :, 3] = above  # but at the right below
    finer = convex_upsample(logits, weights.flatten(1, 2))
    assert torch.equal(finer[..., 1::2, 1::2], expected)
    assert all(torch.equal(finer[..., y::2, x::2], logits) for y, x in ((0, 0), (0, 1), (1, 0)))


@pytest.mark.parametrize("finer", [2, 4])
def test_at_first_it_is_nearly_bilinear(finer):
    logits, guide = picture(2, 5, 6, 8), Guide(7, finer)
    first = convex_upsample(logits, guide(picture(2, 7, 6, 8)))
    bilinear = F.interpolate(logits, scale_factor=finer, mode="bilinear", align_corners=False)
    assert (first - bilinear).abs().mean() < 0.1 * (bilinear - bilinear.mean()).abs().mean()
    nearest = F.interpolate(logits, scale_factor=finer)
    assert (nearest - bilinear).abs().mean() > 0.2 * (bilinear - bilinear.mean()).abs().mean()


@pytest.mark.parametrize("finer", [2, 4])
def test_every_logit_is_a_mean_of_the_nine_around_it(finer):
    guide = Guide(7, finer)
    torch.nn.init.normal_(guide.weigh.weight)
    weights = guide(picture(2, 7, 6, 8))
    nine = weights.unflatten(1, (9, finer**2))
    torch.testing.assert_close(nine.sum(1), torch.ones(2, finer**2, 6, 8))
    logits = picture(2, 5, 6, 8)
    fine = convex_upsample(logits, weights)
    assert fine.shape == (2, 5, 6 * finer, 8 * finer)
    most, least = (F.interpolate(F.max_pool2d(sign * logits, 3, 1, 1), scale_factor=finer) for sign in (1, -1))
    assert (fine <= most + 1e-6).all()
    assert (fine >= -least - 1e-6).all()
    for position in range(finer**2):
        y, x = divmod(position, finer)
        torch.testing.assert_close(
            convex_upsample(logits, at_position(weights, position)), fine[..., y::finer, x::finer]
        )


def guided(**options):
    """A network whose guide sees the picture, as after some training."""
    network = make(**(GUIDED | {"guided": 2} | options))
    torch.nn.init.normal_(network.stem.guide.weigh.weight)
    return network


@pytest.mark.parametrize("times", [2, 4])
def test_a_guided_network_answers_at_its_scale_and_its_weights_all_learn(times):
    network = guided(guided=times)
    logits = network(picture(2, 3, 33, 50), 3)
    assert network.scale == 4 // times
    assert logits.shape == (2, 3, 5, -(-33 * times // 4), -(-50 * times // 4))
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and not p.grad.any()] == []


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_one_position_is_that_of_all(position):
    network = guided().eval()
    whole, one = (network(picture(2, 3, 32, 48), 3, position=p) for p in (None, position))
    torch.testing.assert_close(one, whole[..., position // 2 :: 2, position % 2 :: 2])


@pytest.mark.parametrize("name", ["gated", "gated-single", "iterative-v5"])
def test_step_by_step_it_is_the_same(name):
    network = guided(network=name).eval()
    image, state = picture(2, 3, 32, 48), None
    context = network.encode(image)
    for t, expected in enumerate(network(image, network.up_to(3)).unbind(1)):
        state = network.step(t, context, state)
        torch.testing.assert_close(state.logits, expected)


@pytest.mark.parametrize("options", [{"guided": 3}, {"guided": 8}, {"finer": 4}, {"finer": 1}, {"stem": "x8"}])
def test_what_cannot_be_guided_is_refused(options):
    with pytest.raises(OptionError, match=r"guided=\d: takes stem=s8 and finer=2, and makes their logits 2 or 4 times"):
        make(**(GUIDED | {"guided": 2} | options))
