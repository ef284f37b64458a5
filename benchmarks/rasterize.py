"""Masks to arrays, one thread: against filling the same arrays, and against GDAL."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import iid_dask
from benchmarks import data
from benchmarks.timing import Spent, Table, alternate, held, spent
from iid_dask import BBox, pieces, raster
from iid_dask.views import Samples, View, Window, sampled

TILE = 4096
STRIDE = 64
GDAL_TILES = 4


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del out
    for name, path in (
        ("sparse", data.sparse(folder, sizes.side, sizes.discs)),
        ("dense", data.dense(folder, sizes.dense_side, sizes.cells)),
    ):
        with iid_dask.open(path) as reader:
            yield tiles_table(name, View(reader, reader.shape), repeats)
            yield gdal_table(name, View(reader, reader.shape), repeats)
    with iid_dask.open(iid_dask.sample("us")) as reader:
        yield sample_table(View(reader, reader.shape), repeats)


# --- all tiles --------------------------------------------------------------------------------------------------


def tiles_table(name: str, view: View, repeats: int) -> Table:
    """Compare all tiles of a file with filling arrays of their shapes."""
    windows = list(tiles(view.shape))
    blocks = View(view.reader, view.shape, stride=STRIDE, reduce="any")
    overview = View(view.reader, view.shape, stride=STRIDE)
    picks = Samples(*(sampled(overview, np.arange(n), axis) for axis, n in enumerate(overview.out_shape)))
    tasks: dict[str, Callable[[], Spent]] = {
        "fill uint32": lambda: _each(windows, lambda window: np.full(window.shape, 1, np.uint32)),
        "label": lambda: _each(windows, lambda window: raster.label(view, window)),
        "mask": lambda: _each(windows, lambda window: raster.mask(view, window)),
        "depth": lambda: _each(windows, lambda window: raster.depth(view, window)),
        f"overview, stride={STRIDE}": lambda: _each([picks], lambda picks: raster.label(overview, picks)),
        f"overview, stride={STRIDE}, reduce=any": lambda: _each(
            [Window(BBox(0, 0, *blocks.out_shape))], lambda window: raster.label(blocks, window)
        ),
    }
    for window in windows[:1]:  # kernels are compiled, columns are made
        raster.label(view, window), raster.depth(view, window)
    raster.label(overview, picks), raster.label(blocks, Window(BBox(0, 0, 1, 1)))

    found = alternate(tasks, repeats)
    pixels = view.shape[0] * view.shape[1]
    table = Table(
        f"{name}: {view.shape[0]} x {view.shape[1]}, {len(view.reader)} masks, {len(windows)} tiles of {TILE}², "
        "one thread",
        ["work", "s", "Gpx/s of the image", "x fill", "figure", "held", "CPU: x fill"],
    )
    for work, rounds in found.items():
        times = rounds.over(found["fill uint32"])
        figure = held(times.wall, most=1.8) if (name, work) == ("sparse", "label") else ("", "")
        table.add(work, rounds.wall, pixels / rounds.wall / 1e9, times.wall, *figure, times.cpu)
    return table


def tiles(shape: tuple[int, int]) -> Iterator[Window]:
    """Yield windows of `TILE` rows and columns that cover an image."""
    for row in range(0, shape[0], TILE):
        for col in range(0, shape[1], TILE):
            yield Window(BBox(row, col, min(row + TILE, shape[0]), min(col + TILE, shape[1])))


def _each(items: list[Any], work: Callable[[Any], Any]) -> Spent:
    def all_of_them() -> None:
        for item in items:
            work(item)

    return spent(all_of_them)


# --- GDAL -------------------------------------------------------------------------------------------------------


def gdal_table(name: str, view: View, repeats: int) -> Table:
    """Compare some tiles with GDAL's rasterize of the same masks as polygons."""
    table = Table(
        f"{name}: GDAL through rasterio.features.rasterize (making the polygons is not counted)",
        ["work", "s", "Gpx/s", "ours is x faster", "same pixels"],
    )
    if importlib.util.find_spec("rasterio") is None:
        table.add("rasterio is not installed", "", "", "", "")
        return table
    windows = list(tiles(view.shape))
    windows = windows[:: max(1, len(windows) // GDAL_TILES)][:GDAL_TILES]
    shapes = [_polygons(view, window) for window in windows]
    pairs = list(zip(windows, shapes, strict=True))
    same = all(np.array_equal(raster.label(view, window), _gdal(window, polygons)) for window, polygons in pairs)
    found = alternate(
        {
            "label": lambda: _each(windows, lambda window: raster.label(view, window)),
            "GDAL": lambda: _each(pairs, lambda pair: _gdal(*pair)),
        },
        min(repeats, 3),
    )
    pixels = sum(window.box.height * window.box.width for window in windows)
    for work, rounds in found.items():
        faster = found["GDAL"].over(rounds).wall
        table.add(f"{work}, {len(windows)} tiles", rounds.wall, pixels / rounds.wall / 1e9, faster, same)
    return table


def _polygons(view: View, window: Window) -> list[tuple[dict[str, Any], int]]:
    from affine import Affine
    from rasterio import features

    regions = pieces.touching(view.reader, window.box)
    found = []
    for key in np.unique(view.reader.columns.region_keys(regions)).tolist():
        for region in view.reader[key].regions:
            mask = region.mask()
            corner = Affine.translation(region.bbox.min_col, region.bbox.min_row)
            outlines = features.shapes(mask.view(np.uint8), mask=mask, transform=corner)
            found += [(outline, key + 1) for outline, _ in outlines]
    return found


def _gdal(window: Window, polygons: list[tuple[dict[str, Any], int]]) -> np.ndarray:
    from affine import Affine
    from rasterio import features

    corner = Affine.translation(window.box.min_col, window.box.min_row)
    return features.rasterize(polygons, out_shape=window.shape, transform=corner, dtype=np.uint32)


# --- the sample -------------------------------------------------------------------------------------------------


def sample_table(view: View, repeats: int) -> Table:
    """Compare the sample's label image with decoding every mask and assigning it, as one does without a kernel."""
    whole = Window(BBox(0, 0, *view.shape))

    def decode() -> np.ndarray:
        out = np.zeros(view.shape, np.uint32)
        for key, entry in view.reader.items():
            for region in entry.regions:
                out[region.bbox.slices][region.mask()] = key + 1
        return out

    assert np.array_equal(decode(), raster.label(view, whole))
    found = alternate(
        {
            "label, 20 times": lambda: _each([whole] * 20, lambda window: raster.label(view, window)),
            "every mask decoded in Python": lambda: spent(decode),
        },
        repeats,
    )
    table = Table(
        f"sample us.iid: {view.shape[0]} x {view.shape[1]}, {len(view.reader)} masks", ["work", "ms", "x label"]
    )
    label, decoded = found.values()
    table.add("label", label.wall / 20 * 1e3, 1.0)
    table.add("every mask decoded in Python", decoded.wall * 1e3, decoded.over(label).wall * 20)
    return table
