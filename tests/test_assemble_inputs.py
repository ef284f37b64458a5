"""What can be assembled: arrays, images, grids, existing files; and what is refused before anything is touched."""

from __future__ import annotations

import json
import os
import warnings

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from assembled import DATA, entries, golden, whole, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_images import box_of, canonical_order, noise
from twins import random_file, seeds

import iid_dask


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Thousands of tiles are written here, and no power fails: that files are forced to disk is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


# --- label images ----------------------------------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same_file(tmp_path):
    import tifffile
    import zarr

    image, expected = golden("cells")
    inputs = {
        "numpy": image,
        "backwards": image[::-1, ::-1].copy()[::-1, ::-1],
        "columns": np.asfortranarray(image),
        "big-endian": image.astype(">u4"),
        "signed": image.astype(np.int64),
        "dask": da.from_array(image, chunks=(31, 45)),
        "xarray": xr.DataArray(image, dims=("y", "x")),
        "zarr": zarr.create_array(str(tmp_path / "in" / "a.zarr"), data=image, chunks=(20, 30)),
        "path of a zarr": tmp_path / "in" / "a.zarr",
        "path of a npy": tmp_path / "in" / "a.npy",
        "path of a tiff": tmp_path / "in" / "a.tif",
        "memmap": None,
    }
    np.save(tmp_path / "in" / "a.npy", image)
    tifffile.imwrite(tmp_path / "in" / "a.tif", image, tile=(16, 32))
    inputs["memmap"] = np.load(tmp_path / "in" / "a.npy", mmap_mode="r")
    (tmp_path / "out").mkdir()
    for kind, labels in inputs.items():
        assert written(tmp_path / "out", labels, tile=40)[: len(expected)] == expected, kind


def as_ome_zarr(folder, image):
    """An OME-Zarr label image of version 0.5, one channel, the image and its half."""
    import zarr

    group = zarr.create_group(str(folder))
    for level, pixels in enumerate((image, image[::2, ::2])):
        group.create_array(f"s{level}", data=pixels[None], chunks=(1, 25, 40))
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scales = [{"axes": axes, "datasets": [{"path": "s0"}, {"path": "s1"}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": scales, "image-label": {}}
    return folder


def test_stored_images_and_urls_give_the_same_file(tmp_path):
    import fsspec
    import imagecodecs
    import zarr

    image, expected = golden("cells")
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "a.png").write_bytes(imagecodecs.png_encode(image))
    np.save(tmp_path / "in" / "a.npy", image)
    zarr.create_array(str(tmp_path / "in" / "a.zarr"), data=image, chunks=(20, 30))
    fsspec.filesystem("memory").put(str(tmp_path / "in" / "a.zarr"), "/assembled/a.zarr", recursive=True)
    chunked = da.from_array(image, chunks=(31, 45))
    inputs = {
        "png": (tmp_path / "in" / "a.png", {}),
        "ome": (as_ome_zarr(tmp_path / "in" / "ome.zarr", image), {}),
        "url of a zarr": ((tmp_path / "in" / "a.zarr").as_uri(), {}),
        "url of a npy": ((tmp_path / "in" / "a.npy").as_uri(), {}),
        "zarr in memory": ("memory://assembled/a.zarr", {"asynchronous": True}),
        "xarray over dask": (xr.DataArray(chunked, dims=("y", "x")), {}),
        "xarray over dask, columns first": (xr.DataArray(chunked.T, dims=("x", "y")), {}),
    }
    for kind, (labels, options) in inputs.items():
        for tile in (40, None):
            found = written(tmp_path / "out", labels, tile=tile, storage_options=options)
            assert found[: len(expected)] == expected, (kind, tile)


def test_a_grid_of_sectors_is_one_image(tmp_path):
    image, expected = golden("discs")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    sectors = [
        (row, col, image[row : row + 50, col : col + 60]) for row in range(0, 129, 50) for col in range(0, 140, 60)
    ]
    for row, col, sector in sectors:
        np.save(tmp_path / "in" / f"tile_{row // 50}_{col // 60}.npy", sector)
    paths = [tmp_path / "in" / f"tile_{row // 50}_{col // 60}.npy" for row, col, _ in sectors]
    grid = iid_dask.grid_of(str(tmp_path / "in" / "tile_{row}_{col}.npy"))
    assert written(tmp_path / "out", grid, tile=32)[: len(expected)] == expected
    assert written(tmp_path / "out", paths, across=3, tile=32)[: len(expected)] == expected
    places = [(row, col) for row, col, _ in sectors]
    assert written(tmp_path / "out", paths[::-1], at=places[::-1], tile=32)[: len(expected)] == expected
    paths[4].unlink()
    with pytest.raises((OSError, ValueError, iid_dask.IIDError), match="tile_1_1"):
        written(tmp_path / "out", iid_dask.grid_of(str(tmp_path / "in" / "tile_{row}_{col}.npy")), tile=32)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "error", "said"),
    [
        (np.zeros((4, 4)), TypeError, "float64"),
        (np.zeros((2, 3, 4), np.uint8), (TypeError, ValueError), r"2-D|two|2, 3, 4|dimension"),
        (np.zeros(5, np.uint8), (TypeError, ValueError), r"2-D|two|\(5,|dimension"),
        (np.zeros((70_000, 1), np.uint8), iid_dask.IIDLimitError, "65,?535.*mosaic|mosaic.*65,?535|70,?000"),
        ("nothing.zarr", (OSError, ValueError), "nothing.zarr"),
    ],
)
def test_what_is_no_label_image_is_refused_and_nothing_is_left(tmp_path, monkeypatch, labels, error, said):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "out.iid"
    target.write_bytes(b"old")
    with pytest.raises(error, match=said):
        iid_dask.to_iid(labels, target, progress=False)
    assert files_below(tmp_path) == {"out.iid": b"old"}


