"""Other processes: one that has a target, those that are killed, and what these leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import sys, time
from iid_dask.locks import claimed
with claimed(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    time.sleep(120)
"""


@contextmanager
def holding(target: Path, job: str = "to_iid") -> Iterator[subprocess.Popen[str]]:
    """Let another process have a target, until it is killed or the block ends."""
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(target), job], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate(timeout=30)


def alive(group: int) -> bool:
    """Whether any process of a session lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def finished(job: str, target: Path) -> list[Path]:
    """Return what tells that tiles are whole: records of an export, else files."""
    folder = target / ("iid_record/label/c" if job == "export" else "tiles")
    return [
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".iid", "") and path.name[0] != "."
    ]


def stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
