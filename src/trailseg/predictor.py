"""The Python interface: a trained network that answers pictures, folders and videos, in as many steps as you like.

predictor = Predictor()                              # the network of the package, or Predictor("runs/v4")
answer = predictor("photo.jpg", steps="auto")        # or steps=5; a path, a PIL image or an array
answer.ids, answer.probability, answer.trail         # class, its probability, and the class after every step
answer.overlay()                                     # the picture, half covered by the colours of its classes
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from trailseg.config import MODEL, STEPS_LIMIT, TOLERANCE, Size
from trailseg.data.pictures import MAX_PIXELS, PICTURE_SUFFIXES, as_rgb, read_image
from trailseg.errors import FileError, OptionError
from trailseg.labels import make_palette
from trailseg.model import Facts, Model
from trailseg.prefetch import prefetch
from trailseg.video import VideoReader

WEIGHTS = Path(__file__).parent / "weights"
"""What `trailseg pack` wrote of the networks in the package, each in a folder of its name."""

THREADS = 4
"""Threads that read pictures ahead, and as many that write answers; each holds a picture: more would cost memory."""

RUN_PACKAGES = ("torch", "safetensors")
"""What a run directory needs to be read."""

Picture = str | Path | Image.Image | np.ndarray
"""A picture file, a PIL image, or (H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Answer:
    """What a network says of one picture."""

    picture: np.ndarray
    """(H, W, 3) uint8 RGB, as it was read."""
    ids: np.ndarray
    """(H, W) uint8, the class of every pixel, 0..K-1."""
    probability: np.ndarray
    """(H, W) float32, 0..1, of that class."""
    trail: np.ndarray | None
    """(steps, H, W) uint8, the classes after every step, if asked for."""
    steps: int
    """Steps used."""
    seconds: float
    """From the decoded picture to the answer; for a batch its time divided by its pictures."""
    colours: tuple[tuple[int, int, int], ...] = field(repr=False)
    """K display colours, 0-255."""
    state: Any = field(repr=False)
    """What the next frame of a video can start from; that of a whole batch, where it was answered in one."""

    def overlay(self, step: int | None = None) -> np.ndarray:
        """The picture (H, W, 3) uint8 half covered by the colours of its classes, after a step from 1 or the last."""
        assert step is None or self.trail is not None, "the answer was asked for without its trail"
        ids = self.ids if step is None or self.trail is None else self.trail[step - 1]
        return overlay(self.picture, ids, make_palette(self.colours))


class Predictor:
    """A trained network: a run directory (needs PyTorch) or an exported file (needs onnxruntime).

    What `trailseg pack` wrote needs either of the two. So do the networks of the package, which go by the names of
    `packed()`; None is config.MODEL. Pictures of any size are resized to the size that the network was trained with, or
    to `size`, and answered at their own size. FileError where the file or folder is not a trained network, OptionError
    on a wrong option.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "32",
        checkpoint: str = "last",
        size: tuple[int, int] | None = None,
    ) -> None:
        self._path = find_model(model)
        self._model = _open(self._path, device=device, precision=precision, checkpoint=checkpoint)
        self.size = Size(*size) if size else self._model.facts.size

    @property
    def facts(self) -> Facts:
        """What is known of the network: its name, classes, colours, trained and most steps, cost, terms of use."""
        return self._model.facts

    @property
    def fingerprint(self) -> str:
        """What tells the network from any other: see `model.Model`."""
        return self._model.fingerprint

    def __call__(
        self,
        picture: Picture,
        *,
        steps: int | Literal["auto"] | None = None,
        tolerance: float = TOLERANCE,
        most_steps: int | None = None,
        trail: bool = True,
        before: Answer | None = None,
    ) -> Answer:
        """The answer to one picture.

        steps: how many; None for as many as trained; "auto" to stop after the first step, from the second on, that
        changed the class of fewer than `tolerance` of the pixels, and at the latest after `most_steps` (default: twice
        those trained, or as many as it takes).
        trail: whether to give the classes after every step, which costs time on large pictures.
        before: the answer to the frame before in a video, whose state the network then goes on from.
        """
        image = _image(picture)
        if before is not None:
            self.check_warm_start()
        return self._answer([image], steps, tolerance, most_steps, trail, before.state if before else None)[0]

    def batch(
        self,
        pictures: Sequence[Picture],
        *,
        steps: int | Literal["auto"] | None = None,
        tolerance: float = TOLERANCE,
        most_steps: int | None = None,
        trail: bool = True,
    ) -> list[Answer]:
        """The answers to several pictures, computed together; each stops by itself where steps="auto".

        Sums are rounded in another order than for a picture alone: on a processor in 32 bits its probabilities differ
        by at most 0.0001, and its classes, where two are as probable, on at most 1 in 10,000 pixels.
        """
        images = [_image(picture) for picture in pictures]
        answers: dict[int, Answer] = {}
        for shape in {image.shape for image in images}:
            places = [place for place, image in enumerate(images) if image.shape == shape]
            same = [images[place] for place in places]
            answers |= zip(places, self._answer(same, steps, tolerance, most_steps, trail, None), strict=True)
        return [answers[place] for place in range(len(images))]

    def folder(self, path: str | Path, *, batch: int = 1, **options: Any) -> Iterator[tuple[Path, Answer | FileError]]:
        """Each picture of a folder, in the order of the names, with its answer or what is wrong with it.

        Pictures are read ahead in threads: the next batch, and at least THREADS. `options` are those of `batch`.
        FileError where there is no folder, or no picture in it.
        """
        return self.files(find_pictures(Path(path)), batch=batch, **options)

    def files(
        self, files: Sequence[Path], *, batch: int = 1, **options: Any
    ) -> Iterator[tuple[Path, Answer | FileError]]:
        """(path, Answer, or FileError where it cannot be read) of each of these files, in their order."""
        images = prefetch(_read, files, depth=max(batch, THREADS), workers=THREADS)
        for first in range(0, len(files), batch):
            read = list(zip(files[first : first + batch], images, strict=False))  # takes one image for each file
            answers = iter(self.batch([image for _, image in read if isinstance(image, np.ndarray)], **options))
            for file, image in read:
                yield file, image if isinstance(image, FileError) else next(answers)

    def video(
        self, frames: str | Path | Iterable[np.ndarray], *, warm_start: bool = False, **options: Any
    ) -> Iterator[Answer]:
        """The answer to each frame of a video file (needs the extra `video`), or to each array (H, W, 3) uint8 RGB.

        warm_start: whether each frame goes on from the state that the one before it left. `options` as in a call.
        FileError where the file is no video, and after the last whole frame of one that breaks off.
        """
        if warm_start:
            self.check_warm_start()
        before = None
        for frame in VideoReader(Path(frames)) if isinstance(frames, str | Path) else frames:
            before = self(frame, before=before if warm_start else None, **options)
            yield before

    def check_warm_start(self) -> None:
        """OptionError where the network cannot go on from the state of another frame."""
        if not self.facts.recalls:
            raise OptionError(
                f"warm_start: {self.facts.network} does not look at the picture again after its first step, so it "
                "would answer the first frame for ever, or it was exported without warm_start=true; take a network of "
                "one or two cores that copies its context"
            )

    def _answer(
        self,
        images: Sequence[np.ndarray],
        steps: int | str | None,
        tolerance: float,
        most_steps: int | None,
        trail: bool,
        state: Any,
    ) -> list[Answer]:
        """The answers to images (H, W, 3) of one size."""
        count, share = self.limits(steps, tolerance, most_steps)
        started = time.perf_counter()
        full = Size(*images[0].shape[:2])
        small = np.stack([_resized(image, self.size) for image in images])
        given = self._model.answer(small, to=full, steps=count, tolerance=share, trail=trail, state=state)
        seconds = (time.perf_counter() - started) / len(images)
        return [
            Answer(
                picture=images[place],
                ids=given.ids[place],
                probability=given.probability[place],
                trail=None if given.trail is None else given.trail[: int(given.used[place]), place],
                steps=int(given.used[place]),
                seconds=seconds,
                colours=self.facts.colours,
                state=given.state,
            )
            for place in range(len(images))
        ]

    def limits(self, steps: int | str | None, tolerance: float, most_steps: int | None) -> tuple[int, float]:
        """The most steps that these options mean, and the share of changed pixels below which to stop.

        OptionError where they do not suit the network.
        """
        facts = self.facts
        count: int | str
        if steps == "auto":
            if not 0 < tolerance <= 1:
                raise OptionError(
                    f"tolerance={tolerance}: take a share of the pixels above 0 and up to 1, such as 0.01"
                )
            most = min(2 * facts.trained_steps, STEPS_LIMIT) if facts.max_steps is None else facts.max_steps
            count, stop, option = most if most_steps is None else most_steps, tolerance, "most_steps"
        else:
            count, stop, option = facts.trained_steps if steps is None else steps, 0.0, "steps"
        if isinstance(count, bool) or not isinstance(count, int):
            raise OptionError(f"{option}={count}: take a whole number{' or auto' * (option == 'steps')}")
        if not 1 <= count <= STEPS_LIMIT:
            raise OptionError(f"{option}={count}: take 1 to {STEPS_LIMIT} steps")
        if facts.max_steps is not None and count > facts.max_steps:
            raise OptionError(f"{option}={count}: {facts.name} takes at most {facts.max_steps} steps")
        return count, stop


def packed() -> list[str]:
    """The names of the trained networks in the package."""
    return sorted(config.parent.name for config in WEIGHTS.glob("*/config.yaml"))


def find_model(model: str | Path | None) -> Path:
    """The trained network at that path, or else the one of that name in the package; None stands for config.MODEL.

    FileError where nothing is there.
    """
    if model is None:
        return WEIGHTS / MODEL
    path = Path(model)
    if str(model) in packed() and not (path.is_file() or (path / "config.yaml").exists()):
        return WEIGHTS / model
    if not path.exists() and path.suffix.lower() != ".onnx":
        problem = "there is no such run directory or exported file, nor a network of that name in the package"
        raise FileError(path, problem, f"name one of these; the package has {', '.join(packed())}")
    return path


def find_pictures(path: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder in the order of their names; FileError where there are none."""
    if not path.exists():
        raise FileError(path, "there is no such file or folder", "name a picture or a folder of pictures")
    if path.is_file():
        return [path]
    found = [file for file in sorted(path.iterdir()) if file.suffix.lower() in PICTURE_SUFFIXES and not file.is_dir()]
    if not found:
        raise FileError(path, "holds no picture", f"name a folder with {', '.join(PICTURE_SUFFIXES)} files")
    return found


def overlay(image: np.ndarray, ids: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 half covered by the colours of its class ids (H, W)."""
    return ((image.astype(np.uint16) + palette[ids]) // 2).astype(np.uint8)


def _open(path: Path, *, device: str, precision: str, checkpoint: str) -> Model:
    """The network of a run directory, of an exported file, or of a folder of exported parts."""
    exported = path.suffix.lower() == ".onnx" or path.is_file() or (path / "stem.onnx").exists()
    if not exported and (path / "model.onnx").exists() and not all(map(find_spec, RUN_PACKAGES)):
        path, exported = path / "model.onnx", True
    if exported:
        from trailseg.onnx_model import OnnxModel, OnnxParts

        if precision == "bf16":
            raise OptionError(f"precision={precision}: an exported file computes in 32 bits; leave it out")
        if checkpoint != "last":
            raise OptionError(f"checkpoint={checkpoint}: an exported file holds one; choose it when you export")
        return OnnxParts(path, device=device) if path.is_dir() else OnnxModel(path, device=device)
    from trailseg.inference import TorchModel
    from trailseg.runs import Run

    return TorchModel(Run.open(path), device=device, precision=precision, checkpoint=checkpoint)


def _read(path: Path) -> np.ndarray | FileError:
    """(H, W, 3) uint8 RGB, or what is wrong with the file."""
    try:
        return read_image(path)
    except FileError as error:
        return error


def _image(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 RGB; FileError where a file cannot be read, OptionError where an array is something else."""
    if isinstance(picture, str | Path):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        try:
            picture = as_rgb(picture)
        except ValueError as error:
            raise OptionError(f"picture: {error}; give it with 8 bits a channel") from None
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise OptionError(f"picture: an array of {picture.dtype} {picture.shape}; give (H, W, 3) uint8 RGB")
    if picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        raise OptionError(f"picture: has more than the {MAX_PIXELS // 10**6} million pixels allowed; scale it down")
    return picture


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size.width, size.height), Image.Resampling.BILINEAR))
