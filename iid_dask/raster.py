"""Windows of a file as arrays: a view says how the file is seen, a target which pixels are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, pairwise

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.cutting import spread
from iid_dask.errors import IIDOverlapError
from iid_dask.layers import layer_numbers
from iid_dask.pieces import Found, image_box, in_paint_order, read_pieces, say_once_if_cut, search
from iid_dask.views import Points, Samples, Target, View, Window

BAND_BYTES = 2**20
"""Bytes of an array that are painted before the next band of rows."""


def paint(
    view: View,
    target: Target,
    out: np.ndarray,
    *,
    labels: bool = False,
    keep: np.ndarray | None = None,
    count: bool = False,
) -> int:
    """Paint a view's entries into ``out``, which starts as zeros.

    Parameters
    ----------
    view, target
        What is seen, and which pixels of it.
    out : array, shape ``target.shape``
        Changed in place.
    labels
        Paint the view's labels, whose dtype is out's; default: 1.
    keep : bool array, one element a row of the lut, optional
        Instead of the view's selection.
    count
        Add 1 for every entry that covers a pixel, instead of painting values.

    Returns
    -------
    int
        Pixels painted, those painted twice counted twice: where it is the number of pixels that are not 0,
        no entries overlap.
    """
    found = in_paint_order(view, target, view.keep if keep is None else keep)
    return _paint_regions(view, target, out, found, labels, count)


def _paint_regions(
    view: View,
    target: Target,
    out: np.ndarray,
    found: Found,
    labels: bool = False,
    count: bool = False,
) -> int:
    keys = found.keys
    blocks = isinstance(target, Window) and view.reduce == "any" and view.stride > 1
    twice = count and (blocks or len(np.unique(keys)) < len(keys))
    stamp = np.zeros(out.shape if twice else (0, 0), np.uint32)
    painted_values = labels_of(view, keys) if labels else np.ones(len(keys), out.dtype)
    painted = 0
    for hits, bits in read_pieces(view, target, found):
        colours = painted_values[hits], count, stamp, keys[hits] + np.uint32(1)
        if isinstance(target, Samples):
            painted += kernels.paint_samples(out, target.rows, target.cols, *bits, *colours)
        elif isinstance(target, Points):
            painted += kernels.paint_points(out, target.rows, target.cols, *bits, *colours)
        elif blocks:
            corner = target.box.min_row, target.box.min_col
            painted += kernels.paint_blocks(out, *corner, view.stride, view.shape[1], *bits, *colours)
        else:
            cut, bits = _by_band(bits, out)
            corner = target.box.min_row, target.box.min_col
            painted += kernels.paint_window(
                out, *corner, *bits, colours[0][cut], count, stamp, keys[hits][cut] + np.uint32(1)
            )
    return painted


def paint_recorded(
    view: View, window: Window, chunk: tuple[int, int], out: np.ndarray
) -> Iterator[tuple[BBox, np.ndarray]]:
    """Paint a window's labels, key + 1, chunk by chunk, and tell what each holds at little more than the painting.

    All chunks are painted in the same memory, so that it is still in a cache when a chunk is taken from it.

    Parameters
    ----------
    view
        At full resolution, with its own labels.
    window
        Begins with a chunk.
    chunk : (rows, columns)
    out : uint32 array, shape ``chunk``
        Holds the chunk that was yielded last; 0 beyond its box.

    Yields
    ------
    box : BBox
        Of a chunk, cut at the window's end; a chunk that no entry's box meets is left out.
    facts : uint64 array, shape (3,)
        Pixels that are not 0, checksum (see `kernels.chunk_facts`), pixels that more than one entry covers.
    """
    found = in_paint_order(view, window, view.keep)
    values = labels_of(view, found.keys)
    boxes = list(_chunk_boxes(window.box, chunk))
    batches = read_pieces(view, window, found)
    first = list(islice(batches, 2))
    if len(first) == 2 and len(boxes) > 1:
        # More bits than are held at once: each chunk reads its own.
        for box in boxes:
            yield from paint_recorded(view, Window(box), chunk, out)
        return
    parts: Iterable[list[tuple[np.ndarray, ...]]]
    parts = (_by_chunk(values[hits], pieces, window.box, chunk) for hits, pieces in chain(first, batches))
    if len(boxes) > 1:
        parts = list(parts)
    for number, box in enumerate(boxes):
        mine = (part[number] for part in parts)
        facts = _paint_chunk(box, out, (pieces for pieces in mine if len(pieces[-1])))
        if facts is not None:
            yield box, facts


def _paint_chunk(box: BBox, out: np.ndarray, batches: Iterable[tuple[np.ndarray, ...]]) -> np.ndarray | None:
    """Paint one chunk, and return its facts; None if there is nothing to paint."""
    facts = None
    for pieces in batches:
        if facts is None:
            out.fill(0)
            facts, noted = np.zeros(3, np.uint64), np.zeros(out.shape, bool)
        kernels.paint_recorded(out, box.width, box.min_row, box.min_col, facts, noted, *pieces)
    return facts


def _chunk_boxes(box: BBox, chunk: tuple[int, int]) -> Iterator[BBox]:
    """Boxes of the chunks of a window that begins with one, row-major."""
    for row in range(box.min_row, box.max_row, chunk[0]):
        for col in range(box.min_col, box.max_col, chunk[1]):
            yield BBox(row, col, min(row + chunk[0], box.max_row), min(col + chunk[1], box.max_col))


def _by_chunk(
    values: np.ndarray, pieces: tuple[np.ndarray, ...], box: BBox, chunk: tuple[int, int]
) -> list[tuple[np.ndarray, ...]]:
    """Cut pieces at the borders of chunks; return those of each chunk, in painting order, and what they paint.

    Pieces are cut between two rows; where one reaches over columns of several chunks, each of them has it whole.
    """
    data, bits, firsts, counts, left, right = pieces
    (rows, cols), (height, width) = chunk, (box.height, box.width)
    top, across = (firsts - box.min_row) // rows, -(-width // cols)
    begin = np.maximum(left - box.min_col, 0) // cols
    high = (firsts + counts - 1 - box.min_row) // rows - top + 1
    wide = (np.minimum(right - box.min_col, width) - 1) // cols - begin + 1
    number = high * wide
    cut = np.repeat(np.arange(len(firsts)), number)
    nth = spread(0, number)
    row = top[cut] + nth // wide[cut]
    col = begin[cut] + nth % wide[cut]
    begins = np.maximum(firsts[cut], row * rows + box.min_row)
    stops = np.minimum((firsts + counts)[cut], (row + 1) * rows + box.min_row)
    bits = bits[cut] + (begins - firsts[cut]) * (right - left)[cut]
    chunks = row * across + col
    order = np.argsort(chunks, kind="stable")
    cut = cut[order]
    columns = bits[order], begins[order], (stops - begins)[order], left[cut], right[cut], values[cut]
    ends = np.searchsorted(chunks[order], np.arange(-(-height // rows) * across + 1)).tolist()
    return [(data, *(column[start:stop] for column in columns)) for start, stop in pairwise(ends)]


def _band_rows(out: np.ndarray) -> int:
    """Rows of a band that fits a cache."""
    return max(8, BAND_BYTES // max(1, out.strides[0]))


def _by_band(pieces: tuple[np.ndarray, ...], out: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Cut pieces at the borders of bands of rows that fit a cache, and sort them by band; return also which is which.

    Entries come in the order of their keys, so two neighbours in it may lie anywhere: painted so, every row of
    a mask is a miss of cache and of address translation. Within a band the painting order stays.
    """
    data, bits, firsts, counts, left, right = pieces
    band = _band_rows(out)
    number = (firsts + counts - 1) // band - firsts // band + 1
    cut = np.repeat(np.arange(len(firsts)), number)
    nth = spread(0, number)
    bands = (firsts // band)[cut] + nth
    begins = np.maximum(firsts[cut], bands * band)
    stops = np.minimum((firsts + counts)[cut], (bands + 1) * band)
    bits = bits[cut] + (begins - firsts[cut]) * (right - left)[cut]
    order = np.argsort(bands, kind="stable")
    cut = cut[order]
    return cut, (data, bits[order], begins[order], (stops - begins)[order], left[cut], right[cut])


def labels_of(view: View, keys: np.ndarray) -> np.ndarray:
    """Return what entries paint."""
    return keys + np.uint32(1) if view.labels is None else view.labels[keys]


def label(view: View, target: Target, out: np.ndarray | None = None) -> np.ndarray:
    """Return the label that wins each pixel; 0 is background.

    ``out``, if given, has the target's shape and starts as zeros.
    """
    out = np.zeros(target.shape, view.label_dtype) if out is None else out
    painted = paint(view, target, out, labels=True)
    if view.overlap == "raise" and painted > np.count_nonzero(out):
        _raise_if_overlapping(view, target)
    return out


def mask(view: View, target: Target, *, keep: np.ndarray | None = None) -> np.ndarray:
    """Return where some entry covers the pixel, bool."""
    out = np.zeros(target.shape, bool)
    paint(view, target, out, keep=keep)
    return out


def masks(view: View, target: Target, keys: np.ndarray) -> np.ndarray:
    """Return the pixels of some entries, a plane each, bool, shape (entries, rows, cols)."""
    say_once_if_cut(view)
    out = np.zeros((len(keys), *target.shape), bool)
    found = search(view.reader, image_box(view, target))
    starts, stops = (np.searchsorted(found.keys, keys, side=side) for side in ("left", "right"))
    for plane, start, stop in zip(out, starts.tolist(), stops.tolist(), strict=True):
        _paint_regions(view, target, plane, found.chosen(slice(start, stop)))
    return out


def depth(view: View, target: Target) -> np.ndarray:
    """Return how many entries cover each pixel."""
    out = np.zeros(target.shape, view.depth_dtype)
    paint(view, target, out, count=True)
    return out


def group_mask(view: View, target: Target, groups: Sequence[str]) -> np.ndarray:
    """Return where some entry of each group covers the pixel, bool, shape (groups, rows, cols)."""
    out = np.zeros((len(groups), *target.shape), bool)
    for plane, name in zip(out, groups, strict=True):
        keep = np.zeros(len(view.reader.live), bool)
        keep[view.reader.groups[name]] = True
        paint(view, target, plane, keep=keep if view.keep is None else keep & view.keep)
    return out


def layers(view: View, target: Target, wanted: Sequence[int]) -> np.ndarray:
    """Return labels of the entries of each layer, shape (layers, rows, cols); none is lost to overlaps."""
    numbers = layer_numbers(view)
    out = np.zeros((len(wanted), *target.shape), view.label_dtype)
    for plane, number in zip(out, wanted, strict=True):
        paint(view, target, plane, labels=True, keep=numbers == number)
    return out


def color(view: View, target: Target) -> np.ndarray:
    """Return a stable colour a label, uint8, shape (rows, cols, 3); background is black."""
    out = np.zeros((*target.shape, 3), np.uint8)
    kernels.colorize(label(view, target), out)
    return out


def overlapping_pixels(view: View, target: Target) -> int:
    """Count the elements that more than one entry covers."""
    return int(np.count_nonzero(depth(view, target) > 1))


def _raise_if_overlapping(view: View, target: Target) -> None:
    for part in _full_resolution(view, target):
        found = depth(replace(view, stride=1, reduce="nearest", labels=None), part)
        where = np.argwhere(found > 1)
        if len(where):
            i, j = where[0].tolist()
            row, col = _pixel(part, i, j)
            raise IIDOverlapError(
                f"{view.reader.name}: {found[i, j]} entries cover the pixel (row {row}, column {col}), expected at "
                'most one as overlap="raise"; choose another overlap=, or layers=True, which loses none'
            )


def _full_resolution(view: View, target: Target) -> Iterator[Target]:
    """Targets that hold the image pixels of one, a few million at a time."""
    if not isinstance(target, Window) or view.reduce == "nearest":
        yield target
        return
    box = image_box(view, target)
    step = max(1, 2**22 // max(1, box.width))
    for row in range(box.min_row, box.max_row, step):
        yield Window(BBox(row, box.min_col, min(row + step, box.max_row), box.max_col))


def _pixel(target: Target, i: int, j: int) -> tuple[int, int]:
    if isinstance(target, Window):
        return target.box.min_row + i, target.box.min_col + j
    return int(target.rows[i]), int(target.cols[i if isinstance(target, Points) else j])
