"""Arrow arrays from pieces of bytes, without a Python object an entry. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from iid_dask import kernels
from iid_dask.names import to_text


def bytes_array(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> pa.Array:
    """Make a column of pieces of bytes.

    Parameters
    ----------
    data : uint8 array
    starts, stops : int64 arrays, shape (n,)

    Returns
    -------
    pyarrow.LargeBinaryArray

    Examples
    --------
    >>> bytes_array(np.frombuffer(b"abcd", np.uint8), np.array([2, 0, 1]), np.array([4, 1, 1])).to_pylist()
    [b'cd', b'a', b'']
    """
    offsets = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(stops - starts, out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    kernels.gather_spans(data, starts, stops, out)
    return _array(pa.large_binary(), offsets, out)


def text_array(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> pa.Array:
    r"""Make a column of names as text: UTF-8, any other byte as ``\xNN``, backslashes doubled.

    Parameters
    ----------
    data : uint8 array
    starts, stops : int64 arrays, shape (n,)

    Returns
    -------
    pyarrow.LargeStringArray

    Examples
    --------
    >>> text_array(np.frombuffer(b"cell\xff", np.uint8), np.array([0, 3]), np.array([4, 5])).to_pylist()
    ['cell', 'l\\xff']
    """
    special = np.empty(len(starts), bool)
    kernels.mark_special(data, starts, stops, special)
    plain = bytes_array(data, starts, np.where(special, starts, stops)).view(pa.large_string())
    if not special.any():
        return plain
    spans = zip(starts[special].tolist(), stops[special].tolist(), strict=True)
    shown = pa.array([to_text(data[start:stop].tobytes()) for start, stop in spans], pa.large_string())
    places = np.arange(len(starts))
    places[special] = len(starts) + np.arange(len(shown))
    return pa.concat_arrays([plain, shown]).take(pa.array(places))


def groups_size(groups: Mapping[str, np.ndarray], count: int) -> int:
    """Bytes that `groups_array` makes of so many keys, at most."""
    words = ((len(json.dumps(name)) + 2) * min(len(members), count) for name, members in groups.items())
    return 2 * count + sum(words)


def groups_array(groups: Mapping[str, np.ndarray], keys: np.ndarray, rows: int) -> pa.Array:
    """Make a column of JSON lists: the groups of each entry, in the file's order of groups.

    Parameters
    ----------
    groups
        Name -> ascending uint32 keys.
    keys : integer array, shape (n,)
        Ascending, each once.
    rows
        Rows of the lut: every key is below.

    Returns
    -------
    pyarrow.LargeStringArray

    Examples
    --------
    >>> groups = {"cells": np.array([0, 2], np.uint32), "large": np.array([2], np.uint32)}
    >>> groups_array(groups, np.array([0, 1, 2]), 3).to_pylist()
    ['["cells"]', '[]', '["cells", "large"]']
    """
    place_of = np.full(rows, -1, np.int64)
    place_of[keys] = np.arange(len(keys))
    places, words, lengths = [np.zeros(0, np.int64)], [b"[], "], [np.zeros(0, np.int64)]
    starts, at = [np.zeros(0, np.int64)], 4
    for name, members in groups.items():
        word = json.dumps(name).encode()
        held = place_of[members]
        held = held[held >= 0]
        places.append(held)
        starts.append(np.full(len(held), at + 2))
        lengths.append(np.full(len(held), len(word)))
        words.append(b", " + word)
        at += 2 + len(word)
    return _lists(b"".join(words), len(keys), *(np.concatenate(part) for part in (places, starts, lengths)))


def _lists(data: bytes, count: int, places: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """Lay the words of every place between brackets; ``data`` begins with these, and a comma is before each word."""
    order = np.argsort(places, kind="stable")
    places, starts, lengths = places[order], starts[order], lengths[order]
    number = np.bincount(places, minlength=count)
    begins = np.concatenate(([0], np.cumsum(number)))[:-1] + 2 * np.arange(count)
    # Pieces of a list: its bracket, its words, its other bracket.
    word_at = np.arange(len(places)) + 2 * places + 1
    first = np.ones(len(places), bool)
    first[1:] = places[1:] != places[:-1]
    begin, end = np.empty(len(places) + 2 * count, np.int64), np.empty(len(places) + 2 * count, np.int64)
    begin[begins], end[begins] = 0, 1
    begin[begins + number + 1], end[begins + number + 1] = 1, 2
    begin[word_at], end[word_at] = np.where(first, starts, starts - 2), starts + lengths
    pieces = np.concatenate(([0], np.cumsum(end - begin)))
    offsets = np.append(pieces[begins], pieces[-1])
    out = np.empty(int(pieces[-1]), np.uint8)
    kernels.gather_spans(np.frombuffer(data, np.uint8), begin, end, out)
    return _array(pa.large_string(), offsets, out)


def _array(kind: pa.DataType, offsets: np.ndarray, data: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(kind, len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
