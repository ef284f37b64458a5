"""Lazy arrays that xarray can index: one class for pixels, one for the entry table."""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from iid_dask import raster
from iid_dask.bbox import BBox
from iid_dask.names import spans_to_text
from iid_dask.pieces import say_once_if_cut
from iid_dask.views import Points, Samples, Target, View, Window, sampled

TEXT = np.dtypes.StringDType()


@xr.register_dataset_accessor("iid")
def _accessor(ds: xr.Dataset) -> Any:
    """Make ``ds.iid``. Registered here: no dataset of this engine, unpickled ones too, is without this module."""
    return import_module("iid_dask.accessor").IIDAccessor(ds)


SPAN = 1024
"""Rows or columns of blocks that are made together although not all were asked for: a window costs about 0.2 ms."""

POINTS_A_CELL = 256
"""Points that are looked up together, about: each cell of the image is searched once."""


def _in_range(key: indexing.ExplicitIndexer, shape: tuple[int, ...]) -> indexing.ExplicitIndexer:
    """Refuse what lies outside, and give slices without elements one form.

    xarray hands out-of-range positions on as they are; outer ones below 0 it has already counted from the end once,
    and would do so again. Of empty slices with a negative step it makes an IndexError.
    """
    again = isinstance(key, indexing.VectorizedIndexer)
    items = []
    for item, size in zip(key.tuple, shape, strict=True):
        if isinstance(item, slice):
            items.append(item if len(range(*item.indices(size))) else slice(0, 0))
            continue
        values = np.asarray(item)
        low = -size if again else 0
        if values.size and (values.min() < low or values.max() >= size):
            worst = int(values.max() if values.max() >= size else values.min() - size - low)
            raise IndexError(f"index {worst} is out of bounds for a dimension of size {size}")
        items.append(item)
    return type(key)(tuple(items))


def _positions(index: Any, size: int) -> np.ndarray:
    if isinstance(index, slice):
        return np.arange(*index.indices(size), dtype=np.int64)
    return np.atleast_1d(np.asarray(index, dtype=np.int64))


class LazyArray(BackendArray, ABC):
    """What both kinds share: three ways of indexing, and the same asynchronously."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        key = _in_range(key, self.shape)
        support, read = self._way(key)
        return indexing.explicit_indexing_adapter(key, self.shape, support, read)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Index in a thread, for ``Dataset.load_async``."""
        key = _in_range(key, self.shape)
        support, read = self._way(key)

        async def later(raw: tuple[Any, ...]) -> Any:
            return await asyncio.to_thread(read, raw)

        return await indexing.async_explicit_indexing_adapter(key, self.shape, support, later)

    def _way(self, key: indexing.ExplicitIndexer) -> tuple[indexing.IndexingSupport, Callable[[tuple[Any, ...]], Any]]:
        # The adapter cannot tell outer from pointwise for an array that supports both.
        if isinstance(key, indexing.VectorizedIndexer):
            return indexing.IndexingSupport.VECTORIZED, self._points
        return indexing.IndexingSupport.OUTER, self._outer

    def _outer(self, key: tuple[Any, ...]) -> np.ndarray:
        positions = [_positions(index, size) for index, size in zip(key, self.shape, strict=True)]
        block = self.block(positions)
        scalars = tuple(axis for axis, index in enumerate(key) if isinstance(index, int | np.integer))
        return np.squeeze(block, axis=scalars) if scalars else block

    def _points(self, key: tuple[Any, ...]) -> np.ndarray:
        """Pointwise: dimensions of the arrays first, then those of the slices, as xarray wants them."""
        arrays = [axis for axis, index in enumerate(key) if not isinstance(index, slice)]
        broadcast = np.broadcast_arrays(*(np.asarray(key[axis], dtype=np.int64) for axis in arrays))
        places = dict(zip(arrays, broadcast, strict=True))
        return self._vectorised(key, places)

    def _vectorised(self, key: tuple[Any, ...], places: dict[int, np.ndarray]) -> np.ndarray:
        positions, inverse = [], []
        for axis, (index, size) in enumerate(zip(key, self.shape, strict=True)):
            if axis in places:
                unique, back = np.unique(places[axis], return_inverse=True)
                positions.append(unique)
                inverse.append(back.reshape(places[axis].shape))
            else:
                positions.append(_positions(index, size))
        block = self.block(positions)
        order = [*places, *(axis for axis in range(len(key)) if axis not in places)]
        return block.transpose(order)[tuple(inverse)]

    @abstractmethod
    def block(self, positions: Sequence[np.ndarray]) -> np.ndarray:
        """Return the values at every combination of positions, one int64 array a dimension, in range."""

    @abstractmethod
    def _what(self) -> tuple[Any, ...]:
        """What tells the array from others, for dask's tokens; plain values, as dask looks no further."""

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (type(self).__name__, *self._what())


