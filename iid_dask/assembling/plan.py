"""What a job will take, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dask.utils import format_bytes

from iid_dask.mosaic.folder import Job

BASE = 230 * 2**20
"""Bytes of a worker process with numba, distributed and this package loaded (measured: 200 to 220 MiB)."""

RUN = 12
"""Bytes that a horizontal run takes while a tile is labelled."""

RUN_PIXELS = 4
"""Pixels of a run, on average, in a crowded image; noise has shorter ones, and takes more."""

FILE = 24 * 2**20
"""Bytes of a tile's file that are held while it is written, and of its tables."""


@dataclass(frozen=True)
class Plan:
    """Tasks and memory of an assembly; see `plan_job`.

    Attributes
    ----------
    shape : (rows, columns)
    tiles, tasks : int
        Tiles, and dask tasks that write them.
    bytes_in : int
        Of the label image, uncompressed.
    peak_bytes : int
        Of a worker process with one thread, if runs of equal labels are four pixels long on average.
    thread_bytes : int
        Of each further thread.
    """

    shape: tuple[int, int]
    tiles: int
    tasks: int
    bytes_in: int
    peak_bytes: int
    thread_bytes: int

    def __str__(self) -> str:
        reads, peak, more = (format_bytes(n) for n in (self.bytes_in, self.peak_bytes, self.thread_bytes))
        tiles = f"{self.tiles:,} tile{'s' if self.tiles != 1 else ''}"
        tasks = f"{self.tasks:,} task{'s' if self.tasks != 1 else ''}"
        return (
            f"{self.shape[0]} x {self.shape[1]} pixels, {tiles} in {tasks}; reads {reads} of labels; a worker needs "
            f"about {peak}, and {more} more for each further thread"
        )


def plan_job(job: Job, dtype: np.dtype, tiles: int, tasks: int) -> Plan:
    """Return what a job takes.

    A task holds a block as it was read, once more if it had to be copied, its runs, and the packed bits.
    """
    height, width = job.shape if job.tile is None else job.tile
    pixels = min(height + 2 * job.halo, job.shape[0]) * min(width + 2 * job.halo, job.shape[1])
    thread = pixels * (2 * dtype.itemsize + RUN // RUN_PIXELS) + pixels // 4 + FILE
    return Plan(job.shape, tiles, tasks, job.shape[0] * job.shape[1] * dtype.itemsize, BASE + thread, thread)
