"""Evidence of who is one across the seams of tiles whose labels are their own; cost grows with their borders."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from iid_dask import kernels
from iid_dask.format.folder import Folder
from iid_dask.mosaic.borders import TileFile, seam_rows
from iid_dask.mosaic.folder import Job
from iid_dask.mosaic.identity import name_ranks
from iid_dask.mosaic.survey import Entries, Survey, batches
from iid_dask.running import Work, run

SCHEMA: dict[str, pa.DataType] = {
    **dict.fromkeys(("tile_a", "key_a", "tile_b", "key_b", "contact_a", "contact_b"), pa.int64()),
    **dict.fromkeys(("face_a", "face_b", "intersection", "union", "area_a", "area_b"), pa.int64()),
    **dict.fromkeys(("iou", "score"), pa.float64()),
    **dict.fromkeys(("decision", "manual"), pa.bool_()),
}
"""Columns of the table of seams, a row for every two entries that touch or share pixels across one; see `Evidence`."""

ENTRY_MEMBERS: dict[str, pa.DataType] = {"group": pa.int64(), "entry": pa.int64()}
"""Columns of the table of the groups that masks came in, written where deciding again needs it: ``group`` is a place
in the manifest's ``naming.entry_groups``, ``entry`` a row of the table of entries."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Pairs of entries at seams, by tile and key of the first, then of the second; every column has a row a pair.

    Attributes
    ----------
    tile_a, key_a, tile_b, key_b : int64
        Two entries; tiles are rows of the table of tiles, ``tile_a < tile_b``.
    contact_a : int64
        Pixels of the first in its tile's core that touch (8-connected) pixels of the second in the core of its tile.
    contact_b : int64
        The same seen from the other side.
    face_a, face_b : int64
        Pixels that each has on the line of its core along the other core.
    intersection, union : int64
        Pixels that both, and either, have in the box that both files hold: 0 without halos.
    area_a, area_b : int64
        Pixels of each as its tile has it.
    iou : float64
        intersection / union, 0 where that is 0.
    score : float64
        What the rule makes of it, 0 … 1.
    decision : bool
        Whether the two are one segment.
    manual : bool
        The decision was made by hand: rules leave it.
    """

    tile_a: np.ndarray
    key_a: np.ndarray
    tile_b: np.ndarray
    key_b: np.ndarray
    contact_a: np.ndarray
    contact_b: np.ndarray
    face_a: np.ndarray
    face_b: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    area_a: np.ndarray
    area_b: np.ndarray
    iou: np.ndarray
    score: np.ndarray
    decision: np.ndarray
    manual: np.ndarray

    def __len__(self) -> int:
        return len(self.tile_a)

    def columns(self) -> dict[str, Any]:
        """Return the columns as the table has them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, which: np.ndarray) -> Evidence:
        """Return some of the pairs."""
        return Evidence(**{name: values[which] for name, values in self.columns().items()})

    def pairs(self) -> np.ndarray:
        """Return tile and key of both entries, int64, shape (n, 4)."""
        return np.stack([self.tile_a, self.key_a, self.tile_b, self.key_b], axis=1)

    def joined_rows(self, entries: Entries) -> np.ndarray:
        """Return the rows of both entries of each pair that is one segment, int64, shape (m, 2)."""
        return entry_rows(self.pairs()[self.decision], entries)


def entry_rows(pairs: np.ndarray, entries: Entries) -> np.ndarray:
    """Return the rows of both entries of each pair, int64, shape (n, 2)."""
    code = entries.tile << 32 | entries.key
    return np.searchsorted(code, pairs[:, 0::2] << 32 | pairs[:, 1::2])


def undecided(found: np.ndarray, entries: Entries) -> Evidence:
    """Make evidence of what `iid_dask.mosaic.borders.seam_rows` returns, in any order."""
    rows = found[np.lexsort(found[:, 3::-1].T)]
    areas = entries.areas[entry_rows(rows[:, :4], entries)]
    iou = rows[:, 8] / np.maximum(rows[:, 9], 1)
    no = np.zeros(len(rows), bool)
    columns = [*np.ascontiguousarray(rows.T), *np.ascontiguousarray(areas.T), iou, np.zeros(len(rows)), no, no]
    return Evidence(**dict(zip(SCHEMA, columns, strict=True)))


def gather(folder: Folder, job: Job, found: Survey, *, progress: bool = False) -> Evidence:
    """Compare neighbouring tiles along their borders and in the box that both files hold.

    Parameters
    ----------
    folder
    job
        Of connected components only those of one value are compared.
    found
        The tiles.
    progress
        Show a bar.

    Raises
    ------
    ValueError
        For ``stitch="iou"`` and tiles that do not overlap.
    """
    pairs = neighbours(found)
    _refuse_apart(folder, job, found, pairs)
    files = [TileFile(path, tile) for path, tile in zip(found.paths, found.places, strict=True)]

    def arguments(start: int, stop: int) -> tuple[Any, ...]:
        some, which = np.unique(pairs[start:stop], return_inverse=True)
        return [files[number] for number in some.tolist()], some, which.reshape(-1, 2)

    def about(item: int) -> str:
        return f"{folder}: {' and '.join(found.paths[tile] for tile in pairs[item].tolist())}"

    work = Work(seam_rows, folder, batches(found.nbytes[pairs].sum(axis=1) // 4), arguments, about)
    rows = np.concatenate([np.zeros((0, 10), np.int64), *run(work, "comparing seams", progress=progress)])
    evidence = undecided(rows, found.entries)
    if not job.connected:
        return evidence
    values = name_ranks(found.entries)[entry_rows(evidence.pairs(), found.entries)]
    return evidence.take(values[:, 0] == values[:, 1])


def _refuse_apart(folder: Folder, job: Job, found: Survey, pairs: np.ndarray) -> None:
    """Refuse to compare what tiles both hold where no two hold anything."""
    boxes = _boxes(found)
    low, high = boxes[:, :2], boxes[:, 2:]
    a, b = pairs.T
    if job.stitch == "iou" and len(pairs) and not np.any(np.all((low[a] < high[b]) & (low[b] < high[a]), axis=1)):
        raise ValueError(
            f'{folder}: stitch="iou" compares what neighbouring tiles both hold, and none overlap: '
            'prepare the mosaic with a halo, or with stitch="touch"'
        )


def _boxes(found: Survey) -> np.ndarray:
    return np.array([tuple(tile.box) for tile in found.places], np.int64).reshape(-1, 4)


def neighbours(found: Survey) -> np.ndarray:
    """Return pairs of tiles with entries whose cores touch or whose files overlap, int64, shape (n, 2), ascending."""
    boxes = _boxes(found)
    cores = np.array([tuple(tile.core) for tile in found.places], np.int64).reshape(-1, 4)
    held = np.unique(found.entries.tile)
    order = held[np.argsort(boxes[held, 0], kind="stable")]
    nothing, groups = np.zeros(0, np.int64), np.zeros(len(order), np.int64)
    count = int(kernels.meeting_boxes(boxes[order], groups, 1, nothing, nothing))
    first, second = np.empty((2, count), np.int64)
    kernels.meeting_boxes(boxes[order], groups, 1, first, second)
    pairs = np.sort(np.stack([order[first], order[second]], axis=1), axis=1)
    a, b = pairs.T
    meet = np.all((boxes[a, :2] < boxes[b, 2:]) & (boxes[b, :2] < boxes[a, 2:]), axis=1)
    touch = np.all((cores[a, :2] <= cores[b, 2:]) & (cores[b, :2] <= cores[a, 2:]), axis=1)
    pairs = pairs[meet | touch]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
