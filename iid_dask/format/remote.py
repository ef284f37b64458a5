"""An object behind an fsspec URL: range requests, tried again where a fault may pass, all of one version."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from iid_dask.errors import IIDChangedError
from iid_dask.format.faults import Patience, changed, may_pass, short, unread

REMOTE_GAP = 256 * 1024
"""Unwanted bytes that are cheaper to read than a second request: a few milliseconds of one connection's bandwidth."""


class RemoteSource:
    """An object behind an fsspec URL: stateless range requests, several at once.

    All bytes are of the version that was opened. An S3 server tells the version with each range; of other file systems
    it is asked for after each read. A web server that tells neither ETag nor Last-Modified leaves the size as the only
    stamp: an object replaced by one of the same size is then not noticed.
    """

    gap = REMOTE_GAP

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None, stamp: str | None = None) -> None:
        self.name = url
        self.storage_options = dict(storage_options or {})
        self._connect()
        info = self._info()
        if info.get("type") == "directory":
            raise IsADirectoryError(errno.EISDIR, "is a directory, expected an .iid file", url)
        size = info.get("size")
        if size is None:
            raise OSError(f"{url}: the server does not tell the size, so ranges cannot be read; copy the file first")
        self.size = int(size)
        self.stamp = self.stamp_of(info)
        if stamp is not None and stamp != self.stamp:
            raise changed(url)

    @staticmethod
    def stamp_of(info: Mapping[str, Any]) -> str:
        """Return what tells a version of an object from others, from what its file system tells of it."""
        names = "ETag etag version_id LastModified Last-Modified Content-MD5 Digest mtime created size"
        return repr([(name, str(info[name])) for name in names.split() if info.get(name) is not None])

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteSource, (self.name, self.storage_options, self.stamp)

    def identity(self) -> tuple[Any, ...]:
        """Return URL, stamp and options."""
        return ("remote", self.name, self.stamp, repr(sorted(self.storage_options.items())))

    def _connect(self) -> None:
        from fsspec.core import url_to_fs  # heavy, and local files do not need it

        # A listing cached by fsspec would hide that the object was replaced.
        self._fs, self.path = url_to_fs(self.name, **{"use_listings_cache": False, **self.storage_options})
        self._process = os.getpid()

    @property
    def fs(self) -> Any:
        """The file system of this process: one that was made before a fork has no thread in the child."""
        if self._process != os.getpid():
            self._connect()
        return self._fs

    def _info(self) -> Mapping[str, Any]:
        patience = Patience()
        while True:
            try:
                return self.fs.info(self.path)
            except Exception as error:  # every file system has its own
                if not may_pass(error):
                    raise
                if not patience.wait():
                    raise unread(self.name, "size and version", patience.tried, error) from error

    def _check_unchanged(self, cause: BaseException | None = None) -> None:
        if self.stamp_of(self._info()) != self.stamp:
            raise changed(self.name) from cause

    # --- ranges

    def _fetch(self, starts: list[int], stops: list[int]) -> list[bytes | BaseException]:
        """Ask once for each range; what comes for one is of the version that was opened, or an error."""
        fs = self.fs
        if not _speaks_s3(fs):
            parts = fs.cat_ranges([self.path] * len(starts), starts, stops, on_error="return")
            self._check_unchanged(next((part for part in parts if isinstance(part, BaseException)), None))
            return parts
        from fsspec.asyn import sync

        return sync(fs.loop, _get_from_s3, fs, self.path, starts, stops, self._check_answer)

    def _check_answer(self, told: Mapping[str, Any]) -> None:
        if self.stamp_of(told) != self.stamp:
            raise changed(self.name)

    def _cat(self, starts: list[int], stops: list[int]) -> list[bytes]:
        parts: dict[int, bytes] = {}
        wanted = list(range(len(starts)))
        patience = Patience()
        while True:
            got = self._fetch([starts[i] for i in wanted], [stops[i] for i in wanted])
            faults = {}
            for i, part in zip(wanted, got, strict=True):
                if isinstance(part, BaseException):
                    faults[i] = part
                elif len(part) != stops[i] - starts[i]:
                    faults[i] = _wrong_length(stops[i] - starts[i], len(part), self.size)
                else:
                    parts[i] = part
            if not faults:
                return [parts[i] for i in range(len(starts))]
            self._raise_lasting(faults)
            if not patience.wait():
                i, error = next(iter(faults.items()))
                what = f"{stops[i] - starts[i]} bytes at offset {starts[i]}"
                raise unread(self.name, what, patience.tried, error) from error
            wanted = list(faults)

    def _raise_lasting(self, faults: Mapping[int, BaseException]) -> None:
        """Raise an error that another attempt would not mend; where the object was replaced, that."""
        lasting = [error for error in faults.values() if not may_pass(error)]
        for error in lasting:
            if isinstance(error, IIDChangedError):
                raise error
        if lasting:  # perhaps a range that the new object does not have: every file system has its own error
            self._check_unchanged(lasting[0])
            raise lasting[0]

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes from ``offset``."""
        if offset + length > self.size:
            raise short(self.name, offset, length, max(0, self.size - offset))
        return self._cat([offset], [offset + length])[0] if length else b""

    def read_many(self, offsets: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` with the ranges, one after another."""
        some = lengths > 0  # a range of a request has a last byte
        offsets, lengths = offsets[some], lengths[some]
        if not len(offsets):
            return
        at = 0
        for part in self._cat(offsets.tolist(), (offsets + lengths).tolist()):
            out[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)

    def close(self) -> None:
        """Do nothing: there is no handle."""


def _wrong_length(wanted: int, got: int, size: int) -> OSError:
    if got == size:
        return OSError(errno.EIO, f"the server sent all {size} bytes: if it cannot send ranges, copy the file first")
    return OSError(errno.EIO, f"{got} bytes came")


def _speaks_s3(fs: Any) -> bool:
    """Whether a file system is s3fs's own; one that caches it on disk has ways of its own."""
    s3fs = sys.modules.get("s3fs")
    return s3fs is not None and isinstance(fs, s3fs.S3FileSystem) and hasattr(s3fs.S3FileSystem, "_call_s3")


async def _get_from_s3(
    fs: Any, path: str, starts: list[int], stops: list[int], check: Callable[[Mapping[str, Any]], None]
) -> list[bytes | BaseException]:
    """Get ranges by s3fs's own way to the server, which hands on what the server tells of the object beside them.

    ``fs.cat_ranges`` returns bytes alone, so the object would have to be asked for after each read; and it tries
    again what tries again already.
    """
    bucket, key, version = fs.split_path(path)
    which = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}

    async def get(start: int, stop: int) -> bytes:
        answer = await fs._call_s3("get_object", **which, Range=f"bytes={start}-{stop - 1}")
        body = answer["Body"]
        try:
            total = answer.get("ContentRange", "").rpartition("/")[2]
            check({**answer, "size": int(total or answer["ContentLength"])})
            return await body.read()
        finally:
            body.close()

    return await asyncio.gather(*map(get, starts, stops), return_exceptions=True)
