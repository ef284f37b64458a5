"""Where every byte of a consolidated file comes from and where it goes, before the first is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from iid_dask.cutting import ranges, spread
from iid_dask.errors import IIDLimitError
from iid_dask.format.columns import Names
from iid_dask.format.encode import Head, plan_head
from iid_dask.format.layout import MAX_SIDE, REGION_HEAD, SEGMENT_HEAD
from iid_dask.format.segments import SegmentColumns, region_lengths
from iid_dask.mosaic.joining import Joined, join
from iid_dask.mosaic.ranges import Bands, Copies, Range, Sources, TileFiles, region_heads, segment_heads
from iid_dask.mosaic.region_parts import Parts
from iid_dask.mosaic.stored import OpenTile, Shown, Stored, running, stored

RANGE = 32 * 2**20
"""Bytes that a task writes."""

WAY_OUT = "keep the mosaic, which opens like a file and has no such limit"


@dataclass(frozen=True, eq=False)
class Layout:
    """Every byte's place.

    Attributes
    ----------
    files : TileFiles
    head : Head
    columns : SegmentColumns
        Of the file, as a reader of it makes them.
    copies : Copies
        By ascending segment.
    parts : Parts
        Of the regions that are built: those that were cut, and those of segments larger than a range.
    regions : int64 array
        The region of the file that each part belongs to, ascending.
    """

    files: TileFiles
    head: Head
    columns: SegmentColumns
    copies: Copies
    parts: Parts
    regions: np.ndarray

    def ranges(self) -> Iterator[Range]:
        """Cut the section into ranges of at most `RANGE`; one thing may be larger by its heads."""
        bands = self._bands()
        atoms = self._atoms(bands)
        reach = running(atoms.nbytes)
        for first, last in ranges(atoms.nbytes, RANGE):
            yield self._range(atoms, bands, first, last, int(reach[first]), int(reach[last]))

    def _bands(self) -> _AllBands:
        """Cut every region that is built into bands of whole bytes."""
        regions = np.unique(self.regions)
        boxes = self.columns.region_boxes[regions].astype(np.int64)
        widths = boxes[:, 3] - boxes[:, 1]
        rows = np.maximum(RANGE * 8 // widths // 8 * 8, 8)
        counts = -(-(boxes[:, 2] - boxes[:, 0]) // rows)
        which = np.repeat(np.arange(len(regions)), counts)
        tops = boxes[which, 0] + spread(0, counts) * rows[which]
        stops = np.minimum(tops + rows[which], boxes[which, 2])
        begins = (tops - boxes[which, 0]) * widths[which]
        nbytes = ((stops - tops) * widths[which] + 7) >> 3
        places = self.columns.region_bits[regions[which]].astype(np.int64) + (begins >> 3)
        return _AllBands(regions[which], np.stack([tops, stops], axis=1), places, nbytes, begins == 0)

    def _atoms(self, bands: _AllBands) -> _Atoms:
        """What is never cut: segments that are copied, bands with the heads before them, empty segments."""
        first, owners = self.columns.first_region.astype(np.int64), self.columns.region_keys(bands.regions)
        leads = bands.leads & (bands.regions == first[owners])
        nbytes = bands.nbytes + bands.leads * REGION_HEAD.itemsize + leads * SEGMENT_HEAD.itemsize
        whole = np.ones(len(first) - 1, bool)
        whole[owners] = False
        rest = np.flatnonzero(whole)
        segments = np.concatenate([rest, owners.astype(np.int64)])
        lengths = self.head.lut["segment_length"][rest].astype(np.int64)
        heads = np.concatenate([first[rest] == first[rest + 1], leads])
        numbers = np.concatenate([np.full(len(rest), -1), np.arange(len(owners))])
        order = np.argsort(segments, kind="stable")
        return _Atoms(segments[order], numbers[order], np.concatenate([lengths, nbytes])[order], heads[order])

    def _range(self, atoms: _Atoms, bands: _AllBands, first: int, last: int, start: int, stop: int) -> Range:
        segments = atoms.segments[first:last]
        fresh = np.flatnonzero(np.diff(segments, prepend=-1))
        begins = start + running(atoms.nbytes[first:last])
        low, high = np.searchsorted(self.copies.segments, (segments[0], segments[-1] + 1)).tolist()
        numbers = atoms.bands[first:last]
        some = numbers[numbers >= 0]
        rows, regions = bands.rows[some], bands.regions[some]
        boxes = self.columns.region_boxes[regions]
        leads = bands.leads[some]
        keys = segments[atoms.heads[first:last]]
        size = region_lengths(boxes[leads])
        return Range(
            start,
            stop,
            int(segments[0]),
            np.append(begins[fresh], stop),
            self.copies.within(low, high),
            segment_heads(keys, self.columns.boxes[keys], self.columns.areas[keys]),
            self.head.lut["segment_offset"][keys].astype(np.int64),
            region_heads(boxes[leads], size),
            bands.places[some][leads] - REGION_HEAD.itemsize,
            Bands(boxes, rows, bands.places[some]),
            self._sources(regions, rows),
        )

    def _sources(self, regions: np.ndarray, rows: np.ndarray) -> Sources:
        """Return the parts that have rows in bands."""
        first, stop = (np.searchsorted(self.regions, regions, side=side) for side in ("left", "right"))
        which, owners = spread(first, stop - first), np.repeat(np.arange(len(regions)), stop - first)
        boxes = self.parts.boxes[which]
        meets = (boxes[:, 0] < rows[owners, 1]) & (rows[owners, 0] < boxes[:, 2])
        which, owners = which[meets], owners[meets]
        return Sources(
            owners,
            self.parts.tiles[which].astype(np.uint32),
            self.parts.boxes[which].astype(np.uint16),
            self.parts.bits[which].astype(np.uint32),
        )


class _AllBands(NamedTuple):
    """Bands of all regions that are built; ``leads`` are the first of their region."""

    regions: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    nbytes: np.ndarray
    leads: np.ndarray


class _Atoms(NamedTuple):
    """What is never cut, in the order of the file; ``bands`` are -1 for whole segments, ``heads`` begin a segment."""

    segments: np.ndarray
    bands: np.ndarray
    nbytes: np.ndarray
    heads: np.ndarray


def plan_consolidated(
    path: str,
    files: TileFiles,
    shown: Shown,
    names: Names,
    *,
    groups: Mapping[str, Sequence[int] | np.ndarray],
    metadata: Mapping[str, Any],
    loose: bool,
    open_tile: OpenTile,
) -> Layout:
    """Join what borders cut, and place every byte; see `iid_dask.mosaic.consolidate.write_consolidated`."""
    n = len(names)
    held, files = stored(open_tile, files, shown)
    _check_limits(path, held, n)
    full = np.flatnonzero(held.counts)
    alone = np.bincount(held.segments[full], minlength=n)[held.segments[full]] == 1
    copied, cut = full[alone], full[~alone]
    parts = held.parts(cut)
    joined = join(parts, files.read, loose=loose)
    first_region, region_boxes = _region_rows(held, copied, joined, n)
    before = running(region_lengths(region_boxes) + REGION_HEAD.itemsize)
    lengths = before[first_region[1:]] - before[first_region[:-1]] + SEGMENT_HEAD.itemsize
    head = plan_head(path, lengths, names, groups, metadata)
    columns = SegmentColumns(
        _segment_boxes(first_region, region_boxes),
        _areas(held, copied, cut, joined, n).astype(np.uint32),
        first_region.astype(np.uint32),
        region_boxes,
        _region_bits(head.lut, first_region, before).astype(np.uint32),
    )
    # A segment larger than a range is built of its regions, as those that were cut are.
    large = lengths[held.segments[copied]] > RANGE
    more = held.parts(copied[large])
    segments = held.segments[copied[~large]]
    copies = Copies(
        held.tiles[copied[~large]].astype(np.uint32),
        held.keys[copied[~large]].astype(np.uint32),
        segments.astype(np.uint32),
        head.lut["segment_offset"][segments],
    )
    ranks = first_region[joined.segments] + _ranks(joined.segments)
    regions = np.concatenate([ranks[joined.regions], first_region[more.segments] + _ranks(more.segments)])
    order = np.argsort(regions, kind="stable")
    return Layout(files, head, columns, copies, parts.followed_by(more).take(order), regions[order])


def _check_limits(path: str, held: Stored, n: int) -> None:
    wrong = held.segments[(held.segments < 0) | (held.segments >= n)]
    if len(wrong):
        raise ValueError(f"{path}: a piece of segment {wrong[0]}, expected 0 … {n - 1}")
    full = np.flatnonzero(held.counts)
    ends = np.maximum.reduceat(held.boxes[:, 2:], held.first_region[full]) if len(full) else np.zeros((0, 2), np.uint16)
    stops = ends + held.origins[full]
    over = np.flatnonzero((stops > MAX_SIDE).any(axis=1))
    if len(over):
        row, col = stops[over[0]].tolist()
        raise IIDLimitError(
            f"{path}: entry {held.segments[full[over[0]]]} reaches to row {row}, column {col}: a file holds at most "
            f"{MAX_SIDE} a side, the format's 16 bits; {WAY_OUT}"
        )


def _ranks(segments: np.ndarray) -> np.ndarray:
    """Count up from 0 within runs of equal numbers.

    Examples
    --------
    >>> _ranks(np.array([4, 4, 7])).tolist()
    [0, 1, 0]
    """
    starts = np.flatnonzero(np.diff(segments, prepend=-1))
    return np.arange(len(segments)) - np.repeat(starts, np.diff(np.append(starts, len(segments))))


def _region_rows(held: Stored, copied: np.ndarray, joined: Joined, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first region of each segment, and the boxes of all regions, in the order of the file."""
    counts = np.bincount(joined.segments, minlength=n)
    counts[held.segments[copied]] = held.counts[copied]
    first = running(counts)
    boxes = np.empty((first[-1], 4), np.uint16)
    owners = np.repeat(copied, held.counts[copied])
    targets = spread(first[held.segments[copied]], held.counts[copied])
    # The sums fit 16 bits, and there may be very many.
    boxes[targets] = held.boxes[held.regions_of(copied)] + np.tile(held.origins.astype(np.uint16), 2)[owners]
    boxes[first[joined.segments] + _ranks(joined.segments)] = joined.boxes
    return first, boxes


