"""Keys as callers write them: one int, a range, or several ints."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

import numpy as np


def as_keys(keys: int | Iterable[int], stop: int) -> Iterable[int]:
    """Return keys ascending, each once; a range is clipped to 0 … ``stop``, as a slice would be.

    Raises
    ------
    TypeError
        For anything that is no integer.

    Examples
    --------
    >>> as_keys(range(-3, 50, 2), 4), as_keys(range(9, -1, -3), 7), as_keys([4, 1, 4], 2)
    (range(1, 4, 2), range(0, 7, 3), [1, 4])
    """
    if isinstance(keys, range):
        upward = keys if keys.step > 0 else keys[::-1]
        upward = upward[max(0, -(upward.start // upward.step)) :]
        return range(upward.start, min(upward.stop, stop), upward.step)
    several = keys if isinstance(keys, Iterable) and not isinstance(keys, str | bytes) else [keys]
    return sorted({_as_key(key) for key in several})


def _as_key(value: Any) -> int:
    wrong = isinstance(value, bool | np.bool_)
    try:
        key = index(value)
    except TypeError:
        wrong = True
    if wrong:
        raise TypeError(f"keys: {value!r} is {type(value).__name__}, expected an int, a range or several ints")
    return key
