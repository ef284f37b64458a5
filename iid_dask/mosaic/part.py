"""Pieces of segments in some tiles of a mosaic, in the place of one file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask.cutting import spread
from iid_dask.errors import IIDFormatError
from iid_dask.format.layout import REGION_HEAD
from iid_dask.format.segments import SegmentColumns

if TYPE_CHECKING:
    from iid_dask.mosaic.files import MosaicFiles

PLACES = np.dtype([("segment_offset", "<i8"), ("segment_length", "<i8")])
"""Where segments lie."""


@dataclass(frozen=True, eq=False)
class TilePart:
    """Pieces of segments in some tiles, by ascending key; in the place of a file, see `iid_dask.pieces.Part`.

    Attributes
    ----------
    files : MosaicFiles
    keys : uint32 array, shape (n,)
        Of whose segment each piece is, in the mosaic.
    areas : int64 array, shape (n,)
        Pixels of the whole segments.
    tiles, tile_keys : int64 arrays, shape (n,)
        Which file the piece is in, and its key there.
    columns : SegmentColumns
        A row a piece: boxes and areas are the piece's, in mosaic pixels; offsets as `MosaicFiles.read_bits` takes them.
    lut : structured array, shape (n,)
        Where the pieces' segments lie.
    """

    files: MosaicFiles
    keys: np.ndarray
    areas: np.ndarray
    tiles: np.ndarray
    tile_keys: np.ndarray
    columns: SegmentColumns
    lut: np.ndarray
    _memory: dict[Any, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns, and of what is remembered of them, about."""
        return 128 * len(self.keys) + 64 * len(self.columns.region_bits)

    @property
    def verify_checksums(self) -> bool:
        """Whether pieces that are read whole are compared with the indexes of their files."""
        return self.files.tables.verify

    @property
    def gap(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to skip."""
        return self.files.tables.manifest.folder.gap

    def remember(self, what: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, or what it returned when it was first asked for under this name."""
        if what not in self._memory:
            self._memory[what] = make()
        return self._memory[what]

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `MosaicFiles.read_bits`."""
        return self.files.read_bits(offsets, lengths)

    def verify_segments(self, keys: np.ndarray, regions: np.ndarray, data: np.ndarray, places: np.ndarray) -> None:
        """Compare whole pieces that were read with the indexes of their files; as `RecordReader.verify_segments`.

        Parameters
        ----------
        keys
            Rows of the columns.
        regions, data, places

        Raises
        ------
        IIDFormatError
            If one is damaged; names the file and the entry.
        """
        from iid_dask import kernels

        if self.columns.crcs is None or not len(keys):
            return
        rows, tiles = self.lut[keys], self.tiles[keys]
        starts = self.columns.region_bits[regions] - rows["segment_offset"] - REGION_HEAD.itemsize
        local = self.columns.region_boxes[regions] - np.tile(self.files.boxes[tiles, :2], 2)
        bad = int(
            kernels.damaged(
                data,
                places,
                rows["segment_length"],
                self.columns.crcs[keys],
                places + starts,
                local.astype(np.uint16),
            )
        )
        if bad >= 0:
            reader, key = self.files.open(int(tiles[bad])), int(self.tile_keys[keys[bad]])
            reader.segment_bytes(key)  # raises, with all that is wrong
            raise IIDFormatError(reader.name, "segments", key, None, "bytes that change", "the same at two reads")


def joined(parts: Sequence[TilePart]) -> TilePart:
    """Return the pieces of several tiles, by ascending key, then tile."""
    if len(parts) == 1:
        return parts[0]
    columns = [part.columns for part in parts]
    stacked = {
        name: np.concatenate([getattr(some, name) for some in columns])
        for name in ("boxes", "areas", "region_boxes", "region_bits")
    }
    counts = np.concatenate([np.diff(some.first_region) for some in columns])
    known = [some.crcs for some in columns if len(some.areas)]
    crcs = None if any(some is None for some in known) else np.concatenate([np.zeros(0, np.uint32), *known])
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")
    regions = spread((np.cumsum(counts) - counts)[order], counts[order])
    rows = SegmentColumns(
        stacked["boxes"][order],
        stacked["areas"][order],
        np.concatenate(([0], np.cumsum(counts[order]))),
        stacked["region_boxes"][regions],
        stacked["region_bits"][regions],
        None if crcs is None else crcs[order],
    )
    areas, tiles, tile_keys, lut = (
        np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("areas", "tiles", "tile_keys", "lut")
    )
    return TilePart(parts[0].files, keys[order], areas, tiles, tile_keys, rows, lut)
