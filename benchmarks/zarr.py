"""Masks to Zarr: against the codec alone, against writing from memory, against zarr-python as it comes."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import xarray as xr
import zarr

import iid_dask
from benchmarks import data
from benchmarks.from_memory import CHUNK, SHARD, THREADS, floor, from_memory, layout_table, remove
from benchmarks.timing import Spent, Table, alternate, held, spent
from iid_dask.views import View

EXPORT = """
import sys, time, warnings
import dask, iid_dask
warnings.simplefilter("ignore")
begin = time.perf_counter()
with dask.config.set(scheduler="threads", num_workers=2):
    iid_dask.to_zarr(sys.argv[1], sys.argv[2], progress=False)
print(time.perf_counter() - begin)
try:  # ru_maxrss would count the parent's peak too: Linux hands it on through fork and exec
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))
except OSError:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024))
"""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    path = data.sparse(folder, sizes.side, sizes.discs)
    store = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}.zarr"
    try:
        with iid_dask.open(path) as reader:
            view = View(reader, (sizes.zarr_side, sizes.zarr_side))
            yield export_table(path, view, store, repeats)
            yield layout_table(view, store, repeats)
        yield memory_table(data.sparse(folder, sizes.memory_side, sizes.discs), sizes.memory_side, store)
    finally:
        remove(store)


# --- end to end -------------------------------------------------------------------------------------------------


def export_table(path: Path, view: View, store: Path, repeats: int) -> Table:
    """Compare `to_zarr` with its floor, with writing from memory, and with zarr-python's own way."""
    kwargs: dict[str, Any] = {"shape": view.shape, "progress": False}
    tasks: dict[str, Callable[[], Spent]] = {
        "floor: Zstd(1) of the same chunks, nothing else": lambda: floor(view),
        "write the same arrays from memory": lambda: from_memory(view, store),
        "the floor, and copying the chunks out of their tiles": lambda: floor(view, copy=True),
        "to_zarr": lambda: _to_zarr(path, store, entries=False, **kwargs),
        "to_zarr, with the entry table": lambda: _to_zarr(path, store, **kwargs),
        "to_zarr, shards=4096": lambda: _to_zarr(path, store, entries=False, shards=SHARD, **kwargs),
        "xarray's to_zarr, zarr-python as it comes": lambda: _plain(path, store, view.shape),
    }
    _to_zarr(path, store, entries=False, shape=(CHUNK, CHUNK), progress=False)
    found = alternate(tasks, repeats, budget=150)
    alone, memory = (found[name] for name in list(tasks)[:2])
    pixels = view.shape[0] * view.shape[1]
    columns = ["work", "s", "Gpx/s", "x floor's speed", "figure", "held", "x time from memory", "figure", "held"]
    table = Table(
        f"sparse to Zarr: {view.shape[0]} x {view.shape[1]}, chunks of {CHUNK}², {THREADS} threads",
        [*columns, "CPU s", "CPU: x floor's speed", "CPU: x from memory"],
    )
    for work, rounds in found.items():
        speed, times = alone.over(rounds), rounds.over(memory)
        figures = [("", "")] * 2
        if work == "to_zarr":
            figures = [held(speed.wall, least=0.6), held(times.wall, most=1.45)]
        cells = (rounds.wall, pixels / rounds.wall / 1e9, speed.wall, *figures[0], times.wall, *figures[1])
        table.add(work, *cells, rounds.cpu, speed.cpu, times.cpu)
    return table


def _to_zarr(path: Path, store: Path, **options: Any) -> Spent:
    with dask.config.set(scheduler="threads", num_workers=THREADS):
        seconds = spent(lambda: iid_dask.to_zarr(path, store, **options))
    remove(store)
    return seconds


def _plain(path: Path, store: Path, shape: tuple[int, int]) -> Spent:
    def write() -> None:
        codec = zarr.codecs.ZstdCodec(level=1)
        with xr.open_dataset(path, engine="iid", chunks={}, shape=shape, entries=False) as ds:
            encoding = {"label": {"chunks": (CHUNK, CHUNK), "compressors": (codec,)}}
            ds[["label"]].drop_encoding().to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)

    with dask.config.set(scheduler="threads", num_workers=THREADS):
        seconds = spent(write)
    remove(store)
    return seconds


# --- memory -----------------------------------------------------------------------------------------------------


def memory_table(path: Path, side: int, store: Path) -> Table:
    """Export a whole image in a process of its own and ask for its peak."""
    done = subprocess.run([sys.executable, "-c", EXPORT, str(path), str(store)], check=True, capture_output=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    stored = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
    remove(store)
    table = Table(
        f"export of {side} x {side} in a process of its own, tiles of 4096², two threads",
        ["s", "Gpx/s", "stored MB", "peak MB", "figure", "held"],
    )
    peak = peak * 2**20 / 1e6
    table.add(seconds, side**2 / seconds / 1e9, stored / 1e6, peak, *held(peak, most=700))
    return table