@dataclass(eq=False)
class PixelArray(LazyArray):
    """A variable with dimensions y and x, rasterised when it is read.

    Attributes
    ----------
    view : View
    variable : str
        "label", "mask", "depth", "group_mask", "layers", "color", or "masks" of the entries ``keys``.
    shape : tuple of int
    dtype : numpy.dtype
    keys : uint32 array, optional
    """

    view: View
    variable: str
    shape: tuple[int, ...]
    dtype: np.dtype
    keys: np.ndarray | None = None

    def _what(self) -> tuple[Any, ...]:
        keys = None if self.keys is None else hashlib.blake2b(self.keys.tobytes(), digest_size=16).hexdigest()
        return (self.view.__dask_tokenize__(), self.variable, keys)

    @property
    def _y(self) -> int:
        """Axis of the rows."""
        return 1 if self.variable in ("group_mask", "layers", "masks") else 0

    def block(self, positions: Sequence[np.ndarray]) -> np.ndarray:
        """Rasterise the pixels at every combination of positions."""
        y = self._y
        lead, rest = positions[:y], positions[y + 2 :]
        out = np.zeros([len(p) for p in positions], self.dtype)
        rows, sort_rows = _ascending(positions[y])
        cols, sort_cols = _ascending(positions[y + 1])
        if out.size:
            for row_part, col_part, target in targets(self.view, rows, cols):
                place: tuple[Any, ...] = (..., row_part, col_part, *(slice(None) for _ in rest))
                values = self._render(target, lead, rest)
                if isinstance(target, Window) and target.shape != (len(rows[row_part]), len(cols[col_part])):
                    values = np.take(values, rows[row_part] - target.box.min_row, axis=y)
                    values = np.take(values, cols[col_part] - target.box.min_col, axis=y + 1)
                out[place] = values
        if sort_rows is not None:
            out = np.take(out, sort_rows, axis=y)
        if sort_cols is not None:
            out = np.take(out, sort_cols, axis=y + 1)
        return out

    def _vectorised(self, key: tuple[Any, ...], places: dict[int, np.ndarray]) -> np.ndarray:
        y, x = self._y, self._y + 1
        if y not in places or x not in places:
            return super()._vectorised(key, places)
        shape = places[y].shape
        others = [_positions(key[axis], size) for axis, size in enumerate(self.shape) if axis not in (y, x)]
        for i, axis in enumerate(axis for axis in range(len(self.shape)) if axis not in (y, x)):
            if axis in places:
                others[i] = np.unique(places[axis])
        lead, rest = others[:y], others[y:]
        flat = self._at(places[y].ravel(), places[x].ravel(), lead, rest)
        chosen: list[Any] = [np.arange(flat.shape[0])]
        for i, axis in enumerate(axis for axis in range(len(self.shape)) if axis not in (y, x)):
            chosen.append(np.searchsorted(others[i], places[axis].ravel()) if axis in places else slice(None))
        flat = flat[tuple(chosen)]
        return flat.reshape(*shape, *flat.shape[1:])

    def _at(
        self, rows: np.ndarray, cols: np.ndarray, lead: Sequence[np.ndarray], rest: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Values at points, shape (points, *lead, *rest)."""
        sizes = [len(p) for p in (*lead, *rest)]
        out = np.zeros([len(rows), *sizes], self.dtype)
        for some in _cells(rows, cols):
            if self.view.reduce == "any" and self.view.stride > 1:
                box = BBox(rows[some].min(), cols[some].min(), rows[some].max() + 1, cols[some].max() + 1)
                values = self._render(Window(box), lead, rest)
                inside: tuple[Any, ...] = (rows[some] - box.min_row, cols[some] - box.min_col)
            else:
                some = some[np.argsort(rows[some], kind="stable")]
                target = Points(sampled(self.view, rows[some], 0), sampled(self.view, cols[some], 1))
                values = self._render(target, lead, rest)
                inside = (np.arange(len(some)), np.zeros(len(some), np.int64))
            y = len(lead)
            out[some] = np.moveaxis(values, (y, y + 1), (0, 1))[inside]
        return out

    def _render(self, target: Target, lead: Sequence[np.ndarray], rest: Sequence[np.ndarray]) -> np.ndarray:
        if self.variable == "label":
            return raster.label(self.view, target)
        if self.variable == "mask":
            return raster.mask(self.view, target)
        if self.variable == "depth":
            return raster.depth(self.view, target)
        if self.variable == "color":
            return raster.color(self.view, target)[..., rest[0]]
        if self.variable == "layers":
            return raster.layers(self.view, target, lead[0].tolist())
        if self.keys is not None:
            return raster.masks(self.view, target, self.keys[lead[0]])
        names = list(self.view.reader.groups)
        return raster.group_mask(self.view, target, [names[i] for i in lead[0].tolist()])


def _ascending(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return positions in ascending order, and how to put them back if they were not."""
    if len(positions) < 2 or np.all(positions[1:] >= positions[:-1]):
        return positions, None
    unique, back = np.unique(positions, return_inverse=True)
    return unique, back


def _spans(positions: np.ndarray, reach: int) -> list[tuple[slice, int, int]]:
    """Cut ascending positions into spans: where each lies, its first position and its end.

    Runs without gaps stay whole; those that together reach no further than ``reach`` make one span.
    """
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    edges = [0, *breaks.tolist(), len(positions)]
    spans: list[tuple[slice, int, int]] = []
    for a, b in pairwise(edges):
        start, stop = int(positions[a]), int(positions[b - 1]) + 1
        if spans and stop - spans[-1][1] <= reach:
            a, start = spans[-1][0].start, spans.pop()[1]
        spans.append((slice(a, b), start, stop))
    return spans


def targets(view: View, rows: np.ndarray, cols: np.ndarray) -> Iterator[tuple[slice, slice, Target]]:
    """Targets that together hold every pair of some ascending rows and columns, and their places in the array.

    A window of the view is one target. A `Window` may hold rows and columns between those asked for: many small
    ones cost more than one that is larger.
    """
    blocks = view.reduce == "any" and view.stride > 1
    row_spans, col_spans = (_spans(positions, SPAN if blocks else 0) for positions in (rows, cols))
    if blocks or (view.stride == 1 and len(row_spans) == len(col_spans) == 1):
        for row_part, row, row_stop in row_spans:
            for col_part, col, col_stop in col_spans:
                yield row_part, col_part, Window(BBox(row, col, row_stop, col_stop))
        return
    target = Samples(sampled(view, rows, 0), sampled(view, cols, 1))
    yield slice(0, len(rows)), slice(0, len(cols)), target


def _cells(rows: np.ndarray, cols: np.ndarray) -> Iterator[np.ndarray]:
    """Cut points into groups that lie together, as indices."""
    if not len(rows):
        return
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1
    side = int(np.clip(np.sqrt(height * width * POINTS_A_CELL / len(rows)), 64, 4096))
    cell = (rows // side) * (int(cols.max()) // side + 1) + cols // side
    order = np.argsort(cell, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)


@dataclass(eq=False)
class TableArray(LazyArray):
    """A column of the entry table.

    Attributes
    ----------
    view : View
        Entries that it selects are the table's rows.
    column : str
        "key", "domain", "address", "area", "entry_label", "min_row", "min_col", "max_row", "max_col" or "in_group".
    shape : tuple of int
    dtype : numpy.dtype
    """

    view: View
    column: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def _what(self) -> tuple[Any, ...]:
        return (self.view.__dask_tokenize__(), self.column)

    def block(self, positions: Sequence[np.ndarray]) -> np.ndarray:
        """Read the column's values at positions; names of no other entry are read."""
        reader, keys = self.view.reader, self.view.keys
        wanted = keys[positions[-1]]
        if self.column == "key":
            return wanted
        if self.column in ("domain", "address"):
            whole = len(wanted) == len(reader) and np.array_equal(wanted, reader.entry_keys)
            text, starts, middles, stops = reader.name_spans(None if whole else wanted)
            return spans_to_text(text, *((starts, middles) if self.column == "domain" else (middles, stops)))
        if self.column == "entry_label":
            return raster.labels_of(self.view, wanted)
        if self.column == "in_group":
            names_of_groups = list(reader.groups)
            rows = [np.isin(wanted, reader.groups[names_of_groups[i]]) for i in positions[0].tolist()]
            return np.array(rows, bool).reshape(len(positions[0]), len(wanted))
        say_once_if_cut(self.view)
        if self.column == "area":
            return reader.columns.areas[wanted]
        return reader.columns.boxes[wanted, ("min_row", "min_col", "max_row", "max_col").index(self.column)]
