"""Regions that borders cut are joined as if nothing had been cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import random_mask, seeds

import iid_dask
from iid_dask import BBox, kernels
from iid_dask.mosaic import joining, zones
from iid_dask.mosaic.joining import Parts, join, union_areas


class Cut:
    """Masks cut into pieces, each with its regions in the bytes of its tile, as files hold them."""

    def __init__(self):
        self.rows, self.tiles = [], {}

    def add(self, segment, tile, mask, box, origin=(0, 0)):
        """Add the regions of what a box of a mask shows."""
        piece = len(self.rows)
        data = self.tiles.setdefault(tile, bytearray())
        rows = []
        for region in iid_dask.regions_of(mask[box.slices], box):
            shift = np.array([*origin, *origin])
            rows.append((segment, tile, *(np.array(tuple(region.bbox)) + shift), len(data)))
            data += region.bits
        self.rows.append((piece, rows))

    def parts(self):
        """All of them, by segment."""
        flat = [(s, piece, tile, *rest) for piece, rows in self.rows for s, tile, *rest in rows]
        table = np.array(sorted(flat), np.int64).reshape(-1, 8)
        return Parts(table[:, 0], table[:, 1], table[:, 2], table[:, 3:7].copy(), table[:, 7])

    def read(self, tile, offsets, lengths):
        """What a reader of a tile's file does."""
        data = np.frombuffer(bytes(self.tiles[tile]) + bytes(16), np.uint8)
        assert np.all(offsets + lengths <= len(data) - 16)
        return data, offsets.astype(np.int64)


