"""A data set of files: pictures paired with labels by their names, split, read, and checked."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple, Protocol
from unicodedata import category, normalize

import numpy as np

from trailseg.data.pictures import PICTURE_SUFFIXES, open_picture, read_image
from trailseg.errors import FileError, require
from trailseg.labels import IGNORE, LabelError, LabelSet, decode


class Stamp(NamedTuple):
    """What the decoding of a picture depends on."""

    identity: list[str]
    """Its files and how its label is read."""
    content: list[int]
    """For each file its size in bytes and when its content, and its name or permissions, last changed (ns)."""


class Picture(Protocol):
    """One labelled picture."""

    def stamp(self) -> Stamp | None:
        """None where it is not read from files."""

    @property
    def name(self) -> str:
        """A name that is its own within the split."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB, and class ids (H, W) uint8, 0..K-1 or IGNORE."""


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

    def stamp(self) -> Stamp:
        """See `Picture`."""
        identity = [os.path.abspath(self.image), os.path.abspath(self.label), self.encoding, self.labels.digest]
        content = []
        for path in (self.image, self.label):
            with suppress(OSError):
                found = path.stat()
                content += [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
            content.append(-1)  # so that what is gone is not taken for what comes after it
        return Stamp(identity, content)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and class ids (H, W) uint8; FileError where they cannot be read or do not match."""
        image, label = read_image(self.image), _read_label(self.label, self.labels, self.encoding)
        if label.shape != image.shape[:2]:
            sizes = [f"{height} x {width}" for height, width in (label.shape, image.shape[:2])]
            problem = f"its size {sizes[0]} is not that of its picture {self.image}, {sizes[1]}"
            raise FileError(self.label, problem, "make the label anew from that picture, or remove both")
        return image, label


@dataclass(frozen=True)
class BadPicture:
    """What stands in a split for a picture without a right label, or for a label without a picture."""

    name: str
    fault: FileError

    def stamp(self) -> Stamp:
        """See `Picture`."""
        return Stamp([os.path.abspath(self.fault.path), self.fault.problem], [])

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Raises the fault."""
        raise self.fault


@dataclass(frozen=True)
class Folder:
    """The pictures of a folder, and the labels that bear their names."""

    pictures: Path
    labels: tuple[LabelFolder, ...]
    """One or more copies of the labels: the first is read, the others must agree with it."""
    label_set: LabelSet
    suffix: str = ""
    """What stands in a label's name between that of its picture and ".png"."""
    left_out: frozenset[str] = frozenset()
    """Names of pictures that are passed over, with their labels."""

    def pair(self, labels: LabelFolder) -> "list[FilePicture | BadPicture]":
        """Every picture in the order of the names, then, as bad ones, the labels in `labels` without a picture.

        FileError where one of the folders cannot be listed, or holds no picture.
        """
        every = [i for i in _listed(self.pictures, PICTURE_SUFFIXES, "pictures") if i.stem not in self.left_out]
        truths = _listed(labels.path, (".png",), "labels")
        there = {path for path in truths if path.stem.removesuffix(self.suffix) not in self.left_out}
        if not every:
            raise FileError(self.pictures, "holds no picture", _CHECK)
        label_of = {image: labels.path / f"{image.stem}{self.suffix}.png" for image in every}
        spare = there.difference(label_of.values())
        alike = {_plain(path.name): path for path in spare}
        twins, links = _others(every, lambda path: normalize("NFC", path.stem)), _others(there, _file)
        paired: list[FilePicture | BadPicture] = []
        for image, label in label_of.items():
            near = None if label in there else alike.get(_plain(label.name))
            if not _is_text(image.name):
                fault = FileError(image, "has a name that is no text: not UTF-8, or control characters", "rename it")
            elif twin := twins.get(image):
                fault = FileError(image, f"has the name of {twin}, and so its label", "rename or remove one of the two")
            elif near:
                problem = f"is not named just as its picture {image}: capitals or accents are written otherwise"
                fault = FileError(near, problem, f"rename it to {label.name}")
                spare.discard(near)
            elif label not in there:
                fault = FileError(image, "has no label", f"add {label}, or remove the picture")
            elif link := links.get(label):
                fault = FileError(label, f"is one file with {link}", "give each picture a label of its own")
            else:
                paired.append(FilePicture(image, label, labels.encoding, self.label_set))
                continue
            paired.append(BadPicture(image.stem, fault))
        for path in sorted(spare):
            fault = FileError(path, "is the label of no picture", f"add one to {self.pictures}, or remove it")
            paired.append(BadPicture(path.stem, fault))
        return paired

    def faults(self) -> Iterator[FileError]:
        """What is wrong with the folder, inside its files, and between the copies of its labels."""
        copies: dict[Path, list[FilePicture]] = {}
        for labels in self.labels:
            try:
                paired = self.pair(labels)
            except FileError as fault:
                yield fault
                continue
            for picture in paired:
                if isinstance(picture, BadPicture):
                    yield picture.fault
                else:
                    copies.setdefault(picture.image, []).append(picture)
        for pictures in copies.values():
            whole: list[tuple[Path, np.ndarray]] = []
            for picture in pictures:
                try:
                    whole.append((picture.label, picture.read()[1]))
                except FileError as fault:
                    yield fault
            for label, ids in whole[1:]:
                if not np.array_equal(ids, whole[0][1]):
                    yield FileError(label, f"does not agree with {whole[0][0]}", "replace the wrong one of the two")


class Split(NamedTuple):
    """A selection from the pictures of a folder."""

    folder: Folder
    takes: Callable[[int, str], bool] = lambda place, name: True
    """Whether the split takes the picture of that name at that place, from 0 in the order of the names."""


@dataclass(frozen=True)
class DataSet:
    """A data set: its classes and its named splits."""

    labels: LabelSet
    splits: Mapping[str, Split]

    def split(self, name: str, *, skip_bad: bool = False) -> Sequence[Picture]:
        """The pictures of a split; FileError with the first fault of its folder.

        With `skip_bad` such faults stand in it as pictures that raise them when they are read.
        """
        folder, takes = self.splits[require("split", name, self.splits)]
        paired = folder.pair(folder.labels[0])
        faults = [picture.fault for picture in paired if isinstance(picture, BadPicture)]
        if faults and not skip_bad:
            first, more = faults[0], len(faults) - 1
            remedy = first.remedy + (f" (and {more} more: `trailseg data check` lists them)" if more else "")
            raise FileError(first.path, first.problem, remedy)
        chosen = [picture for place, picture in enumerate(paired) if takes(place, picture.name)]
        if not chosen:
            problem = f"none of its {len(paired)} pictures falls into split={name}"
            raise FileError(folder.pictures, problem, "add pictures, or name another split")
        return chosen

    def faults(self) -> Iterator[FileError]:
        """Every fault of the data set, once, each with its file and the remedy."""
        told = set()
        folders = {split.folder.pictures: split.folder for split in self.splits.values()}
        for faults in (*(folder.faults() for folder in folders.values()), self._leaks()):
            for fault in faults:
                if str(fault) not in told:
                    told.add(str(fault))
                    yield fault

    def _leaks(self) -> Iterator[FileError]:
        """The pictures of train, val and test that are in an earlier one of these, too: a link, or the same bytes."""
        sized: dict[int, list[tuple[str, Path]]] = {}
        for name in [name for name in ("train", "val", "test") if name in self.splits]:
            with suppress(FileError):  # which its folder tells
                for image in [p.image for p in self.split(name, skip_bad=True) if isinstance(p, FilePicture)]:
                    with suppress(OSError):  # which reading it tells
                        found = image.stat()
                        if S_ISREG(found.st_mode):
                            sized.setdefault(found.st_size, []).append((name, image))
        for same in sized.values():
            first: dict[bytes, tuple[str, Path]] = {}
            for name, image in same if len({name for name, _ in same}) > 1 else ():
                with suppress(OSError), image.open("rb") as file:
                    before, other = first.setdefault(file_digest(file, "sha256").digest(), (name, image))
                    if before != name:
                        problem = f"of {name} is also in {before}, byte by byte: {other}"
                        yield FileError(image, problem, "leave it out of one of the two, which must share nothing")


_CHECK = "check root= and the data set's layout"


def _listed(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """What of a folder has one of these endings, in the order of the names."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if Path(name).suffix.lower() in suffixes)
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(folder, f"there is no folder of {what} here", _CHECK) from None
    except OSError as error:
        problem = f"the folder of {what} cannot be read ({error.strerror})"
        raise FileError(folder, problem, "give permission to read it") from None


def _others(paths: Iterable[Path], key: Callable[[Path], Any]) -> dict[Path, Path]:
    """For each path that shares its key with others, one of these."""
    groups: dict[Any, list[Path]] = {}
    for path in sorted(paths):
        groups.setdefault(key(path), []).append(path)
    return {path: group[path == group[0]] for group in groups.values() if len(group) > 1 for path in group}


def _file(path: Path) -> Any:
    """What two paths have in common that are links to one file."""
    try:
        found = path.stat()
    except OSError:
        return path
    return found.st_dev, found.st_ino


def _plain(name: str) -> str:
    """A name without regard to capitals and to how its accents are composed."""
    return normalize("NFC", name).casefold()


def _is_text(name: str) -> bool:
    """Whether a file's name is valid UTF-8 (what is not stands in it as surrogates) without control characters."""
    return not any(category(character) in ("Cc", "Cs") for character in name)


def _read_label(path: Path, labels: LabelSet, encoding: str) -> np.ndarray:
    """Class ids (H, W) uint8 of a label PNG; FileError where it cannot be read rightly."""
    image = open_picture(path)
    if image.format != "PNG":
        raise FileError(path, f"is {image.format} under a PNG's name", "save the label as PNG, which loses nothing")
    with path.open("rb") as file:
        depth, kind = file.read(26)[24:]
    if (depth, kind) in ((2, 0), (4, 0), (16, 2), (16, 4), (16, 6)):  # grey is 0, colour 2, alpha 4
        raise FileError(path, f"has {depth} bits a channel, which Pillow scales to 8", "save it with 8 bits a channel")
    try:
        ids = decode(image, labels, encoding)
    except LabelError as error:
        problem, _, remedy = str(error).rpartition("; ")
        raise FileError(path, problem, remedy) from None
    if ids.min() == IGNORE:
        raise FileError(path, "has no pixel of a class: all are ignored", "label it, or remove it and its picture")
    return ids
