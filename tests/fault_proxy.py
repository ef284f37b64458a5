"""A proxy on loopback, between a client and a server that speaks HTTP, that does what bad networks do."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

FAULTS = ("503", "429", "500", "502", "504", "reset before", "reset after", "cut", "stall", "200 for 206", "etag")
"""
A status
    instead of an answer.
reset before, reset after
    The connection breaks before or after the request has reached the server.
cut
    Half of the body comes, then the connection breaks.
stall
    Half of the body comes, then nothing for `Proxy.stall` seconds, then the other half.
200 for 206
    The server ignores the range: the whole object comes.
etag
    The answer tells of another version.

Any other status may be given, too, and a function, which is called before the request is handed on.
"""

Fault = str | Callable[[], object] | None


def seeded(faults: Sequence[str], n_faults: int, n_requests: int, seed: int) -> list[Fault]:
    """Return what is to happen to each request: every fault as often, at random places."""
    plan: list[Fault] = [faults[i % len(faults)] for i in range(n_faults)] + [None] * (n_requests - n_faults)
    random.Random(seed).shuffle(plan)
    return plan


class Proxy:
    """A proxy that is running.

    Attributes
    ----------
    endpoint : str
        Its URL, in the place of the server's.
    plan : deque
        What happens to the next requests of ``methods``, one of `FAULTS` each; when it is empty, nothing does.
    methods : set of str
    stall : float
        Seconds.
    requests : Counter
        Requests that came, by method and object: ``("GET", "bucket/key")``.
    done : Counter
        Faults that happened.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._server = parts.hostname, parts.port
        self.endpoint = ""
        self.stall = 2.0
        self.forget()

    def forget(self) -> None:
        """Count from 0 on, and let all requests pass."""
        self.methods = {"GET"}
        self.plan: deque[Fault] = deque()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.done: Counter[str] = Counter()

    def inject(self, plan: Iterable[Fault], methods: Iterable[str] = ("GET",)) -> None:
        """Forget what was, and let these things happen."""
        self.forget()
        self.methods, self.plan = set(methods), deque(plan)

    def count(self, method: str) -> int:
        """Return the requests of a method, of all objects."""
        return sum(n for (one, _), n in self.requests.items() if one == method)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"100-continue" in head.lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            length = re.search(rb"(?im)^content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            method, path = head.split(b" ", 2)[:2]
            await self._answer(method.decode(), unquote(path.decode().lstrip("/")), head, body, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):  # one of the two ends went away
            return
        finally:
            writer.close()

    async def _answer(self, method: str, path: str, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.requests[method, path.partition("?")[0]] += 1
        fault = self.plan.popleft() if self.plan and method in self.methods else None
        if callable(fault):
            await asyncio.to_thread(fault)
            fault = None
        self.done.update([fault] if fault else [])
        if fault and fault.isdigit():
            writer.write(f"HTTP/1.1 {fault} Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        elif fault != "reset before":
            if fault == "200 for 206":
                head = re.sub(rb"(?im)^range:.*\r\n", b"", head)
            told, found = await self._ask(re.sub(rb"(?im)^(connection|expect):.*\r\n", b"", head), body)
            if fault == "etag":
                told = re.sub(rb'(?im)^(etag: *"?)..', rb"\1zz", told)
            if fault in ("cut", "stall"):
                writer.write(told + found[: len(found) // 2])
                told, found = b"", found[len(found) // 2 :]
            if fault == "stall":
                await asyncio.sleep(self.stall)
            if fault not in ("cut", "reset after"):
                writer.write(told + found)
        await writer.drain()
        if fault in ("cut", "reset before", "reset after"):
            writer.transport.abort()

    async def _ask(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Hand a request on, on a connection of its own, and return head and body of the answer."""
        reader, writer = await asyncio.open_connection(*self._server)
        try:
            writer.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
            told, _, found = (await reader.read()).partition(b"\r\n\r\n")
            return re.sub(rb"(?im)^connection:.*\r\n", b"", told + b"\r\n") + b"Connection: close\r\n\r\n", found
        finally:
            writer.close()


@contextmanager
def proxying(server: str) -> Iterator[Proxy]:
    """Run a proxy before a server, for the time of the block, in a thread of its own."""
    proxy, ready = Proxy(server), threading.Event()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def run() -> None:
        stop = asyncio.Event()
        running.append((asyncio.get_running_loop(), stop))
        listening = await asyncio.start_server(proxy._serve, "127.0.0.1", 0, limit=2**20)
        proxy.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        ready.set()
        async with listening:
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        loop, stop = running[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
