"""`data=folder`: any two folders of pictures and label PNGs, described by a small YAML file (docs/data.md)."""

from pathlib import Path
from typing import Any

from trailseg.data.files import DataSet, Folder, LabelFolder, Split
from trailseg.errors import FileError, require
from trailseg.labels import IGNORE, RGB, LabelSet
from trailseg.parsing import read_yaml

_KEYS = ("classes", "ignore", "pictures", "labels", "label_suffix", "encoding")


def own(root: Path) -> DataSet:
    """The data set that a YAML file describes: `root` itself, or the only one inside it."""
    found = sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if root.is_dir() else [root]
    if len(found) != 1:
        raise FileError(root, f"holds {len(found)} YAML files", "put one there that names folders and classes")
    try:
        return _data_set(found[0].parent, read_yaml(found[0]))
    except (FileError, ValueError) as error:
        problem = error.problem if isinstance(error, FileError) else " ".join(str(error).split())
        problem = f"does not describe a data set ({problem})"
        raise FileError(found[0], problem, "docs/data.md shows what it holds") from None


def _data_set(base: Path, content: Any) -> DataSet:
    """The data set of a YAML file in the folder `base`."""
    content = _checked(content, _KEYS, "the file")
    labels = _label_set(base.resolve().name, content)
    pictures, truth = (str(content.get(key, key)) for key in ("pictures", "labels"))
    suffix = str(content.get("label_suffix", ""))
    encoding = require("encoding", str(content.get("encoding", "auto")), ("auto", "ids", "colours"))

    def folder(split: str) -> Folder:
        images, label = (base / pattern.replace("{split}", split) for pattern in (pictures, truth))
        return Folder(images, (LabelFolder(label, encoding),), labels, suffix)

    if ("{split}" in pictures) != ("{split}" in truth):
        raise ValueError("{split} stands in only one of pictures and labels")
    if "{split}" in pictures:
        names = ["train", "val"] + ["test"] * folder("test").pictures.is_dir()
        return DataSet(labels, {name: Split(folder(name)) for name in names})
    whole, fifth = folder(""), 5  # every fifth picture, in the order of the names, is kept for val
    splits = {
        "train": Split(whole, lambda place, name: place % fifth > 0),
        "val": Split(whole, lambda place, name: place % fifth == 0),
    }
    return DataSet(labels, splits)


def _label_set(name: str, content: dict[str, Any]) -> LabelSet:
    """The classes and what is ignored: names, file ids and colours."""
    entries = content.get("classes")
    if not isinstance(entries, list) or not 1 <= len(entries) < IGNORE:
        raise ValueError(f"classes is not a list of 1 to {IGNORE - 1} entries")
    names: list[str] = []
    shown: list[RGB] = []
    ids: dict[int, int] = {}
    colours: dict[RGB, int] = {}
    for place, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {"name": entry}
        _checked(entry, ("name", "id", "colour", "color"), "a class")
        file_id = _id(entry.get("id", place))
        _add(ids, file_id, place)
        names.append(str(entry.get("name")))
        given = entry.get("colour", entry.get("color"))
        # Without a colour of its own a class is shown in one that differs from its neighbours'.
        shown.append(_colour(given if given is not None else [(place + 1) * step % 256 for step in (67, 131, 211)]))
        if given is not None:
            _add(colours, shown[-1], file_id)
    if len(set(names)) < len(names) or "None" in names:
        raise ValueError("two classes have the same name, or one has none")
    ignored = content.get("ignore", [] if IGNORE in ids else [IGNORE])
    if not isinstance(ignored, list):
        raise ValueError("ignore is not a list")
    for entry in ignored:
        _add(ids, IGNORE if isinstance(entry, list) else _id(entry), IGNORE)
        if isinstance(entry, list):  # a colour, which stands for the file id 255
            _add(colours, _colour(entry), IGNORE)
    return LabelSet(name, tuple(names), tuple(shown), ids, colours)


def _checked(mapping: Any, keys: tuple[str, ...], what: str) -> dict[str, Any]:
    """`mapping`, if it is one and has no other keys; a misspelt key must not pass for one left out."""
    if not isinstance(mapping, dict):
        raise ValueError(f"{what} holds no keys")
    for key in mapping:
        require("key", str(key), keys)
    return mapping


def _add(table: dict[Any, int], key: Any, value: int) -> None:
    if table.setdefault(key, value) != value:
        raise ValueError(f"{key} stands for two classes, or for a class and what is ignored")


def _id(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"the id {value} is not a whole number of 0-65535")
    return value


def _colour(value: Any) -> RGB:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in value):
        raise ValueError(f"the colour {value} is not three numbers of 0-255")
    return value[0], value[1], value[2]
