"""What reading windows of a file takes of memory: columns of entries and regions, and those of a crowded tile."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from iid_dask.format.reader import RecordReader
from iid_dask.pieces import Parted

ENTRY, REGION = 110, 100
"""Bytes of memory of an entry and of a region in each process, while it opens a file; a third of it stays."""

PIECE, CUT = 170, 130
"""Bytes of memory of a region that meets a tile, and of each of its parts in a chunk, while they are painted."""

PARTS, SEGMENT = 2**28 + 2**25, 512
"""Bytes of memory of a mosaic's files that a process keeps, at most, and of a segment in them."""

MAX_CELLS = 2**22
"""Cells of a grid in which boxes are counted."""


class Grid(NamedTuple):
    """Rows and columns of an image, of a chunk, and of chunks in a tile."""

    shape: tuple[int, int]
    chunk: tuple[int, int]
    tile: tuple[int, int]


def columns_bytes(reader: RecordReader) -> int:
    """Bytes of memory of a file's entries and regions in each process that reads windows of it."""
    if isinstance(reader, Parted):
        return min(PARTS, SEGMENT * len(reader.entry_keys))
    return len(reader.lut) * ENTRY + len(region_boxes(reader)) * REGION


def stored_bytes(reader: RecordReader) -> int:
    """Bytes of a file's masks as they are stored; of mosaics about."""
    return int(reader.lut["segment_length"].sum(dtype=np.int64))


def region_boxes(reader: RecordReader) -> np.ndarray:
    """Boxes of all regions, shape (n, 4); of a mosaic those of its segments: regions are in its tiles' files."""
    return reader.columns.boxes if isinstance(reader, Parted) else reader.columns.region_boxes


def most_in_a_tile(boxes: np.ndarray, grid: Grid) -> tuple[int, int]:
    """Count the boxes that meet the tile that the most meet, and the most pieces that chunks cut those of a tile into.

    Parameters
    ----------
    boxes : integer array, shape (n, 4)
        In pixels of the image; those beyond it do not count.
    grid

    Examples
    --------
    >>> most_in_a_tile(np.array([[0, 0, 9, 9], [8, 8, 20, 12]]), Grid((20, 20), (5, 5), (2, 2)))
    (2, 5)
    """
    tile = grid.chunk[0] * grid.tile[0], grid.chunk[1] * grid.tile[1]
    pieces = int(meeting(boxes, grid.shape, tile).max(initial=0))
    if math.prod(-(-s // c) for s, c in zip(grid.shape, grid.chunk, strict=True)) > MAX_CELLS:
        return pieces, pieces * math.prod(grid.tile)
    cuts = meeting(boxes, grid.shape, grid.chunk)
    for axis, step in enumerate(grid.tile):
        cuts = np.add.reduceat(cuts, np.arange(0, cuts.shape[axis], step), axis=axis)
    return pieces, int(cuts.max(initial=0))


def meeting(boxes: np.ndarray, shape: tuple[int, int], cell: tuple[int, int]) -> np.ndarray:
    """Count the boxes that meet each cell of a grid: where they begin less where they end, summed along both axes.

    Examples
    --------
    >>> meeting(np.array([[0, 0, 5, 6], [0, 0, 1, 1]]), (10, 10), (5, 5)).tolist()
    [[2, 1], [0, 0]]
    """
    counts = tuple(max(1, -(-s // c)) for s, c in zip(shape, cell, strict=True))
    low, high = np.clip(boxes[:, :2].astype(np.int64), 0, shape), np.clip(boxes[:, 2:].astype(np.int64), 0, shape)
    inside = (low < high).all(axis=1)
    low, high = low[inside] // cell, -(-high[inside] // cell)
    width = counts[1] + 1
    found = np.zeros((counts[0] + 1) * width, np.int64)
    for rows, cols, sign in ((low, low, 1), (low, high, -1), (high, low, -1), (high, high, 1)):
        found += sign * np.bincount(rows[:, 0] * width + cols[:, 1], minlength=len(found))
    return found.reshape(-1, width).cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
