"""From tiles to segments: identity, order, names, groups, halos, and the files of a mosaic, against dense twins."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label as components
from twins import random_mask, seeds

from iid_dask.errors import IIDChangedError, IIDFormatError, IIDStoreError, IIDWarning
from iid_dask.format.folder import LocalFolder
from iid_dask.mosaic.finish import finish
from iid_dask.mosaic.folder import load_job, prepare, tile_reader
from iid_dask.mosaic.reader import open_mosaic
from iid_dask.mosaic.seams import Touch, decide, undo
from iid_dask.mosaic.survey import batches
from iid_dask.mosaic.tables import SCHEMAS, read_table
from iid_dask.mosaic.tile import write_tile

sides = st.sampled_from([(5, 8), (7, 11), (16, 16), (200, 200)])


# --- what a folder says -----------------------------------------------------------------------------------------


def manifest_of(folder):
    return json.loads((Path(folder) / "mosaic.json").read_text())


def table(folder, name):
    """A table's columns as lists of Python values."""
    columns = read_table(folder, manifest_of(folder)["tables"][name], SCHEMAS[name])
    return {name: values.tolist() for name, values in columns.items()}


def masks_of(folder):
    """The union of the pieces of every segment, bool, shape (segments, rows, cols)."""
    manifest, pieces, tiles = manifest_of(folder), table(folder, "pieces"), table(folder, "tiles")
    out = np.zeros((manifest["counts"]["segments"], *manifest["shape"]), bool)
    for tile, key, label in zip(pieces["tile"], pieces["key"], pieces["label"], strict=True):
        entry = tile_reader(folder, tiles["path"][tile])[key]
        row, col = tiles["row"][tile] + entry.bbox.min_row, tiles["col"][tile] + entry.bbox.min_col
        out[label - 1, row : row + entry.bbox.height, col : col + entry.bbox.width] |= entry.mask()
    return out


def names_in(folder):
    segments = table(folder, "segments")
    return list(zip(segments["domain"], segments["address"], strict=True))


def groups_in(folder):
    names, members = manifest_of(folder)["groups"], table(folder, "members")
    found = {name: [] for name in names}
    for group, key in zip(members["group"], members["key"], strict=True):
        found[names[group]].append(key)
    return found


def place_of(mask):
    """First pixel, (-1, -1) if there is none."""
    found = np.argwhere(mask)
    return tuple(found[0].tolist()) if len(found) else (-1, -1)


def check_tables(folder, masks):
    """Compare every column that follows from the masks of all segments, given in their order."""
    np.testing.assert_array_equal(masks_of(folder), masks)
    segments, pieces, tiles = (table(folder, name) for name in ("segments", "pieces", "tiles"))
    for key, mask in enumerate(masks):
        rows, cols = np.nonzero(mask)
        box = (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1) if len(rows) else (0, 0, 0, 0)
        assert tuple(segments[side][key] for side in ("min_row", "min_col", "max_row", "max_col")) == box
        assert segments["area"][key] == mask.sum()
        assert (segments["first_row"][key], segments["first_col"][key]) == place_of(mask)
        assert segments["pieces"][key] == pieces["label"].count(key + 1)
    rows = list(zip(pieces["tile"], pieces["label"], strict=True))
    assert rows == sorted(rows)
    assert pieces["area"] == [segments["area"][label - 1] for label in pieces["label"]]
    for tile, (first, count) in enumerate(zip(tiles["first_piece"], tiles["pieces"], strict=True)):
        assert pieces["tile"][first : first + count] == [tile] * pieces["tile"].count(tile) == [tile] * count


def files_in(folder):
    """Bytes of everything that finish wrote."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.parent.name != "tiles"
    }


# --- tiles ------------------------------------------------------------------------------------------------------


def relabelled(block, seed):
    """The same objects with other numbers."""
    values, where = np.unique(block, return_inverse=True)
    numbers = np.random.default_rng(seed).permutation(len(values)) + 1
    numbers[values == 0] = 0
    return numbers[where.reshape(block.shape)]


def tiled(folder, image, tile, *, local=False, **options):
    """Write all tiles of a label image; ``local`` gives each tile labels of its own."""
    job = prepare(folder, image.shape, tile=tile, **options)
    for number, part in enumerate(job.grid):
        block = image[part.box.slices]
        write_tile(folder, relabelled(block, number) if local else block, part.origin)
    return folder


def random_labels(seed, height=23, width=31):
    """Masks painted over one another, with labels up to 2^64 - 1; some lie in pieces far apart."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.uint64)
    for _ in range(rng.integers(12)):
        rows, cols = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        label = [1, 2, 9, 65_536, 2**32, 2**64 - 1, int(rng.integers(1, 2**40))][rng.integers(7)]
        part = image[rows[0] : rows[1], cols[0] : cols[1]]
        if part.size:
            part[random_mask(rng, *part.shape)] = label
    return image


