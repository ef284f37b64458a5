"""Any label image that a user may have, by what it is."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np

from iid_dask.format.objects import local_path
from iid_dask.images.files import open_file
from iid_dask.images.image import Image
from iid_dask.images.lazy import open_array, open_dask, open_xarray
from iid_dask.images.sectors import Sectors, open_sectors


def as_image(
    labels: Any,
    *,
    across: int | None = None,
    at: Sequence[tuple[int, int]] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Image:
    """Open a label image of any kind; no pixel is read.

    Parameters
    ----------
    labels
        A numpy, dask, Zarr or xarray array; a path of a TIFF, PNG, .npy or Zarr array, or of an OME-Zarr label image,
        of which the largest level is taken; the URL of either of the latter; `grid_of` a pattern; or a list of paths of
        TIFF, PNG or .npy sectors, together with ``across`` or ``at``.
        Two-dimensional, bool or integer. Maps of files (`numpy.memmap`) are read by path.
    across
        A list of paths is a grid of so many columns, row by row. Every row of it has one height, every column one
        width.
    at
        Row and column of the image's pixel where each path's first pixel is. Where sectors overlap the later one
        wins; what none covers is background, 0.
    storage_options
        For the fsspec file system of a URL.

    Raises
    ------
    FileNotFoundError
        Names the path, also that of a missing sector.
    OSError
        For a FIFO or a device.
    IIDChangedError
        For a map of a file in whose place another is by now.
    TypeError
        For values that are no labels, a sector of another dtype, and kinds of objects other than those above.
    ValueError
        For an image that is not two-dimensional or has no pixels, a sector of another size, and several pages.
    ImportError
        For TIFF and PNG without the extra [tiff].

    Examples
    --------
    >>> import numpy as np
    >>> from iid_dask import BBox
    >>> image = as_image(np.arange(12).reshape(3, 4))
    >>> image.shape, image.read(BBox(1, 2, 3, 4)).tolist()
    ((3, 4), [[6, 7], [10, 11]])
    >>> as_image(np.zeros((3, 4, 3), "u1"))
    Traceback (most recent call last):
    ValueError: numpy array: found 3 dimensions (3, 4, 3), expected 2 (rows, columns): it may be a colour picture; ...
    """
    if isinstance(labels, list | tuple):
        return open_sectors(_listed(labels, across, at))
    if across is not None or at is not None:
        raise ValueError(f"across= and at= place a list of paths; found {type(labels).__name__}: leave them out")
    if isinstance(labels, Sectors):
        return open_sectors(labels)
    if isinstance(labels, str | os.PathLike):
        return _from_path(labels, storage_options)
    return _from_object(labels)


def _listed(paths: Sequence[Any], across: int | None, at: Sequence[tuple[int, int]] | None) -> Sectors:
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(
                f"a list of sectors: found {type(path).__name__} in it, expected paths of TIFF, PNG or .npy"
            )
    names = tuple(os.path.expanduser(os.fsdecode(path)) for path in paths)
    places = None if at is None else tuple((index(row), index(col)) for row, col in at)
    return Sectors(names, across=None if across is None else index(across), at=places)


def _from_path(target: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Image:
    local = local_path(target)
    if local is None:
        from iid_dask.images.stores import open_zarr_path

        return open_zarr_path(os.fsdecode(target), storage_options)
    path = os.path.abspath(os.path.expanduser(local))
    if not os.path.exists(path):
        way = "no such label image"
        if "{" in path:
            way += " (a pattern of many is given as grid_of(pattern))"
        raise FileNotFoundError(errno.ENOENT, way, path)
    if os.path.isdir(path):
        from iid_dask.images.stores import open_zarr_path

        return open_zarr_path(path)
    return open_file(path)


def _is(thing: Any, module: str, name: str) -> bool:
    """Return whether a thing is of a class, whose module is not imported for it."""
    held = sys.modules.get(module)
    return held is not None and isinstance(thing, getattr(held, name))


def _from_object(labels: Any) -> Image:
    if isinstance(labels, np.ndarray):
        return open_array(labels)
    if _is(labels, "dask.array", "Array"):
        return open_dask(labels)
    if _is(labels, "xarray", "DataArray"):
        return open_xarray(labels)
    if _is(labels, "zarr", "Array") or _is(labels, "zarr", "Group"):
        from iid_dask.images.stores import open_zarr_array, open_zarr_group

        return open_zarr_array(labels) if _is(labels, "zarr", "Array") else open_zarr_group(labels)
    if _is(labels, "xarray", "Dataset"):
        held = ", ".join(map(repr, labels.data_vars))
        raise TypeError(f"found a Dataset, expected one of its variables ({held}), such as ds['label']")
    raise TypeError(
        f"found {type(labels).__name__}, expected a label image: a numpy, dask, Zarr or xarray array, a path, a list "
        "of paths or grid_of(pattern); another lazy array can be wrapped by dask.array.from_array"
    )
