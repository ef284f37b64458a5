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


def as_blocks(image: Any, tile: int) -> da.Array:
    """Return an image as a dask array, (y, x) or (c, y, x), whose blocks are tiles; reads no pixel.

    A dask array keeps its own chunks. Others are cut into ``tile`` × ``tile`` pixels of one channel, or what is
    nearest below to it in whole chunks of a stored array.

    Raises
    ------
    TypeError
        For what is none of these.
    ValueError
        For another number of dimensions, or chunks of unknown sizes.
    """
    if isinstance(image, xr.DataArray):
        blocks = _from_variable(image.variable, tile)
    elif isinstance(image, da.Array):
        blocks = image
    elif isinstance(image, np.ndarray):
        blocks = _from_array(image, tile, ())
    elif isinstance(image, zarr.Array):
        blocks = _from_array(image, tile, image.shards or image.chunks)
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


def _from_variable(variable: xr.Variable, tile: int) -> da.Array:
    if isinstance(variable._data, da.Array | np.ndarray):
        return as_blocks(variable._data, tile)
    preferred = variable.encoding.get("preferred_chunks") or {}
    stored = [preferred.get(dim) for dim in variable.dims]
    chunks = _tiles(variable.shape, tile, [size if isinstance(size, int) else 1 for size in stored])
    # With a name of its own: xarray's would come from the pixels, all of them.
    return variable.chunk(dict(zip(variable.dims, chunks, strict=True)), name=f"image-{uuid.uuid4().hex}").data


def _from_array(image: Any, tile: int, stored: Sequence[int]) -> da.Array:
    chunks = _tiles(image.shape, tile, stored or (1,) * image.ndim)
    # Without a name: dask would make one of all the pixels.
    return da.from_array(image, chunks=chunks, name=False)


def _tiles(shape: Sequence[int], tile: int, stored: Sequence[int]) -> tuple[int, ...]:
    """Size of tiles: whole stored chunks, in rows and columns as many as ``tile`` holds, at least one."""
    sizes = (*stored[:-2], *(max(1, tile // step) * step for step in stored[-2:]))
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
