"""Label images of every kind give the windows that numpy gives, and refuse what is none."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path
from typing import Any

import dask.array as da
import imagecodecs
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iid_dask.bbox import BBox
from iid_dask.errors import IIDChangedError
from iid_dask.images import DaskImage, Image, Sectors, as_image, grid_of, sectors, tiff
from iid_dask.images.image import MAX_PICKLED
from iid_dask.images.tiling import aligned_tile

SHAPE = (301, 419)
PIXELS = (np.random.default_rng(4).integers(0, 60_000, SHAPE) * (np.indices(SHAPE).sum(0) % 3 > 0)).astype(np.uint16)


def windows(shape: tuple[int, int], count: int = 25) -> Iterator[BBox]:
    """Whole image, corners, no pixel, then random ones; always the same."""
    rows, cols = shape
    yield from (BBox(0, 0, rows, cols), BBox(0, 0, 1, 1), BBox(rows - 1, cols - 1, rows, cols), BBox(0, 0, 0, cols))
    random = np.random.default_rng(1)
    for _ in range(count):
        row, col = sorted(random.integers(0, rows + 1, 2)), sorted(random.integers(0, cols + 1, 2))
        yield BBox(row[0], col[0], row[1], col[1])


def assert_same(image: Image, pixels: np.ndarray, count: int = 25) -> None:
    assert isinstance(image, Image)
    assert image.shape == pixels.shape
    assert image.dtype == pixels.dtype.newbyteorder("=")
    assert image.dtype.isnative
    for box in windows(pixels.shape, count):
        for read in (image, image.part(box)):
            block = read.read(box)
            assert block.dtype == image.dtype
            np.testing.assert_array_equal(block, pixels[box.slices])


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """Another process, that shares nothing with this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def save_grid(folder: Path, pixels: np.ndarray, rows: list[int], cols: list[int], save: Callable[..., Any]) -> None:
    """Cut pixels at some rows and columns into files tile_RRR_CCC, numbered from 3 and 7."""
    for i, band in enumerate(np.split(pixels, rows)):
        for j, block in enumerate(np.split(band, cols, axis=1)):
            save(folder / f"tile_{i + 3:03d}_{j + 7:03d}", np.ascontiguousarray(block))


def as_tiff(path: Path, block: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), block, compression="deflate")


def as_png(path: Path, block: np.ndarray) -> None:
    path.with_suffix(".png").write_bytes(imagecodecs.png_encode(block))


def as_npy(path: Path, block: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), block)


def in_zarr(folder: Path, pixels: np.ndarray, **options: Any) -> Path:
    array = zarr.create_array(folder, shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return folder


def as_ome(folder: Path, version: str = "0.5", shape: tuple[int, ...] = (1, 1, *SHAPE)) -> Path:
    group = zarr.open_group(folder, mode="w", zarr_format=3 if version == "0.5" else 2)
    array = group.create_array("s0", shape=shape, chunks=(1,) * (len(shape) - 2) + (64, 64), dtype="u2")
    array[...] = np.broadcast_to(PIXELS, shape)
    group.create_array("s1", shape=(*shape[:-2], 151, 210), chunks=(1,) * (len(shape) - 2) + (64, 64), dtype="u2")
    axes = [{"name": name} for name in "tczyx"[-len(shape) :]]
    if len(shape) == 4:
        axes[0] = {"name": "t"}
    scales = {"multiscales": [{"axes": axes, "datasets": [{"path": "s0"}, {"path": "s1"}]}]}
    group.attrs.update({"ome": scales} if version == "0.5" else scales)
    return folder


def tiff_kinds() -> dict[str, dict[str, Any]]:
    return {
        "tiled": {"tile": (32, 48)},
        "tiled deflate": {"tile": (64, 64), "compression": "deflate", "predictor": True},
        "striped": {"rowsperstrip": 7},
        "striped lzw": {"rowsperstrip": 16, "compression": "lzw"},
        "one strip": {},
        "one strip deflate": {"compression": "deflate"},
        "bigtiff zstd": {"tile": (128, 16), "bigtiff": True, "compression": "zstd"},
        "big-endian": {"byteorder": ">", "rowsperstrip": 9},
        "big-endian deflate": {"byteorder": ">", "tile": (16, 16), "compression": "deflate"},
    }


KINDS: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda folder: PIXELS,
    "numpy by columns": lambda folder: np.asfortranarray(PIXELS),
    "numpy big-endian": lambda folder: PIXELS.astype(">u2"),
    "dask": lambda folder: da.from_array(PIXELS, chunks=(50, 70)),
    "npy": lambda folder: np.save(folder / "a.npy", PIXELS) or folder / "a.npy",
    "npy by columns": lambda folder: np.save(folder / "a.npy", np.asfortranarray(PIXELS)) or folder / "a.npy",
    "npy big-endian": lambda folder: np.save(folder / "a.npy", PIXELS.astype(">u2")) or folder / "a.npy",
    "zarr array": lambda folder: zarr.open_array(in_zarr(folder / "a.zarr", PIXELS, chunks=(64, 50)), mode="r"),
    "zarr path": lambda folder: in_zarr(folder / "a.zarr", PIXELS, chunks=(32, 32), shards=(128, 128)),
    "zarr 2": lambda folder: in_zarr(folder / "a.zarr", PIXELS, chunks=(64, 50), zarr_format=2),
    "zarr url": lambda folder: f"file://{in_zarr(folder / 'a.zarr', PIXELS, chunks=(64, 50))}",
    "zarr 4-D": lambda folder: in_zarr(folder / "a.zarr", PIXELS[None, None], chunks=(1, 1, 64, 64)),
    "ome-zarr 0.5": as_ome,
    "ome-zarr 0.4": lambda folder: as_ome(folder, "0.4"),
    "ome-zarr group": lambda folder: zarr.open_group(as_ome(folder / "image"), mode="r"),
    "xarray numpy": lambda folder: xr.DataArray(PIXELS, dims=("y", "x")),
    "xarray x, y": lambda folder: xr.DataArray(PIXELS.T, dims=("x", "y")),
    "xarray dask": lambda folder: xr.DataArray(PIXELS, dims=("y", "x")).chunk({"y": 99, "x": 80}),
    **{
        f"tiff {kind}": lambda folder, kind=kind: (
            tifffile.imwrite(folder / "a.tif", PIXELS, **tiff_kinds()[kind]) or folder / "a.tif"
        )
        for kind in tiff_kinds()
    },
    "png": lambda folder: as_png(folder / "a", PIXELS) or folder / "a.png",
}


