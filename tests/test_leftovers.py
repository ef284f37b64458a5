"""What killed jobs leave is found and removed; what is of a live job, or not ours, stays."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from label_images import discs
from other_processes import holding

import iid_dask
from iid_dask import leftovers
from iid_dask.cli.clean import clean_command
from iid_dask.leftovers import clean
from iid_dask.locks import Holder, claimed

HEX8, HEX16, HEX32 = "0123abcd", "0123456789abcdef", "0123456789abcdef" * 2
LONG_AGO = 10**9


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def age(path: Path) -> None:
    """Make everything below a path look as if nobody had touched it for years."""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in (*folders, *files):
            os.utime(Path(folder, name), (LONG_AGO, LONG_AGO), follow_symlinks=False)
    os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def store(path: Path, fingerprint: str = "f", *, complete: bool = True) -> Path:
    """The root of a store of to_zarr."""
    path.mkdir()
    record = {"fingerprint": fingerprint, "complete": complete}
    (path / "zarr.json").write_text(json.dumps({"attributes": {"iid_dask": record}}))
    (path / "label").mkdir()
    return path


def scratch(path: Path) -> Path:
    (path / "tiles").mkdir(parents=True)
    (path / "tiles" / "r0000000_c0000000.iid").write_bytes(b"tile")
    (path / "job.json").write_text("{}")
    (path / f"tiles-{HEX16}.parquet").write_bytes(b"")
    return path


def plain(path: Path) -> Path:
    path.write_bytes(b"half")
    return path


def folder_with(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        (path / name).parent.mkdir(parents=True)
        plain(path / name)
        return path

    return make


def dead(target: Path) -> Path:
    """Leave the lock of a process on this machine that is gone."""
    mine = Holder.here(str(target), "to_iid")
    lock = target.with_name(f".{target.name}.lock")
    lock.write_bytes(replace(mine, started="1").dump())
    return lock


# --- by name and content ----------------------------------------------------------------------------------------


OURS: list[tuple[str, Callable[[Path], Path]]] = [
    (f".out.iid.{HEX8}.tmp", plain),
    (f".ou\nt.{HEX8}.tmp", plain),
    (f".out.zarr.{HEX8}.tmp", Path.mkdir),
    (f".out.zarr.{HEX8}.tmp", folder_with("zarr.json")),
    (f".out.iid.{HEX16}.scratch", scratch),
    (f".out.zarr.{HEX16}.new", store),
    (f".out.iid.lock.{HEX16}.tmp", plain),
    (f".iid.{HEX16}.probe", plain),
    (f".iid.{HEX16}.probe.tcp___127_0_0_1_4000", plain),
]


@pytest.mark.parametrize(("name", "make"), OURS)
def test_what_was_left_long_ago_is_removed(tmp_path, name, make):
    make(tmp_path / name)
    age(tmp_path / name)
    assert clean(tmp_path, dry_run=True) == [str(tmp_path / name)]
    assert names(tmp_path) == [name]
    assert clean(tmp_path) == [str(tmp_path / name)]
    assert names(tmp_path) == []


@pytest.mark.parametrize(("name", "make"), OURS)
def test_what_was_changed_just_now_stays_where_no_lock_tells(tmp_path, name, make):
    make(tmp_path / name)
    assert clean(tmp_path) == []
    assert names(tmp_path) == [name]


@pytest.mark.parametrize(("name", "make"), [kind for kind in OURS if kind[0].endswith(("scratch", "new"))])
def test_what_a_killed_job_left_is_removed_at_once_with_its_lock(tmp_path, name, make):
    make(tmp_path / name)
    lock = dead(tmp_path / name[1:].rsplit(".", 2)[0])
    assert clean(tmp_path) == sorted([str(tmp_path / name), str(lock)])
    assert names(tmp_path) == []


@pytest.mark.parametrize(("name", "make"), OURS[:6])
def test_nothing_of_a_live_job_is_removed_however_old(tmp_path, name, make):
    make(tmp_path / name)
    age(tmp_path / name)
    with claimed(tmp_path / name[1:].rsplit(".", 2)[0], "to_iid"):
        assert clean(tmp_path) == []
        assert name in names(tmp_path)
    assert clean(tmp_path) == [str(tmp_path / name)]


def test_tiles_whose_target_is_in_another_folder_have_a_lock_of_their_own(tmp_path):
    tiles = scratch(tmp_path / f".out.iid.{HEX16}.scratch")
    age(tiles)
    with claimed(tiles, "to_iid"):
        assert clean(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("out.iid", plain),
        (f"out.iid.{HEX8}.tmp", plain),  # no dot before
        (f".{HEX8}.tmp", plain),  # no name
        (".out.iid.0123ABCD.tmp", plain),
        (".out.iid.0123abc.tmp", plain),
        (f".out.iid.{HEX8}.tmp~", plain),
        (f".out.iid.{HEX16}.tmp", plain),
        (f".out.iid.{HEX8}.tmp", folder_with("thesis.tex")),
        (f".out.iid.{HEX8}.tmp", folder_with("chapters/thesis.tex")),
        (f".out.iid.{HEX8}.tmp", lambda path: path.symlink_to("thesis.tex")),
        (f".out.iid.{HEX16}.scratch", plain),
        (f".out.iid.{HEX16}.scratch", folder_with("thesis.tex")),
        (f".out.iid.{HEX8}.scratch", scratch),
        (f".out.zarr.{HEX16}.new", plain),
        (f".out.zarr.{HEX16}.new", folder_with("thesis.tex")),
        (f".out.zarr.{HEX32}.whole", folder_with("zarr.json")),
        (f".out.zarr.{HEX32}.old", store),
        (f".out.zarr.{HEX32}.0.old", folder_with("thesis.tex")),
        (".out.iid.lock", plain),
        (".out.iid.lock", Path.mkdir),
        (".out.iid.lock", lambda path: path.symlink_to("thesis.tex")),
        (".git.lock", folder_with("x")),
    ],
)
def test_what_is_not_ours_by_name_and_content_stays(tmp_path, name, make):
    make(tmp_path / name)
    age(tmp_path / name)
    assert clean(tmp_path) == []
    assert names(tmp_path) == [name]


def test_a_file_that_another_program_writes_stays(tmp_path):
    path = tmp_path / f".report.{HEX8}.tmp"
    path.write_bytes(b"unsaved")
    os.utime(path, (time.time() - 60,) * 2)
    assert clean(tmp_path) == []
    assert names(tmp_path) == [path.name]


def test_the_command_says_of_each_what_becomes_of_it(tmp_path):
    for number in range(50):
        path = tmp_path / f".out.iid.{number:08x}.tmp"
        plain(path)
        age(path)
    live = tmp_path / f".live.iid.{HEX8}.tmp"
    plain(live)
    said = CliRunner().invoke(clean_command, [str(tmp_path)], catch_exceptions=False).output.splitlines()
    assert sum(": removed: " in line for line in said) == 50
    assert sum(": kept: " in line for line in said) == 1
    assert said[-1].endswith("50 leftovers cleaned")
    assert names(tmp_path) == [live.name]


def test_a_job_that_begins_after_the_look_keeps_what_is_its(tmp_path):
    for target in ("a.iid", "b.iid"):
        age(scratch(tmp_path / f".{target}.{HEX16}.scratch"))
    looked = leftovers.cleaned(tmp_path, dry_run=False)
    assert next(looked)[1]
    with holding(tmp_path / "b.iid"):
        found, done = next(looked)
        assert not done
        assert (found.path / "job.json").exists()


def test_a_lock_that_is_taken_over_after_the_look_stays(tmp_path):
    locks = [dead(tmp_path / target) for target in ("a.iid", "b.iid")]
    looked = leftovers.cleaned(tmp_path, dry_run=False)
    assert next(looked)[1]
    with holding(tmp_path / "b.iid"):
        assert not next(looked)[1]
        assert locks[1].exists()


def test_a_link_to_a_folder_is_not_followed(tmp_path):
    (tmp_path / "in").mkdir()
    real = scratch(tmp_path / "tiles of another")
    (tmp_path / "in" / f".out.iid.{HEX16}.scratch").symlink_to(real)
    age(real)
    assert clean(tmp_path / "in") == []
    assert (real / "job.json").exists()


def test_without_the_folder_the_error_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        clean(tmp_path / "none")


def test_array_jobs_that_came_after_a_killed_job_are_not_taken_for_it(tmp_path):
    new = store(tmp_path / f".out.zarr.{HEX16}.new")
    lock = dead(tmp_path / "out.zarr")
    past = time.time() - 600
    os.utime(lock, (past, past))
    (new / "label" / "chunk").write_bytes(b"written by a part")
    assert clean(tmp_path) == [str(lock)]
    assert names(tmp_path) == [new.name]


# --- between two renames ----------------------------------------------------------------------------------------


def test_a_whole_store_gets_the_name_that_is_free(tmp_path):
    store(tmp_path / f".out.zarr.{HEX32}.whole", "new")
    store(tmp_path / f".out.zarr.{HEX32}.0.old", "old")
    assert len(clean(tmp_path)) == 2
    assert names(tmp_path) == ["out.zarr"]
    assert '"new"' in (tmp_path / "out.zarr" / "zarr.json").read_text()


def test_an_old_store_comes_back_where_its_successor_is_lost(tmp_path):
    store(tmp_path / f".out.zarr.{HEX32}.0.old", "old")
    clean(tmp_path)
    assert names(tmp_path) == ["out.zarr"]


def test_an_old_store_goes_where_its_successor_stands(tmp_path):
    store(tmp_path / "out.zarr", "new")
    store(tmp_path / f".out.zarr.{HEX32}.0.old", "old")
    clean(tmp_path)
    assert names(tmp_path) == ["out.zarr"]


def test_a_whole_store_is_never_removed_for_another_one(tmp_path):
    whole = store(tmp_path / f".out.zarr.{HEX32}.whole", "new")
    store(tmp_path / "out.zarr", "old")
    age(whole)
    assert clean(tmp_path) == []
    (found,) = leftovers.leftovers(tmp_path)
    assert (found.fate, found.why) == (
        "keep",
        "a whole store that was to replace out.zarr: rename it to that, or remove it",
    )


def test_a_whole_store_goes_where_the_same_one_stands_complete(tmp_path):
    whole = store(tmp_path / f".out.zarr.{HEX32}.whole")
    final = store(tmp_path / "out.zarr", complete=False)
    age(whole)
    assert clean(tmp_path) == []
    final.rename(tmp_path / "incomplete")
    store(final)
    assert clean(tmp_path) == [str(whole)]


KILLED_AT_RENAME = """
import os, signal, sys
import iid_dask
number, when, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
count, rename = 0, os.rename
def counted(*paths):
    global count
    count += 1
    if (count, when) == (number, "before"):
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
    if (count, when) == (number, "after"):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = counted
