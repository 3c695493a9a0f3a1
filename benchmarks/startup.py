"""How long does a command take to begin, beside `import torch`?

    python benchmarks/startup.py [rounds=5] [json=PATH]

Each round starts every command once, in turn, each as a process of its own, so that a busy machine slows all; the table
holds medians. Where a command computes, the time ends as it enters the network's `answer`, everything imported and the
picture read; else as the process ends.
"""

import statistics
import subprocess
import sys
import tempfile
from functools import partial

import numpy as np
import script
from PIL import Image

from trailseg.benchmark import in_turn
from trailseg.predictor import WEIGHTS

UNTIL_ANSWER = """
import os, sys
from trailseg import predictor
class Begun(predictor.Predictor):
    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        self._model.answer = lambda *given, **options: os._exit(42)
predictor.Predictor = Begun
from trailseg.cli import run
run(sys.argv[1:])
"""
"""A `trailseg` that ends with code 42 where the network would begin to compute."""


def start(words: list[str], code: int) -> None:
    """One start of a command, which must end with that code."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr


def main(options: script.TimedOptions) -> None:
    """Prints the median seconds of each command, and their ratio to the first."""
    with tempfile.TemporaryDirectory() as folder:
        picture, out = f"{folder}/picture.png", f"{folder}/answers"
        Image.fromarray(np.zeros((720, 960, 3), np.uint8)).save(picture)
        run, file = str(WEIGHTS / "camvid"), str(WEIGHTS / "camvid" / "model.onnx")
        seconds = in_turn(
            {
                "import torch": partial(start, ["-c", "import torch"], 0),
                "trailseg --help": partial(start, ["-m", "trailseg", "--help"], 0),
                "trailseg predict, PyTorch": partial(
                    start, ["-c", UNTIL_ANSWER, "predict", run, picture, f"out={out}"], 42
                ),
                "trailseg predict, ONNX Runtime": partial(
                    start, ["-c", UNTIL_ANSWER, "predict", file, picture, f"out={out}"], 42
                ),
            },
            options.rounds,
        )
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows = [
        {
            "command": name,
            "seconds": round(taken, 3),
            "ratio_to_import_torch": round(taken / medians["import torch"], 3),
        }
        for name, taken in medians.items()
    ]
    script.show(rows)
    script.keep(rows, options.json)


if __name__ == "__main__":
    script.run(main, script.TimedOptions)