def test_a_pixel_that_is_no_label_is_found_in_its_tile_and_the_next_call_goes_on(tmp_path):
    image = noise(20, 30).astype(np.int16)
    image[15, 25] = -3
    target = tmp_path / "out.iid"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="-3") as raised:
        iid_dask.to_iid(image, target, tile=10, scheduler="synchronous", progress=False)
    assert target.read_bytes() == b"old"
    (scratch,) = {path for path in tmp_path.iterdir() if path != target}
    assert str(scratch) in "".join(raised.value.__notes__)
    assert not any("r0000010_c0000020" in path.name for path in (scratch / "tiles").iterdir())
    image[15, 25] = 3
    iid_dask.to_iid(image, target, tile=10, progress=False)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == whole(tmp_path / "w.iid", image)


def files_below(folder):
    """Path -> bytes of all files, hidden ones too, and of folders None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


# --- metadata and options --------------------------------------------------------------------------------------------


def test_metadata_is_kept_and_the_image_size_added(tmp_path):
    image = noise(9, 12)
    with iid_dask.open(written(tmp_path, image, metadata={"camera": "ü", "image": {"name": "x"}})) as f:
        assert f.metadata == {"camera": "ü", "image": {"name": "x", "height": 9, "width": 12}}


@pytest.mark.parametrize("tile", [16, 100])
def test_metadata_keep_their_order(tmp_path, tile):
    image, _ = golden("borders")
    height, width = image.shape
    metadata = {"zoom": 1, "camera": {"b": 1, "a": 2}, "image": {"width": width, "height": height, "name": "x"}}
    with iid_dask.IIDWriter(tmp_path / "w.iid", metadata=metadata) as writer:
        for label in np.unique(image[image > 0]).tolist():
            box = iid_dask.BBox(*box_of(image == label))
            writer.add(b"", str(label).encode(), box, image[box.slices] == label)
    expected = (tmp_path / "w.iid").read_bytes()
    iid_dask.to_iid(image, tmp_path / "out.iid", tile=tile, metadata=metadata, progress=False)
    assert (tmp_path / "out.iid").read_bytes() == expected
    iid_dask.to_iid(tmp_path / "w.iid", tmp_path / "copy.iid", progress=False)
    assert (tmp_path / "copy.iid").read_bytes() == expected
    iid_dask.to_mosaic(image, tmp_path / "m", tile=tile, metadata=metadata, progress=False).close()
    iid_dask.to_iid(tmp_path / "m", tmp_path / "again.iid", progress=False)
    assert (tmp_path / "again.iid").read_bytes() == expected


def test_metadata_of_files_put_together_keep_the_order_of_the_first(tmp_path):
    for name, zoom in (("a", 1), ("b", 2)):
        image = {"width": 12, "name": name, "height": 9}
        metadata = {"z": 1, "zoom": zoom, "camera": {"b": 1, "a": 2}, "image": image, "a": [3]}
        iid_dask.to_iid(noise(9, 12), tmp_path / f"{name}.iid", metadata=metadata, progress=False)
    files = [tmp_path / "a.iid", tmp_path / "b.iid"]
    iid_dask.to_iid(files, tmp_path / "out.iid", at=[(0, 0), (9, 3)], progress=False)
    found = metadata_of(tmp_path / "out.iid")
    expected = {"z": 1, "camera": {"b": 1, "a": 2}, "image": {"width": 15, "name": "a", "height": 18}, "a": [3]}
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize(
    ("metadata", "error", "said"),
    [
        ({"image": {"height": 10, "width": 12}}, ValueError, "height = 10"),
        ({"image": {"width": 11}}, ValueError, "width = 11"),
        ({"image": 5}, ValueError, "image = 5"),
        ({"a": {1, 2}}, TypeError, "JSON"),
        ({"a": float("nan")}, ValueError, "JSON"),
        ({1: "a"}, ValueError, "key is not text"),
        ({"a": np.arange(3)}, TypeError, "JSON"),
    ],
)
def test_metadata_is_refused_before_the_target_is_touched(tmp_path, metadata, error, said):
    target = tmp_path / "out.iid"
    target.write_bytes(b"old")
    read = []
    labels = da.map_blocks(lambda: read.append(1) or noise(9, 12), chunks=((9,), (12,)), dtype="u1", meta=noise(0, 0))
    with pytest.raises(error, match=said):
        iid_dask.to_iid(labels, target, metadata=metadata, progress=False)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.iid"]
    assert read == []


REFUSED = [
    ({"tile": 0}, ValueError, r"tile = \(0, 0\): expected .*1 … 65535"),
    ({"tile": "20"}, TypeError, "tile = '20'"),
    ({"tile": 20.5}, TypeError, r"tile = 20\.5"),
    ({"tile": 70_000}, ValueError, "tile = .*65535"),
    ({"stitch": "sew"}, ValueError, "stitch = 'sew'"),
    ({"stitch": "name"}, ValueError, 'stitch="name" joins masks'),
    ({"stitch": "touch"}, ValueError, "labels are local to tiles: say which"),
    ({"stitch": "iou", "tile": 5}, ValueError, "halo="),
    ({"names": ["a", "b", "c"]}, TypeError, "names is a list: expected a mapping or a function"),
    ({"groups": 3}, TypeError, "groups is a int: expected a mapping or a function"),
    ({"domain": "cell"}, TypeError, "domain = 'cell': expected bytes"),
    ({"rule": "x"}, TypeError, r"rule = 'x': expected iid_dask\.Touch\(…\) or iid_dask\.IoU\(…\)"),
    ({"rule": iid_dask.Touch()}, ValueError, "stitch = 'label', so there is nothing to decide"),
    ({"rule": iid_dask.Touch(), "stitch": None, "tile": 5}, ValueError, "stitch = None, so there is nothing to decide"),
    ({"rule": iid_dask.Touch(), "connected": True}, ValueError, "connected components join wherever they touch"),
    (
        {"rule": iid_dask.IoU(), "stitch": "touch", "tile": 5},
        ValueError,
        "IoU compares what two tiles both hold, and this mosaic has no halo: take Touch, or prepare it with halo=",
    ),
    ({"across": 2}, ValueError, "across= and at= place a list of paths"),
    ({"keys": [1]}, ValueError, "keys= and window= are for existing files"),
    ({"resume": "x"}, ValueError, "resume = 'x'"),
    ({"nix": 1}, TypeError, "nix"),
]


@pytest.mark.parametrize(("options", "error", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_bad_options_are_refused_before_a_tile_is_written(tmp_path, options, error, said):
    (tmp_path / "out.iid").write_bytes(b"old")
    with pytest.raises(error, match=said):
        iid_dask.to_iid(noise(9, 12), tmp_path / "out.iid", progress=False, **options)
    with pytest.raises(error, match=said):
        iid_dask.to_mosaic(noise(9, 12), tmp_path / "mosaic", progress=False, **options)
    assert files_below(tmp_path) == {"out.iid": b"old"}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"names": {1: "a"}}, KeyError, "2 of 3 labels, the first is 2"),
        ({"names": lambda label: 5}, TypeError, "names: label 1 is called 5"),
        ({"groups": lambda label: 5}, TypeError, "groups: label 1 is in 5"),
        ({"groups": lambda label: b"g"}, TypeError, "groups: label 1 is in b'g'"),
    ],
)
def test_what_names_and_groups_lack_is_told_and_the_old_target_stands(tmp_path, options, error, said):
    target = tmp_path / "out.iid"
    target.write_bytes(b"old")
    with pytest.raises(error, match=said) as raised:
        iid_dask.to_iid(noise(9, 12), target, progress=False, **options)
    assert target.read_bytes() == b"old"
    (scratch,) = {path for path in tmp_path.iterdir() if path != target}
    assert str(scratch) in "".join(raised.value.__notes__)


@pytest.mark.parametrize(
    "options",
    [{"domain": b"d"}, {"names": str}, {"groups": str}, {"rule": iid_dask.Touch(), "stitch": "touch"}],
    ids=lambda options: next(iter(options)),
)
def test_what_finish_is_given_is_refused_beside_a_part(tmp_path, options):
    with pytest.raises(ValueError, match=r"part=: names, domain, groups and rule are given to iid_dask\.finish"):
        iid_dask.to_mosaic(noise(9, 12), tmp_path / "m", tile=5, part=(1, 2), progress=False, **options)
    with pytest.raises(ValueError, match=r"expected \(I, N\) with I from 1 to N"):
        iid_dask.to_mosaic(noise(9, 12), tmp_path / "m", tile=5, part=(3, 2), progress=False)
    assert files_below(tmp_path) == {}


def test_a_folder_of_something_else_becomes_no_mosaic(tmp_path):
    import zarr

    image = noise(20, 30)
    zarr.create_array(str(tmp_path / "a.zarr"), data=image, chunks=(10, 10))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    before = files_below(tmp_path)
    for folder in (tmp_path / "a.zarr", tmp_path / "notes", tmp_path):
        with pytest.raises(iid_dask.IIDStoreError, match=r"holds '.*' and is no mosaic's; give a new folder"):
            iid_dask.to_mosaic(tmp_path / "a.zarr", folder, tile=10, progress=False)
        with pytest.raises(iid_dask.IIDStoreError, match=r"holds '.*' and is no mosaic's; give a new folder"):
            iid_dask.prepare(folder, (20, 30), tile=10)
    with pytest.raises(OSError, match=r"a\.txt"):
        iid_dask.to_mosaic(image, tmp_path / "notes" / "a.txt", tile=10, progress=False)
    assert files_below(tmp_path) == before
    (tmp_path / "empty").mkdir()
    with iid_dask.to_mosaic(image, tmp_path / "empty", tile=10, progress=False) as mosaic:
        assert len(mosaic) == 3
    with pytest.raises(iid_dask.IIDStoreError, match="begun with other options: tile is"):
        iid_dask.to_mosaic(image, tmp_path / "empty", tile=15, progress=False)


def test_a_tile_is_any_kind_of_whole_number(tmp_path):
    image, expected = golden("cells")
    for tile in (np.int64(50), np.array([50, 30]), [50, 30]):
        assert written(tmp_path, image, tile=tile)[: len(expected)] == expected


def test_a_target_that_cannot_be_is_refused_before_a_pixel_is_read(tmp_path):
    def never():
        raise AssertionError("read")

    labels = da.map_blocks(never, chunks=((9,), (12,)), dtype="u1", meta=noise(0, 0))
    with pytest.raises(OSError, match="missing"):
        iid_dask.to_iid(labels, tmp_path / "missing" / "out.iid", progress=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        iid_dask.to_iid(labels, tmp_path / "folder", progress=False)


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_side_by_side_keep_names_groups_and_masks(tmp_path):
    nuclei = DATA / "nuclei.iid"
    out = tmp_path / "two.iid"
    iid_dask.to_iid([nuclei, nuclei], out, at=[(0, 0), (0, 512)], stitch=None, progress=False)
    with iid_dask.open(nuclei) as one, iid_dask.open(out) as two:
        assert two.shape == (512, 1024)
        assert two.check() == []
        found = sorted((e.domain, e.address, sorted(e.groups), tuple(e.bbox), e.mask().tobytes()) for e in two.values())
        expected = sorted(
            (
                e.domain,
                e.address,
                sorted(e.groups),
                (e.bbox.min_row, e.bbox.min_col + shift, e.bbox.max_row, e.bbox.max_col + shift),
                e.mask().tobytes(),
            )
            for e in one.values()
            for shift in (0, 512)
        )
        assert found == expected


def test_files_side_by_side_join_what_has_one_name(tmp_path):
    nuclei = DATA / "nuclei.iid"
    out = tmp_path / "two.iid"
    iid_dask.to_iid([nuclei, nuclei], out, at=[(0, 0), (0, 512)], stitch="name", progress=False)
    with iid_dask.open(nuclei) as one, iid_dask.open(out) as two:
        assert {(e.domain, e.address): e.area for e in two.values()} == {
            (e.domain, e.address): 2 * e.area for e in one.values()
        }


def entries_at(files, places):
    """(domain, address, groups, tight box, mask) of the entries of files put at places, sorted."""
    found = []
    for file, (row, col) in zip(files, places, strict=True):
        with iid_dask.open(file) as f:
            for entry in f.values():
                mask = entry.mask()
                tight = iid_dask.BBox(*box_of(mask))
                shift = (row + entry.bbox.min_row, col + entry.bbox.min_col) * 2 if mask.any() else (0, 0, 0, 0)
                box = tuple(int(side) for side in np.add(tuple(tight), shift))
                found.append((entry.domain, entry.address, sorted(entry.groups), box, mask[tight.slices].tobytes()))
    return sorted(found)


@pytest.mark.parametrize("places", [[(0, 0), (0, 512)], [(0, 0), (100, 37)], [(30, 5), (0, 0)], [(0, 0), (0, 0)]])
def test_without_stitching_files_keep_all_their_entries_wherever_they_lie(tmp_path, places):
    files = [DATA / "nuclei.iid", DATA / "nuclei.iid"]
    expected = entries_at(files, places)
    iid_dask.to_iid(files, tmp_path / "out.iid", at=places, stitch=None, progress=False)
    assert sorted(entries(tmp_path / "out.iid")) == expected
    with iid_dask.to_mosaic(files, tmp_path / "m", at=places, stitch=None, progress=False) as mosaic:
        assert len(mosaic) == len(expected) == 2 * len(entries(files[0]))
        assert mosaic.check() == []
        mosaic.to_iid(tmp_path / "again.iid")
    assert (tmp_path / "again.iid").read_bytes() == (tmp_path / "out.iid").read_bytes()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, places=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 120)), min_size=1, max_size=2))
def test_without_stitching_files_at_any_places_keep_their_entries(tmp_path, seed, places):
    places = [(0, 0), *places]
    files = [tmp_path / f"{n}.iid" for n in range(len(places))]
    for n, file in enumerate(files):
        random_file(file, (seed + n) % 2**32, entries=8)
    iid_dask.to_iid(files, tmp_path / "out.iid", at=places, stitch=None, progress=False)
    assert sorted(entries(tmp_path / "out.iid")) == entries_at(files, places)
    with iid_dask.open(tmp_path / "out.iid") as f:
        assert f.check() == []


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"across": 2}, ValueError, "across= and tile= are for label images"),
        ({"tile": 40}, ValueError, "across= and tile= are for label images"),
        ({"at": (0, 0.9)}, TypeError, "at = 0: expected two integers"),
        ({"at": [(0, 0), (0, 0.9)]}, TypeError, r"at = \(0, 0\.9\): expected two integers"),
        ({"at": [(0, 0), (0, -1)]}, ValueError, "of 0 or more for each of 2 files"),
        ({"at": [(0, 0)]}, ValueError, "for each of 2 files"),
        ({"stitch": "touch"}, ValueError, "joined by name or not at all"),
        ({"halo": 3}, ValueError, "joined by name or not at all"),
        ({"connected": True}, ValueError, "joined by name or not at all"),
        ({"domain": b"d"}, ValueError, "entries of files keep theirs"),
        ({"names": str}, ValueError, "entries of files keep theirs"),
        ({"groups": str}, ValueError, "entries of files keep theirs"),
        ({"rule": iid_dask.Touch()}, ValueError, "stitch = 'name', so there is nothing to decide"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_of_label_images_are_refused_for_files_before_anything_is_written(tmp_path, options, error, said):
    us = iid_dask.sample("us")
    options = {"at": [(0, 0), (0, 10)], **options}
    with pytest.raises(error, match=said):
        iid_dask.to_iid([us, us], tmp_path / "out.iid", progress=False, **options)
    with pytest.raises(error, match=said):
        iid_dask.to_mosaic([us, us], tmp_path / "m", progress=False, **options)
    assert files_below(tmp_path) == {}


def joined_by_name(files, places, shape):
    """What `entries` says of files put together: masks of one name are one, in the canonical order."""
    found = {}
    for file, (row, col) in zip(files, places, strict=True):
        with iid_dask.open(file) as f:
            for entry in f.values():
                mask, groups = found.setdefault((entry.domain, entry.address), (np.zeros(shape, bool), set()))
                box = entry.bbox
                mask[row + box.min_row : row + box.max_row, col + box.min_col : col + box.max_col] |= entry.mask()
                groups.update(entry.groups)
    named = [(*name, mask, sorted(groups)) for name, (mask, groups) in found.items()]
    described = []
    for domain, address, mask, groups in (named[k] for k in canonical_order(named)):
        box = box_of(mask)
        described.append((domain, address, groups, box, mask[iid_dask.BBox(*box).slices].tobytes()))
    return described


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=seeds, places=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 120)), min_size=1, max_size=2))
def test_files_at_any_places_become_the_union_of_what_has_one_name(tmp_path, seed, places):
    places = [(0, 0), *places]
    files = [tmp_path / f"{n}.iid" for n in range(len(places))]
    for n, file in enumerate(files):
        random_file(file, (seed + n) % 2**32, entries=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iid_dask.IIDWarning)
        iid_dask.to_iid(files, tmp_path / "out.iid", at=places, progress=False)
        assert entries(tmp_path / "out.iid") == joined_by_name(files, places, (200, 300))
    with iid_dask.open(tmp_path / "out.iid") as f:
        assert f.check() == []


def test_a_mosaic_is_input_as_its_file_is(tmp_path):
    image, expected = golden("discs")
    iid_dask.to_mosaic(image, tmp_path / "m", tile=40, progress=False).close()
    iid_dask.to_iid(tmp_path / "m", tmp_path / "out.iid", progress=False)
    assert (tmp_path / "out.iid").read_bytes()[: len(expected)] == expected
    for options in (
        {"keys": [3, 50, 7]},
        {"window": (10, 20, 100, 99)},
        {"window": (40, 40, 80, 80), "keys": range(30)},
    ):
        iid_dask.to_iid(tmp_path / "m", tmp_path / "a.iid", progress=False, **options)
        iid_dask.to_iid(tmp_path / "out.iid", tmp_path / "b.iid", progress=False, **options)
        assert (tmp_path / "a.iid").read_bytes() == (tmp_path / "b.iid").read_bytes(), options


@pytest.mark.parametrize("name", ["nuclei", "us", "corner"])
def test_a_canonical_file_is_copied_byte_by_byte(tmp_path, name):
    source = DATA / f"{name}.iid"
    iid_dask.to_iid(source, tmp_path / "out.iid", metadata=metadata_of(source), progress=False)
    expected = source.read_bytes()
    assert (tmp_path / "out.iid").read_bytes()[: len(expected)] == expected


def metadata_of(path):
    with iid_dask.open(path) as f:
        return f.metadata


def test_an_odd_file_keeps_its_names_groups_and_pixels(tmp_path):
    iid_dask.to_iid(DATA / "edge.iid", tmp_path / "out.iid", progress=False)
    with iid_dask.open(DATA / "edge.iid") as old, iid_dask.open(tmp_path / "out.iid") as new:
        assert [(e.domain, e.address, e.groups, e.area) for e in new.values()] == [
            (e.domain, e.address, e.groups, e.area) for e in old.values()
        ]
        assert [pixels_of(e) for e in new.values()] == [pixels_of(e) for e in old.values()]
        assert list(new.groups) == list(old.groups)
        assert {name: value for name, value in new.metadata.items() if name != "image"} == old.metadata


@pytest.mark.parametrize("window", [(0, 0, 512, 512), (100, 50, 350, 413), (511, 511, 512, 512)])
def test_crops_are_canonical_files_of_the_cropped_masks(tmp_path, window):
    nuclei, box = DATA / "nuclei.iid", iid_dask.BBox(*window)
    iid_dask.to_iid(nuclei, tmp_path / "crop.iid", window=window, progress=False)
    with iid_dask.open(nuclei) as f:
        metadata = {**f.metadata, "image": {"height": box.height, "width": box.width}}
        with iid_dask.IIDWriter(tmp_path / "w.iid", metadata=metadata) as writer:
            for name in f.groups:
                writer.add_group(name)
            for entry in f.values():
                mask = full_mask(entry, f.shape)[box.slices]
                if mask.any():
                    tight = iid_dask.BBox(*box_of(mask))
                    writer.add(entry.domain, entry.address, tight, mask[tight.slices], groups=entry.groups)
    assert (tmp_path / "crop.iid").read_bytes() == (tmp_path / "w.iid").read_bytes()


def pixels_of(entry):
    """Rows and columns of an entry's pixels."""
    return np.add(np.argwhere(entry.mask()), [entry.bbox.min_row, entry.bbox.min_col]).tolist()


