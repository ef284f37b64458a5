"""Sound JSON and tables made hostile by something that knows what they are.

A mutator is called as ``mutate(data, choose, blind)``: bytes, a random generator, and libFuzzer's own mutation of
bytes, which knows nothing of formats but what its coverage told. Any bytes are taken; those that are no input of their
kind are mutated blindly.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Blind = Callable[[bytes], bytes]
Mutate = Callable[[bytes, Random, Blind], bytes]
Cross = Callable[[bytes, bytes, Random], bytes]

SIZES = (0, 1, 2, 25, 40, 65_535, 65_536)
INTEGERS = (-1, *SIZES, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
VALUES: tuple[Any, ...] = (
    *INTEGERS,
    10**30,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    True,
    False,
    None,
    "",
    "a",
    "\x00",
    "\ud800",
    "../canary",
    "/etc/hostname",
    "tiles",
    "tiles/r0000000_c0000000.iid",
    "tiles/../mosaic.json",
    "file:///etc/hostname",
    "mosaic.json",
    "x" * 5000,
    [],
    [[]],
    [0, 0],
    [[0, 0], [1, 1]],
    {},
    {"height": 40, "width": 50},
    {"a": [1, {"b": None}]},
)


# --- JSON -------------------------------------------------------------------------------------------------------


def nodes_of(value: Any) -> list[tuple[Any, Any]]:
    """Return every container below a value with each of its keys."""
    found, left = [], [value]
    while left and len(found) < 500:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        left += [node[key] for key in keys]
    return found


def change_json(data: bytes, choose: Random, blind: Blind) -> bytes:
    """Put other values into JSON, drop or repeat some, or nest it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return blind(data)
    way = choose.random()
    if way < 0.1:
        return blind(data)
    if way < 0.15:
        depth = choose.choice((3, 64, 65, 1000, 30_000))
        return b"[" * depth + (data if choose.random() < 0.3 else b"") + b"]" * depth
    if way < 0.2 and data[:1] == b"{" and len(data) > 2:
        return data[:-1] + b", " + data[1:]
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        nodes = nodes_of(value)
        if not nodes:
            break
        node, key = choose.choice(nodes)
        way = choose.randrange(8)
        if way == 0:
            del node[key]
        elif way == 1:
            other, place = choose.choice(nodes)
            held = other[place] if place in (other if isinstance(other, dict) else range(len(other))) else None
            node[key] = deepcopy(held)
        elif way == 2 and isinstance(node[key], int):
            node[key] += choose.choice((-2, -1, 1, 2, 100))
        elif way == 3 and isinstance(node, list):
            node.append(deepcopy(choose.choice(VALUES)))
        elif way == 4 and isinstance(node, dict):
            node[choose.choice(("", "places", "removed", "image", "version"))] = deepcopy(choose.choice(VALUES))
        else:
            node[key] = deepcopy(choose.choice(VALUES))
    return json.dumps(value).encode()


def cross_json(data: bytes, other: bytes, choose: Random) -> bytes:
    """Put a value of one text into another."""
    try:
        mine, theirs = json.loads(data), json.loads(other)
    except (ValueError, RecursionError):
        return data
    places, values = nodes_of(mine), nodes_of(theirs)
    if places and values:
        (node, key), (held, name) = choose.choice(places), choose.choice(values)
        node[key] = held[name]
    return json.dumps(mine).encode()


# --- tables -----------------------------------------------------------------------------------------------------


def change_column(column: pa.ChunkedArray, choose: Random) -> pa.Array:
    """Return a column with other values, a null, or another type."""
    values = column.to_pylist()
    way = choose.randrange(6)
    if not values or way == 5:
        return pa.array([None if choose.random() < 0.3 else str(value) for value in values], pa.string())
    at = choose.randrange(len(values))
    if way == 4:
        values[at] = None
    elif pa.types.is_integer(column.type):
        near = (values[at] or 0) + choose.choice((-1, 1))
        values[at] = choose.choice((near, *INTEGERS))
        low, high = (0, 2**32 - 1) if column.type == pa.uint32() else (-(2**63), 2**63 - 1)
        values = [None if value is None else min(max(value, low), high) for value in values]
    else:
        texts = [value for value in VALUES if isinstance(value, str) and value != "\ud800"]
        values[at] = choose.choice([*texts, "tiles/r0000000_c0000025.iid"]).encode()
        if column.type == pa.string():
            values[at] = values[at].decode()
    return pa.array(values, column.type)


def rewrite(data: bytes, choose: Random) -> bytes:
    """Return a table with other values, in another layout."""
    table = pq.read_table(io.BytesIO(data))
    for _ in range(choose.choice((0, 1, 1, 2))):
        at = choose.randrange(table.num_columns)
        table = table.set_column(at, table.column_names[at], change_column(table.column(at), choose))
    way = choose.randrange(12)
    if way == 0 and table.num_columns > 1:
        table = table.drop_columns([choose.choice(table.column_names)])
    elif way == 1:
        table = table.slice(choose.randrange(table.num_rows + 1))
    elif way == 2:
        table = pa.concat_tables([table, table])
    elif way == 3:
        table = table.take(pa.array(choose.sample(range(table.num_rows), table.num_rows)))
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=choose.choice((1, 2, 65_536)),
        compression=choose.choice(("zstd", "snappy", "none")),
        use_dictionary=choose.random() < 0.5,
        version=choose.choice(("1.0", "2.6")),
    )
    return sink.getvalue()


def change_table(data: bytes, choose: Random, blind: Blind) -> bytes:
    """Mutate a table behind the byte that says which it is: its values, its bytes, or its footer alone."""
    if not data:
        return blind(data)
    head, table = data[:1], data[1:]
    if choose.random() < 0.05:
        head = bytes([choose.randrange(256)])
    way = choose.random()
    if way < 0.5:
        try:
            return head + rewrite(table, choose)
        except (pa.ArrowException, ValueError, OSError):
            return head + blind(table)
    if way < 0.7 and len(table) > 12:
        length = int.from_bytes(table[-8:-4], "little")
        start = max(4, len(table) - 8 - length)
        footer = blind(table[start:-8])
        return head + table[:start] + footer + len(footer).to_bytes(4, "little") + table[-4:]
    if way < 0.9 and len(table) > 12:
        at = choose.randrange(4, len(table) - 8)
        return head + table[:at] + bytes([choose.randrange(256)]) + table[at + 1 :]
    return head + blind(table)


def cross_bytes(data: bytes, other: bytes, choose: Random) -> bytes:
    """Return the beginning of one input and the end of another."""
    return data[: choose.randrange(len(data) + 1)] + other[choose.randrange(len(other) + 1) :]
