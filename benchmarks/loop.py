"""Is the loop the limit? Pictures per second of training epochs, and of the same steps on one fixed batch.

    python benchmarks/loop.py [rounds=5] [json=PATH] [OPTION=VALUE ...]     options are those of `trailseg train`

Both are timed in turn, so that a busy machine slows both, held in memory and memory-mapped from the cache; the ratio of
times is the median of the rounds'. An epoch reads, draws and augments every picture; a fixed batch only computes.
"""

import itertools
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import script
import torch

from trailseg import training
from trailseg.benchmark import in_turn
from trailseg.config import TrainOptions
from trailseg.data.cache import decoded
from trailseg.data.memory import batches
from trailseg.data.readers import select
from trailseg.experiment import check
from trailseg.runs import Position, Run, build_network
from trailseg.training import Training


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions, script.TimedOptions):
    """Options of `trailseg train` and of this script."""


def ratios(options: Options) -> list[tuple[float, float]]:
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
            teachers=None,
            validate=lambda network: {},
            report=lambda record: None,
        )
    count = len(memory.names)
    fixed = next(batches(count, batch=options.batch, seed=0, epoch=1))
    fetched = training.fetch(memory, options, 1, fixed)
    images, labels = training.load(fetched, options.crop or options.size, fabric.device)

    numbers = {"epoch": itertools.count(1), "steps": itertools.count(1)}

    def epoch() -> None:
        number = next(numbers["epoch"])
        trained.at = Position(number - 1)
        trained.train_epoch(number)

    def steps() -> None:
        number = next(numbers["steps"])
        for index in range(count // options.batch):
            trained.compute_gradients(images, labels, epoch=number, number=index)
            trained.update_weights(step=index)
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    seconds = in_turn({"epoch": epoch, "steps": steps}, options.rounds)
    fixed_count = count // options.batch * options.batch
    return [(one / count, other / fixed_count) for one, other in zip(seconds["epoch"], seconds["steps"], strict=True)]


def main(options: Options) -> None:
    """Prints pictures per second of both, and the ratio of their times, held in memory and mapped."""
    rows = []
    for where, memory in (("held in memory", options.memory), ("memory-mapped", 0.0)):
        epochs, steps = zip(*ratios(replace(options, memory=memory)), strict=True)
        rows.append(
            {
                "pictures": where,
                "network": options.network,
                "augment": options.augment,
                "epoch_pictures_per_second": round(1 / statistics.median(epochs), 1),
                "fixed_batch_pictures_per_second": round(1 / statistics.median(steps), 1),
                "time_ratio": script.ratio(epochs, steps),
            }
        )
    script.show(rows)
    script.keep(rows, options.json)


if __name__ == "__main__":
    script.run(main, Options)
