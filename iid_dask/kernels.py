"""Compiled loops on plain arrays. Callers check dtypes and shapes; nothing here allocates by what a file says.

Bits are numbered as the format lays them: bit 0 is the most significant bit of byte 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic


def _jit(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba finds no folder it may write its cache to
        return njit(nogil=True)(function)


def _inlined(function: Callable[..., Any]) -> Any:
    """For the innermost loops: a call costs more than the few pixels of a run."""
    return njit(nogil=True, inline="always")(function)


@intrinsic
def _leading_zeros(typing_context: Any, value: Any) -> Any:
    """Zeros above the highest set bit of a uint64; 64 for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@intrinsic
def _ones(typing_context: Any, value: Any) -> Any:
    """Set bits of a uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def _load_word(typing_context: Any, data: Any, at: Any) -> Any:
    """Eight bytes from any address of a uint8 array as a uint64, the first byte in the highest bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.gep(array.data, [arguments[1]])
        word = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return builder.bswap(word)

    return types.uint64(data, types.int64), generate


# --- read: many ranges of one file -------------------------------------------------------------------------------


@intrinsic
def _address(typing_context: Any, data: Any, at: Any) -> Any:
    """Where an element of a uint8 array lies in memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(array.data, [arguments[1]])

    return types.CPointer(types.uint8)(data, types.int64), generate


_pread = types.ExternalFunction("pread", types.intp(types.int32, types.CPointer(types.uint8), types.uintp, types.int64))


@_jit
def read_ranges(descriptor, offsets, lengths, out):
    """Read ranges of a file, one after another, into a uint8 array by the system's ``pread``.

    One call for a window's thousand small reads: from Python each would give up the interpreter's lock and wait to
    have it back.

    Returns
    -------
    int
        Ranges read whole before the first that was not; len(offsets) if all were.
    """
    at = 0
    for i in range(len(offsets)):
        if _pread(descriptor, _address(out, at), lengths[i], offsets[i]) != lengths[i]:
            return i
        at += lengths[i]
    return len(offsets)


# --- scan: segments section -> columns -------------------------------------------------------------------------

SOUND, KEY, SEGMENT_BOX, REGION_CUT, REGION_LENGTH, REGION_BOX, REGION_OUTSIDE = range(7)
"""What `scan` found wrong with a segment."""


@_jit
def _u2(data, at):
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8


@_jit
def _u4(data, at):
    return _u2(data, at) | _u2(data, at + 2) << 16


@_jit
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


@_jit
def popcount(bits, n_bits):
    """Set bits among the first ``n_bits`` of a uint8 array."""
    total = np.int64(0)
    whole = n_bits // 8
    for i in range(whole):
        total += _ones(np.uint64(bits[i]))
    rest = n_bits - whole * 8
    if rest:
        total += _ones(np.uint64(bits[whole] >> np.uint8(8 - rest)))
    return total


@_jit
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


def _crc_tables():
    """Tables of the crc32 that zlib and PNG use (reflected polynomial 0xEDB88320), for eight bytes a step.

    After M. E. Kounavis and F. L. Berry, "Novel table lookup-based algorithms for high-performance CRC generation"
    (2008): table t holds what a byte does that t more bytes follow.
    """
    tables = np.zeros((8, 256), np.uint64)
    for i in range(256):
        value = i
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        tables[0, i] = value
    for t in range(1, 8):
        before = tables[t - 1]
        tables[t] = (before >> np.uint64(8)) ^ tables[0][before & np.uint64(0xFF)]
    return tables


CRC_TABLES = _crc_tables()


@_jit
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
    low, byte = np.uint64(0xFFFFFFFF), np.uint64(0xFF)
    for p in range(len(places)):
        for i in range(4):
            if _u2(data, heads[p] + 4 + 2 * i) != boxes[p, i]:
                return p
        at, end = places[p], places[p] + lengths[p]
        crc = low
        while at + 8 <= end:
            word = np.uint64(0)
            for i in range(8):
                word |= np.uint64(data[at + i]) << np.uint64(8 * i)
            word ^= crc
            crc = np.uint64(0)
            for i in range(8):
                crc ^= CRC_TABLES[7 - i, (word >> np.uint64(8 * i)) & byte]
            at += 8
        while at < end:
            crc = CRC_TABLES[0, (crc ^ np.uint64(data[at])) & byte] ^ (crc >> np.uint64(8))
            at += 1
        if crc ^ low != np.uint64(crcs[p]):
            return p
    return -1


# --- runs: mask -> regions --------------------------------------------------------------------------------------


@_jit
def count_runs(mask):
    """Horizontal runs of true pixels in a bool array."""
    total = 0
    for row in range(mask.shape[0]):
        before = False
        for col in range(mask.shape[1]):
            if mask[row, col] and not before:
                total += 1
            before = mask[row, col]
    return total


@_jit
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@_jit
def label_runs(mask, rows, begins, ends, labels):
    """Find the runs of a bool array and the 8-connected component of each.

    A union-find over touching runs (Wu, Otoo and Suzuki 2009, run-based). The root of a component is its
    first run, so components come out in raster order of their first pixel.

    Parameters
    ----------
    mask : bool array
    rows, begins, ends, labels : int64 arrays, shape (count_runs(mask),)
        Filled in: row, half-open columns and component of each run.

    Returns
    -------
    int
        Components.
    """
    n = 0
    above, above_stop = 0, 0
    for row in range(mask.shape[0]):
        first = n
        col = 0
        while col < mask.shape[1]:
            if not mask[row, col]:
                col += 1
                continue
            begin = col
            while col < mask.shape[1] and mask[row, col]:
                col += 1
            rows[n], begins[n], ends[n], labels[n] = row, begin, col, n
            while above < above_stop and ends[above] < begin:
                above += 1
            other = above
            while other < above_stop and begins[other] <= col:
                a, b = _root(labels, other), _root(labels, n)
                if a < b:
                    labels[b] = a
                elif b < a:
                    labels[a] = b
                other += 1
            n += 1
        above, above_stop = first, n
    found = 0
    # A parent precedes its children, so it has its component when they are met; components are kept as
    # -1 - component meanwhile to tell them from run numbers.
    for i in range(n):
        if labels[i] == i:
            labels[i] = -1 - found
            found += 1
        else:
            labels[i] = labels[labels[i]]
    for i in range(n):
        labels[i] = -1 - labels[i]
    return found


@_jit
def run_boxes(rows, begins, ends, labels, boxes, areas):
    """Tight box and pixels of each component; ``boxes`` (m, 4) int64 and ``areas`` (m,) start as zeros."""
    for i in range(len(rows)):
        k = labels[i]
        if areas[k] == 0:
            boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3] = rows[i], begins[i], rows[i] + 1, ends[i]
        boxes[k, 1] = min(boxes[k, 1], begins[i])
        boxes[k, 2] = rows[i] + 1
        boxes[k, 3] = max(boxes[k, 3], ends[i])
        areas[k] += ends[i] - begins[i]


@_jit
def pack_runs(rows, begins, ends, labels, boxes, starts, out):
    """Set the bits of each component's runs in ``out`` (uint8, zeros), its box's bits from byte ``starts[k]``."""
    for i in range(len(rows)):
        k = labels[i]
        width = boxes[k, 3] - boxes[k, 1]
        bit = starts[k] * 8 + (rows[i] - boxes[k, 0]) * width + begins[i] - boxes[k, 1]
        for _ in range(ends[i] - begins[i]):
            out[bit >> 3] |= np.uint8(128 >> (bit & 7))
            bit += 1


# --- find: which regions touch a window --------------------------------------------------------------------------


@_jit
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


# --- paint: mask bits -> pixels ----------------------------------------------------------------------------------
#
# A piece is some rows of one region. `data` holds its bits: those of its first row and the region's first column
# lie at bit `bits[p]` (also where only some columns were read: that place is then never touched). `data` has eight
# spare bytes at its end. Pieces come in painting order: a later one covers an earlier one. With `count`, pixels
# are counted instead, once an entry: `owners` tells the entries apart where `stamp` has the shape of `out`.


# Rows are not taken as arrays of their own (`out[i]`) in these loops: counting references to them costs more than
# the pixels. Unsigned indices need no test for "from the end".


@_inlined
def _word(data, bit):
    """The 64 bits from bit ``bit`` on, as a uint64."""
    byte = bit >> 3
    shift = np.uint64(bit & 7)
    word = _load_word(data, byte)
    if shift:
        word = (word << shift) | (np.uint64(data[np.uint64(byte + 8)]) >> (np.uint64(8) - shift))
    return word


@_inlined
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


@_jit
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
                word = _word(data, bit)
                n = last - col
                if n < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(n))
                at = col
                while word:
                    zeros = _leading_zeros(word)
                    word <<= zeros
                    ones = _leading_zeros(~word)
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


@_inlined
def _cover_recorded(out, noted, i, begin, end, value):
    """Cover a run; return pixels that were 0, the sum of what they gained, and those that another entry had too."""
    i = np.uint64(i)
    before = np.uint64(0)
    for j in range(begin, end):
        before |= np.uint64(out[i, np.uint64(j)])
    fresh, gained, twice = np.uint64(end - begin), np.uint64(end - begin) * np.uint64(value), np.uint64(0)
    if before:
        fresh, gained = np.uint64(0), np.uint64(0)
        for j in range(begin, end):
            before = np.uint64(out[i, np.uint64(j)])
            if before == 0:
                fresh += np.uint64(1)
            elif before != np.uint64(value) and not noted[i, np.uint64(j)]:
                noted[i, np.uint64(j)] = True
                twice += np.uint64(1)
            gained += np.uint64(value) - before
    for j in range(begin, end):
        out[i, np.uint64(j)] = value
    return fresh, gained, twice


@_jit
def paint_recorded(
    out,
    origin_row,
    origin_col,
    clear,
    chunk_rows,
    chunk_cols,
    facts,
    noted,
    data,
    bits,
    rows,
    counts,
    left,
    right,
    values,
):
    """Paint as `paint_window` does, and record what `chunk_facts` would find, at the cost of the runs alone.

    Parameters
    ----------
    clear : int
        Rows of ``out`` to set to 0 at once, just before the first of them is painted, while they are in a cache; 0
        if ``out`` holds zeros already, or what is to be painted over.
    chunk_rows, chunk_cols : int
        Of a chunk; ``out`` begins with one.
    facts : uint64 array, shape (chunk rows, chunk columns, 3)
        Zeros; pixels that are not 0, checksum, and pixels that more than one entry covers, for each chunk.
    noted : bool array, shape of out
        Zeros; set where entries overlap.
    values
        No two entries may have the same: who covered a pixel before is told by its value.
    out, origin_row, origin_col, data, bits, rows, counts, left, right
        As in `paint_window`.
    """
    height, width = out.shape
    cleared = 0 if clear else height
    for p in range(len(bits)):
        first, last = max(left[p] - origin_col, 0), min(right[p] - origin_col, width)
        start, step = bits[p] + first + origin_col - left[p], right[p] - left[p]
        value = values[p]
        while cleared < rows[p] + counts[p] - origin_row:
            for i in range(cleared, min(cleared + clear, height)):
                out[i, :] = 0
            cleared += clear
        first_chunk = max(first, 0) // chunk_cols
        for k in range(counts[p]):
            i = rows[p] + k - origin_row
            row = np.uint64(i // chunk_rows)
            weight = np.uint64(2 * (i - np.int64(row) * chunk_rows) + 1)
            chunk, edge = first_chunk, (first_chunk + 1) * chunk_cols
            fresh, gained, twice = np.uint64(0), np.uint64(0), np.uint64(0)
            bit = start + k * step
            col = first
            while col < last:
                word = _word(data, bit)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                at = col
                while word:
                    zeros = _leading_zeros(word)
                    word <<= zeros
                    ones = _leading_zeros(~word)
                    begin = at + np.int64(zeros)
                    at = begin + np.int64(ones)
                    while begin < at:
                        while begin >= edge:
                            facts[row, np.uint64(chunk), 0] += fresh
                            facts[row, np.uint64(chunk), 1] += gained * weight
                            facts[row, np.uint64(chunk), 2] += twice
                            fresh, gained, twice = np.uint64(0), np.uint64(0), np.uint64(0)
                            chunk += 1
                            edge += chunk_cols
                        stop = min(at, edge)
                        a, b, c = _cover_recorded(out, noted, i, begin, stop, value)
                        fresh += a
                        gained += b
                        twice += c
                        begin = stop
                    if ones == 64:
                        break
                    word <<= ones
                col += 64
                bit += 64
            if first < last:
                facts[row, np.uint64(chunk), 0] += fresh
                facts[row, np.uint64(chunk), 1] += gained * weight
                facts[row, np.uint64(chunk), 2] += twice
    for i in range(cleared, height):
        out[i, :] = 0


@_jit
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


@_jit
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


@_jit
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
                word = _word(data, bit)
                if last - col < 64:
                    word &= ~(~np.uint64(0) >> np.uint64(last - col))
                at = col
                while word:
                    zeros = _leading_zeros(word)
                    word <<= zeros
                    ones = _leading_zeros(~word)
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


# --- color ------------------------------------------------------------------------------------------------------


@_jit
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


# --- layers -----------------------------------------------------------------------------------------------------


@_jit
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


@_jit
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
                common = _word(data, bits_a[p] + i * width_a[p] + j) & _word(data, bits_b[p] + i * width_b[p] + j)
                if cols[p] - j < 64:
                    common &= ~(~np.uint64(0) >> np.uint64(cols[p] - j))
                if common:
                    found = True
                    break
        out[p] = found


@_jit
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


# --- statistics of chunks ---------------------------------------------------------------------------------------


@_jit
def chunk_facts(block, chunk_rows, chunk_cols, pixels, sums):
    """Count the pixels that are not 0 and make a checksum, for each chunk of a block.

    The checksum of a chunk is the sum of its rows' sums, each times an odd number of its own, modulo 2**64: it
    changes when values or rows change places.

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
                total += np.uint64(line[j])
                number += line[j] != 0
            pixels[i // chunk_rows, c] += np.uint64(number)
            sums[i // chunk_rows, c] += total * weight
