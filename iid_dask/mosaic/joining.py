"""Regions that tile borders cut, joined again: which of a segment's parts are one region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iid_dask import kernels
from iid_dask.errors import IIDFormatError
from iid_dask.mosaic.region_parts import BYTES, Parts, Read, read_ranges
from iid_dask.mosaic.zones import batches, border_zones, whole_zones

__all__ = ["Joined", "Parts", "Read", "join", "union_areas"]


@dataclass(frozen=True, eq=False)
class Joined:
    """Regions made of parts, by ascending segment, then in raster order of their first pixel.

    Attributes
    ----------
    segments : int64 array, shape (k,)
    boxes : int64 array, shape (k, 4)
    regions : int64 array, shape (m,)
        The region that each part belongs to.
    counted : int64 array, shape (n,)
        For each segment (ascending, once) its pixels if they were counted because parts may share some, else -1:
        then the areas of the parts add up.
    """

    segments: np.ndarray
    boxes: np.ndarray
    regions: np.ndarray
    counted: np.ndarray


def join(parts: Parts, read: Read, *, loose: bool = False) -> Joined:
    """Find the regions of segments of which tiles hold parts.

    Parts touch (8-connected) or share pixels across entries; within an entry only if ``loose`` says so, because
    canonical files hold connected components. Memory holds boxes and the strips where entries meet, never masks.

    Parameters
    ----------
    parts
    read
    loose
        Whether regions of an entry may touch or share pixels, as other programs may write them.

    Raises
    ------
    IIDFormatError
        For a part without a pixel in the first row of its box.
    """
    if not len(parts.segments):
        return Joined(np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    starts = np.flatnonzero(np.diff(parts.segments, prepend=-1))
    zones = border_zones(parts, starts, loose)
    parent = np.arange(len(parts.segments))
    counted = np.where(zones.whole, 0, -1)
    for batch in batches(zones, parts):
        first, second, fresh = batch.join(parts, read)
        kernels.unite(parent, first, second)
        groups = zones.groups[batch.zones]
        np.add.at(counted, groups[zones.whole[groups]], fresh[zones.whole[groups]])
    return _regions(parts, parent, _first_columns(parts, read), counted)


def union_areas(parts: Parts, read: Read) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of segments whose parts may share some, as in the halos of tiles.

    Parameters
    ----------
    parts
        Their pieces do not matter.
    read

    Returns
    -------
    segments, areas : int64 arrays
        Each segment once, ascending.
    """
    segments, starts = np.unique(parts.segments, return_index=True)
    areas = np.zeros(len(segments), np.int64)
    zones = whole_zones(parts, starts, np.arange(len(segments)))
    for batch in batches(zones, parts):
        _, _, fresh = batch.join(parts, read)
        np.add.at(areas, zones.groups[batch.zones], fresh)
    return segments, areas


def _first_columns(parts: Parts, read: Read) -> np.ndarray:
    """Column of the first pixel of each part, mosaic pixels."""
    out = np.zeros(len(parts.bits), np.int64)
    order = np.lexsort((parts.bits, parts.tiles))
    lengths = (parts.widths + 7) >> 3
    blocks = np.cumsum(lengths[order]) // BYTES
    for some in np.split(order, np.flatnonzero(np.diff(blocks)) + 1):
        data, places = read_ranges(read, parts.tiles[some], parts.bits[some], lengths[some])
        found = np.zeros(len(some), np.int64)
        kernels.first_pixels(data, places * 8, parts.widths[some], found)
        for i in some[found < 0].tolist():
            raise IIDFormatError(
                f"file {parts.tiles[i]} of the mosaic",
                "segments",
                None,
                int(parts.bits[i]),
                f"a region with no pixel in its first row, {tuple(parts.boxes[i].tolist())} in the mosaic",
                "a tight box",
            )
        out[some] = found + parts.boxes[some, 1]
    return out


def _regions(parts: Parts, parent: np.ndarray, first_cols: np.ndarray, counted: np.ndarray) -> Joined:
    """Put the regions in order, from which part each one points to."""
    # The first pixel of a region is that of the first of its parts in raster order, and regions come in that order.
    order = np.lexsort((parts.boxes[:, 0] << 32 | first_cols, parts.segments))
    number = np.empty(len(order), np.int64)
    number[parent[order[::-1]]] = np.arange(len(order))[::-1]  # the last to write is the first part
    lead = order[number[parent[order]] == np.arange(len(order))]
    number[parent[lead]] = np.arange(len(lead))
    regions = number[parent]
    boxes = parts.boxes[lead]
    more = np.ones(len(order), bool)
    more[lead] = False
    rest = np.flatnonzero(more)
    np.minimum.at(boxes[:, :2], regions[rest], parts.boxes[rest, :2])
    np.maximum.at(boxes[:, 2:], regions[rest], parts.boxes[rest, 2:])
    return Joined(parts.segments[lead], boxes, regions, counted)
