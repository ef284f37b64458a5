"""The entry table against entries read one by one, in one file and in many."""

from __future__ import annotations

import io
import json
import operator
import os
import pickle
import shutil
import threading
import warnings
from contextlib import contextmanager
from itertools import pairwise

import dask
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import CountingSource, random_bytes, random_file, random_reader, seeds

import iid_dask
from iid_dask import (
    BBox,
    IIDChangedError,
    IIDFormatError,
    IIDLimitError,
    IIDReader,
    IIDWarning,
    IIDWriter,
    Limits,
    Region,
    to_text,
)
from iid_dask.cutting import split
from iid_dask.entries import look_for, read_entries, read_files, table
from iid_dask.entries.files import pack
from iid_dask.entries.schema import DEFAULT, KINDS
from iid_dask.format.layout import INDEX_TRAILER
from iid_dask.format.source import LocalSource, RemoteSource
from iid_dask.once import Once

SAMPLES = ("nuclei", "us", "edge", "empty")
BYTES = pd.ArrowDtype(pa.large_binary())
SIDES = ["min_row", "min_col", "max_row", "max_col"]


def twin(reader, keys=None, names="bytes", masks=True):
    """Rows of the table, entry by entry."""
    rows = []
    for key in list(reader) if keys is None else keys:
        entry = reader[key]
        row = {"file": reader.name, "key": key, "domain": entry.domain, "address": entry.address}
        if names == "text":
            row |= {"domain": to_text(entry.domain), "address": to_text(entry.address)}
        row |= dict(zip(SIDES, entry.bbox, strict=True))
        row |= {"area": entry.area, "regions": len(entry.regions), "groups": json.dumps(list(entry.groups))}
        if masks:
            row["mask"] = np.packbits(entry.mask()).tobytes()
        rows.append(row)
    return rows


def rows_of(df):
    return [{name: plain(value) for name, value in row.items()} for row in df.to_dict("records")]


def plain(value):
    return None if value is None or value is pd.NA else value


def bytes_by_section(reader):
    """Offsets and ends of a file's sections."""
    return {
        name: (int(reader.header[f"{name}_offset"]), int(reader.header[f"{name}_length"]))
        for name in ("lut", "iids", "meta", "groups", "segments")
    }


@contextmanager
def reads(monkeypatch):
    """Collect what is read of local files, none of which is open yet: (path, offset, length)."""
    found, lock = [], threading.Lock()
    read, read_many = LocalSource.read, LocalSource.read_many

    def noted(self, offset, length):
        with lock:
            found.append((self.name, int(offset), int(length)))
        return read(self, offset, length)

    def noted_many(self, offsets, lengths, out):
        with lock:
            found.extend((self.name, int(o), int(n)) for o, n in zip(offsets, lengths, strict=True))
        read_many(self, offsets, lengths, out)

    with monkeypatch.context() as patch:
        patch.setattr("iid_dask.format.reopening._readers", Once(8))  # what was read before is not read again
        patch.setattr(LocalSource, "read", noted)
        patch.setattr(LocalSource, "read_many", noted_many)
        yield found


