"""Which files a table is made of: paths, globs and URLs -> files with sizes and stamps, and packs of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.format.reader import RecordReader
from iid_dask.format.source import RemoteSource

PER_PARTITION = 512
"""Files of one partition, at most; a quarter of that where every file costs a few requests."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that was not opened yet.

    Attributes
    ----------
    name : str
        Absolute path, or URL.
    size : int or None
        Bytes, where a listing or the file system told.
    stamp : tuple, str or None
        What tells its version, if that is known: a file that has another by the time it is read was changed.
    """

    name: str
    size: int | None = None
    stamp: Any = None

    @property
    def is_remote(self) -> bool:
        """Whether the name is a URL."""
        return _is_url(self.name)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("iid_dask.File", self.name, self.size, self.stamp)


# --- finding ----------------------------------------------------------------------------------------------------


def find_files(
    paths: Any, *, storage_options: Mapping[str, Any] | None = None, missing_ok: bool = False
) -> list[File | RecordReader]:
    """Find files; nothing is opened.

    Parameters
    ----------
    paths
        A path, URL or glob, an open reader, or a list of these. What a glob finds is sorted; a file named twice
        counts once.
    storage_options
        For the fsspec file system of URLs.
    missing_ok
        Leave it to who opens a file to find that it is not there.

    Raises
    ------
    FileNotFoundError
        For a glob that matches nothing, and a path that does not exist.
    TypeError
        For anything else than paths and readers.
    """
    items = [paths] if isinstance(paths, str | os.PathLike | RecordReader) else paths
    if isinstance(items, bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError(
            f"paths: {type(paths).__name__}, expected a path, a URL, a glob, an open reader, or a list of these"
        )
    found: dict[str, File | RecordReader] = {}
    for item in items:
        for file in _found(item, storage_options, missing_ok):
            found.setdefault(file.name, file)
    return list(found.values())


def _found(item: Any, storage_options: Mapping[str, Any] | None, missing_ok: bool) -> Iterable[File | RecordReader]:
    if isinstance(item, RecordReader):
        return [item]
    if not isinstance(item, str | os.PathLike):
        raise TypeError(f"paths: {item!r} is {type(item).__name__}, expected a path, a URL, a glob or an open reader")
    path = os.fsdecode(item)
    if path.startswith(("file://", "local://")) and "::" not in path:
        path = path.split("://", 1)[1]
    if _is_url(path):
        return _remote_glob(path, storage_options) if _is_remote_glob(path) else [File(path)]
    path = os.path.abspath(os.path.expanduser(path))
    if glob.has_magic(path) and not os.path.lexists(path):
        matches = [match for match in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(match)]
        if not matches:
            raise FileNotFoundError(f"{path}: the glob matches no file")
        return [_local(match, missing_ok) for match in matches]
    return [_local(path, missing_ok)]


def _is_url(path: str) -> bool:
    return "://" in path or "::" in path


def _is_remote_glob(url: str) -> bool:
    """Whether a URL has wildcards; those of the web begin their queries with one."""
    return any(sign in url for sign in ("*[" if url.startswith(("http://", "https://")) else "*?["))


def _local(path: str, missing_ok: bool) -> File:
    try:
        status = os.stat(path)
    except OSError:
        if missing_ok:
            return File(path)
        raise
    return File(path, status.st_size, (status.st_mtime_ns, status.st_size))


def _remote_glob(url: str, storage_options: Mapping[str, Any] | None) -> list[File]:
    """List what a URL with wildcards matches, with the sizes that the listing tells: no request a file."""
    from fsspec.core import url_to_fs

    if "::" in url:
        raise ValueError(f"{url}: expected no wildcards in a chain of file systems; give a list of URLs")
    fs, pattern = url_to_fs(url, **{"use_listings_cache": False, **(storage_options or {})})
    listed = fs.glob(pattern, detail=True)
    details = {path: info for path, info in sorted(listed.items()) if info.get("type") != "directory"}
    if not details:
        raise FileNotFoundError(f"{url}: the glob matches no file")
    prefix = url.removesuffix(pattern) if url.endswith(pattern) else None
    # Some file systems tell of a file in other words than of a listing: their words cannot be compared.
    path, info = next(iter(details.items()))
    comparable = RemoteSource.stamp_of(fs.info(path)) == RemoteSource.stamp_of(info)
    return [
        File(
            fs.unstrip_protocol(path) if prefix is None else prefix + path,
            info.get("size"),
            RemoteSource.stamp_of(info) if comparable else None,
        )
        for path, info in details.items()
    ]


# --- packing ----------------------------------------------------------------------------------------------------


def pack(sizes: Sequence[int], blocksize: int, most: int) -> Iterator[slice]:
    """Cut a run of files into runs of about ``blocksize`` bytes and at most ``most`` files.

    Examples
    --------
    >>> [(some.start, some.stop) for some in pack([5, 5, 5, 30, 5], blocksize=10, most=100)]
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    start, held = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (held + size > blocksize or i - start == most):
            yield slice(start, i)
            start, held = i, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def split(keys: np.ndarray, weights: np.ndarray, blocksize: int) -> list[tuple[int, int]]:
    """Cut entries into ranges of keys of about ``blocksize`` bytes.

    Parameters
    ----------
    keys : integer array, shape (n,)
        Ascending.
    weights : int64 array, shape (n,)
        Bytes of each entry.
    blocksize

    Returns
    -------
    list of (first, last)
        Keys, both included.

    Examples
    --------
    >>> split(np.array([2, 3, 7, 9]), np.array([4, 4, 20, 4]), blocksize=8)
    [(2, 3), (7, 7), (9, 9)]
    """
    reach = np.concatenate(([0], np.cumsum(weights)))
    ranges, start = [], 0
    while start < len(keys):
        stop = max(start + 1, int(np.searchsorted(reach, reach[start] + blocksize, side="right")) - 1)
        ranges.append((int(keys[start]), int(keys[stop - 1])))
        start = stop
    return ranges
