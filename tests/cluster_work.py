"""What tests of clusters share: work and faults for their processes, which import this module, and killers of them."""

from __future__ import annotations

import ctypes
import errno
import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask
from distributed import Client, LocalCluster, WorkerPlugin

import iid_dask
from iid_dask import kernels
from iid_dask.mosaic import consolidate as mosaic

LOOPBACK = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
"""Options of a LocalCluster that nobody outside can reach."""


@contextmanager
def separate_cluster(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a scheduler, which is given, and two workers in processes of their own; a file tells its address."""
    words = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    python = [sys.executable, "-m"]
    scheduler = [*python, "distributed.cli.dask_scheduler", *words, "--port", "0"]
    worker = [*python, "distributed.cli.dask_worker", *words, "--nthreads", "1", "--nworkers", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": file.parent}
    children = [subprocess.Popen(command, **quiet) for command in (scheduler, worker)]
    try:
        deadline = time.monotonic() + 60
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield children[0]
    finally:
        for child in reversed(children):
            child.terminate()
        for child in children:
            child.wait(30)


@contextmanager
def quick_workers() -> Iterator[None]:
    """Let worker processes be forked from one that has loaded all modules, so that killed ones are soon replaced."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed", "iid_dask.export.zarr", "iid_dask.assembling", "pyarrow.parquet"])
    forkserver.ensure_running()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


# --- work -------------------------------------------------------------------------------------------------------


def write(seconds: float, folder: str, start: int, stop: int) -> list[int]:
    """Note every time that an item is made."""
    for item in range(start, stop):
        time.sleep(seconds)
        with open(Path(folder) / str(item), "a") as file:
            file.write("x")
    return list(range(start, stop))


def fail_at_0(seconds: float, folder: str, start: int, stop: int) -> list[int]:
    """Fail at the first item, after a while in which others are done."""
    if start == 0:
        time.sleep(5 * seconds)
        raise OSError(errno.EIO, "broken", folder)
    return write(seconds, folder, start, stop)


def die_together(folder: str, number: int, of: int) -> int:
    """Kill the worker when as many tasks run, each the first time."""
    mark = Path(folder) / str(number)
    if mark.exists():
        return number
    mark.touch()
    while len(list(Path(folder).iterdir())) < of:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("it was killed")


def die_of_57(shared: Any, folder: str, start: int, stop: int) -> list[int]:
    """Kill the worker at one item, after a while in which others finish."""
    for item in range(start, stop):
        if item == 57:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        write(0, folder, item, item + 1)
    return list(range(start, stop))


def write_in_place(dies: bool, folder: str, start: int, stop: int) -> None:
    """Write files as no writer should: under their names from the first byte on, and never again what is there."""
    for item in range(start, stop):
        path = Path(folder) / str(item)
        if path.exists():
            continue
        with open(path, "wb", buffering=0) as file:
            file.write(b"first half")
            if dies and item % 20 == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(b"second half")


SMALL = {
    "iid_dask.export.layout.TILE": 50,
    "iid_dask.export.zarr.TASK_PIXELS": 5000,
    "iid_dask.assembling.writing.TASK_PIXELS": 5000,
    "iid_dask.mosaic.placing.RANGE": 2000,
}
"""What is cut small, so that small images are many batches of two tiles."""


def export(source: str, target: str) -> None:
    """Rasterise to Zarr in 240 tiles, if it is the sample."""
    iid_dask.to_zarr(source, target, chunks=50, progress=False)


def assemble(source: str, target: str) -> None:
    """Write a mosaic of many tiles."""
    iid_dask.to_mosaic(source, target, tile=50, progress=False).close()


def consolidate(source: str, target: str) -> None:
    """Write a mosaic as one file, in many ranges."""
    mosaic.consolidate(source, target)


def main(job: str, *args: str) -> None:
    """Be a client with a scheduler and two workers that does a job by its name."""
    with ExitStack() as stack:
        for name, value in SMALL.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(quick_workers())
        local = stack.enter_context(LocalCluster(n_workers=2, threads_per_worker=1, **LOOPBACK))
        stack.enter_context(Client(local))
        globals()[job](*args)


# --- killers ----------------------------------------------------------------------------------------------------


@contextmanager
def killing(local: LocalCluster, every: float, kills: list[int], most: int = 5) -> Iterator[None]:
    """Kill a running worker every so many seconds, but never the last one, and no more than some in all.

    Where workers die as fast as they are replaced, a client that holds its futures never gets to an end.
    """
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(every) and len(kills) < most:
            there = [w for w in local.workers.values() if w.process and w.worker_address in local.scheduler.workers]
            if len(there) > 1:
                pid = there[len(kills) % len(there)].process.pid
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# --- faults in workers ------------------------------------------------------------------------------------------

