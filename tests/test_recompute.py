"""Recomputing: the same gradients and statistics to the bit, and memory that hardly grows with the steps."""

import sys

import pytest
import torch
from small import grown
from test_networks import make, picture, steps_of
from torch._dynamo.testing import CompileCounterWithBackend

from trailseg.losses import StepLoss
from trailseg.networks.norms import NORMS
from trailseg.networks.recompute import recomputed
from trailseg.networks.stems import STEMS
from trailseg.networks.table import ROWS


def trained(network, recompute):
    """Loss, gradients and buffers after two training steps."""
    if recompute:
        network.save_memory()
    labels = torch.randint(0, 5, (2, *(side // network.scale for side in (32, 48))), generator=torch.manual_seed(2))
    for seed in (1, 3):
        network.zero_grad()
        logits = network(picture(2, 3, 32, 48, seed=seed), steps_of(network), 0 if network.max_steps else 2)
        sums, counts = StepLoss(dice=1, gamma=0.8, recompute=recompute)(logits, labels.byte())
        loss = (sums / counts).sum()
        loss.backward()
    return {
        "loss": loss.detach(),
        **{n: p.grad for n, p in network.named_parameters()},
        **dict(network.named_buffers()),
    }


@pytest.mark.parametrize(
    "options",
    [
        *({"network": name} for name in ROWS),
        *({"stem": stem, "depth": 1, "size": (32, 48)} for stem in STEMS),
        *({"norm": norm, "size": (32, 48)} for norm in NORMS),
        {"network": "gated", "stem": "s8", "core": "dilated", "norm": "step", "depth": 1, "finer": 2},
        {"network": "gated", "stem": "s8", "core": "dilated", "norm": "step", "depth": 1, "finer": 2, "guided": 2},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_gradients_and_statistics_are_the_same_to_the_bit(options):
    plain, spared = (trained(make(**options), recompute) for recompute in (False, True))
    assert plain.keys() == spared.keys()
    for name, value in plain.items():
        assert (value is None) == (spared[name] is None), name
        assert value is None or torch.equal(value, spared[name]), name


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_the_layout_in_memory_changes_no_result(norm, channels_last):
    network = make(norm=norm, size=(32, 48)).to_device(torch.device("cpu"), channels_last=channels_last)
    weight = network.stem[0].weight
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert weight.is_contiguous(memory_format=layout)
    assert network.encode(picture(2, 3, 32, 48)).features.is_contiguous(memory_format=layout) or norm in (
        "layerHW",
        "layerCHW",
    )
    torch.testing.assert_close(
        network(picture(2, 3, 32, 48), 3), make(norm=norm, size=(32, 48))(picture(2, 3, 32, 48), 3)
    )


def test_compiled_parts_give_the_same_and_any_number_of_steps():
    plain, fast = (make("gated", norm="step", core="dilated", depth=0) for _ in range(2))
    fast.compile_parts()
    for steps in (2, 5):
        torch.testing.assert_close(fast(picture(2, 3, 16, 24), steps), plain(picture(2, 3, 16, 24), steps))
    fast.eval(), plain.eval()
    torch.testing.assert_close(fast(picture(2, 3, 16, 24), 3), plain(picture(2, 3, 16, 24), 3))
    assert fast.state_dict().keys() == plain.state_dict().keys()


def test_each_shape_is_compiled_once_and_other_networks_make_no_difference(monkeypatch):
    counter, compile_ = CompileCounterWithBackend("eager"), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile_(self, backend=counter, **how))
    counts = []
    for channels in (8, 12):
        network = make("gated", norm="step", core="dilated", depth=0, channels=channels)
        network.compile_parts()
        for pictures in (3, 3, 2, 3, 4, 2):  # the last batch of an epoch is smaller
            network(picture(pictures, 3, 16, 24), 3)
            counts.append(counter.frame_count)
    assert counts[0] == counts[1] < counts[2] == counts[3] < counts[4] == counts[5]
    assert counts[6:] == [counts[5] + count for count in counts[:6]]


def test_nothing_is_recomputed_where_no_gradient_is_asked_for(monkeypatch):
    network = make()
    network.save_memory()
    monkeypatch.setattr("trailseg.networks.recurrence.recomputed", None)  # would fail if it were called
    monkeypatch.setattr("trailseg.networks.recompute.recomputed", None)
    with torch.no_grad():
        spared = network(picture(1, 3, 16, 24), 3)
    assert torch.equal(spared, make()(picture(1, 3, 16, 24), 3))


def test_what_is_recomputed_is_computed_twice_and_its_parts_are_not_kept():
    calls, kept = [], []

    def square_twice(x):
        calls.append(1)
        return (x**2) ** 2

    x = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = recomputed(torch.nn.Identity(), square_twice, x)
    y.sum().backward()
    assert (len(calls), x.grad.tolist()) == (2, [4, 4, 4])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the memory of a process so")
def test_memory_hardly_grows_with_the_steps():
    """Four times as many steps take at most 1.25 times the memory; without recomputing more than twice."""

    def peak(steps, recompute):
        return grown(
            f"""
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from trailseg.losses import StepLoss
from trailseg.config import NetworkOptions, Size
from trailseg.networks.build import build
options = NetworkOptions(network="iterative-v4", channels=24, depth=1, size=Size(128, 192))
network = build(options, classes=9)
if {recompute}:
    network.save_memory()
images, labels = torch.rand(4, 3, 128, 192), torch.zeros(4, 16, 24, dtype=torch.uint8)
def call():
    sums, counts = StepLoss(dice=1, gamma=1, recompute={recompute})(network(images, {steps}), labels)
    (sums / counts).sum().backward()
"""
        )

    assert peak(16, True) < 1.25 * peak(4, True)
    assert peak(16, False) > 2 * peak(4, False)
