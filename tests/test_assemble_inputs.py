"""What can be assembled: arrays, images, grids, existing files; and what is refused before anything is touched."""

from __future__ import annotations

import os
import warnings

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from assembled import DATA, entries, golden, written
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
        (np.array([[0, -3]]), ValueError, "-3"),
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
    assert target.read_bytes() == b"old"


# --- metadata and options --------------------------------------------------------------------------------------------


def test_metadata_is_kept_and_the_image_size_added(tmp_path):
    image = noise(9, 12)
    with iid_dask.open(written(tmp_path, image, metadata={"camera": "ü", "image": {"name": "x"}})) as f:
        assert f.metadata == {"camera": "ü", "image": {"name": "x", "height": 9, "width": 12}}


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


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tile": 0}, (ValueError, iid_dask.IIDLimitError), "tile = "),
        ({"tile": "20"}, (TypeError, ValueError), "tile = '20'"),
        ({"tile": 20.5}, (TypeError, ValueError), "tile = "),
        ({"tile": 70_000}, (ValueError, iid_dask.IIDLimitError), "tile = "),
        ({"stitch": "sew"}, ValueError, "stitch = 'sew'"),
        ({"names": {1: "a"}}, (KeyError, ValueError), "2|3"),
        ({"names": lambda label: 5}, TypeError, "names|address"),
        ({"domain": "text"}, TypeError, "bytes"),
        ({"groups": lambda label: 5}, TypeError, "group"),
        ({"nix": 1}, TypeError, "nix"),
    ],
)
def test_bad_options_are_refused_and_the_old_target_stands(tmp_path, options, error, said):
    target = tmp_path / "out.iid"
    target.write_bytes(b"old")
    with pytest.raises(error, match=said):
        iid_dask.to_iid(noise(9, 12), target, progress=False, **options)
    assert target.read_bytes() == b"old"


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
