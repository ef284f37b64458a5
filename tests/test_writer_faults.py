"""Writing one file: whatever fails or dies, a whole file stands at the path, the old one or the new one."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

import iid_dask
from iid_dask.bbox import BBox
from iid_dask.format.layout import MAX_ENTRIES, MAX_LENGTH
from iid_dask.format.plan import Planned, plan_file
from iid_dask.format.target import atomic_write

HERE = Path(__file__).parent
OLD = (HERE / "data" / "edge.iid").read_bytes()


def fill(writer: iid_dask.IIDWriter) -> None:
    rng = np.random.default_rng(0)
    for key in range(20):
        writer.add(b"cell", str(key).encode(), (0, 0, 64, 64), rng.random((64, 64)) < 0.5, groups=["all"])


def write(path: Path) -> None:
    with iid_dask.IIDWriter(path) as writer:
        fill(writer)


def index(path: Path) -> None:
    iid_dask.add_index(path)


def write_in_place(path: Path) -> None:
    """The control: what the harness below must catch."""
    with open(path, "wb", buffering=4096) as file:
        for _ in range(40):
            file.write(OLD)
        file.flush()
        os.fsync(file.fileno())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the n-th call fails ----------------------------------------------------------------------------------------


class Fault:
    """Count calls that reach the disk, and fail the n-th, or all from the n-th on.

    Stands between Python and the system only: the file below it is real.
    """

    def __init__(self, patch: pytest.MonkeyPatch, at: int, code: int, *, for_ever: bool = False) -> None:
        self.calls: list[str] = []
        self.at, self.code, self.for_ever = at, code, for_ever
        self.quiet = False
        for name in ("open", "fsync", "replace", "chmod"):
            patch.setattr(os, name, self._wrap(name, getattr(os, name)))
        real = os.fdopen

        def fdopen(number: int, mode: str = "r", buffering: int = -1) -> io.BufferedWriter:
            real(number, mode, buffering=0, closefd=False).close()  # refuses what os.fdopen refuses
            return io.BufferedWriter(Raw(self, number), 4096)

        patch.setattr(os, "fdopen", fdopen)

    def hit(self, name: str, path: object = None) -> None:
        if self.quiet:
            return
        self.calls.append(name)
        n = len(self.calls) - 1
        if n == self.at or (self.for_ever and n > self.at):
            raise OSError(self.code, os.strerror(self.code), *([path] if isinstance(path, str) else []))

    def _wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.hit(name, args[0])
            return real(*args, **kwargs)

        return call


class Raw(io.FileIO):
    """A file whose writes are short and whose writes and close may fail."""

    def __init__(self, fault: Fault, number: int) -> None:
        super().__init__(number, "wb")
        self.fault = fault

    def write(self, data: object) -> int | None:
        self.fault.hit("write")
        return super().write(memoryview(data)[:3000])

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self.fault.hit("close")


def calls_of(save: Callable[[Path], None], path: Path) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(patch, -1, 0)
        save(path)
    return fault.calls


def outcomes(save: Callable[[Path], None], folder: Path, *, for_ever: bool) -> Iterator[tuple[str, list[str]]]:
    """Fail every call of a save in turn; yield what failed and the promises that were broken."""
    path = folder / "target.iid"
    path.write_bytes(OLD)
    save(path)  # compiles kernels, which writes to numba's cache
    n_calls = len(calls_of(save, path))
    new = path.read_bytes()
    for at in range(n_calls):
        for code in (errno.ENOSPC, errno.EIO, errno.EDQUOT):
            path.write_bytes(OLD)
            broken = []
            with pytest.MonkeyPatch.context() as patch:
                fault = Fault(patch, at, code, for_ever=for_ever)
                try:
                    save(path)
                    broken.append("success was reported")
                except OSError as error:
                    if error.errno != code or not error.filename:
                        broken.append(f"the error is {error!r} with filename {error.filename!r}")
            fault.quiet = True
            replaced = "replace" in fault.calls[:at]
            if path.read_bytes() != (new if replaced else OLD):
                broken.append("the target is neither")
            if names(folder) != ["target.iid"]:
                broken.append(f"left behind: {names(folder)}")
            yield f"{fault.calls[at]} {at} {errno.errorcode[code]}", broken


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("save", [write, index])
def test_every_failing_call_is_reported_and_leaves_the_old_file(
    save: Callable[[Path], None], for_ever: bool, tmp_path: Path
) -> None:
    found = dict(outcomes(save, tmp_path, for_ever=for_ever))
    print(f"{len(found)} faults: {[name for name in found if name.endswith('EIO')]}")
    assert {name: broken for name, broken in found.items() if broken} == {}
    kinds = {name.split()[0] for name in found}
    assert kinds == {"open", "write", "fsync", "close", "chmod", "replace"}


def test_control_a_writer_in_place_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    limits = (1000, 4096, 20_000, 70_000)
    found = _run(tmp_path, [("write_in_place", str(path), limit, None) for limit in limits])
    assert crc32(OLD) not in {crc for _, crc in found}


# --- limits and media of the system -----------------------------------------------------------------------------

# One child imports once; each job is a fork of it that may be killed or given limits of its own.
CHILD = """
import json, os, resource, signal, sys, time
sys.path[:0] = {paths!r}
from pathlib import Path
import test_writer_faults as made

