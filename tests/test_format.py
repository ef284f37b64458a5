"""Bytes to values and back: golden bytes, the reference's files, any masks under hypothesis, every kind of source."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import fsspec
import make_malformed as by_hand
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from reading import DATA, everything

import iid_dask
from iid_dask.bbox import BBox
from iid_dask.format.coalescing import MAX_WASTE
from iid_dask.format.source import MAX_RANGE, BytesSource, LocalSource, RemoteSource, coalesce, gather

FILES = ("corner", "edge", "empty", "nuclei", "us")


# --- golden bytes -----------------------------------------------------------------------------------------------

GOLDEN = bytes.fromhex(
    # header: version, rformat, then offset and length of lut, iids, meta, groups, segments
    "00000000 00000000  30000000 14000000  44000000 0f000000  53000000 02000000  55000000 3c000000"
    "  91000000 39000000"
    # lut: key, name at 0, 15 bytes, segment at 0, 57 bytes
    " 00000000 00000000 0f000000 00000000 39000000"
    # name: key, 1 byte of domain, 2 of address
    " 00000000 01000000 02000000 64 2dff"
)


def test_golden_bytes_of_one_entry(tmp_path: Path) -> None:
    # A ring with a pixel inside it, touching neither, and a second piece: three regions by their first pixel.
    mask = np.array(
        [
            [1, 1, 1, 1, 1, 0, 0],
            [1, 0, 0, 0, 1, 0, 1],
            [1, 0, 1, 0, 1, 0, 0],
            [1, 0, 0, 0, 1, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
        ]
    )
    groups = b'[{"name": "gr\\u00f6n", "offset": 0, "length": 4}]'
    segment = (
        b"\0\0\0\0"  # key
        + b"\x02\x01\x03\0\x07\x01\x0a\0"  # box 258, 3, 263, 10
        + b"\x12\0\0\0"  # 18 pixels
        + b"\x10\0\0\0\x02\x01\x03\0\x07\x01\x08\0"  # 16 bytes, box 258, 3, 263, 8
        + bytes([0b11111_100, 0b01_10001_1, 0b0001_1111, 0b1_0000000])
        + b"\x0d\0\0\0\x03\x01\x09\0\x04\x01\x0a\0"  # 13 bytes, box 259, 9, 260, 10
        + b"\x80"
        + b"\x0d\0\0\0\x04\x01\x05\0\x05\x01\x06\0"  # 13 bytes, box 260, 5, 261, 6
        + b"\x80"
    )
    golden = bytearray(GOLDEN + b"{}" + len(groups).to_bytes(4, "little") + groups + bytes(4) + segment)
    places = (len(groups) + 8, 85 + len(groups) + 8, len(segment))
    golden[36:40], golden[40:44], golden[44:48] = (n.to_bytes(4, "little") for n in places)
    golden[64:68] = len(segment).to_bytes(4, "little")
    path = tmp_path / "one.iid"
    with iid_dask.IIDWriter(path, index=False) as writer:
        writer.add(b"d", b"-\xff", (258, 3, 263, 10), mask, groups=["grön"])
    assert path.read_bytes() == bytes(golden)


def test_golden_bytes_of_several_entries_and_index(tmp_path: Path) -> None:
    path = tmp_path / "tiny.iid"
    for index, golden in ((False, by_hand.BASE), (True, by_hand.INDEXED)):
        with iid_dask.IIDWriter(path, metadata={"image": {"height": 10, "width": 10}}, index=index) as writer:
            writer.add(b"cell", b"1", (0, 0, 2, 3), np.array([[1, 1, 0], [0, 1, 1]]), groups=["a"])
            mask = np.zeros((4, 5), float)
            mask[0, 0] = mask[2, 2:] = mask[3, 3] = 0.5
            writer.add(b"cell", b"2", (4, 4, 8, 9), mask)
            writer.add(b"cell", b"3", (1, 1, 1, 1), np.zeros((0, 0)))
            writer.add(b"", b"\xff", (2, 0, 3, 8), np.ones((1, 8)), groups="b")
            writer.add_group("a", [2, 0, 2])
        assert path.read_bytes() == golden
    with iid_dask.open(path) as reader:
        assert reader.has_index
        found = everything(reader)
    with iid_dask.open(by_hand.BASE) as reader:
        assert not reader.has_index
        assert everything(reader) == found


def test_adding_an_index_gives_what_writing_gives(tmp_path: Path) -> None:
    path, out = tmp_path / "tiny.iid", tmp_path / "out.iid"
    path.write_bytes(by_hand.BASE)
    size = iid_dask.add_index(path, out)
    assert out.read_bytes() == by_hand.INDEXED
    assert size == len(by_hand.INDEXED) - len(by_hand.BASE)
    assert path.read_bytes() == by_hand.BASE
    for data in (by_hand.BASE, by_hand.INDEXED, by_hand.unusual()["index-rows-damaged"][1]):
        path.write_bytes(data)
        iid_dask.add_index(path)
        assert path.read_bytes() == by_hand.INDEXED


# --- the reference's files --------------------------------------------------------------------------------------


def reference(name: str) -> bytes:
    """A file that the reference wrote, with the keys of every group ascending."""
    data = (DATA / f"{name}.iid").read_bytes()
    if name != "edge":
        return data
    keys = by_hand.u4(8, 7)
    assert data.count(keys) == 1
    return data.replace(keys, keys[4:] + keys[:4])


@pytest.mark.parametrize("name", FILES)
def test_copies_are_identical_to_the_reference(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.iid"
    with iid_dask.open(DATA / f"{name}.iid") as reader:
        with iid_dask.IIDWriter(out, metadata=reader.metadata, index=False) as writer:
            writer.copy(reader)
        assert out.read_bytes() == reference(name)
        with iid_dask.IIDWriter(out, metadata=reader.metadata) as writer:
            writer.copy(reader)
        assert out.read_bytes().startswith(reference(name))
        with iid_dask.open(out) as indexed:
            assert indexed.has_index
            assert everything(indexed) == everything(reader)
            assert indexed.check() == []


@pytest.mark.parametrize("name", ["edge", "empty", "nuclei", "us"])
def test_masks_give_the_reference_s_bytes(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.iid"
    with (
        iid_dask.open(DATA / f"{name}.iid") as reader,
        iid_dask.IIDWriter(out, metadata=reader.metadata, index=False) as writer,
    ):
        for group in reader.groups:
            writer.add_group(group)
        for entry in reader.values():
            writer.add(entry.domain, entry.address, entry.bbox, entry.mask(), groups=entry.groups)
    assert out.read_bytes() == reference(name)


@pytest.mark.parametrize("name", ["edge", "nuclei", "us"])
@pytest.mark.parametrize("index", [False, True])
def test_every_field_is_what_the_reference_reads(name: str, index: bool, tmp_path: Path) -> None:
    expected = json.loads((DATA / f"{name}.expected.json").read_text())
    path = DATA / f"{name}.iid"
    if index:
        iid_dask.add_index(path, tmp_path / "indexed.iid")
        path = tmp_path / "indexed.iid"
    with iid_dask.open(path) as reader:
        assert reader.has_index == index
        assert reader.metadata == expected["metadata"]
        groups = {name: sorted(keys) for name, keys in expected["groups"].items()}
        assert {name: keys.tolist() for name, keys in reader.groups.items()} == groups
        assert list(reader.groups) == list(groups)
        found = [
            {
                "key": key,
                "domain": entry.domain.hex(),
                "address": entry.address.hex(),
                "bbox": list(entry.bbox),
                "area": entry.area,
                "regions": [list(region.bbox) for region in entry.regions],
            }
            for key, entry in reader.items()
        ]
        assert found == expected["entries"]
        assert list(reader) == list(range(len(found)))
        assert list(reader.shape) == expected["shape"]


def test_mask_is_the_union_of_its_regions() -> None:
    with iid_dask.open(DATA / "us.iid") as reader:
        for key in range(0, len(reader), 40):
            entry = reader[key]
            image = np.zeros((700, 1100), bool)
            for region in entry.regions:
                image[region.bbox.slices] |= region.mask()
            assert np.array_equal(entry.mask(), image[entry.bbox.slices])
            assert entry.mask().sum() == entry.area


# --- write, then read -------------------------------------------------------------------------------------------


def flood(mask: np.ndarray, bbox: BBox) -> list[tuple[BBox, np.ndarray]]:
    """Slow twin of `iid_dask.regions_of`: a flood fill from each pixel in raster order."""
    left = mask.astype(bool)
    found = []
    for row, col in np.argwhere(left).tolist():
        if not left[row, col]:
            continue
        piece, front = np.zeros_like(left), [(row, col)]
        while front:
            i, j = front.pop()
            if 0 <= i < left.shape[0] and 0 <= j < left.shape[1] and left[i, j]:
                left[i, j], piece[i, j] = False, True
                front += [(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)]
        (r0, c0), (r1, c1) = np.argwhere(piece).min(axis=0), np.argwhere(piece).max(axis=0) + 1
        top, start = bbox.min_row, bbox.min_col
        found.append((BBox(r0 + top, c0 + start, r1 + top, c1 + start), piece[r0:r1, c0:c1]))
    return found


masks = st.one_of(
    arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12)),
    arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(60, 70)), elements=st.booleans(), fill=st.just(True)),
    arrays.arrays(np.int16, st.tuples(st.integers(1, 6), st.integers(1, 30))),
)
entries = st.lists(
    st.tuples(
        st.binary(max_size=5),
        st.binary(max_size=5),
        st.tuples(st.integers(0, 65_400), st.integers(0, 65_400)),
        masks,
        st.lists(st.sampled_from(["", "a", "樹", 'q"\\']), max_size=3),
    ),
    max_size=5,
)
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
values: Any = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(given_entries=entries, metadata=st.dictionaries(st.text(max_size=4), values, max_size=3), index=st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, given_entries: Any, metadata: dict[str, Any], index: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "hypothesis.iid"
    groups: dict[str, list[int]] = {}
    with iid_dask.IIDWriter(path, metadata=metadata, index=index) as writer:
        for key, (domain, address, (row, col), mask, names) in enumerate(given_entries):
            box = (row, col, row + mask.shape[0], col + mask.shape[1])
            assert writer.add(domain, address, box, mask, groups=names) == key
            for name in names:
                groups.setdefault(name, [])
                groups[name] = sorted({*groups[name], key})
    with iid_dask.open(path) as reader:
        assert reader.has_index == index
        assert list(reader) == list(range(len(given_entries)))
        assert reader.metadata == metadata
        assert {name: keys.tolist() for name, keys in reader.groups.items()} == groups
        assert reader.names() == ([e[0] for e in given_entries], [e[1] for e in given_entries])
        for entry, (domain, address, (row, col), mask, names) in zip(reader.values(), given_entries, strict=True):
            assert (entry.domain, entry.address) == (domain, address)
            assert tuple(entry.bbox) == (row, col, row + mask.shape[0], col + mask.shape[1])
            assert entry.area == np.count_nonzero(mask)
            assert set(entry.groups) == set(names)
            assert entry.mask().dtype == bool
            assert np.array_equal(entry.mask(), mask != 0)
            wanted = flood(mask, entry.bbox)
            assert [region.bbox for region in entry.regions] == [box for box, _ in wanted]
            for region, (_, piece) in zip(entry.regions, wanted, strict=True):
                assert np.array_equal(region.mask(), piece)
                assert region.bits == np.packbits(piece).tobytes()
        assert reader.check() == []


def test_tall_masks_are_unpacked_in_bands(tmp_path: Path) -> None:
    # Widths that no band of rows divides into whole bytes by chance.
    rng = np.random.default_rng(2)
    for width in (17, 1001, 65_535):
        mask = rng.random((2**20 // width + 21, width)) < 0.5
        mask[:, 0] = mask[0] = True
        path = tmp_path / "tall.iid"
        with iid_dask.IIDWriter(path) as writer:
            writer.add(b"", b"", (0, 0, *mask.shape), mask)
        with iid_dask.open(path) as reader:
            assert np.array_equal(reader[0].mask(), mask)


def test_mask_beyond_the_limit_names_the_way_out() -> None:
    with (
        iid_dask.open(DATA / "us.iid", limits=iid_dask.Limits(max_decoded_bytes=1000)) as reader,
        pytest.raises(iid_dask.IIDLimitError, match=r"entry 0: its box of .* more than limits\.max_dec"),
    ):
        reader[0].mask()


def test_missing_keys_are_named() -> None:
    with iid_dask.open(DATA / "nuclei.iid") as reader:
        for key in (125, -1, 2**40, "1", 1.0, True):
            with pytest.raises(KeyError, match="keys are integers from 0 to 124, 125 in all"):
                reader[key]
        assert np.uint32(3) in reader
        assert reader[np.int64(3)].key == 3
    with iid_dask.open(DATA / "empty.iid") as reader, pytest.raises(KeyError, match="the file has no entries"):
        reader[0]


# --- where bytes come from --------------------------------------------------------------------------------------


@pytest.fixture
def remote() -> str:
    """Put a file with an index into fsspec's memory."""
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/bucket/tiny.iid", by_hand.INDEXED)
    return "memory://bucket/tiny.iid"


