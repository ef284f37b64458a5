"""Local files that change, disks that fail, servers that are down, threads and processes that share what is open."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from bad_networks import asleep
from failing_disks import BYTES, EXPECTED, can_trace, cut_under, faulty, read_ranges, straced
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
from object_store import Bucket

import iid_dask
from iid_dask.format import faults, source
from iid_dask.format.folder import as_folder
from iid_dask.format.source import LocalSource, RemoteSource


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> list[Version]:
    return make_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def path(tmp_path) -> Path:
    return Path(shutil.copyfile(iid_dask.sample("us"), tmp_path / "us.iid"))


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "file").write_bytes(BYTES)
    return tmp_path / "file"


# --- faults of the disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EINTR, errno.ETIMEDOUT])
@pytest.mark.parametrize("nth", [1, 2, 7, 20])
def test_a_read_that_fails_once_is_tried_again_with_a_fresh_descriptor(number, nth, file, monkeypatch):
    monkeypatch.setattr(source, "MANY_RANGES", 100)  # all by Python, where this fault can be injected
    opened = LocalSource(str(file))
    with faulty("preadv", lambda n: number if n == nth else None) as counted, faulty("open", lambda n: None) as opens:
        assert read_ranges(opened) == EXPECTED
    assert (counted["faults"], counted["calls"], opens["calls"]) == (1, 21, 1)


def test_without_another_attempt_the_same_fault_is_an_error(file, monkeypatch):
    # What the test above would see if nothing were tried again.
    monkeypatch.setattr(source, "MANY_RANGES", 100)
    monkeypatch.setattr(faults, "ATTEMPTS", 1)
    opened = LocalSource(str(file))
    with faulty("preadv", lambda n: errno.EIO if n == 7 else None), pytest.raises(OSError, match="in 1 attempt: "):
        read_ranges(opened)


@pytest.mark.parametrize("call", ["preadv", "fstat", "open"])
def test_a_fault_that_stays_is_told_with_file_and_offset(call, file):
    opened = LocalSource(str(file))
    opened.close()  # so that it must be opened again
    what = "700 bytes at offset 4000" if call != "fstat" else ".*"
    message = rf"\[Errno {errno.EIO}\] {what} could not be read in 5 attempts: Input/output error: '{file}'"
    with faulty(call, lambda n: errno.EIO) as counted, pytest.raises(OSError, match=message) as caught:
        opened.read(4000, 700)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(file))
    assert counted["calls"] == faults.ATTEMPTS
    assert opened.read(4000, 700) == BYTES[4000:4700], "it is not broken for ever"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EINVAL, errno.ENOMEM])
def test_errors_that_do_not_pass_are_raised_at_once(number, file):
    opened = LocalSource(str(file))
    with faulty("preadv", lambda n: number) as counted, pytest.raises(OSError, match=os.strerror(number)) as caught:
        opened.read(0, 10)
    assert caught.value.errno == number
    assert counted["calls"] == 1


def test_no_attempt_begins_after_patience_has_ended(file, monkeypatch):
    monkeypatch.setattr(faults, "PATIENCE", 0.0)
    with faulty("preadv", lambda n: errno.EIO) as counted, pytest.raises(OSError, match="in 1 attempt: "):
        LocalSource(str(file)).read(0, 10)
    assert counted["calls"] == 1


@pytest.mark.parametrize("change", ["replaced", "gone"])
def test_a_file_that_is_another_after_a_fault_is_not_read_on(change, file):
    opened = LocalSource(str(file))

    def fault(n: int) -> int | None:
        if n == 1:
            other = file.with_name("other")
            other.write_bytes(BYTES[::-1])
            os.replace(other, file) if change == "replaced" else file.unlink()
        return errno.ESTALE if n == 1 else None

    error = iid_dask.IIDChangedError if change == "replaced" else FileNotFoundError
    with faulty("preadv", fault), pytest.raises(error, match="changed since opened" if change == "replaced" else None):
        opened.read(0, 1000)


@pytest.mark.timeout(30)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, file):
    fifo = tmp_path / "fifo.iid"
    os.mkfifo(fifo)
    for name, kind in ((str(fifo), "a FIFO"), ("/dev/null", "a device")):
        with pytest.raises(OSError, match=f"is {kind}, expected a file: '{name}'") as caught:
            iid_dask.open(name)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(IsADirectoryError, match=r"is a directory, expected an \.iid file"):
        iid_dask.open(tmp_path)
    opened = LocalSource(str(file))
    opened.close()
    os.replace(fifo, file)
    for read in (lambda: opened.read(0, 10), lambda: pickle.loads(pickle.dumps(opened))):
        with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
            read()


LEASING = """
import fcntl, signal, sys, time
file, asked = open(sys.argv[1], "r+b"), []
signal.signal(signal.SIGIO, lambda *_: asked.append(fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)))
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
while not asked:
    time.sleep(0.01)
