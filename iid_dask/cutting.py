"""Work cut into parts of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from iid_dask.bbox import BBox


def tiles(box: BBox, side: int | tuple[int, int]) -> Iterator[BBox]:
    """Cut a box into tiles of ``side`` rows and columns, or (rows, columns); smaller ones at its ends.

    Examples
    --------
    >>> [tuple(tile) for tile in tiles(BBox(5, 0, 9, 2049), 2048)]
    [(5, 0, 9, 2048), (5, 2048, 9, 2049)]
    """
    height, width = (side, side) if isinstance(side, int) else side
    if box.min_col >= box.max_col:
        return  # not two billion rows of nothing, one after another
    for row in range(box.min_row, box.max_row, height):
        for col in range(box.min_col, box.max_col, width):
            yield BBox(row, col, min(row + height, box.max_row), min(col + width, box.max_col))


def as_nbytes(what: str, value: Any) -> int:
    """Return a number of bytes given as such or as text, "64 MiB".

    Raises
    ------
    ValueError
        For anything else, and below 1.
    """
    from dask.utils import parse_bytes

    try:
        nbytes = int(parse_bytes(value))
    except (ValueError, TypeError, AttributeError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise ValueError(f'{what} = {value!r}: expected bytes, 1 or more, such as 2**26 or "64 MiB"')
    return nbytes


def ranges(sizes: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut a row of things into ranges whose sizes sum to at most ``most``, or that are one thing.

    Parameters
    ----------
    sizes : integer array, shape (n,)
        Of each thing, 0 or more.
    most

    Yields
    ------
    start, stop : int
        A range as slices have it; each begins where the last one stopped, and is as long as it may be.

    Examples
    --------
    >>> list(ranges(np.array([4, 4, 20, 4]), most=8))
    [(0, 2), (2, 3), (3, 4)]
    """
    ends = np.cumsum(sizes)
    start, before = 0, 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop
        start, before = stop, int(ends[stop - 1])


def split(keys: np.ndarray, weights: np.ndarray, blocksize: int) -> list[tuple[int, int]]:
    """Cut entries into ranges of keys of about ``blocksize`` bytes.

    Parameters
    ----------
    keys : integer array, shape (n,)
        Ascending.
    weights : int64 array, shape (n,)
        Bytes of each entry.
    blocksize

    Returns
    -------
    list of (first, last)
        Keys, both included.

    Examples
    --------
    >>> split(np.array([2, 3, 7, 9]), np.array([4, 4, 20, 4]), blocksize=8)
    [(2, 3), (7, 7), (9, 9)]
    """
    return [(int(keys[start]), int(keys[stop - 1])) for start, stop in ranges(weights, blocksize)]


def spread(starts: np.ndarray | int, counts: np.ndarray) -> np.ndarray:
    """Return the integers of ranges, one range after another: ``counts[i]`` from ``starts[i]`` on.

    Examples
    --------
    >>> spread(np.array([7, 0]), np.array([2, 3])).tolist(), spread(0, np.array([2, 3])).tolist()
    ([7, 8, 0, 1, 2], [0, 1, 0, 1, 2])
    """
    return np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
