"""What two neighbouring tiles say about each other's entries: pixels that touch, and pixels that both hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.format.folder import FolderLike
from iid_dask.format.reader import RecordReader
from iid_dask.mosaic.folder import tiles_of
from iid_dask.mosaic.grid import Tile

OpenPath = Callable[[str], RecordReader]
"""Opens a tile by its path."""


@dataclass(frozen=True)
class TileFile:
    """A tile and where its file is, relative to the mosaic's folder."""

    path: str
    tile: Tile


@dataclass(frozen=True, eq=False)
class Runs:
    """Sets of places along a line, as runs; by ascending key, then start, those of one key apart.

    Attributes
    ----------
    keys, starts, stops : int64 arrays, shape (n,)
    """

    keys: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, keys: np.ndarray, starts: np.ndarray, stops: np.ndarray, grow: int = 0) -> Runs:
        """Sort runs, lengthen them at both ends, and join those of one key that meet."""
        order = np.lexsort((starts, keys))
        columns = keys[order], starts[order], stops[order]
        n = int(kernels.merge_runs(*columns, grow))
        return cls(*[column[:n] for column in columns])

    def grown(self) -> Runs:
        """Return the places that touch these, and these."""
        return Runs.of(self.keys, self.starts, self.stops, grow=1)

    def moved(self, by: int) -> Runs:
        """Count places from elsewhere."""
        return Runs(self.keys, self.starts + by, self.stops + by)

    def sizes(self, keys: np.ndarray) -> np.ndarray:
        """Return the places of each key."""
        known, where = np.unique(self.keys, return_inverse=True)
        totals = np.bincount(where, self.stops - self.starts, len(known)).astype(np.int64)
        at = np.minimum(np.searchsorted(known, keys), max(len(known) - 1, 0))
        return np.where(known[at] == keys, totals[at], 0) if len(known) else np.zeros(len(keys), np.int64)

    def common(self, other: Runs) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of keys with places in common, as ``a << 32 | b`` ascending, and how many."""
        a, b = self._by_start(), other._by_start()
        reach = np.maximum.accumulate(b[2])
        nothing = np.zeros(0, np.int64)
        n = int(kernels.common_runs(*a, *b, reach, nothing, nothing, nothing))
        keys_a, keys_b, pixels = np.empty((3, n), np.int64)
        kernels.common_runs(*a, *b, reach, keys_a, keys_b, pixels)
        pairs, where = np.unique(keys_a << 32 | keys_b, return_inverse=True)
        return pairs, np.bincount(where, pixels, len(pairs)).astype(np.int64)

    def _by_start(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = np.argsort(self.starts, kind="stable")
        return self.keys[order], self.starts[order], self.stops[order]


def runs_in(opened: OpenPath, file: TileFile, window: BBox) -> Runs:
    """Return the pixels that a tile's entries have in a window, counted row by row from its first pixel.

    Parameters
    ----------
    opened
        Opens a tile by its path.
    file
    window
        Mosaic pixels, within the tile's box. Only the rows that lie in it are read.
    """
    if not (window.height and window.width):
        return Runs(*np.zeros((3, 0), np.int64))
    reader = opened(file.path)
    row, col = file.tile.origin
    top, left, bottom, right = window.min_row - row, window.min_col - col, window.max_row - row, window.max_col - col
    columns = reader.columns
    low, high = columns.region_boxes[:, :2], columns.region_boxes[:, 2:]
    meets = (low[:, 0] < bottom) & (high[:, 0] > top) & (low[:, 1] < right) & (high[:, 1] > left)
    regions = np.flatnonzero(meets)
    boxes = columns.region_boxes[regions].astype(np.int64)
    widths, tops = boxes[:, 3] - boxes[:, 1], boxes[:, 0].copy()
    boxes[:, 0], boxes[:, 2] = np.maximum(tops, top), np.minimum(boxes[:, 2], bottom)
    begins, ends = (boxes[:, 0] - tops) * widths, (boxes[:, 2] - tops) * widths
    offsets = columns.region_bits[regions].astype(np.int64) + (begins >> 3)
    data, places = reader.read_bits(offsets, ((ends + 7) >> 3) - (begins >> 3))
    keys = columns.region_keys(regions).astype(np.int64)
    arguments = data, places * 8 + (begins & 7), boxes, keys, top, left, bottom, right
    nothing = np.zeros(0, np.int64)
    found = np.empty((3, int(kernels.window_runs(*arguments, nothing, nothing, nothing))), np.int64)
    kernels.window_runs(*arguments, *found)
    return Runs.of(*found)


def seam_rows(folder: FolderLike, files: Sequence[TileFile], numbers: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Compare pairs of tiles.

    Parameters
    ----------
    folder
    files
    numbers : int64 array
        Of each file in the table of tiles.
    pairs : int64 array, shape (n, 2)
        Places in ``files``.

    Returns
    -------
    int64 array, shape (m, 10)
        Tile and key of both entries, then contacts, faces, intersection and union; see `iid_dask.mosaic.seams`.
    """
    opened, rows = tiles_of(folder), [np.zeros((0, 10), np.int64)]
    for a, b in pairs.tolist():
        keys, counts = _compare(opened, files[a], files[b])
        ends = [np.full(len(keys), numbers[a]), keys >> 32, np.full(len(keys), numbers[b]), keys & 0xFFFFFFFF]
        rows.append(np.column_stack([*ends, counts]))
    return np.concatenate(rows)


def _compare(opened: OpenPath, a: TileFile, b: TileFile) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of keys that touch or share pixels, and their counts, shape (n, 6)."""
    faces = [_face(opened, one, other) for one, other in ((a, b), (b, a))]
    touching, contact_a = faces[0].common(faces[1].grown())
    _, contact_b = faces[0].grown().common(faces[1])
    both = a.tile.box.intersection(b.tile.box)
    inside = [runs_in(opened, file, both) for file in (a, b)]
    sharing, shared = inside[0].common(inside[1])
    pairs = np.union1d(touching, sharing)
    counts = np.zeros((len(pairs), 6), np.int64)
    at = np.searchsorted(pairs, touching)
    counts[at, 0], counts[at, 1] = contact_a, contact_b
    counts[np.searchsorted(pairs, sharing), 4] = shared
    ends = pairs >> 32, pairs & 0xFFFFFFFF
    for column, face, keys in zip((2, 3), faces, ends, strict=True):
        counts[:, column] = face.sizes(keys)
    counts[:, 5] = inside[0].sizes(ends[0]) + inside[1].sizes(ends[1]) - counts[:, 4]
    return pairs, counts


def _face(opened: OpenPath, file: TileFile, other: TileFile) -> Runs:
    """Return the pixels of a tile's core next to another's, by row or column of the mosaic, whichever runs along."""
    core, beside = file.tile.core, other.tile.core
    if not (core.height and core.width and beside.height and beside.width):
        line = BBox(0, 0, 0, 0)
    else:
        top, left = max(beside.min_row - 1, 0), max(beside.min_col - 1, 0)
        line = core.intersection(BBox(top, left, beside.max_row + 1, beside.max_col + 1))
    apart = core.max_col <= beside.min_col or beside.max_col <= core.min_col
    return runs_in(opened, file, line).moved(line.min_row if apart else line.min_col)
