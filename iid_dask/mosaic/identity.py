"""Who is the same segment, and in which order segments stand: columns in, columns out."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from iid_dask import kernels
from iid_dask.errors import IIDFormatError, IIDLimitError, IIDStoreError, IIDWarning
from iid_dask.mosaic.folder import Job
from iid_dask.mosaic.survey import Entries, Strings

MAX_SEGMENTS = 2**32 - 2
"""Labels are 32 bits, and 0 is the background."""

NOWHERE = 2**62
"""Place of the first pixel of an empty segment: behind every other."""


# --- who is one -------------------------------------------------------------------------------------------------


def components(job: Job, entries: Entries, paths: list[str], pairs: np.ndarray) -> np.ndarray:
    """Number the segments that entries are pieces of.

    Parameters
    ----------
    job
    entries
    paths
        Of the tiles, for errors.
    pairs : int64 array, shape (m, 2)
        Rows of entries that a rule joined; empty where labels or names do.

    Returns
    -------
    int64 array, shape (n,)
        Equal for pieces of one segment, 0 … count - 1; ascending labels of a label image, names sorted as bytes.

    Raises
    ------
    IIDFormatError
        For an entry of a label image whose name is no label.
    IIDStoreError
        For one identity twice in a tile, if the job refuses that.
    """
    if job.stitch == "label":
        return dense(labels_of(entries, paths))
    if job.stitch != "name":
        parent = np.arange(len(entries))
        kernels.unite(parent, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))
        return dense(parent)
    codes = name_ranks(entries)
    if "group" in job.identity:
        codes = dense(codes * (len(entries) + 1) + _group_sets(entries))
    _look_for_duplicates(job, entries, paths, codes)
    return codes


def dense(values: np.ndarray) -> np.ndarray:
    """Replace values by their rank among the different ones, int64."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def labels_of(entries: Entries, paths: list[str]) -> np.ndarray:
    """Return the labels that the entries of a label image are named by, uint64."""
    labels = np.empty(len(entries), np.uint64)
    done = int(kernels.parse_decimals(entries.addresses.data, entries.addresses.offsets, labels))
    if done < len(entries):
        raise IIDFormatError(
            paths[entries.tile[done]],
            "iids",
            int(entries.key[done]),
            None,
            f"the address {entries.addresses[done]!r:.60}",
            "a label as decimal digits, 1 … 2^64 - 1: tiles of a job with stitch='label' are made of label arrays",
        )
    return labels


def name_ranks(entries: Entries) -> np.ndarray:
    """Number the different (domain, address) in the order of their bytes, int64."""
    domains, _ = _ranks(entries.domains)
    addresses, count = _ranks(entries.addresses)
    return dense(domains * max(count, 1) + addresses)


def _ranks(strings: Strings) -> tuple[np.ndarray, int]:
    coded = to_arrow(strings).dictionary_encode()
    order = pc.sort_indices(coded.dictionary).to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks[coded.indices.to_numpy()], len(order)


def to_arrow(strings: Strings) -> Any:
    """Share byte strings with Arrow, large_binary."""
    buffers = [None, pa.py_buffer(strings.offsets), pa.py_buffer(strings.data)]
    return pa.Array.from_buffers(pa.large_binary(), len(strings), buffers)


def from_arrow(column: Any) -> Strings:
    """Share an Arrow column of large_binary."""
    n = len(column)
    if not n:
        return Strings(np.zeros(0, np.uint8), np.zeros(1, np.int64))
    _, offsets, data = column.buffers()
    places = np.frombuffer(offsets, np.int64)[column.offset : column.offset + n + 1]
    return Strings(np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8), places)


def _group_sets(entries: Entries) -> np.ndarray:
    """Number the different sets of groups, 0 for none; those of one group come in the order of their names."""
    group, row = entries.members.T
    counts = np.bincount(row, minlength=len(entries))
    codes = np.zeros(len(entries), np.int64)
    alone = counts[row] == 1
    codes[row[alone]] = group[alone] + 1
    starts = np.cumsum(counts) - counts
    many = np.flatnonzero(counts > 1)
    sets = [tuple(group[starts[i] : starts[i] + counts[i]].tolist()) for i in many.tolist()]
    number = {chosen: len(entries.groups) + 1 + i for i, chosen in enumerate(sorted(set(sets)))}
    codes[many] = [number[chosen] for chosen in sets]
    return dense(codes)


