"""Regions: the connected pieces of masks and of the labels of a block, found in one pass over its runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDLimitError
from iid_dask.format.entry import Region
from iid_dask.format.layout import SPARE
from iid_dask.format.segments import region_lengths

RUN, REGION = 12, 144
"""Bytes in memory of a run, and of a region's columns where they are put into order."""


@dataclass(frozen=True, eq=False)
class BlockRegions:
    """Regions of one value each: boxes, pixels, values, and the bytes of ``data`` where their bits begin."""

    boxes: np.ndarray
    areas: np.ndarray
    values: np.ndarray
    bits: np.ndarray
    data: np.ndarray

    def take(self, order: np.ndarray) -> BlockRegions:
        """Return them in another order; their bits stay where they are."""
        return BlockRegions(self.boxes[order], self.areas[order], self.values[order], self.bits[order], self.data)

    def moved(self, rows: int, cols: int) -> BlockRegions:
        """Return them in the frame of the tile that their block lies in."""
        return replace(self, boxes=np.add(self.boxes, (rows, cols, rows, cols)))


def find_regions(block: np.ndarray, most: int | None) -> BlockRegions:
    """Find the 8-connected regions of equal values of a block, in raster order of their first pixel.

    Parameters
    ----------
    block : array of unsigned integers, shape (h, w)
        Contiguous; 0 is background.
    most
        Bytes that the regions may take; None is no bound.

    Raises
    ------
    IIDLimitError
        If they would take more.
    """
    from iid_dask import kernels  # numba: only for who writes masks

    n = int(kernels.count_block_runs(block))
    if most is not None and n * RUN > most:
        raise _too_large(most, n * RUN, f"{n} runs", block.shape)
    runs = (np.empty(block.shape[0] + 1, np.uint32), *np.empty((3, n + 1), np.uint32))
    m = int(kernels.label_block(block, *runs))
    held = n * RUN + m * REGION
    if most is not None and held > most:
        raise _too_large(most, held, f"{n} runs and {m} regions", block.shape)
    boxes, areas, values = np.empty((m, 4), np.int64), np.zeros(m, np.int64), np.empty(m, np.uint64)
    kernels.block_components(block, *runs, boxes, areas, values)
    sizes = region_lengths(boxes)
    bits, nbytes = np.cumsum(sizes) - sizes, int(sizes.sum())
    if most is not None and held + nbytes > most:
        raise _too_large(most, held + nbytes, f"{m} regions with boxes of {nbytes} bytes", block.shape)
    # Bits are laid out in this order, not the file's: neighbours stay on the same pages of memory, 3 times faster.
    data = np.zeros(nbytes + SPARE, np.uint8)
    widths = boxes[:, 3] - boxes[:, 1]
    kernels.pack_block(*runs, bits * 8 - boxes[:, 0] * widths - boxes[:, 1], widths, data)
    return BlockRegions(boxes, areas, values, bits, data)


def _too_large(most: int, nbytes: int, what: str, shape: tuple[int, ...]) -> IIDLimitError:
    return IIDLimitError(
        f"block of {shape[0]} x {shape[1]} pixels: {what} take {nbytes} bytes, more than {most}; "
        "cut it into smaller tiles"
    )


def as_block(mask: np.ndarray) -> np.ndarray:
    """Return a mask, of which anything not zero is a pixel, as a contiguous block of zeros and ones."""
    # Memory of others may hold other bytes than 0 and 1 where it claims bool.
    return (np.ascontiguousarray(mask, dtype=bool).view(np.uint8) != 0).view(np.uint8)


def regions_of(mask: np.ndarray, bbox: BBox) -> list[Region]:
    """Split a mask into regions as canonical files hold them.

    Parameters
    ----------
    mask : array, shape ``bbox.shape``
        Anything not zero is a pixel.
    bbox
        Where the mask lies, image pixels.

    Returns
    -------
    list of Region
        The 8-connected components, each with its tight box, in raster order of their first pixel.

    Examples
    --------
    >>> mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0]])
    >>> [tuple(region.bbox) for region in regions_of(mask, BBox(10, 20, 12, 24))]
    [(10, 20, 12, 22), (10, 23, 11, 24)]
    """
    found = find_regions(as_block(mask), most=None)
    top, left = bbox.min_row, bbox.min_col
    places = zip(found.boxes.tolist(), found.bits.tolist(), region_lengths(found.boxes).tolist(), strict=True)
    return [
        Region(BBox(box[0] + top, box[1] + left, box[2] + top, box[3] + left), found.data[at : at + size].tobytes())
        for box, at, size in places
    ]
