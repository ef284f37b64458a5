"""Memory, tasks and files of an assembly, from what was decided; pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from iid_dask.format.encode import BATCH
from iid_dask.mosaic.blocks import MAX_NBYTES
from iid_dask.mosaic.folder import Job
from iid_dask.mosaic.plan import ENTRY, TABLES, USUAL_NBYTES, finish_thread, range_thread
from iid_dask.running.plan import MIB, TILES_BYTES, Plan

if TYPE_CHECKING:
    from iid_dask.assembling.files import Chosen

RUN, REGION = 12, 145
"""Bytes of memory of a run, and of a region of one pixel, while a tile's regions are found."""

USUAL = 6
"""Bytes of memory of a pixel beside its label: runs of 8 pixels, and regions of 80, as crowded images of cells have."""

OBJECT = 512
"""Pixels of an image for each of its objects, usually or more."""

COPIED = 560
"""Bytes of memory of an entry that is copied from a file; measured: 400 in a process of its own, 490 on a worker."""

TASK = 4096
"""Bytes of a task in the process that calls."""

MAX_ENTRIES = 2**32 // 62
"""Of a file: so many of one pixel pass 4 GiB."""

FILE = 2 * BATCH + 8 * MIB
"""Bytes of memory while a tile's file is written."""


def plan_job(
    job: Job,
    dtype: np.dtype,
    tiles: int,
    tasks: int,
    *,
    blocks: tuple[int, int] | None = None,
    name: str = "",
    merged: bool = False,
) -> Plan:
    """Return what the assembly of a label image takes.

    Parameters
    ----------
    job
    dtype
        Of labels.
    tiles, tasks
    blocks
        Rows and columns of what is stored as one.
    name
        Of what is made.
    merged
        Whether the tiles become one file.
    """
    pixels, tile = math.prod(job.shape), _tile_of(job)
    stored = 0 if blocks is None else math.prod(min(b, s) for b, s in zip(blocks, job.shape, strict=True))
    reading = stored * dtype.itemsize
    bound, usual = (reading + nbytes for nbytes in _thread_bytes(job, tile, dtype.itemsize))
    return Plan(
        name or "labels",
        tiles,
        tasks,
        pixels * dtype.itemsize,
        None,
        tiles * (2 if job.halo else 1) + TABLES + merged,
        TILES_BYTES,
        bound,
        ENTRY * min(pixels, MAX_ENTRIES if merged else pixels) + tasks * TASK,
        usual_thread_bytes=usual,
        usual_caller_bytes=ENTRY * (pixels // OBJECT) + tasks * TASK,
        shape=job.shape,
        ways_out=tuple((change, reading + nbytes) for change, nbytes in _ways_out(job, dtype)),
        advice="an image stored in smaller blocks" if stored > math.prod(tile) else "",
    )


def _tile_of(job: Job) -> tuple[int, int]:
    """Rows and columns of the largest tile, its halo included."""
    sides = job.shape if job.tile is None else job.tile
    rows, cols = (min(side + 2 * job.halo, most) for side, most in zip(sides, job.shape, strict=True))
    return rows, cols


def _thread_bytes(job: Job, tile: tuple[int, int], itemsize: int) -> tuple[int, int]:
    """Bytes of memory of a thread at its largest step: at most, and usually.

    A region has at least as many pixels as the longer side of its box, so the bits of all boxes are at most the tile's
    pixels times its shorter side; a region of one pixel takes 145 bytes. For the file each takes about as much again.
    """
    pixels, whole = math.prod(tile), math.prod(job.shape)
    held = min(MAX_NBYTES, pixels * (RUN + max(REGION, min(tile) // 8 + 2)))
    block = 2 * pixels * itemsize + FILE  # as it was read, and once more where it is not contiguous
    bound = (
        block + held * 17 // 8,
        # A file of entries of one pixel, which is smaller than what they take in memory, or of large boxes.
        finish_thread(held * 5 // 8, pixels),
        finish_thread(held, 0),
        range_thread(whole * REGION),
    )
    usual = (
        block + min(pixels * USUAL, held),
        finish_thread(min(held, pixels * itemsize // 4), pixels // OBJECT),
        range_thread(whole // 8, USUAL_NBYTES),
    )
    return max(bound), max(usual)


def _ways_out(job: Job, dtype: np.dtype) -> Iterator[tuple[str, int]]:
    """Smaller tiles; with local labels a tile means something, so there are none."""
    if job.stitch != "label" and not job.connected:
        return
    largest = max(_tile_of(job))
    for side in (4096, 2048, 1024, 512, 256):
        if side < largest:
            smaller = side + 2 * job.halo
            yield f"tile={side}", _thread_bytes(job, (smaller, smaller), dtype.itemsize)[1]


def plan_copy(places: Sequence[Sequence[Chosen]], tiles: int, *, name: str = "") -> Plan:
    """Return what an assembly of entries of existing files takes.

    Parameters
    ----------
    places
        What is copied to each place, by one task.
    tiles
        That are written.
    name
    """
    every = [chosen for place in places for chosen in place]
    entries = sum(len(one.keys) for one in every)
    lengths = [one.reader.lut["segment_length"][one.keys].astype(np.int64) for one in every]
    largest = max((int(some.max(initial=0)) for some in lengths), default=0)
    decoded = max(map(_decoded, every), default=0)
    held = max((sum(map(_held, place)) for place in places), default=0)
    return Plan(
        name or "entries of files",
        tiles,
        tiles,
        sum(int(some.sum()) for some in lengths),
        None,
        tiles + TABLES,
        TILES_BYTES,
        4 * max(BATCH, largest) + 2 * decoded + held + FILE,
        (ENTRY + COPIED) * entries,
    )


def _held(chosen: Chosen) -> int:
    """Bytes of what a task holds of a file until its tile is whole: columns, and masks that are cut anew."""
    lengths = chosen.reader.lut["segment_length"][chosen.keys].astype(np.int64)
    return COPIED * len(chosen.keys) + int(lengths[~chosen.inside].sum())


def _decoded(chosen: Chosen) -> int:
    """Pixels of the largest entry that the window cuts, or that is put together."""
    boxes = chosen.reader.columns.boxes[chosen.keys[~chosen.inside]].astype(np.int64)
    low, high = np.array(tuple(chosen.window)).reshape(2, 2)
    sides = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
    return min(int(sides.prod(axis=1).max(initial=0)), chosen.reader.limits.max_decoded_bytes)
