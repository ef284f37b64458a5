"""Run many small-result tasks on whatever dask scheduler is active, with a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import dask
from dask.callbacks import Callback


def run(tasks: Sequence[Any], title: str, *, progress: bool) -> list[Any]:
    """Compute delayed tasks and return their results in order.

    Parameters
    ----------
    tasks : sequence of dask.delayed.Delayed
        They run on the distributed client in scope, or else on dask's configured scheduler.
    title
        Said beside the bar.
    progress
        Show a bar on stderr.
    """
    if not progress:
        return _run(tasks, lambda: None)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(title, total=len(tasks))
        return _run(tasks, lambda: bar.advance(row))


def _run(tasks: Sequence[Any], done: Callable[[], object]) -> list[Any]:
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
                done()
        except BaseException:
            client.cancel(futures)
            raise
        return [results[task.key] for task in tasks]
    keys = {task.key for task in tasks}

    class Tick(Callback):
        def _posttask(self, key: Any, *_: Any) -> None:
            if key in keys:
                done()

    with Tick():
        return list(dask.compute(*tasks))


def _client() -> Any:
    """Return the distributed client in scope, without importing distributed for those who do not use it."""
    if "distributed" not in sys.modules or dask.config.get("scheduler", None) is not None:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None
