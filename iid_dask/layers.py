"""Layers: entries coloured so that none overlaps another of its layer, so that label arrays lose nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from iid_dask import kernels
from iid_dask.format.reader import RecordReader
from iid_dask.pieces import row_order
from iid_dask.views import View

PAIRS = 2**16
"""Pairs of boxes looked at together."""

BYTES = 2**26
"""Mask bytes held at once."""


def layer_numbers(view: View) -> np.ndarray:
    """Return the layer of each entry, by ascending key the first in which it overlaps nobody.

    Returns
    -------
    int32 array, one element a row of the lut
        -1 for entries that the view does not show.

    Notes
    -----
    Decodes every pair of masks whose boxes meet.
    """
    return view.reader.remember(("layers", view.selection), lambda: _colour(view))


def _colour(view: View) -> np.ndarray:
    reader = view.reader
    numbers = np.full(len(reader.lut), -1, np.int32)
    numbers[view.keys] = 0
    pairs = [np.zeros((0, 2), np.int64)]
    for first, second in _candidates(view):
        meet = _meet(reader, first, second)
        keys = np.stack([reader.columns.region_keys(regions[meet]) for regions in (first, second)], axis=1)
        pairs.append(np.unique(np.sort(keys.astype(np.int64), axis=1), axis=0))
    found = np.unique(np.concatenate(pairs), axis=0)
    by_higher = found[np.argsort(found[:, 1], kind="stable")]
    starts = np.searchsorted(by_higher[:, 1], np.arange(len(numbers) + 1))
    kernels.first_fit(starts, np.ascontiguousarray(by_higher[:, 0]), numbers)
    return numbers


def _candidates(view: View) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of regions of two entries whose boxes meet, some at a time."""
    columns = view.reader.columns
    order = row_order(view.reader).order
    keys = columns.region_keys(np.arange(len(columns.region_bits)))
    if view.keep is not None:
        order = order[view.keep[keys[order]]]
    at, partner = 0, 1
    while at < len(order):
        first, second = np.empty((2, PAIRS), np.int64)
        at, partner, found = kernels.box_pairs(order, columns.region_boxes, keys, at, partner, first, second)
        yield first[:found], second[:found]


def _meet(reader: RecordReader, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether pairs of regions share a pixel; reads only the rows that both have."""
    boxes_a, boxes_b = (reader.columns.region_boxes[regions].astype(np.int64) for regions in (first, second))
    low = np.maximum(boxes_a[:, :2], boxes_b[:, :2])
    high = np.minimum(boxes_a[:, 2:], boxes_b[:, 2:])
    return _meet_in(reader, (first, second), (boxes_a, boxes_b), low, high)


def _meet_in(
    reader: RecordReader,
    regions: tuple[np.ndarray, np.ndarray],
    boxes: tuple[np.ndarray, np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    n = len(low)
    if not n:
        return np.zeros(0, bool)
    begins, ends, widths = [], [], []
    for some, box in zip(regions, boxes, strict=True):
        width = box[:, 3] - box[:, 1]
        start = reader.columns.region_bits[some].astype(np.int64) * 8 - box[:, 0] * width - box[:, 1]
        begins.append(start + low[:, 0] * width + low[:, 1])
        ends.append(start + (high[:, 0] - 1) * width + high[:, 1])
        widths.append(width)
    begin, end = np.concatenate(begins), np.concatenate(ends)
    offsets = begin >> 3
    lengths = ((end + 7) >> 3) - offsets
    if int(lengths.sum()) > BYTES:
        half = n // 2
        if half:
            (first, second), (box_a, box_b) = regions, boxes
            halves = [
                _meet_in(reader, (first[part], second[part]), (box_a[part], box_b[part]), low[part], high[part])
                for part in (slice(half), slice(half, n))
            ]
            return np.concatenate(halves)
        if high[0, 0] - low[0, 0] > 1:
            middle = low.copy()
            middle[0, 0] = (low[0, 0] + high[0, 0]) // 2
            upper = high.copy()
            upper[0, 0] = middle[0, 0]
            above = _meet_in(reader, regions, boxes, low, upper)
            return above if above[0] else _meet_in(reader, regions, boxes, middle, high)
    data, places = reader.read_bits(offsets, lengths)
    bits = places * 8 + (begin & 7)
    out = np.zeros(n, bool)
    size = high - low
    kernels.masks_meet(data, bits[:n], bits[n:], widths[0], widths[1], size[:, 0], size[:, 1], out)
    return out
