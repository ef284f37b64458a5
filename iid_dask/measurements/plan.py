"""Memory and tasks of a measurement, from what was decided; pure."""

from __future__ import annotations

import math
from typing import Any

from iid_dask.costs import PIECE, columns_bytes, meeting, region_boxes, stored_bytes
from iid_dask.measurements.job import Job
from iid_dask.measurements.sums import table_dtype
from iid_dask.pieces import BATCH
from iid_dask.running.plan import MIB, TABLES_BYTES, Plan

REGION = 120
"""Bytes of memory of a region of a tile, while it is told which of an entry may share pixels."""

ROW = 320
"""Bytes of memory of a row of the table, while it is made."""

EXACT = 900
"""The same, more where sums or moments are made of Python's integers."""

MANY = 2**22
"""Regions of the entries whose masks one task looks at, about."""

RUNS = 8 * MIB
"""Bytes of memory of runs of pixels."""

TASK = 4096
"""Bytes of a task in the process that calls."""


def plan_measurement(job: Job, blocks: Any, partitions: int, rows: int, tasks: int) -> Plan:
    """Return what a measurement takes.

    Parameters
    ----------
    job
    blocks : dask array, optional
        Of the image.
    partitions
        Of the table.
    rows
        Of a partition, at most.
    tasks
    """
    reader = job.reader
    tiles, image, results, reading = 0, 0, 0, 4 * BATCH + RUNS
    if job.of_image and blocks is not None:
        tiles, image = math.prod(blocks.numblocks), int(blocks.nbytes)
        crowd, results = _crowds(job, blocks)
        block = math.prod(blocks.chunksize) * blocks.dtype.itemsize
        # As it is stored, as it is read, and as the kernels want it; four bytes a pixel tell who came last.
        reading += 3 * block + 4 * math.prod(blocks.chunksize[-2:]) + crowd * (PIECE + REGION)
    if job.of_masks:
        reading += REGION * min(len(region_boxes(reader)), MANY)
    table = rows * (ROW + EXACT * _is_exact(job)) + 2 * results // max(1, partitions)
    return Plan(
        f"measure {', '.join(job.properties)} of {reader.name}",
        tiles,
        tasks,
        image + stored_bytes(reader),
        len(job.all_keys) * max(1, job.channels or 1) * 8 * (1 + len(job.properties)),
        0,
        TABLES_BYTES + columns_bytes(reader) + results,
        max(reading, table),
        tasks * TASK,
    )


def _crowds(job: Job, blocks: Any) -> tuple[int, int]:
    """Regions of the most crowded tile, and bytes of the sums of all tiles."""
    rows, cols = blocks.chunksize[-2:]
    found = meeting(region_boxes(job.reader), job.shape, (int(rows), int(cols)))
    channels = blocks.shape[0] if blocks.ndim == 3 else 1
    return int(found.max(initial=0)), int(found.sum()) * channels * table_dtype(job.dtype).itemsize


def _is_exact(job: Job) -> bool:
    return "eccentricity" in job.properties or (job.of_image and job.dtype.kind != "f" and job.dtype.itemsize > 2)
