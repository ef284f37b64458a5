"""Full validation of a mosaic: every byte of its tables and tiles, and that they tell of the same segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from iid_dask.apart import taken_apart
from iid_dask.bbox import BBox
from iid_dask.errors import IIDError, IIDFormatError
from iid_dask.mosaic.manifest import TABLES, check_crc
from iid_dask.mosaic.tables import SCHEMAS
from iid_dask.pairs import Regions, added_up, sharing

if TYPE_CHECKING:
    from iid_dask.mosaic.reader import Mosaic


def mosaic_defects(mosaic: Mosaic) -> Iterator[IIDFormatError]:
    """Yield the defects of tables, then of tiles; where both are sound, those of segments."""
    sound = True
    for defect in (*_table_defects(mosaic), *_tile_defects(mosaic)):
        sound = False
        yield defect
    if sound:
        yield from _segment_defects(mosaic)


def _as_defect(mosaic: Mosaic, error: Exception) -> IIDFormatError:
    if isinstance(error, IIDFormatError):
        return error
    return IIDFormatError(mosaic.source.name, "tiles", None, None, f"{error}", "what the manifest lists")


def _table_defects(mosaic: Mosaic) -> Iterator[IIDFormatError]:
    for name in TABLES:
        try:
            listed = mosaic.manifest.tables[name]
            check_crc(mosaic.manifest.folder, listed["path"], listed["crc"])
            mosaic.tables.read(name, SCHEMAS[name])
        except (IIDError, OSError) as error:
            yield _as_defect(mosaic, error)
    try:
        _ = mosaic.groups, mosaic.columns.boxes, mosaic.columns.areas
    except IIDError as error:
        yield _as_defect(mosaic, error)


def _tile_defects(mosaic: Mosaic) -> Iterator[IIDFormatError]:
    files = mosaic.tiles
    for tile, path in enumerate(files.paths):
        try:
            with files.open(tile) as reader:
                yield from reader.check()
                check_crc(mosaic.manifest.folder, path, int(files.columns["crc"][tile]))
        except (IIDError, OSError) as error:
            yield _as_defect(mosaic, error)
            continue
        if not files.columns["pieces"][tile]:
            continue
        try:
            files.part(np.array([tile]))
        except IIDError as error:
            error.add_note(f"while reading the pieces of {path}")
            yield _as_defect(mosaic, error)


def _segment_defects(mosaic: Mosaic) -> Iterator[IIDFormatError]:
    """Compare the table of segments with the pieces in the tiles."""
    every = mosaic.tiles.part(np.flatnonzero(mosaic.tiles.columns["pieces"] > 0))
    columns, keys = mosaic.columns, mosaic.entry_keys
    regions = Regions.of(columns, keys, keys)
    stored = np.zeros(len(keys), np.int64)
    np.add.at(stored, every.keys, every.columns.areas)
    areas = stored.copy()
    twice = sharing(mosaic, regions)
    if len(twice):
        areas[twice] = 0
        for _, some, pixels in taken_apart(mosaic, regions.chosen(np.isin(regions.keys, twice))):
            owners, counts = added_up(some.keys, pixels)
            areas[owners] += counts
    counts = np.bincount(every.keys, minlength=len(keys))
    stated = mosaic.tables.read("segments", ("pieces",))["pieces"]
    outside = np.zeros(len(keys), bool)
    around = columns.boxes[regions.keys]
    beyond = np.any((regions.boxes[:, :2] < around[:, :2]) | (regions.boxes[:, 2:] > around[:, 2:]), axis=1)
    outside[regions.keys[beyond]] = True
    told = np.zeros(len(keys), bool)
    told[every.keys[every.areas != columns.areas[every.keys]]] = True
    for what, bad, found, expected in (
        # Where regions of one entry share pixels, files state the sum of these, and mosaics keep it.
        ("area", (areas != columns.areas) & (stored != columns.areas), columns.areas, areas),
        ("area in the table of pieces that differs from", told, columns.areas, areas),
        ("pieces", stated != counts, stated, counts),
    ):
        for key in np.flatnonzero(bad).tolist():
            yield IIDFormatError(
                mosaic.source.name, "segments", key, None, f"{what} {found[key]}", f"{expected[key]}, as in the tiles"
            )
    for key in np.flatnonzero(outside).tolist():
        box = BBox(*columns.boxes[key].tolist())
        yield IIDFormatError(mosaic.source.name, "segments", key, None, "a region outside its box", f"{tuple(box)}")
