"""Full validation: what opening does not look at because it costs a pass over every byte."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from iid_dask.cutting import ranges
from iid_dask.errors import IIDFormatError
from iid_dask.format.layout import HEADER, INDEX_SEGMENT, LUT, Limits
from iid_dask.format.sections import brief, crc_defect, header_defects, lut_defects, parse_groups, parse_metadata
from iid_dask.format.segments import (
    BLOCK,
    Index,
    SegmentColumns,
    read_index,
    region_lengths,
    scan_defects,
    scan_segments,
)
from iid_dask.format.source import Source, gather

if TYPE_CHECKING:
    from iid_dask.format.reader import RecordReader

MAX_DEFECTS = 10_000
"""Defects that one check lists."""


def file_defects(source: Source, limits: Limits | None = None) -> list[IIDFormatError]:
    """Return the defects of a file, also of one that cannot be opened; at most `MAX_DEFECTS`.

    Each section is looked at as far as the ones before it allow: a broken lut hides its segments, but not the
    metadata.
    """
    from iid_dask.format.reader import RecordReader

    found: list[IIDFormatError] = []
    head = source.read(0, min(source.size, HEADER.itemsize))
    if len(head) == HEADER.itemsize:
        header = np.frombuffer(head, HEADER)[0]
        found.extend(header_defects(source.name, header, source.size))
        if not found:
            found.extend(islice(_table_defects(source, header, limits or Limits()), MAX_DEFECTS))
    if found:
        return found
    try:
        return RecordReader(source, limits=limits).check()
    except IIDFormatError as error:
        found.append(error)
    try:
        more = RecordReader(source, limits=limits, verify=False).check()
    except IIDFormatError:
        return found  # the same error again: it was no checksum's
    said = {defect.args[:4] for defect in found}
    return found + [defect for defect in more if defect.args[:4] not in said]


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


def content_defects(reader: RecordReader) -> Iterator[IIDFormatError]:
    """Yield every defect of names, segments and checksums of a file that opens."""
    lut, name = reader.lut, reader.name
    held = np.flatnonzero(lut["iid_length"] > 0)
    for some in np.array_split(held, max(1, len(held) // 10_000)):
        try:
            reader.names(some)
        except IIDFormatError:
            yield from _name_defects(reader, some)
    base = int(reader.header["segments_offset"])
    scan = scan_segments(reader.source, base, lut)
    yield from scan_defects(name, base, lut, scan)
    broken = scan.defects[:, 0] != 0
    # Not the reader's columns: without an index they come from the segments, and raise what is listed here.
    index = reader.index
    told = None if index is None else read_index(reader.source, index, lut)
    if index is not None and told is not None:
        yield from _index_defects(name, index, told, scan.columns, broken)
        yield from _section_crc_defects(reader, index)
    crcs = None if told is None else told.crcs
    keys = np.flatnonzero(~broken & (lut["segment_length"] > 0))
    offsets, lengths = (lut[field][keys].astype(np.int64) for field in ("segment_offset", "segment_length"))
    for start, stop in ranges(lengths, BLOCK):  # many at a time: each is a request where files are far away
        data, places = gather(reader.source, base + offsets[start:stop], lengths[start:stop])
        for key, at, length in zip(keys[start:stop].tolist(), places, lengths[start:stop], strict=True):
            yield from _pixel_defects(reader, base, key, data[at : at + length], scan.columns, crcs)


def _section_crc_defects(reader: RecordReader, index: Index) -> Iterator[IIDFormatError]:
    for section, wanted in index.section_crcs.items():
        offset = int(reader.header[f"{section}_offset"])
        crc = zlib.crc32(reader.source.read(offset, int(reader.header[f"{section}_length"])))
        if crc != wanted:
            yield crc_defect(reader.name, section, None, offset, crc, wanted)


def _index_defects(
    name: str, index: Index, told: SegmentColumns, columns: SegmentColumns, broken: np.ndarray
) -> Iterator[IIDFormatError]:
    """Compare what an index tells with the heads of the segments."""

    def row(of: SegmentColumns, key: int) -> tuple[list[int], int, list[list[int]]]:
        regions = of.region_boxes[int(of.first_region[key]) : int(of.first_region[key + 1])]
        return of.boxes[key].tolist(), int(of.areas[key]), regions.tolist()

    same = all(
        np.array_equal(getattr(told, field), getattr(columns, field))
        for field in ("boxes", "areas", "first_region", "region_boxes")
    )
    for key in [] if same else np.flatnonzero(~broken).tolist():
        found, expected = row(told, key), row(columns, key)
        if found != expected:
            at = index.offset + key * INDEX_SEGMENT.itemsize
            yield IIDFormatError(
                name, "index", key, at, f"box, area and regions {brief(found)}", f"{brief(expected)}, as in the segment"
            )


def _name_defects(reader: RecordReader, keys: np.ndarray) -> Iterator[IIDFormatError]:
    for key in keys.tolist():
        try:
            reader.names([key])
        except IIDFormatError as error:
            yield error


def _pixel_defects(
    reader: RecordReader, base: int, key: int, data: np.ndarray, columns: SegmentColumns, crcs: np.ndarray | None
) -> Iterator[IIDFormatError]:
    """Look at the bytes of a segment."""
    from iid_dask import kernels

    start, crc = int(reader.lut[key]["segment_offset"]), zlib.crc32(data.data)
    if crcs is not None and crc != crcs[key]:
        yield crc_defect(reader.name, "segments", key, base + start, crc, int(crcs[key]))
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
                reader.name,
                "segments",
                key,
                base + bits - 8,
                f"a region with no pixel in its {_sides(loose)}",
                "a tight box",
            )
    area = int(columns.areas[key])
    if total != area:
        yield IIDFormatError(
            reader.name, "segments", key, base + start + 12, f"area {area}", f"{total}, the pixels of its regions"
        )


def _sides(loose: int) -> str:
    names = ("first row", "last row", "first column", "last column")
    return ", ".join(name for i, name in enumerate(names) if loose >> i & 1)
