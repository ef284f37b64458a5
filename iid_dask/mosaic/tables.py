"""The tables of a mosaic as Parquet files: plain columns in, plain columns out."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iid_dask.errors import IIDFormatError
from iid_dask.format.folder import FolderLike, LocalFolder, as_folder
from iid_dask.format.source import Source

BOX = ("min_row", "min_col", "max_row", "max_col")
NAMES = ("domain", "address")

MOST_PACKED = 1000
"""Bytes of columns that a byte of a table's file stands for, at most, beyond the first `SMALL`."""

SMALL = 2**26

ROW_GROUP = 65_536
"""Rows that are read together: a window's pieces are a few of these."""


TAIL = 2**16
"""Bytes at the end of an object that are read first: what they say of the table, and all of a small one."""


def _integers(*names: str) -> dict[str, pa.DataType]:
    return dict.fromkeys(names, pa.int64())


_names = dict.fromkeys(NAMES, pa.large_binary())
_tiles = _integers("row", "col", "height", "width", "core_row0", "core_col0", "core_row1", "core_col1")

SCHEMAS: dict[str, dict[str, pa.DataType]] = {
    "tiles": {
        "path": pa.string(),
        "kind": pa.string(),
        **_tiles,
        **_integers("entries", "nbytes", "crc", "tail", "first_piece", "pieces"),
    },
    "entries": {**_integers("tile", "key", *BOX, "area", "first_row", "first_col"), **_names},
    "segments": {**_names, **_integers(*BOX, "area", "first_row", "first_col", "pieces")},
    "pieces": {**_integers("tile", "key"), "label": pa.uint32(), **_integers("area")},
    "members": _integers("group", "key"),
}
"""Columns of each table; boxes and first pixels in mosaic pixels, first pixels -1 for empty segments.

tiles
    A row a file: ``kind`` is "tile", or "cut" for pieces cut to a core; ``row`` and ``col`` its first pixel;
    ``crc`` the file's crc32, ``tail`` that of its last 52 bytes, the index's trailer, which holds checksums of the
    rest; ``first_piece`` and ``pieces`` its rows of the table of pieces.
entries
    A row an entry of a tile: ``tile`` is a row of tiles, ``key`` the entry's in that file; from these, deciding
    again needs no tile.
segments
    Row i is the segment with key i and label i + 1; ``pieces`` counts its pieces.
pieces
    Which entry of which file shows which label, by tile, then label; ``area`` is the whole segment's.
members
    ``group`` is a place in the manifest's list of groups, ``key`` a segment's.
"""


