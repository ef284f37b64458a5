"""Regions of segments as tile files hold them, and reading their bits from many files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from iid_dask.format.layout import SPARE

BYTES = 2**25
"""Bytes of mask bits held at once."""

Read = Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``read(tile, offsets, lengths)`` -> data with `SPARE` bytes at its end, and where in it each range begins.

Offsets count from the start of the segments section of the tile's file, as `RecordReader.read_bits` takes them.
"""


@dataclass(frozen=True, eq=False)
class Parts:
    """Regions of segments as tile files hold them, by ascending segment; those of a piece follow one another.

    Attributes
    ----------
    segments : int64 array, shape (m,)
    pieces : int64 array, shape (m,)
        Number of the entry that holds each: equal numbers mean one entry of one file.
    tiles : int64 array, shape (m,)
        File of each, as `Read` knows it.
    boxes : int64 array, shape (m, 4)
        In mosaic pixels.
    bits : int64 array, shape (m,)
        Offset of the mask bits from the start of the file's segments section.
    """

    segments: np.ndarray
    pieces: np.ndarray
    tiles: np.ndarray
    boxes: np.ndarray
    bits: np.ndarray

    @property
    def widths(self) -> np.ndarray:
        """Columns of each, which are bits from one row to the next."""
        return self.boxes[:, 3] - self.boxes[:, 1]

    def take(self, which: np.ndarray) -> Parts:
        """Return some of them."""
        return Parts(self.segments[which], self.pieces[which], self.tiles[which], self.boxes[which], self.bits[which])

    def followed_by(self, other: Parts) -> Parts:
        """Return these and then the others, in whatever order of segments."""
        names = ("segments", "pieces", "tiles", "boxes", "bits")
        return Parts(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


def read_ranges(
    read: Read, tiles: np.ndarray, offsets: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Read ranges of several files.

    Returns
    -------
    data : uint8 array
        With `SPARE` bytes at its end.
    places : int64 array, shape (n,)
        Where each range begins in ``data``.
    """
    places = np.zeros(len(tiles), np.int64)
    order = np.argsort(tiles, kind="stable")
    found, base = [], 0
    for some in np.split(order, np.flatnonzero(np.diff(tiles[order])) + 1):
        if len(some):
            data, at = read(int(tiles[some[0]]), offsets[some], lengths[some])
            places[some] = at + base
            found.append(data)
            base += len(data)
    return (found[0] if len(found) == 1 else np.concatenate([*found, np.zeros(SPARE, np.uint8)])), places
