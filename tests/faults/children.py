"""Commands of trailseg in processes of their own, forked from one that has imported all: a trial takes little."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["children", "strikes", "trailseg.study", "trailseg.predictor", "trailseg.inference"])


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    """Its exit code; below 0 the signal that killed it."""
    out: str
    err: str
    seconds: float
    peak: int
    """The most memory in bytes that it held, with all that it imported; 0 where it was killed."""

    @property
    def lines(self) -> list[str]:
        """Those on standard error."""
        return self.err.splitlines()


@dataclass(frozen=True)
class Child:
    """A command that runs."""

    process: Any
    folder: Path
    started: float

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> Ended:
        """How it ended; it must, within so many seconds."""
        self.process.join(seconds)
        took = time.perf_counter() - self.started
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still runs after {seconds} s:\n{(self.folder / 'err').read_text()}")
        files = [self.folder / name for name in ("out", "err", "peak")]  # of which one that was killed may lack some
        out, err, peak = (file.read_text(errors="replace") if file.exists() else "" for file in files)
        return Ended(self.process.exitcode, out, err, took, int(peak or 0))


def start(folder: Path, *words: object, before: Any = None, **limits: int) -> Child:
    """Starts `trailseg WORDS`, which writes what it prints into `folder`.

    before: a function, importable by name, that the process calls first; its first argument is None, or give a tuple
    (function, arguments...). limits: of `resource`, such as RLIMIT_FSIZE=4096.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err", "peak"):
        (folder / name).unlink(missing_ok=True)
    started = time.perf_counter()
    process = _CONTEXT.Process(target=_child, args=(folder, [str(word) for word in words], before, limits))
    process.start()
    return Child(process, folder, started)


def call(folder: Path, *words: object, seconds: float = 120, **more: Any) -> Ended:
    """Carries out `trailseg WORDS`."""
    return start(folder, *words, **more).wait(seconds)


def _child(folder: Path, words: list[str], before: Any, limits: dict[str, int]) -> None:
    import torch

    from trailseg.cli import main

    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w") for descriptor in (1, 2))
    sys.argv = ["trailseg", *words]
    if before is not None:
        function, *arguments = before
        function(*arguments)
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, name), (most, most))
    try:
        main()
    finally:
        if not limits:
            held = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
            (folder / "peak").write_text(str(1024 * int(held.split()[1])))
