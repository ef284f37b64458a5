"""Pairs of entries that share pixels, and what flattening loses, against all masks laid open."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
from itertools import combinations, pairwise

import dask
import fsspec
import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from make_malformed import group_section, iid, region, segment, u4
from twins import CountingSource, Twin, overlaps, quiet, random_reader, seeds

import iid_dask
from iid_dask import (
    BBox,
    IIDFormatError,
    IIDReader,
    IIDWarning,
    IIDWriter,
    Region,
    apart,
    flattening,
    kernels,
    overlapping,
    pairs,
    raster,
)
from iid_dask.bbox import union
from iid_dask.layers import layer_numbers
from iid_dask.views import View

bounded = settings(deadline=None, max_examples=40)

FILES = ["nuclei", "us", "edge", "corner", "empty"]


# --- twins ------------------------------------------------------------------------------------------------------


def covers(reader, keys=None):
    """Every pair of a pixel and an entry that covers it, from the masks laid open: rows, columns, keys."""
    found = [np.zeros((3, 0), np.int64)]
    for key in sorted(set(reader if keys is None else keys)):
        entry = reader[int(key)]
        rows, cols = np.nonzero(entry.mask())
        found.append(np.stack([rows + entry.bbox.min_row, cols + entry.bbox.min_col, np.full(len(rows), key)]))
    return np.concatenate(found, axis=1)


def twin_table(reader, keys=None, min_pixels=1):
    """All pairs, by a look at who covers each pixel."""
    rows, cols, owners = covers(reader, keys)
    pixels = rows * 65_536 + cols
    order = np.lexsort((owners, pixels))
    pixels, owners = pixels[order], owners[order]
    found = [np.zeros((0, 2), np.int64)]
    for step in range(1, np.unique(pixels, return_counts=True)[1].max(initial=1)):
        same = pixels[step:] == pixels[:-step]
        found.append(np.stack([owners[:-step][same], owners[step:][same]], axis=1))
    both, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    both, counts = both[counts >= min_pixels], counts[counts >= min_pixels]
    areas = np.bincount(owners, minlength=len(reader.lut))[both]
    return pd.DataFrame(
        {
            "key_a": both[:, 0].astype(np.uint32),
            "key_b": both[:, 1].astype(np.uint32),
            "pixels": counts,
            "iou": counts / (areas.sum(axis=1) - counts),
            "containment": counts / areas.min(axis=1),
        }
    )


def check_table(reader, keys=None, min_pixels=1, found=None):
    found = overlapping.table(reader, keys, min_pixels=min_pixels) if found is None else found
    pd.testing.assert_frame_equal(found, twin_table(reader, keys, min_pixels), check_exact=True)
    return found


# --- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", FILES)
@pytest.mark.parametrize("index", [False, True])
def test_tables_of_the_sample_files(stem, index, indexed):
    with iid_dask.open(indexed[stem] if index else DATA / f"{stem}.iid") as reader:
        found = check_table(reader)
        assert len(found) == {"nuclei": 0, "us": 6259, "edge": len(found), "corner": len(found), "empty": 0}[stem]
        assert isinstance(found.index, pd.RangeIndex)


def test_the_nation_holds_its_states():
    with iid_dask.open(DATA / "us.iid") as reader:
        found = reader.overlaps(range(50))
        assert found["key_a"].tolist() == [0] * 49
        assert found["pixels"].tolist() == [reader[key].area for key in range(1, 50)]
        assert set(found["containment"]) == {1.0}


@bounded
@given(seed=seeds, index=st.booleans(), data=st.data())
def test_tables_of_random_files(seed, index, data):
    reader = random_reader(seed, entries=25, index=index)
    check_table(reader)
    keys = data.draw(st.lists(st.sampled_from(list(reader)), max_size=20) if len(reader) else st.just([]))
    check_table(reader, keys, data.draw(st.integers(1, 60)))


@bounded
@given(seed=seeds)
def test_tables_do_not_depend_on_how_much_is_held_at_once(seed):
    reader = random_reader(seed, entries=12)
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BYTES", int(rng.integers(1, 40)))
        patch.setattr(pairs, "PAIRS", int(rng.integers(1, 5)))
        patch.setattr(flattening, "TILE", int(rng.integers(1, 30)))
        check_table(reader)


def test_reads_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(pairs, "BYTES", 5000)
    with iid_dask.open(DATA / "us.iid") as reader:
        sizes, read = [], reader.read_bits
        monkeypatch.setattr(reader, "read_bits", lambda *ranges: sizes.append(len((got := read(*ranges))[0])) or got)
        assert len(overlapping.table(reader)) == 6259
        assert 0 < max(sizes) <= 5016
        assert len(sizes) > 100


def write(path, masks, shape=(60, 90), **options):
    """A file of (row, col, mask) or (box, regions)."""
    with IIDWriter(path, metadata={"image": {"height": shape[0], "width": shape[1]}}, **options) as writer:
        for number, (box, what) in enumerate(masks):
            if isinstance(what, list):
                writer.add(b"", b"%d" % number, box, regions=what)
            else:
                what = np.asarray(what, bool)
                writer.add(b"", b"%d" % number, (*box, box[0] + what.shape[0], box[1] + what.shape[1]), what)
    return path


def ring(size):
    out = np.ones((size, size), bool)
    out[1:-1, 1:-1] = False
    return out


def test_what_only_touches_or_lies_in_a_hole_does_not_overlap(tmp_path):
    one = np.ones((4, 4))
    masks = [((0, 0), one), ((0, 4), one), ((4, 0), one), ((4, 4), one)]  # side by side, corner to corner
    masks += [((20, 20), ring(9)), ((21, 21), np.ones((7, 7)))]  # in its hole
    masks += [((40, 40), np.eye(9)), ((40, 40), np.eye(9)[::-1] * (np.arange(9) != 4))]  # crossing between pixels
    masks += [((50, 0), np.zeros((3, 3)))]
    with iid_dask.open(write(tmp_path / "a.iid", masks)) as reader:
        assert len(check_table(reader)) == 0
        assert check_report(reader).losses.empty


def test_one_pixel_is_enough(tmp_path):
    masks = [((0, 0), np.ones((4, 4))), ((3, 3), np.ones((4, 4))), ((3, 3), np.ones((1, 1)))]
    with iid_dask.open(write(tmp_path / "a.iid", masks)) as reader:
        found = check_table(reader)
        assert found["pixels"].tolist() == [1, 1, 1]
        assert found["iou"].tolist() == [1 / 31, 1 / 16, 1 / 16]
        assert found["containment"].tolist() == [1 / 16, 1, 1]


@pytest.mark.parametrize("width", [1, 7, 63, 64, 65, 128, 200])
def test_rows_of_any_number_of_words(tmp_path, width):
    rng = np.random.default_rng(width)
    masks = [((int(rng.integers(4)), int(rng.integers(9))), rng.random((5, width + 9)) < 0.5) for _ in range(6)]
    with iid_dask.open(write(tmp_path / "a.iid", masks, (20, 300))) as reader:
        assert len(check_table(reader)) > 10


def shared_twice():
    """Two upright bars of an entry that share all but their ends, and what lies on them."""
    bar = np.packbits(np.ones(9, bool)).tobytes()
    bars = [Region(BBox(row, 10, row + 9, 11), bar) for row in (0, 1, 2)]
    block = np.ones((12, 3))
    return [(BBox(0, 0, 30, 30), bars), ((0, 10), block), ((0, 10), block[:, :1]), (BBox(0, 10, 30, 30), bars[1:])]


@pytest.mark.parametrize("index", [False, True])
def test_pixels_that_regions_of_an_entry_share_count_once(tmp_path, index):
    with iid_dask.open(write(tmp_path / "a.iid", shared_twice(), index=index)) as reader:
        found = check_table(reader)
        assert found["pixels"].tolist() == [11, 11, 10, 12, 10, 10]
        regions = pairs.Regions.of(reader.columns, reader.entry_keys, reader.entry_keys)
        one_by_one = sum(pairs.common_pixels(reader, regions, some).sum() for some in pairs.meeting(regions))
        assert one_by_one > found["pixels"].sum()
        for rule in flattening.RULES:
            assert check_report(reader, rule).pixels == 11 + 36 + 12 + 10


def scattered(rng, pieces, side):
    mask = np.zeros((side, side), bool)
    places = rng.integers(0, side - 3, (pieces, 2))
    for row, col in places:
        mask[row : row + rng.integers(1, 4), col : col + rng.integers(1, 4)] = True
    return (0, 0), mask


def test_scattered_regions(tmp_path):
    rng = np.random.default_rng(1)
    path = write(tmp_path / "a.iid", [scattered(rng, 150, 90) for _ in range(8)], (90, 90))
    with iid_dask.open(path) as reader:
        assert len(reader.columns.region_bits) > 600
        assert len(check_table(reader)) == 28
        check_report(reader)


def test_few_keys_cost_no_pass_over_the_others(tmp_path):
    source = CountingSource(DATA / "us.iid")
    with IIDReader(source) as reader:
        opened = source.nbytes
        found = overlapping.table(reader, [60, 1, 50, 1])
        assert found[["key_a", "key_b"]].values.tolist() == [[1, 50]]
        assert source.nbytes - opened < 10_000


def test_what_cannot_be_asked_is_refused():
    with iid_dask.open(DATA / "us.iid") as reader:
        for ask in (reader.overlaps, lambda *keys, **options: iid_dask.overlaps(reader, *keys, **options)):
            with pytest.raises(KeyError, match=r"no entry 3155; keys are integers from 0 to 3154"):
                ask([1, 3155])
            with pytest.raises(KeyError, match="no entry -1"):
                ask([-1])
            with pytest.raises(TypeError, match=r"keys: \[1\.0\], expected an integer or several"):
                ask([1.0])
            for least in (0, -3, 1.5, True, "2"):
                message = f"min_pixels = {least!r}, expected an integer, 1 or more"
                with pytest.raises(ValueError, match=re.escape(message)):
                    ask(min_pixels=least)
        for size in (0, -1, None, "x", [1]):
            message = f"overlaps: blocksize = {size!r}: expected bytes, 1 or more"
            with pytest.raises(ValueError, match=re.escape(message)):
                iid_dask.overlaps(reader, blocksize=size)


def test_an_area_that_cannot_be_is_refused(tmp_path):
    path = write(tmp_path / "a.iid", [((0, 0), np.ones((4, 4))), ((0, 0), np.ones((3, 3)))], index=False)
    with iid_dask.open(path) as reader:
        at = int(reader.header["segments_offset"]) + int(reader.lut["segment_offset"][1]) + 12
    data = bytearray(path.read_bytes())
    assert data[at] == 9
    for area in (0, 8):
        data[at] = area
        with iid_dask.open(bytes(data)) as reader:
            message = rf"entry 1, byte {at}: found area {area}, expected at least 9, the pixels that the entry shares"
            with pytest.raises(IIDFormatError, match=message):
                reader.overlaps()


def test_files_far_away():
    with fsspec.open("memory://overlaps/us.iid", "wb") as file:
        file.write((DATA / "us.iid").read_bytes())
    found = iid_dask.overlaps("memory://overlaps/us.iid", blocksize="100 kB").compute(scheduler="threads")
    with iid_dask.open(DATA / "us.iid") as reader:
        assert found.reset_index(drop=True).equals(reader.overlaps())


# --- regions of one entry that share pixels ---------------------------------------------------------------------


def pile(path, heaps, shape=(60, 90)):
    """A file of (box, regions) that no writer makes: regions share pixels at will, and are no tight boxes."""
    lut, iids, segments = b"", b"", b""
    for key, (box, regions) in enumerate(heaps):
        area = sum(int(part.mask().sum()) for part in regions)
        parts = iid(key, b"", b""), segment(key, box, area, *(region(tuple(part.bbox), part.bits) for part in regions))
        lut += u4(key, len(iids), len(parts[0]), len(segments), len(parts[1]))
        iids, segments = iids + parts[0], segments + parts[1]
    meta = b'{"image": {"height": %d, "width": %d}}' % shape
    sections = (lut, iids, meta, group_section([], b""), segments)
    ends = np.cumsum([48, *map(len, sections)])
    head = [value for end, section in zip(ends, sections, strict=False) for value in (end, len(section))]
    path.write_bytes(u4(0, 0, *head) + b"".join(sections))
    return path


def heap(rng, side, most):
    """Regions of one entry anywhere in a square, as a box and a list, of a few sizes."""
    regions = []
    for _ in range(rng.integers(1, most)):
        height, width = rng.choice([1, 2, 5, side // 2], 2)
        row, col = rng.integers(0, side - max(height, width) + 1, 2)
        mask = rng.random((height, width)) < rng.choice([0.0, 0.5, 1.0])
        regions.append(Region(BBox(row, col, row + height, col + width), np.packbits(mask).tobytes()))
    return BBox(0, 0, side, side), regions


@settings(bounded, max_examples=20)
@given(
    seed=seeds, crowd=st.sampled_from([2, 3, 16]), held=st.sampled_from([1, 40, 2**20]), blocksize=st.integers(1, 999)
)
def test_heaps_of_regions_are_counted_as_their_union(tmp_path_factory, seed, crowd, held, blocksize):
    rng = np.random.default_rng(seed)
    side = int(rng.choice([12, 70]))
    masks = [heap(rng, side, int(rng.choice([2, 60]))) for _ in range(5)]
    path = pile(tmp_path_factory.mktemp("heaps") / "a.iid", masks, (side, side))
    with iid_dask.open(path) as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "CROWD", crowd)
        patch.setattr(apart, "BYTES", held)
        wanted = check_table(reader)
        parts = iid_dask.overlaps(reader, blocksize=blocksize).compute(scheduler="synchronous")
        assert parts.reset_index(drop=True).equals(wanted)
        check_report(reader)
        view = View(reader, reader.shape)
        assert layer_numbers(view)[list(reader)].tolist() == Twin(reader).layer_numbers()


@bounded
@given(seed=seeds, held=st.sampled_from([1, 40, 2**20]), crowd=st.sampled_from([2, 3, 16]))
def test_regions_taken_apart_share_nothing_and_cover_the_same(tmp_path_factory, seed, held, crowd):
    rng = np.random.default_rng(seed)
    path = pile(tmp_path_factory.mktemp("apart") / "a.iid", [heap(rng, 40, 50) for _ in range(3)], (40, 40))
    with iid_dask.open(path) as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "BYTES", held)
        patch.setattr(apart, "CROWD", crowd)
        thin = apart.thinned(reader, pairs.Regions.of(reader.columns, reader.entry_keys, reader.entry_keys))
        assert (np.diff(thin.regions.keys.astype(np.int64)) >= 0).all()
        counts = np.zeros((len(reader), 40, 40), int)
        for bits, regions, pixels in apart.taken_apart(thin.bits, thin.regions):
            rows = int(regions.boxes[:, 2].max(initial=0)) - int(regions.boxes[:, 0].min(initial=2**16 - 1))
            assert len(bits.data) - 16 <= held or rows <= 1
            for key, box, at, area in zip(regions.keys, regions.boxes, regions.bits, pixels, strict=True):
                box = BBox(*box.tolist())
                mask = np.unpackbits(bits.data[at:], count=box.height * box.width).reshape(box.shape)
                assert mask.sum() == area > 0
                counts[key][box.slices] += mask
        assert np.array_equal(counts, np.stack([entry.mask() for entry in reader.values()]))


@bounded
@given(seed=seeds)
def test_a_crowd_of_regions_has_no_fewer_bits_than_the_one_made_of_it(seed):
    regions = regions_of(np.random.default_rng(seed), 3000, entries=2, side=12)
    groups = apart._groups(regions)
    assert groups.max() >= 0
    for number in np.unique(groups[groups >= 0]):
        some = regions.chosen(groups == number)
        assert len(some.keys) >= apart.CROWD
        assert len(np.unique(some.keys)) == 1
        around = union(some.boxes)
        assert around.height * around.width <= np.prod(some.boxes[:, 2:].astype(int) - some.boxes[:, :2], axis=1).sum()


def square(side):
    return np.packbits(np.ones(side * side, bool)).tobytes()


@pytest.mark.parametrize("n", [2, 20])
def test_loose_boxes_cost_nothing(tmp_path, n):
    """Of some hundred bytes; the boxes of their entries took 19 s and more."""
    twice = [Region(BBox(0, 0, 1, 1), square(1))] * 2
    far = Region(BBox(65_533, 65_533, 65_535, 65_535), square(2))
    path = pile(tmp_path / "a.iid", [(BBox(0, 0, 65_535, 65_535), [*twice, far])] * n)
    with iid_dask.open(path) as reader, pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "masks", None)
        asked = []
        patch.setattr(reader, "read_bits", counted(asked, reader.read_bits))
        found = reader.overlaps()
        assert found["pixels"].tolist() == [5] * (n * (n - 1) // 2)
        assert set(found["iou"]) == {1.0}
        assert sum(asked) < 200 * n


def counted(sizes, read):
    def call(*ranges):
        data, places = read(*ranges)
        sizes.append(len(data))
        return data, places

    return call


def test_lines_that_cross_cost_no_more_than_their_bytes(tmp_path):
    """Two lines of an entry cross in one pixel; the box around them has 512 MiB."""
    line = np.packbits(np.ones(65_535, bool)).tobytes()
    masks = [
        (
            BBox(0, 0, 65_535, 65_535),
            [Region(BBox(at, 0, at + 1, 65_535), line), Region(BBox(0, at, 65_535, at + 1), line)],
        )
        for at in range(9)
    ]
    with iid_dask.open(pile(tmp_path / "a.iid", masks)) as reader:
        reader.overlaps([0, 1])
        tracemalloc.start()
        try:
            found = reader.overlaps()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert set(found["pixels"]) == {2}
        assert set(found["containment"]) == {2 / (2 * 65_535 - 1)}
        assert peak < 4 * 2**20


def test_many_regions_on_one_pixel_are_few_pairs(tmp_path):
    n = 20_000
    masks = [(BBox(0, 0, 1, 1), [Region(BBox(0, 0, 1, 1), square(1))] * n)] * 2
    with iid_dask.open(pile(tmp_path / "a.iid", masks)) as reader, pytest.MonkeyPatch.context() as patch:
        looked_at, kernel = [], kernels.box_pairs
        patch.setattr(kernels, "box_pairs", lambda *plan: looked_at.append(bounded_plan(plan)) or kernel(*plan))
        assert reader.overlaps().values.tolist() == [[0, 1, 1, 1, 1]]
        assert layer_numbers(View(reader, (1, 1))).tolist() == [0, 1]
        assert reader.flatten_report().losses.values.tolist() == [[0, 1, 1]]
        assert sum(looked_at) < 20


def bounded_plan(plan):
    """Comparisons that a call will make; stops a test that would take minutes."""
    count = int((plan[1] - plan[0]).sum())
    assert count < 10**6
    return count


def test_two_hundred_entries_with_shared_pixels_take_no_loop_over_pairs(tmp_path):
    regions = [Region(BBox(0, 0, 4, 4), square(4)), Region(BBox(0, 0, 1, 1), square(1))]
    with iid_dask.open(pile(tmp_path / "a.iid", [(BBox(0, 0, 4, 4), regions)] * 200)) as reader:
        reads = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "read_bits", counted(reads, reader.read_bits))
            found = reader.overlaps()
        assert len(found) == 19_900
        assert set(found["pixels"]) == {16}
        assert set(found["iou"]) == {1.0}
        assert len(reads) < 20


@bounded
@given(seed=seeds)
def test_pixels_of_one_mask_are_cleared_in_another(seed):
    rng = np.random.default_rng(seed)
    (rows, cols), more = rng.integers(1, [9, 200]), rng.integers(0, 70, 2)
    a, b = (rng.random((rows, cols + extra)) < 0.5 for extra in more)
    places = (rng.integers(0, more + 1)).tolist()  # first common column in either
    first = np.packbits(a)
    data = np.concatenate([first, np.packbits(b), np.zeros(16, np.uint8)])
    plan = [np.array([value]) for value in (places[0], len(first) * 8 + places[1], a.shape[1], b.shape[1], rows, cols)]
    kernels.pairs.clear_common(data, *plan)
    b[:, places[1] : places[1] + cols] &= ~a[:, places[0] : places[0] + cols]
    assert np.array_equal(data, np.concatenate([first, np.packbits(b), np.zeros(16, np.uint8)]))


def test_overlaps_stand_below_readers_and_entries():
    lines = "import sys, iid_dask.overlapping; print(*(name for name in sys.modules if name.startswith('iid_dask')))"
    loaded = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout.split()
    assert "iid_dask.overlapping" in loaded
    assert not {"iid_dask.reader", "iid_dask.entries"} & set(loaded)


# --- candidates -------------------------------------------------------------------------------------------------


def regions_of(rng, n, *, entries=None, side=40):
    low = rng.integers(0, side, (n, 2))
    boxes = np.concatenate([low, low + rng.integers(1, 12, (n, 2))], axis=1).astype(np.uint16)
    keys = np.sort(rng.integers(0, entries or n, n)).astype(np.uint32)
    return pairs.Regions(keys, boxes, np.zeros(n, np.uint32))


def meet(a, b):
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def listed(found):
    """Pairs as a sorted list, so that one found twice shows."""
    return sorted((int(a), int(b)) for first, second in found for a, b in zip(first, second, strict=True))


@bounded
@given(seed=seeds, n=st.integers(0, 40), room=st.integers(1, 9))
def test_every_pair_of_boxes_is_found_once_whatever_the_ranges_of_keys(seed, n, room):
    rng = np.random.default_rng(seed)
    regions = regions_of(rng, n)
    boxes, keys = regions.boxes.tolist(), regions.keys.tolist()
    wanted = [(i, j) for i, j in combinations(range(n), 2) if meet(boxes[i], boxes[j])]
    cuts = [0, *np.sort(rng.integers(0, n + 1, 3)).tolist(), 2**32]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "PAIRS", room)
        apart = [pair for pair in wanted if keys[pair[0]] != keys[pair[1]]]
        found = [pair for start, stop in pairwise(cuts) for pair in listed(pairs.meeting(regions, start, stop))]
        assert sorted(found) == listed(pairs.meeting(regions)) == apart
        same = [pair for pair in wanted if keys[pair[0]] == keys[pair[1]]]
        assert sorted(tuple(sorted(pair)) for pair in listed(pairs.siblings(regions))) == same


@pytest.mark.parametrize("axis", [0, 1])
def test_lines_side_by_side_are_not_compared_with_each_other(axis):
    """65,000 lines from edge to edge: along the wrong axis each meets all others."""
    n = 65_000
    boxes = np.zeros((n, 4), np.uint16)
    boxes[:, axis], boxes[:, axis + 2] = np.arange(n), np.arange(1, n + 1)
    boxes[:, 3 - axis] = 65_535
    assert pairs.comparisons(boxes, boxes, axis) == n
    assert pairs.comparisons(boxes, boxes, 1 - axis) == n * n
    regions = pairs.Regions(np.arange(n, dtype=np.uint32), boxes, np.zeros(n, np.uint32))
    looked_at = []
    with pytest.MonkeyPatch.context() as patch:
        kernel = kernels.box_pairs
        patch.setattr(
            kernels, "box_pairs", lambda *plan: looked_at.append(int((plan[1] - plan[0]).sum())) or kernel(*plan)
        )
        assert list(pairs.meeting(regions)) == []
        assert sum(looked_at) == n
        looked_at.clear()
        one = pairs.Regions(np.zeros(n, np.uint32), boxes, np.zeros(n, np.uint32))
        assert list(pairs.siblings(one)) == []
        assert sum(looked_at) == 0


def test_comparisons_are_those_that_a_sweep_makes():
    rng = np.random.default_rng(7)
    xs, ys = (regions_of(rng, n).boxes for n in (30, 50))
    for axis in (0, 1):
        count = sum(int(x[axis]) <= int(y[axis]) < int(x[axis + 2]) for x in xs for y in ys)
        count += sum(int(y[axis]) < int(x[axis]) < int(y[axis + 2]) for x in xs for y in ys)
        assert pairs.comparisons(xs, ys, axis) == count


@settings(bounded, max_examples=25)
@given(seed=seeds)
def test_common_pixels_are_those_of_the_masks(seed):
    reader = random_reader(seed, entries=8)
    keys = reader.entry_keys
    regions = pairs.Regions.of(reader.columns, keys, keys)
    masks = np.zeros((len(regions.keys), 70, 150), np.float32)
    pieces = [region for entry in reader.values() for region in entry.regions]
    for plane, piece in zip(masks, pieces, strict=True):
        bits = np.unpackbits(np.frombuffer(piece.bits, np.uint8), count=piece.bbox.height * piece.bbox.width)
        plane[piece.bbox.slices] = bits.reshape(piece.bbox.shape)
    masks = masks.reshape(-1, 70 * 150)
    common = masks @ masks.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "BYTES", int(np.random.default_rng(seed).integers(10, 500)))
        for found in (*pairs.meeting(regions), *pairs.siblings(regions)):
            assert np.array_equal(pairs.common_pixels(reader, regions, found), common[found])
        same = regions.keys[:, None] == regions.keys
        twice = np.argwhere((np.triu(common, 1) > 0) & same)
        assert pairs.sharing(reader, regions).tolist() == np.unique(regions.keys[twice[:, 0]]).tolist()


# --- dask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", FILES)
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_partitions_make_the_same_table(stem, scheduler):
    path = DATA / f"{stem}.iid"
    with iid_dask.open(path) as reader, dask.config.set(scheduler=scheduler):
        wanted = overlapping.table(reader)
        for options in ({}, {"blocksize": "20 kB"}, {"blocksize": 1} if len(reader) < 200 else {}):
            frame = iid_dask.overlaps(str(path), **options)
            found = frame.compute()
            assert found.dtypes.equals(frame.dtypes)
            assert found.dtypes.equals(wanted.dtypes)
            assert found.reset_index(drop=True).equals(wanted)


@bounded
@given(seed=seeds, blocksize=st.sampled_from([1, 60, 400, 10**6]), data=st.data())
def test_partitions_of_random_files(seed, blocksize, data):
    reader = random_reader(seed, entries=25)
    keys = None
    if len(reader) and data.draw(st.booleans()):
        keys = data.draw(st.lists(st.sampled_from(list(reader)), max_size=20))
    frame = iid_dask.overlaps(reader, keys, min_pixels=2, blocksize=blocksize)
    found = frame.compute(scheduler="synchronous").reset_index(drop=True)
    assert found.equals(overlapping.table(reader, keys, min_pixels=2))


def test_partitions_hold_about_as_many_bytes():
    frame = iid_dask.overlaps(iid_dask.sample("us"), blocksize="100 kB")
    with iid_dask.open(iid_dask.sample("us")) as reader:
        total = int(reader.lut["segment_length"].sum())
        assert total / 100_000 <= frame.npartitions <= 2 * total / 100_000 + 1
        sizes = [len(part) for part in dask.compute(*frame.to_delayed())]
        assert sum(sizes) == 6259
        # The nation has a partition of its own, with a pair for each of the others.
        assert sizes[0] >= 3154


def test_graphs_are_small_and_named_by_what_they_compute(us):
    frames = [iid_dask.overlaps(us) for _ in range(2)]
    others = [
        iid_dask.overlaps(us, min_pixels=2),
        iid_dask.overlaps(us, [1, 2]),
        iid_dask.overlaps(us, [1, 3]),
        iid_dask.overlaps(us, [1, 2, 3]),  # from and to the same keys as the one before
        iid_dask.overlaps(DATA / "nuclei.iid"),
    ]
    names = [frame._name for frame in (*frames, *others)]
    assert names[0] == names[1]
    assert len(set(names)) == 6
    iid_dask.add_index(us)
    assert iid_dask.overlaps(us)._name != names[0]
    with iid_dask.open(us) as reader:
        assert len(pickle.dumps(dict(iid_dask.overlaps(reader).__dask_graph__()))) < 5000


def test_a_pickled_frame_computes_elsewhere():
    frame = pickle.loads(pickle.dumps(iid_dask.overlaps(iid_dask.sample("us"), range(100), blocksize=5000)))
    assert frame.npartitions > 5
    with dask.config.set(scheduler="processes", num_workers=2):
        found = frame.compute().reset_index(drop=True)
    with iid_dask.open(iid_dask.sample("us")) as reader:
        assert found.equals(reader.overlaps(range(100)))


# --- what flattening loses --------------------------------------------------------------------------------------


def twin_report(reader, overlap, shape=None):
    """Kept pixels by key, and lost ones by loser and winner."""
    height, width = quiet(lambda: reader.shape) if shape is None else shape
    rows, cols, owners = covers(reader)
    inside = (rows < height) & (cols < width)
    pixels, owners = (rows * 65_536 + cols)[inside], owners[inside]
    areas = np.array([reader[key].area if key in reader else 0 for key in range(len(reader.lut))], np.int64)[owners]
    rank = {"last": owners, "first": -owners, "smallest": -areas, "largest": areas}[overlap]
    order = np.lexsort((owners, rank, pixels))
    pixels, owners = pixels[order], owners[order]
    last = np.searchsorted(pixels, pixels, side="right") - 1
    both, counts = np.unique(np.stack([owners, owners[last]], axis=1), axis=0, return_counts=True)
    found = {tuple(pair): count for pair, count in zip(both.tolist(), counts.tolist(), strict=True)}
    kept = {key: found.pop((key, key), 0) for key in reader}
    return kept, found, len(np.unique(pixels))


def check_report(reader, overlap="last", shape=None):
    report = quiet(flattening.flatten_report, reader, overlap=overlap, shape=shape)
    kept, lost, covered = twin_report(reader, overlap, shape)
    entries, losses = report.entries, report.losses
    assert dict(zip(entries["key"].tolist(), entries["kept"].tolist(), strict=True)) == kept
    assert entries["key"].tolist() == sorted(kept)
    found = losses[["key", "to", "pixels"]].values.tolist()
    assert found == [[*pair, pixels] for pair, pixels in sorted(lost.items())]
    assert (entries["kept"] + entries["lost"]).tolist() == entries["pixels"].tolist()
    sums = losses.groupby("key")["pixels"].sum()
    assert entries.set_index("key")["lost"].loc[lambda lost: lost > 0].equals(sums.rename("lost")) or not len(sums)
    assert entries["lost"].sum() == report.lost == sum(lost.values())
    assert (report.kept, report.pixels) == (covered, covered + report.lost)
    assert [str(kind) for kind in entries.dtypes] == ["uint32", "int64", "int64", "int64"]
    assert [str(kind) for kind in losses.dtypes] == ["uint32", "uint32", "int64"]
    return report


@pytest.mark.parametrize("overlap", flattening.RULES)
@pytest.mark.parametrize("stem", FILES)
def test_reports_of_the_sample_files(stem, overlap):
    with iid_dask.open(DATA / f"{stem}.iid") as reader:
        check_report(reader, overlap)


def test_report_of_nested_masks():
    with iid_dask.open(DATA / "us.iid") as reader:
        expected = np.load(DATA / "us.expected.npz")
        for rule in ("last", "first"):
            report = reader.flatten_report(overlap=rule)
            labels = np.bincount(expected[rule].ravel(), minlength=len(reader) + 1)[1:]
            assert report.entries["kept"].tolist() == labels.tolist()
            assert report.entries["pixels"].tolist() == [entry.area for entry in reader.values()]
        assert set(report.losses["to"]) == {0}
        by_area = reader.flatten_report(overlap="largest")
        assert by_area.losses["to"].tolist() == [0] * 3154
        assert str(by_area) == (
            'overlap="largest": 982,527 pixels of 3,155 entries: 327,509 kept, 655,018 lost (66.7%)\n'
            "3,154 entries lose pixels, 3,154 of them all; most entry 13: 26,112 of 26,112"
        )


@bounded
@given(seed=seeds, overlap=overlaps, data=st.data())
def test_reports_of_random_files(seed, overlap, data):
    reader = random_reader(seed, entries=25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flattening, "TILE", data.draw(st.integers(3, 80)))
        patch.setattr(flattening, "LOSSES", data.draw(st.sampled_from([0, 5, 1000])))
        shape = data.draw(st.none() | st.tuples(st.integers(0, 90), st.integers(0, 160)))
        check_report(reader, overlap, shape)


def test_report_says_what_is_cut(tmp_path):
    path = write(tmp_path / "a.iid", [((0, 0), np.ones((4, 9))), ((2, 2), np.ones((4, 4)))], (3, 4))
    with iid_dask.open(path) as reader:
        with pytest.warns(IIDWarning, match="2 entries reach beyond the image of 3 by 4 pixels"):
            report = reader.flatten_report()
        assert report.entries["pixels"].tolist() == [12, 2]
        assert report.losses.values.tolist() == [[0, 1, 2]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert reader.flatten_report(shape=(6, 9)).pixels == 36 + 16


def test_report_without_overlaps_says_so():
    with iid_dask.open(DATA / "nuclei.iid") as reader:
        report = reader.flatten_report()
        assert (report.lost, report.losses.empty) == (0, True)
        assert re.fullmatch(r'overlap="last": [\d,]+ pixels of 125 entries: [\d,]+ kept, 0 lost \(0\.0%\)', str(report))


def test_reports_that_make_no_sense_are_refused():
    with iid_dask.open(DATA / "nuclei.iid") as reader:
        for rule in ("raise", "any", None):
            with pytest.raises(ValueError, match=f"overlap = {rule!r}, expected one of last, first, smallest, largest"):
                reader.flatten_report(overlap=rule)
        for shape in ((1, 2, 3), 7, 5.0, "ab", b"ab", (), [[1, 2]]):
            message = f"flatten_report: shape = {shape!r}, expected (rows, columns)"
            with pytest.raises(ValueError, match=re.escape(message)):
                reader.flatten_report(shape=shape)
        for side in (-1, 2**31, 2**40):
            message = f"shape = (5, {side}), found {side}, expected rows and columns of 0 to 2147483647"
            with pytest.raises(ValueError, match=re.escape(message)):
                reader.flatten_report(shape=(5, side))
        for side in (1.5, "5", True, None):
            message = f"shape = ({side!r}, 5), found {side!r}, {type(side).__name__}, expected integers"
            with pytest.raises(TypeError, match=re.escape(message)):
                reader.flatten_report(shape=(side, 5))


def test_reports_look_only_where_masks_are(tmp_path):
    pixel = np.packbits([True]).tobytes()
    corners = [Region(BBox(at, at, at + 1, at + 1), pixel) for at in (0, 65_534)]
    path = write(tmp_path / "a.iid", [(BBox(0, 0, 65_535, 65_535), corners)] * 2, (65_535, 65_535))
    with iid_dask.open(path) as reader, pytest.MonkeyPatch.context() as patch:
        painted, label = [], raster.label
        patch.setattr(raster, "label", lambda *what: painted.append(what) or label(*what))
        report = reader.flatten_report(shape=(2**31 - 1, 2**31 - 1))
        assert (report.kept, report.lost) == (2, 2)
        assert [window.shape for _, window in painted] == [(1, 1)] * 2
        with pytest.warns(IIDWarning, match="2 entries reach beyond the image of 9 by 9 pixels"):
            assert reader.flatten_report(shape=(9, 9)).pixels == 2
    with iid_dask.open(write(tmp_path / "b.iid", [], (65_535, 65_535))) as reader:
        assert reader.flatten_report().pixels == 0
