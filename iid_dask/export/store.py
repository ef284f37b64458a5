"""A Zarr store as this package writes it: opened once a process, with the pipeline that measures fastest."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zarr
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from iid_dask.format.objects import local_path
from iid_dask.once import Once
from iid_dask.pipelines import fastest_pipeline

ATTRIBUTE = "iid_dask"
"""Attribute of the root group that holds the job and whether it is complete."""

RECORD = "iid_record"
"""Subgroup with an array a variable: for each chunk (pixels + 1, checksum, overlapping pixels), 0 if not written."""

_arrays: Once[Any] = Once(32)


@dataclass(frozen=True)
class Place:
    """Where a store is; pickles small.

    Attributes
    ----------
    target : str or zarr.abc.store.Store
        A path, a URL, or an open store.
    storage_options : mapping
    job : str
        Sets the arrays of one run apart from those of another at the same place.
    """

    target: Any
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    job: str = ""

    @classmethod
    def of(cls, store: Any, storage_options: Mapping[str, Any] | None = None) -> Place:
        """Return the place of a path, URL or store; ``~`` is expanded."""
        if isinstance(store, str | os.PathLike):
            path = local_path(store)
            # Links are followed, so that a store that is replaced is replaced where it is.
            target = os.fspath(store) if path is None else os.path.realpath(os.path.expanduser(path))
            return cls(target, dict(storage_options or {}))
        if isinstance(store, LocalStore):
            return cls(os.path.realpath(store.root))
        return cls(store, dict(storage_options or {}))

    @property
    def local(self) -> Path | None:
        """The folder, for a store on this machine's file systems."""
        if isinstance(self.target, str):
            return None if "://" in self.target else Path(self.target)
        root = getattr(self.target, "root", None)
        return root if isinstance(root, Path) else None

    @property
    def folder(self) -> Path | None:
        """The folder, if this process makes, renames and removes it."""
        return Path(self.target) if isinstance(self.target, str) and "://" not in self.target else None

    @property
    def name(self) -> str:
        """For messages."""
        return str(self.target)

    def group(self, mode: Any, use_consolidated: bool | None = None) -> zarr.Group:
        """Open the root group."""
        options = dict(self.storage_options) or None
        return zarr.open_group(self.target, mode=mode, storage_options=options, use_consolidated=use_consolidated)

    def array(self, path: str, *, sharded: bool, mode: str = "r+") -> Any:
        """Open an array of tiles with the fastest pipeline, once a process.

        An array keeps the pipeline that was configured when it was opened, so the configuration is changed under
        a lock for just that moment: around a write it would be seen by other threads.
        """
        return self._once(path, mode, fastest_pipeline(sharded=sharded, local=self.local is not None))

    def record(self, variable: str, mode: str = "r+") -> Any:
        """Open a variable's record, once a process."""
        return self._once(f"{RECORD}/{variable}", mode, nullcontext())

    def _once(self, path: str, mode: str, configured: AbstractContextManager[None]) -> Any:
        token = (self.name, id(self.target) if not isinstance(self.target, str) else 0, self.job, path, mode)

        def opened() -> Any:
            with configured:
                return self.group(mode)[path]

        return _arrays.get(token, opened, alone=True)


def stored_sizes(group: zarr.Group, path: str) -> dict[str, int]:
    """Return the size in bytes of every stored object of an array, by its key below the array, such as "c/0/1"."""
    prefix = "/".join(part for part in (group.store_path.path, path, "c") if part) + "/"
    if isinstance(group.store, LocalStore):  # zarr takes 50 times as long for names alone
        return dict(_sizes_below(os.path.join(group.store.root, prefix), "c/"))
    return sync(_listed(group.store, prefix))


def _sizes_below(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes_below(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.stat().st_size


async def _listed(store: Any, prefix: str) -> dict[str, int]:
    if isinstance(store, FsspecStore):  # a listing tells the sizes, of which zarr asks one by one
        start = f"{store.path}/{prefix}".lstrip("/")
        found = await store.fs._find(start, detail=True, withdirs=False)
        if all(told.get("size") is not None for told in found.values()):
            return {f"c/{name.lstrip('/').removeprefix(start)}": told["size"] for name, told in found.items()}
    keys = [key async for key in store.list_prefix(prefix)]
    sizes = await asyncio.gather(*(store.getsize(key) for key in keys))
    return {f"c/{key.removeprefix(prefix)}": size for key, size in zip(keys, sizes, strict=True)}


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put a path on errors of the disk, which zarr tells without one, and zarrs in words alone."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), path) from error
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = path
        raise


_filters = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence zarr's notes that consolidated metadata and text arrays are not in the v3 specification yet.

    One thread at a time: the filters of warnings are the process's, and two that leave in the wrong order mix them up.
    """
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata.*")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        yield
