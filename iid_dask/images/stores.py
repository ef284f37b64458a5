"""Zarr arrays, and label images of OME-Zarr."""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from iid_dask.bbox import BBox
from iid_dask.format.source import as_source
from iid_dask.images.image import MAX_PICKLED, as_label_dtype, as_plane, check_inside
from iid_dask.pipelines import with_fastest_pipeline

_MARKS = ("zarr.json", ".zarray", ".zgroup")
"""Objects of which a Zarr node has one; each tells that it was made anew."""


_PICKLE = re.compile(r"'(numcodecs\.)?pickle'")
"""The codec, as zarr's errors name it."""


@dataclass(frozen=True, eq=False)
class ZarrImage:
    """A Zarr array; axes before the last two have one element.

    Attributes
    ----------
    array : zarr.Array
        Pickles to its place and metadata.
    name : str
        Path, URL or store.
    stamp : str
        Of its metadata.
    """

    array: zarr.Array
    name: str
    stamp: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.array.shape[-2:]
        return rows, cols

    @property
    def dtype(self) -> np.dtype:
        """In the machine's byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of a chunk."""
        rows, cols = self.array.chunks[-2:]
        return rows, cols

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window."""
        check_inside(self, box)
        planes = (0,) * (self.array.ndim - 2)
        return np.asarray(self.array[planes + box.slices]).astype(self.dtype, copy=False)

    def part(self, box: BBox) -> ZarrImage:
        """Return the image itself, which is small."""
        return self

    def token(self) -> str:
        """Place, and stamp of the metadata; chunks are not looked at."""
        return f"zarr {self.name} {self.stamp}"

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.array.store, MemoryStore) and (nbytes := self.array.nbytes_stored()) > MAX_PICKLED:
            raise TypeError(
                f"{self.name} holds {nbytes / 2**20:.0f} MiB in this process's memory, expected at most "
                f"{MAX_PICKLED // 2**20} MiB to be sent to another; keep the array in a folder, or work on threads"
            )
        return dict(self.__dict__)


def open_zarr_array(
    array: zarr.Array,
    *,
    dims: Sequence[str] | None = None,
    name: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ZarrImage:
    """Return the image of a Zarr array.

    Parameters
    ----------
    array
    dims
        Names of its axes; those that OME-Zarr or the array tells by default.
    name
        Path or URL; what the array's store says by default.

    Raises
    ------
    TypeError, ValueError
        For what holds no labels, for chunks that are pickles, and for more than one element along an axis before rows
        and columns.
    """
    name = _place(array) if name is None else name
    _refuse_pickles(array, name)
    dims = dims or _dims(array)
    as_label_dtype(name, array.dtype)
    extra = max(0, array.ndim - 2)
    if any(size != 1 for size in array.shape[:extra]):
        axes = ", ".join(f"{dim} {size}" for dim, size in zip(dims, array.shape, strict=True))
        raise ValueError(
            f"{name}: found axes ({axes}), expected rows and columns, and one element along all others: choose a plane "
            f'of it, such as dask.array.from_zarr("{name}")[{"0, " * (extra - 1)}0]'
        )
    as_plane(name, array.shape[extra:], list(dims)[extra:])
    stamp = _stamp(array, name, storage_options)
    return ZarrImage(with_fastest_pipeline(array), name, stamp)


def _refuse_pickles(array: zarr.Array, name: str) -> None:
    """Raise ValueError for chunks that Python would unpickle: that runs whatever code they hold."""
    facts: Any = array.metadata
    codecs = (*(facts.filters or ()), facts.compressor) if facts.zarr_format == 2 else ()  # version 3 has no such codec
    if any(getattr(codec, "codec_id", None) == "pickle" for codec in codecs):
        raise _pickled(name)


def _pickled(name: str) -> ValueError:
    return ValueError(
        f"{name}: its chunks are pickles: found the codec 'pickle', expected one that holds numbers alone; reading "
        "pickles runs whatever code they hold, so they are never read: store the array anew, from a source you trust"
    )


@contextmanager
def _naming_pickles(name: str) -> Iterator[None]:
    """Say what zarr refuses as an unknown data type or codec, if it is a pickle."""
    try:
        yield
    except ValueError as error:
        if _PICKLE.search(str(error)):
            raise _pickled(name) from error
        raise


def _place(node: zarr.Array | zarr.Group) -> str:
    store = node.store_path.store
    if isinstance(store, LocalStore):
        return os.path.abspath(os.path.join(store.root, node.path))
    return str(node.store_path)


def _dims(array: zarr.Array) -> list[str]:
    named = getattr(array.metadata, "dimension_names", None) or [None] * array.ndim
    return [str(axis if dim is None else dim) for axis, dim in enumerate(named)]


def _stamp(array: zarr.Array, name: str, storage_options: Mapping[str, Any] | None) -> str:
    """Return a text that changes if the array is made anew."""
    facts = array.shape, array.chunks, str(array.dtype), sorted(array.attrs.asdict().items(), key=str)
    stamp = f"{zlib.crc32(repr(facts).encode()):08x}"
    for mark in _MARKS:
        try:
            source = as_source(f"{name.rstrip('/')}/{mark}", storage_options)
            return f"{stamp} {source.identity()[2]}"
        except (OSError, ValueError):  # no such object, a store without a path, or a server that tells no sizes
            continue
    return stamp


def open_zarr_path(path: str, storage_options: Mapping[str, Any] | None = None) -> ZarrImage:
    """Open a Zarr array, or the largest level of an OME-Zarr label image, by path or URL.

    Raises
    ------
    FileNotFoundError
    TypeError, ValueError
        For what is no label image, and for chunks that are pickles.
    """
    remote = "://" in path or "::" in path
    if not remote and not any(os.path.isfile(os.path.join(path, mark)) for mark in _MARKS):
        raise ValueError(
            f"{path}: found a folder without {' or '.join(_MARKS)}, expected a Zarr array; for a folder of tile images "
            'give grid_of("folder/tile_{row}_{col}.tif")'
        )
    try:
        # A store of our own: zarr from 3.4 on takes "memory://" for another thing than fsspec does.
        options = dict(storage_options or {})
        store: Any = FsspecStore.from_url(path, storage_options=options, read_only=True) if remote else path
        with _naming_pickles(path):
            node = zarr.open(store, mode="r")
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no Zarr array here", path) from error
    if isinstance(node, zarr.Array):
        return open_zarr_array(node, name=path, storage_options=storage_options)
    return open_zarr_group(node, name=path, storage_options=storage_options)


def open_zarr_group(
    group: zarr.Group, *, name: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> ZarrImage:
    """Open the largest level of an OME-Zarr label image.

    Raises
    ------
    ValueError
        For other groups, and for a picture that has label images beside it: says which.
    """
    name = _place(group) if name is None else name
    attrs = group.attrs.asdict()
    ome: Any = attrs.get("ome", attrs)  # version 0.5 keeps its metadata under a key of its own
    inside = sorted(group.group_keys()) if "labels" in group else []
    if "labels" in inside:
        held = ", ".join(
            f"{name}/labels/{one}" for one in sorted(zarr.open_group(group.store_path / "labels", mode="r"))
        )
        raise ValueError(f"{name}: found a picture with label images beside it, expected one of them: {held}")
    if not ome.get("multiscales"):
        held = ", ".join(f"{name}/{one}" for one in sorted(group)[:8]) or "nothing"
        raise ValueError(f"{name}: found a Zarr group, expected an array or an OME-Zarr label image; in it: {held}")
    scales = ome["multiscales"][0]
    path = scales["datasets"][0]["path"]
    dims = [axis["name"] if isinstance(axis, dict) else axis for axis in scales.get("axes", [])]
    with _naming_pickles(f"{name.rstrip('/')}/{path}"):
        array = group[path]
    if not isinstance(array, zarr.Array) or (dims and len(dims) != array.ndim):
        raise ValueError(f"{name}: its multiscales metadata do not describe {path!r}: found {array}, axes {dims}")
    return open_zarr_array(array, dims=dims, name=f"{name.rstrip('/')}/{path}", storage_options=storage_options)
