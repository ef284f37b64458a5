"""Columns of everything about segments that needs no pixels, from the index or by one pass over the section."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from iid_dask.errors import IIDFormatError
from iid_dask.format.layout import (
    HEADER,
    INDEX_MAGIC,
    INDEX_REGION,
    INDEX_SEGMENT,
    INDEX_TRAILER,
    INDEX_VERSION,
    LUT,
    REGION_HEAD,
    SECTIONS,
    SEGMENT_HEAD,
)
from iid_dask.format.source import Source

BLOCK = 2 * 2**20
"""Bytes read at once by a pass over the segments."""


@dataclass(frozen=True)
class SegmentColumns:
    """Segments and regions as columns; an entry's regions are ``first_region[key] : first_region[key + 1]``.

    Attributes
    ----------
    boxes : uint16 array, shape (n, 4)
        Box of each segment: min_row, min_col, max_row, max_col.
    areas : uint32 array, shape (n,)
        Pixels, as stored.
    first_region : uint32 array, shape (n + 1,)
    region_boxes : uint16 array, shape (m, 4)
    region_bits : uint32 array, shape (m,)
        Offset of each region's mask bits from the start of the segments section.
    crcs : uint32 array, shape (n,), or None
        crc32 of each segment's bytes, where an index tells.
    """

    boxes: np.ndarray
    areas: np.ndarray
    first_region: np.ndarray
    region_boxes: np.ndarray
    region_bits: np.ndarray
    crcs: np.ndarray | None = None

    def region_keys(self, regions: np.ndarray) -> np.ndarray:
        """Return the entry of each region, uint32."""
        return (np.searchsorted(self.first_region, regions, side="right") - 1).astype(np.uint32)


def region_lengths(region_boxes: np.ndarray) -> np.ndarray:
    """Bytes of each region's mask bits, int64."""
    boxes = region_boxes.astype(np.int64)
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) + 7) // 8


def place_bits(lut: np.ndarray, first_region: np.ndarray, region_boxes: np.ndarray) -> np.ndarray:
    """Return where regions' mask bits begin in the section: they follow one another from byte 16 of a segment on.

    Parameters
    ----------
    lut : structured array, shape (n,)
    first_region : integer array, shape (n + 1,)
    region_boxes : integer array, shape (m, 4)

    Returns
    -------
    int64 array, shape (m,)
    """
    first = first_region.astype(np.int64)
    sizes = region_lengths(region_boxes) + REGION_HEAD.itemsize
    before = np.cumsum(sizes) - sizes
    owners = np.repeat(np.arange(len(lut)), np.diff(first))
    starts = lut["segment_offset"].astype(np.int64)[owners] + SEGMENT_HEAD.itemsize + REGION_HEAD.itemsize
    return starts + before - before[first[:-1][owners]]


# --- one pass over the section ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What a pass over the segments of some rows of the lut found; regions follow the order of ``rows``."""

    columns: SegmentColumns
    defects: np.ndarray


def scan_segments(source: Source, base: int, lut: np.ndarray) -> Scan:
    """Read the heads of the segments of ``lut``'s rows.

    Parameters
    ----------
    source
    base
        Offset of the segments section in the file.
    lut : structured array, shape (n,)
        Rows whose locations are already known to lie in the section; removed rows have no bytes.

    Returns
    -------
    Scan
        Columns with one row for each row given, and for each an int64 row (code, offset, found, expected).
    """
    from iid_dask import kernels  # numba: only for files without an index

    n = len(lut)
    held = np.flatnonzero(lut["segment_length"] > 0)
    order = held[np.argsort(lut["segment_offset"][held], kind="stable")]
    starts = lut["segment_offset"][order].astype(np.int64)
    stops = starts + lut["segment_length"][order]
    keys = lut["key"][order].astype(np.int64)
    boxes, areas = np.zeros((len(order), 4), np.uint16), np.zeros(len(order), np.uint32)
    counts, defects = np.zeros(len(order), np.uint32), np.zeros((len(order), 4), np.int64)
    found_boxes, found_bits = [], []
    # Rows of a few entries may lie far apart: what is between them is not read.
    apart = np.flatnonzero(starts[1:] > stops[:-1] + source.gap) + 1
    for first, last in pairwise([0, *apart.tolist(), len(order)]):
        rows = slice(first, last)
        at, where = 0, int(starts[first]) if first < last else 0
        while at < last - first:
            data = np.empty(min(BLOCK, int(stops[last - 1]) - where), np.uint8)
            source.read_many(np.array([base + where]), np.array([len(data)]), data)
            room = len(data) // REGION_HEAD.itemsize
            some_boxes, some_bits = np.empty((room, 4), np.uint16), np.empty(room, np.uint32)
            found = some_boxes, some_bits, defects[rows]
            at, where, filled = kernels.scan(
                data,
                where,
                keys[rows],
                starts[rows],
                stops[rows],
                at,
                where,
                boxes[rows],
                areas[rows],
                counts[rows],
                *found,
            )
            found_boxes.append(some_boxes[:filled].copy())
            found_bits.append(some_bits[:filled].copy())
    region_boxes = np.concatenate([*found_boxes, np.zeros((0, 4), np.uint16)])
    region_bits = np.concatenate([*found_bits, np.zeros(0, np.uint32)])
    return _by_row(n, order, boxes, areas, counts, region_boxes, region_bits, defects)


