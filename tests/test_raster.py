"""Windows, samples and points of a file against all of its masks."""

from __future__ import annotations

import re
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import DATA, REFERENCE
from hypothesis import given, settings
from twins import (
    CountingSource,
    Twin,
    dense,
    overlaps,
    quiet,
    random_bytes,
    random_reader,
    reduces,
    seeds,
    strides,
)

import iid_dask
from iid_dask import BBox, IIDWarning, IIDWriter, pairs, pieces, raster
from iid_dask.layers import layer_numbers
from iid_dask.views import Points, Samples, Selection, View, Window, sampled

bounded = settings(deadline=None, max_examples=40)

READ = {
    "label": raster.label,
    "mask": raster.mask,
    "depth": raster.depth,
    "group_mask": lambda view, target: raster.group_mask(view, target, list(view.reader.groups)),
    "layers": lambda view, target: raster.layers(view, target, range(layer_numbers(view).max(initial=-1) + 1)),
    "color": raster.color,
}


def view_of(reader, **options):
    options.setdefault("shape", reader.shape)
    return View(reader, options.pop("shape"), **options)


def windows(shape, size):
    """All windows of a size, or some of them where there are very many."""
    every = list(all_windows(shape, size))
    return every if len(every) < 6000 else [every[i] for i in np.random.default_rng(size).integers(0, len(every), 1500)]


def all_windows(shape, size):
    for row in range(0, shape[0], size):
        for col in range(0, shape[1], size):
            yield BBox(row, col, min(row + size, shape[0]), min(col + size, shape[1]))


def assembled(name, view, size):
    """A whole array, made window by window."""
    shape = view.out_shape
    probe = READ[name](view, Window(BBox(0, 0, 0, 0)))
    lead = probe.shape[: probe.ndim - 2] if name != "color" else ()
    out = np.zeros((*lead, *shape, *probe.shape[len(lead) + 2 :]), probe.dtype)
    for box in all_windows(shape, size):
        if view.stride == 1 or view.reduce == "any":
            target = Window(box)
        else:
            rows, cols = np.arange(box.min_row, box.max_row), np.arange(box.min_col, box.max_col)
            target = Samples(sampled(view, rows, 0), sampled(view, cols, 1))
        rows, cols = box.slices
        out[(slice(None),) * len(lead) + (rows, cols)] = READ[name](view, target)
    return out


# --- files by the reference -------------------------------------------------------------------------------------


def expected(stem):
    with np.load(DATA / f"{stem}.expected.npz") as arrays:
        return {"last": arrays["last"], "first": arrays["first"], "depth": arrays["depth"]}


@pytest.fixture(params=["stored", "indexed"])
def opened(request, indexed):
    """Open a sample file, with or without an index."""
    readers = []

    def opening(stem):
        readers.append(iid_dask.open(DATA / f"{stem}.iid" if request.param == "stored" else indexed[stem]))
        assert readers[-1].has_index == (request.param == "indexed")
        return readers[-1]

    yield opening
    for reader in readers:
        reader.close()


@pytest.mark.parametrize("size", [7, 64, 4096])
@pytest.mark.parametrize("stem", REFERENCE)
def test_arrays_equal_the_reference_in_every_pixel(opened, stem, size):
    reader, arrays = opened(stem), expected(stem)
    assert reader.shape == arrays["last"].shape
    wanted = {("label", "last"): arrays["last"], ("label", "first"): arrays["first"]}
    wanted |= {("depth", "last"): arrays["depth"], ("mask", "last"): arrays["depth"] > 0}
    for (name, overlap), array in wanted.items():
        view = view_of(reader, overlap=overlap)
        assert raster.label(view, Window(BBox(0, 0, 1, 1))).dtype == np.uint32
        for box in windows(reader.shape, size):
            assert np.array_equal(READ[name](view, Window(box)), array[box.slices])


