"""Many files that are one image, opened one at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDChangedError
from iid_dask.images.files import open_file
from iid_dask.images.image import Image, check_inside, slices_from


@dataclass(frozen=True)
class Sectors:
    """Files that are parts of one image, and where they lie.

    Attributes
    ----------
    paths : tuple of str
        TIFF, PNG or .npy.
    across : int, optional
        They form a grid of so many columns, row by row.
    at : tuple of (row, col), optional
        Pixel of the image where each one's first pixel is. Where they overlap the later one wins; what none covers is
        background.

    Raises
    ------
    ValueError
        Unless exactly one of ``across`` and ``at`` is given, and fits the number of paths.
    """

    paths: tuple[str, ...]
    across: int | None = None
    at: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.paths)
        if not count:
            raise ValueError("found no paths of sectors, expected 1 or more")
        if (self.across is None) == (self.at is None):
            raise ValueError(
                f"{count} sectors: say where they lie, by across=10 (a grid of 10 columns, row by row) or by "
                "at=[(row, col), ...] (pixels of the image), not both"
            )
        if self.across is not None and (self.across < 1 or count % self.across):
            raise ValueError(f"{count} sectors do not fill a grid of across={self.across} columns; is one missing?")
        if self.at is not None and len(self.at) != count:
            raise ValueError(f"found {len(self.at)} places in at=, expected {count}, one for each sector")
        if self.at is not None and np.array(self.at).reshape(count, -1).min(initial=0) < 0:
            raise ValueError(f"at=: found {min(self.at)}, expected pixels of the image, 0 or more")


def _usual(sizes: Sequence[int]) -> int:
    """Return the size that most have; of equally many, the first."""
    return Counter(sizes).most_common(1)[0][0]


def grid_boxes(names: Sequence[str], sizes: np.ndarray, across: int) -> np.ndarray:
    """Lay sectors out side by side: each row of the grid has one height, each column one width.

    Parameters
    ----------
    names
    sizes : int64 array, shape (n, 2)
        Rows and columns of each sector, row by row.
    across

    Returns
    -------
    int64 array, shape (n, 4)
        Box of each in the image.

    Raises
    ------
    ValueError
        Names the first sector whose size is not that of most of its neighbours.

    Examples
    --------
    >>> grid_boxes("abcd", np.array([[4, 5], [4, 2], [3, 5], [3, 2]]), across=2).tolist()
    [[0, 0, 4, 5], [0, 5, 4, 7], [4, 0, 7, 5], [4, 5, 7, 7]]
    """
    grid = sizes.reshape(-1, across, 2)
    heights = np.array([_usual(row) for row in grid[:, :, 0].tolist()])
    widths = np.array([_usual(col) for col in grid[:, :, 1].T.tolist()])
    wrong = (grid[:, :, 0] != heights[:, None]) | (grid[:, :, 1] != widths)
    if wrong.any():
        row, col = np.argwhere(wrong)[0].tolist()
        found = " x ".join(map(str, grid[row, col].tolist()))
        raise ValueError(
            f"{names[row * across + col]}: sector in row {row}, column {col} of the grid: found {found} pixels, "
            f"expected {heights[row]} x {widths[col]} as its neighbours; write it again, or give free places by at="
        )
    bottoms, rights = np.cumsum(heights), np.cumsum(widths)
    boxes = np.empty((*grid.shape[:2], 4), np.int64)
    boxes[..., 0], boxes[..., 2] = (bottoms - heights)[:, None], bottoms[:, None]
    boxes[..., 1], boxes[..., 3] = rights - widths, rights
    return boxes.reshape(-1, 4)


@dataclass(frozen=True, eq=False)
class SectorImage:
    """Sectors seen as one image.

    Attributes
    ----------
    paths : tuple of str
        Absolute.
    boxes : int64 array, shape (n, 4)
        Where each lies in the image; later ones win.
    shape : (rows, cols)
    dtype : numpy.dtype
    blocks : (rows, cols), optional
        Of a sector, if they form a grid.
    stamp : str
        Of all paths, places and files.
    window : BBox
        What can be read.
    """

    paths: tuple[str, ...]
    boxes: np.ndarray
    shape: tuple[int, int]
    dtype: np.dtype
    blocks: tuple[int, int] | None
    stamp: str
    window: BBox

    @property
    def name(self) -> str:
        """Path of the first one."""
        return f"{self.paths[0]} and others" if self.paths else "sectors"

    def _touched(self, box: BBox) -> list[int]:
        top, left, bottom, right = self.boxes.T
        meets = (top < box.max_row) & (bottom > box.min_row) & (left < box.max_col) & (right > box.min_col)
        return np.flatnonzero(meets).tolist()

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window, opening one sector after another.

        Raises
        ------
        IIDChangedError
            If a sector has another size or dtype than when the image was opened.
        """
        check_inside(self, box)
        if box.intersection(self.window) != box:
            raise ValueError(f"{self.name}: window {tuple(box)} is not inside the part {tuple(self.window)}")
        out = np.zeros(box.shape, self.dtype)
        for i in self._touched(box) if out.size else []:
            place = BBox.of(self.boxes[i])
            sector = open_file(self.paths[i])
            if sector.shape != place.shape or sector.dtype != self.dtype:
                raise IIDChangedError(
                    f"{self.paths[i]}: changed since opened: found {sector.shape} {sector.dtype}, "
                    f"expected {place.shape} {self.dtype}"
                )
            inner = box.intersection(place)
            rows, cols = slices_from((place.min_row, place.min_col), inner)
            within = BBox(rows.start, cols.start, rows.stop, cols.stop)
            out[slices_from((box.min_row, box.min_col), inner)] = sector.read(within)
        return out

    def part(self, box: BBox) -> SectorImage:
        """Return an image of the sectors alone that a window touches: a task needs no others."""
        check_inside(self, box)
        touched = self._touched(box)
        paths = tuple(self.paths[i] for i in touched)
        return SectorImage(paths, self.boxes[touched], self.shape, self.dtype, self.blocks, self.stamp, box)

    def token(self) -> str:
        """Checksum of all paths, places, times and sizes."""
        return f"sectors {self.stamp}"

    def __reduce__(self) -> tuple[Callable[..., SectorImage], tuple[Any, ...]]:
        # Neighbours' names and boxes are alike: packed, they take a small part of their size.
        paths = zlib.compress("\0".join(self.paths).encode(errors="surrogateescape"), 1)
        boxes = zlib.compress(np.diff(self.boxes, axis=0, prepend=0).tobytes(), 1)
        return _unpacked, (paths, boxes, self.shape, self.dtype, self.blocks, self.stamp, self.window)


