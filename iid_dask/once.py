"""Things that a process opens once and keeps a while, so that a task costs no opening."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """A small bounded cache of this process; safe in threads, empty after a fork.

    Eviction drops a reference: what is in use elsewhere lives on.

    Parameters
    ----------
    size : int
        How many are kept; those unused longest go first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._clear()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        # A fork may have copied the lock while another thread held it.
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, token: Hashable, make: Callable[[], T], *, alone: bool = False) -> T:
        """Return what is kept under ``token``, or make it.

        Parameters
        ----------
        token
        make
            May run in two threads at once, of which one's result is kept, unless ``alone``.
        alone
            Make it under the lock.
        """
        with self._lock:
            if token in self._kept:
                self._kept.move_to_end(token)
                return self._kept[token]
            if alone:
                return self._keep(token, make())
        made = make()
        with self._lock:
            return self._keep(token, made)

    def _keep(self, token: Hashable, made: T) -> T:
        kept = self._kept.setdefault(token, made)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return kept

    def drop(self, which: Callable[[T], bool]) -> None:
        """Forget the objects of which ``which`` is true."""
        with self._lock:
            for token in [token for token, kept in self._kept.items() if which(kept)]:
                del self._kept[token]