def write_table(
    folder: FolderLike,
    file: str,
    columns: Mapping[str, Any],
    schema: Mapping[str, pa.DataType],
    *,
    row_group: int = ROW_GROUP,
) -> dict[str, Any]:
    """Write columns as a Parquet file, whole or not at all.

    Parameters
    ----------
    folder
    file
        Name in the folder.
    columns
        Name -> array or sequence; exactly the schema's.
    schema
        Name -> type, in the order of the file.

    Returns
    -------
    dict
        ``path``, ``rows``, ``nbytes`` and ``crc``, as the manifest lists it.
    """
    table = pa.table({name: _array(columns[name], kind) for name, kind in schema.items()})
    sink = pa.BufferOutputStream()
    # No dictionary for names: they are all different, and numbers are compressed well enough.
    pq.write_table(
        table,
        sink,
        row_group_size=row_group,
        compression="zstd",
        use_dictionary=["path", "kind"],
        write_page_checksum=True,
    )
    data = sink.getvalue()
    with as_folder(folder).write(file) as out:
        out.write(data)
    return {"path": file, "rows": table.num_rows, "nbytes": data.size, "crc": zlib.crc32(data)}


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """Return an Arrow array, if it can be without `pyarrow.array`, which imports pandas: 0.3 s and 40 MB."""
    if isinstance(values, pa.Array) and values.type == kind:
        return values
    if pa.types.is_string(kind):
        texts = [text.encode() for text in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        return pa.Array.from_buffers(kind, len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
    if pa.types.is_integer(kind) and isinstance(values, np.ndarray) and values.dtype == _dtype(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
    return pa.array(values, kind)


def _dtype(kind: pa.DataType) -> np.dtype:
    return np.dtype(f"{'i' if pa.types.is_signed_integer(kind) else 'u'}{kind.bit_width // 8}")


@dataclass(frozen=True, eq=False)
class TableFile:
    """A table's file, opened.

    Attributes
    ----------
    path : str
        Or URL.
    source : Source, optional
        Of an object, which is not fetched whole to read some rows.
    verify : bool
        Whether what is read of an object is compared with the checksums of its pages.
    """

    path: str
    source: Source | None
    verify: bool

    def open(self) -> pq.ParquetFile:
        """Open it for one read."""
        if self.source is None:
            return pq.ParquetFile(self.path, memory_map=False)
        file, facts, verify = self._file(), self.facts, self.verify
        return pq.ParquetFile(file, metadata=facts, pre_buffer=True, page_checksum_verification=verify)

    @cached_property
    def facts(self) -> pq.FileMetaData:
        """What its last bytes say."""
        return pq.read_metadata(self.path if self.source is None else self._file())

    def _file(self) -> pa.PythonFile:
        assert self.source is not None
        return pa.PythonFile(_SourceFile(self.source, self._tail), mode="r")

    @cached_property
    def _tail(self) -> bytes:
        assert self.source is not None
        size = min(TAIL, self.source.size)
        return self.source.read(self.source.size - size, size)


class _SourceFile(io.RawIOBase):
    """A source as a file, which reads as much as it is asked for with one request, but what it has at its end."""

    def __init__(self, source: Source, tail: bytes) -> None:
        self._source, self._tail, self._at = source, tail, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        start = self._at - (self._source.size - len(self._tail))
        data = self._tail[start : start + length] if start >= 0 else self._source.read(self._at, length)
        self._at += length
        return data


def table_file(folder: FolderLike, listed: Mapping[str, Any], *, verify: bool = True) -> TableFile:
    """Open the file of a table.

    Parameters
    ----------
    folder
    listed
        The table as the manifest lists it.
    verify
        Whether an object's pages are compared with their checksums.

    Raises
    ------
    FileNotFoundError
    IIDFormatError
        For a path that leaves the folder, or a file of another size.
    """
    place = as_folder(folder)
    path = place.inside(listed["path"])
    source = None if isinstance(place, LocalFolder) else place.source(listed["path"])
    size = os.path.getsize(path) if source is None else source.size
    if size != listed["nbytes"]:
        raise IIDFormatError(path, "file", None, None, f"{size} bytes", f"{listed['nbytes']}")
    return TableFile(path, source, verify)


def read_table(
    folder: FolderLike,
    listed: Mapping[str, Any],
    schema: Mapping[str, pa.DataType],
    columns: Iterable[str] | None = None,
    *,
    row_groups: list[int] | None = None,
    file: TableFile | None = None,
) -> dict[str, Any]:
    """Read columns of a table as numpy arrays; names as Arrow arrays.

    Parameters
    ----------
    folder
    listed
        The table as the manifest lists it.
    schema
        What it must hold.
    columns
        Default: all of the schema.
    row_groups
        Default: all.
    file
        What `table_file` made of it before.

    Raises
    ------
    IIDFormatError
        If the file is not the one that the manifest lists, or holds other columns.
    """
    wanted = list(schema if columns is None else columns)
    opened = file or table_file(folder, listed)
    try:
        with opened.open() as parquet:
            if {field.name: field.type for field in parquet.schema_arrow} != dict(schema):
                raise ValueError(f"columns {parquet.schema_arrow.names}")
            groups = range(parquet.num_row_groups) if row_groups is None else row_groups
            _refuse_bomb(parquet.metadata, groups, listed["nbytes"])
            table = parquet.read_row_groups(list(groups), columns=wanted)
            for column in table.columns:
                if pa.types.is_string(column.type):
                    column.validate(full=True)  # Arrow reads bytes that are no UTF-8 as text
            if row_groups is None and table.num_rows != listed["rows"]:
                raise ValueError(f"{table.num_rows} rows")
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise IIDFormatError(
            opened.path, "file", None, None, f"{error!s:.300}", f"a table of {listed['rows']} rows with {list(schema)}"
        ) from error
    return {name: _values(table.column(name)) for name in wanted}


def _refuse_bomb(facts: pq.FileMetaData, groups: Iterable[int], nbytes: int) -> None:
    """Raise ValueError for rows that take far more memory than the file takes bytes."""
    # Not what is told of each column: of some damaged files pyarrow 26 ends the process when it is asked for that.
    sizes = [facts.row_group(group).total_byte_size for group in groups]
    if min(sizes, default=0) < 0 or sum(sizes) > MOST_PACKED * nbytes + SMALL:
        raise ValueError(f"{sum(sizes)} bytes of columns in a file of {nbytes}")


def _values(column: pa.ChunkedArray) -> Any:
    whole = column.combine_chunks()
    if pa.types.is_integer(whole.type) and not whole.null_count:
        data = whole.buffers()[1] or b""  # as in _array: to_numpy imports pandas
        return np.frombuffer(data, _dtype(whole.type))[whole.offset : whole.offset + len(whole)]
    if pa.types.is_integer(whole.type) or pa.types.is_floating(whole.type) or pa.types.is_boolean(whole.type):
        return np.asarray(whole.to_numpy(zero_copy_only=False))
    return whole
