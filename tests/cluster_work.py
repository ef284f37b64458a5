"""What tests of clusters share: work for their processes, which import this module, and a killer of workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import LocalCluster


def write(seconds: float, folder: str, start: int, stop: int) -> list[int]:
    """Note every time that an item is made."""
    for item in range(start, stop):
        time.sleep(seconds)
        with open(Path(folder) / str(item), "a") as file:
            file.write("x")
    return list(range(start, stop))


def die_of_57(shared: Any, folder: str, start: int, stop: int) -> list[int]:
    """Kill the worker at one item, after a while in which others finish."""
    for item in range(start, stop):
        if item == 57:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        write(0, folder, item, item + 1)
    return list(range(start, stop))


@contextmanager
def killing(local: LocalCluster, every: float, kills: list[int]) -> Iterator[None]:
    """Kill a running worker every so many seconds, but never the last one."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(every):
            there = [w for w in local.workers.values() if w.process and w.worker_address in local.scheduler.workers]
            if len(there) > 1:
                pid = there[len(kills) % len(there)].process.pid
                os.kill(pid, signal.SIGKILL)
                kills.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