@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_numpy_here_and_in_another_process(kind, tmp_path, process):
    image = as_image(KINDS[kind](tmp_path))
    assert_same(image, PIXELS)
    copy = pickle.loads(pickle.dumps(image))
    assert copy.token() == image.token()
    box = BBox(11, 13, 97, 401)
    np.testing.assert_array_equal(process.submit(methodcaller("read", box), image).result(), PIXELS[box.slices])
    assert process.submit(methodcaller("token"), image).result() == image.token()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith(("npy", "zarr", "ome", "tiff", "png"))])
def test_what_lies_in_a_file_pickles_without_pixels(kind, tmp_path):
    assert len(pickle.dumps(as_image(KINDS[kind](tmp_path)))) < 3000


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
@pytest.mark.parametrize("kind", ["npy", "tiff", "deflate", "zarr"])
def test_every_label_dtype_is_kept(dtype, kind, tmp_path):
    pixels = PIXELS[:40, :33].astype(dtype)
    if pixels.dtype.itemsize == 8:
        pixels[3, 4] = np.iinfo(dtype).max
    path = tmp_path / "a"
    if kind == "npy":
        np.save(path.with_suffix(".npy"), pixels)
        path = path.with_suffix(".npy")
    elif kind == "zarr":
        in_zarr(path, pixels, chunks=(16, 16))
    else:
        tifffile.imwrite(path, pixels, compression="deflate" if kind == "deflate" else None)
    assert_same(as_image(path), pixels, 5)


def test_a_png_of_8_bits(tmp_path):
    as_png(tmp_path / "a", PIXELS.astype("u1"))
    assert_same(as_image(str(tmp_path / "a.png")), PIXELS.astype("u1"), 4)


# --- maps of files


def mapped(path: Path, mode: Any = "r+") -> np.memmap:
    """A map of a file with the pixels behind 10,001 other bytes."""
    path.write_bytes(bytes(10_001) + PIXELS.tobytes())
    return np.memmap(path, np.uint16, mode, offset=10_001, shape=SHAPE)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[17:203],
        lambda a: a[17:203, 41:300],
        lambda a: a[::3, 5:],
        lambda a: a[::-1],
        lambda a: a.T,
        lambda a: a[20:90, 30:].T[5:],
        lambda a: np.asarray(a)[40:, 40:],
        lambda a: a[:, 12:13],
        lambda a: a[9:10, ::2][:, :1],
    ],
)
def test_a_view_of_a_map_is_read_by_path(view, tmp_path, process):
    array = view(mapped(tmp_path / "a.raw"))
    image = as_image(array)
    assert image.name == str(tmp_path / "a.raw")
    assert len(pickle.dumps(image)) < 1000
    assert_same(image, np.array(array), 8)
    box = BBox(0, 0, *image.shape)
    np.testing.assert_array_equal(process.submit(methodcaller("read", box), image).result(), array)


def test_what_was_written_to_a_map_is_read(tmp_path):
    array = mapped(tmp_path / "a.raw")
    array[5, 6] = 12_345
    assert as_image(array).read(BBox(5, 6, 6, 7)) == 12_345


