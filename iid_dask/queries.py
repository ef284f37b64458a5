"""Questions to one file: columns first, names and pixels only of what is left. Answers are ascending keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.errors import IIDLimitError
from iid_dask.format.reader import RecordReader
from iid_dask.lookup import as_groups, as_names, members, named
from iid_dask.pairs import codes, decoded
from iid_dask.pieces import Found, Held, batches, read_pieces, search
from iid_dask.views import View, Window

MOST = 2**31 - 1
"""Rows or columns of the largest mosaic."""

WHOLE = BBox(0, 0, MOST, MOST)
"""All pixels that a file or mosaic can hold."""

MOST_POINTS = 2**32
"""Pixels asked for at once: with their keys they make one number."""

PAIRS = 2**18
"""Pairs of a region and a point in its box that are looked at together, at least."""


# --- by name and by column --------------------------------------------------------------------------------------


def look_for(
    reader: RecordReader,
    addresses: bytes | Iterable[bytes] | None,
    domains: bytes | Iterable[bytes] | None = None,
    groups: str | Iterable[str] | None = None,
) -> np.ndarray:
    """Find the entries of certain names; see `iid_dask.IIDReader.look_for`."""
    wanted, of_domains = as_names("addresses", addresses), as_names("domains", domains)
    return named(reader, _in_groups(reader, groups), of_domains, wanted)


def filter_entries(
    reader: RecordReader,
    *,
    groups: str | Iterable[str] | None = None,
    domains: bytes | Iterable[bytes] | None = None,
    area: tuple[int | None, int | None] | None = None,
    bbox: BBox | Sequence[int] | None = None,
) -> np.ndarray:
    """Find the entries that pass all of these; see `iid_dask.IIDReader.filter`."""
    of_domains, bounds = as_names("domains", domains), as_bounds(area)
    box = None if bbox is None else BBox.of(bbox)
    keys = _in_groups(reader, groups)
    if bounds is not None or box is not None:
        columns, rows = reader.segment_columns(keys)
        keep = np.ones(len(keys), bool)
        if bounds is not None:
            keep &= within(columns.areas[rows], bounds)
        if box is not None:
            keep &= boxes_meet(columns.boxes[rows], box)
        keys = keys[keep]
    return named(reader, keys, of_domains)


def as_bounds(area: Any) -> tuple[int | None, int | None] | None:
    """Return (min, max) as integers or None.

    Raises
    ------
    ValueError, TypeError
        For anything else than two integers or None.
    """
    if area is None:
        return None
    if not isinstance(area, Iterable) or len(area := tuple(area)) != 2:
        raise ValueError(f"area = {area!r}: expected (min, max) in pixels, None for no bound")
    for bound in area:
        if bound is not None and not (isinstance(bound, int | np.integer) and not isinstance(bound, bool)):
            raise TypeError(f"area = {area!r}: expected integers, pixels, or None for no bound")
    low, high = area
    if low is not None and high is not None and low > high:
        raise ValueError(f"area = {area!r} is upside down: expected (min, max)")
    return low, high


def within(areas: np.ndarray, bounds: tuple[int | None, int | None]) -> np.ndarray:
    """Whether areas lie within bounds, both included."""
    low, high = bounds
    keep = np.ones(len(areas), bool)
    if low is not None:
        keep &= areas >= low
    if high is not None:
        keep &= areas <= high
    return keep


def boxes_meet(boxes: np.ndarray, box: BBox) -> np.ndarray:
    """Whether boxes, an integer array of shape (n, 4), share a pixel with one."""
    most = np.iinfo(boxes.dtype).max
    top, left, bottom, right = np.array([min(max(side, 0), most) for side in box], boxes.dtype)
    rows = np.maximum(boxes[:, 0], top) < np.minimum(boxes[:, 2], bottom)
    return rows & (np.maximum(boxes[:, 1], left) < np.minimum(boxes[:, 3], right))


def _in_groups(reader: RecordReader, groups: str | Iterable[str] | None) -> np.ndarray:
    chosen = as_groups(groups)
    return reader.entry_keys.copy() if chosen is None else members(reader, chosen)


# --- by place ---------------------------------------------------------------------------------------------------


def region(reader: RecordReader, bbox: BBox | Sequence[int], *, exact: bool = True) -> np.ndarray:
    """Find the entries in a section of the image; see `iid_dask.IIDReader.region`."""
    box = BBox.of(bbox).intersection(WHOLE)
    if not exact:
        return np.flatnonzero(boxes_meet(reader.columns.boxes, box)).astype(np.uint32)
    met = search(reader, box)
    columns = met.held.columns
    boxes = columns.boxes[met.rows]
    inside = np.all((boxes[:, :2] >= (box.min_row, box.min_col)) & (boxes[:, 2:] <= (box.max_row, box.max_col)), axis=1)
    found = inside & (columns.areas[met.rows] > 0)
    found[~inside] = _have_pixels(reader, box, met.chosen(~inside))
    return np.unique(met.keys[found])


def _have_pixels(reader: RecordReader, box: BBox, met: Found) -> np.ndarray:
    """Whether regions have a pixel in a box."""
    out = np.zeros(len(met.regions), bool)
    view = View(reader, WHOLE.shape)
    for hits, (data, bits, _, counts, left, right) in read_pieces(view, Window(box), met):
        kernels.any_bits(data, bits, counts, left, right, box.min_col, box.max_col, hits, out)
    return out


def at(reader: RecordReader, row: Any, col: Any) -> Any:
    """Find the entries that cover pixels; see `iid_dask.IIDReader.at`."""
    rows, cols = (as_positions(what, value) for what, value in (("row", row), ("col", col)))
    if rows.shape != cols.shape:
        raise ValueError(f"at: rows of shape {rows.shape}, columns of shape {cols.shape}, expected one shape")
    keys, points = covering(reader, rows.ravel(), cols.ravel())
    return (keys, points) if rows.ndim else keys


def as_positions(what: str, value: Any) -> np.ndarray:
    values = np.asarray(value)
    if not values.size:
        return values.astype(np.int64)
    if values.dtype.kind in "iu":
        return values
    exact = np.asarray(value, object)
    if not all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in exact.flat):
        raise TypeError(f"at: {what} = {value!r:.60} is {values.dtype}, expected integers: positions of pixels")
    # Beyond 64 bits numpy knows no integers; such pixels are outside of every image.
    return np.clip(exact, -1, MOST).astype(np.int64)


def covering(reader: RecordReader, rows: np.ndarray, cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of an entry and a point that it covers.

    Parameters
    ----------
    rows, cols : integer arrays, shape (n,)
        Image pixels, anywhere.

    Returns
    -------
    keys : uint32 array
    points : int64 array
        Positions in ``rows``; ordered by key, then point.
    """
    if len(rows) > MOST_POINTS:
        raise IIDLimitError(f"at: {len(rows)} pixels, expected at most {MOST_POINTS} at once; ask for parts")
    held = np.flatnonzero((rows >= 0) & (rows < MOST) & (cols >= 0) & (cols < MOST))
    grid = _Grid.of(rows[held].astype(np.int64), cols[held].astype(np.int64))
    found = [np.zeros(0, np.uint64)]
    for met, points in _candidates(reader, grid):
        covered = _bits_at(met.held, met.regions, grid.rows[points], grid.cols[points])
        found.append(codes(met.keys[covered], held[grid.order[points[covered]]]))
    # Two regions of an entry may share a pixel.
    keys, points = decoded(np.unique(np.concatenate(found)))
    return keys, points.astype(np.int64)


