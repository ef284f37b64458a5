"""What hostile bytes are fed to: by the fuzzer of ``benchmarks/fuzz.py``, and by the tests that replay its finds.

A target takes any bytes and says how far they got. `examine` holds it to what is promised of all of them: nothing but
an IIDError comes out, within a second, in little memory, with few warnings; and a file that checks clean is what a
slow twin makes of it.
"""

from __future__ import annotations

import io
import json
import resource
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import make_malformed as corpus
import numpy as np
import pyarrow.parquet as pq

import iid_dask
from iid_dask import BBox, raster
from iid_dask.format.check import file_defects
from iid_dask.format.source import BytesSource
from iid_dask.mosaic.folder import JOB, MANIFEST, load_job

DATA = Path(__file__).parent / "data"
CORPUS = DATA / "fuzz"
"""Inputs that once failed, and inputs that reach much: a folder a target."""

SECONDS = 1.0
WARNINGS = 10
GROWTH = 256 * 2**20
"""Bytes that one input may take; what the loaded modules take is there before."""

LIMITS = iid_dask.Limits(max_decoded_bytes=2**22)
STATUS = Path("/proc/self/status")

COLUMNS = ("boxes", "areas", "first_region", "region_boxes", "region_bits")
"""What an index tells of segments."""

SIDE = 64
"""Rows and columns of the window that is painted."""


@dataclass(frozen=True)
class Target:
    """One thing that reads bytes.

    Attributes
    ----------
    run
        Reads them, and returns how far that got.
    seeds
        Makes sound inputs.
    """

    run: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]


def memory(field: str) -> int:
    """Return bytes of this process's memory: now ("VmRSS"), or the most that it had since `forget_peak` ("VmHWM")."""
    if not STATUS.exists():  # no Linux: the most that it ever had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with STATUS.open() as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def forget_peak() -> None:
    """Let the peak begin anew."""
    if STATUS.exists():
        with STATUS.with_name("clear_refs").open("w") as file:
            file.write("5")


@contextmanager
def guarded(seconds: float = SECONDS) -> Iterator[None]:
    """Fail for work that takes long, much memory, or warns of anything but the data, or too often."""
    forget_peak()
    before, start = memory("VmRSS"), time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    spent = time.process_time() - start  # of this process: others take of the clock's time
    grown = memory("VmHWM") - before
    foreign = [warning for warning in said if not issubclass(warning.category, iid_dask.IIDWarning)]
    assert not foreign, f"a warning that is none of ours: {foreign[0]}"
    assert len(said) <= WARNINGS, f"{len(said)} warnings, the last: {said[-1].message}"
    assert grown <= GROWTH, f"{grown / 2**20:.0f} MiB"
    assert spent <= seconds, f"{spent:.1f} s"


def examine(target: Target, data: bytes) -> str:
    """Feed bytes to a target; return how far they got, or fail."""
    with guarded():
        return target.run(data)


# --- files ------------------------------------------------------------------------------------------------------


