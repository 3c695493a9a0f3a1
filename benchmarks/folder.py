"""Does predicting a folder overlap reading, computing and writing, and does its memory stay the same for more pictures?

    python benchmarks/folder.py [pictures=60] [rounds=5] [batch=1] [size=720,960] [json=PATH]

The network of the package answers procedural pictures as `trailseg predict` does, and strictly one after the other.
Both are timed in turn, so that a busy machine slows both; the ratio is the median of the rounds' ratios. Memory is what
the whole work adds at its peak to a process of its own that has done it once with as many pictures as a batch.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from trailseg import prediction
from trailseg.benchmark import HANDS_BACK, grown
from trailseg.config import PredictOptions, Size
from trailseg.data.scenes import scene
from trailseg.predictor import Predictor, find_pictures
from trailseg.writing import png, write_whole

Work = Callable[[Path, Path, int], None]


def overlapped(pictures: Path, out: Path, batch: int) -> None:
    """What `trailseg predict` does."""
    for written in prediction.predict(PredictOptions(pictures=str(pictures), batch=batch), out):
        assert isinstance(written, prediction.Written)


def one_after_the_other(pictures: Path, out: Path, batch: int) -> None:
    """The same files from one loop."""
    predictor, found = Predictor(), find_pictures(pictures)
    for first in range(0, len(found), batch):
        files = found[first : first + batch]
        for file, answer in zip(files, predictor.batch(files, trail=False), strict=True):
            write_whole(out / f"{file.stem}_overlay.png", png(answer.overlay()))
            write_whole(out / f"{file.stem}.png", png(answer.ids))


WORKS: dict[str, Work] = {"one after the other": one_after_the_other, "overlapped": overlapped}


def draw(folder: Path, count: int, size: Size) -> Path:
    """Makes `count` JPEGs, of twelve scenes over and over; the names say nothing of which."""
    folder.mkdir()
    for index in range(count):
        file = folder / f"{index:05}.jpg"
        if index < 12:
            Image.fromarray(scene(seed=0, index=index, size=size)[0]).save(file, quality=92)
        else:
            file.write_bytes((folder / f"{index % 12:05}.jpg").read_bytes())
    return folder


def peak(name: str, pictures: Path, batch: int) -> float:
    """Megabytes that a work adds at its peak; measured in a process of its own."""
    words = [sys.executable, __file__, "grown", name, str(pictures), str(batch)]
    done = subprocess.run(words, env=os.environ | HANDS_BACK, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1e6


def print_grown(name: str, pictures: Path, batch: int) -> None:
    """The process of its own: prints bytes."""
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few"
        few.mkdir()
        for file in find_pictures(pictures)[:batch]:
            (few / file.name).write_bytes(file.read_bytes())
        WORKS[name](few, Path(folder) / "first", batch)
        print(grown(lambda: WORKS[name](pictures, Path(folder) / "out", batch), "cpu"))


def main(words: list[str]) -> None:
    """Prints seconds and pictures per second of both ways, their ratio, and the memory of N and of 4 N pictures."""
    options = dict(word.split("=", 1) for word in words)
    count, rounds, batch = (int(options.get(k, v)) for k, v in (("pictures", 60), ("rounds", 5), ("batch", 1)))
    size = Size(*map(int, options.get("size", "720,960").split(",")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, more = draw(folder / "pictures", count, size), draw(folder / "more", 4 * count, size)
        seconds: dict[str, list[float]] = {name: [] for name in WORKS}
        for number in range(rounds + 1):
            for name, work in WORKS.items():
                started = time.perf_counter()
                work(pictures, folder / f"{name} {number}", batch)
                if number:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
        memory = {name: [peak(name, given, batch) for given in (pictures, more)] for name in WORKS}
    plain = seconds["one after the other"]
    rows = [
        {
            "way": name,
            "pictures": count,
            "batch": batch,
            "seconds": round(statistics.median(taken), 3),
            "pictures_per_second": round(count / statistics.median(taken), 2),
            "ratio_to_one_after_the_other": round(
                statistics.median(one / other for one, other in zip(taken, plain, strict=True)), 3
            ),
            "megabytes": round(memory[name][0], 1),
            "megabytes_with_4_times_the_pictures": round(memory[name][1], 1),
        }
        for name, taken in seconds.items()
    ]
    print(f"{count} pictures of {size.height} x {size.width}, batch {batch}, medians of {rounds} rounds\n")
    print(f"{'':<20}{'seconds':>9}{'pictures/s':>12}{'time ratio':>12}{'MB':>8}{f'MB of {4 * count}':>12}")
    for way, _, _, *figures in (row.values() for row in rows):
        print(f"{way:<20}{figures[0]:9.2f}{figures[1]:12.2f}{figures[2]:12.2f}{figures[3]:8.1f}{figures[4]:12.1f}")
    if "json" in options:
        write_whole(Path(options["json"]), json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["grown"]:
        print_grown(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(sys.argv[1:])
