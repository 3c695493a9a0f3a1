"""SIGINT and SIGTERM during training: progress is saved and the process ends, even in mid-computation.

Python handles a signal between two of its own instructions, and a backward pass may be a single one of many seconds.
So a thread waits for the signals and does what is to be done, while the main thread computes on.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from trailseg.errors import FileError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_calls: list[Callable[[], None]] = []


@contextmanager
def before_leaving(call: Callable[[], None]) -> Iterator[None]:
    """Within it a signal of `leaving` has the thread call this first; later ones come before earlier ones."""
    _calls.append(call)
    try:
        yield
    finally:
        _calls.remove(call)


@contextmanager
def leaving(say: Callable[[str], object]) -> Iterator[None]:
    """Within it SIGINT and SIGTERM end the process with 128 + their number, once it has told the user.

    say: gets "interrupted", or what went wrong in a call of `before_leaving`. Signals that are ignored stay so.
    """
    heard, hears = socket.socketpair()
    hears.setblocking(False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    descriptor = signal.set_wakeup_fd(hears.fileno())
    thread = Thread(target=_wait, args=(heard, say), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        hears.close()  # which ends the thread
        thread.join()
        heard.close()


def _wait(heard: socket.socket, say: Callable[[str], object]) -> None:
    number = 0
    while number not in SIGNALS:  # others that Python handles are heard, too
        if not (byte := heard.recv(1)):
            return
        number = byte[0]
    told = "interrupted"
    for call in reversed(_calls):
        try:
            call()
        except FileError as error:
            told = f"interrupted; {error}"
    say(told)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(128 + number)
