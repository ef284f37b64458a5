"""Assembling: whatever the tiles, their order, the scheduler and the accidents, the bytes are the reference's."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from assembled import ASSEMBLE, SUMS, collected, cut, golden, image_size, section_end, whole, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_images import GOLDEN, GOLDEN_SUMS, TILE, canonical_order, cells, discs, masks, noise, random_image
from twins import seeds

import iid_dask
from iid_dask.format.columns import Names
from iid_dask.format.encode import write_file
from iid_dask.images.raw import RawImage
from iid_dask.mosaic.blocks import segments_of, segments_of_masks

TILES = [TILE, 64, 1000, (2000, 3000)]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Thousands of tiles are written here, and no power fails: that files are forced to disk is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


# --- the parts alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_one_block_encoded_is_the_references_file(tmp_path, name):
    image, expected = golden(name)
    values, segments = segments_of(image)
    write_file(tmp_path / "o.iid", segments, Names.decimal(b"", values), groups={}, metadata=image_size(image))
    assert (tmp_path / "o.iid").read_bytes()[: len(expected)] == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds)
def test_one_block_encoded_is_the_writers_file(tmp_path, seed):
    image = random_image(seed)
    values, segments = segments_of(image)
    write_file(tmp_path / "o.iid", segments, Names.decimal(b"", values), groups={}, metadata=image_size(image))
    assert (tmp_path / "o.iid").read_bytes() == whole(tmp_path / "w.iid", image)


def test_masks_encoded_in_canonical_order_are_the_references_file(tmp_path):
    named = masks()
    items = [
        (domain, address, (0, 0, *mask.shape), mask, *([] if group is None else [group]))
        for domain, address, mask, group in (named[k] for k in canonical_order(named))
    ]
    names, segments, groups = segments_of_masks(items, named[0][2].shape)
    write_file(tmp_path / "o.iid", segments, names, groups=groups, metadata=image_size(named[0][2]))
    expected = (ASSEMBLE / "masks.iid").read_bytes()
    assert (tmp_path / "o.iid").read_bytes()[: len(expected)] == expected


# --- whole images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_are_the_references_whatever_the_tile(tmp_path, name):
    image, expected = golden(name)
    with dask.config.set(scheduler="synchronous"):
        found = [written(tmp_path, image, tile=tile) for tile in TILES]
    assert found[0][: len(expected)] == expected
    assert [hashlib.sha256(data).hexdigest() for data in found] == [hashlib.sha256(found[0]).hexdigest()] * len(TILES)
    with iid_dask.open(found[0]) as f:
        assert f.index is not None
        assert f.check() == []


large = functools.cache(lambda name: GOLDEN_SUMS[name]())


@pytest.mark.parametrize(
    ("name", "tile"), [("own", 64), ("own", 1000), ("many", 256), ("many", (100, 1300)), ("many", 1000)]
)
def test_bytes_of_many_entries_are_the_references(tmp_path, name, tile):
    data = written(tmp_path, large(name), tile=tile)
    nbytes = SUMS[name]["nbytes"]
    assert section_end(data) == nbytes
    assert hashlib.sha256(data[:nbytes]).hexdigest() == SUMS[name]["sha256"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, rows=st.integers(1, 45), cols=st.integers(1, 45))
def test_bytes_are_those_of_the_writer_on_the_whole_image(tmp_path, seed, rows, cols):
    image = random_image(seed)
    with dask.config.set(scheduler="synchronous"):
        tile = max(rows, image.shape[0] // 6), max(cols, image.shape[1] // 6)
        found = written(tmp_path, image, tile=tile)
    expected = whole(tmp_path / "whole.iid", image)
    (tmp_path / "whole.iid").unlink()
    assert found == expected


@pytest.mark.parametrize(("tile", "halo"), [((20, 33), 5), ((50, 50), 49), (64, 1), (200, 7)])
def test_halos_change_no_byte(tmp_path, tile, halo):
    image, expected = golden("discs")
    assert written(tmp_path, image, tile=tile, halo=halo)[: len(expected)] == expected


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_bytes_do_not_depend_on_the_scheduler(tmp_path, scheduler):
    image, expected = golden("discs")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        labels = da.from_array(image, chunks=(50, 33))
        assert written(tmp_path, labels, tile=(40, 30))[: len(expected)] == expected
    assert written(tmp_path, image, tile=(40, 30), scheduler="synchronous")[: len(expected)] == expected


def test_bytes_do_not_depend_on_a_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    image, expected = golden("discs")
    np.save(tmp_path / "labels.npy", image)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster),
    ):
        for n, labels in enumerate((da.from_array(image, chunks=40), tmp_path / "labels.npy")):
            iid_dask.to_iid(labels, tmp_path / f"{n}.iid", tile=50, progress=False)
            assert (tmp_path / f"{n}.iid").read_bytes()[: len(expected)] == expected


# --- names and groups ------------------------------------------------------------------------------------------------


def test_names_and_groups_are_put_on_and_never_join(tmp_path):
    image = discs(50, 60, 12)
    labels = np.unique(image)[1:].tolist()
    texts = {label: "same" if label % 2 else f"é{label}" for label in labels}
    for tile in (TILE, 25, 100):
        found = written(tmp_path, image, names=texts, domain=b"d", tile=tile)
        assert found == written(tmp_path, image, names=texts.__getitem__, domain=b"d", tile=tile)
        with iid_dask.open(found) as f:
            assert [e.address for e in f.values()] == [texts[label].encode() for label in labels]
            assert {e.domain for e in f.values()} == {b"d"}
            for label, entry in zip(labels, f.values(), strict=True):
                np.testing.assert_array_equal(entry.mask(), (image == label)[entry.bbox.slices])


def test_groups_by_mapping_and_function_are_those_of_the_writer(tmp_path):
    image = discs(50, 60, 12)
    # Of groups that begin with the same entry the first in the alphabet comes first: pieces have no order.
    groups = {label: ["a", "odd" if label % 2 else "even"][label % 3 == 1 :] for label in np.unique(image)[1:].tolist()}
    expected = whole(tmp_path / "w.iid", image, group=groups.__getitem__)
    (tmp_path / "w.iid").unlink()
    for tile in (TILE, 100):
        assert written(tmp_path, image, groups=groups, tile=tile) == expected
        assert written(tmp_path, image, groups=lambda label: groups[label], tile=tile) == expected


def test_a_group_given_as_text_is_one_group(tmp_path):
    image = noise(9, 9)
    with iid_dask.open(written(tmp_path, image, groups=lambda label: "cells")) as f:
        assert {name: keys.tolist() for name, keys in f.groups.items()} == {"cells": [0, 1, 2]}


# --- tiles one by one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_tiles_in_any_order_and_twice_give_the_same_bytes(tmp_path, seed, grid):
    image, expected = golden("rings")
    tile = [TILE, (13, 17), (40, 7)][seed]
    blocks = list(cut(image, tile)) * 2
    random.Random(seed).shuffle(blocks)
    iid_dask.prepare(tmp_path / "m", image.shape, tile=tile if grid else None)
    for block, origin in blocks:
        iid_dask.prepare(tmp_path / "m", image.shape, tile=tile if grid else None)
        iid_dask.write_tile(tmp_path / "m", block, origin)
    assert collected(tmp_path / "m", tmp_path / "out.iid")[: len(expected)] == expected
    before = (tmp_path / "out.iid").read_bytes()
    assert collected(tmp_path / "m", tmp_path / "out.iid") == before


def test_tiles_are_files_that_say_where_they_lie(tmp_path):
    image, _ = golden("discs")
    iid_dask.prepare(tmp_path / "m", image.shape, tile=64)
    for block, origin in cut(image, (64, 64)):
        iid_dask.write_tile(tmp_path / "m", block, origin)
    paths = sorted((tmp_path / "m" / "tiles").iterdir())
    assert len(paths) == 9
    for path in paths:
        with iid_dask.open(path) as f:
            (row, col), (height, width) = f.metadata["mosaic"]["origin"], f.metadata["mosaic"]["shape"]
            block = image[row : row + height, col : col + width]
            assert f.check() == []
        assert path.name == f"r{row:07d}_c{col:07d}.iid"
        with xr.open_dataset(path, engine="iid", labels="address", entries=False) as ds:
            np.testing.assert_array_equal(ds.label.values, block)


@pytest.mark.parametrize("accident", ["missing", "cut in half", "of another job", "one byte changed", "empty"])
def test_a_bad_tile_is_named_and_can_be_written_again(tmp_path, accident):
    image, expected = golden("discs")
    blocks = list(cut(image, (50, 60)))
    for folder, metadata in (("m", {}), ("other", {"camera": "another"})):
        iid_dask.prepare(tmp_path / folder, image.shape, tile=(50, 60), metadata=metadata)
        for block, origin in blocks:
            iid_dask.write_tile(tmp_path / folder, block, origin)
    path = tmp_path / "m" / "tiles" / "r0000050_c0000060.iid"
    data = path.read_bytes()
    if accident == "missing":
        path.unlink()
    elif accident == "of another job":
        shutil.copy(tmp_path / "other" / "tiles" / path.name, path)
    else:
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
        path.write_bytes({"cut in half": data[:middle], "one byte changed": changed, "empty": b""}[accident])
    with pytest.raises((iid_dask.IIDError, OSError), match=r"r0000050_c0000060|row 50, column 60"):
        iid_dask.finish(tmp_path / "m")
    assert not (tmp_path / "m" / "mosaic.json").exists()
    with pytest.raises((iid_dask.IIDError, OSError), match=r"finish|mosaic\.json"):
        iid_dask.open_mosaic(tmp_path / "m")
    block, origin = next(pair for pair in blocks if pair[1] == (50, 60))
    iid_dask.write_tile(tmp_path / "m", block, origin)
    assert collected(tmp_path / "m", tmp_path / "out.iid")[: len(expected)] == expected


@pytest.mark.parametrize("change", ["another label", "a pixel less", "missing", "longer", "of another job"])
def test_a_tile_changed_after_the_mosaic_was_finished_is_named(tmp_path, change):
    image = np.kron(np.arange(1, 10, dtype=np.uint16).reshape(3, 3), np.ones((20, 20), np.uint16))
    for folder, metadata in (("m", {"camera": "a"}), ("other", {"camera": "b"})):
        iid_dask.to_mosaic(image, tmp_path / folder, tile=20, metadata=metadata, progress=False).close()
    name = "r0000020_c0000000.iid"
    path = tmp_path / "m" / "tiles" / name
    nbytes = path.stat().st_size
    block = image[20:40, :20].copy()
    if change == "another label":
        block[:] = 9
    elif change == "longer":
        block[3, 4] = 1
    else:
        block[0, 0] = 0
    if change == "missing":
        path.unlink()
    elif change == "of another job":
        shutil.copy(tmp_path / "other" / "tiles" / name, path)
    else:
        iid_dask.write_tile(tmp_path / "m", block, (20, 0))
        assert (path.stat().st_size == nbytes) == (change != "longer")
    with pytest.raises(iid_dask.IIDStoreError, match=name), iid_dask.open_mosaic(tmp_path / "m") as mosaic:
        mosaic.to_iid(tmp_path / "out.iid")
    assert not (tmp_path / "out.iid").exists()
    with pytest.raises(iid_dask.IIDStoreError, match=name), xr.open_dataset(tmp_path / "m", engine="iid") as ds:
        ds.label.load()


def test_tiles_that_are_none_of_the_job_are_refused(tmp_path):
    image = noise(40, 60)
    iid_dask.prepare(tmp_path / "m", image.shape, tile=20)
    for block, origin in (
        (image[:20, :20], (0, 10)),
        (image[:10, :20], (0, 0)),
        (image[:20, :20], (40, 0)),
        (image[:20, :20], (-20, 0)),
    ):
        with pytest.raises(ValueError, match="tile at row"):
            iid_dask.write_tile(tmp_path / "m", block, origin)
    with pytest.raises(FileNotFoundError, match="prepare"):
        iid_dask.write_tile(tmp_path / "nothing", image[:20, :20], (0, 0))
    with pytest.raises(iid_dask.IIDStoreError, match="other options"):
        iid_dask.prepare(tmp_path / "m", image.shape, tile=10)


def test_an_interrupted_call_goes_on_and_keeps_good_tiles(tmp_path):
    image, expected = golden("cells")
    fail, read = [True], []

    def block(block_info=None):
        (top, bottom), (left, right) = block_info[None]["array-location"]
        read.append(top)
        if fail[0] and len(read) == 6:  # in whatever order dask comes to them
            raise OSError("the disk went away")
        return image[top:bottom, left:right]

    chunks = ((40, 40, 40, 10), (40, 40, 17))
    labels = da.map_blocks(block, chunks=chunks, dtype=image.dtype, name="fixed-labels")
    target, scratch = tmp_path / "out.iid", tmp_path / "scratch"
    target.write_bytes(b"old")
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(OSError, match="went away"):
            iid_dask.to_iid(labels, target, tile=40, scratch=scratch, progress=False)
        assert target.read_bytes() == b"old"
        done = {path: path.stat().st_mtime_ns for path in scratch.rglob("tiles/*.iid")}
        assert 0 < len(done) < 12
        damaged = min(done)
        damaged.write_bytes(damaged.read_bytes()[:-30])
        fail[0] = False
        stamps = {}
        unlink = iid_dask.finish

        def spy(*arguments, **options):
            stamps.update({path: path.stat().st_mtime_ns for path in scratch.rglob("tiles/*.iid")})
            return unlink(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("iid_dask.assembling.front.finish", spy)
            iid_dask.to_iid(labels, target, tile=40, scratch=scratch, progress=False)
    assert target.read_bytes()[: len(expected)] == expected
    assert {path for path in done if stamps[path] == done[path]} == set(done) - {damaged}
    assert sorted(path.name for path in tmp_path.iterdir()) in (["out.iid"], ["out.iid", "scratch"])


def test_a_changed_image_is_not_taken_from_tiles_of_the_old_one(tmp_path):
    image = cells(60, 70)
    target, scratch = tmp_path / "out.iid", tmp_path / "scratch"
    changed = image.copy()
    changed[45:55, 45:55] = 0
    fail = [True]

    def blocks(pixels):
        def block(block_info=None):
            (top, bottom), (left, right) = block_info[None]["array-location"]
            if fail[0] and (top, left) == (40, 40):
                raise OSError("the disk went away")
            return pixels[top:bottom, left:right]

        return da.map_blocks(block, chunks=((20, 20, 20), (20, 20, 30)), dtype=image.dtype, name="fixed")

    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(OSError, match="went away"):
            iid_dask.to_iid(blocks(image), target, tile=20, scratch=scratch, progress=False)
        fail[0] = False
        iid_dask.to_iid(blocks(changed), target, tile=20, scratch=scratch, progress=False)
    assert target.read_bytes() == whole(tmp_path / "w.iid", changed)


# No tile of the one is a tile of the other.
FIRST = np.kron(np.arange(1, 17, dtype=np.uint16).reshape(4, 4), np.ones((10, 10), np.uint16))
SECOND = FIRST[::-1]


def replaced(path, image):
    """Put an image in the place of another one, of another time whatever the clock's steps."""
    made = path.with_name("new.npy")
    np.save(made, image)
    os.utime(made, ns=(int(image[0, 0]) * 10**18, int(image[0, 0]) * 10**18))
    os.replace(made, path)
    return path