def pattern(rng, height, width):
    """A mask that borders cut into many parts."""
    i, j = np.ogrid[:height, :width]
    kind = rng.integers(4)
    if kind == 0:  # a spiral of square rings with a gap each
        ring = np.minimum(np.minimum(i, height - 1 - i), np.minimum(j, width - 1 - j))
        return (ring % 2 == 0) ^ ((j == i + 1) & (i < height // 2))
    if kind == 1:
        return ((j % 2 == 0) | (i == 0)) & (j >= 0)
    if kind == 2:
        return (i + j) % 2 == 0
    return random_mask(rng, height, width)


@pytest.fixture(params=["whole", "small batches"])
def bounds(request, monkeypatch):
    """Also with batches so small that everything is split."""
    if request.param != "whole":
        monkeypatch.setattr(zones, "PIXELS", 30)
        monkeypatch.setattr(zones, "BYTES", 4)
        monkeypatch.setattr(joining, "BYTES", 4)
        monkeypatch.setattr(zones, "MEETINGS", 3)


def check(cut, masks, **options):
    """Compare with the regions of whole masks."""
    parts = cut.parts()
    found = join(parts, cut.read, **options)
    wanted = {s: iid_dask.regions_of(mask, BBox(0, 0, *mask.shape)) for s, mask in masks.items()}
    boxes = [(s, *region.bbox) for s in sorted(wanted) for region in wanted[s]]
    assert np.column_stack([found.segments, found.boxes]).tolist() == [list(map(int, box)) for box in boxes]
    segments = np.unique(parts.segments)
    for segment, counted in zip(segments.tolist(), found.counted.tolist(), strict=True):
        assert counted in (-1, masks[segment].sum())
    for number, box in enumerate(found.boxes.tolist()):
        whole = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
        for k in np.flatnonzero(found.regions == number).tolist():
            top, left, bottom, right = parts.boxes[k].tolist()
            size = (bottom - top) * (right - left)
            data, places = cut.read(int(parts.tiles[k]), parts.bits[k : k + 1], np.array([(size + 7) // 8]))
            bits = np.unpackbits(data[places[0] :])[:size].reshape(bottom - top, right - left)
            whole[top - box[0] : bottom - box[0], left - box[1] : right - box[1]] |= bits.astype(bool)
        region = [region for s in sorted(wanted) for region in wanted[s]][number]
        assert np.packbits(whole).tobytes() == region.bits
    areas = union_areas(parts, cut.read)
    assert [found.tolist() for found in areas] == [segments.tolist(), [int(masks[s].sum()) for s in segments.tolist()]]


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from([(1, 1), (7, 11), (3, 200), (200, 2), (16, 16), (200, 200)]), st.sampled_from([0, 1, 3]))
def test_regions_cut_by_a_grid_are_those_of_the_whole_mask(seed, tile, halo):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 40, 2))
    if tile == (1, 1):
        height, width = height // 4 + 1, width // 4 + 1
    masks, cut = {segment: pattern(rng, height, width) for segment in (3, 5)}, Cut()
    for at, top in enumerate(range(0, height, tile[0])):
        for left in range(0, width, tile[1]):
            bottom, right = min(top + tile[0] + halo, height), min(left + tile[1] + halo, width)
            box = BBox(max(top - halo, 0), max(left - halo, 0), bottom, right)
            for segment, mask in masks.items():
                cut.add(segment, at * 100 + left // tile[1], mask, box)
    check(cut, masks)


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_entries_of_one_file_that_are_one_segment_join_wherever_they_lie(seed):
    rng = np.random.default_rng(seed)
    mask, cut = np.zeros((30, 40), bool), Cut()
    for _ in range(rng.integers(1, 8)):
        top, left = int(rng.integers(25)), int(rng.integers(35))
        piece = np.zeros_like(mask)
        box = BBox(top, left, int(rng.integers(top + 1, 31)), int(rng.integers(left + 1, 41)))
        piece[box.slices] = pattern(rng, *box.shape)
        mask |= piece
        cut.add(0, 0, piece, BBox(0, 0, *mask.shape))
    check(cut, {0: mask})


@pytest.mark.usefixtures("bounds")
def test_small_batches_give_the_same():
    rng = np.random.default_rng(1)
    for n in range(12):
        masks, cut = {0: pattern(rng, 33, 29), 7: pattern(rng, 33, 29)}, Cut()
        for tile, top in enumerate(range(0, 33, 5)):
            for segment, mask in masks.items():
                cut.add(segment, tile, mask, BBox(top, 0, min(top + 5 + n % 3, 33), 29))
        check(cut, masks)


def test_regions_of_one_entry_that_share_pixels_are_joined_where_told():
    cut = Cut()
    mask = np.ones((3, 4), bool)
    cut.add(0, 0, mask, BBox(0, 0, 3, 3))
    piece, rows = cut.rows[0]
    cut.add(0, 0, mask, BBox(0, 1, 3, 4))
    cut.rows = [(piece, rows + cut.rows[1][1])]
    check(cut, {0: mask}, loose=True)


def test_far_mosaics_have_room():
    far, cut = 2**31 - 100, Cut()
    cut.add(2**32 - 2, 0, np.ones((9, 9), bool), BBox(0, 0, 4, 9), origin=(far, far))
    cut.add(2**32 - 2, 1, np.ones((9, 9), bool), BBox(4, 0, 9, 9), origin=(far, far))
    found = join(cut.parts(), cut.read)
    assert found.boxes.tolist() == [[far, far, far + 9, far + 9]]
    assert found.segments.tolist() == [2**32 - 2]
    assert union_areas(cut.parts(), cut.read)[1].tolist() == [81]


def test_a_part_without_a_pixel_in_its_first_row_is_refused():
    cut = Cut()
    cut.add(0, 0, np.ones((4, 4), bool), BBox(0, 0, 2, 4))
    cut.add(0, 1, np.ones((4, 4), bool), BBox(2, 0, 4, 4))
    cut.tiles[1][0] = 0x0F
    with pytest.raises(
        iid_dask.IIDFormatError, match=r"no pixel in its first row, \(2, 0, 4, 4\).*expected a tight box"
    ):
        join(cut.parts(), cut.read)


def test_nothing_joins_to_nothing():
    found = join(Cut().parts(), Cut().read)
    assert len(found.boxes) == len(found.segments) == len(found.counted) == 0
    assert union_areas(Cut().parts(), Cut().read)[0].tolist() == []


def test_disjoint_boxes_have_few_neighbours():
    """Nested parts that are no neighbours cost nothing, and a grid of them is no quadratic table."""
    i, j = (n.ravel() for n in np.meshgrid(np.arange(100), np.arange(100), indexing="ij"))
    boxes = np.stack([i * 5, j * 5, i * 5 + 5, j * 5 + 5], axis=1)
    shares, nothing = np.zeros(1, bool), np.zeros(0, np.int64)
    assert (
        kernels.adjacent_boxes(np.array([0, len(boxes)]), boxes, shares, nothing, nothing) == 2 * 99 * 100 + 2 * 99**2
    )
    assert not shares[0]


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_parts_are_put_into_place_bit_by_bit(seed):
    rng = np.random.default_rng(seed)
    whole, places = np.zeros((150, 90), bool), []
    masks = [rng.random((int(rng.integers(1, 150)), int(rng.choice([1, 2, 63, 64, 80])))) < 0.5 for _ in range(4)]
    bits = []
    for mask in masks:
        row, col = (int(rng.integers(whole.shape[axis] - mask.shape[axis] + 1)) for axis in (0, 1))
        whole[row : row + mask.shape[0], col : col + mask.shape[1]] |= mask
        places.append(row * 90 + col)
        bits.append(np.packbits(mask))
    starts = np.cumsum([0, *map(len, bits)])[:-1] * 8
    heights, widths = np.array([mask.shape for mask in masks]).T
    out = np.zeros((150 * 90 + 7) // 8, np.uint8)
    data = np.concatenate([*bits, np.zeros(16, np.uint8)])
    kernels.or_parts(data, starts, heights.copy(), widths.copy(), out, np.array(places), np.full(4, 90))
    assert out.tobytes() == np.packbits(whole).tobytes()
