"""What do the options of layout, precision, compilation and recomputing gain on this machine?

    python benchmarks/choices.py [network=iterative-v6] [size=192,256] [batch=4] [rounds=5] [device=cpu] [json=PATH]

Each choice is the default with one option changed; all take turns, round by round, so that a busy machine slows all.
Ratios are to the default's median. Memory is that of a training step, at its peak, in a process of its own.
"""

import statistics
from typing import Any

import script

from trailseg.benchmark import memory, open_subject, time_rounds, time_training
from trailseg.config import BenchmarkOptions
from trailseg.memory_use import apart

CHOICES: dict[str, dict[str, Any]] = {
    "default": {},
    "channels_last=false": {"channels_last": False},
    "precision=bf16": {"precision": "bf16"},
    "compile=true": {"compile": True},
    "recompute=true": {"recompute": True},
}


def main(options: script.NetworkOptions) -> None:
    """Prints milliseconds of an answer and of a training step, megabytes of the latter, and ratios to the default."""
    rows = []
    for stem in ("s8", "x8"):
        common: dict[str, Any] = {"stem": stem, "size": options.size, "batch": options.batch, "device": options.device}
        given = {name: BenchmarkOptions(**common, **choice) for name, choice in CHOICES.items()}
        subjects = [open_subject(options.network, one) for one in given.values()]
        answers = [statistics.median(last for _, last in seconds) for seconds in time_rounds(subjects, options.rounds)]
        training = [statistics.median(seconds) for seconds in time_training(subjects, options.rounds)]
        used = [apart(memory, options.network, one)[1] or 0 for one in given.values()]
        for name, *figures in zip(given, answers, training, used, strict=True):
            row: dict[str, Any] = {"stem": stem, "choice": name}
            units = (("answer_ms", 1000, answers[0]), ("training_ms", 1000, training[0]), ("megabytes", 1e-6, used[0]))
            for value, (unit, factor, plain) in zip(figures, units, strict=True):
                row |= {unit: round(factor * value, 1), f"{unit.removesuffix('_ms')}_ratio": round(value / plain, 3)}
            rows.append(row)
    script.show(rows, options.title)
    script.keep(rows, options.json)


if __name__ == "__main__":
    script.run(main, script.NetworkOptions)
