"""Compiled loops against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from twins import color_of, colors, random_reader, seeds

from iid_dask import BBox, kernels, pieces, regions_of
from iid_dask.format.regions import find_regions

bounded = settings(deadline=None, max_examples=60)
masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20))


def flood(mask):
    """Components as sets of pixels, 8-connected, in raster order of their first pixel."""
    left = {(int(i), int(j)) for i, j in np.argwhere(mask)}
    found = []
    for pixel in sorted(left):
        if pixel not in left:
            continue
        left.discard(pixel)
        component, edge = {pixel}, [pixel]
        while edge:
            i, j = edge.pop()
            around = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)} & left
            left -= around
            component |= around
            edge.extend(around)
        found.append(component)
    return found


def spiral(size):
    mask = np.zeros((size, size), bool)
    i, j, di, dj = 0, 0, 0, 1
    for length in [size - 1, *np.repeat(np.arange(size - 1, 0, -2), 2)]:
        for _ in range(length):
            mask[i, j] = True
            i, j = i + di, j + dj
        di, dj = dj, -di
    return mask


def shapes():
    i, j = np.indices((21, 30))
    yield "spiral", spiral(31)
    yield "checkerboard", (i + j) % 2 == 0
    yield "diagonals", (i + j) % 5 == 0
    yield "dots", (i % 2 == 0) & (j % 2 == 0)
    yield "comb down", (j % 2 == 0) | (i == 0)
    yield "comb up", (j % 2 == 0) | (i == 20)
    yield "comb right", (i % 2 == 0) | (j == 29)
    yield "rings", np.minimum.reduce([i, j, 20 - i, 29 - j]) % 2 == 0
    yield "V", np.abs(j - 15) == 20 - i
    yield "nothing", np.zeros((0, 0), bool)


def components(mask):
    return [
        (
            tuple(region.bbox),
            {(int(i) + region.bbox.min_row, int(j) + region.bbox.min_col) for i, j in np.argwhere(region.mask())},
        )
        for region in regions_of(mask, BBox(0, 0, *mask.shape))
    ]


def check_components(mask):
    wanted = flood(mask)
    found = components(mask)
    assert [pixels for _, pixels in found] == wanted
    for box, pixels in found:
        rows, cols = zip(*pixels, strict=True)
        assert box == (min(rows), min(cols), max(rows) + 1, max(cols) + 1)


@pytest.mark.parametrize(("name", "mask"), list(shapes()))
def test_known_shapes_split_into_connected_components(name, mask):
    check_components(mask)
    check_components(np.ascontiguousarray(mask[::-1, ::-1]))


@bounded
@given(masks)
def test_random_masks_split_into_connected_components(mask):
    check_components(mask)


@bounded
@given(masks)
def test_runs_and_areas(mask):
    block = mask.view(np.uint8)
    assert kernels.count_block_runs(block) == np.count_nonzero(np.diff(mask.astype(np.int8), prepend=0, axis=1) == 1)
    assert find_regions(block, None).areas.tolist() == [len(component) for component in flood(mask)]


@bounded
@given(hnp.arrays(np.uint8, st.integers(0, 40)), st.integers(0, 7))
def test_popcount(data, spare):
    n_bits = max(0, len(data) * 8 - spare)
    assert kernels.popcount(data, n_bits) == np.unpackbits(data)[:n_bits].sum()


@bounded
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_loose_sides(mask):
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    wanted = sum(bit for bit, side in zip((1, 2, 4, 8), sides, strict=True) if not side.any())
    assert kernels.loose_sides(np.packbits(mask), *mask.shape) == wanted


@bounded
@given(
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64, bool]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=15))
    ),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_chunk_facts(block, chunk_rows, chunk_cols):
    shape = -(-block.shape[0] // chunk_rows), -(-block.shape[1] // chunk_cols)
    pixels, sums = np.zeros((2, *shape), np.uint64)
    kernels.chunk_facts(block, chunk_rows, chunk_cols, pixels, sums)
    for i, j in np.ndindex(shape):
        rows = slice(i * chunk_rows, (i + 1) * chunk_rows)
        part = block[rows, j * chunk_cols : (j + 1) * chunk_cols]
        assert pixels[i, j] == np.count_nonzero(part)
        total = sum(
            (2 * n + 1) * sum((2 * k + 1) * int(value) for k, value in enumerate(line)) for n, line in enumerate(part)
        )
        assert int(sums[i, j]) == total % 2**64


def test_chunk_facts_tell_rows_and_values_apart():
    block = np.arange(16, dtype=np.uint32).reshape(4, 4)
    swapped = block[[1, 0, 2, 3]]
    other = block.copy()
    other[2, 2] += 1
    found = []
    for some in (block, swapped, other):
        pixels, sums = np.zeros((2, 1, 1), np.uint64)
        kernels.chunk_facts(np.ascontiguousarray(some), 4, 4, pixels, sums)
        found.append(int(sums[0, 0]))
    assert len(set(found)) == 3


@bounded
@given(
    st.sampled_from([np.uint8, np.uint16, np.uint32, np.uint64]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=8))
    )
)
def test_colorize(labels):
    out = np.zeros((*labels.shape, 3), np.uint8)
    kernels.colorize(labels, out)
    assert np.array_equal(out, colors(labels))


def test_colors_of_neighbours_differ_and_none_is_black():
    labels = np.arange(1, 3001, dtype=np.uint32)[None]
    out = np.zeros((1, 3000, 3), np.uint8)
    kernels.colorize(labels, out)
    assert out.max(axis=2).min() > 100
    for step in (1, 2, 3):
        apart = np.abs(out[0, step:].astype(int) - out[0, :-step]).max(axis=1)
        assert apart.min() > 20
    assert out[0, 0].tolist() == list(color_of(1)) == [67, 110, 215]


def brute_find(boxes, box):
    meets = (
        (boxes[:, 0] < box.max_row)
        & (boxes[:, 2] > box.min_row)
        & (boxes[:, 1] < box.max_col)
        & (boxes[:, 3] > box.min_col)
    )
    return np.flatnonzero(meets)


@pytest.mark.parametrize("zone", [1, 3, 1024])
@bounded
@given(seed=seeds)
def test_find_meets_what_brute_force_meets(zone, seed):
    rng = np.random.default_rng(seed)
    reader = random_reader(seed % 50, entries=30)
    boxes = reader.columns.region_boxes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "ZONE", zone)
        for _ in range(5):
            rows, cols = np.sort(rng.integers(0, 80, 2)), np.sort(rng.integers(0, 160, 2))
            box = BBox(rows[0], cols[0], rows[1] + 1, cols[1] + 1)
            found = pieces.touching(reader, box)
            assert np.array_equal(found, brute_find(boxes.astype(int), box))
