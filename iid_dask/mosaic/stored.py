"""What the files of a mosaic hold of its segments, as columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from iid_dask.cutting import spread
from iid_dask.errors import IIDFormatError
from iid_dask.format.folder import stamp_of
from iid_dask.format.reader import RecordReader
from iid_dask.mosaic.ranges import TileFiles
from iid_dask.mosaic.region_parts import Parts

OpenTile = Callable[[int], RecordReader]
"""Opens a file by its number, and checks that it is the one that the mosaic means."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Which segment each entry of a file shows, in any order; int64 arrays, shape (p,)."""

    tiles: np.ndarray
    keys: np.ndarray
    segments: np.ndarray


@dataclass(frozen=True, eq=False)
class Stored:
    """Pieces and their regions, by segment, as the files hold them.

    Attributes
    ----------
    segments, tiles, keys, areas : int64 arrays, shape (p,)
    origins : int64 array, shape (p, 2)
        Row and column of the first pixel of the piece's file.
    first_region : int64 array, shape (p + 1,)
    boxes : uint16 array, shape (m, 4)
        In pixels of the file.
    bits : uint32 array, shape (m,)
    """

    segments: np.ndarray
    tiles: np.ndarray
    keys: np.ndarray
    areas: np.ndarray
    origins: np.ndarray
    first_region: np.ndarray
    boxes: np.ndarray
    bits: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Regions of each piece."""
        return np.diff(self.first_region)

    def regions_of(self, pieces: np.ndarray) -> np.ndarray:
        """Return the numbers of the regions of pieces, in their order."""
        return spread(self.first_region[pieces], self.counts[pieces])

    def parts(self, pieces: np.ndarray) -> Parts:
        """Return the regions of pieces, in mosaic pixels."""
        owners, regions = np.repeat(pieces, self.counts[pieces]), self.regions_of(pieces)
        boxes = self.boxes[regions] + np.tile(self.origins[owners], 2)
        return Parts(self.segments[owners], owners, self.tiles[owners], boxes, self.bits[regions].astype(np.int64))


def stored(open_tile: OpenTile, files: TileFiles, shown: Shown) -> tuple[Stored, TileFiles]:
    """Read the columns of the files, one file after another; return also the files with their stamps.

    Raises
    ------
    IIDFormatError
        If a file has no entry that should show a segment.
    """
    order = np.lexsort((shown.keys, shown.tiles))
    tiles, keys = shown.tiles[order], shown.keys[order]
    areas, counts = np.zeros((2, len(order)), np.int64)
    boxes, bits, stamps = [np.zeros((0, 4), np.uint16)], [np.zeros(0, np.uint32)], {}
    starts = np.flatnonzero(np.diff(tiles, prepend=-1)).tolist()
    for start, stop in pairwise([*starts, len(order)]):
        tile, wanted = int(tiles[start]), keys[start:stop]
        reader = open_tile(tile)
        _check_keys(reader.name, reader.live, wanted)
        columns, stamps[tile] = reader.columns, stamp_of(reader.source)
        first = columns.first_region[wanted].astype(np.int64)
        counts[start:stop] = columns.first_region[wanted + 1] - first
        areas[start:stop] = columns.areas[wanted]
        regions = spread(first, counts[start:stop])
        boxes.append(columns.region_boxes[regions])
        bits.append(columns.region_bits[regions])
    corners = np.array([files.origins[int(tiles[start])] for start in starts], np.int64).reshape(-1, 2)
    origins = np.repeat(corners, np.diff([*starts, len(order)]), axis=0)
    rows = shown.segments[order], tiles, keys, areas, origins
    held = Stored(*rows, running(counts), np.concatenate(boxes), np.concatenate(bits))
    return _by_segment(held), replace(files, stamps=stamps)


def _by_segment(by_file: Stored) -> Stored:
    order = np.argsort(by_file.segments, kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return by_file
    regions = by_file.regions_of(order)
    return Stored(
        by_file.segments[order],
        by_file.tiles[order],
        by_file.keys[order],
        by_file.areas[order],
        by_file.origins[order],
        running(by_file.counts[order]),
        by_file.boxes[regions],
        by_file.bits[regions],
    )


def _check_keys(name: str, live: np.ndarray, keys: np.ndarray) -> None:
    wrong = keys[(keys < 0) | (keys >= len(live))]
    if not len(wrong):
        wrong = keys[~live[keys]]
    if len(wrong):
        raise IIDFormatError(name, "lut", int(wrong[0]), None, "no such entry", "one, as the mosaic's pieces say")


def running(counts: np.ndarray) -> np.ndarray:
    """Return the sums of the first 0, 1, 2 … counts."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