def _by_row(
    n: int,
    order: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
    counts: np.ndarray,
    region_boxes: np.ndarray,
    region_bits: np.ndarray,
    defects: np.ndarray,
) -> Scan:
    def spread(values: np.ndarray) -> np.ndarray:
        out = np.zeros((n, *values.shape[1:]), values.dtype)
        out[order] = values
        return out

    first_region = np.zeros(n + 1, np.uint32)
    np.cumsum(spread(counts), out=first_region[1:])
    if np.any(order[1:] < order[:-1]):
        sort = np.argsort(np.repeat(order, counts), kind="stable")
        region_boxes, region_bits = region_boxes[sort], region_bits[sort]
    columns = SegmentColumns(spread(boxes), spread(areas), first_region, region_boxes, region_bits)
    return Scan(columns, spread(defects))


def scan_defects(name: str, base: int, lut: np.ndarray, scan: Scan) -> Iterator[IIDFormatError]:
    """Say in words what a scan found."""
    from iid_dask import kernels

    for i in np.flatnonzero(scan.defects[:, 0]).tolist():
        code, where, found, expected = scan.defects[i].tolist()
        box = tuple(scan.columns.boxes[i].tolist())
        words = {
            kernels.KEY: (f"key {found}", f"{expected}, as in the lut"),
            kernels.SEGMENT_BOX: (f"box {box}", "each min at most its max"),
            kernels.REGION_CUT: (f"{found} bytes left of the segment", f"a region of at least {expected}"),
            kernels.REGION_LENGTH: (f"a region of {found} bytes", f"{expected}, as its box demands"),
            kernels.REGION_BOX: ("a region with an empty or inverted box", "each min below its max"),
            kernels.REGION_OUTSIDE: ("a region that leaves its segment's box", f"it within {box}"),
        }
        yield IIDFormatError(name, "segments", int(lut["key"][i]), base + where, *words[code])


# --- the index --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """A sound trailer: where the rows are, and the checksums of the other sections."""

    offset: int
    entries: int
    regions: int
    rows_crc: int
    section_crcs: dict[str, int]


def parse_trailer(header: np.void, lut_bytes: bytes, size: int, tail: bytes) -> Index | None:
    """Return the index of a file, or None where there is none or it was made for other bytes.

    Parameters
    ----------
    header, lut_bytes, size
        Of the file.
    tail
        Its last 52 bytes.
    """
    if len(tail) < INDEX_TRAILER.itemsize:
        return None
    trailer = np.frombuffer(tail, INDEX_TRAILER)[0]
    entries, regions, offset = int(trailer["entries"]), int(trailer["regions"]), int(trailer["offset"])
    rows = entries * INDEX_SEGMENT.itemsize + regions * INDEX_REGION.itemsize
    # Empty sections too: the file must be as sound when another program has taken the index off.
    ends = [int(header[f"{s}_offset"]) + int(header[f"{s}_length"]) for s in SECTIONS]
    sound = (
        bytes(trailer["magic"]) == INDEX_MAGIC
        and trailer["version"] == INDEX_VERSION
        and trailer["reserved"] == 0
        and entries * LUT.itemsize == len(lut_bytes)
        and offset >= max([HEADER.itemsize, *ends])
        and offset + rows + INDEX_TRAILER.itemsize == size
        and zlib.crc32(lut_bytes, zlib.crc32(header.tobytes())) == trailer["lut_crc"]
    )
    if not sound:
        return None
    crcs = {section: int(trailer[f"{section}_crc"]) for section in ("iids", "meta", "groups")}
    return Index(offset, entries, regions, int(trailer["rows_crc"]), crcs)


