"""One tile of a mosaic: what is written, what is refused, and that nothing but the folder and the arguments matter."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from reference import reference
from twins import random_box, random_mask, seeds

import iid_dask
from iid_dask import BBox
from iid_dask.mosaic.blocks import block_crc
from iid_dask.mosaic.folder import load_job, prepare
from iid_dask.mosaic.tile import TileWritten, write_tile

BLOCK = np.array([[0, 5, 5, 0], [7, 0, 5, 0], [7, 0, 0, 5]], np.uint16)
ITEMS = [
    (b"cell", b"a", (0, 0, 2, 2), np.ones((2, 2)), "first"),
    (b"cell", b"b", (1, 1, 3, 4), np.ones((2, 3)), ["first", "second"]),
    (b"", b"\xff", (0, 0, 1, 4), np.zeros((1, 4))),
]


def begin(folder, shape=(30, 40), **options):
    prepare(folder, shape, **options)
    return folder


def names_of(reader):
    return list(zip(*reader.names(), strict=True))


def test_a_label_array_becomes_a_file(tmp_path):
    folder = begin(tmp_path)
    written = write_tile(folder, BLOCK, (10, 20))
    path = folder / "tiles" / "r0000010_c0000020.iid"
    assert written == TileWritten("tiles/r0000010_c0000020.iid", 2, path.stat().st_size)
    assert pickle.loads(pickle.dumps(written)) == written
    with iid_dask.open(path) as reader:
        assert reader.metadata == {
            "image": {"height": 3, "width": 4},
            "mosaic": {
                "job": load_job(folder).id,
                "origin": [10, 20],
                "shape": [3, 4],
                "core": [10, 20, 13, 24],
                "input": block_crc(BLOCK),
            },
        }
        assert list(reader.metadata["mosaic"]) == ["job", "origin", "shape", "core", "input"]
        assert names_of(reader) == [(b"", b"5"), (b"", b"7")]
        for value, entry in zip((5, 7), reader.values(), strict=True):
            assert np.array_equal(entry.mask(), (value == BLOCK)[entry.bbox.slices])
            assert entry.area == np.sum(value == BLOCK)
        assert not reader.check()


def test_masks_become_a_file(tmp_path):
    folder = begin(tmp_path, stitch="name")
    written = write_tile(folder, iter(ITEMS), (0, 0), shape=(3, 4), core=(0, 0, 3, 2))
    with iid_dask.open(folder / written.path) as reader:
        assert names_of(reader) == [item[:2] for item in ITEMS]
        assert [entry.area for entry in reader.values()] == [4, 6, 0]
        assert {name: keys.tolist() for name, keys in reader.groups.items()} == {"first": [0, 1], "second": [1]}
        assert reader.metadata["mosaic"]["core"] == [0, 0, 3, 2]
        assert reader.metadata["mosaic"]["input"] is None


def test_components_become_entries_named_by_their_class(tmp_path):
    folder = begin(tmp_path, stitch="touch", connected=True)
    block = np.array([[2, 0, 1, 0, 2], [0, 2, 0, 0, 2]])
    with iid_dask.open(folder / write_tile(folder, block, (0, 0)).path) as reader:
        assert names_of(reader) == [(b"", b"2"), (b"", b"1"), (b"", b"2")]
        assert [entry.area for entry in reader.values()] == [2, 1, 2]


def test_names_of_labels_get_the_domain(tmp_path):
    folder = begin(tmp_path, stitch="touch")
    with iid_dask.open(folder / write_tile(folder, BLOCK, (0, 0), domain=b"cell").path) as reader:
        assert names_of(reader) == [(b"cell", b"5"), (b"cell", b"7")]


def test_a_tile_of_a_grid_knows_its_core_and_its_shape(tmp_path):
    folder = begin(tmp_path, stitch="iou", tile=(10, 20), halo=3)
    block = np.ones((16, 23), bool)
    with iid_dask.open(folder / write_tile(folder, block, (7, 17)).path) as reader:
        assert reader.metadata["mosaic"]["core"] == [10, 20, 20, 40]
    with iid_dask.open(folder / write_tile(folder, ITEMS, (17, 0)).path) as reader:
        assert reader.metadata["mosaic"]["shape"] == [13, 23]
        assert reader.metadata["mosaic"]["core"] == [20, 0, 30, 20]


def test_a_tile_without_segments_is_a_file(tmp_path):
    folder = begin(tmp_path)
    written = write_tile(folder, np.zeros((3, 4), np.uint8), (0, 0))
    assert written.entries == 0
    with iid_dask.open(folder / written.path) as reader:
        assert len(reader) == 0
        assert reader.shape == (3, 4)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_tiles_hold_the_masks_of_their_labels(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 40)), int(rng.integers(1, 90))
    block = np.zeros((height, width), np.uint32)
    for label in rng.integers(1, 2**32, 5):
        box = random_box(rng, height, width)
        block[box.slices][random_mask(rng, *box.shape)] = label
    folder = begin(tmp_path_factory.mktemp("tile"), (height + 5, width + 7))
    with iid_dask.open(folder / write_tile(folder, block, (5, 7)).path) as reader:
        painted = np.zeros_like(block)
        for entry in reader.values():
            painted[entry.bbox.slices][entry.mask()] = int(entry.address)
        assert np.array_equal(painted, block)
        addresses = [int(address) for address in reader.names()[1]]
        assert addresses == sorted(addresses)


def test_the_reference_reads_tiles(tmp_path):
    with np.load(DATA / "nuclei.labels.npz") as arrays:
        block = arrays[arrays.files[0]]
    labels = begin(tmp_path / "labels", block.shape)
    masks = begin(tmp_path / "masks", (3, 4), stitch="name")
    with reference(labels / write_tile(labels, block, (0, 0)).path) as file:
        file.fetch(everything=True)
        painted = np.zeros_like(block)
        for entry in file.lut.entries:
            top, left, bottom, right = entry.seg.bbox
            painted[top:bottom, left:right][entry.seg.mask()] = int(entry.iid.address)
        assert np.array_equal(painted, block)
    with reference(masks / write_tile(masks, ITEMS, (0, 0), shape=(3, 4)).path) as file:
        file.fetch(everything=True)
        assert [entry.seg.area for entry in file.lut.entries] == [4, 6, 0]
        assert [entry.iid.address for entry in file.lut.entries] == [b"a", b"b", b"\xff"]
        assert {name: sorted(file.groups.get(name, keys_only=True)) for name in file.groups.list()} == {
            "first": [0, 1],
            "second": [1],
        }
        assert file.meta.data["mosaic"]["shape"] == [3, 4]


# --- the same bytes, whole or not at all ------------------------------------------------------------------------


def test_a_tile_written_again_has_the_same_bytes(tmp_path):
    folder = begin(tmp_path)
    first = write_tile(folder, BLOCK, (0, 0))
    before = (folder / first.path).read_bytes()
    for same in (BLOCK, np.asfortranarray(BLOCK), BLOCK.astype(">u2"), np.repeat(BLOCK, 2, axis=1)[:, ::2]):
        assert write_tile(str(folder), same, np.array([0, 0])) == first
        assert (folder / first.path).read_bytes() == before
    assert [path.name for path in (folder / "tiles").iterdir()] == ["r0000000_c0000000.iid"]


def test_a_tile_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    folder = begin(tmp_path)
    path = folder / write_tile(folder, BLOCK, (0, 0)).path
    before = path.read_bytes()

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for origin in ((0, 0), (5, 5)):
        with pytest.raises(OSError, match="No space left on device"):
            write_tile(folder, BLOCK + 1, origin)
    assert path.read_bytes() == before
    assert list((folder / "tiles").iterdir()) == [path]


def test_a_changed_block_changes_the_checksum(tmp_path):
    folder = begin(tmp_path)

    def checksum(block):
        with iid_dask.open(folder / write_tile(folder, block, (0, 0)).path) as reader:
            return reader.metadata["mosaic"]["input"]

    other = BLOCK.copy()
    other[0, 0] = 5
    assert len({checksum(BLOCK), checksum(other), checksum(BLOCK.astype(np.uint32)), checksum(BLOCK[:, :3])}) == 4


def test_a_task_imports_neither_xarray_nor_pandas_nor_pyarrow(tmp_path):
    folder = begin(tmp_path)
    script = textwrap.dedent(
        """
        import sys
        import numpy as np
        from iid_dask.mosaic.tile import write_tile
        print(write_tile(sys.argv[1], np.eye(4, dtype=bool), (2, 3)).entries)
        print(sorted({"xarray", "pandas", "pyarrow", "dask", "zarr"} & set(sys.modules)))
        """
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1", "[]"]


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "content", "arguments", "error", "text"),
    [
        (
            {},
            BLOCK,
            {"origin": (28, 0)},
            ValueError,
            r"tile at row 28, column 0 of 3 x 4 pixels leaves the mosaic of 30 x 40",
        ),
        ({}, BLOCK, {"origin": (-1, 0)}, ValueError, r"tile at row -1, column 0 of 3 x 4 pixels leaves the mosaic"),
        (
            {},
            BLOCK,
            {"origin": (0.5, 0)},
            TypeError,
            r"origin = \(0.5, 0\): expected two integers, rows before columns",
        ),
        ({}, BLOCK, {"origin": (0, 0, 1)}, ValueError, r"origin = \(0, 0, 1\): expected two integers"),
        ({}, BLOCK, {"shape": 3}, TypeError, r"shape = 3: expected two integers"),
        ({}, BLOCK, {"core": (0, 0, 4, 4)}, ValueError, r"its core \(0, 0, 4, 4\) leaves it"),
        ({}, BLOCK, {"shape": (4, 3)}, ValueError, r"shape = \(4, 3\) contradicts the label array's \(3, 4\)"),
        ({}, BLOCK, {"domain": "cell"}, TypeError, r"domain is str, expected bytes"),
        (
            {},
            BLOCK.astype(float),
            {},
            TypeError,
            r"label array: float64, shape \(3, 4\): expected a 2-D numpy array of integers",
        ),
        ({}, BLOCK[0], {}, TypeError, r"label array of shape \(4,\): expected two dimensions"),
        ({}, BLOCK.astype(int) - 5, {}, ValueError, r"value -5 at row 0, column 0"),
        (
            {},
            ITEMS,
            {"shape": (3, 4)},
            TypeError,
            r'content is no array, but the mosaic joins labels \(stitch="label"\)',
        ),
        ({"stitch": "touch", "connected": True}, ITEMS, {}, TypeError, r"content is no array, .*connected components"),
        (
            {"stitch": "name"},
            BLOCK,
            {},
            TypeError,
            r"content is a label array, but the mosaic joins masks by their names",
        ),
        (
            {"stitch": "name"},
            ITEMS,
            {},
            ValueError,
            r"tile at row 0, column 0: masks do not tell its size; give shape=",
        ),
        (
            {"stitch": "name"},
            ITEMS,
            {"shape": (2, 4)},
            ValueError,
            r"item 1 \(b'cell', b'b'\): box .* leaves the tile of 2 x 4",
        ),
        ({"stitch": None}, ITEMS, {"shape": (3, 4), "domain": b"x"}, ValueError, r"domain = b'x' is for label arrays"),
        ({"tile": 10}, BLOCK, {}, ValueError, r"none of the grid of 10 x 10 pixels"),
        ({"tile": 10}, BLOCK, {"origin": (1, 0)}, ValueError, r"none of the grid of 10 x 10 pixels"),
        (
            {"stitch": "iou", "tile": 10, "halo": 1},
            ITEMS,
            {"origin": (1, 0)},
            ValueError,
            r"masks do not tell its size",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, options, content, arguments, error, text):
    folder = begin(tmp_path, **options)
    with pytest.raises(error, match=text):
        write_tile(folder, content, **{"origin": (0, 0), **arguments})
    assert not list((folder / "tiles").iterdir())


def test_errors_of_content_say_which_tile(tmp_path):
    folder = begin(tmp_path)
    with pytest.raises(ValueError, match="value -1") as caught:
        write_tile(folder, BLOCK.astype(int) * -1 + 4, (7, 8))
    assert caught.value.__notes__ == [f"in tiles/r0000007_c0000008.iid of {folder}"]


def test_a_folder_that_nobody_prepared_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"job.json: no such file: begin the mosaic with iid_dask.prepare"):
        write_tile(tmp_path, BLOCK, (0, 0))


def test_a_tile_of_too_many_pixels_a_side_is_refused(tmp_path):
    folder = begin(tmp_path, (2, 70_000))
    with pytest.raises(iid_dask.IIDLimitError, match=r"1 x 65536 pixels: a file holds at most 65535 a side"):
        write_tile(folder, np.zeros((1, 65_536), bool), (0, 0))


def box_item(domain, address, *groups):
    return (domain, address, (0, 0, 1, 1), [[1]], groups)


def test_one_name_twice_stays_two_entries_or_is_refused(tmp_path):
    items = [box_item(b"d", b"1"), box_item(b"d", b"2"), box_item(b"e", b"1"), box_item(b"d", b"1")]
    for stitch in ("name", "touch", None):
        folder = begin(tmp_path / f"merge {stitch}", stitch=stitch)
        assert write_tile(folder, items, (0, 0), shape=(2, 2)).entries == 4
    folder = begin(tmp_path / "refuse", stitch="name", on_duplicate="refuse")
    assert write_tile(folder, items[:3], (0, 0), shape=(2, 2)).entries == 3
    with pytest.raises(ValueError, match=r"items 0 and 3 are both \(b'd', b'1'\), and .* on_duplicate=\"refuse\""):
        write_tile(folder, items, (9, 9), shape=(2, 2))
    assert not (folder / "tiles" / "r0000009_c0000009.iid").exists()


def test_with_groups_in_the_identity_a_name_may_recur_in_other_groups(tmp_path):
    identity = ("domain", "address", "group")
    folder = begin(tmp_path, stitch="name", on_duplicate="refuse", identity=identity)
    apart = [box_item(b"d", b"1", "a"), box_item(b"d", b"1", "b", "c"), box_item(b"d", b"1")]
    assert write_tile(folder, apart, (0, 0), shape=(2, 2)).entries == 3
    for more, text in (
        (box_item(b"d", b"1", "c", "b"), r"items 1 and 3 .* in group 'b', 'c'"),
        (apart[2], r"items 2 and 3"),
    ):
        with pytest.raises(ValueError, match=text):
            write_tile(folder, [*apart, more], (0, 0), shape=(2, 2))


def test_arrays_of_other_libraries_are_label_arrays(tmp_path):
    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return BLOCK

    folder = begin(tmp_path)
    first = (folder / write_tile(folder, BLOCK, (0, 0)).path).read_bytes()
    assert (folder / write_tile(folder, Wrapped(), (0, 0)).path).read_bytes() == first


def test_boxes_may_be_given_as_boxes(tmp_path):
    folder = begin(tmp_path, stitch="name")
    items = [(b"", b"1", BBox(1, 1, 2, 3), np.ones((1, 2), bool))]
    with iid_dask.open(folder / write_tile(folder, items, (0, 0), shape=(3, 4), core=BBox(0, 0, 3, 4)).path) as reader:
        assert tuple(reader[0].bbox) == (1, 1, 2, 3)


def test_index_of_a_tile_is_sound(tmp_path):
    folder = begin(tmp_path)
    path = folder / write_tile(folder, BLOCK, (0, 0)).path
    with iid_dask.open(path) as reader:
        assert reader.has_index
        for key in reader:
            assert zlib.crc32(reader.segment_bytes(key)) == reader.columns.crcs[key]
