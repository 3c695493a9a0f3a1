"""Locks that the system frees when the process that holds them ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trailseg.errors import FileError


def lock(file: IO[Any] | int) -> bool:
    """Locks an open file until it is closed; False where another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Within it no other process gets this far with the folder, which is made; FileError that names the other process.

    doing: such as "is being trained".
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not lock(descriptor):
            other = os.read(descriptor, 100).decode(errors="replace").strip()
            os.close(descriptor)
            raise FileError(folder, f"{doing} by process {other or 'unknown'}", "wait for it, or end it")
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:  # else its last holder has just removed it
                break
        os.close(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {os.uname().nodename}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
