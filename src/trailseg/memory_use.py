"""Memory in use: what a call adds to it at its peak, and calls in a new process, which nothing else disturbs."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar, cast

T = TypeVar("T")

HANDS_BACK = {"MALLOC_MMAP_THRESHOLD_": "4096"}  # makes glibc give each freed block of 4 KiB or more to the system


def grown(call: Callable[[], object], device: str) -> int | None:
    """Bytes by which the memory in use grows at most during a call; None where nobody counts them.

    device: "cuda" for what PyTorch's allocator gives out; else it is this process's resident memory, on Linux alone.
    """
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        forget_peak()
    except OSError:
        return None
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def forget_peak() -> None:
    """Sets the peak VmHWM to what is in use now; OSError where the system is not Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(key: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at the peak. `resource` would give the parent's peak too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[key].split()[0])


def apart(function: Callable[..., T], *given: object, environment: Mapping[str, str] | None = None) -> T:
    """What a function of a module returns in a new process, which hands freed memory back at once.

    environment: variables of that process, beside this one's. What the function raises is raised here; MemoryError
    where the process is killed, which is how Linux refuses memory, RuntimeError where it ends otherwise. Where
    this process is killed, it ends as soon as the function returns.
    """
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sending, function, given))
    kept = dict(os.environ)
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # is inherited: Ctrl-C is for this process
    os.environ.update(HANDS_BACK | dict(environment or {}))
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(kept)
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    sending.close()
    try:
        found, error = receiving.recv()
    except EOFError:
        process.join()
        if process.exitcode and process.exitcode < 0:
            raise MemoryError from None
        raise RuntimeError(f"a process of its own ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiving.close()
    if error is not None:
        raise error
    return cast(T, found)


def _tell(sending: Connection, function: Callable[..., object], given: tuple[object, ...]) -> None:
    """The process of its own: sends what the function returns, or what it raises."""
    try:
        told: tuple[object, Exception | None] = function(*given), None
    except Exception as error:
        told = None, error
    with suppress(BrokenPipeError):  # nobody waits any more
        sending.send(told)
