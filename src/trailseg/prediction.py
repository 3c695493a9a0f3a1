"""Class ids and overlays on disk, for a picture, a folder of pictures or a video."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trailseg.ahead import ahead
from trailseg.config import PredictOptions
from trailseg.errors import FileError, OptionError
from trailseg.predictor import THREADS, Answer, Predictor, find_pictures
from trailseg.video import VIDEO_SUFFIXES, VideoReader, VideoWriter
from trailseg.writing import png, write_whole


class Written(NamedTuple):
    """A file, and the steps that its answer took (for a video the mean over its frames)."""

    path: Path
    steps: float


def predict(options: PredictOptions, out: Path) -> Iterator[Written | FileError]:
    """Writes NAME.png (8-bit class ids) and NAME_overlay.png of each picture, or NAME_overlay.mp4 of a video, to `out`.

    Yields each NAME.png, or for a picture that cannot be read what is wrong with it; of a video that breaks off, what
    was answered is kept. FileError, before anything is written, where a file would be overwritten or two pictures share
    a name.
    """
    source = Path(options.pictures)
    video = source.suffix.lower() in VIDEO_SUFFIXES and source.is_file()
    if options.warm_start and not video:
        raise OptionError("warm_start=true: only the frames of a video follow each other; leave it out for pictures")
    endings = ["_overlay.mp4"] if video else [".png", "_overlay.png"]
    found = find_pictures(source)
    targets: dict[Path, Path] = {}
    for picture in found:
        for target in (out / f"{picture.stem}{ending}" for ending in endings):
            if target in targets:
                raise FileError(picture, f"would be written to {target}, as would {targets[target]}", "rename one")
            if target.exists():
                raise FileError(target, "is there already", "say another out=, or remove it")
            targets[target] = picture
    predictor = Predictor(
        options.model,
        device=options.device,
        precision=options.precision,
        checkpoint=options.checkpoint,
        size=options.size,
    )
    asked: dict[str, Any] = {"steps": options.steps, "tolerance": options.tolerance, "most_steps": options.most_steps}
    predictor.limits(**asked)
    if video:
        yield from _predict_video(predictor, source, out, {**asked, "warm_start": options.warm_start})
        return

    def write(told: tuple[Path, Answer | FileError]) -> Written | FileError:
        picture, answer = told
        if isinstance(answer, FileError):
            return answer
        write_whole(out / f"{picture.stem}_overlay.png", png(answer.overlay()))
        return Written(write_whole(out / f"{picture.stem}.png", png(answer.ids)), answer.steps)

    answers = predictor.folder(source, batch=options.batch, trail=False, **asked)
    yield from ahead(write, answers, depth=max(options.batch, THREADS), workers=THREADS)


def _predict_video(
    predictor: Predictor, source: Path, out: Path, asked: dict[str, Any]
) -> Iterator[Written | FileError]:
    """Writes NAME_overlay.mp4 and yields it; of a video that breaks off, the frames before the break, and the fault."""
    target, steps = out / f"{source.stem}_overlay.mp4", list[int]()
    reader = VideoReader(source)
    fault = None
    try:
        with VideoWriter(target, reader.rate) as writer:
            for answer in predictor.video(reader, trail=False, **asked):
                writer.write(answer.overlay())
                steps.append(answer.steps)
    except FileError as error:
        if not steps or error.path != source:
            raise
        fault = error
    yield Written(target, sum(steps) / len(steps))
    if fault:
        yield fault
