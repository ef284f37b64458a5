"""An image under every mask; against scipy and scikit-image on a label image, which holds one mask a pixel."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import dask.array as da
import numpy as np

import iid_dask
from benchmarks import data
from benchmarks.timing import Rounds, Spent, Table, alternate, spent
from iid_dask import BBox, raster
from iid_dask.views import View, Window

TILE = 4096
STATISTICS = ("mean", "min", "max", "sum", "std", "count")
SHAPES = ("area", "centroid", "bbox", "perimeter", "holes", "eccentricity")
SHAPED = 2_000


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del out
    side = sizes.zarr_side // 2
    discs = sizes.discs * side**2 // sizes.side**2
    with iid_dask.open(data.sparse(folder, side, discs)) as reader:
        yield statistics_table(reader, side, repeats)
    with iid_dask.open(data.sparse(folder, sizes.side, sizes.discs)) as reader:
        yield shape_table(reader, repeats)


# --- statistics of an image -------------------------------------------------------------------------------------


def statistics_table(reader: iid_dask.IIDReader, side: int, repeats: int) -> Table:
    """Compare statistics of a uint16 image in memory."""
    image = np.random.default_rng(data.SEED).integers(0, 2**16, (side, side), np.uint16)
    tiles = da.from_array(image, chunks=TILE, name=False)
    label = raster.label(View(reader, reader.shape), Window(BBox(0, 0, side, side)))
    tasks: dict[str, Callable[[], Spent]] = {
        "read the image once (numpy sum)": lambda: spent(image.sum),
        "measure, one thread": lambda: spent(lambda: _measured(reader, tiles, "synchronous")),
        "measure, two threads": lambda: spent(lambda: _measured(reader, tiles, "threads")),
        "numpy, mask by mask": lambda: spent(lambda: _mask_by_mask(reader, image)),
    }
    if importlib.util.find_spec("scipy"):
        tasks["scipy.ndimage on the label image"] = lambda: spent(lambda: _scipy(image, label))
    _measured(reader, tiles, "synchronous")
    title = f"mean, min, max, sum, std, count: {len(reader)} masks, {side} x {side} uint16, tiles of {TILE}²"
    return _compared(title, alternate(tasks, repeats), "measure, one thread", side * side / 1e9, "Gpx/s")


def _measured(reader: iid_dask.IIDReader, image: da.Array, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler, num_workers=2):
        iid_dask.measure(reader, image, STATISTICS).compute()


def _mask_by_mask(reader: iid_dask.IIDReader, image: np.ndarray) -> None:
    for entry in reader.values():
        values = image[entry.bbox.slices][entry.mask()]
        _ = values.mean(), values.min(), values.max(), values.sum(dtype=np.uint64), values.std(), len(values)


def _scipy(image: np.ndarray, label: np.ndarray) -> None:
    from scipy import ndimage

    which = np.unique(label)[1:]
    for function in (ndimage.mean, ndimage.minimum, ndimage.maximum, ndimage.sum_labels, ndimage.standard_deviation):
        function(image, label, which)
    np.bincount(label.ravel())


# --- shapes -----------------------------------------------------------------------------------------------------


def shape_table(reader: iid_dask.IIDReader, repeats: int) -> Table:
    """Compare shape properties, of which scikit-image measures a part of the masks."""
    some = list(reader)[:SHAPED]
    tasks: dict[str, Callable[[], Spent]] = {
        f"measure, {len(reader)} masks": lambda: spent(lambda: _shaped(reader)),
    }
    counts = {f"measure, {len(reader)} masks": len(reader)}
    if importlib.util.find_spec("skimage"):
        work = f"skimage.regionprops, {len(some)} masks"
        tasks[work] = lambda: spent(lambda: _regionprops(reader, some))
        counts[work] = len(some)
    _shaped(reader)
    table = Table(", ".join(SHAPES), ["work", "s", "masks/s"])
    for work, rounds in alternate(tasks, repeats).items():
        table.add(work, rounds.wall, counts[work] / rounds.wall)
    return table


def _shaped(reader: iid_dask.IIDReader) -> None:
    with dask.config.set(scheduler="synchronous"):
        iid_dask.measure(reader, properties=SHAPES).compute()


def _regionprops(reader: iid_dask.IIDReader, keys: list[int]) -> None:
    from skimage.measure import regionprops

    for key in keys:
        (found,) = regionprops(reader[key].mask().astype(np.uint8))
        _ = found.area, found.centroid, found.bbox, found.perimeter, found.euler_number, found.eccentricity


def _compared(title: str, found: dict[str, Rounds], ours: str, size: float, unit: str) -> Table:
    table = Table(title, ["work", "s", unit, "x ours"])
    for work, rounds in found.items():
        table.add(work, rounds.wall, size / rounds.wall, rounds.over(found[ours]).wall)
    return table
