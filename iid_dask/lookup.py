"""Entries by what they are called: names and groups, without a look at any segment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from iid_dask.format.reader import RecordReader


def as_names(what: str, value: bytes | Iterable[bytes] | None) -> tuple[bytes, ...] | None:
    """Return one name or several as a tuple without repeats; None stays.

    Raises
    ------
    TypeError
        For text: names are bytes, and which bytes a text means is for the caller to say.
    """
    if value is None:
        return None
    for item in (items := _as_list(what, value)):
        if not isinstance(item, bytes):
            way_out = f"; write {item!r}.encode()" if isinstance(item, str) else ""
            raise TypeError(f"{what}: {item!r} is {type(item).__name__}, expected bytes{way_out}")
    return tuple(dict.fromkeys(items))


def as_groups(value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Return one group name or several as a tuple without repeats; None stays."""
    if value is None:
        return None
    for item in (items := _as_list("groups", value)):
        if not isinstance(item, str):
            raise TypeError(f"groups: {item!r} is {type(item).__name__}, expected str")
    return tuple(dict.fromkeys(items))


def _as_list(what: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes):
        return [value]
    if not isinstance(value, Iterable):
        raise TypeError(f"{what}: {value!r} is {type(value).__name__}, expected a name or several")
    return list(value)


def as_keys(reader: RecordReader, keys: Any) -> np.ndarray:
    """Return one key or several as a uint32 array, in their order.

    Raises
    ------
    KeyError
        For one that no entry has; says which there are.
    TypeError
        For anything but integers.
    """
    alone = isinstance(keys, str | bytes | bytearray | np.ndarray) or not isinstance(keys, Iterable)
    try:
        wanted = np.atleast_1d(np.asarray(keys if alone else list(keys)))
    except ValueError:  # nested, of several lengths
        raise TypeError(f"keys: {keys!r:.60}, expected an integer or several") from None
    if wanted.ndim != 1 or (len(wanted) and wanted.dtype.kind not in "iu"):
        raise TypeError(f"keys: {keys!r:.60}, expected an integer or several")
    if not len(wanted):
        return np.zeros(0, np.uint32)
    known = (wanted >= 0) & (wanted < len(reader.live))
    known[known] = reader.live[wanted[known].astype(np.int64)]
    for key in wanted[~known][:1].tolist():
        reader[key]  # raises, and says which keys there are
    return wanted.astype(np.uint32)


def members(reader: RecordReader, groups: Sequence[str]) -> np.ndarray:
    """Return the keys of the members of any of some groups, ascending uint32.

    Raises
    ------
    KeyError
        For a group that the file does not have; says what it has.
    """
    for name in groups:
        if name not in reader.groups:
            raise KeyError(f"{reader.name}: no group {name!r}; there is: {list(reader.groups)}")
    keys = [reader.groups[name] for name in groups]
    return np.unique(np.concatenate([*keys, np.zeros(0, np.uint32)]))


def find_names(text: bytes, starts: np.ndarray, stops: np.ndarray, wanted: Iterable[bytes]) -> np.ndarray:
    """Find names in a list of wanted ones.

    Parameters
    ----------
    text : bytes
    starts, stops : int64 arrays, shape (n,)
        Where in ``text`` the names lie.
    wanted : iterable of bytes

    Returns
    -------
    int64 array, shape (n,)
        Position of each name in ``sorted(set(wanted))``, or -1.

    Examples
    --------
    >>> find_names(b"abba", np.array([0, 1, 0]), np.array([1, 3, 4]), [b"bb", b"a"]).tolist()
    [0, 1, -1]
    """
    from iid_dask import kernels

    names = sorted(set(wanted))
    ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
    out = np.empty(len(starts), np.int64)
    kernels.find_names(
        np.frombuffer(text, np.uint8), starts, stops, np.frombuffer(b"".join(names), np.uint8), ends, out
    )
    return out


def named(
    reader: RecordReader,
    keys: np.ndarray,
    domains: Sequence[bytes] | None = None,
    addresses: Sequence[bytes] | None = None,
) -> np.ndarray:
    """Return those of some keys whose entries have one of the domains and one of the addresses; None is any."""
    if domains is None and addresses is None:
        return keys
    whole = len(keys) == len(reader)
    text, starts, middles, stops = reader.name_spans(None if whole else keys)
    keep = np.ones(len(keys), bool)
    if domains is not None:
        keep &= find_names(text, starts, middles, domains) >= 0
    if addresses is not None:
        keep &= find_names(text, middles, stops, addresses) >= 0
    return keys[keep]
