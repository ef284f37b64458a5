"""Jobs of many tiles on a cluster: what the client does for each, and what more workers gain."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import data, fresh, label_images
from benchmarks.joining import remove
from benchmarks.timing import Table, held

TILES = (1_000, 10_000, 100_000)
FEW = (100, 1_000)
"""With --small."""

WORKERS = 2

BATCH = 100
"""Tiles of a batch that does nothing."""

PART = 20
"""Of a mosaic of the largest number of tiles only one of so many parts is written: files are not what is measured."""

GOALS = {"first": 5.0, "memory": 300.0}
"""Seconds until 100,000 tiles are on their way, and MB that they take of the client."""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables; every job is done once, in a process of its own."""
    del repeats
    place = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        full = sizes == data.FULL
        table, batch = client_table(sizes, folder, place, TILES if full else FEW)
        yield table
        table, tile = flat_table(sizes, folder, place)
        yield table
        yield workers_table(sizes, folder, place)
        yield beyond_table(batch, tile)
    finally:
        shutil.rmtree(place)


# --- the client -------------------------------------------------------------------------------------------------


def client_table(sizes: data.Sizes, folder: Path, place: Path, counts: tuple[int, ...]) -> tuple[Table, float]:
    """Run jobs of more and more tiles; return also the seconds that a batch costs which does nothing."""
    columns = ["job", "tiles", "batches", "s until the first is sent", "s in all", "MB above idle", "goal", "held"]
    table = Table("client and scheduler in one process, two workers of one thread", columns)
    image = data.sparse(folder, sizes.memory_side, 10_000)
    batch = 0.0
    for count in counts:
        jobs: dict[str, tuple[Any, ...]] = {
            "nothing": (BATCH,),
            "to_zarr": (str(image), str(place / "out.zarr")),
            "to_mosaic": (str(place), 1 if count < counts[-1] else PART),
        }
        if count < counts[-1]:
            jobs["nothing, a tile a batch"] = (1,)
        for title, arguments in jobs.items():
            told = child(WORKERS, title.partition(",")[0], count, *arguments)
            figure, kept = ("", "")
            if count == TILES[-1]:
                first, memory = (held(told[name], most=goal) for name, goal in GOALS.items())
                figure, kept = f"{first[0]} s, {memory[0]} MB", f"{first[1]}, {memory[1]}"
            table.add(title, count, told["batches"], told["first"], told["whole"], told["memory"], figure, kept)
            if "a batch" in title:
                batch = told["whole"] / told["batches"]
            remove(*place.iterdir())
    return table, batch


