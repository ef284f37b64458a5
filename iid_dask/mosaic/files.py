"""The tile files of a mosaic: which of them a window needs, and reading these as one."""

from __future__ import annotations

import zlib
from functools import partial

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.cutting import spread
from iid_dask.errors import IIDChangedError, IIDFormatError, IIDStoreError
from iid_dask.format.folder import Folder, Stamp, stamp_of
from iid_dask.format.layout import INDEX_TRAILER, Limits
from iid_dask.format.reader import RecordReader, open_records
from iid_dask.format.segments import SegmentColumns
from iid_dask.format.source import Source, gather
from iid_dask.mosaic.folder import MAX_TILE_SIDE, tile_readers
from iid_dask.mosaic.manifest import Tables
from iid_dask.mosaic.part import PLACES, TilePart, joined
from iid_dask.mosaic.recent import Recent
from iid_dask.once import Once

KEPT = 2**27
"""Bytes of columns of tiles, and of parts, that a mosaic keeps."""

_sources: Once[Source] = Once(256)


def forget(folder: Folder) -> None:
    """Let go of the files of a folder that is about to be removed: an open one keeps its place on the disk."""

    def is_below(file: Source | RecordReader) -> bool:
        return file.name.startswith(folder.child(""))

    _sources.drop(is_below)
    tile_readers.drop(is_below)


