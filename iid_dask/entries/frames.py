"""The entries of many files as one lazy table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from iid_dask.cutting import as_nbytes
from iid_dask.entries.files import PER_PARTITION, find_files, pack
from iid_dask.entries.metadata import Metadata
from iid_dask.entries.plan import Plan
from iid_dask.entries.query import Query
from iid_dask.entries.schema import Schema, frame, no_rows
from iid_dask.entries.tasks import file_kinds, read_file_rows, read_part
from iid_dask.format.sections import brief
from iid_dask.lookup import as_names
from iid_dask.pieces import Parted

Paths = Any
"""A path, URL, glob or open reader, or a list of these."""

BLOCKSIZE = 64 * 2**20
"""Bytes of a partition."""


def read_entries(
    paths: Paths,
    *,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    bbox: Any = None,
    groups: str | Iterable[str] | None = None,
    names: str = "bytes",
    metadata: str | Iterable[str] | Mapping[str, Any] | None = None,
    on_error: str = "raise",
    blocksize: int | str = BLOCKSIZE,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Make a lazy table of the entries of one file or of many.

    Of one file, partitions are ranges of keys with known divisions, and those without an entry that passes are
    left out. Of many, partitions are runs of whole files, which are opened by tasks only.

    Parameters
    ----------
    paths
        A path, URL or glob, an open reader, or a list of these. What a glob finds is sorted; a file named twice
        counts once, and so do readers of the same bytes.
    columns : list of str, optional
        Any of: file (absolute path or URL: the name of its reader), key, domain, address, min_row, min_col, max_row,
        max_col (box, half-open, image pixels; as wide as ``area``, though a file has 16 bits), area (pixels), regions
        (stored pieces), groups (a JSON list), mask (bits of the box, row after row, most significant first, zeros at
        the end; as ``numpy.packbits(entry.mask())``), and paths of ``metadata``. Default: all but mask.
    filters : list, optional
        ``(column, op, value)`` tuples that must all hold, or a list of such lists, any of which must; op is one of
        ``== = != < <= > >= in``, ``not in``. Null passes no test. ``file`` is compared as the column has it: the
        absolute path, or the URL.
    bbox : optional
        Entries whose box meets this one: (min_row, min_col, max_row, max_col).
    groups : str or several, optional
        Members of any of these. Among many files, one that lacks a group has no members of it.
    names : {"bytes", "text"}
        Domain and address as bytes, exact, or as `to_text` shows them.
    metadata : str, several, or mapping path -> dtype, optional
        Columns from the metadata; dots lead into nested objects. They hold text: JSON strings as they are, other
        values as JSON; but image.height and image.width are integers, and a mapping says what the others are. Null
        where a file has none.
    on_error : {"raise", "skip"}
        A file that cannot be read is an error that names it, or has no rows and a warning; `read_files` reports.
    blocksize : int or str
        Bytes of a partition, about. Closed files among many count with their sizes.
    storage_options : mapping, optional
        For the fsspec file system of URLs.

    Returns
    -------
    dask.dataframe.DataFrame
        One row an entry; the index "entry" (int64) is its key. Names and masks are Arrow ``large_binary``,
        text is pandas' Arrow-backed ``string``, numbers are uint32; where there is a mosaic, an open one, among
        the readers, ``area`` is int64.

    Raises
    ------
    FileNotFoundError
        For a path that does not exist, a glob that matches nothing.
    TypeError, ValueError
        For unknown columns, filters of another form, and file objects (see `iid_dask.open`).
    KeyError
        For a group that the only file does not have.
    IIDLimitError
        When computed, for a partition whose masks, groups, ``file`` or metadata would take more than
        ``Limits.max_decoded_bytes``.

    Examples
    --------
    >>> import iid_dask
    >>> df = iid_dask.read_entries(iid_dask.sample("us"), filters=[("area", ">", 20_000)], columns=["address", "area"])
    >>> print(df.compute())
           address    area
    entry
    0      b'None'  327509
    13       b'48'   26112
    """
    schema = Schema(names, Metadata.of(metadata))
    chosen = schema.choose(columns)
    query = Query.of(schema, groups, bbox, filters)
    return _entries(
        paths, schema, chosen, query, on_error=on_error, blocksize=blocksize, storage_options=storage_options
    )


