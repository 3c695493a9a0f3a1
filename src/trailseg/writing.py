"""Atomic file writes: nobody ever sees half a file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from trailseg.errors import FileError
from trailseg.locks import lock

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W) or (H, W, 3) uint8."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def figure_png(figure: "Figure", dpi: int) -> bytes:
    """A PNG of a figure of matplotlib, at so many pixels an inch."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_whole(path: Path, content: bytes | str, keep: Path | None = None) -> Path:
    """Writes beside `path`, flushes to the disk and renames: a reader sees the old content or all of the new.

    With `keep` the old content is kept under that name. Folders are made as needed. FileError where that fails; the
    old content is then still there.
    """
    try:
        with half_written(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            if keep and path.exists():
                keep.unlink(missing_ok=True)
                _link(path, keep)
            Path(file.name).replace(path)
        _flush_names(path.parent)
    except OSError as error:
        raise FileError(path, f"cannot be written ({error.strerror})", "make room or give permission there") from None
    return path


@contextmanager
def half_written(path: Path) -> Iterator[IO[bytes]]:
    """A file open beside `path`, in which to write what shall replace it; not replaced, it goes with the block.

    `sweep` leaves it alone while this process lives. Folders are made as needed. OSError where that fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            lock(file)
            yield file
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _link(path: Path, name: Path) -> None:
    """Gives a file a second name."""
    try:
        name.hardlink_to(path)
    except OSError:  # a file system that cannot
        shutil.copyfile(path, name)


def _flush_names(folder: Path) -> None:
    """Flushes to the disk which files a folder holds, and under which names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Removes from a folder what is `half_written` of processes that are gone."""
    for part in folder.glob(".*.part"):
        with suppress(OSError), part.open("rb") as file:
            if lock(file):
                part.unlink()
