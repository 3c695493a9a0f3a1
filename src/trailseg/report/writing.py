"""Writing a file whole or not at all."""

import os
from pathlib import Path

from trailseg.errors import FileError


def write(path: Path, content: bytes) -> Path:
    """Put `content` at `path` in one step, so that a reader sees the old file or the new one; returns `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FileError(path, f"cannot be written ({error.strerror})", "free the space or the permission") from error
    return path
