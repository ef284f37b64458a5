"""Assembling masks with names, and connected components: what tile borders cut is whole again, overlaps are kept."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import warnings

import numpy as np
import pytest
import xarray as xr
from assembled import ASSEMBLE, collected, cut, entries, golden, image_size, whole, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_images import TILE, box_of, canonical_order, cells, masks, noise
from twins import seeds

import iid_dask

REFERENCE = (ASSEMBLE / "masks.iid").read_bytes()
SMALL_TILES = [TILE, (1, 80), (60, 1), 13, 16, 33, 100]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Thousands of tiles are written here, and no power fails: that files are forced to disk is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


# --- masks with names ------------------------------------------------------------------------------------------------


def pieces(named, box):
    """Masks cut to a tile, in its frame; those with nothing in it left out, but empty ones are kept in the first."""
    for domain, address, mask, *group in named:
        part = mask[box.slices]
        if part.any() or (not mask.any() and (box.min_row, box.min_col) == (0, 0)):
            yield domain, address, (0, 0, *part.shape), part, *[g for g in group if g is not None]


def sewn(tmp_path, named, tile, **options):
    """Masks cut over tiles, written in a random order, finished and consolidated: the bytes."""
    shape = named[0][2].shape
    folder = tmp_path / "m"
    shutil.rmtree(folder, ignore_errors=True)
    tile = (tile, tile) if isinstance(tile, int) else tile
    iid_dask.prepare(folder, shape, tile=tile, **options)
    boxes = [
        iid_dask.BBox(row, col, min(row + tile[0], shape[0]), min(col + tile[1], shape[1]))
        for row, col in itertools.product(range(0, shape[0], tile[0]), range(0, shape[1], tile[1]))
    ]
    random.Random(str(tile)).shuffle(boxes)
    for box in boxes:
        iid_dask.write_tile(folder, pieces(named, box), (box.min_row, box.min_col), shape=box.shape)
    return collected(folder, tmp_path / "out.iid")


@pytest.mark.parametrize("tile", SMALL_TILES)
def test_named_masks_cut_over_tiles_are_the_references_whole_ones(tmp_path, tile):
    assert sewn(tmp_path, masks(), tile, stitch="name")[: len(REFERENCE)] == REFERENCE


def test_the_reference_file_of_masks_is_what_it_says():
    named = masks()
    with iid_dask.open(ASSEMBLE / "masks.iid") as f:
        assert len(f) == len(named)
        for entry, k in zip(f.values(), canonical_order(named), strict=True):
            domain, address, mask, group = named[k]
            assert (entry.domain, entry.address) == (domain, address)
            assert list(entry.groups) == ([] if group is None else [group])
            assert tuple(entry.bbox) == box_of(mask)
            np.testing.assert_array_equal(entry.mask(), mask[entry.bbox.slices])


def random_masks(seed):
    """Masks that overlap, some empty, in none, one or two of three groups, one of which is named before the other."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 45, 2)
    groups = [["z"], ["a"], [], ["z", "m"], ["m", "a"], "a"]
    return [
        (b"m", b"%d" % n, rng.random((height, width)) < rng.choice([0, 0.02, 0.3, 0.9]), groups[rng.integers(6)])
        for n in rng.permutation(7)
    ]


def whole_masks(path, named):
    """What `IIDWriter` makes of whole masks in the canonical order."""
    with iid_dask.IIDWriter(path, metadata=image_size(named[0][2])) as writer:
        for k in canonical_order(named):
            domain, address, mask, groups = named[k]
            box = iid_dask.BBox(*box_of(mask))
            writer.add(domain, address, box, mask[box.slices], groups=[groups] if isinstance(groups, str) else groups)
    return path.read_bytes()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, rows=st.integers(6, 45), cols=st.integers(6, 45))
