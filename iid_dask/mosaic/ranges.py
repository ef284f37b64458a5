"""Ranges of a file's segments section, each put together from tile files and written by a task of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from iid_dask import kernels
from iid_dask.errors import IIDChangedError, IIDFormatError
from iid_dask.format.folder import FolderLike, Stamp, stamp_of
from iid_dask.format.layout import REGION_HEAD, SEGMENT_HEAD, SPARE
from iid_dask.format.reader import RecordReader
from iid_dask.format.target import Parts
from iid_dask.mosaic.folder import tile_reader
from iid_dask.mosaic.region_parts import BYTES, read_ranges

T = TypeVar("T")


@dataclass(frozen=True)
class TileFiles:
    """Files of a mosaic, opened once a process.

    Attributes
    ----------
    folder : path or Folder
    paths : mapping
        Number of a file -> its path, relative to the folder.
    origins : mapping
        Number of a file -> row and column of its first pixel in the mosaic.
    stamps : mapping
        Number of a file -> its stamp when its columns were read.
    """

    folder: FolderLike
    paths: Mapping[int, str]
    origins: Mapping[int, tuple[int, int]]
    stamps: Mapping[int, Stamp] = field(default_factory=dict)

    def open(self, tile: int) -> RecordReader:
        """Return the reader of a file.

        Raises
        ------
        IIDChangedError
            If it is not the file any more whose columns were read.
        """
        reader = tile_reader(self.folder, self.paths[tile])
        stamp = stamp_of(reader.source)
        if self.stamps.get(tile, stamp) != stamp:
            raise IIDChangedError(f"{reader.name}: changed while the mosaic was consolidated; do it again")
        return reader

    def read(self, tile: int, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read ranges of a file's segments section, as `region_parts.Read` says."""
        return self.open(tile).read_bits(offsets, lengths)

    def only(self, tiles: np.ndarray) -> TileFiles:
        """Return some of them, to be sent along with a task."""
        wanted = set(np.unique(tiles).tolist())

        def some(kept: Mapping[int, T]) -> dict[int, T]:
            return {number: kept[number] for number in wanted & kept.keys()}

        return TileFiles(self.folder, some(self.paths), some(self.origins), some(self.stamps))


class Copies(NamedTuple):
    """Segments of one piece: which entry of which file, the key it gets, and its place in the section."""

    tiles: np.ndarray
    keys: np.ndarray
    segments: np.ndarray
    places: np.ndarray

    def within(self, start: int, stop: int) -> Copies:
        """Return consecutive ones; nothing is copied."""
        return Copies(*(column[start:stop] for column in self))


class Bands(NamedTuple):
    """Rows of regions that are built from parts.

    Attributes
    ----------
    boxes : integer array, shape (n, 4)
        Of whole regions, mosaic pixels.
    rows : int64 array, shape (n, 2)
        Half-open, mosaic pixels; a region's bits begin with a byte, and so does every band.
    places : int64 array, shape (n,)
        Where its bits go in the section.
    """

    boxes: np.ndarray
    rows: np.ndarray
    places: np.ndarray


class Sources(NamedTuple):
    """Parts that show pixels of bands; their boxes are those of whole parts."""

    bands: np.ndarray
    tiles: np.ndarray
    boxes: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True, eq=False)
class Range:
    """Consecutive bytes of the segments section, and what they are made of.

    Attributes
    ----------
    start, stop : int
        Bytes of the section.
    first_segment : int
        The segment that lies at its start, or goes on there.
    spans : int64 array, shape (n + 1,)
        Where segments, or what of them lies here, begin in the section; the last is ``stop``.
    copies : Copies
    segment_heads, region_heads : structured arrays
    segment_places, region_places : int64 arrays
        Where the heads go in the section.
    bands : Bands
    sources : Sources
    """

    start: int
    stop: int
    first_segment: int
    spans: np.ndarray
    copies: Copies
    segment_heads: np.ndarray
    segment_places: np.ndarray
    region_heads: np.ndarray
    region_places: np.ndarray
    bands: Bands
    sources: Sources

    @property
    def tiles(self) -> np.ndarray:
        """Numbers of the files it is made of."""
        return np.concatenate([self.copies.tiles, self.sources.tiles])


def assemble(files: TileFiles, part: Range) -> np.ndarray:
    """Return the bytes of a range, uint8, with `SPARE` more at its end."""
    out = np.zeros(part.stop - part.start + SPARE, np.uint8)
    tiles = part.copies.tiles
    order = np.argsort(tiles, kind="stable")
    for some in np.split(order, np.flatnonzero(np.diff(tiles[order])) + 1):
        if len(some):
            _copy(files, Copies(*(column[some] for column in part.copies)), out, part.start)
    _lay(part.segment_heads, part.segment_places - part.start, out)
    _lay(part.region_heads, part.region_places - part.start, out)
    sizes = (part.sources.boxes[:, 2:].astype(np.int64) - part.sources.boxes[:, :2]).prod(axis=1) >> 3
    blocks = np.cumsum(sizes) // BYTES
    for chosen in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(blocks)) + 1):
        if len(chosen):
            _build(files, part.bands, Sources(*(column[chosen] for column in part.sources)), out, part.start)
    return out


