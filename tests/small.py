"""What several tests share: a run that takes a second, what a command left and said, and the memory of a process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trailseg import checkpoints
from trailseg.cli import run
from trailseg.memory_use import HANDS_BACK
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


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    error = capsys.readouterr().err
    assert error.endswith("\n")
    assert error.count("\n") == 1, error
    return error


def grown(code: str) -> int:
    """Bytes by which the memory of a process grows at most in its second `call()`, which the code defines."""
    measure = "\nfrom trailseg.memory_use import grown\ncall()\nprint(grown(call, 'cpu'))"
    environment = os.environ | HANDS_BACK | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code + measure], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
