"""Tables to the terminal or a file, some partitions at a time."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
import numpy as np

from iid_dask.names import to_text

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("table", "csv", "json", "parquet")

TOGETHER = 16
"""Partitions that are computed together."""


def format_of(chosen: str | None, out: str | None) -> str:
    """Return the format asked for, or the one that the name of the file to write tells."""
    if chosen is None:
        suffix = Path(out).suffix[1:] if out else "table"
        if suffix not in FORMATS:
            raise click.UsageError(f"--out {out}: expected a name in .csv, .json or .parquet")
        return suffix
    if chosen == "parquet" and out is None:
        raise click.UsageError("--format parquet needs --out FILE")
    return chosen


def parts_of(frame: Any) -> Iterator[pd.DataFrame]:
    """Compute a dask dataframe, some partitions at a time."""
    from iid_dask.running import run_graph

    partitions = iter(frame.partitions)
    while some := list(islice(partitions, TOGETHER)):
        # Not by dask.compute, which waits for workers without end.
        tasks = [task for partition in some for task in partition.to_delayed()]
        yield from run_graph(tasks, "", progress=False)


def write(parts: Iterable[pd.DataFrame], kind: str, out: str | None) -> int:
    """Write a table and return its rows; a file appears whole or not at all."""
    if out is None:
        return WRITERS[kind](parts, sys.stdout)
    from iid_dask.format.target import atomic_write

    with atomic_write(out) as file:
        if kind == "parquet":
            return _parquet(parts, file)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            return WRITERS[kind](parts, text)
        finally:
            text.detach()  # its own end must not close the file, which is not whole yet


def _parquet(parts: Iterable[pd.DataFrame], file: Any) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, writer = 0, None
    for part in parts:
        table = pa.Table.from_pandas(part, preserve_index=False)
        if writer is None:
            writer = pq.ParquetWriter(file, table.schema)
        writer.write_table(table)
        rows += len(part)
    if writer is not None:
        writer.close()
    return rows


def _table(parts: Iterable[pd.DataFrame], file: TextIO) -> int:
    rows = 0
    for part in parts:
        if len(part) or not rows:
            file.write(_shown(part).to_string(index=False, header=not rows) + "\n" if len(part) else "")
        rows += len(part)
    return rows


def _csv(parts: Iterable[pd.DataFrame], file: TextIO) -> int:
    rows, writer = 0, csv.writer(file, lineterminator="\n")
    for number, part in enumerate(parts):
        if not number:
            writer.writerow(part.columns)
        writer.writerows(zip(*(_plain(part[name]) for name in part), strict=True))
        rows += len(part)
    return rows


def _json(parts: Iterable[pd.DataFrame], file: TextIO) -> int:
    rows = 0
    file.write("[")
    for part in parts:
        names = list(part)
        for values in zip(*(_plain(part[name]) for name in names), strict=True):
            file.write(("," if rows else "") + "\n" + json.dumps(dict(zip(names, values, strict=True))))
            rows += 1
    file.write("\n]\n" if rows else "]\n")
    return rows


WRITERS = {"table": _table, "csv": _csv, "json": _json}


def _plain(column: Any) -> list[Any]:
    """A column as what JSON holds: names as text, what is missing or no finite number as None."""
    values = column.astype(object).where(column.notna(), None).tolist()
    return [_as_plain(value) for value in values]


def _as_plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return to_text(value)
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(part: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    columns = {name: [_printable(value) for value in _plain(part[name])] for name in part}
    return pd.DataFrame(columns, dtype=object)


def _printable(value: Any) -> Any:
    """Without the control characters by which a name could write to more of a terminal than its place."""
    if isinstance(value, str) and not value.isprintable():
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in value)
    return value
