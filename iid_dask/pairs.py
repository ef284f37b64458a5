"""Pairs of regions whose boxes meet, and the pixels they have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from iid_dask import kernels
from iid_dask.cutting import spread
from iid_dask.format.layout import MAX_SIDE
from iid_dask.format.segments import SegmentColumns
from iid_dask.format.source import coalesce

PAIRS = 2**16
"""Pairs of boxes looked at together."""

BYTES = 2**26
"""Bytes of masks held at once."""

Pairs = tuple[np.ndarray, np.ndarray]
"""Places of regions, int64: those of the first of each pair, and of the second."""


class Bits(Protocol):
    """Where mask bits are read from: a reader, or memory."""

    @property
    def gap(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to skip."""

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return bytes with 16 spare ones at their end, and where in them each range begins."""


@dataclass(frozen=True)
class Regions:
    """Regions of some entries, by ascending key.

    Attributes
    ----------
    keys : uint32 array, shape (m,)
        The entry of each.
    boxes : uint16 array, shape (m, 4)
        Of mosaics int64.
    bits : integer array, shape (m,)
        Offset of each one's mask bits from the start of the segments section, or of the memory that holds them.
    """

    keys: np.ndarray
    boxes: np.ndarray
    bits: np.ndarray

    @classmethod
    def of(cls, columns: SegmentColumns, rows: np.ndarray, keys: np.ndarray) -> Regions:
        """Take the regions of entries, ``keys`` ascending, from columns that hold them in ``rows``."""
        starts, stops = (columns.first_region[rows.astype(np.int64) + more].astype(np.int64) for more in (0, 1))
        counts = stops - starts
        owners, boxes, bits = np.repeat(keys, counts), columns.region_boxes, columns.region_bits
        if len(owners) < len(bits):
            places = spread(starts, counts)
            boxes, bits = boxes[places], bits[places]
        return cls(owners, boxes, bits)

    def chosen(self, keep: np.ndarray) -> Regions:
        """Return the regions for which a bool array is True."""
        return Regions(self.keys[keep], self.boxes[keep], self.bits[keep])


# --- boxes that meet --------------------------------------------------------------------------------------------


def meeting(regions: Regions, start: int = 0, stop: int = 2**32) -> Iterator[Pairs]:
    """Find the pairs of regions of two entries whose boxes meet, by a sweep along the cheaper axis.

    Parameters
    ----------
    regions
    start, stop : int
        Only pairs of which the lower key lies in this half-open range: ranges that cover all keys give every pair
        exactly once.

    Yields
    ------
    Pairs
        Lower key first; at most `PAIRS` at once.
    """
    first, last = np.searchsorted(regions.keys, (start, stop)).tolist()
    boxes, keys = regions.boxes[first:], regions.keys[first:].astype(np.int64)
    own_boxes, own_keys = boxes[: last - first], keys[: last - first]
    axis = min((0, 1), key=lambda axis: comparisons(own_boxes, boxes, axis))
    # Of two boxes that meet, one begins within the other: not before its first row, or behind it.
    for lower, higher in _sweep(own_boxes, boxes, own_keys, keys, axis, 0):
        yield lower + first, higher + first
    for higher, lower in _sweep(boxes, own_boxes, -keys, -own_keys, axis, 1):
        yield lower + first, higher + first


def comparisons(xs: np.ndarray, ys: np.ndarray, axis: int) -> int:
    """Count the pairs of boxes that a sweep along an axis looks at.

    Examples
    --------
    >>> columns = np.array([[0, col, 9, col + 1] for col in range(100)], np.uint16)
    >>> comparisons(columns, columns, 0), comparisons(columns, columns, 1)
    (10000, 100)
    """
    found = (_ranges(xs, ys, axis, 0), _ranges(ys, xs, axis, 1))
    return sum(int((ends - begins).sum()) for begins, ends in found)


def _ranges(xs: np.ndarray, ys: np.ndarray, axis: int, behind: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each box x, which of the boxes y, in the order of their first rows (columns), begin within it.

    ``behind`` is 1 where they must begin behind its first row.
    """
    if ys.dtype != np.uint16:
        starts = np.sort(ys[:, axis])
        return np.searchsorted(starts, xs[:, axis] + behind), np.searchsorted(starts, xs[:, axis + 2])
    below = np.zeros(MAX_SIDE + 2, np.int64)
    np.cumsum(np.bincount(ys[:, axis], minlength=MAX_SIDE + 1), out=below[1:])
    return below[xs[:, axis].astype(np.int64) + behind], below[xs[:, axis + 2]]


def _sweep(
    xs: np.ndarray, ys: np.ndarray, ranks_x: np.ndarray, ranks_y: np.ndarray, axis: int, behind: int
) -> Iterator[Pairs]:
    """Pairs of boxes that meet, where y begins within x along the axis and has the higher rank."""
    order_x, order_y = (np.argsort(boxes[:, axis], kind="stable") for boxes in (xs, ys))
    ranges = _ranges(xs[order_x], ys, axis, behind)
    across = _across(xs, order_x, axis), ranks_x[order_x], _across(ys, order_y, axis), ranks_y[order_y]
    for first, second in _in_batches(*ranges, *across):
        yield order_x[first], order_y[second]


def _across(boxes: np.ndarray, order: np.ndarray, axis: int) -> np.ndarray:
    """Both ends of boxes along the other axis."""
    return np.stack([boxes[order, 1 - axis], boxes[order, 3 - axis]], axis=1)


def _in_batches(*plan: np.ndarray) -> Iterator[Pairs]:
    at, partner = 0, 0
    while at < len(plan[0]):
        first, second = np.empty((2, PAIRS), np.int64)
        at, partner, found = kernels.box_pairs(*plan, at, partner, first, second)
        if found:
            yield first[:found], second[:found]


