"""`iid ls`, `at`, `find`, `overlaps`, `measure`: the same answers as in Python, in every format."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import zarr
from test_cli import DATA, US, call

import iid_dask
from iid_dask import IIDWriter


@pytest.fixture
def plate(tmp_path):
    """Three files with names that need care."""
    for number, names in enumerate([(b"a", b"b"), (), (b"\xff\\", b"a")]):
        with IIDWriter(tmp_path / f"well{number}.iid", metadata={"image": {"height": 9, "width": 9}}) as writer:
            for i, name in enumerate(names):
                writer.add(b"cell", name, (0, i, 2 + i, 4), np.ones((2 + i, 4 - i)), groups=["even"] if i == 0 else [])
    return tmp_path


def parsed(text, kind):
    if kind == "json":
        return json.loads(text)
    return list(csv.DictReader(io.StringIO(text)))


# --- ls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_ls_is_the_entry_table(plate, kind):
    rows = parsed(call("ls", plate / "*.iid", "--format", kind).output, kind)
    wanted = iid_dask.read_entries(str(plate / "*.iid"), names="text").compute()
    assert [row["address"] for row in rows] == ["a", "b", "\\xff\\\\", "a"] == wanted.address.tolist()
    assert [int(row["area"]) for row in rows] == wanted.area.tolist() == [8, 9, 8, 9]
    assert [row["file"] for row in rows] == wanted.file.tolist()
    assert list(rows[0]) == list(wanted)
    assert [row["groups"] for row in rows] == wanted.groups.tolist()


def test_ls_filters_rows_and_chooses_columns(plate):
    output = call(
        "ls", US, "--where", "area >= 12000", "--where", "domain = states", "--columns", "address,area"
    ).output
    lines = [line.split() for line in output.splitlines()]
    assert lines == [["address", "area"], ["48", "26112"], ["06", "16593"], ["30", "18073"], ["35", "12212"]]
    with iid_dask.open(US) as reader:
        wanted = reader.filter(bbox=(300, 200, 310, 210), groups="states")
    words = ("ls", US, "--bbox", 300, 200, 310, 210, "--group", "states", "--format", "json", "--columns", "key")
    assert [row["key"] for row in json.loads(call(*words).output)] == wanted.tolist()
    escaped = call(
        "ls", plate / "well2.iid", "--where", r"address = \xff\\", "--columns", "key", "--format", "csv"
    ).output
    assert escaped == "key\n0\n"


def test_ls_writes_files_whole(plate, tmp_path):
    out = tmp_path / "table.parquet"
    assert call("ls", plate / "*.iid", "-o", out).output == f"{out}: 4 entries\n"
    table = pd.read_parquet(out)
    assert table.address.tolist() == [b"a", b"b", b"\xff\\", b"a"]
    before = out.read_bytes()
    broken = plate / "well9.iid"
    broken.write_bytes(b"no such file")
    result = call("ls", plate / "*.iid", "-o", out)
    assert result.exit_code == 1
    assert "well9.iid" in result.output
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if "table" in path.name) == ["table.parquet"]


def test_ls_of_nothing_says_so(plate):
    result = call("ls", plate / "well1.iid")
    assert (result.exit_code, result.output) == (0, "iid: note: no entries\n")
    assert json.loads(call("ls", plate / "well1.iid", "--format", "json").output) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--where", "area"], "expected COLUMN OP VALUE"),
        (["--where", "size > 3"], "size"),
        (["--where", "area = big"], "area"),
        (["--columns", "key,colour"], "colour"),
        (["--bbox", "9", "0", "2", "5"], "upside down"),
        (["--format", "parquet"], "--format parquet needs --out"),
        (["-o", "table.xlsx"], "expected a name in .csv, .json or .parquet"),
        (["--group", "cities"], r"no group 'cities'; there is: ['nation'"),
    ],
)
def test_ls_refuses_with_a_sentence(words, told):
    result = call("ls", US, *words)
    assert result.exit_code == 2
    assert told in result.output


def test_ls_of_a_file_that_is_not_there(tmp_path):
    for name in ("none.iid", "none*.iid"):
        result = call("ls", tmp_path / name)
        assert result.exit_code == 2
        assert "none" in result.output


# --- at, find ---------------------------------------------------------------------------------------------------


def test_at_lists_who_covers_a_pixel():
    rows = json.loads(call("at", US, 300, 200, "--format", "json").output)
    assert [(row["key"], row["domain"], row["address"]) for row in rows] == [
        (0, "nation", "None"),
        (1, "states", "04"),
        (50, "counties", "04015"),
    ]
    assert call("at", US, 0, 0).output == "iid: note: no entries\n"


def test_find_tells_addresses_from_files(plate):
    rows = json.loads(call("find", "a", r"\xff\\", plate / "*.iid", "--format", "json").output)
    assert [(row["file"][-9:], row["key"], row["address"]) for row in rows] == [
        ("well0.iid", 0, "a"),
        ("well2.iid", 0, "\\xff\\\\"),
        ("well2.iid", 1, "a"),
    ]
    assert json.loads(call("find", "a", plate / "*.iid", "--group", "even", "--format", "json").output) == rows[:1]
    assert json.loads(call("find", "a", plate / "*.iid", "--domain", "none", "--format", "json").output) == []
    for words in (["a"], [plate / "well0.iid"]):
        result = call("find", *words)
        assert result.exit_code == 2
        assert "expected addresses, then files" in result.output


# --- overlaps, measure ------------------------------------------------------------------------------------------


def test_overlaps_are_those_of_python(tmp_path):
    with iid_dask.open(US) as reader:
        wanted = reader.overlaps(min_pixels=5000)
    assert len(wanted)
    out = tmp_path / "pairs.parquet"
    assert call("overlaps", US, "--min-pixels", 5000, "-o", out).exit_code == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), wanted)
    assert call("overlaps", US, "--min-pixels", 5000).output.split()[:3] == ["key_a", "key_b", "pixels"]
    assert call("overlaps", DATA / "empty.iid").output == "iid: note: no overlapping pairs\n"


@pytest.mark.parametrize("kind", ["npy", "array", "group"])
def test_measure_reads_zarr_and_npy(tmp_path, kind):
    image = np.random.default_rng(0).integers(0, 2**16, (600, 1000), np.uint16)
    path = tmp_path / f"image.{'npy' if kind == 'npy' else 'zarr'}"
    if kind == "npy":
        np.save(path, image)
    elif kind == "array":
        zarr.create_array(path, data=image, chunks=(256, 256))
    else:
        group = zarr.create_group(path)
        group.create_array("dapi", data=image)
        group.create_array("other", data=image + 1)
    out = tmp_path / "measured.csv"
    words = ["measure", US, path, "-o", out, "--property", "mean", "--property", "area", "--tile", 300, "--no-progress"]
    result = call(*words, *(["--variable", "dapi"] if kind == "group" else []))
    assert result.output == f"{out}: 3,155 rows\n"
    rows = parsed(out.read_text(), "csv")
    with iid_dask.open(US) as reader:
        for row in rows[::500]:
            entry = reader[int(row["key"])]
            assert float(row["mean"]) == image[entry.bbox.slices][entry.mask()].mean()
            assert int(row["area"]) == entry.area


def test_measure_refuses_with_a_sentence(tmp_path):
    group = zarr.create_group(tmp_path / "two.zarr")
    for name in ("a", "b"):
        group.create_array(name, data=np.zeros((3, 3)))
    np.save(tmp_path / "small.npy", np.zeros((3, 3)))
    out = tmp_path / "out.csv"
    for image, told in (
        ("two.zarr", "a group of the arrays ['a', 'b']: choose one of them by --variable"),
        ("none.zarr", "none.zarr"),
        ("none.npy", "none.npy"),
        ("small.npy", "600"),
    ):
        result = call("measure", US, tmp_path / image, "-o", out)
        assert result.exit_code == 2, result.output
        assert told in result.output
        assert not out.exists()


# --- what goes wrong --------------------------------------------------------------------------------------------


def test_names_write_nothing_to_the_terminal_but_themselves(tmp_path):
    with IIDWriter(tmp_path / "red.iid") as writer:
        writer.add(b"d\x1b[31m", b"a\nb", (0, 0, 1, 1), [[1]])
    output = call("ls", tmp_path / "red.iid", "--columns", "domain, address").output
    assert output.split() == ["domain", "address", r"d\x1b[31m", r"a\x0ab"]


def test_what_json_cannot_hold_is_null(tmp_path):
    image = np.full((600, 1000), np.inf)
    np.save(tmp_path / "image.npy", image)
    out = tmp_path / "out.json"
    assert call("measure", US, tmp_path / "image.npy", "-o", out, "--property", "max").exit_code == 0
    assert {row["max"] for row in json.loads(out.read_text())} == {None}


def test_a_sum_that_does_not_fit_is_told_in_a_sentence(tmp_path):
    np.save(tmp_path / "image.npy", np.full((600, 1000), 2**63, np.uint64))
    result = call("measure", US, tmp_path / "image.npy", "-o", tmp_path / "out.csv", "--property", "sum")
    assert result.exit_code == 2
    assert "convert the image to float64" in result.output


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -c 'from iid_dask.cli import main; main()' ls {US} | head -1"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert told.stderr == ""
    assert "address" in told.stdout
