"""Pictures and labels on disk: pairing them, reading them, and saying what is wrong with each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trailseg.errors import FileError
from trailseg.labels import LabelError, LabelSet, decode

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class LabelFolder:
    """A folder of label PNGs and what they hold: "ids", "colours" or "auto" (see `labels.decode`)."""

    path: Path
    encoding: str


@dataclass(frozen=True)
class FilePicture:
    """A picture file and its label file."""

    image: Path
    label: Path
    encoding: str
    labels: LabelSet

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.image.stem

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and class ids (H, W) uint8; FileError where they cannot be read or do not match."""
        image, label = read_image(self.image), read_label(self.label, self.labels, self.encoding)
        if image.shape[:2] != label.shape:
            raise FileError(
                self.label,
                f"its size {_size(label)} is not that of its picture {self.image}, {_size(image)}",
                "make the label anew from that picture, or remove both",
            )
        return image, label


def read_image(path: Path) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB, the way up that its EXIF tag says; FileError where it cannot be read."""
    with _opened(path) as image:
        if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip what it should scale
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def read_label(path: Path, labels: LabelSet, encoding: str) -> np.ndarray:
    """Class ids (H, W) uint8 of a label PNG; FileError where it cannot be read rightly."""
    with _opened(path) as image:
        try:
            return decode(image, labels, encoding)
        except LabelError as error:
            problem, _, remedy = str(error).rpartition("; ")
            raise FileError(path, problem or str(error), remedy if problem else "correct the label") from None


def pair(images: Path, labels: LabelFolder, label_set: LabelSet, suffix: str = "") -> "Pairing":
    """The pictures of a folder with the labels that bear their names (and `suffix`), in the order of the names."""
    faults = [
        FileError(folder, f"there is no folder of {what} here", "check root= and the data set's layout")
        for folder, what in ((images, "pictures"), (labels.path, "labels"))
        if not folder.is_dir()
    ]
    if faults:
        return Pairing([], faults)
    found = [path for path in sorted(images.iterdir()) if path.suffix.lower() in PICTURE_SUFFIXES]
    pictures = []
    for image in found:
        label = labels.path / f"{image.stem}{suffix}.png"
        if label.is_file():
            pictures.append(FilePicture(image, label, labels.encoding, label_set))
        else:
            faults.append(FileError(image, "has no label", f"add {label}, or remove the picture"))
    wanted = {f"{image.stem}{suffix}" for image in found}
    faults += [
        FileError(label, "is the label of no picture", f"add {images / label.name}, or remove the label")
        for label in sorted(labels.path.glob("*.png"))
        if label.stem not in wanted
    ]
    if not found:
        faults.append(FileError(images, "holds no picture", "check root= and the data set's layout"))
    return Pairing(pictures, faults)


@dataclass(frozen=True)
class Pairing:
    """The pairs of a folder, and what is wrong with those that are not whole."""

    pictures: Sequence[FilePicture]
    faults: Sequence[FileError]


def faults_of(pictures: Sequence[FilePicture]) -> Iterator[FileError]:
    """What is wrong inside the files of each pair."""
    for picture in pictures:
        try:
            picture.read()
        except FileError as fault:
            yield fault


class _opened:  # noqa: N801  # reads as `with _opened(path) as image`
    """A wholly decoded picture; every way in which Pillow fails becomes a FileError."""

    def __init__(self, path: Path) -> None:
        try:
            self.image = Image.open(path)
            self.image.load()
        except FileNotFoundError:
            raise FileError(path, "there is no such file", "check the path") from None
        except Image.DecompressionBombError:
            raise FileError(path, "has too many pixels to be opened safely", "scale it down") from None
        except (OSError, ValueError, SyntaxError) as error:
            problem = f"cannot be read as a picture ({' '.join(str(error).split())})"
            raise FileError(path, problem, "replace the file with a whole one, or remove it") from None

    def __enter__(self) -> Image.Image:
        return self.image

    def __exit__(self, *_: object) -> None:
        self.image.close()


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"
