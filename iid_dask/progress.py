"""Run many small-result tasks on whatever dask scheduler is active, with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
from dask.callbacks import Callback

LOCAL = ("threads", "synchronous", "processes")
"""dask's own schedulers."""


def run(
    tasks: Sequence[Any], title: str, *, progress: bool, work: Sequence[tuple[int, int]] | None = None
) -> list[Any]:
    """Compute delayed tasks and return their results in order.

    Parameters
    ----------
    tasks : sequence of dask.delayed.Delayed
        They run on the distributed client in scope, or else on dask's configured scheduler.
    title
        Said beside the bar.
    progress
        Show a bar on stderr.
    work
        Steps of the bar and pixels of each task; default: one step, and no speed is shown.
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
    share = dict(zip((task.key for task in tasks), work or [(1, 0)] * len(tasks), strict=True))
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(title, total=sum(steps for steps, _ in share.values()), speed="")

        def tick(key: Any) -> None:
            nonlocal done
            steps, pixels = share[key]
            done += pixels
            speed = f"{done / 1e6 / max(time.monotonic() - start, 1e-3):.3g} Mpx/s" if done else ""
            bar.update(row, advance=steps, speed=speed)

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
        return list(dask.compute(*tasks, scheduler=_local()))


def _local() -> Any:
    """Return dask's own schedulers as functions: of a name dask asks distributed first, which takes long to import."""
    from dask.local import get_sync
    from dask.threaded import get

    name = dask.config.get("scheduler", None)
    return {None: get, "threads": get, "threading": get, "synchronous": get_sync, "sync": get_sync}.get(name, name)


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
    elif scheduler in LOCAL:
        with dask.config.set(scheduler=scheduler):
            yield
    else:
        raise ValueError(
            f"scheduler = {scheduler!r}: expected one of {', '.join(LOCAL)}, or an address, tcp://HOST:PORT"
        )


def _client() -> Any:
    """Return the distributed client in scope, without importing distributed for those who do not use it."""
    # A client that is everybody's default names itself in the configuration.
    if "distributed" not in sys.modules or dask.config.get("scheduler", None) not in (None, "dask.distributed"):
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None
