"""Entries that share pixels: all pairs of a file, with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from iid_dask.apart import taken_apart, thinned
from iid_dask.costs import columns_bytes, region_boxes, stored_bytes
from iid_dask.cutting import as_nbytes, split
from iid_dask.errors import IIDFormatError
from iid_dask.format.reader import RecordReader, open_records
from iid_dask.lookup import as_keys
from iid_dask.pairs import BYTES, PAIRS, Bits, Regions, added_up, codes, common_pixels, decoded, meeting
from iid_dask.pieces import Parted
from iid_dask.running.admission import admit
from iid_dask.running.plan import TABLES_BYTES, Plan

if TYPE_CHECKING:
    import dask.dataframe as dd

AREA = 12
"""Byte of a segment at which its area stands."""

PAIR, SWEPT, TASK = 500, 300, 4096
"""Bytes of memory of a pair that is compared, of a region whose box is, and of a task in the process that calls."""

BLOCKSIZE = 2**24
"""Bytes of the masks of which a task looks for partners."""


def overlaps(
    source: Any,
    keys: Any = None,
    *,
    min_pixels: int = 1,
    blocksize: int | str = BLOCKSIZE,
    storage_options: Mapping[str, Any] | None = None,
) -> dd.DataFrame:
    """Find all pairs of entries that share pixels, and how many, in parallel.

    Candidates are found by their boxes alone; of their masks only the rows are read that both have.

    Parameters
    ----------
    source : path, URL or IIDReader
        The ``.iid`` file.
    keys : sequence of int, optional
        Only pairs among these; order and repeats do not matter.
    min_pixels : int
        Only pairs that share at least so many, 1 or more.
    blocksize : int or str
        Bytes of masks, as stored, of the entries ``key_a`` of one partition, such as "16 MiB".
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    dask.dataframe.DataFrame
        One row a pair, ordered by both keys, each partition with an index of its own from 0. Columns:

        - ``key_a``, ``key_b`` : uint32, ``key_a < key_b``
        - ``pixels`` : int64, those that both masks have
        - ``iou`` : float64, ``pixels`` to those that either has
        - ``containment`` : float64, ``pixels`` to those of the smaller mask

        Areas are those that the file states, of masks whose regions share pixels those of their union.

    Raises
    ------
    KeyError
        For a key that the file does not have; says what it has.
    TypeError
        For keys that are no integers.
    ValueError
        For ``min_pixels`` below 1, or a ``blocksize`` that is none.
    IIDLimitError
        If workers have too little memory; see `iid_dask.plan`.
    IIDFormatError
        In a task: for an entry that shares more pixels than the area that the file states.

    Notes
    -----
    A task holds columns of the boxes of all entries, about 64 MiB of mask bits, and its rows.

    Examples
    --------
    >>> import iid_dask
    >>> print(iid_dask.overlaps(iid_dask.sample("us"), keys=[0, 1, 50, 60]).compute().round(3))
       key_a  key_b  pixels    iou  containment
    0      0      1   11613  0.035          1.0
    1      0     50    1387  0.004          1.0
    2      0     60      40  0.000          1.0
    3      1     50    1387  0.119          1.0
    """
    import dask.dataframe as dd

    nbytes = as_nbytes("overlaps: blocksize", blocksize)
    reader = source if isinstance(source, RecordReader) else open_records(source, storage_options=storage_options)
    search = _Search.of(reader, keys, min_pixels)
    every = search.all_keys
    spans = split(every, reader.lut["segment_length"][every].astype(np.int64), nbytes)
    admit(_plan(search, len(spans)))
    return dd.from_map(_rows, spans or [(0, -1)], meta=_frame(), label="overlaps", search=search)


def _plan(search: _Search, tasks: int) -> Plan:
    """Return what the search takes."""
    reader = search.reader
    return Plan(
        f"overlaps of {reader.name}",
        tasks,
        tasks,
        stored_bytes(reader),
        None,
        0,
        TABLES_BYTES + columns_bytes(reader),
        search_bytes(reader),
        tasks * TASK,
    )


def search_bytes(reader: RecordReader) -> int:
    """Bytes of memory of a thread that looks for pairs: masks, pairs that are compared, boxes of all entries."""
    return min(2 * BYTES, 3 * stored_bytes(reader)) + PAIRS * PAIR + len(region_boxes(reader)) * SWEPT


def table(reader: RecordReader, keys: Any = None, *, min_pixels: int = 1) -> pd.DataFrame:
    """Find all pairs of entries that share pixels; see `overlaps` for parameters, columns and errors.

    Examples
    --------
    >>> import iid_dask
    >>> with iid_dask.open(iid_dask.sample("us")) as f:
    ...     print(table(f, min_pixels=16_593))
       key_a  key_b  pixels       iou  containment
    0      0     13   26112  0.079729          1.0
    1      0     20   16593  0.050664          1.0
    2      0     23   18073  0.055183          1.0
    """
    return _rows((0, len(reader.live) - 1), _Search.of(reader, keys, min_pixels))


@dataclass(frozen=True, eq=False)
class _Search:
    """What is looked for.

    Attributes
    ----------
    reader : RecordReader
    keys : uint32 array, optional
        Ascending; None for all.
    min_pixels : int
    """

    reader: RecordReader
    keys: np.ndarray | None
    min_pixels: int

    @classmethod
    def of(cls, reader: RecordReader, keys: Any, min_pixels: Any) -> _Search:
        """Check the options of a search."""
        if not isinstance(min_pixels, int | np.integer) or isinstance(min_pixels, bool) or min_pixels < 1:
            raise ValueError(f"overlaps: min_pixels = {min_pixels!r}, expected an integer, 1 or more")
        return cls(reader, None if keys is None else np.unique(as_keys(reader, keys)), int(min_pixels))

    @property
    def all_keys(self) -> np.ndarray:
        """Ascending, uint32."""
        return self.reader.entry_keys if self.keys is None else self.keys

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        keys = None if self.keys is None else hashlib.blake2b(self.keys.tobytes(), digest_size=16).hexdigest()
        return ("iid_dask.overlaps", self.reader.__dask_tokenize__(), keys, self.min_pixels)


# --- a partition ------------------------------------------------------------------------------------------------


def _rows(span: tuple[int, int], search: _Search) -> pd.DataFrame:
    """Find the pairs of which the lower key lies in a span, both ends included."""
    reader, (first, last) = search.reader, span
    keys = search.all_keys[np.searchsorted(search.all_keys, first) :]
    columns, rows = reader.segment_columns(keys)
    thin = thinned(reader, Regions.of(columns, rows, keys))
    bits, regions = thin.bits, thin.regions
    numbers, pixels = _count(bits, regions, first, last + 1)
    lower, higher = decoded(numbers)
    entries, places = np.unique(np.concatenate([lower, higher]), return_inverse=True)
    areas = columns.areas[rows[np.searchsorted(keys, entries)]].astype(np.int64)
    a, b = places.reshape(2, -1)
    twice = np.isin(entries, thin.sharing(entries))
    if twice.any():
        concerned = entries[np.unique(np.concatenate([side[twice[a] | twice[b]] for side in (a, b)]))]
        again = _recount(bits, regions.chosen(np.isin(regions.keys, concerned)), first, last + 1)
        pixels[np.searchsorted(numbers, again.numbers)] = again.pixels
        areas[twice] = again.areas[np.searchsorted(again.keys, entries[twice])]
    shared = np.zeros_like(areas)
    np.maximum.at(shared, places, np.tile(pixels, 2))
    _check_areas(reader, entries, areas, shared)
    keep = pixels >= search.min_pixels
    return _frame(lower[keep], higher[keep], pixels[keep], areas[a[keep]], areas[b[keep]])


def _count(bits: Bits, regions: Regions, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of pairs that share pixels, ascending, and how many: those of two regions of an entry twice."""
    numbers, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for pairs in meeting(regions, start, stop):
        pixels = common_pixels(bits, regions, pairs)
        share = pixels > 0
        some, sums = added_up(codes(*(regions.keys[places[share]] for places in pairs)), pixels[share])
        numbers.append(some)
        counts.append(sums)
    return added_up(np.concatenate(numbers), np.concatenate(counts))


