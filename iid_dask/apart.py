"""Masks whose regions lie on one another: many merged to one, and each pixel left to one region alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import union
from iid_dask.format.reader import RecordReader
from iid_dask.format.segments import region_lengths
from iid_dask.format.source import coalesce
from iid_dask.pairs import Bits, Common, Regions, common_pixels, sharing, siblings
from iid_dask.pieces import batches

BYTES = 2**26
"""Bytes of masks held at once, or one row of them."""

CROWD = 16
"""Regions of about the same size and place of which one is made: its box has no more bits than they have together."""

MEMORY = 2**59
"""Offset from which on mask bits lie in memory: those in a file or mosaic are below; as bits it fits 64 bits."""


@dataclass(frozen=True, eq=False)
class Held:
    """Mask bits in memory, in the place of a file's: see `iid_dask.pairs.Bits`.

    Attributes
    ----------
    data : uint8 array
        With 16 spare bytes; offsets of regions count from its start.
    """

    data: np.ndarray
    gap: int = 0

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all bytes, and where in them the ranges begin; nothing is copied."""
        return self.data, offsets


@dataclass(frozen=True, eq=False)
class _Beside:
    """Mask bits in memory, at offsets from `MEMORY` on, beside those of a file; see `iid_dask.pairs.Bits`."""

    reader: RecordReader
    data: np.ndarray

    @property
    def gap(self) -> int:
        return self.reader.gap

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        own = offsets >= MEMORY
        data, found = self.reader.read_bits(offsets[~own], lengths[~own])
        starts, sizes, held = coalesce(offsets[own] - MEMORY, lengths[own], 0)
        whole = np.zeros(len(data) + int(sizes.sum()), np.uint8)
        end = len(data) - 16
        whole[:end] = data[:end]
        kernels.gather_spans(self.data, starts, starts + sizes, whole[end : len(whole) - 16])
        places = np.empty(len(offsets), np.int64)
        places[~own], places[own] = found, held + end
        return whole, places


# --- many regions at one place ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Thinned:
    """Regions of the same masks, but few at one place: then the pairs of them that meet are few, too.

    Attributes
    ----------
    bits : Bits
    regions : Regions
        Their bits in ``bits``.
    merged : uint32 array
        Keys of the entries of which regions were merged; whether these shared pixels is not known.
    """

    bits: Bits
    regions: Regions
    merged: np.ndarray

    def sharing(self, keys: np.ndarray) -> np.ndarray:
        """Return those of some keys of which two regions share pixels, or may have."""
        some = self.regions.chosen(np.isin(self.regions.keys, keys))
        return np.union1d(sharing(self.bits, some), np.intersect1d(self.merged, keys))


def thinned(reader: RecordReader, regions: Regions) -> Thinned:
    """Make one region of each crowd: of `CROWD` or more of an entry that have about the same size and place.

    Without this n regions on one pixel, 13 bytes each, are n² / 2 pairs. Bits of the new regions are held in memory;
    they are no more than those that they replace.
    """
    groups = _groups(regions)
    crowded = groups >= 0
    if not crowded.any():
        return Thinned(reader, regions, np.zeros(0, np.uint32))
    order = np.flatnonzero(crowded)[np.argsort(groups[crowded], kind="stable")]
    crowd = Regions(regions.keys[order], regions.boxes[order], regions.bits[order])
    begins = np.flatnonzero(np.diff(groups[order], prepend=-1))
    boxes = np.concatenate(
        [np.minimum.reduceat(crowd.boxes[:, :2], begins), np.maximum.reduceat(crowd.boxes[:, 2:], begins)], axis=1
    )
    sizes = region_lengths(boxes)
    places = np.cumsum(sizes) - sizes
    data = np.zeros(int(sizes.sum()) + 16, np.uint8)
    around, starts = (np.repeat(what, np.diff(begins, append=len(order)), axis=0) for what in (boxes, places))
    steps = around[:, 3].astype(np.int64) - around[:, 1]
    corners = crowd.boxes[:, :2].astype(np.int64) - around[:, :2]
    _copy(
        reader,
        crowd.bits.astype(np.int64) * 8,
        crowd.boxes,
        data,
        starts * 8 + corners[:, 0] * steps + corners[:, 1],
        steps,
    )
    rest = regions.chosen(~crowded)
    keys = np.concatenate([rest.keys, crowd.keys[begins]])
    by_key = np.argsort(keys, kind="stable")
    bits = np.concatenate([rest.bits.astype(np.int64), places + MEMORY])
    few = Regions(keys[by_key], np.concatenate([rest.boxes, boxes])[by_key], bits[by_key])
    return Thinned(_Beside(reader, data), few, np.unique(crowd.keys))


