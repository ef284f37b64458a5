"""What a maker of hostile files may try beside broken bytes: JSON without end, paths that lead out, pickles, names."""

from __future__ import annotations

import ctypes
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_malformed as corpus
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from fuzz_targets import guarded

import iid_dask
from iid_dask.images import as_image
from iid_dask.mosaic.folder import JOB, MANIFEST, load_job
from iid_dask.mosaic.tables import read_table

HERE = Path(__file__).parent


LABELS = np.zeros((40, 50), np.uint8)
LABELS[2:30, 3:20], LABELS[8:36, 24:48] = 1, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mosaic of four tiles, whose labels are their own."""
    folder = tmp_path_factory.mktemp("made") / "mosaic"
    iid_dask.to_mosaic(LABELS, folder, tile=25, stitch="touch", progress=False).close()
    return folder


@pytest.fixture
def folder(tmp_path: Path, made: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "mosaic"))


def touch_all(folder: Path, *, verify: bool = True) -> None:
    """Read every table of a mosaic, and pixels of every tile."""
    with iid_dask.open(folder, verify=verify) as mosaic:
        _ = mosaic.groups, mosaic.names(), mosaic.columns.boxes
        mosaic.region((0, 0, *mosaic.shape))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    (folder / MANIFEST).write_text(json.dumps(value))


def change_table(folder: Path, name: str, change: Callable[[pa.Table], pa.Table], **how: Any) -> None:
    """Replace a table, and list it as it is now: checksums are no help against who makes them."""

    def listed(manifest: dict[str, Any]) -> None:
        table = manifest["tables"][name]
        made = change(pq.read_table(folder / table["path"]))
        pq.write_table(made, folder / table["path"], **{"use_dictionary": False, **how})
        data = (folder / table["path"]).read_bytes()
        table |= {"nbytes": len(data), "crc": zlib.crc32(data)}

    change_manifest(folder, listed)


# --- JSON -------------------------------------------------------------------------------------------------------

TEXTS = {
    "nested 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, "nested 10000"),
    "nested 100,000 deep and never closed": (b'{"a": ' * 100_000, "nested 10000"),
    "nested one too deep": (b"[" * 66 + b"]" * 66, "nested 6[67] deep"),
    "integer of 5,000 digits": (b"9" * 5000, "digits"),
    "key twice": (b'{"a": 1, "a": 2}', "names 'a' twice"),
    "NaN": (b"NaN", "NaN, which is not JSON"),
    "-Infinity": (b"-Infinity", "-Infinity, which is not JSON"),
    "half of a surrogate pair": (b'"\\ud800"', "half of a surrogate pair"),
    "bytes that are no text": (b'"\xff"', "byte 0xff"),
}
"""Name -> JSON, and what is said of it."""


def put_metadata(place: Path, text: bytes) -> Callable[[], Any]:
    (place / "a.iid").write_bytes(replace(corpus.TINY, meta=b'{"x": ' + text + b"}").bytes())
    return lambda: iid_dask.open(place / "a.iid")


def put_groups(place: Path, text: bytes) -> Callable[[], Any]:
    (place / "a.iid").write_bytes(replace(corpus.TINY, groups=corpus.group_section(b"[" + text + b"]", b"")).bytes())
    return lambda: iid_dask.open(place / "a.iid")


def put_manifest(place: Path, text: bytes) -> Callable[[], Any]:
    data = (place / "mosaic" / MANIFEST).read_bytes()
    (place / "mosaic" / MANIFEST).write_bytes(b'{"x": ' + text + b", " + data[1:])
    return lambda: iid_dask.open(place / "mosaic")


def put_job(place: Path, text: bytes) -> Callable[[], Any]:
    data = (place / "mosaic" / JOB).read_bytes()
    (place / "mosaic" / JOB).write_bytes(b'{"x": ' + text + b", " + data[1:])
    return lambda: load_job(place / "mosaic")


PLACES = {"metadata": put_metadata, "groups": put_groups, "manifest": put_manifest, "job": put_job}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("where", PLACES)
def test_json_without_end_or_sense_is_refused(tmp_path: Path, folder: Path, where: str, text: str) -> None:
    written, said = TEXTS[text]
    read = PLACES[where](tmp_path, written)
    with guarded(), pytest.raises(iid_dask.IIDFormatError, match=said):
        read()


@pytest.mark.parametrize("where", PLACES)
def test_json_that_is_too_long_is_refused_before_it_is_parsed(
    tmp_path: Path, folder: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PLACES[where](tmp_path, b'"' + b" " * (65 * 2**20) + b'"')
    parse = json.loads
    monkeypatch.setattr(
        json, "loads", lambda text, **how: pytest.fail("parsed") if len(text) > 2**20 else parse(text, **how)
    )
    with pytest.raises(iid_dask.IIDFormatError, match=r"bytes, expected at most \d+"):
        read()


def test_plain_json_would_take_what_is_refused() -> None:
    # The control: why Python's own parser is not left alone with hostile text.
    assert json.loads(TEXTS["key twice"][0]) == {"a": 2}
    assert json.loads(TEXTS["half of a surrogate pair"][0]) == "\ud800"
    assert json.loads(TEXTS["NaN"][0]) != json.loads(TEXTS["NaN"][0])
    with pytest.raises(RecursionError):
        json.loads(TEXTS["nested 100,000 deep"][0])


def test_metadata_as_deep_as_a_file_takes_pass_through_a_mosaic(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(63):
        deep = [deep]
    with iid_dask.to_mosaic(LABELS, tmp_path / "deep", tile=25, metadata={"x": deep}, progress=False) as mosaic:
        mosaic.to_iid(tmp_path / "deep.iid")
    with iid_dask.open(tmp_path / "deep.iid") as reader:
        assert reader.metadata["x"] == deep


@pytest.mark.parametrize("metadata", [{"a": float("nan")}, {"a": "\ud800"}, {"\ud800": 1}, {"a": float("inf")}])
def test_metadata_that_no_reader_takes_are_not_written(tmp_path: Path, metadata: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="metadata"), iid_dask.IIDWriter(tmp_path / "a.iid", metadata=metadata):
        pass
    with pytest.raises(ValueError, match="metadata"):
        iid_dask.prepare(tmp_path / "mosaic", (40, 50), metadata=metadata)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", TEXTS)
def test_json_that_other_programs_leave_in_tables_is_not_parsed(folder: Path, text: str) -> None:
    with iid_dask.open(folder) as mosaic:
        names = mosaic.names()
    for name in ("tiles", "segments", "pieces"):
        change_table(folder, name, lambda table: table.replace_schema_metadata({b"pandas": TEXTS[text][0]}))
    with iid_dask.open(folder) as mosaic:
        assert mosaic.names() == names
        assert mosaic.check() == []
    # The control: who makes a dataframe of such a table parses it.
    path = folder / json.loads((folder / MANIFEST).read_text())["tables"]["tiles"]["path"]
    with pytest.raises((RecursionError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowException)):
        pq.read_table(path).to_pandas()


# --- paths ------------------------------------------------------------------------------------------------------

OPENED, READ, CHANGED = 0x20, 0x01, 0x02 | 0x04 | 0x40 | 0x400 | 0x800
"""What inotify tells of a file: also what code that is not Python does."""


@contextmanager
def watching(*paths: Path) -> Iterator[list[tuple[str, str]]]:
    """Collect what happens to files, whoever does it and by whatever name, and what Python opens."""
    found: list[tuple[str, str]] = []
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert number >= 0, os.strerror(ctypes.get_errno())
    watched = {}
    for path in paths:
        watched[libc.inotify_add_watch(number, os.fsencode(path), OPENED | READ | CHANGED)] = str(path)
    assert -1 not in watched
    listening = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open" and str(arguments[0]) in watched.values():
            found.append(("opened by Python", str(arguments[0])))

    sys.addaudithook(hook)
    try:
        yield found
    finally:
        listening.clear()
        data = b""
        while True:
            try:
                data += os.read(number, 2**16)
            except BlockingIOError:
                break
        os.close(number)
        at = 0
        while at < len(data):
            which, mask, _, length = struct.unpack_from("iIII", data, at)
            words = {OPENED: "opened", READ: "read"}
            found.append((words.get(mask & (OPENED | READ), "changed"), watched[which]))
            at += 16 + length


ESCAPES = (
    "../{name}",
    "../outside/{name}",
    "{outside}/{name}",
    "/{outside}/{name}",
    "a/../../outside/{name}",
    "tiles/../../outside/{name}",
    "tiles/../../mosaic/../outside/{name}",
    "./../outside/{name}",
    "./{name}",
    "tiles//{name}",
    "tiles/./{name}",
    "file://{outside}/{name}",
    "FILE://{outside}/{name}",
    "file:{outside}/{name}",
    "local://{outside}/{name}",
    "simplecache::file://{outside}/{name}",
    "zip://a::file://{outside}/{name}",
    "memory://{name}",
    "s3://bucket/{name}",
    "http://127.0.0.1:9/{name}",
    "data:,{name}",
    "C:\\{name}",
    "\\\\host\\share\\{name}",
    "..\\outside\\{name}",
    "tiles\\..\\..\\outside\\{name}",
    "to_folder/{name}",
    "to_file",
    "to_link",
    "tiles/to_file",
    "loop",
    "loop/{name}",
    "~/{name}",
    "$HOME/{name}",
    "{name}\0",
    "\0",
    "../outside/{name}\0.parquet",
    "x" * 5000,
    "x/" * 3000 + "{name}",
    "../" * 3000 + "{outside}/{name}",
    "..",
    ".",
    "",
    " ",
    "tiles",
    ".hidden",
    "\uff0e\uff0e/outside/{name}",
    "\u202e{name}",
    "%2e%2e/outside/{name}",
)
"""Ways to name a file that is not in the folder, or none."""


@pytest.fixture
def outside(tmp_path: Path, folder: Path) -> Path:
    """A folder with a sound table and a sound tile of the mosaic, and links to them from the mosaic."""
    place = tmp_path / "outside"
    place.mkdir()
    table = json.loads((folder / MANIFEST).read_text())["tables"]["pieces"]["path"]
    for name in (place / "canary", tmp_path / "canary"):
        shutil.copy(folder / table, name)
    (folder / "to_folder").symlink_to(place)
    (folder / "to_file").symlink_to(place / "canary")
    (folder / "to_link").symlink_to(folder / "to_file")
    (folder / "tiles" / "to_file").symlink_to(Path("../../outside/canary"))
    (folder / "loop").symlink_to(folder / "loop")
    return place


def canaries(outside: Path) -> list[Path]:
    return [outside / "canary", outside.parent / "canary"]


def named(path: str, outside: Path) -> str:
    return path.format(name="canary", outside=outside)


def put_path(name: str, path: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["tables"][name]["path"] = path

    return change


@pytest.mark.parametrize("path", ESCAPES)
@pytest.mark.parametrize("verify", [True, False])
def test_no_table_outside_the_folder_is_opened(folder: Path, outside: Path, path: str, verify: bool) -> None:
    change_manifest(folder, put_path("pieces", named(path, outside)))
    held = [canary.read_bytes() for canary in canaries(outside)]
    with watching(*canaries(outside)) as happened, guarded(), pytest.raises((iid_dask.IIDError, OSError)) as caught:
        touch_all(folder, verify=verify)
    assert happened == []
    assert [canary.read_bytes() for canary in canaries(outside)] == held
    assert len(str(caught.value)) < 1000 + len(str(folder))


@pytest.mark.parametrize("path", ESCAPES)
def test_no_tile_outside_the_folder_is_opened(folder: Path, outside: Path, path: str) -> None:
    for canary in canaries(outside):
        shutil.copy(min((folder / "tiles").glob("*.iid")), canary)
    change_table(folder, "tiles", lambda table: set_paths(table, [named(path, outside)] * table.num_rows))
    with watching(*canaries(outside)) as happened, guarded():
        with pytest.raises((iid_dask.IIDError, OSError)) as caught:
            touch_all(folder)
        if not isinstance(caught.value, OSError):
            with iid_dask.open(folder) as mosaic:
                assert mosaic.check()
    assert happened == []
    assert len(str(caught.value)) < 1000 + 2 * len(str(folder))


def set_paths(table: pa.Table, paths: list[str]) -> pa.Table:
    return table.set_column(table.column_names.index("path"), "path", pa.array(paths, pa.string()))


def test_a_canary_that_is_read_is_noticed(folder: Path, outside: Path) -> None:
    # The control: were the path followed, the mosaic would open, and who watches would know; also of Arrow's own reads.
    shutil.copy(outside / "canary", folder / "copy.parquet")
    change_manifest(folder, put_path("pieces", "copy.parquet"))
    touch_all(folder)
    for read in (
        (folder / "to_link").read_bytes,
        lambda: pq.read_table(folder / "to_file", memory_map=False),
        lambda: read_table(folder / "to_folder", {"path": "canary", **facts(folder)}, PIECES),
    ):
        with watching(*canaries(outside)) as happened:
            read()
        assert ("opened", str(outside / "canary")) in happened
    with watching(*canaries(outside)) as happened:
        os.utime(outside / "canary")
    assert happened == [("changed", str(outside / "canary"))]


def facts(folder: Path) -> dict[str, Any]:
    listed: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["tables"]["pieces"]
    return {name: listed[name] for name in ("rows", "nbytes", "crc")}


PIECES = {"tile": pa.int64(), "key": pa.int64(), "label": pa.uint32(), "area": pa.int64()}


def files_below(*places: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", ["tiles", "cuts", MANIFEST, JOB, "segments", "tile"])
def test_links_do_not_lead_writers_out_of_the_folder(tmp_path: Path, folder: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.iid").write_bytes(b"not yours")
    (outside / "segments-0123456789abcdef.parquet").write_bytes(b"not yours")
    if link in ("tiles", "cuts"):
        if (folder / link).exists():
            shutil.copytree(folder / link, outside, dirs_exist_ok=True)
            shutil.rmtree(folder / link)
        (folder / link).symlink_to(outside)
    else:
        path = {"segments": json.loads((folder / MANIFEST).read_text())["tables"]["segments"]["path"]}.get(link, link)
        path = "tiles/r0000000_c0000000.iid" if link == "tile" else path
        shutil.move(folder / path, outside / "moved")
        (folder / path).symlink_to(outside / "moved")
    held = files_below(outside)
    for write in (
        lambda: iid_dask.decide(folder, iid_dask.Touch(min_share=0.99)).close(),
        lambda: iid_dask.undo(folder, segments=[0]).close(),
        lambda: iid_dask.write_tile(folder, 2 * LABELS[:25, :25], (0, 0)),
        lambda: iid_dask.finish(folder).close(),
    ):
        try:
            write()
        except (iid_dask.IIDError, OSError):
            continue
        finally:
            assert files_below(outside) == held


# --- tables -----------------------------------------------------------------------------------------------------


def put_value(*where: Any) -> Callable[[dict[str, Any]], None]:
    """Return what puts a value, the last, at a place of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        *path, name, value = where
        for step in path:
            manifest = manifest[step]
        manifest[name] = value

    return change


