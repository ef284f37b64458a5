"""Entries, groups and metadata with hostile names through every writer; `test_hostile.py` runs this as a process.

All is done twice: with harmless names first, so that modules are loaded and code is compiled; then with hostile ones,
under an audit hook that collects what no name may bring about.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr
from click.testing import CliRunner

import iid_dask
from iid_dask.cli import main

CODE = "__import__('pathlib').Path('escaped').mkdir()"
NAMES = (
    b"",
    b" ",
    b".",
    b"..",
    b"/",
    b"\\",
    b"../x",
    b"../../x",
    b"..\\x",
    b"/tmp/x",
    b"/etc/passwd",
    b"//host/x",
    b"C:\\x",
    b"a/b",
    b"a/../../x",
    b"./x",
    b"~",
    b"~/x",
    b"$HOME",
    b"`id`",
    b"$(id)",
    b"; id",
    b"| id",
    b"-rf",
    b"--help",
    b"\0",
    b"a\0b",
    b"a\0",
    b"\n",
    b"a\r\nb",
    b"\t",
    b"\x1b[2J",
    b"\x7f",
    b"x" * 300,
    b"x" * 70_000,
    ("\u202e" + "txt.exe").encode(),
    "\u2028".encode(),
    "\ufeff".encode(),
    "\u200b".encode(),
    "e\u0301".encode(),
    "\u00e9".encode(),
    "\U0001f4a3".encode(),
    "\uff0e\uff0e/x".encode(),
    b"\xff",
    b"\xed\xa0\x80",
    b"\xed\xa0\xbd\xed\xb2\xa3",
    b"\\xff",
    b"\\\\",
    b"zarr.json",
    b".zarray",
    b".zgroup",
    b"mosaic.json",
    b"c/0/0",
    b"NaN",
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1e999",
    b"9" * 5000,
    b"<script>alert(1)</script>",
    b"' OR 1=1 --",
    b'","a":"',
    b"=1+1",
    b"%s%n",
    b"{0.__class__}",
    b"__proto__",
    b"__class__",
    b"constructor",
    b"coordinates",
    b"_ARRAY_DIMENSIONS",
    b"CON",
    b"file:///etc/passwd",
    b"http://127.0.0.1:9/x",
    b"s3://bucket/x",
    CODE.encode(),
    pickle.dumps(Path("escaped"), protocol=2),
    b"!!python/object/apply:os.system ['id']",
)
"""Of entries; those that are text are names of groups and of metadata too."""

SIDE = 64


def texts(names: Sequence[bytes]) -> list[str]:
    """Return the names that have a UTF-8 form, as text."""
    found = []
    for name in names:
        try:
            found.append(name.decode())
        except UnicodeDecodeError:
            continue
    return found


def masks(count: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield boxes of two by two pixels, in raster order."""
    for key in range(count):
        row, col = divmod(key, 16)
        yield 4 * row, 4 * col, 4 * row + 2, 4 * col + 2


class Compared:
    """Counts what came back, and keeps what came back different."""

    def __init__(self) -> None:
        self.count = 0
        self.different: list[str] = []

    def __call__(self, what: str, found: Any, expected: Any) -> None:
        self.count += 1
        if found != expected:
            self.different.append(what)


def work(place: Path, names: Sequence[bytes], same: Compared) -> None:
    """Write, read, rasterise, export and assemble entries of some names."""
    groups, ones = texts(names), np.ones((2, 2), bool)
    metadata = {name: {name: [name]} for name in groups if name != "removed"}
    metadata["image"] = {"height": SIDE, "width": SIDE}
    path = place / "in.iid"
    with iid_dask.IIDWriter(path, metadata=metadata) as writer:
        for name, box in zip(names, masks(len(names)), strict=True):
            own = [name.decode()] if name in {group.encode() for group in groups} else []
            writer.add(name, name[::-1], box, ones, groups=own)
    expected = list(names), [name[::-1] for name in names]
    with iid_dask.open(path) as reader:
        same("file: names", reader.names(), expected)
        same("file: groups", list(reader.groups), groups)
        same("file: metadata", reader.metadata, metadata)
        found = [reader.look_for(address, domains=domain).tolist() for domain, address in zip(*expected, strict=True)]
        same("file: look_for", found, [[key] for key in range(len(names))])

    iid_dask.to_iid(path, place / "copy.iid", progress=False)
    with iid_dask.open(place / "copy.iid") as reader:
        same("copy: names", reader.names(), expected)
        same("copy: groups", sorted(reader.groups), sorted(groups))
        same("copy: metadata", reader.metadata, metadata)

    export(path, place, expected, groups, metadata, same)
    mosaics(path, place, expected, groups, same)
    for kind in ("parquet", "csv", "json"):
        done = CliRunner().invoke(main, ["ls", str(path), "-o", str(place / f"out.{kind}")])
        same(f"iid ls -o out.{kind}", (done.exit_code, done.exception), (0, None))
    for words in (["ls", str(path)], ["info", str(path)], ["check", str(path)]):
        same(f"iid {words[0]}", CliRunner().invoke(main, words).exit_code, 0)
    table = pq.read_table(place / "out.parquet")
    same("parquet", (table["domain"].to_pylist(), table["address"].to_pylist()), expected)
    rows = json.loads((place / "out.json").read_text())
    same("json", [iid_dask.from_text(row["domain"]) for row in rows], expected[0])


