"""Which entries of a file are in a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.entries.filters import Filters, parse, select
from iid_dask.entries.rows import Rows
from iid_dask.entries.schema import Schema
from iid_dask.format.reader import RecordReader
from iid_dask.lookup import as_groups, members
from iid_dask.queries import boxes_meet


@dataclass(frozen=True)
class Query:
    """What entries must pass: all of these; None passes all.

    Attributes
    ----------
    groups : tuple of str, optional
        Members of any.
    bbox : BBox, optional
        Entries whose box meets it.
    filters : Filters
    """

    groups: tuple[str, ...] | None = None
    bbox: BBox | None = None
    filters: Filters = ()

    @classmethod
    def of(cls, schema: Schema, groups: Any, bbox: Any, filters: Any) -> Query:
        """Check what a caller asks for.

        Raises
        ------
        TypeError, ValueError
        """
        return cls(as_groups(groups), None if bbox is None else BBox.of(bbox), parse(filters, schema))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        box = None if self.bbox is None else tuple(self.bbox)
        tests = [[(test.column, test.op, test.value) for test in tests] for tests in self.filters]
        return ("iid_dask.Query", self.groups, box, tests)


def pick(
    reader: RecordReader, query: Query, schema: Schema, span: tuple[int, int] | None = None, *, names: bool = True
) -> Rows:
    """Return the entries that a query asks for; what is cheap to know is tested first.

    Parameters
    ----------
    reader, query, schema
        A group that the file does not have has no members there.
    span : (first, last), optional
        Only keys from first to last, both included.
    names
        Test names too; without, entries whose names may not pass are among the answer.
    """
    keys = reader.entry_keys
    if query.groups is not None:
        keys = members(reader, [name for name in query.groups if name in reader.groups])
    if span is not None:
        keys = keys[np.searchsorted(keys, span[0]) : np.searchsorted(keys, span[1], side="right")]
    rows = select(Rows(reader, keys, schema), query.filters, costs=(0,))
    if query.bbox is not None:
        rows = rows.narrowed(boxes_meet(rows.boxes(), query.bbox))
    return select(rows, query.filters, costs=(0, 1, 2) if names else (0, 1))
