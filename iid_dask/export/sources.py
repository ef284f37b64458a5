"""What a variable's tiles are made of: its file, where it is as it was opened, or its own dask graph."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from iid_dask import raster
from iid_dask.arrays import PixelArray, targets
from iid_dask.export.completion import chunk_facts
from iid_dask.export.layout import Layout
from iid_dask.placed import find_opened
from iid_dask.views import Window


@dataclass(frozen=True)
class Rastered:
    """Pixels that a task makes itself from the file: a window of a `PixelArray`."""

    array: PixelArray
    origin: tuple[int, ...]

    def read(self, tile: Sequence[slice], layout: Layout, *, reuse: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return a tile's values and the facts of its chunks; see `chunk_facts`.

        Parameters
        ----------
        tile
            Its place in the variable.
        layout
        reuse
            Make the values in memory that the next call in this thread overwrites.
        """
        view = self.array.view
        positions = [np.arange(s.start + o, s.stop + o) for s, o in zip(tile, self.origin, strict=True)]
        flattens = self.array.variable in ("label", "color") and view.overlap != "raise"
        if self.array.variable != "label" or not flattens:
            block = self.array.block(positions)
            facts = chunk_facts(block, layout)
            if flattens:
                facts[(0,) * layout.ndim + (2,)] = self._overlapping(positions)
            return block, facts
        ((_, _, target),) = targets(view, *positions)
        out = _used_memory(target.shape, view.label_dtype) if reuse else np.empty(target.shape, view.label_dtype)
        if isinstance(target, Window) and view.stride == 1 and view.labels is None:
            rows, cols = layout.chunk
            facts = raster.paint_recorded(view, target, out, (rows, cols))
            facts[..., 0] += np.uint64(1)
            return out, facts
        out.fill(0)
        painted = raster.paint(view, target, out, values=raster.label_values(view))
        facts = chunk_facts(out, layout)
        if painted > np.count_nonzero(out):
            facts[0, 0, 2] = raster.overlapping_pixels(view, target)
        return out, facts

    def _overlapping(self, positions: Sequence[np.ndarray]) -> int:
        ((_, _, target),) = targets(self.array.view, *positions[:2])
        return raster.overlapping_pixels(self.array.view, target)


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
