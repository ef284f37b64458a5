"""Files are opened by tasks, for the time of a task; what is wrong with one is said with its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from iid_dask.entries.files import File
from iid_dask.errors import IIDChangedError, IIDError
from iid_dask.format.layout import Limits
from iid_dask.format.reader import RecordReader
from iid_dask.format.reopening import reopen
from iid_dask.format.source import LocalSource, RemoteSource

T = TypeVar("T")


def known(file: File, storage_options: Mapping[str, Any] | None = None) -> File:
    """Return a file with its size and stamp, which may take a request or two."""
    if file.stamp is not None:
        return file
    source = _source(file, storage_options)
    source.close()
    return File(file.name, source.size, source.stamp)


def _source(file: File, storage_options: Mapping[str, Any] | None) -> LocalSource | RemoteSource:
    if file.is_remote:
        return RemoteSource(file.name, storage_options, file.stamp)
    return LocalSource(file.name, file.stamp)


@contextmanager
def opened(
    file: File | RecordReader, storage_options: Mapping[str, Any] | None = None, *, keep: bool = False
) -> Iterator[RecordReader]:
    """Open a file for the time of a task; a reader is left open.

    Parameters
    ----------
    file, storage_options
    keep
        Use what this process has open, and leave it open: for a file with a stamp, that many tasks read.

    Raises
    ------
    IIDChangedError
        If it is not the file that was found.
    """
    if isinstance(file, RecordReader):
        yield file
        return
    if keep:
        arguments = (dict(storage_options or {}), file.stamp) if file.is_remote else (file.stamp,)
        kind = RemoteSource if file.is_remote else LocalSource
        yield reopen(RecordReader, kind, (file.name, *arguments), True, Limits())
        return
    source = _source(file, storage_options)
    try:
        if file.size is not None and source.size != file.size:
            raise IIDChangedError(f"{file.name}: changed since it was listed; list the files again")
        yield RecordReader(source)
    finally:
        source.close()


def attempt(name: str, work: Callable[[], T], failed: Callable[[Exception], T] | None) -> T:
    """Return what ``work`` returns; where a file is bad, what ``failed`` makes of the error, or raise it.

    An error that is raised names the file.
    """
    try:
        return work()
    except (IIDError, OSError) as error:
        if failed is not None:
            return failed(error)
        if name not in str(error):
            error.add_note(f"while reading {name}")
        raise
