"""Label arrays to regions in one pass: runs of equal value, their components, packed bits.

A run is some pixels of one row with one value that is not 0. Its row is told by ``row_runs``: the runs of row i are
``row_runs[i] : row_runs[i + 1]``. Runs are numbered by 32 bits: an image of the format's size has no more pixels.
"""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit, leading_zeros, load_word, or_word
from iid_dask.kernels.roots import root_of


@jit
def count_block_runs(block):
    """Runs of equal values that are not 0 in an array of unsigned integers."""
    total = 0
    for row in range(block.shape[0]):
        i = np.uint64(row)
        if block.shape[1]:
            total += block[i, 0] != 0
        for col in range(1, block.shape[1]):
            value = block[i, np.uint64(col)]
            total += (value != 0) & (value != block[i, np.uint64(col - 1)])
    return total


@inlined
def _mark_edges(block, row, edges):
    """Set ``edges[j]`` where pixel j differs from the one before it; before the first and after the last is 0."""
    i, width = np.uint64(row), block.shape[1]
    edges[0] = block[i, 0] != 0
    for col in range(1, width):
        edges[np.uint64(col)] = block[i, np.uint64(col)] != block[i, np.uint64(col - 1)]


@jit
def label_block(block, row_runs, begins, ends, labels):
    """Find the runs of an array and the 8-connected component of equal values that each belongs to.

    A union-find over touching runs (Wu, Otoo and Suzuki 2009, run-based). The root of a component is its first
    run, so components come out in raster order of their first pixel.

    Parameters
    ----------
    block : array of unsigned integers, shape (h, w)
        C-contiguous.
    row_runs : uint32 array, shape (h + 1,)
    begins, ends, labels : uint32 arrays, shape (count_block_runs(block) + 1,)
        Filled in: half-open columns and component of each run; the last element is scratch.

    Returns
    -------
    int
        Components.
    """
    height, width = block.shape
    edges = np.zeros(width + 16, np.uint8)
    n = np.uint64(0)
    row_runs[0] = 0
    for row in range(height):
        i, first, inside = np.uint64(row), n, np.uint64(0)
        if width:
            _mark_edges(block, row, edges)
        # An edge ends the run before it and begins the next. Both are noted whether or not there are such runs, and
        # kept or not by what is added to n: a branch here would be guessed wrong at every other edge.
        for col in range(0, width, 8):
            word = load_word(edges, col)
            while word:
                byte = leading_zeros(word) >> np.uint64(3)
                word &= ~(np.uint64(0xFF) << (np.uint64(56) - np.uint64(8) * byte))
                at = np.uint64(col) + byte
                ends[n] = at
                n += inside
                begins[n] = at
                labels[n] = n
                inside = np.uint64(block[i, at] != 0)
        ends[n] = width
        n += inside
        row_runs[i + np.uint64(1)] = n
        if row:
            _join_rows(block, row, np.uint64(row_runs[i - np.uint64(1)]), first, n, begins, ends, labels)
    return _number(labels, n)


@inlined
def _join_rows(block, row, above, first, stop, begins, ends, labels):
    """Join the runs of a row to those of equal value above that they touch."""
    i, up = np.uint64(row), np.uint64(row - 1)
    for run in range(first, stop):
        begin, end = begins[run], ends[run]
        value = block[i, np.uint64(begin)]
        while above < first and ends[above] < begin:
            above += np.uint64(1)
        other = above
        while other < first and begins[other] <= end:
            if block[up, np.uint64(begins[other])] == value:
                _unite(labels, other, run)
            other += np.uint64(1)


@inlined
def _unite(labels, other, run):
    """Join a run to the component of one above it."""
    a = root_of(labels, labels[other])
    if labels[run] == run:
        labels[run] = a
        return
    b = root_of(labels, labels[run])
    labels[np.uint64(max(a, b))] = min(a, b)


@inlined
def _number(labels, n):
    """Turn each run's parent into its component's number, in the order of their first runs."""
    found = 0
    # A parent precedes its children, so it has its number when they are met.
    for run in range(np.uint64(n)):
        if labels[run] == run:
            labels[run] = found
            found += 1
        else:
            labels[run] = labels[np.uint64(labels[run])]
    return found


@jit
def block_components(block, row_runs, begins, ends, labels, boxes, areas, values):
    """Measure the components that `label_block` found.

    Parameters
    ----------
    block, row_runs, begins, ends, labels
        As it left them.
    boxes : int64 array, shape (m, 4)
    areas : int64 array, shape (m,)
        Zeros.
    values : uint64 array, shape (m,)
        All three are filled in.
    """
    for row in range(block.shape[0]):
        i = np.uint64(row)
        for run in range(np.uint64(row_runs[i]), np.uint64(row_runs[i + np.uint64(1)])):
            k, begin, end = np.uint64(labels[run]), np.int64(begins[run]), np.int64(ends[run])
            if areas[k] == 0:
                boxes[k, 0], boxes[k, 1], boxes[k, 3] = row, begin, end
                values[k] = block[i, np.uint64(begin)]
            else:
                boxes[k, 1] = min(boxes[k, 1], begin)
                boxes[k, 3] = max(boxes[k, 3], end)
            boxes[k, 2] = row + 1
            areas[k] += end - begin


@jit
def pack_block(row_runs, begins, ends, labels, origins, widths, out):
    """Set the bits of each component's runs.

    Parameters
    ----------
    row_runs, begins, ends, labels
        As `label_block` left them.
    origins : int64 array, shape (m,)
        Bit of ``out`` where the block's pixel (0, 0) would lie if each component's box reached there: below 0 for
        most.
    widths : int64 array, shape (m,)
        Columns of each component's box.
    out : uint8 array
        Zeros, with eight spare bytes at its end; changed in place.
    """
    for row in range(len(row_runs) - 1):
        i = np.uint64(row)
        for run in range(np.uint64(row_runs[i]), np.uint64(row_runs[i + np.uint64(1)])):
            k = np.uint64(labels[run])
            bit = origins[k] + row * widths[k] + np.int64(begins[run])
            left = np.int64(ends[run]) - np.int64(begins[run])
            # 57 bits lie within eight bytes wherever they begin.
            while left > 57:
                or_word(out, np.uint64(bit >> 3), (~np.uint64(0) << np.uint64(7)) >> np.uint64(bit & 7))
                bit += 57
                left -= 57
            or_word(out, np.uint64(bit >> 3), (~np.uint64(0) << np.uint64(64 - left)) >> np.uint64(bit & 7))
