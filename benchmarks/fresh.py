"""A job in a process of its own: its seconds, and the most memory that it and its workers took."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import Rounds, Spent, alternate

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Told:
    """What a process tells of its job.

    Attributes
    ----------
    wall, cpu : float
        Seconds of the job; imports and what it prepares are not counted. ``cpu``: of its workers, too.
    peaks : list of float
        Most memory of the process, then of each dask worker, MB; imports count.
    result
        What the job returned.
    """

    wall: float
    cpu: float
    peaks: list[float]
    result: Any

    @property
    def memory(self) -> str:
        """The peaks as text, MB."""
        return " + ".join(f"{peak:.0f}" for peak in self.peaks)


def run(job: str, *arguments: Any) -> Told:
    """Run a function of `benchmarks.jobs` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.fresh", job, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return Told(**json.loads(done.stdout.splitlines()[-1]))


def compare(
    jobs: Mapping[str, tuple[Any, ...]],
    repeats: int,
    *,
    budget: float = 120.0,
    between: Callable[[str], object] = lambda name: None,
) -> tuple[dict[str, Rounds], dict[str, list[Told]]]:
    """Run jobs in turn, each time in a fresh process.

    Parameters
    ----------
    jobs : mapping
        Name -> function of `benchmarks.jobs`, and its arguments.
    repeats, budget
        As for `alternate`.
    between : function, optional
        Called with the name after each run, to look at the results and remove them.
    """
    told: dict[str, list[Told]] = {name: [] for name in jobs}

    def once(name: str) -> Spent:
        one = run(*jobs[name])
        told[name].append(one)
        between(name)
        return Spent(one.wall, one.cpu)

    return alternate({name: (lambda name=name: once(name)) for name in jobs}, repeats, budget=budget), told


def peak() -> float:
    """Return the most memory that this process has taken, MB."""
    try:  # ru_maxrss would count the parent's peak too: Linux hands it on through fork and exec
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024 / 1e6
    except OSError:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used / 1e6 if sys.platform == "darwin" else used * 1024 / 1e6


def everywhere(function: Callable[[], float]) -> list[float]:
    """Call in this process, and in the workers of the client in scope."""
    if "distributed" not in sys.modules:
        return [function()]
    from distributed import get_client

    try:
        return [function(), *get_client().run(function).values()]
    except ValueError:
        return [function()]


def main(arguments: Sequence[str]) -> None:
    """Do the job and tell what it took in a line of JSON."""
    job = getattr(importlib.import_module("benchmarks.jobs"), arguments[0])
    with job(*json.loads(arguments[1])) as work:
        cpu, wall = sum(everywhere(time.process_time)), time.perf_counter()
        result = work()
        wall = time.perf_counter() - wall
        cpu = sum(everywhere(time.process_time)) - cpu
        print(json.dumps({"wall": wall, "cpu": cpu, "peaks": everywhere(peak), "result": result}))


if __name__ == "__main__":
    main(sys.argv[1:])