def _segment_boxes(first_region: np.ndarray, region_boxes: np.ndarray) -> np.ndarray:
    out = np.zeros((len(first_region) - 1, 4), np.uint16)
    full = np.flatnonzero(np.diff(first_region))
    if len(full):
        out[full, :2] = np.minimum.reduceat(region_boxes[:, :2], first_region[full])
        out[full, 2:] = np.maximum.reduceat(region_boxes[:, 2:], first_region[full])
    return out


def _areas(held: Stored, copied: np.ndarray, cut: np.ndarray, joined: Joined, n: int) -> np.ndarray:
    out = np.zeros(n, np.int64)
    np.add.at(out, held.segments[cut], held.areas[cut])
    counted = joined.counted >= 0
    out[np.unique(held.segments[cut])[counted]] = joined.counted[counted]
    out[held.segments[copied]] = held.areas[copied]
    return out


def _region_bits(lut: np.ndarray, first_region: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Byte of the section where each region's bits begin, from the bytes of all regions before it."""
    owners = np.repeat(np.arange(len(lut)), np.diff(first_region))
    starts = lut["segment_offset"].astype(np.int64) + SEGMENT_HEAD.itemsize + REGION_HEAD.itemsize
    return (starts - before[first_region[:-1]])[owners] + before[:-1]
