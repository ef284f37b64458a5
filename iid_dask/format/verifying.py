"""Segments that were read, against what an index says of them."""

from __future__ import annotations

import zlib

import numpy as np

from iid_dask.errors import IIDFormatError
from iid_dask.format.layout import INDEX_SEGMENT, REGION_HEAD, SEGMENT_HEAD
from iid_dask.format.sections import crc_defect
from iid_dask.format.segments import SegmentColumns, region_lengths


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
    head = np.array([(key, columns.boxes[key], columns.areas[key])], SEGMENT_HEAD)
    if not data.startswith(head.tobytes()):
        return False
    boxes = columns.region_boxes[int(columns.first_region[key]) : int(columns.first_region[key + 1])]
    if not len(boxes):
        return True
    wanted = np.empty(len(boxes), REGION_HEAD)
    wanted["length"], wanted["bbox"] = region_lengths(boxes) + REGION_HEAD.itemsize, boxes
    stops = SEGMENT_HEAD.itemsize + np.cumsum(wanted["length"], dtype=np.int64)
    starts = stops - wanted["length"]
    found = np.frombuffer(data, np.uint8)[starts[:, None] + np.arange(REGION_HEAD.itemsize)]
    return bool(np.array_equal(found.view(REGION_HEAD)[:, 0], wanted))


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
