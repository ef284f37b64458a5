"""Regions that borders cut: which of them touch or share pixels, and their bytes put together."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit, leading_zeros, or_row, word_at
from iid_dask.kernels.lay import put_u2, put_u4
from iid_dask.kernels.roots import root_of


@inlined
def _unite(parent, i, j):
    i, j = root_of(parent, i), root_of(parent, j)
    if i != j:
        parent[max(i, j)] = min(i, j)


@jit
def unite(parent, first, second):
    """Make pairs of elements members of one set each, and every element point to the lowest one of its set.

    Parameters
    ----------
    parent : int64 array
        Changed in place; begin with ``arange``.
    first, second : int64 arrays, shape (n,)
    """
    for k in range(len(first)):
        _unite(parent, first[k], second[k])
    for i in range(len(parent)):
        parent[i] = root_of(parent, i)


@jit
def adjacent_boxes(starts, boxes, shares, first, second):
    """Find the boxes of each group that are next to one another, corners included, if none of the group overlap.

    Parameters
    ----------
    starts : int64 array, shape (groups + 1,)
        Boxes of a group follow one another, ordered by their first row.
    boxes : int64 array, shape (n, 4)
    shares : bool array, shape (groups,)
        Set where two boxes have pixels in common; no pairs are recorded there.
    first, second : int64 arrays
        Filled in as far as they reach.

    Returns
    -------
    int
        Pairs; what is beyond the arrays was only counted.
    """
    n = 0
    for g in range(len(starts) - 1):
        before = n
        for i in range(starts[g], starts[g + 1]):
            for j in range(i + 1, starts[g + 1]):
                if boxes[j, 0] > boxes[i, 2] or shares[g]:
                    break
                if boxes[j, 1] > boxes[i, 3] or boxes[i, 1] > boxes[j, 3]:
                    continue
                if boxes[j, 0] < boxes[i, 2] and boxes[j, 1] < boxes[i, 3] and boxes[i, 1] < boxes[j, 3]:
                    shares[g] = True
                    n = before
                    break
                if n < len(first):
                    first[n], second[n] = i, j
                n += 1
    return n


@jit
def meeting_parts(zones, ranges, boxes, owners, parts):
    """Find the parts that meet each zone.

    Parameters
    ----------
    zones : int64 array, shape (n, 4)
    ranges : int64 array, shape (n, 4)
        Those that may: ``ranges[z, 0]:ranges[z, 1]`` and ``ranges[z, 2]:ranges[z, 3]``.
    boxes : int64 array, shape (m, 4)
        Of all parts.
    owners, parts : int64 arrays
        Filled in as far as they reach: zone and part, by zone.

    Returns
    -------
    int
        Pairs; what is beyond the arrays was only counted.
    """
    n = 0
    for z in range(len(zones)):
        for side in range(0, 4, 2):
            for k in range(ranges[z, side], ranges[z, side + 1]):
                p = np.uint64(k)
                if (
                    boxes[p, 0] < zones[z, 2]
                    and zones[z, 0] < boxes[p, 2]
                    and boxes[p, 1] < zones[z, 3]
                    and zones[z, 1] < boxes[p, 3]
                ):
                    if n < len(owners):
                        owners[n], parts[n] = z, k
                    n += 1
    return n


@inlined
def _paint_part(canvas, begin, step, rows, cols, data, bit, width, own, parent, counted):
    """Put one part on the canvas and unite it with what lies there; return the pixels that were free."""
    fresh = 0
    for i in range(rows):
        at = begin + i * step
        for j in range(0, cols, 64):
            word = word_at(data, bit + i * width + j)
            if cols - j < 64:
                word &= ~(~np.uint64(0) >> np.uint64(cols - j))
            k = at + j
            while word:
                skipped = leading_zeros(word)
                word <<= skipped
                length = leading_zeros(~word)
                k += np.int64(skipped)
                for c in range(np.uint64(k), np.uint64(k) + length):
                    there = canvas[c]
                    if there == 0:
                        canvas[c] = own
                        fresh += i >= counted
                    elif there != own:
                        _unite(parent, np.int64(there) - 1, np.int64(own) - 1)
                if length == 64:
                    break
                word <<= length
                k += np.int64(length)
    return fresh


@inlined
def _unite_neighbours(canvas, rows, step, parent):
    for i in range(rows):
        for k in range(np.uint64(i * step), np.uint64((i + 1) * step)):
            own = canvas[k]
            if own == 0:
                continue
            below = k + np.uint64(step)
            for c in (k + np.uint64(1), below - np.uint64(1), below, below + np.uint64(1)):
                there = canvas[c]
                if there != 0 and there != own:
                    _unite(parent, np.int64(own) - 1, np.int64(there) - 1)


@jit
def join_zones(zones, counted, starts, data, bits, boxes, parts, canvas, parent, fresh):
    """Unite parts that touch, corners included, or share pixels within zones, and count the pixels covered there.

    Parameters
    ----------
    zones : int64 array, shape (n, 4)
    counted : int64 array, shape (n,)
        Pixels are counted from this row of the zone on: zones that follow one another share a row.
    starts : int64 array, shape (n + 1,)
        The parts that meet zone z are ``starts[z]:starts[z + 1]`` of the following.
    data : uint8 array
        With nine spare bytes.
    bits : int64 array, shape (p,)
        Bit of the part's first column in the first of its rows that lie in the zone.
    boxes : int64 array, shape (p, 4)
        Whole boxes of the parts.
    parts : int64 array, shape (p,)
        Element of ``parent`` of each.
    canvas : int32 array
        At least (rows + 1) (columns + 1) + 1 elements for every zone; its contents do not matter.
    parent : int64 array
        Changed in place.
    fresh : int64 array, shape (n,)
        Filled in: pixels of each zone that any part has.
    """
    for z in range(len(zones)):
        top, left, bottom, right = zones[z, 0], zones[z, 1], zones[z, 2], zones[z, 3]
        # A free column parts the rows, so that a neighbour beyond an end is never one of the next row.
        rows, step = bottom - top, right - left + 1
        for k in range(np.uint64((rows + 1) * step + 1)):
            canvas[k] = 0
        total = 0
        for p in range(starts[z], starts[z + 1]):
            row, stop = max(top, boxes[p, 0]), min(bottom, boxes[p, 2])
            col, end = max(left, boxes[p, 1]), min(right, boxes[p, 3])
            total += _paint_part(
                canvas,
                (row - top) * step + col - left,
                step,
                stop - row,
                end - col,
                data,
                bits[p] + col - boxes[p, 1],
                boxes[p, 3] - boxes[p, 1],
                np.int32(parts[p] + 1),
                parent,
                counted[z] - (row - top),
            )
        _unite_neighbours(canvas, rows, step, parent)
        fresh[z] = total


@jit
def first_pixels(data, bits, widths, out):
    """Find the column of the first pixel of each row of bits; -1 where it has none.

    Parameters
    ----------
    data : uint8 array
        With nine spare bytes.
    bits, widths : int64 arrays, shape (n,)
        First bit of each row, and how many.
    out : int64 array, shape (n,)
        Filled in.
    """
    for p in range(len(bits)):
        out[p] = -1
        for j in range(0, widths[p], 64):
            word = word_at(data, bits[p] + j)
            if word:
                col = j + np.int64(leading_zeros(word))
                if col < widths[p]:
                    out[p] = col
                break


@jit
def or_parts(data, bits, heights, widths, out, places, steps):
    """Add the pixels of parts to packed masks, as `or_bits` does.

    Some rows of all parts, then the next ones: parts of one column, side by side, then find the bytes of a row in the
    cache that others wrote.

    Parameters
    ----------
    data, bits, heights, widths, out, places, steps
        See `or_bits`.
    """
    most = 0
    for p in range(len(bits)):
        most = max(most, heights[p])
    for top in range(0, most, 64):
        for p in range(len(bits)):
            cols = widths[p]
            for i in range(top, min(top + 64, heights[p])):
                source, target = bits[p] + i * cols, places[p] + i * steps[p]
                if cols == 1:
                    bit = (data[np.uint64(source >> 3)] >> np.uint8(7 - (source & 7))) & np.uint8(1)
                    out[np.uint64(target >> 3)] |= np.uint8(bit << np.uint8(7 - (target & 7)))
                    continue
                or_row(data, source, cols, out, target)


@inlined
def _u2(data, at):
    return np.int64(data[np.uint64(at)]) | np.int64(data[np.uint64(at + 1)]) << 8


@inlined
def _u4(data, at):
    return _u2(data, at) | _u2(data, at + 2) << 16


@jit
def move_segments(data, places, lengths, out, targets, keys, rows, cols):
    """Copy whole segments and give them another key and place in the image; their boxes become tight.

    Parameters
    ----------
    data : uint8 array
    places, lengths : int64 arrays, shape (n,)
        Segments in ``data``.
    out : uint8 array
        Changed in place.
    targets : int64 array, shape (n,)
        Where each begins in ``out``.
    keys, rows, cols : int64 arrays, shape (n,)
        New key, and pixels to move by; boxes then lie within 16 bits.

    Returns
    -------
    int
        The first segment whose regions do not fill its length, or -1.
    """
    for s in range(len(places)):
        start, to, end = places[s], targets[s], places[s] + lengths[s]
        for k in range(lengths[s]):
            out[np.uint64(to + k)] = data[np.uint64(start + k)]
        put_u4(out, to, keys[s])
        top, left, bottom, right = 65535, 65535, 0, 0
        at = start + 16
        while at + 12 <= end:
            length = _u4(data, at)
            if length < 12:
                break
            box = to + at - start + 4
            r0, c0 = _u2(data, at + 4) + rows[s], _u2(data, at + 6) + cols[s]
            r1, c1 = _u2(data, at + 8) + rows[s], _u2(data, at + 10) + cols[s]
            put_u2(out, box, r0)
            put_u2(out, box + 2, c0)
            put_u2(out, box + 4, r1)
            put_u2(out, box + 6, c1)
            top, left, bottom, right = min(top, r0), min(left, c0), max(bottom, r1), max(right, c1)
            at += length
        if at != end:
            return s
        if lengths[s] == 16:
            top, left = 0, 0
        put_u2(out, to + 4, top)
        put_u2(out, to + 6, left)
        put_u2(out, to + 8, bottom)
        put_u2(out, to + 10, right)
    return -1