def drop(*where: str) -> Callable[[dict[str, Any]], None]:
    """Return what takes a field out of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        *path, name = where
        for step in path:
            manifest = manifest[step]
        del manifest[name]

    return change


LISTED = "an object with path, rows, nbytes and crc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_value("tables", "seams", None), f"table seams None, expected {LISTED}"),
        (put_value("tables", "seams", 5), f"table seams 5, expected {LISTED}"),
        (put_value("tables", "seams", {}), rf"table seams \{{\}}, expected {LISTED}"),
        (put_value("tables", "seams", "path", 5), f"table seams .*'path': 5.*, expected {LISTED}"),
        (drop("tables", "seams", "nbytes"), f"table seams .*, expected {LISTED}"),
        (put_value("tables", "entries", "crc", "0"), f"table entries .*, expected {LISTED}"),
        (put_value("tables", "entry_members", []), rf"table entry_members \[\], expected {LISTED}"),
        (put_value("tables", "x" * 10_000, 5), f"table x{{80}} 5, expected {LISTED}"),
        (put_value("tables", "seams", "path", "../a"), r"path '\.\./a', expected a file within the folder"),
    ],
)
def test_every_table_that_is_listed_is_checked(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change_manifest(folder, change)
    with pytest.raises(iid_dask.IIDFormatError, match=rf"manifest: found {message}"):
        iid_dask.open(folder)
    with pytest.raises(iid_dask.IIDFormatError, match=rf"manifest: found {message}"):
        iid_dask.decide(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("tables", "entries"), "no table entries, expected one beside that of seams"),
        (drop("stitch"), "no stitch, expected null or one of label, name, touch, iou"),
        (put_value("stitch", {}), r"stitch \{\}, expected null or one of"),
        (drop("rule"), "no rule, expected null, or a rule's name and options"),
        *[
            (put_value("rule", rule), "rule .*, expected null, or a rule's name and options")
            for rule in (
                5,
                "touch",
                {},
                {"name": []},
                {"name": "other"},
                {"name": "iou", "least": 1},
                {"name": "iou", "min_iou": "1"},
            )
        ],
        (drop("naming"), "no naming, expected an object; finish the mosaic again"),
        (put_value("naming", []), r"naming \[\], expected an object"),
        (put_value("naming", "masks", 0), "naming.masks 0, expected true or false"),
        (drop("naming", "names"), "no naming.names, expected true or false"),
        (put_value("naming", "domain", "0"), "naming.domain '0', expected bytes as hexadecimal digits"),
        (put_value("naming", "domain", "00 1f"), "naming.domain '00 1f', expected bytes as hexadecimal digits"),
        (put_value("naming", "entry_groups", 5), "naming.entry_groups 5, expected a list of names, each once"),
        (put_value("naming", "entry_groups", ["a", "a"]), r"naming.entry_groups \['a', 'a'\], expected a list"),
    ],
)
def test_what_only_deciding_again_needs_is_checked_by_that(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change_manifest(folder, change)
    held = files_below(folder)
    for again in (
        lambda: iid_dask.decide(folder),
        lambda: iid_dask.undo(folder, segments=[0]),
        lambda: iid_dask.open(folder).seams(),
    ):
        with pytest.raises(iid_dask.IIDFormatError, match=rf"mosaic\.json: manifest: found {message}"):
            again()
    assert files_below(folder) == held
    touch_all(folder)


def test_segments_are_counted_by_their_table(folder: Path) -> None:
    change_manifest(folder, drop("counts"))
    with pytest.raises(KeyError, match="no segment 99"):
        iid_dask.undo(folder, segments=[99])


def long_names(table: pa.Table) -> pa.Table:
    """Give a segment an address of 100 MB, which compresses well."""
    names = pa.array([bytes(100 * 2**20), *[b""] * (table.num_rows - 1)], pa.large_binary())
    return table.set_column(table.column_names.index("address"), "address", names)


def test_tables_that_are_far_larger_than_their_files_are_refused(folder: Path) -> None:
    change_table(folder, "segments", long_names, compression="zstd", use_dictionary=False)
    path = folder / json.loads((folder / MANIFEST).read_text())["tables"]["segments"]["path"]
    assert path.stat().st_size < 2**15
    with (
        guarded(),
        iid_dask.open(folder) as mosaic,
        pytest.raises(iid_dask.IIDFormatError, match="bytes of columns in"),
    ):
        mosaic.names()
    assert pq.read_table(path).nbytes > 5_000 * path.stat().st_size  # the control: it would take as much


# --- pickles ----------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def test_arrays_of_objects_are_refused(tmp_path: Path, canary: Path) -> None:
    array = np.empty((2, 2), object)
    array[:] = Bomb(canary)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(TypeError, match=r"a\.npy: found Python objects \(object\).*pickles runs whatever code"):
        as_image(tmp_path / "a.npy")
    with pytest.raises(TypeError, match="found Python objects"):
        iid_dask.to_iid(tmp_path / "a.npy", tmp_path / "out.iid", progress=False)
    mixed = np.zeros((2, 2), [("label", "u4"), ("more", object)])
    mixed["more"] = Bomb(canary)
    np.save(tmp_path / "b.npy", mixed)
    with pytest.raises(TypeError, match="found Python objects"):
        as_image(tmp_path / "b.npy")
    assert not canary.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert canary.exists()  # the control: it was a bomb


def test_archives_of_arrays_are_refused(tmp_path: Path, canary: Path) -> None:
    array = np.empty((2, 2), object)
    array[:] = Bomb(canary)
    np.savez(tmp_path / "a.npz", labels=array)
    with pytest.raises(ValueError, match=r"a\.npz: begins with b'PK.*expected a TIFF, PNG or \.npy"):
        as_image(tmp_path / "a.npz")
    shutil.copy(tmp_path / "a.npz", tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy: begins with b'PK"):
        as_image(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        (tmp_path / "b.npy").write_bytes(archive.read("labels.npy"))
    with pytest.raises(TypeError, match="found Python objects"):
        as_image(tmp_path / "b.npy")
    assert not canary.exists()
    with np.load(tmp_path / "a.npz", allow_pickle=True) as held:
        _ = held["labels"]
    assert canary.exists()


def pickled_zarr(path: Path, canary: Path, change: dict[str, Any]) -> Path:
    """Make an array of integers of version 2, whose one chunk is a pickle, and say so by its codecs."""
    zarr.create_array(path, shape=(4, 4), chunks=(4, 4), dtype="i4", zarr_format=2, filters=None, compressors=None)
    facts = json.loads((path / ".zarray").read_text())
    (path / ".zarray").write_text(json.dumps(facts | change))
    (path / "0.0").write_bytes(pickle.dumps(Bomb(canary)))
    return path


PICKLE = {"id": "pickle", "protocol": 5}
PICKLED: dict[str, dict[str, Any]] = {
    "filter": {"filters": [PICKLE]},
    "compressor": {"compressor": PICKLE},
    "filter before others": {"filters": [PICKLE, {"id": "delta", "dtype": "<i4"}], "compressor": {"id": "zlib"}},
    "filter behind others": {"filters": [{"id": "delta", "dtype": "<i4"}, PICKLE]},
    "of objects": {"filters": [PICKLE], "dtype": "|O", "fill_value": None},
    "two object codecs": {"filters": [{"id": "vlen-bytes"}, PICKLE], "dtype": "|O", "fill_value": ""},
}


@pytest.mark.parametrize("kind", PICKLED)
def test_zarr_arrays_whose_chunks_are_pickles_are_refused(tmp_path: Path, canary: Path, kind: str) -> None:
    path = pickled_zarr(tmp_path / "a.zarr", canary, PICKLED[kind])
    with pytest.raises((TypeError, ValueError), match=r"a\.zarr.*(codec 'pickle'|expected integers)"):
        as_image(path)
    with pytest.raises((TypeError, ValueError), match=r"a\.zarr.*(codec 'pickle'|expected integers)"):
        iid_dask.to_iid(path, tmp_path / "out.iid", progress=False)
    assert not canary.exists()


def test_label_images_and_arrays_whose_chunks_are_pickles_are_refused(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = zarr.open_group(tmp_path / "g.zarr", mode="w", zarr_format=2)
    scales = [{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "0"}]}]
    group.attrs["multiscales"] = scales
    pickled_zarr(tmp_path / "g.zarr" / "0", canary, PICKLED["filter"])
    with pytest.raises(ValueError, match=r"g\.zarr/0: its chunks are pickles: found the codec 'pickle'"):
        as_image(tmp_path / "g.zarr")
    with pytest.raises((iid_dask.IIDError, ValueError)):
        iid_dask.open_zarr(tmp_path / "g.zarr")
    assert not canary.exists()

    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)  # as older ones do
    array = with_codec(pickled_zarr(tmp_path / "a.zarr", canary, {}))
    with pytest.raises(ValueError, match="its chunks are pickles: found the codec 'pickle', expected one that holds"):
        as_image(array)
    assert not canary.exists()
    array.metadata.compressor.decode((tmp_path / "a.zarr" / "0.0").read_bytes())
    assert canary.exists()  # the control: what its codec would have done


def with_codec(path: Path) -> zarr.Array:
    """Open an array as versions of zarr do that take any codec of numcodecs."""
    array = zarr.open_array(path, mode="r")
    facts = replace(array.metadata, compressor=numcodecs.Pickle())
    return zarr.Array(replace(array._async_array, metadata=facts))


def test_version_3_knows_no_pickles(tmp_path: Path, canary: Path) -> None:
    for number, name in enumerate(("numcodecs.pickle", "pickle")):
        path = tmp_path / f"{number}.zarr"
        zarr.create_array(path, shape=(4, 4), chunks=(4, 4), dtype="i4", filters=None, compressors=None)
        facts = json.loads((path / "zarr.json").read_text())
        facts["codecs"].append({"name": name, "configuration": {"protocol": 5}})
        (path / "zarr.json").write_text(json.dumps(facts))
        (path / "c" / "0").mkdir(parents=True)
        (path / "c" / "0" / "0").write_bytes(pickle.dumps(Bomb(canary)))
        with pytest.raises(ValueError, match=rf"{number}\.zarr: its chunks are pickles"):
            as_image(path)
    assert not canary.exists()


class Unpickled(pa.ExtensionType):
    """A type whose parameters are a pickle, as Arrow had one itself once."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Unpickled:
        pickle.loads(serialized)
        return cls(storage)


