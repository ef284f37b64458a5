"""Two jobs on one target: the second is refused while the first lives, and takes over when it is dead."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from label_images import discs
from other_processes import holding

import iid_dask

LABELS = discs(300, 400, 60, seed=3)


def to_iid(folder: Path) -> Path:
    iid_dask.to_iid(LABELS, folder / "out.iid", tile=100, progress=False)
    return folder / "out.iid"


def to_mosaic(folder: Path) -> Path:
    iid_dask.to_mosaic(LABELS, folder / "out", tile=100, progress=False).close()
    return folder / "out"


def finish(folder: Path) -> Path:
    iid_dask.finish(folder / "mosaic").close()
    return folder / "mosaic"


def decide(folder: Path) -> Path:
    iid_dask.decide(folder / "mosaic", iid_dask.Touch(min_pixels=3)).close()
    return folder / "mosaic"


def undo(folder: Path) -> Path:
    iid_dask.undo(folder / "mosaic", pairs=[0]).close()
    return folder / "mosaic"


def consolidate(folder: Path) -> Path:
    with iid_dask.open_mosaic(folder / "mosaic") as mosaic:
        mosaic.to_iid(folder / "out.iid")
    return folder / "out.iid"


def to_zarr(folder: Path) -> Path:
    iid_dask.to_zarr(iid_dask.sample("us"), folder / "out.zarr", groups="states", overwrite=True, progress=False)
    return folder / "out.zarr"


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mosaic with seams, in a folder of its own."""
    folder = tmp_path_factory.mktemp("made")
    iid_dask.to_mosaic(LABELS > 0, folder / "mosaic", tile=100, stitch="touch", progress=False).close()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("job", [to_iid, to_mosaic, finish, decide, undo, consolidate, to_zarr])
def test_the_second_job_is_refused_while_the_first_lives_and_goes_on_when_it_is_dead(mosaic, tmp_path, job):
    shutil.copytree(mosaic, tmp_path, dirs_exist_ok=True)
    target = job(tmp_path)
    before = contents(tmp_path)
    with holding(target, "another job") as first:
        with pytest.raises(iid_dask.IIDStoreError, match=rf"another job is at work on it: .*process {first.pid} on"):
            job(tmp_path)
        assert contents(tmp_path).items() >= before.items()
        first.send_signal(signal.SIGKILL)
        first.wait()
        job(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


RACE = """
import contextlib, importlib, sys, time
import numpy as np
import iid_dask, iid_dask.locks
job, labels, target, lock = sys.argv[1:]
labels = np.load(labels)
real = iid_dask.locks.claimed
@contextlib.contextmanager
def claimed(*names, **options):
    with real(*names, **options) if lock == "with" else contextlib.nullcontext():
        time.sleep(0.7)  # so that both are at work at once, however busy the machine
        yield
for module in ("assembling.front", "export.zarr", "mosaic.consolidate", "mosaic.finish"):
    importlib.import_module(f"iid_dask.{module}").claimed = claimed
print("ready", flush=True)
sys.stdin.readline()
try:
    if job == "to_iid":
        iid_dask.to_iid(labels, target, tile=50, progress=False)
    else:
        iid_dask.to_zarr(iid_dask.sample("us"), target, groups="states", chunks=100, overwrite=True, progress=False)
    print("done")
except iid_dask.IIDStoreError as error:
    print("refused" if "is at work" in str(error) else error)
except (OSError, iid_dask.IIDError) as error:
    print("failed", type(error).__name__)
"""


def raced(job: str, labels: Path, target: Path, lock: str) -> list[str]:
    """Start a job twice at once; return what both say."""
    words = [sys.executable, "-W", "ignore", "-c", RACE, job, str(labels), str(target), lock]
    both = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sorted(process.communicate(timeout=100)[0].strip() for process in both)


@pytest.mark.parametrize("job", ["to_iid", "to_zarr"])
@pytest.mark.parametrize("lock", ["with", "without"])
def test_of_two_jobs_at_once_the_target_is_whole_and_with_the_lock_one_is_refused(tmp_path, job, lock):
    np.save(tmp_path / "labels.npy", LABELS)
    iid_dask.to_iid(LABELS, tmp_path / "expected.iid", progress=False)
    target = tmp_path / ("out.iid" if job == "to_iid" else "out.zarr")
    said = raced(job, tmp_path / "labels.npy", target, lock)
    if lock == "with":
        assert said == ["done", "refused"]
    else:
        assert "done" in said
    if job == "to_iid":
        assert target.read_bytes() == (tmp_path / "expected.iid").read_bytes()
    else:
        assert iid_dask.check_zarr(target) == []
    assert not os.path.exists(tmp_path / f".{target.name}.lock")