def paint(reader: iid_dask.IIDReader) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and depth of the first window."""
    view, window = raster.View(reader, (SIDE, SIDE)), raster.Window(BBox(0, 0, SIDE, SIDE))
    return raster.label(view, window), raster.depth(view, window)


def read_file(data: bytes) -> str:
    """Open, ask and paint a file; compare one that checks clean with its twin, and its index with its segments."""
    reached = "open"
    try:
        with iid_dask.open(data, limits=LIMITS) as reader:
            reached = "columns"
            columns, _ = reader.columns, (reader.shape, reader.groups, reader.entry_keys)
            reached = "names"
            reader.names()
            reached = "check"
            sound = reader.check() == []
            reached = "paint"
            painted = paint(reader)
            reached = "queries"
            asked = ask(reader)
            reached = "masks"
            masks = {key: reader[key].mask() for key in islice(reader, 4)}
            if sound:
                compare_with_twin(reader, painted, masks)
    except iid_dask.IIDError as error:
        if reached == "open" and not file_defects(BytesSource(data), LIMITS):
            raise AssertionError("refused, but nothing is said to be wrong") from error
        return reached
    if reader.index is None:
        return "sound" if sound else "unsound"
    with iid_dask.open(data[: reader.index.offset], limits=LIMITS) as plain:
        # What an index told must be what the segments say: for every mask that was given, for all of a sound file.
        for key, mask in masks.items():
            with suppress(*([] if sound else [iid_dask.IIDError])):  # another segment may be damaged
                assert np.array_equal(plain[key].mask(), mask), f"mask {key} differs without the index"
        if sound:
            assert ask(plain) == asked, "other answers without the index"
            assert all(map(np.array_equal, paint(plain), painted)), "other pixels without the index"
            for field in COLUMNS:
                assert np.array_equal(getattr(columns, field), getattr(plain.columns, field)), f"other {field}"
    return "sound with index" if sound else "unsound with index"


def ask(reader: iid_dask.IIDReader) -> list[list[int]]:
    """Answer each kind of question."""
    names = list(reader.groups)[:1]
    return [
        keys.tolist()
        for keys in (
            reader.at(5, 4),
            reader.at([0, 2, 70_000], [1, 3, 5])[0],
            reader.region((1, 1, 7, 9)),
            reader.region((0, 0, 2, 2), exact=False),
            reader.look_for(b"1"),
            reader.filter(area=(1, 6), groups=names or None),
        )
    ]


def compare_with_twin(
    reader: iid_dask.IIDReader, painted: tuple[np.ndarray, np.ndarray], masks: dict[int, np.ndarray]
) -> None:
    """Compare with masks that are put together region by region, pixel by pixel."""
    canvas = {key: np.zeros((SIDE, SIDE), bool) for key in islice(reader, 64)}
    for key, pixels in canvas.items():
        entry = reader[key]
        whole = np.zeros(entry.bbox.shape, bool) if key in masks else None
        area = 0
        for region in entry.regions:
            bits = np.unpackbits(np.frombuffer(region.bits, np.uint8))
            r0, c0, r1, c1 = region.bbox
            mask = bits[: (r1 - r0) * (c1 - c0)].reshape(r1 - r0, c1 - c0).astype(bool)
            area += int(mask.sum())
            clipped = mask[: max(0, SIDE - r0), : max(0, SIDE - c0)]
            pixels[r0 : r0 + clipped.shape[0], c0 : c0 + clipped.shape[1]] |= clipped
            if whole is not None:
                top, left = entry.bbox.min_row, entry.bbox.min_col
                whole[r0 - top : r1 - top, c0 - left : c1 - left] |= mask
        assert area == entry.area, f"area of entry {key}"
        if whole is not None:
            assert np.array_equal(whole, masks[key]), f"mask of entry {key}"
    if len(canvas) == len(reader):
        label, depth = (np.zeros((SIDE, SIDE), np.int64) for _ in range(2))
        for key, pixels in canvas.items():
            label[pixels] = key + 1
            depth += pixels
        assert np.array_equal(painted[0], label), "labels"
        assert np.array_equal(painted[1], depth), "depth"


def file_seeds() -> list[bytes]:
    """Sound files, small ones and odd ones."""
    unusual = corpus.unusual()
    odd = [unusual[name][1] for name in ("segments-swapped", "row-removed", "sections-apart")]
    return [corpus.BASE, (DATA / "edge.iid").read_bytes(), (DATA / "empty.iid").read_bytes(), *odd]


def indexed_seeds() -> list[bytes]:
    """Files with an index."""
    found = [corpus.INDEXED]
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(file_seeds()):
            path = Path(folder) / f"{number}.iid"
            path.write_bytes(data)
            try:
                iid_dask.add_index(path)
            except iid_dask.IIDError:
                continue
            found.append(path.read_bytes())
    return found


# --- mosaics ----------------------------------------------------------------------------------------------------

TABLES = ("tiles", "segments", "pieces", "members")


def make_mosaic(folder: Path) -> None:
    """Make the mosaic that targets read; it is kept with the corpus, whose manifests name its tables' checksums."""
    labels = np.zeros((40, 50), np.uint8)
    labels[2:30, 3:20], labels[8:36, 24:48], labels[31:39, 2:22] = 1, 2, 3
    job = iid_dask.prepare(folder, labels.shape, tile=25, stitch="touch", metadata={"note": ["ü", 1.5, None]})
    assert job.grid is not None
    for tile in job.grid:
        iid_dask.write_tile(folder, labels[tile.box.slices], tile.origin, domain=b"d")
    iid_dask.finish(folder, groups={1: ["odd", "first"], 3: "odd"}).close()