def test_npy_opened_by_numpy_as_a_map_is_a_file(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    image = as_image(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert image.name == str(tmp_path / "a.npy")
    assert_same(image, PIXELS, 5)


def test_results_of_maps_are_in_memory(tmp_path):
    image = as_image(mapped(tmp_path / "a.raw") + 1)
    assert image.name == "numpy array"
    assert_same(image, PIXELS + 1, 3)


def test_maps_that_no_task_could_open_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.raw: a view with steps \(838, 4\) bytes .* expected 2 along one; .*save"):
        as_image(mapped(tmp_path / "a.raw")[:, ::2])
    with pytest.raises(ValueError, match=r'mode="c", whose changes are not in the file; .* numpy\.save'):
        as_image(mapped(tmp_path / "a.raw", "c"))


def changed_at(places: slice) -> bytes:
    content = bytearray(bytes(10_001) + PIXELS.tobytes())
    content[places] = bytes(255 - byte for byte in content[places])
    return bytes(content)


@pytest.mark.parametrize(
    "other",
    [
        changed_at(slice(9_000, 9_001)),  # before the pixels
        changed_at(slice(10_001, 10_002)),
        changed_at(slice(120_000, 130_000)),
        changed_at(slice(-1, None)),
        bytes(10_001) + PIXELS.tobytes() + bytes(1),
    ],
    ids=["head", "first", "middle", "last", "longer"],
)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_map_of_a_file_in_whose_place_is_another_is_refused(other, mode, tmp_path):
    array = mapped(tmp_path / "a.raw", mode)
    (tmp_path / "b.raw").write_bytes(other)
    os.replace(tmp_path / "b.raw", tmp_path / "a.raw")
    with pytest.raises(IIDChangedError, match=r"a\.raw: changed since opened; open it again"):
        as_image(array[20:])


def test_a_map_of_a_file_in_whose_place_is_a_copy_is_read(tmp_path):
    array = mapped(tmp_path / "a.raw")
    shutil.copyfile(tmp_path / "a.raw", tmp_path / "b.raw")
    os.replace(tmp_path / "b.raw", tmp_path / "a.raw")
    assert_same(as_image(array), PIXELS, 3)


@pytest.mark.parametrize("left", [0, 5_000, 100_000])
def test_a_map_of_a_file_that_was_cut_is_refused(left, tmp_path):
    array = mapped(tmp_path / "a.raw")
    os.truncate(tmp_path / "a.raw", left)
    with pytest.raises(ValueError, match=rf"a\.raw: is cut short: found {left} bytes, expected "):
        as_image(array)


def test_a_large_array_in_memory_is_not_sent_away():
    image = as_image(np.zeros((MAX_PICKLED // 1000, 1001), "u1"))
    assert image.read(BBox(0, 0, 2, 2)).shape == (2, 2)
    with pytest.raises(TypeError, match=r"numpy array of 64 MiB .* numpy\.save it and give the path, give a Zarr or"):
        pickle.dumps(image)
    store = zarr.create_array({}, shape=(9000, 9000), chunks=(9000, 9000), dtype="u1", compressors=None)
    store[...] = 1
    with pytest.raises(TypeError, match=r"holds 77 MiB in this process's memory, .* keep the array in a folder"):
        pickle.dumps(as_image(store))


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match=r"masked array, expected a plain one: give labels\.filled\(0\)"):
        as_image(np.ma.masked_equal(PIXELS, 3))


# --- dask, xarray, Zarr


def test_dask_is_handed_on_as_it_is():
    array = da.from_array(PIXELS, chunks=(100, 120))
    image = as_image(xr.DataArray(array, dims=("y", "x"), name="cells"))
    assert isinstance(image, DaskImage)
    assert image.array.name == array.name
    assert image.blocks == (100, 120)
    assert image.name == "DataArray 'cells'"


def test_dask_of_unknown_size_is_refused():
    array = da.from_array(PIXELS, chunks=100)
    with pytest.raises(ValueError, match=r"expected known sizes: call compute_chunk_sizes\(\) first"):
        as_image(array[array[:, 0] > 5])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    xr.Dataset({"label": (("y", "x"), PIXELS)}).to_zarr(
        tmp_path / "ds.zarr", zarr_format=3, consolidated=False, encoding={"label": {"chunks": (64, 128)}}
    )
    return tmp_path / "ds.zarr"


def test_a_variable_that_xarray_opened_is_never_loaded(dataset, process, monkeypatch):
    array = xr.open_dataset(dataset, engine="zarr", consolidated=False, chunks=None)["label"]
    image = as_image(array)
    assert image.blocks == (64, 128)
    assert len(pickle.dumps(image)) < 10_000
    read: list[tuple[int, ...]] = []
    original = zarr.Array.__getitem__
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda self, key: read.append(original(self, key).shape) or original(self, key)
    )
    image.read(BBox(3, 4, 13, 24))
    assert read == [(10, 20)]
    monkeypatch.undo()
    assert_same(image, PIXELS)
    assert not array.variable._in_memory
    box = BBox(60, 100, 300, 200)
    np.testing.assert_array_equal(process.submit(methodcaller("read", box), image).result(), PIXELS[box.slices])


def test_a_variable_of_the_engine_iid(process):
    import iid_dask

    with xr.open_dataset(iid_dask.sample(), engine="iid") as ds:
        box = BBox(200, 300, 290, 444)
        expected = ds["label"].values[box.slices]
    image = as_image(xr.open_dataset(iid_dask.sample(), engine="iid")["label"])
    np.testing.assert_array_equal(process.submit(methodcaller("read", box), image).result(), expected)


def test_a_variable_too_large_to_pickle_goes_through_dask(dataset, monkeypatch):
    monkeypatch.setattr("iid_dask.images.lazy.MAX_OPENED", 10)
    image = as_image(xr.open_dataset(dataset, engine="zarr", consolidated=False, chunks=None)["label"])
    assert isinstance(image, DaskImage)
    assert_same(image, PIXELS, 4)


def test_other_dimensions_are_named():
    with pytest.raises(ValueError, match=r"DataArray 'm': found dimensions \(t 2, y 3, x 4\), .*isel\(t=0\)"):
        as_image(xr.DataArray(np.zeros((2, 3, 4), int), dims=("t", "y", "x"), name="m"))
    with pytest.raises(ValueError, match=r"\(lat 3, lon 4\), expected \(y, x\)"):
        as_image(xr.DataArray(np.zeros((3, 4), int), dims=("lat", "lon")))
    with pytest.raises(ValueError, match="without pixels \\(y 0, x 4\\)"):
        as_image(xr.DataArray(np.zeros((0, 4), int), dims=("y", "x")))
    with pytest.raises(TypeError, match=r"found a Dataset, expected one of its variables \('label', 'mask'\)"):
        as_image(xr.Dataset({"label": ("y", [1]), "mask": ("y", [1])}))


def test_axes_of_a_zarr_array_are_named(tmp_path):
    path = as_ome(tmp_path / "a", shape=(1, 3, 2, *SHAPE))
    with pytest.raises(ValueError, match=r"a/s0: found axes \(t 1, c 3, z 2, y 301, x 419\), .*from_zarr.*\[0, 0, 0\]"):
        as_image(path)
    with pytest.raises(ValueError, match=r"found axes \(0 2, 1 301, 2 419\)"):
        as_image(in_zarr(tmp_path / "b", np.stack([PIXELS, PIXELS]), chunks=(1, 64, 64)))


def test_groups_that_are_no_label_image_say_what_they_hold(tmp_path):
    group = zarr.open_group(tmp_path / "g", mode="w")
    group.create_array("label", shape=(3, 4), dtype="u2")
    with pytest.raises(ValueError, match=r"found a Zarr group, .*; in it: .*g/label"):
        as_image(tmp_path / "g")
    picture = zarr.open_group(as_ome(tmp_path / "p"), mode="a")
    picture.create_group("labels/nuclei")
    with pytest.raises(ValueError, match=r"picture with label images beside it, .*: .*p/labels/nuclei"):
        as_image(tmp_path / "p")


def test_a_folder_that_is_no_zarr(tmp_path):
    with pytest.raises(ValueError, match=r'found a folder without zarr\.json or .* give grid_of\("folder/tile_'):
        as_image(tmp_path)


def test_a_zarr_url_with_options(tmp_path):
    import fsspec

    fs = fsspec.filesystem("memory")
    in_zarr(tmp_path / "a", PIXELS, chunks=(64, 64))
    fs.put(str(tmp_path / "a"), "/h5images/a", recursive=True)
    assert_same(as_image("memory://h5images/a", storage_options={"asynchronous": True}), PIXELS, 4)
    with pytest.raises(FileNotFoundError, match="no Zarr array here: 'memory://h5images/none'"):
        as_image("memory://h5images/none")


def test_a_zarr_array_made_anew_has_another_token(tmp_path):
    first = as_image(in_zarr(tmp_path / "a", PIXELS, chunks=(64, 64))).token()
    assert as_image(zarr.open_array(tmp_path / "a", mode="r")).token() == first
    shutil.rmtree(tmp_path / "a")
    assert as_image(in_zarr(tmp_path / "a", PIXELS, chunks=(64, 64))).token() != first


# --- TIFF


def test_only_touched_tiles_are_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, tile=(64, 64), compression="deflate")
    image = as_image(tmp_path / "a.tif")
    assert image.blocks == (64, 64)
    asked: list[int] = []
    from iid_dask.images import tiff

    original = tiff.gather
    monkeypatch.setattr(tiff, "gather", lambda source, a, b: asked.append(len(a)) or original(source, a, b))
    image.read(BBox(60, 60, 70, 70))
    image.read(BBox(64, 64, 128, 128))
    assert asked == [4, 1]


def test_windows_are_read_by_many_threads_at_once(tmp_path):
    for kind in ("tiled deflate", "striped lzw"):
        tifffile.imwrite(tmp_path / f"{kind}.tif", PIXELS, **tiff_kinds()[kind])
        image = as_image(tmp_path / f"{kind}.tif")
        boxes = list(windows(SHAPE, 60)) * 3
        with ThreadPoolExecutor(8) as pool:
            for box, block in zip(boxes, pool.map(image.read, boxes), strict=True):
                np.testing.assert_array_equal(block, PIXELS[box.slices])


def test_tiles_that_were_never_written_are_background(tmp_path):
    tiles = [PIXELS[:64, :64] if i in (0, 3) else None for i in range(4)]
    tifffile.imwrite(
        tmp_path / "a.tif", iter(tiles), shape=(128, 128), dtype="u2", tile=(64, 64), compression="deflate"
    )
    expected = np.kron(np.eye(2, dtype="u2"), np.ones((64, 64), "u2")) * np.tile(PIXELS[:64, :64], (2, 2))
    assert_same(as_image(tmp_path / "a.tif"), expected)


def test_a_strip_without_compression_is_no_block(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS)
    image = as_image(tmp_path / "a.tif")
    assert image.blocks is None


@pytest.mark.parametrize("subifds", [0, 1])
def test_of_a_pyramid_the_largest_level_is_read(tmp_path, subifds):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PIXELS, tile=(64, 64), subifds=subifds)
        file.write(PIXELS[::2, ::2], tile=(64, 64), subfiletype=1)
    assert_same(as_image(tmp_path / "a.tif"), PIXELS, 4)


def test_ome_tiff_of_one_plane(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS[None, None], ome=True, tile=(64, 64), metadata={"axes": "CZYX"})
    assert_same(as_image(tmp_path / "a.ome.tif"), PIXELS, 4)


@pytest.mark.parametrize(
    ("options", "found"),
    [({}, r"QYX \(2, 301, 419\)"), ({"imagej": True}, r".YX \(2, 301, 419\)"), ({"truncate": True}, r"QYX \(2, ")],
)
def test_several_pages_are_refused(tmp_path, options, found):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([PIXELS, PIXELS]), **options)
    with pytest.raises(ValueError, match=rf"a\.tif: found 1 image\(s\) of {found}.*imread\(path, key=0\)"):
        as_image(tmp_path / "a.tif")


