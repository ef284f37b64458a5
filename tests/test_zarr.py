"""Export to Zarr: exact values, layouts, resuming, and what is lost is named."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import nullcontext
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import iid_dask
from iid_dask.export import completion
from iid_dask.export import zarr as export
from iid_dask.export.chunks import joined
from iid_dask.export.completion import chunk_facts
from iid_dask.export.layout import plan_layout
from iid_dask.export.sources import find_raster
from iid_dask.export.store import RECORD, Place, stored_sizes
from iid_dask.export.template import begun

DATA = Path(__file__).parent / "data"
US = iid_dask.sample("us")
NUCLEI = DATA / "nuclei.iid"


def expected(name: str) -> dict[str, np.ndarray]:
    """The arrays that the reference's masks give."""
    with np.load(DATA / f"{name}.expected.npz") as arrays:
        return dict(arrays)


EXPECTED = {name: expected(name) for name in ("us", "nuclei")}


def write(source, store, **options):
    """`to_zarr` without a bar, and without the note that entries overlap."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*covered by more than one entry.*", category=iid_dask.IIDWarning)
        return iid_dask.to_zarr(source, store, progress=False, **options)


def chunk_files(store: Path, name: str = "label") -> list[Path]:
    return sorted(path for path in (store / name / "c").rglob("*") if path.is_file())


@pytest.mark.parametrize("chunks", [64, (100, 250), 4096])
@pytest.mark.parametrize("shards", [None, "auto", "twice"])
def test_label_is_exact_in_every_layout(tmp_path, chunks, shards):
    rows, cols = (chunks, chunks) if isinstance(chunks, int) else chunks
    shards = (2 * rows, 2 * cols) if shards == "twice" else shards
    write(US, tmp_path / "us.zarr", chunks=chunks, shards=shards)
    ds = iid_dask.open_zarr(tmp_path / "us.zarr")
    np.testing.assert_array_equal(ds.label.values, EXPECTED["us"]["last"])
    assert iid_dask.check_zarr(tmp_path / "us.zarr") == []


def test_every_variable_options_and_the_table_go_along(tmp_path):
    names = ("label", "mask", "depth", "group_mask", "layers", "color")
    options = {"overlap": "first", "layers": True, "color": True}
    write(US, tmp_path / "us.zarr", variables=names, chunks=200, **options)
    written = iid_dask.open_zarr(tmp_path / "us.zarr")
    with xr.open_dataset(US, engine="iid", **options) as ds:
        for name in ds.variables:
            np.testing.assert_array_equal(written[name].values, ds[name].values, err_msg=str(name))
            assert written[name].dims == ds[name].dims
            assert written[name].dtype == ds[name].dtype or ds[name].dtype == object
        assert written.attrs["iid_metadata"] == ds.attrs["iid_metadata"]
        assert written.label.attrs["overlap"] == "first"
    assert iid_dask.check_zarr(tmp_path / "us.zarr") == []


def test_the_store_alone_answers_label_to_name(tmp_path):
    write(US, tmp_path / "us.zarr")
    ds = xr.open_zarr(tmp_path / "us.zarr")
    label = int(ds.label[300, 500])
    row = int(np.flatnonzero(ds.key.values == label - 1)[0])
    with iid_dask.open(US) as f:
        assert ds.address.values[row].encode() == f[label - 1].address
        assert ds.group.values[ds.in_group.values[:, row]].tolist() == list(f[label - 1].groups)


def test_given_labels_are_in_the_table(tmp_path):
    with iid_dask.open(NUCLEI) as f:
        labels = np.arange(len(f), dtype=np.uint64) + 2**40
    write(NUCLEI, tmp_path / "n.zarr", labels=labels, entries=True)
    ds = iid_dask.open_zarr(tmp_path / "n.zarr")
    expected = EXPECTED["nuclei"]["last"].astype(np.uint64)
    np.testing.assert_array_equal(ds.label.values, np.where(expected, expected + (2**40 - 1), 0))
    np.testing.assert_array_equal(ds.entry_label.values, labels)


@pytest.mark.parametrize("chunked", [True, False])
def test_what_is_written_is_what_the_dataset_holds(tmp_path, chunked):
    with xr.open_dataset(US, engine="iid", chunks={} if chunked else None) as ds:
        ds = ds.chunk(y=333, x=401) if chunked else ds
        datasets = {
            "window": ds.isel(y=slice(100, 450), x=slice(37, 900)),
            "steps": ds.isel(y=slice(None, None, -2), x=slice(3, 900, 7)),
            "points": ds.isel(y=[5, 3, 3, 599], x=slice(0, 50)),
            "arithmetic": ds.assign(label=ds.label.where(ds.label % 3 == 0, 0).astype("uint32")),
            "float": ds.assign(label=ds.label * -0.5),
            "signed": ds.assign(label=ds.label.astype("int32") - 7),
            "transposed": ds.assign(label=ds.label.transpose("x", "y")),
        }
        for name, changed in datasets.items():
            write(changed, tmp_path / f"{name}.zarr", chunks=128)
            written = iid_dask.open_zarr(tmp_path / f"{name}.zarr")
            np.testing.assert_array_equal(written.label.values, changed.label.values, err_msg=name)
            assert iid_dask.check_zarr(tmp_path / f"{name}.zarr") == [], name


def test_an_unmodified_dataset_and_a_window_come_from_the_file():
    with xr.open_dataset(US, engine="iid", chunks={}) as ds:
        assert find_raster(ds.label.variable).origin == (0, 0)
        assert find_raster((ds.label + 0).variable) is None
        assert find_raster(ds.label.isel(y=slice(5, 9)).variable) is None
        assert find_raster(ds.area.variable) is None
    with xr.open_dataset(US, engine="iid") as ds:
        assert find_raster(ds.label.isel(y=slice(5, 9)).isel(y=slice(1, 3), x=slice(7, None)).variable).origin == (6, 7)
        for other in (ds.label.isel(y=3), ds.label.isel(y=[1, 4]), ds.label[::2], ds.label.T, ds.label.load()):
            assert find_raster(other.variable) is None


def test_same_values_as_to_zarr_of_xarray(tmp_path):
    with xr.open_dataset(NUCLEI, engine="iid", chunks={}) as ds:
        ds.to_zarr(tmp_path / "plain.zarr", zarr_format=3, consolidated=False)
        write(ds, tmp_path / "ours.zarr", variables=("label", "mask", "depth", "group_mask"))
    plain = xr.open_zarr(tmp_path / "plain.zarr", consolidated=False).load()
    ours = iid_dask.open_zarr(tmp_path / "ours.zarr").load()
    ours.attrs.pop("iid_dask")
    xr.testing.assert_identical(plain, ours)


@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("reduce", ["nearest", "any"])
def test_strided_exports(tmp_path, stride, reduce):
    options = {"stride": stride, "reduce": reduce}
    write(US, tmp_path / "us.zarr", chunks=64, **options)
    with xr.open_dataset(US, engine="iid", **options) as ds:
        np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / "us.zarr").label.values, ds.label.values)


def test_overlapping_pixels_are_counted_recorded_and_said_once(tmp_path):
    expected = int((EXPECTED["us"]["depth"] > 1).sum())
    with pytest.warns(iid_dask.IIDWarning, match=f"label: {expected} pixels are covered by more than one") as said:
        group = iid_dask.to_zarr(US, tmp_path / "us.zarr", chunks=50, progress=False)
    assert len(said) == 1
    assert group.attrs["iid_dask"]["overlapping_pixels"] == {"label": expected}
    with iid_dask.open(US) as f:
        labels = np.arange(1, len(f) + 1)
    group = write(US, tmp_path / "given.zarr", chunks=50, labels=labels)
    assert group.attrs["iid_dask"]["overlapping_pixels"] == {"label": expected}
    group = write(NUCLEI, tmp_path / "n.zarr")
    assert group.attrs["iid_dask"]["overlapping_pixels"] == {"label": 0}


def test_overlaps_are_said_of_the_store_by_its_name_also_when_it_replaces_another(tmp_path):
    write(US, tmp_path / "us.zarr", chunks=256)
    with pytest.warns(iid_dask.IIDWarning, match="/us.zarr: label: [0-9]+ pixels are covered"):
        iid_dask.to_zarr(US, tmp_path / "us.zarr", overwrite=True, progress=False)


def test_empty_chunks_are_not_stored(tmp_path):
    write(DATA / "corner.iid", tmp_path / "c.zarr", stride=16, reduce="any")
    depth = xr.open_zarr(tmp_path / "c.zarr").label.values
    files = {path.relative_to(tmp_path / "c.zarr" / "label").as_posix() for path in chunk_files(tmp_path / "c.zarr")}
    full = {f"c/{i}/{j}" for i in range(4) for j in range(4) if depth[i * 1024 :, j * 1024 :][:1024, :1024].any()}
    assert files == full
    assert 1 <= len(full) < 16
    assert iid_dask.check_zarr(tmp_path / "c.zarr") == []


def test_a_file_without_entries(tmp_path):
    write(DATA / "empty.iid", tmp_path / "e.zarr")
    assert iid_dask.open_zarr(tmp_path / "e.zarr").label.shape == (0, 0)


# --- the record


@pytest.fixture
def store(tmp_path) -> Path:
    write(US, tmp_path / "us.zarr", chunks=100)
    return tmp_path / "us.zarr"


def test_a_lost_chunk_is_named(store):
    assert chunk_files(store)
    for path in chunk_files(store):
        key = path.relative_to(store / "label").as_posix()
        data = path.read_bytes()
        for damage in (path.unlink, lambda path=path: path.write_bytes(b"")):
            damage()
            with pytest.raises(iid_dask.IIDStoreError, match=f"label: chunk {key} with .* labelled pixels is"):
                iid_dask.open_zarr(store)
            (defect,) = iid_dask.check_zarr(store)
            assert key in str(defect)
            path.write_bytes(data)
    assert iid_dask.check_zarr(store) == []


def test_partial_reads_a_lost_chunk_as_background(store):
    chunk_files(store)[7].unlink()
    ds = iid_dask.open_zarr(store, partial=True)
    assert (ds.label.values != EXPECTED["us"]["last"]).any()


def test_exchanged_old_and_damaged_chunks_are_found(store):
    first, second = chunk_files(store)[10:12]
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    found = [str(defect) for defect in iid_dask.check_zarr(store)]
    assert len(found) == 2
    assert all("as recorded" in line for line in found)
    second.write_bytes(b)
    first.write_bytes(a[: len(a) // 2])
    assert iid_dask.check_zarr(store)
    first.write_bytes(a)
    assert iid_dask.check_zarr(store) == []


def test_a_lost_shard_is_named(tmp_path):
    write(US, tmp_path / "us.zarr", chunks=50, shards=200)
    chunk_files(tmp_path / "us.zarr")[4].unlink()
    with pytest.raises(iid_dask.IIDStoreError, match="label: shard c/"):
        iid_dask.open_zarr(tmp_path / "us.zarr")


def test_other_stores_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        iid_dask.open_zarr(tmp_path / "nothing.zarr")
    xr.Dataset({"a": ("x", np.arange(3))}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(iid_dask.IIDStoreError, match="no completion record"):
        iid_dask.open_zarr(tmp_path / "other.zarr")
    with pytest.raises(FileExistsError, match="to_zarr did not write"):
        write(US, tmp_path / "other.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError):
            write(US, tmp_path / "folder", overwrite=overwrite)
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(FileNotFoundError, match="make it first"):
        write(US, tmp_path / "no" / "us.zarr")


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(1, 17), st.integers(0, 2**32), st.booleans()
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_facts_recorded_while_painting_are_those_of_the_pixels(height, width, rows, cols, seed, overlapping):
    rng = np.random.default_rng(seed)
    source = _random_file(rng, height, width, 12 if overlapping else 1)
    with xr.open_dataset(source, engine="iid", shape=(height, width)) as ds:
        layout = plan_layout(("y", "x"), (height, width), (rows, cols), None)
        raster = find_raster(ds.label.variable)
        for tile in layout.tiles():
            facts = np.zeros((*(part.stop - part.start for part in layout.chunks_of(tile)), 3), np.uint64)
            values = joined(tile, layout, np.uint32, raster.chunks(tile, layout, facts))
            expected = chunk_facts(values, layout)
            np.testing.assert_array_equal(values, ds.label.values[tile])
            np.testing.assert_array_equal(facts[..., :2], expected[..., :2])
            for at in np.ndindex(*facts.shape[:2]):
                place = tuple(
                    slice(t.start + i * c, t.start + (i + 1) * c)
                    for t, i, c in zip(tile, at, layout.chunk, strict=True)
                )
                assert facts[at][2] == (ds.depth.values[place] > 1).sum()


def _random_file(rng, height, width, n) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "random.iid")
        with iid_dask.IIDWriter(path) as w:
            for key in range(n):
                r0, r1 = np.sort(rng.integers(0, height + 1, 2))
                c0, c1 = np.sort(rng.integers(0, width + 1, 2))
                w.add(b"", b"%d" % key, (r0, c0, r1, c1), rng.random((r1 - r0, c1 - c0)) < rng.random())
        return Path(path).read_bytes()


@pytest.mark.parametrize("batch", [1, 500, 2**23])
def test_chunks_are_exact_however_few_bits_are_held_at_once(tmp_path, monkeypatch, batch):
    monkeypatch.setattr("iid_dask.pieces.BATCH", batch)
    group = write(US, tmp_path / "us.zarr", chunks=(300, 400))
    np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / "us.zarr").label.values, EXPECTED["us"]["last"])
    assert iid_dask.check_zarr(tmp_path / "us.zarr") == []
    assert group.attrs["iid_dask"]["overlapping_pixels"] == {"label": int((EXPECTED["us"]["depth"] > 1).sum())}


@pytest.mark.parametrize("codec", ["none", "zstd-3"])
def test_chunks_are_what_zarr_itself_would_store(tmp_path, codec):
    write(US, tmp_path / "us.zarr", chunks=(170, 333), codec=codec)
    array = zarr.open_array(tmp_path / "us.zarr" / "label")
    again = zarr.create_array(
        tmp_path / "again.zarr", data=array[:], chunks=array.chunks, compressors=array.compressors, fill_value=0
    )
    assert again.metadata.codecs == array.metadata.codecs
    ours, theirs = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in (root / "c").rglob("*") if path.is_file()}
        for root in (tmp_path / "us.zarr" / "label", tmp_path / "again.zarr")
    )
    assert ours == theirs


def test_a_store_that_waits_for_its_answers():
    url = f"memory://{uuid.uuid4().hex}.zarr"
    write(US, url, chunks=100)
    np.testing.assert_array_equal(iid_dask.open_zarr(url).label.values, EXPECTED["us"]["last"])
    assert iid_dask.check_zarr(url) == []


def test_facts_differ_when_rows_change_places():
    block = np.arange(64, dtype=np.uint32).reshape(8, 8)
    layout = plan_layout(("y", "x"), (8, 8), 8, None)
    assert (chunk_facts(block, layout) != chunk_facts(block[::-1].copy(), layout)).any()


# --- jobs


def test_no_tile_is_made_twice_and_others_are_refused(tmp_path, monkeypatch):
    made = []
    original = export.Job.write

    def counted(self, tile, block=None):
        made.append((self.variable, str(tile)))
        if len(made) == 5:
            raise OSError("the disk went away")
        return original(self, tile, block)

    monkeypatch.setattr(export.Job, "write", counted)
    monkeypatch.setattr("iid_dask.export.layout.TILE", 100)
    path = tmp_path / "us.zarr"
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(OSError, match="disk went away"):
            write(US, path, chunks=100)
        with pytest.raises(iid_dask.IIDStoreError, match="not complete"):
            iid_dask.open_zarr(path)
        with pytest.raises(iid_dask.IIDStoreError, match="other parameters"):
            write(US, path, chunks=100, overlap="first")
        with pytest.raises(FileExistsError, match="resume=True"):
            write(US, path, chunks=100, resume=False)
        write(US, path, chunks=100)
    assert len(made) == 61  # the fifth failed, and nothing else was made again
    assert len(set(made)) == 60
    np.testing.assert_array_equal(iid_dask.open_zarr(path).label.values, EXPECTED["us"]["last"])


def test_a_changed_source_is_another_job(tmp_path):
    source = tmp_path / "a.iid"
    shutil.copy(NUCLEI, source)
    write(source, tmp_path / "a.zarr")
    write(source, tmp_path / "a.zarr")
    os.utime(source, ns=(1, 1))
    with pytest.raises(iid_dask.IIDStoreError, match="another source"):
        write(source, tmp_path / "a.zarr")


def test_overwriting_keeps_the_old_store_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "n.zarr"
    write(NUCLEI, path)
    before = xr.open_zarr(path).label.values
    monkeypatch.setattr("iid_dask.export.layout.TILE", 64)
    original, calls = export.Job.write, []

    def failing(self, tile, block=None):
        calls.append(tile)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return original(self, tile, block)

    monkeypatch.setattr(export.Job, "write", failing)
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(OSError, match="No space"):
            write(NUCLEI, path, overwrite=True, groups="large", chunks=64)
        np.testing.assert_array_equal(iid_dask.open_zarr(path).label.values, before)
        write(NUCLEI, path, overwrite=True, groups="large", chunks=64)
    assert len(calls) == 65
    assert (iid_dask.open_zarr(path).label.values != before).any()
    assert [p.name for p in tmp_path.iterdir()] == ["n.zarr"]


def test_parts_together_are_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("iid_dask.export.layout.TILE", 100)
    path = tmp_path / "us.zarr"
    for number in (3, 1, 2):
        complete = write(US, path, chunks=100, part=(number, 3)).attrs["iid_dask"]["complete"]
        assert complete == (number == 2)
    np.testing.assert_array_equal(iid_dask.open_zarr(path).label.values, EXPECTED["us"]["last"])
    with pytest.raises(ValueError, match="part"):
        write(US, path, chunks=100, part=(4, 3))


def test_a_template_that_appears_between_two_looks_is_found(tmp_path, monkeypatch):
    iid_dask.to_zarr(DATA / "empty.iid", tmp_path / "us.zarr", progress=False)
    place, look, looks = Place.of(tmp_path / "us.zarr"), Place.group, []

    def group(self, mode):
        looks.append(mode)
        if len(looks) == 1:
            raise FileNotFoundError
        return look(self, mode)

    monkeypatch.setattr(Place, "group", group)
    assert begun(place)["fingerprint"]
    assert len(looks) == 2


def test_parts_that_start_at_once_share_one_template(tmp_path):
    code = (
        "import sys, warnings, iid_dask, iid_dask.export.layout as layout; warnings.simplefilter('ignore');"
        "layout.TILE = 50;"
        "iid_dask.to_zarr(sys.argv[1], sys.argv[2], chunks=50, part=(int(sys.argv[3]), 4), progress=False)"
    )
    store = tmp_path / "us.zarr"
    children = [subprocess.Popen([sys.executable, "-c", code, US, str(store), str(i)]) for i in (1, 2, 3, 4)]
    assert [child.wait(timeout=120) for child in children] == [0] * 4
    np.testing.assert_array_equal(iid_dask.open_zarr(store).label.values, EXPECTED["us"]["last"])
    assert [p.name for p in tmp_path.iterdir()] == ["us.zarr"]


def test_a_killed_run_continues(tmp_path):
    store = tmp_path / "us.zarr"
    code = (
        "import sys, warnings, iid_dask, iid_dask.export.layout as layout; warnings.simplefilter('ignore');"
        "layout.TILE = 40;"
        "iid_dask.to_zarr(sys.argv[1], sys.argv[2], chunks=40, progress=False)"
    )
    command = [sys.executable, "-c", code, US, str(store)]
    kills = 0
    for wait in (0.05, 0.15, 0.3):
        child = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while not (store / RECORD / "label" / "c").exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait(timeout=60)
    assert kills
    subprocess.run(command, check=True, timeout=120)
    np.testing.assert_array_equal(iid_dask.open_zarr(store).label.values, EXPECTED["us"]["last"])
    assert iid_dask.check_zarr(store) == []


@pytest.mark.parametrize("number", [1, 2, 3, 7, 11])
def test_killed_while_it_begins_an_object_store_the_same_call_makes_it(monkeypatch, number):
    store, writes, put = zarr.storage.MemoryStore(), 0, zarr.storage.MemoryStore.set

    async def put_some(self, key, value, *args, **options):
        nonlocal writes
        writes += 1
        if writes == number:
            raise Killed
        await put(self, key, value, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.storage.MemoryStore, "set", put_some)
        with pytest.raises(Killed):
            write(NUCLEI, store)
    if number > 1:
        with pytest.raises(iid_dask.IIDStoreError, match="other parameters"):
            write(NUCLEI, store, overlap="first")
    write(NUCLEI, store)
    np.testing.assert_array_equal(iid_dask.open_zarr(store).label.values, EXPECTED["nuclei"]["last"])


def test_parts_of_an_object_store_are_written_over_an_old_one(tmp_path):
    url = f"memory://{uuid.uuid4()}/us.zarr"
    write(US, url, chunks=128, overlap="first")
    with pytest.raises(iid_dask.IIDStoreError, match="start part 1 first"):
        write(US, url, chunks=128, overwrite=True, part=(2, 2))
    for part in ((1, 2), (2, 2)):
        write(US, url, chunks=128, overwrite=True, part=part)
    np.testing.assert_array_equal(iid_dask.open_zarr(url).label.values, EXPECTED["us"]["last"])


@pytest.mark.parametrize(("left", "resume"), [(0, True), (5, True), (5, "trust")])
def test_a_damaged_record_is_named_and_made_again(tmp_path, monkeypatch, left, resume):
    monkeypatch.setattr("iid_dask.export.layout.TILE", 128)
    store = tmp_path / "us.zarr"
    write(US, store, chunks=128)
    record = store / "iid_record/label/c/2/3/0"
    record.write_bytes(record.read_bytes()[:left])
    with pytest.raises(iid_dask.IIDStoreError, match=r"us.zarr: label: its record cannot be read"):
        iid_dask.open_zarr(store)
    (defect,) = iid_dask.check_zarr(store)
    assert "its record cannot be read" in str(defect)
    write(US, store, chunks=128, resume=resume)
    assert iid_dask.check_zarr(store) == []
    np.testing.assert_array_equal(iid_dask.open_zarr(store).label.values, EXPECTED["us"]["last"])


def test_storage_options_are_for_source_and_store(bucket):
    with open(US, "rb") as file:
        bucket.fs.pipe_file(f"{bucket.name}/us.iid", file.read())
    options = {"storage_options": bucket.storage_options}
    write(bucket.url("us.iid"), bucket.url("us.zarr"), chunks=256, **options)
    found = iid_dask.open_zarr(bucket.url("us.zarr"), **options).label.values
    np.testing.assert_array_equal(found, EXPECTED["us"]["last"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def turn_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("shards", [None, 80])
@pytest.mark.parametrize("whole", [False, True])
def test_what_was_damaged_meanwhile_is_made_again_and_nothing_else(tmp_path, monkeypatch, shards, whole):
    monkeypatch.setattr("iid_dask.export.layout.TILE", 40)
    options = {"chunks": 40, "shards": shards, "codec": "none"}
    calm, store = tmp_path / "calm.zarr", tmp_path / "us.zarr"
    write(US, calm, **options)
    made, real = [], export.Job.write

    def counted(self, number, block=None):
        if not whole and len(made) == 60:
            raise OSError("the power failed")
        made.append(number)
        real(self, number, block)

    monkeypatch.setattr(export.Job, "write", counted)
    with dask.config.set(scheduler="synchronous"):
        with nullcontext() if whole else pytest.raises(OSError, match="power"):
            write(US, store, **options)
        side = shards or 40
        paths = [path for path in chunk_files(store) if path.stat().st_size]
        damaged, cols = set(), -(-1000 // side)
        stray = next(n for n in made if not (store / f"label/c/{n // cols}/{n % cols}").exists())
        (store / f"label/c/{stray // cols}").mkdir(exist_ok=True)
        (store / f"label/c/{stray // cols}/{stray % cols}").write_bytes(b"\xff" * 4 * side**2)
        damaged.add(stray)
        for number, path in enumerate(random.Random(3).sample(paths, 30)):
            row, col = map(int, path.relative_to(store / "label/c").parts)
            damaged.add(row * cols + col)
            (truncate, zero, empty, Path.unlink, turn_a_bit)[number % 5](path)
        done = set(made)
        monkeypatch.setattr(export.Job, "write", real)
        shutil.copytree(store, tmp_path / "trusted.zarr")
        write(US, tmp_path / "trusted.zarr", resume="trust", **options)
        assert len(iid_dask.check_zarr(tmp_path / "trusted.zarr")) >= 6, "the control believes the records"
        again = []
        monkeypatch.setattr(export.Job, "write", lambda job, n, block=None: (again.append(n), real(job, n, block)))
        write(US, store, **options)
    assert set(again) == damaged | (set(range(-(-600 // side) * cols)) - done)
    assert len(again) == len(set(again))
    assert stored_bytes(store) == stored_bytes(calm)


class Killed(BaseException):
    """What no code of ours catches."""


def stored_bytes(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_killed_at_any_write_of_metadata_the_next_call_ends_with_the_same_bytes(tmp_path, monkeypatch):
    write(NUCLEI, tmp_path / "calm.zarr", chunks=256)
    expected = stored_bytes(tmp_path / "calm.zarr")
    replace, left = Path.replace, 0

    def replace_some(self, target):
        nonlocal left
        if Path(target).name == "zarr.json":
            left -= 1
            if left == 0:
                raise Killed
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_some)
    for number in range(1, 1000):
        store = tmp_path / f"{number}.zarr"
        left = number
        try:
            write(NUCLEI, store, chunks=256)
        except Killed:
            left = 0
            write(NUCLEI, store, chunks=256)
            assert stored_bytes(store) == expected, f"killed at write {number}"
        else:
            break
    assert number > 10


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_any_local_scheduler_writes_the_same_bytes(tmp_path, scheduler):
    with dask.config.set(scheduler=scheduler, num_workers=2):
        write(NUCLEI, tmp_path / "n.zarr", chunks=128)
    with dask.config.set(scheduler="synchronous"):
        write(NUCLEI, tmp_path / "twin.zarr", chunks=128)
    ours, twin = (chunk_files(tmp_path / f"{name}.zarr") for name in ("n", "twin"))
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in twin]


def test_a_distributed_client_in_scope_is_used(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        write(US, tmp_path / "us.zarr", chunks=100)
        with xr.open_dataset(US, engine="iid", chunks={}) as ds:
            write(ds.isel(x=slice(0, 700, 3)), tmp_path / "window.zarr", chunks=100)
            expected = ds.label.values[:, 0:700:3]
        assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.task_groups)) >= 0
    np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / "us.zarr").label.values, EXPECTED["us"]["last"])
    np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / "window.zarr").label.values, expected)


def test_a_store_object_and_a_url(tmp_path):
    memory = zarr.storage.MemoryStore()
    write(NUCLEI, memory, chunks=100)
    np.testing.assert_array_equal(iid_dask.open_zarr(memory).label.values, EXPECTED["nuclei"]["last"])
    assert iid_dask.check_zarr(memory) == []
    write(NUCLEI, f"file://{tmp_path}/n.zarr")
    assert (tmp_path / "n.zarr" / "zarr.json").is_file()


def test_the_pipeline_outside_is_left_as_it_was(tmp_path):
    before = zarr.config.get("codec_pipeline.path")
    write(NUCLEI, tmp_path / "n.zarr")
    assert zarr.config.get("codec_pipeline.path") == before


def test_a_bar_is_shown_on_stderr(tmp_path, capsys):
    iid_dask.to_zarr(NUCLEI, tmp_path / "n.zarr", progress=True)
    out, err = capsys.readouterr()
    assert "n.zarr" in err
    assert not out


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"variables": ()}, ValueError, "at least one"),
        ({"variables": ("nix",)}, KeyError, "no variable 'nix'"),
        ({"variables": ("area",)}, ValueError, "expected y and x"),
        ({"chunks": 0}, ValueError, "chunks = 0"),
        ({"chunks": (1, 2, 3)}, ValueError, "rows and columns"),
        ({"shards": 100}, ValueError, "whole number of chunks"),
        ({"shards": "many"}, ValueError, "'auto', None"),
        ({"codec": "zip"}, ValueError, "'zstd-1' to 'zstd-22'"),
        ({"codec": "zstd-99"}, ValueError, "'zstd-1' to 'zstd-22'"),
        ({"part": (0, 3)}, ValueError, "part"),
        ({"resume": "x"}, ValueError, "resume = 'x'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        write(NUCLEI, tmp_path / "n.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_options_of_opening_do_not_go_with_a_dataset(tmp_path):
    with xr.open_dataset(NUCLEI, engine="iid") as ds, pytest.raises(TypeError, match="stride"):
        write(ds, tmp_path / "n.zarr", stride=2)


@given(
    st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.sampled_from([None, "auto", 1, 2, 3]),
)
@settings(max_examples=150, deadline=None)
def test_tiles_cover_the_array_once_and_share_no_stored_object(shape, chunks, shards):
    if isinstance(shards, int):
        shards = (chunks[0] * shards, chunks[1] * shards)
    layout = plan_layout(("y", "x"), shape, chunks, shards)
    unit = layout.shard or layout.chunk
    objects = set()
    pixels = 0
    for tile in layout.tiles():
        assert all(
            s.start % u == 0 and (s.stop % u == 0 or s.stop == n) for s, u, n in zip(tile, unit, shape, strict=True)
        )
        held = (
            {
                (i, j)
                for i in range(tile[0].start // unit[0], -(-tile[0].stop // unit[0]))
                for j in range(tile[1].start // unit[1], -(-tile[1].stop // unit[1]))
            }
            if len(list(layout.tiles())) > 1 and unit[0] * unit[1] > 2000
            else {(tile[0].start, tile[1].start)}
        )
        assert not held & objects
        objects |= held
        pixels += (tile[0].stop - tile[0].start) * (tile[1].stop - tile[1].start)
    assert pixels == shape[0] * shape[1]


def test_record_is_documented_as_written(store):
    record = np.asarray(Place.of(store).group("r")[f"{RECORD}/label"][...])
    expected = EXPECTED["us"]["last"]
    for at in np.ndindex(*record.shape[:2]):
        part = tuple(slice(i * 100, (i + 1) * 100) for i in at)
        assert record[at][0] == (expected[part] > 0).sum() + 1
        assert record[at][2] == (EXPECTED["us"]["depth"][part] > 1).sum()
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]["iid_dask"]
    assert attributes["complete"]
    assert da.from_zarr(str(store / "label")).chunksize == (100, 100)


# --- what must not happen


def test_values_that_a_decoder_changes_are_written_changed(tmp_path):
    with xr.open_dataset(NUCLEI, engine="iid") as ds:
        ds = ds[["label"]]
        ds.label.attrs["scale_factor"] = 2.0
        ds = xr.decode_cf(ds)
        write(ds, tmp_path / "n.zarr")
        np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / "n.zarr").label.values, ds.label.values)
    assert ds.label.max() == 2 * EXPECTED["nuclei"]["last"].max()
    assert iid_dask.check_zarr(tmp_path / "n.zarr") == []


def test_a_store_in_memory_keeps_no_memory_of_ours(monkeypatch):
    monkeypatch.setattr("iid_dask.export.layout.TILE", 128)
    memory = zarr.storage.MemoryStore()
    with dask.config.set(scheduler="synchronous"):
        write(NUCLEI, memory, codec="none", chunks=128)
    np.testing.assert_array_equal(iid_dask.open_zarr(memory).label.values, EXPECTED["nuclei"]["last"])


def test_tiles_that_are_written_out_of_sight_are_an_error():
    with (
        dask.config.set(scheduler="processes", num_workers=1),
        pytest.raises(iid_dask.IIDStoreError, match="does not see"),
    ):
        write(NUCLEI, zarr.storage.MemoryStore())


def test_overwriting_with_other_data_under_the_same_name_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("iid_dask.export.layout.TILE", 8)
    value, fail = [1], [False]

    def block(info):
        if fail[0] and info[0]["chunk-location"] == (1, 0):
            raise OSError("the disk went away")
        return np.full((8, 8), value[0], np.uint32)

    def dataset():
        array = da.map_blocks(
            lambda block_info=None: block({0: block_info[None]}), chunks=((8, 8), (8,)), dtype="u4", name="fixed"
        )
        return xr.Dataset({"label": (("y", "x"), array)})

    with dask.config.set(scheduler="synchronous"):
        write(dataset(), tmp_path / "s.zarr", chunks=8)
        value[0], fail[0] = 2, True
        with pytest.raises(OSError, match="went away"):
            write(dataset(), tmp_path / "s.zarr", chunks=8, overwrite=True)
        value[0], fail[0] = 3, False
        write(dataset(), tmp_path / "s.zarr", chunks=8, overwrite=True)
    assert np.unique(iid_dask.open_zarr(tmp_path / "s.zarr").label.values).tolist() == [3]


def test_overwriting_in_parts_and_by_two_at_once_leaves_one_whole_store(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr("iid_dask.export.layout.TILE", 128)
    path = tmp_path / "n.zarr"
    for number in (1, 2, 3):
        write(NUCLEI, path, chunks=128, part=(number, 3), overwrite=True)
    np.testing.assert_array_equal(iid_dask.open_zarr(path).label.values, EXPECTED["nuclei"]["last"])
    for number in (1, 2):
        write(NUCLEI, path, chunks=128, part=(number, 2), overwrite=True, overlap="first")
    np.testing.assert_array_equal(iid_dask.open_zarr(path).label.values, EXPECTED["nuclei"]["first"])

    def overwrite(overlap):
        try:
            iid_dask.to_zarr(NUCLEI, path, overwrite=True, overlap=overlap, progress=False)
        except iid_dask.IIDStoreError as error:
            return str(error)
        return "written"

    for _ in range(5):
        with dask.config.set(scheduler="synchronous"), ThreadPoolExecutor(2) as pool:
            said = list(pool.map(overwrite, ("first", "last")))
        assert "written" in said
        assert all(words == "written" or "another job is at work on it: to_zarr" in words for words in said)
        assert iid_dask.check_zarr(path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["n.zarr"]


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    write(NUCLEI, tmp_path / "disk" / "n.zarr")
    (tmp_path / "n.zarr").symlink_to(tmp_path / "disk" / "n.zarr")
    write(NUCLEI, tmp_path / "n.zarr", overwrite=True, groups="large")
    assert (tmp_path / "n.zarr").is_symlink()
    assert iid_dask.check_zarr(tmp_path / "disk" / "n.zarr") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "n.zarr"]


def test_a_store_that_is_still_read_is_not_removed(tmp_path):
    write(NUCLEI, tmp_path / "n.zarr")
    source = iid_dask.open_zarr(tmp_path / "n.zarr")
    write(source[["label"]] * 2, zarr.storage.LocalStore(tmp_path / "n.zarr"), overwrite=True)
    doubled = iid_dask.open_zarr(tmp_path / "n.zarr").label.values
    np.testing.assert_array_equal(doubled, 2 * EXPECTED["nuclei"]["last"])
    memory = zarr.storage.MemoryStore()
    write(NUCLEI, memory)
    with pytest.raises(ValueError, match="write to another place"):
        write(iid_dask.open_zarr(memory)[["label"]] * 2, memory, overwrite=True)


def test_lost_records_arrays_and_columns_are_named(store):
    shutil.copytree(store, backup := store.with_name("backup.zarr"))

    def damage(*parts):
        shutil.rmtree(store)
        shutil.copytree(backup, store)
        for part in parts:
            shutil.rmtree(store / part)
        with pytest.raises(iid_dask.IIDStoreError) as opened:
            iid_dask.open_zarr(store)
        (*_, last) = iid_dask.check_zarr(store)
        return str(opened.value), str(last)

    for words in damage(f"{RECORD}/label/c", "label/c"):
        assert "the record of chunk" in words
    for words in damage("label", RECORD):
        assert "label" in words
        assert "missing" in words
    for words in damage("address/c"):
        assert "address" in words
        assert "as recorded" in words


def test_a_row_in_another_order_is_found(tmp_path):
    write(US, tmp_path / "us.zarr")
    array = zarr.open_array(tmp_path / "us.zarr" / "label", mode="r+")
    array[:] = np.sort(array[:], axis=1)
    (defect,) = iid_dask.check_zarr(tmp_path / "us.zarr")
    assert "checksum" in str(defect)


def test_a_changed_table_or_attribute_is_another_job(tmp_path):
    with xr.open_dataset(NUCLEI, engine="iid") as ds:
        write(ds, tmp_path / "n.zarr")
        write(ds, tmp_path / "n.zarr")
        changed = ds.copy()
        changed.label.attrs["note"] = np.float32(1)
        for other in (ds.assign(area=ds.area * 2), ds.assign(cls=("entry", np.arange(125))), changed):
            with pytest.raises(iid_dask.IIDStoreError, match="other parameters"):
                write(other, tmp_path / "n.zarr")
        write(changed, tmp_path / "m.zarr")
    assert iid_dask.open_zarr(tmp_path / "m.zarr").label.attrs["note"] == 1


def test_coordinates_go_along(tmp_path):
    with xr.open_dataset(NUCLEI, engine="iid") as ds:
        ds = ds.assign_coords(y=np.arange(512) * 0.5, x=np.arange(512), lat=("y", np.arange(512.0)))
        window = ds.isel(y=slice(100, 300))
        write(window, tmp_path / "n.zarr", chunks=np.int64(64))
        written = iid_dask.open_zarr(tmp_path / "n.zarr")
        for name in ("y", "x", "lat", "label"):
            np.testing.assert_array_equal(written[name].values, window[name].values)
        assert written.attrs["iid_dask"]["origin"] == {"label": [100, 0]}
        with pytest.raises(ValueError, match="drop it by drop_vars"):
            write(ds.assign_coords(lon=(("y", "x"), np.zeros((512, 512)))), tmp_path / "o.zarr")


def test_overlaps_that_are_not_known_are_recorded_so(tmp_path):
    with xr.open_dataset(US, engine="iid", chunks={}, color=True) as ds:
        group = write(ds.isel(y=slice(1, None)), tmp_path / "window.zarr")
        assert group.attrs["iid_dask"]["overlapping_pixels"] == {"label": None}
        assert group.attrs["iid_dask"]["labels"] == {"label": "key"}
        group = write(ds, tmp_path / "color.zarr", variables=("color", "mask"))
        expected = int((EXPECTED["us"]["depth"] > 1).sum())
        assert group.attrs["iid_dask"]["overlapping_pixels"] == {"color": expected, "mask": 0}


def test_a_store_that_may_not_be_written_is_checked(store):
    read_only = zarr.storage.LocalStore(store, read_only=True)
    assert iid_dask.check_zarr(read_only) == []
    assert iid_dask.open_zarr(read_only).label.shape == (600, 1000)


@pytest.mark.parametrize("slab", [1, 2, 5, 6, 7, 1000])
def test_a_record_is_read_whole_however_few_of_its_chunks_are_held_at_once(monkeypatch, slab):
    monkeypatch.setattr(completion, "SLAB", slab)
    values = np.random.default_rng(slab).integers(0, 9, (3, 7, 5, 3), np.uint64)
    array = zarr.create_array({}, data=values, chunks=(1, 2, 2, 3))
    found, most = np.zeros_like(values), 0
    for at, facts in completion.record_slabs(array):
        assert not found[at].any() or not facts.any()
        found[at] += facts
        most = max(most, facts.size // (2 * 2 * 3))
    assert np.array_equal(found, values)
    assert most <= slab


@pytest.mark.parametrize("kind", ["folder", "memory", "url"])
def test_sizes_are_those_of_the_stored_objects(tmp_path, kind):
    place = {"folder": str(tmp_path / "a"), "memory": zarr.storage.MemoryStore(), "url": f"memory://{uuid.uuid4()}/a"}
    group = zarr.open_group(place[kind], mode="w")
    group.create_array("b/c", data=np.eye(5, dtype="u1"), chunks=(2, 2), compressors=None)
    group.create_array("b/cc", data=np.eye(5, dtype="u1"), chunks=(2, 2), compressors=None)
    kept = {"c/0/0", "c/1/1", "c/2/2"}
    assert stored_sizes(group, "b/c") == dict.fromkeys(kept, 4)
    assert stored_sizes(group["b"], "c") == dict.fromkeys(kept, 4)
    assert stored_sizes(group, "none") == {}
