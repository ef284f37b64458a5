"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from iid_dask.format.objects import check_url, gathered, local_path
from iid_dask.format.parts import joined

BUFFER = 2**20
"""Bytes gathered before a write."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` when the block ends without an error.

    Of a local file the bytes go to ``.NAME.JOB.tmp`` in the same folder, are forced to disk, and the file is renamed;
    then the folder is forced to disk. After any error the temporary file is gone and what stood at ``path`` still does,
    but for an error of the very last step, which names the folder: the new file stands there whole, and may be
    lost if the power fails now.
    A symbolic link is followed, and the permissions of a file that is replaced are kept.

    The bytes of an object are gathered in memory, and on this machine's disk where they are many, and stored when the
    block ends; a request that fails for a reason that passes is made again.

    Parameters
    ----------
    path
        Or the URL of an object.
    storage_options
        For the fsspec file system of a URL.

    Raises
    ------
    OSError
        With errno, and path or URL: disk full, read-only folder, and so on.
    """
    local = local_path(path)
    if local is None:
        with gathered(os.fsdecode(os.fspath(path)), storage_options) as file:
            yield file
        return
    with _replacing(local) as (_, number), os.fdopen(number, "wb", buffering=BUFFER) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


class Parts(Protocol):
    """What processes put the parts of a file into, at once and in any order; pickles small."""

    def put(self, offset: int, data: memoryview) -> None:
        """Write bytes to their place."""


@dataclass(frozen=True)
class FileParts:
    """A file of a known size under its temporary name, which others fill in.

    Attributes
    ----------
    path : str
    """

    path: str

    def put(self, offset: int, data: memoryview) -> None:
        """Write bytes to their place in the file; see `put`."""
        put(self.path, offset, data)


@contextlib.contextmanager
def atomic_parts(
    path: str | os.PathLike[str], nbytes: int, storage_options: Mapping[str, Any] | None = None
) -> Iterator[Parts]:
    """Make a file that other processes fill in, and that replaces ``path`` as in `atomic_write`.

    Parameters
    ----------
    path
        Or the URL of an object, whose parts are objects meanwhile, beside it.
    nbytes
        What a local file begins with, as zeros; it may grow.
    storage_options
        For the fsspec file system of a URL.

    Yields
    ------
    Parts
        The temporary file is gone when the block ends: who comes late finds nothing to write to.
    """
    local = local_path(path)
    if local is None:
        with joined(os.fsdecode(os.fspath(path)), storage_options, nbytes) as parts:
            yield parts
        return
    remove_abandoned(local)
    with _replacing(local) as (temporary, number):
        try:
            os.ftruncate(number, nbytes)
            yield FileParts(temporary)
            os.fsync(number)
        finally:
            os.close(number)


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files that writers of ``path`` left which were killed; those at work hold a lock.

    Of a URL there are none.
    """
    local = local_path(path)
    if local is None:
        return
    folder, name = os.path.split(check_target(local))
    _remove(folder, re.escape(f".{_short(name)}."))


def remove_all_abandoned(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files of all writers in a folder that were killed; those at work hold a lock."""
    _remove(os.fspath(folder), r"\..+\.")


def _remove(folder: str, start: str) -> None:
    pattern = re.compile(start + r"[0-9a-f]{8}\.tmp")
    for found in filter(pattern.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            number = os.open(os.path.join(folder, found), os.O_RDWR)
            try:
                if _lock(number):
                    os.unlink(os.path.join(folder, found))
            finally:
                os.close(number)


def _lock(number: int) -> bool:
    """Lock an open file; OSError if another has it. False where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _short(name: str) -> str:
    """What of a file's name fits into that of its temporary file: of 255 bytes, the job and the suffix take 14."""
    return os.fsdecode(os.fsencode(name)[:240])


def put(path: str, offset: int, data: memoryview) -> None:
    """Write bytes to their place in a file that is there, and force them to disk.

    Raises
    ------
    FileNotFoundError
        If the file was given its final name, or given up.
    """
    number = os.open(path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        with _naming(path):
            os.lseek(number, offset, os.SEEK_SET)
            while data:
                data = data[os.write(number, data) :]
            os.fsync(number)
    finally:
        os.close(number)


def check_target(path: str | os.PathLike[str]) -> str:
    """Return the real path of a file to write, or its URL, or say why none can be written there.

    Raises
    ------
    OSError
        For a folder, a folder that is not there, and what is no regular file; of URLs for a bucket, and for what ends
        in a slash: no server is asked.
    """
    local = local_path(path)
    if local is None:
        return check_url(os.fsdecode(os.fspath(path)))
    final = os.path.realpath(os.path.expanduser(local))
    if os.path.isdir(final):
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected the path of a file to write", final)
    folder, name = os.path.split(final)
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise NotADirectoryError(errno.ENOTDIR, f"not a folder to write {name} into", folder)
        raise FileNotFoundError(errno.ENOENT, f"no such folder to write {name} into; make it first", folder)
    if os.path.exists(final) and not os.path.isfile(final):
        # A rename would put a plain file where the device or pipe was.
        raise OSError(errno.EINVAL, "not a regular file, so it cannot be replaced", final)
    return final


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[tuple[str, int]]:
    """Make a temporary file and give its path and descriptor; it is renamed to ``path`` at the end."""
    final = check_target(path)
    folder, name = os.path.split(final)
    temporary = os.path.join(folder, f".{_short(name)}.{uuid.uuid4().hex[:8]}.tmp")
    mode, replaces = 0o666, False
    with contextlib.suppress(FileNotFoundError):
        mode, replaces = stat.S_IMODE(os.stat(final).st_mode), True
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with contextlib.suppress(OSError):  # file systems without locks
            _lock(number)
        with _naming(temporary):
            yield temporary, number
            if replaces:
                os.chmod(temporary, mode)  # the umask took bits from what open was given
            os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with _naming(folder):
        _sync_folder(folder)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Put a path on errors of writes and syncs, which know only a number."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = path
        raise


def _sync_folder(folder: str) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        # File systems that cannot force a folder, and folders that may be written but not read, say it so.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
