"""Run many small-result tasks on whatever dask scheduler is active, with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
from dask.callbacks import Callback


def run(tasks: Sequence[Any], title: str, *, progress: bool, pixels: Sequence[int] | None = None) -> list[Any]:
    """Compute delayed tasks and return their results in order.

    Parameters
    ----------
    tasks : sequence of dask.delayed.Delayed
        They run on the distributed client in scope, or else on dask's configured scheduler.
    title
        Said beside the bar.
    progress
        Show a bar on stderr.
    pixels
        Of each task, to show how many are done a second.
    """
    if not progress or not tasks:
        return _run(tasks, lambda key: None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    weights = dict(zip((task.key for task in tasks), pixels or (), strict=False))
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(title, total=len(tasks), speed="")

        def tick(key: Any) -> None:
            nonlocal done
            done += weights.get(key, 0)
            speed = f"{done / 1e6 / max(time.monotonic() - start, 1e-3):.0f} Mpx/s" if done else ""
            bar.update(row, advance=1, speed=speed)

        return _run(tasks, tick)


def _run(tasks: Sequence[Any], done: Callable[[Any], object]) -> list[Any]:
    client = _client()
    if client is not None:
        from distributed import as_completed

        futures = client.compute(list(tasks))
        results = {}
        try:
            for future in as_completed(futures):
                results[future.key] = future.result()
                # A future that is held would make its task run again if its worker dies.
                future.release()
                done(future.key)
        except BaseException:
            client.cancel(futures)
            raise
        return [results[task.key] for task in tasks]
    keys = {task.key for task in tasks}

    class Tick(Callback):
        def _posttask(self, key: Any, *_: Any) -> None:
            if key in keys:
                done(key)

    with Tick():
        return list(dask.compute(*tasks))


@contextmanager
def scheduled(scheduler: str | None) -> Iterator[None]:
    """Run the tasks of the block on a scheduler: a dask one by name, or a distributed one by address.

    Parameters
    ----------
    scheduler
        None is the distributed client in scope, or else what dask is configured to use.
    """
    if scheduler is None:
        yield
    elif "://" in scheduler:
        from distributed import Client

        with Client(scheduler, timeout="30s"):
            yield
    else:
        with dask.config.set(scheduler=scheduler):
            yield


def _client() -> Any:
    """Return the distributed client in scope, without importing distributed for those who do not use it."""
    if "distributed" not in sys.modules or dask.config.get("scheduler", None) is not None:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None
