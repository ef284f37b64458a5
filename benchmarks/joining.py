"""Label tiles joined: to a TIFF by pyvips, to a file and to Zarr by us, each in a process of its own."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import zarr

from benchmarks import data, fresh, label_images
from benchmarks.label_images import SECTOR
from benchmarks.timing import Table, held
from iid_dask import BBox

TILE = 4096


def joining_table(sizes: data.Sizes, folder: Path, place: Path, repeats: int) -> Table:
    """Join label tiles, each way in a process of its own: to a TIFF by pyvips, to a file and to Zarr by us."""
    pattern = label_images.nuclei_sectors(folder, sizes.joined, SECTOR)
    shape = sizes.joined[0] * SECTOR[0], sizes.joined[1] * SECTOR[1]
    tiff, file, store = (str(place / name) for name in ("joined.tif", "joined.iid", "joined.zarr"))
    rows, cols = map(range, sizes.joined)
    paths = [pattern.format(row=row, col=col) for row in rows for col in cols]
    jobs: dict[str, tuple[Any, ...]] = {
        "to_iid": ("to_iid", pattern, file),
        "to_iid, tile=sector": ("to_iid", pattern, file, 0, SECTOR),
        "to_iid, then to_zarr": ("to_iid_to_zarr", pattern, file, store),
        "to_iid, tile=sector, then to_zarr": ("to_iid_to_zarr", pattern, file, store, SECTOR),
    }
    if importlib.util.find_spec("pyvips"):
        jobs["pyvips, tiled TIFF, not compressed"] = ("vips", paths, sizes.joined[1], tiff, "none")
        jobs["pyvips, tiled TIFF, deflate"] = ("vips", paths, sizes.joined[1], tiff, "deflate")
    read, same, stored = label_images.nuclei(shape), {}, {}

    def look(name: str) -> None:
        target = Path(tiff if "pyvips" in name else store if "zarr" in name else file)
        stored[name] = nbytes(target)
        if name not in same:
            same[name] = equal(target, shape, read)
        remove(tiff, file, store)

    found, told = fresh.compare(jobs, repeats, budget=240, between=look)
    title = f"{len(paths)} label tiles of {SECTOR[0]} x {SECTOR[1]}, deflated TIFF, joined: {shape[0]} x {shape[1]}"
    return _joined(title, found, told, same, stored)


def _joined(title: str, found: Any, told: Any, same: dict[str, bool], stored: dict[str, int]) -> Table:
    peers = [name for name in found if "pyvips" in name]
    compared = [column for name in peers for column in (f"x time of {name.split(', ')[-1]}", "figure", "held")]
    columns = ["work", "s", "CPU s", "peak MB", "MB written", "same pixels", *compared, "memory: figure, MB", "held"]
    table = Table(title, columns)
    most = {name: max(sum(one.peaks) for one in told[name]) for name in found}
    for name, rounds in found.items():
        cells: list[Any] = [rounds.wall, rounds.cpu, most[name], stored[name] / 1e6, same[name]]
        for peer in peers:
            times = rounds.over(found[peer]).wall
            cells += [times, *(("", "") if name in peers else held(times, most=1))]
        limit = round(min((most[peer] for peer in peers), default=0))
        table.add(name, *cells, *(("", "") if name in peers or not peers else held(most[name], most=limit)))
    return table


def equal(target: Path, shape: tuple[int, int], read: Callable[[BBox], np.ndarray]) -> bool:
    """Whether a TIFF, Zarr store or file holds an image, compared window by window."""
    if target.suffix == ".tif":
        from iid_dask.images import as_image

        image = as_image(target)
        return _all_equal(image.read, image.shape, shape, read)
    if target.suffix == ".iid":
        import xarray as xr

        with xr.open_dataset(target, engine="iid", labels="address", entries=False) as ds:
            return _all_equal(lambda box: ds.label[box.slices].values, ds.label.shape, shape, read)
    array = zarr.open_array(target / "label", mode="r")
    return _all_equal(lambda box: array[box.slices], array.shape, shape, read)


def _all_equal(window: Any, found: Any, shape: tuple[int, int], read: Callable[[BBox], np.ndarray]) -> bool:
    if tuple(found) != shape:
        return False
    compare = dask.delayed(lambda box: bool(np.array_equal(window(box), read(box))))
    return all(dask.compute(*map(compare, label_images.boxes(shape, TILE)), scheduler="threads", num_workers=2))


def nbytes(path: Path) -> int:
    """Return the size of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def remove(*paths: str | Path) -> None:
    """Remove files and folders that are there."""
    for path in map(Path, paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
