"""Measurements under masks: against brute force on whole masks, and against scikit-image."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops
from twins import dense, fit, quiet, random_mask, random_reader, seeds
from xarray.backends import BackendArray
from xarray.core import indexing

import iid_dask
from iid_dask import BBox, IIDChangedError, IIDWriter, Region, kernels, pieces
from iid_dask.measurements import intensity, shape
from iid_dask.measurements.job import INTENSITY, SHAPE
from iid_dask.measurements.table import measure

INTEGERS = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
FLOATS = ["f2", "f4", "f8"]


def compute(*arguments, **options):
    """Measure in this thread, without the warnings about sizes."""
    return quiet(lambda: measure(*arguments, **options).compute(scheduler="synchronous"))


def random_image(rng, shape, dtype):
    """Any values, the extreme ones among them."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "f":
        return rng.normal(1000, 1, shape).astype(dtype)
    limits = np.iinfo(dtype)
    image = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    kind = rng.random(shape)
    image[kind < 0.3], image[kind > 0.9] = limits.max, limits.min
    return image


def exact(values):
    """Statistics of integers, by Python's own."""
    x = [int(value) for value in values]
    n, total = len(x), sum(x)
    if not n:
        return {"mean": math.nan, "min": None, "max": None, "sum": 0, "std": math.nan, "count": 0}
    variance = Fraction(n * sum(value * value for value in x) - total * total, n * n)
    return {
        "mean": total / n,
        "min": min(x),
        "max": max(x),
        "sum": total,
        "std": math.sqrt(variance.numerator / variance.denominator),
        "count": n,
    }


def assert_same(row, wanted):
    """Compare a row's cells with plain values: exactly, null being None."""
    for name, value in wanted.items():
        found = row[name]
        if value is None:
            assert found is None or found is pd.NA, name
        elif isinstance(value, float) and math.isnan(value):
            assert math.isnan(found), name
        else:
            assert found == value, name


# --- an image under masks ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=seeds, dtype=st.sampled_from(INTEGERS), tile=st.sampled_from([17, 64, 1000]), channels=st.integers(0, 2))
def test_integers_are_exact_whatever_the_tiling(seed, dtype, tile, channels):
    reader, rng = random_reader(seed), np.random.default_rng(seed)
    planes = random_image(rng, (max(1, channels), *reader.shape), dtype)
    if not planes.size:
        return
    names = [name for name in INTENSITY if name != "sum" or np.dtype(dtype).itemsize < 8]
    found = compute(reader, planes if channels else planes[0], names, tile=tile)
    keys = list(reader)
    masks = fit(dense(reader, keys), reader.shape)
    assert found.key.tolist() == [key for key in keys for _ in planes]
    assert not channels or found.channel.tolist() == [c for _ in keys for c in range(channels)]
    rows = iter(found.to_dict("records"))
    for mask in masks:
        for plane in planes:
            wanted = exact(plane[mask])
            assert_same(next(rows), {name: wanted[name] for name in names})


@settings(max_examples=25, deadline=None)
@given(seed=seeds, dtype=st.sampled_from(FLOATS), tile=st.sampled_from([17, 1000]), odd=st.booleans())
def test_floats_are_those_of_numpy(seed, dtype, tile, odd):
    reader, rng = random_reader(seed), np.random.default_rng(seed)
    image = random_image(rng, reader.shape, dtype)
    if not image.size:
        return
    if odd:
        some = rng.random(image.shape) < 0.02
        image[some] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -60000], int(some.sum()))
    found = compute(reader, image, tile=tile)
    again = measure(reader, image, tile=tile)
    for scheduler in ("threads", "synchronous"):
        other = quiet(again.compute, scheduler=scheduler)
        pd.testing.assert_frame_equal(found, other, check_exact=True)
    wide = image.astype("f8")
    for row, mask in zip(found.to_dict("records"), fit(dense(reader, list(reader)), image.shape), strict=True):
        values = wide[mask]
        assert row["count"] == len(values)
        if not len(values):
            assert row["sum"] == 0
            assert np.isnan([row["mean"], row["std"], row["min"], row["max"]]).all()
            continue
        with np.errstate(all="ignore"):
            wanted = values.sum(), values.mean(), values.std()
        np.testing.assert_allclose([row["sum"], row["mean"], row["std"]], wanted, rtol=1e-9, atol=1e-9)
        np.testing.assert_equal([row["min"], row["max"]], [values.min(), values.max()])
    assert found["min"].dtype == (np.float32 if dtype == "f2" else dtype)


