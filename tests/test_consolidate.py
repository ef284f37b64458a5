"""A mosaic becomes the file that a writer of whole masks writes, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_joining import pattern
from twins import seeds

import iid_dask
from iid_dask import BBox, IIDWriter
from iid_dask.format import target
from iid_dask.format.columns import Names
from iid_dask.mosaic import consolidate as consolidating
from iid_dask.mosaic import placing, ranges
from iid_dask.mosaic.consolidate import write_consolidated
from iid_dask.mosaic.ranges import TileFiles, combine_crc32
from iid_dask.mosaic.stored import Shown

METADATA = {"image": {"height": 1, "width": 1}, "note": "ü"}


class Folder:
    """A mosaic by hand: masks of segments, cut into files that `IIDWriter` writes."""

    def __init__(self, path, masks, groups=None):
        self.path, self.masks, self.groups = Path(path), masks, groups or {}
        self.paths, self.origins, self.rows = {}, {}, []

    def tile(self, box, segments=None):
        """Write a file of what a box shows of segments."""
        number = len(self.paths)
        self.paths[number], self.origins[number] = f"{number}.iid", (box.min_row, box.min_col)
        with IIDWriter(self.path / f"{number}.iid") as writer:
            for segment in range(len(self.masks)) if segments is None else segments:
                seen = self.masks[segment][box.slices]
                if seen.any():
                    around = tight(seen)
                    self.rows.append((number, writer.add(b"", b"", around, seen[around.slices]), segment))

    @property
    def files(self):
        """As `write_consolidated` takes them."""
        return TileFiles(str(self.path), self.paths, self.origins)

    @property
    def pieces(self):
        """In no order."""
        rows = np.array(self.rows, np.int64).reshape(-1, 3)
        return Shown(*rows[np.random.default_rng(0).permutation(len(rows))].T)

    @property
    def names(self):
        """Of segments, some empty, some twice."""
        return [b"cell"[: i % 5] for i in range(len(self.masks))], [b"%d" % (i // 2) for i in range(len(self.masks))]

    def write(self, out, **options):
        """Consolidate; the number of bytes must be true."""
        options = {"groups": self.groups, "metadata": METADATA, **options}
        nbytes = write_consolidated(out, self.files, self.pieces, Names.of(*self.names), **options)
        assert nbytes == os.path.getsize(out)
        return out.read_bytes()

    def whole(self, out, **options):
        """What a writer of whole masks writes."""
        with IIDWriter(out, metadata=METADATA, **options) as writer:
            for domain, address, mask in zip(*self.names, self.masks, strict=True):
                box = tight(mask)
                writer.add(domain, address, box, mask[box.slices])
            for name, keys in self.groups.items():
                writer.add_group(name, keys)
        return out.read_bytes()


def tight(mask):
    """Box around the pixels of a mask."""
    if not mask.any():
        return BBox(0, 0, 0, 0)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return BBox(rows[0], cols[0], rows[-1] + 1, cols[-1] + 1)


def random_masks(rng, height, width):
    """Masks that overlap, of a few kinds."""
    masks = []
    for _ in range(rng.integers(6)):
        mask = np.zeros((height, width), bool)
        top, left = int(rng.integers(height)), int(rng.integers(width))
        box = BBox(top, left, int(rng.integers(top + 1, height + 1)), int(rng.integers(left + 1, width + 1)))
        mask[box.slices] = pattern(rng, *box.shape)
        masks.append(mask)
    return masks


def grid(height, width, tile, halo=0):
    """Boxes of tiles."""
    for top in range(0, height, tile[0]):
        for left in range(0, width, tile[1]):
            bottom, right = min(top + tile[0] + halo, height), min(left + tile[1] + halo, width)
            yield BBox(max(top - halo, 0), max(left - halo, 0), bottom, right)


@settings(deadline=None, max_examples=25)
@given(
    seeds,
    st.sampled_from([(7, 11), (3, 200), (200, 2), (16, 16), (200, 200)]),
    st.sampled_from([0, 2]),
    st.sampled_from([2**25, 400, 20]),
    st.booleans(),
    st.sampled_from(["synchronous", "threads"]),
)
def test_bytes_are_those_of_whole_masks(tmp_path_factory, seed, tile, halo, size, index, scheduler):
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("mosaic")
    height, width = (int(n) for n in rng.integers(1, 40, 2))
    folder = Folder(path, random_masks(rng, height, width), {"none": []})
    if folder.masks:
        folder.groups["all"] = list(range(len(folder.masks)))
    for box in grid(height, width, tile, halo):
        folder.tile(box)
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler=scheduler):
        patch.setattr(placing, "RANGE", size)
        found = folder.write(path / "out.iid", index=index)
    assert found == folder.whole(path / "whole.iid", index=index)
    assert iid_dask.open(path / "out.iid").check() == []


@pytest.mark.parametrize("size", [20, 100, 190])
@pytest.mark.parametrize("tile", [(7, 11), (39, 37)])
def test_regions_larger_than_a_range_are_written_in_bands(tmp_path, monkeypatch, size, tile):
    folder = Folder(tmp_path, [np.random.default_rng(seed).random((39, 37)) < 0.6 for seed in (0, 1)])
    for box in grid(39, 37, tile):
        folder.tile(box)
    monkeypatch.setattr(placing, "RANGE", size)
    assert folder.write(tmp_path / "out.iid") == folder.whole(tmp_path / "whole.iid")


SHAPES = {
    "every pixel": lambda i, j: i * 30 + j,
    "full coverage": lambda i, j: (i // 9) * 10 + j // 13,
    "comb": lambda i, j: np.where((j % 2 == 0) | (i == 0), 1, 0) + 0 * i,
    "spiral": lambda i, j: np.minimum(np.minimum(i, 33 - i), np.minimum(j, 29 - j)) % 2 + 0 * i,
    "diagonals": lambda i, j: np.where((i - j) % 7 == 0, 2, 0) + np.where((i + j) % 11 == 0, 1, 0),
    "line on the border": lambda i, j: np.where(i == 14, 1, 0) + np.where(j == 11, 2, 0),
    "ring around tiles": lambda i, j: np.where((i == 6) | (i == 28) | (j == 10) | (j == 22), 1, 0),
    "far apart": lambda i, j: np.where((i % 16 == 3) & (j % 14 == 2), 5, 0),
    "empty": lambda i, j: 0 * (i + j),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_label_images_cut_in_every_way_give_one_file(tmp_path, shape):
    i, j = np.ogrid[:34, :30]
    labels = SHAPES[shape](i, j)
    masks = [labels == label for label in np.unique(labels[labels > 0])]
    wanted = Folder(tmp_path, masks).whole(tmp_path / "whole.iid")
    for tile in [(7, 11), (34, 30), (1, 30), (17, 3)]:
        path = tmp_path / f"{tile}"
        path.mkdir()
        folder = Folder(path, masks)
        for box in grid(34, 30, tile):
            folder.tile(box)
        assert folder.write(path / "out.iid") == wanted


def test_several_entries_of_one_file_are_one_segment(tmp_path):
    mask = np.zeros((20, 20), bool)
    mask[2:18, 3] = mask[2:18, 9] = mask[17, 3:10] = True  # a U: two entries of the upper tile
    folder = Folder(tmp_path, [mask & (np.arange(20) < 6), mask & (np.arange(20) >= 6)])
    folder.tile(BBox(0, 0, 10, 20))
    folder.tile(BBox(10, 0, 20, 20))
    folder.rows = [(tile, key, 0) for tile, key, _ in folder.rows]
    folder.masks = [mask]
    assert folder.write(tmp_path / "out.iid") == folder.whole(tmp_path / "whole.iid")


def test_files_of_other_programs_may_hold_regions_that_share_pixels(tmp_path):
    """Alone they are copied as they are; cut, they are joined."""
    masks = [np.ones((5, 6), bool), np.ones((5, 6), bool)]
    folder = Folder(tmp_path, masks)
    folder.tile(BBox(0, 0, 3, 6))
    folder.tile(BBox(3, 0, 5, 6), [0])
    two = [iid_dask.Region(BBox(0, col, 3, col + 4), np.packbits(np.ones(12, bool)).tobytes()) for col in (0, 2)]
    with IIDWriter(tmp_path / "0.iid") as writer:
        for _ in range(2):
            writer.add(b"", b"", BBox(0, 0, 9, 9), regions=two)
    folder.write(tmp_path / "out.iid", loose=True)
    with iid_dask.open(tmp_path / "out.iid") as found:
        assert [tuple(region.bbox) for region in found[0].regions] == [(0, 0, 5, 6)]
        assert found[0].area == 30
        assert found[0].mask().all()
        assert [tuple(region.bbox) for region in found[1].regions] == [(0, 0, 3, 4), (0, 2, 3, 6)]
        assert tuple(found[1].bbox) == (0, 0, 3, 6)


def test_limits_are_said_before_a_byte_is_written(tmp_path, monkeypatch):
    folder = Folder(tmp_path, [np.ones((3, 3), bool)])
    folder.tile(BBox(0, 0, 3, 3))
    folder.origins[0] = (65_530, 65_533)
    out = tmp_path / "out.iid"
    with pytest.raises(
        iid_dask.IIDLimitError, match=r"out.iid: entry 0 reaches to row 65533, column 65536.*keep the mosaic"
    ):
        folder.write(out)
    folder.origins[0] = (65_532, 65_532)
    folder.write(out)
    before = out.read_bytes()
    monkeypatch.setattr("iid_dask.format.plan.MAX_LENGTH", 60)
    with pytest.raises(iid_dask.IIDLimitError, match=r"out.iid"):
        folder.write(out)
    assert out.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_damage_is_found_and_leaves_the_old_file(tmp_path):
    folder = Folder(tmp_path, [np.ones((30, 30), bool), np.eye(30, dtype=bool)])
    folder.tile(BBox(0, 0, 30, 30))
    out = tmp_path / "out.iid"
    out.write_bytes(b"old")
    data = bytearray((tmp_path / "0.iid").read_bytes())
    with iid_dask.open(tmp_path / "0.iid") as reader:
        data[int(reader.header["segments_offset"]) + int(reader.columns.region_bits[1]) + 3] ^= 8
    (tmp_path / "0.iid").write_bytes(data)
    with pytest.raises(iid_dask.IIDFormatError, match=r"0.iid: segments, entry 1"):
        folder.write(out)
    folder.rows.append((0, 7, 1))
    with pytest.raises(iid_dask.IIDFormatError, match=r"0.iid: lut, entry 7: found no such entry"):
        folder.write(out)
    assert out.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


def test_a_file_replaced_meanwhile_is_refused(tmp_path, monkeypatch):
    folder = Folder(tmp_path, [np.ones((3, 3), bool)])
    folder.tile(BBox(0, 0, 3, 3))
    tile, plan = tmp_path / "0.iid", consolidating.plan_consolidated

    def replaced(*arguments, **options):
        found = plan(*arguments, **options)
        os.utime(tile, ns=(1, 1))
        return found

    monkeypatch.setattr(consolidating, "plan_consolidated", replaced)
    with pytest.raises(iid_dask.IIDChangedError, match=r"0.iid: changed while the mosaic was consolidated"):
        folder.write(tmp_path / "out.iid")
    assert not list(tmp_path.glob("*out.iid*"))


def test_tasks_may_run_twice_and_too_late(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    folder = Folder(tmp_path, random_masks(rng, 30, 30))
    for box in grid(30, 30, (7, 11)):
        folder.tile(box)
    monkeypatch.setattr(placing, "RANGE", 30)
    calls = []
    monkeypatch.setattr("iid_dask.mosaic.consolidate.write_range", lambda *task: calls.append(task) or twice(*task))
    found = folder.write(tmp_path / "out.iid")
    assert len(calls) > 2
    assert found == folder.whole(tmp_path / "whole.iid")
    with pytest.raises(FileNotFoundError, match=r"out.iid"):
        ranges.write_range(*calls[0])
    assert (tmp_path / "out.iid").read_bytes() == found


def test_tasks_load_no_tables():
    """A worker's memory is for pixels."""
    heavy = "'xarray', 'pandas', 'pyarrow', 'zarr'"
    code = f"import sys, iid_dask.mosaic.ranges; print([name for name in ({heavy}) if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def large(label):
    """Groups of a label."""
    return ["large"] if label == 7 else []


