"""Sums of one tile of an image under every mask: which pixels are whose, read from bits as runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox
from iid_dask.measurements.job import Job
from iid_dask.measurements.sums import Sums, measured_dtype, table_dtype
from iid_dask.pieces import Found, read_pieces, say_once_if_cut, search
from iid_dask.views import View, Window

RUNS = 2**17
"""Runs of pixels held at once, at least."""

EFFORT = 64
"""Comparisons of boxes, for each region, by which entries whose regions may share pixels are told."""


def tile_sums(job: Job, block: Any, origin: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Sum the pixels of one block of an image under every mask.

    Parameters
    ----------
    job
    block : array, shape (rows, columns) or (channels, rows, columns)
    origin : (channel, row, column)
        Of the block's first pixel.
    shape
        That the block must have.

    Returns
    -------
    structured array
        See `table_dtype`; by ascending key, then channel.
    """
    planes = _as_planes(job, block, origin, shape)
    channel, row, col = origin
    box = BBox(row, col, row + planes.shape[1], col + planes.shape[2])
    found, owners = _regions_in(job, box)
    entries, who = np.unique(found.keys, return_inverse=True)
    table = np.zeros((len(entries), len(planes)), table_dtype(job.dtype))
    table["key"] = entries[:, None]
    table["channel"] = np.arange(channel, channel + len(planes))
    columns = [Sums(table.dtype, len(entries)) for _ in planes]
    for runs in _runs(job, box, found, who, owners):
        for plane, sums in zip(planes, columns, strict=True):
            sums.add(plane, job.dtype, runs)
    for i, sums in enumerate(columns):
        sums.write(table[:, i])
    return table[table["count"] > 0]


def _as_planes(job: Job, block: Any, origin: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Return a block as the kernels read it, shape (channels, rows, columns); it must be what its array declared."""
    if isinstance(block, np.ma.MaskedArray):
        raise TypeError("measure: the image is a masked array, of which some pixels have no value: fill it first")
    found = np.asarray(block)
    measured = measured_dtype(found.dtype)
    if found.shape != tuple(shape) or measured != job.dtype:
        raise ValueError(
            f"measure: the image's block at (channel, row, column) {tuple(origin)} is {found.dtype} of shape "
            f"{found.shape}, expected {job.dtype} of shape {tuple(shape)}, as the array declares"
        )
    planes = np.ascontiguousarray(found, measured).reshape((-1, *found.shape[-2:]))
    return planes if measured.kind == "f" else planes.view(f"u{measured.itemsize}")


def _regions_in(job: Job, box: BBox) -> tuple[Found, np.ndarray]:
    """Regions in a window, by ascending key, and who their owners are, 0 where they surely share no pixel."""
    say_once_if_cut(View(job.reader, job.shape))
    found = search(job.reader, box)
    if job.keys is not None:
        found = found.chosen(np.isin(found.keys, job.keys))
    keys = found.keys
    together = by_touch(keys, found.held.columns.region_boxes[found.regions].astype(np.int64), 0)
    _, inverse, number = np.unique(together, return_inverse=True, return_counts=True)
    owners = np.where(number[inverse] > 1, keys + np.uint32(1), np.uint32(0))
    return found, owners


def by_touch(keys: np.ndarray, boxes: np.ndarray, margin: int) -> np.ndarray:
    """Put the regions of an entry whose boxes meet together.

    Parameters
    ----------
    keys : integer array, shape (m,)
        Ascending.
    boxes : int64 array, shape (m, 4)
    margin : int
        0 where they must share a pixel, 1 where it is enough that they touch.

    Returns
    -------
    int64 array, shape (m,)
        The same number for all that meet, ascending with the keys.
    """
    order = np.lexsort((boxes[:, 0], keys)) if len(keys) else np.zeros(0, np.int64)
    starts = np.append(np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else [], len(keys))
    found = np.empty(len(keys), np.int64)
    kernels.gather_touching(starts.astype(np.int64), boxes[order], margin, EFFORT, found)
    together = np.empty_like(found)
    together[order] = found
    return together


def _runs(job: Job, box: BBox, found: Found, who: np.ndarray, owners: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of pixels of the regions in a window, some at a time; see `kernels.find_runs`."""
    stamp = np.zeros(box.shape if np.any(owners) else (0, 0), np.uint32)
    out = np.empty((4, RUNS + box.width), np.int64)
    for hits, pieces in read_pieces(View(job.reader, job.shape), Window(box), found):
        at, row = 0, 0
        while at < len(hits):
            corner = box.min_row, box.min_col, box.width
            at, row, count = kernels.find_runs(at, row, *corner, *pieces, who[hits], stamp, owners[hits], out)
            yield out[:, :count]