def test_union_of_pieces_is_the_mask_and_overlaps_are_kept(tmp_path, seed, rows, cols):
    named = random_masks(seed)
    whole_masks(tmp_path / "w.iid", named)
    found = sewn(tmp_path, named, (rows, cols), stitch="name")
    assert entries(tmp_path / "out.iid") == entries(tmp_path / "w.iid")
    assert found == sewn(tmp_path, named, 45, stitch="name")
    with iid_dask.open(found) as one, iid_dask.open(tmp_path / "w.iid") as other:
        assert {name: keys.tolist() for name, keys in one.groups.items()} == {
            name: keys.tolist() for name, keys in other.groups.items()
        }
        firsts = [int(keys[0]) for keys in one.groups.values()]
        assert firsts == sorted(firsts)


def two_crossing():
    """Two masks that overlap and cross all of a picture."""
    out = np.zeros((2, 30, 40), bool)
    out[0, 10:14, 2:38] = out[1, 3:28, 18:22] = True
    return out


@pytest.mark.parametrize("tile", [TILE, 16, 100])
def test_short_names_that_collide_in_two_groups_stay_two(tmp_path, tile):
    across, down = two_crossing()
    named = [(b"", b"1", across, "left"), (b"", b"1", down, "right")]
    with iid_dask.open(sewn(tmp_path, named, tile, stitch="name", identity=("domain", "address", "group"))) as f:
        assert [(e.address, list(e.groups), e.area) for e in f.values()] == [
            (b"1", ["right"], int(down.sum())),
            (b"1", ["left"], int(across.sum())),
        ]


@pytest.mark.parametrize("tile", [TILE, 16, 100])
def test_short_names_that_collide_are_one_segment_by_default_and_it_is_said(tmp_path, tile):
    across, down = two_crossing()
    named = [(b"", b"1", across, "left"), (b"", b"1", down, "right")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        data = sewn(tmp_path, named, tile, stitch="name")
    assert len([w for w in said if issubclass(w.category, iid_dask.IIDWarning)]) == 1
    with iid_dask.open(data) as f:
        assert [(e.address, sorted(e.groups), e.area) for e in f.values()] == [
            (b"1", ["left", "right"], int((across | down).sum()))
        ]


@pytest.mark.parametrize("tile", [TILE, 16, 100])
def test_one_name_twice_in_a_tile_can_be_refused(tmp_path, tile):
    across, down = two_crossing()
    named = [(b"d", b"1", across), (b"d", b"1", down)]
    with pytest.raises((ValueError, iid_dask.IIDError), match=r"b'd'.*b'1'|twice"):
        sewn(tmp_path, named, tile, stitch="name", on_duplicate="refuse")
    apart = [(b"d", b"1", across), (b"d", b"2", down)]
    with iid_dask.open(sewn(tmp_path, apart, tile, stitch="name", on_duplicate="refuse")) as f:
        assert len(f) == 2


@pytest.mark.parametrize("tile", [TILE, 16, 100])
def test_two_labels_given_one_name_stay_two(tmp_path, tile):
    across, down = two_crossing()
    image = np.where(down, 2, np.where(across, 1, 0)).astype(np.uint8)
    with iid_dask.open(written(tmp_path, image, names=lambda label: "one", tile=tile)) as f:
        assert [(e.address, e.area) for e in f.values()] == [(b"one", int((image == n).sum())) for n in (1, 2)]


@pytest.mark.parametrize("tile", [TILE, 16, 100])
def test_without_stitching_every_piece_is_a_segment(tmp_path, tile):
    image = cells(30, 40, 9)
    rows, cols = (tile, tile) if isinstance(tile, int) else tile
    expected = []
    for block, (row, col) in cut(image, (rows, cols)):
        for value in np.unique(block):
            mask = np.zeros(image.shape, bool)
            mask[row : row + rows, col : col + cols] = block == value
            expected.append(mask)
    expected.sort(key=lambda mask: int(mask.argmax()))
    with iid_dask.open(written(tmp_path, image, stitch=None, tile=tile)) as f:
        assert [e.address for e in f.values()] == [b"%d" % (key + 1) for key in range(len(expected))]
        for entry, mask in zip(f.values(), expected, strict=True):
            np.testing.assert_array_equal(entry.mask(), mask[entry.bbox.slices])


def test_a_mosaic_of_overlapping_masks_opens_as_its_file_does(tmp_path):
    sewn(tmp_path, masks(), (13, 17), stitch="name")
    with (
        xr.open_dataset(tmp_path / "m", engine="iid", layers=True) as one,
        xr.open_dataset(tmp_path / "out.iid", engine="iid", layers=True) as other,
    ):
        assert set(one) == set(other)
        for name in other:
            np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))


