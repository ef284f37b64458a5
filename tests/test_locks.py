"""One job at a time on a target: who is refused, who takes over, and that of many exactly one does."""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from other_processes import HOLD, holding

from iid_dask import locks
from iid_dask.errors import IIDStoreError
from iid_dask.lock_places import LockFolder, LockObjects
from iid_dask.locks import Holder, acquire, claimed


def lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def dead_lock(target: Path) -> Holder:
    """Leave the lock of a process that was killed."""
    with holding(target):
        pass
    return Holder.parse(lock_of(target).read_bytes())


def elsewhere(target: Path, *, silent: float) -> Holder:
    """Leave the lock of another machine, touched some seconds ago."""
    holder = replace(Holder.here(str(target), "to_zarr"), host="node7", machine="another boot pid:[1]")
    lock_of(target).write_bytes(holder.dump())
    now = time.time()
    os.utime(lock_of(target), (now - silent, now - silent))
    return holder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- who is refused ---------------------------------------------------------------------------------------------


def test_a_second_job_is_refused_while_the_first_lives_and_told_who_that_is(tmp_path):
    target = tmp_path / "out.iid"
    with holding(target) as child:
        with pytest.raises(IIDStoreError) as caught, claimed(target, "to_iid"):
            pass
        words = str(caught.value)
        since = json.loads(lock_of(target).read_text())["since"]
        assert words.startswith(f"{target}: another job is at work on it: to_iid, process {child.pid} on ")
        assert os.uname().nodename in words
        assert since in words
        assert "end that process" in words
        assert str(lock_of(target)) in words
        assert names(tmp_path) == [".out.iid.lock"]


def test_the_lock_says_host_process_and_its_start(tmp_path):
    with claimed(tmp_path / "out.iid", "to_iid"):
        found = json.loads(lock_of(tmp_path / "out.iid").read_text())
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert (found["host"], found["pid"], found["started"]) == (os.uname().nodename, os.getpid(), started)


def test_a_job_of_another_machine_is_refused_while_it_gives_signs_of_life(tmp_path):
    elsewhere(tmp_path / "out.iid", silent=60)
    with (
        pytest.raises(IIDStoreError, match=r"to_zarr, process \d+ on node7, .*sign of life was 6\d s ago.*120 s"),
        claimed(tmp_path / "out.iid", "to_iid"),
    ):
        pass


