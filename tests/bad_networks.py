"""Reads over a network whose answers are bad by plan, counted."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from fault_proxy import Fault, Proxy
from moving_files import Version, random_box, window_of, within
from object_store import Bucket

import iid_dask
from iid_dask.format.source import RemoteSource


class CarelessSource(RemoteSource):
    """Takes what its file system hands on for what it asked for."""

    def _cat(self, starts: list[int], stops: list[int]) -> list[bytes]:
        parts = self.fs.cat_ranges([self.path] * len(starts), starts, stops, on_error="raise")
        return [
            part[: stop - start].ljust(stop - start) for start, stop, part in zip(starts, stops, parts, strict=True)
        ]


def read_under_faults(
    bucket: Bucket,
    name: str,
    proxy: Proxy,
    version: Version,
    plan: Sequence[Fault],
    *,
    reads: int,
    threads: int = 4,
    kind: type[RemoteSource] = RemoteSource,
) -> Counter[str]:
    """Read windows of an object through a proxy that does what a plan says.

    Returns
    -------
    Counter
        Windows that were "right" and "wrong", and "error"s; "faults" that happened, and "requests".
    """
    source = kind(bucket.url(name), bucket.storage_options)
    reader = iid_dask.open(source)
    _ = reader.columns
    proxy.inject(plan)

    def read(seed: int) -> str:
        box = random_box(np.random.default_rng(seed), 300)
        try:
            found: Any = window_of(reader, box)
        except Exception:  # a careless source has those of all libraries
            return "error"
        return "right" if np.array_equal(found, within(version.labels, box)) else "wrong"

    with ThreadPoolExecutor(threads) as pool:
        counted = Counter(pool.map(read, range(reads)))
    counted["faults"] = sum(proxy.done.values())
    counted["requests"] = proxy.count("GET")
    return counted


@contextmanager
def asleep() -> Iterator[tuple[str, Callable[[], None]]]:
    """Hold a port of loopback that refuses connections.

    Yields
    ------
    str
        URL of a server that is not there.
    callable
        Starts it: it speaks S3, and has the buckets of all such servers of this process.
    """
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import BaseWSGIServer, make_server

    running: list[tuple[BaseWSGIServer, threading.Thread]] = []
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # from now on nobody else gets the port
        host, port = bound.getsockname()

        def wake() -> None:
            bound.listen()
            app = DomainDispatcherApplication(create_backend_app)
            server = make_server(host, port, app, threaded=True, fd=bound.fileno())
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            running.append((server, thread))

        try:
            yield f"http://{host}:{port}", wake
        finally:
            for server, thread in running:
                server.shutdown()
                thread.join(10)
                server.server_close()
