"""Any kind of image as blocks of which a task reads one."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from iid_dask.format.reader import RecordReader
from iid_dask.measurements.mapped import as_mapped


def as_blocks(image: Any, tile: int) -> da.Array:
    """Return an image as a dask array, (y, x) or (c, y, x), whose blocks are tiles; reads no pixel.

    Dimensions that are named y and x come last, in this order; those of other names, or of none, are taken as they
    are. A dask array keeps its own chunks. Others are cut into ``tile`` × ``tile`` pixels of one channel, or what is
    nearest below to it in whole chunks of a stored array.

    Raises
    ------
    TypeError
        For what is none of these.
    ValueError
        For another number of dimensions, only one of y and x, or chunks of unknown sizes.
    """
    if isinstance(image, xr.DataArray):
        blocks = _from_variable(image.variable, tile)
    elif isinstance(image, da.Array):
        blocks = image
    elif isinstance(image, np.ndarray):
        blocks = _from_array(as_mapped(image) or image, tile, (1,) * image.ndim, range(image.ndim))
    elif isinstance(image, zarr.Array):
        blocks = _from_array(image, tile, image.shards or image.chunks, _axes(_names(image)))
    else:
        raise TypeError(
            f"measure: an image of type {type(image).__name__}, expected an xarray DataArray, or an array of dask, "
            "zarr or numpy"
        )
    if blocks.ndim not in (2, 3) or blocks.shape[: blocks.ndim - 2] == (0,):
        raise ValueError(
            f"measure: an image of shape {blocks.shape}, expected (rows, columns), or channels before them"
        )
    if np.isnan(blocks.shape).any():
        raise ValueError(f"measure: an image of shape {blocks.shape}, unknown sizes: call compute_chunk_sizes() first")
    return blocks


def _axes(names: Sequence[Any]) -> tuple[int, ...]:
    """Return the axes of named dimensions, those of y and x last. Pure."""
    found = tuple(names)
    if (found.count("y"), found.count("x")) not in ((0, 0), (1, 1)):
        raise ValueError(
            f"measure: an image of dimensions {found}, expected y and x once each among them, or neither: rename them"
        )
    last = tuple(found.index(name) for name in ("y", "x") if name in found)
    return (*(axis for axis in range(len(found)) if axis not in last), *last)


def _names(image: zarr.Array) -> Sequence[Any]:
    """Names of the dimensions of a stored array; None for those without."""
    facts = image.metadata
    names = image.attrs.get("_ARRAY_DIMENSIONS") if facts.zarr_format == 2 else facts.dimension_names
    return names if isinstance(names, list | tuple) and len(names) == image.ndim else (None,) * image.ndim


def _from_variable(variable: xr.Variable, tile: int) -> da.Array:
    axes = _axes(variable.dims)
    if isinstance(variable._data, da.Array | np.ndarray):
        return as_blocks(variable._data.transpose(axes), tile)
    preferred = variable.encoding.get("preferred_chunks") or {}
    stored = [preferred.get(dim) for dim in variable.dims]
    chunks = _tiles(variable.shape, tile, [size if isinstance(size, int) else 1 for size in stored], axes)
    # With a name of its own: xarray's would come from the pixels, all of them. Transposed only then: backends read
    # slices of a lazy array that was transposed point by point.
    blocks = variable.chunk(dict(zip(variable.dims, chunks, strict=True)), name=f"image-{uuid.uuid4().hex}").data
    return blocks.transpose(axes)


def _from_array(image: Any, tile: int, stored: Sequence[int], axes: Sequence[int]) -> da.Array:
    # Without a name: dask would make one of all the pixels.
    blocks = da.from_array(image, chunks=_tiles(image.shape, tile, stored, axes), name=False)
    return blocks.transpose(tuple(axes))


def _tiles(shape: Sequence[int], tile: int, stored: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Size of tiles: whole stored chunks, in rows and columns, the last axes, as many as ``tile`` holds, or one."""
    sizes = [max(1, tile // step) * step if axis in axes[-2:] else step for axis, step in enumerate(stored)]
    return tuple(int(max(1, min(size, most))) for size, most in zip(sizes, shape, strict=True))


def check_size(reader: RecordReader, shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of an image that fits a file.

    Raises
    ------
    ValueError
        If they are not those that the file declares; or, where it declares none, do not hold all boxes.
    """
    rows, cols = (int(size) for size in shape[-2:])
    height, width = reader.shape
    image = reader.metadata.get("image")
    declared = isinstance(image, dict) and (image.get("height"), image.get("width")) == (height, width)
    if declared and (rows, cols) != (height, width):
        raise ValueError(
            f"measure: an image of {rows} by {cols} pixels, expected {height} by {width}, the size that "
            f"{reader.name} declares; cut or pad it"
        )
    if rows < height or cols < width:
        raise ValueError(
            f"measure: an image of {rows} by {cols} pixels, expected at least {height} by {width}: {reader.name} "
            "declares no size, and its entries reach so far"
        )
    return rows, cols