def test_types_of_tables_are_not_unpickled(folder: Path, canary: Path) -> None:
    bomb = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(canary)),
    }

    def typed(table: pa.Table) -> pa.Table:
        fields = [pa.field(field.name, field.type, metadata=bomb) for field in table.schema]
        return pa.table(table.columns, schema=pa.schema(fields))

    change_table(folder, "pieces", typed)
    touch_all(folder)  # to who knows no such type, its columns are what is stored
    assert not canary.exists()
    sink = io.BytesIO((folder / json.loads((folder / MANIFEST).read_text())["tables"]["pieces"]["path"]).read_bytes())
    pa.register_extension_type(Unpickled(pa.int64()))
    try:
        _ = pq.ParquetFile(sink).schema_arrow
    finally:
        pa.unregister_extension_type("arrow.py_extension_type")
    assert canary.exists()


# --- names ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Run ``hostile_names.py`` in a process of its own, and see what it left where."""

    def run(how: str) -> dict[str, Any]:
        place = tmp_path_factory.mktemp(how)
        for name in ("target", "warm", "home", "elsewhere"):
            (place / name).mkdir()
        command = [sys.executable, str(HERE / "hostile_names.py"), how, str(place)]
        env = {**os.environ, "HOME": str(place / "home"), "DASK_SCHEDULER": "synchronous"}
        child = subprocess.run(command, capture_output=True, text=True, cwd=place / "elsewhere", env=env, check=False)
        assert child.returncode == 0, child.stderr[-3000:]
        left = sorted(str(path.relative_to(place)) for path in place.rglob("*"))
        return {
            **json.loads(child.stdout.splitlines()[-1]),
            "outside": [path for path in left if path.split("/")[0] not in ("target", "warm", "home", "elsewhere")],
            "elsewhere": [path for path in left if path.startswith(("home/", "elsewhere/"))],
        }

    return run


def test_hostile_names_run_nothing_and_write_nowhere_else(work: Callable[..., dict[str, Any]]) -> None:
    done = work("work")
    assert done["names"] >= 60
    assert done["events"] == []
    assert done["outside"] == done["elsewhere"] == []
    assert done["different"] == []
    assert done["compared"] >= 12


def test_what_names_must_not_do_is_noticed(work: Callable[..., dict[str, Any]]) -> None:
    done = work("control")
    said = {event for event, _ in done["events"]}
    wanted = {"exec", "compile", "pickle.find_class", "socket.connect", "os.system", "open", "os.mkdir", "os.rename"}
    assert wanted <= said
    assert done["outside"] == ["escaped", "escaped/moved"]
    assert done["different"] == ["a name that changed"]
