"""A block of an image, as a label array or as masks with names, to segments."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.format.columns import Names, Segments
from iid_dask.format.layout import SPARE
from iid_dask.format.plan import check_group_names
from iid_dask.format.regions import BlockRegions, as_block, find_regions

MAX_NBYTES = 4 * 2**30
"""Most memory that the regions of one block may take: rings in rings have boxes far larger than the block."""

Mask = Sequence[Any]
"""(domain, address, bbox, mask), or with a group or an iterable of groups behind them."""


def segments_of(block: np.ndarray, *, connected: bool = False) -> tuple[np.ndarray, Segments]:
    """Find the segments of a label array in one pass over its runs.

    Parameters
    ----------
    block : array of integers or bool, shape (h, w)
        0 is background. One that is not contiguous, or big-endian, is copied once.
    connected
        Make each 8-connected component of equal values a segment of its own.

    Returns
    -------
    values : uint64 array, shape (n,)
        The value of each segment: ascending, or with ``connected`` in raster order of the components' first pixels.
    segments : Segments
        In the block's frame; the regions of each are in raster order of their first pixel.

    Raises
    ------
    TypeError, ValueError
        For arrays of other dtypes or dimensions, and negative values.
    IIDLimitError
        If the regions would take more than `MAX_NBYTES`.

    Examples
    --------
    >>> values, segments = segments_of(np.array([[7, 0, 3], [0, 7, 0], [7, 0, 0]]))
    >>> values, segments.areas, segments.boxes.tolist()
    (array([3, 7], dtype=uint64), array([1, 3]), [[0, 2, 1, 3], [0, 0, 3, 2]])
    """
    regions = find_regions(_plain(block), MAX_NBYTES)
    if connected:
        return regions.values, _join(regions, np.arange(len(regions.values) + 1))
    order = np.argsort(regions.values, kind="stable")
    regions = regions.take(order)
    starts = np.ones(len(order), bool)
    np.not_equal(regions.values[1:], regions.values[:-1], out=starts[1:])
    first = np.flatnonzero(starts)
    return regions.values[first], _join(regions, np.append(first, len(order)))


def segments_of_masks(items: Iterable[Mask], shape: Sequence[int]) -> tuple[Names, Segments, dict[str, np.ndarray]]:
    """Make segments of masks with names; they may overlap.

    Parameters
    ----------
    items
        (domain, address, bbox, mask) or (domain, address, bbox, mask, group or groups): bytes, bytes, a box in the
        block's pixels, an array of the box's shape, of which what is not zero is a pixel, and text.
    shape : (rows, columns)
        Of the block.

    Returns
    -------
    names : Names
    segments : Segments
        In the order given, with tight boxes; masks without pixels are kept.
    groups : dict
        Name -> int64 array, the places of its segments; in order of first use.

    Raises
    ------
    TypeError, ValueError
        For an item of another form, a box that leaves the block, a mask that does not fit its box.

    Examples
    --------
    >>> items = [(b"cell", b"1", (0, 1, 2, 4), np.eye(2, 3)), (b"cell", b"2", (1, 1, 2, 2), [[1]], "small")]
    >>> names, segments, groups = segments_of_masks(items, (4, 4))
    >>> segments.boxes.tolist(), segments.areas.tolist(), groups
    ([[0, 1, 2, 3], [1, 1, 2, 2]], [2, 1], {'small': array([1])})
    """
    height, width = shape
    frame = BBox(0, 0, height, width)
    domains: list[bytes] = []
    addresses: list[bytes] = []
    parts: list[BlockRegions] = []
    members: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        domain, address, box, mask, groups = _check_item(number, item, frame)
        parts.append(find_regions(mask, MAX_NBYTES).moved(box.min_row, box.min_col))
        domains.append(domain)
        addresses.append(address)
        for name in groups:
            members.setdefault(name, []).append(number)
    first = np.cumsum([0, *(len(part.areas) for part in parts)])
    found = {name: np.array(keys, np.int64) for name, keys in members.items()}
    return Names.of(domains, addresses), _join(_chain(parts), first), found


def first_pixels(segments: Segments) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of each segment's first pixel in raster order, int64, shape (n,); -1 if it is empty.

    The regions of each segment must be in that order too, as canonical ones are.

    Examples
    --------
    >>> first_pixels(segments_of(np.array([[0, 0, 1, 5], [0, 1, 0, 0]]))[1])
    (array([0, 0]), array([2, 3]))
    """
    full = np.diff(segments.first_region) > 0
    regions = segments.first_region[:-1][full]
    boxes = segments.region_boxes[regions]
    columns = np.empty(len(regions), np.int64)
    kernels.first_pixels(segments.data, segments.region_bits[regions] * 8, boxes[:, 3] - boxes[:, 1], columns)
    rows, cols = np.full((2, len(segments)), -1)
    rows[full], cols[full] = boxes[:, 0], boxes[:, 1] + columns
    return rows, cols


