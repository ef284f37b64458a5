"""Memory-mapped files whose tasks open them: dask would carry the pixels in the graph."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.errors import IIDChangedError
from iid_dask.format.source import time_and_size


@dataclass(frozen=True)
class MappedFile:
    """An array that lies in a local file, and is read where it is indexed; pickles to where it lies.

    Attributes
    ----------
    path : str
    stamp : (mtime_ns, size)
        Of the file when the graph was made.
    dtype : numpy.dtype
    shape : tuple of int
    strides : tuple of int
        Bytes from one element to the next along each axis.
    offset : int
        Byte of the file at which the first element begins.
    """

    path: str
    stamp: tuple[int, int]
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        with open(self.path, "rb") as file:
            self._check_unchanged(file.fileno())
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            found = np.ndarray(self.shape, self.dtype, content, self.offset, self.strides)[key].copy()
            # Once more: what was written while it was copied is neither the old image nor the new one.
            self._check_unchanged(file.fileno())
        return found

    def _check_unchanged(self, descriptor: int) -> None:
        found = time_and_size(os.fstat(descriptor))
        if found != self.stamp:
            raise IIDChangedError(
                f"measure: {self.path}: changed since it was mapped: (mtime_ns, bytes) are {found}, expected "
                f"{self.stamp}; open it and measure again"
            )


def as_mapped(array: np.ndarray) -> MappedFile | None:
    """Return where an array lies that is a memory map of a file, or a view of one; None for others.

    None also where the file need not hold what the array does: it is copied on write, bears no name, or the file of
    that name is gone or of another size.

    Examples
    --------
    >>> as_mapped(np.zeros((2, 3))) is None
    True
    """
    root: Any = array
    while isinstance(root, np.ndarray) and not isinstance(root.base, mmap.mmap):
        root = root.base
    # Of a masked array the file has not everything.
    plain = type(array) in (np.ndarray, np.memmap)
    if not plain or not isinstance(root, np.memmap) or root.filename is None or root.mode == "c":
        return None
    content: Any = root.base
    if root.mode != "r":
        root.flush()  # else the system would do so later, and the file would seem changed
    try:
        status = os.stat(root.filename)
    except OSError:
        return None
    if status.st_size != content.size():
        return None
    first, begin = (some.__array_interface__["data"][0] for some in (array, root))
    offset = int(root.offset) + first - begin
    return MappedFile(str(root.filename), time_and_size(status), array.dtype, array.shape, array.strides, offset)
