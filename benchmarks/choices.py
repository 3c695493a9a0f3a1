"""What do the options of layout, precision, compilation and recomputing gain on this machine?

    python benchmarks/choices.py [network=iterative-v6] [size=192,256] [batch=4] [rounds=5] [device=cpu] [json=PATH]

Each choice is the default with one option changed; all take turns, round by round, so that a busy machine slows all.
Ratios are to the default's median. Memory is that of a training step, at its peak, in a process of its own.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from trailseg.benchmark import memory, open_subject, time_rounds, time_training
from trailseg.config import BenchmarkOptions, Size
from trailseg.writing import write_whole

CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "channels_last=false": {"channels_last": False},
    "precision=bf16": {"precision": "bf16"},
    "compile=true": {"compile": True},
    "recompute=true": {"recompute": True},
}
DEFAULTS = {"network": "iterative-v6", "size": "192,256", "batch": "4", "rounds": "5", "device": "cpu", "json": ""}


def main(words: list[str]) -> None:
    """Prints milliseconds of an answer and of a training step, megabytes of the latter, and ratios to the default."""
    options = DEFAULTS | dict(word.split("=", 1) for word in words)
    size, rounds = Size(*map(int, options["size"].split(","))), int(options["rounds"])
    rows = []
    for stem in ("s8", "x8"):
        common = {"stem": stem, "size": size, "batch": int(options["batch"]), "device": options["device"]}
        given = {name: BenchmarkOptions(**common, **choice) for name, choice in CHOICES.items()}
        subjects = [open_subject(options["network"], one) for one in given.values()]
        answers = [statistics.median(last for _, last in seconds) for seconds in time_rounds(subjects, rounds)]
        training = [statistics.median(seconds) for seconds in time_training(subjects, rounds)]
        used = [memory(options["network"], one)[1] or 0 for one in given.values()]
        for name, *figures in zip(given, answers, training, used, strict=True):
            row: dict[str, Any] = {"stem": stem, "choice": name}
            units = (("answer_ms", 1000, answers[0]), ("training_ms", 1000, training[0]), ("megabytes", 1e-6, used[0]))
            for value, (unit, factor, plain) in zip(figures, units, strict=True):
                row |= {unit: round(factor * value, 1), f"{unit.removesuffix('_ms')}_ratio": round(value / plain, 3)}
            rows.append(row)
    print(f"{options['network']}, {options['size']}, batch {options['batch']}, {options['device']}\n")
    print(
        f"{'stem':<6}{'choice':<22}{'answer, ms':>12}{'ratio':>8}{'training, ms':>14}{'ratio':>8}{'MB':>8}{'ratio':>8}"
    )
    for stem, choice, *figures in (row.values() for row in rows):
        print(
            f"{stem:<6}{choice:<22}" + "".join(f"{f:{w}}" for f, w in zip(figures, (12, 8, 14, 8, 8, 8), strict=True))
        )
    if options["json"]:
        write_whole(Path(options["json"]), json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
