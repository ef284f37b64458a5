"""The columns of the entry table: said here once, for pandas, dask and Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from iid_dask.entries.metadata import Metadata
from iid_dask.format.sections import brief

BYTES, TEXT = pa.large_binary(), pa.large_string()
"""With 64-bit offsets: a column of a table may hold more than 2 GiB."""

U4 = np.dtype(np.uint32)

BOX = ("min_row", "min_col", "max_row", "max_col")

KINDS: Mapping[str, np.dtype | pa.DataType] = {
    "file": TEXT,
    "key": U4,
    "domain": BYTES,
    "address": BYTES,
    **dict.fromkeys((*BOX, "area", "regions"), U4),
    "groups": TEXT,
    "mask": BYTES,
}
"""Columns in their order. Boxes are wider than a file's 16 bits, so that tables of larger images fit beside them."""

DEFAULT = tuple(name for name in KINDS if name != "mask")
"""Columns of a table if none are named."""

COST = dict.fromkeys((*BOX, "area", "regions"), 1) | {"domain": 2, "address": 2}
"""What it costs to know a column of an entry: 0 nothing, 1 the heads of segments, 2 its name."""

INDEX = "entry"
"""Name of a table's index: the key."""


@dataclass(frozen=True)
class Schema:
    """What a table's columns are called and what they hold.

    Attributes
    ----------
    names : {"bytes", "text"}
        Whether domain and address are bytes, exact, or text as `iid_dask.to_text` shows them.
    metadata : Metadata
        Columns of files rather than entries.
    wide : bool
        Whether areas have 64 bits, as those of mosaics need.
    """

    names: str = "bytes"
    metadata: Metadata = field(default_factory=Metadata)
    wide: bool = False

    def __post_init__(self) -> None:
        if self.names not in ("bytes", "text"):
            raise ValueError(f"names = {brief(self.names)}: expected 'bytes' or 'text'")
        for name in self.metadata.kinds:
            if name in KINDS:
                raise ValueError(f"metadata: {name!r} is a column of every entry table; expected another path")

    @property
    def kinds(self) -> dict[str, np.dtype | pa.DataType]:
        """Column -> what it holds, in the order of a table."""
        named = {"domain": TEXT, "address": TEXT} if self.names == "text" else {}
        wide = {"area": np.dtype(np.int64)} if self.wide else {}
        return {**KINDS, **named, **wide, **self.metadata.kinds}

    def is_of_file(self, name: str) -> bool:
        """Whether a column has one value in all rows of a file."""
        return name == "file" or name in self.metadata.kinds

    def is_claimed(self, name: str) -> bool:
        """Whether a small file can tell of a column of any size: nothing but a limit bounds these."""
        return name in ("groups", "mask") or self.is_of_file(name)

    def choose(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        """Return the columns of a table for the ones asked for: those of the metadata are in any.

        Raises
        ------
        TypeError, ValueError
            For anything else than names of columns, each once.
        """
        metadata = tuple(self.metadata.kinds)
        if columns is None:
            return DEFAULT + metadata
        if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
            raise TypeError(f"columns = {brief(columns)}: expected a list of names")
        chosen = tuple(columns)
        for name in chosen:
            if name not in self.kinds:
                raise ValueError(f"columns: no column {brief(name)}; there is: {', '.join(self.kinds)}")
            if chosen.count(name) > 1:
                raise ValueError(f"columns: {name!r} twice, expected every column once")
        return chosen + tuple(name for name in metadata if name not in chosen)


Column: TypeAlias = "np.ndarray | pa.Array"


def frame(columns: Mapping[str, Column], index: np.ndarray, name: str | None = INDEX) -> pd.DataFrame:
    """Make a dataframe of columns without copying them.

    Parameters
    ----------
    columns
    index : integer array, shape (n,)
    name
        Of the index.
    """
    arrays = {name: values if isinstance(values, np.ndarray) else as_pandas(values) for name, values in columns.items()}
    return pd.DataFrame(arrays, index=pd.Index(index, dtype=np.int64, name=name), copy=False)


def as_pandas(values: pa.Array) -> Any:
    """Return an Arrow array as a column of a dataframe, of the same memory.

    Text is pandas' own Arrow-backed "string": dask turns Arrow's other text types into it, unasked.
    """
    if pa.types.is_large_string(values.type):
        return pd.arrays.ArrowStringArray(values)
    return pd.arrays.ArrowExtensionArray(values)


def no_rows(kinds: Mapping[str, np.dtype | pa.DataType]) -> dict[str, Column]:
    """Return columns of length 0."""
    return {name: empty(kind) for name, kind in kinds.items()}


def empty(kind: Any) -> Column:
    """Return a column of length 0."""
    return np.zeros(0, kind) if isinstance(kind, np.dtype) else pa.array([], kind)


def concat(parts: Sequence[Column]) -> Column:
    """Lay parts of one column one after another; there is at least one."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts)
