"""Which boxes hold which points, and what bits of a mask lie in a window."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import jit, word_at


@jit
def points_in_boxes(boxes, at, rows, cols, origin_row, origin_col, side, across, starts, found_boxes, found_points):
    """Pairs of a box and a point in it.

    Parameters
    ----------
    boxes : uint16 or int64 array, shape (m, 4)
    at : int
        Box to go on from; begin with 0.
    rows, cols : int64 arrays, shape (n,)
        Points, ordered by cell: a square of ``side`` pixels, counted row by row from (origin_row, origin_col),
        ``across`` to a row.
    starts : int64 array, shape (cells + 1,)
        Where each cell's points begin.
    found_boxes, found_points : int64 arrays
        Filled in as far as they reach, box by box; at least n long, so that the points of any one box fit.

    Returns
    -------
    at, found : int
        ``at`` is len(boxes) when all pairs were found.
    """
    n = 0
    down = (len(starts) - 1) // across
    while at < len(boxes):
        begin = n
        min_row, min_col = np.int64(boxes[at, 0]), np.int64(boxes[at, 1])
        max_row, max_col = np.int64(boxes[at, 2]), np.int64(boxes[at, 3])
        top, bottom = max((min_row - origin_row) // side, 0), min((max_row - 1 - origin_row) // side, down - 1)
        left, right = max((min_col - origin_col) // side, 0), min((max_col - 1 - origin_col) // side, across - 1)
        for i in range(top, bottom + 1):
            if left > right:
                break
            for p in range(starts[i * across + left], starts[i * across + right + 1]):
                if min_row <= rows[p] < max_row and min_col <= cols[p] < max_col:
                    if n == len(found_points):
                        return at, begin
                    found_boxes[n], found_points[n] = at, p
                    n += 1
        at += 1
    return at, n


@jit
def any_bits(data, bits, counts, left, right, min_col, max_col, hits, out):
    """Whether pieces have a pixel between two columns; see `iid_dask.kernels.paint` for what a piece is.

    Parameters
    ----------
    data, bits, counts, left, right
        As in `paint_window`.
    min_col, max_col : int
        Image pixels, half-open.
    hits : int64 array, shape (pieces,)
        Which element of ``out`` a piece belongs to.
    out : bool array
        Set where a pixel was found; what is set already is not looked for again.
    """
    for p in range(len(bits)):
        if out[hits[p]]:
            continue
        first, last = max(left[p], min_col), min(right[p], max_col)
        found = False
        for k in range(counts[p]):
            if found:
                break
            bit = bits[p] + k * (right[p] - left[p]) + first - left[p]
            for col in range(first, last, 64):
                word = word_at(data, bit + col - first)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                if word:
                    found = True
                    break
        out[hits[p]] = found
