"""Memory of jobs against their plans: the most that a fresh process, or a worker, takes, and what was planned.

Short in the tests, long in the benchmarks. Each case runs in a process of its own, which prints one line of JSON:
``python planned.py measure CASE FOLDER``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ENVIRONMENT = {"MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""As dask gives it to its workers: without, freed memory stays with the process, and the peak is noise."""

SPARSE = 10_000
"""Entries of a sparse file."""


@dataclass(frozen=True)
class Case:
    """A job, and how it runs.

    Attributes
    ----------
    job : str
        A function of this module's `JOBS`.
    content : str
        "cells"; "noise", each pixel its own label; "dust", one label of lone pixels; "rings" in rings; "sparse".
    side : int
        Rows and columns of the image.
    options : dict
        Of the job.
    threads : int
    workers : int
        Processes of a cluster; 0: threads of the process itself.
    memory_limit : int
        Bytes of each worker; 0: none.
    forgotten : str
        Function or number of the package, ``module:name``, that counts nothing: the control.
    """

    job: str
    content: str
    side: int
    options: dict[str, Any]
    threads: int = 1
    workers: int = 0
    memory_limit: int = 0
    forgotten: str = ""

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        where = f"{self.workers} workers of " if self.workers else ""
        return f"{self.job}, {self.content} {self.side}², {options or 'defaults'}, {where}{self.threads} threads"


@dataclass(frozen=True)
class Measured:
    """Bytes of one case.

    Attributes
    ----------
    planned, usual : int
        Of a process at work.
    peaks : list of int
        Of the process, or of each worker.
    said : str
        The plan.
    events : dict
        How often workers were paused, or began anew, and bytes that they spilled.
    """

    planned: int
    usual: int
    peaks: list[int]
    said: str
    events: dict[str, int]

    @property
    def share(self) -> float:
        """Of what was planned, what was taken."""
        return max(self.peaks) / self.planned


def measured(case: Case, folder: Path) -> Measured:
    """Run a case in a fresh process; its data are made before, in another one."""
    run("prepare", case, folder)
    return Measured(**run("measure", case, folder))


def run(what: str, case: Case, folder: Path) -> Any:
    """Call a function of this module in a fresh process."""
    command = [sys.executable, __file__, what, json.dumps(vars(case)), str(folder)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT, timeout=1800
    )
    return json.loads(done.stdout.splitlines()[-1])


# --- data -------------------------------------------------------------------------------------------------------


