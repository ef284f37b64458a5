"""TIFF files: only the tiles or strips that a window touches are read and decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from operator import index

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.faults import changed
from iid_dask.format.source import LocalSource, gather, time_and_size
from iid_dask.images.image import as_label_dtype, as_plane, check_inside, library, slices_from
from iid_dask.images.local import LocalImage
from iid_dask.images.raw import RawImage
from iid_dask.once import Once


@dataclass(frozen=True, eq=False)
class _Page:
    """A page whose header has been read.

    Attributes
    ----------
    shape : (rows, cols)
    stored : numpy.dtype
        In the byte order of the file.
    segment : (rows, cols)
        Of a tile or strip.
    offsets, lengths : int64 arrays, shape (segments,)
        Where each is in the file, in row-major order; length 0 if it was never written.
    decode : callable
        (bytes or None, number) -> pixels (1, rows, cols, 1) or None, place of the first, shape without padding.
    fill : int
        Value of segments that were never written.
    in_order : bool
        The pixels lie in the file as in memory, from the first offset on.
    """

    shape: tuple[int, int]
    stored: np.dtype
    segment: tuple[int, int]
    offsets: np.ndarray
    lengths: np.ndarray
    decode: Callable[..., tuple[np.ndarray | None, tuple[int, ...], tuple[int, ...]]]
    fill: int
    in_order: bool


_PAGES: Once[_Page] = Once(32)


def _parse(path: str, stamp: tuple[int, int]) -> _Page:
    tifffile = library("tifffile", path)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            kinds = [(one.axes, one.shape) for one in file.series]
            byteorder, decode = file.byteorder, page.decode  # made from the header now: it is called without the file
            # Damaged tags hold tuples where numbers belong.
            rows, cols = index(page.imagelength), index(page.imagewidth)
            parsed = _Page(
                shape=(rows, cols),
                stored=np.dtype(np.void if page.dtype is None else page.dtype).newbyteorder(byteorder),
                segment=(index(page.tilelength), index(page.tilewidth))
                if page.is_tiled
                else (index(page.rowsperstrip), cols),
                offsets=np.array(page.dataoffsets, np.int64),
                lengths=np.array(page.databytecounts, np.int64),
                decode=decode,
                fill=page.nodata,
                in_order=page.is_memmappable,
            )
            dims = page.shape if page.samplesperpixel > 1 else parsed.shape
            pixels = math.prod(parsed.shape) * page.samplesperpixel
            single = len(kinds) == 1 and math.prod(kinds[0][1]) == pixels
    except Exception as error:  # tifffile trusts a header, and fails in as many ways as that can be wrong
        raise ValueError(f"{path}: is no sound TIFF: {error}; write it again") from error
    if not single:
        held = ", ".join(f"{axes} {shape}" for axes, shape in kinds[:4])
        raise ValueError(
            f"{path}: found {len(kinds)} image(s) of {held} in its pages, "
            "expected one 2-D label image; write the page you want into a file of its own: "
            "tifffile.imwrite(new, tifffile.imread(path, key=0), tile=(512, 512))"
        )
    as_plane(path, dims)
    as_label_dtype(path, parsed.stored)
    _check_segments(path, parsed, stamp[1])
    return parsed


def _check_segments(path: str, page: _Page, nbytes: int) -> None:
    """Raise ValueError unless the tiles or strips make up the image, and lie in the file."""
    needed = math.prod(-(-size // max(1, part)) for size, part in zip(page.shape, page.segment, strict=True))
    if min(page.segment) < 1 or not len(page.offsets) == len(page.lengths) == needed or page.lengths.min() < 0:
        raise ValueError(
            f"{path}: is no sound TIFF: found {len(page.offsets)} tiles or strips of {page.segment} pixels, expected "
            f"{needed} for an image of {page.shape}; write it again"
        )
    if (page.offsets + page.lengths).max(initial=0) > nbytes:
        raise ValueError(f"{path}: is cut short: pixels lie beyond its end at {nbytes} bytes; copy it again")


def _parse_unchanged(path: str, stamp: tuple[int, int]) -> _Page:
    """Parse a file by its name, which may be another file's meanwhile; IIDChangedError then."""
    try:
        parsed = _parse(path, stamp)
    except (TypeError, ValueError) as error:
        _check_stamp(path, stamp, error)
        raise
    _check_stamp(path, stamp)
    return parsed


def _check_stamp(path: str, stamp: tuple[int, int], cause: BaseException | None = None) -> None:
    if time_and_size(os.stat(path)) != stamp:
        raise changed(path) from cause


def _page(path: str, stamp: tuple[int, int]) -> _Page:
    return _PAGES.get((path, stamp), lambda: _parse_unchanged(path, stamp))


@dataclass(frozen=True)
class TiffImage(LocalImage):
    """A TIFF or BigTIFF of one page, tiled or striped, compressed or not.

    Attributes
    ----------
    dtype : numpy.dtype
    blocks : (rows, cols)
        Of a tile or strip.
    """

    dtype: np.dtype
    blocks: tuple[int, int]

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window."""
        check_inside(self, box)
        # The source first: it refuses a file that was replaced, whose header would tell something else.
        source = self.source
        return _read(_page(self.name, self.stamp), source, box, self.dtype)


def _touched(page: _Page, box: BBox) -> np.ndarray:
    """Numbers of the segments that a window with pixels touches, ascending."""
    height, width = page.segment
    across = -(-page.shape[1] // width)
    rows = np.arange(box.min_row // height, -(-box.max_row // height))
    cols = np.arange(box.min_col // width, -(-box.max_col // width))
    return (rows[:, None] * across + cols).ravel()


def _read(page: _Page, source: LocalSource, box: BBox, dtype: np.dtype) -> np.ndarray:
    out = np.full(box.shape, page.fill, dtype)
    if not out.size:
        return out
    numbers = _touched(page, box)
    lengths = page.lengths[numbers]
    data, places = gather(source, page.offsets[numbers], lengths)
    for number, place, length in zip(numbers.tolist(), places.tolist(), lengths.tolist(), strict=True):
        encoded = data[place : place + length].tobytes() if length else None
        try:
            pixels, (_, _, row, col, _), (_, height, width, _) = page.decode(encoded, number)
        except Exception as error:  # every codec has its own
            error.add_note(f"{source.name}: tile or strip {number} cannot be decoded; copy or write the file again")
            raise
        if pixels is not None:
            inner = box.intersection(BBox(row, col, row + height, col + width))
            out[slices_from((box.min_row, box.min_col), inner)] = pixels[0, ..., 0][slices_from((row, col), inner)]
    return out


def open_tiff(path: str) -> TiffImage | RawImage:
    """Open a TIFF of one page of labels, with or without smaller levels; reads its header.

    Raises
    ------
    ImportError
        Without the extra [tiff].
    ValueError, TypeError
        For several pages, colours, values that are no labels, and files cut short.
    """
    stamp = time_and_size(os.stat(path))
    page = _page(path, stamp)
    if page.in_order:
        stride = page.shape[1] * page.stored.itemsize
        return RawImage(path, stamp, page.shape, page.stored, int(page.offsets[0]), stride)
    return TiffImage(path, stamp, page.shape, page.stored.newbyteorder("="), page.segment)