def read_index(source: Source, index: Index, lut: np.ndarray) -> SegmentColumns | None:
    """Return the columns that an index holds, or None if its rows are damaged or contradict the lut."""
    split = index.entries * INDEX_SEGMENT.itemsize
    data = source.read(index.offset, split + index.regions * INDEX_REGION.itemsize)
    if zlib.crc32(data) != index.rows_crc:
        return None
    entries = np.frombuffer(data, INDEX_SEGMENT, index.entries)
    regions = np.frombuffer(data, INDEX_REGION, index.regions, split)
    first_region = np.append(entries["first_region"], np.uint32(index.regions))
    columns = SegmentColumns(
        np.ascontiguousarray(entries["bbox"]),
        np.ascontiguousarray(entries["area"]),
        first_region,
        np.ascontiguousarray(regions["bbox"]),
        np.ascontiguousarray(regions["bits"]),
        np.ascontiguousarray(entries["crc"]),
    )
    return columns if _agree(columns, lut) else None


def _agree(columns: SegmentColumns, lut: np.ndarray) -> bool:
    """Whether columns describe segments of exactly the lut's offsets and lengths, with regions inside them."""
    first = columns.first_region.astype(np.int64)
    if len(first) and (first[0] != 0 or np.any(first[1:] < first[:-1]) or first[-1] != len(columns.region_bits)):
        return False
    boxes, region_boxes = columns.boxes, columns.region_boxes
    if np.any(boxes[:, :2] > boxes[:, 2:]) or np.any(region_boxes[:, :2] >= region_boxes[:, 2:]):
        return False
    owners = np.repeat(np.arange(len(lut)), np.diff(first))
    around = boxes[owners]
    if np.any(region_boxes[:, :2] < around[:, :2]) or np.any(region_boxes[:, 2:] > around[:, 2:]):
        return False
    held = lut["segment_length"] > 0
    if np.any(np.diff(first)[~held]) or np.any(boxes[~held]) or np.any(columns.areas[~held]):
        return False
    # Regions follow one another from byte 16 of the segment on, so boxes alone say where each one's bits are.
    sizes = region_lengths(region_boxes) + REGION_HEAD.itemsize
    before = np.concatenate(([0], np.cumsum(sizes)))
    lengths = before[first[1:]] - before[first[:-1]] + SEGMENT_HEAD.itemsize
    if np.any(lengths[held] != lut["segment_length"][held]):
        return False
    return bool(np.all(place_bits(lut, first, region_boxes) == columns.region_bits))


def index_bytes(
    offset: int, header_and_lut: bytes, crcs: dict[str, int], columns: SegmentColumns, segment_crcs: np.ndarray
) -> bytes:
    """Return an index to be put at ``offset``, the end of a file.

    Parameters
    ----------
    offset
        Where it will stand in the file.
    header_and_lut
        The bytes of both.
    crcs
        crc32 of the sections "iids", "meta" and "groups".
    columns
        Of the file's segments.
    segment_crcs : uint32 array, shape (n,)
        crc32 of each segment's bytes.
    """
    entries = np.zeros(len(columns.areas), INDEX_SEGMENT)
    entries["bbox"], entries["area"], entries["crc"] = columns.boxes, columns.areas, segment_crcs
    entries["first_region"] = columns.first_region[:-1]
    regions = np.zeros(len(columns.region_bits), INDEX_REGION)
    regions["bbox"], regions["bits"] = columns.region_boxes, columns.region_bits
    rows = entries.tobytes() + regions.tobytes()
    trailer = np.zeros((), INDEX_TRAILER)
    trailer["entries"], trailer["regions"], trailer["offset"] = len(entries), len(regions), offset
    trailer["rows_crc"], trailer["lut_crc"] = zlib.crc32(rows), zlib.crc32(header_and_lut)
    for section, crc in crcs.items():
        trailer[f"{section}_crc"] = crc
    trailer["version"], trailer["magic"] = INDEX_VERSION, INDEX_MAGIC
    return rows + trailer.tobytes()
