"""Names among names."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit


@inlined
def _prefix(data, start, stop):
    """The first eight bytes of a name as a number that sorts as they do; zeros where it is shorter."""
    prefix = np.uint64(0)
    for i in range(start, min(stop, start + 8)):
        prefix |= np.uint64(data[np.uint64(i)]) << np.uint64(8 * (7 - (i - start)))
    return prefix


@jit
def _compare(a, a_start, a_stop, b, b_start, b_stop):
    """Less than 0, 0 or more: how bytes sort."""
    for i in range(min(a_stop - a_start, b_stop - b_start)):
        difference = np.int64(a[a_start + i]) - np.int64(b[b_start + i])
        if difference:
            return difference
    return (a_stop - a_start) - (b_stop - b_start)


@jit
def find_names(data, starts, stops, wanted, wanted_starts, out):
    """Find each of many names in a sorted list, by bisection: no hash that a hostile file could fill with collisions.

    Parameters
    ----------
    data : uint8 array
    starts, stops : int64 arrays, shape (n,)
        Where in ``data`` the names lie.
    wanted : uint8 array
        Distinct names in ascending order, one after another.
    wanted_starts : int64 array, shape (m + 1,)
    out : int64 array, shape (n,)
        Filled in: which of the wanted names it is, or -1.
    """
    m = len(wanted_starts) - 1
    prefixes = np.empty(m, np.uint64)
    for k in range(m):
        prefixes[k] = _prefix(wanted, wanted_starts[k], wanted_starts[k + 1])
    for i in range(len(starts)):
        prefix = _prefix(data, starts[i], stops[i])
        low, high = 0, m
        found = -1
        while low < high:
            middle = (low + high) // 2
            order = np.int64(0)
            if prefixes[middle] < prefix:
                order = -1
            elif prefixes[middle] > prefix:
                order = 1
            else:
                order = _compare(wanted, wanted_starts[middle], wanted_starts[middle + 1], data, starts[i], stops[i])
            if order == 0:
                found = middle
                break
            if order < 0:
                low = middle + 1
            else:
                high = middle
        out[i] = found
