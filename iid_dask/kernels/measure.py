"""Statistics of an image under masks: pieces to runs, runs to sums that lose nothing.

Pieces are those of `iid_dask.kernels.paint`. Integers come as unsigned ones in the order of the values (a signed one
with its highest bit flipped), so that one kernel serves both.
"""

from __future__ import annotations

import math

import numpy as np

from iid_dask.kernels.jit import inlined, jit, leading_zeros, word_at
from iid_dask.kernels.roots import root_of


@jit
def gather_touching(starts, boxes, margin, effort, out):
    """Put regions of an entry whose boxes meet, also by way of others, together.

    Parameters
    ----------
    starts : int64 array, shape (entries + 1,)
        Where the regions of each entry begin; those of one entry come by ascending first row.
    boxes : int64 array, shape (m, 4)
    margin : int
        Pixels between two boxes that still count as meeting, exclusive: 0 where they must share a pixel, 1 where it
        is enough that they touch, also at a corner.
    effort : int
        Comparisons spent on an entry for each of its regions; beyond that all of them are put together.
    out : int64 array, shape (m,)
        Filled in: for each region one that stands for all that meet, the first of them.
    """
    for e in range(len(starts) - 1):
        begin, end = starts[e], starts[e + 1]
        for i in range(begin, end):
            out[i] = i
        left = effort * (end - begin)
        for i in range(begin, end):
            j = i + 1
            while j < end and boxes[j, 0] < boxes[i, 2] + margin and left > 0:
                left -= 1
                if boxes[j, 1] < boxes[i, 3] + margin and boxes[i, 1] < boxes[j, 3] + margin:
                    a, b = root_of(out, i), root_of(out, j)
                    out[max(a, b)] = min(a, b)
                j += 1
        for i in range(begin, end):
            out[i] = begin if left <= 0 else root_of(out, i)


@jit
def find_runs(at, row, origin_row, origin_col, width, data, bits, firsts, counts, left, right, who, stamp, owners, out):
    """Cut pieces in a window into horizontal runs of pixels.

    Parameters
    ----------
    at, row : int
        Piece and row of it to go on from; begin with ``0, 0``.
    origin_row, origin_col, width : int
        Of the window, image pixels.
    data, bits, firsts, counts, left, right
        The pieces.
    who : int64 array, shape (pieces,)
        Handed on to the runs.
    stamp : uint32 array, shape of the window, or (0, 0)
    owners : uint32 array, shape (pieces,)
        0, or a number of the entry: its pixels are then counted once, however many of its pieces share them. The
        pieces of an entry must follow one another in each row.
    out : int64 array, shape (4, n)
        Filled in as far as it reaches: row and half-open columns in the window, and who. n is at least a row's
        most: half the window's width and one.

    Returns
    -------
    at, row, found : int
        ``at`` is len(bits) when all runs were found.
    """
    n = 0
    room = out.shape[1] - (width + 1) // 2 - 1
    while at < len(bits):
        first, last = max(left[at] - origin_col, 0), min(right[at] - origin_col, width)
        step, owner = right[at] - left[at], owners[at]
        start = bits[at] + first + origin_col - left[at]
        while row < counts[at]:
            if n > room:
                return at, row, n
            i = firsts[at] + row - origin_row
            bit = start + row * step
            before = -1
            col = first
            while col < last:
                word = word_at(data, bit)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                j = col
                while word:
                    zeros = leading_zeros(word)
                    word <<= zeros
                    ones = leading_zeros(~word)
                    begin = j + np.int64(zeros)
                    j = begin + np.int64(ones)
                    if owner:
                        for k in range(begin, j):
                            if stamp[np.uint64(i), np.uint64(k)] != owner:
                                stamp[np.uint64(i), np.uint64(k)] = owner
                                if before != k:
                                    out[0, n], out[1, n], out[3, n] = i, k, who[at]
                                    n += 1
                                before = k + 1
                                out[2, n - 1] = before
                    elif before == begin:
                        before = out[2, n - 1] = j
                    else:
                        out[0, n], out[1, n], out[2, n], out[3, n] = i, begin, j, who[at]
                        n += 1
                        before = j
                    if ones == 64:
                        break
                    word <<= ones
                col += 64
                bit += 64
            row += 1
        at += 1
        row = 0
    return at, row, n


@inlined
def _add_wide(sums, k, low, carry, amount):
    total = sums[k, low] + amount
    sums[k, carry] += np.uint64(total < amount)
    sums[k, low] = total


