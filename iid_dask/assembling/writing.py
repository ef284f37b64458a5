"""Tiles of an image into a mosaic's folder, as tasks of whatever dask scheduler is active."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dask
import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDError
from iid_dask.format.folder import Folder
from iid_dask.format.reader import open_records
from iid_dask.images import DaskImage, Image
from iid_dask.mosaic.blocks import block_crc
from iid_dask.mosaic.folder import Job
from iid_dask.mosaic.grid import Grid, Tile
from iid_dask.mosaic.tile import write_tile
from iid_dask.running import Work, batches_of, named, run, run_graph, threads_in_scope

Resume = Literal[True, False, "trust"]

TASK_PIXELS = 2**27
"""Pixels of the tiles that one task writes: about a second's work on a dense image."""

TITLE = "writing tiles"
"""Said beside the bar."""


@dataclass(frozen=True)
class Writer:
    """What a task needs to know; the same for all tiles of a job.

    Attributes
    ----------
    folder : Folder
    job : str
        Its id.
    resume : bool or "trust"
        Keep tiles that are there, if they were made from these pixels; "trust": without reading these again.
    """

    folder: Folder
    job: str
    resume: Resume

    def write(self, image: Image, tiles: Sequence[BBox]) -> tuple[int, int]:
        """Write tiles of an image that this process can read; return how many were written, and how many kept."""
        written = 0
        for box in tiles:
            with named(f"{Tile(box, box).name} of {self.folder}"):
                stored = self._stored(box)
                if stored is None or self.resume != "trust":
                    written += self._put(box, image.read(box), stored)
        return written, len(tiles) - written

    def put(self, box: BBox, block: np.ndarray) -> tuple[int, int]:
        """Write one tile from its pixels."""
        written = self._put(box, block, self._stored(box))
        return written, 1 - written

    def _put(self, box: BBox, block: np.ndarray, stored: int | None) -> int:
        if stored is not None and stored == block_crc(block):
            return 0
        write_tile(self.folder, block, (box.min_row, box.min_col))
        return 1

    def _stored(self, box: BBox) -> int | None:
        """Return the crc32 of the pixels that a tile of this job was made from; None where it is not there, whole.

        None also where tiles are to be made again whatever is there.
        """
        if not self.resume:
            return None
        tile = Tile(box, box)
        try:
            with open_records(self.folder.source(tile.name)) as reader:
                facts = reader.metadata.get("mosaic")
                if not isinstance(facts, dict) or reader.check():
                    return None
                if facts.get("job") != self.job or facts.get("origin") != list(tile.origin):
                    return None
                return facts.get("input")
        except (IIDError, FileNotFoundError):
            return None


def write_tiles(
    image: Image, job: Job, writer: Writer, part: tuple[int, int] = (1, 1), *, progress: bool
) -> list[tuple[int, int]]:
    """Write the tiles of part I of N, and return how many batches of them were written, and how many kept.

    Parameters
    ----------
    image, job, writer
    part
    progress
        Show a bar.
    """
    number, of = part
    grid = job.grid
    assert grid is not None  # images are always cut by a grid
    boxes = [tile.box for tile in grid]
    # By the number of tiles alone: each part may run on a machine of another size.
    boxes = boxes[len(boxes) * (number - 1) // of : len(boxes) * number // of]

    def about(item: int) -> str:
        return f"{Tile(boxes[item], boxes[item]).name} of {writer.folder}"

    if isinstance(image, DaskImage):
        whole = dask.delayed(writer, name=f"iid-writer-{uuid.uuid4().hex}", traverse=False)
        put = dask.delayed(Writer.put, pure=False)
        tasks = [put(whole, box, block) for box, block in zip(boxes, _blocks(image.array, grid, boxes), strict=True)]
        return run_graph(tasks, TITLE, progress=progress, pixels=math.prod(grid.tile), about=about)

    def arguments(start: int, stop: int) -> tuple[Any, ...]:
        batch = boxes[start:stop]
        return image.part(_around(batch)), batch

    work = Work(
        Writer.write,
        writer,
        tile_batches(grid, len(boxes)),
        arguments,
        about,
        pixels=lambda start, stop: sum(box.height * box.width for box in boxes[start:stop]),
    )
    return run(work, TITLE, progress=progress)


def tile_batches(grid: Grid, count: int) -> list[tuple[int, int]]:
    """Cut the tiles of a grid into what one task writes."""
    return batches_of(count, max(1, TASK_PIXELS // math.prod(grid.tile)), threads_in_scope())


def _around(boxes: Sequence[BBox]) -> BBox:
    sides = np.array([tuple(box) for box in boxes])
    return BBox(*sides[:, :2].min(axis=0), *sides[:, 2:].max(axis=0))


def _blocks(array: Any, grid: Grid, boxes: Sequence[BBox]) -> list[Any]:
    """Return the delayed pixels of tiles."""
    if grid.halo:
        return [array[box.slices].rechunk(-1).to_delayed().ravel()[0] for box in boxes]
    delayed = array.rechunk(grid.tile).to_delayed()
    return [delayed[box.min_row // grid.tile[0], box.min_col // grid.tile[1]] for box in boxes]
