"""Entries of one file as columns, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa

from iid_dask import kernels
from iid_dask.cutting import ranges
from iid_dask.entries.schema import BOX, U4, Column, Schema
from iid_dask.entries.spans import bytes_array, groups_array, groups_size, text_array
from iid_dask.errors import IIDLimitError
from iid_dask.format.reader import RecordReader
from iid_dask.format.segments import SegmentColumns, region_lengths
from iid_dask.format.verifying import read_segments
from iid_dask.pairs import Regions

BATCH = 8 * 2**20
"""Bytes of segments held at once while masks are packed."""


class Rows:
    """Some entries of one file, and those of their columns that were needed so far.

    Parameters
    ----------
    reader
    keys : uint32 array, shape (n,)
        Of entries, ascending, each once.
    schema
    """

    def __init__(self, reader: RecordReader, keys: np.ndarray, schema: Schema) -> None:
        self.reader, self.keys, self.schema = reader, keys, schema
        self._columns: dict[str, Column] = {}
        self._of_file: dict[str, pa.Array] = {}
        self._scan: tuple[SegmentColumns, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def narrowed(self, keep: np.ndarray) -> Self:
        """Return the rows where ``keep`` (bool, shape (n,)) is true; what was read of them stays read."""
        if keep.all():
            return self
        rows = type(self)(self.reader, self.keys[keep], self.schema)
        rows._columns = {name: _kept(values, keep) for name, values in self._columns.items()}
        rows._of_file = self._of_file
        if self._scan is not None:
            columns, places = self._scan
            rows._scan = columns, places[keep]
        return rows

    def boxes(self) -> np.ndarray:
        """Return the segments' boxes, uint32, shape (n, 4)."""
        return np.stack([self[side] for side in BOX], axis=1)

    def of_file(self, name: str) -> pa.Array:
        """Return the one value of a column that has the same in all rows, or null."""
        if name not in self._of_file:
            file, metadata = self.reader.name, self.schema.metadata
            value = file if name == "file" else metadata.value(file, self.reader.metadata, name)
            self._of_file[name] = pa.array([value], self.schema.kinds[name])
        return self._of_file[name]

    def read(self, columns: Iterable[str]) -> dict[str, Column]:
        """Return columns by name.

        Raises
        ------
        IIDLimitError
            If those of which a small file can tell any amount take more than the reader's limits allow.
        """
        names = list(columns)
        if not all(name in self._columns for name in names):
            self._refuse_beyond_limit(names)
        for name in names:
            if name not in self._columns:
                self._columns |= self._made(name)
        return {name: self._columns[name] for name in names}

    def __getitem__(self, name: str) -> Any:
        return self.read((name,))[name]

    def _made(self, name: str) -> dict[str, Column]:
        """Read a column, and those that come with it at no cost."""
        if name == "key":
            # The keys may be the reader's own, and the table is the caller's to change.
            return {name: self.keys.copy()}
        if self.schema.is_of_file(name):
            return {name: pa.repeat(self.of_file(name)[0], len(self))}
        if name == "groups":
            return {name: groups_array(self.reader.groups, self.keys, len(self.reader.live))}
        if name in ("domain", "address"):
            return self._names()
        if name == "mask":
            return {name: self._masks()}
        return self._heads()

    def _names(self) -> dict[str, Column]:
        # All of them at once are checked against the index.
        whole = len(self) == len(self.reader)
        text, starts, middles, stops = self.reader.name_spans(None if whole else self.keys)
        data = np.frombuffer(text, np.uint8)
        made = text_array if self.schema.names == "text" else bytes_array
        return {"domain": made(data, starts, middles), "address": made(data, middles, stops)}

    def _heads(self) -> dict[str, Column]:
        columns, rows = self._segments()
        made: dict[str, Column] = {side: columns.boxes[rows, i].astype(U4) for i, side in enumerate(BOX)}
        made["area"] = columns.areas[rows].astype(self.schema.kinds["area"], copy=False)
        made["regions"] = (columns.first_region[rows + 1] - columns.first_region[rows]).astype(U4, copy=False)
        return made

    def _segments(self) -> tuple[SegmentColumns, np.ndarray]:
        if self._scan is None:
            columns, rows = self.reader.segment_columns(self.keys)
            self._scan = columns, rows.astype(np.int64)
        return self._scan

    def _verified_segments(self) -> tuple[SegmentColumns, np.ndarray]:
        if self.reader.verify_checksums and self.reader.index is not None:
            return self.reader.columns, self.keys.astype(np.int64)  # the index's, so that a few are checked too
        return self._segments()

    def _masks(self) -> pa.Array:
        columns, rows = self._verified_segments()
        sizes = region_lengths(columns.boxes[rows])
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        out = np.zeros(int(offsets[-1]), np.uint8)
        if columns.crcs is None or not self.reader.verify_checksums:
            regions = Regions.of(columns, rows, np.arange(len(rows)))
            _pack_regions(self.reader, regions, columns.boxes[rows], out, offsets)
        else:
            lengths = self.reader.lut["segment_length"][self.keys].astype(np.int64)
            for some in batches(lengths):
                _pack(self.reader, self.keys[some], columns, rows[some], out, offsets[some])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(out)]
        return pa.Array.from_buffers(pa.large_binary(), len(self), buffers)

    def _size(self, name: str) -> int:
        """Bytes of a column, at most, where a small file can tell of any amount; 0 for other columns."""
        if not self.schema.is_claimed(name) or not len(self):
            return 0
        if name == "mask":
            columns, rows = self._verified_segments()
            return int(region_lengths(columns.boxes[rows]).sum())
        return groups_size(self.reader.groups, len(self)) if name == "groups" else len(self) * self.of_file(name).nbytes

    def _refuse_beyond_limit(self, columns: Iterable[str]) -> None:
        sizes = {name: self._size(name) for name in columns}
        total, limit = sum(sizes.values()), self.reader.limits.max_decoded_bytes
        if total > limit:
            largest = max(sizes, key=sizes.__getitem__)
            beside = "" if sizes[largest] == total else f", {total} with other columns"
            raise IIDLimitError(
                f"{self.reader.name}: column {largest!r} of {len(self)} entries takes up to {sizes[largest]} bytes"
                f"{beside}, more than limits.max_decoded_bytes = {limit}; ask for fewer entries at once, or leave the "
                "column out (read_entries of this file alone makes parts of blocksize= bytes)"
            )


