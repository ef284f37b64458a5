"""Where bytes come from: a local file, an object behind an fsspec URL, bytes, or an open file object."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from iid_dask.format.coalescing import MAX_RANGE, coalesce
from iid_dask.format.faults import PASSING, Patience, changed, short, unread
from iid_dask.format.objects import local_path
from iid_dask.format.remote import REMOTE_GAP, RemoteSource

__all__ = [
    "LOCAL_GAP",
    "MAX_RANGE",
    "REMOTE_GAP",
    "BytesSource",
    "LocalSource",
    "RemoteSource",
    "Source",
    "as_source",
    "coalesce",
    "gather",
    "time_and_size",
]

LOCAL_GAP = 4096
"""Unwanted bytes between two ranges that are cheaper to read than a second ``pread``."""

MANY_RANGES = 16
"""Ranges from which on a local file is read by a compiled loop."""


@runtime_checkable
class Source(Protocol):
    """Random access to bytes that do not change; safe to use from many threads at once."""

    name: str
    """Path or URL, for messages."""
    size: int
    """Bytes in all."""
    gap: int
    """Ranges closer than this are read as one."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``; IIDChangedError where they are not there any more."""

    def read_many(self, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with the ranges, one after another."""

    def identity(self) -> tuple[Any, ...]:
        """Return what tells this version of these bytes from every other: location and stamp."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the class and the arguments that open these bytes again, in this version."""

    def close(self) -> None:
        """Give up the handle. Arrays made from this source open it again when they need it."""


class _Descriptor:
    """A file descriptor that is closed when its last user has dropped it.

    A number closed under a running ``pread`` may be given to another file; so nobody closes it by hand.
    """

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            # A FIFO would otherwise be waited for until somebody writes to it.
            self.number = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
        except BlockingIOError:  # a file that is leased, as Samba does: whoever has it gives it up for one who waits
            self.number = os.open(path, flags)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `close` is bound here: when the interpreter ends, modules are emptied before their last objects go.
        try:
            close(self.number)
        except (AttributeError, OSError):  # never opened, or closed by the system
            return


def time_and_size(status: os.stat_result) -> tuple[int, int]:
    """Return what tells a version of a local file from others: time of its last change in ns, and size in bytes."""
    return status.st_mtime_ns, status.st_size


class LocalSource:
    """A local file: one descriptor, ``pread``, no lock and no shared position.

    Not a memory map: a file that is cut short under a map ends the process by SIGBUS.
    """

    gap = LOCAL_GAP

    def __init__(self, path: str, stamp: tuple[int, int] | None = None) -> None:
        self.name = os.path.abspath(path)
        if os.path.isdir(self.name):
            raise IsADirectoryError(errno.EISDIR, "is a directory, expected an .iid file", self.name)
        self._descriptor: _Descriptor | None = _Descriptor(self.name)
        status = os.fstat(self._descriptor.number)
        self.stamp = time_and_size(status)
        self.size = self.stamp[1]
        self._lock = threading.Lock()
        if stamp is not None and stamp != self.stamp:
            raise changed(self.name)
        if not stat.S_ISREG(status.st_mode):
            kind = "a FIFO" if stat.S_ISFIFO(status.st_mode) else "a device"  # a socket cannot be opened
            raise OSError(errno.EINVAL, f"is {kind}, expected a file", self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalSource, (self.name, self.stamp)

    def identity(self) -> tuple[Any, ...]:
        return ("local", self.name, *self.stamp)

    def _held(self) -> _Descriptor:
        descriptor = self._descriptor
        if descriptor is None:  # closed, but an array made before is computed now
            descriptor = _Descriptor(self.name)
            self._check_unchanged(descriptor)
            self._descriptor = descriptor
        return descriptor

    def _check_unchanged(self, descriptor: _Descriptor) -> None:
        if time_and_size(os.fstat(descriptor.number)) != self.stamp:
            raise changed(self.name)

    def _read_all(self, ranges: deque[tuple[int, memoryview]]) -> None:
        """Fill views with the bytes from their offsets on, and drop each that is full.

        After a fault that may pass it goes on with a fresh descriptor, if the file is still the same.
        """
        patience = Patience()
        while True:
            descriptor = self._descriptor
            try:
                descriptor = self._held()
                while ranges:
                    self._read_into(descriptor, *ranges[0])
                    ranges.popleft()
                return self._check_unchanged(descriptor)
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                if not patience.wait():
                    what = f"{len(ranges[0][1])} bytes at offset {ranges[0][0]}" if ranges else "time and size"
                    raise unread(self.name, what, patience.tried, error) from error
                if self._descriptor is descriptor:  # else another thread has opened it
                    self._descriptor = None

    def _read_into(self, descriptor: _Descriptor, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            if hasattr(os, "preadv"):
                got = os.preadv(descriptor.number, [view[done:]], offset + done)
            elif hasattr(os, "pread"):
                data = os.pread(descriptor.number, len(view) - done, offset + done)
                got = len(data)
                view[done : done + got] = data
            else:  # Windows has no positional read
                with self._lock:
                    os.lseek(descriptor.number, offset + done, os.SEEK_SET)
                    data = os.read(descriptor.number, len(view) - done)
                got = len(data)
                view[done : done + got] = data
            if not got:
                raise short(self.name, offset, len(view), done)
            done += got

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``."""
        buffer = bytearray(min(length, max(0, self.size - offset)))
        if len(buffer) < length:
            raise short(self.name, offset, length, len(buffer))
        self._read_all(deque([(offset, memoryview(buffer))]))
        return bytes(buffer)

    def read_many(self, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with the ranges, one after another; many of them by one compiled loop."""
        done = 0
        if len(offsets) >= MANY_RANGES and hasattr(os, "pread"):
            from iid_dask import kernels  # numba: not for the few ranges of opening

            with contextlib.suppress(OSError):
                descriptor = self._held()
                done = kernels.read_ranges(descriptor.number, offsets, lengths, out)
        # What was not read whole, for whatever reason, is read again here, where the reason is told.
        stops = np.cumsum(lengths)
        places = zip((stops - lengths)[done:].tolist(), stops[done:].tolist(), strict=True)
        views = (out.data[start:stop] for start, stop in places)
        self._read_all(deque(zip(offsets[done:].tolist(), views, strict=True)))

    def close(self) -> None:
        self._descriptor = None


class BytesSource:
    """Bytes in memory; they travel with every pickle."""

    gap = 0

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "<bytes>") -> None:
        self.data = bytes(data)
        self.name = name
        self.size = len(self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return BytesSource, (self.data, self.name)

    def identity(self) -> tuple[Any, ...]:
        import hashlib

        return ("bytes", self.name, self.size, hashlib.blake2b(self.data, digest_size=16).hexdigest())

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise short(self.name, offset, length, max(0, self.size - offset))
        return self.data[offset : offset + length]

    def read_many(self, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        at = 0
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            out[at : at + length] = np.frombuffer(self.read(offset, length), np.uint8)
            at += length

    def close(self) -> None:
        pass


def as_source(target: Any, storage_options: Mapping[str, Any] | None = None) -> Source:
    """Return the source of a path, URL, bytes or binary file object.

    Parameters
    ----------
    target : str, os.PathLike, bytes, bytearray, memoryview, Source or binary file object
        ``~`` is expanded. A file object that fsspec made, or a real file, is opened again by its own path;
        any other is read whole, from its start, and its position is put back.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
    OSError
        For a FIFO or a device.
    TypeError
        For anything else.
    """
    if isinstance(target, bytes | bytearray | memoryview):
        return BytesSource(target)
    if isinstance(target, str | os.PathLike):
        local = local_path(target)
        if local is None:
            return RemoteSource(os.fsdecode(target), storage_options)
        return LocalSource(os.path.expanduser(local))
    if isinstance(target, Source):
        return target
    fs, path = getattr(target, "fs", None), getattr(target, "path", None)
    if fs is not None and isinstance(path, str):
        return as_source(fs.unstrip_protocol(path), fs.storage_options or storage_options)
    if isinstance(target, io.BytesIO):
        return BytesSource(target.getbuffer(), "<BytesIO>")
    if hasattr(target, "read") and hasattr(target, "seek"):
        return _from_file_object(target)
    raise TypeError(
        f"cannot read an .iid file from {type(target).__name__}: expected a path, a URL, bytes or a binary file object"
    )


def _from_file_object(file: Any) -> Source:
    name = getattr(file, "name", None)
    if isinstance(name, str) and os.path.isfile(name) and hasattr(file, "fileno"):
        with contextlib.suppress(OSError):  # a file object without a descriptor falls through
            if os.path.samestat(os.fstat(file.fileno()), os.stat(name)):
                return LocalSource(name)
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    if not isinstance(data, bytes):
        raise TypeError(f"{file!r} gives text: open it in binary mode ('rb')")
    return BytesSource(data, str(name or "<file object>"))


def gather(
    source: Source, offsets: np.ndarray, lengths: np.ndarray, *, spare: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Read many ranges with few requests.

    Parameters
    ----------
    offsets, lengths : int64 arrays, shape (n,)
    spare
        Zeros to put behind the data, for kernels that read whole words.

    Returns
    -------
    data : uint8 array
        The bytes read.
    places : int64 array, shape (n,)
        Where each range begins in ``data``.
    """
    starts, sizes, places = coalesce(offsets, lengths, source.gap)
    total = int(sizes.sum())
    data = np.empty(total + spare, np.uint8)
    data[total:] = 0
    source.read_many(starts, sizes, data[:total])
    return data, places
