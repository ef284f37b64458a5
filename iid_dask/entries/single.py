"""The entry table of one open file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iid_dask.entries.rows import Rows
from iid_dask.entries.schema import Schema, frame
from iid_dask.format.reader import RecordReader
from iid_dask.lookup import as_keys
from iid_dask.pieces import Parted


def table(
    reader: RecordReader, keys: Any = None, *, columns: Sequence[str] | None = None, names: str = "bytes"
) -> pd.DataFrame:
    """Return the entry table of an open file; see `iid_dask.read_entries` for its columns.

    Only what the columns asked for need is read.

    Parameters
    ----------
    reader
    keys : int or sequence of int, optional
        Which entries, in which order; a key given twice is two rows. Default: all, ascending.
    columns, names
        As in `iid_dask.read_entries`.

    Returns
    -------
    pandas.DataFrame
        One row an entry; the index "entry" (int64) is the key.

    Raises
    ------
    KeyError
        For a key that no entry has.
    TypeError, ValueError
        For keys that are no integers, and columns that do not exist.

    Examples
    --------
    >>> import iid_dask
    >>> with iid_dask.open(iid_dask.sample("us")) as f:
    ...     print(f.entries([1, 0], columns=["address", "area", "groups"]))
           address    area      groups
    entry
    1        b'04'   11613  ["states"]
    0      b'None'  327509  ["nation"]
    """
    schema = Schema(names, wide=isinstance(reader, Parted))
    chosen = schema.choose(columns)
    if keys is None:
        return frame(Rows(reader, reader.entry_keys, schema).read(chosen), reader.entry_keys)
    wanted = as_keys(reader, keys)
    each, order = np.unique(wanted, return_inverse=True)
    found = Rows(reader, each, schema).read(chosen)
    if np.array_equal(each, wanted):
        return frame(found, each)
    taken = {
        name: values[order] if isinstance(values, np.ndarray) else values.take(pa.array(order))
        for name, values in found.items()
    }
    return frame(taken, wanted)
