"""What a label array loses: of pixels that more than one entry covers only one keeps each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from iid_dask import kernels, raster
from iid_dask.apart import thinned
from iid_dask.bbox import BBox, union
from iid_dask.cutting import tiles
from iid_dask.format.reader import RecordReader
from iid_dask.pairs import Regions, added_up, codes, decoded
from iid_dask.pieces import read_pieces, say_once_if_cut, search
from iid_dask.views import OVERLAPS, Overlap, View, Window

TILE = 2048
"""Rows and columns that are looked at together."""

LOSSES = 2**16
"""Losses held before they are added up, at least."""

MOST = 2**31 - 1
"""Largest side of an image, as in ``xr.open_dataset``."""

RULES = tuple(rule for rule in OVERLAPS if rule != "raise")
"""Ways to flatten overlaps."""


@dataclass(frozen=True, eq=False)
class FlattenReport:
    """What entries lose when they are painted into one label array, and to whom.

    Attributes
    ----------
    overlap : {"last", "first", "smallest", "largest"}
        Who wins a pixel that more than one entry covers.
    entries : pandas.DataFrame
        One row an entry, by ascending key: ``key`` (uint32), ``pixels``, ``kept``, ``lost`` (int64), of which the
        first is the sum of the others. Pixels beyond the image do not count.
    losses : pandas.DataFrame
        One row a pair of entries, ordered by both: entry ``key`` loses ``pixels`` (int64) to the entry ``to`` (both
        uint32).
    """

    overlap: str
    entries: pd.DataFrame
    losses: pd.DataFrame

    @property
    def pixels(self) -> int:
        """Pixels of all entries, those of two entries counted twice."""
        return int(self.entries["pixels"].sum())

    @property
    def kept(self) -> int:
        """Pixels of the label array that are not background."""
        return int(self.entries["kept"].sum())

    @property
    def lost(self) -> int:
        """Pixels of entries that show another one."""
        return int(self.entries["lost"].sum())

    def __str__(self) -> str:
        losers = self.entries[self.entries["lost"] > 0]
        share = self.lost / max(1, self.pixels)
        text = (
            f'overlap="{self.overlap}": {self.pixels:,} pixels of {len(self.entries):,} entries: '
            f"{self.kept:,} kept, {self.lost:,} lost ({share:.1%})"
        )
        if not len(losers):
            return text
        worst = losers.iloc[int(np.argmax(losers["lost"]))]
        gone = int((losers["kept"] == 0).sum())
        return (
            f"{text}\n{len(losers):,} entries lose pixels, {gone:,} of them all; "
            f"most entry {worst['key']}: {worst['lost']:,} of {worst['pixels']:,}"
        )


def flatten_report(
    reader: RecordReader, *, overlap: str = "last", shape: tuple[int, int] | None = None
) -> FlattenReport:
    """Count what each entry keeps and loses in a label array, tile by tile.

    Parameters
    ----------
    reader
    overlap : {"last", "first", "smallest", "largest"}
        As in ``xr.open_dataset``.
    shape : (rows, columns), optional
        Of the image, at most 2**31 - 1 each; default: as the file says. Pixels beyond it are cut.

    Returns
    -------
    FlattenReport

    Raises
    ------
    TypeError
        For sides that are no integers.
    ValueError
        For another ``overlap``, or a shape that is none.

    Examples
    --------
    >>> import iid_dask
    >>> with iid_dask.open(iid_dask.sample("us")) as f:
    ...     report = flatten_report(f)
    >>> print(report)
    overlap="last": 982,527 pixels of 3,155 entries: 327,509 kept, 655,018 lost (66.7%)
    50 entries lose pixels, 50 of them all; most entry 0: 327,509 of 327,509
    >>> print(report.losses.head(2))
       key  to  pixels
    0    0  50    1387
    1    0  51      74
    """
    if overlap not in RULES:
        raise ValueError(f"flatten_report: overlap = {overlap!r}, expected one of {', '.join(RULES)}")
    view = View(reader, reader.shape if shape is None else _as_shape(shape), cast(Overlap, overlap))
    keys = reader.entry_keys
    shared = np.zeros(len(reader.live), bool)
    shared[thinned(reader, Regions.of(reader.columns, keys, keys)).sharing(keys)] = True
    kept = np.zeros(len(reader.live), np.int64)
    numbers, counts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    say_once_if_cut(view)
    covered = union(reader.columns.region_boxes).intersection(BBox(0, 0, *view.shape))
    for tile in tiles(covered, TILE):
        for some, pixels in _losses(view, tile, shared, kept):
            numbers.append(some)
            counts.append(pixels)
    found, pixels = added_up(np.concatenate(numbers), np.concatenate(counts))
    return _report(overlap, keys, kept, *decoded(found), pixels)


def _as_shape(shape: Any) -> tuple[int, int]:
    if isinstance(shape, str | bytes) or not isinstance(shape, Iterable) or len(sides := list(shape)) != 2:
        raise ValueError(f"flatten_report: shape = {shape!r}, expected (rows, columns)")
    height, width = (_as_side(side, shape) for side in sides)
    return height, width


def _as_side(side: Any, shape: Any) -> int:
    if not isinstance(side, int | np.integer) or isinstance(side, bool):
        found = f"found {side!r}, {type(side).__name__}"
        raise TypeError(f"flatten_report: shape = {shape!r}, {found}, expected integers")
    if not 0 <= side <= MOST:
        raise ValueError(f"flatten_report: shape = {shape!r}, found {side}, expected rows and columns of 0 to {MOST}")
    return int(side)


def _losses(view: View, tile: BBox, shared: np.ndarray, kept: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Paint a tile and go over its pieces again; yield pairs of loser and winner, and pixels, some at a time.

    ``shared`` says which entries have regions that share pixels; ``kept`` is added to.
    """
    entries = search(view.reader, tile)
    if not len(entries.regions):
        return
    window = Window(union(entries.held.columns.region_boxes[entries.regions]).intersection(tile))
    keys = entries.keys
    labels = raster.label(view, window)
    stamp = np.zeros(labels.shape if shared[keys].any() else (0, 0), np.uint32)
    losses = np.empty((3, LOSSES + labels.shape[1]), np.int64)
    corner = window.box.min_row, window.box.min_col
    for hits, pieces in read_pieces(view, window, entries):
        at, row = 0, 0
        while at < len(hits):
            at, row, found = kernels.find_losses(at, row, labels, *corner, *pieces, keys[hits], stamp, kept, losses)
            losers, winners, pixels = losses[:, :found]
            yield added_up(codes(losers, winners), pixels)


def _report(
    overlap: str, keys: np.ndarray, kept: np.ndarray, losers: np.ndarray, winners: np.ndarray, pixels: np.ndarray
) -> FlattenReport:
    lost = np.zeros_like(kept)
    np.add.at(lost, losers, pixels)
    entries = {"key": keys, "pixels": (kept + lost)[keys], "kept": kept[keys], "lost": lost[keys]}
    losses = {"key": losers, "to": winners, "pixels": pixels}
    return FlattenReport(overlap, pd.DataFrame(entries), pd.DataFrame(losses))
