"""Batches on a distributed cluster: few under way at a time, and none lost when workers die."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from itertools import count, islice
from queue import Empty, SimpleQueue
from types import NoneType
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

LOGGER = logging.getLogger("iid_dask")

WAY_OUT = "what is done is kept: the same call continues from there"

Batch = tuple[int, int]
"""Items, half-open."""

Send = Callable[[int, int], Any]
"""Batch -> the future of what it returns."""


def run(client: Any, work: Work, done: Callable[[int, int], None]) -> list[Any]:
    """Do all batches; see `iid_dask.running.run`."""
    from distributed.protocol.pickle import dumps

    shared, job = work.shared, f"iid-{uuid.uuid4().hex}"
    if len(dumps(shared)) > LARGE:
        shared = client.submit(_same, shared, key=f"{job}-shared", pure=False)
    numbers = count()

    def send(start: int, stop: int) -> Any:
        return client.submit(work.call(start, stop), shared, key=f"{job}-{next(numbers)}", pure=False)

    return _do(_Flight(client, send, work.about), work.batches, done)


def run_graph(
    client: Any, tasks: Sequence[Any], about: Callable[[int], str], done: Callable[[int, int], None]
) -> list[Any]:
    """Compute delayed tasks; see `iid_dask.running.run_graph`."""
    # All at once: they share what they are computed from.
    futures = dict(enumerate(client.compute(list(tasks))))

    def send(start: int, stop: int) -> Any:
        future = futures.pop(start, None)
        if future is None:
            # Until the killed task is forgotten, a future of its key is the old one, failed at once.
            while tasks[start].key in client.futures:
                time.sleep(0.01)
            future = client.compute(tasks[start])
        return future

    return _do(_Flight(client, send, about, most=len(tasks)), [(i, i + 1) for i in range(len(tasks))], done)


def _do(flight: _Flight, batches: Iterable[Batch], done: Callable[[int, int], None]) -> list[Any]:
    """Do batches, and those that workers die of again, item by item, to name the one."""
    waiting, results = iter(batches), {}
    suspects: list[Batch] = []

    def land() -> bool:
        """Keep what is back; False if there was nothing to wait for."""
        landed, killed = flight.land()
        suspects.extend(killed)
        results.update({batch[0]: result for batch, result in landed.items()})
        for batch in landed:
            done(*batch)
        return bool(landed or killed)

    left = _left_thread()
    try:
        while True:
            for batch in islice(waiting, 0 if suspects else flight.room):
                flight.launch(*batch)
            if land():
                continue
            if not suspects:
                return [results[start] for start in sorted(results)]
            # Nothing else is under way: whose workers die now is the one.
            items, suspects = [item for batch in suspects for item in range(*batch)], []
            for item in items:
                flight.launch(item, item + 1)
                land()
                if suspects:
                    raise _poison(flight.about(item))
    except BaseException:
        flight.cancel()
        raise
    finally:
        left()


def _left_thread() -> Callable[[], None]:
    """Within a task, leave its worker's thread to the batches until what is returned is called; as dask does."""
    from distributed import rejoin, secede

    try:
        secede()
    except (ValueError, AttributeError, KeyError):  # no task
        return lambda: None
    return rejoin


