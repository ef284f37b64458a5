"""Batches on a distributed cluster: few under way at a time, and none lost when workers die."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from iid_dask.errors import IIDWorkerError
from iid_dask.running.work import Work

A_THREAD = 4
"""Batches under way for each thread of the cluster."""

AT_LEAST = 64
"""Batches under way on any cluster, so that one that grows on demand sees the demand."""

PATIENCE = 60.0
"""Seconds without any worker, after there were some, until a job gives up."""

LOOK = 5.0
"""Seconds between two looks at the workers."""

LARGE = 2**16
"""Bytes from which on what all batches share is sent once, and kept by the workers."""

WAY_OUT = "what is done is kept: the same call continues from there"


def run(client: Any, work: Work, done: Callable[[int, int], None]) -> list[Any]:
    """Do all batches; see `iid_dask.running.run`.

    A result is fetched and let go as soon as it is there: the scheduler computes again whatever it is still asked to
    hold when a worker dies.
    """
    flight, waiting = _Flight(client, work), iter(work.batches)
    results: dict[int, Any] = {}
    suspects: list[tuple[int, int]] = []

    def land() -> None:
        batch, future = flight.land()
        if _was_killed(future):
            suspects.append(batch)
        else:
            results[batch[0]] = flight.result(future)
            done(*batch)

    try:
        more = True
        while more or suspects or flight.under_way:
            while more and not suspects and flight.has_room:
                batch = next(waiting, None)
                more = batch is not None
                if batch is not None:
                    flight.launch(*batch)
            if flight.under_way:
                land()
                continue
            # Nothing else is under way: whose workers die now is the one.
            alone, suspects = suspects, []
            for item in (item for batch in alone for item in range(*batch)):
                flight.launch(item, item + 1)
                land()
                if suspects:
                    raise _poison(work.about(item))
    except BaseException:
        flight.cancel()
        raise
    return [results[start] for start in sorted(results)]


class _Flight:
    """Batches that were sent and are not back.

    Parameters
    ----------
    client : distributed.Client
    work : Work
    """

    def __init__(self, client: Any, work: Work) -> None:
        self.client, self.work = client, work
        self.under_way: dict[Any, tuple[int, int]] = {}
        self._futures: dict[Any, Any] = {}
        self._landed: SimpleQueue[Any] = SimpleQueue()
        self._job = uuid.uuid4().hex
        self._launched = 0
        self._seen = time.monotonic()
        self._room = AT_LEAST
        self._had_workers = False
        self._look()
        from distributed.protocol.pickle import dumps

        large = len(dumps(work.shared)) > LARGE
        self._shared = client.submit(_same, work.shared, pure=False) if large else work.shared

    @property
    def has_room(self) -> bool:
        """Whether another batch may be sent."""
        return len(self.under_way) < self._room

    def launch(self, start: int, stop: int) -> None:
        """Send a batch."""
        key = f"iid-{self._job}-{self._launched}"
        self._launched += 1
        future = self.client.submit(self.work.call(start, stop), self._shared, key=key, pure=False)
        self.under_way[key], self._futures[key] = (start, stop), future
        future.add_done_callback(self._landed.put)

    def land(self) -> tuple[tuple[int, int], Any]:
        """Wait for a batch that is back, and return it with its future."""
        while True:
            if time.monotonic() - self._looked > LOOK:
                self._look()
            try:
                future = self._landed.get(timeout=LOOK)
            except Empty:
                continue
            del self._futures[future.key]
            return self.under_way.pop(future.key), future

    def result(self, future: Any) -> Any:
        """Return what a batch returned; its worker may die before it is fetched, then another one makes it again."""
        while True:
            try:
                return future.result(timeout=LOOK)
            except TimeoutError:
                if future.status == "error":  # the batch's own
                    raise
                self._look()
            except CancelledError as error:
                raise IIDWorkerError(
                    f"the scheduler is gone, or it was told to drop the job's tasks; {WAY_OUT}"
                ) from error

    def _look(self) -> None:
        """Count the workers' threads; give up when there are none for long."""
        self._looked = time.monotonic()
        threads = sum(self.client.nthreads().values())
        self._room = max(AT_LEAST, A_THREAD * threads)
        if threads:
            self._had_workers, self._seen = True, self._looked
        elif self._had_workers and self._looked - self._seen > PATIENCE:
            waits = min(self.under_way.values(), default=(0, 0))
            raise IIDWorkerError(
                f"no worker is left since {self._looked - self._seen:.0f} s, and {len(self.under_way)} batches wait, "
                f"the first at {self.work.about(waits[0])}; start workers, and see the logs of those that are gone; "
                f"{WAY_OUT}"
            )

    def cancel(self) -> None:
        """Forget what is under way; what runs already runs on."""
        with suppress(OSError, RuntimeError, TimeoutError):  # the scheduler may be what is gone
            self.client.cancel(list(self._futures.values()))


def run_graph(client: Any, tasks: Sequence[Any], done: Callable[[Any], None]) -> list[Any]:
    """Compute delayed tasks; see `iid_dask.running.run_graph`."""
    from distributed import as_completed

    futures = client.compute(list(tasks))
    results = {}
    try:
        for future in as_completed(futures):
            if _was_killed(future):
                raise _poison(str(future.key))
            results[future.key] = future.result()
            future.release()
            done(future.key)
    except BaseException:
        client.cancel(futures)
        raise
    return [results[task.key] for task in tasks]


def _same(shared: Any) -> Any:
    return shared


def _was_killed(future: Any) -> bool:
    from distributed import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _poison(what: str) -> IIDWorkerError:
    return IIDWorkerError(
        f"{what}: every worker that tried it died, most likely for want of memory, or of a crash in a library; see the "
        f"workers' logs. Give workers more memory or fewer threads, or take smaller tiles; {WAY_OUT}"
    )