def _copy(files: TileFiles, copies: Copies, out: np.ndarray, start: int) -> None:
    """Copy whole segments of one file, checked against its index."""
    tile = int(copies.tiles[0])
    reader, origin = files.open(tile), files.origins[tile]
    keys = copies.keys.astype(np.int64)
    rows = reader.lut[keys]
    lengths = rows["segment_length"].astype(np.int64)
    data, places = reader.read_bits(rows["segment_offset"].astype(np.int64), lengths)
    if reader.verify_checksums and reader.has_index:
        reader.verify_segments(keys, reader.columns.first_region[keys].astype(np.int64), data, places)
    shifts = (np.full(len(keys), shift, np.int64) for shift in origin)
    targets, numbers = copies.places.astype(np.int64) - start, copies.segments.astype(np.int64)
    bad = int(kernels.move_segments(data, places, lengths, out, targets, numbers, *shifts))
    if bad >= 0:
        where = int(reader.header["segments_offset"]) + int(rows["segment_offset"][bad])
        raise IIDFormatError(reader.name, "segments", int(keys[bad]), where, "other regions", "those that were planned")


def _lay(heads: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    if len(heads):
        width = heads.dtype.itemsize
        out[places[:, None] + np.arange(width)] = heads.view(np.uint8).reshape(-1, width)


def _build(files: TileFiles, bands: Bands, sources: Sources, out: np.ndarray, start: int) -> None:
    """Add the pixels of parts to the bands that show them."""
    rows, boxes = bands.rows[sources.bands], sources.boxes.astype(np.int64)
    whole = bands.boxes[sources.bands].astype(np.int64)
    tops, stops = np.maximum(rows[:, 0], boxes[:, 0]), np.minimum(rows[:, 1], boxes[:, 2])
    widths, steps = boxes[:, 3] - boxes[:, 1], whole[:, 3] - whole[:, 1]
    begins, ends = (tops - boxes[:, 0]) * widths, (stops - boxes[:, 0]) * widths
    offsets = sources.bits.astype(np.int64) + (begins >> 3)
    lengths = ((ends + 7) >> 3) - (begins >> 3)
    data, places = read_ranges(files.read, sources.tiles, offsets, lengths)
    targets = (bands.places[sources.bands] - start) * 8 + (tops - rows[:, 0]) * steps + boxes[:, 1] - whole[:, 1]
    kernels.or_parts(data, places * 8 + (begins & 7), stops - tops, widths, out, targets, steps)


def write_range(
    target: Parts, base: int, files: TileFiles, part: Range, checksums: bool
) -> tuple[int, int, np.ndarray]:
    """Put a range together and write it to its place in a file that is there.

    Done again, or twice at once, it writes the same bytes; done too late, it finds no file.

    Parameters
    ----------
    target
        The file, under its temporary name, or where its parts are put.
    base
        Byte of the file where the segments section begins.
    files
        At least those that the range needs.
    part
    checksums
        Whether the crc32 of segments is wanted.

    Returns
    -------
    offset, nbytes : int
        What was written.
    crcs : uint32 array
        Of what of each segment lies in the range; empty if they are not wanted.
    """
    data = assemble(files, part)
    nbytes = part.stop - part.start
    crcs = np.zeros(len(part.spans) - 1 if checksums else 0, np.uint32)
    if checksums:
        spans = part.spans - part.start
        kernels.crc32s(data, spans[:-1], spans[1:], crcs)
    target.put(base + part.start, data[:nbytes].data)
    return base + part.start, nbytes, crcs


# --- checksums of what was written in parts ---------------------------------------------------------------------

POLYNOMIAL = 0xEDB88320
"""Of crc32, with the lowest power in the highest bit."""


def combine_crc32(first: int, second: int, nbytes: int) -> int:
    """Return the crc32 of two pieces of bytes one after the other, from the crc32 of each.

    Parameters
    ----------
    first, second : int
        crc32 of the pieces.
    nbytes : int
        Length of the second piece.

    Examples
    --------
    >>> import zlib
    >>> combine_crc32(zlib.crc32(b"half"), zlib.crc32(b" and half"), 9) == zlib.crc32(b"half and half")
    True
    """
    # A crc is the remainder of a polynomial over GF(2); bytes behind the first piece multiply it by x^8 each.
    power, square, n = 1 << 31, 1 << 30, 8 * nbytes
    while n:
        if n & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        n >>= 1
    return _multiply(first, power) ^ second


def _multiply(a: int, b: int) -> int:
    """Multiply polynomials over GF(2) modulo the one of crc32."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


def segment_heads(keys: np.ndarray, boxes: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return the heads of segments as the format stores them."""
    heads = np.zeros(len(keys), SEGMENT_HEAD)
    heads["key"], heads["bbox"], heads["area"] = keys, boxes, areas
    return heads


def region_heads(boxes: np.ndarray, nbytes: np.ndarray) -> np.ndarray:
    """Return the heads of regions with so many bytes of mask bits."""
    heads = np.zeros(len(boxes), REGION_HEAD)
    heads["length"], heads["bbox"] = nbytes + REGION_HEAD.itemsize, boxes
    return heads
