"""Coverage-guided fuzzing: does anything but an IIDError come out of hostile files?

Needs atheris (``pip install "iid_dask[bench]"``). Every target runs in processes of its own, which a crash may end; its
inputs that reached new code are kept in the data folder, so that the next run goes on from there. What fails is kept
beside them; mend it, then put the input, minimised, into ``tests/data/fuzz``.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks import data
from benchmarks.mutating import Cross, Mutate, change_json, change_table, cross_bytes, cross_json
from benchmarks.timing import Table

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "data" / "fuzz"
"""Inputs that are kept with the tests."""

RUNS = {"file": 450_000, "index": 250_000, "manifest": 80_000, "tables": 40_000, "job": 200_000}
"""Executions of each target; with --small one in five hundred."""

LARGEST = {"file": 4096, "index": 4096, "manifest": 16_384, "tables": 8192, "job": 8192}
"""Bytes of an input, at most."""

MEMORY = 4096
"""MiB that a process may take in all."""

CRASHES = 20
"""Finds after which a target is given up."""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the table of executions and finds."""
    del out, repeats
    yield fuzz_table(folder / "fuzz", RUNS, 1 if sizes == data.FULL else 500)


@dataclass(frozen=True)
class Fuzzed:
    """What became of a target.

    Attributes
    ----------
    runs : int
        Inputs that were executed.
    seconds : float
    covered : int
        Edges of Python code that were reached.
    kept : int
        Inputs that reached code which those before did not.
    finds : list of Path
        Inputs that failed.
    """

    runs: int
    seconds: float
    covered: int
    kept: int
    finds: list[Path]


def fuzz_table(folder: Path, runs: dict[str, int], divisor: int = 1) -> Table:
    """Fuzz every target and return what became of them."""
    columns = ("target", "executions", "seconds", "a second", "edges", "inputs kept", "finds")
    table = Table("Hostile inputs, made by coverage (atheris)", columns)
    total, spent, finds = 0, 0.0, 0
    for name, wanted in runs.items():
        done = fuzz(name, max(1, wanted // divisor), folder / name)
        table.add(
            name, done.runs, done.seconds, done.runs / done.seconds, done.covered, done.kept, len(done.finds) or "none"
        )
        total, spent, finds = total + done.runs, spent + done.seconds, finds + len(done.finds)
    table.add("all", total, spent, total / spent, "", "", finds or "none")
    return table


def fuzz(name: str, wanted: int, folder: Path) -> Fuzzed:
    """Execute a target so many times, in as many processes as its crashes end."""
    kept, failed = folder / "corpus", folder / "finds"
    for some in (kept, failed):
        some.mkdir(parents=True, exist_ok=True)
    before = set(failed.iterdir())
    runs, covered, begin = 0, 0, time.monotonic()
    for attempt in range(CRASHES):
        seed = 1 + attempt + len(list(kept.iterdir()))
        command = [sys.executable, "-m", "benchmarks.fuzz", name, str(wanted - runs), str(seed), str(folder)]
        child = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, text=True, errors="replace", check=False)
        (folder / f"log{attempt}.txt").write_text(child.stderr)
        executed = [int(count) for count in re.findall(r"(?:^#|executed_units: )(\d+)\s", child.stderr, re.MULTILINE)]
        edges = [int(count) for count in re.findall(r"cov: (\d+)", child.stderr)]
        runs, covered = runs + max(executed, default=0), max([covered, *edges])
        if child.returncode == 0 or runs >= wanted:
            break
        if not executed:
            raise RuntimeError(f"fuzzing {name} did not begin: {child.stderr[-2000:]}")
    finds = sorted(set(failed.iterdir()) - before)
    return Fuzzed(runs, time.monotonic() - begin, covered, len(list(kept.iterdir())), finds)


def mutators() -> dict[str, tuple[Mutate, Cross]]:
    """Return of each target how one input is mutated, and two are crossed."""
    from benchmarks.mutating_files import change_file, change_indexed, cross_files  # they use modules of tests/

    return {
        "file": (change_file, cross_files),
        "index": (change_indexed, cross_files),
        "manifest": (change_json, cross_json),
        "tables": (change_table, cross_bytes),
        "job": (change_json, cross_json),
    }


def child(name: str, runs: int, seed: int, folder: Path) -> None:
    """Fuzz one target in this process; it ends with it."""
    import atheris

    sys.path[:0] = [str(ROOT / "tests")]
    # Numba compiles the kernels; what they find out is seen in the code that calls them.
    compiled = [f"iid_dask.kernels.{path.stem}" for path in (ROOT / "iid_dask" / "kernels").glob("*.py")]
    with atheris.instrument_imports(include=["iid_dask"], exclude=compiled), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fuzz_targets

        target = fuzz_targets.TARGETS[name]
        for sound in target.seeds():
            target.run(sound)  # compiles kernels and loads modules: no part of an input's time and memory
            (folder / "corpus" / hashlib.sha1(sound).hexdigest()).write_bytes(sound)
    mutate, cross = mutators()[name]

    def execute(given: bytes) -> None:
        fuzz_targets.examine(target, given)

    def mutated(given: bytes, most: int, number: int) -> bytes:
        return mutate(given, Random(number), lambda some: atheris.Mutate(some, max(len(some) + 16, 1)))[:most]

    def crossed(one: bytes, other: bytes, most: int, number: int) -> bytes:
        return cross(one, other, Random(number))[:most]

    options = {
        "runs": runs,
        "seed": seed,
        "max_len": LARGEST[name],
        "rss_limit_mb": MEMORY,
        "timeout": 20,
        "artifact_prefix": f"{folder / 'finds'}/",
        "len_control": 0,
        "print_final_stats": 1,
    }
    words = [f"-{option}={value}" for option, value in options.items()]
    places = [str(folder / "corpus"), *[str(some) for some in [CORPUS / name] if some.is_dir()]]
    atheris.Setup([sys.argv[0], *words, *places], execute, custom_mutator=mutated, custom_crossover=crossed)
    atheris.Fuzz()


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