def labels_of(content: str, rows: slice, side: int) -> Any:
    """Rows of a label image, uint32."""
    import numpy as np

    r, c = np.ogrid[rows, 0:side]
    if content == "noise":
        return (r * side + c + 1).astype(np.uint32)
    if content == "dust":
        return ((r % 2 == 0) & (c % 2 == 0)).astype(np.uint32)
    if content == "rings":
        return (np.minimum(np.minimum(r, c), np.minimum(side - 1 - r, side - 1 - c)) + 1).astype(np.uint32)
    disc = (r % 32 - 16) ** 2 + (c % 32 - 16) ** 2 < 12**2
    return np.where(disc, (r // 32) * (side // 32) + c // 32 + 1, 0).astype(np.uint32)


def prepare(case: Case, folder: Path) -> str:
    """Make the label image of a case, and the file and mosaic of it, unless they are there."""
    stem = folder / f"{case.content}{case.side}"
    needs = JOBS[case.job].needs
    makers = {"zarr": _make_labels, "iid": _make_file, "mosaic": _make_mosaic}
    for kind in ("zarr", "iid", "mosaic")[: ("zarr", "iid", "mosaic").index(needs) + 1]:
        target = stem.with_suffix(f".{kind}")
        if target.exists() or (kind == "zarr" and case.content == "sparse"):
            continue
        makers[kind](case, stem, target)
    return str(stem)


def _make_labels(case: Case, stem: Path, target: Path) -> None:
    import zarr

    step = min(512, case.side)
    array = zarr.create_array(target, shape=(case.side, case.side), chunks=(step, step), dtype="u4")
    for row in range(0, case.side, step):
        some = slice(row, min(row + step, case.side))
        array[some] = labels_of(case.content, some, case.side)


def _make_file(case: Case, stem: Path, target: Path) -> None:
    import iid_dask

    if case.content == "sparse":
        _make_sparse(case.side, target)
    else:
        groups = None if case.content == "noise" else lambda label: "all"
        iid_dask.to_iid(stem.with_suffix(".zarr"), target, progress=False, tile=2048, groups=groups)


def _make_sparse(side: int, target: Path) -> None:
    """Write discs at places from a seed; those of a file of any side are as many and as large."""
    import numpy as np

    import iid_dask

    r, c = np.ogrid[-32:32, -32:32]
    disc = r**2 + c**2 < 31**2
    places = np.random.default_rng(5).integers(0, side - 64, (SPARSE, 2)).tolist()
    with iid_dask.IIDWriter(target, metadata={"image": {"height": side, "width": side}}) as writer:
        for number, (row, col) in enumerate(places):
            writer.add(b"", b"%d" % number, (row, col, row + 64, col + 64), disc)


def _make_mosaic(case: Case, stem: Path, target: Path) -> None:
    import iid_dask

    tile = case.options.get("tile", 1024)
    iid_dask.to_mosaic(stem.with_suffix(".zarr"), target, progress=False, tile=tile).close()


# --- jobs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A call to be planned and made.

    Attributes
    ----------
    needs : str
        "zarr", "iid" or "mosaic".
    call : callable
        (stem, folder for the output, options) -> (function, arguments, keyword arguments).
    """

    needs: str
    call: Callable[[Path, Path, dict[str, Any]], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


def _to_zarr(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    return iid_dask.to_zarr, (str(stem.with_suffix(".iid")), str(out / "x.zarr")), options | {"progress": False}


def _mosaic_to_zarr(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    return iid_dask.to_zarr, (str(stem.with_suffix(".mosaic")), str(out / "x.zarr")), options | {"progress": False}


def _graph_to_zarr(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import xarray as xr

    import iid_dask

    ds = xr.open_dataset(stem.with_suffix(".iid"), engine="iid", chunks={"y": 1024, "x": 1024}, entries=False)
    return iid_dask.to_zarr, (ds[["label"]] + 1, str(out / "x.zarr")), options | {"progress": False}


def _to_iid(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    return iid_dask.to_iid, (str(stem.with_suffix(".zarr")), str(out / "x.iid")), options | {"progress": False}


def _to_mosaic(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    return iid_dask.to_mosaic, (str(stem.with_suffix(".zarr")), str(out / "m")), options | {"progress": False}


def _copy(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    files = [str(stem.with_suffix(".iid"))] * 12
    return iid_dask.to_mosaic, (files, str(out / "m")), options | {"progress": False}


def _finish(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    return iid_dask.finish, (str(stem.with_suffix(".mosaic")),), {}


def _consolidate(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    from iid_dask.mosaic.consolidate import consolidate

    return consolidate, (str(stem.with_suffix(".mosaic")), str(out / "x.iid")), {}


def _measure(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import zarr

    import iid_dask

    image = zarr.open_array(stem.with_suffix(".zarr"), mode="r")
    return iid_dask.measure, (str(stem.with_suffix(".iid")), image), options


def _overlaps(stem: Path, out: Path, options: dict[str, Any]) -> Any:
    import iid_dask

    return iid_dask.overlaps, (str(stem.with_suffix(".iid")),), options


JOBS = {
    "to_zarr": Job("iid", _to_zarr),
    "mosaic to_zarr": Job("mosaic", _mosaic_to_zarr),
    "graph to_zarr": Job("iid", _graph_to_zarr),
    "to_iid": Job("zarr", _to_iid),
    "to_mosaic": Job("zarr", _to_mosaic),
    "copy": Job("iid", _copy),
    "finish": Job("mosaic", _finish),
    "consolidate": Job("mosaic", _consolidate),
    "measure": Job("iid", _measure),
    "overlaps": Job("iid", _overlaps),
}


@contextmanager
def scheduler(case: Case) -> Iterator[Any]:
    """Threads of this process, or a cluster whose client is given."""
    import dask

    if not case.workers:
        with dask.config.set(scheduler="threads", num_workers=case.threads):
            yield None
        return
    from distributed import Client, LocalCluster

    options: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "processes": True}
    with (
        LocalCluster(
            n_workers=case.workers,
            threads_per_worker=case.threads,
            memory_limit=case.memory_limit,
            **options,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_watch())
        yield client


def _watch() -> Any:
    """Count in each worker how often it is paused, and what it spills."""
    from distributed import WorkerPlugin

    class Watch(WorkerPlugin):
        name = "watch"

        def setup(self, worker: Any) -> None:
            self.pauses = 0
            self.worker = worker
            memory_monitor = worker.memory_manager.memory_monitor

            async def monitor(worker: Any) -> None:
                before = worker.status.name
                await memory_monitor(worker)
                self.pauses += before != "paused" and worker.status.name == "paused"

            worker.memory_manager.memory_monitor = monitor

    return Watch()


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Plan and make the call of a case; return what `Measured` holds."""
    import iid_dask

    warnings.simplefilter("ignore")
    stem = folder / f"{case.content}{case.side}"
    with tempfile.TemporaryDirectory(dir=folder) as out, scheduler(case) as client:
        function, arguments, options = JOBS[case.job].call(stem, Path(out), case.options)
        with forgetting(case.forgotten):
            plan = iid_dask.plan(function, *arguments, **options)
        result = function(*arguments, **options)
        if case.job in ("measure", "overlaps"):
            result.map_partitions(len).compute()
        peaks = [peak()] if client is None else list(client.run(peak).values())
        events = {} if client is None else _events(client)
        bound, usual = plan.peak_bytes(case.threads), plan.usual_bytes(case.threads)
    return {
        "planned": bound,
        "usual": usual,
        "peaks": peaks,
        "said": str(plan),
        "events": events,
    }


@contextmanager
def forgetting(name: str) -> Iterator[None]:
    """Let a term of the plan be 0 for the time of the block."""
    if not name:
        yield
        return
    module, _, term = name.partition(":")
    held = getattr(import_module(module), term)
    setattr(import_module(module), term, (lambda *_: 0) if callable(held) else 0)
    try:
        yield
    finally:
        setattr(import_module(module), term, held)


def open_file(case: Case, folder: Path) -> float:
    """Return how much memory an open file with all its columns takes, bytes an entry."""
    import iid_dask
    from iid_dask.pieces import row_order

    with iid_dask.open(iid_dask.sample("us")) as reader:
        row_order(reader)
    before = resident()
    with iid_dask.open(folder / f"{case.content}{case.side}.iid") as reader:
        row_order(reader)
        return (resident() - before) / len(reader)


def resident() -> int:
    """Bytes of memory that this process has."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most memory that this process has taken, bytes.

    ``ru_maxrss`` would count the parent's peak too: Linux hands it on through fork and exec.
    """
    return _status("VmHWM")


def _status(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name)) * 1024


def _events(client: Any) -> dict[str, int]:
    def look(dask_worker: Any) -> tuple[int, int]:
        spilled = getattr(dask_worker.data, "spilled_total", None)
        return dask_worker.plugins["watch"].pauses, spilled.disk if spilled else 0

    found = list(client.run(look).values())
    restarts = sum(1 for _, event in client.get_events("all") if event.get("action") == "worker-restart")
    return {"pauses": sum(f[0] for f in found), "spilled": sum(f[1] for f in found), "restarts": restarts}


def main(what: str, case: str, folder: str) -> None:
    """Do one step of a case, and print what it returns."""
    step: Callable[[Case, Path], Any] = {"prepare": prepare, "measure": measure, "open": open_file}[what]
    print(json.dumps(step(Case(**json.loads(case)), Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
