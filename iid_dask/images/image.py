"""What every label image can do, and what is refused wherever it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from iid_dask.bbox import BBox

MAX_PICKLED = 64 * 2**20
"""Bytes of pixels in memory that may travel to another process."""


@runtime_checkable
class Image(Protocol):
    """A label image, read window by window from any number of threads; it pickles without its pixels."""

    @property
    def name(self) -> str:
        """Path, URL or kind, for messages."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, 1 or more each."""

    @property
    def dtype(self) -> np.dtype:
        """Bool or integer, in the machine's byte order."""

    @property
    def blocks(self) -> tuple[int, int] | None:
        """Rows and columns of what is stored as one and so is read whole; None if any window costs its own pixels."""

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window inside the image, shape ``box.shape``; perhaps a view: not to be changed."""

    def part(self, box: BBox) -> Image:
        """Return an image of the same shape that can read windows inside ``box`` only, and pickles no larger."""

    def token(self) -> str:
        """Return what tells this image from others as far as that costs no pixels; the same in every process."""


def as_label_dtype(name: str, dtype: Any) -> np.dtype:
    """Return a dtype of labels in the machine's byte order.

    Raises
    ------
    TypeError
        For all but bool and integers.

    Examples
    --------
    >>> as_label_dtype("a.npy", np.dtype(">u4")) == np.uint32
    True
    >>> as_label_dtype("a.npy", np.float64)
    Traceback (most recent call last):
    TypeError: a.npy: found float64, expected integers or bool: labels are whole numbers; convert it, for example ...
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "biu":
        return dtype.newbyteorder("=")
    way = "convert it, for example by labels.astype('uint32') once you know that no value has a fraction"
    if dtype.kind == "f":
        way += "; xarray makes integers with a fill value float: open_dataset(..., mask_and_scale=False) leaves them"
    raise TypeError(f"{name}: found {dtype}, expected integers or bool: labels are whole numbers; {way}")


def as_plane(name: str, shape: Sequence[int], dims: Sequence[str] | None = None) -> tuple[int, int]:
    """Return rows and columns of what must be two-dimensional and have pixels.

    Parameters
    ----------
    name
    shape
    dims
        Names of the axes, where they are known.

    Raises
    ------
    ValueError
    """
    what = ", ".join(map(str, shape) if dims is None else (f"{d} {n}" for d, n in zip(dims, shape, strict=True)))
    if len(shape) != 2:
        way = "choose one plane of it, such as labels[0]"
        if len(shape) == 3 and shape[-1] in (3, 4):
            way = "it may be a colour picture; a plane that holds labels is labels[..., 0]"
        raise ValueError(f"{name}: found {len(shape)} dimensions ({what}), expected 2 (rows, columns): {way}")
    if min(shape) < 1:  # a header can be wrong
        raise ValueError(f"{name}: found an image without pixels ({what}), expected 1 row and 1 column or more")
    return int(shape[0]), int(shape[1])


def check_inside(image: Image, box: BBox) -> None:
    """Raise ValueError for a window that is not inside the image."""
    rows, cols = image.shape
    if box.min_row < 0 or box.min_col < 0 or box.max_row > rows or box.max_col > cols:
        raise ValueError(f"{image.name}: window {tuple(box)} is not inside the image of {rows} x {cols} pixels")


def slices_from(origin: tuple[int, int], box: BBox) -> tuple[slice, slice]:
    """Index of a box in an array whose first pixel is ``origin``."""
    row, col = origin
    return slice(box.min_row - row, box.max_row - row), slice(box.min_col - col, box.max_col - col)


def library(module: str, path: str) -> ModuleType:
    """Import a module of the extra [tiff], which a file needs.

    Raises
    ------
    ImportError
        Says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{path}: needs {module}, which is not installed: pip install "iid_dask[tiff]"') from error