def bytes_of(found, reader, section):
    """How many of the bytes of a section were read beside those of opening: the first, and where an index would be."""
    offset, length = bytes_by_section(reader)[section]
    opening = (0, reader.source.size - INDEX_TRAILER.itemsize)
    return sum(max(0, min(o + n, offset + length) - max(o, offset)) for _, o, n in found if o not in opening)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A file of 2,000 entries whose sections are longer than the first read; groups "ten" and "odd"."""
    path = tmp_path_factory.mktemp("sparse") / "sparse.iid"
    rng = np.random.default_rng(1)
    with IIDWriter(path, metadata={"image": {"height": 3000, "width": 3000}}, index=False) as writer:
        for key in range(2000):
            groups = [name for name, every in (("ten", 200), ("odd", 2)) if key % every == every - 1]
            row, col = divmod(key, 50)
            box = BBox(row * 60, col * 60, row * 60 + 50, col * 60 + 50)
            writer.add(b"domain" * 10, b"address %d" % key, box, rng.random((50, 50)) < 0.5, groups=groups)
    return path


# --- one reader -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seeds, st.sampled_from(["bytes", "text"]))
def test_the_table_says_what_the_entries_say(seed, names):
    reader = random_reader(seed)
    df = table(reader, columns=list(KINDS), names=names)
    assert rows_of(df) == twin(reader, names=names)
    assert df.index.tolist() == list(reader)


@pytest.mark.parametrize("indexes", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_the_table_of_a_sample_says_what_its_entries_say(name, indexes, indexed):
    with iid_dask.open(indexed[name] if indexes else DATA / f"{name}.iid") as reader:
        assert rows_of(table(reader, columns=list(KINDS))) == twin(reader)


def test_masks_of_the_largest_boxes_are_not_read_for_other_columns():
    with iid_dask.open(DATA / "corner.iid") as reader:
        assert rows_of(table(reader)) == twin(reader, masks=False)


def test_columns_have_their_types_in_every_table():
    expected = {"file": "string", "domain": BYTES, "address": BYTES, "groups": "string", "mask": BYTES}
    for name in ("edge", "empty"):
        with iid_dask.open(DATA / f"{name}.iid") as reader:
            df = table(reader, columns=list(KINDS))
        assert {column: kind for column, kind in df.dtypes.items() if kind != np.uint32} == expected
        assert df.index.name == "entry"
        assert df.index.dtype == np.int64


def test_all_columns_but_the_mask_come_unasked():
    with iid_dask.open(iid_dask.sample("us")) as reader:
        assert tuple(table(reader).columns) == DEFAULT == tuple(name for name in KINDS if name != "mask")
        assert list(table(reader, columns=["area", "key"]).columns) == ["area", "key"]
        assert table(reader, columns=[]).shape == (3155, 0)


@settings(deadline=None, max_examples=40)
@given(seeds, st.data())
def test_rows_come_in_the_order_of_the_keys_asked_for(seed, data):
    reader = random_reader(seed)
    keys = data.draw(st.lists(st.sampled_from(list(reader)), max_size=9)) if len(reader) else []
    assert rows_of(table(reader, keys, columns=list(KINDS))) == twin(reader, keys)
    assert table(reader, np.array(keys, np.uint16)).index.tolist() == keys


def test_one_key_is_a_table_of_one_row():
    with iid_dask.open(iid_dask.sample("us")) as reader:
        assert table(reader, 7)["key"].tolist() == [7]
        assert table(reader, range(3, 5))["key"].tolist() == [3, 4]


@pytest.mark.parametrize("key", [3155, -1, 2**40])
def test_an_unknown_key_is_refused(key):
    with (
        iid_dask.open(iid_dask.sample("us")) as reader,
        pytest.raises(KeyError, match=f"no entry {key}; keys are integers from 0 to 3154"),
    ):
        table(reader, [0, key])


def test_a_removed_entry_is_no_key(tmp_path):
    with IIDWriter(tmp_path / "a.iid") as writer:
        writer.add_removed()
        writer.add(b"d", b"a", BBox(0, 0, 2, 2), np.ones((2, 2)))
    with iid_dask.open(tmp_path / "a.iid") as reader:
        assert table(reader).index.tolist() == [1]
        with pytest.raises(KeyError, match="no entry 0"):
            table(reader, [0])


@pytest.mark.parametrize("keys", [[1.5], ["1"], [[1]], [True], [None]])
def test_keys_are_integers(keys):
    with (
        iid_dask.open(iid_dask.sample("us")) as reader,
        pytest.raises(TypeError, match="expected an integer or several"),
    ):
        table(reader, keys)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"columns": ["area", "Area"]}, ValueError, "no column 'Area'; there is: file, key, domain"),
        ({"columns": ["area", "area"]}, ValueError, "'area' twice"),
        ({"columns": "area"}, TypeError, "columns = 'area': expected a list"),
        ({"columns": 3}, TypeError, "columns = 3: expected a list"),
        ({"names": "utf-8"}, ValueError, "names = 'utf-8': expected 'bytes' or 'text'"),
    ],
)
def test_unknown_columns_are_refused(options, error, text):
    with iid_dask.open(iid_dask.sample("us")) as reader, pytest.raises(error, match=text):
        table(reader, **options)
    with pytest.raises(error, match=text):
        read_entries(iid_dask.sample("us"), **options)


def test_regions_that_share_pixels_make_one_mask(tmp_path):
    box = BBox(3, 5, 14, 24)
    rng = np.random.default_rng(2)
    pieces = []
    for top, left, bottom, right in ((3, 5, 9, 17), (6, 7, 14, 24), (6, 7, 14, 24), (13, 23, 14, 24)):
        mask = rng.random((bottom - top, right - left)) < 0.5
        mask[[0, 0, -1, -1], [0, -1, 0, -1]] = True  # the box of a region is tight
        bits = np.packbits(mask).tobytes()
        pieces.append(Region(BBox(top, left, bottom, right), bits))
    with IIDWriter(tmp_path / "a.iid") as writer:
        writer.add(b"d", b"a", box, regions=pieces)
    with iid_dask.open(tmp_path / "a.iid") as reader:
        assert table(reader, columns=["mask"])["mask"][0] == np.packbits(reader[0].mask()).tobytes()


def test_bits_behind_the_last_pixel_of_a_region_are_no_pixels(tmp_path):
    with IIDWriter(tmp_path / "a.iid", index=False) as writer:
        writer.add(b"d", b"a", BBox(0, 0, 3, 3), np.ones((3, 3)))
        writer.add(b"d", b"b", BBox(0, 0, 3, 5), regions=[Region(BBox(0, 0, 3, 3), b"\xff\x80")])
    data = (tmp_path / "a.iid").read_bytes()
    with iid_dask.open(data.replace(b"\xff\x80", b"\xff\xff")) as reader:
        assert table(reader, columns=["mask"])["mask"].tolist() == [b"\xff\x80", b"\xe7\x38"]


def test_a_damaged_segment_is_an_error_where_there_is_an_index(indexed):
    data = bytearray(indexed["us"].read_bytes())
    with iid_dask.open(bytes(data)) as reader:
        offset = int(reader.header["segments_offset"]) + int(reader.columns.region_bits[700])
        key = int(reader.columns.region_keys(np.array([700]))[0])
    data[offset] ^= 1
    with iid_dask.open(bytes(data)) as reader:
        table(reader)
    for keys in (None, [key]):
        with (
            iid_dask.open(bytes(data)) as reader,
            pytest.raises(IIDFormatError, match=f"segments, entry {key}, .*damaged"),
        ):
            table(reader, keys, columns=["mask"])
    with iid_dask.open(bytes(data), verify=False) as reader:
        assert len(table(reader, columns=["mask"])) == len(reader)


@pytest.mark.parametrize("lie", sorted(path.name for path in (DATA / "malformed").glob("index-*-lie.iid")))
def test_an_index_that_lies_about_a_segment_is_an_error_where_the_segment_is_read(lie):
    with iid_dask.open(DATA / "malformed" / lie) as reader:
        assert reader.has_index
        with pytest.raises(IIDFormatError, match=r"index, entry 0, .*differ from the segment's"):
            table(reader, columns=["mask"])


def test_damaged_names_are_an_error_where_there_is_an_index(indexed):
    data = indexed["us"].read_bytes().replace(b"counties36061", b"counties36062")
    with iid_dask.open(data) as reader:
        assert len(table(reader, columns=["area"])) == 3155
        with pytest.raises(IIDFormatError, match=r"iids.*damaged"):
            table(reader)


def test_a_small_file_cannot_ask_for_any_amount_of_memory(tmp_path):
    with IIDWriter(tmp_path / "a.iid") as writer:
        for key in range(40):
            writer.add(b"d", b"%d" % key, BBox(0, 0, 65535, 65535), regions=[], groups=["g" * 10_000])
    with iid_dask.open(tmp_path / "a.iid", limits=Limits(max_decoded_bytes=2**17)) as reader:
        for column in ("mask", "groups"):
            with pytest.raises(IIDLimitError, match=f"a.iid: column '{column}' of 40 entries takes up to .* bytes"):
                table(reader, columns=[column])
    with pytest.raises(IIDLimitError, match="column 'mask' of 40 entries"):
        read_entries([tmp_path / "a.iid", iid_dask.sample("us")], columns=["mask"]).compute()


@pytest.fixture(scope="module")
def claimed(tmp_path_factory):
    """A file of 400 entries and a metadata string of 20,000 characters: 8 MB in a table."""
    path = tmp_path_factory.mktemp("claimed") / "claimed.iid"
    with IIDWriter(path, metadata={"x": "y" * 20_000, "z": {"n": ["y" * 10_000] * 2}, "i": 7}) as writer:
        for key in range(400):
            writer.add(b"d", b"%d" % key, BBox(0, 0, 1, 1), regions=[])
    return path


@pytest.mark.parametrize("column", ["x", "z"])
def test_metadata_is_not_repeated_without_end(claimed, column):
    with iid_dask.open(claimed, limits=Limits(max_decoded_bytes=2**20)) as reader:
        df = read_entries(reader, columns=["key"], metadata=column, blocksize=2**30)
        assert df.npartitions == 1
        match = (
            f"claimed.iid: column '{column}' of 400 entries takes up to 8...... bytes, more than .* = 1048576; .*size="
        )
        with pytest.raises(IIDLimitError, match=match):
            df.compute()
        parts = read_entries(reader, columns=["key"], metadata=column, blocksize=2**19)
        assert 10 < parts.npartitions < 30
        assert len(parts.compute()) == 400
        assert read_entries(reader, columns=["key"], metadata="i").npartitions == 1


def test_a_value_of_the_whole_file_is_tested_once_and_repeated_for_what_passes(claimed):
    filters = [("x", ">", "xyz"), ("z", "!=", "y"), ("key", "<", 5)]
    with iid_dask.open(claimed, limits=Limits(max_decoded_bytes=2**18)) as reader:
        found = read_entries(reader, filters=filters, metadata=("x", "z")).compute()
    assert found["key"].tolist() == list(range(5))
    assert set(found["x"]) == {"y" * 20_000}


def test_the_path_is_not_repeated_without_end(claimed):
    with iid_dask.open(claimed, limits=Limits(max_decoded_bytes=2**12)) as reader:
        with pytest.raises(IIDLimitError, match=r"column 'file' of 400 entries takes up to \d+ bytes, more than"):
            table(reader, columns=["file"])
        assert len(table(reader, columns=["key", "area"])) == 400
        assert len(read_entries(reader, columns=["file"], blocksize=2**11).compute()) == 400


def test_columns_share_one_limit(claimed):
    with iid_dask.open(claimed, limits=Limits(max_decoded_bytes=9 * 2**20)) as reader:
        for column in ("x", "z"):
            assert len(read_entries(reader, columns=["key"], metadata=column, blocksize=2**30).compute()) == 400
        df = read_entries(reader, columns=["key"], metadata=("x", "z"), blocksize=2**30)
        with pytest.raises(IIDLimitError, match=r"takes up to 8...... bytes, 16...... with other columns, more than"):
            df.compute()


def large_boxes(folder, count):
    """Files of 400 bytes, each with a mask of 125,000."""
    for i in range(count):
        with IIDWriter(folder / f"{i}.iid") as writer:
            writer.add(b"d", b"a", BBox(0, 0, 1000, 1000), regions=[])
    return [folder / f"{i}.iid" for i in range(count)]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_masks_of_many_small_files_share_one_limit(tmp_path, monkeypatch, on_error):
    paths = large_boxes(tmp_path, 5)
    monkeypatch.setattr("iid_dask.entries.plan.Limits", lambda: Limits(max_decoded_bytes=400_000))
    match = r"0\.iid to .*4\.iid: masks, .* more than limits.* = 400000 in a partition of 5 files.*blocksize=1"
    for columns in (["mask"], ["mask", "area"]):
        df = read_entries(paths, columns=columns, on_error=on_error)
        assert df.npartitions == 1
        with pytest.raises(IIDLimitError, match=match):
            df.compute()
    assert len(read_entries(paths, columns=["area"]).compute()) == 5
    alone = read_entries(paths, columns=["mask"], blocksize=1)
    assert alone.npartitions == 5
    assert [len(mask) for mask in alone.compute()["mask"]] == [125_000] * 5


def test_open_files_are_packed_by_their_masks(tmp_path):
    readers = [iid_dask.open(path) for path in large_boxes(tmp_path, 6)]
    df = read_entries(readers, columns=["mask"], blocksize=260_000)
    assert df.map_partitions(len).compute().tolist() == [2, 2, 2]
    assert read_entries(readers, columns=["mask"], filters=[("area", ">", 0)], blocksize=260_000).npartitions == 1
    assert read_entries(readers, columns=["area"], blocksize=260_000).npartitions == 1
    with IIDWriter(tmp_path / "several.iid") as writer:
        for _ in range(5):
            writer.add(b"d", b"a", BBox(0, 0, 1000, 1000), regions=[])
    several = iid_dask.open(tmp_path / "several.iid")
    df = read_entries([*readers, several], columns=["mask", "file"], blocksize=260_000)
    assert df.map_partitions(len).compute().tolist() == [2, 2, 2, 2, 2, 1]
    assert df.compute()["file"].drop_duplicates().tolist() == [reader.name for reader in (*readers, several)]


def test_an_open_file_that_cannot_be_weighed_is_skipped_where_bad_files_are(tmp_path):
    data = bytearray(random_bytes(10, index=False))
    with iid_dask.open(bytes(data)) as reader:
        data[int(reader.header["segments_offset"])] ^= 0xFF
    readers = [iid_dask.open(bytes(data)), iid_dask.open(large_boxes(tmp_path, 1)[0])]
    with pytest.raises(IIDFormatError, match="<bytes>: segments"):
        read_entries(readers, columns=["mask"]).compute()
    df = read_entries(readers, columns=["mask"], on_error="skip")
    with pytest.warns(IIDWarning, match="<bytes>: skipped"):
        assert len(df.compute()) == 1


def test_segments_are_read_once_for_boxes_and_masks_of_a_few(sparse):
    source = CountingSource(sparse)
    with IIDReader(source) as reader:
        before = source.nbytes
        table(reader, [5, 900], columns=["area", "regions"])
        heads = source.nbytes - before
        table(reader, [5, 900], columns=["area", "mask"])
        # The second table's scan costs what the first one's did, and the bits themselves are read once.
        bits = int(reader.lut["segment_length"][[5, 900]].sum())
        assert source.nbytes - before - heads <= heads + bits


# --- what belongs to whom ---------------------------------------------------------------------------------------


def test_a_table_is_the_callers_to_change(us):
    with iid_dask.open(us) as reader:
        keys = reader.entry_keys.copy()
        for df in (
            reader.entries(columns=["key"]),
            reader.entries(range(3155), columns=["key"]),
            read_entries(reader, columns=["key"]).compute(scheduler="synchronous"),
            read_entries(reader, columns=["key"], groups=list(reader.groups)).compute(scheduler="synchronous"),
        ):
            df.iloc[0, 0] = 99
            assert df["key"].tolist() == [99, *range(1, 3155)]
            np.testing.assert_array_equal(reader.entry_keys, keys)


@pytest.mark.parametrize("name", ["us", "edge"])
def test_a_table_shares_no_memory_with_its_reader(name):
    with iid_dask.open(DATA / f"{name}.iid") as reader:
        df = table(reader, columns=list(KINDS))
        own = [reader.entry_keys, reader.live, reader.lut, *reader.groups.values()]
        own += [values for values in vars(reader.columns).values() if isinstance(values, np.ndarray)]
        for column in (*SIDES, "key", "area", "regions"):
            assert not any(np.shares_memory(df[column].to_numpy(), values) for values in own), column


# --- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("ask", "iids", "segments"),
    [
        (lambda df: df.area.sum(), False, True),
        (lambda df: df[["key", "groups", "file"]], False, False),
        (lambda df: df[["address"]], True, False),
        (lambda df: df, True, True),
    ],
)
def test_only_what_the_columns_need_is_read(sparse, monkeypatch, ask, iids, segments, together):
    paths = [sparse, DATA / "empty.iid"] if together else sparse
    with iid_dask.open(sparse) as reader, reads(monkeypatch) as found:
        ask(read_entries(paths)).compute()
        assert bool(bytes_of(found, reader, "iids")) == iids
        assert bool(bytes_of(found, reader, "segments")) == segments


def test_a_group_of_ten_costs_what_ten_entries_cost(sparse, monkeypatch):
    everything = sparse.stat().st_size
    for paths in (sparse, [sparse, DATA / "edge.iid"]):
        with reads(monkeypatch) as found:
            df = read_entries(paths, groups="ten", columns=["address", "area", "mask"]).compute()
        assert df.index.tolist() == list(range(199, 2000, 200))
        with iid_dask.open(sparse) as reader:
            some = bytes_of([read for read in found if read[0] == str(sparse)], reader, "segments")
            names = bytes_of([read for read in found if read[0] == str(sparse)], reader, "iids")
        assert 0 < some < everything / 10
        assert names < 10 * 5000


def test_names_are_read_of_those_only_whose_other_columns_pass(sparse, monkeypatch):
    for filters in ([("key", "<", 3), ("address", "!=", b"")], [("area", "<", 0), ("domain", "==", b"")]):
        with iid_dask.open(sparse) as reader:
            source = CountingSource(sparse)
            counted = IIDReader(source)
            _ = counted.columns
            before = source.nbytes
            read_entries(counted, filters=filters, columns=["address"]).compute(scheduler="synchronous")
            assert source.nbytes - before < 2 * 4200 < bytes_by_section(reader)["iids"][1]


def test_names_that_were_read_to_be_tested_are_not_read_again(sparse, monkeypatch):
    with iid_dask.open(sparse) as reader, reads(monkeypatch) as found:
        filters = [("area", ">", 0), ("address", "not in", [b"address 5"])]
        assert len(read_entries(sparse, filters=filters).compute()) == 1999
        assert bytes_of(found, reader, "iids") == bytes_by_section(reader)["iids"][1]


def test_looking_for_names_reads_no_segment(sparse, monkeypatch):
    for paths in (sparse, [sparse, sparse]):
        with iid_dask.open(sparse) as reader, reads(monkeypatch) as found:
            df = look_for(paths, b"address 77").compute()
            assert df["key"].tolist() == [77]
            assert bytes_of(found, reader, "segments") == 0
            assert bytes_of(found, reader, "iids") > 0


def test_a_table_of_files_reads_no_names_and_no_segment(sparse, monkeypatch):
    with iid_dask.open(sparse) as reader, reads(monkeypatch) as found:
        df = read_files([sparse, sparse]).compute()
        assert df["entries"].tolist() == [2000]
        assert bytes_of(found, reader, "segments") == bytes_of(found, reader, "iids") == 0


def test_planning_many_files_opens_none(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.iid").write_bytes(b"no file at all")
    df = read_entries(tmp_path / "*.iid")
    with pytest.raises(IIDFormatError, match=r"a\.iid"):
        df.compute()


# --- which rows -------------------------------------------------------------------------------------------------

OPERATORS = {
    "==": operator.eq,
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda a, b: a in b,
    "not in": lambda a, b: a not in b,
}


def passes(row, filters):
    """Whether one row passes, by the definition."""
    if not filters:
        return True
    groups = [filters] if isinstance(filters[0], tuple) else filters
    return any(
        all(row[column] is not None and OPERATORS[op](row[column], value) for column, op, value in tests)
        for tests in groups
    )


def values_for(rows, column):
    """Values of a column, and others of its type."""
    there = [row[column] for row in rows if row[column] is not None] or [0 if column in INTEGERS else b""]
    if column in INTEGERS:
        other = st.integers(-5, 200) | st.just(2**70) | st.floats(-3, 99) | st.integers(0, 50).map(np.int32)
    elif isinstance(there[0], bytes) and column in ("domain", "address"):
        other = st.binary(max_size=2)
    else:
        there, other = [str(value) for value in there], st.text(max_size=3)
    return st.sampled_from(there) | other


INTEGERS = ("key", *SIDES, "area", "regions", "image.height")


@st.composite
def filters_for(draw, rows, columns):
    def test():
        column, op = draw(st.sampled_from(columns)), draw(st.sampled_from(list(OPERATORS)))
        value = values_for(rows, column)
        return column, op, draw(st.lists(value, max_size=4) if "in" in op else value)

    def tests():
        return [test() for _ in range(draw(st.integers(1, 3)))]

    return tests() if draw(st.booleans()) else [tests() for _ in range(draw(st.integers(1, 3)))]


boxes = st.tuples(*[st.integers(-5, 90)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


def meets(row, box):
    return max(row["min_row"], box[0]) < min(row["max_row"], box[2]) and max(row["min_col"], box[1]) < min(
        row["max_col"], box[3]
    )


@settings(deadline=None, max_examples=120)
@given(seeds, st.data())
def test_rows_are_those_that_pass(seed, data):
    readers = [random_reader(seed + i, image=bool(i)) for i in range(data.draw(st.sampled_from([1, 1, 2])))]
    for i, reader in enumerate(readers):
        reader.name = f"{i}.iid"
    metadata = ("image.height", "note")
    rows = []
    for reader in readers:
        image = reader.metadata.get("image", {})
        note = reader.metadata["note"]
        extra = {"image.height": image.get("height"), "note": note if isinstance(note, str) else json.dumps(note)}
        rows += [row | extra for row in twin(reader)]
    names = sorted({name for reader in readers for name in reader.groups})
    columns = [*DEFAULT, *metadata]
    filters = data.draw(st.none() | st.just([]) | filters_for(rows, columns))
    box = data.draw(st.none() | boxes)
    groups = data.draw(st.none() | st.lists(st.sampled_from(names), max_size=2)) if names else None
    if len(readers) == 1 and groups is not None:
        groups = [name for name in groups if name in readers[0].groups]
    df = read_entries(
        readers if len(readers) > 1 else readers[0],
        columns=["key", "mask", "file"],
        filters=filters,
        bbox=box,
        groups=groups,
        metadata=metadata,
        blocksize=data.draw(st.sampled_from([1, 300, 10**6])),
    )
    expected = [
        {name: row[name] for name in ("key", "mask", "file", *metadata)}
        for row in rows
        if passes(row, filters)
        and (box is None or meets(row, box))
        and (groups is None or any(name in json.loads(row["groups"]) for name in groups))
    ]
    found = df.compute(scheduler="synchronous")
    assert rows_of(found) == expected
    assert found.index.tolist() == [row["key"] for row in expected]
    assert found.dtypes.equals(df.dtypes)


@settings(deadline=None, max_examples=30)
@given(seeds, st.data())
def test_names_as_text_are_filtered_as_text(seed, data):
    reader = random_reader(seed)
    rows = twin(reader, names="text")
    filters = data.draw(filters_for(rows, ["domain", "address", "area"])) if rows else []
    df = read_entries(reader, filters=filters, names="text", columns=["key"]).compute(scheduler="synchronous")
    assert df["key"].tolist() == [row["key"] for row in rows if passes(row, filters)]


def test_numbers_are_members_of_lists_only_if_they_are_equal(sparse):
    for values in ([1.5, 2, -1, 2**40], [np.float64(1.5), np.uint8(2), 2.0, float("inf")]):
        assert read_entries(sparse, filters=[("key", "in", values)], columns=["key"]).compute()["key"].tolist() == [2]
        assert len(read_entries(sparse, filters=[("key", "not in", values)]).compute()) == 1999


def test_what_an_alternative_lets_in_needs_no_other(sparse, monkeypatch):
    filters = [[("key", "<", 1990)], [("address", "==", b"address 1995")]]
    with iid_dask.open(sparse) as reader, reads(monkeypatch) as found:
        df = read_entries(sparse, filters=filters, columns=["key"]).compute()
        assert df["key"].tolist() == [*range(1990), 1995]
        assert 0 < bytes_of(found, reader, "iids") < 10 * 100
    filters = [[("key", "<", 10)], [("area", ">", 0), ("address", "in", [b"address 50"])], [("address", "==", b"x")]]
    df = read_entries(sparse, filters=filters, columns=["key"]).compute()
    assert df["key"].tolist() == [*range(10), 50]


@pytest.mark.parametrize(
    ("filters", "error", "text"),
    [
        ([("areas", "==", 1)], ValueError, "no column 'areas' to filter by; there is: file, key"),
        ([("mask", "==", b"")], ValueError, "no column 'mask' to filter by"),
        ([("area", "=>", 1)], ValueError, "no operator '=>'; there is: ==, =, !="),
        ([("area", "==")], ValueError, r"\('area', '=='\): expected a list of \(column, op, value\)"),
        (("area", "==", 1), ValueError, "'area': expected a list of"),
        ([("area", "==", 1), [("area", "==", 1)]], ValueError, "expected a list of"),
        ([[]], ValueError, r"\[\]: expected a list of"),
        ([[("area", "==", 1), 5]], ValueError, "expected a list of"),
        ("area > 1", TypeError, "filters = 'area > 1': expected a list of"),
        ([("area", "==", "1")], TypeError, "area: '1' is str, expected a number"),
        ([("area", "==", True)], TypeError, "area: True is bool, expected a number"),
        ([("area", "==", None)], TypeError, "area: None is NoneType, expected a number"),
        ([("area", "in", 5)], TypeError, "area in 5: expected a list of values"),
        ([("area", "in", [5, b"6"])], TypeError, "area: b'6' is bytes, expected a number"),
        ([("address", "==", "04")], TypeError, r"address: '04' is str, expected bytes; write '04'\.encode\(\)"),
        ([("address", "in", b"04")], TypeError, "address in b'04': expected a list"),
        ([("domain", "not in", ["04"])], TypeError, "domain: '04' is str, expected bytes"),
        ([("groups", "==", b"04")], TypeError, "groups: b'04' is bytes, expected str"),
        ([("area", ">", float("nan"))], ValueError, "area: nan is equal to nothing, above nothing and below nothing"),
        ([("key", "in", [5, np.float32("nan")])], ValueError, "key: nan is equal to nothing"),
        ([[("area", ">", 5)], [("key", "not in", (5, float("nan")))]], ValueError, "key: nan is equal to nothing"),
    ],
)
def test_malformed_filters_are_refused_before_anything_is_read(filters, error, text, tmp_path):
    with pytest.raises(error, match=text):
        read_entries(tmp_path / "there is no such file", filters=filters)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"bbox": (5, 0, 4, 9)}, ValueError, "upside down"),
        ({"bbox": (5, 0, 4)}, ValueError, "found 3 values"),
        ({"groups": [b"a"]}, TypeError, "groups: b'a' is bytes, expected str"),
        ({"groups": "cities"}, KeyError, r"no group 'cities'; there is: \['nation', 'states', 'counties'\]"),
        ({"on_error": "ignore"}, ValueError, "on_error = 'ignore': expected 'raise' or 'skip'"),
        ({"blocksize": 0}, ValueError, "blocksize = 0: expected bytes, 1 or more"),
        ({"names": "text", "filters": [("domain", "==", b"x")]}, TypeError, "domain: b'x' is bytes, expected str"),
        ({"metadata": 5}, TypeError, "metadata = 5: expected paths"),
        ({"metadata": [5]}, TypeError, "metadata: 5 is int, expected a path"),
        ({"metadata": ["a", "a"]}, ValueError, "metadata: 'a' twice"),
        ({"metadata": ["area"]}, ValueError, "metadata: 'area' is a column of every entry table"),
        ({"metadata": {"a": "int65"}}, TypeError, "metadata: 'a': 'int65' is no dtype"),
        ({"metadata": {"a": object}}, TypeError, "metadata: 'a': .*object.* has no Arrow type"),
    ],
)
def test_wrong_options_are_refused_when_the_table_is_made(options, error, text):
    with pytest.raises(error, match=text):
        read_entries(iid_dask.sample("us"), **options)


def test_what_is_refused_is_not_repeated_at_length():
    long = b"x" * 10**6
    for options, error in (
        ({"filters": [("area", "==", long)]}, TypeError),
        ({"filters": [("area", "in", long)]}, TypeError),
        ({"filters": [("address", "==", long.decode())]}, TypeError),
        ({"filters": [("area", "==", long, 1)]}, ValueError),
        ({"filters": long}, TypeError),
        ({"filters": [(long.decode(), "==", 1)]}, ValueError),
        ({"columns": long}, TypeError),
        ({"columns": [long]}, ValueError),
        ({"metadata": [long]}, TypeError),
        ({"metadata": long}, TypeError),
        ({"metadata": {"a": long.decode()}}, TypeError),
        ({"names": long}, ValueError),
        ({"on_error": long}, ValueError),
        ({"paths": [long]}, TypeError),
    ):
        with pytest.raises(error) as caught:
            read_entries(**{"paths": iid_dask.sample("us"), **options})
        assert len(str(caught.value)) < 400, options


@pytest.mark.parametrize("function", [read_entries, read_files])
def test_file_objects_are_for_open(function, us):
    with us.open("rb") as file:
        for object_ in (file, io.BytesIO(us.read_bytes())):
            for paths in (object_, [object_]):
                with pytest.raises(TypeError, match=r"give iid_dask\.open\(it\)$"):
                    function(paths)
    with pytest.raises(TypeError, match=r"paths: b'.{1,80} is bytes, .*; give iid_dask\.open\(it\)$"):
        function([us.read_bytes()])


@pytest.mark.parametrize("paths", [5, b"us.iid", None, {"us.iid": 1}, [5]])
def test_paths_are_paths(paths):
    for function in (read_entries, read_files):
        with pytest.raises(TypeError, match="expected a path, a URL"):
            function(paths)


# --- partitions -------------------------------------------------------------------------------------------------


def test_partitions_of_one_file_are_ranges_of_keys(sparse):
    df = read_entries(sparse, blocksize=20_000)
    assert df.npartitions > 5
    assert df.known_divisions
    assert df.divisions[0] == 0
    assert df.divisions[-1] == 1999
    lengths = df.map_partitions(len).compute()
    assert lengths.sum() == 2000
    assert lengths.max() < 300
    assert df.loc[150:160].compute().index.tolist() == list(range(150, 161))
    assert df.loc[150:160].npartitions <= 2
    assert df.partitions[1].compute().index[0] == df.divisions[1]


def test_masks_make_more_partitions(sparse):
    assert (
        read_entries(sparse, columns=["mask"], blocksize=100_000).npartitions
        > 2 * read_entries(sparse, columns=["area"], blocksize=100_000).npartitions
    )


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"bbox": (0, 0, 60, 3000)}, range(50)),
        ({"groups": "ten"}, range(199, 2000, 200)),
        ({"filters": [("key", ">", 1994)]}, range(1995, 2000)),
        ({"filters": [("min_row", ">=", 39 * 60), ("address", "!=", b"")]}, range(1950, 2000)),
        ({"filters": [[("key", "<", 2)], [("max_row", "<", 0)]]}, range(2)),
    ],
)
def test_partitions_without_an_entry_that_passes_are_not_made(sparse, options, keys):
    df = read_entries(sparse, blocksize=10_000, **options)
    assert df.npartitions <= 2
    assert df.divisions[0] == keys[0]
    assert df.divisions[-1] == keys[-1]
    assert df.compute().index.tolist() == list(keys)


def test_a_last_partition_of_one_row_has_divisions_of_its_own(sparse):
    df = read_entries(sparse, blocksize=1, filters=[("key", "<", 3)])
    assert df.divisions == (0, 1, 2, 2)
    assert df.loc[1:2].compute().index.tolist() == [1, 2]
    assert df.repartition(npartitions=1).compute().index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: read_entries([]),
        lambda: read_entries(DATA / "empty.iid"),
        lambda: read_entries([DATA / "empty.iid"] * 2 + [DATA / "empty.iid"]),
        lambda: read_entries(iid_dask.sample("us"), filters=[("area", "<", 0)]),
        lambda: read_entries(iid_dask.sample("us"), filters=[("address", "==", b"nobody")]),
        lambda: read_entries(iid_dask.sample("us"), groups=[]),
        lambda: read_entries([iid_dask.sample("us"), DATA / "empty.iid"], groups="no such group"),
        lambda: read_entries(iid_dask.sample("us"), bbox=(9, 9, 9, 99)),
    ],
)
def test_a_table_without_rows_is_a_table(make):
    df = make()
    assert df.npartitions == 1
    found = df.compute()
    assert found.shape == (0, len(DEFAULT))
    assert found.dtypes.equals(df.dtypes)
    assert found.index.dtype == np.int64
    assert df.area.sum().compute() == 0
    assert df[["address"]].compute().shape == (0, 1)


def test_a_large_file_among_many_is_cut_where_masks_are_wanted(sparse, tmp_path):
    small = shutil.copyfile(DATA / "edge.iid", tmp_path / "z.iid")
    other = shutil.copyfile(DATA / "edge.iid", tmp_path / "a.iid")
    paths = [other, sparse, small]
    df = read_entries(paths, columns=["file", "key", "mask"], blocksize=100_000)
    assert df.npartitions > 6
    found = df.compute()
    expected = [row for path in paths for row in twin(iid_dask.open(path))]
    assert rows_of(found) == [{name: row[name] for name in ("file", "key", "mask")} for row in expected]
    assert read_entries(paths, columns=["file", "key"], blocksize=10**9).npartitions == 1


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60), st.integers(1, 9))
def test_files_are_packed_in_order_without_loss(sizes, blocksize, most):
    packs = [sizes[some] for some in pack(sizes, blocksize, most)]
    assert [size for some in packs for size in some] == sizes
    for some in packs:
        assert 1 <= len(some) <= most
        assert sum(some) <= blocksize or len(some) == 1
    for some, after in pairwise(packs):
        assert len(some) == most or sum(some) + after[0] > blocksize


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_entries_are_split_in_order_without_loss(weights, blocksize):
    keys = np.arange(len(weights)) * 3
    ranges = split(keys, np.array(weights, np.int64), blocksize)
    parts = [keys[(keys >= first) & (keys <= last)].tolist() for first, last in ranges]
    assert [key for part in parts for key in part] == keys.tolist()
    for part in parts:
        assert sum(weights[key // 3] for key in part) <= blocksize or len(part) == 1


# --- many files -------------------------------------------------------------------------------------------------


@pytest.fixture
def plate(tmp_path):
    """Five random files."""
    folder = tmp_path / "plate"
    folder.mkdir()
    for i in range(5):
        random_file(folder / f"w{i}.iid", i, image=i != 3)
    return folder


def all_rows(paths, **options):
    rows = []
    for path in paths:
        with iid_dask.open(path) as reader:
            rows += twin(reader, **options)
    return rows


def test_a_table_of_many_files_is_their_tables_one_after_another(plate):
    paths = sorted(plate.glob("*.iid"))
    expected = all_rows(paths)
    for given_ in (str(plate / "*.iid"), plate / "*.iid", paths, [plate / "w[01].iid", *paths], iter(paths)):
        df = read_entries(given_, columns=list(KINDS))
        assert not df.known_divisions
        assert rows_of(df.compute()) == expected
    backwards = read_entries(paths[::-1]).compute()
    assert backwards["file"].drop_duplicates().tolist() == [str(p) for p in paths[::-1] if len(iid_dask.open(p))]


def test_bytes_are_files_of_their_own(plate):
    data = [(plate / f"w{i}.iid").read_bytes() for i in (0, 1, 0)]
    readers = [iid_dask.open(some) for some in data]
    expected = [row for reader in readers[:2] for row in twin(reader)]
    assert len({row["file"] for row in expected}) == 1
    assert rows_of(read_entries(readers, columns=list(KINDS)).compute()) == expected
    assert read_files(readers).compute()["entries"].tolist() == [len(reader) for reader in readers[:2]]
    assert rows_of(look_for(readers, None).compute()) == [
        {name: row[name] for name in ("file", "key", "domain", "address")} for row in expected
    ]


def test_a_file_counts_once_however_it_is_called(plate, remote):
    path = plate / "w0.iid"
    url = f"{remote}/w0.iid"
    for name, ways in (
        (path, [path, str(path), f"file://{path}", iid_dask.open(path), iid_dask.open(path, verify=False)]),
        (url, [url, f"{remote}/w[0].iid", iid_dask.open(url), url]),
    ):
        for paths in (ways, ways[::-1], ways[1:] + ways[:1]):
            found = read_files(paths).compute()
            assert found["file"].tolist() == [str(name)]


def test_two_versions_of_a_path_are_two_files(plate):
    path = plate / "w0.iid"
    reader = iid_dask.open(path)
    expected = [*twin(reader, masks=False), *all_rows([plate / "w1.iid"], masks=False)]
    os.replace(plate / "w1.iid", path)
    found = rows_of(read_entries([reader, path]).compute())
    assert [row | {"file": None} for row in found] == [row | {"file": None} for row in expected]


def test_schedulers_agree(plate):
    df = read_entries(plate / "*.iid", blocksize=1)
    assert df.npartitions == 5
    found = [df.compute(scheduler=scheduler) for scheduler in ("threads", "synchronous")]
    pd.testing.assert_frame_equal(*found)


def test_graphs_have_the_same_names_whenever_they_are_built(plate):
    def build():
        return [
            read_entries(
                plate / "*.iid", filters=[("address", "in", [b"1"])], metadata={"a": "int64"}, bbox=(0, 0, 9, 9)
            ),
            read_entries(plate / "w0.iid", names="text"),
            read_files(plate / "*.iid"),
            look_for(plate / "*.iid", b"x"),
        ]

    with dask.config.set({"tokenize.ensure-deterministic": True}):
        names = [df._name for df in build()]
        assert names == [df._name for df in build()]
        assert len(set(names)) == 4
        os.utime(plate / "w0.iid", ns=(1, 1))
        assert [a == b for a, b in zip(names, [df._name for df in build()], strict=True)] == [False] * 4


def test_tables_travel(plate):
    df = pickle.loads(pickle.dumps(read_entries(plate / "*.iid")))
    assert rows_of(df.compute()) == all_rows(sorted(plate.glob("*.iid")), masks=False)
    one = pickle.loads(pickle.dumps(read_entries(plate / "w0.iid")))
    assert rows_of(one.compute()) == all_rows([plate / "w0.iid"], masks=False)


def test_a_table_travels_without_its_files(plate):
    data = [pickle.dumps(read_entries(paths)) for paths in (plate / "w0.iid", plate / "*.iid")]
    shutil.rmtree(plate)
    assert [len(pickle.loads(some).columns) for some in data] == [len(DEFAULT)] * 2


def test_a_literal_name_with_signs_of_a_glob_is_a_path(plate):
    path = shutil.copyfile(plate / "w0.iid", plate / "a[0].iid")
    df = read_entries(path, columns=["file"]).compute()
    assert df["file"].drop_duplicates().tolist() == [str(path)]


def test_a_glob_that_matches_nothing_is_an_error(plate):
    (plate / "folder.iid").mkdir()
    for pattern in (plate / "*.zarr", plate / "fold*.iid", "memory://nothing here/*.iid"):
        for function in (read_entries, read_files):
            with pytest.raises(FileNotFoundError, match="the glob matches no file"):
                function(pattern)


def test_a_missing_path_is_an_error_that_names_it(plate):
    for paths in (plate / "none.iid", [plate / "w0.iid", plate / "none.iid"]):
        with pytest.raises(FileNotFoundError, match=r"none\.iid"):
            read_entries(paths)


@pytest.fixture
def remote(plate):
    """The same five files behind URLs."""
    fs = fsspec.filesystem("memory")
    for path in plate.glob("*.iid"):
        fs.pipe(f"/plate/{path.name}", path.read_bytes())
    yield "memory://plate"
    fs.rm("/plate", recursive=True)


def test_urls_are_read_and_found(remote, plate):
    expected = all_rows(sorted(plate.glob("*.iid")))
    names = [f"{remote}/w{i}.iid" for i in range(5)]
    for paths in (f"{remote}/*.iid", f"{remote}/w?.iid", names, [f"{remote}/w[0-2].iid", names[3], names[4]]):
        found = read_entries(paths, columns=list(KINDS), storage_options={}).compute()
        assert rows_of(found.drop(columns="file")) == [
            {name: value for name, value in row.items() if name != "file"} for row in expected
        ]
        assert set(found["file"]) <= set(names)
    one = read_entries(names[0])
    assert one.known_divisions
    assert one.compute()["address"].tolist() == [row["address"] for row in all_rows([plate / "w0.iid"])]
    assert read_files(f"{remote}/*.iid").compute()["file"].tolist() == names
    assert rows_of(read_entries(f"file://{plate}/w0.iid").compute()) == all_rows([plate / "w0.iid"], masks=False)


def test_planning_asks_nothing_of_single_remote_files(remote, monkeypatch):
    asked = []
    monkeypatch.setattr(RemoteSource, "__init__", lambda self, url, *_: asked.append(url))
    read_entries(f"{remote}/*.iid")
    read_entries([f"{remote}/w0.iid", f"{remote}/nowhere.iid"])
    assert asked == []


def test_a_remote_file_that_grew_since_it_was_listed_is_an_error(remote):
    df = read_entries(f"{remote}/*.iid")
    fs = fsspec.filesystem("memory")
    fs.pipe("/plate/w2.iid", fs.cat("/plate/w2.iid") + b" ")
    with pytest.raises(IIDChangedError, match=r"w2\.iid: changed since it was listed"):
        df.compute()


@pytest.mark.parametrize("make", [read_entries, read_files, lambda paths: look_for(paths, b"a")])
def test_files_of_unknown_versions_are_no_two_times_the_same(remote, plate, make):
    # What a listing of memory:// tells, it does not tell of one file, so a glob's versions are unknown too.
    for paths in ([f"{remote}/w0.iid", f"{remote}/w1.iid"], f"{remote}/*.iid"):
        frames = [make(paths) for _ in range(2)]
        assert frames[0]._name != frames[1]._name
        assert pickle.loads(pickle.dumps(frames[0]))._name == frames[0]._name


@pytest.mark.parametrize("single", [False, True])
def test_missing_files_are_no_two_times_the_same(plate, single):
    for missing in (plate / "later.iid", "memory://nowhere/later.iid"):
        for make in (read_entries, read_files):
            paths = missing if single else [plate / "w0.iid", missing]
            assert make(paths, on_error="skip")._name != make(paths, on_error="skip")._name


def test_an_object_overwritten_is_read_anew(remote, plate):
    urls = [f"{remote}/w0.iid", f"{remote}/w1.iid"]
    fs = fsspec.filesystem("memory")
    fs.pipe("/plate/w1.iid", b"")
    before = read_entries(urls, on_error="skip", columns=["key"])
    fs.pipe("/plate/w1.iid", (plate / "w2.iid").read_bytes())
    after = read_entries(urls, on_error="skip", columns=["key"])
    # What a cluster holds, it holds under these names.
    assert not set(before.__dask_graph__()) & set(after.__dask_graph__())


def test_wildcards_in_a_chain_of_file_systems_are_refused():
    with pytest.raises(ValueError, match="expected no wildcards in a chain"):
        read_entries("zip://*.iid::memory://a.zip")


def test_the_query_of_a_web_address_is_no_wildcard(monkeypatch):
    df = read_entries(["http://localhost:1/a.iid?token=1", "http://localhost:1/b.iid?token=1"])
    assert df.npartitions == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_that_changed_since_the_table_was_planned_is_an_error(plate, count, monkeypatch):
    df = read_entries([plate / f"w{i}.iid" for i in range(count)])
    monkeypatch.setattr("iid_dask.format.reopening._readers", Once(1))  # as in another process: this one has it open
    random_file(plate / "w0.iid", 99)
    os.utime(plate / "w0.iid", ns=(1, 1))
    with pytest.raises(IIDChangedError, match=r"w0\.iid: changed since opened"):
        df.compute()


def test_an_open_file_that_is_replaced_is_read_as_it_was(plate):
    expected = all_rows([plate / "w0.iid"], masks=False)
    df = read_entries(plate / "w0.iid")
    os.replace(plate / "w1.iid", plate / "w0.iid")
    assert rows_of(df.compute()) == expected


def test_ten_thousand_files_are_a_table(tmp_path):
    source = tmp_path / "source.iid"
    with IIDWriter(source, index=False) as writer:
        writer.add(b"d", b"a", BBox(0, 0, 2, 2), np.ones((2, 2)), groups=["g"])
        writer.add(b"d", b"b", BBox(0, 0, 2, 2), np.eye(2))
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(10_000):
        os.link(source, folder / f"{i:05}.iid")
    df = read_entries(folder / "*.iid", filters=[("address", "==", b"b")], columns=["file", "key", "area"])
    assert 10 < df.npartitions < 100
    found = df.compute()
    assert found["file"].tolist() == [str(folder / f"{i:05}.iid") for i in range(10_000)]
    assert found["area"].sum() == 20_000


# --- bad files --------------------------------------------------------------------------------------------------


@pytest.fixture
def spoiled(plate):
    """The plate, with a file that is none, one that ends early, one whose segments are damaged, and a missing one."""
    (plate / "x0.iid").write_bytes(b"not an .iid file, but long enough for a header of 48 bytes" * 2)
    (plate / "x1.iid").write_bytes((plate / "w0.iid").read_bytes()[:-30])
    data = bytearray(random_bytes(10, index=False))
    with iid_dask.open(bytes(data)) as reader:
        data[int(reader.header["segments_offset"])] ^= 0xFF
    (plate / "x2.iid").write_bytes(data)
    return plate


BAD = ("x0.iid", "x1.iid", "x2.iid")


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("alone", [False, True])
def test_a_bad_file_is_an_error_that_names_it(spoiled, bad, alone):
    with pytest.raises(iid_dask.IIDError, match=bad):
        read_entries(spoiled / bad if alone else [spoiled / "w0.iid", spoiled / bad]).compute()


def test_an_error_that_does_not_name_the_file_gets_a_note(plate, monkeypatch):
    def broken(self, offset, length):
        raise OSError("the disk is on fire")

    df = read_entries([plate / "w0.iid", plate / "w1.iid"])
    monkeypatch.setattr(LocalSource, "read", broken)
    with pytest.raises(OSError, match="on fire") as caught:
        df.compute(scheduler="synchronous")
    assert caught.value.__notes__ == [f"while reading {plate / 'w0.iid'}"]


def test_bad_files_may_be_skipped_with_a_warning_each(spoiled):
    paths = [*sorted(spoiled.glob("*.iid")), spoiled / "missing.iid"]
    df = read_entries(paths, on_error="skip", columns=list(KINDS))
    with pytest.warns(IIDWarning, match="skipped") as said:
        found = df.compute(scheduler="synchronous")
    assert rows_of(found) == all_rows([path for path in paths if path.name.startswith("w")])
    words = sorted(str(warning.message) for warning in said)
    assert len(words) == 4
    for name, text in zip(("missing.iid", *BAD), words, strict=True):
        assert text.startswith(f"{spoiled / name}: skipped: ")
    assert "found" in words[1]


@pytest.mark.parametrize("bad", [*BAD, "missing.iid"])
@pytest.mark.parametrize("column", ["area", "mask"])
def test_a_single_bad_file_that_is_skipped_is_an_empty_table(spoiled, bad, column):
    df = read_entries(spoiled / bad, on_error="skip", columns=[column])
    with pytest.warns(IIDWarning, match=f"{bad}: skipped"):
        assert len(df.compute()) == 0


def test_sound_files_are_skipped_without_a_word(plate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df = read_entries(plate / "*.iid", on_error="skip").compute()
    assert rows_of(df) == all_rows(sorted(plate.glob("*.iid")), masks=False)


def test_the_table_of_files_reports_bad_ones(spoiled):
    paths = [*sorted(spoiled.glob("*.iid")), spoiled / "missing.iid"]
    df = read_files(paths, metadata=("image.height", "note"), on_error="skip")
    found = df.compute()
    assert found.dtypes.equals(df.dtypes)
    for path, row in zip(paths, rows_of(found), strict=True):
        assert row["file"] == str(path)
        if path.name in ("x0.iid", "x1.iid", "missing.iid"):
            assert path.name in row["error"]
            assert {value for name, value in row.items() if name not in ("file", "error")} == {None}
            continue
        with iid_dask.open(path) as reader:
            assert row["error"] is None
            assert row["entries"] == len(reader)
            assert row["nbytes"] == path.stat().st_size
            assert row["groups"] == json.dumps(list(reader.groups))
            assert row["image.height"] == reader.metadata.get("image", {}).get("height")
    assert found["error"][5].startswith("IIDFormatError: ")
    with pytest.raises(iid_dask.IIDError, match=r"x0\.iid"):
        read_files(spoiled / "*.iid").compute()


# --- metadata ---------------------------------------------------------------------------------------------------

METADATA = [
    {"image": {"height": 5, "width": 2.0}, "camera": {"model": "X 1", "gain": 3}, "n": 7, "when": "2026-01-02"},
    {"image": {"height": True, "width": 2**70}, "camera": "none", "n": 8.0},
    {"image": [5], "camera": {"model": ["a", None], "gain": None}, "n": None},
    {},
]


@pytest.fixture
def described(tmp_path):
    for i, metadata in enumerate(METADATA):
        with IIDWriter(tmp_path / f"m{i}.iid", metadata=metadata) as writer:
            writer.add(b"d", b"a", BBox(0, 0, 2, 2), np.ones((2, 2)))
    return tmp_path / "*.iid"


def test_metadata_becomes_columns(described):
    paths = ("image.height", "image.width", "camera.model", "camera", "camera.gain", "n.n", "n")
    expected = {
        "image.height": [5, None, None, None],
        "image.width": [None] * 4,
        "camera.model": ["X 1", None, '["a", null]', None],
        "camera": ['{"model": "X 1", "gain": 3}', "none", '{"model": ["a", null], "gain": null}', None],
        "camera.gain": ["3", None, None, None],
        "n.n": [None] * 4,
        "n": ["7", "8.0", None, None],
    }
    for df in (read_entries(described, columns=["key"], metadata=paths), read_files(described, metadata=paths)):
        found = df.compute()
        assert {name: [plain(value) for value in found[name]] for name in paths} == expected
        assert found.dtypes.equals(df.dtypes)
        assert [str(found[name].dtype) for name in paths] == ["int64[pyarrow]"] * 2 + ["string"] * 5
    assert list(read_entries(described, columns=["n", "key"], metadata=["camera", "n"]).columns) == [
        "n",
        "key",
        "camera",
    ]
    assert list(read_files(described, metadata="n").columns) == ["file", "nbytes", "entries", "groups", "error", "n"]


def test_metadata_may_have_types(described):
    kinds = {"n": "int64", "camera.gain": "float64", "when": pa.timestamp("s"), "camera.model": str}
    df = read_files(described, metadata=kinds)
    found = df.compute()
    assert [plain(value) for value in found["n"]] == [7, 8, None, None]
    assert [plain(value) for value in found["camera.gain"]] == [3.0, None, None, None]
    assert found["when"][0] == pd.Timestamp("2026-01-02")
    assert found["camera.model"][0] == "X 1"
    assert found.dtypes.equals(df.dtypes)
    assert read_entries(described, metadata=kinds, filters=[("n", ">", 7)]).compute()["n"].tolist() == [8]


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ({"camera.model": "int64"}, "m0.iid: meta: found camera.model = .*, expected a value of type int64"),
        ({"image.height": "int64"}, "m1.iid: meta: found image.height = .*, expected a value of type int64"),
        ({"image.width": "int8"}, "m1.iid: meta: found image.width"),
        ({"camera": bool}, "m0.iid: meta: found camera = .*, expected a value of type bool"),
    ],
)
def test_metadata_of_another_type_is_an_error_that_names_the_file(described, kinds, text):
    for function in (read_files, read_entries):
        with pytest.raises(IIDFormatError, match=text):
            function(described, metadata=kinds).compute(scheduler="synchronous")


# --- look_for ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seeds, st.data())
def test_names_are_found_wherever_they_are(seed, data):
    readers = [random_reader(seed + i) for i in range(3)]
    for i, reader in enumerate(readers):
        reader.name = f"{i}.iid"
    rows = [row for reader in readers for row in twin(reader)]
    some = st.none() | st.lists(st.sampled_from([row["address"] for row in rows] + [b"cell", b""]), max_size=5)
    addresses, domains = data.draw(some), data.draw(some)
    groups = data.draw(st.none() | st.lists(st.sampled_from(["group 0", "group 1", "nobody"]), max_size=2))
    found = look_for(readers, addresses, domains, groups).compute(scheduler="synchronous")
    assert rows_of(found) == [
        {name: row[name] for name in ("file", "key", "domain", "address")}
        for row in rows
        if (addresses is None or row["address"] in addresses)
        and (domains is None or row["domain"] in domains)
        and (groups is None or set(groups) & set(json.loads(row["groups"])))
    ]


def test_a_group_that_no_file_has_finds_nothing():
    assert len(look_for(iid_dask.sample("us"), b"04", groups="cities").compute()) == 0


def test_names_to_look_for_are_bytes():
    with pytest.raises(TypeError, match=r"addresses: '04' is str, expected bytes; write '04'\.encode\(\)"):
        look_for(iid_dask.sample("us"), "04")
    with pytest.raises(TypeError, match="domains: 5 is int, expected bytes"):
        look_for(iid_dask.sample("us"), None, [5])


# --- Parquet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["bytes", "text"])
def test_parquet_keeps_every_byte_and_type(tmp_path, names):
    df = read_entries(
        [DATA / "edge.iid", iid_dask.sample("us")],
        columns=list(KINDS),
        names=names,
        metadata=("image.height", "camera"),
        blocksize=100_000,
    )
    expected = df.compute()
    assert any(row["domain"] in (b"", "") for row in rows_of(expected))
    with warnings.catch_warnings():
        # dask's own, in writing as in reading
        warnings.filterwarnings("ignore", category=getattr(pd.errors, "Pandas4Warning", DeprecationWarning))
        df.to_parquet(tmp_path / "table")
        back = dd.read_parquet(tmp_path / "table").compute()
    pd.testing.assert_frame_equal(back, expected)
    parts = sorted((tmp_path / "table").glob("*.parquet"), key=lambda path: int(path.name.split(".")[1]))
    pd.testing.assert_frame_equal(pd.concat(map(pd.read_parquet, parts)), expected)