def siblings(regions: Regions) -> Iterator[Pairs]:
    """Find the pairs of regions of one entry whose boxes meet; yields each once, at most `PAIRS` together."""
    keys, boxes = regions.keys.astype(np.int64) << 31, regions.boxes  # sides are less than 2**31
    orders = [np.lexsort((boxes[:, axis], keys)) for axis in (0, 1)]
    ends = [
        np.searchsorted(keys[order] | boxes[order, axis], keys[order] | boxes[order, axis + 2])
        for axis, order in enumerate(orders)
    ]
    axis = min((0, 1), key=lambda axis: int(ends[axis].sum()))
    order, ranks = orders[axis], np.arange(len(keys))
    across = _across(boxes, order, axis)
    for first, second in _in_batches(ranks + 1, ends[axis], across, ranks, across, ranks):
        yield order[first], order[second]


# --- pixels in common -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Common:
    """Where the bits of the pixels lie that both boxes of a pair have; pairs by the first row of these.

    Attributes
    ----------
    pairs : int64 array, shape (n,)
        Which pair.
    begins, widths : int64 arrays, shape (2, n)
        Bit of the first common pixel in either region, from the start of the section, and bits to the next row.
    rows, cols : int64 arrays, shape (n,)
        Size of the common box.
    """

    pairs: np.ndarray
    begins: np.ndarray
    widths: np.ndarray
    rows: np.ndarray
    cols: np.ndarray

    @classmethod
    def of(cls, regions: Regions, pairs: Pairs) -> Common:
        """Plan the comparison of pairs whose boxes meet."""
        boxes = np.stack([regions.boxes[places] for places in pairs]).astype(np.int64)
        low, high = boxes[:, :, :2].max(axis=0), boxes[:, :, 2:].min(axis=0)
        order = np.argsort(low[:, 0], kind="stable")  # what is read for a part of the pairs then lies together
        low, high, boxes = low[order], high[order], boxes[:, order]
        widths = boxes[:, :, 3] - boxes[:, :, 1]
        starts = np.stack([regions.bits[places[order]] for places in pairs]).astype(np.int64) * 8
        begins = starts + (low[:, 0] - boxes[:, :, 0]) * widths + low[:, 1] - boxes[:, :, 1]
        rows, cols = (high - low).T
        return cls(order, begins, widths, rows, cols)

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths of the bytes in the section: of all first regions, then of all second ones."""
        offsets = self.begins >> 3
        ends = self.begins + (self.rows - 1) * self.widths + self.cols
        return offsets.ravel(), (((ends + 7) >> 3) - offsets).ravel()

    def bounded(self, gap: int) -> Iterator[Common]:
        """Parts that take at most `BYTES`, those read in vain included, or are one row of one pair."""
        _, sizes, _ = coalesce(*self.ranges(), gap)
        if int(sizes.sum()) <= BYTES or (len(self.pairs) == 1 and self.rows[0] == 1):
            yield self
            return
        for part in self._halves():
            yield from part.bounded(gap)

    def _halves(self) -> Iterator[Common]:
        n = len(self.pairs)
        if n > 1:
            for some in (slice(n // 2), slice(n // 2, n)):
                yield Common(
                    self.pairs[some], self.begins[:, some], self.widths[:, some], self.rows[some], self.cols[some]
                )
            return
        upper = self.rows // 2
        yield Common(self.pairs, self.begins, self.widths, upper, self.cols)
        yield Common(self.pairs, self.begins + upper * self.widths, self.widths, self.rows - upper, self.cols)


def common_pixels(source: Bits, regions: Regions, pairs: Pairs) -> np.ndarray:
    """Count the pixels that both regions of each pair have, whose boxes meet; reads only rows that both have.

    Returns
    -------
    int64 array
        One element a pair.
    """
    out = np.zeros(len(pairs[0]), np.int64)
    for part in Common.of(regions, pairs).bounded(source.gap):
        data, places = source.read_bits(*part.ranges())
        bits = places.reshape(2, -1) * 8 + (part.begins & 7)
        kernels.common_pixels(data, *bits, *part.widths, part.rows, part.cols, part.pairs, out)
    return out


def sharing(source: Bits, regions: Regions) -> np.ndarray:
    """Return the keys of entries of which two regions share pixels, ascending uint32."""
    _, owners, counts = np.unique(regions.keys, return_inverse=True, return_counts=True)
    several = regions.chosen(counts[owners] > 1)
    found = [np.zeros(0, np.uint32)]
    for pairs in siblings(several):
        shared = common_pixels(source, several, pairs) > 0
        found.append(np.unique(several.keys[pairs[0][shared]]))
    return np.unique(np.concatenate(found))


# --- pairs of entries -------------------------------------------------------------------------------------------


def codes(keys_a: np.ndarray, keys_b: np.ndarray) -> np.ndarray:
    """Return a number for each pair of keys, uint64, in the order of pairs."""
    return keys_a.astype(np.uint64) << np.uint64(32) | keys_b.astype(np.uint64)


def decoded(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of pairs from their numbers, uint32."""
    return (numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)


def added_up(numbers: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each number once, ascending, and the sum of its counts.

    Examples
    --------
    >>> [found.tolist() for found in added_up(np.array([7, 3, 7]), np.array([1, 2, 3]))]
    [[3, 7], [2, 4]]
    """
    order = np.argsort(numbers, kind="stable")
    numbers, counts = numbers[order], counts[order]
    begins = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)])
    return numbers[begins], np.add.reduceat(counts, begins) if len(begins) else counts
