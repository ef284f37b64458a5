"""Every query of an open file, against all of its masks as dense arrays."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import CountingSource, dense, quiet, random_reader, seeds

import iid_dask
from iid_dask import BBox, IIDReader, IIDWriter, lookup, queries

SAMPLES = ("nuclei", "us", "edge", "empty")
names = st.binary(max_size=3) | st.sampled_from([b"", b"cell", b"\xff\xfe\x00", b"cellcellcell", b"cellcellcelk"])


@pytest.fixture(params=[*SAMPLES, "corner"])
def sample(request, indexed):
    """Each sample file, with an index."""
    with iid_dask.open(indexed[request.param]) as reader:
        yield reader


@pytest.fixture(params=SAMPLES)
def small(request, indexed):
    """Samples whose masks fit in memory, with masks: all but the one of 65,535 pixels a side."""
    with iid_dask.open(indexed[request.param]) as reader:
        yield reader, dense(reader, list(reader))


def keys_where(reader, wanted):
    return [key for key, kept in zip(reader, wanted, strict=True) if kept]


def boxes_meet(entry, box):
    common = entry.bbox.intersection(box)
    return common.height > 0 and common.width > 0


def windows(height, width):
    row, col = st.integers(-3, height + 3), st.integers(-3, width + 3)
    return st.tuples(row, col, row, col).map(
        lambda w: BBox(min(w[0], w[2]), min(w[1], w[3]), max(w[0], w[2]), max(w[1], w[3]))
    )


def in_window(masks, box):
    rows, cols = (slice(max(s.start, 0), max(s.stop, 0)) for s in box.slices)
    return masks[:, rows, cols].any(axis=(1, 2))


# --- at ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seeds, st.data())
def test_points_are_covered_by_those_whose_mask_has_them(seed, data):
    reader = random_reader(seed)
    masks = dense(reader, list(reader))
    height, width = masks.shape[1:]
    count = data.draw(st.integers(0, 40))
    rng = np.random.default_rng(seed)
    rows, cols = rng.integers(-2, height + 3, count), rng.integers(-2, width + 3, count)
    wanted = [
        (key, point)
        for key, mask in zip(reader, masks, strict=True)
        for point, (i, j) in enumerate(zip(rows, cols, strict=True))
        if 0 <= i < height and 0 <= j < width and mask[i, j]
    ]
    keys, points = reader.at(rows, cols)
    assert (keys.dtype, points.dtype) == (np.uint32, np.int64)
    assert list(zip(keys.tolist(), points.tolist(), strict=True)) == wanted
    for i, j in zip(rows[:3], cols[:3], strict=True):
        alone = reader.at(int(i), int(j))
        inside = 0 <= i < height and 0 <= j < width
        assert alone.tolist() == (keys_where(reader, masks[:, i, j]) if inside else [])


def test_every_pixel_of_the_samples(small):
    reader, masks = small
    rows, cols = np.indices(masks.shape[1:])
    keys, points = reader.at(rows, cols)
    where = np.stack([keys.astype(np.int64), points], axis=1)
    entry, pixel = np.nonzero(masks.reshape(len(masks), rows.size))
    np.testing.assert_array_equal(where, np.stack([reader.entry_keys[entry].astype(np.int64), pixel], axis=1))


def test_points_in_small_buffers_and_batches(small, monkeypatch):
    reader, masks = small
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, max(masks.shape[1], 1), 50), rng.integers(0, max(masks.shape[2], 1), 50)
    whole = reader.at(rows, cols)
    monkeypatch.setattr(queries, "PAIRS", 1)
    monkeypatch.setattr("iid_dask.pieces.BATCH", 1)
    parts = reader.at(rows, cols)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_corner_of_the_largest_image(indexed):
    with iid_dask.open(indexed["corner"]) as reader:
        side = 65_535
        last = [key for key, entry in reader.items() if entry.bbox.max_row == side and entry.bbox.max_col == side]
        wanted = [key for key in last if reader[key].mask()[-1, -1]]
        assert wanted
        assert reader.at(side - 1, side - 1).tolist() == wanted
        assert reader.at(side, side).tolist() == []
        assert reader.at(2**40, -(2**40)).tolist() == []


def test_at_wants_integers_of_one_shape(sample):
    with pytest.raises(TypeError, match=r"row = 1\.5 is float64, expected integers"):
        sample.at(1.5, 2)
    with pytest.raises(TypeError, match="expected integers"):
        sample.at([True], [False])
    with pytest.raises(ValueError, match=r"rows of shape \(2,\), columns of shape \(3,\), expected one shape"):
        sample.at([1, 2], [1, 2, 3])
    assert [part.tolist() for part in sample.at([], [])] == [[], []]


def test_at_reads_one_byte_a_point(tmp_path):
    path = tmp_path / "large.iid"
    with IIDWriter(path) as writer:
        writer.add(b"", b"", (0, 0, 3000, 3000), np.ones((3000, 3000)))
    source = CountingSource(path)
    reader = IIDReader(source)
    _ = reader.columns
    before = source.nbytes
    assert reader.at(1500, 1500).tolist() == [0]
    assert source.nbytes - before == 1


# --- region -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seeds, st.data())
def test_regions_of_the_image(seed, data):
    reader = random_reader(seed)
    masks = dense(reader, list(reader))
    box = data.draw(windows(*masks.shape[1:]))
    assert reader.region(box).tolist() == keys_where(reader, in_window(masks, box))
    met = [boxes_meet(entry, box) for entry in reader.values()]
    assert reader.region(tuple(box), exact=False).tolist() == keys_where(reader, met)
    assert reader.region(box).dtype == np.uint32


def test_regions_of_the_samples(small):
    reader, masks = small
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows, cols = np.sort(rng.integers(-5, masks.shape[1] + 5, 2)), np.sort(rng.integers(-5, masks.shape[2] + 5, 2))
        box = BBox(rows[0], cols[0], rows[1], cols[1])
        assert reader.region(box).tolist() == keys_where(reader, in_window(masks, box))


def test_a_hole_holds_nobody(tmp_path):
    ring = np.ones((9, 9), bool)
    ring[2:7, 2:7] = False
    with IIDWriter(tmp_path / "ring.iid") as writer:
        writer.add(b"", b"ring", (10, 10, 19, 19), ring)
        writer.add(b"", b"nested", (14, 14, 15, 15), [[1]])
        writer.add(b"", b"empty", (12, 12, 17, 17), np.zeros((5, 5)))
    with iid_dask.open(tmp_path / "ring.iid") as reader:
        assert reader.region((12, 12, 17, 17)).tolist() == [1]
        assert reader.region((12, 12, 17, 17), exact=False).tolist() == [0, 1, 2]
        assert reader.region((12, 12, 14, 17)).tolist() == []
        assert reader.region((11, 12, 14, 17)).tolist() == [0]
        assert reader.at(12, 12).tolist() == []
        assert reader.at(11, 11).tolist() == [0]


def test_windows_beyond_the_image_and_without_pixels(sample):
    side = 65_535
    assert sample.region((side, side, side + 9, side + 9)).tolist() == []
    assert sample.region((5, 5, 5, 9)).tolist() == []
    assert sample.region((5, 5, 5, 9), exact=False).tolist() == []
    everywhere = (-(2**70), -(2**70), 2**70, 2**70)
    assert sample.region(everywhere).tolist() == [key for key, entry in sample.items() if entry.area]


def test_a_box_upside_down_is_refused(sample):
    with pytest.raises(ValueError, match=r"\(9, 0, 2, 5\) is upside down: expected \(min_row, min_col"):
        sample.region((9, 0, 2, 5))
    with pytest.raises(ValueError, match="upside down"):
        sample.filter(bbox=(0, 9, 5, 2))
    with pytest.raises(ValueError, match="found 3 values"):
        sample.region((1, 2, 3))
    with pytest.raises(TypeError, match=r"min_row = 0\.5 is no integer: expected pixels"):
        sample.region((0.5, 0, 5, 5))
    for wrong in (None, "abcd"):
        with pytest.raises(TypeError, match=r"a bounding box is \(min_row, min_col, max_row, max_col\), found"):
            sample.region(wrong)


# --- names, groups, columns -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(names, max_size=30), st.lists(names, max_size=30))
def test_names_are_found_as_a_dictionary_would(found, wanted):
    text = b"".join(found)
    stops = np.cumsum([len(name) for name in found], dtype=np.int64)
    starts = stops - np.array([len(name) for name in found], np.int64)
    ordered = sorted(set(wanted))
    expected = [ordered.index(name) if name in ordered else -1 for name in found]
    assert lookup.find_names(text, starts, stops, wanted).tolist() == expected


@settings(deadline=None)
@given(seeds, st.data())
def test_look_for_and_filter_pass_what_they_say(seed, data):
    reader = random_reader(seed)
    known = [*zip(*reader.names(), strict=True), (b"no", b"body")]
    some = data.draw(st.lists(st.sampled_from(known), max_size=4))
    domains = data.draw(st.none() | st.just([domain for domain, _ in some]))
    addresses = data.draw(st.none() | st.just([address for _, address in some]))
    groups = data.draw(st.none() | st.sets(st.sampled_from([*reader.groups, None]), max_size=2))
    groups = None if groups is None else [name for name in groups if name is not None]
    area = data.draw(st.none() | st.tuples(st.none() | st.integers(-5, 300), st.none() | st.integers(300, 3000)))
    box = data.draw(st.none() | windows(70, 150))

    def passes(entry, *tests):
        return all(tests) and (groups is None or any(name in entry.groups for name in groups))

    wanted = [
        key
        for key, e in reader.items()
        if passes(e, domains is None or e.domain in domains, addresses is None or e.address in addresses)
    ]
    assert reader.look_for(addresses, domains, groups).tolist() == wanted
    low, high = area or (None, None)
    wanted = [
        key
        for key, e in reader.items()
        if passes(
            e,
            domains is None or e.domain in domains,
            low is None or e.area >= low,
            high is None or e.area <= high,
            box is None or boxes_meet(e, box),
        )
    ]
    assert reader.filter(groups=groups, domains=domains, area=area, bbox=box).tolist() == wanted


def test_one_name_or_one_group_needs_no_list(indexed):
    with iid_dask.open(indexed["us"]) as reader:
        assert reader.look_for(b"04").tolist() == [1]
        assert reader.look_for(b"None", b"nation", "nation").tolist() == [0]
        assert reader.look_for(None, domains=b"states").tolist() == reader.groups["states"].tolist()
        assert reader.look_for([]).tolist() == []
        assert reader.filter(groups="states", area=(11_613, 11_613)).tolist() == [1]


def test_text_is_refused_where_names_are_bytes(sample):
    with pytest.raises(TypeError, match=r"addresses: 'cell' is str, expected bytes; write 'cell'\.encode\(\)"):
        sample.look_for("cell")
    with pytest.raises(TypeError, match="domains: 7 is int, expected bytes"):
        sample.look_for(b"", domains=[b"a", 7])
    with pytest.raises(TypeError, match=r"groups: b'g' is bytes, expected str"):
        sample.filter(groups=b"g")


def test_an_unknown_group_is_told_with_those_that_exist(indexed):
    with iid_dask.open(indexed["us"]) as reader:
        for ask in (lambda: reader.filter(groups="cities"), lambda: reader.look_for(b"", groups=["states", "cities"])):
            with pytest.raises(KeyError, match=r"no group 'cities'; there is: \['nation', 'states', 'counties'\]"):
                ask()


def test_malformed_areas(sample):
    for wrong in (5, (1, 2, 3)):
        with pytest.raises(ValueError, match=r"expected \(min, max\) in pixels"):
            sample.filter(area=wrong)
    with pytest.raises(TypeError, match="expected integers, pixels, or None"):
        sample.filter(area=(1.5, None))
    with pytest.raises(ValueError, match=r"area = \(9, 5\) is upside down: expected \(min, max\)"):
        sample.filter(area=(9, 5))
    assert len(sample.filter(area=(2**70, None))) == len(sample.filter(area=(None, -1))) == 0
    assert len(sample.filter(area=(-5, 2**70))) == len(sample)


@pytest.mark.parametrize("index", [False, True])
def test_a_group_of_ten_among_many_touches_what_they_need(tmp_path, index):
    path = tmp_path / "many.iid"
    with IIDWriter(path, index=index) as writer:
        for key in range(20_000):
            row, col = divmod(key, 200)
            groups = ["few"] if key % 2000 == 7 else []
            writer.add(
                b"d", b"%08d" % key, (row * 9, col * 9, row * 9 + 8, col * 9 + 8), np.ones((8, 8)), groups=groups
            )
    source = CountingSource(path)
    reader = IIDReader(source)
    opened = source.nbytes
    assert reader.filter(groups="few", area=(64, 64)).tolist() == list(range(7, 20_000, 2000))
    heads = source.nbytes - opened
    assert heads == 10 * (16 + 12 + 8)
    assert reader.look_for(b"%08d" % 2007, groups="few").tolist() == [2007]
    assert source.nbytes - opened - heads == 10 * (12 + 9)
    assert reader.filter(groups="few").tolist() == list(range(7, 20_000, 2000))
    assert source.nbytes - opened - heads == 10 * (12 + 9)


def test_names_are_found_without_a_segment(indexed):
    source = CountingSource(indexed["us"])
    reader = IIDReader(source)
    opened = source.nbytes
    assert len(reader.look_for([b"04", b"04013"])) == 2
    assert source.nbytes - opened == reader.header["iids_length"]


def test_boxes_beyond_all_images_are_met_by_nobody(sample):
    far = (70_000, 0, 80_000, 10)
    for ask in (lambda: sample.region(far), lambda: sample.region(far, exact=False), lambda: sample.filter(bbox=far)):
        assert ask().tolist() == []


def test_an_answer_that_is_edited_changes_no_later_one(indexed):
    with iid_dask.open(indexed["us"]) as reader:
        wanted = list(reader)
        for ask in (reader.filter, lambda: reader.look_for(None), lambda: reader.filter(groups="states")):
            ask()[:] = 7
        assert list(reader) == reader.filter().tolist() == wanted
        for shared in (reader.entry_keys, reader.live, reader.groups["states"]):
            with pytest.raises(ValueError, match="read-only"):
                shared[0] = 1


def test_an_unpickled_reader_is_opened_at_first_use_and_once(indexed, tmp_path):
    path = shutil.copyfile(indexed["us"], tmp_path / "us.iid")
    with iid_dask.open(path) as reader:
        data = pickle.dumps(reader)
        keys = reader.at(300, 200)
    path.write_bytes(b"")
    changed = pickle.loads(data)  # what a scheduler does, which need not reach the file
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
        changed.at(300, 200)
    with pytest.raises(AttributeError, match="no attribute 'shapes'"):
        _ = iid_dask.open(indexed["us"]).shapes
    with iid_dask.open(indexed["us"]) as reader:
        copies = [pickle.loads(pickle.dumps(reader)) for _ in range(2)]
    for copy in copies:
        assert copy.at(300, 200).tolist() == keys.tolist()
    assert copies[0].columns is copies[1].columns
    assert copies[0] == copies[1] == reader
    assert isinstance(copies[0], IIDReader)


def test_removed_entries_are_no_answer(tmp_path):
    with IIDWriter(tmp_path / "gone.iid") as writer:
        writer.add(b"", b"", (0, 0, 2, 2), np.ones((2, 2)))
        writer.add_removed()
    with iid_dask.open(tmp_path / "gone.iid") as reader:
        assert reader.look_for(b"").tolist() == [0]
        assert reader.filter(area=(None, None)).tolist() == [0]
        assert reader.filter(area=(0, None), bbox=(0, 0, 9, 9)).tolist() == [0]
        assert reader.region((0, 0, 9, 9), exact=False).tolist() == [0]


def test_the_five_questions_of_the_format(indexed):
    """Image by IID, IID by image, segment by IID, IID by segment, segments by image section."""
    with iid_dask.open(indexed["us"]) as f:
        (key,) = f.look_for(b"04", domains=b"states")
        assert f[key].mask().sum() == f[key].area == 11_613
        assert (f[key].domain, f[key].address) == (b"states", b"04")
        domains, addresses = f.names()
        assert len(addresses) == len(f)
        assert (domains[key], addresses[key]) == (b"states", b"04")
        assert key in f.region(f[key].bbox)


def test_samples_are_read_the_same_without_an_index(indexed):
    for name in SAMPLES:
        with iid_dask.open(DATA / f"{name}.iid") as plain, iid_dask.open(indexed[name]) as with_index:
            box = (3, 3, 90, 90)
            np.testing.assert_array_equal(quiet(plain.region, box), quiet(with_index.region, box))
            np.testing.assert_array_equal(plain.filter(area=(5, None)), with_index.filter(area=(5, None)))


def test_keys_are_integers_one_or_several(indexed):
    with iid_dask.open(indexed["us"]) as reader:
        for keys in (5, np.uint8(5), [5], (key for key in [5]), {5}, np.array([5])):
            assert lookup.as_keys(reader, keys).tolist() == [5]
        assert lookup.as_keys(reader, []).dtype == np.uint32
        for wrong in (b"5", "5", 1.0, [[1], [1, 2]], [[1]], [None], True):
            with pytest.raises(TypeError, match=r"keys: .*, expected an integer or several"):
                lookup.as_keys(reader, wrong)
        with pytest.raises(KeyError, match="no entry -1; keys are integers from 0 to 3154"):
            lookup.as_keys(reader, [3, -1])