@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("size", [7, 64, 4096])
@pytest.mark.parametrize("stem", REFERENCE)
def test_strides_sample_the_reference(opened, stem, size, stride):
    reader, arrays = opened(stem), expected(stem)
    rows, cols = (np.minimum(np.arange(0, n, stride) + stride // 2, n - 1) for n in arrays["last"].shape)
    for overlap in ("last", "first"):
        found = assembled("label", view_of(reader, overlap=overlap, stride=stride), size)
        assert np.array_equal(found, arrays[overlap][np.ix_(rows, cols)])
    view = view_of(reader, stride=stride)
    assert np.array_equal(assembled("depth", view, size), arrays["depth"][np.ix_(rows, cols)])


@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("stem", REFERENCE)
def test_any_equals_the_highest_and_lowest_label_of_each_block(stem, stride):
    arrays = expected(stem)
    padded = np.pad(arrays["last"], [(0, -n % stride) for n in arrays["last"].shape])
    height, width = (n // stride for n in padded.shape)
    wanted = padded.reshape(height, stride, width, stride).max(axis=(1, 3))
    with iid_dask.open(DATA / f"{stem}.iid") as reader:
        view = view_of(reader, stride=stride, reduce="any")
        assert np.array_equal(assembled("label", view, 64), wanted)
        assert np.array_equal(assembled("mask", view, 4096), wanted > 0)


# --- against the twin -------------------------------------------------------------------------------------------


def check_all(reader, twin, view, size):
    for name, wanted in twin.pixels().items():
        found = assembled(name, view, size)
        assert found.shape == wanted.shape, name
        assert np.array_equal(found, wanted), name


@bounded
@given(seed=seeds, stride=strides, reduce=reduces, overlap=overlaps)
def test_every_variable_equals_the_twin(seed, stride, reduce, overlap):
    reader = random_reader(seed)
    options = {"stride": stride, "reduce": reduce, "overlap": overlap}
    check_all(reader, Twin(reader, **options), view_of(reader, **options), [7, 64, 4096][seed % 3])


@bounded
@given(seed=seeds, stride=strides, reduce=reduces)
def test_pixels_beyond_a_smaller_shape_are_cut(seed, stride, reduce):
    reader = random_reader(seed, image=False)
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 80)), int(rng.integers(1, 160))
    twin = Twin(reader, shape=shape, stride=stride, reduce=reduce)
    quiet(check_all, reader, twin, View(reader, shape, stride=stride, reduce=reduce), 64)


def test_blocks_at_a_cut_edge_show_nothing_from_beyond(tmp_path):
    """The last block reaches over the edge of the image; what a mask has there is not in the image."""
    mask = np.ones((13, 400), bool)
    mask[10:, :] = mask[:, 10:] = True
    mask[:10, :10] = False
    with IIDWriter(tmp_path / "a.iid") as writer:
        writer.add(b"", b"1", (0, 0, 13, 400), mask)
        writer.add(b"", b"2", (0, 10, 13, 400), mask[:, 10:])
    with iid_dask.open(tmp_path / "a.iid") as reader:
        for stride in (3, 7, 300):
            view = View(reader, (10, 10), stride=stride, reduce="any")
            for name in ("label", "depth", "mask"):
                assert not quiet(assembled, name, view, 64).any()


@bounded
@given(seed=seeds, overlap=overlaps)
def test_selections_equal_the_twin(seed, overlap):
    reader = random_reader(seed)
    rng = np.random.default_rng(seed)
    keys = [key for key in reader if rng.random() < 0.6]
    area = (int(rng.integers(1, 20)), None if rng.random() < 0.5 else 500)
    groups = [name for name in reader.groups if rng.random() < 0.5]
    names = {entry.domain for entry in reader.values() if rng.random() < 0.8}
    addresses = {entry.address for entry in reader.values() if rng.random() < 0.9}
    for selection, passes in (
        (Selection(keys=tuple(keys)), lambda e: e.key in keys),
        (Selection(area=area), lambda e: area[0] <= e.area <= (area[1] or 2**40)),
        (Selection(groups=tuple(groups)), lambda e: set(groups) & set(e.groups)),
        (Selection(domains=tuple(names)), lambda e: e.domain in names),
        (
            Selection(keys=tuple(keys), addresses=tuple(addresses)),
            lambda e: e.key in keys and e.address in addresses,
        ),
    ):
        twin = Twin(reader, overlap=overlap, keys=[e.key for e in reader.values() if passes(e)])
        view = view_of(reader, overlap=overlap, selection=selection)
        assert np.array_equal(view.keys, twin.keys)
        check_all(reader, twin, view, 64)


@bounded
@given(seed=seeds, stride=strides)
def test_points_and_scattered_samples(seed, stride):
    reader = random_reader(seed)
    rng = np.random.default_rng(seed)
    view, twin = view_of(reader, overlap="smallest"), Twin(reader, overlap="smallest")
    if not all(view.shape):
        return
    rows, cols = (np.sort(rng.integers(0, n, rng.integers(0, 40))) for n in view.shape)
    label, depth = twin.label(), twin.depth()
    target = Samples(rows, cols)
    assert np.array_equal(raster.label(view, target), label[np.ix_(rows, cols)])
    assert np.array_equal(raster.depth(view, target), depth[np.ix_(rows, cols)])
    cols = rng.integers(0, view.shape[1], len(rows))
    assert np.array_equal(raster.label(view, Points(rows, cols))[:, 0], label[rows, cols])
    assert np.array_equal(raster.depth(view, Points(rows, cols))[:, 0], depth[rows, cols])


@bounded
@given(seed=seeds)
def test_index_changes_no_answer(seed):
    plain, indexed = (random_reader(seed, index=index) for index in (False, True))
    assert not plain.has_index
    assert indexed.has_index
    for name in READ:
        if name != "group_mask" or plain.groups:
            found = [assembled(name, view_of(reader), 64) for reader in (plain, indexed)]
            assert np.array_equal(*found)


@bounded
@given(seed=seeds, stride=strides, reduce=reduces)
def test_batches_and_bands_of_any_size_give_the_same(seed, stride, reduce):
    data = random_bytes(seed)
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BATCH", int(rng.integers(1, 64)))
        patch.setattr(raster, "BAND_BYTES", int(rng.integers(1, 2000)))
        reader = iid_dask.open(data)
        options = {"stride": stride, "reduce": reduce, "overlap": "largest"}
        check_all(reader, Twin(reader, **options), view_of(reader, **options), 64)


def test_raise_names_a_pixel_that_two_entries_cover():
    with iid_dask.open(DATA / "edge.iid") as reader:
        arrays = expected("edge")
        for options in ({}, {"stride": 3}, {"stride": 3, "reduce": "any"}):
            view = view_of(reader, overlap="raise", **options)
            message = r"entries cover the pixel.*expected at most one"
            with pytest.raises(iid_dask.IIDOverlapError, match=message) as error:
                assembled("label", view, 4096)
            row, col = (int(number) for number in re.search(r"row (\d+), column (\d+)", str(error.value)).groups())
            assert arrays["depth"][row, col] > 1
        lone = view_of(reader, overlap="raise", selection=Selection(keys=(0, 2)))
        assert np.array_equal(np.unique(assembled("label", lone, 64)), [0, 1, 3])


def test_any_does_not_raise_where_neighbours_share_a_block_but_no_pixel(tmp_path):
    with IIDWriter(tmp_path / "a.iid") as writer:
        writer.add(b"", b"1", (0, 0, 4, 5), np.ones((4, 5)))
        writer.add(b"", b"2", (0, 5, 4, 9), np.ones((4, 4)))
    with iid_dask.open(tmp_path / "a.iid") as reader:
        view = view_of(reader, overlap="raise", stride=4, reduce="any")
        assert raster.label(view, Window(BBox(0, 0, 1, 3))).tolist() == [[1, 2, 2]]


# --- size -------------------------------------------------------------------------------------------------------


def test_far_corner_of_a_large_image():
    with iid_dask.open(DATA / "corner.iid") as reader:
        side = reader.shape[0]
        assert reader.shape == (65_535, 65_535)
        box = BBox(side - 40, side - 50, side, side)
        wanted = np.zeros(box.shape, np.uint32)
        for key, entry in reader.items():
            cut, own = entry.bbox.intersection(box), entry.bbox
            part = entry.mask()[cut.min_row - own.min_row :, cut.min_col - own.min_col :][: cut.height, : cut.width]
            rows, cols = cut.min_row - box.min_row, cut.min_col - box.min_col
            wanted[rows : rows + cut.height, cols : cols + cut.width][part] = key + 1
        assert len(np.unique(wanted)) == 3
        view = view_of(reader)
        assert np.array_equal(raster.label(view, Window(box)), wanted)
        assert raster.label(view, Window(BBox(0, 0, 2, 2))).tolist() == [[3, 0], [0, 0]]


@pytest.mark.parametrize("reduce", ["nearest", "any"])
def test_overview_costs_what_it_shows(reduce):
    with iid_dask.open(DATA / "corner.iid") as reader:
        view = view_of(reader, stride=128, reduce=reduce)
        assert view.out_shape == (512, 512)
        assembled("label", view, 512)
        tracemalloc.start()
        start = time.process_time()
        found = assembled("label", view, 512)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found[0, 0] == (0 if reduce == "nearest" else 3)
        assert (found[511] > 0).all() if reduce == "any" else not found[510].any()
        assert seconds < 2
        assert peak < 8 * 2**20


@pytest.fixture
def wide(tmp_path):
    """One mask of 2,000 × 65,535 noisy pixels: 16 MB of bits."""
    path = tmp_path / "wide.iid"
    rng = np.random.default_rng(1)
    mask = rng.random((2000, 65_535), dtype=np.float32) < 0.5
    bits = np.packbits(mask)
    box = BBox(0, 0, 2000, 65_535)
    with IIDWriter(path) as writer:
        writer.add(b"", b"wide", box, regions=[iid_dask.Region(box, bits.tobytes())])
    return path, mask


def test_narrow_window_of_a_wide_mask_reads_little(wide):
    path, mask = wide
    source = CountingSource(path)
    with iid_dask.open(source) as reader:
        view = view_of(reader)
        _ = reader.columns
        for target, wanted in (
            (Window(BBox(100, 30_000, 1100, 30_008)), mask[100:1100, 30_000:30_008]),
            (Samples(np.array([3, 1000, 1999]), np.array([7, 9])), mask[np.ix_([3, 1000, 1999], [7, 9])]),
            (Points(np.array([3, 1000]), np.array([65_534, 65_530])), mask[[3, 1000], [65_534, 65_530]][:, None]),
        ):
            before = source.nbytes
            assert np.array_equal(raster.mask(view, target), wanted)
            assert source.nbytes - before < 4 * 1000


def test_memory_does_not_grow_with_a_mask(wide, monkeypatch):
    path, mask = wide
    monkeypatch.setattr(pieces, "BATCH", 2**20)
    # Half of the rows close together and a long gap: the mean spacing says little about any piece.
    rows = np.concatenate([np.arange(0, 700), np.arange(1300, 2000)])
    cols = np.arange(0, 65_535, 60)
    with iid_dask.open(path) as reader:
        view = view_of(reader)
        for target, wanted in (
            (Window(BBox(0, 0, 2000, 500)), mask[:, :500]),
            (Samples(rows, cols), mask[np.ix_(rows, cols)]),
        ):
            raster.mask(view, target)
            tracemalloc.start()
            found = raster.mask(view, target)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert np.array_equal(found, wanted)
            assert peak < found.nbytes + 3 * 2**20


def test_small_masks_far_apart_do_not_bring_what_lies_between(tmp_path, monkeypatch):
    """Every second entry is one pixel; those between have 4,000 bytes, just less than a gap that is read."""
    path = tmp_path / "pairs.iid"
    box, noise = BBox(0, 0, 160, 200), np.random.default_rng(1).bytes(4000)
    with IIDWriter(path) as writer:
        for n in range(500):
            writer.add(b"", b"", (n, 0, n + 1, 1), np.ones((1, 1)))
            writer.add(b"", b"", box, regions=[iid_dask.Region(box, noise)])
    monkeypatch.setattr(pieces, "BATCH", 2**17)
    with iid_dask.open(path) as reader:
        view = view_of(reader, selection=Selection(keys=tuple(range(0, 1000, 2))))
        raster.mask(view, Window(BBox(0, 0, 500, 5)))
        tracemalloc.start()
        found = raster.mask(view, Window(BBox(0, 0, 500, 5)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert np.array_equal(found, np.arange(5) == np.zeros((500, 1)))
        assert peak < 2**20


# --- size rules -------------------------------------------------------------------------------------------------


def test_contradicting_size_is_said_once_when_columns_are_needed(tmp_path, recwarn):
    with IIDWriter(tmp_path / "a.iid", metadata={"image": {"height": 3, "width": 4}}) as writer:
        writer.add(b"", b"1", (0, 0, 5, 5), np.ones((5, 5)))
    with iid_dask.open(tmp_path / "a.iid") as reader:
        view = view_of(reader)
        assert not recwarn
        with pytest.warns(IIDWarning, match=r"1 entries reach beyond the image of 3 by 4 pixels, the first is entry 0"):
            found = raster.label(view, Window(BBox(0, 0, 3, 4)))
        assert found.tolist() == [[1] * 4] * 3
        raster.label(view, Window(BBox(0, 0, 3, 4)))
        raster.depth(view, Window(BBox(0, 0, 3, 4)))


# --- layers -----------------------------------------------------------------------------------------------------


def test_layers_lose_nothing():
    with iid_dask.open(DATA / "us.iid") as reader:
        view = view_of(reader)
        numbers = layer_numbers(view)
        assert numbers.max() == 2
        planes = READ["layers"](view, Window(BBox(0, 0, *reader.shape)))
        flat = planes.reshape(3, -1)
        counts = np.bincount(flat.ravel(), minlength=len(reader) + 1)
        for key, entry in reader.items():
            found = planes[numbers[key]][entry.bbox.slices] == key + 1
            assert np.array_equal(found, entry.mask())
            assert counts[key + 1] == entry.area


@bounded
@given(seed=seeds)
def test_layers_are_first_fit(seed):
    reader = random_reader(seed, entries=25)
    twin = Twin(reader)
    numbers = layer_numbers(view_of(reader))
    assert numbers[twin.keys].tolist() == twin.layer_numbers()
    gone = np.setdiff1d(np.arange(len(reader.lut)), twin.keys)
    assert np.all(numbers[gone] == -1)


@bounded
@given(seed=seeds)
def test_layers_do_not_depend_on_how_much_is_held_at_once(seed):
    reader = random_reader(seed, entries=25)
    wanted = Twin(reader).layer_numbers()
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BYTES", int(rng.integers(1, 40)))
        patch.setattr(pairs, "PAIRS", int(rng.integers(1, 5)))
        assert layer_numbers(view_of(reader))[reader.entry_keys].tolist() == wanted


# --- threads ----------------------------------------------------------------------------------------------------


def test_eight_threads_read_what_one_reads():
    arrays = expected("us")
    rng = np.random.default_rng(3)
    corners = np.stack([rng.integers(0, 540, 400), rng.integers(0, 900, 400)], axis=1).tolist()
    with iid_dask.open(DATA / "us.iid") as reader:
        view = view_of(reader)

        def right(corner):
            box = BBox(*corner, corner[0] + 60, corner[1] + 100)
            return np.array_equal(raster.label(view, Window(box)), arrays["last"][box.slices]) and np.array_equal(
                raster.depth(view, Window(box)), arrays["depth"][box.slices]
            )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, corners))


def test_twin_sees_what_the_reference_sees():
    """The twin itself, against the arrays of another program."""
    for stem in ("edge", "nuclei"):
        with iid_dask.open(DATA / f"{stem}.iid") as reader:
            arrays = expected(stem)
            for overlap in ("last", "first"):
                assert np.array_equal(Twin(reader, overlap=overlap).label(), arrays[overlap])
            assert np.array_equal(Twin(reader).depth(), arrays["depth"])
            assert dense(reader, []).shape == (0, 0, 0)
