"""Opening a file of many entries: columns, memory, a fresh process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import iid_dask
from benchmarks import data
from benchmarks.timing import Spent, Table, alternate, digits, held, spent

REFERENCE = "IID_REFERENCE_PYTHON"
"""Environment variable: an interpreter that can import the reference implementation, iidfile."""

FETCH = """
import sys, time
from iidfile import IIDFile
begin = time.perf_counter()
file = IIDFile(sys.argv[1])
file.fetch(everything=True)
print(time.perf_counter() - begin)
"""

IMPORT = """
import time
begin = time.perf_counter()
import iid_dask
print(time.perf_counter() - begin)
"""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del out
    indexed = data.sparse(folder, sizes.side, sizes.discs)
    plain = data.sparse(folder, sizes.side, sizes.discs, index=False)
    for path in (indexed, plain):
        _open(path)  # kernels are compiled, the file is in the page cache
    yield columns_table(indexed, plain, sizes.discs, repeats)
    yield memory_table(indexed, plain)
    yield process_table(indexed, repeats)


# --- columns ----------------------------------------------------------------------------------------------------


def columns_table(indexed: Path, plain: Path, entries: int, repeats: int) -> Table:
    """Compare a fresh reader's columns with the reference's reading of everything."""
    tasks: dict[str, Callable[[], Spent]] = {
        "columns, no index": lambda: _open(plain),
        "columns, index": lambda: _open(indexed),
    }
    python = os.environ.get(REFERENCE)
    if python:
        tasks["reference, fetch(everything=True)"] = lambda: told([python, "-c", FETCH, str(plain)])
    found = alternate(tasks, repeats)
    table = Table(
        f"open {entries} entries ({plain.stat().st_size / 2**20:.0f} MiB, in the page cache)",
        ["work", "ms", "x faster than the reference", "figure", "held"],
    )
    for work, rounds in found.items():
        faster, figure = "", ("≥ 100" if work == "columns, no index" else "", f"not measured: set {REFERENCE}")
        if python:
            times = found["reference, fetch(everything=True)"].over(rounds).wall
            faster, figure = digits(times), held(times, least=100) if work == "columns, no index" else ("", "")
        table.add(work, rounds.wall * 1e3, faster, *figure)
    return table


def _open(path: Path) -> Spent:
    with ExitStack() as stack:
        return spent(lambda: stack.enter_context(iid_dask.open(path)).columns)


def told(command: list[str]) -> Spent:
    """Run a process that prints its own seconds."""
    return Spent(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))


# --- memory -----------------------------------------------------------------------------------------------------


def memory_table(indexed: Path, plain: Path) -> Table:
    """Trace what an open reader with its columns holds."""
    table = Table(
        "memory of an open file with its columns",
        ["file", "held MiB", "B an entry", "peak MiB", "figure: 64 B x entries + 24 B x regions + 4 MiB", "held"],
    )
    for name, path in (("index", indexed), ("no index", plain)):
        gc.collect()
        tracemalloc.start()
        reader = iid_dask.open(path)
        entries, regions = len(reader.lut), len(reader.columns.region_boxes)
        gc.collect()
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        reader.close()
        limit = (64 * entries + 24 * regions) / 2**20 + 4
        figure = held(now / 2**20, most=round(limit, 1))
        table.add(name, now / 2**20, now / entries, peak / 2**20, f"{figure[0]} MiB", figure[1])
    return table


# --- a fresh process --------------------------------------------------------------------------------------------


def process_table(path: Path, repeats: int) -> Table:
    """Time the import and the command line, each in fresh processes."""
    console = Path(sys.executable).with_name("iid")
    info = [str(console), "info", str(path)]
    table = Table("a fresh process, warm", ["work", "s", "figure", "held"])
    tasks: dict[str, Callable[[], Spent]] = {
        "python -c pass": lambda: _run([sys.executable, "-c", "pass"]),
        "import iid_dask (in the process)": lambda: told([sys.executable, "-c", IMPORT]),
    }
    works = console.exists() and subprocess.run(info, check=False, capture_output=True).returncode == 0
    if works:
        tasks["iid info FILE (whole process)"] = lambda: _run(info)
    figures = {"import iid_dask (in the process)": 0.15, "iid info FILE (whole process)": 0.5}
    for work, rounds in alternate(tasks, repeats).items():
        figure = held(rounds.wall, most=figures[work]) if work in figures else ("", "")
        table.add(work, rounds.wall, *figure)
    if not works:
        table.add("iid info FILE (whole process)", "", "≤ 0.5", "the command does not run here")
    return table


def _run(command: list[str]) -> Spent:
    return Spent(spent(lambda: subprocess.run(command, check=True, capture_output=True)).wall)
