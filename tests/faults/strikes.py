"""Faults at a chosen place, laid in a process before its command begins; see `children.start`."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import torch


def operations(how: int, number: int, count: Path) -> None:
    """At the number-th time, from 1, that a file is written, flushed, linked, renamed or removed: how.

    how: an errno with which that fails, or 0 for kill -9: half of the file written, or the operation just done.
    count: a file that gets a byte for each operation.
    """
    counter = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def struck() -> bool:
        os.write(counter, b".")
        return os.fstat(counter).st_size == number

    def fail(path: object) -> None:
        raise OSError(how, os.strerror(how), str(path))

    for name in ("fsync", "replace", "link", "unlink"):
        real = getattr(os, name)

        def call(*given, real=real, **more):
            hit = struck()
            if hit and how:
                fail(given[0])
            try:
                return real(*given, **more)
            finally:
                if hit:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, call)
    opened = Path.open

    def open_(self, mode="r", *given, **more):
        file = opened(self, mode, *given, **more)
        if mode not in ("wb", "r+b"):
            return file

        class Struck:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, content):
                if not struck():
                    return file.write(content)
                file.write(bytes(content)[: len(content) // 2])
                file.flush()
                return fail("file") if how else os.kill(os.getpid(), signal.SIGKILL)

        return Struck()

    Path.open = open_


def signal_in_step(number: int, signal_number: int) -> None:
    """In the number-th optimiser step, from 1, that signal comes while a single operation of C takes half a minute."""
    from trailseg.losses import StepLoss

    real, left = StepLoss.__call__, [number]

    def call(self, *given):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal_number)
            libc = ctypes.CDLL(None)
            while True:
                libc.usleep(30_000_000)
        return real(self, *given)

    StepLoss.__call__ = call


def poison(number: int) -> None:
    """After the number-th optimiser step, from 1, a weight is infinite."""
    step, left = torch.optim.AdamW.step, [number]

    def call(self, *given):
        step(self, *given)
        left[0] -= 1
        if left[0] == 0:
            self.param_groups[0]["params"][0].data.view(-1)[0] = float("inf")

    torch.optim.AdamW.step = call


def watch(marker: Path) -> None:
    """Notes in a file whatever a process should not do."""
    never = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
             "pickle.find_class", "socket.getaddrinfo", "urllib.Request")  # fmt: skip

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in never or (event == "import" and str(arguments[0]).split(".")[0] in ("evil", "antigravity")):
            descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{event} {arguments[:1]}\n".encode())
            os.close(descriptor)

    sys.addaudithook(note)


def own_cache(folder: Path) -> None:
    """Decoded pictures are cached there."""
    os.environ["XDG_CACHE_HOME"] = str(folder)


def go_away(number: int, folder: Path, name: Path) -> None:
    """Just before the number-th checkpoint, from 1, is written, the folder gets another name."""
    from trailseg import checkpoints

    write, left = checkpoints.write, [number]

    def call(*given):
        left[0] -= 1
        if left[0] == 0:
            folder.rename(name)
        write(*given)

    checkpoints.write = call


def handle_another_signal() -> None:
    """Python handles SIGUSR1 by doing nothing."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