def test_floats_far_from_zero_lose_no_digits(us):
    image = 1e9 + np.random.default_rng(0).random((600, 1000))
    row = compute(us, image, ["std", "mean"], keys=[0], tile=100).loc[0]
    mask = iid_dask.open(us)[0]
    values = image[mask.bbox.slices][mask.mask()]
    assert row["std"] == pytest.approx(values.std(), rel=1e-7)
    assert row["mean"] == pytest.approx(math.fsum(values) / len(values), rel=1e-15)


def test_deviations_too_large_for_floats_are_infinite_as_those_of_numpy(us):
    rng = np.random.default_rng(6)
    for low, high in ((-1e200, 1e200), (1e200, 3e200), (-1.5e308, 1.5e308)):
        image = np.where(rng.random((600, 1000)) < 0.5, low, high)
        found = compute(us, image, ["std", "min", "max"], keys=[0, 1], tile=300)
        assert found["std"].tolist() == [np.inf] * 2
        assert (found["min"].tolist(), found["max"].tolist()) == ([low] * 2, [high] * 2)
    image[300, 200] = np.nan
    assert np.isnan(compute(us, image, "std", keys=[0, 1]).loc[0, "std"])


def test_a_constant_float_image_has_no_deviation(us):
    found = compute(us, np.full((600, 1000), 0.1), ["std", "mean"], tile=100)
    assert (found["std"] == 0).all()
    np.testing.assert_allclose(found["mean"], 0.1, rtol=1e-13)


@pytest.mark.parametrize("tile", [64, 1000, 1])
def test_one_large_tile_and_many_small_ones_agree(us, tile):
    image = np.random.default_rng(1).integers(0, 65536, (600, 1000), np.uint16)
    crop = BBox(100, 100, 130, 140)
    if tile == 1:  # a task a pixel: a corner of the map only
        reader = _window(us, crop)
        image = image[crop.slices]
    else:
        reader = iid_dask.open(us)
    pd.testing.assert_frame_equal(compute(reader, image, tile=tile), compute(reader, image, tile=70_000))


def _window(path, box):
    """A file of what of another's masks lies in a box."""
    target = path.with_name("window.iid")
    with iid_dask.open(path) as reader, IIDWriter(target, metadata={"image": {"height": 30, "width": 40}}) as writer:
        for key in reader.region(box).tolist():
            mask = np.zeros(reader.shape, bool)
            mask[reader[key].bbox.slices] = reader[key].mask()
            writer.add(b"", b"", BBox(0, 0, *box.shape), mask[box.slices])
    return iid_dask.open(target)


def test_us_agrees_with_scikit_image(us):
    reader, rng = iid_dask.open(us), np.random.default_rng(2)
    image = rng.integers(0, 65536, (2, 600, 1000), np.uint16)
    keys = [*range(50), *range(50, len(reader), 5)]  # the nation, all states, and some counties
    found = compute(reader, image, (*INTENSITY, *SHAPE), tile=256, keys=keys)
    assert found.key.tolist() == [key for key in keys for _ in range(2)]
    for key, rows in found.groupby("key"):
        entry = reader[key]
        mask = entry.mask()
        (props,) = regionprops(mask.astype(np.uint8), np.moveaxis(image, 0, -1)[entry.bbox.slices])
        for channel, cells in enumerate(rows.to_dict("records")):
            values = props.image_intensity[..., channel][props.image]
            assert cells["channel"] == channel
            assert cells["count"] == props.area
            assert cells["mean"] == int(values.sum(dtype=np.int64)) / len(values) == props.intensity_mean[channel]
            assert cells["min"] == props.intensity_min[channel]
            assert cells["max"] == props.intensity_max[channel]
            assert cells["sum"] == values.sum(dtype=np.int64)
            assert cells["std"] == pytest.approx(props.intensity_std[channel], rel=1e-13)
        assert_shape(rows.iloc[0], mask, (entry.bbox.min_row, entry.bbox.min_col))


# --- masks ------------------------------------------------------------------------------------------------------


def assert_shape(cells, mask, corner=(0, 0)):
    """Compare a row's shape with scikit-image's; its eccentricity loses half the digits where masks are round."""
    (props,) = regionprops(mask.astype(np.uint8))
    assert [cells[name] for name in SHAPE["bbox"]] == [a + b for a, b in zip(props.bbox, corner * 2, strict=True)]
    centroid = np.add(props.centroid, corner)
    assert (cells["centroid_row"], cells["centroid_col"]) == pytest.approx(centroid, rel=1e-13)
    assert cells["area"] == props.area
    assert cells["perimeter"] == pytest.approx(props.perimeter, rel=1e-13)
    assert cells["eccentricity"] == pytest.approx(props.eccentricity, rel=1e-7, abs=3e-7)
    components = ndimage.label(props.image, np.ones((3, 3)))[1]
    assert cells["holes"] == components - props.euler_number