def _look_for_duplicates(job: Job, entries: Entries, paths: list[str], codes: np.ndarray) -> None:
    """Say, or refuse, that one identity stands several times in a tile."""
    order = np.lexsort((entries.key, codes, entries.tile))
    again = np.flatnonzero((np.diff(codes[order]) == 0) & (np.diff(entries.tile[order]) == 0))
    if not len(again):
        return
    rows = order[again + 1]
    twice = np.unique(np.stack([entries.tile[rows], codes[rows]], axis=1), axis=0)
    some = ", ".join(
        f"{(entries.domains[row], entries.addresses[row])!r:.80} in {paths[entries.tile[row]]}"
        for row in rows[:3].tolist()
    )
    count, tiles = len(np.unique(twice[:, 1])), len(np.unique(twice[:, 0]))
    found = f"{count} identities stand several times within one tile, in {tiles} tiles: {some}"
    if job.on_duplicate == "refuse":
        raise IIDStoreError(
            f'{found}; expected each once in a tile: on_duplicate="merge" joins them, identity=("domain", "address", '
            '"group") tells those of different groups apart'
        )
    warnings.warn(f"{found}; each is one segment now, the union of its masks", IIDWarning, stacklevel=_first_outside())


def _first_outside() -> int:
    """Number the first caller that is not of this package as `warnings.warn` counts them: who calls this is 1."""
    frame, level = sys._getframe(1), 1
    while frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0] and frame.f_back:
        frame, level = frame.f_back, level + 1
    return level


# --- segments of pieces -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pieces:
    """What shows a segment: entries of files, those cut to a core among them.

    Attributes
    ----------
    entry : int64 array, shape (n,)
        Row of the entry that each comes from.
    file, key : int64 arrays, shape (n,)
        Place of the file among tiles, then cuts, and the entry in it.
    boxes, areas, first
        As in `Entries`.
    segment : int64 array, shape (n,)
        Number of the segment: any before `ordered`, its key after.
    """

    entry: np.ndarray
    file: np.ndarray
    key: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    first: np.ndarray
    segment: np.ndarray


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments by ascending key.

    Attributes
    ----------
    boxes, areas, first
        As in `Entries`; areas are sums over the pieces.
    counts : int64 array, shape (n,)
        Pieces of each.
    leaders : int64 array, shape (n,)
        Row of the entry with its first pixel; of several the one whose name sorts first.
    """

    boxes: np.ndarray
    areas: np.ndarray
    first: np.ndarray
    counts: np.ndarray
    leaders: np.ndarray


def ordered(pieces: Pieces, ranks: np.ndarray, *, by_number: bool) -> tuple[Pieces, Segments]:
    """Put segments in their order and gather their columns.

    Parameters
    ----------
    pieces
    ranks : int64 array
        Of the name of each entry.
    by_number
        Keep the order of their numbers, as label images do; else by first pixel in raster order, then name.

    Returns
    -------
    pieces
        The same, each with the key of its segment.
    segments
    """
    place = np.where(pieces.first[:, 0] < 0, NOWHERE, pieces.first[:, 0] << 31 | pieces.first[:, 1])
    names = ranks[pieces.entry]
    by_segment = np.lexsort((pieces.entry, names, place, pieces.segment))
    numbers = pieces.segment[by_segment]
    heads = np.flatnonzero(np.diff(numbers, prepend=-1))
    if len(heads) > MAX_SEGMENTS:
        raise IIDLimitError(f"{len(heads)} segments: labels of 32 bits tell {MAX_SEGMENTS} apart; make several mosaics")
    leaders = by_segment[heads]
    order = np.arange(len(heads)) if by_number else np.lexsort((numbers[heads], names[leaders], place[leaders]))
    key_of = np.empty(len(heads), np.int64)
    key_of[order] = np.arange(len(heads))
    counts = np.diff(np.append(heads, len(numbers)))
    keys = np.empty(len(numbers), np.int64)
    keys[by_segment] = np.repeat(key_of, counts)
    if not len(heads):
        return replace(pieces, segment=keys), Segments(pieces.boxes, pieces.areas, pieces.first, counts, pieces.entry)
    boxes = _around(pieces.boxes[by_segment], pieces.areas[by_segment] > 0, heads)
    areas = np.add.reduceat(pieces.areas[by_segment], heads)
    found = Segments(
        boxes[order], areas[order], pieces.first[leaders][order], counts[order], pieces.entry[leaders][order]
    )
    return replace(pieces, segment=keys), found


def _around(boxes: np.ndarray, held: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Box around each run of boxes, without the empty ones; zeros where all are."""
    low = np.minimum.reduceat(np.where(held[:, None], boxes[:, :2], NOWHERE), heads)
    high = np.maximum.reduceat(boxes[:, 2:], heads)
    around = np.hstack([low, high])
    around[low[:, 0] == NOWHERE] = 0
    return around
