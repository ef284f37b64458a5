"""Pixels of segments whose pieces share some, as in halos, or where one name stands twice in a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask import kernels
from iid_dask.cutting import spread
from iid_dask.format.folder import Folder
from iid_dask.mosaic.cuts import Cut
from iid_dask.mosaic.folder import tiles_of
from iid_dask.mosaic.joining import union_areas
from iid_dask.mosaic.region_parts import Parts
from iid_dask.mosaic.survey import Survey
from iid_dask.running import Work, run

if TYPE_CHECKING:
    from iid_dask.mosaic.identity import Pieces  # with pyarrow, which tasks do not load

AREA_PIECES = 4096
"""Pieces whose common pixels a task looks for."""


def count_common(
    folder: Folder,
    found: Survey,
    made: list[Cut],
    pieces: Pieces,
    areas: np.ndarray,
    *,
    progress: bool,
) -> None:
    """Correct the areas of segments whose pieces may share pixels: their sums count those twice.

    Parameters
    ----------
    folder
    found, made
        Tiles, and files of cut pieces.
    pieces
        Each with the key of its segment.
    areas : int64 array
        Of the segments; changed in place.
    progress
        Show a bar.
    """
    keys = pieces.segment
    held = np.flatnonzero(pieces.areas > 0)
    order = held[np.lexsort((pieces.boxes[held, 0], keys[held]))]
    nothing = np.zeros(0, np.int64)
    boxes, groups = pieces.boxes[order], keys[order]
    first, second = np.empty((2, int(kernels.meeting_boxes(boxes, groups, 0, nothing, nothing))), np.int64)
    kernels.meeting_boxes(boxes, groups, 0, first, second)
    shared = np.unique(groups[first])
    if not len(shared):
        return
    rows = order[np.isin(groups, shared)]
    paths = [*found.paths, *[one.path for one in made]]
    origins = np.array([tile.origin for tile in found.places], np.int64)
    origins = np.concatenate([origins, origins[[one.tile for one in made]].reshape(-1, 2)])
    starts = np.flatnonzero(np.diff(keys[rows], prepend=-1))
    # Batches never part the pieces of a segment: an item is a range of whole segments.
    parts = np.split(rows, starts[np.flatnonzero(np.diff(starts // AREA_PIECES)) + 1])

    def arguments(start: int, stop: int) -> tuple[Any, ...]:
        some = np.concatenate(parts[start:stop])
        files, which = np.unique(pieces.file[some], return_inverse=True)
        return [paths[file] for file in files.tolist()], origins[files], which, pieces.key[some], keys[some]

    def about(item: int) -> str:
        return f"{folder}: segments {keys[parts[item][0]]} to {keys[parts[item][-1]]}"

    work = Work(_joined_areas, folder, [(i, i + 1) for i in range(len(parts))], arguments, about)
    for segments, exact in run(work, "counting shared pixels", progress=progress):
        areas[segments] = exact


def _joined_areas(
    folder: Folder, paths: list[str], origins: np.ndarray, files: np.ndarray, keys: np.ndarray, segments: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of segments, of which entries of several files are pieces, by ascending segment."""
    opened = tiles_of(folder)
    owners, boxes, bits = [], [], []
    for file, path in enumerate(paths):
        mine = np.flatnonzero(files == file)
        columns, rows = opened(path).segment_columns(keys[mine])
        starts = columns.first_region[rows].astype(np.int64)
        counts = columns.first_region[rows + 1].astype(np.int64) - starts
        regions = spread(starts, counts)
        owners.append(np.repeat(mine, counts))
        boxes.append(columns.region_boxes[regions].astype(np.int64) + np.tile(origins[file], 2))
        bits.append(columns.region_bits[regions].astype(np.int64))
    piece = np.concatenate(owners)
    order = np.argsort(piece, kind="stable")
    piece = piece[order]
    parts = Parts(segments[piece], piece, files[piece], np.concatenate(boxes)[order], np.concatenate(bits)[order])
    return union_areas(parts, lambda file, offsets, lengths: opened(paths[file]).read_bits(offsets, lengths))
