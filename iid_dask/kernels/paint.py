"""Mask bits to pixels, and pixels to colours and checksums."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit, leading_zeros, word_at

# A piece is some rows of one region. `data` holds its bits: those of its first row and the region's first column
# lie at bit `bits[p]` (also where only some columns were read: that place is then never touched). `data` has eight
# spare bytes at its end. Pieces come in painting order: a later one covers an earlier one. With `count`, pixels
# are counted instead, once an entry: `owners` tells the entries apart where `stamp` has the shape of `out`.
#
# Rows are not taken as arrays of their own (`out[i]`) in these loops: counting references to them costs more than
# the pixels. Unsigned indices need no test for "from the end".


@inlined
def _cover(out, i, begin, end, value, count, stamp, owner):
    i = np.uint64(i)
    if not count:
        for j in range(begin, end):
            out[i, np.uint64(j)] = value
    elif len(stamp):
        for j in range(begin, end):
            if stamp[i, np.uint64(j)] != owner:
                stamp[i, np.uint64(j)] = owner
                out[i, np.uint64(j)] += 1
    else:
        for j in range(begin, end):
            out[i, np.uint64(j)] += 1


@jit
def paint_window(out, origin_row, origin_col, data, bits, rows, counts, left, right, values, count, stamp, owners):
    """Paint pieces into an array that is a window of the image.

    Parameters
    ----------
    out : array, shape (h, w)
        Changed in place; element (0, 0) is the pixel (origin_row, origin_col).
    data, bits
        See above.
    rows, counts : int64 arrays, shape (pieces,)
        First row of each piece, image pixels, and how many; all inside the window.
    left, right : int64 arrays, shape (pieces,)
        Columns of the region, image pixels; they may leave the window.
    values : array of out's dtype, shape (pieces,)
    count, stamp, owners
        See above.

    Returns
    -------
    int
        Set bits inside the window; more than the pixels of ``out`` that are not 0 where entries overlap.
    """
    painted = 0
    width = out.shape[1]
    for p in range(len(bits)):
        first, last = max(left[p] - origin_col, 0), min(right[p] - origin_col, width)
        start, step = bits[p] + first + origin_col - left[p], right[p] - left[p]
        value, owner = values[p], owners[p]
        for k in range(counts[p]):
            i = rows[p] + k - origin_row
            bit = start + k * step
            col = first
            while col < last:
                word = word_at(data, bit)
                n = last - col
                if n < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(n))
                at = col
                while word:
                    zeros = leading_zeros(word)
                    word <<= zeros
                    ones = leading_zeros(~word)
                    begin = at + np.int64(zeros)
                    at = begin + np.int64(ones)
                    if count:
                        _cover(out, i, begin, at, value, count, stamp, owner)
                    else:
                        for j in range(begin, at):
                            out[np.uint64(i), np.uint64(j)] = value
                    painted += np.int64(ones)
                    if ones == 64:
                        break
                    word <<= ones
                col += 64
                bit += 64
    return painted


@inlined
def _cover_recorded(out, noted, i, begin, end, value):
    """Cover a run; return pixels that were 0, what the row's weighted sum gained, and pixels that another had too.

    A pixel weighs 2 j + 1: together the run weighs the difference of two squares.
    """
    i = np.uint64(i)
    before = np.uint64(0)
    for j in range(begin, end):
        before |= np.uint64(out[i, np.uint64(j)])
    fresh, gained = np.uint64(end - begin), np.uint64(end * end - begin * begin) * np.uint64(value)
    twice = np.uint64(0)
    if before:
        fresh, gained = np.uint64(0), np.uint64(0)
        for j in range(begin, end):
            before = np.uint64(out[i, np.uint64(j)])
            if before == 0:
                fresh += np.uint64(1)
            elif before != np.uint64(value) and not noted[i, np.uint64(j)]:
                noted[i, np.uint64(j)] = True
                twice += np.uint64(1)
            gained += (np.uint64(value) - before) * np.uint64(2 * j + 1)
    for j in range(begin, end):
        out[i, np.uint64(j)] = value
    return fresh, gained, twice


@jit
def paint_recorded(out, width, origin_row, origin_col, facts, noted, data, bits, rows, counts, left, right, values):
    """Paint one chunk as `paint_window` does, and record what `chunk_facts` would find, at the cost of the runs alone.

    Parameters
    ----------
    out : array, shape (h, w)
        The chunk; zeros, or what is to be painted over.
    width : int
        Columns of ``out`` that are painted; those right of them lie beyond the image.
    facts : uint64 array, shape (3,)
        Zeros, or what the pieces before left: pixels that are not 0, checksum, and pixels that more than one entry
        covers.
    noted : bool array, shape of out
        Zeros; set where entries overlap.
    values
        No two entries may have the same: who covered a pixel before is told by its value.
    origin_row, origin_col, data, bits, rows, counts, left, right
        As in `paint_window`.
    """
    for p in range(len(bits)):
        first, last = max(left[p] - origin_col, 0), min(right[p] - origin_col, width)
        start, step = bits[p] + first + origin_col - left[p], right[p] - left[p]
        value = values[p]
        for k in range(counts[p]):
            i = rows[p] + k - origin_row
            fresh, gained, twice = np.uint64(0), np.uint64(0), np.uint64(0)
            bit = start + k * step
            col = first
            while col < last:
                word = word_at(data, bit)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                at = col
                while word:
                    zeros = leading_zeros(word)
                    word <<= zeros
                    ones = leading_zeros(~word)
                    begin = at + np.int64(zeros)
                    at = begin + np.int64(ones)
                    a, b, c = _cover_recorded(out, noted, i, begin, at, value)
                    fresh += a
                    gained += b
                    twice += c
                    if ones == 64:
                        break
                    word <<= ones
                col += 64
                bit += 64
            facts[0] += fresh
            facts[1] += gained * np.uint64(2 * i + 1)
            facts[2] += twice


@jit
def paint_samples(out, rows, cols, data, bits, firsts, counts, left, right, values, count, stamp, owners):
    """Paint pieces at chosen rows and columns: ``out[i, j]`` is the pixel (rows[i], cols[j]).

    Parameters
    ----------
    rows, cols : int64 arrays
        Ascending, image pixels.
    firsts, counts : int64 arrays, shape (pieces,)
        Elements of ``rows`` that each piece covers; its bits begin with row ``rows[firsts[p]]``.
    out, data, bits, left, right, values, count, stamp, owners
        As in `paint_window`; so is what is returned.
    """
    painted = 0
    for p in range(len(bits)):
        begin, end = np.searchsorted(cols, left[p]), np.searchsorted(cols, right[p])
        for i in range(firsts[p], firsts[p] + counts[p]):
            start = bits[p] + (rows[i] - rows[firsts[p]]) * (right[p] - left[p]) - left[p]
            for j in range(begin, end):
                bit = start + cols[j]
                if data[bit >> 3] & (128 >> (bit & 7)):
                    _cover(out, i, j, j + 1, values[p], count, stamp, owners[p])
                    painted += 1
    return painted


@jit
def paint_points(out, rows, cols, data, bits, firsts, counts, left, right, values, count, stamp, owners):
    """Paint pieces at points: ``out[i, 0]`` is the pixel (rows[i], cols[i]).

    ``rows`` ascends; ``firsts`` and ``counts`` are the points whose rows each piece covers, as in `paint_samples`.
    """
    painted = 0
    for p in range(len(bits)):
        for i in range(firsts[p], firsts[p] + counts[p]):
            if left[p] <= cols[i] < right[p]:
                bit = bits[p] + (rows[i] - rows[firsts[p]]) * (right[p] - left[p]) + cols[i] - left[p]
                if data[bit >> 3] & (128 >> (bit & 7)):
                    _cover(out, i, 0, 1, values[p], count, stamp, owners[p])
                    painted += 1
    return painted


@jit
def paint_blocks(
    out, origin_row, origin_col, stride, image_cols, data, bits, rows, counts, left, right, values, count, stamp, owners
):
    """Paint pieces into an array of stride × stride blocks: an entry with a pixel in a block covers it.

    ``out[0, 0]`` is the block (origin_row, origin_col), counted in blocks; the last block may reach over the end
    of the image, of ``image_cols`` columns; the rest as in `paint_window`. In counting, ``stamp`` must have the
    shape of ``out``: an entry meets a block more than once.

    Returns
    -------
    int
        Blocks painted, each as often as a run of an entry met it.
    """
    painted = 0
    for p in range(len(bits)):
        first = max(left[p], origin_col * stride)
        last = min(right[p], (origin_col + out.shape[1]) * stride, image_cols)
        for k in range(counts[p]):
            i = (rows[p] + k) // stride - origin_row
            bit = bits[p] + k * (right[p] - left[p]) + first - left[p]
            col = first
            while col < last:
                word = word_at(data, bit)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                at = col
                while word:
                    zeros = leading_zeros(word)
                    word <<= zeros
                    ones = leading_zeros(~word)
                    begin = at + np.int64(zeros)
                    at = begin + np.int64(ones)
                    low, high = begin // stride - origin_col, (at - 1) // stride - origin_col + 1
                    _cover(out, i, low, high, values[p], count, stamp, owners[p])
                    painted += high - low
                    if ones == 64:
                        break
                    word <<= ones
                col += 64
                bit += 64
    return painted


@jit
def colorize(labels, out):
    """Write a colour a label: hues a golden angle apart, three brightnesses; 0 stays as it is.

    Parameters
    ----------
    labels : unsigned integer array, shape (h, w)
    out : uint8 array, shape (h, w, 3)
    """
    for i in range(labels.shape[0]):
        before = np.uint64(0)
        red, green, blue = 0, 0, 0
        for j in range(labels.shape[1]):
            value = np.uint64(labels[i, j])
            if value == 0:
                continue
            if value != before:
                before = value
                # 2654435769 is 2**32 divided by the golden ratio: neighbours in number are far apart in hue.
                hue = np.int64((value * np.uint64(2654435769)) & np.uint64(0xFFFFFFFF)) * 6
                sextant, part = hue >> 32, (hue & 0xFFFFFFFF) >> 24
                high = 255 - 40 * np.int64((value ^ (value >> np.uint64(16))) % np.uint64(3))
                low = high * 5 // 16
                up, down = low + (high - low) * part // 255, high - (high - low) * part // 255
                if sextant == 0:
                    red, green, blue = high, up, low
                elif sextant == 1:
                    red, green, blue = down, high, low
                elif sextant == 2:
                    red, green, blue = low, high, up
                elif sextant == 3:
                    red, green, blue = low, down, high
                elif sextant == 4:
                    red, green, blue = up, low, high
                else:
                    red, green, blue = high, low, down
            out[i, j, 0], out[i, j, 1], out[i, j, 2] = red, green, blue


@jit
def chunk_facts(block, chunk_rows, chunk_cols, pixels, sums):
    """Count the pixels that are not 0 and make a checksum, for each chunk of a block.

    The checksum of a chunk is the sum of its values, each times an odd number of its row and one of its column, modulo
    2**64: it changes when a value changes, or two values change places.

    Parameters
    ----------
    block : unsigned integer or bool array, shape (h, w)
    chunk_rows, chunk_cols : int
    pixels, sums : uint64 arrays, shape (ceil(h / chunk_rows), ceil(w / chunk_cols))
        Zeros; filled in.
    """
    for i in range(block.shape[0]):
        weight = np.uint64(2 * (i % chunk_rows) + 1)
        for c in range(pixels.shape[1]):
            line = block[i, c * chunk_cols : (c + 1) * chunk_cols]
            total = np.uint64(0)
            number = np.int64(0)
            for j in range(len(line)):
                total += np.uint64(line[j]) * np.uint64(2 * j + 1)
                number += line[j] != 0
            pixels[i // chunk_rows, c] += np.uint64(number)
            sums[i // chunk_rows, c] += total * weight
