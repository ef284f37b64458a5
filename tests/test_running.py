"""Batches on a cluster: nothing is lost when workers die, and what workers die of is named."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pytest
from cluster_work import LOOPBACK, die_of_57, die_together, fail_at_0, killing, quick_workers, write
from distributed import Client, LocalCluster

import iid_dask
from iid_dask.cli.output import parts_of
from iid_dask.running import Work, batches_of, client_in_scope, cluster, run, run_graph, threads_in_scope

COUNT = 120


@pytest.fixture(scope="module")
def started() -> Iterator[LocalCluster]:
    """Three worker processes of one thread, and a client."""
    with quick_workers(), LocalCluster(n_workers=3, threads_per_worker=1, **LOOPBACK) as local, Client(local):
        yield local


@pytest.fixture
def workers(started: LocalCluster) -> LocalCluster:
    """The same, when all are there."""
    started.scale(3)
    Client.current().wait_for_workers(3, timeout=60)
    return started


def items_of(folder: Path, function: Any = write, shared: Any = 0.0, size: int = 5, count: int = COUNT) -> Work:
    return Work(
        function,
        shared,
        batches_of(count, size, 1),
        arguments=lambda start, stop: (str(folder), start, stop),
        about=lambda item: f"tile {item}",
    )


def made(folder: Path) -> int:
    """How many times items were made, in all."""
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_results_come_in_order_whatever_the_scheduler(tmp_path, scheduler):
    with dask.config.set(scheduler=scheduler):
        found = run(items_of(tmp_path), "items", progress=False)
    assert list(chain(*found)) == list(range(COUNT))
    assert made(tmp_path) == COUNT


def test_no_items_are_no_work(tmp_path):
    assert run(items_of(tmp_path, count=0), "items", progress=True) == []


def test_a_batch_that_raises_ends_the_job(tmp_path):
    def fail(shared: None, folder: str, start: int, stop: int) -> None:
        raise OSError(5, "broken", folder)

    with pytest.raises(OSError, match="broken"):
        run(items_of(tmp_path, fail), "items", progress=False)


def test_workers_that_die_cost_only_what_was_under_way(workers, tmp_path):
    kills: list[int] = []
    with killing(workers, 0.7, kills):
        found = run(items_of(tmp_path, shared=0.05, size=1, count=240), "items", progress=False)
    assert list(chain(*found)) == list(range(240))
    assert len(kills) >= 3
    # Of each worker the one that ran, and those that were done and not fetched yet.
    assert made(tmp_path) <= 1.05 * 240 + 2 * len(kills)


def test_futures_that_are_held_are_made_again(workers, tmp_path, monkeypatch):
    """What `run` avoids: the same kills, with a client that keeps its futures."""
    kills: list[int] = []
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 1000)
    client = Client.current()
    with killing(workers, 0.7, kills):
        futures = [client.submit(write, 0.05, str(tmp_path), i, i + 1, pure=False) for i in range(120)]
        client.gather(futures)
    assert made(tmp_path) > 1.3 * 120


def test_an_item_that_workers_die_of_is_named_and_the_others_are_made(workers, tmp_path):
    with pytest.raises(iid_dask.IIDWorkerError, match="tile 57: every worker that tried it died"):
        run(items_of(tmp_path, die_of_57, b"x" * (2 * cluster.LARGE)), "items", progress=False)
    assert len(list(tmp_path.iterdir())) > 60


def test_a_task_of_a_graph_that_workers_die_of_is_named(workers, tmp_path):
    tasks = [dask.delayed(die_of_57, pure=False)(None, str(tmp_path), i, i + 1) for i in range(50, 65)]
    with pytest.raises(iid_dask.IIDWorkerError, match="tile 57: every worker that tried it died"):
        run_graph(tasks, "items", progress=False, about=lambda number: f"tile {50 + number}")
    assert len(list(tmp_path.iterdir())) == 14


def test_a_graph_gives_its_results_in_order_though_workers_die(workers, tmp_path):
    kills: list[int] = []
    tasks = [dask.delayed(write, pure=False)(0.05, str(tmp_path), i, i + 1) for i in range(60)]
    with killing(workers, 0.5, kills):
        assert list(chain(*run_graph(tasks, "items", progress=False))) == list(range(60))


def test_tasks_of_a_graph_that_only_died_with_others_are_not_taken_for_what_workers_die_of(
    workers, tmp_path, monkeypatch
):
    monkeypatch.setattr(workers.scheduler, "allowed_failures", 0)
    for trial in range(3):
        workers.scale(3)
        Client.current().wait_for_workers(3, timeout=60)
        folder = tmp_path / str(trial)
        folder.mkdir()
        tasks = [dask.delayed(die_together, pure=False)(str(folder), i, 3) for i in range(3)]
        assert run_graph(tasks, "items", progress=False) == [0, 1, 2]


def test_results_that_are_long_on_their_way_arrive(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LOOK", 0.2)
    gather, begun = workers.scheduler.handlers["gather"], []

    async def slow(*args: Any, **options: Any) -> Any:
        begun.append(time.monotonic())
        await asyncio.sleep(1)
        return await gather(*args, **options)

    monkeypatch.setitem(workers.scheduler.handlers, "gather", slow)
    assert list(chain(*run(items_of(tmp_path, count=10), "items", progress=False))) == list(range(10))
    assert len(begun) > 1, "it came at once"


def to_do(workers: LocalCluster) -> list[str]:
    return [key for key, task in workers.scheduler.tasks.items() if task.state not in ("memory", "erred")]


def test_a_job_that_fails_leaves_nothing_to_do(workers, tmp_path):
    with pytest.raises(OSError, match="broken"):
        run(items_of(tmp_path, fail_at_0, 0.1, size=1), "items", progress=False)
    # Done ones may be held by the error's traceback.
    deadline = time.monotonic() + 10
    while to_do(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not to_do(workers)
    assert made(tmp_path) < COUNT / 2


INPROC = {"threads_per_worker": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}


@pytest.mark.parametrize("closed", ["cluster", "client"])
def test_a_job_whose_cluster_or_client_is_closed_says_so(tmp_path, closed):
    with (
        LocalCluster(n_workers=1, **INPROC) as local,
        Client(local) as client,
    ):
        threading.Timer(1, (local if closed == "cluster" else client).close).start()
        with pytest.raises(iid_dask.IIDWorkerError, match="the same call continues from there"):
            run(items_of(tmp_path, shared=0.1, size=1), "items", progress=False)


def test_a_job_waits_for_its_first_worker_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cluster, "PATIENCE", 0.2)
    monkeypatch.setattr(cluster, "LOOK", 0.1)
    with (
        LocalCluster(n_workers=0, **INPROC) as local,
        Client(local),
    ):
        threading.Timer(1.5, local.scale, [1]).start()
        assert list(chain(*run(items_of(tmp_path), "items", progress=False))) == list(range(COUNT))
    assert any(record.getMessage().startswith("no worker yet at inproc") for record in caplog.records)


@pytest.mark.parametrize("how", ["name", "client", "get"])
def test_a_cluster_is_found_however_dask_was_told_of_it(workers, how):
    client = Client.current()
    with dask.config.set(scheduler={"name": "distributed", "client": client, "get": client.get}[how]):
        assert client_in_scope() is client
        assert threads_in_scope() == 3


@pytest.mark.parametrize(("name", "threads"), [("sync", 1), ("single-threaded", 1), ("Threads", 7), ("processes", 7)])
def test_other_schedulers_than_the_cluster_are_taken_at_their_word(workers, name, threads):
    with dask.config.set(scheduler=name, num_workers=7):
        assert client_in_scope() is None
        assert threads_in_scope() == threads


def test_a_job_without_workers_ends(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 2.0)
    monkeypatch.setattr(cluster, "LOOK", 0.5)
    threading.Timer(1.5, workers.scale, [0]).start()
    with pytest.raises(iid_dask.IIDWorkerError, match=r"no worker is left since .* the first at tile"):
        run(items_of(tmp_path, shared=0.05, count=1000), "items", progress=False)


def test_a_table_without_workers_ends(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 2.0)
    monkeypatch.setattr(cluster, "LOOK", 0.5)
    parts = [dask.delayed(write, pure=False)(1.0, str(tmp_path), i, i + 50) for i in range(0, 500, 50)]
    frame = dd.from_delayed([dask.delayed(pd.DataFrame)({"item": part}) for part in parts], meta={"item": int})
    threading.Timer(1.5, workers.scale, [0]).start()
    with pytest.raises(iid_dask.IIDWorkerError, match="no worker is left since"):
        list(parts_of(frame))


def test_few_batches_are_under_way_at_a_time(workers, tmp_path):
    most, before = 0, set(workers.scheduler.tasks)

    def arguments(start: int, stop: int) -> tuple[str, int, int]:
        nonlocal most
        states = [task.state for key, task in list(workers.scheduler.tasks.items()) if key not in before]
        most = max(most, sum(state in ("waiting", "queued", "processing") for state in states))
        return str(tmp_path), start, stop

    work = Work(write, 0.0, [(i, i + 1) for i in range(300)], arguments)
    run(work, "items", progress=False)
    assert 0 < most <= cluster.AT_LEAST
