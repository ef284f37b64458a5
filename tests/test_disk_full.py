"""A disk that is full while a job writes: a clear error, the target as it was, and the same call goes on afterwards."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from label_images import discs

import iid_dask

DRIVER = r"""
import contextlib, hashlib, io, json, os, resource, shutil, subprocess, sys
import dask, numpy as np
import iid_dask, pandas, xarray, zarr, zarrs
import iid_dask.cli.assemble, iid_dask.cli.tables, iid_dask.export.zarr, iid_dask.kernels, iid_dask.measurements.table
import iid_dask.mosaic.finish, iid_dask.mosaic.reader, iid_dask.xarray_backend
from iid_dask.cli import main

data, folder = sys.argv[1:]
quiet = {"progress": False}
dask.config.set(scheduler="synchronous")
out = {"to_mosaic": "out", "measure": "out.csv", "to_zarr": "out.zarr", "replaced": "out.zarr"}

def work(job, at):
    target = f"{at}/{out.get(job, 'out.iid')}"
    if job == "to_iid":
        iid_dask.to_iid(np.load(f"{data}/in.npy"), target, tile=150, **quiet)
    elif job == "to_mosaic":
        iid_dask.to_mosaic(np.load(f"{data}/in.npy"), target, tile=150, **quiet)
    elif job == "consolidate":
        with iid_dask.open_mosaic(f"{data}/mosaic") as mosaic:
            mosaic.to_iid(target)
    elif job == "measure":
        words = io.StringIO()
        with contextlib.redirect_stderr(words):
            try:
                main(["measure", f"{data}/whole.iid", f"{data}/in.npy", "--out", target, "--no-progress"])
            except SystemExit as error:
                if error.code:
                    raise OSError(-error.code, words.getvalue(), target)
    elif job == "in place":  # the control
        with open(target, "wb") as file, open(f"{data}/whole.iid", "rb") as whole:
            file.write(whole.read())
    else:
        iid_dask.to_zarr(f"{data}/whole.iid", target, chunks=64, shards=None, codec="none",
                         overwrite=job == "replaced", **quiet)

def forked(call, job, at, limit=0):
    # A process of its own: what it had in memory helps nobody afterwards. This one only forks: threads of zarr and
    # zarrs do not come along.
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            said = call(job, at)
        except OSError as error:
            notes = getattr(error, "__notes__", [])
            said = [error.errno, os.fsdecode(error.filename or ""), "; ".join([str(error), *notes])]
        except BaseException as error:
            said = [0, "", repr(error)]
        os.write(theirs, json.dumps(said).encode())
        os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer)

def digests(at):
    return {os.path.relpath(os.path.join(d, f), at): hashlib.sha256(open(os.path.join(d, f), "rb").read()).hexdigest()
            for d, _, files in os.walk(at) for f in files}

def state(job, at):
    # What a reader finds at the target.
    target = f"{at}/{out.get(job, 'out.iid')}"
    if not os.path.exists(target):
        return "absent"
    if job in ("measure", "to_iid", "consolidate", "in place"):
        found = open(target, "rb").read()
        return "old" if found == b"old" else f"{len(found)} bytes"
    try:
        if job == "to_mosaic":
            iid_dask.open_mosaic(target).close()
        else:
            with iid_dask.open_zarr(target) as ds:
                return "old" if iid_dask.check_zarr(target) == [] and ds.label.max() == 50 else "another"
    except (iid_dask.IIDError, FileNotFoundError) as error:
        return f"refused: {error}"
    return "another"

def prepared(job, at):
    if job in ("measure", "to_iid", "consolidate", "in place"):
        with open(f"{at}/{out.get(job, 'out.iid')}", "wb") as file:
            file.write(b"old")
    if job == "replaced":
        shutil.copytree(f"{data}/old.zarr", f"{at}/out.zarr")

