"""Files that change while they are read: what readers get, counted. Short in the tests, long in the benchmarks."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import iid_dask
from iid_dask import BBox, IIDWriter, Region, raster
from iid_dask.views import View, Window

SHAPE = (1200, 1500)
SIDE = 200
"""Rows and columns of an entry: its bits are more than a gap, so that a window takes many ranges."""

ENTRIES = 120


@dataclass(frozen=True)
class Version:
    """A file whose labels are known; it tells its number in its metadata.

    Attributes
    ----------
    number : int
    path : Path
    labels : uint32 array, shape `SHAPE`
    """

    number: int
    path: Path
    labels: np.ndarray


def make_versions(folder: Path, n: int = 2) -> list[Version]:
    """Write files of one size, whose entries lie elsewhere and have other bits."""
    folder.mkdir(exist_ok=True)
    return [_make_version(folder / f"v{number}.iid", number) for number in range(n)]


def _make_version(path: Path, number: int) -> Version:
    rng = np.random.default_rng(number)
    labels = np.zeros(SHAPE, np.uint32)
    metadata = {"image": dict(zip(("height", "width"), SHAPE, strict=True)), "version": number}
    with IIDWriter(path, metadata=metadata) as writer:
        for key in range(ENTRIES):
            row, col = (int(rng.integers(0, side - SIDE + 1)) for side in SHAPE)
            mask = rng.random((SIDE, SIDE)) < 0.5
            box = BBox(row, col, row + SIDE, col + SIDE)
            writer.add(b"square", f"{key:03}".encode(), box, regions=[Region(box, np.packbits(mask).tobytes())])
            labels[row : row + SIDE, col : col + SIDE][mask] = key + 1
    return Version(number, path, labels)


def random_box(rng: np.random.Generator, side: int = 500) -> BBox:
    """Return a window of the image."""
    row, col = (int(rng.integers(0, size - side // 2)) for size in SHAPE)
    return BBox(row, col, min(SHAPE[0], row + side), min(SHAPE[1], col + side))


def window_of(reader: iid_dask.IIDReader, box: BBox) -> np.ndarray:
    """Read labels, as the arrays of a dataset do."""
    return raster.label(View(reader, reader.shape), Window(box))


def within(labels: np.ndarray, box: BBox) -> np.ndarray:
    """Return what is to be read."""
    return labels[box.min_row : box.max_row, box.min_col : box.max_col]


# --- readers ----------------------------------------------------------------------------------------------------


def read_while(path: Path, versions: list[Version], going: Callable[[], bool], seed: int) -> Counter[str]:
    """Open, read windows until the file is another, and open again.

    Returns
    -------
    Counter
        "right" windows of the version that was opened, "wrong" ones; windows answered by "changed"; and files that
        were "refused" at opening, as they were missing or cut just then.
    """
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    while going():
        try:
            reader = iid_dask.open(path)
            _ = reader.columns
        except (iid_dask.IIDError, FileNotFoundError):
            found["refused"] += 1
            time.sleep(0.001)
            continue
        expected = versions[reader.metadata["version"]].labels
        with reader:
            for _ in range(20):
                box = random_box(rng)
                try:
                    same = np.array_equal(window_of(reader, box), within(expected, box))
                except iid_dask.IIDChangedError:
                    found["changed"] += 1
                    break
                found["right" if same else "wrong"] += 1
    return found


def events_under_threads(folder: Path, events: int, *, readers: int = 4) -> Counter[str]:
    """Cut, lengthen, unlink and replace a file, over and over, under threads that read it."""
    versions = make_versions(folder / "versions")
    path = folder / "live.iid"
    shutil.copyfile(versions[0].path, path)
    done = threading.Event()
    found: Counter[str] = Counter()
    raised: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            found.update(read_while(path, versions, lambda: not done.is_set(), seed))
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(readers)]
    for thread in threads:
        thread.start()
    for event in range(events):
        time.sleep(0.02)
        if event % 4 == 0:
            os.truncate(path, path.stat().st_size // 2)
        elif event % 4 == 1:
            publish(versions[event // 4 % 2].path, path)
        elif event % 4 == 2:
            with path.open("ab") as file:
                file.write(bytes(1000))
        else:
            path.unlink()
            publish(versions[event // 4 % 2].path, path)
    done.set()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return found


def publish(version: Path, target: Path) -> None:
    """Put a copy of a file in the place of another, at once."""
    temporary = target.with_suffix(".tmp")
    shutil.copyfile(version, temporary)
    os.replace(temporary, target)


def overwrite(version: Path, target: Path) -> None:
    """Write over a file in small steps, as nobody should who has readers."""
    data = version.read_bytes()
    with target.open("r+b", buffering=0) as file:
        for at in range(0, len(data), 65_536):
            file.write(data[at : at + 65_536])


# --- processes --------------------------------------------------------------------------------------------------


def _read_in_process(path: Path, folder: Path, done: Any, begun: Any, seed: int, results: Any) -> None:
    versions = make_versions(folder / f"of{seed}")  # the same bytes in each process
    begun.release()
    results.put((True, read_while(path, versions, lambda: not done.is_set(), seed)))


def _compare_in_process(path: Path, folder: Path, done: Any, begun: Any, seed: int, results: Any) -> None:
    """Compare the bytes of whole files, read in two halves by two who open it: a reader without any care."""
    wanted = [version.path.read_bytes() for version in make_versions(folder / f"of{seed}")]
    begun.release()
    found: Counter[str] = Counter()
    while not done.is_set():
        with path.open("rb") as first, path.open("rb") as second:
            half = first.read(len(wanted[0]) // 2)
            second.seek(len(half))
            found["right" if half + second.read() in wanted else "wrong"] += 1
    results.put((False, found))


def republished_under_processes(
    folder: Path, times: int, *, readers: int = 3, careless: int = 0, put: Callable[[Path, Path], None] = publish
) -> tuple[Counter[str], Counter[str]]:
    """Replace a file by one of two versions under processes that read it.

    Parameters
    ----------
    readers, careless
        Processes that read with iid_dask, and that just read bytes.
    put
        Writes a version to the path.

    Returns
    -------
    tuple of Counter
        What each of the two kinds got; "died" in the first counts children that did not end well.
    """
    versions = make_versions(folder / "versions")
    path = folder / "live.iid"
    shutil.copyfile(versions[0].path, path)
    context = multiprocessing.get_context("spawn")
    done, results, begun = context.Event(), context.SimpleQueue(), context.Semaphore(0)
    work = [_read_in_process] * readers + [_compare_in_process] * careless
    children = [
        context.Process(target=one, args=(path, folder, done, begun, seed, results)) for seed, one in enumerate(work)
    ]
    for child in children:
        child.start()
    for _ in children:
        begun.acquire(timeout=60)
    for turn in range(1, times + 1):
        time.sleep(0.02)
        put(versions[turn % 2].path, path)
    done.set()
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for _ in children:
        careful, counted = results.get()
        found[careful].update(counted)
    for child in children:
        child.join(60)
        found[True]["died"] += child.exitcode != 0
    return found[True], found[False]


# --- what a process holds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What this process holds of the system: descriptors, threads, bytes of memory."""

    descriptors: int
    threads: int
    memory: int

    @classmethod
    def now(cls) -> Held:
        """Count, on Linux."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), pages * os.sysconf("SC_PAGE_SIZE")
        )


def cycles(path: Path, n: int, *, kept: list[Any] | None = None) -> tuple[Held, Held]:
    """Open, read, verify and close; return what was held before, after a warm-up, and what is afterwards.

    Parameters
    ----------
    kept : list, optional
        Gets every reader, unclosed: a leak.
    """
    rng = np.random.default_rng(0)

    def once() -> None:
        reader = iid_dask.open(path)
        window_of(reader, random_box(rng, 100))
        reader.segment_bytes(int(rng.integers(ENTRIES)))
        if kept is None:
            reader.close()
        else:
            kept.append(reader)

    for _ in range(n // 4):
        once()
    before = Held.now()
    for _ in range(n):
        once()
    return before, Held.now()


CHILDREN = """
import json, multiprocessing, os, sys, warnings
sys.path.insert(0, {tests!r})
import numpy as np
import iid_dask
from moving_files import make_versions, random_box, window_of, within

def read(reader, labels, seed, n):
    rng = np.random.default_rng(seed)
    boxes = [random_box(rng) for _ in range(n)]
    return sum(np.array_equal(window_of(reader, box), within(labels, box)) for box in boxes)

def child(reader, labels, seed, n, results):
    results.put(read(reader, labels, seed, n))

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads: just what is tried
    labels = np.load(sys.argv[2])
    reader = iid_dask.open(sys.argv[1])
    n = int(sys.argv[3])
    found = {{"parent": read(reader, labels, 0, n)}}
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        children = [context.Process(target=child, args=(reader, labels, seed, n, results)) for seed in range(1)]
        for one in children:
            one.start()
        read(reader, labels, 5, n)  # at once with the children
        found[method] = sum(results.get() for _ in children)
        for one in children:
            one.join()
    print(json.dumps(found))
"""


def read_in_children(folder: Path, version: Version, n: int) -> dict[str, int]:
    """Read with one open reader in the process that opened it, and in children that get it; count right windows."""
    script = folder / "children.py"
    script.write_text(CHILDREN.format(tests=str(Path(__file__).parent)))
    np.save(folder / "labels.npy", version.labels)
    command = [sys.executable, str(script), str(version.path), str(folder / "labels.npy"), str(n)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)
