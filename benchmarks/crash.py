"""`iid assemble` killed at random moments and run again: are the bytes the same, and what does a kill cost?"""

from __future__ import annotations

import hashlib
import random
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.timing import Table

KILLS = 50
FEW = 5
"""With --small."""

ASSEMBLE = "import sys; from iid_dask.cli import main; sys.argv[0] = 'iid'; main()"
STAGES = ("before the first tile", "tiles", "seams and tables", "the file", "removing the tiles")
OLD = b"what stood here before"


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the table."""
    del repeats
    place = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    try:
        side = sizes.dense_side // 2
        yield kill_table(Job.of(labels(folder, side), place), KILLS if sizes == data.FULL else FEW, side)
    finally:
        shutil.rmtree(place)


def labels(folder: Path, side: int) -> Path:
    """Return a .npy file of a label image: squares of 37 pixels with gaps, each cut by some border of tiles."""
    path = folder / f"squares-{side}.npy"
    if not path.exists():
        i = np.arange(side, dtype=np.uint32)
        inside = i % 37 < 30
        image = (i // 37)[:, None] * np.uint32(side // 37 + 1) + i // 37 + np.uint32(1)
        np.save(path, np.where(inside[:, None] & inside, image, np.uint32(0)))
    return path


@dataclass(frozen=True)
class Job:
    """A call of `iid assemble` whose result is known.

    Attributes
    ----------
    command : list of str
    target : Path
        In a folder that holds nothing else.
    sha256 : str
        Of the file that an undisturbed run makes.
    seconds, begun : float
        That it takes, and until it has made its first file: before, Python starts and modules are loaded.
    """

    command: list[str]
    target: Path
    sha256: str
    seconds: float
    begun: float

    @classmethod
    def of(cls, image: Path, folder: Path, tile: int = 256) -> Job:
        """Run it three times, and keep its result and the shortest times."""
        target = folder / "out.iid"
        words = ["assemble", str(image), "-o", str(target), "--tile", str(tile)]
        command = [sys.executable, "-c", ASSEMBLE, *words]
        times = []
        for _ in range(3):
            start = time.perf_counter()
            child = run_until_begun(command, folder)
            begun = time.perf_counter() - start
            if child.wait():
                raise RuntimeError(f"{' '.join(words)}: exit code {child.returncode}")
            times.append((time.perf_counter() - start, begun))
            sha256 = digest(target)
            target.unlink()
        return cls(command, target, sha256, *min(times))

    def stage(self) -> str:
        """Return what a killed run was doing, by what it left."""
        if self.target.read_bytes() != OLD:
            return STAGES[4]
        left = [path.name for path in self.target.parent.rglob("*") if path.is_file()]
        if not any(name.startswith("r0") and name.endswith(".iid") for name in left):
            return STAGES[0]
        if "mosaic.json" in left:
            return STAGES[3]
        return STAGES[2] if any(name.endswith(".parquet") for name in left) else STAGES[1]


@dataclass(frozen=True)
class Killed:
    """One run that was killed, and the next, which was not.

    Attributes
    ----------
    stage : str, optional
        One of `STAGES`; None for a run that had ended before it could be killed.
    spent, again : float
        Seconds until the kill, and of the second run.
    held : bool
        The old file stood until the new one was whole, the bytes are the same, and nothing else is left.
    """

    stage: str | None
    spent: float
    again: float
    held: bool


def run_until_begun(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a run and wait until a file or folder of its own is to be seen beside the target, or it ends."""
    there = len(list(folder.iterdir()))
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.iterdir())) <= there and child.poll() is None:
        time.sleep(0.001)
    return child


def kill_once(job: Job, wait: float) -> Killed:
    """Kill a run some seconds after it has begun, or as many before it usually has; then run it again."""
    job.target.write_bytes(OLD)
    start = time.perf_counter()
    if wait < 0:
        child = subprocess.Popen(job.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait += job.begun
    else:
        child = run_until_begun(job.command, job.target.parent)
    stage = None
    try:
        child.wait(wait)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        stage = job.stage()
    spent = time.perf_counter() - start
    untouched = job.target.read_bytes() == OLD or digest(job.target) == job.sha256
    start = time.perf_counter()
    done = subprocess.run(job.command, check=False, capture_output=True)
    again = time.perf_counter() - start
    same = done.returncode == 0 and digest(job.target) == job.sha256
    alone = [path.name for path in job.target.parent.iterdir()] == [job.target.name]
    return Killed(stage, spent, again, untouched and same and alone)


def kill_table(job: Job, kills: int, side: int) -> Table:
    """Kill runs at random moments, one in ten of them while modules are loaded; those that had ended do not count."""
    rng = random.Random(data.SEED)
    found: list[Killed] = []
    for attempt in range(2 * kills):
        share = rng.random()
        wait = -share * job.begun if attempt % 10 == 9 else share * (job.seconds - job.begun)
        found.append(kill_once(job, wait))
        if sum(one.stage is not None for one in found) == kills:
            break
    table = Table(
        f"iid assemble of {side} x {side} labels, undisturbed {job.seconds:.2f} s: killed at random and run again",
        ["killed during", "kills", "same bytes, nothing left", "s of the second run", "s lost a kill"],
    )
    for stage in STAGES:
        if some := [one for one in found if one.stage == stage]:
            table.add(stage, *summary(some, job))
    table.add("all", *summary([one for one in found if one.stage is not None], job))
    return table


def summary(some: list[Killed], job: Job) -> tuple[int, str, float, float]:
    """Return how many there are, how many held, and the means of the second run's seconds and of those lost."""
    again = statistics.mean(one.again for one in some)
    lost = statistics.mean(one.spent + one.again - job.seconds for one in some)
    return len(some), f"{sum(one.held for one in some)} of {len(some)}", again, lost


def digest(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
