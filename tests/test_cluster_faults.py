"""Jobs on a cluster whose processes die, freeze or meet broken files: the same result, or an error, with the tile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cluster_work
import numpy as np
import pytest
from cluster_work import (
    LOOPBACK,
    SMALL,
    Die,
    Freeze,
    Poison,
    faults,
    give_up,
    no_fault,
    quick_workers,
    separate_cluster,
    tries,
    write_in_place,
    write_late,
)
from distributed import Client, LocalCluster, wait
from label_images import discs
from other_processes import alive, finished, stamp

import iid_dask
from iid_dask.running import Work, batches_of, run

WORKERS = 3
JOBS = ("export", "assemble", "consolidate")
TILES = 240
ITEM = {"export": "zarr", "assemble": "tile", "consolidate": "range"}


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalCluster]:
    """Three worker processes of one thread, and a client in scope."""
    with (
        quick_workers(),
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, **LOOPBACK) as local,
        Client(local),
    ):
        yield local


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are cut small."""
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


@pytest.fixture
def client(workers: LocalCluster, small: None) -> Client:
    """The client, with all workers there, of jobs that are cut small."""
    return with_all_workers(workers)


def with_all_workers(local: LocalCluster) -> Client:
    """Return the client when all workers are there again; nannies give up those that die while they start."""
    client = Client.current()
    try:
        client.wait_for_workers(WORKERS, timeout=6)
    except TimeoutError:
        local.scale(0)
        local.scale(WORKERS)
        client.wait_for_workers(WORKERS, timeout=60)
    return client


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each job is given."""
    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "in.npy", discs(600, 1000, 200, seed=11))
    image = str(folder / "in.npy")
    iid_dask.to_mosaic(image, folder / "mosaic", tile=50, progress=False).close()
    return {"export": iid_dask.sample("us"), "assemble": image, "consolidate": str(folder / "mosaic")}


@pytest.fixture(scope="module")
def expected(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What undisturbed runs on this machine's threads make."""
    folder = tmp_path_factory.mktemp("expected")
    found = {}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SMALL.items():
            patched.setattr(name, value)
        for job in JOBS:
            do(job, sources[job], folder / job)
            found[job] = held(folder / job)
    return found


