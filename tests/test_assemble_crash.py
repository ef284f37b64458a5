"""`iid assemble` killed at random moments and at every kind of step: the next run makes the same file, alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from label_images import discs

import iid_dask

ASSEMBLE = "import sys; from iid_dask.cli import main; sys.argv[0] = 'iid'; main()"
OLD = b"what stood here before"
IMAGE = discs(900, 1000, 300, seed=11)

KILLED_AT = """
import json, os, signal, sys
import dask
from iid_dask.cli import main

command, out, steps = sys.argv[1:-2], sys.argv[-2], json.loads(sys.argv[-1])
dask.config.set(scheduler="synchronous")

def run(words):
    try:
        main(words)
    except SystemExit as error:
        return error.code or 0

def child(kill_at):
    # Dies just before the call that gives a file its name, or just after it.
    number, when = kill_at
    count, replace = 0, os.replace
    def counted(*paths):
        nonlocal count
        count += 1
        if when == "before" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)
        if when == "after" and count == number:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = counted
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    code = run(command)
    os._exit(code)

def forked(*kill_at):
    pid = os.fork()
    if not pid:
        try:
            child(kill_at)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

run(json.loads(os.environ["WARM"]))  # loads all modules and kernels, which the children then have
for step in steps:
    with open(out, "wb") as file:
        file.write(b"what stood here before")
    codes = [forked(*step)]
    with open(out, "rb") as file:
        stood = file.read()
    codes.append(forked(0, "never"))
    with open(out, "rb") as file:
        found = file.read()
    left = sorted(os.listdir(os.path.dirname(out)))
    print(json.dumps([step, codes, stood.hex(), found.hex(), left]), flush=True)
"""


def command(folder: Path, *words: object) -> list[str]:
    return [sys.executable, "-c", ASSEMBLE, "assemble", str(folder / "in.npy"), *map(str, words)]


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> tuple[Path, bytes]:
    """A folder with the image, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("job")
    np.save(folder / "in.npy", IMAGE)
    iid_dask.to_iid(IMAGE, folder / "whole.iid", tile=2000, progress=False)
    return folder, (folder / "whole.iid").read_bytes()


def killed_at(words: list[str], target: Path, steps: list[tuple[int, str]], monkeypatch) -> list:
    """Of each step: it, the exit codes of the killed run and the next, the target's bytes after each, what is left."""
    monkeypatch.setenv("WARM", json.dumps([*words, str(target.parent.parent / "warm.iid")]))
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT, *words, str(target), str(target), json.dumps(steps)],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    assert [tuple(step) for step, *_ in found] == steps, done.stderr
    return [(step, codes, bytes.fromhex(stood), bytes.fromhex(data), left) for step, codes, stood, data, left in found]


def test_killed_before_or_after_any_file_gets_its_name_nothing_is_lost_or_left(job, tmp_path, monkeypatch):
    folder, expected = job
    (tmp_path / "out").mkdir()
    words = ["assemble", str(folder / "in.npy"), "--tile", "500", "--no-progress", "-o"]
    # The job, four tiles, tables and manifest, and at last the file.
    steps = [(number, when) for number in range(1, 15) for when in ("before", "after")]
    stages = set()
    for step, codes, stood, data, left in killed_at(words, tmp_path / "out" / "out.iid", steps, monkeypatch):
        assert codes[0] in (-signal.SIGKILL, 0), step
        assert stood in ((OLD, expected) if codes[0] else (expected,)), step
        assert codes[1] == 0, step
        assert data == expected, step
        assert left == ["out.iid"], step
        stages.add((codes[0], stood == expected))
    # The steps reach from the first file to behind the last one.
    assert stages == {(-signal.SIGKILL, False), (-signal.SIGKILL, True), (0, True)}


def test_a_killed_crop_of_a_file_leaves_nothing_either(job, tmp_path, monkeypatch):
    folder, _ = job
    (tmp_path / "out").mkdir()
    words = ["assemble", str(folder / "whole.iid"), "--window", "0", "0", "500", "500", "--no-progress", "-o"]
    steps = [(1, "before"), (1, "after"), (2, "before")]
    found = killed_at(words, tmp_path / "out" / "out.iid", steps, monkeypatch)
    expected = (tmp_path / "warm.iid").read_bytes()
    assert [codes for _, codes, *_ in found] == [[-signal.SIGKILL, 0], [-signal.SIGKILL, 0], [0, 0]]
    assert [(stood, data, left) for *_, stood, data, left in found] == [
        (OLD, expected, ["out.iid"]),
        (expected, expected, ["out.iid"]),
        (expected, expected, ["out.iid"]),
    ]


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def kill_after(words: list[str], moment, wait: float) -> bool:
    """Start, kill some seconds after something is to be seen, and say whether it was still running."""
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not moment() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(wait)
    running = child.poll() is None
    if running:
        child.send_signal(signal.SIGKILL)
    child.wait(timeout=60)
    return running


def test_runs_killed_at_random_continue_to_the_same_file(job, tmp_path):
    folder, expected = job
    target = tmp_path / "out.iid"
    target.write_bytes(OLD)
    words = command(folder, "-o", target, "--tile", 80)
    rng = random.Random(4)
    kills = 0
    for tiles in (1, 60):
        kills += kill_after(
            words, lambda n=tiles: sum(name.endswith(".iid") for name in left_in(tmp_path)) > n, rng.random() * 0.02
        )
        assert target.read_bytes() in (OLD, expected)
        assert len(left_in(tmp_path)) > tiles
    assert kills
    subprocess.run(words, check=True, timeout=120, capture_output=True)
    assert target.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.iid"]


def test_a_killed_mosaic_continues_and_holds_no_file_that_is_none_of_its_own(job, tmp_path):
    folder, expected = job
    words = command(folder, "-o", tmp_path / "mosaic", "--tile", 150)
    assert kill_after(words, lambda: len(left_in(tmp_path)) > 10, 0)
    assert not (tmp_path / "mosaic" / "mosaic.json").exists()
    # What a worker leaves that dies while it writes.
    (tmp_path / "mosaic" / "tiles" / ".r0000000_c0000150.iid.0123abcd.tmp").write_bytes(b"half")
    subprocess.run(words, check=True, timeout=120, capture_output=True)
    assert [name for name in left_in(tmp_path) if Path(name).name.startswith(".") or name.endswith("tmp")] == []
    with iid_dask.open_mosaic(tmp_path / "mosaic") as mosaic:
        mosaic.to_iid(tmp_path / "out.iid")
    assert (tmp_path / "out.iid").read_bytes() == expected
