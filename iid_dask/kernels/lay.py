"""Columns to the bytes of a file's sections,."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit


@inlined
def put_u2(out, at, value):
    """Store the low 16 bits of an integer, little-endian."""
    out[np.uint64(at)] = value & 0xFF
    out[np.uint64(at + 1)] = (value >> 8) & 0xFF


@inlined
def put_u4(out, at, value):
    """Store the low 32 bits of an integer, little-endian."""
    put_u2(out, at, value)
    put_u2(out, at + 2, value >> 16)


@jit
def lay_segments(first_key, boxes, areas, first_region, region_boxes, region_bits, data, out):
    """Write segments as the format stores them, one after another.

    Parameters
    ----------
    first_key : int
        Of the first segment; the others follow.
    boxes, areas, first_region, region_boxes, region_bits, data
        Columns of `Segments`; boxes fit 16 bits.
    out : uint8 array
        Filled in; as long as all segments together.
    """
    at = 0
    for i in range(len(areas)):
        put_u4(out, at, first_key + i)
        for j in range(4):
            put_u2(out, at + 4 + 2 * j, boxes[i, j])
        put_u4(out, at + 12, areas[i])
        at += 16
        for k in range(first_region[i], first_region[i + 1]):
            height, width = region_boxes[k, 2] - region_boxes[k, 0], region_boxes[k, 3] - region_boxes[k, 1]
            size = (height * width + 7) >> 3
            put_u4(out, at, size + 12)
            for j in range(4):
                put_u2(out, at + 4 + 2 * j, region_boxes[k, j])
            at += 12
            source = region_bits[k]
            for j in range(size):
                out[np.uint64(at + j)] = data[np.uint64(source + j)]
            at += size


@jit
def lay_names(text, starts, middles, stops, out):
    """Write the records of IIDs as the format stores them, one after another.

    Parameters
    ----------
    text : uint8 array
    starts, middles, stops : int64 arrays, shape (n,)
        Domains are ``text[start:middle]``, addresses ``text[middle:stop]``.
    out : uint8 array
        Filled in; as long as all records together.
    """
    at = 0
    for i in range(len(starts)):
        put_u4(out, at, i)
        put_u4(out, at + 4, middles[i] - starts[i])
        put_u4(out, at + 8, stops[i] - middles[i])
        at += 12
        for j in range(starts[i], stops[i]):
            out[np.uint64(at)] = text[np.uint64(j)]
            at += 1