def assert_shapes(reader, found):
    """Compare rows with scikit-image's of whole masks."""
    assert found.key.tolist() == list(reader)
    for cells, mask in zip(found.to_dict("records"), dense(reader, list(reader)), strict=True):
        if mask.any():
            assert_shape(cells, mask)
        else:
            assert_same(cells, dict.fromkeys(SHAPE["bbox"]))
            assert np.isnan([cells["centroid_row"], cells["centroid_col"], cells["eccentricity"]]).all()
            assert (cells["area"], cells["perimeter"], cells["holes"]) == (0, 0, 0)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, image=st.booleans())
def test_shapes_are_those_of_scikit_image(seed, image):
    reader = random_reader(seed, image=image)
    assert_shapes(reader, compute(reader, properties=list(SHAPE)))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, batch=st.sampled_from([1, 40, 300]), effort=st.sampled_from([0, 1, 64]))
def test_memory_shows_in_no_result(seed, batch, effort):
    """Bands of few rows, batches of few entries, and regions put together that need not be."""
    reader = random_reader(seed)
    image = np.random.default_rng(seed).integers(0, 9, reader.shape, np.int16)
    wanted = [*SHAPE, *INTENSITY] if image.size else list(SHAPE)
    whole = compute(reader, image if image.size else None, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BATCH", batch)
        patch.setattr(shape, "BATCH", batch)
        patch.setattr(intensity, "EFFORT", effort)
        patch.setattr(intensity, "RUNS", 1)
        pd.testing.assert_frame_equal(compute(reader, image if image.size else None, wanted), whole)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_regions_that_touch_are_one_mask(seed):
    """Masks stored in pieces that share edges or corners, which no writer of ours makes."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        with IIDWriter(f"{folder}/a.iid", metadata={"image": {"height": 30, "width": 90}}) as writer:
            for _ in range(3):
                mask = random_mask(rng, 30, 90)
                boxes = [BBox(r, c, r + 10, c + 15) for r in range(0, 30, 10) for c in range(0, 90, 15)]
                order = rng.permutation(len(boxes))
                regions = [_tight(mask, boxes[i]) for i in order if mask[boxes[i].slices].any()]
                writer.add(b"", b"", BBox(0, 0, 30, 90), regions=regions)
        reader = iid_dask.open(Path(folder, "a.iid").read_bytes())
    assert_shapes(reader, compute(reader, properties=list(SHAPE)))


def _tight(mask, box):
    """What of a mask lies in a box, as a region."""
    rows, cols = np.nonzero(mask[box.slices])
    inner = BBox(
        box.min_row + rows.min(), box.min_col + cols.min(), box.min_row + rows.max() + 1, box.min_col + cols.max() + 1
    )
    return Region(inner, np.packbits(mask[inner.slices]).tobytes())


@pytest.mark.parametrize("name", ["nuclei", "edge"])
def test_files_of_the_reference_agree_with_scikit_image(name):
    reader = iid_dask.open(DATA / f"{name}.iid")
    assert_shapes(reader, compute(reader, properties=list(SHAPE)))


def test_masks_at_the_far_corner(tmp_path):
    reader = iid_dask.open(DATA / "corner.iid")
    found = compute(reader, properties=list(SHAPE))
    for key, cells in zip(reader, found.to_dict("records"), strict=True):
        entry = reader[key]
        assert_shape(cells, entry.mask(), (entry.bbox.min_row, entry.bbox.min_col))


def test_moments_of_the_largest_mask_are_exact():
    """All 65,535 x 65,535 pixels, a row a unit: the largest sums there are."""
    side, stride = 65_535, 1024
    row = np.full(stride, 2**64 - 1, np.uint64)
    row[-1] -= np.uint64(1)
    facts = np.zeros((1, kernels.FACTS), np.int64)
    zeros, ones = np.zeros(side, np.int64), np.ones(side, np.int64)
    core, offsets = np.stack([zeros, ones], axis=1), np.stack([np.arange(side), zeros], axis=1)
    open_runs = np.empty((3, 2**15), np.int64)
    kernels.shape_facts(row, zeros, ones * stride, ones, core, offsets, zeros, False, False, open_runs, 0, facts)
    first, second = side * (side - 1) // 2, (side - 1) * side * (2 * side - 1) // 6
    assert facts[0, :10].tolist() == [
        side * side, 0, 0, side, side, side * first, side * first, side * second, first * first, side * second
    ]  # fmt: skip
    assert shape._eccentricity(facts) == [0]


def measured_alone(*cases):
    """Measure files, one after another, in a process of its own: of each its first row, and the peak in kB so far."""
    lines = ["import resource, sys; import dask.array as da; from iid_dask.measurements.table import measure"]
    lines.append("assert 'iid_dask.reader' not in sys.modules, 'it stands above measurements'")
    for path, arguments in cases:
        lines.append(f"print(*measure({str(path)!r}, {arguments}).compute(scheduler='synchronous').loc[0])")
        lines.append("print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    found = subprocess.check_output([sys.executable, "-c", "\n".join(lines)], text=True).splitlines()
    return [[float(value) for value in row.split()] for row in found[::2]], [int(peak) for peak in found[1::2]]


def write_full(path, side):
    """One mask of a whole square image."""
    with IIDWriter(path, metadata={"image": {"height": side, "width": side}}) as writer:
        bits = np.full((side * side + 7) // 8, 255, np.uint8)
        writer.add(b"", b"", BBox(0, 0, side, side), regions=[Region(BBox(0, 0, side, side), bits.tobytes())])
    return path


def test_a_large_mask_needs_no_array_of_its_size(tmp_path):
    """The same memory for a mask of 144 million pixels as for one that fits a batch."""
    wanted = "None, ['area', 'perimeter', 'holes', 'eccentricity', 'bbox']"
    files = [write_full(tmp_path / f"{side}.iid", side) for side in (6_000, 12_000)]
    (_, row), (before, after) = measured_alone(*((path, wanted) for path in files))
    assert row == [0, 144e6, 4 * 11_999, 0, 0, 0, 0, 12_000, 12_000]
    assert after - before < 20_000, "kB; the mask as an array has 140,625"


def test_tasks_of_tiles_and_masks_need_no_tables_of_others():
    code = (
        "import sys, iid_dask.measurements.intensity, iid_dask.measurements.shape\n"
        "print(*{'pandas', 'xarray', 'pyarrow', 'dask', 'zarr'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_memory_does_not_grow_with_the_image(tmp_path):
    cases = []
    for side in (1024, 6144):
        image = f"da.ones(({side}, {side}), dtype='u2', chunks=1024)"
        cases.append((write_full(tmp_path / f"{side}.iid", side), f"{image}, ['sum', 'area']"))
    (_, row), (before, after) = measured_alone(*cases)
    assert row == [0, 6144**2, 6144**2]
    assert after - before < 25_000, "kB; the image has 73,728"


# --- images of every kind ---------------------------------------------------------------------------------------


@pytest.fixture
def picture():
    """An image of the sample's size."""
    return np.random.default_rng(3).integers(0, 65536, (2, 600, 1000), np.uint16)


def test_any_kind_of_image_gives_the_same(us, picture, tmp_path):
    stored = zarr.create_array(tmp_path / "a.zarr", shape=picture.shape, dtype="u2", chunks=(1, 100, 300))
    stored[:] = picture
    mapped = np.memmap(tmp_path / "a.raw", "u2", "w+", shape=picture.shape)
    mapped[:] = picture
    lazy = xr.Dataset({"a": (("c", "y", "x"), picture)})
    lazy.to_zarr(tmp_path / "b.zarr", zarr_format=3, consolidated=False)
    opened = xr.open_zarr(tmp_path / "b.zarr", chunks=None, consolidated=False).a
    wanted = compute(us, picture)
    kinds = [stored, mapped, opened, lazy.a, lazy.a.chunk(y=123), da.from_array(picture, chunks=(2, 599, 77))]
    big_endian = picture.astype(">u2")
    big_endian.flags.writeable = False
    for image in [*kinds, big_endian, picture[:, ::-1][:, ::-1]]:
        pd.testing.assert_frame_equal(compute(us, image, tile=512), wanted)


def orders(array, name):
    """Kinds of DataArray of a (y, x) or (c, y, x) image, each in every order of its dimensions."""
    image = xr.DataArray(array, dims=("c", "y", "x")[-array.ndim :])
    for dims in permutations(image.dims):
        turned = image.transpose(*dims)
        path = f"{name}-{''.join(dims)}.zarr"
        turned.to_dataset(name="a").to_zarr(path, zarr_format=3, consolidated=False)
        yield turned
        yield turned.chunk({"y": 250, "x": 333})
        yield xr.open_zarr(path, chunks=None, consolidated=False).a
        yield zarr.open_array(f"{path}/a", mode="r")
        old = f"{path}2"
        turned.to_dataset(name="a").to_zarr(old, zarr_format=2, consolidated=False)
        yield zarr.open_array(f"{old}/a", mode="r")


@pytest.mark.parametrize("channels", [0, 2])
def test_dimensions_named_y_and_x_are_found_wherever_they_are(us, picture, tmp_path, channels):
    image = picture if channels else picture[0]
    wanted = compute(us, image, keys=[0, 1, 77])
    for turned in orders(image, tmp_path / "turned"):
        pd.testing.assert_frame_equal(compute(us, turned, keys=[0, 1, 77], tile=512), wanted)


def test_a_square_image_with_swapped_dimensions_is_not_measured_askew(tmp_path):
    with IIDWriter(tmp_path / "square.iid", metadata={"image": {"height": 50, "width": 50}}) as writer:
        writer.add(b"", b"", BBox(0, 10, 5, 50), np.ones((5, 40)))
    image = xr.DataArray(np.arange(2500.0).reshape(50, 50), dims=("y", "x"))
    means = [compute(tmp_path / "square.iid", some, "mean").loc[0, "mean"] for some in (image, image.transpose())]
    assert means == [image.values[:5, 10:].mean()] * 2


def test_dimensions_of_other_names_are_taken_in_their_order(us, picture):
    image = xr.DataArray(picture, dims=("x_c", "row", "Y"))
    pd.testing.assert_frame_equal(compute(us, image, keys=[0, 7]), compute(us, picture, keys=[0, 7]))


@pytest.mark.parametrize("dims", [("y", "col"), ("row", "x"), ("x", "c", "row"), ("x",)])
def test_one_of_y_and_x_without_the_other_is_refused(us, dims, tmp_path):
    image = xr.DataArray(np.zeros((600, 1000, 2)[: len(dims)]), dims=dims)
    stored = zarr.create_array({}, shape=image.shape, dtype="u1", dimension_names=dims)
    lazy = xr.Variable(dims, indexing.LazilyIndexedArray(Watched(image.shape, 0)))
    for kind in (image, image.chunk(), stored, xr.DataArray(lazy)):
        with pytest.raises(ValueError, match=rf"an image of dimensions {re.escape(repr(dims))}, expected y and x once"):
            measure(us, kind)


def mapped(path, array, offset=0, **options):
    """A memory map of a file that holds an array behind some other bytes."""
    path.write_bytes(b"?" * offset + array.tobytes(options.get("order", "C")))
    return np.memmap(path, array.dtype, options.pop("mode", "r"), offset, array.shape, **options)


def graph_size(table):
    """Bytes of a table's graph as schedulers are sent it."""
    return len(pickle.dumps(dict(table.optimize().dask)))


def test_a_mapped_image_is_opened_by_tasks_and_its_pixels_are_in_no_graph(us, picture, tmp_path):
    np.save(tmp_path / "a.npy", picture)
    np.save(tmp_path / "b.npy", np.asfortranarray(picture))
    padded = np.pad(picture, ((1, 0), (2, 3), (5, 1)))
    files = {name: mapped(tmp_path / f"{name}.raw", array, 12_345) for name, array in (("c", picture), ("d", padded))}
    images = [
        np.load(tmp_path / "a.npy", mmap_mode="r"),
        np.load(tmp_path / "a.npy", mmap_mode="r+"),
        np.load(tmp_path / "b.npy", mmap_mode="r"),
        files["c"],
        files["d"][1:, 2:-3, 5:-1],
        files["c"][::-1, ::-1][::-1, ::-1],
        np.asarray(files["c"]),
        mapped(tmp_path / "e.raw", picture.T.copy()).T,
        mapped(tmp_path / "f.raw", picture, order="F"),
        xr.DataArray(mapped(tmp_path / "g.raw", picture.T.copy()), dims=("x", "y", "c")),
    ]
    wanted = compute(us, picture)
    for image in images:
        table = measure(us, image, tile=300)
        assert graph_size(table) < 60_000, "the image has 2,400,000"
        pd.testing.assert_frame_equal(table.compute(scheduler="synchronous"), wanted)


def test_what_was_written_to_a_map_is_measured(us, picture, tmp_path):
    """Also where the file has it not, as it is copied on write, or not any more."""
    wanted = compute(us, picture, keys=[0, 1])
    for mode in ("r+", "c"):
        image = mapped(tmp_path / "a.raw", np.zeros_like(picture), mode=mode)
        image[:] = picture
        pd.testing.assert_frame_equal(compute(us, image, keys=[0, 1]), wanted)
    image = mapped(tmp_path / "b.raw", picture)
    os.unlink(tmp_path / "b.raw")
    pd.testing.assert_frame_equal(compute(us, image, keys=[0, 1]), wanted)
    (tmp_path / "b.raw").write_bytes(b"another file")
    pd.testing.assert_frame_equal(compute(us, image, keys=[0, 1]), wanted)


def test_a_mapped_file_that_is_replaced_before_the_table_is_computed_is_an_error(us, picture, tmp_path):
    path = tmp_path / "a.raw"
    for content in (picture[::-1].tobytes(), b"short"):
        table = measure(us, mapped(path, picture))
        path.with_suffix(".new").write_bytes(content)
        os.utime(path.with_suffix(".new"), ns=(0, 0))
        os.replace(path.with_suffix(".new"), path)
        with pytest.raises(IIDChangedError, match=rf"{re.escape(str(path))}: changed since it was mapped: .*\(0, "):
            table.compute(scheduler="synchronous")


class Watched(BackendArray):
    """A lazy array that refuses to hand out more than a tile."""

    def __init__(self, shape, most):
        self.shape, self.dtype, self.most = shape, np.dtype("u2"), most
        self.asked = 0

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key):
        sizes = [len(range(*part.indices(size))) for part, size in zip(key, self.shape, strict=True)]
        assert math.prod(sizes) <= self.most, f"{sizes} asked for at once"
        self.asked += math.prod(sizes)
        return np.full(sizes, 3, "u2")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dims", [("y", "x"), ("x", "y")])