print("given up", flush=True)
"""


@pytest.mark.timeout(30)
def test_a_file_that_another_process_has_leased_is_read_when_that_gives_it_up(file):
    with subprocess.Popen([sys.executable, "-c", LEASING, file], stdout=subprocess.PIPE, text=True) as other:
        try:
            if other.stdout.readline() != "leased\n":
                pytest.skip("needs a file system that gives leases")
            assert LocalSource(str(file)).read(0, 100) == BYTES[:100]
            assert other.stdout.readline() == "given up\n"
        finally:
            other.kill()


@pytest.fixture(scope="module")
def strace() -> None:
    if not can_trace():
        pytest.skip("needs strace, a package of Debian, and leave to trace: other faults are injected in-process")


@pytest.mark.parametrize(
    "calls", ["pread64:error=EIO:when=3", "pread64:error=ESTALE:when=20", "preadv,preadv2:error=EIO:when=1"]
)
def test_faults_of_the_kernel_are_survived_by_the_compiled_loop_too(calls, file, strace):
    done, injected = straced(file, calls)
    assert (done.returncode, injected) == (0, 1), done.stderr
    assert bytes.fromhex(done.stdout) == EXPECTED + BYTES[4000:4100]


def test_faults_of_the_kernel_that_stay_or_are_not_tried_again_are_errors(file, strace):
    # From the first fault on, the compiled loop hands over to Python.
    done, injected = straced(file, "pread64,preadv,preadv2:error=EIO:when=1+")
    assert (done.returncode, injected) == (1, 1 + 5)
    assert f"700 bytes at offset 0 could not be read in 5 attempts: Input/output error: '{file}'" in done.stderr
    control, injected = straced(file, "preadv,preadv2:error=EIO:when=1", attempts=1)
    assert (control.returncode, injected) == (1, 1)
    assert "100 bytes at offset 4000 could not be read in 1 attempt: " in control.stderr


# --- servers that are down ----------------------------------------------------------------------------------------


@dataclass
class Down:
    """A server that refuses connections until the third attempt is waited for, if ever."""

    bucket: Bucket
    wakes: bool = False
    waits: int = 0

    def open(self, kind: str, name: str = "data") -> RemoteSource:
        if kind == "http":
            return RemoteSource(f"{self.bucket.endpoint}/{self.bucket.name}/{name}")
        return RemoteSource(self.bucket.url(name), self.bucket.storage_options)


@pytest.fixture
def down(bucket, monkeypatch) -> Iterator[Down]:
    bucket.fs.pipe_file(f"{bucket.name}/data", BYTES, ACL="public-read")
    with asleep() as (endpoint, wake):
        server = Down(bucket.through(endpoint, config_kwargs={"retries": {"max_attempts": 0}}))

        def wait(patience: faults.Patience, real: Callable[..., bool] = faults.Patience.wait) -> bool:
            server.waits += 1
            if server.wakes and server.waits == 2:
                wake()
            return real(patience)

        monkeypatch.setattr(faults.Patience, "wait", wait)
        yield server


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_server_that_comes_up_is_read_and_what_it_does_not_have_is_missing_at_once(kind, down):
    down.wakes = True
    opened = down.open(kind)
    assert (opened.read(300, 400), down.waits) == (BYTES[300:700], 2)
    with pytest.raises(FileNotFoundError):
        down.open(kind, "none")
    assert down.waits == 2, "that is not asked for again"


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_of_a_server_that_stays_down_nothing_is_said_to_be_missing(kind, down):
    message = r"size and version could not be read in 5 attempts: Co.*nect.* '(s3|http)://.*/data'"
    with pytest.raises(OSError, match=message) as caught:
        down.open(kind)
    assert not isinstance(caught.value, FileNotFoundError)
    assert down.waits == faults.ATTEMPTS


def test_nor_of_its_folders(down):
    folder = as_folder(f"{down.bucket.endpoint}/{down.bucket.name}")
    with pytest.raises(OSError, match=r"the object could not be read in 5 attempts: Connect.*/data'") as caught:
        folder.stamp("data")
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_NONAME, errno.ENOENT])
def test_a_name_that_is_not_found_now_may_be_found_later(number):
    # The numbers are others on every system, where some mean other things: 2 is "no such file".
    error = socket.gaierror(number, "Name or service not known")
    assert faults.may_pass(error)
    told = faults.unread("s3://a/b", "9 bytes", 5, error)
    assert (type(told), told.errno) == (OSError, errno.EIO)
    assert "in 5 attempts: Name or service not known" in str(told)


def test_the_cause_of_another_error_than_a_missing_file_is_not_what_failed():
    error = faults.changed("a.iid")
    error.__cause__ = ConnectionResetError()
    assert not faults.may_pass(error)


# --- what users see ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_fault_in_a_task_names_file_and_offset(scheduler, path):
    with xr.open_dataset(path, engine="iid", chunks={}) as ds:
        lazy = ds.label
        with (
            dask.config.set(scheduler=scheduler),
            faulty("preadv", lambda n: errno.EIO),
            pytest.raises(OSError, match=r"\d+ bytes at offset \d+ could not be read in 5 attempts: .*us\.iid"),
        ):
            lazy.compute()
        assert lazy.compute().any(), "the next attempt of the same graph reads"


def test_a_fault_at_one_entry_names_it(path):
    with iid_dask.open(path) as reader:
        entry = reader[41]
        _ = reader.columns
        with faulty("preadv", lambda n: errno.EIO), pytest.raises(OSError, match="could not be read") as caught:
            entry.mask()
    assert caught.value.__notes__ == ["entry 41"]


def test_faults_of_storage_travel_between_processes():
    error = pickle.loads(pickle.dumps(faults.unread("a.iid", "1 bytes at offset 2", 5, OSError(errno.EIO, "bad"))))
    assert str(error) == "[Errno 5] 1 bytes at offset 2 could not be read in 5 attempts: bad: 'a.iid'"


# --- files that move --------------------------------------------------------------------------------------------


def test_readers_of_a_file_that_is_cut_lengthened_unlinked_and_replaced_get_the_opened_version_or_an_error(tmp_path):
    found = events_under_threads(tmp_path, 60)
    assert found["wrong"] == 0
    assert found["right"] > 100
    assert found["changed"] > 5


@pytest.mark.parametrize(("how", "code"), [("read", 3), ("mapped", -getattr(signal, "SIGBUS", 7))])
def test_a_file_cut_under_a_reader_is_an_error_where_a_map_would_end_the_process(how, code, file):
    assert cut_under(file, how) == code


def test_readers_in_processes_see_one_published_version_each_time(tmp_path):
    found, _ = republished_under_processes(tmp_path, 40, readers=2)
    assert (found["wrong"], found["died"]) == (0, 0)
    assert found["right"] > 20


def test_a_file_that_is_written_over_in_place_is_never_read_as_a_mixture(tmp_path):
    found, careless = republished_under_processes(tmp_path, 60, readers=1, careless=1, put=overwrite)
    assert careless["wrong"] > 0, "there are mixtures to be read"
    assert (found["wrong"], found["died"]) == (0, 0)
    assert found["changed"] > 0


# --- threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, {}])
def test_windows_read_by_16_threads_are_those_read_by_one(chunks, versions):
    boxes = [random_box(np.random.default_rng(seed), 300) for seed in range(160)]
    with xr.open_dataset(versions[0].path, engine="iid", chunks=chunks, cache=False) as ds:

        def read(box: iid_dask.BBox) -> np.ndarray:
            window = ds.label[box.min_row : box.max_row, box.min_col : box.max_col]
            return window.compute(scheduler="synchronous").values

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(read, boxes))
    for box, window in zip(boxes, found, strict=True):
        assert np.array_equal(window, within(versions[0].labels, box))


class SeekingSource(LocalSource):
    """Reads by a position that all threads share, as tifffile and others did."""

    def __init__(self, path: str, moved: threading.Barrier) -> None:
        super().__init__(path)
        self.file, self.moved = io.FileIO(path), moved

    def read(self, offset: int, length: int) -> bytes:
        self.file.seek(offset)
        self.moved.wait(10)
        return self.file.read(length) or b""


def interleaved(opened: LocalSource, schedules: int) -> int:
    """Read in two threads that meet inside the read, and count what is wrong."""
    rng = np.random.default_rng(0)
    wrong = 0
    with ThreadPoolExecutor(2) as pool:
        for _ in range(schedules):
            offsets = rng.integers(0, len(BYTES) - 300, 2).tolist()
            found = list(pool.map(lambda at: opened.read(at, 300), offsets))
            wrong += sum(data != BYTES[at : at + 300] for at, data in zip(offsets, found, strict=True))
    return wrong


def test_two_reads_that_meet_inside_the_read_do_not_mix(file, monkeypatch):
    barrier = threading.Barrier(2)
    control = SeekingSource(str(file), barrier)
    with control.file:
        assert interleaved(control, 20) > 0, "a shared position is found out"
    real = os.preadv

    def meet(*arguments):
        barrier.wait(10)
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", meet)
    assert interleaved(LocalSource(str(file)), 100) == 0


class HastySource(LocalSource):
    """Its descriptor is closed by whoever closes it, under the reads of others; and it believes what it reads."""

    def _check_unchanged(self, descriptor: source._Descriptor) -> None:
        pass

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor.number)
            descriptor.number = -1


@pytest.mark.parametrize("kind", [LocalSource, HastySource])
def test_closing_a_source_under_the_read_of_another_spoils_it_only_if_the_number_is_closed_by_hand(
    kind, file, monkeypatch
):
    other = file.with_name("other")
    other.write_bytes(bytes(len(BYTES)))
    opened = kind(str(file))
    real, taken = os.preadv, []

    def closed_before(*arguments):
        opened.close()
        taken.append(other.open("rb"))
        return real(*arguments)

    monkeypatch.setattr(os, "preadv", closed_before)
    found = opened.read(300, 500)
    for one in taken:
        one.close()
    assert found == (BYTES[300:800] if kind is LocalSource else bytes(500))


# --- what is held -----------------------------------------------------------------------------------------------


def test_open_read_and_close_leaks_nothing(versions):
    before, after = cycles(versions[0].path, 300)
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads
    assert after.memory - before.memory < 300 * 8_000
    kept = []
    before, after = cycles(versions[0].path, 40, kept=kept)
    assert after.descriptors == before.descriptors + 40, "the count would show a leak"


def test_reading_a_file_that_is_replaced_leaks_no_descriptor(versions, tmp_path):
    path = tmp_path / "live.iid"
    publish(versions[0].path, path)
    rng = np.random.default_rng(3)
    before, known = len(os.listdir("/proc/self/fd")), 0
    reader = iid_dask.open(path)
    for turn in range(1000):
        if turn % 50 == 49:
            known += 1
            publish(versions[known % 2].path, path)
            reader.close()
            with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
                window_of(reader, random_box(rng))
            reader = iid_dask.open(path)
        box = random_box(rng, 60)
        assert np.array_equal(window_of(reader, box), within(versions[known % 2].labels, box))
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_pickles_are_small(versions):
    with iid_dask.open(versions[0].path) as reader:
        window_of(reader, random_box(np.random.default_rng(0)))
        assert len(pickle.dumps(reader)) <= 1024
        assert len(pickle.dumps(reader.source)) <= 1024
    with xr.open_dataset(versions[0].path, engine="iid") as ds:
        assert len(pickle.dumps(ds.label.variable._data)) <= 2048


def test_what_is_open_is_read_in_forked_and_spawned_children(versions, tmp_path):
    assert read_in_children(tmp_path, versions[0], 50) == {"parent": 50, "fork": 50, "spawn": 50, "forkserver": 50}
