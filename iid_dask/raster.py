"""Windows of a file as arrays: which regions, in which order, which bytes, then one call of a kernel.

A `View` says how the file is seen; a target says which pixels are wanted; `render` makes the array.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.errors import IIDOverlapError, IIDWarning
from iid_dask.format.reader import IIDReader

OVERLAPS = ("last", "first", "smallest", "largest", "raise")
REDUCES = ("nearest", "any")

ZONE = 1024
"""Regions that the search for a window's regions may skip at once."""

BATCH = 8 * 2**20
"""Bytes of mask bits held at once: memory does not depend on how large or how many the masks are."""

WHOLE = 4096
"""Bytes of a segment up to which it is read whole where the index has its checksum: damage is then an error, at the
cost of a fraction of the painting; larger segments are read in part, so only `IIDReader.check` sees all of them."""

BAND_BYTES = 2**20
"""Bytes of an array that are painted before the next band of rows."""

Overlap = Literal["last", "first", "smallest", "largest", "raise"]


# --- what is seen -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Which entries are painted: those that pass every filter; None passes all.

    Attributes
    ----------
    keys : tuple of int, optional
    groups : tuple of str, optional
        Members of any of them.
    domains, addresses : tuple of bytes, optional
    area : (min, max), optional
        Pixels, both included; None is no bound.
    """

    keys: tuple[int, ...] | None = None
    groups: tuple[str, ...] | None = None
    domains: tuple[bytes, ...] | None = None
    addresses: tuple[bytes, ...] | None = None
    area: tuple[int | None, int | None] | None = None

    def resolve(self, reader: IIDReader) -> np.ndarray:
        """Return a bool array, one element a row of the lut.

        Raises
        ------
        KeyError
            For a key, group, domain or address that the file does not have; says what it has.
        """
        keep = reader.live.copy()
        if self.keys is not None:
            for key in self.keys:
                reader[key]
            chosen = np.zeros_like(keep)
            chosen[list(self.keys)] = True
            keep &= chosen
        if self.groups is not None:
            chosen = np.zeros_like(keep)
            for name in self.groups:
                if name not in reader.groups:
                    raise KeyError(f"{reader.name}: no group {name!r}; there is: {list(reader.groups)}")
                chosen[reader.groups[name]] = True
            keep &= chosen
        if self.domains is not None or self.addresses is not None:
            keep &= self._by_name(reader)
        if self.area is not None:
            low, high = self.area
            areas = reader.columns.areas
            keep &= (areas >= (0 if low is None else low)) & (areas <= (2**32 if high is None else high))
        return keep

    def _by_name(self, reader: IIDReader) -> np.ndarray:
        domains, addresses = reader.names()
        chosen = np.zeros_like(reader.live)
        chosen[reader.entry_keys] = True
        for what, wanted, found in (("domain", self.domains, domains), ("address", self.addresses, addresses)):
            if wanted is None:
                continue
            missing = set(wanted) - set(found)
            if missing:
                some = sorted(set(found))[:5]
                raise KeyError(f"{reader.name}: no entry has the {what} {min(missing)!r}; some that exist: {some}")
            names = set(wanted)
            chosen[reader.entry_keys] &= np.fromiter((name in names for name in found), bool, len(found))
        return chosen


ALL = Selection()


@dataclass(frozen=True)
class View:
    """How a file is seen as arrays.

    Attributes
    ----------
    reader : IIDReader
    shape : (rows, cols)
        Of the image at full resolution; pixels beyond it are cut.
    overlap : {"last", "first", "smallest", "largest", "raise"}
        Who wins a pixel that more than one entry covers: the highest key, the lowest, the smallest or largest
        area (ties to the higher key), or nobody (IIDOverlapError).
    stride, reduce
        One element for stride × stride pixels: "nearest" samples pixel min(i * stride + stride // 2, H - 1),
        "any" lets every entry with a pixel in the block cover it.
    selection : Selection
    labels : unsigned integer array, shape (rows of the lut,), optional
        What is painted for each key; default key + 1 as uint32.
    """

    reader: IIDReader
    shape: tuple[int, int]
    overlap: Overlap = "last"
    stride: int = 1
    reduce: Literal["nearest", "any"] = "nearest"
    selection: Selection = ALL
    labels: np.ndarray | None = field(default=None, compare=False)

    @property
    def out_shape(self) -> tuple[int, int]:
        """Rows and columns of the arrays."""
        return -(-self.shape[0] // self.stride), -(-self.shape[1] // self.stride)

    @property
    def label_dtype(self) -> np.dtype:
        """Of the painted labels."""
        return np.dtype(np.uint32) if self.labels is None else self.labels.dtype

    @property
    def depth_dtype(self) -> np.dtype:
        """Wide enough for every entry covering one pixel."""
        return np.dtype(np.uint16 if len(self.reader.lut) <= 65_535 else np.uint32)

    @cached_property
    def keep(self) -> np.ndarray | None:
        """Bool array, one element a row of the lut; None if every entry is painted."""
        if self.selection == ALL:
            return None
        return self.reader.remember(self.selection, lambda: self.selection.resolve(self.reader))

    @cached_property
    def keys(self) -> np.ndarray:
        """Keys of the entries painted, ascending uint32."""
        if self.keep is None:
            return self.reader.entry_keys
        return np.flatnonzero(self.keep).astype(np.uint32)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        labels = None
        if self.labels is not None:
            labels = (self.labels.dtype.str, hashlib.blake2b(self.labels.tobytes(), digest_size=16).hexdigest())
        reader, selection = self.reader.__dask_tokenize__(), astuple(self.selection)
        return ("iid_dask.View", reader, self.shape, self.overlap, self.stride, self.reduce, selection, labels)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


# --- which pixels are wanted ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """All pixels of a box, or all blocks of one where the view reduces with "any"."""

    box: BBox

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return self.box.shape


@dataclass(frozen=True, eq=False)
class Samples:
    """The pixels at every pair of some rows and columns (ascending int64 arrays)."""

    rows: np.ndarray
    cols: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return len(self.rows), len(self.cols)


@dataclass(frozen=True, eq=False)
class Points:
    """The pixels (rows[i], cols[i]), by ascending row; the array has one column."""

    rows: np.ndarray
    cols: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return len(self.rows), 1


Target = Window | Samples | Points


def sampled(view: View, indices: np.ndarray, axis: int) -> np.ndarray:
    """Return the image rows (axis 0) or columns (axis 1) that elements of the view's arrays show."""
    return np.minimum(indices * view.stride + view.stride // 2, view.shape[axis] - 1)


# --- which regions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowOrder:
    """Regions by their first row, with the extent of each run of `ZONE` of them."""

    order: np.ndarray
    first_rows: np.ndarray
    zones: np.ndarray


def row_order(reader: IIDReader) -> RowOrder:
    """Sort a file's regions for `touching`; made once a reader."""

    def make() -> RowOrder:
        boxes = reader.columns.region_boxes
        order = np.argsort(boxes[:, 0], kind="stable").astype(np.uint32)
        starts = np.arange(0, len(order), ZONE)
        zones = np.zeros((len(starts), 3), np.uint16)
        for column, (side, reach) in enumerate(((2, np.maximum), (1, np.minimum), (3, np.maximum))):
            if len(order):
                zones[:, column] = reach.reduceat(boxes[order, side], starts)
        return RowOrder(order, boxes[order, 0], zones)

    return reader.remember("row order", make)


def touching(reader: IIDReader, box: BBox) -> np.ndarray:
    """Return the regions whose boxes meet ``box``, ascending, that is by ascending key; int64."""
    rows = row_order(reader)
    boxes = reader.columns.region_boxes
    stop = int(np.searchsorted(rows.first_rows, max(box.max_row, 0), side="left"))
    around = (box.min_row, box.min_col, box.max_row, box.max_col)
    found = np.empty(0, np.uint32)
    count = kernels.find(rows.order, stop, boxes, ZONE, rows.zones, *around, found)
    if count:
        found = np.empty(count, np.uint32)
        kernels.find(rows.order, stop, boxes, ZONE, rows.zones, *around, found)
    return np.sort(found).astype(np.int64)


def _paint_order(view: View, regions: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Positions in ``regions`` so that who comes last wins."""
    if view.overlap == "first":
        return np.arange(len(regions))[::-1]
    if view.overlap in ("smallest", "largest"):
        areas = view.reader.columns.areas[keys].astype(np.int64)
        return np.lexsort((keys, areas if view.overlap == "largest" else -areas))
    return np.arange(len(regions))


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


def _plan_pieces(view: View, target: Target, regions: np.ndarray, keys: np.ndarray) -> Pieces:
    """Cut regions into pieces that hold at most `BATCH` bytes, and rows far apart into single rows. Pure.

    ``firsts`` are image rows for a `Window`, elements of ``target.rows`` otherwise; ``bits_before`` is where the bits
    of a piece's first row and its region's first column lie, from those of the bytes read on; of ``whole`` segments
    all bytes are read.
    """
    columns = view.reader.columns
    boxes = columns.region_boxes[regions].astype(np.int64)
    top, left, bottom, right = boxes.T
    width = right - left
    wanted = _image_box(view, target)
    if isinstance(target, Window):
        firsts, stops = np.maximum(top, wanted.min_row), np.minimum(bottom, wanted.max_row)
        spacing = np.ones(len(regions))
    else:
        firsts, stops = np.searchsorted(target.rows, top), np.searchsorted(target.rows, bottom)
        known = np.append(target.rows, 0)
        spread = known[np.maximum(stops - 1, 0)] - known[np.minimum(firsts, len(target.rows))]
        spacing = spread / np.maximum(stops - firsts - 1, 1)
    begin, end = np.maximum(left, wanted.min_col), np.minimum(right, wanted.max_col)
    # Where more than a gap of bytes would be read in vain between two rows, each row is a piece of its own.
    useless = (spacing * width - (end - begin)) / 8
    per = np.where(useless > view.reader.gap, 1, np.maximum(1, BATCH * 8 // np.maximum(1, spacing * width)))
    per = per.astype(np.int64)
    number = np.maximum(0, -(-(stops - firsts) // per))
    hits = np.repeat(np.arange(len(regions)), number)
    within = np.arange(len(hits)) - np.repeat(np.cumsum(number) - number, number)
    firsts = firsts[hits] + within * per[hits]
    counts = np.minimum(per[hits], stops[hits] - firsts)
    if isinstance(target, Window):
        first_row, last_row = firsts, firsts + counts - 1
    else:
        # Rows of a piece may be further apart than those of its region are on the average.
        spread = target.rows[firsts + counts - 1] - target.rows[firsts]
        number = np.where(spread * width[hits] > BATCH * 8, counts, 1)
        counts = np.repeat(np.where(number > 1, 1, counts), number)
        hits = np.repeat(hits, number)
        firsts = np.repeat(firsts, number) + np.arange(len(hits)) - np.repeat(np.cumsum(number) - number, number)
        first_row, last_row = target.rows[firsts], target.rows[firsts + counts - 1]
    skipped = (begin - left)[hits]
    low = (first_row - top[hits]) * width[hits] + skipped
    high = (last_row - top[hits]) * width[hits] + (end - left)[hits]
    starts = columns.region_bits[regions].astype(np.int64)[hits]
    offsets = starts + (low >> 3)
    lengths = ((high + 7) >> 3) - (low >> 3)
    whole = np.zeros(len(hits), bool)
    if columns.crcs is not None and view.reader.verify_checksums:
        rows = view.reader.lut[keys[hits]]
        whole = rows["segment_length"] <= WHOLE
        offsets = np.where(whole, rows["segment_offset"], offsets)
        lengths = np.where(whole, rows["segment_length"], lengths)
    bits_before = (starts - offsets) * 8 + low - skipped
    return Pieces(hits, firsts, counts, left[hits], right[hits], offsets, lengths, bits_before, whole)


def _batches(offsets: np.ndarray, lengths: np.ndarray, gap: int) -> Iterator[slice]:
    """Cut pieces into runs of at most `BATCH` bytes, those read in vain between two included, or one piece."""
    between = np.zeros(len(lengths), np.int64)
    between[1:] = offsets[1:] - offsets[:-1] - lengths[:-1]
    reach = np.cumsum(lengths + np.where((between > 0) & (between <= gap), between, 0))
    start = 0
    while start < len(lengths):
        before = reach[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(reach, before + BATCH, side="right")))
        yield slice(start, stop)
        start = stop


def _image_box(view: View, target: Target) -> BBox:
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


# --- arrays -----------------------------------------------------------------------------------------------------


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
    regions, keys = _in_paint_order(view, target, view.keep if keep is None else keep)
    blocks = isinstance(target, Window) and view.reduce == "any" and view.stride > 1
    twice = count and (blocks or len(np.unique(keys)) < len(keys))
    stamp = np.zeros(out.shape if twice else (0, 0), np.uint32)
    painted_values = np.ones(len(keys), out.dtype) if values is None else values[keys]
    painted = 0
    for hits, bits in _read_pieces(view, target, regions, keys):
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
    regions, keys = _in_paint_order(view, window, view.keep)
    values = label_values(view)[keys]
    corner = window.box.min_row, window.box.min_col
    clear = _band_rows(out)
    for hits, bits in _read_pieces(view, window, regions, keys):
        cut, bits = _by_band(bits, out)
        kernels.paint_recorded(out, *corner, clear, *chunk, facts, noted, *bits, values[hits][cut])
        clear = 0
    if clear:
        out.fill(0)
    return facts


def _in_paint_order(view: View, target: Target, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the regions that a target needs and their keys, so that who comes last wins."""
    say_once_if_cut(view)
    regions = touching(view.reader, _image_box(view, target))
    keys = view.reader.columns.region_keys(regions)
    if keep is not None:
        regions, keys = regions[keep[keys]], keys[keep[keys]]
    order = _paint_order(view, regions, keys)
    return regions[order], keys[order]


def _read_pieces(
    view: View, target: Target, regions: np.ndarray, keys: np.ndarray
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Read regions' bits, at most about `BATCH` bytes at once; yield whose they are and what the kernels want."""
    reader = view.reader
    pieces = _plan_pieces(view, target, regions, keys)
    for some in _batches(pieces.offsets, pieces.lengths, reader.gap):
        data, places = reader.read_bits(pieces.offsets[some], pieces.lengths[some])
        hits, whole = pieces.hits[some], pieces.whole[some]
        reader.verify_segments(keys[hits][whole], regions[hits][whole], data, places[whole])
        bits = places * 8 + pieces.bits_before[some]
        yield hits, (data, bits, pieces.firsts[some], pieces.counts[some], pieces.left[some], pieces.right[some])


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
    from iid_dask.layers import layer_numbers

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
    box = _image_box(view, target)
    step = max(1, 2**22 // max(1, box.width))
    for row in range(box.min_row, box.max_row, step):
        yield Window(BBox(row, box.min_col, min(row + step, box.max_row), box.max_col))


def _pixel(target: Target, i: int, j: int) -> tuple[int, int]:
    if isinstance(target, Window):
        return target.box.min_row + i, target.box.min_col + j
    return int(target.rows[i]), int(target.cols[i if isinstance(target, Points) else j])


def say_once_if_cut(view: View) -> None:
    """Warn, once a reader and shape, of boxes that the shape does not hold."""

    def look() -> bool:
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

    view.reader.remember(("cut", view.shape), look)