def test_a_lazy_image_is_read_by_tiles_and_not_before(us, dims, turned):
    array = Watched((600, 1000) if dims == ("y", "x") else (1000, 600), 128 * 128)
    image = xr.DataArray(indexing.LazilyIndexedArray(array), dims=dims)
    table = measure(us, image.transpose() if turned else image, ["sum", "count"], tile=128)
    assert array.asked == 0
    found = table.compute(scheduler="synchronous")
    assert array.asked == 600_000
    assert (found["sum"] == 3 * found["count"]).all()


def test_tiles_of_a_zarr_array_are_whole_chunks_or_shards(us):
    def blocks(**options):
        return intensity_blocks(zarr.create_array({}, dtype="u1", **options), 400)

    assert blocks(shape=(600, 1000), chunks=(150, 300)) == ((300, 300), (300, 300, 300, 100))
    assert blocks(shape=(600, 1000), chunks=(50, 100), shards=(300, 500)) == ((300, 300), (500, 500))
    assert blocks(shape=(600, 1000), chunks=(600, 1000)) == ((600,), (1000,))


def intensity_blocks(image, tile):
    """Chunks of the tiles of an image."""
    from iid_dask.measurements.image import as_blocks

    return as_blocks(image, tile).chunks


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_schedulers_agree_to_the_bit(us, scheduler):
    image = np.random.default_rng(4).normal(size=(600, 1000))
    table = measure(us, image, [*INTENSITY, *SHAPE], tile=300)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        found = table.compute()
    pd.testing.assert_frame_equal(found, compute(us, image, [*INTENSITY, *SHAPE], tile=300), check_exact=True)


