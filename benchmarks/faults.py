"""Jobs on a cluster while workers, or the client, are killed: what survives, and what a kill costs."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

from benchmarks import data, label_images
from benchmarks.joining import remove
from benchmarks.timing import Table, held

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from other_processes import alive, finished, stamp

WORKERS = 3
EVERY = 1.0
"""Seconds between two kills of a worker."""

KILLS = 25
"""Of workers, in one job at most: of a client that holds what it submitted the end would never come."""

HELD = 200
"""Items of that client."""

CLIENTS = 10
FEW = 2
"""Kills of a client; with --small."""

ROOT = Path(__file__).parents[1]

MAKERS = {
    "iid_dask.export.zarr:Job.write": lambda job, number, *_: f"zarr {number}",
    "iid_dask.assembling.writing:write_tile": lambda folder, block, origin: f"tile {origin[0]} {origin[1]}",
    "iid_dask.mosaic.ranges:write_range": lambda parts, base, files, part, *_: f"range {part.start}",
}
"""What makes tiles and ranges in workers -> what its items are called, by the arguments."""

SMALL = {
    "iid_dask.export.layout.TILE": 512,
    "iid_dask.export.zarr.TASK_PIXELS": 2**18,
    "iid_dask.assembling.writing.TASK_PIXELS": 2**18,
    "iid_dask.mosaic.placing.RANGE": 2**12,
}
"""Cut small, so that a job of a minute is many batches."""

DELAY = 0.05
"""Seconds by which every item takes longer: as many as tiles that are not cut small."""


SHORT = 0.01
"""The same where clients are killed."""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del repeats
    place = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    full = sizes == data.FULL
    try:
        with cut_small():
            jobs = list(prepared(sizes, folder, place))
            yield workers_table(jobs, place)
            yield clients_table(jobs[:2], place, CLIENTS if full else FEW)
    finally:
        shutil.rmtree(place)


@contextmanager
def cut_small() -> Iterator[None]:
    """Cut jobs into small batches for the time of the block."""
    replaced = [patch(name, value) for name, value in SMALL.items()]
    for one in replaced:
        one.start()
    try:
        yield
    finally:
        for one in replaced:
            one.stop()


# --- jobs -------------------------------------------------------------------------------------------------------


def prepared(sizes: data.Sizes, folder: Path, place: Path) -> Iterator[tuple[str, str]]:
    """Yield jobs and what each is given."""
    import iid_dask

    side = sizes.dense_side * 2
    labels = label_images.nuclei_store(folder, (side, side))
    yield "export", str(data.sparse(folder, side, sizes.discs // (sizes.side // side) ** 2))
    yield "assemble", str(labels)
    mosaic = place / "mosaic"
    iid_dask.to_mosaic(str(labels), mosaic, tile=512, progress=False).close()
    yield "consolidate", str(mosaic)


def export(source: str, target: str) -> None:
    """Rasterise to Zarr."""
    import iid_dask

    iid_dask.to_zarr(source, target, chunks=512, progress=False)


def assemble(source: str, target: str) -> None:
    """Write a mosaic."""
    import iid_dask

    iid_dask.to_mosaic(source, target, tile=512, progress=False).close()


def consolidate(source: str, target: str) -> None:
    """Write a mosaic as one file."""
    from iid_dask.mosaic.consolidate import consolidate as write

    write(source, target)


JOBS: dict[str, Callable[[str, str], None]] = {"export": export, "assemble": assemble, "consolidate": consolidate}
TITLES = {"export": "to_zarr", "assemble": "to_mosaic", "consolidate": "consolidate"}


def digest(target: Path) -> str:
    """Return the sha256 of a file, or of all files of a folder but for what is random in the names of tables."""
    files = [target] if target.is_file() else sorted(path for path in target.rglob("*") if path.is_file())
    found = {}
    for path in files:
        name = str(path.relative_to(target)).split("-")[0]
        if not name.endswith((".tmp", ".partial", "mosaic.json")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


# --- workers ----------------------------------------------------------------------------------------------------


def workers_table(jobs: list[tuple[str, str]], place: Path) -> Table:
    """Kill a worker every second; and, to see what would be lost, of a client that holds what it submitted."""
    columns = ["job", "items", "kills", "made", "made / items", "figure", "held", "s", "s undisturbed", "same bytes"]
    table = Table(f"a worker of {WORKERS} killed every {EVERY:g} s, items of {DELAY * 1e3:.0f} ms and more", columns)
    for job, source in jobs:
        with cluster(place) as (local, marks):
            calm, expected = timed(job, source, place / "calm"), digest(place / "calm")
            items = clear(marks)
            with killing(local) as kills:
                seconds = timed(job, source, place / "killed")
            made = clear(marks)
            same = digest(place / "killed") == expected
        remove(place / "calm", place / "killed")
        ratio = made / items
        table.add(TITLES[job], items, len(kills), made, ratio, *held(ratio, most=1.05), seconds, calm, same)
    with cluster(place) as (local, marks):
        local.scheduler.allowed_failures = HELD  # or it would end by an error
        count = HELD
        with killing(local) as kills:
            seconds = holding(marks, count)
        made = clear(marks)
    figure = held(made / count, least=1.3)
    table.add("control: client.map and gather", count, len(kills), made, made / count, *figure, seconds, "", "")
    return table


def timed(job: str, source: str, target: Path) -> float:
    """Do a job and return its seconds."""
    start = time.perf_counter()
    JOBS[job](source, str(target))
    return time.perf_counter() - start


def holding(marks: Path, count: int) -> float:
    """Do as many items with all futures held until the last is done, as a user would who maps and gathers."""
    from distributed import get_client

    start = time.perf_counter()
    client = get_client()
    client.gather(client.map(mark, [str(marks)] * count, [f"item {i}" for i in range(count)], pure=False))
    return time.perf_counter() - start


def mark(marks: str, item: str, delay: float = DELAY) -> None:
    """Note that an item is made, and take the time of one."""
    with open(Path(marks) / item, "ab") as file:
        file.write(b"x")
    time.sleep(delay)


def clear(marks: Path) -> int:
    """Return how many times items were made, and forget them."""
    made = 0
    for path in marks.iterdir():
        made += path.stat().st_size
        path.unlink()
    return made


@contextmanager
def cluster(place: Path, workers: int = WORKERS, delay: float = DELAY) -> Iterator[tuple[Any, Path]]:
    """Start workers of one thread that mark what they make, and a client in scope."""
    import dask
    from distributed import Client, LocalCluster

    # Workers are forked from a process that has loaded all: as many are there as on a cluster that replaces them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed", "iid_dask.export.zarr", "iid_dask.assembling", "pyarrow.parquet"])
    forkserver.ensure_running()
    warnings.simplefilter("ignore")
    marks = place / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    options = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "silence_logs": 50}
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        LocalCluster(n_workers=workers, threads_per_worker=1, **options) as local,
        Client(local) as client,
    ):
        client.register_plugin(marking(str(marks), delay))
        yield local, marks
    remove(marks)


def marking(marks: str, delay: float) -> Any:
    """Return a plugin that lets every worker, also one that is started later, mark what it makes."""
    from distributed import WorkerPlugin

    class Marking(WorkerPlugin):
        name = "marking"

        def setup(self, worker: Any) -> None:
            import importlib
            from functools import wraps

            def before(original: Callable[..., Any], item_of: Callable[..., str]) -> Callable[..., Any]:
                @wraps(original)
                def call(*arguments: Any, **options: Any) -> Any:
                    mark(marks, item_of(*arguments), delay)
                    return original(*arguments, **options)

                return call

            for place, item_of in MAKERS.items():
                module, _, path = place.partition(":")
                owner: Any = importlib.import_module(module)
                *owners, name = path.split(".")
                for attribute in owners:
                    owner = getattr(owner, attribute)
                setattr(owner, name, before(getattr(owner, name), item_of))

    return Marking()


@contextmanager
def killing(local: Any) -> Iterator[list[int]]:
    """Kill a worker now and then, but never the last one; gives those that were killed."""
    ended, kills = Event(), []

    def kill() -> None:
        while not ended.wait(EVERY) and len(kills) < KILLS:
            there = [w for w in local.workers.values() if w.process and w.worker_address in local.scheduler.workers]
            if len(there) > 1:
                kills.append(there[len(kills) % len(there)].process.pid)
                os.kill(kills[-1], signal.SIGKILL)

    thread = Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        ended.set()
        thread.join()


# --- clients ----------------------------------------------------------------------------------------------------


def clients_table(jobs: list[tuple[str, str]], place: Path, kills: int) -> Table:
    """Kill the client with its scheduler at random moments, and call again."""
    columns = ["job", "kills", "tiles", "kept, mean", "kept tiles made again", "same bytes", "nothing beside it"]
    table = Table("client and scheduler killed at random, and called again", columns)
    dice = random.Random(data.SEED)
    for job, source in jobs:
        with cluster(place, 2, SHORT) as (_, marks):
            JOBS[job](source, str(place / "calm"))
            expected, items = digest(place / "calm"), clear(marks)
            there = {path.name for path in place.iterdir()}
            kept, again, same, alone = [], 0, 0, 0
            for _ in range(kills):
                target = place / "again"
                stamps = kill_client(job, source, target, dice.random() * items, place / "killed-marks")
                JOBS[job](source, str(target))
                made = clear(marks)
                kept.append(len(stamps))
                again += max(0, made - (items - len(stamps)))
                same += digest(target) == expected and all(stamp(path) == at for path, at in stamps.items())
                alone += {path.name for path in place.iterdir()} == there | {target.name}
                remove(target)
        remove(place / "calm")
        table.add(TITLES[job], kills, items, sum(kept) / kills, again, f"{same} of {kills}", f"{alone} of {kills}")
    return table


def kill_client(job: str, source: str, target: Path, tiles: float, marks: Path) -> dict[Path, tuple[int, int]]:
    """Kill a client with its scheduler when it has made so many tiles; return those, with their stamps."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.faults", job, source, str(target), str(marks)]
    child = subprocess.Popen(words, start_new_session=True, stderr=subprocess.DEVNULL, cwd=ROOT)
    while len(finished(job, target)) < tiles and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    child.wait()
    while alive(child.pid):  # its workers find that they have no parent
        time.sleep(0.05)
    remove(marks)
    return {path: stamp(path) for path in finished(job, target)}


def main(job: str, source: str, target: str, place: str) -> None:
    """Be a client that will be killed."""
    with cut_small(), cluster(Path(place), 2, SHORT):
        JOBS[job](source, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