@jit
def add_integers(image, flip, runs, counts, lows, highs, sums):
    """Add runs of pixels to their entries' sums, exactly.

    Parameters
    ----------
    image : unsigned integer array, shape (h, w)
    flip : int of the image's dtype
        Exclusive or of it gives values in the order of those meant.
    runs : int64 array, shape (4, n)
        See `find_runs`.
    counts : int64 array, shape (entries,)
    lows, highs : uint64 arrays, shape (entries,)
        Least and greatest value; begin with the greatest and 0.
    sums : uint64 array, shape (entries, 2 or 8)
        Zeros at first. For images of at most 16 bits: Σv and Σv², which fit for 65,535² pixels. For others, where
        v = h 2**32 + l: Σl, Σl² and its carries, Σh, Σhl and carries, Σh² and carries.
    """
    for r in range(runs.shape[1]):
        i, k = np.uint64(runs[0, r]), np.uint64(runs[3, r])
        begin, end = runs[1, r], runs[2, r]
        low, high = lows[k], highs[k]
        counts[k] += end - begin
        if image.itemsize <= 2:
            total, squares = np.uint64(0), np.uint64(0)
            for j in range(begin, end):
                v = np.uint64(image[i, np.uint64(j)] ^ flip)
                total += v
                squares += v * v
                low, high = min(low, v), max(high, v)
            sums[k, 0] += total
            sums[k, 1] += squares
        else:
            for j in range(begin, end):
                v = np.uint64(image[i, np.uint64(j)] ^ flip)
                low, high = min(low, v), max(high, v)
                upper, lower = v >> np.uint64(32), v & np.uint64(0xFFFFFFFF)
                sums[k, 0] += lower
                _add_wide(sums, k, 1, 2, lower * lower)
                if upper:
                    sums[k, 3] += upper
                    _add_wide(sums, k, 4, 5, upper * lower)
                    _add_wide(sums, k, 6, 7, upper * upper)
        lows[k], highs[k] = low, high


@inlined
def _add_exactly(values, k, amount):
    """Add to a sum and what rounding lost of it (Neumaier)."""
    before = values[k, 0]
    total = before + amount
    if abs(before) >= abs(amount):
        values[k, 1] += (before - total) + amount
    else:
        values[k, 1] += (amount - total) + before
    values[k, 0] = total


@inlined
def _widen(values, k, low, high):
    # What is not a number stays: nothing is below or above it.
    if low < values[k, 4] or low != low:
        values[k, 4] = low
    if high > values[k, 5] or high != high:
        values[k, 5] = high


@jit
def add_floats(image, runs, counts, values):
    """Add runs of pixels to their entries' sums, in the order given.

    Parameters
    ----------
    image : float array, shape (h, w)
    runs : int64 array, shape (4, n)
        See `find_runs`.
    counts : int64 array, shape (entries,)
    values : float64 array, shape (entries, 6)
        Sum, what rounding lost of it, mean, sum of squared distances from it, least, greatest. Begins with zeros,
        inf and -inf.
    """
    for r in range(runs.shape[1]):
        i, k = np.uint64(runs[0, r]), np.uint64(runs[3, r])
        begin, end = runs[1, r], runs[2, r]
        # Distances from a value of the entry's own: squares of large values that hardly differ would lose all digits.
        mean = values[k, 2] if counts[k] else np.float64(image[i, np.uint64(begin)])
        total, apart, squares = 0.0, 0.0, 0.0
        low, high = np.inf, -np.inf
        for j in range(begin, end):
            v = np.float64(image[i, np.uint64(j)])
            total += v
            apart += v - mean
            squares += (v - mean) * (v - mean)
            if v < low or v != v:
                low = v
            if v > high or v != v:
                high = v
        counts[k] += end - begin
        _add_exactly(values, k, total)
        _widen(values, k, low, high)
        moved = apart / counts[k]
        values[k, 2] = mean + moved
        gained = squares - apart * moved
        values[k, 3] += 0.0 if gained < 0 else gained


@jit
def merge_floats(which, from_counts, from_values, counts, values):
    """Add sums of parts of entries to those of the entries, in the order given (Chan, Golub and LeVeque 1983).

    Parameters
    ----------
    which : int64 array, shape (n,)
        The entry of each part.
    from_counts, from_values, counts, values
        As `add_floats` makes them.
    """
    for r in range(len(which)):
        k = which[r]
        n, m = counts[k], from_counts[r]
        if not m:
            continue
        counts[k] = n + m
        _add_exactly(values, k, from_values[r, 0])
        values[k, 1] += from_values[r, 1]
        _widen(values, k, from_values[r, 4], from_values[r, 5])
        if n == 0:
            values[k, 2], values[k, 3] = from_values[r, 2], from_values[r, 3]
            continue
        apart = from_values[r, 2] - values[k, 2]
        values[k, 2] += apart * (m / (n + m))
        values[k, 3] += from_values[r, 3] + apart * apart * (n * (m / (n + m)))


@jit
def float_results(counts, values, out):
    """Turn sums into results.

    Parameters
    ----------
    counts, values
        As `add_floats` and `merge_floats` make them.
    out : float64 array, shape (3, entries)
        Filled in: sum, mean, standard deviation; NaN for the last two where there is no pixel. The deviation of
        finite values whose squares are not is infinite.
    """
    for k in range(len(counts)):
        total = values[k, 0]
        # What was lost of a sum that became infinite is not a number.
        out[0, k] = total + values[k, 1] if math.isfinite(total) else total
        out[1, k] = out[0, k] / counts[k] if counts[k] else np.nan
        out[2, k] = math.sqrt(values[k, 3] / counts[k]) if counts[k] else np.nan
        # Differences of infinite squares are not numbers.
        if math.isnan(out[2, k]) and math.isfinite(values[k, 4]) and math.isfinite(values[k, 5]):
            out[2, k] = np.inf
