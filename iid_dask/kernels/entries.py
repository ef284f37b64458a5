"""Columns of the entry table: names laid one after another, and masks in the bits of their boxes."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import jit, or_row


@jit
def gather_spans(data, starts, stops, out):
    """Copy pieces of bytes one after another.

    Parameters
    ----------
    data : uint8 array
    starts, stops : int64 arrays, shape (n,)
        Pieces of ``data``, in any order; they may overlap.
    out : uint8 array
        Filled in; as long as all pieces together.
    """
    at = 0
    for i in range(len(starts)):
        for j in range(starts[i], stops[i]):
            out[np.uint64(at)] = data[np.uint64(j)]
            at += 1


@jit
def mark_special(data, starts, stops, out):
    """Find the names that are not the same as text: those with a byte beyond ASCII, or a backslash.

    Parameters
    ----------
    data : uint8 array
    starts, stops : int64 arrays, shape (n,)
    out : bool array, shape (n,)
        Filled in.
    """
    for i in range(len(starts)):
        special = False
        for j in range(starts[i], stops[i]):
            byte = data[np.uint64(j)]
            if byte >= 0x80 or byte == 0x5C:
                special = True
                break
        out[i] = special


@jit
def or_bits(data, bits, heights, widths, out, places, steps):
    """Add the pixels of regions to packed masks.

    Parameters
    ----------
    data : uint8 array
        With eight spare bytes at its end.
    bits : int64 array, shape (n,)
        Bit of ``data`` where each region begins.
    heights, widths : int64 arrays, shape (n,)
        Of each region; its rows follow one another without padding.
    out : uint8 array
        Changed in place.
    places, steps : int64 arrays, shape (n,)
        Bit of ``out`` where the region's first pixel belongs, and bits from one row to the next there.
    """
    for p in range(len(bits)):
        rows, cols = heights[p], widths[p]
        if cols == steps[p]:  # rows follow one another here as there
            rows, cols = 1, rows * cols
        for i in range(rows):
            or_row(data, bits[p] + i * cols, cols, out, places[p] + i * steps[p])
