"""The cache of decoded splits: files are decoded once, and memory-mapped from then on where memory would not hold them.

It lies in $XDG_CACHE_HOME/trailseg (default: ~/.cache/trailseg), never in the data set, and can be removed at any time.
A split at a size has one entry, made anew when a picture, a label or the label map has changed.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from trailseg.data.files import Picture
from trailseg.data.memory import Counts, Memory, decode, resized
from trailseg.errors import FileError
from trailseg.writing import write_whole

FORMAT = 1  # of an entry; raise it when the files below, or what decoding gives, change


def decoded(pictures: Sequence[Picture], size: tuple[int, int], *, budget: float) -> Memory:
    """The pictures at (H, W) = `size`, held in memory up to `budget` bytes of images and labels, else memory-mapped.

    Pictures that are not files are decoded on the spot, and so are files that the budget holds where no cache can be
    written. FileError as `decode` raises it, and where the cache is needed but cannot be written.
    """
    stamps = [picture.stamp() for picture in pictures]
    held = 4 * len(pictures) * prod(size) <= budget
    if None in stamps:
        return decode(pictures, size)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trailseg"
    identity = _hash([FORMAT, PIL.__version__, size, [stamp.identity for stamp in stamps if stamp]])
    data = folder / f"{identity}-{_hash([stamp.content for stamp in stamps if stamp])}"
    entry = _read_index(data)
    if entry is None:
        try:
            entry = _write(pictures, size, data)
        except OSError as error:
            if held:
                return decode(pictures, size)
            problem = f"{len(pictures)} decoded pictures cannot be written there ({error.strerror})"
            remedy = "set XDG_CACHE_HOME to a folder with room, or say a larger memory="
            raise FileError(folder, problem, remedy) from None
        for old in folder.glob(f"{identity}-*"):
            if not old.name.startswith(data.name):
                with suppress(OSError):
                    old.unlink()
    memory = _map(data, size, entry["names"], entry["shapes"], Counts(**entry["counts"]))
    return memory.held() if held else memory


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _index(data: Path) -> Path:
    return data.with_name(f"{data.name}.json")


def _read_index(data: Path) -> dict[str, Any] | None:
    """What the index says of whole data; None where there are none."""
    try:
        entry = json.loads(_index(data).read_bytes())
        return entry if entry["bytes"] == data.stat().st_size else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(pictures: Sequence[Picture], size: tuple[int, int], data: Path) -> dict[str, Any]:
    """Writes all images, then all labels, then every truth; last the index, which it returns."""
    data.parent.mkdir(parents=True, exist_ok=True)
    part = data.with_name(f".{data.name}.{os.getpid()}.part")
    labels, end, shapes = 3 * len(pictures) * prod(size), 4 * len(pictures) * prod(size), []
    try:
        with part.open("wb") as file:
            for place, (image, label, truth) in enumerate(resized(pictures, size)):
                wanted = ((3 * place * prod(size), image), (labels + place * prod(size), label), (end, truth))
                for start, values in wanted:
                    file.seek(start)
                    file.write(np.ascontiguousarray(values).data)
                end += truth.size
                shapes.append(truth.shape)
        part.replace(data)
    finally:
        part.unlink(missing_ok=True)
    names = [picture.name for picture in pictures]
    counts = _map(data, size, names, shapes, None).counts
    entry = {"names": names, "shapes": shapes, "counts": asdict(counts), "bytes": end}
    write_whole(_index(data), json.dumps(entry))
    return entry


def _map(
    data: Path, size: tuple[int, int], names: list[str], shapes: Sequence[Sequence[int]], counts: Counts | None
) -> Memory:
    with data.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no memory that is read-only
    flat, pixels = np.frombuffer(mapped, np.uint8), len(names) * prod(size)
    return Memory(
        names=names,
        images=torch.from_numpy(flat[: 3 * pixels]).view(len(names), 3, *size),
        labels=torch.from_numpy(flat[3 * pixels : 4 * pixels]).view(len(names), *size),
        truths=Truths(flat[4 * pixels :], shapes),
        known=counts,
        mapped=mapped,
    )


class Truths(Sequence[np.ndarray]):
    """Class ids (H', W') uint8 of pictures of any size, which lie one after the other in a flat array."""

    def __init__(self, flat: np.ndarray, shapes: Sequence[Sequence[int]]) -> None:
        self._shapes = shapes
        self._parts = np.split(flat, np.cumsum([prod(shape) for shape in shapes])[:-1])

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, place: Any) -> Any:
        return np.array(self._parts[place]).reshape(self._shapes[place])
