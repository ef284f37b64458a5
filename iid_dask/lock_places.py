"""Where locks are kept: small files of a folder, or objects of a store, made whole and by one alone."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from iid_dask.format.objects import filesystem, patiently

MOST = 2**16
"""Bytes that are read of a lock; ours have about 400."""

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class LockPlace(Protocol):
    """A folder in which locks are kept; ``name`` is that of a lock in it."""

    def path(self, name: str) -> str:
        """Return the full path or URL, for messages."""

    def create(self, name: str, data: bytes) -> bool:
        """Make a lock that is not there, whole; False if one is."""

    def read(self, name: str) -> bytes | None:
        """Return what a lock holds; None if there is none."""

    def replace(self, name: str, data: bytes) -> None:
        """Put a lock in the place of another, at once."""

    def touch(self, name: str, data: bytes) -> None:
        """Give a lock that holds ``data`` the present time."""

    def remove(self, name: str) -> None:
        """Remove a lock; none need be there."""

    def silence(self, name: str) -> float:
        """Return the seconds since a lock was touched, by the place's own clock; infinite if there is none."""


@dataclass(frozen=True)
class LockFolder:
    """Locks as files of a folder that several machines may share."""

    folder: str

    def path(self, name: str) -> str:
        """Return the path of a lock."""
        return os.path.join(self.folder, name)

    def create(self, name: str, data: bytes) -> bool:
        """Make a lock by a hard link, which appears whole, and which also NFS makes for one of many."""
        path, temporary = self.path(name), self._temporary(name, data)
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Who looks before the next line counts it as one of another machine, made just now.
            return self._create_here(path, data)
        finally:
            self._unlink(temporary)

    def _create_here(self, path: str, data: bytes) -> bool:
        with suppress(FileExistsError), open(path, "xb") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                self._unlink(path)  # an empty lock would be one of another machine, made just now
                raise
            return True
        return False

    def read(self, name: str) -> bytes | None:
        """Return what a file holds, of its first 64 KiB."""
        try:
            with open(self.path(name), "rb", opener=_open_plain) as file:
                return file.read(MOST)
        except FileNotFoundError:
            return None

    def replace(self, name: str, data: bytes) -> None:
        """Rename a new file to the old one's name."""
        temporary = self._temporary(name, data)
        try:
            os.replace(temporary, self.path(name))
        except BaseException:
            self._unlink(temporary)
            raise

    def touch(self, name: str, data: bytes) -> None:
        """Set the file's time, which a file server takes from its own clock."""
        os.utime(self.path(name))

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._unlink(self.path(name))

    def silence(self, name: str) -> float:
        """Compare a file's time with that of one made now."""
        temporary = self._temporary(name, b"")
        try:
            return os.stat(temporary).st_mtime - os.stat(self.path(name)).st_mtime
        except FileNotFoundError:
            return float("inf")
        finally:
            self._unlink(temporary)

    def _temporary(self, name: str, data: bytes) -> str:
        path = self.path(f"{name}.{uuid.uuid4().hex[:16]}.tmp")
        try:
            with open(path, "xb") as file:
                file.write(data)
        except OSError as error:
            self._unlink(path)
            if error.filename is None and error.errno is not None:
                error.filename = self.path(name)
            raise
        return path

    @staticmethod
    def _unlink(path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)


@dataclass(frozen=True)
class LockObjects:
    """Locks as objects of a store that fsspec reaches."""

    fs: Any
    folder: str
    url: str

    @classmethod
    def of(cls, url: str, storage_options: Mapping[str, Any]) -> LockObjects:
        """Return the place beside the object of a URL."""
        fs, path = filesystem(url, storage_options)
        return cls(fs, path.rpartition("/")[0], url.rpartition("/")[0])

    def path(self, name: str) -> str:
        """Return the URL of a lock."""
        return f"{self.url}/{name}"

    def create(self, name: str, data: bytes) -> bool:
        """Make an object by a PUT that the store refuses if there is one."""
        # Stores that do not know the condition write over what is there without a word: looked for before, and after.
        if self.read(name) is not None:
            return False
        try:
            self._do(name, lambda path: self.fs.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError):  # because some stores know no condition: the last line tells who won
            self.replace(name, data)
        return self.read(name) == data

    def read(self, name: str) -> bytes | None:
        """Return what an object holds."""
        try:
            return bytes(self._do(name, self.fs.cat_file))[:MOST]
        except FileNotFoundError:
            return None

    def replace(self, name: str, data: bytes) -> None:
        """Put an object."""
        self._do(name, lambda path: self.fs.pipe_file(path, data))

    def touch(self, name: str, data: bytes) -> None:
        """Put the object again."""
        self.replace(name, data)

    def remove(self, name: str) -> None:
        """Remove an object."""
        with suppress(FileNotFoundError):
            self._do(name, self.fs.rm_file)

    def silence(self, name: str) -> float:
        """Compare an object's time with that of one made now."""
        probe = f"{name}.{uuid.uuid4().hex[:16]}.tmp"
        self.replace(probe, b"now")
        try:
            passed = self._do(probe, self.fs.modified) - self._do(name, self.fs.modified)
            return float(passed.total_seconds())
        except FileNotFoundError:
            return float("inf")
        finally:
            self.remove(probe)

    def _do(self, name: str, call: Callable[[str], Any]) -> Any:
        return patiently(self.path(name), lambda: call(f"{self.folder}/{name}"))


def _open_plain(path: str, flags: int) -> int:
    """Open a file; a link is an error, and a pipe keeps nobody waiting."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def split_local(path: str) -> tuple[str, str]:
    """Return the folder and the name of a path, links followed; FileNotFoundError if that folder is not there."""
    folder, name = os.path.split(os.path.realpath(os.path.expanduser(path)))
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise NotADirectoryError(errno.ENOTDIR, f"not a folder to write {name} into", folder)
        raise FileNotFoundError(errno.ENOENT, f"no such folder to write {name} into; make it first", folder)
    return folder, name
