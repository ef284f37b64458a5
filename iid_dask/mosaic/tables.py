"""The tables of a mosaic as Parquet files: plain columns in, plain columns out."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from iid_dask.errors import IIDFormatError
from iid_dask.format.target import atomic_write
from iid_dask.mosaic.folder import inside

BOX = ("min_row", "min_col", "max_row", "max_col")
NAMES = ("domain", "address")

ROW_GROUP = 65_536
"""Rows that are read together: a window's pieces are a few of these."""


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
    folder: str | os.PathLike[str],
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
    pq.write_table(table, sink, row_group_size=row_group, compression="zstd", use_dictionary=["path", "kind"])
    data = sink.getvalue()
    with atomic_write(Path(folder) / file) as out:
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


def read_table(
    folder: str | os.PathLike[str],
    listed: Mapping[str, Any],
    schema: Mapping[str, pa.DataType],
    columns: Iterable[str] | None = None,
    *,
    row_groups: list[int] | None = None,
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

    Raises
    ------
    IIDFormatError
        If the file is not the one that the manifest lists, or holds other columns.
    """
    path = inside(folder, listed["path"])
    wanted = list(schema if columns is None else columns)
    if path.stat().st_size != listed["nbytes"]:
        raise IIDFormatError(str(path), "file", None, None, f"{path.stat().st_size} bytes", f"{listed['nbytes']}")
    try:
        with pq.ParquetFile(path, memory_map=False) as file:
            if {field.name: field.type for field in file.schema_arrow} != dict(schema):
                raise ValueError(f"columns {file.schema_arrow.names}")
            groups = range(file.num_row_groups) if row_groups is None else row_groups
            table = file.read_row_groups(list(groups), columns=wanted)
            if row_groups is None and table.num_rows != listed["rows"]:
                raise ValueError(f"{table.num_rows} rows")
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise IIDFormatError(
            str(path), "file", None, None, f"{error}", f"a table of {listed['rows']} rows with {list(schema)}"
        ) from error
    return {name: _values(table.column(name)) for name in wanted}


def _values(column: pa.ChunkedArray) -> Any:
    whole = column.combine_chunks()
    if pa.types.is_integer(whole.type) and not whole.null_count:
        data = whole.buffers()[1] or b""  # as in _array: to_numpy imports pandas
        return np.frombuffer(data, _dtype(whole.type))[whole.offset : whole.offset + len(whole)]
    if pa.types.is_integer(whole.type) or pa.types.is_floating(whole.type) or pa.types.is_boolean(whole.type):
        return np.asarray(whole.to_numpy(zero_copy_only=False))
    return whole
