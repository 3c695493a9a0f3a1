"""Calls ahead in threads: order, how many, exceptions in their place, and an early end."""

import time
from collections.abc import Callable, Iterator
from threading import Barrier, Event, Timer
from threading import enumerate as threads

import pytest

from trailseg.prefetch import prefetch


class Items:
    """0, 1, 2, ... up to `count`, and how many were taken."""

    def __init__(self, count: int, *, seconds: float = 0, then: BaseException | None = None) -> None:
        self.count, self.seconds, self.then, self.taken = count, seconds, then, 0

    def __iter__(self) -> Iterator[int]:
        for item in range(self.count):
            time.sleep(self.seconds)
            self.taken += 1
            yield item
        if self.then:
            raise self.then


def until(condition: Callable[[], object]) -> None:
    """Waits for what other threads do; fails rather than waiting for ever."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize(("depth", "workers"), [(0, 1), (1, 3), (4, 2), (20, 3)])
def test_results_come_in_the_order_of_the_items_whenever_they_are_done(depth: int, workers: int):
    done = []

    def late(item: int) -> int:
        if item % 2 == 0 and item < 10 and min(depth, workers - 1):
            until(lambda: item + 1 in done)
        done.append(item)
        return -item

    assert list(prefetch(late, range(11), depth=depth, workers=workers)) == [-item for item in range(11)]
    assert list(prefetch(late, [], depth=depth, workers=workers)) == []


def test_as_many_are_computed_at_once_as_there_are_workers():
    together = Barrier(3)

    def meet(item: int) -> int:
        together.wait(timeout=20)
        return item

    assert list(prefetch(meet, range(6), depth=2, workers=3)) == list(range(6))


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_no_more_than_depth_further_items_are_taken(depth: int):
    items, begun = Items(20), []

    def first_waits(item: int) -> int:
        begun.append(item)
        if item == 0:
            until(lambda: len(begun) == depth + 1)
        return item

    results = prefetch(first_waits, items, depth=depth, workers=depth + 3)
    assert items.taken == 0
    for taken, _ in enumerate(results, depth + 1):
        assert len(begun) <= items.taken <= min(taken, 20)
    assert items.taken == 20


def test_a_result_that_is_there_is_not_kept_back_until_slow_items_fill_the_depth():
    items = Items(1000, seconds=0.01)
    assert next(prefetch(abs, items, depth=500, workers=1)) == 0
    assert items.taken < 250


def test_an_exception_is_raised_in_its_place():
    def failing(item: int) -> int:
        return 6 // (2 - item)

    results = prefetch(failing, range(9), depth=5, workers=3)
    assert [next(results), next(results)] == [3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_where_an_item_cannot_be_made_the_results_before_it_come_first():
    results = prefetch(abs, Items(3, then=OSError("no more")), depth=5, workers=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no more"):
        next(results)


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_at_an_early_end_what_runs_is_waited_for_and_the_rest_is_not_begun(how: str):
    items = Items(9 if how == "close" else 4, then=KeyboardInterrupt())
    begun, ended, release = [], [], Event()

    def second_waits(item: int) -> int:
        begun.append(item)
        if item == 0:
            until(lambda: items.taken == 4)
        if item == 1:
            assert release.wait(20)
        ended.append(item)
        return item

    results = prefetch(second_waits, items, depth=3, workers=1)
    assert next(results) == 0
    until(lambda: 1 in begun)
    Timer(0.5, release.set).start()
    if how == "close":
        results.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            next(results)
    assert begun == ended == [0, 1]
    assert not [thread for thread in threads() if thread.name.startswith("prefetch")]
