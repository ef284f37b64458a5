"""What the tiles of a mosaic hold, as columns: one read of every file."""

from __future__ import annotations

import posixpath
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.cutting import ranges
from iid_dask.errors import IIDFormatError, IIDStoreError
from iid_dask.format.folder import Folder, FolderLike, as_folder
from iid_dask.format.layout import INDEX_TRAILER, SPARE
from iid_dask.format.reader import RecordReader
from iid_dask.format.segments import SegmentColumns
from iid_dask.format.source import BytesSource
from iid_dask.mosaic.folder import Job, load_job
from iid_dask.mosaic.grid import Tile
from iid_dask.running import Work, run

TASK_TILES, TASK_NBYTES = 256, 32 * 2**20
"""Files and bytes of a task: about a second of work, whatever the tiles' size."""


@dataclass(frozen=True, eq=False)
class Strings:
    """Byte strings one after another: string i is ``data[offsets[i] : offsets[i + 1]]``.

    Attributes
    ----------
    data : uint8 array
    offsets : int64 array, shape (n + 1,)
    """

    data: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> bytes:
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes()

    @classmethod
    def cut(cls, text: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Strings:
        """Copy pieces of some text."""
        offsets = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        data = np.empty(int(offsets[-1]), np.uint8)
        kernels.gather_spans(text, starts, stops, data)
        return cls(data, offsets)

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Strings:
        """Lay out a list."""
        offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(values), np.uint8), offsets)

    @classmethod
    def joined(cls, parts: Iterable[Strings]) -> Strings:
        """One after another."""
        some = list(parts)
        lengths = [np.diff(part.offsets) for part in some]
        offsets = np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum()
        return cls(np.concatenate([np.zeros(0, np.uint8), *[part.data for part in some]]), offsets)

    def take(self, rows: np.ndarray) -> Strings:
        """Return some of them."""
        return Strings.cut(self.data, self.offsets[rows], self.offsets[rows + 1])


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of tiles, by ascending tile, then key.

    Attributes
    ----------
    tile : int64 array, shape (n,)
        Place of the tile.
    key : int64 array, shape (n,)
        Of the entry in the tile's file.
    boxes : int64 array, shape (n, 4)
        Tight, mosaic pixels; zeros for an empty segment.
    areas : int64 array, shape (n,)
        Pixels.
    first : int64 array, shape (n, 2)
        Row and column of the first pixel in raster order, mosaic pixels; -1 for an empty segment.
    domains, addresses : Strings
    groups : list of str
        Ascending.
    members : int64 array, shape (m, 2)
        Place in ``groups`` and row of the entry; by row, then group, each pair once.
    """

    tile: np.ndarray
    key: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    first: np.ndarray
    domains: Strings
    addresses: Strings
    groups: list[str] = field(default_factory=list)
    members: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, eq=False)
class Survey:
    """Tiles and their entries.

    Attributes
    ----------
    paths : list of str
        As tables name them.
    places : list of Tile
    labelled : bool array, shape (tiles,)
        Tiles made from a label array, whose addresses are its numbers; the others hold named masks.
    nbytes, crcs, tails : int64 arrays, shape (tiles,)
        Size of each file, its crc32, and that of its last bytes (`tail_crc`).
    entries : Entries
    """

    paths: list[str]
    places: list[Tile]
    labelled: np.ndarray
    nbytes: np.ndarray
    crcs: np.ndarray
    tails: np.ndarray
    entries: Entries


def tail_crc(data: bytes) -> int:
    """Return the crc32 of a file's last bytes: the index's trailer, which holds the checksums of all the rest."""
    return zlib.crc32(data[-INDEX_TRAILER.itemsize :])


def survey(folder: FolderLike, paths: Sequence[str], *, progress: bool = False) -> Survey:
    """Read tiles, and check that they are whole, of the folder's job, and where their names say.

    Parameters
    ----------
    folder
    paths
        Relative to it.
    progress
        Show a bar.

    Raises
    ------
    IIDFormatError
        For a damaged tile.
    IIDStoreError
        For a tile of another job, or at another place than its name says.
    """
    place = as_folder(folder)
    job = load_job(place)
    sizes = place.sizes("tiles")
    work = Work(
        survey_tiles,
        place,
        batches(np.array([sizes.get(posixpath.basename(path), 0) for path in paths], np.int64)),
        arguments=lambda start, stop: (paths[start:stop], job.id),
        about=lambda item: place.child(paths[item]),
    )
    return joined(run(work, "reading tiles", progress=progress))


def batches(nbytes: np.ndarray) -> list[tuple[int, int]]:
    """Cut files into ranges of about a second of work each.

    Examples
    --------
    >>> batches(np.array([10, 2**25, 10, 10]))
    [(0, 1), (1, 2), (2, 4)]
    """
    return list(ranges(np.maximum(nbytes, TASK_NBYTES // TASK_TILES), TASK_NBYTES))


def survey_tiles(folder: Folder, paths: Sequence[str], job_id: str) -> Survey:
    """Read some tiles; see `survey`."""
    job = load_job(folder)
    return joined([_survey_tile(folder, path, job, job_id) for path in paths])


def joined(parts: Sequence[Survey]) -> Survey:
    """Put surveys together; tiles and entries keep their order."""
    before, rows = 0, 0
    tiles, members = [], []
    groups = sorted({name for part in parts for name in part.entries.groups})
    place = {name: i for i, name in enumerate(groups)}
    for part in parts:
        tiles.append(part.entries.tile + before)
        number = np.array([place[name] for name in part.entries.groups], np.int64)
        some = part.entries.members
        members.append(np.stack([number[some[:, 0]], some[:, 1] + rows], axis=1))
        before += len(part.paths)
        rows += len(part.entries)

    def column(of: Callable[[Survey], np.ndarray], empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *map(of, parts)])

    none, pairs = np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
    entries = Entries(
        np.concatenate([none, *tiles]),
        column(lambda part: part.entries.key, none),
        column(lambda part: part.entries.boxes, np.zeros((0, 4), np.int64)),
        column(lambda part: part.entries.areas, none),
        column(lambda part: part.entries.first, pairs),
        Strings.joined(part.entries.domains for part in parts),
        Strings.joined(part.entries.addresses for part in parts),
        groups,
        np.concatenate([pairs, *members]),
    )
    return Survey(
        [path for part in parts for path in part.paths],
        [tile for part in parts for tile in part.places],
        column(lambda part: part.labelled, np.zeros(0, bool)),
        column(lambda part: part.nbytes, none),
        column(lambda part: part.crcs, none),
        column(lambda part: part.tails, none),
        entries,
    )


# --- one tile ---------------------------------------------------------------------------------------------------


def _survey_tile(folder: Folder, path: str, job: Job, job_id: str) -> Survey:
    file = folder.inside(path)
    data = folder.read(path)
    reader = RecordReader(BytesSource(data, file))
    facts = reader.metadata.get("mosaic")
    tile = _place(reader.name, facts, job, job_id)
    if tile.name != path:
        raise IIDStoreError(
            f"{reader.name}: is the tile at row {tile.origin[0]}, column {tile.origin[1]}, whose file is {tile.name}; "
            "it was renamed or copied: delete it and write the tile anew"
        )
    labelled = np.array([isinstance(facts, dict) and facts.get("input") is not None])
    entries = entries_of(reader, data, tile.origin)
    crcs = np.array([zlib.crc32(data)]), np.array([tail_crc(data)])
    return Survey([path], [tile], labelled, np.array([len(data)]), *crcs, entries)


def _place(name: str, facts: Any, job: Job, job_id: str) -> Tile:
    if not isinstance(facts, dict) or "job" not in facts:
        raise IIDStoreError(f"{name}: no tile of a mosaic, its metadata lack one's place; move it out of the folder")
    if facts["job"] != job_id:
        raise IIDStoreError(
            f"{name}: a tile of another job ({facts['job']!r:.40}, this one is {job_id!r}): the input or the options "
            "changed since; delete it and write the tile anew"
        )
    try:
        return job.place(facts["origin"], facts["shape"], tuple(BBox.of(facts["core"])))
    except (KeyError, TypeError, ValueError) as error:
        raise IIDFormatError(name, "meta", None, None, f"a mosaic's place that is none: {error}", "a tile's") from error


def entries_of(reader: RecordReader, data: bytes, origin: tuple[int, int]) -> Entries:
    """Return the entries of one file, whose bytes are ``data`` and whose pixel (0, 0) is ``origin``."""
    keys, columns = reader.entry_keys.astype(np.int64), reader.columns
    n = len(reader.lut)
    first_region = columns.first_region.astype(np.int64)
    regions = columns.region_boxes.astype(np.int64)
    # Kernels read whole words; eight bytes at the end of a section may be the file's last.
    spare = np.frombuffer(data + bytes(SPARE), np.uint8)
    _verify(reader, columns, spare)
    first = np.full((n, 2), -1, np.int64)
    bits = (columns.region_bits.astype(np.int64) + int(reader.header["segments_offset"])) * 8
    kernels.segment_starts(spare, bits, regions, first_region, first)
    boxes = np.zeros((n, 4), np.int64)
    held = np.flatnonzero(np.diff(first_region))
    if len(held):
        starts = first_region[held]
        boxes[held, :2] = np.minimum.reduceat(regions[:, :2], starts)
        boxes[held, 2:] = np.maximum.reduceat(regions[:, 2:], starts)
    row, col = origin
    boxes[held] += (row, col, row, col)
    first[first[:, 0] >= 0] += (row, col)
    text, starts, middles, stops = reader.name_spans()
    letters = np.frombuffer(text, np.uint8)
    groups, members = _members(reader, keys)
    return Entries(
        np.zeros(len(keys), np.int64),
        keys,
        boxes[keys],
        columns.areas[keys].astype(np.int64),
        first[keys],
        Strings.cut(letters, starts, middles),
        Strings.cut(letters, middles, stops),
        groups,
        members,
    )


def _verify(reader: RecordReader, columns: SegmentColumns, data: np.ndarray) -> None:
    """Compare the segments with their checksums: the crc32 taken now would make damage look sound for ever."""
    held = np.flatnonzero(np.diff(columns.first_region.astype(np.int64)))
    places = reader.lut["segment_offset"][held].astype(np.int64) + int(reader.header["segments_offset"])
    reader.verify_segments(held, columns.first_region[held].astype(np.int64), data, places)


def _members(reader: RecordReader, keys: np.ndarray) -> tuple[list[str], np.ndarray]:
    names = sorted(reader.groups)
    pairs = [np.zeros((0, 2), np.int64)]
    for number, name in enumerate(names):
        rows = np.searchsorted(keys, np.unique(reader.groups[name]))
        pairs.append(np.stack([np.full(len(rows), number), rows], axis=1))
    members = np.concatenate(pairs)
    return names, members[np.lexsort((members[:, 0], members[:, 1]))]
