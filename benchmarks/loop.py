"""Pictures per second of training epochs, and of the same steps on one fixed batch: is the loop the limit?

    python benchmarks/loop.py [rounds=5] [OPTION=VALUE ...]     options are those of `trailseg train`

Both are timed in turn, so that a busy machine slows both; the last line is the median of the rounds' ratios.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from trailseg import training
from trailseg.config import TrainOptions
from trailseg.data.cache import decoded
from trailseg.data.memory import batches, labels_at_scale
from trailseg.data.readers import select
from trailseg.experiment import check
from trailseg.losses import StepLoss
from trailseg.parsing import from_mapping, read_words
from trailseg.runs import Run, build_network


def main(words: list[str]) -> None:
    """Prints pictures per second of each round, and the ratio."""
    rounds = next((int(word.removeprefix("rounds=")) for word in words if word.startswith("rounds=")), 5)
    given = read_words(TrainOptions, [word for word in words if not word.startswith("rounds=")])
    options = from_mapping(TrainOptions, given)
    source, fabric = check(options), training.make_fabric(options.device, options.precision)
    pictures = select(source, options.train_on)
    memory = decoded(pictures, options.size, budget=1e9 * options.memory).on(fabric.device)
    network = build_network(options, classes=len(source.labels.classes)).place(fabric.device)
    wrapped, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=options.lr))
    criterion = StepLoss(dice=options.dice, gamma=options.gamma, lovasz=options.lovasz)
    count = len(memory.names)
    fixed = next(batches(count, batch=options.batch, seed=0, epoch=1))
    fetched = training.fetch(memory, options, 1, fixed)
    images, labels = training.load(fetched, options.crop or options.size, fabric.device)

    def epoch(number: int) -> None:
        training.train_epoch(
            fabric, network, wrapped, optimizer, criterion, None, memory, options, number, Run(Path("nowhere"))
        )

    def steps(number: int) -> None:
        for _ in range(count // options.batch):
            logits = wrapped(images, network.up_to(options.steps), 0)
            sums, counts = criterion(logits, labels_at_scale(labels, network.scale))
            optimizer.zero_grad()
            fabric.backward((sums / counts.clamp(min=1)).sum())
            optimizer.step()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()

    ratios = []
    for number in range(rounds + 1):  # the first warms up
        rates = []
        for work, pictures in ((epoch, count), (steps, count // options.batch * options.batch)):
            started = time.perf_counter()
            work(number + 1)
            rates.append(pictures / (time.perf_counter() - started))
        if number:
            ratios.append(rates[0] / rates[1])
            print(f"epoch {rates[0]:.1f}, fixed batch {rates[1]:.1f} pictures/s: {ratios[-1]:.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} on {fabric.device}")


if __name__ == "__main__":
    main(sys.argv[1:])