@given(seed=seeds, tile=sides, halo=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_equal_labels_are_one_segment_whatever_the_tiles(seed, tile, halo):
    image = random_labels(seed)
    with tempfile.TemporaryDirectory() as folder:
        finish(tiled(folder, image, tile, halo=halo))
        labels = [int(label) for label in np.unique(image) if label]
        check_tables(folder, np.array([image == label for label in labels]).reshape(-1, *image.shape))
        assert names_in(folder) == [(b"", str(label).encode()) for label in labels]


@given(seed=seeds, tile=sides)
@settings(max_examples=25, deadline=None)
def test_connected_components_do_not_depend_on_the_tiles(seed, tile):
    image = random_labels(seed)
    image[image > 9] = 3
    with tempfile.TemporaryDirectory() as folder:
        finish(tiled(folder, image, tile, stitch="touch", connected=True), groups=lambda value: f"class {value}")
        numbered = components(image.astype(np.int64), connectivity=2)
        masks = sorted((numbered == n for n in np.unique(numbered[image > 0])), key=place_of)
        check_tables(folder, np.array(masks).reshape(-1, *image.shape))
        assert names_in(folder) == [(b"", str(key + 1).encode()) for key in range(len(masks))]
        groups = {name: [] for name in dict.fromkeys(f"class {image[place_of(mask)]}" for mask in masks)}
        for key, mask in enumerate(masks):
            groups[f"class {image[place_of(mask)]}"].append(key)
        assert groups_in(folder) == groups
        assert list(groups_in(folder)) == list(groups)


@given(seed=seeds, tile=sides)
@settings(max_examples=25, deadline=None)
def test_pieces_that_nothing_joins_are_cut_to_the_core(seed, tile):
    image = random_labels(seed)
    with tempfile.TemporaryDirectory() as folder:
        finish(tiled(folder, image, tile, stitch=None, halo=2, local=True))
        masks = []
        for part in load_job(folder).grid:
            inside = np.zeros(image.shape, bool)
            inside[part.core.slices] = True
            masks += [mask for label in np.unique(image) if label and (mask := (image == label) & inside).any()]
        check_tables(folder, np.array(sorted(masks, key=place_of)).reshape(-1, *image.shape))


# --- names ------------------------------------------------------------------------------------------------------


def named_masks(seed, height=23, width=31):
    """Masks with names that collide: (domain, address, group, whole mask)."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rng.integers(1, 10)):
        mask = np.zeros((height, width), bool)
        rows, cols = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        part = mask[rows[0] : rows[1], cols[0] : cols[1]]
        part |= random_mask(rng, *part.shape) if part.size else False
        domain, address = [b"", b"cell"][rng.integers(2)], [b"", b"\x00", b"\xff"][rng.integers(3)]
        found.append((domain, address, "ab"[rng.integers(2)], mask))
    return [item for item in found if item[3].any()]


def write_masks(folder, items, shape, tile, **options):
    """Cut masks over tiles; those that do not reach into a tile are not in it."""
    job = prepare(folder, shape, tile=tile, stitch=options.pop("stitch", "name"), **options)
    for part in job.grid:
        cut = [(d, a, m[part.box.slices], g) for d, a, g, m in items if m[part.box.slices].any()]
        write_tile(folder, [(d, a, (0, 0, *m.shape), m, g) for d, a, m, g in cut], part.origin)
    return folder


@given(seed=seeds, by_group=st.booleans(), halo=st.integers(0, 1))
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore::iid_dask.errors.IIDWarning")
def test_one_name_is_one_segment_at_every_tile_size(seed, by_group, halo):
    items = named_masks(seed)
    identity = ("domain", "address", "group") if by_group else ("domain", "address")
    union, groups = {}, {}
    for domain, address, group, mask in items:
        name = (domain, address, group) if by_group else (domain, address)
        union[name] = union.get(name, False) | mask
        groups.setdefault(name, set()).add(group)
    order = sorted(union, key=lambda name: (place_of(union[name]), name))
    for tile in ((6, 8), (40, 40)):
        with tempfile.TemporaryDirectory() as folder:
            finish(write_masks(folder, items, (23, 31), tile, identity=identity, halo=halo))
            check_tables(folder, np.array([union[name] for name in order]).reshape(-1, 23, 31))
            assert names_in(folder) == [name[:2] for name in order]
            wanted = {group: [k for k, name in enumerate(order) if group in groups[name]] for group in "ab"}
            wanted = {group: keys for group, keys in wanted.items() if keys}
            assert list(groups_in(folder).items()) == sorted(wanted.items(), key=lambda item: (item[1][0], item[0]))


def square(row, col, side=3, shape=(20, 20)):
    mask = np.zeros(shape, bool)
    mask[row : row + side, col : col + side] = True
    return mask


TILES = [(7, 11), (20, 20)]


@pytest.mark.parametrize("tile", [(4, 4), *TILES])
def test_two_labels_of_one_name_stay_two(tmp_path, tile):
    image = square(1, 1) * 7 + square(8, 8, 6) * 300
    finish(tiled(tmp_path, image, tile), names={7: "cell", 300: b"cell", 8: "nobody"}, domain=b"d")
    assert names_in(tmp_path) == [(b"d", b"cell"), (b"d", b"cell")]
    check_tables(tmp_path, [image == 7, image == 300])


@pytest.mark.parametrize("tile", TILES)
def test_short_addresses_that_two_groups_reuse_stay_apart(tmp_path, tile):
    items = [(b"", b"\x01", "left", square(1, 1, 8)), (b"", b"\x01", "right", square(5, 5, 12))]
    finish(write_masks(tmp_path, items, (20, 20), tile, identity=("domain", "address", "group")))
    assert names_in(tmp_path) == [(b"", b"\x01")] * 2
    assert groups_in(tmp_path) == {"left": [0], "right": [1]}
    check_tables(tmp_path, [items[0][3], items[1][3]])


@pytest.mark.parametrize(("tile", "tiles"), [((20, 20), 1), ((10, 20), 2)])
def test_an_identity_twice_in_a_tile_is_merged_and_said_once(tmp_path, tile, tiles):
    items = [(b"", b"1", "g", square(8, 1, 4)), (b"", b"1", "g", square(8, 3, 4)), (b"", b"2", "g", square(0, 15))]
    write_masks(tmp_path, items, (20, 20), tile)
    with pytest.warns(IIDWarning, match=rf"1 identities stand .* in {tiles} tiles: \(b'', b'1'\) in tiles/r") as said:
        finish(tmp_path)
    assert [warning.filename for warning in said] == [__file__]
    check_tables(tmp_path, [items[2][3], items[0][3] | items[1][3]])


def test_an_identity_twice_in_a_tile_can_be_refused(tmp_path):
    items = [(b"", b"1", "g", square(8, 1, 4)), (b"", b"1", "h", square(8, 3, 4))]
    write_masks(tmp_path, items, (20, 20), 20)
    job = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps({**job, "on_duplicate": "refuse"}))
    rename_job(tmp_path, {"tiles/r0000000_c0000000.iid"})
    with pytest.raises(IIDStoreError, match=r"1 identities stand several times within one tile, in 1 tiles.*merge"):
        finish(tmp_path)


def test_empty_masks_come_last_and_keep_their_names(tmp_path):
    job = prepare(tmp_path, (9, 9), stitch="name")
    nothing = np.zeros((2, 2), bool)
    items = [
        (b"", b"b", (0, 0, 2, 2), nothing),
        (b"", b"a", (4, 4, 6, 6), nothing),
        (b"", b"c", (3, 3, 5, 5), ~nothing),
    ]
    write_tile(tmp_path, items, (0, 0), shape=job.shape)
    finish(tmp_path)
    assert names_in(tmp_path) == [(b"", b"c"), (b"", b"a"), (b"", b"b")]
    check_tables(tmp_path, [square(3, 3, 2, (9, 9)), *np.zeros((2, 9, 9), bool)])


def test_names_and_groups_by_functions(tmp_path):
    image = np.array([[5, 5, 0, 6, 0, 7]])
    finish(
        tiled(tmp_path, image, 2),
        names=lambda n: f"größe {n}",
        groups=lambda n: {5: None, 6: "six"}.get(n, ["z", "six"]),
    )
    assert names_in(tmp_path) == [(b"", f"größe {n}".encode()) for n in (5, 6, 7)]
    assert groups_in(tmp_path) == {"six": [1, 2], "z": [2]}


def test_the_domain_of_tiles_stays_unless_another_is_given(tmp_path):
    prepare(tmp_path, (2, 2))
    write_tile(tmp_path, np.array([[4, 0], [0, 5]]), (0, 0), domain=b"mine")
    finish(tmp_path)
    assert names_in(tmp_path) == [(b"mine", b"4"), (b"mine", b"5")]
    finish(tmp_path, domain=b"other")
    assert names_in(tmp_path) == [(b"other", b"4"), (b"other", b"5")]
    with pytest.raises(TypeError, match="domain = 'text': expected bytes"):
        finish(tmp_path, domain="text")


def test_a_label_that_a_mapping_lacks_is_named(tmp_path):
    folder = tiled(tmp_path, np.array([[5, 5, 0, 6, 0, 7]]), 2)
    with pytest.raises(KeyError, match=r"names: no entry for 2 of 3 labels, the first is 6"):
        finish(folder, names={5: "five"})
    with pytest.raises(TypeError, match="names: label 5 is called 5: expected str or bytes"):
        finish(folder, names=lambda label: label)
    with pytest.raises(TypeError, match="groups: label 5 is in 5: expected str, or several"):
        finish(folder, groups=lambda label: [label])
    with pytest.raises(TypeError, match="names is a list: expected a mapping or a function"):
        finish(folder, names=["five"])
    assert not (tmp_path / "mosaic.json").exists()


def test_labels_that_a_mapping_of_groups_lacks_are_in_none(tmp_path):
    folder = tiled(tmp_path, np.array([[5, 5, 0, 6, 0, 7]]), 2)
    with finish(folder, groups={6: "six"}) as mosaic:
        assert {name: keys.tolist() for name, keys in mosaic.groups.items()} == {"six": [1]}


def test_masks_have_names_already(tmp_path):
    folder = write_masks(tmp_path, [(b"", b"1", "g", square(1, 1))], (20, 20), 20)
    with pytest.raises(ValueError, match="the masks in these tiles have names"):
        finish(folder, names={1: "one"})


def test_labels_and_masks_do_not_mix(tmp_path):
    prepare(tmp_path, (4, 8), stitch=None)
    write_tile(tmp_path, np.ones((4, 4), int), (0, 0))
    write_tile(tmp_path, [(b"", b"1", (0, 0, 1, 1), np.ones((1, 1)))], (0, 4), shape=(4, 4))
    with pytest.raises(IIDStoreError, match=r"c0000000.iid is made of a label array, .*c0000004.iid of named masks"):
        finish(tmp_path)


# --- tiles that do not fit --------------------------------------------------------------------------------------


def rename_job(folder, paths):
    """Write the job's present id into tiles."""
    for path in paths:
        file = Path(folder) / path
        reader = tile_reader(folder, path)
        old = reader.metadata["mosaic"]["job"]
        file.write_bytes(file.read_bytes().replace(old.encode(), load_job(folder).id.encode()))
        # The metadata's checksum is another one now, and the index is optional.
        file.write_bytes(
            file.read_bytes()[: int(reader.header["segments_offset"]) + int(reader.header["segments_length"])]
        )


IMAGE = square(2, 2, 16).astype(int) * 5


def test_missing_tiles_are_counted_and_named(tmp_path):
    folder = tiled(tmp_path, IMAGE, 5)
    for name in ("r0000000_c0000005", "r0000015_c0000010"):
        (folder / "tiles" / f"{name}.iid").unlink()
    with pytest.raises(IIDStoreError, match=r"2 of 16 tiles are missing: tiles/r0000000_c0000005.iid, tiles/r0000015_"):
        finish(folder)
    for path in (folder / "tiles").iterdir():
        path.unlink()
    with pytest.raises(IIDStoreError, match=r"16 of 16 tiles are missing: .*c0000010.iid, …"):
        finish(folder)


def test_tiles_that_are_none_of_the_grid_are_named(tmp_path):
    folder = tiled(tmp_path, IMAGE, 10)
    (folder / "tiles" / ".r0000000_c0000000.iid.abcd.tmp").write_bytes(b"")
    first = folder / "tiles" / "r0000000_c0000000.iid"
    other = folder / "tiles" / "r0000003_c0000000.iid"
    other.write_bytes(first.read_bytes())
    with pytest.raises(IIDStoreError, match=r"r0000003_c0000000.iid is none of the mosaic's 4 tiles"):
        finish(folder)
    other.rename(folder / "tiles" / "copy.iid")
    with pytest.raises(IIDStoreError, match=r"copy.iid: no name of a tile, expected r0000000_c0000000.iid"):
        finish(folder)


def test_a_tile_under_another_name_is_refused(tmp_path):
    folder = tiled(tmp_path, IMAGE, 10)
    (folder / "tiles" / "r0000010_c0000000.iid").write_bytes((folder / "tiles" / "r0000000_c0000000.iid").read_bytes())
    with pytest.raises(IIDStoreError, match=r"r0000010_c0000000.iid: is the tile at row 0, column 0, .*write the tile"):
        finish(folder)


def test_a_tile_of_another_job_is_refused(tmp_path):
    folder, other = tiled(tmp_path / "a", IMAGE, 10), tiled(tmp_path / "b", IMAGE, 10, metadata={"note": 1})
    name = "tiles/r0000010_c0000000.iid"
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(IIDStoreError, match=r"r0000010_c0000000.iid: a tile of another job .*delete it"):
        finish(folder)


@pytest.mark.parametrize("damage", ["cut", "pixel"])
def test_a_damaged_tile_is_named(tmp_path, damage):
    folder = tiled(tmp_path, IMAGE, 10)
    file = folder / "tiles" / "r0000010_c0000000.iid"
    data = bytearray(file.read_bytes())
    reader = tile_reader(folder, "tiles/r0000010_c0000000.iid")
    data[int(reader.header["segments_offset"]) + 28] ^= 0x10
    file.write_bytes(data if damage == "pixel" else data[:100])
    with pytest.raises(IIDFormatError, match=r"r0000010_c0000000.iid"):
        finish(folder)


def test_tiles_anywhere_may_not_own_a_pixel_twice(tmp_path):
    prepare(tmp_path, (20, 20))
    write_tile(tmp_path, IMAGE[:12], (0, 0))
    write_tile(tmp_path, IMAGE[10:], (10, 0))
    with pytest.raises(IIDStoreError, match=r"1 pairs of tiles own the same pixels, .* core \(10, 0, 20, 20\)"):
        finish(tmp_path)
    write_tile(tmp_path, IMAGE[10:], (10, 0), core=(12, 0, 20, 20))
    finish(tmp_path)
    check_tables(tmp_path, [IMAGE > 0])


def test_a_label_job_takes_labels_only(tmp_path):
    folder = tiled(tmp_path, IMAGE, 20)
    file = folder / "tiles" / "r0000000_c0000000.iid"
    head = len(file.read_bytes()) - 1
    data = file.read_bytes()
    at = data.index(b"\x01\x00\x00\x005") + 4
    file.write_bytes(data[:at] + b"0" + data[at + 1 : head - 51])  # without the index, whose checksum would tell
    with pytest.raises(IIDFormatError, match=r"iids, entry 0: found the address b'0', expected a label as decimal"):
        finish(folder)


# --- the folder -------------------------------------------------------------------------------------------------


def test_finish_twice_writes_the_same_bytes_and_leaves_nothing_old(tmp_path):
    folder = tiled(tmp_path, random_labels(3).astype(np.int64) % 50, (7, 11), stitch=None, halo=2, local=True)
    finish(folder)
    first = files_in(folder)
    assert any(path.parent.name == "cuts" for path in first)
    finish(folder)
    assert files_in(folder) == first
    finish(folder, names=lambda label: f"cell {label}")
    named = files_in(folder)
    assert len(named) == len(first)
    assert named.keys() != first.keys()
    finish(folder)
    assert files_in(folder) == first


def test_schedulers_make_the_same_bytes(tmp_path):
    folder = tiled(tmp_path, random_labels(3).astype(np.int64) % 50, (7, 11), stitch="touch", halo=2, local=True)
    finish(folder)
    first = files_in(folder)
    with dask.config.set(scheduler="synchronous"):
        finish(folder)
    assert files_in(folder) == first
    with dask.config.set(scheduler="processes", num_workers=2):
        finish(folder)
    assert files_in(folder) == first


def test_a_mosaic_without_tiles_or_entries(tmp_path):
    prepare(tmp_path / "a", (10, 10))
    finish(tmp_path / "a")
    check_tables(tmp_path / "a", np.zeros((0, 10, 10), bool))
    finish(tiled(tmp_path / "b", np.zeros((10, 10), int), 4, stitch="touch"))
    check_tables(tmp_path / "b", np.zeros((0, 10, 10), bool))


def test_tiles_written_anew_are_noticed_before_they_are_cut(tmp_path):
    image = np.zeros((8, 8), int)
    image[:, 3] = 1
    folder = tiled(tmp_path, image, 4, stitch="touch", halo=1, local=True)
    finish(folder)
    write_tile(folder, np.ones((5, 5), int), (0, 0))
    with pytest.raises(IIDChangedError, match=r"r0000000_c0000000.iid was written anew since the mosaic was finished"):
        decide(folder)


def touching_masks(folder):
    """A mosaic of two tiles, whose masks touch and are in a group."""
    job = prepare(folder, (10, 20), tile=10, stitch="touch")
    for tile in job.grid:
        write_tile(folder, [(b"", b"1", (2, 0, 8, 10), np.ones((6, 10)), "all")], tile.origin)
    finish(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "again"),
    [
        *[(name, decide) for name in ("tiles", "seams", "entries", "entry_members")],
        ("pieces", lambda folder: undo(folder, segments=[0])),
    ],
)
def test_nothing_is_decided_from_a_damaged_table(tmp_path, name, again):
    folder = touching_masks(tmp_path)
    held = files_in(folder)
    path = folder / manifest_of(folder)["tables"][name]["path"]
    data = path.read_bytes()
    for at in (4, len(data) // 3, len(data) // 2, len(data) - 9):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(IIDFormatError, match=rf"{path.name}: file: found crc32 0x\w+, expected 0x"):
            again(folder)
    path.write_bytes(data[:-1])
    with pytest.raises(IIDFormatError, match=rf"{path.name}: file: found {len(data) - 1} bytes, expected {len(data)}"):
        again(folder)
    path.write_bytes(data)
    assert files_in(folder) == held
    again(folder)


def test_the_old_mosaic_stands_until_the_new_manifest_does(tmp_path, monkeypatch):
    image = random_labels(3).astype(np.int64) % 50
    folder = tiled(tmp_path, image, (7, 11), stitch="touch", halo=2, local=True)
    finish(folder)
    held, masks = files_in(folder), masks_of(folder)
    assert any(path.parent.name == "cuts" for path in held)
    write = LocalFolder.write

    def failing(self, name):
        if name == "mosaic.json":
            raise OSError(errno.ENOSPC, "No space left on device", self.child(name))
        return write(self, name)

    def apart():
        """Join nothing: that takes other tables, and other cuts."""
        decide(folder, Touch(min_pixels=10**6))

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", failing)
        for again in (apart, lambda: finish(folder, rule=Touch(min_pixels=10**6))):
            with pytest.raises(OSError, match="No space left on device"):
                again()
            assert files_in(folder).items() > held.items(), "what is new lies beside the old"
            np.testing.assert_array_equal(masks_of(folder), masks)
            with open_mosaic(folder) as mosaic:
                assert mosaic.check() == []
    apart()
    assert files_in(folder).keys() != held.keys()
    finish(folder)
    assert files_in(folder) == held


def test_tiny_tiles_are_few_tasks():
    assert len(batches(np.full(30_000, 400))) < 200


def test_tasks_load_no_tables():
    code = (
        "import sys, iid_dask.mosaic.survey, iid_dask.mosaic.borders, iid_dask.mosaic.cuts, iid_dask.mosaic.areas\n"
        "print([name for name in ('pandas', 'pyarrow', 'xarray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
