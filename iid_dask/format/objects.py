"""Objects behind fsspec URLs, written whole.

An object store (S3, Google Cloud Storage, Azure) shows an object when all of its bytes are there. A server of files
(SFTP, SMB, HDFS) shows a file while it is being written, and keeps what was written of it when that fails.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, TypeVar, cast

from iid_dask.format.faults import Patience, may_pass, unread

T = TypeVar("T")

WHOLE = 64 * 2**20
"""Bytes up to which an object is held in memory and stored by one request; a larger one takes many."""

BLOCK = 32 * 2**20
"""Bytes of each of these: stores take at most 10,000."""

CODES = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}
"""Of errors that file systems raise without one."""


def local_path(target: str | os.PathLike[str]) -> str | None:
    """Return the path of a local file or folder, ``~`` as it is; None for a URL of another file system.

    Examples
    --------
    >>> local_path("file:///data/a.iid"), local_path("a.iid"), local_path("s3://bucket/a.iid")
    ('/data/a.iid', 'a.iid', None)
    """
    path = os.fsdecode(os.fspath(target))
    if "://" not in path and "::" not in path:
        return path
    if path.startswith(("file://", "local://")) and "::" not in path:
        return path.split("://", 1)[1]
    return None


def check_url(url: str) -> str:
    """Return the URL of an object to write, or say why none can be written there; asks no server.

    Raises
    ------
    IsADirectoryError
        For a bucket, and for what ends in a slash.
    OSError
        For a chain of file systems.
    """
    if "::" in url:
        raise OSError(errno.EINVAL, "a chain of file systems, expected the URL of one object to write", url)
    protocol, _, place = url.partition("://")
    if not place or place.endswith("/") or ("/" not in place and protocol != "memory"):
        raise IsADirectoryError(errno.EISDIR, "is a bucket or a folder, expected the URL of an object to write", url)
    return url


def filesystem(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    """Return the file system of a URL, and the path that it knows it by."""
    from fsspec.core import url_to_fs  # heavy, and local files do not need it

    # A listing cached by fsspec would hide what others write.
    fs, path = url_to_fs(url, **{"use_listings_cache": False, **(storage_options or {})})
    return fs, cast(str, path)


# --- writing ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def gathered(url: str, storage_options: Mapping[str, Any] | None) -> Iterator[BinaryIO]:
    """Open a file whose bytes become the object when the block ends without an error; until then nothing is sent."""
    check_url(url)
    with tempfile.SpooledTemporaryFile(max_size=WHOLE) as file:
        yield cast(BinaryIO, file)

        def blocks() -> Iterator[bytes]:
            file.seek(0)
            while block := file.read(BLOCK):
                yield block

        store(url, file.seek(0, os.SEEK_END), blocks, storage_options)


def store(
    url: str, nbytes: int, blocks: Callable[[], Iterable[bytes]], storage_options: Mapping[str, Any] | None
) -> None:
    """Store an object, which takes the place of an old one when it is whole.

    Parameters
    ----------
    url
    nbytes
        Of the object.
    blocks
        Returns its bytes from the first on; called again when storing failed for a reason that passes.
    storage_options
    """
    fs, path = filesystem(url, storage_options)
    send = _send_whole if nbytes <= WHOLE else _send_parts
    patiently(url, lambda: send(fs, path, blocks()))


def _send_whole(fs: Any, path: str, blocks: Iterable[bytes]) -> None:
    fs.pipe_file(path, b"".join(blocks))


def _send_parts(fs: Any, path: str, blocks: Iterable[bytes]) -> None:
    """Upload in parts, which the store puts together in the last request."""
    from fsspec.asyn import AsyncFileSystem

    if not isinstance(fs, AsyncFileSystem):  # no object store: what is written to an open file is seen at once
        _send_whole(fs, path, blocks)
        return
    file = fs.open(path, "wb", block_size=BLOCK)
    try:
        for block in blocks:
            file.write(block)
        file.close()
    except BaseException:
        with contextlib.suppress(Exception):
            file.discard()
        file.closed = True  # else it would complete the object when it is collected
        raise


def remove_below(url: str, storage_options: Mapping[str, Any] | None) -> None:
    """Remove all objects whose names begin with a URL and a slash; there need be none."""
    fs, path = filesystem(url, storage_options)

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            names = fs.find(path)
            if any(mark in path for mark in "*?["):  # which would be a pattern where many are removed at once
                for name in names:
                    fs.rm_file(name)
            elif names:
                fs.rm(names)

    patiently(url, remove)


# --- failures ---------------------------------------------------------------------------------------------------


def patiently(url: str, call: Callable[[], T]) -> T:
    """Return what a request returns; one that fails for a reason that passes is tried again.

    Parameters
    ----------
    url
        For errors.
    call
        Done twice it must do the same as once.

    Raises
    ------
    OSError
        With the URL.
    """
    patience = Patience()
    while True:
        try:
            return call()
        except Exception as error:  # every file system has its own
            passing = may_pass(error)
            if passing and patience.wait():
                continue
            if passing and isinstance(error, FileNotFoundError):  # nobody is there to know that
                raise unread(url, "the object", patience.tried, error) from error
            _tell(error, url, patience.tried)
            raise


def _tell(error: Exception, url: str, tried: int) -> None:
    """Put the URL on an error, which knows a bucket at most."""
    if tried > 1:
        error.add_note(f"in {tried} attempts")
    if not isinstance(error, OSError):
        error.add_note(f"this happened at {url}")
        return
    if error.errno is None:
        error.strerror = str(error) or type(error).__name__
        error.errno = next((code for kind, code in CODES.items() if isinstance(error, kind)), errno.EIO)
    error.filename = error.filename or url
