"""Filters of the entry table, in the form of pyarrow and dask: checked first, then tested cheapest columns first."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iid_dask.entries.rows import Rows
from iid_dask.entries.schema import COST, Schema
from iid_dask.format.sections import brief

COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
ARROW_COMPARE = {
    "==": pc.equal,
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
MEMBERSHIP = ("in", "not in")

FORM = "a list of (column, op, value), all of which must hold, or a list of such lists, any of which must"


@dataclass(frozen=True)
class Test:
    """One comparison: ``column op value``; the value of "in" and "not in" is a tuple."""

    column: str
    op: str
    value: Any

    @property
    def cost(self) -> int:
        """See `iid_dask.entries.schema.COST`."""
        return COST.get(self.column, 0)


Filters = tuple[tuple[Test, ...], ...]
"""Alternatives, of each of which all tests must hold; none at all is no filter."""


# --- checking ---------------------------------------------------------------------------------------------------


def parse(filters: Any, schema: Schema) -> Filters:
    """Check filters.

    Raises
    ------
    TypeError, ValueError
        For another form, unknown columns and operators, values of another type than the column's, and NaN.
    """
    if filters is None:
        return ()
    if not isinstance(filters, list | tuple):
        raise TypeError(f"filters = {brief(filters)}: expected {FORM}")
    if not filters:
        return ()
    if all(_is_test(part) for part in filters):
        return (tuple(_parse_test(part, schema) for part in filters),)
    for part in filters:
        if _is_test(part) or not isinstance(part, list | tuple) or not part or not all(map(_is_test, part)):
            raise ValueError(f"filters: {brief(part)}: expected {FORM}")
    return tuple(tuple(_parse_test(test, schema) for test in part) for part in filters)


def _is_test(part: Any) -> bool:
    return isinstance(part, list | tuple) and len(part) == 3 and all(isinstance(word, str) for word in part[:2])


def _parse_test(part: Any, schema: Schema) -> Test:
    column, op, value = part
    known = [name for name in schema.kinds if name != "mask"]
    if column not in known:
        raise ValueError(f"filters: no column {brief(column)} to filter by; there is: {', '.join(known)}")
    kind = schema.kinds[column]
    if op in MEMBERSHIP:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise TypeError(f"filters: {column} {op} {brief(value)}: expected a list of values")
        return Test(column, op, tuple(_checked(column, item, kind) for item in value))
    if op not in COMPARE:
        raise ValueError(f"filters: no operator {brief(op)}; there is: {', '.join((*COMPARE, *MEMBERSHIP))}")
    return Test(column, op, _checked(column, value, kind))


def _checked(column: str, value: Any, kind: Any) -> Any:
    """Return a value as plain Python, or raise what was expected."""
    if isinstance(value, np.generic):
        value = value.item()
    expected = _expected(kind)
    if isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        if value != value:
            raise ValueError(f"filters: {column}: {value!r} is equal to nothing, above nothing and below nothing")
        return value
    what = "a number" if expected is Real else expected.__name__
    way_out = f"; write {brief(value)}.encode()" if expected is bytes and isinstance(value, str) else ""
    raise TypeError(f"filters: {column}: {brief(value)} is {type(value).__name__}, expected {what}{way_out}")


def _expected(kind: Any) -> type:
    """What Python calls the values of a column."""
    if isinstance(kind, np.dtype) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Real
    if pa.types.is_large_binary(kind):
        return bytes
    if pa.types.is_large_string(kind):
        return str
    if pa.types.is_boolean(kind):
        return bool
    raise TypeError(f"filters: a column of type {kind} cannot be filtered by; filter the table itself")


# --- testing ----------------------------------------------------------------------------------------------------


def select(rows: Rows, filters: Filters, costs: Iterable[int] = (0, 1, 2)) -> Rows:
    """Return the rows that pass.

    Parameters
    ----------
    rows
    filters
    costs
        Which tests to make, ascending: those of other columns pass.
    """
    if not filters:
        return rows
    alive = [np.ones(len(rows), bool) for _ in filters]
    for cost in costs:
        keep = np.logical_or.reduce(alive)
        rows, alive = rows.narrowed(keep), [passed[keep] for passed in alive]
        # What passes an alternative without tests of this cost or a higher one is in, whatever the others say.
        undecided = [any(test.cost >= cost for test in tests) for tests in filters]
        sure = [passed for passed, open_ in zip(alive, undecided, strict=True) if not open_]
        doubtful = ~np.logical_or.reduce([*sure, np.zeros(len(rows), bool)])
        some = rows.narrowed(doubtful)
        for tests, passed in zip(filters, alive, strict=True):
            for test in tests:
                if test.cost == cost and len(some):
                    passed[doubtful] &= holds(some, test)
    return rows.narrowed(np.logical_or.reduce(alive))


def holds(rows: Rows, test: Test) -> np.ndarray:
    """Return for each row whether a test holds, bool; null passes no test."""
    kind = rows.schema.kinds[test.column]
    if rows.schema.is_of_file(test.column):
        value = rows.of_file(test.column)[0].as_py()
        return np.full(len(rows), value is not None and _holds(value, test))
    values = rows[test.column]
    if isinstance(values, np.ndarray):
        if test.op not in MEMBERSHIP:
            return COMPARE[test.op](values, test.value)
        # Only integers that the column can hold: numpy would compare the others as Python objects.
        wanted = [int(v) for v in test.value if 0 <= v < 2**32 and v == int(v)]
        return np.isin(values, np.array(wanted, np.uint32), invert=test.op == "not in")
    if test.op not in MEMBERSHIP:
        found = ARROW_COMPARE[test.op](values, pa.scalar(test.value, kind))
    else:
        found = pc.is_in(values, value_set=pa.array(test.value, kind))
    passed = found.to_numpy(zero_copy_only=False)
    return ~passed if test.op == "not in" else passed


def _holds(value: Any, test: Test) -> bool:
    if test.op in MEMBERSHIP:
        return (value in test.value) == (test.op == "in")
    return bool(COMPARE[test.op](value, test.value))