def test_several_images_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PIXELS)
        file.write(PIXELS[:100])
    with pytest.raises(ValueError, match=r"found 2 image\(s\) of YX \(301, 419\), YX \(100, 419\)"):
        as_image(tmp_path / "a.tif")


def test_tiffs_that_hold_no_labels_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((40, 50, 3), "u1"), photometric="rgb")
    with pytest.raises(ValueError, match=r"rgb\.tif: found 3 dimensions \(40, 50, 3\), .* colour picture"):
        as_image(tmp_path / "rgb.tif")
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((40, 50), "f4"))
    with pytest.raises(TypeError, match=r"f\.tif: found float32, expected integers or bool"):
        as_image(tmp_path / "f.tif")


def test_a_tile_that_cannot_be_decoded_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, tile=(64, 64), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offset = file.pages[0].dataoffsets[8]
    with open(tmp_path / "a.tif", "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 9)
    image = as_image(tmp_path / "a.tif")
    image.read(BBox(0, 0, 64, 419))
    with pytest.raises(Exception, match="decompress") as caught:
        image.read(BBox(64, 64, 65, 65))
    assert "a.tif: tile or strip 8 cannot be decoded" in caught.value.__notes__[0]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["tiled deflate", "striped"]), st.lists(st.tuples(st.integers(4, 399), st.integers(0, 255))))
