"""Run batches, or a dask graph, and show how far they are."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import dask
from dask.callbacks import Callback

from iid_dask.running import cluster
from iid_dask.running.progress import bar
from iid_dask.running.schedulers import client_in_scope, local_get
from iid_dask.running.work import Work


def run(work: Work, title: str, *, progress: bool) -> list[Any]:
    """Do all batches of a job, and return their results in order.

    On a cluster a few batches for each thread are under way at a time, whatever their number. A batch that workers
    die of is tried again item by item, alone, to tell which is the one; a result may then be of a part of a batch.

    Parameters
    ----------
    work
    title
        Said beside the bar.
    progress
        Show a bar on stderr.

    Raises
    ------
    IIDWorkerError
        If workers die of an item, or none is left.
    Exception
        What a batch raises.
    """
    steps = sum(stop - start for start, stop in work.batches)
    with bar(title, steps, shown=progress) as tick:

        def done(start: int, stop: int) -> None:
            tick(stop - start, work.pixels(start, stop))

        client = client_in_scope()
        if client is not None:
            return cluster.run(client, work, done)
        calls = [_delayed(partial(work.call(start, stop), work.shared)) for start, stop in work.batches]
        of = {call.key: batch for call, batch in zip(calls, work.batches, strict=True)}
        return _compute(calls, lambda key: done(*of[key]))


def _task(number: int) -> str:
    return f"task {number}"


def run_graph(
    tasks: Sequence[Any], title: str, *, progress: bool, pixels: int = 0, about: Callable[[int], str] = _task
) -> list[Any]:
    """Compute delayed tasks that share parts of a dask graph, and return their results in order.

    Parameters
    ----------
    tasks : sequence of dask.delayed.Delayed
    title, progress
        As for `run`.
    pixels
        That each makes, on average.
    about
        Number of a task -> what messages call it.

    Raises
    ------
    IIDWorkerError
        If workers die of a task, or none is left.
    Exception
        What a task raises.
    """
    with bar(title, len(tasks), shown=progress) as tick:
        client = client_in_scope()
        if client is not None:
            return cluster.run_graph(client, tasks, about, lambda start, stop: tick(stop - start, pixels))
        return _compute(tasks, lambda key: tick(1, pixels))


def _delayed(call: Callable[[], Any]) -> Any:
    """Return a task into whose arguments dask does not look."""
    return dask.delayed(call, name=f"iid-{uuid.uuid4().hex}", pure=False, traverse=False)()


def _compute(tasks: Sequence[Any], done: Callable[[Any], None]) -> list[Any]:
    keys = {task.key for task in tasks}

    class Tick(Callback):
        def _posttask(self, key: Any, *_: Any) -> None:
            if key in keys:
                done(key)

    with Tick():
        return list(dask.compute(*tasks, scheduler=local_get()))
