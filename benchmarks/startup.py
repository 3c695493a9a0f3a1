"""How long does a command take to begin, beside `import torch`?

    python benchmarks/startup.py [rounds=5] [json=PATH]

Each round starts every command once, in turn, each as a process of its own, so that a busy machine slows all; the table
holds medians. Where a command computes, the time ends as it enters the network's `answer`, everything imported and the
picture read; else as the process ends.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from trailseg.predictor import WEIGHTS
from trailseg.writing import write_whole

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


def main(words: list[str]) -> None:
    """Prints the median seconds of each command, and their ratio to the first."""
    options = dict(word.split("=", 1) for word in words)
    with tempfile.TemporaryDirectory() as folder:
        picture, out = Path(folder) / "picture.png", Path(folder) / "answers"
        Image.fromarray(np.zeros((720, 960, 3), np.uint8)).save(picture)
        run, file = WEIGHTS / "camvid", WEIGHTS / "camvid" / "model.onnx"
        commands = {
            "import torch": (0, ["-c", "import torch"]),
            "trailseg --help": (0, ["-m", "trailseg", "--help"]),
            "trailseg predict, PyTorch": (42, ["-c", UNTIL_ANSWER, "predict", run, picture, f"out={out}"]),
            "trailseg predict, ONNX Runtime": (42, ["-c", UNTIL_ANSWER, "predict", file, picture, f"out={out}"]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(int(options.get("rounds", 5)) + 1):
            for name, (code, given) in commands.items():
                started = time.perf_counter()
                done = subprocess.run([sys.executable, *map(str, given)], capture_output=True, text=True)
                taken = time.perf_counter() - started
                assert done.returncode == code, done.stderr
                if number:  # the first round fills the disk's cache
                    seconds[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows = [
        {
            "command": name,
            "seconds": round(taken, 3),
            "ratio_to_import_torch": round(taken / medians["import torch"], 3),
        }
        for name, taken in medians.items()
    ]
    for row in rows:
        print(f"{row['command']:<32}{row['seconds']:6.2f} s {row['ratio_to_import_torch']:6.2f} x import torch")
    if "json" in options:
        write_whole(Path(options["json"]), json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