@example("tiled deflate", [(54, 0), (170, 0)])  # several widths of a tile
def test_damaged_headers_are_refused_by_name(tmp_path_factory, kind, damages):
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    tifffile.imwrite(path, PIXELS[:64, :64], **tiff_kinds()[kind])
    data = bytearray(path.read_bytes())
    for place, value in damages:
        data[place] = value
    path.write_bytes(data)
    said = ""
    try:
        as_image(path)
    except (ValueError, TypeError) as error:
        said = str(error)
    assert not said or "a.tif" in said


@pytest.mark.parametrize("kind", ["tiled deflate", "one strip", "npy"])
def test_files_cut_short_are_refused(tmp_path, kind):
    path = tmp_path / "a"
    if kind == "npy":
        np.save(path.with_suffix(".npy"), PIXELS)
        path = path.with_suffix(".npy")
    else:
        tifffile.imwrite(path, PIXELS, **tiff_kinds()[kind])
    os.truncate(path, path.stat().st_size - 500)
    with pytest.raises(ValueError, match="is cut short"):
        as_image(path)


@pytest.mark.parametrize("kind", ["tiff tiled deflate", "tiff one strip", "npy", "png"])
def test_a_file_that_was_replaced_is_not_read(tmp_path, kind):
    path = Path(KINDS[kind](tmp_path))
    image = pickle.loads(pickle.dumps(as_image(path)))
    (tmp_path / "other").mkdir()
    shutil.move(KINDS[kind](tmp_path / "other"), path)
    os.utime(path, ns=(10**18, 10**18))
    again = pickle.dumps(image)
    # Another process has not opened the old one.
    code = "import pickle, sys; from iid_dask import BBox; pickle.load(sys.stdin.buffer).read(BBox(0, 0, 9, 9))"
    done = subprocess.run([sys.executable, "-c", code], input=again, capture_output=True, check=False)
    assert b"IIDChangedError" in done.stderr
    assert b"changed since opened" in done.stderr


@pytest.mark.parametrize("module", ["tifffile", "imagecodecs"])
def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch, module):
    path = KINDS["tiff tiled deflate" if module == "tifffile" else "png"](tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs {module}, .*: pip install "iid_dask\[tiff\]"'):
        as_image(path)


def test_pngs_whose_numbers_are_no_labels_are_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(bits: int, colour: int) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, 0))

    for bits, colour, said in ((8, 3, "8 bits, palette"), (1, 0, "1 bits, grey"), (8, 6, "8 bits, colour with alpha")):
        (tmp_path / "a.png").write_bytes(png(bits, colour))
        with pytest.raises(ValueError, match=rf"a\.png: found a PNG of {said}, expected 8 or 16 bits, grey: .*TIFF"):
            as_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(8, 0))
    with pytest.raises(ValueError, match=r"a\.png: is no sound PNG: .*; write it again"):
        as_image(tmp_path / "a.png").read(BBox(0, 0, 1, 1))
    (tmp_path / "a.png").write_bytes(png(8, 0)[:20])
    with pytest.raises(ValueError, match="found no PNG header"):
        as_image(tmp_path / "a.png")


# --- sectors

CUTS = ([100, 200, 300], [90, 180, 270, 400])


@pytest.mark.parametrize("save", [as_tiff, as_png, as_npy])
def test_a_grid_found_by_pattern(tmp_path, save, process):
    save_grid(tmp_path, PIXELS, *CUTS, save)
    pattern = str(tmp_path / "tile_{row:03d}_{col:03d}") + f".{save.__name__[3:].replace('tiff', 'tif')}"
    image = as_image(grid_of(pattern))
    assert image.blocks == (100, 90)
    assert_same(image, PIXELS)
    box = BBox(99, 89, 301, 401)
    np.testing.assert_array_equal(process.submit(methodcaller("read", box), image).result(), PIXELS[box.slices])


