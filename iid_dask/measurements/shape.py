"""What masks are like, from their bits alone, by the definitions of scikit-image's ``regionprops``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from iid_dask import kernels
from iid_dask.bbox import BBox, union
from iid_dask.cutting import spread
from iid_dask.errors import IIDLimitError
from iid_dask.format.reader import RecordReader
from iid_dask.kernels import shape as facts_of
from iid_dask.measurements.intensity import by_touch
from iid_dask.measurements.job import Job
from iid_dask.pieces import BATCH, Found, batches, read_pieces
from iid_dask.queries import WHOLE
from iid_dask.views import View, Window

HALO = 2
"""Rows on either side of a band that the perimeter of its pixels depends on."""


def shape_facts(job: Job, start: int, stop: int) -> np.ndarray:
    """Count and sum what shape properties are made of.

    Holds at most about `BATCH` bytes of mask bits and as many of rows made of them at once, however large the masks
    are: those that are larger are looked at in bands of rows.

    Parameters
    ----------
    job
    start, stop : int
        Which of the job's keys.

    Returns
    -------
    int64 array, shape (stop - start, FACTS)
        See `iid_dask.kernels.shape`; rows and columns are counted from the corner of the entry's box.
    """
    keys = job.all_keys[start:stop]
    reader = job.reader
    columns = reader.columns  # of all entries: pieces are found by the places of regions among them
    around = columns.boxes[keys].astype(np.int64)
    _check_sums(job, keys, around)
    facts = np.zeros((len(keys), kernels.FACTS), np.int64)
    first, last = (columns.first_region[keys.astype(np.int64) + more].astype(np.int64) for more in (0, 1))
    who = np.repeat(np.arange(len(keys)), last - first)
    regions = spread(first, last - first)
    units = _units(columns.region_boxes[regions].astype(np.int64), around, who)
    scan = _Scan(reader, "perimeter" in job.properties, "holes" in job.properties)
    for some in batches(np.cumsum(units.nbytes) - units.nbytes, units.nbytes, 0):
        scan.add(units, some, regions, keys, facts)
    return facts


def _check_sums(job: Job, keys: np.ndarray, boxes: np.ndarray) -> None:
    """Refuse boxes, larger than any that a file can hold, in which sums of positions may not fit 64 bits."""
    power = 2 if "eccentricity" in job.properties else 1
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(float)
    beyond = np.flatnonzero(sides.prod(axis=1) * sides.max(axis=1, initial=0) ** power / (power + 1) >= 2.0**63)
    for i in beyond[:1].tolist():
        raise IIDLimitError(
            f"{job.reader.name}: entry {keys[i]}: sums over its box {tuple(boxes[i].tolist())} may not fit 64 bits; "
            "leave it out (keys=)" + (', or measure without "eccentricity"' if power == 2 else "")
        )


@dataclass(frozen=True)
class _Units:
    """Parts of masks that touch no other part of theirs: whatever is counted of them adds up.

    Attributes
    ----------
    members : int64 array, shape (regions,)
        Regions by unit; unit u has ``members[starts[u]:starts[u + 1]]``.
    starts : int64 array, shape (n + 1,)
    boxes : int64 array, shape (n, 4)
        Around each unit.
    who : int64 array, shape (n,)
        Entry of each.
    corners : int64 array, shape (n, 2)
        Of the entry's box.
    """

    members: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    who: np.ndarray
    corners: np.ndarray

    @property
    def strides(self) -> np.ndarray:
        """Words a row."""
        return (self.boxes[:, 3] - self.boxes[:, 1] + 63) // 64

    @property
    def nbytes(self) -> np.ndarray:
        """Of all rows of each unit."""
        return (self.boxes[:, 2] - self.boxes[:, 0]) * self.strides * 8


def _units(boxes: np.ndarray, around: np.ndarray, who: np.ndarray) -> _Units:
    """Divide regions, given by box and entry, into units; ``around`` are the boxes of entries. Pure."""
    together = by_touch(who, boxes, 1)
    members = np.argsort(together, kind="stable")
    together = together[members]
    begins = np.flatnonzero(np.append(True, together[1:] != together[:-1])) if len(members) else np.zeros(0, np.int64)
    hulls = np.zeros((len(begins), 4), np.int64)
    for side in range(4):
        reach = np.minimum if side < 2 else np.maximum
        if len(begins):
            hulls[:, side] = reach.reduceat(boxes[members, side], begins)
    owners = who[members[begins]]
    return _Units(members, np.append(begins, len(members)), hulls, owners, around[owners, :2])


class _Scan:
    """Looks at units, and remembers the runs of the last row where one goes on."""

    def __init__(self, reader: RecordReader, perimeter: bool, holes: bool) -> None:
        self.reader, self.perimeter, self.holes = reader, perimeter, holes
        self.view = View(reader, WHOLE.shape)
        self.open_runs, self.n_open = np.empty((3, 0), np.int64), 0

    def add(self, units: _Units, some: slice, regions: np.ndarray, keys: np.ndarray, facts: np.ndarray) -> None:
        """Add the facts of some units, which fit memory together, or of one, which need not."""
        part = slice(units.starts[some.start], units.starts[some.stop])
        members = units.members[part]
        of_unit = np.repeat(np.arange(some.stop - some.start), np.diff(units.starts[some.start : some.stop + 1]))
        boxes, strides = units.boxes[some], units.strides[some]
        most = int(strides.max()) * 32 + 1
        if self.open_runs.shape[1] < most:
            self.open_runs = np.empty((3, most), np.int64)
        for top, bottom, first, last in _bands(boxes, strides):
            rows = bottom - top
            starts = np.cumsum(rows * strides) - rows * strides
            canvas = np.zeros(int((rows * strides).sum()), np.uint64)
            window = union(np.stack([top, boxes[:, 1], bottom, boxes[:, 3]], axis=1))
            where = canvas, starts, strides, top, boxes[:, 1]
            self._paint(where, window, regions[members], keys[units.who[some]][of_unit], of_unit)
            offsets = np.stack([top, boxes[:, 1]], axis=1) - units.corners[some]
            core = np.stack([first, last], axis=1)
            self.n_open = kernels.shape_facts(
                canvas,
                starts,
                strides,
                rows,
                core,
                offsets,
                units.who[some],
                self.perimeter,
                self.holes,
                self.open_runs,
                self.n_open,
                facts,
            )

    def _paint(
        self, where: tuple[np.ndarray, ...], window: BBox, regions: np.ndarray, keys: np.ndarray, units: np.ndarray
    ) -> None:
        found = Found.of(self.reader, regions, keys)
        for hits, pieces in read_pieces(self.view, Window(window), found):
            kernels.paint_words(*where, units[hits], *pieces)


def _bands(boxes: np.ndarray, strides: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Rows of units to look at together: image rows, half-open, and which of them count, from the first.

    Units whose rows fit memory are taken whole; one that does not in bands with rows around to look at.
    """
    tops, bottoms = boxes[:, 0], boxes[:, 2]
    if int(((bottoms - tops) * strides).sum()) * 8 <= BATCH:
        yield tops, bottoms, np.zeros_like(tops), bottoms - tops
        return
    step = max(1, BATCH // 8 // int(strides[0]))
    for row in range(int(tops[0]), int(bottoms[0]), step):
        top, bottom = max(row - HALO, int(tops[0])), min(row + step + HALO, int(bottoms[0]))
        last = min(row + step, int(bottoms[0]))
        yield tuple(np.array([value]) for value in (top, bottom, row - top, last - top))


# --- properties -------------------------------------------------------------------------------------------------


def shape_columns(job: Job, keys: np.ndarray, facts: np.ndarray) -> dict[str, np.ndarray]:
    """Make columns of facts; see `SHAPE` for which.

    Parameters
    ----------
    job
    keys : uint32 array, shape (n,)
    facts : int64 array, shape (n, FACTS)

    Returns
    -------
    dict
        Boxes of entries without pixels have any value.
    """
    columns, rows = job.reader.segment_columns(keys)
    corners = columns.boxes[rows][:, :2].astype(np.int64)
    area = facts[:, facts_of.AREA]
    full = area > 0
    out = {"area": area, "holes": facts[:, facts_of.HOLES], "perimeter": _perimeter(facts)}
    with np.errstate(invalid="ignore"):
        for name, axis, total in (("row", 0, facts_of.SUM_R), ("col", 1, facts_of.SUM_C)):
            # The corner is added before the division: one rounding.
            out[f"centroid_{name}"] = (facts[:, total] + corners[:, axis] * area) / area
    for name, fact, axis in (
        ("min_row", facts_of.MIN_ROW, 0),
        ("min_col", facts_of.MIN_COL, 1),
        ("max_row", facts_of.MAX_ROW, 0),
        ("max_col", facts_of.MAX_COL, 1),
    ):
        out[name] = (facts[:, fact] + corners[:, axis]).astype(np.int32)
    if "eccentricity" in job.properties:
        out["eccentricity"] = np.full(len(keys), np.nan)
        out["eccentricity"][full] = _eccentricity(facts[full])
    return out


def _perimeter(facts: np.ndarray) -> np.ndarray:
    straight, diagonal, mixed = (facts[:, k] for k in (facts_of.STRAIGHT, facts_of.DIAGONAL, facts_of.MIXED))
    return straight + math.sqrt(2) * diagonal + (1 + math.sqrt(2)) / 2 * mixed


def _eccentricity(facts: np.ndarray) -> np.ndarray:
    """Of the ellipse with the same second moments: sqrt(1 - l2 / l1), l1 ≥ l2 the eigenvalues of their matrix.

    The moments are exact, as Python integers; and l1 - l2 = sqrt((a - b)² + 4c²) loses no digits where a mask is
    nearly round, as 1 - l2 / l1 would.
    """
    n, r, c, rr, rc, cc = (
        facts[:, k].astype(object)
        for k in (
            facts_of.AREA,
            facts_of.SUM_R,
            facts_of.SUM_C,
            facts_of.SUM_RR,
            facts_of.SUM_RC,
            facts_of.SUM_CC,
        )
    )
    a, b, both = n * rr - r * r, n * cc - c * c, n * rc - r * c
    apart = np.sqrt(((a - b) ** 2 + 4 * both**2).astype(float))
    twice = apart + (a + b).astype(float)
    return np.sqrt(np.divide(2 * apart, twice, out=np.zeros(len(facts)), where=twice > 0))
