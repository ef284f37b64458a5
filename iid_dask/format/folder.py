"""A folder, local or what the names of objects begin with: the few things that mosaics do with files."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import shutil
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeAlias, TypeVar

from iid_dask.errors import IIDFormatError
from iid_dask.format.objects import filesystem, local_path, patiently, remove_below
from iid_dask.format.source import LOCAL_GAP, REMOTE_GAP, LocalSource, RemoteSource, Source
from iid_dask.format.target import atomic_write, remove_all_abandoned

T = TypeVar("T")

LONGEST, LONGEST_PART = 1000, 255
"""Characters of a name in a folder, and bytes between two slashes, that file systems take."""

BLOCK = 2**22
"""Bytes read at once for a checksum."""

FolderLike: TypeAlias = "str | os.PathLike[str] | Folder"
"""A path, a URL, or what `as_folder` made of one."""

Stamp = tuple[int, int] | str
"""What changes when a file is replaced: (mtime_ns, size), or what a store tells of an object."""


@dataclass(frozen=True)
class Folder(ABC):
    """Where files lie; names in it are relative, with slashes.

    Attributes
    ----------
    root : str
        Absolute path, or URL without a slash at its end.
    storage_options : dict, optional
        For the fsspec file system of a URL.
    """

    root: str
    storage_options: dict[str, Any] | None = field(default=None, repr=False, hash=False)  # it may hold a secret

    def __str__(self) -> str:
        return self.root

    def inside(self, name: object) -> str:
        """Return the path or URL of a file that a manifest or table names, which must lie in the folder.

        Raises
        ------
        IIDFormatError
            For absolute paths, "..", URLs, and links that lead elsewhere.
        """
        if not isinstance(name, str) or not self._is_plain(name):
            raise IIDFormatError(self.root, "manifest", None, None, f"path {name!r:.120}", "a file within the folder")
        return self.child(name)

    def _is_plain(self, name: str) -> bool:
        """Whether a name leads into its folder on every system."""
        foreign = any(mark in name for mark in ("\\", ":", "\0"))
        long = len(name) > LONGEST or any(
            len(part.encode("utf-8", "surrogatepass")) > LONGEST_PART for part in name.split("/")
        )
        return not foreign and not long and name == posixpath.normpath(name) and not name.startswith(("/", "."))

    @property
    @abstractmethod
    def gap(self) -> int:
        """Bytes between two wanted ranges of a file that are cheaper to read than to skip."""

    @abstractmethod
    def child(self, name: str) -> str:
        """Return the path or URL of a file or folder in it."""

    @abstractmethod
    def within(self, name: str) -> Folder:
        """Return a folder in it."""

    @abstractmethod
    def make(self, *names: str) -> None:
        """Make the folder and some in it, where there is need to."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return all bytes of a file; FileNotFoundError if there is none."""

    @abstractmethod
    def crc32(self, name: str) -> int:
        """Return the checksum of a file, of which little is held at a time."""

    @abstractmethod
    def source(self, name: str, stamp: Any = None) -> Source:
        """Open a file; IIDChangedError if it has another stamp than this."""

    @abstractmethod
    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file that replaces the named one when the block ends without an error."""

    @abstractmethod
    def stamp(self, name: str) -> Stamp:
        """Return what changes when a file is replaced; FileNotFoundError if there is none."""

    @abstractmethod
    def sizes(self, name: str = "") -> dict[str, int]:
        """Return the names in a folder in it, with the bytes of files, and 0 for folders; {} if there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove_abandoned(self, *names: str) -> None:
        """Remove what killed writers left in the folder and in some in it."""

    @abstractmethod
    def remove_all(self) -> None:
        """Remove the folder with all that is in it."""

    def is_file(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.stamp(name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return False
        return True


class LocalFolder(Folder):
    """A folder of this machine, or one that it has mounted."""

    @property
    def gap(self) -> int:
        return LOCAL_GAP

    def child(self, name: str) -> str:
        return os.path.join(self.root, name)

    def inside(self, name: object) -> str:
        path = super().inside(name)
        root = os.path.realpath(self.root)
        if not os.path.realpath(path).startswith(os.path.join(root, "")):
            raise IIDFormatError(self.root, "manifest", None, None, f"path {name!r:.120}, a link", "a file within it")
        return path

    def within(self, name: str) -> Folder:
        return LocalFolder(self.child(name))

    def make(self, *names: str) -> None:
        for name in ("", *names):
            os.makedirs(self.child(name), exist_ok=True)

    def read(self, name: str) -> bytes:
        with open(self.child(name), "rb") as file:
            return file.read()

    def crc32(self, name: str) -> int:
        crc = 0
        with open(self.child(name), "rb") as file:
            while block := file.read(BLOCK):
                crc = zlib.crc32(block, crc)
        return crc

    def source(self, name: str, stamp: Any = None) -> Source:
        return LocalSource(self.child(name), stamp)

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        return atomic_write(self.inside(name))  # which would follow a link

    def stamp(self, name: str) -> Stamp:
        status = os.stat(self.child(name))
        return status.st_mtime_ns, status.st_size

    def is_file(self, name: str) -> bool:
        return os.path.isfile(self.child(name))

    def sizes(self, name: str = "") -> dict[str, int]:
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.child(name)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # a temporary file got its name meanwhile
                    found[entry.name] = entry.stat().st_size if entry.is_file() else 0
        return found

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.inside(name))

    def remove_abandoned(self, *names: str) -> None:
        for folder in filter(os.path.isdir, (self.root, *map(self.inside, names))):
            remove_all_abandoned(folder)

    def remove_all(self) -> None:
        shutil.rmtree(self.root)


class RemoteFolder(Folder):
    """What the names of objects behind an fsspec URL begin with."""

    @property
    def gap(self) -> int:
        return REMOTE_GAP

    def _is_plain(self, name: str) -> bool:
        # fsspec gives some marks a meaning: patterns, versions, encoded bytes.
        return super()._is_plain(name) and not any(mark in name for mark in "?*[]#%")

    def _ask(self, name: str, call: Callable[[Any, str], T]) -> T:
        url = self.child(name)
        fs, path = filesystem(url, self.storage_options)
        return patiently(url, lambda: call(fs, path))

    def child(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def within(self, name: str) -> Folder:
        return RemoteFolder(self.child(name), self.storage_options)

    def make(self, *names: str) -> None:
        """Do nothing: folders are there when there are files in them."""

    def read(self, name: str) -> bytes:
        try:
            return self._ask(name, lambda fs, path: bytes(fs.cat_file(path, start=0)))
        except Exception as error:  # every file system has its own
            if not _is_beyond_end(error) or self._ask(name, lambda fs, path: fs.info(path)["size"]) != 0:
                raise
            return b""

    def crc32(self, name: str) -> int:
        source, crc = self.source(name), 0
        for at in range(0, source.size, BLOCK):
            crc = zlib.crc32(source.read(at, min(BLOCK, source.size - at)), crc)
        return crc

    def source(self, name: str, stamp: Any = None) -> Source:
        return RemoteSource(self.child(name), self.storage_options, stamp)

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        return atomic_write(self.child(name), self.storage_options)

    def stamp(self, name: str) -> Stamp:
        info = self._ask(name, lambda fs, path: fs.info(path))
        if info.get("type") == "directory":
            raise IsADirectoryError(f"{self.child(name)}: is a folder, expected a file")
        return RemoteSource.stamp_of(info)

    def sizes(self, name: str = "") -> dict[str, int]:
        def listed(fs: Any, path: str) -> dict[str, int]:
            with contextlib.suppress(FileNotFoundError):
                facts = [(one["name"].rstrip("/"), one) for one in fs.ls(path, detail=True)]
                # Consoles of stores make an object of no bytes for the folder itself.
                return {posixpath.basename(at): one.get("size") or 0 for at, one in facts if at != path.rstrip("/")}
            return {}

        return self._ask(name, listed)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda fs, path: fs.rm_file(path))

    def remove_abandoned(self, *names: str) -> None:
        """Do nothing: of an upload that was not completed nothing is seen."""

    def remove_all(self) -> None:
        remove_below(self.root, self.storage_options)


def as_folder(target: FolderLike, storage_options: Mapping[str, Any] | None = None) -> Folder:
    """Return the folder of a path or URL; ``~`` is expanded.

    Examples
    --------
    >>> as_folder("s3://bucket/cells/", {"anon": True}).child("mosaic.json")
    's3://bucket/cells/mosaic.json'
    >>> as_folder("/data/cells").inside("../secret")
    Traceback (most recent call last):
    iid_dask.errors.IIDFormatError: /data/cells: manifest: found path '../secret', expected a file within the folder
    """
    if isinstance(target, Folder):
        return target
    local = local_path(target)
    if local is not None:
        return LocalFolder(os.path.abspath(os.path.expanduser(local)))
    url = os.fsdecode(os.fspath(target))
    if "::" in url:
        raise ValueError(f"{url}: a chain of file systems, expected the URL of a folder")
    return RemoteFolder(url.rstrip("/"), dict(storage_options or {}))


def _is_beyond_end(error: Exception) -> bool:
    """Whether an error may say that an object ends before a range begins: an empty one has no first byte."""
    return getattr(error, "errno", None) == errno.EINVAL or getattr(error, "status", None) == 416


def stamp_of(source: Source) -> Stamp:
    """Return what changes when a file that was opened is replaced."""
    return source.stamp if isinstance(source, LocalSource | RemoteSource) else (0, source.size)


def folder_of(source: Source) -> Folder:
    """Return the folder that a file lies in; TypeError for bytes in memory."""
    if isinstance(source, RemoteSource):
        return RemoteFolder(source.name.rsplit("/", 1)[0], source.storage_options)
    if isinstance(source, LocalSource):
        return LocalFolder(os.path.dirname(source.name))
    raise TypeError(f"{source.name}: has no folder, expected a file")