def test_a_mosaic_becomes_a_file_whatever_its_tiles(tmp_path):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, (60, 50)).astype(np.uint16) * 500
    labels[20:40, 10:45] = 7
    found = []
    for tile in ((7, 11), (64, 64)):
        folder = tmp_path / f"{tile}"
        iid_dask.to_mosaic(labels, folder, tile=tile, domain=b"cell", groups=large, progress=False).close()
        consolidating.consolidate(folder, tmp_path / "out.iid")
        found.append((tmp_path / "out.iid").read_bytes())
    with IIDWriter(tmp_path / "whole.iid", metadata={"image": {"height": 60, "width": 50}}) as writer:
        for label in (7, 500, 1000):
            box = tight(labels == label)
            writer.add(b"cell", b"%d" % label, box, (labels == label)[box.slices], groups=large(label))
    assert found == [(tmp_path / "whole.iid").read_bytes()] * 2


def test_a_mosaic_beyond_the_format_is_refused(tmp_path):
    iid_dask.prepare(tmp_path / "m", (70_000, 9), tile=60_000)
    for row, height in ((0, 60_000), (60_000, 10_000)):
        iid_dask.write_tile(tmp_path / "m", np.zeros((height, 9), np.uint8), (row, 0))
    with iid_dask.finish(tmp_path / "m", progress=False) as mosaic:
        expected = "out.iid: a mosaic of 70000 x 9 pixels: a file holds at most 65535 a side; keep the mosaic"
        with pytest.raises(iid_dask.IIDLimitError, match=expected):
            mosaic.to_iid(tmp_path / "out.iid")