def child(workers: int, job: str, *arguments: Any) -> dict[str, Any]:
    """Run a function of this module in a fresh process, with a cluster."""
    command = [sys.executable, "-m", "benchmarks.scale", json.dumps([workers, job, *arguments])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=fresh.ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def nothing(count: int, size: int) -> None:
    """Do nothing, in batches."""
    from iid_dask.running import Work, batches_of, run

    run(Work(no_work, None, batches_of(count, size, 1), lambda start, stop: (start, stop)), "", progress=False)


def no_work(shared: None, start: int, stop: int) -> None:
    """Of a batch."""


def to_zarr(count: int, path: str, target: str) -> None:
    """Export an image in so many tiles of a chunk each."""
    import iid_dask

    with iid_dask.open(path) as reader:
        chunk = math.ceil(reader.shape[0] / count**0.5)
    with patch("iid_dask.export.layout.TILE", chunk):
        iid_dask.to_zarr(path, target, chunks=chunk, shards=None, progress=False)


def export(path: str, target: str) -> None:
    """Export an image as it comes."""
    import iid_dask

    iid_dask.to_zarr(path, target, progress=False)


def assemble(labels: str, target: str) -> None:
    """Write a label image as a file."""
    import iid_dask

    iid_dask.to_iid(labels, target, progress=False)


def to_mosaic(count: int, folder: str, parts: int) -> None:
    """Write an empty image as a mosaic of so many tiles of 256²."""
    import zarr

    import iid_dask

    side = math.ceil(count**0.5) * 256
    image = Path(folder) / "empty.zarr"
    zarr.create_array(image, shape=(side, side), chunks=(4096, 4096), dtype="u4")
    part = (1, parts) if parts > 1 else None
    iid_dask.to_mosaic(str(image), Path(folder) / "mosaic", tile=256, part=part, progress=False)


def main(text: str) -> None:
    """Do a job with workers of one thread, and tell what it took of this process in a line of JSON."""
    from distributed import Client, LocalCluster

    workers, name, *arguments = json.loads(text)
    warnings.simplefilter("ignore")
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(n_workers=workers, threads_per_worker=1, **options) as local, Client(local) as client:
        client.run(warm)
        nothing(BATCH, 1)  # loads what is loaded once
        sent: list[float] = []
        submit = client.submit
        client.submit = noting(submit, sent)
        idle = reset_peak()
        start = time.perf_counter()
        globals()[name](*arguments)
        whole = time.perf_counter() - start
        told = {"batches": len(sent), "first": sent[0] - start, "whole": whole, "memory": fresh.peak() - idle}
    print(json.dumps(told))


def warm() -> None:
    """Load in a worker what it loads once: a second or two, which are no part of what a tile costs."""
    import dask

    import iid_dask

    with dask.config.set(scheduler="synchronous"), tempfile.TemporaryDirectory() as folder:
        iid_dask.to_zarr(iid_dask.sample("us"), f"{folder}/us.zarr", progress=False)
        iid_dask.to_iid(np.eye(64, dtype="u4"), f"{folder}/eye.iid", progress=False)


def noting(submit: Callable[..., Any], sent: list[float]) -> Callable[..., Any]:
    """Note when it is called."""

    def noted(*arguments: Any, **options: Any) -> Any:
        sent.append(time.perf_counter())
        return submit(*arguments, **options)

    return noted


def reset_peak() -> float:
    """Begin to measure the peak of this process's memory anew where the system can, and return it, MB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return fresh.peak()


# --- workers ----------------------------------------------------------------------------------------------------


def flat_table(sizes: data.Sizes, folder: Path, place: Path) -> tuple[Table, float]:
    """Export larger and larger parts of one density; return also the seconds of a tile."""
    table = Table("to_zarr, as many discs a pixel, one worker", ["side", "tiles of 4096²", "s", "ms a tile"])
    seconds = 0.0
    for share in (4, 2, 1):
        side = sizes.zarr_side // share
        path = data.sparse(folder, side, sizes.discs // (sizes.side // side) ** 2)
        told = child(1, "export", str(path), str(place / "out.zarr"))
        tiles = math.ceil(side / 4096) ** 2
        seconds = told["whole"] / tiles
        table.add(side, tiles, told["whole"], seconds * 1e3)
        remove(place / "out.zarr")
    return table, seconds


def workers_table(sizes: data.Sizes, folder: Path, place: Path) -> Table:
    """Do the same with one worker and with two."""
    sparse = data.sparse(folder, sizes.zarr_side, sizes.discs // 2)
    nuclei = label_images.nuclei_store(folder, sizes.mosaic)
    table = Table("processes of one thread", ["job", "s, 1 worker", "s, 2 workers", "times as fast"])
    for job, source, name in (("export", sparse, "out.zarr"), ("assemble", nuclei, "out.iid")):
        seconds = []
        for workers in (1, WORKERS):
            seconds.append(child(workers, job, str(source), str(place / name))["whole"])
            remove(place / name)
        table.add("to_zarr" if job == "export" else "to_iid", *seconds, seconds[0] / seconds[1])
    return table


def beyond_table(batch: float, tile: float) -> Table:
    """Say what a million tiles on a hundred workers would take, by what was measured."""
    tiles, workers, size = 10**6, 100, 16
    table = Table(
        "10^6 tiles of 4096² on 100 workers of one thread: computed, from the rows above, for a file system that "
        "serves all of them as this machine's memory serves one",
        ["what", "how", "s"],
    )
    table.add("the workers", f"{tiles} tiles of {tile * 1e3:.3g} ms over {workers}", tiles * tile / workers)
    table.add(
        "the scheduler", f"{tiles // size} batches of {size} tiles, {batch * 1e3:.3g} ms each", tiles / size * batch
    )
    return table


if __name__ == "__main__":
    main(sys.argv[1])
