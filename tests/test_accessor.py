"""``ds.iid``: queries and crops in the dataset's own positions, whatever was selected of it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import Twin, quiet, random_bytes, reduces, seeds

import iid_dask

US = iid_dask.sample("us")
HEIGHT, WIDTH = 600, 1000


def opened(chunks=None, **options):
    return xr.open_dataset(US, engine="iid", chunks=chunks, **options)


@pytest.fixture(params=[None, 4096, 100], ids=["lazy", "one chunk", "chunks"])
def ds(request):
    chunks = request.param and {"y": request.param, "x": request.param}
    with quiet_chunks(chunks) as dataset:
        yield dataset


def quiet_chunks(chunks, **options):
    ds = opened(None, **options)
    return ds if chunks is None else ds.chunk(chunks)


@pytest.fixture(scope="module")
def reader():
    with iid_dask.open(US) as f:
        yield f


WINDOWS = {
    "all": {},
    "window": {"y": slice(100, 400), "x": slice(50, 777)},
    "rows only": {"y": slice(290, 310)},
    "every third": {"y": slice(20, 500, 3), "x": slice(5, None, 2)},
    "turned around": {"y": slice(None, None, -1)},
    "chosen": {"y": [5, 300, 301, 7], "x": [200, 100, 200]},
}


@pytest.mark.parametrize("window", WINDOWS)
def test_positions_follow_what_was_selected(ds, reader, window):
    part = ds.isel(WINDOWS[window])
    rows = np.arange(HEIGHT)[WINDOWS[window].get("y", slice(None))]
    cols = np.arange(WIDTH)[WINDOWS[window].get("x", slice(None))]
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, len(rows), 50), rng.integers(0, len(cols), 50)
    keys, points = part.iid.at(i, j)
    wanted = reader.at(rows[i], cols[j])
    np.testing.assert_array_equal(keys, wanted[0])
    np.testing.assert_array_equal(points, wanted[1])
    np.testing.assert_array_equal(part.iid.at(-1, 0), reader.at(rows[-1], cols[0]))


def test_windows_of_windows(ds, reader):
    part = ds.isel(y=slice(100, 500), x=slice(100, 900)).isel(y=slice(50, 300), x=slice(1, 700, 2)).isel(x=slice(5, 90))
    np.testing.assert_array_equal(part.iid.at(7, 9), reader.at(157, 100 + 1 + 2 * (5 + 9)))


def test_positions_outside_are_an_error(ds):
    with pytest.raises(IndexError, match="out of bounds"):
        ds.isel(y=slice(10)).iid.at(10, 0)


def test_regions_are_cut_to_the_window(ds, reader):
    part = ds.isel(y=slice(100, 400), x=slice(50, 777))
    for box in ((0, 0, 10, 10), (-5, 3, 40, 9999), (250, 700, 999, 999), (3, 3, 3, 9)):
        top, left = max(box[0], 0) + 100, max(box[1], 0) + 50
        in_image = (top, left, max(top, min(box[2], 300) + 100), max(left, min(box[3], 727) + 50))
        np.testing.assert_array_equal(part.iid.region(box), reader.region(in_image))
        np.testing.assert_array_equal(part.iid.region(box, exact=False), reader.region(in_image, exact=False))


def test_only_entries_that_are_shown_answer(reader):
    ds = opened(groups="counties", area=(100, None))
    shown = reader.filter(groups="counties", area=(100, None))
    assert ds.iid.at(300, 200).tolist() == [key for key in reader.at(300, 200) if key in shown]
    assert ds.iid.region((0, 0, 600, 1000)).tolist() == shown.tolist()
    keys, _ = ds.iid.at(np.arange(600), np.full(600, 500))
    assert set(keys.tolist()) <= set(shown.tolist())


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 7), reduces, st.data())
def test_strides_and_blocks(seed, stride, reduce, data):
    content = random_bytes(seed)
    ds = quiet(xr.open_dataset, content, engine="iid", stride=stride, reduce=reduce)
    twin = Twin(iid_dask.open(content), shape=quiet(lambda: ds.iid.reader.shape), stride=stride, reduce=reduce)
    height, width = twin.out_shape
    if not height or not width:
        return
    i, j = (np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9))) for size in (height, width))
    i, j = i[: min(len(i), len(j))], j[: min(len(i), len(j))]
    keys, points = quiet(ds.iid.at, i, j)
    wanted = [(int(key), p) for n, key in enumerate(twin.keys) for p in range(len(i)) if twin.masks[n, i[p], j[p]]]
    assert list(zip(keys.tolist(), points.tolist(), strict=True)) == wanted
    alone = quiet(ds.iid.at, int(i[0]), int(j[0]))
    assert alone.tolist() == [key for key, point in wanted if point == 0]


# --- masks and crops --------------------------------------------------------------------------------------------


def test_masks_are_lazy_planes_of_the_window(ds, reader):
    part = ds.isel(y=slice(100, 450), x=slice(50, 777))
    masks = part.iid.masks([40, 0, 172])
    assert masks.dims == ("entry", "y", "x")
    assert masks.dtype == bool
    assert masks.key.values.tolist() == [40, 0, 172]
    assert (masks.chunks is None) == (ds.chunks == {} or not part.label.chunks)
    for plane, key in zip(masks, (40, 0, 172), strict=True):
        whole = np.zeros((HEIGHT, WIDTH), bool)
        whole[reader[key].bbox.slices] = reader[key].mask()
        np.testing.assert_array_equal(plane, whole[100:450, 50:777])
    turned = ds.isel(y=slice(None, None, -7)).iid.masks(40)
    np.testing.assert_array_equal(turned, ds.iid.masks(40).values[:, ::-7])


def test_masks_of_nobody_and_of_the_unknown(ds):
    assert ds.iid.masks([]).shape == (0, HEIGHT, WIDTH)
    with pytest.raises(KeyError, match="no entry 3155; keys are integers from 0 to 3154"):
        ds.iid.masks([3, 3155])


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 5), reduces)
def test_masks_of_random_files(seed, stride, reduce):
    content = random_bytes(seed)
    ds = quiet(xr.open_dataset, content, engine="iid", stride=stride, reduce=reduce)
    twin = Twin(iid_dask.open(content), shape=quiet(lambda: ds.iid.reader.shape), stride=stride, reduce=reduce)
    masks = quiet(lambda: ds.iid.masks(twin.keys.tolist()).values)
    np.testing.assert_array_equal(masks, twin.masks)
    some = quiet(lambda: ds.iid.masks(twin.keys.tolist()).isel(y=slice(None, None, 2), x=slice(1, None, 3)).values)
    np.testing.assert_array_equal(some, twin.masks[:, ::2, 1::3])


def test_crop_is_the_box_of_an_entry(ds, reader):
    for key, margin in ((40, 0), (40, 7), (20, 50), (0, 10_000)):
        box = reader[key].bbox
        crop = ds.iid.crop(key, margin)
        rows = slice(max(box.min_row - margin, 0), box.max_row + margin)
        cols = slice(max(box.min_col - margin, 0), box.max_col + margin)
        xr.testing.assert_equal(crop.label, ds.label.isel(y=rows, x=cols))
    inner = ds.iid.crop(40).iid.crop(40)
    assert inner.sizes == ds.iid.crop(40).sizes
    corner = reader[40].bbox.min_row, reader[40].bbox.min_col
    np.testing.assert_array_equal(ds.iid.crop(40).iid.at(60, 60), reader.at(corner[0] + 60, corner[1] + 60))


def test_crop_of_what_lies_elsewhere(ds):
    with pytest.raises(ValueError, match=r"entry 40, box \(.*\), has no pixel in the window"):
        ds.isel(y=slice(10)).iid.crop(40)
    with pytest.raises(KeyError, match="no entry 9999"):
        ds.iid.crop(9999)


def test_crop_with_a_stride_holds_every_sampled_pixel(reader):
    ds = opened(stride=8)
    box = reader[40].bbox
    crop = ds.iid.crop(40)
    rows, cols = slice(box.min_row // 8, -(-box.max_row // 8)), slice(box.min_col // 8, -(-box.max_col // 8))
    xr.testing.assert_equal(crop.label, ds.label[rows, cols])


def test_margins_are_not_negative(ds):
    for crop in (lambda: ds.iid.crop(1, margin=-5), lambda: ds.iid.autocrop(margin=-400), lambda: ds.iid.crop(1, 1.5)):
        with pytest.raises(ValueError, match=r"margin = .*, expected 0 or more elements"):
            crop()


def test_an_unpickled_dataset_has_it_in_another_process(ds, tmp_path):
    (tmp_path / "ds.pickle").write_bytes(pickle.dumps(ds.isel(y=slice(100, 400))))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).iid.at(200, 200).tolist())"
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "ds.pickle")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout == f"{ds.iid.at(300, 200).tolist()}\n"


def test_the_reader_answers_too(ds):
    assert isinstance(ds.iid.reader, iid_dask.IIDReader)
    assert ds.iid.reader.look_for(b"04").tolist() == [1]


def test_autocrop_holds_what_is_shown(reader):
    ds = opened(keys=[40, 13])
    crop = ds.iid.autocrop()
    whole, part = ds.mask.values, crop.mask.values
    assert part.sum() == whole.sum()
    for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
        assert edge.any()
    assert ds.iid.autocrop(margin=2).sizes["y"] == crop.sizes["y"] + 4
    with pytest.raises(ValueError, match="has no pixel"):
        ds.isel(y=slice(3)).iid.autocrop()


def test_what_needs_a_window_says_so(ds):
    strided = ds.isel(y=slice(None, None, 2))
    for ask in (lambda: strided.iid.crop(40), lambda: strided.iid.region((0, 0, 9, 9)), strided.iid.overlaps):
        with pytest.raises(ValueError, match="no plain window of the image"):
            ask()


def test_overlaps_of_a_window(ds, reader):
    part = ds.isel(y=slice(300, 330), x=slice(200, 240))
    wanted = reader.overlaps(reader.region((300, 200, 330, 240)), min_pixels=40)
    assert len(wanted)
    assert part.iid.overlaps(min_pixels=40).equals(wanted)


def test_entries_of_a_window(ds, reader):
    part = ds.isel(y=slice(300, 330), x=slice(200, 240))
    keys = part.iid.entries.key.compute()
    assert keys.tolist() == reader.filter(bbox=(300, 200, 330, 240)).tolist()
    assert len(ds.iid.entries) == len(reader)
    states = opened(groups="states").iid.entries
    assert states.key.compute().tolist() == reader.groups["states"].tolist()
    assert states.area.sum().compute() == reader.columns.areas[reader.groups["states"]].sum()


def test_computed_arrays_have_no_place(ds):
    for changed in (ds.load(), ds[["label"]] * 2, ds[["key"]]):
        with pytest.raises(ValueError, match="no variable"):
            changed.iid.at(1, 1)


def test_every_level_of_a_pyramid_has_it(reader):
    tree = xr.open_datatree(US, engine="iid")
    level = tree["1"].to_dataset()
    np.testing.assert_array_equal(level.iid.at(100, 100), reader.at(201, 201))


def test_nothing_is_read_to_build_masks(tmp_path, monkeypatch):
    ds = opened({})
    for read in ("read", "read_many"):
        monkeypatch.setattr(f"iid_dask.format.source.LocalSource.{read}", None)
    assert ds.iid.masks(range(3000)).shape == (3000, HEIGHT, WIDTH)