def look_for(
    paths: Paths,
    addresses: bytes | Iterable[bytes] | None,
    domains: bytes | Iterable[bytes] | None = None,
    groups: str | Iterable[str] | None = None,
    *,
    on_error: str = "raise",
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Find the entries of certain names in one file or many; reads their tables and names only.

    Parameters
    ----------
    paths, on_error, storage_options
        As in `read_entries`.
    addresses, domains : bytes or several, optional
        One of these, exactly; None is any.
    groups : str or several, optional
        Only members of any of these; a file that lacks a group has no members of it.

    Returns
    -------
    dask.dataframe.DataFrame
        Columns file, key, domain, address, as in `read_entries`.

    Examples
    --------
    >>> import iid_dask
    >>> print(iid_dask.look_for(iid_dask.sample("us"), [b"04", b"06"], domains=b"states").compute()[["key", "address"]])
           key address
    entry
    1        1   b'04'
    20      20   b'06'
    """
    schema = Schema()
    wanted = {"address": as_names("addresses", addresses), "domain": as_names("domains", domains)}
    filters = [(column, "in", some) for column, some in wanted.items() if some is not None]
    query = Query.of(schema, groups, None, filters)
    columns = ("file", "key", "domain", "address")
    return _entries(
        paths, schema, columns, query, on_error=on_error, storage_options=storage_options, groups_exist=False
    )


def read_files(
    paths: Paths,
    *,
    metadata: str | Iterable[str] | Mapping[str, Any] | None = None,
    on_error: str = "raise",
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Make a lazy table of files; reads of each the tables at its beginning, no name and no segment.

    Parameters
    ----------
    paths, metadata, storage_options
        As in `read_entries`.
    on_error : {"raise", "skip"}
        A file that cannot be read is an error that names it, or a row with nothing but ``file`` and ``error``.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a file, in the order given: file, nbytes, entries, groups (a JSON list), error (null of a sound
        file), then the metadata.

    Examples
    --------
    >>> import iid_dask
    >>> df = iid_dask.read_files(iid_dask.sample("us"), metadata="image.height")
    >>> print(df[["entries", "image.height"]].compute())
       entries  image.height
    0     3155           600
    """
    import dask.dataframe as dd

    _check_on_error(on_error)
    of = Metadata.of(metadata)
    kinds = file_kinds(of)
    files = find_files(paths, storage_options=storage_options, missing_ok=on_error == "skip")
    packs = list(pack([0] * len(files), 1, PER_PARTITION // 4)) or [slice(0, 0)]
    ends = [some.start for some in packs] + [len(files) - 1]
    return dd.from_map(
        read_file_rows,
        [tuple(files[some]) for some in packs],
        [some.start for some in packs],
        meta=frame(no_rows(kinds), np.zeros(0, np.int64), None),
        divisions=tuple(ends) if files else None,
        label="read-files",
        metadata=of,
        on_error=on_error,
        storage_options=None if storage_options is None else dict(storage_options),
        columns=list(kinds),
    )


# --- planning ---------------------------------------------------------------------------------------------------


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error = {brief(on_error)}: expected 'raise' or 'skip'")


def _entries(
    paths: Paths,
    schema: Schema,
    columns: Sequence[str],
    query: Query,
    *,
    on_error: str = "raise",
    blocksize: int | str = BLOCKSIZE,
    storage_options: Mapping[str, Any] | None = None,
    groups_exist: bool = True,
) -> Any:
    import dask.dataframe as dd

    _check_on_error(on_error)
    nbytes = as_nbytes("blocksize", blocksize)
    files = find_files(paths, storage_options=storage_options, missing_ok=on_error == "skip")
    schema = replace(schema, wide=any(isinstance(file, Parted) for file in files))
    plan = Plan(schema, query, tuple(columns), nbytes, on_error == "skip", storage_options)
    parts, divisions = plan.parts(files, groups_exist)
    return dd.from_map(
        read_part,
        parts,
        meta=frame(no_rows({name: schema.kinds[name] for name in columns}), np.zeros(0, np.int64)),
        divisions=divisions,
        label="read-entries",
        schema=schema,
        query=query,
        on_error=on_error,
        storage_options=None if storage_options is None else dict(storage_options),
        columns=list(columns),
    )