def block_crc(block: np.ndarray) -> int:
    """Return a checksum of an array: the same for the same dtype, shape and values, however they lie in memory.

    It is the crc32 of dtype and shape as text, then of the elements, little-endian, row by row.

    Examples
    --------
    >>> block_crc(np.eye(3, dtype=">u2")) == block_crc(np.eye(3, dtype="<u2")) != block_crc(np.eye(3, dtype="u1"))
    True
    """
    little = block.dtype.newbyteorder("<")
    crc = zlib.crc32(f"{little.str} {block.shape}".encode())
    rows = max(1, 2**20 // max(1, block[:1].nbytes))
    for row in range(0, len(block), rows):
        # Some rows at a time: an array that is not contiguous needs no copy of its own size.
        crc = zlib.crc32(np.ascontiguousarray(block[row : row + rows], little).data, crc)
    return crc


# --- one block's regions ----------------------------------------------------------------------------------------


def _plain(block: np.ndarray) -> np.ndarray:
    """Return a block as a contiguous array of unsigned integers of this machine."""
    if not isinstance(block, np.ndarray) or block.ndim != 2 or block.dtype.kind not in "biu":
        kind = f"{block.dtype}, shape {block.shape}" if isinstance(block, np.ndarray) else type(block).__name__
        raise TypeError(f"label array: {kind}: expected a 2-D numpy array of integers or bool")
    if block.dtype.kind == "i" and block.size and block.min() < 0:
        row, col = (int(i[0]) for i in np.nonzero(block < 0))
        raise ValueError(
            f"label array: value {block[row, col]} at row {row}, column {col}: expected 0 for background, labels above"
        )
    if block.dtype.kind == "b":
        return as_block(block)
    unsigned = np.dtype(f"u{block.dtype.itemsize}")
    return np.ascontiguousarray(block, block.dtype.newbyteorder("=")).view(unsigned)


def _chain(parts: Sequence[BlockRegions]) -> BlockRegions:
    """Return the regions of several blocks, one after another."""
    if not parts:
        return find_regions(np.zeros((0, 0), np.uint8), None)
    sizes = [len(part.data) - SPARE for part in parts]
    starts = (np.cumsum(sizes) - sizes).tolist()
    data = np.zeros(sum(sizes) + SPARE, np.uint8)
    for part, start, size in zip(parts, starts, sizes, strict=True):
        data[start : start + size] = part.data[:size]
    return BlockRegions(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.areas for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.bits + start for part, start in zip(parts, starts, strict=True)]),
        data,
    )


def _join(regions: BlockRegions, first: np.ndarray) -> Segments:
    """Make segments of consecutive regions: those of segment i are ``first[i] : first[i + 1]``."""
    full = np.flatnonzero(first[1:] > first[:-1])
    boxes, areas = np.zeros((len(first) - 1, 4), np.int64), np.zeros(len(first) - 1, np.int64)
    starts = first[full]
    boxes[full, :2] = np.minimum.reduceat(regions.boxes[:, :2], starts)
    boxes[full, 2:] = np.maximum.reduceat(regions.boxes[:, 2:], starts)
    areas[full] = np.add.reduceat(regions.areas, starts)
    return Segments(boxes, areas, first, regions.boxes, regions.bits, regions.data)


def _check_item(number: int, item: Mask, frame: BBox) -> tuple[bytes, bytes, BBox, np.ndarray, list[str]]:
    """Return an item's parts, its mask as bytes 0 and 1."""
    if not isinstance(item, tuple | list) or len(item) not in (4, 5):
        raise TypeError(f"item {number}: found {item!r:.80}, expected (domain, address, bbox, mask[, groups])")
    domain, address, box, mask = item[:4]
    for what, value in (("domain", domain), ("address", address)):
        if not isinstance(value, bytes):
            raise TypeError(f"item {number}: {what} is {type(value).__name__}, expected bytes: encode text yourself")
    where = f"item {number} ({domain!r:.80}, {address!r:.80})"
    try:
        bbox, groups = BBox.of(box), check_group_names(item[4] if len(item) == 5 else ())
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error
    if bbox.intersection(frame) != bbox:
        raise ValueError(f"{where}: box {tuple(bbox)} leaves the tile of {frame.height} x {frame.width} pixels")
    pixels = np.asarray(mask)
    if pixels.shape != bbox.shape:
        raise ValueError(f"{where}: mask of shape {pixels.shape}, expected {bbox.shape} as box {tuple(bbox)}")
    return domain, address, bbox, as_block(pixels), groups