@cache
def mosaic_folder() -> Path:
    """Copy the mosaic to where targets may spoil it, as long as they mend it."""
    return Path(shutil.copytree(CORPUS / "mosaic", Path(_scratch().name) / "mosaic"))


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="iid_dask-fuzz-", dir=shared if shared.is_dir() else None)


@cache
def _sound(name: str) -> bytes:
    return (mosaic_folder() / name).read_bytes()


def read_mosaic(folder: Path) -> str:
    """Open a mosaic, and read all of its tables and some pixels."""
    reached = "open"
    try:
        with iid_dask.open(folder, limits=LIMITS) as mosaic:
            reached = "columns"
            _ = mosaic.groups, mosaic.columns.boxes, mosaic.columns.areas, mosaic.lut
            reached = "names"
            mosaic.names()
            reached = "paint"
            paint(mosaic)
            ask(mosaic)
            reached = "masks"
            for key in islice(mosaic, 4):
                mosaic[key].mask()
            reached = "check"
            reached = "unsound" if mosaic.check() else "sound"
    except iid_dask.IIDError:
        return reached
    return reached


def read_manifest(data: bytes) -> str:
    """Read a mosaic through a manifest."""
    folder = mosaic_folder()
    held = _sound(MANIFEST)
    (folder / MANIFEST).write_bytes(data)
    try:
        return read_mosaic(folder)
    finally:
        (folder / MANIFEST).write_bytes(held)


def manifest_seeds() -> list[bytes]:
    """The manifest of the mosaic."""
    mosaic_folder()
    return [_sound(MANIFEST)]


def read_tables(data: bytes) -> str:
    """Read a mosaic one of whose tables is ``data[1:]``, as a manifest with the right checksum lists it.

    The first byte says which; with its highest bit the manifest lists as many rows as the file says it has.
    """
    if not data:
        return "nothing"
    name, told, table = TABLES[data[0] % 4], data[0] >= 128, data[1:]
    folder = mosaic_folder()
    manifest = json.loads(_sound(MANIFEST))
    listed = manifest["tables"][name]
    rows = listed["rows"]
    if told:
        try:
            rows = pq.read_metadata(io.BytesIO(table)).num_rows
        except Exception as error:  # a fault of pyarrow's own is not ours to judge
            return f"no metadata: {type(error).__name__}"
    path = folder / "hostile.parquet"
    path.write_bytes(table)
    listed |= {"path": path.name, "nbytes": len(table), "crc": zlib.crc32(table), "rows": rows}
    return read_manifest(json.dumps(manifest).encode())


def table_seeds() -> list[bytes]:
    """The tables of the mosaic, each with a byte that says which."""
    tables = json.loads(_sound(MANIFEST) if mosaic_folder() else b"")["tables"]
    found = []
    for number, name in enumerate(TABLES):
        data = _sound(tables[name]["path"])
        found += [bytes([number]) + data, bytes([number + 128]) + data]
    return found


def read_job(data: bytes) -> str:
    """Read a job, ask it what tiles belong to it, and finish its mosaic, whose tiles are another job's."""
    folder = mosaic_folder()
    held = _sound(JOB)
    sound = load_job(folder)
    (folder / JOB).write_bytes(data)
    reached = "open"
    try:
        job = load_job(folder)
        reached = "read"
        for tile in islice(job.grid or (), 3):
            assert job.grid is not None
            assert job.grid.find(tile.origin) == tile
        if job != sound:
            iid_dask.finish(folder)
            raise AssertionError("tiles of another job were taken")
        return "sound"
    except iid_dask.IIDError:
        return reached
    finally:
        (folder / JOB).write_bytes(held)


def job_seeds() -> list[bytes]:
    """The job of the mosaic, and others."""
    mosaic_folder()
    other = json.loads(_sound(JOB)) | {"tile": None, "stitch": "name", "places": [[0, 0], [3, 7]]}
    return [_sound(JOB), json.dumps(other).encode()]


TARGETS = {
    "file": Target(read_file, file_seeds),
    "index": Target(read_file, indexed_seeds),
    "manifest": Target(read_manifest, manifest_seeds),
    "tables": Target(read_tables, table_seeds),
    "job": Target(read_job, job_seeds),
}