MAKERS = {
    "iid_dask.images.raw:RawImage.read": lambda image, box: f"read {box.min_row} {box.min_col}",
    "iid_dask.export.zarr:Job.write": lambda job, number, *_: f"zarr {number}",
    "iid_dask.assembling.writing:write_tile": lambda folder, block, origin: f"tile {origin[0]} {origin[1]}",
    "iid_dask.mosaic.ranges:write_range": lambda parts, base, files, part, *_: f"range {part.start}",
}
"""What makes tiles and ranges in workers -> what their items are called, by the arguments."""

FSYNC, REPLACE, PREADV, READ_RANGES = os.fsync, os.replace, os.preadv, kernels.read_ranges
"""As they are before a fault replaces them."""

Fault = Callable[[str, int], None]
"""Item, times that it was tried before -> nothing, or something bad."""


def no_fault(item: str, tries: int) -> None:
    """Nothing."""


@dataclass(frozen=True)
class Die:
    """Kill the worker at some items' first try, at a random moment of the next milliseconds, and note it in a file.

    Every item takes a little longer: of those that take less than a message, more are done than the client knows of.
    """

    note: str
    one_in: int
    seed: int = 0
    within: float = 0.03

    def __call__(self, item: str, tries: int) -> None:
        time.sleep(0.01)
        chance = random.Random(f"{self.seed} {item}")
        if not tries and chance.randrange(self.one_in) == 0:
            threading.Timer(chance.random() * self.within, self._die).start()

    def _die(self) -> None:
        with open(self.note, "ab", buffering=0) as file:
            file.write(b"x")
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Poison:
    """Do something bad at one item, always."""

    item: str
    how: str

    def __call__(self, item: str, tries: int) -> None:
        if item != self.item:
            return
        time.sleep(1.5)  # a nanny whose worker dies while it starts does not start it again
        if self.how == "segfault":
            ctypes.string_at(0)
        if self.how == "kill":  # as systems do when memory is short
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "broken disk":
            kernels.read_ranges, os.preadv = _read_nothing, _fail
        if self.how == "broken file":
            _fail()


def _read_nothing(*_: Any) -> int:
    return 0


def _fail(*_: Any) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@dataclass(frozen=True)
class Freeze:
    """Stop the worker at some items' first try, just before what it writes is forced to disk or gets its name."""

    items: tuple[str, ...]

    def __call__(self, item: str, tries: int) -> None:
        if item in self.items and not tries:
            os.fsync, os.replace = _stopping(os.fsync), _stopping(os.replace)


def _stopping(original: Callable[..., Any]) -> Callable[..., Any]:
    def stop(*args: Any) -> Any:
        os.fsync, os.replace = FSYNC, REPLACE
        os.kill(os.getpid(), signal.SIGSTOP)
        return original(*args)

    return stop


class Faults(WorkerPlugin):
    """In every worker, also those that are started later: note what is made, and do what goes wrong.

    Parameters
    ----------
    marks : Path
        Folder with a file an item, of one byte a try.
    fault : Fault
    """

    name = "faults"

    def __init__(self, marks: Path, fault: Fault) -> None:
        self.marks, self.fault = str(marks), fault
        self.replaced: list[tuple[Any, str, Any]] = []

    def setup(self, worker: Any) -> None:
        """Put ourselves before what makes tiles."""
        for place, item_of in MAKERS.items():
            module, _, path = place.partition(":")
            owner: Any = importlib.import_module(module)
            *owners, name = path.split(".")
            for attribute in owners:
                owner = getattr(owner, attribute)
            self.replaced.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._before(getattr(owner, name), item_of))

    def teardown(self, worker: Any) -> None:
        """Put all back."""
        for owner, name, original in self.replaced:
            setattr(owner, name, original)
        os.fsync, os.replace, os.preadv, kernels.read_ranges = FSYNC, REPLACE, PREADV, READ_RANGES

    def _before(self, original: Callable[..., Any], item_of: Callable[..., str]) -> Callable[..., Any]:
        @wraps(original)
        def call(*args: Any, **options: Any) -> Any:
            item = item_of(*args)
            mark = Path(self.marks) / item
            tries = mark.stat().st_size if mark.exists() else 0
            with open(mark, "ab") as file:
                file.write(b"x")
            self.fault(item, tries)
            return original(*args, **options)

        return call


def write_late(path: str) -> None:
    """Stop the worker, and write when it is woken."""
    os.kill(os.getpid(), signal.SIGSTOP)
    Path(path).write_bytes(b"late")


@contextmanager
def faults(client: Client, marks: Path, fault: Fault) -> Iterator[None]:
    """Let workers note what they make, and do what goes wrong, for the time of the block."""
    marks.mkdir(exist_ok=True)
    client.register_plugin(Faults(marks, fault))
    try:
        yield
    finally:
        client.unregister_worker_plugin(Faults.name)


async def give_up(addresses: list[str], dask_scheduler: Any = None) -> None:
    """Let the scheduler take workers for dead, as it does when it has heard nothing of them for some minutes."""
    for address in addresses:
        await dask_scheduler.remove_worker(address, stimulus_id="frozen", close=False)


def tries(marks: Path) -> dict[str, int]:
    """How many times each item was tried."""
    return {path.name: path.stat().st_size for path in marks.iterdir()}
