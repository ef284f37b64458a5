"""A file that holds one image, by its first bytes."""

from __future__ import annotations

import errno
import os

from iid_dask.format.source import LocalSource
from iid_dask.images.image import Image
from iid_dask.images.png import SIGNATURE, open_png
from iid_dask.images.raw import open_npy
from iid_dask.images.tiff import open_tiff

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_file(path: str) -> Image:
    """Open a TIFF, PNG or .npy file, reading no more than its header.

    Raises
    ------
    FileNotFoundError
    OSError
        For a folder, a FIFO and a device.
    ValueError
        For any other kind of file.
    """
    path = os.path.abspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, "no such label image", path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a directory, expected a TIFF, PNG or .npy file", path)
    source = LocalSource(path)
    magic = source.read(0, min(8, source.size))
    if magic.startswith(b"\x93NUMPY"):
        return open_npy(path)
    if magic.startswith(_TIFF):
        return open_tiff(path)
    if magic == SIGNATURE:
        return open_png(path)
    raise ValueError(f"{path}: begins with {magic!r}, expected a TIFF, PNG or .npy file, or a folder with a Zarr array")
