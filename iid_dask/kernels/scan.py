"""Segments as they are stored: their heads, bits and checksums."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.crc import crc32_of
from iid_dask.kernels.jit import jit, ones

SOUND, KEY, SEGMENT_BOX, REGION_CUT, REGION_LENGTH, REGION_BOX, REGION_OUTSIDE = range(7)
"""What `scan` found wrong with a segment."""


@jit
def _u2(data, at):
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8


@jit
def _u4(data, at):
    return _u2(data, at) | _u2(data, at + 2) << 16


@jit
def scan(data, base, keys, starts, stops, at, where, boxes, areas, counts, region_boxes, region_bits, defects):
    """Read the heads of segments and regions that lie whole in ``data``.

    Parameters
    ----------
    data : uint8 array
        Bytes of the segments section from ``base`` on.
    base : int
        Offset of ``data[0]`` in the section.
    keys, starts, stops : arrays, shape (n,)
        Rows of the lut in ascending order of their segments, offsets in the section.
    at, where : int
        Row and offset to go on from; begin with ``0, starts[0]``.
    boxes (n, 4), areas (n,), counts (n,)
        Filled in row by row; counts are regions.
    region_boxes (m, 4), region_bits (m,)
        Filled in from 0; m is at least ``len(data) // 12``. Offsets of mask bits in the section.
    defects : int64 array, shape (n, 4)
        code, offset, found, expected of the first defect of each segment.

    Returns
    -------
    at, where, filled : int
        Where to go on, and how many regions were found in this call.
    """
    end = base + len(data)
    filled = 0
    while at < len(keys):
        start, stop = starts[at], stops[at]
        if where == start:
            if where + 16 > end:
                break
            here = where - base
            key = _u4(data, here)
            if key != keys[at]:
                defects[at, 0], defects[at, 1], defects[at, 2], defects[at, 3] = KEY, where, key, keys[at]
            for i in range(4):
                boxes[at, i] = _u2(data, here + 4 + 2 * i)
            areas[at] = _u4(data, here + 12)
            if defects[at, 0] == SOUND and (boxes[at, 0] > boxes[at, 2] or boxes[at, 1] > boxes[at, 3]):
                defects[at, 0], defects[at, 1] = SEGMENT_BOX, where + 4
            where += 16
        while where < stop and defects[at, 0] == SOUND:
            if stop - where < 12:
                defects[at, 0], defects[at, 1], defects[at, 2], defects[at, 3] = REGION_CUT, where, stop - where, 12
                break
            if where + 12 > end:
                return at, where, filled
            here = where - base
            length = _u4(data, here)
            min_row, min_col = _u2(data, here + 4), _u2(data, here + 6)
            max_row, max_col = _u2(data, here + 8), _u2(data, here + 10)
            if min_row >= max_row or min_col >= max_col:
                defects[at, 0], defects[at, 1] = REGION_BOX, where + 4
                break
            wanted = 12 + ((max_row - min_row) * (max_col - min_col) + 7) // 8
            if length != wanted or wanted > stop - where:
                found = length if length != wanted else stop - where
                defects[at, 0], defects[at, 1], defects[at, 2], defects[at, 3] = REGION_LENGTH, where, found, wanted
                break
            if min_row < boxes[at, 0] or min_col < boxes[at, 1] or max_row > boxes[at, 2] or max_col > boxes[at, 3]:
                defects[at, 0], defects[at, 1] = REGION_OUTSIDE, where + 4
                break
            region_boxes[filled, 0], region_boxes[filled, 1] = min_row, min_col
            region_boxes[filled, 2], region_boxes[filled, 3] = max_row, max_col
            region_bits[filled] = where + 12
            filled += 1
            counts[at] += 1
            where += length
        at += 1
        if at < len(keys):
            where = starts[at]
    return at, where, filled


@jit
def popcount(bits, n_bits):
    """Set bits among the first ``n_bits`` of a uint8 array."""
    total = np.int64(0)
    whole = n_bits // 8
    for i in range(whole):
        total += ones(np.uint64(bits[i]))
    rest = n_bits - whole * 8
    if rest:
        total += ones(np.uint64(bits[whole] >> np.uint8(8 - rest)))
    return total


@jit
def loose_sides(bits, height, width):
    """Sides of a packed mask without a set pixel: 1 first row, 2 last row, 4 first column, 8 last column."""
    loose = 15
    last = (height - 1) * width
    for col in range(width):
        if bits[col >> 3] & (128 >> (col & 7)):
            loose &= ~1
        if bits[(last + col) >> 3] & (128 >> ((last + col) & 7)):
            loose &= ~2
    for row in range(height):
        left, right = row * width, row * width + width - 1
        if bits[left >> 3] & (128 >> (left & 7)):
            loose &= ~4
        if bits[right >> 3] & (128 >> (right & 7)):
            loose &= ~8
    return loose


@jit
def damaged(data, places, lengths, crcs, heads, boxes):
    """Return the first segment that is not as the index says, or -1.

    Parameters
    ----------
    data : uint8 array
    places, lengths : int64 arrays, shape (n,)
        Whole segments in ``data``.
    crcs : uint32 array, shape (n,)
        Their crc32.
    heads : int64 array, shape (n,)
        Where the head of one of their regions lies in ``data``; its box must be ``boxes[p]``.
    boxes : uint16 array, shape (n, 4)
    """
    for p in range(len(places)):
        for i in range(4):
            if _u2(data, heads[p] + 4 + 2 * i) != boxes[p, i]:
                return p
        if crc32_of(data, places[p], places[p] + lengths[p]) != np.uint64(crcs[p]):
            return p
    return -1
