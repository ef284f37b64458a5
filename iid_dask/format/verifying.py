"""Segments that were read, against what an index says of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iid_dask.cutting import spread
from iid_dask.errors import IIDFormatError
from iid_dask.format.layout import INDEX_SEGMENT, REGION_HEAD, SEGMENT_HEAD
from iid_dask.format.sections import crc_defect
from iid_dask.format.segments import SegmentColumns, region_lengths

if TYPE_CHECKING:
    from iid_dask.format.reader import RecordReader


def check_segment(name: str, columns: SegmentColumns, index_offset: int, key: int, base: int, data: bytes) -> None:
    """Compare a segment's bytes with an index: crc32, boxes and area.

    Parameters
    ----------
    name
        Of the file, for errors.
    columns
        As the index has them.
    index_offset, base
        Bytes of the file where the index and the segment begin.
    key
        Of the segment's entry.
    data
        The segment.

    Raises
    ------
    IIDFormatError
        If it is damaged, or the index was made for other bytes.
    """
    if columns.crcs is not None and (crc := zlib.crc32(data)) != columns.crcs[key]:
        raise crc_defect(name, "segments", key, base, crc, int(columns.crcs[key]))
    if not _heads_agree(columns, key, data):
        # The checksums of an index only say that it is as it was made, not that it was made for these bytes.
        raise IIDFormatError(
            name,
            "index",
            key,
            index_offset + INDEX_SEGMENT.itemsize * key,
            "boxes or an area that differ from the segment's",
            "what the segment itself says (verify=False reads on)",
        )


def _heads_agree(columns: SegmentColumns, key: int, data: bytes) -> bool:
    """Whether the heads in a segment's bytes say what an index says; it already agrees on all lengths."""
    keys, places = np.array([key]), np.zeros(1, np.int64)
    read = np.frombuffer(data, np.uint8)
    regions = np.arange(columns.first_region[key], columns.first_region[key + 1], dtype=np.int64)
    sizes = region_lengths(columns.region_boxes[regions]) + REGION_HEAD.itemsize
    starts = SEGMENT_HEAD.itemsize + np.cumsum(sizes) - sizes + REGION_HEAD.itemsize
    return bool(
        _segment_heads_agree(read, places, keys, columns.boxes[keys], columns.areas[keys]).all()
        and _region_heads_agree(read, starts, columns.region_boxes[regions]).all()
    )


@dataclass(frozen=True, eq=False)
class SegmentBytes:
    """Whole segments that were read, and where in them their regions are.

    Attributes
    ----------
    data : uint8 array
        With `SPARE` bytes at its end.
    owners : int64 array, shape (m,)
        Of each region, the place of its segment among those asked for.
    regions : int64 array, shape (m,)
        Rows of the columns.
    bits : int64 array, shape (m,)
        Byte of ``data`` where each region's mask bits begin.
    """

    data: np.ndarray
    owners: np.ndarray
    regions: np.ndarray
    bits: np.ndarray


def read_segments(reader: RecordReader, keys: np.ndarray, columns: SegmentColumns, rows: np.ndarray) -> SegmentBytes:
    """Read whole segments, and compare them with the index: crc32, boxes and areas.

    Parameters
    ----------
    reader
    keys : integer array, shape (n,)
        Of the entries.
    columns, rows
        Columns that an index holds, with crcs, and the entries' rows there.

    Raises
    ------
    IIDFormatError
        If one is damaged, or the index was made for other bytes; names it.
    """
    from iid_dask import kernels

    lut = reader.lut[keys]
    begin, lengths = (lut[f"segment_{what}"].astype(np.int64) for what in ("offset", "length"))
    data, places = reader.read_bits(begin, lengths)
    first = columns.first_region[rows].astype(np.int64)
    counts = columns.first_region[rows.astype(np.int64) + 1] - first
    owners, regions = np.repeat(np.arange(len(keys)), counts), spread(first, counts)
    bits = places[owners] + columns.region_bits[regions] - begin[owners]
    crcs = np.empty(len(keys), np.uint32)
    kernels.crc32s(data, places, places + lengths, crcs)
    agree = _segment_heads_agree(data, places, keys, columns.boxes[rows], columns.areas[rows])
    if columns.crcs is not None:
        agree &= crcs == columns.crcs[rows]
    agree[owners[~_region_heads_agree(data, bits, columns.region_boxes[regions])]] = False
    for key in keys[~agree].tolist():
        reader.segment_bytes(key)  # raises, and says what the index tells instead
        raise changing(reader.name, key)
    return SegmentBytes(data, owners, regions, bits)


def changing(name: str, key: int) -> IIDFormatError:
    """Return the error for bytes that were damaged, and at a second look are not."""
    return IIDFormatError(name, "segments", key, None, "bytes that change between two reads", "the same bytes")


def _segment_heads_agree(
    data: np.ndarray, places: np.ndarray, keys: np.ndarray, boxes: np.ndarray, areas: np.ndarray
) -> np.ndarray:
    """Whether the segments at some places of ``data`` begin as an index says; bool, shape (n,)."""
    heads = data[places[:, None] + np.arange(SEGMENT_HEAD.itemsize)].view(SEGMENT_HEAD)[:, 0]
    return (heads["key"] == keys) & (heads["area"] == areas) & np.all(heads["bbox"] == boxes, axis=1)


def _region_heads_agree(data: np.ndarray, starts: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether before the bits of some regions stands what an index says; bool, shape (m,)."""
    places = starts[:, None] + np.arange(-REGION_HEAD.itemsize, 0)
    heads = data[places].view(REGION_HEAD)[:, 0]
    lengths = region_lengths(boxes) + REGION_HEAD.itemsize
    return (heads["length"] == lengths) & np.all(heads["bbox"] == boxes, axis=1)


def find_damaged(
    columns: SegmentColumns,
    rows: np.ndarray,
    keys: np.ndarray,
    regions: np.ndarray,
    data: np.ndarray,
    places: np.ndarray,
) -> int:
    """Compare whole segments with the checksums of an index, and the boxes of regions.

    Parameters
    ----------
    columns
    rows : structured array, shape (n,)
        Of the lut.
    keys, regions : integer arrays, shape (n,)
        A segment each, and the one of its regions that is wanted.
    data : uint8 array
    places : int64 array, shape (n,)
        Where each segment begins in ``data``.

    Returns
    -------
    int
        The first that differs, or -1.
    """
    from iid_dask import kernels

    if columns.crcs is None or not len(keys):
        return -1
    starts = columns.region_bits[regions].astype(np.int64) - rows["segment_offset"] - REGION_HEAD.itemsize
    lengths, boxes = rows["segment_length"].astype(np.int64), columns.region_boxes[regions]
    return int(kernels.damaged(data, places, lengths, columns.crcs[keys], places + starts, boxes))
