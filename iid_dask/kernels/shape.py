"""What masks are like, from bits alone: 64 pixels at a time, in rows that begin with a word.

A canvas is a run of uint64 words; a unit in it is a mask of some rows, each of ``strides[u]`` words, the leftmost pixel
in the highest bit of the first. Bits beyond a unit's width are 0.
"""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit, leading_zeros, ones, word_at
from iid_dask.kernels.roots import root_of

AREA, MIN_ROW, MIN_COL, MAX_ROW, MAX_COL = 0, 1, 2, 3, 4
SUM_R, SUM_C, SUM_RR, SUM_RC, SUM_CC = 5, 6, 7, 8, 9
STRAIGHT, DIAGONAL, MIXED, HOLES = 10, 11, 12, 13
FACTS = 14
"""Columns of what `shape_facts` finds."""


@jit
def paint_words(canvas, starts, strides, tops, lefts, units, data, bits, firsts, counts, left, right):
    """Set the bits of pieces (see `iid_dask.kernels.paint`) in a canvas.

    Parameters
    ----------
    canvas : uint64 array
        Changed in place.
    starts, strides, tops, lefts : int64 arrays, shape (units,)
        First word, words a row, and the image pixel of the first bit of each unit.
    units : int64 array, shape (pieces,)
        Which unit each piece belongs to; it lies inside.
    data, bits, firsts, counts, left, right
        The pieces.
    """
    for p in range(len(bits)):
        u = units[p]
        width = right[p] - left[p]
        for k in range(counts[p]):
            bit = bits[p] + k * width
            to = (starts[u] + (firsts[p] + k - tops[u]) * strides[u]) * 64 + left[p] - lefts[u]
            for done in range(0, width, 64):
                word = word_at(data, bit + done)
                if width - done < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(width - done))
                at, shift = (to + done) >> 6, np.uint64((to + done) & 63)
                canvas[at] |= word >> shift
                if shift:
                    rest = word << (np.uint64(64) - shift)
                    if rest:
                        canvas[at + 1] |= rest


# --- perimeter --------------------------------------------------------------------------------------------------


@inlined
def _word(canvas, start, stride, rows, row, at):
    if row < 0 or row >= rows or at < 0 or at >= stride:
        return np.uint64(0)
    return canvas[start + row * stride + at]


@inlined
def _from_left(before, word):
    return (word >> np.uint64(1)) | (before << np.uint64(63))


@inlined
def _from_right(word, after):
    return (word << np.uint64(1)) | (after >> np.uint64(63))


@inlined
def _border_row(canvas, start, stride, rows, row, out, slot):
    """Pixels of a row with a 4-neighbour outside the mask; ``out`` has a spare word at either end."""
    for w in range(stride):
        word = _word(canvas, start, stride, rows, row, w)
        inner = word
        if word:
            inner &= _word(canvas, start, stride, rows, row - 1, w) & _word(canvas, start, stride, rows, row + 1, w)
            inner &= _from_left(_word(canvas, start, stride, rows, row, w - 1), word)
            inner &= _from_right(word, _word(canvas, start, stride, rows, row, w + 1))
        out[slot, w + 1] = word & ~inner
    out[slot, stride + 1] = 0


@inlined
def _count_four(a, b, c, d):
    """Add four bits in each of 64 places: ones, twos, fours."""
    x, y, z, t = a ^ b, a & b, c ^ d, c & d
    return x ^ z, (y ^ t) | (x & z), y & t


@inlined
def _classify(border, above, here, below, w):
    """Border pixels that count 1, √2 and (1 + √2) / 2, by how many of their neighbours are border pixels."""
    center = border[here, w]
    if not center:
        return 0, 0, 0
    north, south = border[above, w], border[below, w]
    west, east = _from_left(border[here, w - 1], center), _from_right(center, border[here, w + 1])
    a, b = _from_left(border[above, w - 1], north), _from_right(north, border[above, w + 1])
    c, d = _from_left(border[below, w - 1], south), _from_right(south, border[below, w + 1])
    one, two, four = _count_four(north, south, west, east)
    one_d, two_d, four_d = _count_four(a, b, c, d)
    straight = two & ~four_d & ~(one_d & two_d)
    few = ~two & ~four
    diagonal = few & two_d & ~(one ^ one_d)
    mixed = few & one & (one_d ^ two_d)
    return np.int64(ones(straight & center)), np.int64(ones(diagonal & center)), np.int64(ones(mixed & center))


# --- runs -------------------------------------------------------------------------------------------------------


@inlined
def _runs_of_row(canvas, at, stride, begins, ends):
    n = 0
    for w in range(stride):
        word = canvas[at + w]
        j = w * 64
        while word:
            zeros = leading_zeros(word)
            word <<= zeros
            length = leading_zeros(~word)
            begin = j + np.int64(zeros)
            j = begin + np.int64(length)
            if n and ends[n - 1] == begin:
                ends[n - 1] = j
            else:
                begins[n], ends[n] = begin, j
                n += 1
            if length == 64:
                break
            word <<= length
    return n


