"""Which files a table is made of: paths, globs and URLs -> files with sizes and stamps, and packs of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from iid_dask.format.objects import local_path
from iid_dask.format.reader import RecordReader
from iid_dask.format.sections import brief
from iid_dask.format.source import LocalSource, RemoteSource

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
    mention : str, optional
        What stands for the version where there is no stamp; see `unknown`.
    """

    name: str
    size: int | None = None
    stamp: Any = None
    mention: str | None = None

    @classmethod
    def unknown(cls, name: str, size: int | None = None) -> File:
        """Make a file whose version is not known.

        Its token is new every time: dask would answer with what it still holds of an object overwritten since.
        """
        return cls(name, size, None, uuid4().hex)

    @property
    def is_remote(self) -> bool:
        """Whether the name is a URL."""
        return local_path(self.name) is None

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("iid_dask.File", self.name, self.size, self.stamp, self.mention)


# --- finding ----------------------------------------------------------------------------------------------------


def find_files(
    paths: Any, *, storage_options: Mapping[str, Any] | None = None, missing_ok: bool = False
) -> list[File | RecordReader]:
    """Find files; nothing is opened.

    Parameters
    ----------
    paths
        A path, URL or glob, an open reader, a `File`, or a list of these. What a glob finds is sorted; a file named
        twice counts once, and so do readers of the same bytes.
    storage_options
        For the fsspec file system of URLs.
    missing_ok
        Leave it to who opens a file to find that it is not there.

    Returns
    -------
    list of File and RecordReader
        Two of one name hold different bytes: readers of bytes, or versions of one path.

    Raises
    ------
    FileNotFoundError
        For a glob that matches nothing, and a path that does not exist.
    TypeError
        For anything else than paths and readers.
    """
    items = [paths] if isinstance(paths, str | os.PathLike | RecordReader) or hasattr(paths, "read") else paths
    if isinstance(items, bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError(
            f"paths: {type(paths).__name__}, expected a path, a URL, a glob, an open reader, or a list of these"
        )
    found: dict[tuple[str, Hashable], File | RecordReader] = {}
    for item in items:
        for file in _found(item, storage_options, missing_ok):
            found.setdefault(_version(file), file)
    # A path whose version nobody asked for is the one that is known.
    known = {name for name, version in found if version is not None}
    return [file for (name, version), file in found.items() if version is not None or name not in known]


def _version(file: File | RecordReader) -> tuple[str, Hashable]:
    """A file's name and what tells its version, None where that is not known."""
    if isinstance(file, File):
        return file.name, file.stamp
    source = file.source
    return file.name, source.stamp if isinstance(source, LocalSource | RemoteSource) else file


def _found(item: Any, storage_options: Mapping[str, Any] | None, missing_ok: bool) -> Iterable[File | RecordReader]:
    if isinstance(item, RecordReader | File):
        return [item]
    if not isinstance(item, str | os.PathLike):
        way_out = "; give iid_dask.open(it)" if isinstance(item, bytes) or hasattr(item, "read") else ""
        raise TypeError(
            f"paths: {brief(item)} is {type(item).__name__}, expected a path, a URL, a glob or an open reader{way_out}"
        )
    local = local_path(item)
    if local is None:
        url = os.fsdecode(item)
        return _remote_glob(url, storage_options) if _is_remote_glob(url) else [File.unknown(url)]
    path = os.path.abspath(os.path.expanduser(local))
    if glob.has_magic(path) and not os.path.lexists(path):
        matches = [match for match in sorted(glob.glob(path, recursive=True)) if not os.path.isdir(match)]
        if not matches:
            raise FileNotFoundError(f"{path}: the glob matches no file")
        return [_local(match, missing_ok) for match in matches]
    return [_local(path, missing_ok)]


def _is_remote_glob(url: str) -> bool:
    """Whether a URL has wildcards; those of the web begin their queries with one."""
    return any(sign in url for sign in ("*[" if url.startswith(("http://", "https://")) else "*?["))


def _local(path: str, missing_ok: bool) -> File:
    try:
        status = os.stat(path)
    except OSError:
        if missing_ok:
            return File.unknown(path)
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
    names = [fs.unstrip_protocol(path) if prefix is None else prefix + path for path in details]
    if not comparable:
        return [File.unknown(name, info.get("size")) for name, info in zip(names, details.values(), strict=True)]
    return [
        File(name, info.get("size"), RemoteSource.stamp_of(info))
        for name, info in zip(names, details.values(), strict=True)
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
