"""A cache that is bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
    """What was used last, up to some bytes; safe in threads."""

    def __init__(self, nbytes: int) -> None:
        self._most, self._held = nbytes, 0
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, token: Hashable, make: Callable[[], Any]) -> Any:
        """Return what is kept under ``token``, or make it; it tells its ``nbytes``."""
        with self._lock:
            if token in self._kept:
                self._kept.move_to_end(token)
                return self._kept[token]
        made = make()
        with self._lock:
            if token not in self._kept:
                self._kept[token] = made
                self._held += made.nbytes
            while self._held > self._most and len(self._kept) > 1:
                self._held -= self._kept.popitem(last=False)[1].nbytes
        return made
