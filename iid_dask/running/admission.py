"""A job's plan, said when the job starts, and held against the memory of the workers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pydoc import locate
from typing import Any

import dask

from iid_dask.errors import IIDLimitError, IIDWorkerError
from iid_dask.running.plan import Plan
from iid_dask.running.schedulers import client_in_scope, name_in_scope

VERSION = "iid_dask.__version__"

LOGGER = logging.getLogger("iid_dask")

_only_asked: ContextVar[bool] = ContextVar("iid_dask_only_asked", default=False)


class Planned(BaseException):
    """Ends a job that was only asked for its plan; no error, so nothing on its way takes it for one.

    Attributes
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.plan = plan


@contextmanager
def only_asked() -> Iterator[None]:
    """Let jobs of the block end with `Planned` where they would begin to write."""
    token = _only_asked.set(True)
    try:
        yield
    finally:
        _only_asked.reset(token)


def admit(plan: Plan) -> None:
    """Log what a job will take, and refuse it where the workers of the client in scope have too little memory.

    Every job calls it when all is decided and nothing is written.

    Raises
    ------
    IIDLimitError
        Says what would do.
    IIDWorkerError
        If a worker has another version of this package, or none.
    """
    client = client_in_scope()
    plan = replace(plan, shared=client is None and name_in_scope() != "processes")
    if _only_asked.get():
        raise Planned(plan)
    LOGGER.info("%s", plan)
    if client is not None:
        _check_versions(client)
    words = refusal(plan)
    if words is not None:
        raise IIDLimitError(words)


def refusal(plan: Plan) -> str | None:
    """Say why the workers of the client in scope cannot do a job; None if they can, or there is no client."""
    client = client_in_scope()
    refused = (plan.refusal(*worker) for worker in ([] if client is None else _workers(client)))
    return next((words for words in refused if words is not None), None)


def _check_versions(client: Any) -> None:
    """Make sure that all workers have this very version; raises if one has not."""
    # By a function of the standard library: workers that lack the package could not load one of ours.
    here, found = locate(VERSION), client.run(locate, VERSION, on_error="return")
    # Those that are gone meanwhile answer with an error of the connection.
    others = {worker: said for worker, said in found.items() if said != here and not isinstance(said, OSError)}
    if others:
        worker, said = next(iter(others.items()))
        what = "no iid_dask" if said is None else f"iid_dask {said}"
        raise IIDWorkerError(
            f"{len(others)} of {len(found)} workers have another version, or none: found {what} at {worker}, expected "
            f"iid_dask {here} as here; install it there"
        )


def _workers(client: Any) -> list[tuple[int, int]]:
    """Memory at which workers are paused, bytes, and their threads; workers without a limit are left out."""
    share = dask.config.get("distributed.worker.memory.pause") or 1.0
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    return sorted({(int(share * one["memory_limit"]), one["nthreads"]) for one in found if one["memory_limit"]})