class MosaicFiles:
    """The tile files of a mosaic: where they lie, and their bytes laid one after another.

    Attributes
    ----------
    tables : Tables
    paths : list of str
        Relative to the folder.
    boxes : int64 array, shape (n, 4)
        Pixels of the mosaic that each file may hold.
    starts : int64 array, shape (n + 1,)
        Where each file begins in the bytes of all.
    """

    def __init__(self, tables: Tables, limits: Limits) -> None:
        self.tables, self.limits = tables, limits
        wanted = ("path", "row", "col", "height", "width", "nbytes", "crc", "tail", "first_piece", "pieces")
        self.columns = tables.read("tiles", wanted)
        self.paths: list[str] = self.columns["path"].to_pylist()
        row, col, height, width = (self.columns[name] for name in ("row", "col", "height", "width"))
        self.boxes = np.stack([row, col, row + height, col + width], axis=1).reshape(-1, 4)
        self._refuse_unsound()
        self.starts = np.concatenate(([0], np.cumsum(self.columns["nbytes"])))
        self._stamps: dict[int, Stamp] = {}
        self._loaded, self._parts = Recent(KEPT), Recent(KEPT)

    def _refuse_unsound(self) -> None:
        """Raise IIDFormatError for tiles that leave the mosaic, and numbers that cannot be."""
        c, b, pieces = self.columns, self.boxes, self.tables.rows("pieces")
        sides = np.stack([c["height"], c["width"]], axis=1)
        tests = {
            "a tile of 0 … 65535 pixels a side": np.all((sides >= 0) & (sides <= MAX_TILE_SIDE), axis=1),
            "a tile inside the mosaic": np.all(b >= 0, axis=1)
            & np.all(b[:, 2:] <= np.array(self.tables.manifest.shape), axis=1),
            "the bytes of a file": (c["nbytes"] >= 0) & (c["nbytes"] < 2**35) & (len(b) < 2**24),
            "rows of the table of pieces": (c["first_piece"] >= 0)
            & (c["pieces"] >= 0)
            & (c["pieces"] <= pieces)
            & (c["first_piece"] <= pieces - c["pieces"]),
        }
        for expected, sound in tests.items():
            for i in np.flatnonzero(~sound)[:1].tolist():
                facts = ", ".join(f"{name} {values[i]}" for name, values in c.items() if name != "path")
                found = f"tile {i}, {self.paths[i]!r:.80}, with {facts}"
                raise IIDFormatError(self.tables.manifest.name, "tiles", None, None, found, expected)

    # --- parts

    def meeting(self, box: BBox) -> np.ndarray:
        """Return the tiles with pieces that meet a box, ascending."""
        b = self.boxes
        rows = (b[:, 0] < box.max_row) & (b[:, 2] > box.min_row)
        return np.flatnonzero(rows & (b[:, 1] < box.max_col) & (b[:, 3] > box.min_col) & (self.columns["pieces"] > 0))

    def part(self, tiles: np.ndarray) -> TilePart:
        """Return the pieces in some tiles (ascending); what was used last is kept."""
        self.tables.refuse_replaced()
        return self._parts.get(tiles.tobytes(), lambda: self._make(tiles))

    def _make(self, tiles: np.ndarray) -> TilePart:
        rows: dict[int, dict[str, np.ndarray]] = {}

        def load(tile: int) -> TilePart:
            if not rows:  # those of all tiles at once: a table is not opened for each
                rows.update(self._pieces(tiles))
            return self._load(tile, **rows[tile])

        parts = [self._loaded.get(tile, partial(load, tile)) for tile in tiles.tolist()]
        return joined(parts or [self._nothing()])

    def _pieces(self, tiles: np.ndarray) -> dict[int, dict[str, np.ndarray]]:
        """Read the rows of the table of pieces for some tiles."""
        first, counts = self.columns["first_piece"][tiles], self.columns["pieces"][tiles]
        table = self.tables.read("pieces", ("tile", "key", "label", "area"), spread(first, counts))
        stops = np.cumsum(counts)
        out = {}
        for tile, start, stop in zip(tiles.tolist(), (stops - counts).tolist(), stops.tolist(), strict=True):
            some = {name: values[start:stop] for name, values in table.items()}
            labels = some["label"].astype(np.int64)
            sound = np.all(some.pop("tile") == tile) and np.all(labels[1:] >= labels[:-1])
            if not sound or labels[0] < 1 or labels[-1] > self.tables.rows("segments") or np.any(some["area"] < 0):
                raise IIDFormatError(
                    self.tables.manifest.name,
                    "pieces",
                    None,
                    None,
                    f"rows {first[0]} … for tile {tile} that are of another, out of order or of unknown labels",
                    f"ascending labels of 1 … {self.tables.rows('segments')}",
                )
            out[tile] = some
        return out

    def _nothing(self) -> TilePart:
        none, boxes = np.zeros(0, np.int64), np.zeros((0, 4), np.int64)
        columns = SegmentColumns(boxes, none, np.zeros(1, np.int64), boxes, none)
        return TilePart(self, none.astype(np.uint32), none, none, none, columns, np.zeros(0, PLACES))

    def _load(self, tile: int, key: np.ndarray, label: np.ndarray, area: np.ndarray) -> TilePart:
        """Read the columns of one file, and take those of its pieces."""
        reader = self.open(tile)
        unknown = (key < 0) | (key >= len(reader.live))
        unknown[~unknown] = ~reader.live[key[~unknown]]
        if unknown.any():
            raise self._changed(tile, f"no entry {key[unknown][0]}", f"one for label {label[unknown][0]}")
        columns, base = reader.columns, int(self.starts[tile]) + int(reader.header["segments_offset"])
        first = columns.first_region.astype(np.int64)
        counts = first[key + 1] - first[key]
        regions = spread(first[key], counts)
        corner = np.tile(self.boxes[tile, :2], 2)
        boxes = columns.region_boxes[regions] + corner
        if np.any(boxes[:, 2:] > self.boxes[tile, 2:]):
            raise self._changed(tile, "pixels beyond the tile's size", "none")
        rows = SegmentColumns(
            columns.boxes[key] + corner,
            columns.areas[key].astype(np.int64),
            np.concatenate(([0], np.cumsum(counts))),
            boxes,
            columns.region_bits[regions].astype(np.int64) + base,
            None if columns.crcs is None else columns.crcs[key],
        )
        lut = np.zeros(len(key), PLACES)
        lut["segment_offset"] = reader.lut["segment_offset"][key].astype(np.int64) + base
        lut["segment_length"] = reader.lut["segment_length"][key]
        tiles = np.full(len(key), tile)
        return TilePart(self, (label - 1).astype(np.uint32), area, tiles, key, rows, lut)

    # --- files

    def open(self, tile: int) -> RecordReader:
        """Open a tile's file.

        Raises
        ------
        IIDStoreError
            If it is missing, was changed, or belongs to another mosaic; says which, and the way out.
        """
        folder, path = self.tables.manifest.folder, self.paths[tile]
        folder.inside(path)
        try:
            source = folder.source(path)
            reader: RecordReader = open_records(source, verify=self.tables.verify, limits=self.limits)
        except FileNotFoundError as error:
            raise self._changed(tile, "no such file", "a tile of the mosaic") from error
        row, col, bottom, right = self.boxes[tile].tolist()
        size = min(INDEX_TRAILER.itemsize, reader.source.size)
        tail = zlib.crc32(reader.source.read(reader.source.size - size, size))
        claims = reader.metadata.get("mosaic")
        claims = claims if isinstance(claims, dict) else {}
        facts = {
            "nbytes": (reader.source.size, int(self.columns["nbytes"][tile])),
            "crc32 of the last bytes": (tail, int(self.columns["tail"][tile])),
            "job": (claims.get("job"), self.tables.manifest.job),
            "origin": (claims.get("origin"), [row, col]),
            "shape": (claims.get("shape"), [bottom - row, right - col]),
        }
        for name, (found, expected) in facts.items():
            if found != expected:
                raise self._changed(tile, f"{name} {found!r:.80}", f"{expected!r:.80}")
        if self._stamps.setdefault(tile, stamp_of(source)) != stamp_of(source):
            raise IIDChangedError(f"{source.name}: changed since opened; open the mosaic again")
        return reader

    def _changed(self, tile: int, found: str, expected: str) -> IIDStoreError:
        path = self.tables.manifest.folder.child(self.paths[tile])
        return IIDStoreError(
            f"{path}: tile {tile} of the mosaic: found {found}, expected {expected}: it is missing, was changed after "
            "the mosaic was finished, or is of another job; write it again (iid_dask.write_tile), then call "
            "iid_dask.finish on the folder"
        )

    def _source(self, tile: int) -> Source:
        if tile not in self._stamps:
            self.open(tile)
        folder, path, stamp = self.tables.manifest.folder, self.paths[tile], self._stamps[tile]
        try:
            return _sources.get((folder, path, stamp), lambda: folder.source(path, stamp))
        except FileNotFoundError as error:
            raise IIDChangedError(f"{folder.child(path)}: gone since opened; open the mosaic again") from error

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read ranges of the bytes of all files, laid one after another, each file with few requests.

        Parameters
        ----------
        offsets, lengths : int64 arrays, shape (n,)
            No range reaches over the end of a file.

        Returns
        -------
        data : uint8 array
            Followed by 16 spare bytes.
        places : int64 array, shape (n,)
            Where each range begins in ``data``.
        """
        tiles = np.searchsorted(self.starts, offsets, side="right") - 1
        order = np.argsort(tiles, kind="stable")
        begins = np.flatnonzero(np.diff(tiles[order], prepend=-1))
        places, parts, at = np.empty(len(offsets), np.int64), [], 0
        for some in np.split(order, begins[1:]) if len(order) else []:
            tile = int(tiles[some[0]])
            data, found = gather(self._source(tile), offsets[some] - int(self.starts[tile]), lengths[some])
            places[some] = found + at
            parts.append(data)
            at += len(data)
        return np.concatenate([*parts, np.zeros(16, np.uint8)]), places