def tiles_read(image, folder, *, most=16, **options):
    """Write tiles, and return of how many the pixels were read; the process is interrupted before it reads more."""
    counted, read = [], RawImage.read

    def reading(self, box):
        if len(counted) == most:
            raise KeyboardInterrupt
        counted.append(box)
        return read(self, box)

    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(RawImage, "read", reading)
        iid_dask.to_mosaic(image, folder, tile=10, progress=False, **{"part": (1, 1), **options})
    return len(counted)


def test_trust_reads_nothing_again_while_the_image_is_the_same(tmp_path):
    image, folder = replaced(tmp_path / "labels.npy", FIRST), tmp_path / "m"
    assert tiles_read(image, folder) == 16
    assert tiles_read(image, folder) == 16, "the control reads all of them"
    assert tiles_read(image, folder, resume="trust") == 0
    (folder / "tiles" / "r0000010_c0000020.iid").unlink()
    assert tiles_read(image, folder, resume="trust") == 1
    assert collected(folder, tmp_path / "m.iid") == whole(tmp_path / "w.iid", FIRST)


def test_no_part_of_a_job_trusts_tiles_of_an_image_that_was_replaced(tmp_path):
    image, folder = replaced(tmp_path / "labels.npy", FIRST), tmp_path / "m"
    for part in (1, 2):
        tiles_read(image, folder, part=(part, 2))
    replaced(image, SECOND)
    assert [tiles_read(image, folder, part=(part, 2), resume="trust") for part in (1, 2)] == [8, 8]
    assert collected(folder, tmp_path / "m.iid") == whole(tmp_path / "w.iid", SECOND)


