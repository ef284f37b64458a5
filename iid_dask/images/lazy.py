"""Label images that are objects of this process: numpy, dask and xarray."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.images.image import MAX_PICKLED, Image, as_label_dtype, as_plane, check_inside
from iid_dask.images.raw import open_mapped

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

MAX_OPENED = 2**20
"""Bytes that a lazily opened variable may take in every task that reads it."""

CHUNK = 4096
"""Rows and columns of the chunks that are made of a variable whose pickle is larger."""


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """A numpy array in memory.

    Attributes
    ----------
    array : array, shape (rows, cols)
    name : str
    """

    array: np.ndarray
    name: str = "numpy array"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.array.shape
        return rows, cols

    @property
    def dtype(self) -> np.dtype:
        """In the machine's byte order."""
        return self.array.dtype.newbyteorder("=")

    @property
    def blocks(self) -> None:
        """Any window costs its own pixels."""

    def read(self, box: BBox) -> np.ndarray:
        """Return a view of a window."""
        check_inside(self, box)
        return self.array[box.slices].astype(self.dtype, copy=False)

    def part(self, box: BBox) -> ArrayImage:
        """Return the image itself."""
        return self

    def token(self) -> str:
        """Shape and dtype: pixels are not looked at."""
        return f"array {self.shape} {self.dtype}"

    def __getstate__(self) -> dict[str, Any]:
        if self.array.nbytes > MAX_PICKLED:
            raise TypeError(
                f"{self.name} of {self.array.nbytes / 2**20:.0f} MiB is in this process's memory, expected at most "
                f"{MAX_PICKLED // 2**20} MiB to be sent to another; numpy.save it and give the path, give a Zarr or "
                "dask array, or work on threads"
            )
        return dict(self.__dict__)


def open_array(array: np.ndarray, name: str = "numpy array") -> Image:
    """Return the image of a numpy array: of its file if it shows one, else of memory.

    Raises
    ------
    TypeError, ValueError
        For what holds no labels, and for masked arrays.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: found a masked array, expected a plain one: give labels.filled(0)")
    as_label_dtype(name, array.dtype)
    as_plane(name, array.shape)
    return open_mapped(array) or ArrayImage(np.asarray(array), name)


@dataclass(frozen=True, eq=False)
class DaskImage:
    """A dask array; whoever plans tasks takes ``array``, rather than computing inside one of them.

    Attributes
    ----------
    array : dask.array.Array, shape (rows, cols)
    name : str
    """

    array: da.Array
    name: str = "dask array"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.array.shape
        return int(rows), int(cols)

    @property
    def dtype(self) -> np.dtype:
        """In the machine's byte order."""
        return self.array.dtype.newbyteorder("=")

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of the largest chunk."""
        rows, cols = self.array.chunksize
        return rows, cols

    def read(self, box: BBox) -> np.ndarray:
        """Compute a window in this thread."""
        check_inside(self, box)
        return np.asarray(self.array[box.slices].compute(scheduler="synchronous")).astype(self.dtype, copy=False)

    def part(self, box: BBox) -> DaskImage:
        """Return the image itself: dask drops what a task does not need."""
        return self

    def token(self) -> str:
        """Return dask's own name of the array."""
        return f"dask {self.array.name}"


def open_dask(array: da.Array, name: str = "dask array") -> DaskImage:
    """Return the image of a dask array; ValueError if its size is not known before it is computed."""
    as_label_dtype(name, array.dtype)
    if any(size != size for size in array.shape):
        raise ValueError(f"{name}: found shape {array.shape}, expected known sizes: call compute_chunk_sizes() first")
    as_plane(name, array.shape)
    return DaskImage(array, name)


@dataclass(frozen=True, eq=False)
class OpenedImage:
    """A variable that xarray opened and did not load.

    Attributes
    ----------
    variable : xarray.Variable
        With dimensions y and x, without pixels.
    name : str
    stamp : str
    """

    variable: xr.Variable
    name: str
    stamp: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self.variable.shape
        return rows, cols

    @property
    def dtype(self) -> np.dtype:
        """In the machine's byte order."""
        return self.variable.dtype.newbyteorder("=")

    @property
    def blocks(self) -> tuple[int, int] | None:
        """What the engine says it stores as one."""
        chunks = self.variable.encoding.get("preferred_chunks", {})
        return (chunks["y"], chunks["x"]) if {"y", "x"} <= set(chunks) else None

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window; xarray keeps none of them."""
        check_inside(self, box)
        return np.asarray(self.variable[box.slices].values).astype(self.dtype, copy=False)

    def part(self, box: BBox) -> OpenedImage:
        """Return the image itself, which is small."""
        return self

    def token(self) -> str:
        """Where it was opened, shape and dtype."""
        return f"xarray {self.name} {self.stamp} {self.shape} {self.dtype}"


def open_xarray(labels: xr.DataArray) -> Image:
    """Return the image of a DataArray: of its dask or numpy array, or of the file behind it, which is not loaded.

    Raises
    ------
    TypeError, ValueError
        For what holds no labels, and for dimensions other than y and x.
    """
    name = f"DataArray {labels.name!r}" if labels.name is not None else "DataArray"
    if set(labels.dims) != {"y", "x"}:
        sizes = ", ".join(f"{dim} {size}" for dim, size in labels.sizes.items())
        raise ValueError(
            f"{name}: found dimensions ({sizes}), expected (y, x): choose one place along the others, "
            'labels.isel(t=0), and rename rows and columns, labels.rename({"lat": "y", "lon": "x"})'
        )
    as_label_dtype(name, labels.dtype)
    as_plane(name, labels.shape, [str(dim) for dim in labels.dims])
    variable = labels.variable.transpose("y", "x")
    if labels.chunks is not None:
        return open_dask(variable.data, name)
    if variable._in_memory:  # xarray has no public word for it
        return open_array(variable.values, name)
    source = labels.encoding.get("source", "")
    try:
        size = len(pickle.dumps(variable))
    except (pickle.PicklingError, TypeError, AttributeError):
        size = MAX_OPENED + 1
    if size > MAX_OPENED:
        return open_dask(variable.chunk({"y": CHUNK, "x": CHUNK}).data, name)
    return OpenedImage(variable, name, str(source))
