"""Masks to regions: horizontal runs, their connected components, packed bits."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit


@jit
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


@inlined
def root_of(parent, i):
    """What stands for the set that ``i`` belongs to; the way there becomes shorter."""
    while parent[np.uint64(i)] != i:
        up = parent[np.uint64(parent[np.uint64(i)])]
        parent[np.uint64(i)] = up
        i = up
    return i


@jit
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
                a, b = root_of(labels, other), root_of(labels, n)
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


@jit
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


@jit
def pack_runs(rows, begins, ends, labels, boxes, starts, out):
    """Set the bits of each component's runs in ``out`` (uint8, zeros), its box's bits from byte ``starts[k]``."""
    for i in range(len(rows)):
        k = labels[i]
        width = boxes[k, 3] - boxes[k, 1]
        bit = starts[k] * 8 + (rows[i] - boxes[k, 0]) * width + begins[i] - boxes[k, 1]
        for _ in range(ends[i] - begins[i]):
            out[bit >> 3] |= np.uint8(128 >> (bit & 7))
            bit += 1
