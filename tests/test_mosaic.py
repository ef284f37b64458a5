"""A mosaic answers whatever is asked as the ordinary file with the same masks does; hostile ones are refused."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from mosaics import JOB, Scene, random_pair, write_file, write_mosaic
from twins import overlaps, reduces, seeds, strides

import iid_dask
from iid_dask import BBox, IIDChangedError, IIDError, IIDFormatError, IIDStoreError, IIDWriter
from iid_dask.format import source as source_module
from iid_dask.mosaic import files as files_module
from iid_dask.mosaic.folder import MANIFEST
from iid_dask.mosaic.reader import Mosaic, open_mosaic
from iid_dask.mosaic.tables import SCHEMAS, read_table, write_table

few = settings(max_examples=6, deadline=None)
WIDE = ("area", "min_row", "min_col", "max_row", "max_col")


@pytest.fixture(autouse=True, scope="module")
def _unsynced():
    """Tiles by the hundred: nobody pulls the plug between two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@contextlib.contextmanager
def pair(seed, **options):
    """A random mosaic and the file that is the same, both open, and their scene."""
    with tempfile.TemporaryDirectory() as folder:
        scene, mosaic, file = random_pair(folder, seed, **options)
        with open_mosaic(mosaic) as of_tiles, iid_dask.open(file) as whole:
            yield scene, of_tiles, whole


def dataset(reader, **options):
    path = reader.name
    return xr.open_dataset(path, engine="iid", **options)


def same(found, expected):
    """Datasets with equal values; a mosaic's boxes and areas are wider."""
    assert list(found.variables) == list(expected.variables)
    assert found.attrs == expected.attrs
    for name, variable in expected.variables.items():
        assert found[name].dims == variable.dims
        assert found[name].dtype == (np.int64 if name in WIDE else variable.dtype), name
        np.testing.assert_array_equal(found[name].values, variable.values, err_msg=name)
        assert found[name].attrs == variable.attrs


# --- arrays -----------------------------------------------------------------------------------------------------


@few
@given(seeds, overlaps, strides, reduces)
def test_every_variable_is_that_of_the_file(seed, overlap, stride, reduce):
    with pair(seed) as (_, mosaic, file):
        options = {"overlap": overlap, "stride": stride, "reduce": reduce, "layers": True, "color": True}
        same(dataset(mosaic, **options), dataset(file, **options))


