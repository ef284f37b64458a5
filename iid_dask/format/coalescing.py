"""Few reads that cover many ranges."""

from __future__ import annotations

import numpy as np

MAX_RANGE = 8 * 2**20
"""Largest coalesced range in bytes, so that requests can run beside one another."""


MAX_WASTE = 16 * 2**20
"""Bytes that are read in vain at most, unless as many are wanted."""


def coalesce(offsets: np.ndarray, lengths: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plan few reads that cover many ranges.

    Parameters
    ----------
    offsets, lengths : int64 arrays, shape (n,)
        In any order; they may overlap.
    gap
        Bytes between two ranges up to which they are read as one; fewer where that would read very much in vain.

    Returns
    -------
    starts, sizes : int64 arrays, shape (m,)
        What to read.
    places : int64 array, shape (n,)
        Where each range begins in the bytes read, laid one after another.

    Examples
    --------
    >>> starts, sizes, places = coalesce(np.array([100, 0, 104]), np.array([4, 8, 6]), gap=16)
    >>> starts.tolist(), sizes.tolist(), places.tolist()
    ([0, 100], [8, 10], [8, 0, 12])
    """
    if not len(offsets):
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    order = np.argsort(offsets, kind="stable")
    begin, end = offsets[order], (offsets + lengths)[order]
    reach = np.maximum.accumulate(end)
    holes = begin[1:] - reach[:-1]
    fresh = np.ones(len(begin), bool)
    fresh[1:] = holes > _affordable(holes, gap, max(MAX_WASTE, int(lengths.sum())))
    # A long run of neighbours is cut where the next range starts a new block of MAX_RANGE and nothing straddles it.
    block = begin // MAX_RANGE
    fresh[1:] |= (block[1:] != block[:-1]) & (begin[1:] >= reach[:-1])
    first = np.flatnonzero(fresh)
    starts = begin[first]
    sizes = reach[np.append(first[1:], len(begin)) - 1] - starts
    bases = np.cumsum(sizes) - sizes
    run = np.cumsum(fresh) - 1
    places = np.empty(len(begin), np.int64)
    places[order] = bases[run] + (begin - starts[run])
    return starts, sizes, places


def _affordable(holes: np.ndarray, gap: int, waste: int) -> int:
    """Return the gap, or the largest smaller one with which no more bytes are read in vain."""
    taken = np.sort(holes[(holes > 0) & (holes <= gap)])
    fits = int(np.searchsorted(np.cumsum(taken), waste, side="right"))
    return gap if fits == len(taken) else int(taken[fits]) - 1
