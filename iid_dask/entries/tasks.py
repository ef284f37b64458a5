"""What tasks do: partitions of the tables, as dataframes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iid_dask.entries.files import File
from iid_dask.entries.metadata import Metadata
from iid_dask.entries.opening import attempt, opened
from iid_dask.entries.plan import Part, Piece
from iid_dask.entries.query import Query, pick
from iid_dask.entries.schema import TEXT, Column, Schema, concat, frame, no_rows
from iid_dask.errors import IIDLimitError, IIDWarning
from iid_dask.format.reader import RecordReader


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"{name}: skipped: {error}", IIDWarning, stacklevel=2)


def read_part(
    part: Part,
    *,
    schema: Schema,
    query: Query,
    on_error: str,
    storage_options: Mapping[str, Any] | None,
    columns: Sequence[str],
) -> pd.DataFrame:
    """Read a partition; dask asks for fewer ``columns`` where fewer are used.

    Raises
    ------
    IIDLimitError
        If files that are small enough one by one take too much together, also where bad ones are skipped.
    """
    wanted = dict.fromkeys(("key", *columns))

    def read(piece: Piece) -> dict[str, Column] | None:
        with opened(piece.file, storage_options, keep=piece.span is not None) as reader:
            return pick(reader, query, schema, piece.span).read(wanted)

    sound, spent = [], 0
    limit = max((piece.limits.max_decoded_bytes for piece in part), default=0)
    for piece in part:
        some = attempt(piece.name, partial(read, piece), partial(_warn, piece.name) if on_error == "skip" else None)
        if some is not None:
            sound.append(some)
            spent += sum(values.nbytes for name, values in some.items() if schema.is_claimed(name))
            # One file alone has kept to its limit already.
            if len(part) > 1 and spent > limit:
                raise IIDLimitError(_beyond_limit(part, limit))
    sound = sound or [no_rows({name: schema.kinds[name] for name in wanted})]
    whole = {name: concat([some[name] for some in sound]) for name in wanted}
    return frame({name: whole[name] for name in columns}, whole["key"])


def _beyond_limit(part: Part, limit: int) -> str:
    return (
        f"{part[0].name} to {part[-1].name}: masks, groups and what files have in every row take more than "
        f"limits.max_decoded_bytes = {limit} in a partition of {len(part)} files; ask for fewer entries or "
        "columns, or for smaller partitions (blocksize=1 makes one of every file)"
    )


def file_kinds(metadata: Metadata) -> dict[str, pa.DataType]:
    """Return the columns of `read_files`: those of a file, then the metadata's."""
    own = {"file": TEXT, "nbytes": pa.int64(), "entries": pa.int64(), "groups": TEXT, "error": TEXT}
    for name in metadata.kinds:
        if name in own:
            raise ValueError(f"metadata: {name!r} is a column of every table of files; expected another path")
    return {**own, **metadata.kinds}


def read_file_rows(
    files: Sequence[File | RecordReader],
    first: int,
    *,
    metadata: Metadata,
    on_error: str,
    storage_options: Mapping[str, Any] | None,
    columns: Sequence[str],
) -> pd.DataFrame:
    """Read a partition of the table of files, of which the first row has the index ``first``."""
    kinds = file_kinds(metadata)

    def read(file: File | RecordReader) -> dict[str, Any]:
        with opened(file, storage_options) as reader:
            own = {"file": reader.name, "nbytes": reader.source.size, "entries": len(reader)}
            return {**own, "groups": json.dumps(list(reader.groups)), **metadata.values(reader.name, reader.metadata)}

    def failed(name: str, error: Exception) -> dict[str, Any]:
        return {"file": name, "error": f"{type(error).__name__}: {error}"}

    rows = [
        attempt(
            file.name,
            partial(read, file),
            partial(failed, file.name) if on_error == "skip" else None,
        )
        for file in files
    ]
    arrays = {name: pa.array([row.get(name) for row in rows], kinds[name]) for name in columns}
    return frame(arrays, np.arange(first, first + len(rows)), None)