iid_dask.to_zarr(iid_dask.sample("us"), store, groups="counties", overwrite=True, progress=False)
"""


def replaced(target: Path, number: int, when: str) -> int:
    """Replace a store in a process that is killed at a rename, make what is left look old, and clean."""
    words = [sys.executable, "-c", KILLED_AT_RENAME, str(number), when, str(target)]
    code = subprocess.run(words, check=False, timeout=120, capture_output=True).returncode
    for path in target.parent.iterdir():
        if path.suffix != ".lock":
            age(path)
    clean(target.parent)
    return code


def test_killed_at_any_rename_of_a_replacement_a_whole_store_stands_after_cleaning(tmp_path):
    target, seen = tmp_path / "out.zarr", []
    # After one is before the next.
    for number, when in ((1, "before"), (2, "before"), (3, "before"), (3, "after")):
        iid_dask.to_zarr(iid_dask.sample("us"), target, groups="states", overwrite=True, progress=False)
        code = replaced(target, number, when)
        stands = int(iid_dask.open_zarr(target).label.max())
        seen.append((code, stands, len(names(tmp_path))))
        assert iid_dask.check_zarr(target) == []
        if names(tmp_path) != ["out.zarr"]:
            # The new store was whole, and the old one in its place: both stay, until one is made anew.
            assert names(tmp_path)[0].endswith(".whole")
            replaced(target, 0, "never")
            assert names(tmp_path) == ["out.zarr"], (number, when)
    killed, old, new = -signal.SIGKILL, 50, 3155
    # Template; store out of its own name; the old one out of the way; what comes after is in other words.
    assert seen == [(killed, old, 1), (killed, old, 1), (killed, old, 2), (killed, new, 1)]


# --- jobs that are killed, and jobs that live -------------------------------------------------------------------

WRITE = """
import os, sys, time
from iid_dask.format.target import atomic_write
from iid_dask.locks import claimed
for line in sys.stdin:
    path = line.strip()
    if not os.fork():
        with claimed(path, "write"), atomic_write(path) as file:
            file.write(b"half")
            file.flush()
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(120)
"""


def test_of_a_hundred_killed_writers_all_is_removed_and_of_ten_live_ones_nothing(tmp_path):
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", WRITE], **ends)
    pids: list[int] = []
    try:
        for number in range(110):
            parent.stdin.write(f"{tmp_path / f'out{number}.iid'}\n")
            parent.stdin.flush()
            pids.append(int(parent.stdout.readline()))
        # Nobody waits for them: they are zombies from then on.
        killed = set(random.Random(3).sample(range(110), 100))
        for number in killed:
            os.kill(pids[number], signal.SIGKILL)
        live = sorted(name for name in names(tmp_path) if int("".join(filter(str.isdigit, name[:7]))) not in killed)
        assert len(live) == 20
        time.sleep(2)  # until the killed have let go of what they had locked
        deadline = time.monotonic() + 10
        while names(tmp_path) != live and time.monotonic() < deadline:
            clean(tmp_path)
        assert names(tmp_path) == live
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        parent.kill()
        parent.communicate(timeout=30)
    # The control: to go by names alone would have taken what live writers use.
    assert len([name for name in live if name.endswith(".tmp")]) == 10


TO_IID = """
import sys, numpy as np, iid_dask
iid_dask.to_iid(np.load(sys.argv[1]), sys.argv[2], tile=60, progress=False, scheduler="synchronous")
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> tuple[Path, bytes]:
    """An image in a file, and the file that to_iid makes of it."""
    folder = tmp_path_factory.mktemp("image")
    labels = discs(600, 700, 200, seed=5)
    np.save(folder / "in.npy", labels)
    iid_dask.to_iid(labels, folder / "whole.iid", progress=False)
    return folder / "in.npy", (folder / "whole.iid").read_bytes()


