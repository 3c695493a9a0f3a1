"""The two kinds of error a user can fix; each is one line that says what, where and what to do."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType


class OptionError(ValueError):
    """A wrong option or value (exit code 2)."""


class FileError(Exception):
    """Something wrong with a file, a folder or a data set (exit code 1)."""

    def __init__(self, path: Path | str, problem: str, remedy: str) -> None:
        self.path, self.problem, self.remedy = Path(path), problem, remedy
        super().__init__(path, problem, remedy)  # with which another process makes it anew

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; {self.remedy}"


def lacks_memory(error: Exception) -> bool:
    """Whether an exception, of Python or of PyTorch on any device, says that there is not enough memory."""
    return isinstance(error, MemoryError) or bool(re.search("(out of|allocate) memory|[Ss]torage size", str(error)))


def missing(what: str, extra: str) -> OptionError:
    """Tells `what` is missing, and how the extra that installs it is had."""
    return OptionError(f"{what}: pip install '.[{extra}]' in its repository")


def optional(module: str, what: str, extra: str) -> ModuleType:
    """A module that is installed only where it is wanted; OptionError as `missing` says it where it is not."""
    try:
        return import_module(module)
    except ImportError:
        raise missing(what, extra) from None


def require(option: str, value: str, allowed: Iterable[str], *, joint: str = "=") -> str:
    """`value`, if it is among `allowed`; otherwise an OptionError that names the nearest and lists all.

    joint: what stands between the option and its value there.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    near = get_close_matches(value, allowed, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise OptionError(f"{option}{joint}{value} is not known: {hint}choose one of {', '.join(allowed)}")
