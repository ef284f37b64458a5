"""Columns of entries to the bytes of a file: what `IIDWriter` writes, without a step of Python for each entry."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.cutting import ranges
from iid_dask.errors import IIDLimitError
from iid_dask.format.columns import Names, Segments
from iid_dask.format.layout import (
    IID_HEAD,
    INDEX_REGION,
    INDEX_SEGMENT,
    INDEX_TRAILER,
    MAX_SIDE,
    SEGMENT_HEAD,
)
from iid_dask.format.metadata import encode_own_metadata
from iid_dask.format.plan import WAY_OUT, check_count, check_group_names, encode_groups, place
from iid_dask.format.segments import SegmentColumns, index_bytes, place_bits
from iid_dask.format.target import atomic_write

BATCH = 8 * 2**20
"""Bytes of segments encoded at once; a larger segment is a batch of its own."""


@dataclass(frozen=True, eq=False)
class Head:
    """All of a file but its segments section, planned.

    Attributes
    ----------
    header : structured array, shape (1,)
    lut : structured array, shape (n,)
    iids, meta, groups : bytes
    """

    header: np.ndarray
    lut: np.ndarray
    iids: bytes
    meta: bytes
    groups: bytes

    @property
    def segments_offset(self) -> int:
        """Byte of the file where the segments section begins."""
        return int(self.header["segments_offset"][0])

    @property
    def nbytes(self) -> int:
        """Of the file without an index."""
        return self.segments_offset + int(self.header["segments_length"][0])

    def tobytes(self) -> bytes:
        """Return what stands before the segments section."""
        return b"".join((self.header.tobytes(), self.lut.tobytes(), self.iids, self.meta, self.groups))

    @staticmethod
    def index_nbytes(columns: SegmentColumns) -> int:
        """Return the bytes that the index of these segments takes."""
        rows = len(columns.areas) * INDEX_SEGMENT.itemsize + len(columns.region_bits) * INDEX_REGION.itemsize
        return rows + INDEX_TRAILER.itemsize

    def index(self, columns: SegmentColumns, segment_crcs: np.ndarray) -> bytes:
        """Return the index that stands behind the segments section.

        Parameters
        ----------
        columns
            Of all segments.
        segment_crcs : uint32 array, shape (n,)
            crc32 of each segment's bytes.
        """
        crcs = {name: zlib.crc32(getattr(self, name)) for name in ("iids", "meta", "groups")}
        return index_bytes(self.nbytes, self.header.tobytes() + self.lut.tobytes(), crcs, columns, segment_crcs)


def plan_head(
    path: str,
    lengths: np.ndarray,
    names: Names,
    groups: Mapping[str, Sequence[int] | np.ndarray],
    metadata: Mapping[str, Any],
) -> Head:
    """Place every section and entry of a canonical file; pure.

    Parameters
    ----------
    path
        Of the file, for errors.
    lengths : int64 array, shape (n,)
        Bytes of each segment, its head included.
    names
        Of the entries.
    groups
        Name -> keys, in any order, each once or more.
    metadata
        What JSON can hold.

    Raises
    ------
    IIDLimitError
        If a section, an offset or the number of entries passes the format's limits.
    KeyError
        For a key in a group that is no entry's.
    ValueError, TypeError
        For metadata that JSON cannot hold, and names of groups that are no text.

    Examples
    --------
    >>> head = plan_head("two.iid", np.array([29, 16]), Names.of([b"", b""], [b"1", b"2"]), {}, {})
    >>> head.segments_offset, head.nbytes
    (122, 167)
    """
    n = len(names)
    if len(lengths) != n:
        raise ValueError(f"{path}: {len(lengths)} segments and {n} names, expected as many")
    check_count(path, n)
    sizes = names.stops - names.starts

    def is_blank(key: int) -> bool:
        return bool(sizes[key] == 0 and lengths[key] == SEGMENT_HEAD.itemsize)

    meta = encode_own_metadata(path, n, metadata, (), is_blank)
    group_bytes = encode_groups({name: _group_keys(name, keys, n) for name, keys in groups.items()})
    iids = sizes + IID_HEAD.itemsize
    header, lut = place(path, iids, np.asarray(lengths, np.int64), len(meta), len(group_bytes))
    return Head(header, lut, _encode_names(names, int(iids.sum())), meta, group_bytes)


def _group_keys(name: str, keys: Sequence[int] | np.ndarray, entries: int) -> np.ndarray:
    check_group_names([name])
    found = np.asarray(keys, np.int64)
    wrong = found[(found < 0) | (found >= entries)]
    if len(wrong):
        raise KeyError(f"group {name!r}: no entry {wrong[0]} among {entries}")
    return found


def _encode_names(names: Names, nbytes: int) -> bytes:
    from iid_dask import kernels

    out = np.empty(nbytes, np.uint8)
    kernels.lay_names(names.text, names.starts, names.middles, names.stops, out)
    return out.tobytes()


def encode_segments(segments: Segments, first_key: int, out: np.ndarray) -> None:
    """Write segments as they stand in a file's segments section.

    Parameters
    ----------
    segments
        Boxes within 0 … 65,535; see `Segments.part` for some of many.
    first_key
        Key of the first; the others follow.
    out : uint8 array, shape (segments.lengths.sum(),)
        Filled in.

    Examples
    --------
    >>> one = np.array([[2, 3, 4, 5]])
    >>> square = Segments(one, np.array([4]), np.array([0, 1]), one, np.array([0]), np.array([0xF0] + [0] * 16, "u1"))
    >>> out = np.empty(29, np.uint8)
    >>> encode_segments(square, 7, out)
    >>> out.tobytes().hex(" ", -4)
    '07000000 02000300 04000500 04000000 0d000000 02000300 04000500 f0'
    """
    from iid_dask import kernels

    kernels.lay_segments(
        first_key,
        segments.boxes,
        segments.areas,
        segments.first_region,
        segments.region_boxes,
        segments.region_bits,
        segments.data,
        out,
    )


def write_file(
    path: str | os.PathLike[str],
    segments: Segments,
    names: Names,
    *,
    groups: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
    index: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Write one canonical file of segments in memory; see `write_parts`."""
    parts = (segments.part(start, stop) for start, stop in ranges(segments.lengths, BATCH))
    return write_parts(
        path, segments, parts, names, groups=groups, metadata=metadata, index=index, storage_options=storage_options
    )


