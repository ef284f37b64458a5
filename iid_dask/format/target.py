"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
import zlib
from collections.abc import Iterator
from typing import BinaryIO

BUFFER = 2**20
"""Bytes gathered before a write."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file that replaces ``path`` when the block ends without an error.

    The bytes go to ``.NAME.JOB.tmp`` in the same folder, are forced to disk, and the file is renamed; then the
    folder is forced to disk. After any error the temporary file is gone and what stood at ``path`` still does,
    but for an error of the very last step, which names the folder: the new file stands there whole, and may be
    lost if the power fails now.
    A symbolic link is followed, and the permissions of a file that is replaced are kept.

    Raises
    ------
    OSError
        With errno and path: disk full, read-only folder, and so on.
    """
    final = os.path.realpath(os.path.expanduser(os.fspath(path)))
    if os.path.isdir(final):
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected the path of a file to write", final)
    folder, name = os.path.split(final)
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise NotADirectoryError(errno.ENOTDIR, f"not a folder to write {name} into", folder)
        raise FileNotFoundError(errno.ENOENT, f"no such folder to write {name} into; make it first", folder)
    # A name may have 255 bytes; the job and the suffix take 14.
    short = os.fsdecode(os.fsencode(name)[:240])
    temporary = os.path.join(folder, f".{short}.{uuid.uuid4().hex[:8]}.tmp")
    mode, replaces = 0o666, False
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(final)
        if not stat.S_ISREG(status.st_mode):
            # A rename would put a plain file where the device or pipe was.
            raise OSError(errno.EINVAL, "not a regular file, so it cannot be replaced", final)
        mode, replaces = stat.S_IMODE(status.st_mode), True
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with _naming(temporary):
            with os.fdopen(number, "wb", buffering=BUFFER) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
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


class Counted:
    """Write and keep the position and the crc32 since `restart`."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position, self.crc = file, 0, 0

    def restart(self) -> None:
        """Begin a new crc32."""
        self.crc = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.file.write(data)
        self.position += len(data)
        self.crc = zlib.crc32(data, self.crc)
