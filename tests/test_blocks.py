"""Label arrays and masks to segments, and segments to files: against dense masks, scipy's labels and `IIDWriter`."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure
from twins import random_box, random_mask, random_name, seeds

import iid_dask
from iid_dask import BBox, kernels
from iid_dask.format import encode
from iid_dask.format.columns import Names, Segments
from iid_dask.format.encode import encode_segments, plan_head, write_file
from iid_dask.format.layout import MAX_LENGTH, SEGMENT_HEAD
from iid_dask.format.regions import REGION, RUN
from iid_dask.mosaic import blocks
from iid_dask.mosaic.blocks import block_crc, first_pixels, segments_of, segments_of_masks

DTYPES = ("?", "u1", "<u2", ">u2", "<u4", ">u4", "<u8", ">u8", "i1", "<i2", ">i4", "<i8")


def twin_of(mask, top=0, left=0):
    """A mask's tight box, pixels and regions as `iid_dask.regions_of` finds them."""
    rows, cols = np.nonzero(mask)
    if not len(rows):
        return (0, 0, 0, 0), 0, []
    box = (rows.min() + top, cols.min() + left, rows.max() + 1 + top, cols.max() + 1 + left)
    return box, len(rows), iid_dask.regions_of(mask, BBox(top, left, top + mask.shape[0], left + mask.shape[1]))


def assert_segments(segments, twins):
    """Segments are those that dense masks tell."""
    assert len(segments) == len(twins)
    assert segments.boxes.dtype == segments.areas.dtype == segments.first_region.dtype == np.int64
    assert segments.region_boxes.dtype == segments.region_bits.dtype == np.int64
    assert len(segments.data) >= 16
    for i, (box, area, regions) in enumerate(twins):
        assert tuple(segments.boxes[i]) == box
        assert segments.areas[i] == area
        found = range(*segments.first_region[i : i + 2])
        assert len(found) == len(regions)
        for k, region in zip(found, regions, strict=True):
            assert tuple(segments.region_boxes[k]) == tuple(region.bbox)
            start = segments.region_bits[k]
            assert segments.data[start : start + len(region.bits)].tobytes() == region.bits


def assert_block(block):
    """All segments and all components of a block."""
    values, segments = segments_of(block)
    assert values.dtype == np.uint64
    assert values.tolist() == [value for value in np.unique(block.astype(np.uint64)).tolist() if value]
    assert_segments(segments, [twin_of(block.astype(np.uint64) == value) for value in values])
    assert_first(segments, [block.astype(np.uint64) == value for value in values])
    values, segments = segments_of(block, connected=True)
    masks = components(block)
    assert values.tolist() == [value for value, _ in masks]
    assert_segments(segments, [twin_of(mask) for _, mask in masks])
    assert_first(segments, [mask for _, mask in masks])


def components(block):
    """Class value and mask of each component by scipy, in raster order."""
    found = []
    for value in np.unique(block):
        labels, n = ndimage.label(block == value, np.ones((3, 3)))
        found += [(int(value), labels == k + 1) for k in range(n)] if value else []
    return sorted(found, key=lambda item: int(np.flatnonzero(item[1])[0]))


def assert_first(segments, masks):
    rows, cols = first_pixels(segments)
    found = [divmod(int(np.flatnonzero(mask)[0]), mask.shape[1]) for mask in masks]
    assert list(zip(rows.tolist(), cols.tolist(), strict=True)) == found


