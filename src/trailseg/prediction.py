"""Class ids and overlays on disk, for a picture, a folder of pictures or a video."""

import json
import os
from collections.abc import Iterator
from errno import EILSEQ, EINVAL, EISDIR, ENAMETOOLONG
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from trailseg.config import PredictOptions
from trailseg.errors import FileError, OptionError
from trailseg.predictor import THREADS, Answer, Predictor, find_pictures
from trailseg.prefetch import prefetch
from trailseg.video import VIDEO_SUFFIXES, VideoReader, VideoWriter
from trailseg.writing import png, sweep, write_whole

QUESTION = "predict.json"
"""Of a folder of answers: what they were asked with, written before the first of them."""


class Written(NamedTuple):
    """A file, and the steps that its answer took (for a video the mean over its frames)."""

    path: Path
    steps: float


class Kept(NamedTuple):
    """How many pictures were answered already, and left out."""

    pictures: int


Told = Written | Kept | FileError
"""What `predict` says of a picture, or of those that it left out."""


def predict(options: PredictOptions, out: Path) -> Iterator[Told]:
    """Writes NAME_overlay.png and then NAME.png (8-bit class ids) of each picture, or NAME_overlay.mp4 of a video, to
    `out`; of each file either nothing is there or all.

    Yields each NAME.png, or for a picture that cannot be read, or written under its name, what is wrong with it; of a
    video that breaks off, what was answered is kept. Where `out` holds answers to the same question, it goes on: a
    picture that is not newer than its NAME.png, in content or name, is left out, and counted in the last that is
    yielded. FileError, before anything is written, where `out` holds answers to another question or of another folder's
    pictures, a file of another origin would be overwritten or two pictures share a name; later where there is no room.
    """
    source = Path(options.pictures)
    video = source.suffix.lower() in VIDEO_SUFFIXES and source.is_file()
    if options.warm_start and not video:
        raise OptionError("warm_start=true: only the frames of a video follow each other; leave it out for pictures")
    found = find_pictures(source)
    _check_targets(source, found, out, video)
    predictor = Predictor(
        options.model,
        device=options.device,
        precision=options.precision,
        checkpoint=options.checkpoint,
        size=options.size,
    )
    asked: dict[str, Any] = {"steps": options.steps, "tolerance": options.tolerance, "most_steps": options.most_steps}
    steps, tolerance = predictor.limits(**asked)
    if video:
        sweep(out)
        yield from _predict_video(predictor, source, out, {**asked, "warm_start": options.warm_start})
        return
    question = {
        "pictures": os.path.realpath(source if source.is_dir() else source.parent),
        "network": predictor.facts.name,
        "weights": predictor.fingerprint,
        "size": list(predictor.size),
        "precision": options.precision,
        "steps": steps,
        "tolerance": tolerance,
    }
    _check_question(out, question)
    sweep(out)
    left = [picture for picture in found if not _answered(picture, out / f"{picture.stem}.png")]

    def begun() -> Iterator[tuple[Path, Answer | FileError]]:
        for picture, answer in predictor.files(left, batch=options.batch, trail=False, **asked):
            if isinstance(answer, Answer) and not (out / QUESTION).exists():
                write_whole(out / QUESTION, json.dumps(question, indent=1) + "\n")
            yield picture, answer

    def write(told: tuple[Path, Answer | FileError]) -> Written | FileError:
        picture, answer = told
        if isinstance(answer, FileError):
            return answer
        try:
            write_whole(out / f"{picture.stem}_overlay.png", png(answer.overlay()))
            return Written(write_whole(out / f"{picture.stem}.png", png(answer.ids)), answer.steps)
        except FileError as error:
            if getattr(error.__context__, "errno", None) not in (ENAMETOOLONG, EILSEQ, EINVAL, EISDIR):
                raise  # it would be the same with the next picture
            return FileError(picture, f"its answer {error.problem}", "give it another name")

    yield from prefetch(write, begun(), depth=max(options.batch, THREADS), workers=THREADS)
    if len(left) < len(found):
        yield Kept(len(found) - len(left))


def _check_targets(source: Path, found: list[Path], out: Path, video: bool) -> None:
    """FileError where two pictures have one target, or something is there that is not known to be an answer."""
    endings = ["_overlay.mp4"] if video else [".png", "_overlay.png"]
    known = (out / QUESTION).exists() and not video
    originals = {os.path.realpath(picture) for picture in found}
    names: dict[str, Path] = {}
    for picture in found:
        for name in (picture.stem + ending for ending in endings):
            target = out / name
            if name in names:
                raise FileError(picture, f"would be written to {target}, as would {names[name]}", "rename one")
            if os.path.lexists(target) and (not known or os.path.realpath(target) in originals):
                raise FileError(target, "is there already", "say another out=, or remove it")
            names[name] = picture
    if os.path.realpath(source) == os.path.realpath(out):
        raise FileError(out, "holds the pictures, for which its answers would be taken next time", "say another out=")


def _check_question(out: Path, question: dict[str, Any]) -> None:
    """FileError where the folder holds answers to another question."""
    path = out / QUESTION
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise FileError(path, "is not what `trailseg predict` wrote", "say another out=, or remove it") from None
    other = [f"{key} {before.get(key)}, not {question[key]}" for key in question if before.get(key) != question[key]]
    if other:
        raise FileError(out, f"holds answers to another question ({'; '.join(other)})", "say another out=")


def _answered(picture: Path, target: Path) -> bool:
    """Whether a picture's answer is there and not older than the picture, or than its name."""
    try:
        answer, asked = target.lstat(), picture.stat()
        return S_ISREG(answer.st_mode) and max(asked.st_mtime_ns, asked.st_ctime_ns) <= answer.st_mtime_ns
    except OSError:
        return False


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
