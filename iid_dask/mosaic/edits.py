"""What people change of a table of seams, checked: edited decisions, and which joins are taken back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from iid_dask.errors import IIDStoreError
from iid_dask.format.folder import Folder
from iid_dask.mosaic.evidence import Evidence
from iid_dask.mosaic.state import State, checked_table
from iid_dask.mosaic.tables import SCHEMAS

PAIR = ("tile_a", "key_a", "tile_b", "key_b")
"""Columns that tell a row of the table from all others."""


def edited(evidence: Evidence, table: Any, name: str) -> Evidence:
    """Take over decisions from an edited table of seams.

    Parameters
    ----------
    evidence
        As the mosaic has it.
    table : DataFrame or mapping of columns
        Of the same pairs, in any order; changed decisions become manual ones.
    name
        Of the mosaic, for errors.

    Raises
    ------
    ValueError
        For a table that lacks a column, or decisions that are neither true nor false.
    IIDStoreError
        If the table is of other pairs.
    """
    check_columns(table, (*PAIR, "decision", "manual"))
    ends = np.stack([np.asarray(table[column], np.int64) for column in PAIR], axis=1)
    order = np.lexsort(ends.T[::-1])
    if not np.array_equal(ends[order], evidence.pairs()):
        raise IIDStoreError(
            f"{name}: the table of {len(ends)} seams is not this mosaic's, which has {len(evidence)}: expected the "
            f"same {', '.join(PAIR)}; edit what its seams() returns now"
        )
    decision, manual = (_flags(table, column)[order] for column in ("decision", "manual"))
    return replace(evidence, decision=decision, manual=manual | (decision != evidence.decision))


def check_columns(table: Any, expected: Iterable[str]) -> None:
    """Raise ValueError for a table of seams that lacks a column."""
    wanted = tuple(expected)
    for name in wanted:
        if name not in table:
            raise ValueError(f"table of seams: no column {name!r}; expected {', '.join(wanted)}")


def _flags(table: Any, name: str) -> np.ndarray:
    """Return a column of truth values, bool; an editor may have made numbers of them."""
    values = np.asarray(table[name])
    if values.dtype != bool:
        for row, value in enumerate(values.tolist()):
            if not isinstance(value, int | float) or value not in (0, 1):
                raise ValueError(f"table of seams: {name} of row {row} is {value!r:.40}, expected True or False")
    return values.astype(bool)


def whole_numbers(what: str, given: Any) -> np.ndarray:
    """Return rows or keys, int64; a column of truth values would pass for rows 0 and 1."""
    numbers = np.atleast_1d(np.asarray([] if given is None else given))
    if numbers.size and numbers.dtype.kind not in "iu":
        raise TypeError(
            f"undo: {what} holds {numbers.dtype}, expected whole numbers, such as np.flatnonzero of a column"
        )
    return numbers.astype(np.int64)


def joins_within(folder: Folder, found: State, segments: np.ndarray) -> np.ndarray:
    """Rows of the table of seams that join pieces of these segments."""
    tables = found.manifest["tables"]
    count = tables["segments"]["rows"]
    wrong = segments[(segments < 0) | (segments >= count)]
    if len(wrong):
        raise KeyError(f"{folder}: no segment {wrong[0]}; keys are 0 … {count - 1}")
    wanted = ("tile", "key", "label")
    pieces = checked_table(folder, tables["pieces"], SCHEMAS["pieces"], wanted)
    chosen = np.isin(pieces["label"].astype(np.int64) - 1, segments)
    held = pieces["tile"][chosen] << 32 | pieces["key"][chosen]
    ends = found.evidence.tile_a << 32 | found.evidence.key_a
    return np.flatnonzero(found.evidence.decision & np.isin(ends, held))
