"""Full validation: what opening does not look at because it costs a pass over every byte."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask.errors import IIDFormatError
from iid_dask.format.layout import HEADER, LUT, Limits
from iid_dask.format.segments import region_lengths, scan_defects, scan_segments
from iid_dask.format.sections import header_defects, lut_defects, parse_groups, parse_metadata
from iid_dask.format.source import Source

if TYPE_CHECKING:
    from iid_dask.format.reader import IIDReader


def file_defects(source: Source, limits: Limits | None = None) -> list[IIDFormatError]:
    """Return every defect of a file, also of one that cannot be opened.

    Each section is looked at as far as the ones before it allow: a broken lut hides its segments, but not the
    metadata.
    """
    from iid_dask.format.reader import IIDReader

    found: list[IIDFormatError] = []
    head = source.read(0, min(source.size, HEADER.itemsize))
    if len(head) == HEADER.itemsize:
        header = np.frombuffer(head, HEADER)[0]
        found.extend(header_defects(source.name, header, source.size))
        if not found:
            found.extend(_table_defects(source, header, limits or Limits()))
    if found:
        return found
    try:
        return IIDReader(source, limits=limits).check()
    except IIDFormatError as error:
        return [error]


def _table_defects(source: Source, header: np.void, limits: Limits) -> Iterator[IIDFormatError]:
    def section(name: str) -> bytes:
        return source.read(int(header[f"{name}_offset"]), int(header[f"{name}_length"]))

    lut = np.frombuffer(section("lut"), LUT)
    yield from lut_defects(source.name, header, lut)
    try:
        if header["meta_length"] <= limits.max_meta:
            parse_metadata(source.name, header, section("meta"), limits)
    except IIDFormatError as error:
        yield error
    try:
        parse_groups(source.name, header, section("groups"), len(lut), limits)
    except IIDFormatError as error:
        yield error


def content_defects(reader: IIDReader) -> Iterator[IIDFormatError]:
    """Yield every defect of names, segments and checksums of a file that opens."""
    lut, name = reader.lut, reader.name
    held = np.flatnonzero(lut["iid_length"] > 0)
    for some in np.array_split(held, max(1, len(held) // 10_000)):
        try:
            reader.names(some)
        except IIDFormatError:
            yield from _name_defects(reader, some)
    base = int(reader.header["segments_offset"])
    scan = scan_segments(reader._source, base, lut)
    yield from scan_defects(name, base, lut, scan)
    broken = scan.defects[:, 0] != 0
    crcs = reader.columns.crcs if reader.has_index else None
    for key in np.flatnonzero(~broken & (lut["segment_length"] > 0)).tolist():
        yield from _pixel_defects(reader, base, key, scan.columns, crcs)
    if reader.has_index and reader.index is not None:
        data = reader._source.read(int(reader.header["iids_offset"]), int(reader.header["iids_length"]))
        wanted = reader.index.section_crcs["iids"]
        if zlib.crc32(data) != wanted:
            yield IIDFormatError(
                name, "iids", None, int(reader.header["iids_offset"]), f"crc32 {zlib.crc32(data):#010x}", f"{wanted:#010x}"
            )


def _name_defects(reader: IIDReader, keys: np.ndarray) -> Iterator[IIDFormatError]:
    for key in keys.tolist():
        try:
            reader.names([key])
        except IIDFormatError as error:
            yield error


def _pixel_defects(
    reader: IIDReader, base: int, key: int, columns: Any, crcs: np.ndarray | None
) -> Iterator[IIDFormatError]:
    from iid_dask import kernels

    row = reader.lut[key]
    start = int(row["segment_offset"])
    data = np.frombuffer(reader._source.read(base + start, int(row["segment_length"])), np.uint8)
    if crcs is not None and zlib.crc32(data) != crcs[key]:
        yield IIDFormatError(
            reader.name, "segments", key, base + start, f"crc32 {zlib.crc32(data):#010x}", f"{int(crcs[key]):#010x}"
        )
    regions = slice(int(columns.first_region[key]), int(columns.first_region[key + 1]))
    boxes = columns.region_boxes[regions].astype(np.int64)
    sizes = region_lengths(boxes)
    total = 0
    for box, bits, size in zip(boxes, columns.region_bits[regions].tolist(), sizes.tolist(), strict=True):
        count = int((box[2] - box[0]) * (box[3] - box[1]))
        at = bits - start
        packed = data[at : at + size]
        inside = int(kernels.popcount(packed, count))
        if int(kernels.popcount(packed, size * 8)) != inside:
            yield IIDFormatError(
                reader.name, "segments", key, base + bits + size - 1, f"last byte {packed[-1]:#04x}", "zero pad bits"
            )
        total += inside
        loose = int(kernels.loose_sides(packed, int(box[2] - box[0]), int(box[3] - box[1])))
        if loose:
            yield IIDFormatError(
                reader.name, "segments", key, base + bits - 8, f"a region with no pixel in its {_sides(loose)}", "a tight box"
            )
    area = int(columns.areas[key])
    if total != area:
        yield IIDFormatError(
            reader.name, "segments", key, base + start + 12, f"area {area}", f"{total}, the pixels of its regions"
        )


def _sides(loose: int) -> str:
    names = ("first row", "last row", "first column", "last column")
    return ", ".join(name for i, name in enumerate(names) if loose >> i & 1)
