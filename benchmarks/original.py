"""What does the original study's network cost beside the same one here, and beside one with a strided stem?

    python benchmarks/original.py [network=iterative-v6] [rounds=5] [size=384,768] [batch=2] [device=cpu] [json=PATH]

The original is written out in tests/longhand.py and has its own parts: the 5 x 5 stem, norm=layerHW, activations before
pools and out of place, the logits of all steps kept; 60 channels, four halvings, three steps, float32, as everything
here where bf16 is not named. Each round computes a training step (loss, gradients, Adam) and an answer of every subject
in turn, so that a busy machine slows all; ratios are medians of the rounds'. Memory is what a call adds at its peak to
a process of its own. Height and width must be divisible by 128.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import script
import torch
from torch import nn

from trailseg.benchmark import in_turn
from trailseg.config import NetworkOptions, Size
from trailseg.device import resolve
from trailseg.losses import StepLoss
from trailseg.memory_use import apart, grown
from trailseg.networks.build import build

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import longhand  # type: ignore[import-not-found]

SUBJECTS: dict[str, dict[str, Any]] = {
    "original": {"stem": "x8", "norm": "layerHW", "channels_last": False},
    "here": {"stem": "x8", "norm": "group"},
    "here, recompute=true": {"stem": "x8", "norm": "group", "recompute": True},
    "here, norm=layerHW": {"stem": "x8", "norm": "layerHW", "channels_last": False},
    "here, stem=s8": {"stem": "s8", "norm": "group"},
    "here, stem=s8 precision=bf16": {"stem": "s8", "norm": "group", "precision": "bf16"},
}
ACCELERATED = {
    "here, precision=bf16 compile=true": {"stem": "x8", "norm": "group", "precision": "bf16", "compile": True}
}
"""On an accelerator alone: elsewhere compiling takes minutes and gains nothing (benchmarks/choices.py)."""
CLASSES = 9


@dataclass(frozen=True, kw_only=True)
class Options(script.NetworkOptions):
    """Options of this script."""

    size: Size = Size(384, 768)
    """Height,width in pixels, each divisible by 128."""
    batch: int = 2
    """Pictures at a time."""


def make(name: str, options: Options) -> dict[str, Callable[[], object]]:
    """A training step and an answer of the subject of that name."""
    given, (height, width) = (SUBJECTS | ACCELERATED)[name], options.size
    compute, row = resolve(options.device, given.get("precision", "32")), options.network
    torch.manual_seed(0)
    network = build(
        NetworkOptions(network=row, stem=given["stem"], norm=given["norm"], size=options.size), classes=CLASSES
    ).to_device(compute.device, channels_last=given.get("channels_last", True))  # fmt: skip
    forward: Callable[[torch.Tensor], torch.Tensor] = lambda images: network(images, 3)  # noqa: E731
    if name == "original":
        layers = list(network.stem.children())
        pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        for place in pools:  # which follow the activations
            layers[place : place + 2] = layers[place + 1], layers[place]
        network.stem = type(network.stem)(*layers)
        for module in network.modules():
            if isinstance(module, nn.LeakyReLU):
                module.inplace = False
        written_out = getattr(longhand, row.replace("-", "_"))
        forward = lambda images: torch.stack(written_out(network, images), 1)  # noqa: E731
    if given.get("recompute"):
        network.save_memory()
    if given.get("compile"):
        network.compile_parts()
    adam, criterion = torch.optim.Adam(network.parameters()), StepLoss(dice=1, gamma=1)
    images = torch.rand(options.batch, 3, height, width, device=compute.device)
    labels = torch.randint(0, CLASSES, (len(images), height // 8, width // 8), device=compute.device).byte()

    def finish() -> None:
        if compute.device.type == "cuda":
            torch.cuda.synchronize()

    def train() -> None:
        with compute.autocast():
            logits = forward(images)
        sums, counts = criterion(logits, labels)
        adam.zero_grad()
        (sums / counts).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        finish()

    @torch.inference_mode()
    def answer() -> None:
        with compute.autocast():
            forward(images)
        finish()

    return {"training": train, "answer": answer}


def peak(name: str, what: str, options: Options) -> float:
    """Megabytes at the peak of a call; to be measured in a process of its own."""
    call = make(name, options)[what]
    call()  # loads all code, and makes Adam's moments
    return (grown(call, options.device) or 0) / 1e6


def main(options: Options) -> None:
    """Prints each subject's milliseconds and megabytes, and their ratios to those of the original."""
    subjects = list(SUBJECTS | (ACCELERATED if options.device == "cuda" else {}))
    rows: list[dict[str, Any]] = []
    for what in ("training", "answer"):
        seconds = in_turn({name: make(name, options)[what] for name in subjects}, options.rounds)
        megabytes = {name: apart(peak, name, what, options) for name in subjects}
        rows += [
            {
                "what": what,
                "network": name,
                "milliseconds": round(1000 * statistics.median(taken), 1),
                "megabytes": round(megabytes[name], 1),
                "time_ratio": script.ratio(taken, seconds["original"]),
                "memory_ratio": round(megabytes[name] / megabytes["original"], 3),
            }
            for name, taken in seconds.items()
        ]
    script.show(rows, options.title)
    script.keep(rows, options.json)


if __name__ == "__main__":
    script.run(main, Options)