# --- the table --------------------------------------------------------------------------------------------------


def test_the_declared_schema_is_that_of_every_partition(us, picture, monkeypatch):
    from iid_dask.measurements import table as module

    monkeypatch.setattr(module, "ROWS", 500)
    monkeypatch.setattr(module, "MASKS", 100)
    for image in (picture, picture[0].astype("f4"), None):
        table = measure(us, image, list(SHAPE) if image is None else [*SHAPE, *INTENSITY])
        assert table.npartitions > 5
        assert table.known_divisions
        for part in (0, table.npartitions - 1):
            found = table.partitions[part].compute(scheduler="synchronous")
            pd.testing.assert_frame_equal(found.iloc[:0], table._meta)
        assert table.loc[77:78].key.compute(scheduler="synchronous").unique().tolist() == [77, 78]
        whole = table.compute(scheduler="synchronous")
        monkeypatch.undo()
        names = list(SHAPE) if image is None else [*SHAPE, *INTENSITY]
        pd.testing.assert_frame_equal(whole, compute(us, image, names))
        monkeypatch.setattr(module, "ROWS", 500)
        monkeypatch.setattr(module, "MASKS", 100)


def test_a_reader_may_be_closed_before_the_table_is_computed(us, picture):
    with iid_dask.open(us) as reader:
        table = measure(reader, picture, ["mean", "area"])
    pd.testing.assert_frame_equal(table.compute(scheduler="synchronous"), compute(us, picture, ["mean", "area"]))


