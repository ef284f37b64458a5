"""Writing one ``.iid`` file: gather, plan every offset, then write once, whole."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDLimitError
from iid_dask.format.entry import Entry, Region
from iid_dask.format.layout import (
    HEADER,
    IID_HEAD,
    LUT,
    MAX_ENTRIES,
    MAX_LENGTH,
    MAX_SIDE,
    REGION_HEAD,
    SEGMENT_HEAD,
    Limits,
    packed_size,
)
from iid_dask.format.reader import RecordReader, open_records
from iid_dask.format.sections import nesting
from iid_dask.format.segments import SegmentColumns, index_bytes
from iid_dask.format.target import BUFFER, atomic_write

WAY_OUT = "write several files with origins of their own"


def regions_of(mask: np.ndarray, bbox: BBox) -> list[Region]:
    """Split a mask into regions as canonical files hold them.

    Parameters
    ----------
    mask : array, shape ``bbox.shape``
        Anything not zero is a pixel.
    bbox
        Where the mask lies, image pixels.

    Returns
    -------
    list of Region
        The 8-connected components, each with its tight box, in raster order of their first pixel.

    Examples
    --------
    >>> mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
    >>> [tuple(region.bbox) for region in regions_of(mask, BBox(10, 20, 12, 24))]
    [(10, 20, 12, 22), (10, 23, 11, 24)]
    """
    from iid_dask import kernels

    mask = np.ascontiguousarray(mask, dtype=bool)
    n = kernels.count_runs(mask)
    rows, begins, ends, labels = np.empty((4, n), np.int64)
    found = kernels.label_runs(mask, rows, begins, ends, labels)
    boxes, areas = np.zeros((found, 4), np.int64), np.zeros(found, np.int64)
    kernels.run_boxes(rows, begins, ends, labels, boxes, areas)
    sizes = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) + 7) // 8
    starts = np.cumsum(sizes) - sizes
    packed = np.zeros(int(sizes.sum()), np.uint8)
    kernels.pack_runs(rows, begins, ends, labels, boxes, starts, packed)
    top, left = bbox.min_row, bbox.min_col
    return [
        Region(BBox(box[0] + top, box[1] + left, box[2] + top, box[3] + left), packed[at : at + size].tobytes())
        for box, at, size in zip(boxes.tolist(), starts.tolist(), sizes.tolist(), strict=True)
    ]


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


class IIDWriter:
    """Gather entries, then write them as one canonical ``.iid`` file.

    Nothing is written before `close`: offsets are planned and limits checked first. Used as a context manager,
    the file appears when the block ends without an error; else what stood at ``path`` still does.

    Parameters
    ----------
    path
        Of the file to write; a file there is replaced.
    metadata : mapping, optional
        What JSON can hold.
    index
        Put the index behind the last section. Programs that do not know it do not see it.

    Examples
    --------
    >>> import iid_dask, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "two.iid")
    >>> with iid_dask.IIDWriter(path, metadata={"image": {"height": 8, "width": 8}}) as w:
    ...     w.add(b"cell", b"1", (0, 0, 2, 2), np.ones((2, 2)), groups=["small"])
    ...     w.add(b"cell", b"2", (1, 1, 8, 8), np.ones((7, 7)))
    0
    1
    >>> with iid_dask.open(path) as f:
    ...     [entry.area for entry in f.values()], f.groups["small"].tolist()
    ([4, 49], [0])
    """

    def __init__(
        self, path: str | os.PathLike[str], *, metadata: Mapping[str, Any] | None = None, index: bool = True
    ) -> None:
        self.path = os.fspath(path)
        self.index = index
        self.metadata = dict(metadata or {})
        self._entries: list[Planned] = []
        self._removed: list[int] = []
        self._groups: dict[str, list[int]] = {}
        self._closed = False
        encode_metadata(self.metadata, self.path)

    def __enter__(self) -> IIDWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._closed = True

    def add(
        self,
        domain: bytes,
        address: bytes,
        bbox: BBox | Sequence[int],
        mask: np.ndarray | None = None,
        *,
        regions: Iterable[Region] | None = None,
        groups: Iterable[str] = (),
    ) -> int:
        """Add an entry and return its key.

        Parameters
        ----------
        domain, address : bytes
            The IID; either may be empty.
        bbox
            Box of the segment, image pixels. It is kept, also where it is loose.
        mask : array, shape ``bbox.shape``, any dtype
            Anything not zero is a pixel.
        regions
            Instead of a mask: ready regions inside ``bbox``. They are stored as they are; canonical files hold
            connected components in raster order, as `iid_dask.regions_of` makes them.
        groups
            Names of groups to put the entry into.

        Raises
        ------
        TypeError
            Names that are not bytes, neither or both of mask and regions.
        ValueError
            A mask that does not fit its box.
        IIDLimitError
            A box outside 0 … 65,535.
        """
        key = len(self._entries)
        box = self._check_head(key, domain, address, bbox)
        if (mask is None) == (regions is None):
            raise TypeError(f"entry {key}: give either mask= or regions=")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != box.shape:
                raise ValueError(f"entry {key}: mask of shape {mask.shape}, expected {box.shape} as box {tuple(box)}")
            regions = regions_of(mask, box)
        return self._append(_plan_regions(key, domain, address, box, list(regions or ())), groups)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path}: the writer is closed")

    def _append(self, planned: Planned, groups: Iterable[str]) -> int:
        self._check_open()
        key, names = len(self._entries), check_group_names(groups)
        self._entries.append(planned)
        for name in names:
            self._groups.setdefault(name, []).append(key)
        return key

    def add_entry(self, entry: Entry, *, groups: Iterable[str] | None = None) -> int:
        """Add an entry of an open file, its regions as they are stored there, and return its new key.

        Parameters
        ----------
        entry
            Its pixels are copied when the file is written, so its file must stay open until then.
        groups
            Default: the groups it has there.
        """
        domains, addresses = entry.reader.names([entry.key])
        return self._add_stored(entry, domains[0], addresses[0], entry.groups if groups is None else groups)

    def _add_stored(self, entry: Entry, domain: bytes, address: bytes, groups: Iterable[str]) -> int:
        reader, old = entry.reader, entry.key
        columns, rows = reader.segment_columns(np.array([old]))
        row = int(rows[0])
        first, stop = int(columns.first_region[row]), int(columns.first_region[row + 1])
        head = SEGMENT_HEAD.itemsize
        planned = Planned(
            domain,
            address,
            BBox.of(columns.boxes[row].tolist()),
            int(columns.areas[row]),
            columns.region_boxes[first:stop],
            int(reader.lut["segment_length"][old]) - head,
            lambda: reader.segment_bytes(old)[head:],
        )
        return self._append(planned, groups)

    def add_removed(self) -> int:
        """Add a removed entry, which keeps its key and appears in no table, and return the key."""
        self._check_open()
        key = len(self._entries)
        self._entries.append(REMOVED)
        self._removed.append(key)
        return key

    def add_group(self, name: str, keys: Iterable[int] = ()) -> None:
        """Make a group, or add entries to it; groups are stored in order of first use.

        Raises
        ------
        KeyError
            A key that was not added yet, or is removed.
        """
        self._check_open()
        (name,) = check_group_names([name])
        found = [int(key) for key in keys]
        gone = set(self._removed)
        for key in found:
            if not 0 <= key < len(self._entries) or key in gone:
                raise KeyError(f"group {name!r}: no entry {key} was added")
        self._groups.setdefault(name, []).extend(found)

    def copy(self, reader: RecordReader) -> None:
        """Add everything of an open file: entries, removed entries, groups."""
        offset = len(self._entries)
        _ = reader.columns  # one pass for all, where there is no index
        names = iter(zip(*reader.names(), strict=True))
        for name in reader.groups:
            self.add_group(name)
        for key, alive in enumerate(reader.live.tolist()):
            if alive:
                self._add_stored(Entry(reader, key), *next(names), groups=())
            else:
                self.add_removed()
        for name, keys in reader.groups.items():
            self.add_group(name, (keys.astype(np.int64) + offset).tolist())

    def close(self) -> None:
        """Plan, check the limits, and write the file.

        Raises
        ------
        IIDLimitError
            If the format cannot store it; nothing was written.
        OSError
            With errno and path; what stood at the path still does.
        """
        if self._closed:
            return
        self._closed = True
        plan = plan_file(self.path, self._entries, self._groups, self.metadata, self._removed)
        with atomic_write(self.path) as file:
            plan.write(file, index=self.index)

    def _check_head(self, key: int, domain: object, address: object, bbox: BBox | Sequence[int]) -> BBox:
        self._check_open()
        for what, value in (("domain", domain), ("address", address)):
            if not isinstance(value, bytes):
                raise TypeError(f"entry {key}: {what} is {type(value).__name__}, expected bytes: encode text yourself")
        box = BBox.of(bbox)
        if box.min_row < 0 or box.min_col < 0 or box.max_row > MAX_SIDE or box.max_col > MAX_SIDE:
            raise IIDLimitError(
                f"{self.path}: entry {key}: box {tuple(box)} leaves 0 … {MAX_SIDE}, the format's 16 bits; {WAY_OUT}"
            )
        return box


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


def _plan_regions(key: int, domain: bytes, address: bytes, box: BBox, regions: list[Region]) -> Planned:
    from iid_dask import kernels

    boxes = np.array([tuple(region.bbox) for region in regions], np.int64).reshape(-1, 4)
    area = 0
    for region in regions:
        if region.bbox != region.bbox.intersection(box) or not region.bbox.height or not region.bbox.width:
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} is empty or leaves its box {tuple(box)}")
        wanted = packed_size(*region.bbox.shape)
        if len(region.bits) != wanted:
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} of {len(region.bits)} bytes, expected {wanted}")
        bits = np.frombuffer(region.bits, np.uint8)
        pixels = int(kernels.popcount(bits, region.bbox.height * region.bbox.width))
        if int(kernels.popcount(bits, len(bits) * 8)) != pixels:
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} has pad bits that are not zero")
        if kernels.loose_sides(bits, *region.bbox.shape):
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} is no tight box of its pixels")
        area += pixels
    if area > box.height * box.width:
        raise ValueError(f"entry {key}: regions of {area} pixels in box {tuple(box)}: some overlap, expected pieces")

    def segment() -> bytes:
        parts = []
        for region in regions:
            head = np.array([(REGION_HEAD.itemsize + len(region.bits), tuple(region.bbox))], REGION_HEAD)
            parts += [head.tobytes(), region.bits]
        return b"".join(parts)

    length = sum(REGION_HEAD.itemsize + len(region.bits) for region in regions)
    return Planned(domain, address, box, area, boxes.astype(np.uint16), length, segment)


def encode_metadata(metadata: Mapping[str, Any], path: str = "metadata") -> bytes:
    """Return metadata as the format stores it: JSON as ``json.dumps`` writes it by default.

    Raises
    ------
    TypeError, ValueError
        For what JSON cannot hold, NaN and infinities among it, and keys that are not text.
    IIDLimitError
        For more than readers accept by default.
    """
    limits = Limits()
    try:
        text = json.dumps(metadata, allow_nan=False)
        depth = nesting(text.encode("ascii"))
        if len(text) > limits.max_meta or depth > limits.max_json_depth:
            # Readers refuse it by default, and the file with it.
            raise IIDLimitError(
                f"{path}: metadata of {len(text)} bytes of JSON nested {depth} deep, expected at most "
                f"{limits.max_meta} and {limits.max_json_depth}; keep it in a file of its own"
            )
        if not _has_text_keys(metadata):
            raise ValueError("a key is not text")
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: metadata holds half of a surrogate pair, which has no UTF-8 form") from error
    except IIDLimitError:
        raise
    except TypeError as error:
        raise TypeError(f"{path}: metadata cannot be stored as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: metadata cannot be stored as JSON: {error}") from error
    return text.encode("ascii")


def _has_text_keys(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_text_keys(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_has_text_keys(item) for item in value)
    return True


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
        from iid_dask.format.segments import region_lengths

        first = np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.uint32)
        owners = np.repeat(np.arange(len(counts)), counts)
        sizes = region_lengths(region_boxes) + REGION_HEAD.itemsize
        before = np.cumsum(sizes) - sizes
        starts = self.lut["segment_offset"].astype(np.int64) + SEGMENT_HEAD.itemsize + REGION_HEAD.itemsize
        bits = starts[owners] + before - (before[first[:-1][owners]] if len(owners) else 0)
        boxes = np.array([tuple(entry.bbox) for entry in self.entries], np.uint16).reshape(-1, 4)
        areas = np.array([entry.area for entry in self.entries], np.uint32)
        return SegmentColumns(boxes, areas, first, region_boxes.astype(np.uint16), bits.astype(np.uint32))


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


def encode_own_metadata(
    path: str, entries: int, metadata: Mapping[str, Any], removed: Sequence[int], is_blank: Callable[[int], bool]
) -> bytes:
    """Return metadata as `encode_metadata` does, with the keys of removed entries in it.

    Parameters
    ----------
    path
        Of the file, for errors.
    entries
        How many there are.
    metadata
    removed
        Keys of removed entries.
    is_blank
        Tells of a key whether its entry has neither name nor pixels, and so would pass for a removed one.
    """
    if removed:
        if "removed" in metadata:
            raise ValueError(
                f'{path}: metadata already has a key "removed", which names the removed entries; rename yours'
            )
        return encode_metadata({**metadata, "removed": sorted(removed)}, path)
    listed = metadata.get("removed")
    if isinstance(listed, list) and listed:
        keys = [key for key in listed if isinstance(key, int) and 0 <= key < entries]
        if len(keys) == len(listed) and all(is_blank(key) for key in keys):
            raise ValueError(
                f'{path}: metadata "removed" = {listed!r} would remove nameless, empty entries; rename the key'
            )
    return encode_metadata(metadata, path)


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


def add_index(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> int:
    """Copy a file and put an index behind it, so that opening needs no pass over the segments.

    Parameters
    ----------
    path
        A local ``.iid`` file; one that has an index is given a fresh one.
    out
        Where to write; default: over ``path``, atomically.

    Returns
    -------
    int
        Bytes of the index.

    Raises
    ------
    IIDFormatError
        If the file is damaged; nothing was written.
    """
    with open_records(os.fspath(path)) as reader:
        defects = reader.check()
        if defects:
            raise defects[0]
        source, header, lut = reader.source, reader.header, reader.lut
        base = int(header["segments_offset"])
        crcs = {
            s: zlib.crc32(source.read(int(header[f"{s}_offset"]), int(header[f"{s}_length"])))
            for s in ("iids", "meta", "groups")
        }
        segment_crcs = np.zeros(len(lut), np.uint32)
        for key in np.flatnonzero(lut["segment_length"] > 0).tolist():
            data = source.read(base + int(lut["segment_offset"][key]), int(lut["segment_length"][key]))
            segment_crcs[key] = zlib.crc32(data)
        end = max(
            int(header[f"{s}_offset"]) + int(header[f"{s}_length"])
            for s in ("lut", "iids", "meta", "groups", "segments")
        )
        end = max(end, HEADER.itemsize)
        foreign = 0 if reader.index is not None else source.size - end
        if foreign and out is None:
            raise ValueError(
                f"{reader.name}: the last {foreign} bytes belong to no section and would be lost; write to another path"
            )
        index = index_bytes(end, header.tobytes() + lut.tobytes(), crcs, reader.columns, segment_crcs)
        with atomic_write(path if out is None else out) as file:
            for at in range(0, end, BUFFER):
                file.write(source.read(at, min(BUFFER, end - at)))
            file.write(index)
    return len(index)