def batches(lengths: np.ndarray) -> Iterator[slice]:
    """Cut a run of entries into runs of about `BATCH` bytes, at least one entry each."""
    yield from (slice(start, stop) for start, stop in ranges(lengths, BATCH))


def _kept(values: Column, keep: np.ndarray) -> Column:
    return values[keep] if isinstance(values, np.ndarray) else values.filter(pa.array(keep))


def _pack_regions(reader: RecordReader, regions: Regions, around: np.ndarray, out: np.ndarray, at: np.ndarray) -> None:
    """Read regions and add their pixels to ``out``; their keys are places in ``around``, boxes, and in ``at``."""
    for some in batches(region_lengths(regions.boxes)):
        owner, bits = regions.keys[some], regions.bits[some].astype(np.int64)
        data, places = reader.read_bits(bits, region_lengths(regions.boxes[some]))
        _add_pixels(data, places, regions.boxes[some], around[owner], out, at[owner])


def _add_pixels(
    data: np.ndarray, starts: np.ndarray, boxes: np.ndarray, around: np.ndarray, out: np.ndarray, at: np.ndarray
) -> None:
    """Add regions whose bits begin at some bytes of ``data`` to masks of boxes ``around`` them at bytes of ``out``."""
    box, around = boxes.astype(np.int64), around.astype(np.int64)
    steps = around[:, 3] - around[:, 1]
    targets = 8 * at + (box[:, 0] - around[:, 0]) * steps + box[:, 1] - around[:, 1]
    kernels.or_bits(data, 8 * starts, box[:, 2] - box[:, 0], box[:, 3] - box[:, 1], out, targets, steps)


def _pack(
    reader: RecordReader, keys: np.ndarray, columns: SegmentColumns, rows: np.ndarray, out: np.ndarray, at: np.ndarray
) -> None:
    """Read whole segments, verify them, and add their pixels to ``out``, where each one's mask begins at ``at``."""
    found = read_segments(reader, keys, columns, rows)
    around = columns.boxes[rows][found.owners]
    _add_pixels(found.data, found.bits, columns.region_boxes[found.regions], around, out, at[found.owners])