def test_columns_come_in_the_order_asked_for(us, picture):
    table = measure(us, picture, ["bbox", "count", "centroid", "mean"])
    boxes = ["min_row", "min_col", "max_row", "max_col"]
    assert list(table.columns) == ["key", "channel", *boxes, "count", "centroid_row", "centroid_col", "mean"]
    assert list(measure(us, picture[0], "mean").columns) == ["key", "mean"]
    # An image whose pixels nobody asked for has no channels.
    assert list(measure(us, picture, "area").columns) == ["key", "area"]


def test_types_follow_the_image(us):
    def types(dtype):
        return measure(us, np.zeros((600, 1000), dtype), ["min", "sum"]).dtypes.astype(str).tolist()

    assert types("?") == ["uint32", "uint8[pyarrow]", "uint64[pyarrow]"]
    assert types("i2") == ["uint32", "int16[pyarrow]", "int64[pyarrow]"]
    assert types("f2") == ["uint32", "float32", "float64"]


def test_keys_choose_rows_in_ascending_order(us, picture):
    some = [77, 3, 3000, 3]
    found = compute(us, picture, [*INTENSITY, *SHAPE], keys=some)
    whole = compute(us, picture, [*INTENSITY, *SHAPE])
    pd.testing.assert_frame_equal(found, whole[whole.key.isin(some)])
    assert len(compute(us, picture, keys=[])) == 0