def export(
    path: Path, place: Path, expected: tuple[list[bytes], ...], groups: list[str], metadata: Any, same: Compared
) -> None:
    """Write Zarr with every variable and the table, and read it back."""
    iid_dask.to_zarr(path, place / "out.zarr", variables=("label", "mask", "depth", "group_mask"), progress=False)
    for what, ds in (("zarr", iid_dask.open_zarr(place / "out.zarr")), ("engine", xr.open_dataset(path, engine="iid"))):
        with ds:
            for variable, names in zip(("domain", "address"), expected, strict=True):
                back = [iid_dask.from_text(str(text)) for text in ds[variable].values.tolist()]
                same(f"{what}: {variable}", back, names)
            same(f"{what}: groups", [str(name) for name in ds["group"].values.tolist()], groups)
            same(f"{what}: metadata", json.loads(ds.attrs["iid_metadata"]), metadata)


def mosaics(path: Path, place: Path, expected: tuple[list[bytes], ...], groups: list[str], same: Compared) -> None:
    """Make mosaics of the file, and of masks, and one file of each."""
    with iid_dask.to_mosaic(path, place / "mosaic", progress=False) as mosaic:
        same("mosaic: names", mosaic.names(), expected)
        same("mosaic: groups", sorted(mosaic.groups), sorted(groups))
        mosaic.to_iid(place / "one.iid")
    with iid_dask.open(place / "one.iid") as reader:
        same("mosaic as a file: names", reader.names(), expected)
    iid_dask.prepare(place / "tiles", (SIDE, SIDE), stitch="name")
    held, ones = list(zip(*expected, masks(len(expected[0])), strict=True)), np.ones((2, 2), bool)
    some = [(domain, address, box, ones, groups[:1]) for domain, address, box in held]
    iid_dask.write_tile(place / "tiles", some, (0, 0), shape=(SIDE, SIDE))
    with iid_dask.finish(place / "tiles") as mosaic:
        same("tiles: names", mosaic.names(), expected)
    iid_dask.to_zarr(place / "tiles", place / "tiles.zarr", progress=False)


# --- what is watched --------------------------------------------------------------------------------------------

NEVER = (
    "pickle.find_class",
    "socket.connect",
    "socket.bind",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
)
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
CREATES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_importing() -> bool:
    """Whether Python runs the code of a module that it imports."""
    return any("importlib" in frame.filename for frame in traceback.extract_stack(limit=12))


class Watch:
    """Collects events of Python that no name may bring about, while it is on.

    Until then it learns what harmless names bring about: dask unpickles objects that it pickled itself.
    """

    def __init__(self, target: Path) -> None:
        self.target = os.path.join(os.path.realpath(target), "")
        self.on = False
        self.known: set[str] = set()
        self.events: list[tuple[str, str]] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class" and not self.on:
            self.known.add(repr(arguments))
        if not self.on:
            return
        self.on = False  # what is done here is not watched
        try:
            if self.is_wrong(event, arguments):
                self.events.append((event, repr(arguments)[:200]))
        finally:
            self.on = True

    def is_wrong(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """Whether an event is one of those."""
        if event in ("exec", "compile"):
            return not is_importing()
        if event == "open":
            path, _, flags = arguments
            return bool(isinstance(path, str | bytes) and (flags or 0) & CREATES and self.leaves(path))
        if event in WRITES or event.startswith("shutil."):
            return any(self.leaves(path) for path in arguments if isinstance(path, str | bytes))
        return event in NEVER and repr(arguments) not in self.known

    def leaves(self, path: str | bytes) -> bool:
        """Whether a path is not below the target."""
        real = os.path.realpath(os.fsdecode(path))
        return real != os.devnull and not os.path.join(real, "").startswith(self.target)


def control(place: Path, same: Compared) -> None:
    """Do what no name may bring about."""
    os.chdir(place)
    exec(compile(CODE, "<name>", "exec"))
    pickle.loads(pickle.dumps(Path("escaped")))
    with socket.socket() as some:
        some.connect_ex(("127.0.0.1", 9))
    os.system("true")
    Path("escaped/here").write_bytes(b"")
    Path("escaped/here").rename("escaped/moved")
    same("a name that changed", b"a", b"b")


if __name__ == "__main__":
    how, where = sys.argv[1], Path(sys.argv[2])
    warnings.simplefilter("ignore", iid_dask.IIDWarning)
    watch, compared = Watch(where / "target"), Compared()
    if how == "work":
        work(where / "warm", [f"name {i}".encode() for i in range(len(NAMES))], Compared())
        watch.on = True
        work(where / "target", NAMES, compared)
    else:
        watch.on = True
        control(where, compared)
    watch.on = False
    done = {"names": len(NAMES), "events": watch.events, "compared": compared.count, "different": compared.different}
    print(json.dumps(done))
