"""Class tables of the data sets, and the decoding of label pictures into class ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image

IGNORE = 255  # the class id of pixels that are neither trained on nor scored

RGB = tuple[int, int, int]


class LabelError(ValueError):
    """A label picture that cannot be read as class ids; the message says why and what to do."""


@dataclass(frozen=True)
class LabelSet:
    """K classes, and how the files of a data set write them.

    A label file holds *file ids* (or colours that stand for file ids); training and measuring use *class ids* 0..K-1.
    """

    name: str
    classes: tuple[str, ...]
    """K class names, in the order of the class ids."""
    colours: tuple[RGB, ...]
    """K display colours, 0-255."""
    file_ids: Mapping[int, int]
    """File id (0-65535) to class id, or to IGNORE."""
    file_colours: Mapping[RGB, int]
    """Colour in a label file to file id."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides which class id a file's pixel gets."""
        return sha256(
            repr((self.classes, sorted(self.file_ids.items()), sorted(self.file_colours.items()))).encode()
        ).hexdigest()

    def class_ids(self, file_ids: np.ndarray) -> np.ndarray:
        """Class ids (H, W) uint8 for file ids (H, W); LabelError names the ids that no class has."""
        table = np.full(1 << 16, -1, np.int16)
        table[list(self.file_ids)] = list(self.file_ids.values())
        classes = table[file_ids.astype(np.uint16)]
        if (classes < 0).any():
            unknown = np.unique(file_ids[classes < 0]).tolist()
            known = f"the classes of '{self.name}', whose ids are {_ranges(self.file_ids)}"
            raise LabelError(f"{_some('id', unknown)} outside {known}; {_mend(unknown)}")
        return classes.astype(np.uint8)


def make_palette(colours: Sequence[Sequence[int]]) -> np.ndarray:
    """Display colours (256, 3) uint8 by class id; black where there is no class."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    return palette


def decode(image: Image.Image, labels: LabelSet, encoding: str = "auto") -> np.ndarray:
    """Class ids (H, W) uint8, 0..K-1 or IGNORE, of a label picture.

    `encoding` says what the file holds: "ids" (grey, 16-bit grey, three equal channels, or palette indices), "colours"
    (RGB or palette colours), or "auto": whichever is possible. Where both are possible and disagree, the file is
    ambiguous and refused. LabelError on that, on unknown ids or colours and on modes that cannot hold labels.
    """
    readings: list[np.ndarray] = []
    failures: list[LabelError] = []
    for name, read in (("ids", _ids), ("colours", _ids_of_colours)):
        if encoding in ("auto", name):
            try:
                readings.append(labels.class_ids(read(image, labels)))
            except LabelError as error:
                failures.append(error)
    if not readings:
        # A picture with colours in it was meant as colours: its failure is the one to report.
        coloured = image.mode in ("RGB", "RGBA") and np.ptp(np.asarray(image)[..., :3], axis=2).any()
        raise failures[-1 if coloured else 0]
    if any((readings[0] != other).any() for other in readings[1:]):
        raise LabelError("is ambiguous: valid as ids and as colours, which disagree; say which encoding it has")
    return readings[0]


def _ids(image: Image.Image, _: LabelSet) -> np.ndarray:
    """File ids (H, W) of a picture whose numbers are the ids."""
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        ids = np.asarray(image).astype(np.int64)
        if ids.min() < 0 or ids.max() > 65535:
            raise LabelError("ids outside 0-65535; write the ids as 8-bit grey")
        return ids
    channels = _channels(image)
    if np.ptp(channels, axis=2).any():
        raise LabelError("holds colours where ids are expected; write the ids as 8-bit grey")
    return channels[..., 0]


def _ids_of_colours(image: Image.Image, labels: LabelSet) -> np.ndarray:
    """File ids (H, W) of a picture whose colours stand for the ids."""
    if not labels.file_colours:
        raise LabelError(f"the classes of '{labels.name}' have no colours; name them in the class table")
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        raise LabelError("is grey where colours are expected; say encoding ids if the grey values are ids")
    packed = _channels(image) @ np.array([1 << 16, 1 << 8, 1])
    table = sorted((red << 16 | green << 8 | blue, i) for (red, green, blue), i in labels.file_colours.items())
    known, ids = np.array(table).T
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    if (strange := known[place] != packed).any():
        unknown = [f"{c >> 16},{c >> 8 & 255},{c & 255}" for c in np.unique(packed[strange]).tolist()]
        raise LabelError(f"{_some('colour', unknown)} outside the classes of '{labels.name}'; {_mend(unknown)}")
    return ids[place]


def _channels(image: Image.Image) -> np.ndarray:
    """The three channels (H, W, 3) of a picture with colours, none of them transparent."""
    if image.mode in ("P", "LA", "RGBA"):
        image = image.convert("RGBA")
    elif image.mode != "RGB":
        raise LabelError(f"has the mode {image.mode}, which cannot hold labels; save it as 8-bit grey ids or as RGB")
    channels = np.asarray(image)
    if (channels[..., 3:] < 255).any():
        raise LabelError("has transparent pixels, which no class stands for; save it without an alpha channel")
    return channels[..., :3]


def _some(noun: str, values: list[Any]) -> str:
    """'id 40' or 'ids 40, 41, 42 and 7 more'."""
    shown = ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
    return f"{noun}{'s' if len(values) > 1 else ''} {shown}"


def _mend(unknown: list[Any]) -> str:
    """What to do about so many ids or colours that no class has."""
    if len(unknown) > 16:
        return "put the label there (is this a photograph, or a label that was smoothed or compressed?)"
    return "correct the label or the class table"


def _ranges(ids: Mapping[int, int]) -> str:
    """'0-22, 255' for the numbers in `ids`."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


