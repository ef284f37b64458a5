"""Jobs for processes of their own: each imports and prepares what it needs, then gives the work to be measured.

Nothing is imported at the top: what a job does not need would count as its memory.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Work = Callable[[], Any]
THREADS = 2
TILE = 4096
"""Of the mosaic beyond a file's limits."""
WINDOW = 4096


# --- others' ----------------------------------------------------------------------------------------------------


@contextmanager
def vips(paths: list[str], across: int, target: str, compression: str) -> Iterator[Work]:
    """Join tiles into a tiled TIFF by pyvips, as its documentation does."""
    import pyvips

    def work() -> None:
        images = [pyvips.Image.new_from_file(path, access="sequential") for path in paths]
        joined = pyvips.Image.arrayjoin(images, across=across)
        joined.tiffsave(target, tile=True, tile_width=512, tile_height=512, compression=compression)

    yield work


# --- ours -------------------------------------------------------------------------------------------------------


@contextmanager
def scheduler(workers: int) -> Iterator[None]:
    """Run tasks on worker processes of one thread each; 0: on threads of this process."""
    import dask

    warnings.simplefilter("ignore")
    if not workers:
        with dask.config.set(scheduler="threads", num_workers=THREADS):
            yield
        return
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {
        "processes": True,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "silence_logs": 40,
    }
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster):
        yield


@contextmanager
def to_iid(labels: str, target: str, workers: int = 0, tile: Any = None) -> Iterator[Work]:
    """Write a label image, or a grid of them given by its pattern, as a file."""
    from iid_dask import grid_of
    from iid_dask import to_iid as assemble

    def work() -> None:
        source = grid_of(labels) if "{" in labels else labels
        assemble(source, target, progress=False, tile=tile)

    with scheduler(workers):
        yield work


@contextmanager
def to_zarr(path: str, target: str, workers: int = 0) -> Iterator[Work]:
    """Write the label image of a file to Zarr, with the labels that it was made from."""
    import xarray as xr

    from iid_dask import to_zarr as export

    def work() -> None:
        with xr.open_dataset(path, engine="iid", chunks={}, labels="address", entries=False) as ds:
            export(ds, target, progress=False)

    with scheduler(workers):
        yield work


@contextmanager
def to_iid_to_zarr(labels: str, path: str, target: str, tile: Any = None) -> Iterator[Work]:
    """Write label images as a file, and that to Zarr."""
    with to_iid(labels, path, 0, tile) as first, to_zarr(path, target) as then:

        def work() -> None:
            first()
            then()

        yield work


@contextmanager
def write_discs(folder: str, side: int, count: int) -> Iterator[Work]:
    """Write a mosaic of discs tile by tile, as a segmenter would, and finish it."""
    import dask

    from benchmarks.label_images import Discs, disc_shapes
    from iid_dask import finish, prepare, write_tile

    discs, shapes = Discs.of(side, count), disc_shapes()
    job = prepare(folder, (side, side), stitch="name", tile=TILE)
    grid = list(job.grid or ())
    items = [discs.masks(tile.box, shapes) for tile in grid]

    def write(numbers: range) -> None:
        for i in numbers:
            write_tile(folder, items[i], grid[i].origin)

    def work() -> dict[str, Any]:
        start = time.perf_counter()
        batches = [range(first, min(first + 64, len(grid))) for first in range(0, len(grid), 64)]
        dask.compute(*(dask.delayed(write)(numbers) for numbers in batches))
        written = time.perf_counter()
        with finish(folder, progress=False) as mosaic:
            entries = len(mosaic)
        finished = time.perf_counter() - written
        empty = sum(not found for found in items)
        return {
            "tiles": len(grid),
            "empty": empty,
            "entries": entries,
            "write": written - start,
            "finish": finished,
        }

    with scheduler(0):
        yield work


@contextmanager
def read_discs(folder: str, side: int, count: int) -> Iterator[Work]:
    """Open a mosaic of discs, read windows far from the corner, and ask.

    Rows: what was asked, seconds, tiles opened, found; and whether the windows show the discs and nothing else.
    """
    import numpy as np
    import xarray as xr

    from benchmarks.label_images import Discs
    from iid_dask import BBox, open_mosaic

    discs = Discs.of(side, count)
    row, col = (discs.places[discs.farthest] + discs.sizes[discs.farthest] // 2).tolist()
    box, other = (discs.window(number, WINDOW) for number in (discs.farthest, 0))
    names = [b"%d" % number for number in range(0, count, max(1, count // 1_000))]
    points = discs.places[:1_000] + discs.sizes[:1_000, None] // 2
    opened = tiles_opened()
    held: dict[Any, Any] = {}

    def read(window: BBox) -> int:
        with xr.open_dataset(folder, engine="iid", chunks={}, entries=False) as ds:
            held[window] = ds.label[window.slices].values
        return int(held[window].any())

    def open_it() -> int:
        held["mosaic"] = open_mosaic(folder)
        return len(held["mosaic"])

    steps: dict[str, Callable[[], int]] = {
        "open": open_it,
        f"{WINDOW}² pixels at ({box.min_row}, {box.min_col}) through xarray, the first": lambda: read(box),
        f"{WINDOW}² pixels at ({other.min_row}, {other.min_col}) through xarray": lambda: read(other),
        f"at ({row}, {col})": lambda: len(held["mosaic"].at(row, col)),
        f"at, {len(points)} pixels": lambda: len(held["mosaic"].at(*points.T)[0]),
        f"region of {WINDOW}²": lambda: len(held["mosaic"].region(box)),
        f"look_for {len(names)} names": lambda: len(held["mosaic"].look_for(names)),
    }

    def work() -> dict[str, Any]:
        rows = []
        for what, step in steps.items():
            opened.clear()
            start = time.perf_counter()
            found = step()
            rows.append((what, time.perf_counter() - start, len(opened), found))
        same = all(np.array_equal(held[window] > 0, discs.shown(window)) for window in (box, other))
        return {"rows": rows, "same": same}

    with scheduler(0):
        yield work


def tiles_opened() -> set[str]:
    """Return a set into which the path of every tile's file goes that this process opens from now on."""
    import sys

    paths: set[str] = set()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and "/tiles/" in arguments[0]:
            paths.add(arguments[0])

    sys.addaudithook(hook)
    return paths