def test_shapes_of_a_few_entries_are_theirs_in_a_reader_that_looked_at_none(us):
    wanted = compute(us, properties=list(SHAPE)).loc[[77, 3000]]
    pd.testing.assert_frame_equal(compute(us, properties=list(SHAPE), keys=[77, 3000]), wanted)


def test_keys_come_in_any_container(us):
    for keys in ({5, 3}, (key for key in (5, 3)), range(5, 2, -2), np.array([3, 5], "u1")):
        assert compute(us, properties="area", keys=keys).key.tolist() == [3, 5]


def test_one_key_is_one_row(us):
    assert compute(us, properties="area", keys=np.int64(7)).key.tolist() == [7]


def test_files_without_entries_and_without_pixels():
    reader = iid_dask.open(DATA / "empty.iid")
    for properties in (INTENSITY, list(SHAPE)):
        found = compute(reader, np.zeros(reader.shape if all(reader.shape) else (4, 5), "u1"), properties)
        assert len(found) == 0
        assert found.columns[0] == "key"


def test_the_graph_has_few_tasks_a_tile_and_does_not_grow_with_entries(tmp_path):
    def graph(entries):
        path = tmp_path / f"{entries}.iid"
        with IIDWriter(path, metadata={"image": {"height": 400, "width": 400}}) as writer:
            for _ in range(entries):
                writer.add(b"", b"", BBox(1, 1, 2, 2), np.ones((1, 1)))
        image = xr.DataArray(indexing.LazilyIndexedArray(Watched((400, 400), 100 * 100)), dims=("y", "x"))
        table = measure(path, image, tile=100).optimize()
        return len(dict(table.dask)), len(pickle.dumps(dict(table.dask)))

    (few, small), (many, large) = graph(1), graph(5000)
    assert few == many <= 4 * 16 + 4
    assert large < small + 1000


def test_pixels_beyond_the_image_are_cut_with_a_warning(tmp_path):
    path = tmp_path / "beyond.iid"
    with IIDWriter(path, metadata={"image": {"height": 4, "width": 5}}) as writer:
        writer.add(b"", b"", BBox(2, 3, 6, 9), np.ones((4, 6)))
    image = np.arange(20, dtype="u1").reshape(4, 5)
    with pytest.warns(iid_dask.IIDWarning, match="pixels beyond are cut"):
        row = measure(path, image, ["sum", "count", "area"]).compute(scheduler="synchronous").loc[0]
    assert row.tolist() == [0, 13 + 14 + 18 + 19, 4, 24]


def test_pixels_that_regions_of_an_entry_share_count_once(tmp_path):
    path = tmp_path / "shared.iid"
    square = np.packbits(np.ones(9, bool)).tobytes()
    regions = [Region(BBox(d, d, d + 3, d + 3), square) for d in (0, 1, 2)]
    with IIDWriter(path, metadata={"image": {"height": 7, "width": 7}}) as writer:
        writer.add(b"", b"", BBox(0, 0, 7, 7), regions=regions)
        writer.add(b"", b"", BBox(0, 0, 7, 7), np.ones((7, 7)))
    image = np.arange(49, dtype="u1").reshape(7, 7)
    mask = np.zeros((7, 7), bool)
    for d in (0, 1, 2):
        mask[d : d + 3, d : d + 3] = True
    found = compute(path, image, ["sum", "count", "area"])
    assert found["sum"].tolist() == [image[mask].sum(), image.sum()]
    assert found["count"].tolist() == found["area"].tolist() == [mask.sum(), 49]


# --- what is refused --------------------------------------------------------------------------------------------


