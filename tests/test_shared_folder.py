"""A folder that workers do not see is said before a job begins, by workers whose view really is another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

import iid_dask
from iid_dask.errors import IIDStoreError, IIDWorkerError
from iid_dask.shared import check_seen

WORKER = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", "--no-dashboard"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A worker process that sees what this process sees."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", host="127.0.0.1"
    ) as running:
        yield running


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as connected:
        yield connected


@contextmanager
def another_worker(client: Client, cwd: Path, *before: str) -> Iterator[str]:
    """A second worker, in a process of its own; gives its address."""
    there = set(client.nthreads())
    words = [*before, *WORKER, client.scheduler.address, "--local-directory", str(cwd), "--host", "127.0.0.1"]
    child = subprocess.Popen(words, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client.wait_for_workers(len(there) + 1, timeout=60)
        (address,) = set(client.nthreads()) - there
        yield address
    finally:
        child.terminate()
        child.wait(timeout=30)
        deadline = time.monotonic() + 30
        while set(client.nthreads()) != there and time.monotonic() < deadline:
            time.sleep(0.05)


def hidden(folder: Path) -> list[str]:
    """Words before a command that put an empty file system over a folder, for that process alone."""
    words = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=1m none "{folder}" && exec "$@"', "sh"]
    try:
        done = subprocess.run([*words, "true"], check=False, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if done.returncode:
        pytest.skip(f"file systems of one process alone are not permitted here: {done.stderr.strip()}")
    return words


def test_a_folder_that_all_workers_see_passes_and_holds_nothing_after(client, tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "out").mkdir()
    with another_worker(client, tmp_path / "room"):
        check_seen(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("text", "said"), [("__version__ = '0.0.9'", "iid_dask 0.0.9"), ("", "no iid_dask")])
def test_a_worker_with_another_version_or_none_is_named(client, tmp_path, text, said):
    (tmp_path / "room").mkdir()
    (tmp_path / "old" / "iid_dask").mkdir(parents=True)
    (tmp_path / "old" / "iid_dask" / "__init__.py").write_text(text)
    target = tmp_path / "us.zarr"
    with another_worker(client, tmp_path / "room", "env", f"PYTHONPATH={tmp_path / 'old'}") as address:
        with pytest.raises(IIDWorkerError, match="1 of 2 workers have another version, or none") as caught:
            iid_dask.to_zarr(iid_dask.sample("us"), target, progress=False)
        assert f"found {said} at {address}, expected iid_dask {iid_dask.__version__} as here" in str(caught.value)
    assert not target.exists()


def test_a_worker_with_another_folder_of_that_name_is_named(client, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "room").mkdir()
    with another_worker(client, tmp_path / "room", *hidden(tmp_path / "out")) as address:
        start = time.monotonic()
        with pytest.raises(IIDStoreError) as caught:
            check_seen(tmp_path / "out")
        assert time.monotonic() - start < 20
    words = str(caught.value)
    assert words.startswith(
        f"{tmp_path / 'out'}: 1 of 2 workers do not see this folder as this process does: {address}"
    )
    assert os.uname().nodename in words
    assert "No such file" in words
    assert "give a path on a file system that all machines share" in words
    assert list((tmp_path / "out").iterdir()) == []


def test_a_worker_without_the_folder_is_named_at_once(client, tmp_path, monkeypatch):
    # Each process has its own folder under this name, without any privilege.
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "out").mkdir(parents=True)
    there.mkdir()
    monkeypatch.chdir(here)
    with another_worker(client, there) as address:
        start = time.monotonic()
        with pytest.raises(IIDStoreError, match=r"/proc/self/cwd/out: 2 of 2 workers do not see") as caught:
            check_seen("/proc/self/cwd/out")
        assert time.monotonic() - start < 4
        assert address in str(caught.value)
    assert list((here / "out").iterdir()) == []


def test_a_worker_that_reads_the_folder_and_cannot_write_there_is_named(client, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "room").mkdir()
    hidden(tmp_path / "out")
    read_only = f'mount --bind "{tmp_path}/out" "{tmp_path}/out" && mount -o remount,ro,bind "{tmp_path}/out"'
    before = ["unshare", "-m", "sh", "-c", f'{read_only} && exec "$@"', "sh"]
    with (
        another_worker(client, tmp_path / "room", *before),
        pytest.raises(IIDStoreError, match="Read-only file system"),
    ):
        check_seen(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_worker_that_writes_to_a_place_of_its_own_is_named(client, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "room").mkdir()
    hidden(tmp_path / "out")
    # An overlay: what is here shows through, and what it writes stays with it.
    over = (
        f'mkdir -p "$D/up" "$D/tmp" && mount -t overlay -o lowerdir="{tmp_path}/out",upperdir="$D/up",workdir="$D/tmp"'
    )
    mounts = f'D={tmp_path}/room/own && mkdir -p $D && mount -t tmpfs none $D && {over} none "{tmp_path}/out"'
    before = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
    done = subprocess.run([*before, "true"], check=False, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"no overlays here: {done.stderr.strip()}")
    with (
        another_worker(client, tmp_path / "room", *before),
        pytest.raises(IIDStoreError, match="what it writes there is not seen here"),
    ):
        check_seen(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_busy_worker_answers(client, tmp_path):
    future = client.submit(time.sleep, 3, pure=False)
    while future.status == "pending" and not any(client.processing().values()):
        time.sleep(0.01)
    start = time.monotonic()
    check_seen(tmp_path)
    assert time.monotonic() - start < 2
    future.release()


def test_a_url_has_nothing_to_ask(client):
    check_seen("s3://bucket/no/such/folder")


def test_a_job_without_a_client_has_nothing_to_ask(tmp_path):
    check_seen(tmp_path / "none")


def test_a_job_with_its_tiles_in_a_folder_that_a_worker_does_not_see_ends_at_once(client, tmp_path):
    for name in ("out", "room"):
        (tmp_path / name).mkdir()
    labels = np.zeros((200, 200), np.uint8)
    with another_worker(client, tmp_path / "room", *hidden(tmp_path / "out")) as address:
        with pytest.raises(IIDStoreError, match=r"out: 1 of 2 workers do not see this folder.*" + address):
            iid_dask.to_iid(labels, tmp_path / "out" / "a.iid", tile=50, progress=False)
        with pytest.raises(IIDStoreError, match=r"out: 1 of 2 workers do not see this folder.*" + address):
            iid_dask.to_iid(labels, tmp_path / "a.iid", scratch=tmp_path / "out", tile=50, progress=False)
        with pytest.raises(IIDStoreError, match=r"out: 1 of 2 workers do not see this folder.*" + address):
            iid_dask.to_mosaic(labels, tmp_path / "out" / "m", tile=50, progress=False)
        with pytest.raises(IIDStoreError, match=r"out: 1 of 2 workers do not see this folder.*" + address):
            iid_dask.to_zarr(iid_dask.sample("us"), tmp_path / "out" / "a.zarr", progress=False)
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "a.iid").exists()