def twice(*task):
    """Run a task a second time."""
    ranges.write_range(*task)
    return ranges.write_range(*task)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    folder = Folder(tmp_path, [np.ones((3, 3), bool)])
    folder.tile(BBox(0, 0, 3, 3))
    out = tmp_path / "out.iid"
    out.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target.os, "lseek", full)
    with pytest.raises(OSError, match=r"No space left on device: .*out\.iid"):
        folder.write(out)
    assert out.read_bytes() == b"old"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("index", [True, False])
def test_the_parts_are_told_how_many_bytes_the_file_has(tmp_path, monkeypatch, index):
    folder = Folder(tmp_path, [np.ones((5, 5), bool), np.zeros((5, 5), bool)])
    folder.tile(BBox(0, 0, 3, 5))
    folder.tile(BBox(3, 0, 5, 5))
    told, parts = [], consolidating.atomic_parts

    def telling(path, nbytes, options):
        told.append(nbytes)
        return parts(path, nbytes, options)

    monkeypatch.setattr(consolidating, "atomic_parts", telling)
    written = folder.write(tmp_path / "out.iid", index=index)
    assert told == [len(written)]


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path):
    out, left = tmp_path / "out.iid", tmp_path / ".out.iid.0123abcd.tmp"
    others = [tmp_path / name for name in (".other.iid.0123abcd.tmp", ".out.iid.notahexa.tmp", "out.iid.0123abcd.tmp")]
    for path in (left, *others):
        path.write_bytes(b"half")
    with target.atomic_parts(out, 3) as mine:
        assert not left.exists()
        with target.atomic_parts(out, 3):
            assert os.path.exists(mine.path)
    assert out.read_bytes() == bytes(3)
    assert sorted(tmp_path.iterdir()) == sorted([out, *others])


def test_writing_goes_on_after_a_short_write(tmp_path, monkeypatch):
    path, write = tmp_path / "file", os.write
    path.write_bytes(bytes(20))
    monkeypatch.setattr(target.os, "write", lambda number, data: write(number, data[:3]))
    target.put(str(path), 4, memoryview(b"0123456789"))
    assert path.read_bytes() == bytes(4) + b"0123456789" + bytes(6)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_checksums_combine(first, second):
    assert combine_crc32(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_checksums_combine_over_a_gibibyte():
    crc = 0
    for _ in range(64):
        crc = zlib.crc32(bytes(2**20), crc)
    assert combine_crc32(zlib.crc32(b"a"), crc, 2**26) == zlib.crc32(bytes(2**26), zlib.crc32(b"a"))
