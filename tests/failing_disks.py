"""Calls of the system that fail, in this process or by the kernel, under reads whose result is known."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from iid_dask.format.source import LocalSource

BYTES = bytes(range(256)) * 400
RANGES = np.arange(0, 100_000, 5_000), np.full(20, 700)
"""More than are read by Python, and further apart than a gap."""


def read_ranges(of: LocalSource) -> bytes:
    out = np.zeros(int(RANGES[1].sum()), np.uint8)
    of.read_many(*RANGES, out)
    return out.tobytes()


EXPECTED = b"".join(BYTES[at : at + 700] for at in RANGES[0].tolist())


# --- in this process ------------------------------------------------------------------------------------------------


@contextmanager
def faulty(call: str, fault: Callable[[int], int | None]) -> Iterator[Counter[str]]:
    """Make a call of `os` fail, in all threads.

    Parameters
    ----------
    call : str
        Name in `os`.
    fault
        Number of the call, from 1 on -> error number, or None to let it be.

    Yields
    ------
    Counter
        "calls" and "faults".
    """
    real, counted, lock = getattr(os, call), Counter(), threading.Lock()

    def instead(*arguments: Any) -> Any:
        with lock:
            counted["calls"] += 1
            number = fault(counted["calls"])
            counted["faults"] += number is not None
        if number is not None:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    setattr(os, call, instead)
    try:
        yield counted
    finally:
        setattr(os, call, real)


# --- by the kernel --------------------------------------------------------------------------------------------------


def can_trace() -> bool:
    """Whether strace is here, and may trace."""
    if shutil.which("strace") is None:
        return False
    return not subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False).returncode


STRACED = """
import sys
import numpy as np
from iid_dask.format import faults
from iid_dask.format.source import LocalSource

faults.FIRST_WAIT, faults.ATTEMPTS = 0.001, int(sys.argv[2])
opened = LocalSource(sys.argv[1])
offsets, lengths = np.arange(0, 100_000, 5_000), np.full(20, 700)
out = np.zeros(20 * 700, np.uint8)
opened.read_many(offsets, lengths, out)
sys.stdout.write(out.tobytes().hex() + opened.read(4000, 100).hex())
"""


def straced(file: Path, calls: str, attempts: int = 5) -> tuple[subprocess.CompletedProcess[str], int]:
    """Read 20 ranges by the compiled loop, and one more by Python, while the kernel fails some of the calls.

    Returns
    -------
    CompletedProcess
    int
        Calls that failed.
    """
    log = file.with_name("strace.log")
    inject = ["strace", "-f", "-qq", "-o", str(log), "-P", str(file), "-e", f"inject={calls}"]
    done = subprocess.run(
        [*inject, sys.executable, "-c", STRACED, str(file), str(attempts)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done, log.read_text().count("(INJECTED)")


MAPPED_OR_READ = """
import mmap, os, sys
from iid_dask import IIDChangedError
from iid_dask.format.source import LocalSource

path = sys.argv[1]
if sys.argv[2] == "mapped":
    with open(path, "rb") as file:
        held = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    read = lambda: held[90_000:90_100]
else:
    held = LocalSource(path)
    read = lambda: held.read(90_000, 100)
read()
os.truncate(path, 10)
try:
    read()
except IIDChangedError:
    sys.exit(3)
"""


def cut_under(file: Path, how: str) -> int:
    """Cut a file under a child that reads it, "mapped" or "read", and return its exit code: 3 for an error of ours."""
    done = subprocess.run([sys.executable, "-c", MAPPED_OR_READ, str(file), how], check=False, capture_output=True)
    return done.returncode