def test_a_grid_given_as_a_list(tmp_path):
    save_grid(tmp_path, PIXELS, *CUTS, as_npy)
    paths = sorted(tmp_path.iterdir())
    assert_same(as_image(paths, across=5), PIXELS)
    assert as_image(paths, across=5).token() == as_image(list(map(str, paths)), across=5).token()
    assert as_image(paths[:1], across=1).token() != as_image(paths[1:2], across=1).token()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 59), max_size=4, unique=True), st.lists(st.integers(1, 79), max_size=4, unique=True))
def test_rows_and_columns_of_the_grid_may_have_any_size(tmp_path_factory, rows, cols):
    folder = tmp_path_factory.mktemp("grid")
    pixels = PIXELS[:60, :80]
    save_grid(folder, pixels, sorted(rows), sorted(cols), as_npy)
    # 2 sectors of equally many sizes cannot say which is wrong; a true grid is none of these cases.
    assert_same(as_image(grid_of(folder / "tile_{row:03d}_{col:03d}.npy")), pixels, 8)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 30), st.integers(1, 30)),
        min_size=1,
        max_size=8,
    )
)
def test_free_places_overlap_and_leave_holes(tmp_path_factory, places):
    folder = tmp_path_factory.mktemp("free")
    expected = np.zeros((max(r + h for r, _, h, _ in places), max(c + w for _, c, _, w in places)), np.uint8)
    for i, (row, col, height, width) in enumerate(places):
        block = np.full((height, width), i + 1, np.uint8)
        block[::3, ::2] = 0  # background of a later sector wins too
        np.save(folder / f"{i}.npy", block)
        expected[row : row + height, col : col + width] = block
    image = as_image([folder / f"{i}.npy" for i in range(len(places))], at=[place[:2] for place in places])
    assert image.blocks is None
    assert_same(pickle.loads(pickle.dumps(image)), expected, 8)


def test_only_touched_sectors_are_opened(tmp_path, monkeypatch):
    save_grid(tmp_path, PIXELS, *CUTS, as_tiff)
    image = as_image(grid_of(tmp_path / "tile_{row:03d}_{col:03d}.tif"))
    opened: list[str] = []
    original = sectors.open_file
    monkeypatch.setattr(sectors, "open_file", lambda path: opened.append(os.path.basename(path)) or original(path))
    image.read(BBox(0, 0, 100, 90))
    image.read(BBox(99, 89, 101, 90))
    assert opened.pop() == "tile_004_007.tif"
    image.read(BBox(100, 89, 200, 90))
    assert opened == ["tile_003_007.tif", "tile_003_007.tif", "tile_004_007.tif"]
    part = image.part(BBox(99, 89, 101, 90))
    assert len(part.paths) == 2
    assert part.token() == image.token()
    with pytest.raises(ValueError, match=r"window \(0, 0, 9, 9\) is not inside the part \(99, 89, 101, 90\)"):
        part.read(BBox(0, 0, 9, 9))


def test_a_part_without_sectors_is_background(tmp_path, process):
    as_npy(tmp_path / "a", PIXELS[:5, :5])
    image = as_image([tmp_path / "a.npy", tmp_path / "a.npy"], at=[(0, 0), (20, 20)])
    part = pickle.loads(pickle.dumps(image.part(BBox(6, 6, 9, 10))))
    assert part.paths == ()
    assert process.submit(methodcaller("read", BBox(6, 6, 9, 10)), part).result().tolist() == [[0] * 4] * 3


def test_a_missing_sector_is_named(tmp_path):
    save_grid(tmp_path, PIXELS, *CUTS, as_npy)
    paths = sorted(tmp_path.iterdir())
    (tmp_path / "tile_004_009.npy").unlink()
    said = r"sector in row 4, column 9 is missing \(1 of 20 are\): '.*tile_004_009\.npy'"
    with pytest.raises(FileNotFoundError, match=said):
        grid_of(tmp_path / "tile_{row:03d}_{col:03d}.npy")
    said = r"sector 7 in row 1, column 2 of the grid is missing: '.*tile_004_009\.npy'"
    with pytest.raises(FileNotFoundError, match=said):
        as_image(paths, across=5)
    with pytest.raises(FileNotFoundError, match=r"sector 7 is missing: '.*tile_004_009"):
        as_image(paths, at=[(0, 0)] * 20)


def test_a_sector_of_another_size_or_dtype_is_named(tmp_path):
    save_grid(tmp_path, PIXELS, *CUTS, as_npy)
    pattern = tmp_path / "tile_{row:03d}_{col:03d}.npy"
    np.save(tmp_path / "tile_003_007.npy", PIXELS[:99, :90])
    said = r"tile_003_007\.npy: sector in row 0, column 0 of the grid: found 99 x 90 pixels, expected 100 x 90"
    with pytest.raises(ValueError, match=said):
        as_image(grid_of(pattern))
    np.save(tmp_path / "tile_003_007.npy", PIXELS[:100, :90].astype("u4"))
    with pytest.raises(TypeError, match=r"tile_003_007\.npy: found uint32, expected uint16 as most sectors"):
        as_image(grid_of(pattern))


