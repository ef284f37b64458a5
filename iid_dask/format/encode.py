"""Columns of entries to the bytes of a file: what `IIDWriter` writes, without a step of Python for each entry."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iid_dask.cutting import ranges, spread
from iid_dask.errors import IIDLimitError
from iid_dask.format.layout import (
    IID_HEAD,
    INDEX_REGION,
    INDEX_SEGMENT,
    INDEX_TRAILER,
    MAX_SIDE,
    REGION_HEAD,
    SEGMENT_HEAD,
    SPARE,
)
from iid_dask.format.metadata import encode_own_metadata
from iid_dask.format.plan import WAY_OUT, check_count, check_group_names, encode_groups, place
from iid_dask.format.segments import SegmentColumns, index_bytes, place_bits, region_lengths
from iid_dask.format.target import atomic_write

BATCH = 8 * 2**20
"""Bytes of segments encoded at once; a larger segment is a batch of its own."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments and their mask bits in memory; those of segment i are ``first_region[i] : first_region[i + 1]``.

    Attributes
    ----------
    boxes : int64 array, shape (n, 4)
        Tight: min_row, min_col, max_row, max_col; zeros for an empty segment.
    areas : int64 array, shape (n,)
        Pixels.
    first_region : int64 array, shape (n + 1,)
    region_boxes : int64 array, shape (m, 4)
        In the same frame as ``boxes``.
    region_bits : int64 array, shape (m,)
        Byte of ``data`` where each region's mask bits begin.
    data : uint8 array
        With `SPARE` bytes at its end.
    """

    boxes: np.ndarray
    areas: np.ndarray
    first_region: np.ndarray
    region_boxes: np.ndarray
    region_bits: np.ndarray
    data: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each segment in a file, its head included; int64, shape (n,)."""
        ends = np.concatenate(([0], np.cumsum(region_lengths(self.region_boxes) + REGION_HEAD.itemsize)))
        return ends[self.first_region[1:]] - ends[self.first_region[:-1]] + SEGMENT_HEAD.itemsize

    def part(self, start: int, stop: int) -> Segments:
        """Return some consecutive segments; their bits are not copied."""
        first, last = int(self.first_region[start]), int(self.first_region[stop])
        return Segments(
            self.boxes[start:stop],
            self.areas[start:stop],
            self.first_region[start : stop + 1] - first,
            self.region_boxes[first:last],
            self.region_bits[first:last],
            self.data,
        )

    def take(self, order: np.ndarray) -> Segments:
        """Return segments in another order; their bits stay where they are."""
        first, counts = self.first_region[:-1][order], np.diff(self.first_region)[order]
        regions = spread(first, counts)
        return Segments(
            self.boxes[order],
            self.areas[order],
            np.concatenate(([0], np.cumsum(counts))),
            self.region_boxes[regions],
            self.region_bits[regions],
            self.data,
        )

    def moved(self, rows: int, cols: int) -> Segments:
        """Return them in another frame; those without pixels too."""
        step = np.array([rows, cols, rows, cols])
        return replace(self, boxes=self.boxes + step, region_boxes=self.region_boxes + step)

    def without_bits(self) -> Segments:
        """Return what a plan needs: all but the bits."""
        return replace(self, region_bits=self.region_bits[:0], data=self.data[:0])

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        """Return the segments of several, one after another."""
        sizes = [max(0, len(part.data) - SPARE) for part in parts]
        regions = [len(part.region_boxes) for part in parts]
        places, firsts = np.cumsum([0, *sizes]).tolist(), np.cumsum([0, *regions]).tolist()
        four, one = np.zeros((0, 4), np.int64), np.zeros(0, np.int64)
        return cls(
            np.concatenate([four, *(part.boxes for part in parts)]),
            np.concatenate([one, *(part.areas for part in parts)]),
            np.concatenate([[0], *(part.first_region[1:] + at for part, at in zip(parts, firsts, strict=False))]),
            np.concatenate([four, *(part.region_boxes for part in parts)]),
            np.concatenate([one, *(part.region_bits + at for part, at in zip(parts, places, strict=False))]),
            np.concatenate(
                [*(part.data[:size] for part, size in zip(parts, sizes, strict=True)), np.zeros(SPARE, np.uint8)]
            ),
        )


@dataclass(frozen=True, eq=False)
class Names:
    """IIDs in one array of bytes.

    Attributes
    ----------
    text : uint8 array
    starts, middles, stops : int64 arrays, shape (n,)
        Domain i is ``text[starts[i]:middles[i]]``, address i ``text[middles[i]:stops[i]]``.

    Examples
    --------
    >>> names = Names.decimal(b"cell", np.array([7, 2**64 - 1], np.uint64))
    >>> names.lists()
    ([b'cell', b'cell'], [b'7', b'18446744073709551615'])
    """

    text: np.ndarray
    starts: np.ndarray
    middles: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, domains: Sequence[bytes], addresses: Sequence[bytes]) -> Names:
        """Lay out pairs of domain and address."""
        parts = [part for pair in zip(domains, addresses, strict=True) for part in pair]
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        text = np.frombuffer(b"".join(parts), np.uint8)
        starts = np.concatenate((np.zeros(min(1, len(ends)), np.int64), ends[1:-1:2]))
        return cls(text, starts, ends[0::2], ends[1::2])

    @classmethod
    def decimal(cls, domain: bytes, numbers: np.ndarray) -> Names:
        """Name entries by numbers in decimal ASCII.

        Parameters
        ----------
        domain
            Of all of them.
        numbers : array of unsigned integers, shape (n,)
        """
        rest = numbers.astype(np.uint64)
        powers = np.array([10**k for k in range(1, 20)], np.uint64)
        digits = np.searchsorted(powers, rest, side="right") + 1
        stops = np.cumsum(digits + len(domain))
        starts, middles = stops - digits - len(domain), stops - digits
        text = np.empty(int(stops[-1]) if len(stops) else 0, np.uint8)
        for i, byte in enumerate(domain):
            text[starts + i] = byte
        ends = stops.copy()
        while len(ends):
            ends -= 1
            rest, digit = np.divmod(rest, np.uint64(10))
            text[ends] = digit.astype(np.uint8) + ord("0")
            more = rest > 0
            ends, rest = ends[more], rest[more]
        return cls(text, starts, middles, stops)

    def lists(self) -> tuple[list[bytes], list[bytes]]:
        """Return domains and addresses."""
        text = self.text.tobytes()
        places = self.starts.tolist(), self.middles.tolist(), self.stops.tolist()
        pairs = [(text[a:b], text[b:c]) for a, b, c in zip(*places, strict=True)]
        return [domain for domain, _ in pairs], [address for _, address in pairs]


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
