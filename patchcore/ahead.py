"""Threads that work ahead of whoever takes their results, and results in time for slow input."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Pause(Enum):
    """Mark in a stream of items that the next item has not come yet.

    Who gets it passes on all results so far, and then the mark, before asking for more.
    """

    here = "here"


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T | Pause], most: int
) -> Iterator[U | Pause]:
    """Yield `function(item)` in the order of the items; at most so many calls run at a time."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        if isinstance(item, Pause):
            while waiting:
                yield waiting.popleft().result()
            yield item
            continue
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