def test_another_thread_of_the_same_process_is_refused(tmp_path):
    target, found = tmp_path / "out.iid", []

    def other() -> None:
        try:
            with claimed(target, "to_iid"):
                found.append("held")
        except IIDStoreError as error:
            found.append(str(error))

    with claimed(target, "to_iid"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert "a thread of this very process" in found[0]


def test_a_path_through_a_link_is_the_same_target(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with (
        holding(tmp_path / "real" / "out.iid"),
        pytest.raises(IIDStoreError),
        claimed(tmp_path / "link" / "out.iid", "to_iid"),
    ):
        pass


def test_jobs_on_other_targets_go_on(tmp_path):
    with holding(tmp_path / "a.iid"), claimed(tmp_path / "b.iid", "to_iid"):
        assert names(tmp_path) == [".a.iid.lock", ".b.iid.lock"]


def test_without_the_folder_the_error_says_so(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"no such folder to write out\.iid into; make it first"),
        claimed(tmp_path / "none" / "out.iid", "to_iid"),
    ):
        pass


# --- within one job ---------------------------------------------------------------------------------------------


def test_a_job_may_claim_what_it_has_already(tmp_path):
    with claimed(tmp_path / "out.iid", "to_iid"):
        with claimed(tmp_path / "out.iid", "consolidate"):
            assert json.loads(lock_of(tmp_path / "out.iid").read_text())["what"] == "to_iid"
        assert names(tmp_path) == [".out.iid.lock"]
    assert names(tmp_path) == []


def test_the_lock_goes_with_an_error_and_the_target_is_free_again(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "out.iid", "to_iid"):
        raise ZeroDivisionError
    with claimed(tmp_path / "out.iid", "to_iid"):
        pass
    assert names(tmp_path) == []


# --- who takes over ---------------------------------------------------------------------------------------------


def test_a_killed_job_is_taken_over_from_at_once_also_as_a_zombie(tmp_path):
    target = tmp_path / "out.iid"
    with holding(target) as child:
        child.kill()
        stat = Path(f"/proc/{child.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "Z":  # dead, and nobody has waited for it
            time.sleep(0.01)
        with claimed(target, "to_iid"):
            assert Holder.parse(lock_of(target).read_bytes()).pid == os.getpid()
    assert names(tmp_path) == []


def test_a_stopped_job_lives(tmp_path):
    with holding(tmp_path / "out.iid") as child:
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(IIDStoreError), claimed(tmp_path / "out.iid", "to_iid"):
            pass


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    target = tmp_path / "out.iid"
    lives = Holder.here(str(target), "to_iid")
    lock_of(target).write_bytes(replace(lives, started=str(int(lives.started) - 1)).dump())
    with claimed(target, "to_iid"):
        pass
    lock_of(target).write_bytes(lives.dump())
    with pytest.raises(IIDStoreError), claimed(target, "to_iid"):
        pass


@pytest.mark.parametrize("field", ["host", "machine"])
def test_a_pid_of_another_machine_boot_or_container_says_nothing(tmp_path, field):
    # The process is not there, but who knows: only its silence tells.
    target = tmp_path / "out.iid"
    holder = replace(Holder.here(str(target), "to_iid"), pid=2**30, **{field: "another"})
    lock_of(target).write_bytes(holder.dump())
    with pytest.raises(IIDStoreError), claimed(target, "to_iid"):
        pass
    os.utime(lock_of(target), (0, 0))
    with claimed(target, "to_iid"):
        pass


def test_a_machine_that_has_been_silent_is_taken_over_from(tmp_path):
    elsewhere(tmp_path / "out.iid", silent=130)
    with claimed(tmp_path / "out.iid", "to_iid"):
        assert Holder.parse(lock_of(tmp_path / "out.iid").read_bytes()).pid == os.getpid()
    assert names(tmp_path) == []


def test_silence_is_measured_by_the_clock_of_the_folder_and_not_of_this_machine(tmp_path):
    # The lock was touched "now" by that clock, whatever the holder's or this one say.
    elsewhere(tmp_path / "out.iid", silent=0)
    later = [sys.executable, "-c", HOLD.replace("import sys, time", "import sys, time; time.time = lambda: 4e9")]
    command = [*later, str(tmp_path / "out.iid"), "to_iid"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "IIDStoreError" in done.stderr


def test_who_died_while_taking_over_is_taken_over_from(tmp_path):
    target = tmp_path / "out.iid"
    first = dead_lock(target)
    # A second process had made its lock on that lock, and a third one on the second's; both were killed then.
    second, third = (replace(first, token=16 * digit) for digit in "ab")
    claim = lock_of(target).with_name(f"{lock_of(target).name}.{first.token}")
    claim.write_bytes(second.dump())
    claim.with_name(f"{claim.name}.{second.token}").write_bytes(third.dump())
    with claimed(target, "to_iid"):
        assert Holder.parse(lock_of(target).read_bytes()).pid == os.getpid()
    assert names(tmp_path) == []


def test_what_is_no_lock_is_kept_while_it_is_new_and_never_read_far(tmp_path):
    target = tmp_path / "out.iid"
    for data in (b"", b"{", b"[" * 100_000, b'{"pid": 1}', b"\xff" * 10, b"null", b"x" * 2**20):
        lock_of(target).write_bytes(data)
        with pytest.raises(IIDStoreError, match="something, process 0"), claimed(target, "to_iid"):
            pass
        os.utime(lock_of(target), (0, 0))
        with claimed(target, "to_iid"):
            pass
    assert names(tmp_path) == []


def test_a_pipe_or_a_link_under_the_lock_s_name_keeps_nobody_waiting(tmp_path):
    target = tmp_path / "out.iid"
    os.mkfifo(lock_of(target))
    with pytest.raises(IIDStoreError), claimed(target, "to_iid"):
        pass
    lock_of(target).unlink()
    lock_of(target).symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="symbolic links"), claimed(target, "to_iid"):
        pass


def test_where_there_are_no_hard_links_one_of_many_still_wins(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert sorted(raced(tmp_path, 8)) == [False] * 7 + [True]


def raced(folder: Path, racers: int) -> list[bool]:
    """Let threads try for one lock at once, and return who got it."""
    ready = threading.Barrier(racers)

    def run(number: int) -> bool:
        mine = replace(Holder.here("out", "race"), what=str(number))
        ready.wait()
        return acquire(LockFolder(str(folder)), ".out.lock", mine) is None

    with ThreadPoolExecutor(racers) as pool:
        return list(pool.map(run, range(racers)))


# --- many at once -----------------------------------------------------------------------------------------------

RACE = """
import json, random, sys, time
from iid_dask import locks
from iid_dask.lock_places import LockFolder

class Slow(LockFolder):
    # What a busy file server does between what one sees and what one does about it.
    def read(self, name):
        data = super().read(name)
        time.sleep(random.random() * 0.003)
        return data

def take_naively(place, name, mine):
    # The control: delete the dead lock, then make one's own.
    data = place.read(name)
    if data is not None:
        found = locks.Holder.parse(data)
        if locks.is_alive(found, lambda: 0.0):
            return found
        place.remove(name)
    return None if place.create(name, mine.dump()) else mine

take = take_naively if sys.argv[3] == "naive" else locks.acquire
folder, rounds = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    target, start = line.split()
    place, mine = Slow(folder), locks.Holder.here(target, "race")
    while time.monotonic() < float(start):
        pass
    got = take(place, locks.lock_name(target), mine) is None
    print(json.dumps([got, mine.token]), flush=True)
"""


def winners(folder: Path, rounds: int, how: str, racers: int = 8) -> list[int]:
    """Let processes take over a dead process's lock, all at the same moment; return how many got it, a round."""
    words = [sys.executable, "-c", RACE, str(folder), str(rounds), how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(words, **pipes) for _ in range(racers)]
    counts = []
    try:
        for child in children:
            assert child.stdout.readline() == "ready\n"
        dead = replace(dead_lock(folder / "dead"), token="0" * 16)
        for number in range(rounds):
            target = f"out{number}"
            lock = folder / f".{target}.lock"
            lock.write_bytes(replace(dead, token=f"{number:016x}").dump())
            start = time.monotonic() + 0.01
            for child in children:
                child.stdin.write(f"{target} {start}\n")
                child.stdin.flush()
            answers = [json.loads(child.stdout.readline()) for child in children]
            counts.append(sum(got for got, _ in answers))
            if how == "ours":
                assert [token for got, token in answers if got] == [Holder.parse(lock.read_bytes()).token]
    finally:
        for child in children:
            child.kill()
            child.communicate(timeout=30)
    return counts


def test_of_eight_processes_that_take_over_at_once_one_does(tmp_path):
    assert winners(tmp_path, 50, "ours") == [1] * 50
    # Nothing but the locks of the winners is left: no locks on locks, no temporary files.
    assert names(tmp_path) == sorted([*(f".out{number}.lock" for number in range(50)), ".dead.lock"])


def test_control_to_delete_a_dead_lock_and_make_another_lets_several_in(tmp_path):
    assert max(winners(tmp_path, 50, "naive")) > 1


def test_of_many_that_start_at_once_on_a_free_target_one_does(tmp_path):
    for number in range(50):
        (tmp_path / str(number)).mkdir()
        assert sorted(raced(tmp_path / str(number), 8)) == [False] * 7 + [True]


def test_killed_twenty_times_the_next_job_always_gets_the_target(tmp_path):
    target = tmp_path / "out.iid"
    tokens = set()
    for _ in range(20):
        with holding(target):
            tokens.add(Holder.parse(lock_of(target).read_bytes()).token)
    assert len(tokens) == 20
    with claimed(target, "to_iid"):
        pass
    assert names(tmp_path) == []


# --- signs of life ----------------------------------------------------------------------------------------------


def wait_for(moment, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not moment() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(moment())


def test_the_holder_touches_its_lock_and_stops_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    before = threading.active_count()
    with claimed(tmp_path / "out.iid", "to_iid"):
        lock = lock_of(tmp_path / "out.iid")
        os.utime(lock, (0, 0))
        assert wait_for(lambda: lock.stat().st_mtime > 0)
        assert time.time() - lock.stat().st_mtime < 10
    assert threading.active_count() == before
    time.sleep(0.1)
    assert names(tmp_path) == []


def test_an_outage_of_any_kind_ends_neither_the_touching_nor_the_job(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    read, is_down = LockFolder.read, threading.Event()

    def read_if_up(self, name):
        if is_down.is_set():
            raise EndpointConnectionError(endpoint_url="s3://there")  # no OSError
        return read(self, name)

    monkeypatch.setattr(LockFolder, "read", read_if_up)
    with claimed(tmp_path / "out.iid", "to_iid"):
        is_down.set()
        assert wait_for(lambda: caplog.records)
        is_down.clear()
        lock = lock_of(tmp_path / "out.iid")
        os.utime(lock, (0, 0))
        assert wait_for(lambda: lock.stat().st_mtime > 0)
        is_down.set()
    assert "its lock could not be removed" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("how", ["removed", "taken"])
def test_a_holder_that_lost_its_lock_says_so_and_does_not_remove_another_s(tmp_path, monkeypatch, caplog, how):
    monkeypatch.setattr(locks, "BEAT", 0.02)
    target = tmp_path / "out.iid"
    with caplog.at_level(logging.WARNING, "iid_dask"), claimed(target, "to_iid"):
        other = replace(Holder.here(str(target), "to_mosaic"), host="node7", machine="m")
        if how == "removed":
            lock_of(target).unlink()
        else:
            LockFolder(str(tmp_path)).replace(lock_of(target).name, other.dump())
        assert wait_for(lambda: caplog.records)
        said = caplog.records[0].getMessage()
        assert said.startswith(f"{target}: the lock of this to_iid ")
        assert ("is gone" if how == "removed" else "was taken over by to_mosaic") in said
        assert said.endswith("another job may be at work on it")
    assert names(tmp_path) == ([] if how == "removed" else [".out.iid.lock"])


def test_without_a_beat_a_lost_lock_is_said_at_the_end(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "iid_dask"), claimed(tmp_path / "out.iid", "to_iid"):
        lock_of(tmp_path / "out.iid").unlink()
    assert "is gone; another job may be at work" in caplog.text


def test_where_no_lock_can_be_made_beside_a_folder_the_job_goes_on_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING, "iid_dask"), claimed("/sys/kernel", "to_mosaic"):
        pass
    assert "/sys/kernel: no lock keeps other jobs off it: [Errno 1" in caplog.text


def test_a_lock_costs_under_two_milliseconds(tmp_path):
    times = []
    for _ in range(50):
        start = time.perf_counter()
        with claimed(tmp_path / "out.iid", "to_iid"):
            pass
        times.append(time.perf_counter() - start)
    # Of ten on a machine that others use, the quickest tell; a wait or a sync to disk would show in each.
    assert statistics.quantiles(times, n=10)[0] < 0.002


# --- object stores ----------------------------------------------------------------------------------------------


def objects(bucket) -> list[str]:
    return sorted(path.rpartition("/")[2] for path in bucket.fs.find(bucket.name))


def test_an_object_has_a_lock_beside_it(bucket):
    with claimed(bucket.url("a/out.iid"), "to_iid", storage_options=bucket.storage_options):
        assert objects(bucket) == [".out.iid.lock"]
        with claimed(bucket.url("a/out.iid/"), "consolidate", storage_options=bucket.storage_options):
            pass
        found = Holder.parse(bucket.fs.cat_file(f"{bucket.name}/a/.out.iid.lock"))
        assert (found.pid, found.target) == (os.getpid(), bucket.url("a/out.iid"))
    assert objects(bucket) == []


def test_of_eight_that_make_a_lock_of_an_object_store_at_once_one_does(bucket):
    place = LockObjects.of(bucket.url("a/out"), bucket.storage_options)
    for number in range(10):
        assert sorted(raced_for(place, f".out{number}.lock")) == [False] * 7 + [True]


def test_of_eight_that_take_over_from_a_dead_job_on_an_object_store_one_does(bucket, tmp_path):
    place = LockObjects.of(bucket.url("a/out"), bucket.storage_options)
    with holding(tmp_path / "out") as child:
        dead = replace(Holder.parse(lock_of(tmp_path / "out").read_bytes()), pid=child.pid)
    lock_of(tmp_path / "out").unlink()
    for number in range(10):
        place.replace(f".out{number}.lock", replace(dead, token=f"{number:016x}").dump())
        assert sorted(raced_for(place, f".out{number}.lock")) == [False] * 7 + [True]
    assert objects(bucket) == [f".out{number}.lock" for number in range(10)]


def raced_for(place: LockObjects, name: str) -> list[bool]:
    ready = threading.Barrier(8)

    def run(number: int) -> bool:
        mine = Holder.here("out", str(number))
        ready.wait()
        return acquire(place, name, mine) is None

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(run, range(8)))


def test_a_job_of_another_machine_on_an_object_store_is_judged_by_the_store_s_clock(bucket, monkeypatch):
    place = LockObjects.of(bucket.url("a/out"), bucket.storage_options)
    other = replace(Holder.here(bucket.url("a/out.iid"), "to_iid"), host="node7", machine="m")
    place.replace(".out.iid.lock", other.dump())
    with (
        pytest.raises(IIDStoreError, match=r"on node7, .*; its last sign of life was \d s ago"),
        claimed(bucket.url("a/out.iid"), "to_iid", storage_options=bucket.storage_options),
    ):
        pass
    monkeypatch.setattr(locks, "SILENT", -1.0)
    with claimed(bucket.url("a/out.iid"), "to_iid", storage_options=bucket.storage_options):
        pass
    assert objects(bucket) == []


def test_a_lock_on_an_object_store_is_touched(bucket, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    with claimed(bucket.url("out.iid"), "to_iid", storage_options=bucket.storage_options):
        fs, path = bucket.fs, f"{bucket.name}/.out.iid.lock"
        first = fs.modified(path)
        assert wait_for(lambda: fs.modified(path) > first)
    assert objects(bucket) == []


class WithoutConditions:
    """A file system whose PUT knows no condition: it says so, or writes over what is there without a word."""

    def __init__(self, fs: Any, *, says: bool) -> None:
        self.fs, self.says = fs, says

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fs, name)

    def pipe_file(self, path: str, data: bytes, **options: object) -> None:
        if options and self.says:
            raise TypeError("pipe_file() got an unexpected keyword argument 'mode'")
        self.fs.pipe_file(path, data)


@pytest.mark.parametrize("says", [True, False])
def test_a_store_without_conditional_puts_refuses_who_comes_later(bucket, says):
    place = LockObjects(WithoutConditions(bucket.fs, says=says), f"{bucket.name}/a", bucket.url("a"))
    first, second = (Holder.here("out", what) for what in ("first", "second"))
    assert acquire(place, ".out.lock", first) is None
    assert acquire(place, ".out.lock", second) == first
