"""Does predicting a folder overlap reading, computing and writing, and does its memory stay the same for more pictures?

    python benchmarks/folder.py [pictures=60] [rounds=5] [batch=1] [size=720,960] [json=PATH]

The network of the package answers procedural pictures as `trailseg predict` does, and strictly one after the other.
Both are timed in turn, so that a busy machine slows both; the ratio is the median of the rounds' ratios. Memory is what
the whole work adds at its peak to a process of its own that has done it once with as many pictures as a batch.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import script
from PIL import Image

from trailseg import prediction
from trailseg.benchmark import in_turn
from trailseg.config import PredictOptions, Size
from trailseg.data.scenes import scene
from trailseg.memory_use import apart, grown
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


@dataclass(frozen=True, kw_only=True)
class Options(script.TimedOptions):
    """Options of this script."""

    pictures: int = 60
    """Pictures in the folder."""
    batch: int = 1
    """Pictures at a time."""
    size: Size = Size(720, 960)
    """Height,width in pixels."""


def draw(folder: Path, pictures: int, size: Size) -> Path:
    """Makes so many JPEGs, of twelve scenes over and over; the names say nothing of which."""
    folder.mkdir()
    for index in range(pictures):
        file = folder / f"{index:05}.jpg"
        if index < 12:
            Image.fromarray(scene(seed=0, index=index, size=size)[0]).save(file, quality=92)
        else:
            file.write_bytes((folder / f"{index % 12:05}.jpg").read_bytes())
    return folder


def peak(name: str, pictures: Path, batch: int) -> float:
    """Megabytes that a work adds at its peak; to be measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few"
        few.mkdir()
        for file in find_pictures(pictures)[:batch]:
            (few / file.name).write_bytes(file.read_bytes())
        WORKS[name](few, Path(folder) / "first", batch)
        return (grown(lambda: WORKS[name](pictures, Path(folder) / "out", batch), "cpu") or 0) / 1e6


def into_new_folders(work: Work, pictures: Path, out: Path, batch: int) -> Callable[[], None]:
    """The work, into another folder each time."""
    numbers = count()
    return lambda: work(pictures, out / str(next(numbers)), batch)


def main(options: Options) -> None:
    """Prints seconds and pictures per second of both ways, their ratio, and the memory of N and of 4 N pictures."""
    many, batch = options.pictures, options.batch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, more = (draw(folder / str(n), n, options.size) for n in (many, 4 * many))
        calls = {name: into_new_folders(work, pictures, folder / name, batch) for name, work in WORKS.items()}
        seconds = in_turn(calls, options.rounds)
        memory = {name: [apart(peak, name, given, batch) for given in (pictures, more)] for name in WORKS}
    rows = [
        {
            "way": name,
            "pictures": many,
            "batch": batch,
            "seconds": round(statistics.median(taken), 3),
            "pictures_per_second": round(many / statistics.median(taken), 2),
            "ratio_to_one_after_the_other": script.ratio(taken, seconds["one after the other"]),
            "megabytes": round(memory[name][0], 1),
            "megabytes_with_4_times_the_pictures": round(memory[name][1], 1),
        }
        for name, taken in seconds.items()
    ]
    script.show(rows, f"{many} pictures of {options.size.height} x {options.size.width}, batch {batch}")
    script.keep(rows, options.json)


if __name__ == "__main__":
    script.run(main, Options)
