"""The cache of decoded splits: files are decoded once, and memory-mapped from then on where memory would not hold them.

It lies in $XDG_CACHE_HOME/trailseg (default: ~/.cache/trailseg), never in the data set, and can be removed at any time.
A split at a size has one entry, made anew when a picture, a label or the label map has changed. Whatever is read of an
entry is held against checksums, so that damage is noticed before it is learnt: where images and labels are read into
memory, they are then decoded anew; what is memory-mapped, and truths, stop the run when they are used. Nothing is read
only to be checked, so damage in a picture that is never used is never seen.
"""

import hashlib
import json
import mmap
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from trailseg.data.files import Picture
from trailseg.data.memory import Counts, Memory, decode, resized
from trailseg.errors import FileError
from trailseg.writing import half_written, sweep, write_whole

FORMAT = 2  # of an entry; raise it when the files below, or what decoding gives, change


def decoded(pictures: Sequence[Picture], size: tuple[int, int], *, budget: float, skip_bad: bool = False) -> Memory:
    """The pictures at (H, W) = `size`, held in memory up to `budget` bytes of images and labels, else memory-mapped.

    Pictures that are not files are decoded on the spot, and so are files that the budget holds where no cache can be
    written. FileError as `decode` raises it, and where the cache is needed but cannot be written.
    """
    stamps = [picture.stamp() for picture in pictures]
    held = 4 * len(pictures) * prod(size) <= budget
    if None in stamps:
        return decode(pictures, size, skip_bad=skip_bad)
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trailseg"
    identity = _hash([FORMAT, PIL.__version__, size, [stamp.identity for stamp in stamps if stamp]])
    data = folder / f"{identity}-{_hash([stamp.content for stamp in stamps if stamp])}"
    memory = _read(data, size, len(pictures), held=held)
    if memory is None:
        try:
            _write(pictures, size, data, skip_bad=skip_bad)
        except OSError as error:
            if held:
                return decode(pictures, size, skip_bad=skip_bad)
            problem = f"{len(pictures)} decoded pictures cannot be written there ({error.strerror})"
            remedy = "set XDG_CACHE_HOME to a folder with room, or say a larger memory="
            raise FileError(folder, problem, remedy) from None
        for old in folder.glob(f"{identity}-*"):
            if not old.name.startswith(data.name):
                with suppress(OSError):
                    old.unlink()
        memory = _read(data, size, len(pictures), held=held) or decode(pictures, size, skip_bad=skip_bad)
    if memory.left_out and not skip_bad:
        raise memory.left_out[0]
    return memory


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def _index(data: Path) -> Path:
    return data.with_name(f"{data.name}.json")


def _read(data: Path, size: tuple[int, int], slots: int, *, held: bool) -> Memory | None:
    """The entry of so many pictures; None where there is none, or a damaged one, as far as that is seen by now."""
    try:
        entry = json.loads(_index(data).read_bytes())
        if entry["bytes"] != data.stat().st_size:
            return None
        memory = _map(data, size, slots, Entry(**entry))
        return memory.held() if held else memory
    except (OSError, ValueError, LookupError, TypeError, FileError):
        return None


@dataclass(frozen=True)
class Entry:
    """What the index of an entry holds."""

    bytes: int
    """Size of the data file."""
    names: list[str]
    shapes: list[list[int]]
    """Height and width of each truth."""
    sums: list[list[int]]
    """CRC-32 of the image and the label, and of the truth, of each picture."""
    left_out: list[list[str]]
    """Path, problem and remedy of each bad picture."""
    counts: dict[str, Any] | None = None
    """See `memory.Counts`."""


def _write(pictures: Sequence[Picture], size: tuple[int, int], data: Path, *, skip_bad: bool) -> None:
    """Writes all images, then all labels, then every truth; last the index.

    There is room for the images and labels of all pictures; those of bad ones are left empty, at the end of each.
    """
    sweep(data.parent)
    labels, end = 3 * len(pictures) * prod(size), 4 * len(pictures) * prod(size)
    names, shapes, sums, left_out = list[str](), list[list[int]](), list[list[int]](), list[FileError]()
    with half_written(data) as file:
        for name, image, label, truth in resized(pictures, size, left_out if skip_bad else None):
            place = len(names)
            wanted = ((3 * place * prod(size), image), (labels + place * prod(size), label), (end, truth))
            for start, values in wanted:
                file.seek(start)
                file.write(np.ascontiguousarray(values).data)
            end += truth.size
            names.append(name)
            shapes.append(list(truth.shape))
            sums.append([_sum(image, label), _sum(truth)])
        file.flush()
        Path(file.name).replace(data)
    entry = Entry(end, names, shapes, sums, [[str(fault.path), fault.problem, fault.remedy] for fault in left_out])
    counts = _map(data, size, len(pictures), entry).counts
    write_whole(_index(data), json.dumps(asdict(replace(entry, counts=asdict(counts)))))


def _sum(*arrays: np.ndarray) -> int:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return value


def _map(data: Path, size: tuple[int, int], slots: int, entry: Entry) -> Memory:
    with data.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no memory that is read-only
    flat, pixels, count = np.frombuffer(mapped, np.uint8), slots * prod(size), len(entry.names)
    return Memory(
        names=entry.names,
        images=torch.from_numpy(flat[: 3 * pixels]).view(slots, 3, *size)[:count],
        labels=torch.from_numpy(flat[3 * pixels : 4 * pixels]).view(slots, *size)[:count],
        truths=Truths(data, flat[4 * pixels :], entry),
        known=Counts(**entry.counts) if entry.counts else None,
        mapped=MappedFile(data, mapped, entry),
        left_out=[FileError(*fault) for fault in entry.left_out],
    )


@dataclass(frozen=True)
class MappedFile:
    """The data of an entry. Whatever is read of it is held against its CRC-32: the whole of it never is at once."""

    data: Path
    mapped: mmap.mmap
    entry: Entry

    def check(self, where: Tensor, images: Tensor, labels: Tensor) -> None:
        """See `memory.Mapped`; forgets what has been read, which else would stay in this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)
        for place, image, label in zip(where.tolist(), images.numpy(), labels.numpy(), strict=True):
            _require(self.data, _sum(image, label) == self.entry.sums[place][0])


def _require(data: Path, same: bool) -> None:
    """FileError unless what was read is what was written."""
    if not same:
        raise FileError(data, "has been damaged since it was written", "remove it: the next start makes it anew")


class Truths(Sequence[np.ndarray]):
    """Class ids (H', W') uint8 of pictures of any size, which lie one after the other in a flat array."""

    def __init__(self, data: Path, flat: np.ndarray, entry: Entry) -> None:
        self._data, self._entry = data, entry
        self._parts = np.split(flat, np.cumsum([prod(shape) for shape in entry.shapes])[:-1])

    def __len__(self) -> int:
        return len(self._entry.names)

    def __getitem__(self, place: Any) -> Any:
        truth = np.array(self._parts[place]).reshape(self._entry.shapes[place])
        _require(self._data, _sum(truth) == self._entry.sums[place][1])
        return truth
