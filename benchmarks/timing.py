"""Measure alternately, compare, and print what was measured beside what was promised."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NamedTuple


class Spent(NamedTuple):
    """Seconds of a clock on the wall, and of this process's processors: the latter hardly feel other processes."""

    wall: float
    cpu: float = math.nan


def spent(work: Callable[[], Any]) -> Spent:
    """Call and return what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def total(parts: Iterable[Spent]) -> Spent:
    """Return the sum."""
    walls, cpus = zip(*parts, strict=True)
    return Spent(sum(walls), sum(cpus))


def alternate(tasks: Mapping[str, Callable[[], Spent]], repeats: int, *, budget: float = 120.0) -> dict[str, Rounds]:
    """Run every task in turn, ``repeats`` times, every other round in reverse.

    What else the machine does hits all tasks alike, so ratios hold where seconds do not.

    Parameters
    ----------
    tasks : mapping
        Name -> function that measures itself, so that what it prepares need not count.
    repeats : int
    budget : float
        Seconds after which no further round is begun.
    """
    found: dict[str, list[Spent]] = {name: [] for name in tasks}
    start = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - start > budget:
            break
        for name in list(tasks)[:: -1 if turn % 2 else 1]:
            found[name].append(tasks[name]())
    return {name: Rounds(tuple(each)) for name, each in found.items()}


@dataclass(frozen=True)
class Rounds:
    """What one task took, round by round."""

    each: tuple[Spent, ...]

    @property
    def wall(self) -> float:
        """Median of seconds on the wall."""
        return statistics.median(one.wall for one in self.each)

    @property
    def cpu(self) -> float:
        """Median of processor seconds."""
        return statistics.median(one.cpu for one in self.each)

    def over(self, other: Rounds) -> Spent:
        """Return the medians of the ratios to another task within each round."""
        pairs = list(zip(self.each, other.each, strict=True))
        return Spent(*(statistics.median(a[clock] / b[clock] for a, b in pairs) for clock in (0, 1)))


@dataclass
class Table:
    """Rows of text under a title."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: object) -> None:
        """Add a row; floats are shown with three digits."""
        self.rows.append([digits(cell) if isinstance(cell, float) else str(cell) for cell in cells])

    def markdown(self) -> str:
        """Return the table, aligned."""
        lines = [list(self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
        text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        return f"**{self.title}**\n\n" + "\n".join(text)


def digits(value: float) -> str:
    """Return a number with three digits that count, without an exponent.

    Examples
    --------
    >>> digits(0.01234), digits(1.5), digits(1234.5)
    ('0.0123', '1.50', '1234')
    """
    if value == 0:
        return "0"
    size = abs(value)
    places = next((n for n, limit in enumerate((100, 10, 1, 0.1, 0.01, 0.001)) if size >= limit), 6)
    return f"{value:.{places}f}"


def held(value: float, *, most: float | None = None, least: float | None = None) -> tuple[str, str]:
    """Return a figure to hold as text, and whether it was held."""
    limit, sign = (most, "≤") if most is not None else (least, "≥")
    if limit is None:
        raise TypeError("expected most= or least=")
    kept = value <= limit if sign == "≤" else value >= limit
    return f"{sign} {limit:g}", "yes" if kept else "**no**"


def machine() -> str:
    """Return in one line what this ran on."""
    try:
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        memory = "unknown memory"
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "zarr", "zarrs", "dask", "xarray"))
    return f"{os.cpu_count()} cores, {memory}; Python {platform.python_version()}, {packages}"
