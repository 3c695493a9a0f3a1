"""A step of training never waits for its device: nothing is read back, and what is sent to it is not waited for.

The device is PyTorch's "meta", which computes shapes alone and raises where a value is asked for.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from trailseg import training
from trailseg.config import Size, TrainOptions
from trailseg.data.memory import Memory
from trailseg.runs import Run, build_network

META = torch.device("meta")
FABRIC = SimpleNamespace(
    device=META, global_rank=0, world_size=1, is_global_zero=False, autocast=nullcontext,
    setup=lambda *both: both, backward=lambda loss: loss.backward(), all_reduce=lambda values, **_: values,
)  # fmt: skip
PLAIN = TrainOptions(network="gated", norm="step", channels=8, depth=1, finer=2, steps=2, size=Size(64, 64), batch=3,
    optimizer="muon", ema=0.9, balance=1.1)  # fmt: skip
GUIDED = {"guided": 2, "target": "area", "lovasz": 1.0, "augment": "classmix", "standardize": "picture"}


class Sent(TorchDispatchMode):
    """Whether each copy from one device to the other is one that nobody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        devices = {one.device.type for one in args if isinstance(one, Tensor)}
        devices |= {torch.device(kwargs["device"]).type} if kwargs.get("device") is not None else set()
        if len(devices) > 1 and function._schema.name in ("aten::_to_copy", "aten::copy_"):
            self.waited_for.append(not (kwargs.get("non_blocking") or args[2:3] == (True,)))
        return function(*args, **kwargs)


@pytest.mark.parametrize("options", [{}, {"augment": "none"}, GUIDED, GUIDED | {"augment": "robust"}])
def test_nothing_is_waited_for(tmp_path, monkeypatch, options):
    chosen = TrainOptions(**vars(PLAIN) | options)
    images, labels = torch.zeros(7, 3, *chosen.size, dtype=torch.uint8), torch.zeros(7, *chosen.size, dtype=torch.uint8)
    trained = training.Training(
        fabric=FABRIC, run=Run(tmp_path), network=build_network(chosen, classes=4), options=chosen,
        memory=Memory([f"{n}" for n in range(7)], images, labels, []), classes=4, teachers=None,
        validate=lambda network: {}, report=lambda record: None,
    )  # fmt: skip
    told = []
    monkeypatch.setattr(
        training, "Underway", lambda numbers: told.append(numbers) or SimpleNamespace(arrived=lambda: [0.5, 1.0])
    )
    with Sent() as sent:
        trained.train_epoch(1)
    assert [numbers.shape for numbers in told] == [(2,)] * 3
    assert sent.waited_for
    assert not any(sent.waited_for)


def test_numbers_arrive():
    assert training.Underway(torch.tensor([1.5, 2.0])).arrived() == [1.5, 2.0]


def test_new_tensors_are_not_filled_to_make_training_repeatable():
    training.make_deterministic()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.empty(3)
    assert not [event for event in seen.key_averages() if event.key == "aten::fill_"]