undisturbed = {}
for line in sys.stdin:
    how, job, share = json.loads(line)
    if job not in undisturbed:
        whole = f"{folder}/{len(undisturbed)}"
        os.makedirs(whole)
        assert forked(work, job, whole) is None
        sizes = [os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(whole) for f in files]
        undisturbed[job] = digests(whole), sizes
    expected, sizes = undisturbed[job]
    at = f"{folder}/at"
    os.makedirs(at)
    limit = max(1, int(max(sizes) * share))
    if how == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", at], check=True)
    prepared(job, at)
    if how == "tmpfs":
        held = os.statvfs(at)
        used = (held.f_blocks - held.f_bfree) * held.f_frsize
        room = max(4096, used + 4096 * int(sum((size + 4095) // 4096 for size in sizes) * share))
        subprocess.run(["mount", "-o", f"remount,size={room}", at], check=True)
    said = forked(work, job, at, limit if how == "limit" else 0)
    found, left = forked(state, job, at), sorted(os.listdir(at))
    if how == "tmpfs":
        subprocess.run(["mount", "-o", "remount,size=1g", at], check=True)
    again = forked(work, job, at)
    same, after = digests(at) == expected, sorted(os.listdir(at))
    if how == "tmpfs":
        subprocess.run(["umount", at], check=True)
    shutil.rmtree(at)
    print("found " + json.dumps([said, found, left, again, same, after]), flush=True)
"""

TARGETS = {
    "to_mosaic": "out",
    "measure": "out.csv",
    "to_zarr": "out.zarr",
    "sharded": "out.zarr",
    "replaced": "out.zarr",
}
JOBS = ("to_iid", "to_mosaic", "consolidate", "measure", "to_zarr", "replaced")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Inputs of the jobs."""
    folder = tmp_path_factory.mktemp("data")
    labels = discs(600, 700, 300, seed=5)
    np.save(folder / "in.npy", labels)
    iid_dask.to_iid(labels, folder / "whole.iid", progress=False)
    iid_dask.to_mosaic(labels, folder / "mosaic", tile=150, progress=False).close()
    iid_dask.to_zarr(iid_dask.sample("us"), folder / "old.zarr", groups="states", progress=False)
    return folder


def faults(data: Path, folder: Path, cases: list[tuple[str, str, float]], *before: str) -> list[list]:
    """Run jobs on a disk that holds a share of their output, then with room; return what was said and found."""
    done = subprocess.run(
        [*before, sys.executable, "-W", "ignore", "-c", DRIVER, str(data), str(folder)],
        input="".join(json.dumps(case) + "\n" for case in cases),
        capture_output=True,
        check=False,
        text=True,
        timeout=200,
    )
    found = [json.loads(line.removeprefix("found ")) for line in done.stdout.splitlines() if line.startswith("found ")]
    assert len(found) == len(cases), done.stderr
    return found


def own_mounts() -> list[str]:
    """Words before a command that may mount file systems for itself."""
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    return ["unshare", "-m"]


def check(job: str, folder: Path, code: int, found: list) -> None:
    """Make sure that a job said what is wrong and where, left the target alone, and went on when there was room."""
    said, target, left, again, same, after = found
    path = str(folder / "at")
    assert said is not None, job
    number, where, words = said
    if job == "measure":  # the command's sentence
        assert number < 0
        assert path in words
    else:
        assert number == code, (job, said)
        assert where.startswith(path), (job, said)
    assert ("No space left on device" if code == errno.ENOSPC else "File too large") in words, (job, said)
    name = TARGETS.get(job, "out.iid")
    if job in ("to_iid", "consolidate", "measure", "replaced"):
        assert target == "old", (job, target)
    else:
        assert target == "absent" or target.startswith("refused: "), (job, target)
    if job == "to_iid" and (scratch := [kept for kept in left if kept.endswith(".scratch")]):
        # What is left is said, and how to be rid of it.
        assert f"what was done is kept in {path}/{scratch[0]}: the same call continues from there; or remove" in words
    assert again is None, (job, again)
    assert same, job
    assert after == [name], job


def test_a_limit_to_the_size_of_files_is_said_and_the_same_call_goes_on_without_it(data, tmp_path):
    cases = [("limit", job, share) for job in JOBS for share in (0.5,)]
    for case, found in zip(cases, faults(data, tmp_path, cases), strict=True):
        check(case[1], tmp_path, errno.EFBIG, found)


def test_a_full_disk_is_said_and_the_same_call_goes_on_when_there_is_room(data, tmp_path):
    cases = [("tmpfs", job, share) for job in JOBS for share in (0.25, 0.99)]
    for case, found in zip(cases, faults(data, tmp_path, cases, *own_mounts()), strict=True):
        check(case[1], tmp_path, errno.ENOSPC, found)


SHARDED = """
import resource, sys, iid_dask
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    iid_dask.to_zarr(sys.argv[1], sys.argv[2], chunks=64, shards=256, codec="none", progress=False)
except OSError as error:
    print(error.errno, error.filename)
"""


def test_shards_that_do_not_fit_are_said_with_the_place_and_the_same_call_goes_on(data, tmp_path):
    # A process that has threads of zarrs may not be forked.
    words = [sys.executable, "-W", "ignore", "-c", SHARDED, str(data / "whole.iid"), str(tmp_path / "out.zarr")]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=100)
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'out.zarr'}\n"
    with pytest.raises(iid_dask.IIDStoreError, match="is not complete"):
        iid_dask.open_zarr(tmp_path / "out.zarr")
    iid_dask.to_zarr(data / "whole.iid", tmp_path / "out.zarr", chunks=64, shards=256, codec="none", progress=False)
    assert iid_dask.check_zarr(tmp_path / "out.zarr") == []


def test_control_a_writer_in_place_leaves_a_torn_file(data, tmp_path):
    ((said, target, *_),) = faults(data, tmp_path, [("limit", "in place", 0.5)])
    assert said[0] == errno.EFBIG
    size = (data / "whole.iid").stat().st_size
    assert target == f"{size // 2} bytes"
