"""What of a file a target needs: which regions, in which order, and which bytes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.cutting import ranges, spread
from iid_dask.errors import IIDWarning
from iid_dask.format.reader import RecordReader
from iid_dask.format.segments import SegmentColumns
from iid_dask.views import Target, View, Window

ZONE = 1024
"""Regions that the search for a window's regions may skip at once."""

BATCH = 8 * 2**20
"""Bytes of mask bits held at once: memory does not depend on how large or how many the masks are."""

WHOLE = 4096
"""Bytes of a segment up to which it is read whole where the index has its checksum: damage is then an error, at the
cost of a fraction of the painting; larger segments are read in part, so only `RecordReader.check` sees all of them."""


# --- where regions are held -------------------------------------------------------------------------------------


class Held(Protocol):
    """Regions, and where their bits are read from: a file, or a part of a mosaic. See `RecordReader`."""

    @property
    def verify_checksums(self) -> bool:
        """Whether what is read whole is compared with an index."""

    @property
    def lut(self) -> np.ndarray:
        """Where each row's segment lies: ``segment_offset`` and ``segment_length``."""

    @property
    def columns(self) -> SegmentColumns:
        """Segments and regions."""

    @property
    def gap(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to skip."""

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read ranges; return bytes with 16 spare ones at their end, and where in them each range begins."""

    def verify_segments(self, keys: np.ndarray, regions: np.ndarray, data: np.ndarray, places: np.ndarray) -> None:
        """Compare whole segments that were read with the index."""

    def remember(self, what: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, or what it returned when it was last asked for under this name."""


class Part(Held, Protocol):
    """Some files of a mosaic in the place of one: a row of its columns is a piece of a segment, by ascending key."""

    @property
    def keys(self) -> np.ndarray:
        """Key of each row's segment in the mosaic, uint32."""

    @property
    def areas(self) -> np.ndarray:
        """Pixels of each row's whole segment, int64; those of the piece are in the columns."""


class Parted(ABC):
    """A reader of an image in many files, of which a window needs few; its offsets and boxes are 64 bits wide."""

    @abstractmethod
    def part(self, box: BBox) -> Part:
        """Return the files that meet a box as one."""


@dataclass(frozen=True, eq=False)
class Found:
    """Regions of a file or mosaic, and whose they are.

    Attributes
    ----------
    held : Held
    regions : int64 array, shape (n,)
        Places in the columns of ``held``.
    rows : integer array, shape (n,)
        Of these columns, those of the regions' segments.
    keys : uint32 array, shape (n,)
        Of the entries.
    areas : integer array, one element a row of the columns
        Pixels of whole entries.
    """

    held: Held
    regions: np.ndarray
    rows: np.ndarray
    keys: np.ndarray
    areas: np.ndarray

    @classmethod
    def of(cls, reader: RecordReader, regions: np.ndarray, keys: np.ndarray) -> Found:
        """Regions among those of all entries, in the columns of the reader itself."""
        return cls(reader, regions, keys, keys, reader.columns.areas)

    def chosen(self, which: np.ndarray | slice) -> Found:
        """Return some of the regions: where a bool array is True, or at the places that an integer array names."""
        return Found(self.held, self.regions[which], self.rows[which], self.keys[which], self.areas)


def search(reader: RecordReader, box: BBox) -> Found:
    """Find the regions whose boxes meet ``box``, by ascending key; of a mosaic only files that meet it are opened."""
    if isinstance(reader, Parted):
        part = reader.part(box)
        regions = touching(part, box)
        rows = part.columns.region_keys(regions)
        return Found(part, regions, rows, part.keys[rows], part.areas)
    regions = touching(reader, box)
    return Found.of(reader, regions, reader.columns.region_keys(regions))


# --- which regions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowOrder:
    """Regions by their first row, with the extent of each run of `ZONE` of them."""

    order: np.ndarray
    first_rows: np.ndarray
    zones: np.ndarray


def row_order(held: Held) -> RowOrder:
    """Sort regions for `touching`; made once a reader."""

    def make() -> RowOrder:
        boxes = held.columns.region_boxes
        order = np.argsort(boxes[:, 0], kind="stable").astype(np.uint32)
        starts = np.arange(0, len(order), ZONE)
        zones = np.zeros((len(starts), 3), boxes.dtype)
        for column, (side, reach) in enumerate(((2, np.maximum), (1, np.minimum), (3, np.maximum))):
            if len(order):
                zones[:, column] = reach.reduceat(boxes[order, side], starts)
        return RowOrder(order, boxes[order, 0], zones)

    return held.remember("row order", make)


def touching(held: Held, box: BBox) -> np.ndarray:
    """Return the regions whose boxes meet ``box``, ascending, that is by ascending key; int64."""
    rows = row_order(held)
    boxes = held.columns.region_boxes
    stop = int(np.searchsorted(rows.first_rows, max(box.max_row, 0), side="left"))
    around = (box.min_row, box.min_col, box.max_row, box.max_col)
    found = np.empty(0, np.uint32)
    count = kernels.find(rows.order, stop, boxes, ZONE, rows.zones, *around, found)
    if count:
        found = np.empty(count, np.uint32)
        kernels.find(rows.order, stop, boxes, ZONE, rows.zones, *around, found)
    return np.sort(found).astype(np.int64)


def _paint_order(view: View, found: Found) -> Found:
    """Regions by ascending key, ordered so that who comes last wins."""
    if view.overlap == "first":
        return found.chosen(slice(None, None, -1))
    if view.overlap in ("smallest", "largest"):
        areas = found.areas[found.rows].astype(np.int64)
        return found.chosen(np.lexsort((found.keys, areas if view.overlap == "largest" else -areas)))
    return found


# --- which bytes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pieces:
    """Rows of regions, in painting order; see the kernels."""

    hits: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    left: np.ndarray
    right: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    bits_before: np.ndarray
    whole: np.ndarray


def _plan_pieces(view: View, target: Target, found: Found) -> Pieces:
    """Cut regions into pieces that hold at most `BATCH` bytes, and rows far apart into single rows. Pure.

    ``firsts`` are image rows for a `Window`, elements of ``target.rows`` otherwise; ``bits_before`` is where the bits
    of a piece's first row and its region's first column lie, from those of the bytes read on; of ``whole`` segments
    all bytes are read.
    """
    held, columns, regions = found.held, found.held.columns, found.regions
    boxes = columns.region_boxes[regions].astype(np.int64)
    top, left, bottom, right = boxes.T
    width = right - left
    wanted = image_box(view, target)
    if isinstance(target, Window):
        firsts, stops = np.maximum(top, wanted.min_row), np.minimum(bottom, wanted.max_row)
        spacing = np.ones(len(regions))
    else:
        firsts, stops = np.searchsorted(target.rows, top), np.searchsorted(target.rows, bottom)
        known = np.append(target.rows, 0)
        extent = known[np.maximum(stops - 1, 0)] - known[np.minimum(firsts, len(target.rows))]
        spacing = extent / np.maximum(stops - firsts - 1, 1)
    begin, end = np.maximum(left, wanted.min_col), np.minimum(right, wanted.max_col)
    # Where more than a gap of bytes would be read in vain between two rows, each row is a piece of its own.
    useless = (spacing * width - (end - begin)) / 8
    per = np.where(useless > held.gap, 1, np.maximum(1, BATCH * 8 // np.maximum(1, spacing * width)))
    per = per.astype(np.int64)
    number = np.maximum(0, -(-(stops - firsts) // per))
    hits = np.repeat(np.arange(len(regions)), number)
    within = spread(0, number)
    firsts = firsts[hits] + within * per[hits]
    counts = np.minimum(per[hits], stops[hits] - firsts)
    if isinstance(target, Window):
        first_row, last_row = firsts, firsts + counts - 1
    else:
        # Rows of a piece may be further apart than those of its region are on the average.
        extent = target.rows[firsts + counts - 1] - target.rows[firsts]
        number = np.where(extent * width[hits] > BATCH * 8, counts, 1)
        counts = np.repeat(np.where(number > 1, 1, counts), number)
        hits = np.repeat(hits, number)
        firsts = spread(firsts, number)
        first_row, last_row = target.rows[firsts], target.rows[firsts + counts - 1]
    skipped = (begin - left)[hits]
    low = (first_row - top[hits]) * width[hits] + skipped
    high = (last_row - top[hits]) * width[hits] + (end - left)[hits]
    starts = columns.region_bits[regions].astype(np.int64)[hits]
    offsets = starts + (low >> 3)
    lengths = ((high + 7) >> 3) - (low >> 3)
    whole = np.zeros(len(hits), bool)
    if columns.crcs is not None and held.verify_checksums:
        rows = held.lut[found.rows[hits]]
        whole = rows["segment_length"] <= WHOLE
        offsets = np.where(whole, rows["segment_offset"], offsets)
        lengths = np.where(whole, rows["segment_length"], lengths)
    bits_before = (starts - offsets) * 8 + low - skipped
    return Pieces(hits, firsts, counts, left[hits], right[hits], offsets, lengths, bits_before, whole)


def batches(offsets: np.ndarray, lengths: np.ndarray, gap: int) -> Iterator[slice]:
    """Cut pieces into runs of at most `BATCH` bytes, those read in vain between two included, or one piece."""
    between = np.zeros(len(lengths), np.int64)
    between[1:] = offsets[1:] - offsets[:-1] - lengths[:-1]
    read = lengths + np.where((between > 0) & (between <= gap), between, 0)
    yield from (slice(start, stop) for start, stop in ranges(read, BATCH))


def image_box(view: View, target: Target) -> BBox:
    """Box of the image pixels that a target needs."""
    if isinstance(target, Window):
        if view.reduce == "nearest" or view.stride == 1:
            return target.box
        k, (height, width) = view.stride, view.shape
        r0, c0, r1, c1 = target.box
        return BBox(min(r0 * k, height), min(c0 * k, width), min(r1 * k, height), min(c1 * k, width))
    if not len(target.rows) or not len(target.cols):
        return BBox(0, 0, 0, 0)
    cols = target.cols
    return BBox(target.rows[0], cols.min(), target.rows[-1] + 1, cols.max() + 1)


def in_paint_order(view: View, target: Target, keep: np.ndarray | None) -> Found:
    """Return the regions that a target needs, so that who comes last wins."""
    say_once_if_cut(view)
    found = search(view.reader, image_box(view, target))
    return _paint_order(view, found if keep is None else found.chosen(keep[found.keys]))


def read_pieces(view: View, target: Target, found: Found) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Read regions' bits, at most about `BATCH` bytes at once; yield whose they are and what the kernels want."""
    held, regions, rows = found.held, found.regions, found.rows
    pieces = _plan_pieces(view, target, found)
    for some in batches(pieces.offsets, pieces.lengths, held.gap):
        data, places = held.read_bits(pieces.offsets[some], pieces.lengths[some])
        hits, whole = pieces.hits[some], pieces.whole[some]
        held.verify_segments(rows[hits][whole], regions[hits][whole], data, places[whole])
        bits = places * 8 + pieces.bits_before[some]
        yield hits, (data, bits, pieces.firsts[some], pieces.counts[some], pieces.left[some], pieces.right[some])


def say_once_if_cut(view: View) -> None:
    """Warn, once a reader and shape, of boxes that the shape does not hold."""
    if isinstance(view.reader, Parted) and view.shape == view.reader.shape:
        return  # its tiles lie in it, and their regions in them

    def _look() -> bool:
        boxes = view.reader.columns.boxes
        beyond = view.reader.live & ((boxes[:, 2] > view.shape[0]) | (boxes[:, 3] > view.shape[1]))
        count = int(np.count_nonzero(beyond))
        if count:
            key = int(np.flatnonzero(beyond)[0])
            warnings.warn(
                f"{view.reader.name}: {count} entries reach beyond the image of {view.shape[0]} by {view.shape[1]} "
                f"pixels, the first is entry {key} with box {tuple(boxes[key].tolist())}; pixels beyond are cut "
                "(shape= sets another size)",
                IIDWarning,
                stacklevel=2,
            )
        return bool(count)

    view.reader.remember(("cut", view.shape), _look)