def test_every_kind_of_source_gives_the_same(tmp_path: Path, remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.iid"
    path.write_bytes(by_hand.INDEXED)
    with iid_dask.open(path) as reader:
        wanted = everything(reader)
        assert isinstance(reader.source, LocalSource)
    data = by_hand.INDEXED
    monkeypatch.setenv("HOME", str(tmp_path))
    targets = [str(path), os.fsencode(path).decode(), f"file://{path}", "~/tiny.iid", remote, data, bytearray(data)]
    for target in [*targets, memoryview(data), io.BytesIO(data)]:
        with iid_dask.open(target) as reader:
            assert everything(reader) == wanted
    with path.open("rb") as file:
        file.seek(7)
        with iid_dask.open(file) as reader:
            assert everything(reader) == wanted
            assert isinstance(reader.source, LocalSource)
        assert file.tell() == 7
    with fsspec.open(remote) as file, iid_dask.open(file) as reader:
        assert everything(reader) == wanted
        assert isinstance(reader.source, RemoteSource)
    with fsspec.open(str(path)) as file, iid_dask.open(file) as reader:
        assert everything(reader) == wanted
        assert isinstance(reader.source, LocalSource)
    options = {"simplecache": {"cache_storage": str(tmp_path)}}
    with iid_dask.open(f"simplecache::{remote}", storage_options=options) as reader:
        assert everything(reader) == wanted


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="from int: expected a path, a URL, bytes or a binary file object"):
        iid_dask.open(3)
    with pytest.raises(TypeError, match="open it in binary mode"):
        iid_dask.open(io.StringIO("text"))
    with pytest.raises(FileNotFoundError):
        iid_dask.open(tmp_path / "no.iid")
    with pytest.raises(IsADirectoryError) as caught:
        iid_dask.open(tmp_path)
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError):
        iid_dask.open("memory://bucket/no.iid")


