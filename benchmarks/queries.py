"""Questions to a file of many entries, once it is open; against the reference implementation."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import iid_dask
from benchmarks import data
from benchmarks.open import REFERENCE
from benchmarks.timing import Rounds, Spent, Table, alternate, digits, held, spent

NAMES = 1_000
REGION = 2_000

ASK_REFERENCE = """
import sys, time
from iidfile import IIDFile
file = IIDFile(sys.argv[1])
file.fetch(everything=True)
row, col, side = map(int, sys.argv[2:5])
for ask in (
    lambda: file.at(col, row, only_loaded=True),
    lambda: file.region((row, col, row + side, col + side), only_loaded=True),
    lambda: file.look_for([b"%d" % i for i in range(int(sys.argv[5]))]),
    lambda: file.filter(area=(1000, 2000)),
):
    begin = time.perf_counter()
    ask()
    print(time.perf_counter() - begin)
"""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del out
    plain = data.sparse(folder, sizes.side, sizes.discs, index=False)
    asked = _ask_reference(plain, sizes)
    with iid_dask.open(data.sparse(folder, sizes.side, sizes.discs)) as reader:
        _ = reader.columns
        yield places_table(reader, sizes, repeats, asked)
    with iid_dask.open(data.named(folder, sizes.names)) as reader:
        yield names_table(reader, repeats)


def places_table(reader: iid_dask.IIDReader, sizes: data.Sizes, repeats: int, asked: dict[str, float]) -> Table:
    """Measure queries by place and by column."""
    middle = sizes.side // 2
    side = min(REGION, middle)
    box = (middle, middle, middle + side, middle + side)
    points = np.random.default_rng(data.SEED).integers(0, sizes.side, (2, sizes.points))
    names = [b"%d" % i for i in range(min(NAMES, sizes.discs))]
    tasks: dict[str, Callable[[], object]] = {
        "at, one pixel": lambda: reader.at(middle, middle),
        f"at, {sizes.points} pixels": lambda: reader.at(*points),
        f"region of {side}²": lambda: reader.region(box),
        f"region of {side}², boxes only": lambda: reader.region(box, exact=False),
        "filter by area": lambda: reader.filter(area=(1000, 2000)),
        f"look_for {len(names)} names": lambda: reader.look_for(names),
    }
    figures = {f"at, {sizes.points} pixels": 3.0, f"region of {side}²": 0.010}
    title = f"{sizes.discs} entries on {sizes.side}², open, columns ready"
    return _table(title, tasks, figures, repeats, asked)


def names_table(reader: iid_dask.IIDReader, repeats: int) -> Table:
    """Measure the search for names among many more."""
    wanted = [b"cell-%d" % i for i in range(0, len(reader), max(1, len(reader) // NAMES))]
    tasks = {f"look_for {len(wanted)} names": lambda: reader.look_for(wanted)}
    return _table(f"{len(reader)} entries, open", tasks, dict.fromkeys(tasks, 0.3), repeats, {})


def _table(
    title: str, tasks: dict[str, Callable[[], object]], figures: dict[str, float], repeats: int, asked: dict[str, float]
) -> Table:
    for task in tasks.values():  # kernels are compiled
        task()
    found: dict[str, Rounds] = alternate({name: _spending(task) for name, task in tasks.items()}, repeats)
    table = Table(title, ["question", "ms", "figure, s", "held", "reference, ms", "x faster"])
    for name, rounds in found.items():
        figure = held(rounds.wall, most=figures[name]) if name in figures else ("", "")
        theirs = next((seconds for start, seconds in asked.items() if name.startswith(start)), None)
        compared = (
            ("", "") if theirs is None or "boxes" in name else (digits(theirs * 1e3), digits(theirs / rounds.wall))
        )
        table.add(name, rounds.wall * 1e3, *figure, *compared)
    return table


def _spending(task: Callable[[], object]) -> Callable[[], Spent]:
    return lambda: spent(task)


def _ask_reference(path: Path, sizes: data.Sizes) -> dict[str, float]:
    """Seconds that the reference takes once it has read everything; {} where it is not at hand."""
    python = os.environ.get(REFERENCE)
    if not python:
        return {}
    middle = sizes.side // 2
    numbers = [middle, middle, min(REGION, middle), min(NAMES, sizes.discs)]
    command = [python, "-c", ASK_REFERENCE, str(path), *map(str, numbers)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(("at, one", "region", "look_for", "filter"), map(float, told), strict=True))