def full_mask(entry, shape):
    """An entry's mask on the whole image."""
    out = np.zeros(shape, bool)
    out[entry.bbox.slices] = entry.mask()
    return out


def test_entries_are_chosen_by_key(tmp_path):
    us = iid_dask.sample("us")
    iid_dask.to_iid(us, tmp_path / "some.iid", keys=[70, 0, 9], progress=False)
    with iid_dask.open(us) as f, iid_dask.open(tmp_path / "some.iid") as some:
        assert [(e.domain, e.address, e.groups, e.area) for e in some.values()] == [
            (f[key].domain, f[key].address, f[key].groups, f[key].area) for key in (0, 9, 70)
        ]
        assert some.metadata == f.metadata


def test_a_dataset_is_written_with_its_names(tmp_path):
    us = iid_dask.sample("us")
    with xr.open_dataset(us, engine="iid", chunks={}) as ds:
        iid_dask.to_iid(ds, tmp_path / "all.iid", progress=False)
        iid_dask.to_iid(ds.isel(y=slice(100, 300), x=slice(200, 500)), tmp_path / "crop.iid", progress=False)
    iid_dask.to_iid(us, tmp_path / "twin.iid", window=(100, 200, 300, 500), progress=False)
    assert (tmp_path / "crop.iid").read_bytes() == (tmp_path / "twin.iid").read_bytes()
    assert entries(tmp_path / "all.iid") == entries(us)