@dataclass(frozen=True)
class _Grid:
    """Points ordered by the cell of a square grid that they lie in; see `kernels.points_in_boxes`."""

    order: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    box: BBox
    side: int
    across: int
    starts: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, cols: np.ndarray) -> _Grid:
        """Lay a grid of about as many cells as points over points."""
        if not len(rows):
            return cls(rows, rows, cols, BBox(0, 0, 0, 0), 1, 0, np.zeros(1, np.int64))
        box = BBox(rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
        # Also where they lie along one line no more cells to a side than points.
        side = max(1, math.isqrt(box.height * box.width // len(rows)), max(box.shape) // len(rows))
        across = -(-box.width // side)
        cells = (rows - box.min_row) // side * across + (cols - box.min_col) // side
        order = np.argsort(cells, kind="stable")
        count = -(-box.height // side) * across
        starts = np.concatenate(([0], np.cumsum(np.bincount(cells, minlength=count))))
        return cls(order, rows[order], cols[order], box, side, across, starts)


def _candidates(reader: RecordReader, grid: _Grid) -> Iterator[tuple[Found, np.ndarray]]:
    """Pairs of a region and a point (its place in the grid) in the region's box, some at a time."""
    if not grid.across:
        return
    met = search(reader, grid.box)
    boxes = met.held.columns.region_boxes[met.regions]
    room = max(PAIRS, len(grid.order))
    where = grid.rows, grid.cols, grid.box.min_row, grid.box.min_col, grid.side, grid.across, grid.starts
    begin = 0
    while begin < len(boxes):
        found_boxes, found_points = np.empty((2, room), np.int64)
        begin, found = kernels.points_in_boxes(boxes, begin, *where, found_boxes, found_points)
        yield met.chosen(found_boxes[:found]), found_points[:found]


def _bits_at(source: Held, regions: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Whether regions have the pixels given, each one."""
    columns = source.columns
    boxes = columns.region_boxes[regions].astype(np.int64)
    bits = (rows - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) + cols - boxes[:, 1]
    offsets, masks = columns.region_bits[regions] + (bits >> 3), (128 >> (bits & 7)).astype(np.uint8)
    order = np.argsort(offsets, kind="stable")
    ones = np.ones(len(offsets), np.int64)
    out = np.zeros(len(regions), bool)
    for part in batches(offsets[order], ones, source.gap):
        some = order[part]
        data, places = source.read_bits(offsets[some], ones[part])
        out[some] = (data[places] & masks[some]) != 0
    return out
