"""Writing files so that nobody ever sees half of one."""

import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trailseg.errors import FileError

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


def write_whole(path: Path, content: bytes | str) -> Path:
    """Writes beside `path`, flushes to the disk and renames: a reader sees the old content or all of the new.

    Folders are made as needed. FileError where that fails; the old content is then still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise FileError(path, f"cannot be written ({error.strerror})", "make room or give permission there") from None
    return path
