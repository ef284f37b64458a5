"""Statistics of an image under every mask: what the sums of all tiles make together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from iid_dask import kernels
from iid_dask.measurements.job import Job
from iid_dask.measurements.sums import Sums, flip_of, table_dtype

SLICE = 2**16
"""Rows whose sums are Python integers at once."""


def statistics(job: Job, keys: np.ndarray, tables: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Merge the sums of tiles.

    Parameters
    ----------
    job
    keys : uint32 array, shape (n,)
        Ascending; rows of other entries are passed over.
    tables
        What `tile_sums` made, in the order of tiles.

    Returns
    -------
    dict
        For each statistic asked for an array with one element an entry and channel, in this order; ``count`` always.
        What does not exist without pixels has any value there.

    Raises
    ------
    OverflowError
        If a sum of integers does not fit 64 bits.
    """
    channels = job.channels or 1
    parts, places = [np.zeros(0, table_dtype(job.dtype))], [np.zeros(0, np.int64)]
    for table in tables:
        some = _rows_of(table, keys)
        parts.append(some)
        places.append(np.searchsorted(keys, some["key"]) * channels + some["channel"])
    table, at = np.concatenate(parts), np.concatenate(places)
    if job.dtype.kind == "f":
        return _of_floats(job, table, at, len(keys) * channels)
    return _of_integers(job, keys, table, at, len(keys) * channels)


def _rows_of(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Rows from the first to the last of some keys, of which all or none between them are wanted."""
    if not len(keys):
        return table[:0]
    return table[np.searchsorted(table["key"], keys[0]) : np.searchsorted(table["key"], keys[-1], side="right")]


def _of_floats(job: Job, table: np.ndarray, at: np.ndarray, n: int) -> dict[str, np.ndarray]:
    merged = Sums(table.dtype, n).columns
    counts, values = merged["count"], merged["values"]
    parts = np.ascontiguousarray(table["count"]), np.ascontiguousarray(table["values"])
    kernels.merge_floats(at, *parts, counts, values)
    values[counts == 0, 4:] = np.nan
    results = np.empty((3, n))
    kernels.float_results(counts, values, results)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        low, high = values[:, 4].astype(job.dtype), values[:, 5].astype(job.dtype)
    return {"count": counts, "sum": results[0], "mean": results[1], "std": results[2], "min": low, "max": high}


def _of_integers(job: Job, keys: np.ndarray, table: np.ndarray, at: np.ndarray, n: int) -> dict[str, np.ndarray]:
    order = np.argsort(at, kind="stable")
    table, at = table[order], at[order]
    starts = np.flatnonzero(np.append(True, at[1:] != at[:-1])) if len(at) else np.zeros(0, np.int64)
    rows = at[starts]

    def spread(name: str, reduce: Any, values: np.ndarray) -> np.ndarray:
        out = np.zeros((n, *values.shape[1:]), table.dtype[name].base)
        if len(starts):
            out[rows] = reduce.reduceat(values, starts, axis=0)
        return out

    out = {"count": spread("count", np.add, table["count"])}
    out |= {
        name: _from_flipped(spread(side, reduce, table[side]), job.dtype)
        for name, side, reduce in (("min", "low", np.minimum), ("max", "high", np.maximum))
    }
    wanted = [name for name in ("sum", "mean", "std") if name in job.properties]
    if wanted:
        halves = [
            spread("sums", np.add, table["sums"] & np.uint64(2**32 - 1)),
            spread("sums", np.add, table["sums"] >> np.uint64(32)),
        ]
        out |= _exact(job, keys, wanted, out["count"], halves)
    return out


def _from_flipped(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (values.astype(f"u{dtype.itemsize}") ^ flip_of(dtype)).view(dtype)


def _exact(
    job: Job, keys: np.ndarray, wanted: Sequence[str], counts: np.ndarray, halves: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Make sum, mean and standard deviation of sums given as lower and upper 32 bits; all but the last step exact."""
    whole = np.dtype(np.int64 if job.dtype.kind == "i" else np.uint64)
    dtypes = {"sum": whole, "mean": np.dtype(float), "std": np.dtype(float)}
    out = {name: np.zeros(len(counts), dtypes[name]) for name in wanted}
    for begin in range(0, len(counts), SLICE):
        some = slice(begin, begin + SLICE)
        n = counts[some].astype(object)
        total, squares = _python_sums(job.dtype, n, *(half[some].astype(object) for half in halves))
        n[counts[some] == 0] = 1
        if "sum" in out:
            _check_fits(job, keys, begin, total, whole)
            out["sum"][some] = total.astype(whole)
        if "mean" in out:
            out["mean"][some] = (total / n).astype(float)
        if "std" in out:
            out["std"][some] = np.sqrt(((n * squares - total * total) / (n * n)).astype(float))
    for name in set(out) - {"sum"}:
        out[name][counts == 0] = np.nan
    return out


def _python_sums(dtype: np.dtype, n: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Σx and Σx² as Python integers; see `kernels.add_integers` for what the columns are."""
    s = (low + high * 2**32).T
    total, squares = s[0], s[1]
    if len(s) > 2:
        total = total + s[3] * 2**32
        squares = squares + s[2] * 2**64 + (s[4] + s[5] * 2**64) * 2**33 + (s[6] + s[7] * 2**64) * 2**64
    zero = int(flip_of(dtype))
    return total - n * zero, squares - 2 * zero * total + n * zero * zero


def _check_fits(job: Job, keys: np.ndarray, begin: int, totals: np.ndarray, whole: np.dtype) -> None:
    limits = np.iinfo(whole)
    beyond = np.flatnonzero((totals < int(limits.min)) | (totals > int(limits.max)))
    if len(beyond):
        row = begin + int(beyond[0])
        key, channel = divmod(row, job.channels or 1)
        where = f"entry {keys[key]}" + ("" if job.channels is None else f", channel {channel}")
        raise OverflowError(
            f"{job.reader.name}: {where}: the sum {totals[beyond[0]]} does not fit {whole}, expected "
            f"{limits.min} to {limits.max}; convert the image to float64, or leave out 'sum'"
        )