def test_a_sector_that_changed_is_named(tmp_path):
    save_grid(tmp_path, PIXELS, *CUTS, as_npy)
    image = as_image(grid_of(tmp_path / "tile_{row:03d}_{col:03d}.npy"))
    np.save(tmp_path / "tile_003_007.npy", PIXELS[:90, :90])
    with pytest.raises(IIDChangedError, match=r"tile_003_007\.npy: changed since .* \(90, 90\) .* \(100, 90\) uint16"):
        image.read(BBox(0, 0, 10, 10))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("tile_{row}.npy", r"expected a pattern with \{row\} and \{col\}"),
        ("tile_{row}_{col}_{z}.npy", r"found \{z\}"),
        ("tile_{row:x}_{col}.npy", r"found \{row:x\}"),
        ("tile_{row_{col}.npy", "expected a pattern"),
        (
            "tile_{row}_{col}.npy",
            r"found .*tile_00., whose|found .*tile_00\d_00\d\.npy, whose numbers are not written so",
        ),
    ],
)
def test_patterns_that_are_none(tmp_path, pattern, said):
    save_grid(tmp_path, PIXELS, *CUTS, as_npy)
    with pytest.raises(ValueError, match=said):
        grid_of(tmp_path / pattern)


def test_patterns_with_folders_and_repeats(tmp_path):
    for row in (9, 10):
        for col in (0, 1):
            (tmp_path / f"[{row}]").mkdir(exist_ok=True)
            np.save(tmp_path / f"[{row}]" / f"c{col}_r{row}.npy", np.full((2, 3), row + col))
    image = as_image(grid_of(tmp_path / "[{row}]" / "c{col}_r{row}.npy"))
    assert image.read(BBox(0, 0, 4, 6))[::2, ::3].tolist() == [[9, 10], [10, 11]]
    with pytest.raises(FileNotFoundError, match="no file bears a name of this pattern"):
        grid_of(tmp_path / "tile_{row}_{col}.tif")


def test_places_that_do_not_fit(tmp_path):
    as_npy(tmp_path / "a", PIXELS)
    paths = [tmp_path / "a.npy"] * 3
    for options, said in (
        ({}, r"3 sectors: say where they lie, by across=10"),
        ({"across": 3, "at": [(0, 0)] * 3}, "not both"),
        ({"across": 2}, r"3 sectors do not fill a grid of across=2 columns"),
        ({"across": 0}, r"across=0"),
        ({"at": [(0, 0)]}, r"found 1 places in at=, expected 3"),
        ({"at": [(0, 0), (-1, 0), (0, 0)]}, r"found \(-1, 0\), expected pixels of the image, 0 or more"),
    ):
        with pytest.raises(ValueError, match=said):
            as_image(paths, **options)
    with pytest.raises(ValueError, match="found no paths"):
        as_image([], across=3)
    with pytest.raises(TypeError, match="found ndarray in it, expected paths"):
        as_image([PIXELS], across=1)
    with pytest.raises(ValueError, match="place a list of paths; found ndarray"):
        as_image(PIXELS, across=1)
    with pytest.raises(ValueError, match="place a list of paths; found Sectors"):
        as_image(Sectors(("a.npy",), across=1), at=[(0, 0)])


def test_many_sectors_pickle_small(tmp_path):
    as_npy(tmp_path / "a", PIXELS[:2, :2])
    paths = []
    for i in range(40):
        (tmp_path / f"{i:03d}").mkdir()
        for j in range(200):
            paths.append(tmp_path / f"{i:03d}" / f"tile_{i:03d}_{j:03d}.npy")
            os.link(tmp_path / "a.npy", paths[-1])
    image = as_image(paths, across=200)
    assert image.shape == (80, 400)
    assert len(pickle.dumps(image)) < 30_000
    part = image.part(BBox(70, 100, 78, 108))
    assert len(pickle.dumps(part)) < 1500
    np.testing.assert_array_equal(part.read(part.window), np.tile(PIXELS[:2, :2], (4, 4)))


# --- tiles


@given(st.integers(1, 70_000), st.integers(1, 70_000), st.sampled_from([64, 1000, 4096]))
def test_tiles_cut_no_block_unless_they_would_be_too_large(height, width, side):
    rows, cols = aligned_tile((height, width), side)
    assert rows * cols <= 4 * side * side
    assert max(rows, cols) <= 65_535
    if (rows, cols) != (side, side):
        assert rows % height == cols % width == 0
    if height <= side and width <= side:
        assert rows % height == cols % width == 0
        assert rows * cols >= side * side / 4


# --- what is refused


def test_what_is_no_label_image_is_refused(tmp_path):
    for value, error, said in (
        (np.zeros((3, 4)), TypeError, "numpy array: found float64, expected integers or bool: .*astype"),
        (np.zeros((3, 4), complex), TypeError, "found complex128"),
        (np.zeros((3, 4), "M8[s]"), TypeError, "found datetime64"),
        (np.zeros((3, 4), object), TypeError, "found object"),
        (np.zeros(3, int), ValueError, r"found 1 dimensions \(3\), expected 2"),
        (np.zeros((2, 3, 5), int), ValueError, r"choose one plane of it, such as labels\[0\]"),
        (np.zeros((3, 0), int), ValueError, r"without pixels \(3, 0\)"),
        (da.zeros((3, 4)), TypeError, "dask array: found float64"),
        (xr.DataArray(np.zeros((3, 4)), dims=("y", "x")), TypeError, "mask_and_scale=False"),
        ({}, TypeError, "found dict, expected a label image: .*grid_of.*from_array"),
        (b"a.npy", TypeError, "found bytes"),
        (tmp_path / "none.npy", FileNotFoundError, r"no such label image: '.*none\.npy'"),
        (str(tmp_path / "t_{row}_{col}.tif"), FileNotFoundError, r"given as grid_of\(pattern\)"),
    ):
        with pytest.raises(error, match=said):
            as_image(value)
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"a\.txt: begins with b'1 2 3', expected a TIFF, PNG or \.npy"):
        as_image(tmp_path / "a.txt")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00\x20\x00nonsense")
    with pytest.raises(ValueError, match=r"a\.npy: its header is no sound \.npy header"):
        as_image(tmp_path / "a.npy")
    (tmp_path / "a.tif").write_bytes(b"II*\0nonsense")
    with pytest.raises(ValueError, match=r"a\.tif"):
        as_image(tmp_path / "a.tif")