def test_sums_that_do_not_fit_are_an_error_that_names_the_entry(us):
    for dtype, limit in (("u8", 2**64 - 1), ("i8", -(2**63))):
        image = np.full((2, 600, 1000), 0, dtype)
        image[1] = limit
        with pytest.raises(OverflowError, match=r"entry 0, channel 1: the sum -?\d+ does not fit u?int64.*float64"):
            compute(us, image, "sum")
        found = compute(us, image, ["mean", "std", "max", "min"], tile=100)
        assert found["mean"].tolist()[1::2] == [float(limit)] * 3155
        assert (found["std"] == 0).all()


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ("size", r"no property 'size'; there is: mean, min, .*holes, eccentricity"),
        ([], r"no properties; expected some of: mean"),
        (["mean", "area", "mean"], r"'mean' comes 2 times"),
        (["mean", "area", "std"], r"mean, std are of an image, and none is given: image="),
    ],
)
def test_properties_that_make_no_sense(us, properties, message):
    with pytest.raises(ValueError, match=message):
        measure(us, None, properties)


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (None, r"properties = None is NoneType, expected one or several of: mean, .*eccentricity"),
        (5, r"properties = 5 is int, expected one or several of: mean"),
        (["mean", 5], r"properties: 5 is int, expected str, some of: mean"),
    ],
)
def test_properties_that_are_no_names(us, properties, message):
    with pytest.raises(TypeError, match=message):
        measure(us, None, properties)


@pytest.mark.parametrize("dtype", ["c8", "c16", "O", "M8[s]", "longdouble"])
def test_images_of_other_types(us, dtype):
    with pytest.raises(TypeError, match=r"an image of type .*, expected bool, integers, or floats of at most 64 bits"):
        measure(us, np.zeros((600, 1000), dtype))


def test_images_of_other_kinds(us):
    with pytest.raises(TypeError, match=r"an image of type list, expected an xarray DataArray, or an array of dask"):
        measure(us, [[1, 2]])
    with pytest.raises(TypeError, match=r"masked array.*fill it first"):
        compute(us, np.ma.zeros((600, 1000), "u1"))


def test_images_of_other_sizes(us, tmp_path):
    with pytest.raises(ValueError, match=r"601 by 1000 pixels, expected 600 by 1000, the size that .*us\.iid declares"):
        measure(us, np.zeros((601, 1000)))
    path = tmp_path / "undeclared.iid"
    with IIDWriter(path) as writer:
        writer.add(b"", b"", BBox(2, 3, 6, 9), np.ones((4, 6)))
    with pytest.raises(ValueError, match=r"7 by 8 pixels, expected at least 6 by 9: .* declares no size"):
        measure(path, np.zeros((7, 8)))
    assert compute(path, np.ones((7, 10), "u1"), "sum")["sum"].tolist() == [24]
    for wrong in ((1000,), (1, 1, 600, 1000), (0, 600, 1000)):
        with pytest.raises(ValueError, match=r"expected \(rows, columns\), or channels before them"):
            measure(us, np.zeros(wrong))
    rows = da.ones((600, 1000))
    with pytest.raises(ValueError, match=r"unknown sizes: call compute_chunk_sizes"):
        measure(us, rows[rows[:, 0] > 0])


def test_blocks_that_are_not_what_the_array_declares(us):
    image = da.zeros((600, 1000), "u2", chunks=500)
    for wrong in (lambda block: block[:-1], lambda block: block.astype("f8")):
        lies = image.map_blocks(wrong, dtype="u2", chunks=image.chunks, meta=np.zeros((0, 0), "u2"))
        with pytest.raises(ValueError, match=r"block at \(channel, row, column\) .* expected uint16 of shape"):
            compute(us, lies)


def test_keys_that_the_file_does_not_have(us):
    with pytest.raises(KeyError, match=r"no entry 3155; keys are integers from 0 to 3154"):
        measure(us, properties="area", keys=[0, 3155])
    with pytest.raises(KeyError, match=r"no entry -1"):
        measure(us, properties="area", keys=[-1])
    for wrong in ([0.0], [True], ["0"], [[0]], math.nan, [math.nan], True, "0"):
        with pytest.raises(TypeError, match=rf"keys: {re.escape(repr(wrong))}, expected an integer or several"):
            measure(us, properties="area", keys=wrong)


@pytest.mark.parametrize("wrong", [1.5, "a", True, None, np.True_])
def test_tiles_that_are_no_number_of_pixels(us, wrong):
    message = rf"tile = {re.escape(repr(wrong))} is {type(wrong).__name__}, expected an integer, 1 or more pixels"
    for image, properties in ((np.zeros((600, 1000)), "mean"), (None, "area")):
        with pytest.raises(TypeError, match=message):
            measure(us, image, properties, tile=wrong)
        with pytest.raises(ValueError, match=r"tile = 0, expected 1 or more"):
            measure(us, image, properties, tile=0)