@few
@given(seeds, st.data())
def test_windows_are_those_of_the_file(seed, data):
    with pair(seed) as (scene, mosaic, file):
        found, expected = dataset(mosaic, chunks={}), dataset(file)
        for _ in range(3):
            where = {}
            for dim, side in zip("yx", scene.shape, strict=True):
                start, stop = sorted(data.draw(st.tuples(st.integers(0, side), st.integers(0, side))))
                where[dim] = slice(start, stop, data.draw(st.sampled_from([None, 1, 2, 3])))
            same(found.isel(where), expected.isel(where))
        points = {
            dim: xr.DataArray([0, side - 1, side // 2], dims="p") for dim, side in zip("yx", scene.shape, strict=True)
        }
        same(found.isel(points), expected.isel(points))


@few
@given(seeds)
def test_selections_keep_the_same_entries(seed):
    with pair(seed) as (scene, mosaic, file):
        areas = sorted(int(mask.sum()) for mask in scene.masks) or [0]
        choices = [{"area": (areas[len(areas) // 2], None)}, {"keys": list(range(0, len(scene.masks), 2))}]
        choices += [{"groups": name} for name in scene.groups] + [{"domains": [name]} for name, _ in scene.names[:2]]
        choices += [{"shape": (scene.shape[0] + 3, scene.shape[1])}]
        for options in choices:
            same(dataset(mosaic, **options), dataset(file, **options))


def test_a_smaller_shape_is_said_and_cut(tmp_path):
    _, mosaic, file = random_pair(tmp_path, 7)
    with pytest.warns(iid_dask.IIDWarning, match=r"mosaic: 7 entries reach beyond the image of 5 by 4"):
        found = xr.open_dataset(mosaic, engine="iid", shape=(5, 4)).load()
    with pytest.warns(iid_dask.IIDWarning, match="7 entries reach beyond"):
        same(found, xr.open_dataset(file, engine="iid", shape=(5, 4)).load())


@few
@given(seeds)
def test_labels_may_be_the_addresses(seed):
    with pair(seed, numbers=True) as (scene, mosaic, file):
        found, expected = (dataset(reader, labels="address") for reader in (mosaic, file))
        assert not len(scene.names) or found.label.dtype in (np.uint64, np.uint32)
        same(found, expected)


def test_pyramids_are_those_of_the_file(tmp_path):
    _, mosaic, file = random_pair(tmp_path, 5)
    found, expected = (xr.open_datatree(path, engine="iid", levels=4, reduce="any") for path in (mosaic, file))
    assert found.attrs == expected.attrs
    for level in range(4):
        same(found[f"{level}"].to_dataset(), expected[f"{level}"].to_dataset())


def test_overlaps_are_refused_where_they_are(tmp_path):
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 3:20, 5:30] = masks[1, 19:25, 28:33] = True
    scene = Scene((30, 40), masks, [(b"", b"a"), (b"", b"b")], {}, {})
    folder = tmp_path / "mosaic"
    folder.mkdir()
    write_mosaic(folder, scene, 1)
    ds = xr.open_dataset(folder, engine="iid", overlap="raise")
    assert ds.label[:19].max() == 1
    with pytest.raises(iid_dask.IIDOverlapError, match=r"2 entries cover the pixel \(row 19, column 28\)"):
        ds.label.load()


@pytest.mark.parametrize(("seed", "overlap"), [(7, "last"), (45, "smallest"), (59, "first")])
@pytest.mark.filterwarnings("ignore:.*covered by more than one entry:iid_dask.IIDWarning")
def test_to_zarr_writes_what_it_writes_of_the_file(tmp_path, seed, overlap):
    _, mosaic, file = random_pair(tmp_path, seed)
    variables = ("label", "depth", "group_mask", "layers")
    for name, path in (("a", mosaic), ("b", file)):
        ds = xr.open_dataset(path, engine="iid", overlap=overlap, layers=True)
        iid_dask.to_zarr(ds, tmp_path / f"{name}.zarr", variables=variables, chunks=16, progress=False)
    found, expected = (xr.open_zarr(tmp_path / f"{name}.zarr", consolidated=False) for name in "ab")
    assert list(found.variables) == list(expected.variables)
    for name in expected.variables:
        np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)


# --- questions --------------------------------------------------------------------------------------------------


@few
@given(seeds, st.data())
def test_queries_are_answered_as_of_the_file(seed, data):
    with pair(seed) as (scene, mosaic, file):
        height, width = scene.shape
        rows, cols = (
            np.array(data.draw(st.lists(st.integers(-2, side + 2), min_size=5, max_size=5))) for side in scene.shape
        )
        for found, expected in zip(mosaic.at(rows, cols), file.at(rows, cols), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(mosaic.at(0, 0), file.at(0, 0))
        for _ in range(3):
            top, left = data.draw(st.integers(-2, height)), data.draw(st.integers(-2, width))
            box = (top, left, top + data.draw(st.integers(0, height)), left + data.draw(st.integers(0, width)))
            for exact in (True, False):
                np.testing.assert_array_equal(mosaic.region(box, exact=exact), file.region(box, exact=exact))
            np.testing.assert_array_equal(mosaic.filter(bbox=box, area=(2, 500)), file.filter(bbox=box, area=(2, 500)))
        assert mosaic.names() == file.names()
        assert mosaic.names([0] * len(scene.names[:1])) == file.names([0] * len(scene.names[:1]))
        for _, address in scene.names[:3]:
            np.testing.assert_array_equal(mosaic.look_for(address), file.look_for(address))
        assert {name: keys.tolist() for name, keys in mosaic.groups.items()} == scene.groups


@few
@given(seeds)
def test_overlaps_and_losses_are_those_of_the_file(seed):
    with pair(seed) as (_, mosaic, file):
        pd.testing.assert_frame_equal(mosaic.overlaps(), file.overlaps())
        pd.testing.assert_frame_equal(
            iid_dask.overlaps(mosaic, blocksize=64).compute().reset_index(drop=True), file.overlaps()
        )
        found, expected = mosaic.flatten_report(), file.flatten_report()
        pd.testing.assert_frame_equal(found.entries, expected.entries)
        pd.testing.assert_frame_equal(found.losses, expected.losses)


@few
@given(seeds)
def test_tables_of_entries_are_those_of_the_file(seed):
    columns = ["key", "domain", "address", *WIDE, "groups", "mask"]
    with pair(seed) as (scene, mosaic, file):
        for found, expected in (
            (mosaic.entries(columns=columns), file.entries(columns=columns)),
            (
                iid_dask.read_entries(mosaic, columns=columns, blocksize=200).compute(),
                iid_dask.read_entries(file, columns=columns).compute(),
            ),
        ):
            assert found["area"].dtype == np.int64
            pd.testing.assert_frame_equal(found, expected.astype({"area": np.int64}))
        pieces = mosaic.entries(columns=["regions"])["regions"].to_numpy()
        assert pieces.dtype == np.uint32
        assert np.array_equal(pieces > 0, scene.masks.any(axis=(1, 2)))


@few
@given(seeds)
def test_measurements_are_those_of_the_file(seed):
    with pair(seed) as (scene, mosaic, file):
        image = np.random.default_rng(seed).integers(0, 2**16, scene.shape, np.uint16)
        properties = ["mean", "sum", "std", "count", "area", "centroid", "bbox", "perimeter", "holes", "eccentricity"]
        found, expected = (iid_dask.measure(r, image, properties, tile=16).compute() for r in (mosaic, file))
        pd.testing.assert_frame_equal(found, expected)


@few
@given(seeds)
def test_entries_have_their_masks(seed):
    with pair(seed) as (scene, mosaic, file):
        assert list(mosaic) == list(file) == list(range(len(scene.masks)))
        for key, (mask, box) in enumerate(zip(scene.masks, scene.boxes(), strict=True)):
            entry = mosaic[key]
            assert (entry.domain, entry.address) == scene.names[key]
            assert (entry.bbox, entry.area, entry.groups) == (box, mask.sum(), file[key].groups)
            np.testing.assert_array_equal(entry.mask(), mask[box.slices])
            assert all(box.intersection(region.bbox) == region.bbox for region in entry.regions)
        with pytest.raises(KeyError, match="no entry"):
            mosaic[len(scene.masks)]


@few
@given(seeds)
def test_the_accessor_answers_in_positions_of_a_window(seed):
    with pair(seed) as (scene, mosaic, file):
        window = {"y": slice(scene.shape[0] // 3, None), "x": slice(scene.shape[1] // 4, None)}
        found, expected = (dataset(reader, chunks={}).isel(window) for reader in (mosaic, file))
        assert isinstance(found.iid.reader, Mosaic)
        np.testing.assert_array_equal(found.iid.at(0, 0), expected.iid.at(0, 0))
        np.testing.assert_array_equal(found.iid.region((0, 0, 9, 9)), expected.iid.region((0, 0, 9, 9)))
        pd.testing.assert_frame_equal(found.iid.overlaps(), expected.iid.overlaps())
        if found.mask.values.any():
            same(found.iid.autocrop(1), expected.iid.autocrop(1))
        keys = list(range(len(scene.masks)))
        np.testing.assert_array_equal(found.iid.masks(keys).values, expected.iid.masks(keys).values)
        wanted = ["key", "address", "area"]
        pd.testing.assert_frame_equal(
            found.iid.entries[wanted].compute(), expected.iid.entries[wanted].compute().astype({"area": np.int64})
        )
        for key in np.unique(expected.label.values)[1:].astype(int) - 1:
            same(found.iid.crop(int(key), margin=2), expected.iid.crop(int(key), margin=2))


@pytest.mark.parametrize("shape", [(0, 0), (3, 5)])
def test_nothing_is_a_mosaic_too(tmp_path, shape):
    scene = Scene(shape, np.zeros((0, *shape), bool), [], {"none": []}, {"note": 1})
    folder = write_mosaic(tmp_path, scene, 0, step=4)
    with open_mosaic(folder) as mosaic:
        assert (len(mosaic), mosaic.shape, mosaic.check(), mosaic.names()) == (0, shape, [], ([], []))
        assert mosaic.region((0, 0, 9, 9)).tolist() == mosaic.at(0, 0).tolist() == []
        assert not len(mosaic.overlaps())
        assert not len(mosaic.entries())
        with pytest.raises(KeyError, match="the file has no entries"):
            mosaic[0]
    ds = xr.open_dataset(folder, engine="iid", layers=True).load()
    assert ds.label.shape == shape
    assert not ds.label.any()


@pytest.mark.parametrize("seed", [7, 45])
def test_as_one_file_it_is_the_file(tmp_path, seed):
    """`consolidate` has its own tests; here, that a mosaic is what it wants."""
    _, folder, file = random_pair(tmp_path, seed, halo=0)
    iid_dask.prepare(tmp_path / "job", (9, 9))
    shutil.copy(tmp_path / "job" / "job.json", folder)
    with open_mosaic(folder) as mosaic:
        mosaic.to_iid(tmp_path / "one.iid")
    assert (tmp_path / "one.iid").read_bytes() == file.read_bytes()


@few
@given(seeds)
def test_a_sound_mosaic_checks_clean(seed):
    with pair(seed) as (_, mosaic, _file):
        assert mosaic.check() == []


# --- far away ---------------------------------------------------------------------------------------------------

FAR = (299_000, 2**31 - 1 - 100)


@few
@given(seeds, overlaps)
def test_far_away_it_is_the_same(seed, overlap):
    with pair(seed, offset=FAR, shape=(300_000, 2**31 - 1)) as (scene, mosaic, file):
        far = {dim: slice(at, at + side) for dim, at, side in zip("yx", FAR, scene.shape, strict=True)}
        options = {"overlap": overlap, "layers": True}
        found, expected = dataset(mosaic, **options).isel(far), dataset(file, **options)
        for name in ("label", "mask", "depth", "layers", *(["group_mask"] if scene.groups else [])):
            np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)
        assert found.attrs["iid_metadata"] == expected.attrs["iid_metadata"]
        moved = np.where(expected["area"].values > 0, FAR[1], 0)
        np.testing.assert_array_equal(found["max_col"].values, expected["max_col"].values + moved)
        rows, cols = (rng_side for rng_side in np.indices(scene.shape).reshape(2, -1)[:, ::7])
        for some, others in zip(mosaic.at(rows + FAR[0], cols + FAR[1]), file.at(rows, cols), strict=True):
            np.testing.assert_array_equal(some, others)
        box = np.array([1, 2, 20, 30])
        for exact in (True, False):
            np.testing.assert_array_equal(
                mosaic.region(box + np.tile(FAR, 2), exact=exact), file.region(box, exact=exact)
            )
        pd.testing.assert_frame_equal(mosaic.overlaps(), file.overlaps())
        pd.testing.assert_frame_equal(mosaic.flatten_report().losses, file.flatten_report().losses)
        shape = ["area", "perimeter", "holes", "eccentricity"]
        pd.testing.assert_frame_equal(*(iid_dask.measure(r, properties=shape).compute() for r in (mosaic, file)))
        assert mosaic.check() == []


def test_many_regions_at_one_place_are_few_pairs_also_far_away(tmp_path):
    """An entry with a crowd of regions, which are merged in memory beside the files."""
    masks = np.zeros((2, 40, 80), bool)
    masks[0, ::2, ::2] = True
    masks[1, :, 10:30] = True
    scene = Scene((40, 80), masks, [(b"", b"a"), (b"", b"b")], {}, {})
    (tmp_path / "mosaic").mkdir()
    mosaic = open_mosaic(write_mosaic(tmp_path / "mosaic", scene, 2, offset=FAR, shape=(300_000, 2**31 - 1)))
    file = iid_dask.open(write_file(tmp_path / "file.iid", scene))
    pd.testing.assert_frame_equal(mosaic.overlaps(), file.overlaps())
    assert mosaic.overlaps()["pixels"].tolist() == [200]


def test_sums_that_may_not_fit_are_refused(tmp_path):
    side = 2_000_000
    mask = np.zeros((2, 2), bool)
    mask[0, 0] = True
    scene = Scene((2, 2), mask[None], [(b"", b"a")], {}, {})
    (tmp_path / "mosaic").mkdir()
    folder = write_mosaic(tmp_path / "mosaic", scene, 2, shape=(side, side))
    change_table(folder, "segments", max_row=[side], max_col=[side])
    with open_mosaic(folder) as mosaic:
        with pytest.raises(
            iid_dask.IIDLimitError, match=r"entry 0: sums over its box .* may not fit 64 bits.*eccentric"
        ):
            iid_dask.measure(mosaic, properties="eccentricity").compute()
        assert iid_dask.measure(mosaic, properties="area").compute()["area"].tolist() == [1]


# --- laziness ---------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """Paths of the files that are opened."""
    paths = []
    init = source_module._Descriptor.__init__

    def counting(self, path):
        paths.append(path)
        init(self, path)

    monkeypatch.setattr(source_module._Descriptor, "__init__", counting)
    return paths


def grid_of_dots(folder, offset):
    """A mosaic of 8 × 8 tiles with a segment in each."""
    masks = np.zeros((64, 64, 64), bool)
    for key in range(64):
        masks[key, key // 8 * 8 + 3, key % 8 * 8 + 3] = True
    scene = Scene((64, 64), masks, [(b"", str(key).encode()) for key in range(64)], {"all": list(range(64))}, {})
    folder.mkdir()

    return write_mosaic(folder, scene, 0, step=8, offset=offset, shape=(300_000, 300_000))


def test_a_window_opens_only_the_tiles_that_it_meets(tmp_path, opened):
    folder = grid_of_dots(tmp_path / "mosaic", (200_000, 250_000))
    opened.clear()
    ds = xr.open_dataset(folder, engine="iid")
    assert [Path(path).name for path in opened] == [MANIFEST]
    window = ds.isel(y=slice(200_009, 200_015), x=slice(250_001, 250_020))
    assert np.unique(window.label.values).tolist() == [0, 9, 10, 11]
    tiles = {Path(path).name for path in opened} - {MANIFEST}
    assert {name[:8] for name in tiles} == {"r0200008"}
    assert {name[9:17] for name in tiles} == {"c0250000", "c0250008", "c0250016"}
    opened.clear()
    assert ds.iid.at(200_011, 250_011).tolist() == [9]
    assert not {Path(path).name for path in opened} - tiles
    assert xr.open_dataset(folder, engine="iid", keys=[9]).area.values.tolist() == [1]
    assert not {Path(path).name for path in opened} - tiles - {MANIFEST}


def test_an_entry_opens_only_its_tiles(tmp_path, opened):
    folder = grid_of_dots(tmp_path / "mosaic", (0, 0))
    with open_mosaic(folder) as mosaic:
        opened.clear()
        assert mosaic[9].bbox == BBox(11, 11, 12, 12)
        assert opened == []
        assert mosaic[9].mask().tolist() == [[True]]
        assert {Path(path).name for path in opened} == {"r0000008_c0000008.iid"}


# --- pickles and changes ----------------------------------------------------------------------------------------


def test_it_travels_as_a_path_and_a_stamp(tmp_path):
    _, folder, _ = random_pair(tmp_path, 5)
    ds = xr.open_dataset(folder, engine="iid", chunks={})
    expected = ds.label.values
    data = pickle.dumps(ds)
    assert len(data) < 60_000
    np.testing.assert_array_equal(pickle.loads(data).label.compute(scheduler="processes", num_workers=2), expected)
    mosaic = open_mosaic(folder)
    twin = pickle.loads(pickle.dumps(mosaic))
    assert type(twin) is Mosaic
    assert twin == mosaic
    assert len(twin) == len(mosaic)
    assert twin.groups.keys() == mosaic.groups.keys()


def test_a_replaced_manifest_is_told(tmp_path):
    _, folder, _ = random_pair(tmp_path, 5)
    mosaic = open_mosaic(folder)
    data = pickle.dumps(mosaic)
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(IIDChangedError, match=r"mosaic\.json: changed since opened; open"):
        mosaic.at(0, 0)
    with pytest.raises(IIDChangedError, match=r"mosaic\.json: changed since opened; open"):
        len(pickle.loads(data))
    manifest.unlink()
    with pytest.raises(IIDChangedError, match=r"mosaic\.json: gone since opened"):
        mosaic.names()


def test_what_opens_as_a_mosaic(tmp_path, monkeypatch):
    _, folder, file = random_pair(tmp_path, 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    for target in (folder, str(folder), folder / MANIFEST, "~/mosaic", f"{folder}/"):
        assert isinstance(iid_dask.open(target), Mosaic)
        assert xr.open_dataset(target).sizes == xr.open_dataset(file).sizes  # guessed, without engine=
    assert not isinstance(iid_dask.open(file), Mosaic)
    assert not isinstance(iid_dask.open(file.read_bytes()), Mosaic)
    with pytest.raises(FileNotFoundError, match=r"mosaic\.json: no such file"):
        open_mosaic(tmp_path)
    with pytest.raises(IsADirectoryError):
        iid_dask.open(tmp_path)
    iid_dask.prepare(tmp_path / "begun", (9, 9))
    with pytest.raises(IIDStoreError, match="begun, but not finished"):
        iid_dask.open(tmp_path / "begun")


def test_opening_a_file_loads_nothing_that_only_mosaics_need():
    code = (
        "import sys, iid_dask; iid_dask.open(iid_dask.sample('us')); "
        "print({'numba', 'pandas', 'pyarrow', 'dask', 'xarray'} & {name.split('.')[0] for name in sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- damage and malice ------------------------------------------------------------------------------------------


def touch_all(folder):
    """Open a mosaic and read all of its tables, and the columns of its tiles."""
    with open_mosaic(folder) as mosaic:
        _ = mosaic.groups, mosaic.names(), mosaic.columns.boxes, mosaic.columns.areas
        mosaic.region((0, 0, *mosaic.shape))


def change_manifest(folder, change):
    path = folder / MANIFEST
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def change_table(folder, name, **columns):
    """Replace columns of a table, and list it as it is now."""

    def change(manifest):
        schema = SCHEMAS[name]
        table = read_table(folder, manifest["tables"][name], schema) | columns
        manifest["tables"][name] = write_table(folder, f"{name}-ID.parquet", table, schema)

    change_manifest(folder, change)


@pytest.fixture
def folder(tmp_path):
    return random_pair(tmp_path, 7, index=True, halo=0)[1]


def put(*where):
    """A change of a manifest: the value at a place."""

    def change(manifest):
        *path, last, value = where
        for name in path:
            manifest = manifest[name]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", 2), "version 2, expected 1"),
        (put("shape", [5]), r"shape \[5\], expected \[rows, columns\]"),
        (put("shape", [5, 2**31]), r"shape \[5, 2147483648\]"),
        (put("shape", [5, True]), r"shape \[5, True\]"),
        (put("shape", [1, 1]), "tiles: found tile 0.*expected a tile inside the mosaic"),
        (put("metadata", []), "metadata .*expected an object"),
        (put("groups", ["a", "a"]), "groups .*each once"),
        (put("job", 7), "job 7, expected the job's name"),
        (put("tables", "tiles", None), "table tiles None"),
        (put("tables", "tiles", "rows", -1), "table tiles"),
        (put("tables", "tiles", "rows", 2**61), "table tiles"),
        (put("tables", "segments", "rows", 7.0), "table segments"),
        (put("tables", "segments", {}), "table segments"),
        (put("tables", 5), "tables 5, expected an object"),
    ],
)
def test_bad_manifests_are_refused(folder, change, message):
    change_manifest(folder, change)
    with pytest.raises(IIDFormatError, match=message):
        open_mosaic(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"version": 1, "version": 1}', "[" * 100_000])
def test_manifests_that_are_no_objects_are_refused(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(IIDFormatError, match=r"mosaic\.json: manifest: found"):
        open_mosaic(folder)


OUTSIDE = (
    "../canary",
    "{}/canary",
    "a/../../canary",
    "tiles/../../canary",
    "//canary",
    "C:canary",
    "file:///canary",
    "link/canary",
    "link",
    "..\\canary",
    "./canary",
    "",
    "tiles\0",
)
"""Ways to name a file that is not in the folder."""


@pytest.mark.parametrize("path", OUTSIDE)
def test_no_path_leaves_the_folder(tmp_path, folder, path, monkeypatch):
    (tmp_path / "canary").write_bytes(b"never read")
    (folder / "link").symlink_to(tmp_path)
    path = path.format(tmp_path)
    original = (folder / MANIFEST).read_text()
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: opened.append(os.fspath(path)) or real(path, *a, **k))
    change_manifest(folder, put("tables", "pieces", "path", path))
    with pytest.raises(IIDFormatError, match=r"path .*expected a file within"):
        open_mosaic(folder)
    (folder / MANIFEST).write_text(original)
    manifest = json.loads(original)
    change_table(folder, "tiles", path=[path] * manifest["tables"]["tiles"]["rows"])
    with open_mosaic(folder) as mosaic, pytest.raises(IIDFormatError, match=r"path .*expected a file within"):
        mosaic.region((0, 0, *mosaic.shape))
    assert not [name for name in opened if "canary" in name]


def test_missing_and_foreign_tiles_are_named_with_the_way_out(folder):
    tile = next(path for path in sorted((folder / "tiles").iterdir()))
    held, way_out = tile.read_bytes(), "write it again .*then call iid_dask.finish"

    tile.unlink()
    with pytest.raises(IIDStoreError, match=rf"{tile.name}: tile 0 .*no such file.*{way_out}"):
        touch_all(folder)
    tile.write_bytes(held + b"\0")
    with pytest.raises(IIDStoreError, match=rf"{tile.name}: .*found nbytes.*{way_out}"):
        touch_all(folder)
    tile.write_bytes(held.replace(JOB.encode(), JOB[::-1].encode()))
    with pytest.raises(IIDError, match=rf"{tile.name}: "):
        touch_all(folder)
    without = iid_dask.open(held)
    for name, value in (("job", "f" * 16), ("origin", [7, 7]), ("shape", [1, 1])):
        metadata = {"mosaic": {**without.metadata["mosaic"], name: value}}
        with IIDWriter(tile, metadata=metadata) as writer:
            for entry in without.values():
                writer.add(entry.domain, entry.address, entry.bbox, entry.mask())
        crc, nbytes = zlib.crc32(tile.read_bytes()), tile.stat().st_size
        original = (folder / MANIFEST).read_text()
        table = read_table(folder, json.loads(original)["tables"]["tiles"], SCHEMAS["tiles"])
        first = np.arange(len(table["row"])) == 0
        change_table(
            folder,
            "tiles",
            nbytes=np.where(first, nbytes, table["nbytes"]),
            crc=np.where(first, crc, table["crc"]),
            tail=np.where(first, zlib.crc32(tile.read_bytes()[-52:]), table["tail"]),
        )
        with pytest.raises(IIDStoreError, match=rf"{tile.name}: .*found {name} .*{way_out}"):
            touch_all(folder)


def test_a_tile_replaced_while_open_is_told(folder):
    with open_mosaic(folder) as mosaic:
        mosaic.region((0, 0, *mosaic.shape))
        name, stamp = mosaic.manifest.folder.child(mosaic.tiles.paths[0]), mosaic.tiles._stamps[0]
        files_module._sources.drop(lambda source: source.name == name)
        os.utime(name, ns=(1, 1))
        assert stamp != (1, stamp[1])
        with pytest.raises(IIDChangedError, match=rf"{Path(name).name}: changed since opened"):
            mosaic.at(*np.indices(mosaic.shape).reshape(2, -1))


def test_damaged_tables_are_told(folder):
    for name in SCHEMAS:
        path = folder / f"{name}-ID.parquet"
        if not path.exists():
            continue
        held = path.read_bytes()
        broken = bytearray(held)
        broken[len(held) // 3] ^= 1
        for data, message in ((bytes(broken), "crc32 0x"), (held[:-1], f"{len(held) - 1} bytes")):
            path.write_bytes(data)
            with pytest.raises(IIDFormatError, match=rf"{name}-ID.parquet: file: found {message}"):
                touch_all(folder)
        path.unlink()
        with pytest.raises(IIDError, match=f"no file {name}-ID.parquet, expected the table"):
            touch_all(folder)
        path.write_bytes(held)


def huge(values):
    return np.where(np.arange(len(values)) == 0, 2**62, values)


@pytest.mark.parametrize(
    ("name", "column", "change", "message"),
    [
        ("tiles", "row", huge, "a tile inside the mosaic"),
        ("tiles", "height", huge, "0 … 65535 pixels a side"),
        ("tiles", "nbytes", huge, "the bytes of a file"),
        ("tiles", "pieces", huge, "rows of the table of pieces"),
        ("tiles", "first_piece", huge, "rows of the table of pieces"),
        ("tiles", "first_piece", lambda values: np.maximum(values - 1, 0), "ascending labels"),
        ("pieces", "key", huge, "no entry 4611686018427387904"),
        ("pieces", "key", lambda values: -1 - values, "no entry -"),
        ("pieces", "label", lambda values: values * 0, "ascending labels of 1"),
        ("pieces", "label", lambda values: values + 1000, "ascending labels of 1"),
        ("pieces", "tile", huge, "ascending labels"),
        ("segments", "min_row", huge, "a box inside"),
        ("segments", "max_col", huge, "a box inside"),
        ("segments", "area", lambda values: -1 - values, "an area of 0 or more"),
        ("members", "key", huge, "members of no group"),
        ("members", "group", lambda values: values + 9, "members of no group"),
    ],
)
def test_tables_that_cannot_be_are_refused(folder, name, column, change, message):
    listed = json.loads((folder / MANIFEST).read_text())["tables"][name]
    values = read_table(folder, listed, SCHEMAS[name])[column]
    assert len(values)
    change_table(folder, name, **{column: change(values)})
    with pytest.raises(IIDError, match=message):
        touch_all(folder)


def test_damaged_pixels_are_told(folder):
    """A piece that is read whole is compared with its tile's index."""
    with open_mosaic(folder) as mosaic:
        part = mosaic.part(BBox(0, 0, *mosaic.shape))
        row = int(np.flatnonzero(np.diff(part.columns.first_region))[0])
        bits = int(part.columns.region_bits[part.columns.first_region[row]])
        tile = int(part.tiles[row])
        path = folder / mosaic.tiles.paths[tile]
        at = bits - int(mosaic.tiles.starts[tile])
        key = int(part.tile_keys[row])
    data = bytearray(path.read_bytes())
    data[at] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(IIDFormatError, match=rf"{path.name}: segments, entry {key}.*crc32"):
        xr.open_dataset(folder, engine="iid").label.load()
    xr.open_dataset(folder, engine="iid", verify=False).label.load()
    with open_mosaic(folder) as mosaic:
        assert any(path.name in str(defect) and "crc32" in str(defect) for defect in mosaic.check())


def test_check_lists_what_tables_and_tiles_disagree_in(folder):
    listed = json.loads((folder / MANIFEST).read_text())["tables"]["segments"]
    segments = read_table(folder, listed, SCHEMAS["segments"])
    change_table(folder, "segments", area=segments["area"] + (np.arange(len(segments["area"])) == 1))
    with open_mosaic(folder) as mosaic:
        found = [str(defect) for defect in mosaic.check()]
    assert any("segments, entry 1: found area" in defect for defect in found)
    assert all("entry 1" in defect for defect in found)
    tile = sorted((folder / "tiles").iterdir())[0]
    shutil.move(tile, folder / "elsewhere")
    with open_mosaic(folder) as mosaic:
        found = [str(defect) for defect in mosaic.check()]
    assert any(tile.name in defect and "no such file" in defect for defect in found)
