"""Mosaics of real size, beyond a file's limits, and of many sectors; each job in a process of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from benchmarks import data, fresh, label_images
from benchmarks.joining import equal, nbytes, remove
from benchmarks.label_images import SMALL_SECTOR
from benchmarks.timing import Table

WORKERS = 2


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables; each job is done once."""
    del repeats
    place = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        yield real_size_table(sizes, folder, place)
        yield from beyond_tables(sizes, place)
        yield sectors_table(sizes, folder, place)
    finally:
        shutil.rmtree(place)


# --- real size --------------------------------------------------------------------------------------------------


def real_size_table(sizes: data.Sizes, folder: Path, place: Path) -> Table:
    """From Zarr to one file and back, on threads and on worker processes."""
    source, shape = label_images.nuclei_store(folder, sizes.mosaic), sizes.mosaic
    file, store = place / "real.iid", place / "real.zarr"
    columns = ["work", "s", "CPU s", "Gpx/s", "peak MB of each process", "MB written", "same pixels"]
    table = Table(f"{shape[0]} x {shape[1]} uint32, Zarr ({nbytes(source) / 1e6:.0f} MB) to one file and back", columns)
    read = label_images.nuclei(shape)
    for workers in (0, WORKERS):
        how = f"client and {workers} workers" if workers else "two threads"
        jobs = {"to_iid": ("to_iid", str(source), str(file), workers)}
        jobs['to_zarr, labels="address"'] = ("to_zarr", str(file), str(store), workers)
        for (work, job), target in zip(jobs.items(), (file, store), strict=True):
            told = fresh.run(*job)
            speed = shape[0] * shape[1] / told.wall / 1e9
            same = equal(target, shape, read)
            table.add(f"{work}, {how}", told.wall, told.cpu, speed, told.memory, nbytes(target) / 1e6, same)
        remove(file, store)
    return table


# --- beyond the limits of a file --------------------------------------------------------------------------------


def beyond_tables(sizes: data.Sizes, place: Path) -> Iterator[Table]:
    """Write discs far apart on an image that no file can hold, from the masks of each tile; then open and ask."""
    folder, side, count = place / "beyond", sizes.huge_side, sizes.huge_discs
    told = fresh.run("write_discs", str(folder), side, count)
    facts = told.result
    size = f"{side} x {side}, {count} discs in clusters"
    title = f"{size}: {facts['tiles']} tiles of 4096², {facts['empty']} of them empty, two threads"
    table = Table(title, ["work", "s", "tiles/s", "Gpx/s of the image", "MB written"])
    for work, what in (("write_tile, masks with names", "write"), ("finish", "finish")):
        seconds = facts[what]
        cells = (facts["tiles"] / seconds, side**2 / seconds / 1e9)
        table.add(work, seconds, *cells, nbytes(folder) / 1e6 if what == "finish" else "")
    table.add(f"CPU s: {told.cpu:.1f}; peak MB: {told.memory}; {facts['entries']} entries", "", "", "", "")
    yield table

    told = fresh.run("read_discs", str(folder), side, count)
    table = Table(f"{size}: opened and asked, in a process of its own", ["work", "ms", "tiles opened", "found"])
    for work, seconds, tiles, found in told.result["rows"]:
        table.add(work, seconds * 1e3, tiles, "" if "xarray" in work else found)
    table.add(f"peak MB: {told.memory}; the windows' pixels are the discs': {told.result['same']}", "", "", "")
    yield table
    remove(folder)


# --- many sectors -----------------------------------------------------------------------------------------------


def sectors_table(sizes: data.Sizes, folder: Path, place: Path) -> Table:
    """Assemble many small files in one job."""
    rows, cols = sizes.sectors
    count, shape = rows * cols, (rows * SMALL_SECTOR[0], cols * SMALL_SECTOR[1])
    file = place / "sectors.iid"
    title = f"{count} sectors of {SMALL_SECTOR[0]}² in deflated TIFF, {shape[0]} x {shape[1]} pixels, to one file"
    columns = ["to_iid", "s", "CPU s", "ms a sector", "Gpx/s", "peak MB of each process", "MB written", "same pixels"]
    table = Table(title, columns)
    pattern = label_images.nuclei_sectors(folder, sizes.sectors, SMALL_SECTOR)
    for workers in (0, WORKERS):
        told = fresh.run("to_iid", pattern, str(file), workers)
        how = f"client and {workers} workers" if workers else "two threads"
        speed, same = shape[0] * shape[1] / told.wall / 1e9, equal(file, shape, label_images.nuclei(shape))
        table.add(how, told.wall, told.cpu, told.wall / count * 1e3, speed, told.memory, nbytes(file) / 1e6, same)
        remove(file)
    return table
