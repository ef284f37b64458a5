"""Memory, tasks and files of the last steps of a mosaic, from what is there; pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from iid_dask.mosaic.placing import RANGE
from iid_dask.mosaic.region_parts import BYTES
from iid_dask.mosaic.survey import TASK_NBYTES, TASK_TILES
from iid_dask.running.plan import TILES_BYTES, Plan

ENTRY = 640
"""Bytes of memory of an entry of a tile, in the process that finishes or consolidates."""

REGION = 450
"""Bytes of memory of a region there that is one of several of a segment, while what borders cut is joined."""

READ, COPIED = 300, 120
"""Bytes of memory of an entry in the task that reads its tile, and of a segment in the one that copies it."""

ENTRY_NBYTES, USUAL_NBYTES = 85, 300
"""Bytes in a tile's file of an entry of one pixel, and usually or more."""

REGION_NBYTES = 36
"""Bytes in a tile's file of one more region of an entry."""

TABLES = 8
"""Files that a mosaic is made of beside its tiles, or more; pieces that are cut to a core take one for a tile."""

SEGMENT_NBYTES = 29
"""Bytes in a segments section of an entry of one pixel."""


def plan_finish(name: str, sizes: Mapping[str, int]) -> Plan:
    """Return what the last step takes.

    Parameters
    ----------
    name
        Of the mosaic.
    sizes
        Bytes of each tile's file.
    """
    total, largest = sum(sizes.values()), max(sizes.values(), default=0)
    tasks = max(-(-total // TASK_NBYTES), -(-len(sizes) // TASK_TILES))
    held = min(total, max(largest, TASK_NBYTES))
    return Plan(
        f"finish {name}",
        len(sizes),
        tasks,
        total,
        None,
        TABLES + len(sizes),
        TILES_BYTES,
        finish_thread(held, held // ENTRY_NBYTES),
        ENTRY * (total // ENTRY_NBYTES),
        usual_thread_bytes=finish_thread(held, held // USUAL_NBYTES),
        usual_caller_bytes=ENTRY * (total // USUAL_NBYTES),
    )


def finish_thread(nbytes: int, entries: int) -> int:
    """Bytes of memory of a thread that reads files of so many bytes: as they are, and their entries as columns."""
    return 2 * nbytes + READ * entries + 2**22


def plan_consolidation(name: str, pieces: int, nbytes: np.ndarray) -> Plan:
    """Return what writing a mosaic as one file takes.

    Parameters
    ----------
    name
        Of the file.
    pieces
        Entries of tiles that are shown.
    nbytes : int64 array
        Of each tile's file.
    """
    total = int(nbytes.sum())
    tasks = max(1, -(-total // RANGE))
    return Plan(
        f"a mosaic to {name}",
        tasks,
        tasks,
        total,
        None,
        1,
        TILES_BYTES,
        range_thread(total),
        ENTRY * pieces + REGION * (max(0, total - pieces * ENTRY_NBYTES) // REGION_NBYTES),
        usual_thread_bytes=range_thread(total, USUAL_NBYTES),
        usual_caller_bytes=ENTRY * pieces + REGION * (max(0, total - pieces * ENTRY_NBYTES) // USUAL_NBYTES),
    )


def range_thread(total: int, segment: int = SEGMENT_NBYTES) -> int:
    """Bytes of memory of a thread that puts ranges together, of so many bytes in all, and so many a segment or more."""
    most = min(total, RANGE)
    return 2 * most + min(total, 2 * BYTES) + COPIED * (most // segment) + 2**22