@contextmanager
def stopped(image: Path, target: Path, tiles: int = 10) -> Iterator[subprocess.Popen[bytes]]:
    """A job in another process that was stopped when some tiles were there; it is killed at the end of the block."""
    child = subprocess.Popen([sys.executable, "-c", TO_IID, str(image), str(target)])
    try:
        deadline = time.monotonic() + 60
        while len(list(target.parent.glob(".*.scratch/tiles/*.iid"))) < tiles and time.monotonic() < deadline:
            time.sleep(0.001)
        child.send_signal(signal.SIGSTOP)
        assert child.poll() is None
        yield child
    finally:
        child.kill()
        child.wait(timeout=30)


def test_a_job_at_work_is_not_disturbed_by_cleaning(image, tmp_path):
    data, expected = image
    with stopped(data, tmp_path / "out.iid") as child:
        # Old, so that no other rule than that of the lock keeps it.
        for path in tmp_path.glob(".*.scratch"):
            age(path)
        before = names(tmp_path)
        assert clean(tmp_path) == []
        assert names(tmp_path) == before
        child.send_signal(signal.SIGCONT)
        assert child.wait(timeout=120) == 0
    assert (tmp_path / "out.iid").read_bytes() == expected
    assert names(tmp_path) == ["out.iid"]


