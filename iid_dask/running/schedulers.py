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

_SAME = {
    "threading": "threads",
    "sync": "synchronous",
    "single-threaded": "synchronous",
    "multiprocessing": "processes",
    "dask.distributed": "distributed",
}
"""Other names that dask has for them."""


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


def name_in_scope() -> str | None:
    """Return the name of the scheduler that dask is configured to use, one for each; None where it was told no name."""
    chosen = dask.config.get("scheduler", None)
    return _SAME.get(chosen.lower(), chosen.lower()) if isinstance(chosen, str) else None


def client_in_scope() -> Any:
    """Return the distributed client in scope, or None, without importing distributed for those who do not use it."""
    if "distributed" not in sys.modules:
        return None
    from distributed import Client, get_client

    chosen = dask.config.get("scheduler", None)
    owner = getattr(chosen, "__self__", chosen)  # of client.get, which dask takes as well
    if isinstance(owner, Client):
        return owner
    # A client that is everybody's default names itself in the configuration.
    if chosen is not None and name_in_scope() != "distributed":
        return None
    try:
        return get_client()
    except ValueError:
        return None


def threads_in_scope() -> int:
    """Return how many threads the active scheduler works with, 1 or more."""
    client = client_in_scope()
    if client is not None:
        return max(1, sum(client.nthreads().values()))
    if name_in_scope() == "synchronous":
        return 1
    return dask.config.get("num_workers", None) or CPU_COUNT


def local_get() -> Callable[..., Any] | str | None:
    """Return dask's own schedulers as functions: of a name dask asks distributed first, which takes long to import."""
    from dask.local import get_sync
    from dask.threaded import get

    chosen = dask.config.get("scheduler", None)
    return get if chosen is None else {"threads": get, "synchronous": get_sync}.get(name_in_scope() or "", chosen)
