"""Pairs of masks: boxes that meet, pixels in common, and who loses pixels to whom."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import jit, leading_zeros, ones, word_at


@jit
def box_pairs(begins, ends, sides_x, ranks_x, sides_y, ranks_y, at, partner, first, second):
    """Pairs of boxes that meet, of which one axis is settled already.

    Parameters
    ----------
    begins, ends : int64 arrays, shape (n,)
        For each box x the range of boxes y that it meets along one axis.
    sides_x, sides_y : uint16 or int64 arrays, shape (n, 2) and (m, 2)
        First pixel of each box along the other axis, and the one behind its last.
    ranks_x, ranks_y : int64 arrays, shape (n,) and (m,)
        Only pairs of which y has the higher rank are wanted.
    at, partner : int
        Boxes x and y to go on from; begin with ``0, 0``.
    first, second : int64 arrays
        Filled in as far as they reach: places of x and of y.

    Returns
    -------
    at, partner, found : int
        ``at`` is len(begins) when all pairs were found.
    """
    n = 0
    while at < len(begins):
        low, high, rank = sides_x[at, 0], sides_x[at, 1], ranks_x[at]
        for j in range(max(begins[at], partner), ends[at]):
            k = np.uint64(j)
            if sides_y[k, 0] < high and sides_y[k, 1] > low and ranks_y[k] > rank:
                if n == len(first):
                    return at, j, n
                first[n], second[n] = at, j
                n += 1
        at += 1
        partner = 0
    return at, partner, n


@jit
def common_pixels(data, bits_a, bits_b, widths_a, widths_b, rows, cols, pairs, out):
    """Count the pixels that two masks share, for many pairs.

    Parameters
    ----------
    data : uint8 array
        With nine spare bytes.
    bits_a, bits_b : int64 arrays, shape (n,)
        Bit of the first pixel of the common box in either mask.
    widths_a, widths_b : int64 arrays, shape (n,)
        Bits from one row to the next.
    rows, cols : int64 arrays, shape (n,)
        Size of the common box.
    pairs : int64 array, shape (n,)
        Which element of ``out`` each pair adds to.
    out : int64 array
        Changed in place.
    """
    for p in range(len(pairs)):
        total = np.uint64(0)
        a, b, width = bits_a[p], bits_b[p], cols[p]
        for _ in range(rows[p]):
            for j in range(0, width, 64):
                common = word_at(data, a + j) & word_at(data, b + j)
                if width - j < 64:
                    common &= ~(~np.uint64(0) >> np.uint64(width - j))
                total += ones(common)
            a += widths_a[p]
            b += widths_b[p]
        out[pairs[p]] += np.int64(total)


@jit
def clear_common(data, bits_a, bits_b, widths_a, widths_b, rows, cols):
    """Take from the second mask of each pair, one pair after another, the pixels that the first has.

    Parameters
    ----------
    data : uint8 array
        With nine spare bytes; changed in place.
    bits_a, bits_b, widths_a, widths_b, rows, cols
        As in `common_pixels`; the two masks of a pair have no byte in common.
    """
    for p in range(len(bits_a)):
        a, b, width = bits_a[p], bits_b[p], cols[p]
        for _ in range(rows[p]):
            for j in range(0, width, 64):
                common = word_at(data, a + j) & word_at(data, b + j)
                n = min(64, width - j)
                if n < 64:
                    common &= ~(~np.uint64(0) >> np.uint64(n))
                if not common:
                    continue
                byte, shift = (b + j) >> 3, (b + j) & 7
                shifted = common >> np.uint64(shift)
                for k in range(min(8, (n + shift + 7) >> 3)):
                    data[np.uint64(byte + k)] &= ~np.uint8((shifted >> np.uint64(56 - 8 * k)) & np.uint64(0xFF))
                if n + shift > 64:
                    data[np.uint64(byte + 8)] &= ~np.uint8((common << np.uint64(8 - shift)) & np.uint64(0xFF))
            a += widths_a[p]
            b += widths_b[p]


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


@jit
def find_losses(
    at, row, labels, origin_row, origin_col, data, bits, firsts, counts, left, right, keys, stamp, kept, losses
):
    """Compare the pixels of pieces with who won them; see `iid_dask.kernels.paint` for what a piece is.

    Parameters
    ----------
    at, row : int
        Piece and row of it to go on from; begin with ``0, 0``.
    labels : uint32 array, shape (h, w)
        Key + 1 of who won each pixel of a window; its element (0, 0) is the pixel (origin_row, origin_col).
    data, bits, firsts, counts, left, right
        The pieces, all rows inside the window.
    keys : uint32 array, shape (pieces,)
    stamp : uint32 array, shape of labels, or (0, 0) where no two regions of an entry share pixels
        Changed in place; each pixel of an entry then counts once. Pieces of an entry must follow one another.
    kept : int64 array, one element a row of the lut
        Pixels won are added.
    losses : int64 array, shape (3, n)
        Filled in as far as it reaches: loser, winner, pixels; a pair of entries may come many times. n is at least
        the window's width.

    Returns
    -------
    at, row, found : int
        ``at`` is len(bits) when all pieces were looked at.
    """
    n = 0
    width = labels.shape[1]
    while at < len(bits):
        first, last = max(left[at] - origin_col, 0), min(right[at] - origin_col, width)
        start, step = bits[at] + first + origin_col - left[at], right[at] - left[at]
        key = np.int64(keys[at])
        own, won, to = np.uint32(key + 1), 0, np.uint32(0)
        while row < counts[at]:
            if n > losses.shape[1] - width:
                kept[key] += won
                return at, row, n
            i = np.uint64(firsts[at] + row - origin_row)
            for col in range(first, last, 64):
                word = word_at(data, start + row * step + col - first)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                j = np.uint64(col)
                while word:
                    skipped = leading_zeros(word)
                    word <<= skipped
                    length = leading_zeros(~word)
                    j += skipped
                    end = j + length
                    # A loop that only counts is made of wide instructions; most runs are won whole.
                    ours = 0
                    if not len(stamp):
                        for k in range(j, end):
                            ours += labels[i, k] == own
                        won += ours
                    if ours < np.int64(length):
                        for k in range(j, end):
                            winner = labels[i, k]
                            if len(stamp):
                                if stamp[i, k] == own:
                                    continue
                                stamp[i, k] = own
                                won += winner == own
                            if winner == own:
                                continue
                            if winner == to:
                                losses[2, n - 1] += 1
                            else:
                                to = winner
                                losses[0, n], losses[1, n], losses[2, n] = key, np.int64(winner) - 1, 1
                                n += 1
                    if length == 64:
                        break
                    word <<= length
                    j = end
            row += 1
        kept[key] += won
        at += 1
        row = 0
    return at, row, n
