"""A run that takes a second: what tests of trained networks start from."""

from pathlib import Path

from trailseg.cli import run


def train(folder: Path, network: str, **options: object) -> Path:
    """A run of one epoch: its steps differ, because it has hardly been trained."""
    given = {
        "network": network, "stem": "x2", "channels": 8, "depth": 1, "size": "32,48", "pictures": 4, "lr": 0.01,
        "batch": 2, "epochs": 1, "augment": "none", "device": "cpu", "out": folder,
    } | options  # fmt: skip
    assert run(["train", *(f"{name}={value}" for name, value in given.items())]) == 0
    return folder
