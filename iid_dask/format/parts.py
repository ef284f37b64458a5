"""An object that many processes make: each stores its bytes as an object of its own, and one joins these."""

from __future__ import annotations

import contextlib
import posixpath
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from iid_dask.errors import IIDStoreError
from iid_dask.format.objects import check_url, filesystem, patiently, remove_below, store


@dataclass(frozen=True)
class ObjectParts:
    """Where processes put parts of an object; the name of each is the byte that it begins with.

    Attributes
    ----------
    url : str
        What the names of the parts begin with.
    storage_options : dict
        For the fsspec file system.
    """

    url: str
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)  # it may hold a secret

    def put(self, offset: int, data: memoryview) -> None:
        """Store a part; one that is there already is replaced by the same bytes."""
        store(self._name(offset), len(data), lambda: [bytes(data)], self.storage_options)

    def _name(self, offset: int) -> str:
        return f"{self.url}/{offset:012d}"

    def sizes(self) -> dict[int, int]:
        """Return the bytes of the parts by where they begin, ascending."""
        fs, path = filesystem(self.url, self.storage_options)
        listed = patiently(self.url, lambda: fs.ls(path, detail=True))
        found = {int(posixpath.basename(one["name"])): int(one["size"]) for one in listed}
        return dict(sorted(found.items()))

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return the bytes of a part."""
        url = self._name(offset)
        fs, path = filesystem(url, self.storage_options)
        data = bytes(patiently(url, lambda: fs.cat_file(path, start=0)))
        if len(data) != nbytes:
            raise IIDStoreError(f"{url}: {len(data)} bytes, expected {nbytes}: written by another job? Begin again")
        return data


@contextlib.contextmanager
def joined(url: str, storage_options: Mapping[str, Any] | None, nbytes: int) -> Iterator[ObjectParts]:
    """Give a place for the parts of an object, which replaces what is at ``url`` when the block ends without an error.

    The parts are held by this process one at a time. They are removed at the end; those of a process that was killed
    are removed by the next one.

    Parameters
    ----------
    url
    storage_options
        For the fsspec file system.
    nbytes
        Of the object, at least.

    Raises
    ------
    IIDStoreError
        If parts are missing: there is a gap between two of them, or they end before ``nbytes``.
    """
    check_url(url)
    options = dict(storage_options or {})
    folder, _, name = url.rpartition("/")
    every = f"{folder}/.{name}.parts"
    parts = ObjectParts(f"{every}/{uuid.uuid4().hex[:8]}", options)
    remove_below(every, options)
    try:
        yield parts
        sizes = parts.sizes()
        _check_cover(url, sizes, nbytes)

        def blocks() -> Iterator[bytes]:
            for offset, size in sizes.items():
                yield parts.read(offset, size)

        store(url, sum(sizes.values()), blocks, options)
    finally:
        with contextlib.suppress(Exception):  # the object stands, or the error is another one
            remove_below(parts.url, options)


def _check_cover(url: str, sizes: Mapping[int, int], least: int) -> None:
    at = 0
    for offset, nbytes in sizes.items():
        if offset != at:
            raise IIDStoreError(f"{url}: a part at byte {offset}, expected one at {at}: it was removed; begin again")
        at += nbytes
    if at < least:
        raise IIDStoreError(f"{url}: the parts end at byte {at}, expected {least}: one was removed; begin again")
