"""Does a second start take seconds, and does memory stay bounded for many pictures?

    python benchmarks/cache.py [pictures=10000] [ways=held,mapped] [json=PATH]

A data set of so many small pictures in CamVid's layout, and one of a tenth, are decoded into a cache of their own and
opened again; then an epoch's batches are fetched, as training does, and all pictures are evaluated with a tiny network.
All this with images and labels memory-mapped, and held in memory for comparison. The first start has a process of its
own, and so has what follows it; each has done the same with a dozen pictures before. Seconds are those of the work
alone, megabytes what the process has grown by at its peak since before it opened the data set.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import script
import torch
from PIL import Image

from trailseg import training
from trailseg.config import DataOptions, NetworkOptions, Size, TrainOptions
from trailseg.data.cache import decoded
from trailseg.data.memory import Memory, batches
from trailseg.data.readers import open_data
from trailseg.data.scenes import scene
from trailseg.evaluation import evaluate
from trailseg.labels import CAMVID
from trailseg.memory_use import apart, forget_peak, resident
from trailseg.networks.build import build
from trailseg.prefetch import prefetch

DISTINCT = 12  # pictures; the others are copies of these
FILES, SIZE = Size(60, 80), Size(48, 64)  # height and width of the files, and of what training sees
BUDGETS = {"held": 1e12, "mapped": 0.0}  # bytes


def draw(root: Path, count: int) -> None:
    """Makes `count` pairs of picture and label, most of them copies of a few."""
    pictures, labels = root / "train", root / "trainannot"
    for folder in (pictures, labels):
        folder.mkdir(parents=True)
    for index in range(count):
        for folder in (pictures, labels):
            file = folder / f"{index:06}.png"
            if index >= DISTINCT:
                shutil.copyfile(folder / f"{index % DISTINCT:06}.png", file)
            elif folder == pictures:
                Image.fromarray(scene(seed=0, index=index, size=FILES)[0]).save(file)
            else:
                ids = np.random.default_rng(index).integers(0, len(CAMVID.classes), (6, 8), np.uint8)
                Image.fromarray(ids.repeat(10, 0).repeat(10, 1)).save(file)
    (root / "val").mkdir()
    (root / "valannot").mkdir()


def start(root: Path, budget: float) -> Memory:
    """What training does before its first epoch."""
    source = open_data(DataOptions(data="camvid", root=str(root)), size=SIZE)
    return decoded(source.split("train"), SIZE, budget=budget)


def fetch_epoch(memory: Memory) -> None:
    """Everything of `Training.train_epoch` but the arithmetic."""
    options = TrainOptions(size=SIZE)
    order = list(batches(len(memory.names), batch=options.batch, seed=0, epoch=1))
    fetching = partial(training.fetch, memory, options, 1)
    depth = training.AHEAD
    for _ in map(fetching, order) if memory.mapped is None else prefetch(fetching, order, depth=depth, workers=depth):
        pass


def evaluate_all(memory: Memory) -> None:
    """As after an epoch, with the smallest network that there is."""
    smallest = NetworkOptions(
        network="single", stem="x8", core="upresunet", channels=4, depth=1, growth=1.0, steps=1, size=SIZE
    )
    network = build(smallest, classes=len(CAMVID.classes))
    classes, device = CAMVID.classes, torch.device("cpu")
    evaluate(network, memory, split="train", steps=1, classes=classes, batch=6, device=device)


FOLLOW: dict[str, Callable[[Memory], None]] = {"an epoch's batches": fetch_epoch, "evaluation": evaluate_all}


def measured(work: Callable[[], Any], before: int) -> tuple[float, float, Any]:
    """Seconds of the work, megabytes above `before` at its peak, and what it returns."""
    forget_peak()
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, (resident("VmHWM") - before) / 1e6, found


def measure(root: Path, few: Path, way: str, works: Sequence[str]) -> list[tuple[float, float]]:
    """Seconds and megabytes of opening `root`, and of these works on what it gave; in a process of its own."""
    follow = [FOLLOW[name] for name in works]
    memory = start(few, BUDGETS[way])
    for work in follow:
        work(memory)
    del memory
    before = resident("VmRSS")
    *figures, memory = measured(partial(start, root, BUDGETS[way]), before)
    return [(figures[0], figures[1]), *(measured(partial(work, memory), before)[:2] for work in follow)]


def rows(root: Path, few: Path, way: str, cache: Path) -> list[dict[str, Any]]:
    """A flat object for each work on the pictures under `root`."""
    environment = {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    found = [
        figures
        for works in ([], list(FOLLOW))
        for figures in apart(measure, root, few, way, works, environment=environment)
    ]
    count = sum(1 for _ in (root / "train").iterdir())
    return [
        {
            "what": what,
            "pictures": count,
            "seconds": round(seconds, 3),
            "megabytes": round(megabytes, 1),
            "held": way == "held",
        }
        for what, (seconds, megabytes) in zip(("first start", "second start", *FOLLOW), found, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Options(script.Options):
    """Options of this script."""

    pictures: int = 10000
    """Pictures of the larger data set."""
    ways: list[str] = field(default_factory=lambda: list(BUDGETS))
    """Ways to keep images and labels: held, mapped."""


def main(options: Options) -> None:
    """Prints seconds and megabytes of each work, for both numbers of pictures and both ways."""
    table: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder / "few", DISTINCT)
        for count in (options.pictures // 10, options.pictures):
            draw(folder / str(count), count)
            for way in options.ways:
                table += rows(folder / str(count), folder / "few", way, folder / f"cache {count} {way}")
    script.show(table)
    script.keep(table, options.json)


if __name__ == "__main__":
    script.run(main, Options)