# TAS500 v1.1 (Metzger et al., ICPR 2020): file id, name, colour.
_TAS500: tuple[tuple[str, RGB], ...] = (
    ("asphalt", (192, 192, 192)),
    ("gravel", (105, 105, 105)),
    ("soil", (160, 82, 45)),
    ("sand", (244, 164, 96)),
    ("bush", (60, 179, 113)),
    ("forest", (34, 139, 34)),
    ("low grass", (154, 205, 50)),
    ("high grass", (0, 128, 0)),
    ("misc. vegetation", (0, 100, 0)),
    ("tree crown", (0, 250, 154)),
    ("tree trunk", (139, 69, 19)),
    ("building", (1, 51, 73)),
    ("fence", (190, 153, 153)),
    ("wall", (0, 132, 111)),
    ("car", (0, 0, 142)),
    ("bus", (0, 60, 100)),
    ("sky", (135, 206, 250)),
    ("misc. object", (128, 0, 128)),
    ("pole", (153, 153, 153)),
    ("traffic sign", (255, 255, 0)),
    ("person", (220, 20, 60)),
    ("animal", (255, 182, 193)),
    ("ego vehicle", (220, 220, 220)),
)
_TAS500_FILE_COLOURS = {colour: i for i, (_, colour) in enumerate(_TAS500)} | {(0, 0, 0): IGNORE}

TAS500_FINE = LabelSet(
    name="fine",
    classes=tuple(name for name, _ in _TAS500),
    colours=tuple(colour for _, colour in _TAS500),
    file_ids={i: i for i in range(23)} | {255: IGNORE},
    file_colours=_TAS500_FILE_COLOURS,
)

# The label set of the original study: coarse class, its fine ids, a display colour.
_COARSE: tuple[tuple[str, range, RGB], ...] = (
    ("terrain", range(4), (160, 82, 45)),
    ("vegetation", range(4, 11), (34, 139, 34)),
    ("construction", range(11, 14), (1, 51, 73)),
    ("vehicle", range(14, 16), (0, 0, 142)),
    ("sky", range(16, 17), (135, 206, 250)),
    ("object", range(17, 20), (128, 0, 128)),
    ("human", range(20, 21), (220, 20, 60)),
    ("animal", range(21, 22), (255, 182, 193)),
    ("void", range(22, 23), (220, 220, 220)),
)

TAS500_COARSE = LabelSet(
    name="coarse",
    classes=tuple(name for name, _, _ in _COARSE),
    colours=tuple(colour for _, _, colour in _COARSE),
    file_ids={i: k for k, (_, ids, _) in enumerate(_COARSE) for i in ids} | {255: IGNORE},
    file_colours=_TAS500_FILE_COLOURS,
)

# CamVid (Brostow et al., 2008), the 11 classes of the SegNet tutorial; 11 is void.
_CAMVID: tuple[tuple[str, RGB], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CAMVID = LabelSet(
    name="camvid",
    classes=tuple(name for name, _ in _CAMVID),
    colours=tuple(colour for _, colour in _CAMVID),
    file_ids={i: i for i in range(11)} | {11: IGNORE},
    file_colours={colour: i for i, (_, colour) in enumerate(_CAMVID)} | {(0, 0, 0): 11},
)
