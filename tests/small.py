"""What several tests start from: a run that takes a second, and the memory of a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from trailseg import checkpoints
from trailseg.benchmark import HANDS_BACK
from trailseg.cli import run
from trailseg.runs import Run


def train(folder: Path, network: str, **options: object) -> Path:
    """A run of one epoch: its steps differ, because it has hardly been trained."""
    given = {
        "network": network, "stem": "x2", "channels": 8, "depth": 1, "size": "32,48", "pictures": 4, "lr": 0.01,
        "batch": 2, "epochs": 1, "augment": "none", "device": "cpu", "out": folder,
    } | options  # fmt: skip
    assert run(["train", *(f"{name}={value}" for name, value in given.items())]) == 0
    return folder


def reconfigured(folder: Path, change: Callable[[str], str]) -> Path:
    """The run as if it had been trained with the changed text of its config.yaml."""
    file = folder / "config.yaml"
    file.write_text(change(file.read_text()))
    for path in folder.glob("checkpoints/*.safetensors"):
        tensors, facts = checkpoints.read(path)
        checkpoints.write(path, tensors, facts | {"config": Run.open(folder)._bound()})
    return folder


def grown(code: str) -> int:
    """Bytes by which the memory of a process grows at most in its second `call()`, which the code defines."""
    measure = "\nfrom trailseg.benchmark import grown\ncall()\nprint(grown(call, 'cpu'))"
    environment = os.environ | HANDS_BACK | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code + measure], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
