"""Reads while files move, disks fail and networks are bad: how many faults, how many survived, how much is wrong.

Every row has a control: the same faults under a reader or writer that takes no care.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.timing import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bad_networks import CarelessSource, read_under_faults
from failing_disks import BYTES, EXPECTED, can_trace, cut_under, faulty, read_ranges, straced
from fault_proxy import FAULTS, proxying, seeded
from moving_files import (
    Version,
    cycles,
    events_under_threads,
    make_versions,
    overwrite,
    publish,
    random_box,
    read_in_children,
    republished_under_processes,
    window_of,
    within,
)
from object_store import new_bucket, serving

import iid_dask
from iid_dask.format import faults
from iid_dask.format.source import LocalSource

COLUMNS = ["faults", "injected", "reads", "right", "told as errors", "wrong", "control", "s"]


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del folder, repeats
    share = 1 if sizes == data.FULL else 10
    place = out / f"iid_dask-benchmark-{uuid.uuid4().hex[:8]}"
    place.mkdir()
    faults.FIRST_WAIT = 0.01  # a wait is no part of what is counted
    try:
        version = make_versions(place / "versions", 2)
        yield local_table(place, share)
        yield shared_table(place, version, share)
        yield network_table(version[0], share)
    finally:
        shutil.rmtree(place)


# --- local files ------------------------------------------------------------------------------------------------


def local_table(place: Path, share: int) -> Table:
    """Files that move, and disks that fail."""
    table = Table("Local files under faults", COLUMNS)
    for name in ("events", "republished", "overwritten"):
        (place / name).mkdir()
    start = time.perf_counter()
    events = 200 // share
    found = events_under_threads(place / "events", events)
    file = place / "file"
    file.write_bytes(BYTES)
    control = f"mapped: exit code {cut_under(file, 'mapped')}"
    add(table, "cut, lengthened, unlinked, replaced under 4 threads", events, found, control, start)
    start = time.perf_counter()
    times = 200 // share
    written, careless = republished_under_processes(place / "overwritten", times, readers=2, careless=1, put=overwrite)
    control = f"{careless['wrong']} mixtures of {careless.total()} reads"
    add(table, "written over in place under 2 processes", times, written, control, start)
    start = time.perf_counter()
    found, _ = republished_under_processes(place / "republished", times)
    add(table, "published anew under 3 processes", times, found, "as above", start)
    file.write_bytes(BYTES)
    add_failing_disk(table, file)
    if can_trace():
        add_failing_kernel(table, file, 30 // share)
    return table


def add(table: Table, name: str, injected: int, found: dict[str, int], control: str, start: float) -> None:
    """Add what readers got."""
    told = found["changed"] + found["error"]
    reads = found["right"] + found["wrong"] + told
    table.add(name, injected, reads, found["right"], told, found["wrong"], control, time.perf_counter() - start)


def add_failing_disk(table: Table, file: Path) -> None:
    """EIO and ESTALE at each of the reads of 20 ranges, in this process; then with one attempt each."""
    from iid_dask.format import source

    start = time.perf_counter()
    right = errors = injected = 0
    many, source.MANY_RANGES = source.MANY_RANGES, 100
    for attempts in (faults.ATTEMPTS, 1):
        faults.ATTEMPTS, allowed = attempts, faults.ATTEMPTS
        for number in (errno.EIO, errno.ESTALE):
            for nth in range(1, 21):
                with faulty("preadv", lambda n, nth=nth, number=number: number if n == nth else None) as counted:
                    try:
                        right += read_ranges(LocalSource(str(file))) == EXPECTED and attempts > 1
                    except OSError:
                        errors += 1
                injected += counted["faults"] if attempts > 1 else 0
        faults.ATTEMPTS = allowed
    source.MANY_RANGES = many
    wrong = injected - right
    control = f"one attempt: {errors} errors of 40"
    table.add(
        "EIO, ESTALE at the n-th pread, n = 1 … 20", injected, 40, right, 0, wrong, control, time.perf_counter() - start
    )


def add_failing_kernel(table: Table, file: Path, upto: int) -> None:
    """EIO and ESTALE at the n-th pread of the process, by strace: in the compiled loop, and behind it."""
    start = time.perf_counter()
    injected = right = reads = 0
    for number in ("EIO", "ESTALE"):
        for nth in range(1, upto + 1):
            call = f"pread64:error={number}:when={nth}" if nth <= 20 else f"preadv,preadv2:error={number}:when=1"
            done, n = straced(file, call)
            reads, injected = reads + 1, injected + n
            right += not done.returncode and bytes.fromhex(done.stdout) == EXPECTED + BYTES[4000:4100]
    done, _ = straced(file, "preadv,preadv2:error=EIO:when=1", attempts=1)
    control = f"one attempt: exit code {done.returncode}"
    table.add(
        f"EIO, ESTALE by the kernel, n = 1 … {upto}",
        injected,
        reads,
        right,
        0,
        reads - right,
        control,
        time.perf_counter() - start,
    )


# --- threads, processes, leaks ----------------------------------------------------------------------------------


def shared_table(place: Path, versions: list[Version], share: int) -> Table:
    """One open file in many threads and processes, and what stays open."""
    table = Table("One open file in threads and children; nothing stays open", ["what", "reads", "right", "held", "s"])
    start = time.perf_counter()
    reads = 16_000 // share
    right = read_in_threads(versions[0], reads, 16)
    table.add("windows in 16 threads", reads, right, "", time.perf_counter() - start)
    start = time.perf_counter()
    n = 500 // share
    found = read_in_children(place, versions[0], n)
    table.add(
        "windows in fork, spawn, forkserver children", 4 * n, sum(found.values()), "", time.perf_counter() - start
    )
    start = time.perf_counter()
    reads = 10_000 // share
    before = len(os.listdir("/proc/self/fd"))
    right = read_replaced(place / "live.iid", versions, reads)
    held = f"{len(os.listdir('/proc/self/fd')) - before:+} descriptors"
    table.add("windows of a file replaced every 50", reads, right, held, time.perf_counter() - start)
    start = time.perf_counter()
    n = 2_000 // share
    first, last = cycles(versions[0].path, n)
    held = (
        f"{last.descriptors - first.descriptors:+} descriptors, {last.threads - first.threads:+} threads, "
        f"{(last.memory - first.memory) / n:+.0f} bytes a cycle"
    )
    table.add("open, read, verify, close", n, n, held, time.perf_counter() - start)
    kept: list[object] = []
    first, last = cycles(versions[0].path, 40, kept=kept)
    table.add("control: 40 never closed", 40, 40, f"{last.descriptors - first.descriptors:+} descriptors", 0.0)
    return table


def read_in_threads(version: Version, reads: int, threads: int) -> int:
    """Return how many windows are as they should be."""
    with iid_dask.open(version.path) as reader, ThreadPoolExecutor(threads) as pool:

        def read(seed: int) -> bool:
            box = random_box(np.random.default_rng(seed), 200)
            return np.array_equal(window_of(reader, box), within(version.labels, box))

        return sum(pool.map(read, range(reads)))


def read_replaced(path: Path, versions: list[Version], reads: int) -> int:
    """Read a file that is replaced after every 50 windows, opening it then."""
    rng, right = np.random.default_rng(0), 0
    for turn in range(reads // 50):
        publish(versions[turn % 2].path, path)
        with iid_dask.open(path) as reader:
            for _ in range(50):
                box = random_box(rng, 60)
                right += np.array_equal(window_of(reader, box), within(versions[turn % 2].labels, box))
    return right


# --- networks ---------------------------------------------------------------------------------------------------


def network_table(version: Version, share: int) -> Table:
    """An object on a server that speaks S3, through a proxy that does what bad networks do."""
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    table = Table("An object behind a bad network: 503, 429, resets, cut bodies, stalls of 2 s, 200 for 206", COLUMNS)
    with serving() as server, proxying(server) as proxy:
        bucket = new_bucket(server)
        bucket.fs.pipe_file(f"{bucket.name}/v.iid", version.path.read_bytes())
        client = bucket.through(proxy.endpoint, config_kwargs={"read_timeout": 1, "retries": {"max_attempts": 0}})
        passing = [fault for fault in FAULTS if fault != "etag"]
        for name, kinds in (("faults that pass", passing), ("another version's ETag among them", FAULTS)):
            plan = seeded(kinds, 200 // share, 400 // share, data.SEED)
            reads = 400 // share
            start = time.perf_counter()
            found = read_under_faults(client, "v.iid", proxy, version, plan, reads=reads)
            seconds = time.perf_counter() - start
            careless = read_under_faults(client, "v.iid", proxy, version, plan, reads=reads, kind=CarelessSource)
            control = f"{careless['wrong']} wrong, {careless['error']} errors"
            table.add(name, found["faults"], reads, found["right"], found["error"], found["wrong"], control, seconds)
    return table
