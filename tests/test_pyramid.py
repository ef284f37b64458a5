"""``xr.open_datatree(..., engine="iid")``: levels that nobody had to build."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import xarray as xr
from conftest import DATA
from hypothesis import given, settings
from twins import CountingSource, Twin, overlaps, random_bytes, reduces, seeds

import iid_dask

US, EDGE, CORNER, EMPTY = (DATA / f"{stem}.iid" for stem in ("us", "edge", "corner", "empty"))


def tree_of(target, **options):
    return xr.open_datatree(target, engine="iid", **options)


def test_levels_are_siblings_below_an_empty_root():
    with tree_of(US, levels=3) as tree:
        assert list(tree.children) == ["0", "1", "2"]
        assert not tree.dataset.variables
        assert all(not child.children for child in tree.children.values())
        shapes = [tree[f"{level}/label"].shape for level in range(3)]
        assert shapes == [(600, 1000), (300, 500), (150, 250)]


@pytest.mark.parametrize(("path", "levels"), [(US, 2), (EDGE, 1), (EMPTY, 1), (CORNER, 8)])
def test_levels_go_down_to_512_pixels(path, levels):
    with tree_of(path) as tree:
        assert list(tree.children) == [str(level) for level in range(levels)]
        sides = [max(child["label"].shape) for child in tree.children.values()]
        assert sides[-1] <= 512
        assert all(side > 512 for side in sides[:-1])


def test_levels_go_on_from_a_stride():
    with tree_of(CORNER, stride=16) as tree:
        assert max(tree["0/label"].shape) == 4096
        assert len(tree.children) == 4
        assert tree["3/label"].attrs["stride"] == 128


def test_more_levels_than_there_are_pixels():
    with tree_of(EDGE, levels=12) as tree:
        assert tree["11/label"].shape == (1, 1)
        assert tree["11/label"].values.shape == (1, 1)


@pytest.mark.parametrize("levels", [0, -1, 1.5, "2", True, 2**40])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match=rf"levels = {levels!r}: expected an integer from 1 to 32"):
        tree_of(US, levels=levels)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match=r"unknown options.*color"):
        tree_of(US, colour=True)
    with pytest.raises(ValueError, match="overlap = 'best'"):
        tree_of(US, overlap="best")


@settings(deadline=None, max_examples=30)
@given(seed=seeds, reduce=reduces, overlap=overlaps)
def test_each_level_equals_the_twin(seed, reduce, overlap):
    data = random_bytes(seed)
    reader = iid_dask.open(data)
    tree = tree_of(data, levels=4, reduce=reduce, overlap=overlap, layers=True, color=True)
    for level in range(4):
        twin = Twin(reader, stride=2**level, reduce=reduce, overlap=overlap)
        for name, wanted in twin.pixels().items():
            assert np.array_equal(tree[f"{level}/{name}"].values, wanted), (level, name)


def test_each_level_samples_level_0():
    with tree_of(US, levels=5, chunks={}) as tree:
        full = tree["0/label"].values
        for level in range(5):
            k = 2**level
            rows, cols = (np.minimum(np.arange(-(-n // k)) * k + k // 2, n - 1) for n in full.shape)
            assert np.array_equal(tree[f"{level}/label"].values, full[np.ix_(rows, cols)])
            assert np.array_equal(tree[f"{level}/label"].values, direct(US, k)["label"].values)


def direct(path, stride, **options):
    with xr.open_dataset(path, engine="iid", stride=stride, **options) as ds:
        return ds.load()


def test_the_table_is_in_level_0_only():
    with tree_of(US, levels=3) as tree:
        assert "domain" in tree["0"]
        for level in ("1", "2"):
            assert set(tree[level].data_vars) == {"label", "mask", "depth", "group_mask"}
    with tree_of(US, levels=2, entries=False, drop_variables="depth") as tree:
        assert set(tree["0"].data_vars) == {"label", "mask", "group_mask"}


def test_root_attributes():
    with tree_of(US, levels=3, stride=3, reduce="any") as tree:
        attributes = tree.attrs
        (scales,) = attributes["multiscales"]
        assert attributes["ome"] == {"version": "0.5", "multiscales": [scales]}
        assert [axis["name"] for axis in scales["axes"]] == ["y", "x"]
        assert [level["path"] for level in scales["datasets"]] == ["0/label", "1/label", "2/label"]
        for level, k in zip(scales["datasets"], (3, 6, 12), strict=True):
            scale, translation = level["coordinateTransformations"]
            assert scale == {"type": "scale", "scale": [k, k]}
            assert translation == {"type": "translation", "translation": [(k - 1) / 2] * 2}
            assert tree[level["path"]].dims == ("y", "x")
        assert scales["type"] == "any"
        assert json.loads(json.dumps(attributes)) == attributes
        assert attributes["iid_metadata"] == tree["0"].attrs["iid_metadata"]


def test_groups_of_datasets():
    groups = xr.open_groups(US, engine="iid", levels=2)
    assert list(groups) == ["/", "/0", "/1"]
    assert groups["/1"].label.shape == (300, 500)
    with np.load(DATA / "us.expected.npz") as arrays:
        assert np.array_equal(groups["/0"].label.values, arrays["last"])
    for dataset in groups.values():
        dataset.close()


def test_pyramids_are_found_without_naming_the_engine():
    with xr.open_datatree(US) as tree:
        assert list(tree.children) == ["0", "1"]


def test_chunks():
    with tree_of(CORNER, chunks={}) as tree:
        for child in tree.children.values():
            assert max(child["label"].data.chunksize) <= 4096
            assert child["label"].data.npartitions == (-(-child["label"].shape[0] // 4096)) ** 2
        names = {child["label"].data.name for child in tree.children.values()}
        assert len(names) == len(tree.children)


def test_one_file_is_read_once():
    source = CountingSource(US)
    with tree_of(source, levels=6):
        header = 2**16
        assert source.nbytes < 2 * header + 20_000


@pytest.mark.parametrize("chunks", [None, {}])
def test_round_trip_through_zarr(tmp_path, chunks):
    with tree_of(US, levels=3, chunks=chunks) as tree:
        tree.to_zarr(tmp_path / "us.zarr", zarr_format=3, consolidated=False)
        with xr.open_datatree(tmp_path / "us.zarr", engine="zarr", consolidated=False) as again:
            assert again.attrs == tree.attrs
            for level in tree.children:
                for name, variable in tree[level].data_vars.items():
                    found = again[f"{level}/{name}"]
                    assert found.dtype == variable.dtype, name
                    assert np.array_equal(found.values, variable.values), name


@pytest.mark.parametrize("reduce", ["nearest", "any"])
def test_a_large_image_opens_at_once_and_its_overview_is_cheap(reduce):
    direct(CORNER, 128, reduce=reduce)
    start = time.process_time()
    with tree_of(CORNER, chunks={}, reduce=reduce) as tree:
        opened = time.process_time() - start
        coarsest = tree["7/label"].values
        assert time.process_time() - start < 5
        assert opened < 3
        assert coarsest.shape == (512, 512)
        assert np.array_equal(coarsest, direct(CORNER, 128, reduce=reduce).label.values)
        assert coarsest.any() == (reduce == "any")
