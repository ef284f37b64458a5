"""Pieces cut to the core of their tile, where halos hold what nobody joined."""

from __future__ import annotations

import posixpath
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDChangedError
from iid_dask.format.entry import Entry
from iid_dask.format.folder import Folder
from iid_dask.format.reader import RecordReader
from iid_dask.format.source import BytesSource
from iid_dask.format.writer import IIDWriter
from iid_dask.mosaic.grid import Tile
from iid_dask.mosaic.survey import Entries, Survey, batches, entries_of, tail_crc
from iid_dask.running import Work, run

if TYPE_CHECKING:
    from iid_dask.mosaic.identity import Pieces  # with pyarrow, which tasks do not load


@dataclass(frozen=True, eq=False)
class Cut:
    """A file with the pieces of one tile that were cut.

    Attributes
    ----------
    path : str
    tile : int
        Place of the tile.
    nbytes, crc, tail : int
    keys : int64 array
        Which entries of the tile it holds, in the order of its own keys; those of which nothing was left are not there.
    entries : Entries
        Of the cut file.
    """

    path: str
    tile: int
    nbytes: int
    crc: int
    tail: int
    keys: np.ndarray
    entries: Entries


def beyond_core(found: Survey, segment: np.ndarray) -> np.ndarray:
    """Tell which entries are alone in their segment and leave their tile's core; bool, one element an entry."""
    cores = np.array([tuple(tile.core) for tile in found.places], np.int64).reshape(-1, 4)[found.entries.tile]
    boxes = found.entries.boxes
    leaves = np.any(boxes[:, :2] < cores[:, :2], axis=1) | np.any(boxes[:, 2:] > cores[:, 2:], axis=1)
    # Files put together own no pixels: what they hold is never cut.
    leaves &= np.all(cores[:, :2] < cores[:, 2:], axis=1)
    return leaves & (found.entries.areas > 0) & (np.bincount(segment, minlength=1)[segment] == 1)


def cut(folder: Folder, found: Survey, rows: np.ndarray, *, progress: bool) -> list[Cut]:
    """Write the files with entries cut to their tile's core.

    Parameters
    ----------
    folder
    found
    rows : int64 array
        Of the entries, ascending.
    progress
        Show a bar.
    """
    if not len(rows):
        return []
    folder.make("cuts")
    tiles, starts = np.unique(found.entries.tile[rows], return_index=True)
    parts = [
        (int(tile), found.paths[tile], found.places[tile], int(found.crcs[tile]), found.entries.key[some])
        for tile, some in zip(tiles.tolist(), np.split(rows, starts[1:]), strict=True)
    ]
    work = Work(
        _cut_tiles,
        folder,
        batches(found.nbytes[tiles]),
        arguments=lambda start, stop: (parts[start:stop],),
        about=lambda item: folder.child(parts[item][1]),
    )
    return [made for some in run(work, "cutting halos", progress=progress) for made in some if made is not None]


def _cut_tiles(folder: Folder, parts: list[tuple[int, str, Tile, int, np.ndarray]]) -> list[Cut | None]:
    return [_cut_tile(folder, *part) for part in parts]


def _cut_tile(folder: Folder, number: int, path: str, tile: Tile, crc: int, keys: np.ndarray) -> Cut | None:
    reader = RecordReader(BytesSource(_read_unchanged(folder, path, crc), folder.child(path)))
    # The name says what is in it: the same pieces make the same file, other ones another.
    stamp = zlib.crc32(keys.astype("<i8").tobytes(), crc)
    name = f"cuts/{posixpath.basename(path).removesuffix('.iid')}-{crc:08x}{stamp:08x}.iid"
    row, col = tile.origin
    core = BBox(*(np.array(tuple(tile.core)) - (row, col, row, col)))
    masks = [(key, *_cut_mask(reader[key], core)) for key in keys.tolist()]
    kept = [(key, box, mask) for key, box, mask in masks if mask.any()]
    if not kept:
        return None
    metadata = {**reader.metadata, "mosaic": {**reader.metadata["mosaic"], "cut": True}}
    with IIDWriter(folder.inside(name), metadata=metadata, storage_options=folder.storage_options) as writer:
        for key, box, mask in kept:
            entry = reader[key]
            writer.add(entry.domain, entry.address, box, mask, groups=entry.groups)
    data = folder.read(name)
    entries = entries_of(RecordReader(BytesSource(data, name)), data, tile.origin)
    return Cut(
        name,
        number,
        len(data),
        zlib.crc32(data),
        tail_crc(data),
        np.array([key for key, _, _ in kept], np.int64),
        entries,
    )


def _read_unchanged(folder: Folder, path: str, crc: int) -> bytes:
    folder.inside(path)
    data = folder.read(path)
    found = zlib.crc32(data)
    if found != crc:
        raise IIDChangedError(
            f"{folder}: {path} was written anew since the mosaic was finished: its crc32 is {found:#010x}, expected "
            f"{crc:#010x}; call iid_dask.finish again"
        )
    return data


def _cut_mask(entry: Entry, core: BBox) -> tuple[BBox, np.ndarray]:
    box = entry.bbox.intersection(core)
    top, left = entry.bbox.min_row, entry.bbox.min_col
    rows, cols = box.slices
    return box, entry.mask()[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]


def with_cuts(pieces: Pieces, rows: np.ndarray, cuts: list[Cut], found: Survey) -> Pieces:
    """Put cut pieces in the place of the whole ones; those of which nothing was left go."""
    if not len(rows):
        return pieces
    keep = np.ones(len(pieces.entry), bool)
    keep[rows] = False
    columns = {name: [getattr(pieces, name)[keep]] for name in ("entry", "file", "key", "boxes", "areas", "first")}
    first_row = np.searchsorted(found.entries.tile, np.arange(len(found.paths) + 1))
    for number, made in enumerate(cuts):
        begin, end = first_row[made.tile], first_row[made.tile + 1]
        entry = begin + np.searchsorted(found.entries.key[begin:end], made.keys)
        columns["entry"].append(entry)
        columns["file"].append(np.full(len(entry), len(found.paths) + number))
        for name in ("key", "boxes", "areas", "first"):
            columns[name].append(getattr(made.entries, name))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return replace(pieces, **joined, segment=pieces.segment[joined["entry"]])