def test_tiles_of_an_image_that_was_replaced_are_not_trusted_after_an_interruption(tmp_path):
    image, folder = replaced(tmp_path / "labels.npy", FIRST), tmp_path / "m"
    tiles_read(image, folder)
    replaced(image, SECOND)
    with pytest.raises(KeyboardInterrupt):
        tiles_read(image, folder, most=5, resume="trust")
    assert tiles_read(image, folder, resume="trust") == 16
    assert collected(folder, tmp_path / "m.iid") == whole(tmp_path / "w.iid", SECOND)


# --- a mosaic is its file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [(31, 43), 200])
def test_a_mosaic_opens_as_its_file_does(tmp_path, tile):
    image, _ = golden("discs")
    options = {"groups": lambda label: ["odd"] if label % 2 else ["even", "all"], "tile": tile, "progress": False}
    iid_dask.to_mosaic(image, tmp_path / "m", **options)
    iid_dask.to_iid(image, tmp_path / "out.iid", **options)
    with iid_dask.open_mosaic(tmp_path / "m") as mosaic:
        mosaic.to_iid(tmp_path / "again.iid")
    assert (tmp_path / "again.iid").read_bytes() == (tmp_path / "out.iid").read_bytes()
    for kwargs in ({"layers": True, "color": True}, {"labels": "address"}, {"groups": "all"}, {"stride": 3}):
        with (
            xr.open_dataset(tmp_path / "m", engine="iid", **kwargs) as one,
            xr.open_dataset(tmp_path / "out.iid", engine="iid", **kwargs) as other,
            xr.open_dataset(tmp_path / "m" / "mosaic.json", engine="iid", chunks={}, **kwargs) as manifest,
        ):
            assert set(one) == set(other) == set(manifest)
            for name in other:
                np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=str(name))
                np.testing.assert_array_equal(manifest[name].values, other[name].values, err_msg=str(name))
    with xr.open_dataset(tmp_path / "m", engine="iid", labels="address") as ds:
        np.testing.assert_array_equal(ds.label.values, image)