def test_remote_files_are_read_with_few_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "us.iid"
    iid_dask.add_index(DATA / "us.iid", path)
    fsspec.filesystem("memory").pipe_file("/bucket/us.iid", path.read_bytes())
    ranges: list[tuple[int, int]] = []
    real = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        assert end > start, "a request for no bytes"
        ranges.append((start, end))
        return real(self, path, start, end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with iid_dask.open("memory://bucket/us.iid") as reader:
        _ = reader.groups, reader.metadata
        assert len(ranges) <= 3
        _ = reader.columns
        assert len(ranges) <= 4
        with iid_dask.open(path) as local:
            assert np.array_equal(local.columns.region_bits, reader.columns.region_bits)
            assert everything(reader) == everything(local)
    for name, n_requests in (("empty", 1), ("edge", 2)):
        fsspec.filesystem("memory").pipe_file("/bucket/small.iid", (DATA / f"{name}.iid").read_bytes())
        ranges.clear()
        with iid_dask.open("memory://bucket/small.iid") as reader:
            _ = reader.columns
        assert len(ranges) == n_requests


def test_sections_without_bytes_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # A server answers a range of no bytes with an error, or with the whole object.
    data = by_hand.replace(by_hand.TINY, groups=b"").bytes()
    data = by_hand.patch(32, by_hand.u4(100_000, 0), data.ljust(500_000, b"\0"))
    fsspec.filesystem("memory").pipe_file("/bucket/gap.iid", data)
    real = MemoryFileSystem.cat_file

    def cat_file(self: Any, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        assert end > start
        return real(self, path, start, end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with iid_dask.open("memory://bucket/gap.iid") as reader:
        assert reader.groups == {}
        assert reader.check() == []


def test_remote_object_that_is_replaced(remote: str) -> None:
    reader = iid_dask.open(remote)
    again = pickle.dumps(reader)
    fsspec.filesystem("memory").pipe_file("/bucket/tiny.iid", by_hand.BASE)
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened; open it again"):
        reader.names()
    reader.close()
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
        len(pickle.loads(again))


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite"])
def test_file_that_is_written_to_while_open(change: str, tmp_path: Path) -> None:
    path = tmp_path / "us.iid"
    path.write_bytes((DATA / "us.iid").read_bytes())
    with iid_dask.open(path) as reader:
        again = pickle.dumps(reader)
        if change == "append":
            with path.open("ab") as file:
                file.write(b"!")
        elif change == "truncate":
            os.truncate(path, 100_000)
        else:
            path.write_bytes((DATA / "us.iid").read_bytes())
            os.utime(path, ns=(1, 1))
        for read in (lambda: reader.columns, reader.names, reader[3000].mask, lambda: len(pickle.loads(again))):
            with pytest.raises(iid_dask.IIDChangedError, match=r"us\.iid: changed since opened"):
                read()


def test_segment_that_is_written_to_while_open(tmp_path: Path) -> None:
    path = tmp_path / "tiny.iid"
    path.write_bytes(by_hand.INDEXED)
    with iid_dask.open(path) as reader:
        _ = reader.columns
        os.utime(path, ns=(1, 1))
        with pytest.raises(iid_dask.IIDChangedError, match=r"tiny\.iid: changed since opened"):
            reader[0].mask()


def test_file_that_is_replaced_while_open(tmp_path: Path) -> None:
    path = tmp_path / "tiny.iid"
    path.write_bytes(by_hand.BASE)
    with iid_dask.open(path) as reader, iid_dask.open(by_hand.BASE) as plain:
        again = pickle.dumps(reader)
        with iid_dask.IIDWriter(path) as writer:
            writer.add(b"", b"", (0, 0, 1, 1), np.ones((1, 1)))
        # The open file is the old one; a pickle names the path, where now the new one stands.
        assert everything(reader) == everything(plain)
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
        len(pickle.loads(again))


def test_reading_opens_files_for_reading_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.iid"
    path.write_bytes(by_hand.INDEXED)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    before = path.stat()
    opened: list[int] = []
    real = os.open

    def watched(name: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if name == str(path):
            opened.append(flags)
        return real(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", watched)
    with iid_dask.open(path) as reader:
        everything(reader)
        assert reader.check() == []
    assert opened
    assert all(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) == 0 for flags in opened)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_mode) == (before.st_mtime_ns, before.st_size, before.st_mode)
    tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == ["tiny.iid"]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "tiny.iid"
    path.write_bytes(by_hand.INDEXED)
    before = open_descriptors()
    for _ in range(50):
        with iid_dask.open(path) as reader:
            everything(reader)
            pickle.loads(pickle.dumps(reader)).close()
        for name in ("malformed/lut-key-twice", "malformed/meta-nan", "malformed/file-1-byte"):
            with pytest.raises(iid_dask.IIDFormatError):
                iid_dask.open(DATA / f"{name}.iid")
        iid_dask.add_index(path)
    assert open_descriptors() == before
    with iid_dask.open(path) as reader:
        names = reader.names()
    # An array made before is computed now: the file is opened again.
    assert reader.names() == names
    reader.close()
    assert open_descriptors() == before


def test_pickles_are_small_and_give_the_same(tmp_path: Path, remote: str) -> None:
    iid_dask.add_index(DATA / "us.iid", tmp_path / "us.iid")
    for target in (DATA / "us.iid", tmp_path / "us.iid", remote):
        with iid_dask.open(target) as reader:
            _ = reader.columns, reader.names()
            data = pickle.dumps(reader)
            assert len(data) <= 1024
            again = pickle.loads(data)
            assert again == reader
            assert hash(again) == hash(reader)
            assert pickle.loads(data).columns is again.columns
            for field in ("boxes", "areas", "first_region", "region_boxes", "region_bits"):
                assert np.array_equal(getattr(again.columns, field), getattr(reader.columns, field)), field
            again.close()
    reader = iid_dask.open(by_hand.BASE)
    assert everything(pickle.loads(pickle.dumps(reader))) == everything(reader)


def test_errors_pickle() -> None:
    with pytest.raises(iid_dask.IIDFormatError) as caught:
        iid_dask.open(b"short")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (
        str(again)
        == str(caught.value)
        == ("<bytes>: file, byte 0: found 5 bytes, expected at least the 48 bytes of a header")
    )


# --- few reads for many ranges ----------------------------------------------------------------------------------

spans = st.lists(
    st.tuples(
        st.integers(0, 400) | st.integers(MAX_RANGE - 50, MAX_RANGE + 50), st.integers(0, 60) | st.just(MAX_RANGE)
    ),
    max_size=12,
)


@given(spans=spans, gap=st.integers(0, 40))
@settings(max_examples=400, deadline=None)
def test_coalesced_reads_cover_every_range(spans: list[tuple[int, int]], gap: int) -> None:
    offsets, lengths = (np.array([span[i] for span in spans], np.int64) for i in (0, 1))
    starts, sizes, places = coalesce(offsets, lengths, gap)

    # The twin: ranges in order, joined while the next begins within the gap, and not where a block ends between.
    reads: list[list[int]] = []
    last = 0
    for offset, length in sorted(spans, key=lambda span: span[0]):
        new_block = reads and offset // MAX_RANGE != last // MAX_RANGE and offset >= reads[-1][1]
        if not reads or offset > reads[-1][1] + gap or new_block:
            reads.append([offset, offset + length])
        reads[-1][1] = max(reads[-1][1], offset + length)
        last = offset
    assert np.column_stack((starts, starts + sizes)).tolist() == reads

    begins = np.cumsum(sizes) - sizes
    for (offset, length), place in zip(spans, places.tolist(), strict=True):
        read = int(np.searchsorted(begins, place, side="right")) - 1
        while sizes[read] == 0 and length:
            read += 1
        inside = place - int(begins[read])
        if length:
            assert int(starts[read]) + inside == offset
            assert inside + length <= int(sizes[read])


def test_ranges_far_apart_do_not_read_all_between_them() -> None:
    near, far = np.arange(5000) * 1000, 10**8 + np.arange(5000) * 200_000
    offsets = np.random.default_rng(1).permutation(np.concatenate([near, far]))
    lengths = np.full(len(offsets), 100)
    starts, sizes, _ = coalesce(offsets, lengths, 2**18)
    assert int(sizes.sum()) <= int(lengths.sum()) + MAX_WASTE
    assert len(starts) <= 5000 + 5  # the near ones are one read in each of the first blocks
    starts, sizes, _ = coalesce(far, np.full(len(far), 150_000), 2**18)
    assert int(sizes.sum()) <= 2 * 5000 * 150_000
    assert len(starts) <= -(-int(sizes.sum()) // MAX_RANGE) + 2


@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 6)), max_size=10), st.integers(0, 20), st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_gathered_bytes_are_the_ranges(spans: list[tuple[int, int]], gap: int, spare: int) -> None:
    source = BytesSource(bytes(range(256)))
    source.gap = gap
    offsets, lengths = (np.array([span[i] for span in spans], np.int64) for i in (0, 1))
    data, places = gather(source, offsets, lengths, spare=spare)
    for offset, length, place in zip(offsets, lengths, places, strict=True):
        assert data[place : place + length].tolist() == list(range(offset, offset + length))
    assert not data[len(data) - spare :].any()