def _groups(regions: Regions) -> np.ndarray:
    """Return the number of each region's crowd, or -1 where there is none.

    Sides are rounded up to powers of two, and corners down to multiples of these, along each axis apart: the box around
    a group is then at most twice as long as these sides, that is less than four times as long as each region's.
    """
    groups = np.full(len(regions.keys), -1, np.int64)
    counts = np.diff(np.flatnonzero(np.diff(regions.keys, prepend=-1)), append=len(groups))
    places = np.flatnonzero(np.repeat(counts >= CROWD, counts))
    keys = regions.keys[places]
    boxes = regions.boxes[places].astype(np.int64)
    levels = np.ceil(np.log2(boxes[:, 2:] - boxes[:, :2])).astype(np.int64)
    cells = boxes[:, :2] >> levels
    if regions.boxes.dtype == np.uint16:
        where = [(levels[:, 0] << 5 | levels[:, 1]) << 32 | cells[:, 0] << 16 | cells[:, 1]]
    else:
        where = [levels[:, axis] << 32 | cells[:, axis] for axis in (0, 1)]
    order = np.lexsort((*where, keys))
    fresh = np.any([np.diff(column[order], prepend=-1) != 0 for column in (*where, keys)], axis=0)
    numbers = np.cumsum(fresh) - 1
    many = np.bincount(numbers, minlength=1)[numbers] >= CROWD
    groups[places[order[many]]] = numbers[many]
    return groups


# --- pixels of two regions --------------------------------------------------------------------------------------


def taken_apart(bits: Bits, regions: Regions) -> Iterator[tuple[Held, Regions, np.ndarray]]:
    """Read regions so that no two of an entry share a pixel any more, band by band of rows.

    The boxes of regions bound what is held, not those of entries: what lies between two regions costs nothing.

    Yields
    ------
    held : Held
        At most about `BYTES`.
    regions : Regions
        Those with a pixel in the band, cut to it, their bits in ``held``.
    pixels : int64 array
        Of each of them.
    """
    around = union(regions.boxes)
    for low, high in _bands(regions.boxes, around.min_row, around.max_row):
        held, copies = _read(bits, regions, low, high)
        for pairs in siblings(copies):
            # Of two the later in the sweep loses: whoever comes first at a pixel keeps it, all others lose it.
            common = Common.of(copies, pairs)
            kernels.clear_common(held.data, *common.begins, *common.widths, common.rows, common.cols)
        each = np.arange(len(copies.keys))
        pixels = common_pixels(held, copies, (each, each))
        yield held, copies.chosen(pixels > 0), pixels[pixels > 0]


def _bands(boxes: np.ndarray, low: int, high: int) -> Iterator[tuple[int, int]]:
    """Cut rows into bands in which regions have at most `BYTES`, or into single rows."""
    inside = _cut(boxes, low, high)
    if high - low == 1 or int(region_lengths(inside).sum()) <= BYTES:
        yield low, high
        return
    middle = (low + high) // 2
    for band in ((low, middle), (middle, high)):
        yield from _bands(inside, *band)


def _cut(boxes: np.ndarray, low: int, high: int) -> np.ndarray:
    """Cut boxes to a band; those that do not meet it are left out."""
    inside = boxes[_meets(boxes, low, high)]
    inside[:, 0::2] = inside[:, 0::2].clip(low, high)
    return inside


def _meets(boxes: np.ndarray, low: int, high: int) -> np.ndarray:
    return (boxes[:, 0] < high) & (boxes[:, 2] > low)


def _read(bits: Bits, regions: Regions, low: int, high: int) -> tuple[Held, Regions]:
    """Copy the rows of regions that lie in a band, each region from a byte of its own on."""
    some = regions.chosen(_meets(regions.boxes, low, high))
    boxes = _cut(some.boxes, low, high)
    sizes = region_lengths(boxes)
    places = np.cumsum(sizes) - sizes
    widths = boxes[:, 3].astype(np.int64) - boxes[:, 1]
    begins = some.bits.astype(np.int64) * 8 + (boxes[:, 0].astype(np.int64) - some.boxes[:, 0]) * widths
    held = Held(np.zeros(int(sizes.sum()) + 16, np.uint8))
    _copy(bits, begins, boxes, held.data, places * 8, widths)
    return held, Regions(some.keys, boxes, places)


def _copy(
    bits: Bits, begins: np.ndarray, boxes: np.ndarray, out: np.ndarray, places: np.ndarray, steps: np.ndarray
) -> None:
    """Add regions, of whole rows, to masks in memory, some bytes at a time.

    Parameters
    ----------
    bits
    begins : int64 array, shape (n,)
        Bit of each one's first pixel.
    boxes : uint16 array, shape (n, 4)
        Of mosaics int64.
    out : uint8 array
        Changed in place.
    places, steps : int64 arrays, shape (n,)
        Bit of ``out`` where the first pixel belongs, and bits from one row to the next there.
    """
    heights, widths = (boxes[:, 2:].astype(np.int64) - boxes[:, :2]).T
    offsets = begins >> 3
    lengths = ((begins + heights * widths + 7) >> 3) - offsets
    order = np.argsort(offsets, kind="stable")
    for part in batches(offsets[order], lengths[order], bits.gap):
        at = order[part]
        data, starts = bits.read_bits(offsets[at], lengths[at])
        kernels.or_bits(data, starts * 8 + (begins[at] & 7), heights[at], widths[at], out, places[at], steps[at])
