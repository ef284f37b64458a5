"""What a variable's tiles are made of: its file, where it is as it was opened, or its own dask graph."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from iid_dask import raster
from iid_dask.arrays import PixelArray, targets
from iid_dask.export.completion import chunk_facts
from iid_dask.export.layout import Layout
from iid_dask.placed import find_opened
from iid_dask.views import View, Window

Chunk = tuple[tuple[int, ...], np.ndarray]
"""Where in its tile a chunk is, counted in chunks, and its values, which the next one may overwrite."""


@dataclass(frozen=True)
class Rastered:
    """Pixels that a task makes itself from the file: a window of a `PixelArray`."""

    array: PixelArray
    origin: tuple[int, ...]

    def chunks(self, tile: Sequence[slice], layout: Layout, facts: np.ndarray) -> Iterator[Chunk]:
        """Yield the chunks of a tile that are not all background, and note what each chunk is.

        Parameters
        ----------
        tile
            Its place in the variable.
        layout
        facts : uint64 array, shape (chunks along each dimension, 3)
            Filled in by the time the last chunk is taken; see `chunk_facts`.
        """
        view = self.array.view
        positions = [np.arange(s.start + o, s.stop + o) for s, o in zip(tile, self.origin, strict=True)]
        flattens = self.array.variable in ("label", "color") and view.overlap != "raise"
        if self.array.variable != "label" or not flattens:
            yield from cut(self.array.block(positions), layout, facts)
            if flattens:
                facts[(0,) * layout.ndim + (2,)] = self._overlapping(positions)
            return
        ((_, _, target),) = targets(view, *positions)
        if isinstance(target, Window) and view.stride == 1 and view.labels is None:
            yield from _painted(view, target, layout, facts)
            return
        out = _used_memory(target.shape, view.label_dtype)
        out.fill(0)
        painted = raster.paint(view, target, out, labels=True)
        yield from cut(out, layout, facts)
        if painted > np.count_nonzero(out):
            facts[0, 0, 2] = raster.overlapping_pixels(view, target)

    def _overlapping(self, positions: Sequence[np.ndarray]) -> int:
        ((_, _, target),) = targets(self.array.view, *positions[:2])
        return raster.overlapping_pixels(self.array.view, target)


def _painted(view: View, window: Window, layout: Layout, facts: np.ndarray) -> Iterator[Chunk]:
    """Yield chunks of labels, each painted when it is asked for."""
    rows, cols = layout.chunk
    out = _used_memory((rows, cols), view.label_dtype)
    facts[..., 0] = 1
    for box, found in raster.paint_recorded(view, window, (rows, cols), out):
        at = (box.min_row - window.box.min_row) // rows, (box.min_col - window.box.min_col) // cols
        facts[at] += found
        if found[0]:
            yield at, out[: box.height, : box.width]


def cut(block: np.ndarray, layout: Layout, facts: np.ndarray) -> Iterator[Chunk]:
    """Yield the chunks of a tile's values that are not all background; ``facts`` as in `Rastered.chunks`."""
    facts[:] = chunk_facts(block, layout)
    for at in map(tuple, np.argwhere(facts[..., 0] > 1).tolist()):
        yield at, block[layout.within(at)]


_buffers = threading.local()


def _used_memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array in memory that this thread used before: fresh memory costs as much as the painting."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = getattr(_buffers, "data", None)
    if buffer is None or len(buffer) < nbytes:
        _buffers.data = buffer = np.empty(nbytes, np.uint8)
    return buffer[:nbytes].view(dtype).reshape(shape)


def find_raster(variable: xr.Variable) -> Rastered | None:
    """Return the source of a variable that is still as it was opened, or a plain window of it; else None."""
    placed = find_opened(variable)
    if placed is None:
        return None
    array, key = placed
    if array.dtype != variable.dtype or any(not isinstance(part, slice) or part.step not in (None, 1) for part in key):
        return None
    origin = tuple(part.indices(size)[0] for part, size in zip(key, array.shape, strict=True))
    return Rastered(array, origin)
