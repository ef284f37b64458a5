"""Where each field lies: one little-endian dtype a block, shared by reader and writer, and the limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SECTIONS = ("lut", "iids", "meta", "groups", "segments")
"""Sections in the order of the header and of canonical files."""

BOX = ("min_row", "min_col", "max_row", "max_col")

HEADER = np.dtype(
    [("version", "<u4"), ("rformat", "<u4")] + [(f"{s}_{f}", "<u4") for s in SECTIONS for f in ("offset", "length")]
)
LUT = np.dtype(
    [
        ("key", "<u4"),
        ("iid_offset", "<u4"),
        ("iid_length", "<u4"),
        ("segment_offset", "<u4"),
        ("segment_length", "<u4"),
    ]
)
IID_HEAD = np.dtype([("key", "<u4"), ("domain_length", "<u4"), ("address_length", "<u4")])
SEGMENT_HEAD = np.dtype([("key", "<u4"), ("bbox", "<u2", 4), ("area", "<u4")])
REGION_HEAD = np.dtype([("length", "<u4"), ("bbox", "<u2", 4)])

INDEX_SEGMENT = np.dtype([("bbox", "<u2", 4), ("area", "<u4"), ("first_region", "<u4"), ("crc", "<u4")])
INDEX_REGION = np.dtype([("bbox", "<u2", 4), ("bits", "<u4")])
INDEX_TRAILER = np.dtype(
    [
        ("entries", "<u4"),
        ("regions", "<u4"),
        ("offset", "<u8"),
        ("rows_crc", "<u4"),
        ("lut_crc", "<u4"),
        ("iids_crc", "<u4"),
        ("meta_crc", "<u4"),
        ("groups_crc", "<u4"),
        ("version", "<u4"),
        ("reserved", "<u4"),
        ("magic", "S8"),
    ]
)
INDEX_MAGIC = b"IIDINDEX"
INDEX_VERSION = 1

MAX_SIDE = 65_535
"""Rows or columns of an image: boxes are half-open and 16 bits wide."""

MAX_LENGTH = 2**32 - 1
"""Bytes of a section and largest offset: 32 bits."""

MAX_ENTRIES = MAX_LENGTH // LUT.itemsize
"""Entries of one file: the lut's length is 32 bits wide."""

SPARE = 16
"""Bytes behind mask bits in memory, so that kernels may read whole words."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use on behalf of a file that may be hostile.

    Work that the file's real size backs needs no limit; these bound the rest.

    Attributes
    ----------
    max_decoded_bytes : int
        Largest bool array that ``Entry.mask()`` makes. Windows and lazy arrays are the caller's own size
        and do not count.
    max_meta : int
        Bytes of the metadata section and of the groups' JSON.
    max_json_depth : int
        Nesting of their JSON.
    """

    max_decoded_bytes: int = 2**30
    max_meta: int = 64 * 2**20
    max_json_depth: int = 64


def packed_size(height: int, width: int) -> int:
    """Bytes of a region's mask bits: rows follow one another without padding.

    Examples
    --------
    >>> packed_size(3, 3)
    2
    """
    return (height * width + 7) // 8
