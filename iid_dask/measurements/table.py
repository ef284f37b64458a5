"""Measurements as a lazy table, one row an entry, or an entry and channel."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise, product
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask import delayed

from iid_dask.format.reader import RecordReader, open_records
from iid_dask.kernels import FACTS
from iid_dask.lookup import as_keys
from iid_dask.measurements.image import as_blocks, check_size
from iid_dask.measurements.intensity import tile_sums
from iid_dask.measurements.job import INTENSITY, SHAPE, Job, as_properties
from iid_dask.measurements.plan import plan_measurement
from iid_dask.measurements.shape import shape_columns, shape_facts
from iid_dask.measurements.statistics import statistics
from iid_dask.measurements.sums import measured_dtype
from iid_dask.running.admission import admit

ROWS = 2**20
"""Rows of a partition, at most."""

MASKS = 2**16
"""Entries whose masks one task looks at, at most."""


def measure(
    source: Any,
    image: Any = None,
    properties: str | Iterable[str] = INTENSITY,
    *,
    keys: Any = None,
    tile: int = 4096,
    storage_options: Mapping[str, Any] | None = None,
) -> dd.DataFrame:
    """Measure an image under every mask, and the masks.

    Where masks overlap each of them counts the pixel. A task reads one block of the image and the bits of masks in
    it; none returns pixels.

    Parameters
    ----------
    source : path, URL or IIDReader
        The ``.iid`` file.
    image : xarray.DataArray, or array of dask, zarr or numpy, optional
        Shape (rows, columns) or (channels, rows, columns): the size that the file declares, or where it declares
        none at least what holds all entries. Dimensions named "y" and "x" are found wherever they are. Integers, bool
        (counts as uint8) or floats (float16 counts as float32). Not needed for properties of the masks alone.
    properties : str or several
        Of the image under the mask: "mean", "min", "max", "sum", "std" (of the population), "count" (pixels).
        Of the mask, whole even where it leaves the image, as scikit-image's ``regionprops`` defines them: "area"
        (pixels), "centroid" (columns centroid_row, centroid_col; image pixels), "bbox" (the tight box, half-open:
        min_row, min_col, max_row, max_col; image pixels), "perimeter" (pixels; of 4-neighbours), "holes" (pieces of
        background that the mask encloses, 4-connected) and "eccentricity".
    keys : int or several, optional
        Only these entries.
    tile : int
        Rows and columns of image that a task reads, in whole chunks of a Zarr array; a dask array is read by its own
        chunks.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    dask.dataframe.DataFrame
        Indexed by key, ascending, then channel. Columns ``key`` (uint32), ``channel`` (int64; only for images of three
        dimensions, where the image is measured), then properties in the order asked for.

        Of integer images all is exact, whatever the tiling: ``mean`` and ``std`` (float64) are rounded from exact
        ratios, ``sum``, ``min`` and ``max`` are Arrow numbers. Of floats ``sum`` is float64, ``min`` and ``max`` have
        the image's type; sums are made in the order of tiles, so two runs agree to the bit, but other tiles may differ
        in the last digits. NaN, inf, and what exceeds float64, do what they do in numpy. Without pixels ``count`` and
        ``sum`` are 0, all else null or NaN.

    Raises
    ------
    ValueError
        For an image of another size, with only one of the dimensions "y" and "x", or missing; unknown properties.
    TypeError
        For an image of complex numbers or of another kind, and arguments of other types.
    KeyError
        For a key that the file does not have.
    IIDLimitError
        If workers have too little memory; see `iid_dask.plan`.
    OverflowError, IIDChangedError
        In a task: if a sum of integers does not fit 64 bits; if the file, or a memory-mapped image's, was replaced.

    Notes
    -----
    A task holds its block of the image, about 16 MiB of bits and runs, and four bytes a pixel more where regions of
    one entry may share pixels; that of a partition the sums of all tiles. Tasks open a memory-mapped image
    themselves; the pixels of other numpy arrays are in the graph. Its names are new ones at each call, so dask does
    not merge two equal calls: persist the table, or compute once what is needed of it.

    Examples
    --------
    >>> import iid_dask
    >>> import numpy as np
    >>> image = np.arange(600 * 1000, dtype=np.uint32).reshape(600, 1000)
    >>> table = iid_dask.measure(iid_dask.sample("us"), image, ["mean", "max", "holes"], keys=[0, 1])
    >>> print(table.compute().round(1))
           key      mean     max  holes
    entry
    0        0  240444.0  587736     75
    1        1  359389.0  428272      0
    """
    reader = source if isinstance(source, RecordReader) else open_records(source, storage_options=storage_options)
    chosen = None if keys is None else np.unique(as_keys(reader, keys))
    return _planned(Job(reader, as_properties(properties), chosen), image, _as_tile(tile))


def _planned(job: Job, image: Any, side: int) -> dd.DataFrame:
    """Check the image, and make the graph."""
    blocks = None
    if image is not None:
        blocks = as_blocks(image, side)
        shape = check_size(job.reader, blocks.shape)
        if job.of_image:
            channels = int(blocks.shape[0]) if blocks.ndim == 3 else None
            job = replace(job, shape=shape, dtype=measured_dtype(blocks.dtype), channels=channels)
    elif job.of_image:
        asked = [name for name in job.properties if name in INTENSITY]
        raise ValueError(f"measure: {', '.join(asked)} are of an image, and none is given: image=")
    return _graph(job, blocks)


def _as_tile(tile: Any) -> int:
    if isinstance(tile, bool) or not isinstance(tile, int | np.integer):
        raise TypeError(f"measure: tile = {tile!r} is {type(tile).__name__}, expected an integer, 1 or more pixels")
    if tile < 1:
        raise ValueError(f"measure: tile = {tile}, expected 1 or more pixels")
    return int(tile)


# --- the graph --------------------------------------------------------------------------------------------------


def _graph(job: Job, blocks: Any) -> dd.DataFrame:
    shared = delayed(job, name=f"measure-{uuid.uuid4().hex}", traverse=False)
    tiles = [] if blocks is None or not job.of_image else list(_tile_tasks(shared, blocks))
    keys = job.all_keys
    per = max(1, (ROWS if job.of_image else MASKS) // max(1, job.channels or 1))
    starts = range(0, max(1, len(keys)), per)
    looks = len(keys) // MASKS + 1 if job.of_masks else 0
    rows = min(per, len(keys)) * max(1, job.channels or 1)
    admit(plan_measurement(job, blocks, len(starts), rows, len(tiles) + looks + len(starts)))
    parts = []
    for start in starts:
        stop = min(start + per, len(keys))
        facts = [
            delayed(shape_facts)(shared, a, min(a + MASKS, stop)) for a in range(start, stop, MASKS) if job.of_masks
        ]
        parts.append(delayed(_partition)(shared, start, stop, tiles, facts))
    divisions = (*(int(keys[start]) for start in starts), int(keys[-1])) if len(keys) else None
    return dd.from_delayed(parts, meta=_frame(job, keys[:0], [], []), divisions=divisions, verify_meta=False)


def _tile_tasks(shared: Any, blocks: Any) -> Iterator[Any]:
    """A task for each block that has pixels, in the order of blocks."""
    spans = [list(pairwise(accumulate((int(size) for size in sizes), initial=0))) for sizes in blocks.chunks]
    for block, place in zip(blocks.to_delayed().ravel(), product(*spans), strict=True):
        shape = tuple(stop - start for start, stop in place)
        if all(shape):
            origin = tuple(start for start, _ in place)
            yield delayed(tile_sums)(shared, block, (0, *origin)[-3:], shape)


# --- a partition ------------------------------------------------------------------------------------------------


def _partition(
    job: Job, start: int, stop: int, tables: Sequence[np.ndarray], facts: Sequence[np.ndarray]
) -> pd.DataFrame:
    return _frame(job, job.all_keys[start:stop], tables, facts)


def _frame(job: Job, keys: np.ndarray, tables: Sequence[np.ndarray], facts: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return rows of the table; without keys, its schema."""
    with_channels = job.of_image and job.channels is not None
    channels = (job.channels or 0) if with_channels else 1
    found: dict[str, Any] = {"key": np.repeat(keys, channels)}
    if with_channels:
        found["channel"] = np.tile(np.arange(channels, dtype=np.int64), len(keys))
    values: dict[str, Any] = {}
    if job.of_image:
        values |= _of_image(job, statistics(job, keys, tables))
    if job.of_masks:
        rows = np.concatenate([*facts, np.zeros((0, FACTS), np.int64)])
        of_masks = shape_columns(job, keys, rows)
        values |= _of_masks({name: np.repeat(column, channels) for name, column in of_masks.items()})
    for name in job.properties:
        found |= {column: values[column] for column in SHAPE.get(name, (name,))}
    return pd.DataFrame(found, index=pd.Index(found["key"], name="entry"))


def _of_image(job: Job, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Give integers that may be missing, or need all of 64 bits, Arrow types."""
    if job.dtype.kind == "f":
        return found
    none = found["count"] == 0
    extremes = {name: _nullable(found[name], none) for name in ("min", "max")}
    return found | extremes | ({"sum": _nullable(found["sum"], None)} if "sum" in found else {})


def _of_masks(found: dict[str, np.ndarray]) -> dict[str, Any]:
    none = found["area"] == 0
    return found | {name: _nullable(found[name], none) for name in SHAPE["bbox"]}


def _nullable(values: np.ndarray, none: np.ndarray | None) -> Any:
    return pd.arrays.ArrowExtensionArray(pa.array(values, mask=none))