def random_block(seed):
    """Shapes, noise or few values on top of one another; of any dtype and layout."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(rng.choice(DTYPES))
    height, width = rng.integers(0, 40), rng.integers(0, 150)
    top = {"b": 1, "i": 2 ** (8 * dtype.itemsize - 1) - 1, "u": 2 ** (8 * dtype.itemsize) - 1}[dtype.kind]
    block = np.zeros((height, width), np.uint64)
    for _ in range(rng.integers(6)):
        box = random_box(rng, height, width) if height and width else BBox(0, 0, height, width)
        part = block[box.slices]
        part[random_mask(rng, *box.shape)] = [1, 2, top, max(1, top // 3)][rng.integers(4)]
    block = block.astype(dtype)
    layout = rng.integers(5)
    if layout == 1:
        return np.asfortranarray(block)
    if layout == 2:
        return np.repeat(block, 2, axis=1)[:, ::2]
    if layout == 3:
        return block[::-1, ::-1]
    if layout == 4:
        block.flags.writeable = False
    return block


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_segments_are_those_of_dense_masks(seed):
    assert_block(random_block(seed))


@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 17, 63, 64, 65])
def test_runs_of_any_length_at_any_place(width):
    rng = np.random.default_rng(width)
    for begin, end in itertools.combinations(range(0, width + 1, max(1, width // 8)), 2):
        block = np.zeros((3, width), np.uint32)
        block[1, begin:end] = 5
        block[2, begin:end] = rng.integers(0, 3, end - begin)
        assert_block(block)


@pytest.mark.parametrize(("values", "kind"), [(2, "u1"), (5, "<u2"), (2**16, "<u4")])
def test_noise_has_the_components_that_scikit_image_finds(values, kind):
    block = np.random.default_rng(values).integers(0, values, (307, 411)).astype(kind)
    found, segments = segments_of(block, connected=True)
    labels = measure.label(block.astype(np.int64), background=0, connectivity=2)
    firsts = np.unique(labels, return_index=True)[1][1:]
    order = np.argsort(firsts)
    rows, cols = np.divmod(firsts[order], block.shape[1])
    assert [array.tolist() for array in first_pixels(segments)] == [rows.tolist(), cols.tolist()]
    assert segments.areas.tolist() == np.bincount(labels.ravel())[1:][order].tolist()
    assert found.tolist() == block[rows, cols].tolist()
    ours, whole = segments_of(block)
    assert ours.tolist() == np.unique(block[block > 0]).tolist()
    assert whole.areas.tolist() == np.unique(block[block > 0], return_counts=True)[1].tolist()
    assert np.diff(whole.first_region).tolist() == np.unique(found, return_counts=True)[1].tolist()


def spiral(n):
    out = np.zeros((n, n), bool)
    row, col, step, turn = n // 2, n // 2, 2, 0
    while 0 <= row < n and 0 <= col < n:
        for _ in range(2):
            down, right = ((0, 1), (1, 0), (0, -1), (-1, 0))[turn % 4]
            for _ in range(step):
                if 0 <= row < n and 0 <= col < n:
                    out[row, col] = True
                row, col = row + down, col + right
            turn += 1
        step += 2
    return out


def test_spirals_combs_rings_and_staircases():
    i, j = np.indices((33, 33))
    comb = (i == 32) | (j % 2 == 0)
    rings = np.maximum(abs(i - 16), abs(j - 16))
    patterns = [
        spiral(33),
        ~spiral(33),
        comb,
        comb[::-1],
        rings % 2 == 0,
        rings,
        (i + j) % 2,
        i * 33 + j + 1,
        (i + j) % 3,
        i + j,
        abs(i - j),
    ]
    for pattern in patterns:
        assert_block(pattern)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (5, 5)])
def test_a_block_without_pixels_has_no_segments(shape):
    for connected in (False, True):
        values, segments = segments_of(np.zeros(shape, np.uint8), connected=connected)
        assert len(values) == len(segments) == 0
        assert segments.first_region.tolist() == [0]
        assert segments.boxes.shape == segments.region_boxes.shape == (0, 4)
        assert len(segments.lengths) == 0


def test_the_largest_labels_keep_their_values():
    block = np.array([[2**64 - 1, 2**64 - 2, 0, 2**63, 1]], np.uint64)
    values, segments = segments_of(block)
    assert values.tolist() == [1, 2**63, 2**64 - 2, 2**64 - 1]
    assert segments.boxes[:, 1].tolist() == [4, 3, 1, 0]


@pytest.mark.parametrize("dtype", ["i1", "<i2", ">i4", "<i8"])
def test_negative_values_are_refused_where_they_are(dtype):
    block = np.zeros((4, 6), dtype)
    block[2, 3] = block[3, 1] = -7
    with pytest.raises(ValueError, match=r"value -7 at row 2, column 3: expected 0 for background"):
        segments_of(block)


@pytest.mark.parametrize(
    "block", [np.zeros((2, 2)), np.zeros(4, int), np.zeros((1, 2, 2), int), [[1]], np.array([["a"]])]
)
def test_what_is_no_label_array_is_refused(block):
    with pytest.raises(TypeError, match=r"label array: .*: expected a 2-D numpy array of integers or bool"):
        segments_of(block)


def test_the_block_is_left_as_it_was():
    block = np.arange(12, dtype=np.int32).reshape(3, 4)
    before = block.copy()
    segments_of(block)
    assert np.array_equal(block, before)


def test_rings_in_rings_are_refused_before_their_bits_are_allocated(monkeypatch):
    i, j = np.indices((600, 600))
    rings = np.minimum(np.minimum(i, j), np.minimum(599 - i, 599 - j)) + 1
    runs = int(kernels.count_block_runs(rings.astype(np.uint32)))
    needed = sum(((600 - 2 * k) ** 2 + 7) // 8 for k in range(300)) + RUN * runs + REGION * 300
    assert len(segments_of(rings)[0]) == 300
    monkeypatch.setattr(blocks, "MAX_NBYTES", needed - 1)
    with pytest.raises(
        iid_dask.IIDLimitError, match=rf"300 regions .* take {needed} bytes, more than {needed - 1}.*smaller tiles"
    ):
        segments_of(rings)


def test_runs_are_refused_before_they_are_allocated(monkeypatch):
    monkeypatch.setattr(blocks, "MAX_NBYTES", 1000)
    with pytest.raises(iid_dask.IIDLimitError, match=r"block of 20 x 20 pixels: 400 runs take 4800 bytes"):
        segments_of(np.arange(1, 401).reshape(20, 20))


# --- masks with names -------------------------------------------------------------------------------------------


def random_items(rng, height, width, count):
    groups = ((), "a", ["b"], ["a", "größe"], ())
    for _ in range(count):
        box = random_box(rng, height, width)
        mask = random_mask(rng, *box.shape).astype(rng.choice(["?", "u1", "f4"]))
        item = random_name(rng), random_name(rng), box, mask
        chosen = int(rng.integers(len(groups)))
        yield (*item, groups[chosen]) if chosen else item


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_masks_become_segments_in_the_order_given(seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 40)), int(rng.integers(1, 90))
    items = list(random_items(rng, height, width, int(rng.integers(8))))
    names, segments, groups = segments_of_masks(iter(items), (height, width))
    assert names.lists() == ([item[0] for item in items], [item[1] for item in items])
    assert_segments(segments, [twin_of(item[3], item[2].min_row, item[2].min_col) for item in items])
    expected = {}
    for number, item in enumerate(items):
        for name in [item[4]] if item[4:] and isinstance(item[4], str) else item[4] if item[4:] else ():
            expected.setdefault(name, []).append(number)
    assert {name: keys.tolist() for name, keys in groups.items()} == expected
    assert list(groups) == list(expected)


def test_first_pixels_of_empty_masks_are_minus_one():
    items = [(b"", b"", (1, 2, 3, 4), np.zeros((2, 2))), (b"", b"", (1, 2, 3, 4), [[0, 1], [1, 1]])]
    rows, cols = first_pixels(segments_of_masks(items, (5, 5))[1])
    assert rows.tolist() == [-1, 1]
    assert cols.tolist() == [-1, 3]


MASK = np.ones((2, 3))


@pytest.mark.parametrize(
    ("item", "error", "text"),
    [
        (
            (b"d", b"a", (0, 0, 2, 3)),
            TypeError,
            r"item 1: found .*, expected \(domain, address, bbox, mask\[, groups\]\)",
        ),
        (b"abcd", TypeError, r"item 1: found b'abcd', expected \(domain"),
        (("d", b"a", (0, 0, 2, 3), MASK), TypeError, r"item 1: domain is str, expected bytes"),
        ((b"d", 7, (0, 0, 2, 3), MASK), TypeError, r"item 1: address is int, expected bytes"),
        ((b"d", b"a", (0, 0, 2), MASK), ValueError, r"item 1 \(b'd', b'a'\): a bounding box is"),
        (
            (b"d", b"a", (2, 0, 0, 3), MASK),
            ValueError,
            r"item 1 \(b'd', b'a'\): bounding box \(2, 0, 0, 3\) is upside down",
        ),
        ((b"d", b"a", (0, 0, 2.5, 3), MASK), TypeError, r"item 1 \(b'd', b'a'\): bounding box: max_row = 2.5"),
        ((b"d", b"a", (4, 0, 6, 3), MASK), ValueError, r"box \(4, 0, 6, 3\) leaves the tile of 5 x 9 pixels"),
        ((b"d", b"a", (0, -1, 2, 2), MASK), ValueError, r"box \(0, -1, 2, 2\) leaves the tile"),
        ((b"d", b"a", (0, 0, 3, 2), MASK), ValueError, r"mask of shape \(2, 3\), expected \(3, 2\) as box"),
        ((b"d", b"a", (0, 0, 2, 3), MASK, [5]), TypeError, r"item 1 \(b'd', b'a'\): group name 5 is int, expected str"),
        ((b"d", b"a", (0, 0, 2, 3), MASK, "\ud800"), ValueError, r"item 1 .*has no UTF-8 form"),
    ],
)
def test_a_wrong_item_is_named(item, error, text):
    items = [(b"", b"", (0, 0, 2, 3), MASK), item]
    with pytest.raises(error, match=text):
        segments_of_masks(items, (5, 9))


# --- checksums of blocks ----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_block_crc_sees_dtype_shape_and_values_but_not_layout(seed):
    block = random_block(seed)
    crc = block_crc(block)
    assert crc == block_crc(np.ascontiguousarray(block, block.dtype.newbyteorder(">")))
    assert crc == zlib.crc32(
        np.ascontiguousarray(block, block.dtype.newbyteorder("<")).tobytes(),
        zlib.crc32(f"{block.dtype.newbyteorder('<').str} {block.shape}".encode()),
    )
    others = [block.reshape(block.shape[::-1]), block.astype("u2" if block.dtype.itemsize != 2 else "u8")]
    others += [block ^ block.dtype.type(1)]
    for other in others:
        same = (
            other.dtype.newbyteorder("=") == block.dtype.newbyteorder("=")
            and other.shape == block.shape
            and np.array_equal(other, block)
        )
        assert (block_crc(other) == crc) == same


def test_block_crc_of_many_bands(monkeypatch):
    block = np.random.default_rng(0).integers(0, 255, (3000, 1111)).astype("u4")
    assert block_crc(block) == block_crc(np.asfortranarray(block)) != block_crc(block[::-1])


# --- segments to files ------------------------------------------------------------------------------------------


def written(tmp, items, shape, metadata, index, order=()):
    """The same file by `IIDWriter` and by `write_file`, as bytes."""
    names, segments, groups = segments_of_masks(items, shape)
    groups = {**{name: [] for name in order}, **groups}
    ours, theirs = tmp / "ours.iid", tmp / "theirs.iid"
    nbytes = write_file(ours, segments, names, groups=groups, metadata=metadata, index=index)
    with iid_dask.IIDWriter(theirs, metadata=metadata, index=index) as writer:
        for name in order:
            writer.add_group(name)
        for item, box in zip(items, segments.boxes.tolist(), strict=True):
            old, group = BBox.of(item[2]), item[4] if len(item) == 5 else ()
            top, left, bottom, right = (n - m for n, m in zip(box, (old.min_row, old.min_col) * 2, strict=True))
            tight = np.asarray(item[3])[top:bottom, left:right] if any(box) else np.zeros((0, 0))
            writer.add(item[0], item[1], box, tight, groups=group)
    assert nbytes == ours.stat().st_size
    return ours.read_bytes(), theirs.read_bytes()


@settings(max_examples=60, deadline=None)
@given(seeds, st.booleans(), st.sampled_from([{}, {"image": {"height": 3}, "ü": [None, 1.5]}, {"removed": [99]}]))
def test_write_file_gives_the_bytes_of_the_writer(tmp_path_factory, seed, index, metadata):
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 40)), int(rng.integers(1, 90))
    items = list(random_items(rng, *shape, int(rng.integers(12))))
    items += items[:1]  # one IID twice
    ours, theirs = written(
        tmp_path_factory.mktemp("twin"), items, shape, metadata, index, ("empty", "größe")[: seed % 3]
    )
    assert ours == theirs
    with iid_dask.open(ours) as reader:
        assert reader.has_index == index
        assert not reader.check()


def test_a_file_without_entries(tmp_path):
    for index in (False, True):
        ours, theirs = written(tmp_path, [], (0, 0), {}, index, ("none",))
        assert ours == theirs


def test_segments_are_written_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 100)
    rng = np.random.default_rng(3)
    ours, theirs = written(tmp_path, list(random_items(rng, 60, 90, 40)), (60, 90), {"a": 1}, True)
    assert ours == theirs


def test_a_label_image_becomes_the_reference_s_file(tmp_path):
    with np.load(DATA / "nuclei.labels.npz") as arrays:
        block = arrays[arrays.files[0]]
    values, segments = segments_of(block)
    with iid_dask.open(DATA / "nuclei.iid") as reader:
        domains, addresses = reader.names()
        names = Names.of(domains, addresses)
        path = tmp_path / "nuclei.iid"
        write_file(path, segments, names, groups=reader.groups, metadata=reader.metadata, index=False)
    assert path.read_bytes() == (DATA / "nuclei.iid").read_bytes()
    assert len(values) == len(domains)


def test_names_in_decimal():
    powers = [10**k for k in range(20)]
    numbers = np.array([0, 1, *powers, *(p - 1 for p in powers), *(p + 1 for p in powers), 2**64 - 1], np.uint64)
    domains, addresses = Names.decimal(b"cell", numbers).lists()
    assert addresses == [str(number).encode() for number in numbers.tolist()]
    assert set(domains) == {b"cell"}
    assert Names.decimal(b"", numbers[:0]).lists() == ([], [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5)), max_size=6))
def test_names_come_back(pairs):
    names = Names.of([domain for domain, _ in pairs], [address for _, address in pairs])
    assert len(names) == len(pairs)
    assert list(zip(*names.lists(), strict=True)) == pairs


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(0, 2**32 - 20))
def test_a_part_is_encoded_as_it_stands_in_the_whole(seed, first_key):
    rng = np.random.default_rng(seed)
    _, segments, _ = segments_of_masks(random_items(rng, 30, 40, 10), (30, 40))
    whole = np.empty(int(segments.lengths.sum()), np.uint8)
    encode_segments(segments, first_key, whole)
    ends = np.concatenate(([0], np.cumsum(segments.lengths)))
    start, stop = sorted(rng.integers(0, 11, 2).tolist())
    part = np.empty(int(ends[stop] - ends[start]), np.uint8)
    encode_segments(segments.part(start, stop), first_key + start, part)
    assert part.tobytes() == whole[ends[start] : ends[stop]].tobytes()


def square(box):
    """One segment, of one full region."""
    box = np.array([box])
    size = int((box[0, 2] - box[0, 0]) * (box[0, 3] - box[0, 1]))
    bits = np.concatenate((np.packbits(np.ones(size, bool)), np.zeros(16, np.uint8)))
    return Segments(box, np.array([size]), np.array([0, 1]), box, np.array([0]), bits)


def test_boxes_beyond_16_bits_are_refused_before_a_byte_is_written(tmp_path):
    path = tmp_path / "far.iid"
    write_file(path, square((65533, 65533, 65535, 65535)), Names.of([b""], [b"1"]))
    before = path.read_bytes()
    for box in ((65534, 0, 65536, 2), (0, 65535, 1, 65537), (-1, 0, 1, 2)):
        with pytest.raises(
            iid_dask.IIDLimitError, match=r"far.iid: entry 0: box .* leaves 0 … 65535.*origins of their own"
        ):
            write_file(path, square(box), Names.of([b""], [b"1"]))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["far.iid"]


def test_lengths_beyond_32_bits_are_refused():
    names = Names.of([b"", b""], [b"1", b"2"])
    half = MAX_LENGTH // 2 + 1
    with pytest.raises(iid_dask.IIDLimitError, match=r"x.iid: entry 1 ends at byte 4294967296 of the segments section"):
        plan_head("x.iid", np.array([half, half]), names, {}, {})
    head = plan_head("x.iid", np.array([half, half - 1]), names, {}, {})
    assert head.nbytes == head.segments_offset + MAX_LENGTH


def test_a_plan_says_where_all_stands(tmp_path):
    _, segments = segments_of(np.array([[1, 2, 2, 0, 1]]))
    names = Names.decimal(b"", np.array([1, 2], np.uint64))
    head = plan_head("x.iid", segments.lengths, names, {"g": [1]}, {"a": 1})
    path = tmp_path / "x.iid"
    write_file(path, segments, names, groups={"g": [1]}, metadata={"a": 1}, index=False)
    assert path.read_bytes()[: head.segments_offset] == head.tobytes()
    assert path.stat().st_size == head.nbytes


@pytest.mark.parametrize(
    ("groups", "metadata", "error", "text"),
    [
        ({"g": [0, 2]}, {}, KeyError, "group 'g': no entry 2 among 2"),
        ({"g": [-1]}, {}, KeyError, "group 'g': no entry -1 among 2"),
        ({5: [0]}, {}, TypeError, "group name 5 is int"),
        ({}, {"a": float("nan")}, ValueError, "x.iid: metadata cannot be stored as JSON"),
        ({}, {"a": b""}, TypeError, "x.iid: metadata cannot be stored as JSON"),
        ({}, {"removed": [1]}, ValueError, r'x.iid: metadata "removed" = \[1\] would remove nameless, empty entries'),
    ],
)
def test_what_cannot_be_planned_is_refused(groups, metadata, error, text):
    names = Names.of([b"", b""], [b"1", b""])
    with pytest.raises(error, match=text):
        plan_head("x.iid", np.array([29, SEGMENT_HEAD.itemsize]), names, groups, metadata)


def test_names_and_segments_must_be_as_many():
    with pytest.raises(ValueError, match=r"x.iid: 1 segments and 2 names, expected as many"):
        plan_head("x.iid", np.array([29]), Names.of([b"", b""], [b"1", b""]), {}, {})


def test_any_byte_of_a_bool_array_but_zero_is_a_pixel():
    foreign = np.frombuffer(bytes([0, 1, 2, 255, 0, 3]), bool).reshape(2, 3)
    wanted = np.array([[0, 1, 1], [1, 0, 1]], bool)
    values, segments = segments_of(foreign)
    assert values.tolist() == [1]
    assert segments.areas.tolist() == [4]
    assert iid_dask.regions_of(foreign, BBox(0, 0, 2, 3)) == iid_dask.regions_of(wanted, BBox(0, 0, 2, 3))