# --- tiles one by one ------------------------------------------------------------------------------------------------


def gapped_cells(height, width):
    """Cells with gaps between them, numbered by their first pixel."""
    image = cells(height, width, 12)
    image[(np.diff(image, axis=0, append=0) != 0) | (np.diff(image, axis=1, append=0) != 0)] = 0
    return components(image)


def local(block):
    """The same objects, numbered from 1 in this tile."""
    return np.unique(np.append(block, 0), return_inverse=True)[1][:-1].reshape(block.shape)


def grown(core, halo, shape):
    """A tile's box around what it owns."""
    row, col, bottom, right = core
    return iid_dask.BBox(
        max(row - halo, 0), max(col - halo, 0), min(bottom + halo, shape[0]), min(right + halo, shape[1])
    )


def tiles_of(kind, shape, tile, halo):
    """(content, origin, shape, core) of each tile: named masks, or labels of its own."""
    image = gapped_cells(*shape)
    for row, col in itertools.product(range(0, shape[0], tile[0]), range(0, shape[1], tile[1])):
        core = iid_dask.BBox(row, col, min(row + tile[0], shape[0]), min(col + tile[1], shape[1]))
        box = grown(core, halo, shape)
        content = list(pieces(masks(*shape), box)) if kind == "name" else local(image[box.slices])
        yield content, (box.min_row, box.min_col), box.shape, core


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize(("kind", "halo"), [("name", 0), ("touch", 0), ("touch", 3), ("iou", 3)])
def test_tiles_in_any_order_and_twice_give_the_same_bytes(tmp_path, kind, halo, grid):
    shape, tile = (60, 80), (23, 31)
    options = {"tile": tile, "halo": halo} if grid else {}
    tiles = list(tiles_of(kind, shape, tile, halo))
    found = []
    for seed in range(3):
        calls = tiles if seed == 0 else tiles * 2
        if seed:
            random.Random(seed).shuffle(calls)
        folder = tmp_path / f"{seed}"
        for content, origin, size, core in calls:
            iid_dask.prepare(folder, shape, stitch=kind, **options)
            iid_dask.write_tile(folder, content, origin, shape=size, core=core)
        found.append(collected(folder, tmp_path / "out.iid"))
        assert collected(folder, tmp_path / "out.iid") == found[-1]
    assert found == [found[0]] * 3
    if kind == "name":
        assert found[0][: len(REFERENCE)] == REFERENCE
    elif halo:
        assert found[0] == whole(tmp_path / "w.iid", gapped_cells(*shape))
    else:
        with iid_dask.open(found[0]) as f:
            assert 12 <= len(f) < sum(int(content.max()) for content, *_ in tiles)


# --- connected components --------------------------------------------------------------------------------------------


def components(image):
    """8-connected components of equal values, numbered by their first pixel."""
    from skimage.measure import label

    return label(image.astype(np.int64), background=0, connectivity=2)


@pytest.mark.parametrize("tile", [TILE, 16, 100])
@pytest.mark.parametrize("name", ["spirals", "combs", "rings", "corners", "borders", "checkers", "noise", "cells"])
def test_connected_components_are_those_of_the_whole_image(tmp_path, name, tile):
    image, _ = golden(name)
    image = image[:50, :60] % 4 if name in ("corners", "cells") else image[:50, :60]
    for pixels in (image, image > 1):
        expected = components(pixels)
        assert written(tmp_path, pixels, connected=True, stitch="touch", tile=tile) == whole(
            tmp_path / "w.iid", expected
        )
        (tmp_path / "w.iid").unlink()


def test_connected_is_enough_to_say(tmp_path):
    image = noise(30, 40) > 1
    assert written(tmp_path, image, connected=True, tile=16) == whole(tmp_path / "w.iid", components(image))
