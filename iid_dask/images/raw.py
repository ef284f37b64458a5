"""Pixels that lie in a file as they lie in memory: .npy, memory maps, TIFF without compression."""

from __future__ import annotations

import io
import mmap
import os
from dataclasses import dataclass

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.faults import changed
from iid_dask.format.source import LocalSource
from iid_dask.images.image import as_label_dtype, as_plane, check_inside
from iid_dask.images.local import LocalImage

HEAD = 2**14
"""Bytes of a file that hold any .npy header that numpy reads: it refuses those of more than 10,000."""

PROBES = 64
"""Places at which a map is compared with its file."""

PROBE = 4096
"""Bytes compared at each: of fewer a disk reads as many."""


@dataclass(frozen=True)
class RawImage(LocalImage):
    """Lines of pixels at equal distances in a file, read by position: a map of a file cut short would end the process.

    Attributes
    ----------
    stored : numpy.dtype
        In the byte order of the file.
    offset : int
        Byte of the first pixel.
    stride : int
        Bytes from one line to the next; may be negative. The pixels of a line follow one another.
    transposed : bool
        Lines are columns, not rows.
    """

    stored: np.dtype
    offset: int
    stride: int
    transposed: bool = False

    def __post_init__(self) -> None:
        lines, length = reversed(self.shape) if self.transposed else self.shape
        last = self.offset + max(0, self.stride) * (lines - 1) + length * self.stored.itemsize
        if last > self.stamp[1]:
            raise ValueError(f"{self.name}: is cut short: found {self.stamp[1]} bytes, expected {last}; copy it again")

    @property
    def dtype(self) -> np.dtype:
        """In the machine's byte order."""
        return self.stored.newbyteorder("=")

    @property
    def blocks(self) -> None:
        """Any window costs its own pixels."""

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window."""
        check_inside(self, box)
        if self.transposed:
            box = BBox(box.min_col, box.min_row, box.max_col, box.max_row)
        itemsize = self.stored.itemsize
        out = np.empty(box.shape, self.stored)
        starts = self.offset + self.stride * np.arange(box.min_row, box.max_row) + box.min_col * itemsize
        lengths = np.full(len(starts), box.width * itemsize)
        if self.stride == box.width * itemsize:
            starts, lengths = starts[:1], lengths[:1] * box.height
        if out.size:
            self.source.read_many(starts, lengths, out.reshape(-1).view(np.uint8))
        out = out.astype(self.dtype, copy=False)
        return out.T if self.transposed else out


def open_npy(path: str) -> RawImage:
    """Open an array that `numpy.save` wrote, of either order.

    Raises
    ------
    TypeError
        For what is no label; arrays of Python objects are pickles, which are never read.
    ValueError
        For a header that is none, and for other dimensions than rows and columns.
    """
    source = LocalSource(path)
    head = io.BytesIO(source.read(0, min(HEAD, source.size)))
    try:
        version = np.lib.format.read_magic(head)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"found version {version} of the format, expected 1.0 or 2.0")
        shape, columns_first, dtype = header[version](head)
    except ValueError as error:
        raise ValueError(f"{path}: its header is no sound .npy header: {error}; save it again") from error
    if dtype.hasobject:
        raise TypeError(
            f"{path}: found Python objects ({dtype}), expected integers or bool: numpy pickles objects, and reading "
            "pickles runs whatever code they hold, so they are never read: save it anew, from a source you trust"
        )
    as_label_dtype(path, dtype)
    rows, cols = as_plane(path, shape)
    stride = (rows if columns_first else cols) * dtype.itemsize
    return RawImage(source.name, source.stamp, (rows, cols), dtype, head.tell(), stride, transposed=columns_first)


def _map_under(array: np.ndarray) -> tuple[np.memmap, mmap.mmap] | None:
    """Return the memory map that an array is a view of."""
    below: object = array
    found = None
    while isinstance(below, np.ndarray):
        if isinstance(below, np.memmap) and below.filename is not None:
            found = below
        below = below.base
    return (found, below) if found is not None and isinstance(below, mmap.mmap) else None


def _shows(mapping: mmap.mmap, begin: int, source: LocalSource) -> bool:
    """Whether a map from a byte of a file on is one of this file, as far as a few of its bytes tell.

    The system does not tell which file a map is of, and that its name is another's by now.
    """
    if mapping.size() != source.size:
        return False
    # If the file was cut under its map, touching a page beyond its end would end the process.
    length = max(0, min(len(mapping), source.size - begin))
    for at in np.unique(np.linspace(0, max(0, length - PROBE), PROBES, dtype=np.int64)).tolist():
        shown = mapping[at : min(at + PROBE, length)]
        if source.read(begin + at, len(shown)) != shown:
            return False
    return True


def open_mapped(array: np.ndarray) -> RawImage | None:
    """Return the part of a file that an array shows, or None if it shows none: then its pixels are in memory alone.

    Parameters
    ----------
    array : array of labels, shape (rows, cols)

    Raises
    ------
    ValueError
        For a map that keeps changes to itself, and for one seen with steps along both axes.
    IIDChangedError
        For a map of a file in whose place another is by now.
    """
    found = _map_under(array)
    if found is None:
        return None
    root, mapping = found
    name = os.path.abspath(str(root.filename))
    if root.mode == "c":
        raise ValueError(f'{name}: mapped with mode="c", whose changes are not in the file; use "r", or numpy.save it')
    if root.mode != "r":
        root.flush()  # else the system writes changes later, and the file would seem replaced
    begin = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY
    source = LocalSource(name)
    if not _shows(mapping, begin, source):
        raise changed(name)
    offset = begin + array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    rows, cols = array.shape
    for transposed, (stride, step), length in ((False, array.strides, cols), (True, array.strides[::-1], rows)):
        if step == array.itemsize or length == 1:
            return RawImage(name, source.stamp, (rows, cols), array.dtype, offset, stride, transposed)
    raise ValueError(
        f"{name}: a view with steps {array.strides} bytes along rows and columns, expected {array.itemsize} along one; "
        "give the whole map, or numpy.save the view and give the path"
    )
