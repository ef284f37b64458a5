"""What tiles have in common at their seams: runs of pixels in a window, and pixels shared."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import jit, leading_zeros, word_at


@jit
def segment_starts(data, bits, boxes, first_region, out):
    """Find the first pixel of segments, in raster order.

    Parameters
    ----------
    data : uint8 array
        With nine spare bytes.
    bits : int64 array, shape (m,)
        Bit of ``data`` where each region begins.
    boxes : int64 array, shape (m, 4)
        Of the regions.
    first_region : int64 array, shape (n + 1,)
        A segment's regions are ``first_region[i] : first_region[i + 1]``.
    out : int64 array, shape (n, 2)
        Row and column, filled in where a segment has pixels.
    """
    for i in range(len(first_region) - 1):
        found = False
        for r in range(first_region[i], first_region[i + 1]):
            width = boxes[r, 3] - boxes[r, 1]
            size = (boxes[r, 2] - boxes[r, 0]) * width
            for at in range(0, size, 64):
                word = word_at(data, bits[r] + at)
                if size - at < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(size - at))
                if word:
                    place = at + np.int64(leading_zeros(word))
                    row, col = boxes[r, 0] + place // width, boxes[r, 1] + place % width
                    if not found or row < out[i, 0] or (row == out[i, 0] and col < out[i, 1]):
                        out[i, 0], out[i, 1] = row, col
                    found = True
                    break


@jit
def parse_decimals(text, offsets, out):
    """Read names as numbers: decimal digits without leading zeros, 1 … 2^64 - 1.

    Parameters
    ----------
    text : uint8 array
    offsets : int64 array, shape (n + 1,)
        Name i is ``text[offsets[i] : offsets[i + 1]]``.
    out : uint64 array, shape (n,)
        Filled in.

    Returns
    -------
    int
        The first name that is no such number; n if all are.
    """
    most, ten = ~np.uint64(0) // np.uint64(10), np.uint64(10)
    for i in range(len(out)):
        start, stop = offsets[i], offsets[i + 1]
        if start == stop or text[np.uint64(start)] == 48:
            return i
        value = np.uint64(0)
        for j in range(start, stop):
            digit = np.uint64(text[np.uint64(j)]) - np.uint64(48)
            if digit > np.uint64(9) or value > most or (value == most and digit > np.uint64(5)):
                return i
            value = value * ten + digit
        out[i] = value
    return len(out)


@jit
def meeting_boxes(boxes, groups, reach, first, second):
    """Pairs of boxes of one group that overlap or come within some pixels of one another, by a sweep over rows.

    Parameters
    ----------
    boxes : int64 array, shape (n, 4)
        Boxes with pixels; by ascending group, then first row.
    groups : int64 array, shape (n,)
    reach : int
        0: they have pixels in common; 1: or touch, also by a corner.
    first, second : int64 arrays
        Filled in as far as they reach.

    Returns
    -------
    int
        How many there are.
    """
    n = 0
    for i in range(len(boxes)):
        for j in range(i + 1, len(boxes)):
            if groups[j] != groups[i] or boxes[j, 0] >= boxes[i, 2] + reach:
                break
            if boxes[j, 1] < boxes[i, 3] + reach and boxes[i, 1] < boxes[j, 3] + reach:
                if n < len(first):
                    first[n], second[n] = i, j
                n += 1
    return n


@jit
def window_runs(data, bits, boxes, keys, min_row, min_col, max_row, max_col, found_keys, starts, stops):
    """Runs of pixels that regions have in a window, whose pixels are counted row by row from 0.

    Parameters
    ----------
    data : uint8 array
        With nine spare bytes.
    bits : int64 array, shape (m,)
        Bit of ``data`` where each region begins.
    boxes : int64 array, shape (m, 4)
        Of the regions.
    keys : int64 array, shape (m,)
        Whose they are.
    min_row, min_col, max_row, max_col : int
        The window.
    found_keys, starts, stops : int64 arrays
        Filled in as far as they reach; the runs of a region ascend, and no two of them meet.

    Returns
    -------
    int
        Runs.
    """
    n, last = 0, np.int64(-1)
    across = max_col - min_col
    for r in range(len(bits)):
        width = boxes[r, 3] - boxes[r, 1]
        left, right = max(boxes[r, 1], min_col), min(boxes[r, 3], max_col)
        last = np.int64(-1)
        for row in range(max(boxes[r, 0], min_row), min(boxes[r, 2], max_row)):
            start = bits[r] + (row - boxes[r, 0]) * width + left - boxes[r, 1]
            base = (row - min_row) * across + left - min_col
            for at in range(0, right - left, 64):
                word = word_at(data, start + at)
                if right - left - at < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(right - left - at))
                j = base + at
                while word:
                    skipped = leading_zeros(word)
                    word <<= skipped
                    length = leading_zeros(~word)
                    j += np.int64(skipped)
                    if j != last:
                        n += 1
                        if n <= len(starts):
                            found_keys[n - 1], starts[n - 1] = keys[r], j
                    j += np.int64(length)
                    last = j
                    if n <= len(starts):
                        stops[n - 1] = j
                    if length == 64:
                        break
                    word <<= length
    return n


@jit
def merge_runs(keys, starts, stops, grow):
    """Lengthen runs at both ends and join those of one key that then meet.

    Parameters
    ----------
    keys, starts, stops : int64 arrays, shape (n,)
        By ascending key, then start; changed in place.
    grow : int

    Returns
    -------
    int
        Runs left; the elements behind them are spent.
    """
    n = 0
    for i in range(len(keys)):
        key, start, stop = keys[i], starts[i] - grow, stops[i] + grow
        if n and keys[n - 1] == key and start <= stops[n - 1]:
            stops[n - 1] = max(stops[n - 1], stop)
            continue
        keys[n], starts[n], stops[n] = key, start, stop
        n += 1
    return n


@jit
def common_runs(keys_a, starts_a, stops_a, keys_b, starts_b, stops_b, reach_b, found_a, found_b, pixels):
    """Pixels that runs have in common.

    Parameters
    ----------
    keys_a, starts_a, stops_a, keys_b, starts_b, stops_b : int64 arrays
        Runs of either side, by ascending start.
    reach_b : int64 array
        Largest stop of the runs up to each of b's.
    found_a, found_b, pixels : int64 arrays
        Filled in as far as they reach: both keys and how many; a pair of keys may come many times.

    Returns
    -------
    int
        Overlaps of two runs.
    """
    n, first = 0, 0
    for i in range(len(keys_a)):
        while first < len(keys_b) and reach_b[first] <= starts_a[i]:
            first += 1
        for j in range(first, len(keys_b)):
            if starts_b[j] >= stops_a[i]:
                break
            common = min(stops_a[i], stops_b[j]) - max(starts_a[i], starts_b[j])
            if common > 0:
                if n < len(pixels):
                    found_a[n], found_b[n], pixels[n] = keys_a[i], keys_b[j], common
                n += 1
    return n
