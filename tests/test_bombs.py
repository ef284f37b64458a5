"""Small files that claim to be large: answered quickly, in memory that the file's real size backs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from make_malformed import BASE, LAST, LUT, TINY, group_section, patch, region, replace, segment, u4

HERE = Path(__file__).parent
GROWTH = 64 * 2**20
SECONDS = 1.0
FULL = (0, 0, 65535, 65535)

# Run in a child: opens every file it is given, touches all, and says how long each took and how far memory grew.
CHILD = """
import json, resource, sys, time, warnings
sys.path[:0] = {paths!r}
import iid_dask
from iid_dask import raster
from iid_dask.bbox import BBox
from iid_dask.format.check import file_defects
from iid_dask.format.source import as_source

def touch(path):
    said = []
    source = as_source(path)
    said.append(f"{{len(file_defects(source))}} defects")
    try:
        with iid_dask.open(path) as reader:
            reader.columns, reader.shape
            reader.names()
            raster.label(raster.View(reader, (64, 64)), raster.Window(BBox(0, 0, 64, 64)))
            for entry in list(reader.values())[:3]:
                entry.regions
                try:
                    entry.mask()
                except iid_dask.IIDLimitError as error:
                    said.append(str(error))
            said.append("opened")
    except iid_dask.IIDError as error:
        said.append(str(error))
    return "; ".join(said)

def memory(field):
    # Not ru_maxrss: a child begins with its parent's.
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

warnings.simplefilter("ignore", iid_dask.IIDWarning)
touch({warm!r})
with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, mapped + 2**30))
for path in sys.argv[1:]:
    forget_peak()
    # Not the clock's time: other processes take of that.
    before, start = memory("VmRSS"), time.process_time()
    said = touch(path)
    print(json.dumps([time.process_time() - start, memory("VmHWM") - before, said[:600]]), flush=True)
"""


def _lies(section: int) -> bytes:
    return patch(8 + 8 * section + 4, u4(LAST))


def _many_rows(n: int, iid_length: int, segment_length: int) -> bytes:
    """``n`` rows of the lut on one name and one segment."""
    lut = np.zeros((n, 5), "<u4")
    lut[:, 0], lut[:, 2], lut[:, 4] = np.arange(n), iid_length, segment_length
    at = 48 + 20 * n
    header = u4(0, 0, 48, 20 * n, at, iid_length, 48, 0, 48, 0, at + iid_length, segment_length)
    return header + lut.tobytes() + bytes(iid_length + segment_length)


def _rows_without_bytes(n: int) -> bytes:
    lut = np.zeros((n, 5), "<u4")
    lut[:, 0] = np.arange(n)
    return u4(0, 0, 48, 20 * n, 48, 0, 48, 0, 48, 0, 48, 0) + lut.tobytes()


def _first(box: tuple[int, int, int, int], area: int, *regions: bytes) -> bytes:
    return replace(TINY, segments=(segment(0, box, area, *regions), *TINY.segments[1:])).bytes()


def _nested_regions() -> bytes:
    """2,000 regions over the same pixels, 256 KiB."""
    box = (0, 0, 32, 32)
    return _first(box, 1024 * 2000 % 2**32, *[region(box, b"\xff" * 128)] * 2000)


def _wide_bits() -> bytes:
    """A region whose bits are there, 4 MiB of them; its mask is an array of 32 MiB, and the caller's own."""
    box = (0, 0, 512, 65535)
    return _first(box, 0, region(box, bytes((512 * 65535 + 7) // 8)))


def _meta(text: bytes) -> bytes:
    return replace(TINY, meta=text).bytes()


def _groups(n: int) -> bytes:
    rows = [{"name": str(i), "offset": 0, "length": 12} for i in range(n)]
    return replace(TINY, groups=group_section(rows, u4(0, 1, 2))).bytes()


def _empty_full_frames() -> bytes:
    frames = [segment(key, FULL, LAST if key else 0) for key in range(4)]
    return replace(TINY, segments=tuple(frames)).bytes()


# Name -> bytes, and what the answer says.
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lut length": (lambda: _lies(0), "header, byte 8"),
    "iids length": (lambda: _lies(1), "header, byte 16"),
    "meta length": (lambda: _lies(2), "header, byte 24"),
    "groups length": (lambda: _lies(3), "header, byte 32"),
    "segments length": (lambda: _lies(4), "header, byte 40"),
    "name length": (lambda: patch(LUT + 8, u4(LAST)), "lut, entry 0"),
    "segment length": (lambda: patch(LUT + 16, u4(LAST)), "lut, entry 0"),
    "full frame without regions": (lambda: _first(FULL, 0), "opened"),
    "full frames that say they are full": (_empty_full_frames, "pixels takes 4294836225 bytes as an array"),
    "full-frame region of one byte": (lambda: _first(FULL, 4, region(FULL, b"\xcc")), "536854541, as its box demands"),
    "100,000 rows on one segment": (lambda: _many_rows(100_000, 12, 1024), "inside that of entry"),
    "100,000 rows without bytes": (lambda: _rows_without_bytes(100_000), "opened"),
    "regions over one another": (_nested_regions, "opened"),
    "empty bits over 65,535 columns": (_wide_bits, "opened"),
    "JSON nested 10 million deep": (lambda: _meta(b"[" * 10_000_000), "nested 10000000 deep"),
    "JSON nested 100,000 deep and closed": (lambda: _meta(b"[" * 10**5 + b"]" * 10**5), "nested 100000 deep"),
    "JSON nested in the groups": (
        lambda: replace(TINY, groups=group_section(b"[" * 10**6, b"")).bytes(),
        "nested 1000000 deep",
    ),
    "string of a million quotes": (lambda: _meta(b'"' + b'\\"' * 10**6), "expected JSON"),
    "string of 4 MiB": (lambda: _meta(b'{"a": "' + b"a" * 2**22 + b'"}'), "opened"),
    "integer of a million digits": (lambda: _meta(b'{"a": ' + b"9" * 10**6 + b"}"), "expected JSON"),
    "100 MB of metadata": (lambda: _meta(b" " * 10**8), "at most 67108864 (limits=)"),
    "10,000 groups of the same keys": (lambda: _groups(10_000), "sharing bytes"),
    "index of 2^32 - 1 regions": (
        lambda: BASE + u4(4, LAST, len(BASE), 0, 0, crc32(BASE[: LUT + 80]), 0, 0, 0, 1, 0) + b"IIDINDEX",
        "opened",
    ),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, int, str]]:
    folder = tmp_path_factory.mktemp("bombs")
    paths = []
    for i, (make, _) in enumerate(BOMBS.values()):
        paths.append(folder / f"{i}.iid")
        paths[-1].write_bytes(make())
    code = CHILD.format(paths=[str(HERE), str(HERE.parent)], warm=str(HERE / "data" / "edge.iid"))
    child = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        capture_output=True,
        check=False,
        text=True,
        timeout=200,
        env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    for path in paths:
        path.unlink()
    assert child.returncode == 0, child.stderr
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    return {name: tuple(row) for name, row in zip(BOMBS, rows, strict=True)}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_answered_cheaply(name: str, answers: dict[str, tuple[float, int, str]]) -> None:
    seconds, growth, said = answers[name]
    print(f"{name}: {1000 * seconds:.0f} ms, {growth / 2**20:.1f} MiB: {said[:200]}")
    assert BOMBS[name][1] in said
    assert seconds <= SECONDS
    assert growth <= GROWTH
