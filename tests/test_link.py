"""Linking: one identity has one label, in however many files."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import random_reader, seeds

import iid_dask
from iid_dask import BBox, IIDWarning, IIDWriter
from iid_dask.entries import link
from iid_dask.entries.linking import in_one_order, number, ranks

BYTES = pd.ArrowDtype(pa.large_binary())


def write(path, entries):
    """Write a file of (domain, address, groups), one square after another."""
    with IIDWriter(path, metadata={"image": {"height": 4, "width": 4 * len(entries)}}) as writer:
        for i, (domain, address, groups) in enumerate(entries):
            writer.add(domain, address, BBox(0, 4 * i, 4, 4 * i + 4), np.ones((4, 4)), groups=groups)


@pytest.fixture
def slides(tmp_path):
    """Two files that have entries in common; one IID twice in the second."""
    write(tmp_path / "a.iid", [(b"lab", b"7", ["x", "y"]), (b"lab", b"1", []), (b"home", b"7", ["y"])])
    write(tmp_path / "b.iid", [(b"lab", b"2", ["y"]), (b"lab", b"7", ["y"]), (b"lab", b"7", ["y", "x"])])
    return tmp_path


def twin(readers, identity):
    """The table, entry by entry."""
    rows = []
    for reader in readers:
        for entry in reader.values():
            facts = {"domain": entry.domain, "address": entry.address, "groups": json.dumps(sorted(entry.groups))}
            rows.append({**facts, "file": reader.name, "key": entry.key})
    # Text sorts by its characters, bytes by their values: as Python does.
    known = sorted({tuple(row[part] for part in identity) for row in rows})
    for row in rows:
        row["label"] = 1 + known.index(tuple(row[part] for part in identity))
    columns = ["label", "domain", "address", "file", "key", *(["groups"] if "groups" in identity else [])]
    rows.sort(key=lambda row: (row["label"], row["file"], row["key"]))
    return [{name: row[name] for name in columns} for row in rows]


identities = st.sampled_from(
    [("domain",), ("address",), ("groups",), ("domain", "address"), ("domain", "address", "groups")]
)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(0, 3), identities)
def test_labels_are_those_of_sorted_identities(seed, count, identity):
    readers = [random_reader(seed + i) for i in range(count)]
    for i, reader in enumerate(readers):
        reader.name = f"{'zab'[i]}.iid"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IIDWarning)
        found = link(readers, identity[::-1])
        again = link(readers[::-1], identity)
    assert found.to_dict("records") == twin(readers, identity)
    pd.testing.assert_frame_equal(found, again)


def test_a_sample_is_linked_as_its_entries_say():
    with iid_dask.open(iid_dask.sample("us")) as reader:
        found = link(iid_dask.sample("us"))
        assert found.to_dict("records") == twin([reader], ("domain", "address"))
    assert found["label"].tolist() == list(range(1, 3156))


def test_one_iid_has_one_label_within_a_file_and_across(slides):
    found = link(slides / "*.iid")
    assert found[["label", "domain", "address", "key"]].values.tolist() == [
        [1, b"home", b"7", 2],
        [2, b"lab", b"1", 1],
        [3, b"lab", b"2", 0],
        [4, b"lab", b"7", 0],
        [4, b"lab", b"7", 1],
        [4, b"lab", b"7", 2],
    ]
    assert [path.rsplit("/", 1)[1] for path in found["file"]] == ["a.iid", "a.iid", "b.iid", "a.iid", "b.iid", "b.iid"]


def test_the_order_of_files_is_irrelevant(slides):
    paths = [slides / "a.iid", slides / "b.iid"]
    pd.testing.assert_frame_equal(link(paths), link(paths[::-1]))


def test_groups_are_the_same_in_whatever_order_a_file_has_them(slides):
    found = link(slides / "*.iid", ("address", "groups"))
    sevens = found[found["address"] == b"7"]
    assert sevens.groupby("label")["groups"].agg(list).tolist() == [['["x", "y"]'] * 2, ['["y"]'] * 2]


def test_columns_have_their_types(slides):
    for paths in (slides / "*.iid", [], [DATA / "empty.iid"]):
        kinds = link(paths, ["domain", "address", "groups"]).dtypes.to_dict()
        assert kinds == {
            "label": np.uint64,
            "domain": BYTES,
            "address": BYTES,
            "file": "string",
            "key": np.uint32,
            "groups": "string",
        }
    assert list(link(slides / "*.iid").columns) == ["label", "domain", "address", "file", "key"]


def test_empty_domains_are_said_where_they_matter(slides):
    write(slides / "c.iid", [(b"", b"7", []), (b"lab", b"8", []), (b"", b"9", [])])
    with pytest.warns(IIDWarning, match=r"2 of 9 entries have an empty domain, in .*c\.iid for one: .*identity="):
        link(slides / "*.iid")
    with pytest.warns(IIDWarning, match="2 of 9 entries"):
        link(slides / "*.iid", "domain")
    link(slides / "*.iid", ["address"])  # a warning would be an error here


@pytest.mark.parametrize("identity", [(), [], "area", ("domain", "area"), ("domain", 5)])
def test_an_identity_is_of_names_and_groups(identity, slides):
    with pytest.raises(ValueError, match="expected one or several of 'domain', 'address', 'groups'"):
        link(slides / "*.iid", identity)


def test_an_identity_is_no_number(slides):
    with pytest.raises(TypeError, match="identity = 5: expected one or several of"):
        link(slides / "*.iid", 5)


def test_two_files_of_one_name_are_refused(slides):
    data = [(slides / f"{name}.iid").read_bytes() for name in "ab"]
    with pytest.raises(
        ValueError, match=r"link: 2 different files are called <bytes>, expected one of every name: .*save"
    ):
        link([iid_dask.open(some) for some in data])
    assert len(link([iid_dask.open(data[0]), iid_dask.open(data[0])])) == 3
    outdated = iid_dask.open(slides / "a.iid")
    (slides / "b.iid").replace(slides / "a.iid")
    with pytest.raises(ValueError, match=r"2 different files are called .*a\.iid, expected one of .*open an outdated"):
        link([slides / "a.iid", outdated])


def test_files_may_be_named_by_an_iterator(slides):
    pd.testing.assert_frame_equal(link(slides.glob("*.iid")), link(slides / "*.iid"))


def test_urls_are_linked_under_the_names_they_open_with(slides):
    import fsspec

    fs = fsspec.filesystem("memory")
    for name in "ab":
        fs.pipe(f"/link/{name}.iid", (slides / f"{name}.iid").read_bytes())
    found = link("memory://link/*.iid")
    assert found["file"].unique().tolist() == ["memory://link/a.iid", "memory://link/b.iid"]
    with iid_dask.open("memory://link/a.iid") as reader:
        assert reader.name == found["file"][0]
    fs.rm("/link", recursive=True)


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=2), st.integers(0, 3)), max_size=30))
def test_rows_are_numbered_as_they_sort(rows):
    columns = [pa.array([row[0] for row in rows], pa.large_binary()), pa.array([row[1] for row in rows], pa.uint32())]
    known = sorted(set(rows))
    assert number(columns).tolist() == [1 + known.index(row) for row in rows]
    names = sorted({row[0] for row in rows})
    assert ranks(columns[0]).tolist() == [names.index(row[0]) for row in rows]


def test_lists_of_groups_come_in_one_order():
    lists = pa.array(['["b", "a"]', "[]", '["a", "b"]', '["\\u00fc"]'], pa.large_string())
    assert in_one_order(lists).to_pylist() == ['["a", "b"]', "[]", '["a", "b"]', '["\\u00fc"]']


def test_opened_arrays_share_labels(slides):
    table = link(slides / "*.iid")
    for name, labels in (("a.iid", [4, 2, 1]), ("b.iid", [3, 4, 4])):
        with xr.open_dataset(slides / name, engine="iid", labels=table) as ds:
            assert ds["label"].values[0, ::4].tolist() == labels
