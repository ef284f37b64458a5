"""What label arrays show: keys, addresses that are numbers, or a caller's own integers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from iid_dask.lookup import as_keys
from iid_dask.views import View

DECIMAL = re.compile(rb"[0-9]{1,20}\Z")


def make_labels(view: View, labels: Any) -> np.ndarray | None:
    """Return what each row of the lut paints, or None for key + 1.

    Parameters
    ----------
    view : View
        Only entries that it shows need a label.
    labels : {"key", "address"}, array or table
        As in ``xr.open_dataset``. Of a table with a column ``file`` only the rows of this file count.

    Raises
    ------
    ValueError, TypeError
        For labels that are not one integer of 1 or more for every entry.
    KeyError
        For a row of a table whose entry the file does not have.
    """
    if isinstance(labels, str) and labels == "key":
        return None
    if isinstance(labels, str) and labels == "address":
        return _of_addresses(view)
    if isinstance(labels, str):
        raise ValueError(f"labels = {labels!r}: expected 'key', 'address', or one integer an entry")
    keys, values = view.reader.entry_keys, labels
    if {"key", "label"} <= set(_columns(labels)):
        keys, values = _of_table(view, labels)
    return _spread(view, keys, _as_integers(keys, values))


def _columns(table: Any) -> Iterable[str]:
    if hasattr(table, "compute") or hasattr(table, "to_pandas"):
        way_out = "compute()" if hasattr(table, "compute") else "to_pandas()"
        raise TypeError(f"labels: a {type(table).__name__}, expected an array, or a table in memory: use its {way_out}")
    if isinstance(table, np.ndarray):
        return table.dtype.names or ()
    return table.keys() if hasattr(table, "keys") else ()


def _of_table(view: View, table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Keys and labels of a table's rows, those of this file where it tells files apart."""
    rows: Any = slice(None)
    if "file" in _columns(table):
        same = table["file"] == view.reader.name
        rows = np.asarray(same.fillna(False) if hasattr(same, "fillna") else same, dtype=bool)
        if len(rows) and not rows.any():
            raise ValueError(
                f"labels: the table has no row for {view.reader.name}, its first is for "
                f"{np.asarray(table['file'])[0]}; a file is named as iid_dask.open(path).name"
            )
    keys = as_keys(view.reader, np.asarray(table["key"])[rows])
    found, counts = np.unique(keys, return_counts=True)
    if np.any(counts > 1):
        key, count = found[counts > 1][0], counts[counts > 1][0]
        raise ValueError(f"labels: the table has {count} rows for entry {key}, expected one")
    missing = np.setdiff1d(view.keys, keys)
    if len(missing):
        raise ValueError(f"labels: the table has no row for {len(missing)} entries, the first is {missing[0]}")
    return keys, np.asarray(table["label"])[rows]


def _as_integers(keys: np.ndarray, labels: Any) -> np.ndarray:
    values = np.asarray(labels)
    if values.shape != keys.shape:
        raise ValueError(f"labels: an array of shape {values.shape}, expected one integer for each of {len(keys)}")
    if values.dtype.kind not in "iu":
        raise ValueError(f"labels: dtype {values.dtype}, expected integers")
    return values


def _spread(view: View, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Labels by row of the lut, of a type that holds them; 0 where nobody is shown."""
    shown = np.isin(keys, view.keys)
    if np.any(values[shown] < 1):
        bad = int(np.flatnonzero(shown & (values < 1))[0])
        raise ValueError(
            f"labels: {values[bad]} for entry {keys[bad]}, expected 1 or more: 0 is background (keys= omits entries)"
        )
    dtype = values.dtype
    if dtype.kind == "i":  # numpy's default is 64 bits wide
        dtype = _smallest(values)
    out = np.zeros(len(view.reader.live), dtype)
    out[keys] = np.where(values < 1, 0, values)
    return out


def _smallest(values: np.ndarray) -> np.dtype:
    return np.dtype(np.uint32 if values.max(initial=0) < 2**32 else np.uint64)


def _of_addresses(view: View) -> np.ndarray:
    addresses = view.reader.names(view.keys)[1]
    for key, address in zip(view.keys.tolist(), addresses, strict=True):
        if not DECIMAL.match(address) or not 1 <= int(address) < 2**64:
            raise ValueError(
                f"{view.reader.name}: entry {key}: address {address!r} is no decimal number from 1 to 2**64 - 1, "
                'expected one for labels="address"; choose entries by keys=, groups= or domains=, or labels="key"'
            )
    numbers = np.array([int(address) for address in addresses], np.uint64)
    out = np.zeros(len(view.reader.live), _smallest(numbers))
    out[view.keys] = numbers
    return out
