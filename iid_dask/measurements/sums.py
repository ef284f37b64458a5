"""Sums of an image under masks: how they are kept, in a task and between tasks.

Integers are summed exactly, Σv and Σv² in several 64-bit words, so that neither tiling nor order can show. Floats
are summed in the order of tiles, then of keys, then of rows, so that two runs agree to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iid_dask import kernels


def measured_dtype(dtype: np.dtype) -> np.dtype:
    """Return the type in which values are measured: bool counts as uint8, float16 as float32.

    Raises
    ------
    TypeError
        For what is neither integer nor float of at most 64 bits.
    """
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise TypeError(
            f"measure: an image of type {dtype}, expected bool, integers, or floats of at most 64 bits; "
            "convert it first"
        )
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def table_dtype(dtype: np.dtype) -> np.dtype:
    """Return what a row of sums holds: one an entry and channel that have pixels in a tile."""
    head = [("key", "<u4"), ("channel", "<u4"), ("count", "<i8")]
    if dtype.kind == "f":
        return np.dtype([*head, ("values", "<f8", (6,))])
    return np.dtype([*head, ("low", "<u8"), ("high", "<u8"), ("sums", "<u8", (2 if dtype.itemsize <= 2 else 8,))])


def flip_of(dtype: np.dtype) -> Any:
    """What turns the bits of an integer into those of an unsigned one in the same order."""
    unsigned = np.dtype(f"u{dtype.itemsize}").type
    return unsigned(1 << (8 * dtype.itemsize - 1) if dtype.kind == "i" else 0)


class Sums:
    """Sums of one channel, a contiguous column each, as the kernels want them."""

    def __init__(self, dtype: np.dtype, n: int) -> None:
        self.columns = {name: np.zeros((n, *dtype[name].shape), dtype[name].base) for name in dtype.names or ()}
        if "low" in self.columns:
            self.columns["low"][:] = np.iinfo(np.uint64).max
        else:
            self.columns["values"][:, 4:] = np.inf, -np.inf

    def add(self, plane: np.ndarray, dtype: np.dtype, runs: np.ndarray) -> None:
        c = self.columns
        if dtype.kind == "f":
            kernels.add_floats(plane, runs, c["count"], c["values"])
        else:
            kernels.add_integers(plane, flip_of(dtype), runs, c["count"], c["low"], c["high"], c["sums"])

    def write(self, table: np.ndarray) -> None:
        for name in ("count", "low", "high", "sums", "values"):
            if name in self.columns:
                table[name] = self.columns[name]
