"""Which regions touch a window, and each other."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import jit, word_at


@jit
def find(order, stop, boxes, zone, zones, min_row, min_col, max_row, max_col, out):
    """Regions whose box meets a window.

    Parameters
    ----------
    order : uint32 array, shape (m,)
        Regions by ascending first row.
    stop : int
        Regions before this place in ``order`` begin above the window's last row.
    boxes : uint16 array, shape (m, 4)
    zone : int
        Regions in a zone; ``zones`` (number of zones, 3) holds each one's largest max_row, smallest min_col and
        largest max_col, so that zones beside the window are skipped whole.
    out : uint32 array
        Filled in, unless it is empty: then they are only counted.

    Returns
    -------
    int
        How many.
    """
    n = 0
    for first in range(0, stop, zone):
        z = first // zone
        if zones[z, 0] <= min_row or zones[z, 1] >= max_col or zones[z, 2] <= min_col:
            continue
        for i in range(first, min(first + zone, stop)):
            k = order[i]
            if boxes[k, 2] > min_row and boxes[k, 1] < max_col and boxes[k, 3] > min_col:
                if len(out):
                    out[n] = k
                n += 1
    return n


@jit
def box_pairs(order, boxes, keys, at, partner, first, second):
    """Pairs of regions of two entries whose boxes meet, by a sweep over first rows.

    Parameters
    ----------
    order : uint32 array, shape (m,)
        Regions by ascending first row.
    boxes : uint16 array, keys : uint32 array
        Of all regions.
    at, partner : int
        Where to go on; begin with ``0, 1``.
    first, second : int64 arrays
        Filled in as far as they reach.

    Returns
    -------
    at, partner, found : int
        ``at`` is len(order) when all pairs were found.
    """
    n = 0
    while at < len(order):
        a = order[at]
        while partner < len(order):
            b = order[partner]
            if boxes[b, 0] >= boxes[a, 2]:
                break
            if keys[a] != keys[b] and boxes[b, 1] < boxes[a, 3] and boxes[a, 1] < boxes[b, 3]:
                if n == len(first):
                    return at, partner, n
                first[n], second[n] = a, b
                n += 1
            partner += 1
        at += 1
        partner = at + 1
    return at, partner, n


@jit
def masks_meet(data, bits_a, bits_b, width_a, width_b, rows, cols, out):
    """Whether two masks share a pixel, for many pairs.

    Parameters
    ----------
    data : uint8 array
        With eight spare bytes.
    bits_a, bits_b : int64 arrays, shape (n,)
        Bit of the first pixel of the common box in either mask.
    width_a, width_b : int64 arrays
        Bits from one row to the next.
    rows, cols : int64 arrays
        Size of the common box.
    out : bool array
        Filled in.
    """
    for p in range(len(out)):
        found = False
        for i in range(rows[p]):
            if found:
                break
            for j in range(0, cols[p], 64):
                common = word_at(data, bits_a[p] + i * width_a[p] + j) & word_at(data, bits_b[p] + i * width_b[p] + j)
                if cols[p] - j < 64:
                    common &= ~(~np.uint64(0) >> np.uint64(cols[p] - j))
                if common:
                    found = True
                    break
        out[p] = found


@jit
def first_fit(starts, lower, numbers):
    """Give every entry the lowest layer that none of its lower neighbours has.

    Parameters
    ----------
    starts : int64 array, shape (n + 1,)
    lower : int64 array
        ``lower[starts[k]:starts[k + 1]]`` are entries before k that overlap it.
    numbers : int32 array, shape (n,)
        Filled in where it is not -1.
    """
    seen = np.full(len(numbers) + 1, -1, np.int64)
    for k in range(len(numbers)):
        if numbers[k] < 0:
            continue
        for i in range(starts[k], starts[k + 1]):
            seen[numbers[lower[i]]] = k
        layer = 0
        while seen[layer] == k:
            layer += 1
        numbers[k] = layer
