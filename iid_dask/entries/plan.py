"""How files are cut into partitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.cutting import split
from iid_dask.entries.files import PER_PARTITION, File, pack
from iid_dask.entries.opening import attempt, known, opened
from iid_dask.entries.query import Query, pick
from iid_dask.entries.schema import Schema
from iid_dask.format.layout import Limits
from iid_dask.format.reader import RecordReader
from iid_dask.format.segments import region_lengths
from iid_dask.lookup import members

ROW = 64
"""Bytes that an entry takes in a table beside its names, its mask and what its file has, roughly."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or the entries of one with keys from ``span[0]`` to ``span[1]``, both included."""

    file: File | RecordReader
    span: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """Path or URL."""
        return self.file.name

    @property
    def limits(self) -> Limits:
        """What it may cost."""
        return self.file.limits if isinstance(self.file, RecordReader) else Limits()

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("iid_dask.Piece", self.file.__dask_tokenize__(), self.span)


Part = tuple[Piece, ...]
"""What one partition holds."""


@dataclass(frozen=True)
class Plan:
    """How files are cut into partitions."""

    schema: Schema
    query: Query
    columns: tuple[str, ...]
    blocksize: int
    skip: bool
    storage_options: Mapping[str, Any] | None

    @property
    def masks(self) -> bool:
        """Whether masks are wanted."""
        return "mask" in self.columns

    def parts(
        self, files: Sequence[File | RecordReader], groups_exist: bool
    ) -> tuple[list[Part], tuple[int, ...] | None]:
        """Return partitions, at least one, and their divisions if these are known."""
        if len(files) != 1:
            return list(self._of_many(files)) or [()], None
        planned = self._cut(files[0], groups_exist)
        if planned is None:
            return [(Piece(files[0]),)], None
        spans = [piece.span for piece in planned if piece.span is not None]
        if not spans:
            return [()], None
        return [(piece,) for piece in planned], (*(first for first, _ in spans), spans[-1][1])

    def _cut(self, file: File | RecordReader, groups_exist: bool) -> list[Piece] | None:
        """Open a file now and cut it into ranges of keys; None for a bad one, of which a task will tell."""

        def cut() -> list[Piece] | None:
            stamped = known(file, self.storage_options) if isinstance(file, File) else file
            with opened(stamped, self.storage_options, keep=True) as reader:
                if groups_exist and self.query.groups is not None:
                    members(reader, self.query.groups)
                return [Piece(stamped, span) for span in split(*self._weights(reader), self.blocksize)]

        return attempt(file.name, cut, (lambda _: None) if self.skip else None)

    def _weights(self, reader: RecordReader) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the entries that may pass, and the bytes that each takes in the table."""
        rows = pick(reader, self.query, self.schema, names=False)
        repeated = sum(rows.of_file(name).nbytes for name in self.columns if self.schema.is_of_file(name))
        weights = ROW + repeated + reader.lut["iid_length"][rows.keys].astype(np.int64)
        if self.masks:
            weights += region_lengths(rows.boxes())
        return rows.keys, weights

    def _size(self, file: File | RecordReader) -> int:
        """Bytes that a file counts with, 1 or more: its own, and those of its rows where masks are at hand."""
        if isinstance(file, File):
            return max(1, file.size or 0)
        size = file.source.size
        if not self.masks:
            return size

        def weigh() -> int:
            return max(1, int(self._weights(file)[1].sum()))

        return attempt(file.name, weigh, (lambda _: size) if self.skip else None)

    def _of_many(self, files: Sequence[File | RecordReader]) -> Iterator[Part]:
        """Pack whole files; one with masks for more than a partition is cut."""
        sizes = [self._size(file) for file in files]
        large = [self.masks and size > self.blocksize for size in sizes]
        remote = any(isinstance(file, File) and file.is_remote for file in files)
        start = 0
        for i in [*np.flatnonzero(large).tolist(), len(files)]:
            for some in pack(sizes[start:i], self.blocksize, PER_PARTITION // 4 if remote else PER_PARTITION):
                yield tuple(Piece(file) for file in files[start:i][some])
            if i < len(files):
                planned = self._cut(files[i], groups_exist=False)
                yield from [(Piece(files[i]),)] if planned is None else [(piece,) for piece in planned]
            start = i + 1
