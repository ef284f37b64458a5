"""Which dask scheduler is active, and how many threads it has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
from dask.system import CPU_COUNT

LOCAL = ("threads", "synchronous", "processes")
"""dask's own schedulers."""


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


def client_in_scope() -> Any:
    """Return the distributed client in scope, or None, without importing distributed for those who do not use it."""
    # A client that is everybody's default names itself in the configuration.
    if "distributed" not in sys.modules or dask.config.get("scheduler", None) not in (None, "dask.distributed"):
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def threads_in_scope() -> int:
    """Return how many threads the active scheduler works with, 1 or more."""
    client = client_in_scope()
    if client is not None:
        return max(1, sum(client.nthreads().values()))
    if dask.config.get("scheduler", None) in ("synchronous", "sync"):
        return 1
    return dask.config.get("num_workers", None) or CPU_COUNT


def local_get() -> Callable[..., Any] | str | None:
    """Return dask's own schedulers as functions: of a name dask asks distributed first, which takes long to import."""
    from dask.local import get_sync
    from dask.threaded import get

    name = dask.config.get("scheduler", None)
    return {None: get, "threads": get, "threading": get, "synchronous": get_sync, "sync": get_sync}.get(name, name)
