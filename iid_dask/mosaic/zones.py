"""Where parts of segments that borders cut may meet, and which of them do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from iid_dask import kernels
from iid_dask.cutting import ranges
from iid_dask.mosaic.region_parts import BYTES, Parts, Read, read_ranges

PIXELS = 2**22
"""Pixels of a canvas, four bytes each."""

MEETINGS = 2**18
"""Parts in zones looked at together."""


# --- where to look ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Zones:
    """Boxes in which parts of a segment may meet.

    Attributes
    ----------
    groups : int64 array, shape (z,)
        The segment of each, counted from 0.
    boxes : int64 array, shape (z, 4)
    ranges : int64 array, shape (z, 4)
        The parts that may lie there: ``ranges[0]:ranges[1]`` and ``ranges[2]:ranges[3]``.
    whole : bool array, one element a segment
        Segments whose zone is all of them: there pixels are counted.
    """

    groups: np.ndarray
    boxes: np.ndarray
    ranges: np.ndarray
    whole: np.ndarray


def border_zones(parts: Parts, starts: np.ndarray, loose: bool) -> Zones:
    """Look where entries are next to one another; where their boxes overlap, at the whole segment.

    Boxes that are disjoint have few neighbours and thin borders, so the work stays in proportion to the parts.
    """
    heads = np.flatnonzero(np.diff(parts.pieces, prepend=-1))
    stops = np.append(heads[1:], len(parts.pieces))
    boxes = around(parts.boxes, heads)
    groups = np.searchsorted(starts, heads, side="right") - 1
    whole = np.full(len(starts), loose)
    order, turned = _along(boxes, groups, len(starts))
    first_piece = np.searchsorted(groups, np.arange(len(starts) + 1))
    nothing = np.zeros(0, np.int64)
    n = kernels.adjacent_boxes(first_piece, turned, whole, nothing, nothing)
    first, second = np.empty((2, n), np.int64)
    kernels.adjacent_boxes(first_piece, turned, whole, first, second)
    a, b = order[first], order[second]
    low, high = np.maximum(boxes[a, :2], boxes[b, :2]) - 1, np.minimum(boxes[a, 2:], boxes[b, 2:]) + 1
    near = np.stack([heads[a], stops[a], heads[b], stops[b]], axis=1)
    rest = whole_zones(parts, starts, np.flatnonzero(whole))
    return Zones(
        np.concatenate([groups[a], rest.groups]),
        np.concatenate([np.hstack([low, high]), rest.boxes]),
        np.concatenate([near, rest.ranges]),
        whole,
    )


def whole_zones(parts: Parts, starts: np.ndarray, groups: np.ndarray) -> Zones:
    stops = np.append(starts[1:], len(parts.segments))
    near = np.zeros((len(groups), 4), np.int64)
    near[:, 0], near[:, 1] = starts[groups], stops[groups]
    whole = np.zeros(len(starts), bool)
    whole[groups] = True
    return Zones(groups, around(parts.boxes, starts)[groups], near, whole)


def around(boxes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Tight box around each group of boxes; groups follow one another from ``starts`` on."""
    if not len(starts):
        return np.zeros((0, 4), np.int64)
    low, high = np.minimum.reduceat(boxes[:, :2], starts), np.maximum.reduceat(boxes[:, 2:], starts)
    return np.hstack([low, high])