class _Flight:
    """Batches that were sent and are not back.

    Parameters
    ----------
    client : distributed.Client
    send : Send
    about : callable
        Item -> what messages call it.
    most : int, optional
        Batches under way; default: by the threads of the cluster.
    """

    def __init__(self, client: Any, send: Send, about: Callable[[int], str], most: int | None = None) -> None:
        self.client, self.send, self.about, self._most = client, send, about, most
        self._under_way: dict[Any, Batch] = {}
        self._landed: SimpleQueue[Any] = SimpleQueue()
        self._seen = time.monotonic()
        self._had_workers = self._said = False
        self._look()

    @property
    def room(self) -> int:
        """How many more batches may be sent."""
        return max(0, (self._most or max(AT_LEAST, A_THREAD * self._threads)) - len(self._under_way))

    def launch(self, start: int, stop: int) -> None:
        """Send a batch."""
        future = self.send(start, stop)
        self._under_way[future] = (start, stop)
        future.add_done_callback(self._landed.put)

    def land(self) -> tuple[dict[Batch, Any], list[Batch]]:
        """Wait until batches are back, and return what they returned, and those that killed their workers.

        They are let go: the scheduler computes again whatever it is still asked to hold when a worker dies.
        """
        from distributed import KilledWorker

        if not self._under_way:
            return {}, []
        back = self._wait()
        results = self._fetch([future for future in back if _returned_something(future)])
        landed, killed = {}, []
        for future in back:
            if future.status == "cancelled":
                raise _gone() from None
            batch = self._under_way.pop(future)
            if future.status != "error":
                landed[batch] = results.get(future)
            elif isinstance(future.exception(), KilledWorker):
                killed.append(batch)
            else:
                future.result()  # raises
        return landed, killed

    def _wait(self) -> list[Any]:
        """Return the futures that are done, at least one."""
        back: list[Any] = []
        while not back:
            if time.monotonic() - self._looked > LOOK:
                self._look()
            with suppress(Empty):
                back.append(self._landed.get(timeout=LOOK))
        with suppress(Empty):
            while True:
                back.append(self._landed.get_nowait())
        # Somebody did them, though workers may die so soon that no look finds one.
        self._seen = time.monotonic()
        return back

    def _fetch(self, futures: list[Any]) -> dict[Any, Any]:
        """Return results, all by one request; workers may die before, then others make them again, or die as well."""
        patience = LOOK
        while futures:
            gather = partial(self.client.gather, futures, asynchronous=True)
            try:
                return dict(zip(futures, self.client.sync(gather, callback_timeout=patience), strict=True))
            except CancelledError as error:
                raise _gone() from error
            except Exception as error:
                left = [future for future in futures if future.status != "error"]
                if len(left) == len(futures):
                    if not isinstance(error, TimeoutError):
                        raise
                    self._look()
                    patience *= 2  # else what takes longer to come would never be here
                futures = left
        return {}

    def _look(self) -> None:
        """Count the workers' threads; give up when there are none for long."""
        self._looked = time.monotonic()
        self._threads = sum(self.client.nthreads().values())
        if self._threads:
            self._had_workers, self._seen = True, self._looked
        elif not self._had_workers:
            if not self._said and self._looked - self._seen > LOOK:
                LOGGER.warning("no worker yet at %s; waiting", self.client.scheduler.address)
                self._said = True
        elif self._looked - self._seen > PATIENCE:
            waits = min(self._under_way.values(), default=(0, 0))
            raise IIDWorkerError(
                f"no worker is left since {self._looked - self._seen:.0f} s, and {len(self._under_way)} batches wait, "
                f"the first at {self.about(waits[0])}; start workers, and see the logs of those that are gone; "
                f"{WAY_OUT}"
            )

    def cancel(self) -> None:
        """Forget what is under way; what runs already runs on."""
        with suppress(Exception):  # the scheduler, or the client, may be what is gone
            self.client.cancel(list(self._under_way))


def _same(shared: Any) -> Any:
    return shared


def _returned_something(future: Any) -> bool:
    """Whether a result is to be fetched: a round trip over scheduler and worker, and most jobs return None."""
    return future.status not in ("error", "cancelled") and future.type is not NoneType


def _gone() -> IIDWorkerError:
    return IIDWorkerError(f"the scheduler is gone, or it was told to drop the job's tasks; {WAY_OUT}")


def _poison(what: str) -> IIDWorkerError:
    return IIDWorkerError(
        f"{what}: every worker that tried it died, most likely for want of memory, or of a crash in a library; see the "
        f"workers' logs. Give workers more memory or fewer threads, or take smaller tiles; {WAY_OUT}"
    )
