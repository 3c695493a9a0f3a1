"""What a person sees while a network trains: one line an epoch, and a bar where the output is a terminal."""

from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpochProgress:
    """Shows the records of a run, as the log holds them; use as a context manager."""

    def __init__(self, console: Console, name: str, *, done: int, epochs: int) -> None:
        self._console, self._name, self._epochs = console, name, epochs
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._bar = Progress(*columns, *times, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(name, total=epochs, completed=done)
        self._seconds = deque[float](maxlen=10)  # of the last epochs: a pause is soon forgotten

    def __enter__(self) -> "EpochProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the bar, in any thread, and shows the cursor again."""
        self._bar.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        """Shows one epoch."""
        self._seconds.append(record["seconds"])
        text = f"{self._name}  epoch {record['epoch']}/{self._epochs}  loss {record['loss']:.4f}"
        if record["val"] is not None:
            first, last = (_percent(record["val"]["steps"][i]["miou"]) for i in (0, -1))
            text += f"  mIoU {first} -> {last} %"
        left = (self._epochs - record["epoch"]) * sum(self._seconds) / len(self._seconds)
        text += f"  {record['pictures_per_second']:.1f} pictures/s  {_clock(left)} left"
        self._console.print(text, highlight=False, soft_wrap=True)
        self._bar.update(self._task, completed=record["epoch"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