def test_what_a_killed_job_left_is_cleaned_at_once_and_the_next_call_makes_the_same_file(image, tmp_path):
    data, expected = image
    with stopped(data, tmp_path / "out.iid"):
        pass
    assert clean(tmp_path) != []
    assert names(tmp_path) == []
    iid_dask.to_iid(np.load(data), tmp_path / "out.iid", progress=False)
    assert (tmp_path / "out.iid").read_bytes() == expected


def test_leftovers_are_seen_by_no_reader(image, tmp_path):
    with stopped(image[0], tmp_path / "out.iid"):
        pass
    assert names(tmp_path) != []
    assert list(tmp_path.glob("*.iid")) == []
    with pytest.raises(FileNotFoundError):
        iid_dask.open(tmp_path / "out.iid")


# --- the command line -------------------------------------------------------------------------------------------


def test_the_command_says_what_it_removed_and_what_it_kept_and_why(tmp_path):
    half = plain(tmp_path / f".out.iid.{HEX8}.tmp")
    kept = scratch(tmp_path / f".a.iid.{HEX16}.scratch")
    age(half)
    why = "tiles that an interrupted call would continue from: changed within the last hour, and no lock tells whether"
    said = CliRunner().invoke(clean_command, [str(tmp_path), "--dry-run"])
    assert said.output.splitlines() == [
        f"{kept}: kept: {why} it is at work",
        f"{half}: would be removed: a file that a process was writing: not changed for an hour",
        f"{tmp_path}: 1 leftover found",
    ]
    assert names(tmp_path) == sorted([kept.name, half.name])
    said = CliRunner().invoke(clean_command, [str(tmp_path)])
    assert said.output.splitlines()[1:] == [
        f"{half}: removed: a file that a process was writing: not changed for an hour",
        f"{tmp_path}: 1 leftover cleaned",
    ]
    assert names(tmp_path) == [kept.name]
