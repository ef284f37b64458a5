"""Windows of a file as arrays: a view says how the file is seen, a target which pixels are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.errors import IIDOverlapError
from iid_dask.layers import layer_numbers
from iid_dask.pieces import image_box, in_paint_order, read_pieces, say_once_if_cut
from iid_dask.views import Points, Samples, Target, View, Window

BAND_BYTES = 2**20
"""Bytes of an array that are painted before the next band of rows."""


def paint(
    view: View,
    target: Target,
    out: np.ndarray,
    *,
    values: np.ndarray | None = None,
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
    values : array of out's dtype, one element a row of the lut, optional
        What each entry paints; default: 1.
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
    regions, keys = in_paint_order(view, target, view.keep if keep is None else keep)
    return _paint_regions(view, target, out, regions, keys, values, count)


def _paint_regions(
    view: View,
    target: Target,
    out: np.ndarray,
    regions: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray | None = None,
    count: bool = False,
) -> int:
    blocks = isinstance(target, Window) and view.reduce == "any" and view.stride > 1
    twice = count and (blocks or len(np.unique(keys)) < len(keys))
    stamp = np.zeros(out.shape if twice else (0, 0), np.uint32)
    painted_values = np.ones(len(keys), out.dtype) if values is None else values[keys]
    painted = 0
    for hits, bits in read_pieces(view, target, regions, keys):
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


def paint_recorded(view: View, window: Window, out: np.ndarray, chunk: tuple[int, int]) -> np.ndarray:
    """Write a window's labels, key + 1, and return what they are chunk by chunk, at little more than the painting.

    Parameters
    ----------
    view
        At full resolution, with its own labels.
    window
    out : uint32 array, shape ``window.shape``
        Overwritten, whatever it held.
    chunk : (rows, columns)
        Of a chunk; the window begins with one.

    Returns
    -------
    uint64 array, shape (chunk rows, chunk columns, 3)
        Pixels that are not 0, checksum (see `kernels.chunk_facts`), pixels that more than one entry covers.
    """
    grid = (-(-size // step) for size, step in zip(out.shape, chunk, strict=True))
    facts = np.zeros((*grid, 3), np.uint64)
    noted = np.zeros(out.shape, bool)
    regions, keys = in_paint_order(view, window, view.keep)
    values = label_values(view)[keys]
    corner = window.box.min_row, window.box.min_col
    clear = _band_rows(out)
    for hits, bits in read_pieces(view, window, regions, keys):
        cut, bits = _by_band(bits, out)
        kernels.paint_recorded(out, *corner, clear, *chunk, facts, noted, *bits, values[hits][cut])
        clear = 0
    if clear:
        out.fill(0)
    return facts


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
    nth = np.arange(len(cut)) - np.repeat(np.cumsum(number) - number, number)
    bands = (firsts // band)[cut] + nth
    begins = np.maximum(firsts[cut], bands * band)
    stops = np.minimum((firsts + counts)[cut], (bands + 1) * band)
    bits = bits[cut] + (begins - firsts[cut]) * (right - left)[cut]
    order = np.argsort(bands, kind="stable")
    cut = cut[order]
    return cut, (data, bits[order], begins[order], (stops - begins)[order], left[cut], right[cut])


def label_values(view: View) -> np.ndarray:
    """Return what each row of the lut paints."""
    if view.labels is not None:
        return view.labels
    return view.reader.remember("labels", lambda: np.arange(1, len(view.reader.lut) + 1, dtype=np.uint32))


def label(view: View, target: Target, out: np.ndarray | None = None) -> np.ndarray:
    """Return the label that wins each pixel; 0 is background.

    ``out``, if given, has the target's shape and starts as zeros.
    """
    out = np.zeros(target.shape, view.label_dtype) if out is None else out
    painted = paint(view, target, out, values=label_values(view))
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
    columns = view.reader.columns
    out = np.zeros((len(keys), *target.shape), bool)
    window = np.array(tuple(image_box(view, target)))
    for plane, key in zip(out, keys.tolist(), strict=True):
        regions = np.arange(columns.first_region[key], columns.first_region[key + 1], dtype=np.int64)
        boxes = columns.region_boxes[regions]
        regions = regions[np.all((boxes[:, :2] < window[2:]) & (boxes[:, 2:] > window[:2]), axis=1)]
        _paint_regions(view, target, plane, regions, np.full(len(regions), key, np.uint32))
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
        keep = np.zeros(len(view.reader.lut), bool)
        keep[view.reader.groups[name]] = True
        paint(view, target, plane, keep=keep if view.keep is None else keep & view.keep)
    return out


def layers(view: View, target: Target, wanted: Sequence[int]) -> np.ndarray:
    """Return labels of the entries of each layer, shape (layers, rows, cols); none is lost to overlaps."""
    numbers = layer_numbers(view)
    out = np.zeros((len(wanted), *target.shape), view.label_dtype)
    for plane, number in zip(out, wanted, strict=True):
        paint(view, target, plane, values=label_values(view), keep=numbers == number)
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
        found = depth(View(view.reader, view.shape, selection=view.selection), part)
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
