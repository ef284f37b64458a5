"""Tiles of an image into a mosaic's folder, as tasks of whatever dask scheduler is active."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np

from iid_dask.assembling.plan import batch_size
from iid_dask.bbox import BBox
from iid_dask.errors import IIDError
from iid_dask.format.reader import open_records
from iid_dask.images import DaskImage, Image
from iid_dask.mosaic.blocks import block_crc
from iid_dask.mosaic.folder import Job
from iid_dask.mosaic.grid import Grid, Tile
from iid_dask.mosaic.tile import write_tile

Resume = Literal[True, False, "trust"]


@dataclass(frozen=True)
class Writer:
    """What a task needs to know; the same for all tiles of a job.

    Attributes
    ----------
    folder : str
    job : str
        Its id.
    resume : bool or "trust"
        Keep tiles that are there, if they were made from these pixels; "trust": without reading these again.
    """

    folder: str
    job: str
    resume: Resume

    def write(self, image: Image, tiles: Sequence[BBox]) -> tuple[int, int]:
        """Write tiles of an image that this process can read; return how many were written, and how many kept."""
        written = 0
        for box in tiles:
            if self.resume == "trust" and self._stored(box) is not None:
                continue
            written += self._put(box, image.read(box))
        return written, len(tiles) - written

    def put(self, box: BBox, block: np.ndarray) -> tuple[int, int]:
        """Write one tile from its pixels."""
        written = self._put(box, block)
        return written, 1 - written

    def _put(self, box: BBox, block: np.ndarray) -> int:
        stored = self._stored(box) if self.resume else None
        if stored is not None and stored == block_crc(block):
            return 0
        write_tile(self.folder, block, (box.min_row, box.min_col))
        return 1

    def _stored(self, box: BBox) -> int | None:
        """Return the crc32 of the pixels that a tile of this job was made from; None where it is not there, whole."""
        tile = Tile(box, box)
        path = Path(self.folder) / tile.name
        if not path.is_file():
            return None
        try:
            with open_records(str(path)) as reader:
                facts = reader.metadata.get("mosaic")
                if not isinstance(facts, dict) or reader.check():
                    return None
                if facts.get("job") != self.job or facts.get("origin") != list(tile.origin):
                    return None
                return facts.get("input")
        except IIDError:
            return None


def tile_tasks(
    image: Image, job: Job, writer: Writer, part: tuple[int, int] = (1, 1)
) -> list[tuple[Any, tuple[int, int]]]:
    """Return delayed tasks that write the tiles of part I of N, and how many tiles and pixels each writes.

    A task returns how many tiles it wrote, and how many it kept.
    """
    number, of = part
    grid = job.grid
    assert grid is not None  # images are always cut by a grid
    whole = dask.delayed(writer, name=f"iid-writer-{uuid.uuid4().hex}", traverse=False)
    if isinstance(image, DaskImage):
        put = dask.delayed(Writer.put, pure=False)
        mine = [(i, tile.box) for i, tile in enumerate(grid) if i % of == number - 1]
        blocks = _blocks(image.array, grid)
        return [(put(whole, box, blocks(i, box)), (1, box.height * box.width)) for i, box in mine]
    write = dask.delayed(Writer.write, pure=False)
    boxes = [tile.box for tile in grid]
    size = batch_size(grid.tile[0] * grid.tile[1], len(boxes))
    batches = [boxes[start : start + size] for start in range(0, len(boxes), size)]
    tasks = []
    for batch in batches[number - 1 :: of]:
        # Delayed, so that dask does not look into it for other tasks.
        source = dask.delayed(image.part(_around(batch)), name=f"iid-image-{uuid.uuid4().hex}", traverse=False)
        tasks.append((write(whole, source, batch), (len(batch), sum(box.height * box.width for box in batch))))
    return tasks


def _around(boxes: Sequence[BBox]) -> BBox:
    sides = np.array([tuple(box) for box in boxes])
    return BBox(*sides[:, :2].min(axis=0), *sides[:, 2:].max(axis=0))


def _blocks(array: Any, grid: Grid) -> Any:
    """Return what makes a delayed block of a tile's number and box."""
    if not grid.halo:
        delayed = array.rechunk(grid.tile).to_delayed().ravel()
        return lambda i, box: delayed[i]
    return lambda i, box: array[box.slices].rechunk(-1).to_delayed().ravel()[0]
