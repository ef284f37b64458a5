"""A mosaic as a read-only mapping of entries and as columns: tables first, tiles when a window needs them."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDFormatError, IIDStoreError
from iid_dask.format.entry import Entry, Region
from iid_dask.format.folder import FolderLike, folder_of, stamp_of
from iid_dask.format.layout import IID_HEAD, REGION_HEAD, SEGMENT_HEAD, Limits
from iid_dask.format.reopening import Reopened
from iid_dask.format.segments import SegmentColumns
from iid_dask.format.source import Source
from iid_dask.mosaic.files import MosaicFiles
from iid_dask.mosaic.folder import JOB, MANIFEST, mosaic_folder
from iid_dask.mosaic.manifest import Manifest, Tables
from iid_dask.mosaic.part import TilePart
from iid_dask.mosaic.segments import SegmentTable, interleaved
from iid_dask.mosaic.tables import NAMES
from iid_dask.pieces import Parted
from iid_dask.reader import IIDReader

if TYPE_CHECKING:
    import pandas as pd

FEW = 1024
"""Entries of which the tiles are looked for; of more all tiles are read."""

SIZES = np.dtype([("iid_length", "<i8"), ("segment_length", "<i8")])
"""What an entry takes, about."""


class Mosaic(IIDReader, Parted):
    """A read-only mapping key -> `Entry` over an open mosaic, and its queries; made by `iid_dask.open_mosaic`.

    It is used as a file is: the same queries, arrays and tables, but boxes and areas are int64, and there is no limit
    of 65,535 pixels or 4 GiB. Opening reads the manifest and the list of tiles; what needs pixels opens the tiles that
    it meets. Pickles to the path and a stamp of the manifest.

    Attributes
    ----------
    name : str
        Path or URL of the folder.
    manifest : Manifest
    tables : Tables
    tiles : MosaicFiles
    shape : (rows, columns)
    live : bool array, shape (n,)
        All True: a mosaic has no removed entries.
    metadata : dict
    metadata_json : str
    limits : Limits

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> labels = np.kron(np.eye(3, dtype=np.uint8), np.ones((4, 4), np.uint8))
    >>> folder = os.path.join(tempfile.mkdtemp(), "mosaic")
    >>> with iid_dask.to_mosaic(labels, folder, tile=5, progress=False) as mosaic:
    ...     mosaic.shape, len(mosaic), mosaic[0].area, mosaic.at(9, 9)
    ((12, 12), 1, 48, array([0], dtype=uint32))
    """

    def __init__(self, source: Source, *, verify: bool = True, limits: Limits | None = None) -> None:
        # Nothing of a file's own opening: its header and tables are a manifest and tables here.
        Reopened.__init__(self, source, verify=verify, limits=limits)
        self._memory, self._scanned = OrderedDict(), 0
        self.index = None
        self.manifest = Manifest.parse(folder_of(source), source.read(0, source.size), self.limits)
        self.name = str(self.manifest.folder)
        self.tables = Tables(self.manifest, stamp_of(source), verify=verify)
        self.tiles = MosaicFiles(self.tables, self.limits)
        self.shape = self.manifest.shape
        self.metadata, self.metadata_json = self.manifest.metadata, json.dumps(self.manifest.metadata)
        self.live = np.broadcast_to(np.True_, (self.tables.rows("segments"),))
        self.columns = SegmentTable(self)

    def __len__(self) -> int:
        return len(self.live)

    def __getitem__(self, key: int) -> Entry:
        return MosaicEntry(self, super().__getitem__(key).key)

    # --- columns

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Group name -> ascending uint32 keys."""
        names, count = self.manifest.groups, len(self.live)
        table = self.tables.read("members", ("group", "key"))
        group, key = table["group"], table["key"]
        step, apart = np.diff(group), np.diff(key)
        sound = (group >= 0) & (group < len(names)) & (key >= 0) & (key < count)
        if not sound.all() or np.any((step < 0) | ((step == 0) & (apart <= 0))):
            raise IIDFormatError(
                self.source.name,
                "members",
                None,
                None,
                "members of no group, that are no entries, or out of order",
                f"{len(names)} groups of {count} entries, ascending, each once",
            )
        ends = np.searchsorted(group, np.arange(len(names) + 1))
        found = {name: key[ends[i] : ends[i + 1]].astype(np.uint32) for i, name in enumerate(names)}
        for keys in found.values():
            keys.setflags(write=False)
        return found

    @cached_property
    def lut(self) -> np.ndarray:
        """What each entry takes, about: fields ``iid_length`` and ``segment_length``; they have no one place."""
        out = np.zeros(len(self), SIZES)
        _, starts, _, stops = self.name_spans()
        out["iid_length"] = stops - starts + IID_HEAD.itemsize
        pieces = self.tables.read("segments", ("pieces",))["pieces"]
        out["segment_length"] = SEGMENT_HEAD.itemsize + REGION_HEAD.itemsize * pieces + (self.columns.areas + 7) // 8
        return out

    @property
    def gap(self) -> int:
        """Bytes between two wanted ranges that are cheaper to read than to skip."""
        return self.manifest.folder.gap

    def part(self, box: BBox) -> TilePart:
        """Return the tiles that meet a box as one file; only these are opened."""
        return self.tiles.part(self.tiles.meeting(box))

    def segment_columns(self, keys: np.ndarray) -> tuple[SegmentColumns, np.ndarray]:
        """Return columns that hold some entries, and their rows there; of few entries only their tiles are read."""
        if len(keys) > FEW:
            return self.columns, keys
        return SegmentTable(self, np.asarray(keys, np.int64)), np.arange(len(keys))

    def pieces_of(self, keys: np.ndarray) -> TilePart:
        """Return a part that holds all pieces of some entries, beside others."""
        boxes = self.segment_columns(keys)[0].boxes
        met = np.zeros(len(self.tiles.paths), bool)
        for box in boxes.tolist():
            met[self.tiles.meeting(BBox(*box))] = True
        return self.tiles.part(np.flatnonzero(met))

    # --- bytes

    def read_bits(self, offsets: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read ranges of all tile files laid one after another; see `RecordReader.read_bits`."""
        return self.tiles.read_bits(offsets, lengths)

    def verify_segments(self, keys: np.ndarray, regions: np.ndarray, data: np.ndarray, places: np.ndarray) -> None:
        """Do nothing: what has a checksum is a piece in a tile; see `TilePart.verify_segments`."""

    def segment_bytes(self, key: int) -> bytes:
        """Not for mosaics: a segment lies in several files."""
        raise TypeError(f"{self.name}: entry {key} of a mosaic has no bytes of its own; take its regions or its mask")

    def name_spans(self, keys: Any = None) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
        """Return bytes that hold the names of entries, and where in them; see `RecordReader.name_spans`."""
        rows = None if keys is None else np.asarray(keys, np.int64)
        table = self.tables.read("segments", NAMES, rows)
        return interleaved(*(table[name] for name in NAMES))

    # --- the whole

    def check(self) -> list[IIDFormatError]:
        """Validate the whole mosaic and return the defects found, [] for a sound one.

        Tables and tiles against their checksums, every tile as a file, and that boxes, areas and pieces of all
        segments are those of the tables. The list ends at `iid_dask.format.check.MAX_DEFECTS`.
        """
        from iid_dask.format.check import MAX_DEFECTS
        from iid_dask.mosaic.check import mosaic_defects

        return list(islice(mosaic_defects(self), MAX_DEFECTS))

    def seams(self) -> pd.DataFrame:
        """Return what was found at the borders of tiles whose labels are their own, and what was decided.

        Returns
        -------
        pandas.DataFrame
            A row for every two entries that touch or share pixels; columns as in `iid_dask.mosaic.evidence.Evidence`.

        Raises
        ------
        IIDStoreError
            If nothing is decided in this mosaic: it was not made with ``stitch`` "touch" or "iou".
        """
        from iid_dask.mosaic.seams import seams_table  # it stands above this module

        return seams_table(self.manifest.folder)

    def to_iid(
        self,
        path: str | os.PathLike[str],
        *,
        index: bool = True,
        progress: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the mosaic as one canonical ``.iid`` file; see `iid_dask.mosaic.consolidate.consolidate`."""
        from iid_dask.mosaic.consolidate import consolidate  # it stands above this module

        consolidate(self, path, index=index, progress=progress, storage_options=storage_options)


class MosaicEntry(Entry):
    """An entry of a mosaic; boxes are in mosaic pixels, and its regions those of its pieces in all tiles."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """The stored pieces, whole, tile by tile; those of two tiles may touch or share pixels."""
        reader = self.reader
        assert isinstance(reader, Mosaic)
        part = reader.pieces_of(np.array([self.key]))
        found: list[Region] = []
        for row in np.flatnonzero(part.keys == self.key).tolist():
            tile = int(part.tiles[row])
            top, left = reader.tiles.boxes[tile, :2].tolist()
            with reader.tiles.open(tile) as file:
                for region in file[int(part.tile_keys[row])].regions:
                    r0, c0, r1, c1 = region.bbox
                    found.append(Region(BBox(r0 + top, c0 + left, r1 + top, c1 + left), region.bits))
        return tuple(found)


# --- opening ----------------------------------------------------------------------------------------------------


def open_mosaic(
    folder: FolderLike,
    *,
    verify: bool = True,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Mosaic:
    """Open a finished mosaic.

    Parameters
    ----------
    folder
        Path or URL of the mosaic, or of its ``mosaic.json``; ``~`` is expanded.
    verify
        Compare tables with the manifest's checksums, and what is read of tiles with their indexes.
    limits : Limits, optional
        What the mosaic may cost.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    Mosaic
        Also a context manager, which closes it.

    Raises
    ------
    FileNotFoundError
        If there is no mosaic.
    IIDStoreError
        If it was not finished.
    IIDFormatError
        If its manifest or its list of tiles is damaged.
    """
    place = mosaic_folder(folder, storage_options)
    try:
        source = place.source(MANIFEST)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        if place.is_file(JOB):
            raise IIDStoreError(
                f"{place}: the mosaic was begun, but not finished: write all tiles, then call iid_dask.finish"
            ) from None
        path = place.child(MANIFEST)
        raise FileNotFoundError(f"{path}: no such file, expected the manifest of a mosaic") from None
    try:
        return Mosaic(source, verify=verify, limits=limits)
    except BaseException:
        source.close()
        raise
