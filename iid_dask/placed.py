"""Where in its file a variable's pixels lie: xarray and dask know it, though they have no name for it."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from xarray.core import indexing

from iid_dask.arrays import PixelArray

PLAIN = (indexing.MemoryCachedArray, indexing.CopyOnWriteArray, indexing.ImplicitToExplicitIndexingAdapter)
"""Wrappers of xarray that hand values on as they are; others, such as decoders, do not."""

MOVES = ("getitem-", "rechunk-")
"""Layers of a dask graph that choose elements and change none."""


def find_opened(variable: xr.Variable) -> tuple[PixelArray, tuple[Any, ...]] | None:
    """Return the array that a variable was opened as, and the outer index that it is of it.

    Returns
    -------
    array, key
        One integer, slice or integer array a dimension of ``array``. None for a variable that was computed or
        loaded, or, being a dask array, indexed.
    """
    data: Any = variable._data
    if isinstance(data, da.Array):
        layers = dict(data.dask.layers)
        if len(layers) != 2 or f"original-{data.name}" not in layers:
            return None
        data = _held(layers[f"original-{data.name}"])
    return _unwrapped(data, variable.shape)


def _held(layer: Any) -> Any:
    """The array in the one task of the first layer that dask's ``from_array`` makes."""
    held = next(iter(dict(layer).values()), None)
    return getattr(held, "value", held)


def _unwrapped(data: Any, shape: tuple[int, ...]) -> tuple[PixelArray, tuple[Any, ...]] | None:
    while type(data) in PLAIN:
        data = data.array
    if type(data) is not indexing.LazilyIndexedArray or type(data.array) is not PixelArray or data.shape != shape:
        return None
    return data.array, data.key.tuple


def find_positions(variable: xr.Variable) -> tuple[PixelArray, np.ndarray, np.ndarray] | None:
    """Return the array that a variable (y, x) was opened as, and its rows and columns there.

    Returns
    -------
    array : PixelArray
    rows, cols : int64 arrays, shapes (y,) and (x,)
        Positions in the array. None for a variable that is not just opened, indexed and rechunked.
    """
    data: Any = variable._data
    if not isinstance(data, da.Array):
        found = find_opened(variable)
        return None if found is None else _by_key(*found)
    layers = dict(data.dask.layers)
    (first, *others) = [name for name in layers if name.startswith("original-")] or [""]
    moves = [name for name in layers if name not in (first, first.removeprefix("original-"))]
    if not first or others or not all(name.startswith(MOVES) for name in moves):
        return None
    held = _held(layers[first])
    found = _unwrapped(held, held.shape)
    opened = None if found is None else _by_key(*found)
    if opened is None:
        return None
    array, rows, cols = opened
    chosen = [_through(data, layers, first, _Ruler(held.shape, axis)) for axis in (0, 1)]
    return array, rows[chosen[0][:, 0]], cols[chosen[1][0]]


def _by_key(array: PixelArray, key: tuple[Any, ...]) -> tuple[PixelArray, np.ndarray, np.ndarray] | None:
    if len(key) != 2 or any(isinstance(part, int | np.integer) for part in key):
        return None
    rows, cols = (np.arange(size)[part] for part, size in zip(key, array.shape, strict=True))
    return array, rows, cols


class _Ruler:
    """An array whose elements are their own positions along an axis, without the memory of one."""

    ndim = 2
    dtype = np.dtype(np.int64)

    def __init__(self, shape: tuple[int, int], axis: int) -> None:
        self.shape, self.axis = shape, axis

    def __getitem__(self, key: Any) -> np.ndarray:
        line = np.arange(self.shape[self.axis])
        return np.broadcast_to(line[:, None] if self.axis == 0 else line, self.shape)[key]


def _through(data: da.Array, layers: dict[str, Any], first: str, ruler: _Ruler) -> np.ndarray:
    """What a graph makes of a ruler in place of its array: first row and column, which tell all of it."""
    swapped = {**layers, first: MaterializedLayer(dict.fromkeys(dict(layers[first]), ruler))}
    graph = HighLevelGraph(swapped, data.dask.dependencies)
    placed = da.Array(graph, data.name, data.chunks, dtype=np.int64)
    edge = placed[:, :1] if ruler.axis == 0 else placed[:1]
    return edge.compute(scheduler="synchronous")
