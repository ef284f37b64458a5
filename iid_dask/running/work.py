"""What a job does, as batches of items: enough for any scheduler, and small to send."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

TASKS_A_THREAD = 16
"""A job is cut into at least so many batches for each thread that works on it, if it has as many items."""


def _no_pixels(start: int, stop: int) -> int:
    return 0


def _number(item: int) -> str:
    return f"item {item}"


@dataclass(frozen=True)
class Work:
    """A job cut into batches of consecutive items.

    Attributes
    ----------
    function : callable
        Called as ``function(shared, *arguments(start, stop))``. It may be called twice for one batch, also at once, and
        for parts of a batch; so it must change nothing when it does its work again.
    shared : Any
        What all batches need.
    batches : sequence of (start, stop)
        Items, consecutive.
    arguments : callable
        Items -> what the function needs beside ``shared``, which is made when the batch is sent.
    about : callable
        Item -> what messages call it.
    pixels : callable
        Items -> pixels that a batch makes; 0: no speed is shown.
    """

    function: Callable[..., Any]
    shared: Any
    batches: Sequence[tuple[int, int]]
    arguments: Callable[[int, int], tuple[Any, ...]]
    about: Callable[[int], str] = _number
    pixels: Callable[[int, int], int] = _no_pixels

    def call(self, start: int, stop: int) -> Call:
        """Return the call of a batch, to be given ``shared``."""
        return Call(self.function, self.arguments(start, stop))


@dataclass(frozen=True, eq=False)
class Call:
    """A function with all its arguments but the first; schedulers do not look into it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, shared: Any) -> Any:
        return self.function(shared, *self.arguments)


def batches_of(count: int, most: int, threads: int) -> list[tuple[int, int]]:
    """Cut items that cost the same into batches.

    Parameters
    ----------
    count
        Items.
    most
        In a batch: about a second's work.
    threads
        That work on them; each gets several batches, so that all end at about the same time.

    Examples
    --------
    >>> batches_of(10, 4, 1) == [(i, i + 1) for i in range(10)]
    True
    >>> batches_of(100, 4, 1)[:3], batches_of(1000, 4, 1)[:3]
    ([(0, 4), (4, 8), (8, 12)], [(0, 4), (4, 8), (8, 12)])
    """
    size = max(1, min(most, count // (TASKS_A_THREAD * max(1, threads))))
    return [(start, min(start + size, count)) for start in range(0, count, size)]


@contextmanager
def named(what: str) -> Iterator[None]:
    """Add to errors of the block what was worked on; a worker's error says it to the client."""
    try:
        yield
    except Exception as error:
        error.add_note(f"this happened in {what}")
        raise
