"""Where bytes come from: a local file, an object behind an fsspec URL, bytes, or an open file object."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from iid_dask.errors import IIDChangedError

LOCAL_GAP = 4096
"""Unwanted bytes between two ranges that are cheaper to read than a second ``pread``."""

REMOTE_GAP = 256 * 1024
"""The same for a request to an object store: a few milliseconds at the bandwidth of one connection."""

MANY_RANGES = 16
"""Ranges from which on a local file is read by a compiled loop."""

MAX_RANGE = 8 * 2**20
"""Largest coalesced range in bytes, so that requests can run beside one another."""


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


def _short(name: str, offset: int, wanted: int, got: int) -> IIDChangedError:
    return IIDChangedError(
        f"{name}: changed since opened: {got} of {wanted} bytes are left at offset {offset}; open it again"
    )


class _Descriptor:
    """A file descriptor that is closed when its last user has dropped it.

    A number closed under a running ``pread`` may be given to another file; so nobody closes it by hand.
    """

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.number = os.open(path, flags)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `close` is bound here: when the interpreter ends, modules are emptied before their last objects go.
        try:
            close(self.number)
        except (AttributeError, OSError):  # never opened, or closed by the system
            return


def _stamp(status: os.stat_result) -> tuple[int, int]:
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
        self.stamp = _stamp(os.fstat(self._descriptor.number))
        self.size = self.stamp[1]
        self._lock = threading.Lock()
        if stamp is not None and stamp != self.stamp:
            raise IIDChangedError(f"{self.name}: changed since opened; open it again")

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
        if _stamp(os.fstat(descriptor.number)) != self.stamp:
            raise IIDChangedError(f"{self.name}: changed since opened; open it again")

    def _read_into(self, descriptor: _Descriptor, view: memoryview, offset: int) -> None:
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
                raise _short(self.name, offset, len(view), done)
            done += got

    def read(self, offset: int, length: int) -> bytes:
        descriptor = self._held()
        buffer = bytearray(min(length, max(0, self.size - offset)))
        if len(buffer) < length:
            raise _short(self.name, offset, length, len(buffer))
        self._read_into(descriptor, memoryview(buffer), offset)
        self._check_unchanged(descriptor)
        return bytes(buffer)

    def read_many(self, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with the ranges, one after another; many of them by one compiled loop."""
        descriptor = self._held()
        done = 0
        if len(offsets) >= MANY_RANGES and hasattr(os, "pread"):
            from iid_dask import kernels  # numba: not for the few ranges of opening

            done = kernels.read_ranges(descriptor.number, offsets, lengths, out)
        # What was not read whole, for whatever reason, is read again here, where the reason is told.
        view = out.data
        at = int(lengths[:done].sum())
        for offset, length in zip(offsets[done:].tolist(), lengths[done:].tolist(), strict=True):
            self._read_into(descriptor, view[at : at + length], offset)
            at += length
        self._check_unchanged(descriptor)

    def close(self) -> None:
        self._descriptor = None


class RemoteSource:
    """An object behind an fsspec URL: stateless range requests, several at once."""

    gap = REMOTE_GAP

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None, stamp: str | None = None) -> None:
        from fsspec.core import url_to_fs  # heavy, and local files do not need it

        self.name = url
        self.storage_options = dict(storage_options or {})
        # A listing cached by fsspec would hide that the object was replaced.
        self.fs, self.path = url_to_fs(url, **{"use_listings_cache": False, **self.storage_options})
        info = self.fs.info(self.path)
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a directory, expected an .iid file", url)
        size = info.get("size")
        if size is None:
            raise OSError(f"{url}: the server does not tell the size, so ranges cannot be read; copy the file first")
        self.size = int(size)
        self.stamp = self.stamp_of(info)
        if stamp is not None and stamp != self.stamp:
            raise IIDChangedError(f"{url}: changed since opened; open it again")

    @staticmethod
    def stamp_of(info: Mapping[str, Any]) -> str:
        names = "ETag etag version_id LastModified Last-Modified Content-MD5 Digest mtime created size"
        return repr([(name, str(info[name])) for name in names.split() if info.get(name) is not None])

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteSource, (self.name, self.storage_options, self.stamp)

    def identity(self) -> tuple[Any, ...]:
        return ("remote", self.name, self.stamp, repr(sorted(self.storage_options.items())))

    def _check_unchanged(self, cause: Exception | None = None) -> None:
        if self.stamp_of(self.fs.info(self.path)) != self.stamp:
            raise IIDChangedError(f"{self.name}: changed since opened; open it again") from cause

    def _cat(self, starts: list[int], stops: list[int]) -> list[bytes]:
        try:
            parts = self.fs.cat_ranges([self.path] * len(starts), starts, stops, on_error="raise")
        except Exception as error:  # ranges that the new object does not have: every file system has its own error
            self._check_unchanged(error)
            raise
        self._check_unchanged()
        for start, stop, part in zip(starts, stops, parts, strict=True):
            if len(part) != stop - start:
                raise _short(self.name, start, stop - start, len(part))
        return parts

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise _short(self.name, offset, length, max(0, self.size - offset))
        return self._cat([offset], [offset + length])[0] if length else b""

    def read_many(self, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        if not len(offsets):
            return
        at = 0
        for part in self._cat(offsets.tolist(), (offsets + lengths).tolist()):
            out[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)

    def close(self) -> None:
        pass


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
            raise _short(self.name, offset, length, max(0, self.size - offset))
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
    TypeError
        For anything else.
    """
    if isinstance(target, bytes | bytearray | memoryview):
        return BytesSource(target)
    if isinstance(target, str | os.PathLike):
        path = os.fspath(target)
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if "://" in path or "::" in path:
            if path.startswith(("file://", "local://")) and "::" not in path:
                return LocalSource(path.split("://", 1)[1])
            return RemoteSource(path, storage_options)
        return LocalSource(os.path.expanduser(path))
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


def coalesce(offsets: np.ndarray, lengths: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plan few reads that cover many ranges.

    Parameters
    ----------
    offsets, lengths : int64 arrays, shape (n,)
        In any order; they may overlap.
    gap
        Bytes between two ranges up to which they are read as one.

    Returns
    -------
    starts, sizes : int64 arrays, shape (m,)
        What to read.
    places : int64 array, shape (n,)
        Where each range begins in the bytes read, laid one after another.

    Examples
    --------
    >>> starts, sizes, places = coalesce(np.array([100, 0, 104]), np.array([4, 8, 6]), gap=16)
    >>> starts.tolist(), sizes.tolist(), places.tolist()
    ([0, 100], [8, 10], [8, 0, 12])
    """
    if not len(offsets):
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    order = np.argsort(offsets, kind="stable")
    begin, end = offsets[order], (offsets + lengths)[order]
    reach = np.maximum.accumulate(end)
    fresh = np.ones(len(begin), bool)
    fresh[1:] = begin[1:] > reach[:-1] + gap
    # A long run of neighbours is cut where the next range starts a new block of MAX_RANGE and nothing straddles it.
    block = begin // MAX_RANGE
    fresh[1:] |= (block[1:] != block[:-1]) & (begin[1:] >= reach[:-1])
    first = np.flatnonzero(fresh)
    starts = begin[first]
    sizes = reach[np.append(first[1:], len(begin)) - 1] - starts
    bases = np.cumsum(sizes) - sizes
    run = np.cumsum(fresh) - 1
    places = np.empty(len(begin), np.int64)
    places[order] = bases[run] + (begin - starts[run])
    return starts, sizes, places


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