def _unpacked(paths: bytes, boxes: bytes, *others: Any) -> SectorImage:
    names = zlib.decompress(paths).decode(errors="surrogateescape").split("\0")
    steps = np.frombuffer(zlib.decompress(boxes), np.int64).reshape(-1, 4)
    return SectorImage(tuple(names) if len(steps) else (), steps.cumsum(axis=0), *others)


def _open_all(sectors: Sectors) -> list[Image]:
    images = []
    for i, path in enumerate(sectors.paths):
        try:
            images.append(open_file(path))
        except FileNotFoundError as error:
            where = f"sector {i}"
            if sectors.across is not None:
                where += " in row {}, column {} of the grid".format(*divmod(i, sectors.across))
            raise FileNotFoundError(errno.ENOENT, f"{where} is missing", os.path.abspath(path)) from error
    return images


def open_sectors(sectors: Sectors) -> SectorImage:
    """Read the header of every sector, and no pixel.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        For a sector that is missing, of another size or of another dtype: names it.
    """
    images = _open_all(sectors)
    names = [image.name for image in images]
    dtype = Counter(image.dtype for image in images).most_common(1)[0][0]
    for image in images:
        if image.dtype != dtype:
            raise TypeError(f"{image.name}: found {image.dtype}, expected {dtype} as most sectors; write it again")
    sizes = np.array([image.shape for image in images], np.int64)
    if sectors.at is None:
        assert sectors.across is not None
        boxes = grid_boxes(names, sizes, sectors.across)
        blocks = images[0].shape
    else:
        origins = np.array(sectors.at, np.int64)
        boxes = np.concatenate((origins, origins + sizes), axis=1)
        blocks = None
    stamp = hashlib.blake2b(boxes.tobytes(), digest_size=16)
    for image in images:
        stamp.update(image.token().encode(errors="surrogateescape"))
    rows, cols = boxes[:, 2:].max(axis=0).tolist()
    whole = BBox(0, 0, rows, cols)
    return SectorImage(tuple(names), boxes, whole.shape, dtype, blocks, stamp.hexdigest(), whole)