warm, jobs = sys.argv[1], json.loads(sys.argv[2])
made.write(Path(warm))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def run(save, path, limit, pause):
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save(path)
        while pause is not None:
            save(path)
    except OSError as error:
        return [error.errno, error.filename]

for name, path, limit, pause in jobs:
    Path(path).write_bytes(made.OLD)
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.write(send, json.dumps(run(getattr(made, name), Path(path), limit, pause)).encode())
        os._exit(0)
    os.close(send)
    if pause is not None:
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
    said = os.read(receive, 10_000)
    os.close(receive)
    os.waitpid(child, 0)
    print(json.dumps([json.loads(said or "null"), made.crc32(Path(path).read_bytes())]), flush=True)
"""

Job = tuple[str, str, int | None, float | None]
"""Name of a function here, path, largest file in bytes, seconds until it is killed."""


def _run(folder: Path, jobs: list[Job]) -> list[tuple[tuple[int, str] | None, int]]:
    """Return for each job the errno and file name it raised, and the crc32 of what then stands at the path."""
    code = CHILD.format(paths=[str(HERE), str(HERE.parent)])
    command = [sys.executable, "-c", code, str(folder / "warm"), json.dumps(jobs)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert child.returncode == 0, child.stderr
    return [(raised and tuple(raised), crc) for raised, crc in map(json.loads, child.stdout.splitlines())]


def test_file_size_limit(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    path = folder / "target.iid"
    write(path)
    new = path.read_bytes()
    jobs: list[Job] = [("write", str(path), limit, None) for limit in (0, len(new) // 2, len(new) - 1, len(new))]
    *failed, last = _run(tmp_path, jobs)
    for raised, crc in failed:
        assert raised is not None
        assert raised[0] == errno.EFBIG
        assert raised[1].startswith(str(folder / ".target.iid."))
        assert crc == crc32(OLD)
    assert last == (None, crc32(new))
    assert names(folder) == ["target.iid"]


@pytest.mark.parametrize("kind", ["folder", "missing folder", "path in a file", "pipe"])
def test_targets_that_cannot_be_files(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path, error, where = {
        "folder": (tmp_path / "folder", errno.EISDIR, tmp_path / "folder"),
        "missing folder": (tmp_path / "no" / "x.iid", errno.ENOENT, tmp_path / "no"),
        "path in a file": (tmp_path / "file" / "x.iid", errno.ENOTDIR, tmp_path / "file"),
        "pipe": (tmp_path / "pipe", errno.EINVAL, tmp_path / "pipe"),
    }[kind]
    before = names(tmp_path)
    with pytest.raises(OSError, match=re.escape(repr(str(where)))) as caught:
        write(path)
    assert (caught.value.errno, caught.value.filename) == (error, str(where))
    assert names(tmp_path) == before
    assert (tmp_path / "file").read_bytes() == OLD
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_a_folder_that_cannot_be_forced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "new.iid")
    assert names(tmp_path) == ["new.iid"]


def test_bytes_are_forced_to_disk_before_the_rename(tmp_path: Path) -> None:
    calls = calls_of(write, tmp_path / "new.iid")
    moved = calls.index("replace")
    assert "fsync" in calls[:moved]
    assert max(i for i, name in enumerate(calls) if name == "write") < calls.index("fsync") < moved
    assert calls[moved + 1 :] == ["open", "fsync"]


def test_an_error_in_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    path.write_bytes(OLD)

    def stop_adding() -> None:
        with iid_dask.IIDWriter(path) as writer:
            fill(writer)
            raise ZeroDivisionError

    def stop_writing() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError):
        stop_adding()
    with pytest.raises(KeyboardInterrupt):
        stop_writing()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["target.iid"]


def test_links_are_followed_and_permissions_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real.iid", tmp_path / "link.iid"
    real.write_bytes(OLD)
    link.symlink_to(real)
    for mode in (0o666, 0o640, 0o604, 0o444):
        real.chmod(mode)
        write(link)
        assert stat.S_IMODE(real.stat().st_mode) == mode
        assert link.is_symlink()
        with iid_dask.open(real) as reader:
            assert len(reader) == 20
    before = os.umask(0o027)
    try:
        write(tmp_path / "new.iid")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.iid").stat().st_mode) == 0o640


def test_long_names_get_a_temporary_name_that_fits(tmp_path: Path) -> None:
    for name in ("x" * 251 + ".iid", "樹" * 83 + ".iid"):
        write(tmp_path / name)
        with iid_dask.open(tmp_path / name) as reader:
            assert len(reader) == 20


# --- killed at a random moment ----------------------------------------------------------------------------------


def _kill(save: str, folder: Path, n: int, seed: int) -> list[int]:
    choose = random.Random(seed)
    jobs: list[Job] = [(save, str(folder / "target.iid"), None, choose.uniform(0, 0.05)) for _ in range(n)]
    return [crc for _, crc in _run(folder, jobs)]


def test_killed_writers_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    write(path)
    whole = {crc32(OLD), crc32(path.read_bytes())}
    assert set(_kill("write", tmp_path, 30, seed=11)) <= whole
    left = set(names(tmp_path)) - {"target.iid", "warm"}
    assert all(name.startswith(".target.iid.") and name.endswith(".tmp") for name in left)


def test_control_a_killed_writer_in_place_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    write_in_place(path)
    whole = {crc32(OLD), crc32(path.read_bytes())}
    assert not set(_kill("write_in_place", tmp_path, 60, seed=12)) <= whole


# --- limits, before the target is touched -----------------------------------------------------------------------


def planned(length: int, *, domain: bytes = b"", address: bytes = b"") -> Planned:
    def never() -> bytes:
        raise AssertionError("planning reads no pixels")

    return Planned(domain, address, BBox(0, 0, 1, 1), 1, np.array([[0, 0, 1, 1]], np.uint16), length, never)


def test_segments_up_to_the_limit_are_planned() -> None:
    plan = plan_file("x.iid", [planned(MAX_LENGTH - 16)], {}, {})
    assert int(plan.header["segments_length"][0]) == MAX_LENGTH
    # Eight masks of the largest image fit a file, nine do not.
    eight = plan_file("x.iid", [planned(536_854_541)] * 8, {}, {})
    assert int(eight.header["segments_length"][0]) == 8 * 536_854_557


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([planned(MAX_LENGTH - 15)], "entry 0 ends at byte 4294967296 of the segments section"),
        ([planned(2**31)] * 3, "entry 1 ends at byte 4294967328 of the segments section"),
        ([planned(536_854_541)] * 9, "entry 8 ends at byte"),
    ],
)
def test_segments_beyond_the_limit_are_refused(entries: list[Planned], words: str) -> None:
    with pytest.raises(iid_dask.IIDLimitError, match=words) as caught:
        plan_file("x.iid", entries, {}, {})
    assert str(MAX_LENGTH) in str(caught.value)
    assert "write several files" in str(caught.value)


class Long(bytes):
    """A name that says it is long, and is not in memory."""

    length = 2**31

    def __len__(self) -> int:
        return self.length


class Longest(Long):
    length = MAX_LENGTH - 12


def test_names_beyond_the_limit_are_refused() -> None:
    entries = [planned(13, address=Long())] * 2
    with pytest.raises(iid_dask.IIDLimitError, match="entry 1 ends at byte 4294967320 of the iids section"):
        plan_file("x.iid", entries, {}, {})
    # Here each section has room, but those behind the names would begin at an offset that has none.
    with pytest.raises(iid_dask.IIDLimitError, match="meta section of 2 bytes at byte 4294967363"):
        plan_file("x.iid", [planned(13, address=Longest())], {}, {})


class Many(list):
    """A list that says it is long."""

    def __len__(self) -> int:
        return MAX_ENTRIES + 1


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(iid_dask.IIDLimitError, match="214748365 entries"):
        plan_file("x.iid", Many(), {}, {})


def test_sides_of_boxes(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    path.write_bytes(OLD)
    with iid_dask.IIDWriter(path) as writer:
        writer.add(b"", b"", (65534, 65534, 65535, 65535), np.ones((1, 1)))
        for box in ((65534, 0, 65536, 1), (0, 65534, 1, 65536), (-1, 0, 1, 1), (0, -1, 1, 1)):
            with pytest.raises(iid_dask.IIDLimitError, match=r"entry 1: box .* leaves 0 … 65535"):
                writer.add(b"", b"", box, np.ones((box[2] - box[0], box[3] - box[1])))
        with pytest.raises(ValueError, match="upside down"):
            writer.add(b"", b"", (2, 0, 1, 1), np.ones((1, 1)))
        assert path.read_bytes() == OLD
    with iid_dask.open(path) as reader:
        assert list(reader) == [0]
        assert reader.shape == (65535, 65535)


DEEP: dict[str, object] = {}
for _ in range(70):
    DEEP = {"": DEEP}
DEEPER = DEEP
for _ in range(100_000):
    DEEPER = {"": DEEPER}


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"a": float("nan")}, ValueError),
        ({"a": [1, {"b": float("-inf")}]}, ValueError),
        ({"a": object()}, TypeError),
        ({"a": b"bytes"}, TypeError),
        ({"a": np.int64(1)}, TypeError),
        ({1: "a"}, ValueError),
        ({"a": {None: 1}}, ValueError),
        ({"a": [{2.5: 1}]}, ValueError),
        ({"a": "\ud800"}, ValueError),
        ({"\udfff": 1}, ValueError),
        ({"a": 10**5000}, ValueError),
        (DEEP, iid_dask.IIDLimitError),
        ({"a": "a" * 2**26}, iid_dask.IIDLimitError),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_metadata_that_no_reader_takes_is_refused(metadata: dict[str, object], error: type, tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    path.write_bytes(OLD)
    with pytest.raises(error, match=r"target\.iid: metadata"):
        iid_dask.IIDWriter(path, metadata=metadata)
    writer = iid_dask.IIDWriter(path)
    writer.metadata = metadata
    with pytest.raises(error, match=r"target\.iid: metadata"):
        writer.close()
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["target.iid"]


def test_metadata_deeper_than_the_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="metadata cannot be stored as JSON"):
        iid_dask.IIDWriter(tmp_path / "new.iid", metadata=DEEPER)


def test_what_is_refused_before_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    one = np.ones((2, 2))
    with iid_dask.IIDWriter(path) as writer:
        assert writer.add(b"a", b"1", (0, 0, 2, 2), one) == 0
        with pytest.raises(TypeError, match="entry 1: domain is str, expected bytes"):
            writer.add("a", b"1", (0, 0, 2, 2), one)
        with pytest.raises(TypeError, match="entry 1: address is int, expected bytes"):
            writer.add(b"a", 1, (0, 0, 2, 2), one)
        with pytest.raises(ValueError, match=r"entry 1: mask of shape \(2, 3\), expected \(2, 2\)"):
            writer.add(b"a", b"1", (0, 0, 2, 2), np.ones((2, 3)))
        with pytest.raises(TypeError, match="entry 1: give either mask= or regions="):
            writer.add(b"a", b"1", (0, 0, 2, 2))
        with pytest.raises(TypeError, match="group name 3 is int"):
            writer.add(b"a", b"1", (0, 0, 2, 2), one, groups=[3])
        with pytest.raises(ValueError, match="has no UTF-8 form"):
            writer.add_group("\ud800")
        with pytest.raises(KeyError, match="group 'g': no entry 1 was added"):
            writer.add_group("g", [0, 1])
        region = iid_dask.Region
        for regions, words in (
            ([region(BBox(0, 0, 3, 2), b"\xfc")], "is empty or leaves its box"),
            ([region(BBox(1, 1, 1, 2), b"")], "is empty or leaves its box"),
            ([region(BBox(0, 0, 2, 2), b"\xf0\x00")], "of 2 bytes, expected 1"),
            ([region(BBox(0, 0, 2, 2), b"\xf1")], "pad bits that are not zero"),
            ([region(BBox(0, 0, 2, 2), b"\xf0")] * 2, "some overlap"),
        ):
            with pytest.raises(ValueError, match=words):
                writer.add(b"a", b"1", (0, 0, 2, 2), regions=regions)
        removed = writer.add_removed()
        with pytest.raises(KeyError, match="no entry 1 was added"):
            writer.add_group("g", [removed])
    with pytest.raises(ValueError, match="the writer is closed"):
        writer.add(b"a", b"1", (0, 0, 2, 2), one)
    with iid_dask.open(path) as reader:
        assert list(reader) == [0]
        assert reader.groups == {}


def test_removed_entries_keep_their_keys(tmp_path: Path) -> None:
    path, again = tmp_path / "a.iid", tmp_path / "b.iid"
    with iid_dask.IIDWriter(path, metadata={"note": 1}) as writer:
        for key in range(5):
            if key in (1, 4):
                writer.add_removed()
            else:
                writer.add(b"", b"%d" % key, (0, 0, 1, 1), np.ones((1, 1)), groups=["all"])
    with iid_dask.open(path) as reader:
        assert list(reader) == [0, 2, 3]
        assert reader.metadata == {"note": 1}
        assert json.loads(reader.metadata_json) == {"note": 1, "removed": [1, 4]}
        assert reader.names() == ([b""] * 3, [b"0", b"2", b"3"])
        assert reader.check() == []
        assert 1 not in reader
        with iid_dask.IIDWriter(again, metadata=reader.metadata) as writer:
            writer.copy(reader)
    assert again.read_bytes() == path.read_bytes()
    for metadata in ({"removed": "text"}, {"removed": [0]}):
        with iid_dask.IIDWriter(path, metadata=metadata) as writer:
            writer.add(b"", b"named", (0, 0, 1, 1), np.ones((1, 1)))
        with iid_dask.open(path) as reader:
            assert list(reader) == [0]
            assert reader.metadata == metadata
    with pytest.raises(ValueError, match="rename"), iid_dask.IIDWriter(path, metadata={"removed": [0]}) as writer:
        writer.add(b"", b"", (0, 0, 0, 0), np.ones((0, 0)))
    with pytest.raises(ValueError, match="rename"), iid_dask.IIDWriter(path, metadata={"removed": 1}) as writer:
        writer.add_removed()


def test_an_index_of_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "target.iid"
    data = (HERE / "data" / "malformed" / "region-pad-bits.iid").read_bytes()
    path.write_bytes(data)
    with pytest.raises(iid_dask.IIDFormatError, match="zero pad bits"):
        iid_dask.add_index(path)
    assert path.read_bytes() == data
    assert names(tmp_path) == ["target.iid"]
