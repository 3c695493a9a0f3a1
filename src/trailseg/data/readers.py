"""The data sets by name: TAS500, CamVid, procedural scenes, and any two folders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trailseg.config import DataOptions
from trailseg.data import scenes
from trailseg.data.files import DataSet, Folder, LabelFolder, Picture, Split
from trailseg.data.own import own
from trailseg.errors import FileError, OptionError, require
from trailseg.labels import CAMVID, TAS500_COARSE, TAS500_FINE, LabelSet

# What weights were trained on, and the licence that this puts on them.
TERMS = {
    "tas500": ("TAS500 v1.1 (Metzger et al., 2020)", "CC BY-NC-SA 3.0: not for commercial use"),
    "camvid": ("CamVid (Brostow et al., 2008)", "CC BY-NC 4.0: for research, not for commercial use"),
    "folder": ("data of the user's own", "the user's own"),
    "procedural": ("procedural scenes of trailseg", "Apache-2.0"),
}

# Pictures of TAS500 whose labels are broken (docs/data.md).
TAS500_BROKEN = frozenset(
    ("1537962190852671077", "1539600515553691119", "1539600738459369245", "1539600829359771415", "1567611260762673589")
)


def open_data(options: DataOptions, *, size: tuple[int, int]) -> "DataSet | Procedural":
    """The data set of these options; procedural scenes have (H, W) = `size`. OptionError or FileError without it."""
    data, root, labels = require("data", options.data, TERMS), options.root, options.labels
    if labels is not None and data in ("camvid", "folder"):
        raise OptionError(f"labels={labels}: data={data} has one label set; leave labels out")
    sets = {"coarse": TAS500_COARSE, "fine": TAS500_FINE}
    label_set = sets[require("labels", labels or "coarse", sets)]
    if data == "procedural":
        return Procedural(label_set, size, options.pictures)
    if root is None:
        raise OptionError(f"data={data} is read from disk: say root=FOLDER")
    path = Path(root)
    if not path.exists():
        raise FileError(path, "there is no such folder", f"say root= with the folder that holds data={data}")
    if data != "folder" and not path.is_dir():
        raise FileError(path, "is a file", f"say root= with the folder that holds data={data}")
    if path.is_dir() and not any(path.iterdir()):
        raise FileError(path, "is empty", f"say root= with the folder that holds data={data}")
    if data == "folder":
        return own(path)
    return tas500(path, label_set) if data == "tas500" else camvid(path)


def select(source: "DataSet | Procedural", splits: str, *, skip_bad: bool = False) -> list[Picture]:
    """The pictures of a split, or of several whose names are joined by "+"; see `DataSet.split`."""
    return [picture for name in splits.split("+") for picture in source.split(name, skip_bad=skip_bad)]


def share(trained: str, measured: str) -> bool:
    """Whether two choices of splits, joined by "+", have pictures in common, going by their names.

    >>> share("train+val", "val"), share("train", "val"), share("without-X", "only-X"), share("only-X", "only-Y")
    (True, False, False, False)
    """
    return any(_overlap(one, other) for one in trained.split("+") for other in measured.split("+"))


def _overlap(one: str, other: str) -> bool:
    """Whether two splits have pictures in common."""
    if not _wholes(one) & _wholes(other):
        return False
    if one.startswith("only-") and other.startswith("only-"):
        return one == other
    drive = one.partition("-")[2]
    return {one, other} != {f"only-{drive}", f"without-{drive}"}


def _wholes(split: str) -> set[str]:
    """The whole splits of which a split holds pictures."""
    if split.startswith(("only-", "without-")):
        return {"train"}
    return {"val", "test"} if split == "val-all" else {split}


def tas500(root: Path, labels: LabelSet) -> DataSet:
    """`{train,val}/`, ids in `{train,val}_labels_ids/` and colours in `{train,val}_labels/`, or one of the two.

    They lie in `root` or in `root/tas500v1.1`.
    """
    root = root / "tas500v1.1" if (root / "tas500v1.1").is_dir() else root

    def folder(name: str) -> Folder:
        ids, colours = LabelFolder(root / f"{name}_labels_ids", "ids"), LabelFolder(root / f"{name}_labels", "colours")
        there = tuple(labels for labels in (ids, colours) if labels.path.is_dir())
        return Folder(root / name, there or (ids,), labels, left_out=TAS500_BROKEN)

    val, protocol = folder("val"), 50  # the study's: the first 50 are val, but here in the order of the names
    return DataSet(
        labels=labels,
        splits={
            "train": Split(folder("train")),
            "val": Split(val, lambda place, name: place < protocol),
            "test": Split(val, lambda place, name: place >= protocol),
            "val-all": Split(val),
        },
    )


def camvid(root: Path) -> DataSet:
    """`{train,val,test}/` and `{train,val,test}annot/` of the SegNet tutorial, in `root` or in `root/CamVid`.

    The test pictures may be absent. Beside the three splits there are, for each drive of the training pictures (what
    stands before "_" in their names), without-DRIVE and only-DRIVE: to train on the others and to measure on a drive
    that was never seen.
    """
    root = root / "CamVid" if (root / "CamVid").is_dir() else root
    names = ["train", "val"] + ["test"] * (root / "test").is_dir()
    folders = {name: Folder(root / name, (LabelFolder(root / f"{name}annot", "ids"),), CAMVID) for name in names}
    splits = {name: Split(folder) for name, folder in folders.items()}
    train = folders["train"]
    for drive in sorted({path.stem.partition("_")[0] for path in train.pictures.glob("*_*")}):
        for name, wanted in (("only", True), ("without", False)):
            splits[f"{name}-{drive}"] = Split(train, partial(_of_drive, f"{drive}_", wanted))
    return DataSet(CAMVID, splits)


def _of_drive(prefix: str, wanted: bool, place: int, name: str) -> bool:
    return name.startswith(prefix) == wanted


@dataclass(frozen=True)
class Scene:
    """A procedural scene as a picture."""

    index: int
    size: tuple[int, int]
    labels: LabelSet

    @property
    def name(self) -> str:
        """Such as scene-17."""
        return f"scene-{self.index}"

    def stamp(self) -> None:
        """None: there are no files."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and class ids; see `Picture`."""
        image, file_ids = scenes.scene(seed=0, index=self.index, size=self.size)
        return image, self.labels.class_ids(file_ids)


@dataclass(frozen=True)
class Procedural:
    """Scenes made on the spot: the same ones for every seed of a training."""

    labels: LabelSet
    size: tuple[int, int]
    pictures: int
    splits = scenes.OFFSETS

    def split(self, name: str, *, skip_bad: bool = False) -> Sequence[Picture]:
        """The scenes of train, val or test; a quarter as many of the latter."""
        first = self.splits[require("split", name, self.splits)]
        count = self.pictures if name == "train" else max(1, self.pictures // 4)
        return [Scene(first + i, self.size, self.labels) for i in range(count)]

    def faults(self) -> Iterator[FileError]:
        """None: there are no files."""
        yield from ()