@inlined
def _squares(n):
    """0² + 1² + … + (n − 1)²."""
    return (n - 1) * n * (2 * n - 1) // 6


@inlined
def _add_run(facts, k, row, begin, end):
    """Add a run to an entry's moments, in pixels from a corner that no pixel lies before."""
    n = end - begin
    cols = (begin + end - 1) * n // 2
    if facts[k, AREA] == 0:
        facts[k, MIN_ROW], facts[k, MIN_COL] = row, begin
        facts[k, MAX_ROW], facts[k, MAX_COL] = row + 1, end
    facts[k, MIN_ROW], facts[k, MAX_ROW] = min(facts[k, MIN_ROW], row), max(facts[k, MAX_ROW], row + 1)
    facts[k, MIN_COL], facts[k, MAX_COL] = min(facts[k, MIN_COL], begin), max(facts[k, MAX_COL], end)
    facts[k, AREA] += n
    facts[k, SUM_R] += n * row
    facts[k, SUM_C] += cols
    facts[k, SUM_RR] += n * row * row
    facts[k, SUM_RC] += row * cols
    facts[k, SUM_CC] += _squares(end) - _squares(begin)


@inlined
def _close(above, n_above, begins, ends, labels, n, parent, number):
    """Join a row's runs to the components of the row above; return the holes that this closes.

    Two runs that touch and are joined already enclose something between them: rows of runs that touch are a planar
    graph, whose bounded faces are the holes.
    """
    holes = 0
    known = 0
    for a in range(n_above):
        known = max(known, above[2, a] + 1)
    for i in range(known):
        parent[i] = i
    first = 0
    for i in range(n):
        labels[i] = -1
        while first < n_above and above[1, first] < begins[i]:
            first += 1
        a = first
        while a < n_above and above[0, a] <= ends[i]:
            root = root_of(parent, above[2, a])
            if labels[i] < 0:
                labels[i] = root
            else:
                mine = root_of(parent, labels[i])
                if mine == root:
                    holes += 1
                else:
                    parent[max(mine, root)] = min(mine, root)
            a += 1
        if labels[i] < 0:
            parent[known] = known
            labels[i] = known
            known += 1
    # Numbered anew, so that numbers stay below the runs of a row.
    for i in range(known):
        number[i] = -1
    fresh = 0
    for i in range(n):
        root = root_of(parent, labels[i])
        if number[root] < 0:
            number[root] = fresh
            fresh += 1
        above[0, i], above[1, i], above[2, i] = begins[i], ends[i], number[root]
    return holes


@jit
def shape_facts(canvas, starts, strides, rows, core, offsets, who, perimeter, holes, open_runs, n_open, facts):
    """Add what units are like to their entries.

    Parameters
    ----------
    canvas, starts, strides
        See above.
    rows : int64 array, shape (units,)
        Of each unit.
    core : int64 array, shape (units, 2)
        Rows that count, half-open. The others are there to be looked at: two on either side where the mask goes on.
    offsets : int64 array, shape (units, 2)
        Row and column of a unit's first pixel, from the corner of its entry's box.
    who : int64 array, shape (units,)
        The entry of each unit.
    perimeter, holes : bool
        Whether these are wanted.
    open_runs : int64 array, shape (3, 32 times the widest stride and 1, or more)
        Runs of the last row looked at: begins, ends, components. A unit whose core begins below its first rows goes
        on from them.
    n_open : int
        How many they are.
    facts : int64 array, shape (entries, FACTS)
        Changed in place; begins with zeros.

    Returns
    -------
    int
        ``n_open`` after the last unit.
    """
    most = 1
    for u in range(len(starts)):
        most = max(most, strides[u])
    border = np.zeros((3, most + 2), np.uint64)
    runs = most * 32 + 1
    begins, ends, labels = np.empty(runs, np.int64), np.empty(runs, np.int64), np.empty(runs, np.int64)
    parent, number = np.empty(2 * runs, np.int64), np.empty(2 * runs, np.int64)
    for u in range(len(starts)):
        k, start, stride = who[u], starts[u], strides[u]
        first, last = core[u, 0], core[u, 1]
        if first == 0:
            n_open = 0
        if perimeter:
            _border_row(canvas, start, stride, rows[u], first - 1, border, 0)
            _border_row(canvas, start, stride, rows[u], first, border, 1)
        for i in range(first, last):
            n = _runs_of_row(canvas, start + i * stride, stride, begins, ends)
            for r in range(n):
                col = offsets[u, 1]
                _add_run(facts, k, offsets[u, 0] + i, col + begins[r], col + ends[r])
            if holes:
                facts[k, HOLES] += _close(open_runs, n_open, begins, ends, labels, n, parent, number)
                n_open = n
            if perimeter:
                above, here, below = (i - first) % 3, (i - first + 1) % 3, (i - first + 2) % 3
                _border_row(canvas, start, stride, rows[u], i + 1, border, below)
                for w in range(1, stride + 1):
                    straight, diagonal, mixed = _classify(border, above, here, below, w)
                    facts[k, STRAIGHT] += straight
                    facts[k, DIAGONAL] += diagonal
                    facts[k, MIXED] += mixed
    return n_open