def _along(boxes: np.ndarray, groups: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Order the boxes of each group along the axis on which fewer begin within another; that axis comes first."""
    keys = groups << 32
    costs = []
    for axis in (0, 1):
        firsts = np.sort(keys | boxes[:, axis])
        ends = np.searchsorted(firsts, keys | boxes[:, axis + 2], side="right")
        costs.append(np.bincount(groups, ends - np.searchsorted(firsts, keys | boxes[:, axis]), n_groups))
    across = (costs[1] < costs[0])[groups]
    turned = np.where(across[:, None], boxes[:, [1, 0, 3, 2]], boxes)
    order = np.lexsort((turned[:, 0], groups))
    return order, np.ascontiguousarray(turned[order])


# --- looking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Batch:
    """Zones and the parts that meet them; ``owners`` (which zone here) ascend."""

    zones: np.ndarray
    boxes: np.ndarray
    counted: np.ndarray
    owners: np.ndarray
    parts: np.ndarray

    def bounded(self, parts: Parts) -> Iterator[Batch]:
        """Split into batches that fit `BYTES` and `PIXELS`, or are two rows of one zone."""
        n, sizes = len(self.zones), self.boxes[:, 2:] - self.boxes[:, :2]
        pixels = int(sizes.prod(axis=1).max(initial=0))
        fits = pixels <= PIXELS and int(self._ranges(parts)[1].sum()) <= BYTES
        if not n or fits or (n == 1 and sizes[0, 0] <= 2):
            yield self
        elif n > 1:
            for zones in (slice(n // 2), slice(n // 2, n)):
                yield from self._chosen(zones).bounded(parts)
        else:
            for half in self._bands(int(sizes[0, 0])):
                yield from half._met(parts).bounded(parts)

    def _chosen(self, zones: slice) -> Batch:
        keep = slice(*np.searchsorted(self.owners, (zones.start or 0, zones.stop)))
        owners = self.owners[keep] - (zones.start or 0)
        return Batch(self.zones[zones], self.boxes[zones], self.counted[zones], owners, self.parts[keep])

    def _bands(self, rows: int) -> Iterator[Batch]:
        """The upper and the lower half of one zone; they share a row, so that what touches there is seen."""
        upper, lower = self.boxes.copy(), self.boxes.copy()
        upper[0, 2] = upper[0, 0] + (rows + 2) // 2
        lower[0, 0] = upper[0, 2] - 1
        for boxes, counted in ((upper, self.counted), (lower, np.ones(1, np.int64))):
            yield Batch(self.zones, boxes, counted, self.owners, self.parts)

    def _met(self, parts: Parts) -> Batch:
        """Without the parts that do not meet their zone."""
        zones, boxes = self.boxes[self.owners], parts.boxes[self.parts]
        meets = np.all((boxes[:, :2] < zones[:, 2:]) & (zones[:, :2] < boxes[:, 2:]), axis=1)
        return Batch(self.zones, self.boxes, self.counted, self.owners[meets], self.parts[meets])

    def _ranges(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Offsets and lengths of the bytes of those rows that lie in the zones, and bit where the first one begins."""
        zones, boxes = self.boxes[self.owners], parts.boxes[self.parts]
        widths, tops = boxes[:, 3] - boxes[:, 1], boxes[:, 0]
        begins = (np.maximum(zones[:, 0], tops) - tops) * widths
        ends = (np.minimum(zones[:, 2], boxes[:, 2]) - tops) * widths
        offsets = begins >> 3
        return parts.bits[self.parts] + offsets, ((ends + 7) >> 3) - offsets, begins & 7

    def join(self, parts: Parts, read: Read) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs of parts that are one region, enough to tell all that are, and the pixels in each zone."""
        offsets, lengths, shifts = self._ranges(parts)
        data, places = read_ranges(read, parts.tiles[self.parts], offsets, lengths)
        mine, local = np.unique(self.parts, return_inverse=True)
        parent, fresh = np.arange(len(mine)), np.zeros(len(self.zones), np.int64)
        starts = np.searchsorted(self.owners, np.arange(len(self.zones) + 1))
        sides = self.boxes[:, 2:] - self.boxes[:, :2] + 1
        canvas = np.empty(int(sides.prod(axis=1).max(initial=0)) + 1, np.int32)
        bits, boxes = places * 8 + shifts, parts.boxes[self.parts]
        kernels.join_zones(
            self.boxes, self.counted, starts, data, bits, boxes, local.astype(np.int64), canvas, parent, fresh
        )
        joined = np.flatnonzero(parent != np.arange(len(parent)))
        return mine[joined], mine[parent[joined]], fresh


def batches(zones: Zones, parts: Parts) -> Iterator[Batch]:
    counts = zones.ranges[:, 1] - zones.ranges[:, 0] + zones.ranges[:, 3] - zones.ranges[:, 2]
    nothing = np.zeros(0, np.int64)
    for first, last in ranges(counts, MEETINGS):
        boxes, near = zones.boxes[first:last], zones.ranges[first:last]
        owners, members = np.empty((2, kernels.meeting_parts(boxes, near, parts.boxes, nothing, nothing)), np.int64)
        kernels.meeting_parts(boxes, near, parts.boxes, owners, members)
        batch = Batch(np.arange(first, last), boxes, np.zeros(last - first, np.int64), owners, members)
        yield from batch.bounded(parts)
