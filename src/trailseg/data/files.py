"""A data set of files: pictures paired with labels by their names, split, read, and checked."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from trailseg.data.pictures import PICTURE_SUFFIXES, open_picture, read_image
from trailseg.errors import FileError, require
from trailseg.labels import LabelError, LabelSet, decode


class Stamp(NamedTuple):
    """What the decoding of a picture depends on."""

    identity: list[str]
    """Its files and how its label is read."""
    content: list[int]
    """For each file its size in bytes and the time of its last change in nanoseconds."""


class Picture(Protocol):
    """One labelled picture."""

    def stamp(self) -> Stamp | None:
        """None where it is not read from files, or these are not there."""

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

    def stamp(self) -> Stamp | None:
        """See `Picture`."""
        try:
            found = [path.stat() for path in (self.image, self.label)]
        except OSError:
            return None
        identity = [os.path.abspath(self.image), os.path.abspath(self.label), self.encoding, self.labels.digest]
        return Stamp(identity, [number for file in found for number in (file.st_size, file.st_mtime_ns)])

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and class ids (H, W) uint8; FileError where they cannot be read or do not match."""
        image, label = read_image(self.image), _read_label(self.label, self.labels, self.encoding)
        if label.shape != image.shape[:2]:
            sizes = [f"{height} x {width}" for height, width in (label.shape, image.shape[:2])]
            problem = f"its size {sizes[0]} is not that of its picture {self.image}, {sizes[1]}"
            raise FileError(self.label, problem, "make the label anew from that picture, or remove both")
        return image, label


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

    def pair(self, labels: LabelFolder) -> tuple[list[FilePicture], list[FileError]]:
        """The pictures that have a label in `labels`, in the order of the names, and what is wrong with the others."""
        check = "check root= and the data set's layout"
        folders = {self.pictures: "pictures", labels.path: "labels"}
        gone = [path for path in folders if not path.is_dir()]
        if gone:
            return [], [FileError(path, f"there is no folder of {folders[path]} here", check) for path in gone]
        every = sorted(path for path in self.pictures.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        label_of = {i: labels.path / f"{i.stem}{self.suffix}.png" for i in every if i.stem not in self.left_out}
        there = {p for p in labels.path.glob("*.png") if p.stem.removesuffix(self.suffix) not in self.left_out}
        bare = [image for image, label in label_of.items() if label not in there]
        spare = sorted(there.difference(label_of.values()))
        same = [(a, b) for a, b in pairwise(label_of) if a.stem == b.stem]
        faults = [
            *(FileError(i, "has no label", f"add {label_of[i]}, or remove the picture") for i in bare),
            *(FileError(p, "is the label of no picture", f"add one to {self.pictures}, or remove it") for p in spare),
            *(FileError(b, f"has the name of {a}", "rename or remove one of the two") for a, b in same),
        ]
        if not label_of:
            faults.append(FileError(self.pictures, "holds no picture", check))
        whole = [(image, label) for image, label in label_of.items() if label in there]
        return [FilePicture(*files, labels.encoding, self.label_set) for files in whole], faults

    def faults(self) -> Iterator[FileError]:
        """What is wrong with the folder, inside its files, and between the copies of its labels."""
        copies: dict[Path, list[FilePicture]] = {}
        for labels in self.labels:
            pairs, faults = self.pair(labels)
            yield from faults
            for picture in pairs:
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

    name: str
    labels: LabelSet
    splits: Mapping[str, Split]

    def split(self, name: str) -> Sequence[Picture]:
        """The pictures of a split; FileError with the first fault of its folder."""
        folder, takes = self.splits[require("split", name, self.splits)]
        pairs, faults = folder.pair(folder.labels[0])
        if faults:
            first, more = faults[0], len(faults) - 1
            remedy = first.remedy + (f" (and {more} more: `trailseg data check` lists them)" if more else "")
            raise FileError(first.path, first.problem, remedy)
        chosen = [picture for place, picture in enumerate(pairs) if takes(place, picture.name)]
        if not chosen:
            problem = f"none of its {len(pairs)} pictures falls into split={name}"
            raise FileError(folder.pictures, problem, "add pictures, or name another split")
        return chosen

    def faults(self) -> Iterator[FileError]:
        """Every fault of the data set, once, each with its file and the remedy."""
        told = set()
        for folder in {split.folder.pictures: split.folder for split in self.splits.values()}.values():
            for fault in folder.faults():
                if str(fault) not in told:
                    told.add(str(fault))
                    yield fault


def _read_label(path: Path, labels: LabelSet, encoding: str) -> np.ndarray:
    """Class ids (H, W) uint8 of a label PNG; FileError where it cannot be read rightly."""
    image = open_picture(path)
    if image.format != "PNG":
        raise FileError(path, f"is {image.format} under a PNG's name", "save the label as PNG, which loses nothing")
    depth, kind = path.read_bytes()[24:26]
    if (depth, kind) in ((2, 0), (4, 0), (16, 2), (16, 4), (16, 6)):  # grey is 0, colour 2, alpha 4
        raise FileError(path, f"has {depth} bits a channel, which Pillow scales to 8", "save it with 8 bits a channel")
    try:
        return decode(image, labels, encoding)
    except LabelError as error:
        problem, _, remedy = str(error).rpartition("; ")
        raise FileError(path, problem, remedy) from None