class _Recount(NamedTuple):
    """Pixels of pairs by their numbers, and areas by keys, both ascending; every pixel of an entry once."""

    numbers: np.ndarray
    pixels: np.ndarray
    keys: np.ndarray
    areas: np.ndarray


def _recount(bits: Bits, regions: Regions, start: int, stop: int) -> _Recount:
    """Count anew, from masks held in memory, what entries share of which regions share pixels."""
    pairs, entries = [], []
    for held, some, pixels in taken_apart(bits, regions):
        pairs.append(_count(held, some, start, stop))
        entries.append(added_up(some.keys, pixels))
    return _Recount(*_merged(pairs), *_merged(entries))


def _merged(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return added_up(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _check_areas(reader: RecordReader, entries: np.ndarray, areas: np.ndarray, shared: np.ndarray) -> None:
    """Refuse a file that states a smaller area than an entry shares with another: ratios would be nonsense."""
    for i in np.flatnonzero(shared > areas)[:1].tolist():
        key, offset = int(entries[i]), None
        if not isinstance(reader, Parted):
            offset = int(reader.header["segments_offset"]) + int(reader.lut["segment_offset"][key]) + AREA
        raise IIDFormatError(
            reader.name,
            "segments",
            key,
            offset,
            f"area {areas[i]}",
            f"at least {shared[i]}, the pixels that the entry shares with another (check() lists all defects)",
        )


def _frame(
    lower: Sequence[int] | np.ndarray = (),
    higher: Sequence[int] | np.ndarray = (),
    pixels: Sequence[int] | np.ndarray = (),
    area_a: Any = (),
    area_b: Any = (),
) -> pd.DataFrame:
    """Return rows of the table; without any, its schema."""
    found, a, b = (np.asarray(values, np.int64) for values in (pixels, area_a, area_b))
    return pd.DataFrame(
        {
            "key_a": np.asarray(lower, np.uint32),
            "key_b": np.asarray(higher, np.uint32),
            "pixels": found,
            "iou": found / (a + b - found),
            "containment": found / np.minimum(a, b),
        }
    )