def write_parts(
    path: str | os.PathLike[str],
    planned: Segments,
    parts: Iterable[Segments],
    names: Names,
    *,
    groups: Mapping[str, Sequence[int] | np.ndarray] | None = None,
    metadata: Mapping[str, Any] | None = None,
    index: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Write one canonical file, whole or not at all, and return its bytes.

    The bytes are those that `IIDWriter` writes for the same entries.

    Parameters
    ----------
    path
        Or URL; what is there is replaced.
    planned
        All segments, whose bits are not looked at.
    parts
        The same, with their bits, some at a time.
    names
        Of the entries, in the order of their keys.
    groups
        Name -> keys, in the order of the file.
    metadata
        What JSON can hold.
    index
        Put the index behind the last section.
    storage_options
        For the fsspec file system of a URL.

    Raises
    ------
    IIDLimitError
        If the format cannot store it; nothing was written.
    OSError
        With errno, and path or URL; what stood there still does.
    """
    target = os.fspath(path)
    over = np.flatnonzero((planned.boxes < 0).any(axis=1) | (planned.boxes > MAX_SIDE).any(axis=1))
    if len(over):
        raise IIDLimitError(
            f"{target}: entry {over[0]}: box {tuple(planned.boxes[over[0]].tolist())} leaves 0 … {MAX_SIDE}, the "
            f"format's 16 bits; {WAY_OUT}"
        )
    head = plan_head(target, planned.lengths, names, groups or {}, metadata or {})
    crcs = np.zeros(len(planned), np.uint32)
    with atomic_write(target, storage_options) as file:
        file.write(head.tobytes())
        key = 0
        for part in parts:
            file.write(_encoded(part, key, crcs[key : key + len(part)] if index else crcs[:0]))
            key += len(part)
        tail = head.index(stored_columns(planned, head.lut), crcs) if index else b""
        file.write(tail)
    return head.nbytes + len(tail)


def _encoded(segments: Segments, first_key: int, crcs: np.ndarray) -> memoryview:
    """Return segments as `encode_segments` writes them; their crc32s into ``crcs``, unless it is empty."""
    from iid_dask import kernels

    ends = np.cumsum(segments.lengths)
    out = np.empty(int(ends[-1]), np.uint8)
    encode_segments(segments, first_key, out)
    if len(crcs):
        kernels.crc32s(out, ends - segments.lengths, ends, crcs)
    return out.data


def stored_columns(segments: Segments, lut: np.ndarray) -> SegmentColumns:
    """Return columns as a reader would make them of a file.

    Parameters
    ----------
    segments
        All of the file's; their mask bits are not looked at.
    lut : structured array, shape (n,)
        Of the file, as `plan_head` plans it.
    """
    return SegmentColumns(
        segments.boxes.astype(np.uint16),
        segments.areas.astype(np.uint32),
        segments.first_region.astype(np.uint32),
        segments.region_boxes.astype(np.uint16),
        place_bits(lut, segments.first_region, segments.region_boxes).astype(np.uint32),
    )