@pytest.mark.timeout(30)
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    for labels, options in ((tmp_path / "a.npy", {}), ([tmp_path / "a.npy"], {"across": 1})):
        with pytest.raises(OSError, match=r"is a FIFO, expected a file: '.*a\.npy'"):
            as_image(labels, **options)
    with pytest.raises(OSError, match="is a device, expected a file: '/dev/null'"):
        as_image("/dev/null")
    with pytest.raises(IsADirectoryError, match=r"is a directory, expected a TIFF, PNG or \.npy file"):
        as_image([tmp_path], across=1)
    os.rename(tmp_path / "a.npy", tmp_path / "zarr.json")
    with pytest.raises(ValueError, match=r"found a folder without zarr\.json"):
        as_image(tmp_path)


def test_a_header_with_a_negative_size_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(301, 419)", b"(-1, 419) "))
    with pytest.raises(ValueError, match=r"a\.npy: found an image without pixels \(-1, 419\)"):
        as_image(tmp_path / "a.npy")


@pytest.mark.parametrize("save", [as_npy, as_png])
def test_header_and_stamp_are_of_one_file_whenever_it_is_replaced(save, tmp_path, monkeypatch):
    versions = [np.ascontiguousarray(PIXELS[:20, :30]), np.ascontiguousarray(PIXELS[:30, :20])]
    for number, pixels in enumerate(versions):
        save(tmp_path / str(number), pixels)
    ending = ".npy" if save is as_npy else ".png"
    path, real, times = str(tmp_path / f"a{ending}"), os.stat, []
    shutil.copyfile(tmp_path / f"0{ending}", path)

    def replaced_before(file: Any, **options: Any) -> os.stat_result:
        if file == path:
            times.append(10**18 + len(times))
            shutil.copyfile(tmp_path / f"{len(times) % 2}{ending}", tmp_path / "next")
            os.utime(tmp_path / "next", ns=(times[-1], times[-1]))
            os.replace(tmp_path / "next", path)
        return real(file, **options)

    monkeypatch.setattr(os, "stat", replaced_before)
    image = as_image(path)
    monkeypatch.undo()
    assert len(times) > 1
    np.testing.assert_array_equal(image.read(BBox(0, 0, *image.shape)), versions[len(times) % 2])


@pytest.mark.parametrize("other", ["tiff", "no tiff"])
def test_a_tiff_that_is_replaced_before_it_is_parsed_has_changed(other, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, compression="deflate")
    tifffile.imwrite(tmp_path / "b.tif", PIXELS.T.copy(), compression="deflate")
    if other == "no tiff":
        (tmp_path / "b.tif").write_bytes(b"nonsense")
    real = tiff.library

    def replaced(module: str, path: str) -> Any:
        os.replace(tmp_path / "b.tif", path)
        return real(module, path)

    monkeypatch.setattr(tiff, "library", replaced)
    with pytest.raises(IIDChangedError, match=r"a\.tif: changed since opened"):
        as_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["numpy", "dask", "npy", "zarr path", "tiff tiled", "png", "xarray dask"])
def test_windows_outside_are_refused(tmp_path, kind):
    image = as_image(KINDS[kind](tmp_path))
    for box in (BBox(0, 0, 302, 1), BBox(0, 0, 1, 420), BBox(-1, 0, 3, 3), BBox(5, -2, 6, 3)):
        with pytest.raises(ValueError, match=r"window \(.*\) is not inside the image of 301 x 419 pixels"):
            image.read(box)


def test_tasks_on_files_import_neither_xarray_nor_pandas(tmp_path):
    paths = [KINDS[kind](tmp_path) for kind in ("npy", "tiff tiled deflate", "zarr path")]
    data = io.BytesIO(pickle.dumps([as_image(path) for path in paths])).getvalue()
    code = (
        "import pickle, sys; from iid_dask.bbox import BBox\n"
        "for image in pickle.load(sys.stdin.buffer): image.read(BBox(0, 0, 9, 9))\n"
        "print([m for m in ('xarray', 'pandas', 'pyarrow', 'dask.array') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_descriptors_do_not_pile_up(tmp_path):
    save_grid(tmp_path, PIXELS, list(range(10, 300, 10)), list(range(40, 400, 40)), as_npy)
    image = as_image(grid_of(tmp_path / "tile_{row:03d}_{col:03d}.npy"))
    threads = [threading.Thread(target=image.read, args=(BBox(0, 0, *SHAPE),)) for _ in range(3)]
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = len(os.listdir("/proc/self/fd")) if before else 0
    assert after - before <= 40
