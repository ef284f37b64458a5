"""Every byte's place in a file, before the first is written."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDLimitError
from iid_dask.format.layout import HEADER, IID_HEAD, LUT, MAX_ENTRIES, MAX_LENGTH, SEGMENT_HEAD
from iid_dask.format.metadata import encode_own_metadata
from iid_dask.format.segments import SegmentColumns, index_bytes, place_bits

WAY_OUT = "write several files with origins of their own"


# --- sections ---------------------------------------------------------------------------------------------------


def check_count(path: str, entries: int) -> None:
    """Refuse more entries than the lut holds (IIDLimitError)."""
    if entries > MAX_ENTRIES:
        raise IIDLimitError(f"{path}: {entries} entries, the lut holds at most {MAX_ENTRIES}; {WAY_OUT}")


def place(
    path: str, iids: np.ndarray, segments: np.ndarray, meta_length: int, groups_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the header, one row, and the lut of a canonical file; pure.

    Parameters
    ----------
    path
        Of the file, for errors.
    iids, segments : int64 arrays, shape (n,)
        Bytes of each entry's record in either section.
    meta_length, groups_length
        Bytes of these sections.

    Raises
    ------
    IIDLimitError
        If a section or an offset passes the format's limits.
    """
    iid_ends, segment_ends = np.cumsum(iids), np.cumsum(segments)
    for what, ends in (("iids", iid_ends), ("segments", segment_ends)):
        over = np.flatnonzero(ends > MAX_LENGTH)
        if len(over):
            raise IIDLimitError(
                f"{path}: entry {over[0]} ends at byte {ends[over[0]]} of the {what} section, which holds at most "
                f"{MAX_LENGTH}; {WAY_OUT}"
            )
    lut = np.zeros(len(iids), LUT)
    lut["key"] = np.arange(len(iids))
    lut["iid_offset"], lut["iid_length"] = iid_ends - iids, iids
    lut["segment_offset"], lut["segment_length"] = segment_ends - segments, segments
    lengths = {
        "lut": len(iids) * LUT.itemsize,
        "iids": int(iids.sum()),
        "meta": meta_length,
        "groups": groups_length,
        "segments": int(segments.sum()),
    }
    header = np.zeros(1, HEADER)
    offset = HEADER.itemsize
    for section, length in lengths.items():
        if offset > MAX_LENGTH or length > MAX_LENGTH:
            raise IIDLimitError(
                f"{path}: {section} section of {length} bytes at byte {offset}: the format's offsets and lengths "
                f"end at {MAX_LENGTH}; {WAY_OUT}"
            )
        header[f"{section}_offset"], header[f"{section}_length"] = offset, length
        offset += length
    return header, lut


def encode_groups(groups: Mapping[str, Sequence[int] | np.ndarray]) -> bytes:
    """Return the groups section: JSON with its length before it, then each group's keys, ascending."""
    rows, parts, offset = [], [], 0
    for name, keys in groups.items():
        data = np.unique(np.array(keys, "<u4")).tobytes()
        rows.append({"name": name, "offset": offset, "length": len(data)})
        parts.append(data)
        offset += len(data)
    text = json.dumps(rows).encode("ascii")
    return len(text).to_bytes(4, "little") + text + b"".join(parts)


def check_group_names(groups: Iterable[str]) -> list[str]:
    """Return names of groups, each once; a single text is one name."""
    names = [groups] if isinstance(groups, str) else list(dict.fromkeys(groups))
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"group name {name!r} is {type(name).__name__}, expected str")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"group name {name!r} has no UTF-8 form") from error
    return names


# --- entries ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """An entry as it will be stored; ``segment()`` gives the bytes behind the segment's head."""

    domain: bytes
    address: bytes
    bbox: BBox
    area: int
    region_boxes: np.ndarray
    length: int
    segment: Callable[[], bytes]


REMOVED = Planned(b"", b"", BBox(0, 0, 0, 0), 0, np.zeros((0, 4), np.uint16), 0, lambda: b"")


@dataclass(frozen=True)
class FilePlan:
    """Every byte's place, before the first is written."""

    header: np.ndarray
    lut: np.ndarray
    entries: Sequence[Planned]
    meta: bytes
    groups: bytes

    def write(self, file: BinaryIO, *, index: bool) -> None:
        """Write the file from its first byte to its last."""
        head = self.header.tobytes() + self.lut.tobytes()
        file.write(head)
        crcs = {"iids": 0, "meta": zlib.crc32(self.meta), "groups": zlib.crc32(self.groups)}
        for key, entry in enumerate(self.entries):
            iid_head = np.array([(key, len(entry.domain), len(entry.address))], IID_HEAD).tobytes()
            record = iid_head + entry.domain + entry.address
            crcs["iids"] = zlib.crc32(record, crcs["iids"])
            file.write(record)
        file.write(self.meta)
        file.write(self.groups)
        segment_crcs = np.zeros(len(self.entries), np.uint32)
        for key, entry in enumerate(self.entries):
            body = entry.segment()
            if len(body) != entry.length:
                raise RuntimeError(f"entry {key}: {len(body)} bytes of regions, planned {entry.length}")
            segment = np.array([(key, tuple(entry.bbox), entry.area)], SEGMENT_HEAD).tobytes() + body
            segment_crcs[key] = zlib.crc32(segment)
            file.write(segment)
        if index:
            end = int(self.header["segments_offset"][0]) + int(self.header["segments_length"][0])
            file.write(index_bytes(end, head, crcs, self.columns(), segment_crcs))

    def columns(self) -> SegmentColumns:
        """Columns of the entries, as a reader would make them."""
        counts = [len(entry.region_boxes) for entry in self.entries]
        region_boxes = np.concatenate([*(e.region_boxes for e in self.entries), np.zeros((0, 4), np.uint16)])
        first = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        bits = place_bits(self.lut, first, region_boxes)
        boxes = np.array([tuple(entry.bbox) for entry in self.entries], np.uint16).reshape(-1, 4)
        areas = np.array([entry.area for entry in self.entries], np.uint32)
        return SegmentColumns(
            boxes, areas, first.astype(np.uint32), region_boxes.astype(np.uint16), bits.astype(np.uint32)
        )


def plan_file(
    path: str,
    entries: Sequence[Planned],
    groups: Mapping[str, Sequence[int]],
    metadata: Mapping[str, Any],
    removed: Sequence[int] = (),
) -> FilePlan:
    """Place every section and entry; pure.

    Raises
    ------
    IIDLimitError
        If a section, an offset or the number of entries passes the format's limits.
    """
    check_count(path, len(entries))

    def is_blank(key: int) -> bool:
        entry = entries[key]
        return not (entry.domain or entry.address or entry.length)

    meta = encode_own_metadata(path, len(entries), metadata, removed, is_blank)
    group_bytes = encode_groups(groups)
    iids = np.array([IID_HEAD.itemsize + len(e.domain) + len(e.address) for e in entries], np.int64)
    segments = np.array([SEGMENT_HEAD.itemsize + e.length for e in entries], np.int64)
    header, lut = place(path, iids, segments, len(meta), len(group_bytes))
    return FilePlan(header, lut, entries, meta, group_bytes)
