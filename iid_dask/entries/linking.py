"""One label for one identity, in however many files."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from iid_dask.entries.files import File, find_files
from iid_dask.entries.frames import Paths, read_entries
from iid_dask.entries.schema import frame
from iid_dask.errors import IIDWarning
from iid_dask.format.reader import RecordReader
from iid_dask.format.sections import brief

PARTS = ("domain", "address", "groups")
"""Columns that an identity may consist of."""


def link(
    paths: Paths,
    identity: Sequence[str] = ("domain", "address"),
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Give one identity one label, in all files.

    Parameters
    ----------
    paths, storage_options
        As in `read_entries`, but of one name one file. No segment is read.
    identity : one or several of "domain", "address", "groups"
        What entries must have in common to be the same. Groups, where short names are used again in each, are the
        same in whatever order a file has them.

    Returns
    -------
    pandas.DataFrame
        One row an entry, ordered by label, file, key: label (uint64; 1 for the first identity in ascending order,
        whatever the order of files), domain, address (Arrow ``large_binary``), file, key, and groups where they
        belong to the identity. ``xr.open_dataset(path, engine="iid", labels=table)`` paints these labels.

    Raises
    ------
    ValueError, TypeError
        For another identity, and for two different files of one name.

    Warns
    -----
    IIDWarning
        Where domains are empty and part of the identity: addresses alone may not be unique in the world.

    Examples
    --------
    >>> import iid_dask
    >>> table = iid_dask.link(iid_dask.sample("us"), identity=["domain"])
    >>> print(table[["label", "domain", "address", "key"]][3104:3107])
          label       domain   address   key
    3104      1  b'counties'  b'04025'  3154
    3105      2    b'nation'   b'None'     0
    3106      3    b'states'     b'04'     1
    """
    chosen = as_identity(identity)
    columns = ["domain", "address", "file", "key", *(["groups"] if "groups" in chosen else [])]
    files = find_files(paths, storage_options=storage_options)
    _check_names(files)
    entries = read_entries(files, columns=columns, storage_options=storage_options).compute()
    found = {name: _arrow(entries[name]) for name in columns}
    if "domain" in chosen:
        _warn_if_empty(found["domain"], found["file"])
    if "groups" in chosen:
        found["groups"] = in_one_order(found["groups"])
    labels = number([found[name] for name in chosen])
    order = np.lexsort((found["key"].to_numpy(), ranks(found["file"]), labels))
    taken = {name: values.take(pa.array(order)) for name, values in found.items()}
    taken["key"] = taken["key"].to_numpy()
    return frame({"label": labels[order], **taken}, np.arange(len(order)), None)


def as_identity(identity: Sequence[str]) -> tuple[str, ...]:
    """Check what an identity consists of and return it in the order of a table's columns."""
    if not isinstance(identity, Iterable):
        raise TypeError(f"identity = {brief(identity)}: expected one or several of {', '.join(map(repr, PARTS))}")
    parts = [identity] if isinstance(identity, str) else list(identity)
    if not parts or any(part not in PARTS for part in parts):
        raise ValueError(f"identity = {brief(identity)}: expected one or several of {', '.join(map(repr, PARTS))}")
    return tuple(part for part in PARTS if part in parts)


def number(columns: Sequence[pa.Array]) -> np.ndarray:
    """Number rows from 1 so that equal rows have one number and numbers ascend as rows sort; uint64. Pure.

    Examples
    --------
    >>> number([pa.array(["b", "a", "b", "a"]), pa.array([1, 2, 1, 1])]).tolist()
    [3, 2, 3, 1]
    """
    numbers = ranks(columns[0])
    for values in columns[1:]:
        # Ranks are below the number of rows, so two of them fit 64 bits.
        numbers = np.unique((numbers << 32) | ranks(values), return_inverse=True)[1]
    return (np.unique(numbers, return_inverse=True)[1] + 1).astype(np.uint64)


def ranks(values: pa.Array) -> np.ndarray:
    """Rank values, equal ones alike, from 0 on in ascending order; int64. Pure."""
    encoded = values.dictionary_encode()
    place = np.empty(len(encoded.dictionary), np.int64)
    place[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(place))
    return place[encoded.indices.to_numpy()]


def in_one_order(groups: pa.Array) -> pa.Array:
    """Sort the names in every JSON list of groups: files have them in different orders. Pure."""
    encoded = groups.dictionary_encode()
    lists = [json.dumps(sorted(json.loads(text))) for text in encoded.dictionary.to_pylist()]
    return pa.array(lists, groups.type).take(encoded.indices)


def _check_names(files: Sequence[File | RecordReader]) -> None:
    """Refuse files that the column ``file`` could not tell apart."""
    for name, count in Counter(file.name for file in files).items():
        if count > 1:
            raise ValueError(
                f"link: {count} different files are called {name}, expected one of every name: the column file could "
                "not tell them apart; save bytes to files of different names, open an outdated reader again"
            )


def _arrow(values: pd.Series) -> pa.Array:
    array = pa.array(values)
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _warn_if_empty(domains: pa.Array, files: pa.Array) -> None:
    empty = pc.equal(pc.binary_length(domains), 0)
    count = pc.sum(empty).as_py() or 0
    if count:
        first = pc.min(files.filter(empty)).as_py()
        warnings.warn(
            f"{count} of {len(domains)} entries have an empty domain, in {first} for one: an address without a domain "
            "is not unique in the world, so different things may have been linked (identity= chooses other columns)",
            IIDWarning,
            stacklevel=3,
        )