def do(job: str, source: str, target: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*covered by more than one entry.*")
        getattr(cluster_work, job)(source, str(target))


def held(target: Path) -> dict[str, bytes]:
    """All bytes of a file, or of a folder's by their paths, without what is random in the names of tables."""
    if target.is_file():
        return {"": target.read_bytes()}
    files = [path for path in sorted(target.rglob("*")) if path.is_file() and path.name != "mosaic.json"]
    return {str(path.relative_to(target)).split("-")[0]: path.read_bytes() for path in files}


def without_temporary(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what writers that die, or are frozen, have not given its name yet."""
    return {name: data for name, data in files.items() if not name.endswith((".tmp", ".partial"))}


def beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def made(marks: Path, job: str) -> dict[str, int]:
    """How many times each tile was made."""
    return {item: count for item, count in tries(marks).items() if item.startswith(ITEM[job])}


@pytest.mark.parametrize("job", JOBS)
def test_workers_that_are_killed_every_few_tiles_change_nothing(client, sources, expected, tmp_path, job):
    note = tmp_path / "kills"
    with faults(client, tmp_path / "marks", Die(str(note), 40 if job != "consolidate" else 20, seed=3)):
        do(job, sources[job], tmp_path / "out")
        tiles = made(tmp_path / "marks", job)
    assert without_temporary(held(tmp_path / "out")) == expected[job]
    assert beside(tmp_path / "out") == ["kills", "marks", "out"]
    dead = note.stat().st_size
    assert dead >= 3
    # The two tiles of a batch that ran, and those of a few that were done: a client on a busy machine learns it late.
    assert len(tiles) < sum(tiles.values()) <= len(tiles) + 16 * dead


def test_a_writer_without_temporary_names_is_found_out_by_the_same_kills(client, tmp_path):
    """What the writers avoid: files that have their name before they are whole, and are taken for whole."""
    made = []
    for dies in (False, True):
        folder = tmp_path / str(dies)
        folder.mkdir()
        work = Work(write_in_place, dies, batches_of(60, 2, 1), lambda start, stop, at=folder: (str(at), start, stop))
        run(work, "items", progress=False)
        made.append(held(folder))
    assert made[0] != made[1]


@pytest.mark.parametrize("job", JOBS)
def test_every_batch_done_twice_at_once_changes_nothing(client, sources, expected, tmp_path, monkeypatch, job):
    submit, twins = client.submit, []

    def submit_twice(*args: Any, key: str, **options: Any) -> Any:
        twins.append(submit(*args, key=f"{key}-twin", **options))
        return submit(*args, key=key, **options)

    monkeypatch.setattr(client, "submit", submit_twice)
    with faults(client, tmp_path / "marks", no_fault):
        do(job, sources[job], tmp_path / "out")
        wait(twins)
    assert held(tmp_path / "out") == expected[job]
    assert beside(tmp_path / "out") == ["marks", "out"]
    items = made(tmp_path / "marks", job)
    if job == "export":
        assert set(items.values()) == {2}
    assert len(twins) >= len(items) / 2


def stopped(local: LocalCluster) -> dict[int, str]:
    """Worker processes that are frozen, and their addresses."""
    found = {}
    for worker in local.workers.values():
        pid = worker.process.pid if worker.process else None
        if pid and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            found[pid] = worker.worker_address
    return found


def until(happens: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def give_up_on_stopped(client: Client, local: LocalCluster, count: int) -> None:
    """Wait until so many workers are frozen, and let the scheduler take them for dead."""
    until(lambda: len(stopped(local)) == count)
    client.run_on_scheduler(give_up, list(stopped(local).values()))


def test_workers_that_wake_after_the_end_change_nothing(small, sources, expected, tmp_path):
    items = {"export": "zarr 3", "assemble": "tile 0 150", "consolidate": "range 0"}
    late = tmp_path / "late"
    with quick_workers(), LocalCluster(n_workers=5, threads_per_worker=1, **LOOPBACK) as local, Client(local) as client:
        try:
            with faults(client, tmp_path / "marks", Freeze(tuple(items.values()))):
                # Written by a writer that knows of no end: it shows that they woke, and that it would be seen.
                naive = client.submit(write_late, str(late), pure=False)
                until(lambda: len(stopped(local)) == 1)
                naive.release()
                until(lambda: not local.scheduler.tasks)
                give_up_on_stopped(client, local, 1)
                for number, job in enumerate(JOBS):
                    thread = threading.Thread(target=do, args=(job, sources[job], tmp_path / job), daemon=True)
                    thread.start()
                    give_up_on_stopped(client, local, 2 + number)
                    thread.join(30)
                    assert without_temporary(held(tmp_path / job)) == expected[job]
        finally:
            before = beside(late)
            for pid in stopped(local):
                os.kill(pid, signal.SIGCONT)
        until(late.exists)
        time.sleep(1)
        assert not stopped(local)
        assert {job: held(tmp_path / job) for job in JOBS} == expected
        assert beside(late) == sorted({*before, "late"}) == sorted([*JOBS, "late", "marks"])


@pytest.mark.parametrize(("job", "how"), [("export", "kill"), ("assemble", "segfault")])
def test_a_tile_that_workers_die_of_is_named_and_the_others_are_kept(
    workers, client, sources, expected, tmp_path, job, how
):
    item, name = {
        "export": ("zarr 47", r"label\[100:150, 350:400\]"),
        "assemble": ("read 100 350", "r0000100_c0000350"),
    }[job]
    target = tmp_path / "out"
    with (
        faults(client, tmp_path / "marks", Poison(item, how)),
        pytest.raises(iid_dask.IIDWorkerError, match=f"{name}.*: every worker that tried it died"),
    ):
        do(job, sources[job], target)
    assert tries(tmp_path / "marks")[item] <= 8
    assert len(made(tmp_path / "marks", job)) > 30
    kept = finished(job, target)
    with_all_workers(workers)
    with faults(client, tmp_path / "again", no_fault):
        do(job, sources[job], target)
    assert held(target) == expected[job]
    assert len(made(tmp_path / "again", job)) <= TILES - len(kept)


@pytest.mark.parametrize(
    ("job", "poison", "words"),
    [
        ("export", Poison("zarr 47", "broken disk"), ["label[", "us.iid"]),
        ("assemble", Poison("read 100 350", "broken file"), ["r0000100_c0000350"]),
    ],
)
def test_what_cannot_be_read_is_said_with_the_tile(client, sources, tmp_path, job, poison, words):
    with (
        faults(client, tmp_path / "marks", poison),
        pytest.raises(OSError, match="Input/output error") as raised,
    ):
        do(job, sources[job], tmp_path / "out")
    said = " ".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert all(word in said for word in words), said


@pytest.mark.parametrize("job", ["export", "assemble"])
def test_a_client_that_is_killed_with_its_scheduler_goes_on_where_it_was(client, sources, expected, tmp_path, job):
    target = tmp_path / "out"
    folder = str(Path(cluster_work.__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import cluster_work; cluster_work.main(*sys.argv[1:])"
    words = [sys.executable, "-W", "ignore", "-c", code, job, sources[job], str(target)]
    child = subprocess.Popen(words, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: len(finished(job, target)) > 60 or child.poll() is not None)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    until(lambda: not alive(child.pid))
    kept = {path: stamp(path) for path in finished(job, target)}
    assert 60 < len(kept) < TILES
    with faults(client, tmp_path / "marks", no_fault):
        do(job, sources[job], target)
        again = made(tmp_path / "marks", job)
    assert held(target) == expected[job]
    assert {path: stamp(path) for path in kept} == kept
    assert len(again) == TILES - len(kept)


def test_a_scheduler_that_dies_ends_the_job_and_the_next_one_goes_on(small, sources, expected, tmp_path):
    target, file = tmp_path / "out", tmp_path / "scheduler.json"
    with separate_cluster(file) as scheduler, Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=60)
        killer = threading.Thread(
            target=lambda: until(lambda: len(finished("export", target)) > 60) or scheduler.kill()
        )
        killer.start()
        start = time.monotonic()
        with pytest.raises(iid_dask.IIDWorkerError, match=r"the scheduler is gone.*the same call continues"):
            do("export", sources["export"], target)
        killer.join()
        assert time.monotonic() - start < 60
    kept = {path: stamp(path) for path in finished("export", target)}
    assert 60 < len(kept) < TILES
    do("export", sources["export"], target)
    assert held(target) == expected["export"]
    assert {path: stamp(path) for path in kept} == kept
