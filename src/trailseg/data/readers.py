"""The data sets: TAS500, CamVid, procedural scenes and any two folders, each as named splits of pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from trailseg.data import scenes
from trailseg.data.files import FilePicture, LabelFolder, Pairing, faults_of, pair
from trailseg.errors import FileError, OptionError, require
from trailseg.labels import CAMVID, IGNORE, RGB, TAS500_COARSE, TAS500_FINE, LabelSet

# Pictures of TAS500 whose labels are broken (design.md, section 3).
TAS500_BROKEN = {
    "1537962190852671077",
    "1539600515553691119",
    "1539600738459369245",
    "1539600829359771415",
    "1567611260762673589",
}


class Picture(Protocol):
    """One labelled picture."""

    @property
    def name(self) -> str:
        """A name that is its own within the split."""

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB, and class ids (H, W) uint8, 0..K-1 or IGNORE."""


@dataclass(frozen=True)
class Folder:
    """The labelled pictures of one folder, and a second copy of its labels to check against the first, if any."""

    pairing: Callable[[], Pairing]
    twin: Callable[[], Pairing] | None = None


@dataclass(frozen=True)
class DataSet:
    """A data set: its classes, and its splits as selections from the pictures of its folders."""

    name: str
    labels: LabelSet
    folders: dict[str, Folder]
    splits: dict[str, tuple[str, Callable[[list[FilePicture]], list[FilePicture]]]]
    """Split to folder and selection."""

    def split(self, name: str) -> Sequence[Picture]:
        """The pictures of a split; FileError with the first fault of its folder."""
        folder, select = self.splits[require("split", name, self.splits)]
        pairing = self.folders[folder].pairing()
        if pairing.faults:
            first, more = pairing.faults[0], len(pairing.faults) - 1
            remedy = first.remedy + (f" (and {more} more: `trailseg data check` lists them)" if more else "")
            raise FileError(first.path, first.problem, remedy)
        return select(list(pairing.pictures))

    def faults(self) -> Iterator[FileError]:
        """Every fault of the data set, each with its file and the remedy."""
        for folder in self.folders.values():
            pairing = folder.pairing()
            yield from pairing.faults
            yield from faults_of(pairing.pictures)
            if folder.twin is not None:
                twin = folder.twin()
                yield from twin.faults
                yield from faults_of(twin.pictures)
                yield from _disagreements(pairing.pictures, twin.pictures)


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
    name: str = "procedural"

    def split(self, name: str) -> Sequence[Picture]:
        """The scenes of train, val or test; a quarter as many of the latter."""
        first = scenes.OFFSETS[require("split", name, scenes.OFFSETS)]
        count = self.pictures if name == "train" else max(1, self.pictures // 4)
        return [Scene(first + i, self.size, self.labels) for i in range(count)]

    def faults(self) -> Iterator[FileError]:
        """None: there are no files."""
        yield from ()


def open_data(
    data: str, *, root: str | None, labels: str | None, size: tuple[int, int], pictures: int
) -> DataSet | Procedural:
    """The data set `data` under `root`, read with the label set `labels`; procedural scenes have (H, W) = `size`."""
    require("data", data, ("tas500", "camvid", "folder", "procedural"))
    sets = {"coarse": TAS500_COARSE, "fine": TAS500_FINE} if data in ("tas500", "procedural") else {}
    if labels is not None and not sets:
        raise OptionError(f"labels={labels}: data={data} has one label set; leave labels out")
    label_set = sets[require("labels", labels or "coarse", sets)] if sets else CAMVID
    if data == "procedural":
        return Procedural(label_set, size, pictures)
    if root is None:
        raise OptionError(f"data={data} is read from disk: say root=FOLDER")
    path = Path(root)
    if not path.exists():
        raise FileError(path, "there is no such folder", f"say root= with the folder that holds data={data}")
    if path.is_dir() and not any(path.iterdir()):
        raise FileError(path, "is empty", f"say root= with the folder that holds data={data}")
    if data == "folder":
        return _own(path)
    return _tas500(path, label_set) if data == "tas500" else _camvid(path)


def _everything(pictures: list[FilePicture]) -> list[FilePicture]:
    return pictures


def _tas500(root: Path, labels: LabelSet) -> DataSet:
    """`tas500v1.1/{train,val}`, labels in `{train,val}_labels_ids` (ids) and `{train,val}_labels` (colours)."""
    root = root / "tas500v1.1" if (root / "tas500v1.1").is_dir() else root

    def folder(split: str) -> Folder:
        ids = LabelFolder(root / f"{split}_labels_ids", "ids")
        colours = LabelFolder(root / f"{split}_labels", "colours")

        def read(where: LabelFolder) -> Callable[[], Pairing]:
            def pairing() -> Pairing:
                found = pair(root / split, where, labels)
                whole = [p for p in found.pictures if p.name not in TAS500_BROKEN]
                return Pairing(whole, [f for f in found.faults if f.path.stem not in TAS500_BROKEN])

            return pairing

        if not ids.path.is_dir() and colours.path.is_dir():
            return Folder(read(colours))
        return Folder(read(ids), twin=read(colours) if colours.path.is_dir() else None)

    return DataSet(
        name="tas500",
        labels=labels,
        folders={"train": folder("train"), "val": folder("val")},
        splits={
            "train": ("train", _everything),
            "val": ("val", lambda pictures: pictures[:50]),  # the study's protocol, but in the order of the names
            "test": ("val", lambda pictures: pictures[50:]),
            "val-all": ("val", _everything),
        },
    )


def _camvid(root: Path) -> DataSet:
    """`{train,val,test}/` and `{train,val,test}annot/` of the SegNet tutorial; the test pictures may be absent."""
    root = root / "CamVid" if (root / "CamVid").is_dir() else root
    names = ["train", "val"] + (["test"] if (root / "test").is_dir() else [])
    return DataSet(
        name="camvid",
        labels=CAMVID,
        folders={
            name: Folder(lambda name=name: pair(root / name, LabelFolder(root / f"{name}annot", "ids"), CAMVID))  # type: ignore[misc]
            for name in names
        },
        splits={name: (name, _everything) for name in names},
    )


def _own(root: Path) -> DataSet:
    """Any two folders, described by a YAML file: `root` itself, or the only one inside it (docs/data.md)."""
    description = root
    if root.is_dir():
        found = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
        if len(found) != 1:
            raise FileError(root, f"holds {len(found)} YAML files", "put one there that names folders and classes")
        description = found[0]
    try:
        content = yaml.safe_load(description.read_text(encoding="utf-8"))
        labels = _own_labels(content, name=description.parent.name)
        patterns = {key: str(content.get(key, default)) for key, default in _OWN_FOLDERS.items()}
        encoding = require("encoding", str(content.get("encoding", "auto")), ("auto", "ids", "colours"))
        suffix = str(content.get("label_suffix", ""))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"does not describe a data set ({type(error).__name__}: {' '.join(str(error).split())})"
        raise FileError(description, problem, "docs/data.md shows what it holds") from None
    base = description.parent

    def folder(split: str) -> Folder:
        images, label = (base / patterns[key].replace("{split}", split) for key in ("pictures", "labels"))
        return Folder(lambda: pair(images, LabelFolder(label, encoding), labels, suffix))

    if "{split}" in patterns["pictures"]:
        optional = [s for s in ("test",) if (base / patterns["pictures"].replace("{split}", s)).is_dir()]
        names = ["train", "val", *optional]
        return DataSet("folder", labels, {n: folder(n) for n in names}, {n: (n, _everything) for n in names})
    return DataSet(
        name="folder",
        labels=labels,
        folders={"all": folder("all")},
        splits={
            "train": ("all", lambda pictures: [p for i, p in enumerate(pictures) if i % 5]),
            "val": ("all", lambda pictures: pictures[::5]),  # every fifth picture, in the order of the names
        },
    )


_OWN_FOLDERS = {"pictures": "pictures", "labels": "labels"}


def _own_labels(content: dict[str, Any], name: str) -> LabelSet:
    """The label set of a folder's YAML: `classes` (name, colour, id) and `ignore` (ids)."""
    ids: dict[int, int] = {}
    names: list[str] = []
    colours: list[RGB] = []
    file_colours: dict[RGB, int] = {}
    for position, entry in enumerate(content["classes"]):
        entry = entry if isinstance(entry, dict) else {"name": entry}
        names.append(str(entry["name"]))
        file_id = int(entry.get("id", position))
        if file_id in ids:
            raise ValueError(f"two classes have the id {file_id}")
        ids[file_id] = position
        # Without a colour of its own a class is shown in one that differs from its neighbours'.
        shown = _colour(entry.get("colour", [position * step % 256 for step in (67, 131, 211)]))
        colours.append(shown)
        if "colour" in entry:
            file_colours[shown] = file_id
    if not 1 <= len(names) < IGNORE:
        raise ValueError(f"{len(names)} classes; there can be 1 to {IGNORE - 1}")
    if len(set(names)) < len(names):
        raise ValueError("two classes have the same name")
    for entry in content.get("ignore", [IGNORE]):
        if isinstance(entry, list):
            file_colours[_colour(entry)] = IGNORE
            ids[IGNORE] = IGNORE
        else:
            ids[int(entry)] = IGNORE
    return LabelSet(name, tuple(names), tuple(colours), ids, file_colours)


def _colour(values: Sequence[Any]) -> RGB:
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"the colour {red},{green},{blue} is not three numbers of 0-255")
    return red, green, blue


def _disagreements(first: Sequence[FilePicture], second: Sequence[FilePicture]) -> Iterator[FileError]:
    """Pictures whose two labels are each whole but differ."""
    twins = {picture.name: picture for picture in second}
    for picture in first:
        if picture.name in twins:
            try:
                same = np.array_equal(picture.read()[1], twins[picture.name].read()[1])
            except FileError:
                continue  # reported where it was found
            if not same:
                twin = twins[picture.name].label
                yield FileError(twin, f"does not agree with {picture.label}", "replace the wrong one of the two")
