"""Mapping a function over items in threads, a bounded number of calls ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, depth: int, workers: int
) -> Generator[Result, None, None]:
    """Yields function(item) of each item, in order, while up to `depth` further ones are computed by `workers` threads.

    The items are made in the calling thread; where they are slow to make, a result that is there waits for one more of
    them only. An Exception, of the function or in making an item, is raised in its place, after the results before it.
    When the generator ends or is closed, what is not begun is cancelled and what runs is waited for.

    >>> list(prefetch(abs, [-3, 2, -1], depth=1, workers=2))
    [3, 2, 1]
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")

    def begin() -> Iterator[Future[Result]]:
        try:
            for item in items:
                yield pool.submit(function, item)
        except Exception as error:
            failed = Future[Result]()
            failed.set_exception(error)
            yield failed

    begun = deque[Future[Result]]()
    try:
        for future in begin():
            begun.append(future)
            if len(begun) > depth or begun[0].done():
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
