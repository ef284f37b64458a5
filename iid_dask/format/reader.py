"""An ``.iid`` file as a read-only mapping of entries and as columns."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from iid_dask.bbox import union
from iid_dask.errors import IIDFormatError
from iid_dask.format.entry import Entry
from iid_dask.format.layout import (
    HEADER,
    IID_HEAD,
    INDEX_TRAILER,
    LUT,
    SEGMENT_HEAD,
    Limits,
)
from iid_dask.format.opening import FIRST_READ, read_tables
from iid_dask.format.reopening import Reopened, cached
from iid_dask.format.sections import (
    crc_defect,
    find_names,
    header_defects,
    image_shape,
    lut_defects,
    parse_groups,
    parse_metadata,
    raise_first,
)
from iid_dask.format.segments import (
    Index,
    SegmentColumns,
    parse_trailer,
    read_index,
    scan_defects,
    scan_segments,
)
from iid_dask.format.source import BytesSource, Source, as_source, gather
from iid_dask.format.verifying import changing, check_segment, find_damaged

FEW, SPARSE = 1024, 16
"""Entries that are scanned alone are at most so many at once, and at most one in so many of the file in all."""


def _shared(array: np.ndarray) -> np.ndarray:
    """Make an array that callers are handed, and that later answers come from, read-only."""
    array.setflags(write=False)
    return array


class RecordReader(Reopened, Mapping[int, Entry]):
    """A read-only mapping key -> `Entry` over the records of an open ``.iid`` file.

    Opening reads the header, the lut, the metadata and the groups. Columns that need the segments are made at
    first use: from the index, or by one pass over the segments. Safe to use from many threads; pickles to the
    path and a stamp of the file's version.

    Attributes
    ----------
    name : str
        Path or URL.
    live : bool array, shape (n,)
        False for removed entries, which are in no table.
    metadata : dict
        As stored, but for the list of removed entries.
    metadata_json : str
        The stored text.
    limits : Limits
    """

    def __init__(self, source: Source, *, verify: bool = True, limits: Limits | None = None) -> None:
        super().__init__(source, verify=verify, limits=limits)
        self.name = source.name
        self._memory: OrderedDict[Any, Any] = OrderedDict()
        self._scanned = 0
        head = source.read(0, min(source.size, FIRST_READ))
        if len(head) < HEADER.itemsize:
            raise IIDFormatError(
                self.name, "file", None, 0, f"{len(head)} bytes", f"at least the {HEADER.itemsize} bytes of a header"
            )
        self.header = np.frombuffer(head, HEADER, 1)[0]
        raise_first(header_defects(self.name, self.header, source.size))
        for section, limit in (("meta", self.limits.max_meta), ("groups", None)):
            length = int(self.header[f"{section}_length"])
            if limit is not None and length > limit:
                raise IIDFormatError(self.name, section, None, None, f"{length} bytes", f"at most {limit} (limits=)")
        lut, meta, groups, tail = read_tables(source, self.header, head)
        self._lut = np.frombuffer(lut, LUT)
        raise_first(lut_defects(self.name, self.header, self.lut))
        self.index: Index | None = parse_trailer(self.header, lut, source.size, tail[-INDEX_TRAILER.itemsize :])
        self._end = tail
        self._check_crc("meta", meta)
        self._check_crc("groups", groups)
        self._parse(meta, groups)

    def _parse(self, meta: bytes, groups: bytes) -> None:
        self.metadata = parse_metadata(self.name, self.header, meta, self.limits)
        self.metadata_json = meta.decode() or "{}"
        removed = (self.lut["iid_length"] == 0) & (self.lut["segment_length"] == 0)
        empty = (self.lut["iid_length"] == IID_HEAD.itemsize) & (self.lut["segment_length"] == SEGMENT_HEAD.itemsize)
        listed = self.metadata.get("removed")
        if _is_key_list(listed, len(self.lut)) and bool(np.all((empty | removed)[listed])):
            removed[listed] = True
            del self.metadata["removed"]
        self.live = _shared(~removed)
        self._groups = {
            name: _shared(keys[self.live[keys]])
            for name, keys in parse_groups(self.name, self.header, groups, len(self.lut), self.limits).items()
        }

    def _check_crc(self, section: str, data: bytes) -> None:
        if self.index is None or not self.verify_checksums:
            return
        crc, wanted = zlib.crc32(data), self.index.section_crcs[section]
        if crc != wanted:
            raise crc_defect(self.name, section, None, int(self.header[f"{section}_offset"]), crc, wanted)

    # --- the mapping

    def __len__(self) -> int:
        return int(np.count_nonzero(self.live))

    def __iter__(self) -> Iterator[int]:
        return iter(self.entry_keys.tolist())

    def __contains__(self, key: object) -> bool:
        return (
            isinstance(key, int | np.integer)
            and not isinstance(key, bool)
            and bool(0 <= key < len(self.live))
            and bool(self.live[key])
        )

    def __getitem__(self, key: int) -> Entry:
        if key not in self:
            raise KeyError(f"{self.name}: no entry {key!r}; {self._which_keys()}")
        return Entry(self, int(key))

    def _which_keys(self) -> str:
        keys = self.entry_keys
        if not len(keys):
            return "the file has no entries"
        return f"keys are integers from {keys[0]} to {keys[-1]}, {len(keys)} in all"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} entries, {len(self.groups)} groups>"

    # --- columns

    @property
    def lut(self) -> np.ndarray:
        """Locations, structured array of shape (n,); rows of removed entries are among them."""
        return self._lut

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Group name -> ascending uint32 keys."""
        return self._groups

    @property
    def gap(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to skip."""
        return self.source.gap

    @cached
    def entry_keys(self) -> np.ndarray:
        """Keys of the entries, ascending uint32: rows of the lut that were not removed."""
        return _shared(np.flatnonzero(self.live).astype(np.uint32))

    @cached
    def columns(self) -> SegmentColumns:
        """Boxes, areas and regions of all entries, indexed by key. Shared: do not change them."""
        columns = None
        if self.index is not None:
            end = self._end  # once: another thread may empty it
            before = self.index.offset - (self.source.size - len(end))
            if before >= 0:  # the index came with the trailer
                rows = BytesSource(end[before:], self.name)
                columns = read_index(rows, replace(self.index, offset=0), self.lut)
            else:
                columns = read_index(self.source, self.index, self.lut)
        self._end = b""
        if columns is None:
            self.index = None
            base = int(self.header["segments_offset"])
            scan = scan_segments(self.source, base, self.lut)
            raise_first(scan_defects(self.name, base, self.lut, scan))
            columns = scan.columns
        return columns

    @property
    def has_index(self) -> bool:
        """Whether the file carries a sound index."""
        if self.index is not None:
            _ = self.columns
        return self.index is not None

    @cached
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the image: the metadata's ``image`` size if sound, else what the boxes span."""
        stated = image_shape(self.name, self.metadata)
        if stated is not None:
            return stated
        around = union(self.columns.boxes[self.live])
        return around.max_row, around.max_col

    def segment_columns(self, keys: np.ndarray) -> tuple[SegmentColumns, np.ndarray]:
        """Return columns that hold some entries, and their rows there.

        A few entries of a file whose columns were not needed yet cost no pass over the others; who asks for one
        entry after another gets all columns in the end.
        """
        self._open_now()
        if "columns" in self.__dict__ or len(keys) > FEW or (self._scanned + len(keys)) * SPARSE > len(self.lut):
            return self.columns, keys
        self._scanned += len(keys)
        base = int(self.header["segments_offset"])
        rows = self.lut[keys]
        scan = scan_segments(self.source, base, rows)
        raise_first(scan_defects(self.name, base, rows, scan))
        return scan.columns, np.arange(len(keys))

    def remember(self, what: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, or what it returned when it was last asked for under this name; a few are kept."""
        kept = self._memory.get(what, self)
        if kept is not self:
            return kept
        made = self._memory[what] = make()
        while len(self._memory) > 16:
            with suppress(KeyError):  # another thread was faster
                self._memory.popitem(last=False)
        return made

    # --- bytes

    def segment_bytes(self, key: int) -> bytes:
        """Return a segment as stored, checked against the index where there is one: crc32, boxes and area."""
        row = self.lut[key]
        base = int(self.header["segments_offset"]) + int(row["segment_offset"])
        try:
            data = self.source.read(base, int(row["segment_length"]))
        except OSError as error:
            error.add_note(f"entry {key}")
            raise
        if not self.verify_checksums or not self.has_index:
            return data
        check_segment(self.name, self.columns, self.index.offset if self.index else 0, key, base, data)
        return data

    def verify_segments(self, keys: np.ndarray, regions: np.ndarray, data: np.ndarray, places: np.ndarray) -> None:
        """Compare whole segments that were read with the index, as `find_damaged` does.

        Raises
        ------
        IIDFormatError
            If one is damaged, or the index is not of this file; names it.
        """
        bad = find_damaged(self.columns, self.lut[keys], keys, regions, data, places)
        if bad >= 0:
            self.segment_bytes(int(keys[bad]))  # raises, with all that is wrong
            raise changing(self.name, int(keys[bad]))

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read ranges of the segments section with few requests.

        Parameters
        ----------
        offsets, lengths : int64 arrays, shape (n,)
            Offsets from the start of the section.

        Returns
        -------
        data : uint8 array
            Followed by 16 spare bytes, as the painting kernels want them.
        places : int64 array, shape (n,)
            Where each range begins in ``data``.
        """
        return gather(self.source, offsets + int(self.header["segments_offset"]), lengths, spare=16)

    def names(self, keys: Any = None) -> tuple[list[bytes], list[bytes]]:
        """Return domains and addresses.

        Parameters
        ----------
        keys : sequence of int, optional
            Default: all entries, ascending. Only the names of these are read.

        Returns
        -------
        domains, addresses : lists of bytes
        """
        text, starts, middles, stops = self.name_spans(keys)
        a, b, c = starts.tolist(), middles.tolist(), stops.tolist()
        return (
            [text[i:j] for i, j in zip(a, b, strict=True)],
            [text[i:j] for i, j in zip(b, c, strict=True)],
        )

    def name_spans(self, keys: Any = None) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
        """Return bytes that hold the names of entries, and where in them.

        Parameters
        ----------
        keys : sequence of int, optional
            Default: all entries, ascending.

        Returns
        -------
        text : bytes
        starts, middles, stops : int64 arrays, one element an entry
            Domains are ``text[starts[i]:middles[i]]``, addresses ``text[middles[i]:stops[i]]``.
        """
        whole = keys is None
        keys = np.asarray(self.entry_keys if whole else keys, dtype=np.int64)
        rows = self.lut[keys]
        base = int(self.header["iids_offset"])
        if whole and self.index is not None and self.verify_checksums:
            section = self.source.read(base, int(self.header["iids_length"]))
            self._check_crc("iids", section)
            places = rows["iid_offset"].astype(np.int64)
        else:
            offsets = rows["iid_offset"].astype(np.int64) + base
            data, places = gather(self.source, offsets, rows["iid_length"].astype(np.int64))
            section = data.tobytes()
        return section, *find_names(self.name, base, rows, np.frombuffer(section, np.uint8), places)

    def check(self) -> list[IIDFormatError]:
        """Validate the whole file and return the defects found, [] for a sound one.

        Beyond what opening checks: names, every region's length, box and pad bits, areas, all checksums, and
        that the index, if there is one, says what the segments say. A hostile file can have a defect every few
        bytes, so the list ends at `iid_dask.format.check.MAX_DEFECTS`.
        """
        from iid_dask.format.check import MAX_DEFECTS, content_defects

        return list(islice(content_defects(self), MAX_DEFECTS))


def _is_key_list(value: object, n_rows: int) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(key, int) and not isinstance(key, bool) and 0 <= key < n_rows for key in value)
        and len(value) > 0
    )


def open_records(
    target: Any,
    *,
    verify: bool = True,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    reader: type[Any] = RecordReader,
) -> Any:
    """Open an ``.iid`` file as a reader of the class given; the rest is said at `iid_dask.open`."""
    source = as_source(target, storage_options)
    try:
        return reader(source, verify=verify, limits=limits)
    except BaseException:
        source.close()
        raise
