"""Is the loop the limit? Pictures per second of training epochs, and of the same steps on one fixed batch.

    python benchmarks/loop.py [rounds=5] [json=PATH] [OPTION=VALUE ...]     options are those of `trailseg train`

Both are timed in turn, so that a busy machine slows both, held in memory and memory-mapped from the cache; the ratio of
times is the median of the rounds'. An epoch reads, draws and augments every picture; a fixed batch only computes.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from trailseg import training
from trailseg.config import TrainOptions
from trailseg.data.cache import decoded
from trailseg.data.memory import batches
from trailseg.data.readers import select
from trailseg.experiment import check
from trailseg.parsing import from_mapping, read_words
from trailseg.runs import Position, Run, build_network
from trailseg.training import Training
from trailseg.writing import write_whole


def ratios(options: TrainOptions, rounds: int) -> list[tuple[float, float]]:
    """Seconds per picture of an epoch and of a fixed batch, in each round."""
    source, fabric = check(options), training.make_fabric(options.device, options.precision)
    pictures = select(source, options.train_on)
    memory = decoded(pictures, options.size, budget=1e9 * options.memory).on(fabric.device)
    network = build_network(options, classes=len(source.labels.classes))
    with TemporaryDirectory() as folder:
        trained = Training(
            fabric=fabric,
            run=Run(Path(folder)),
            network=network,
            options=options,
            memory=memory,
            classes=len(source.labels.classes),
            validate=lambda network: {},
            report=lambda record: None,
        )
    count = len(memory.names)
    fixed = next(batches(count, batch=options.batch, seed=0, epoch=1))
    fetched = training.fetch(memory, options, 1, fixed)
    images, labels = training.load(fetched, options.crop or options.size, fabric.device)

    def epoch(number: int) -> int:
        trained.at = Position(number - 1)
        trained.train_epoch(number)
        return count

    def steps(number: int) -> int:
        for _ in range(count // options.batch):
            logits = trained.wrapped_network(images, network.up_to(options.steps), 0)
            sums, counts = trained.criterion(logits, trained.target(labels))
            trained.wrapped_optimizer.zero_grad()
            fabric.backward((sums / counts.clamp(min=1)).sum())
            trained.wrapped_optimizer.step()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        return count // options.batch * options.batch

    taken = []
    for number in range(rounds + 1):  # the first warms up
        seconds = []
        for work in (epoch, steps):
            started = time.perf_counter()
            done = work(number + 1)
            seconds.append((time.perf_counter() - started) / done)
        if number:
            taken.append((seconds[0], seconds[1]))
    return taken


def main(words: list[str]) -> None:
    """Prints pictures per second of both, and the ratio of their times, held in memory and mapped."""
    own = dict(word.split("=", 1) for word in words if word.startswith(("rounds=", "json=")))
    given = read_words(TrainOptions, [word for word in words if not word.startswith(("rounds=", "json="))])
    options = from_mapping(TrainOptions, given)
    rows = []
    for where, memory in (("held in memory", options.memory), ("memory-mapped", 0.0)):
        taken = ratios(replace(options, memory=memory), int(own.get("rounds", 5)))
        epoch, fixed = (statistics.median(seconds) for seconds in zip(*taken, strict=True))
        row = {
            "pictures": where,
            "network": options.network,
            "augment": options.augment,
            "epoch_pictures_per_second": round(1 / epoch, 1),
            "fixed_batch_pictures_per_second": round(1 / fixed, 1),
            "time_ratio": round(statistics.median(one / other for one, other in taken), 3),
        }
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        rows.append(row)
    if "json" in own:
        write_whole(Path(own["json"]), json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
