"""``xr.open_dataset(..., engine="iid")``: what it shows, what it takes, and how little it reads."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import dask
import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import TABLE, CountingSource, Twin, overlaps, random_bytes, random_file, reduces, seeds, strides
from xarray.core.indexing import VectorizedIndexer

import iid_dask
from iid_dask import IIDWarning, IIDWriter, raster
from iid_dask.arrays import PixelArray, TableArray
from iid_dask.names import from_text, to_text
from iid_dask.xarray_backend import DECODERS, OPTIONS, IIDBackendEntrypoint

bounded = settings(deadline=None, max_examples=40)

EDGE, US, EMPTY, CORNER = (DATA / f"{stem}.iid" for stem in ("edge", "us", "empty", "corner"))


def opened(target, **options):
    return xr.open_dataset(target, engine="iid", **options)


def chunked(target, chunks, **options):
    """Open in chunks other than the preferred ones, of which xarray warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The specified chunks separate", UserWarning)
        return opened(target, chunks=chunks, **options)


def run_python(code, *arguments, **env):
    """Run code in a fresh process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- what is shown ----------------------------------------------------------------------------------------------


def test_variables_of_a_file():
    with opened(EDGE, layers=True, color=True) as ds:
        kinds = {name: (variable.dims, variable.dtype) for name, variable in ds.data_vars.items()}
        text = np.dtypes.StringDType()
        assert kinds == {
            "label": (("y", "x"), np.uint32),
            "mask": (("y", "x"), bool),
            "depth": (("y", "x"), np.uint16),
            "group_mask": (("group", "y", "x"), bool),
            "layers": (("layer", "y", "x"), np.uint32),
            "color": (("y", "x", "rgb"), np.uint8),
            "key": (("entry",), np.uint32),
            "domain": (("entry",), text),
            "address": (("entry",), text),
            "area": (("entry",), np.uint32),
            **dict.fromkeys(TABLE[4:], (("entry",), np.uint16)),
            "in_group": (("group", "entry"), bool),
        }
        assert dict(ds.sizes) == {"y": 100, "x": 200, "group": 4, "layer": 2, "rgb": 3, "entry": 14}
        assert ds.group.values.tolist() == ["shapes", "bytes", 'größe/樹 "q"', "twins"]
        assert list(ds.coords) == ["group"]
        assert ds.label.attrs["overlap"] == "last"
        for name, variable in ds.data_vars.items():
            assert variable.encoding["preferred_chunks"].keys() == set(variable.dims), name


def test_attributes_are_the_metadata_as_stored(tmp_path):
    kept = {"camera": {"f": [1.5, None]}, "樹": 1, "image": {"height": 9, "width": 8}}
    metadata = {**kept, "coordinates": "y x", "units": "px"}
    with IIDWriter(tmp_path / "a.iid", metadata=metadata) as writer:
        writer.add(b"", b"", (0, 0, 1, 1), np.ones((1, 1)))
    with opened(tmp_path / "a.iid") as ds, iid_dask.open(tmp_path / "a.iid") as reader:
        assert ds.attrs["iid_metadata"] == reader.metadata_json
        plain = {key: value for key, value in ds.attrs.items() if key != "iid_metadata"}
        assert plain == kept
        assert ds.label.shape == (9, 8)


def test_overlap_and_sampling_are_written_down():
    with opened(EDGE, overlap="smallest", stride=3, reduce="any") as ds:
        assert ds.label.attrs["overlap"] == "smallest"
        assert (ds.label.attrs["stride"], ds.label.attrs["reduce"]) == (3, "any")
        assert (ds.depth.attrs["stride"], ds.depth.attrs["reduce"]) == (3, "any")
        assert "overlap" not in ds.depth.attrs


def check_table(ds, reader, keys):
    entries = [reader[int(key)] for key in keys]
    assert ds.key.values.tolist() == [entry.key for entry in entries]
    assert [from_text(name) for name in ds.domain.values] == [entry.domain for entry in entries]
    assert [from_text(name) for name in ds.address.values] == [entry.address for entry in entries]
    assert ds.area.values.tolist() == [entry.area for entry in entries]
    sides = [ds[side].values.tolist() for side in TABLE[4:]]
    assert list(zip(*sides, strict=True)) == [tuple(entry.bbox) for entry in entries]
    if reader.groups:
        wanted = [[group in entry.groups for entry in entries] for group in reader.groups]
        assert ds.in_group.values.tolist() == wanted
    for name in TABLE:
        assert ds[name].values.dtype == ds[name].dtype


@bounded
@given(seed=seeds, stride=strides, reduce=reduces, overlap=overlaps)
def test_pixels_and_table_equal_the_twin(seed, stride, reduce, overlap):
    data = random_bytes(seed)
    reader = iid_dask.open(data)
    options = {"stride": stride, "reduce": reduce, "overlap": overlap}
    ds = opened(data, layers=True, color=True, **options)
    pixels = Twin(reader, **options).pixels()
    assert set(pixels) == {name for name, variable in ds.data_vars.items() if "y" in variable.dims}
    for source in (ds, ds.chunk({"y": 17, "x": 23})):
        for name, wanted in pixels.items():
            found = source[name].values
            assert found.dtype == ds[name].dtype
            assert np.array_equal(found, wanted), name
    check_table(ds, reader, list(reader))
    check_table(ds.chunk({"entry": 3}), reader, list(reader))


@given(st.binary())
@settings(deadline=None, max_examples=200)
def test_names_turn_back_from_text(name):
    text = to_text(name)
    assert from_text(text) == name
    assert text.encode("utf-8") is not None
    with_backslashes = name.replace(b"a", b"\\").replace(b"b", b"\\x41")
    assert from_text(to_text(with_backslashes)) == with_backslashes


@given(st.lists(st.binary(max_size=6), max_size=20, unique=True))
@settings(deadline=None, max_examples=60)
def test_different_names_are_different_text(names):
    assert len({to_text(name) for name in names}) == len(names)


def test_odd_names_are_text():
    with opened(EDGE) as ds:
        assert ds.domain.values[7] == "\\xff\\xfe\x00"
        assert ds.address.values[7] == "\x00\x01\x00"
        assert ds.domain.values[9] == ds.address.values[9] == ""


def test_depth_is_wider_where_it_could_wrap(tmp_path):
    with IIDWriter(tmp_path / "many.iid") as writer:
        writer.add(b"", b"", (0, 0, 1, 1), np.ones((1, 1)))
        writer._entries *= 65_536  # as many calls of add() take seconds
    with opened(tmp_path / "many.iid", entries=False) as ds:
        assert ds.depth.dtype == np.uint32
        assert ds.depth.values.tolist() == [[65_536]]


def test_empty_file_opens_and_all_of_it_is_empty():
    for chunks in (None, {}, "auto", {"y": 4}):
        # xarray cannot choose chunks of text by itself.
        with opened(EMPTY, chunks=chunks, layers=True, color=True, entries=chunks != "auto") as ds:
            assert ds.sizes["y"] == ds.sizes["x"] == ds.sizes["layer"] == ds.sizes.get("entry", 0) == 0
            for variable in ds.compute().data_vars.values():
                assert variable.size == 0
    with opened(EMPTY, shape=(5, 6), chunks={}) as ds:
        assert ds.label.values.tolist() == [[0] * 6] * 5
    with opened(EMPTY, stride=4) as ds:
        assert ds.label.shape == (0, 0)


# --- options ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """Three nested squares with numbers for addresses; the file has neither groups nor a size."""
    path = tmp_path / "three.iid"
    with IIDWriter(path) as writer:
        for side, address, group in ((6, 7, "odd"), (4, 2**40, "even"), (2, 9, "odd")):
            writer.add(b"d%d" % side, str(address).encode(), (0, 0, side, side), np.ones((side, side)), groups=[group])
    return path


def diagonal(path, **options):
    with opened(path, **options) as ds:
        return np.diagonal(ds.label.values).tolist()


def test_overlap(three):
    assert diagonal(three) == [3, 3, 2, 2, 1, 1]
    assert diagonal(three, overlap="first") == [1] * 6
    assert diagonal(three, overlap="largest") == [1] * 6
    assert diagonal(three, overlap="smallest") == [3, 3, 2, 2, 1, 1]
    with opened(three, overlap="raise") as ds:
        with pytest.raises(iid_dask.IIDOverlapError, match=r"3 entries cover the pixel \(row 0, column 0\)"):
            ds.label.load()
        assert ds.label[5, 5].item() == 1


def test_ties_in_area_go_to_the_higher_key(tmp_path):
    with IIDWriter(tmp_path / "a.iid") as writer:
        for _ in range(3):
            writer.add(b"", b"", (0, 0, 2, 2), np.ones((2, 2)))
    for overlap in ("smallest", "largest"):
        assert diagonal(tmp_path / "a.iid", overlap=overlap) == [3, 3]


def test_selections(three):
    assert diagonal(three, keys=[0, 2], shape=(6, 6)) == [3, 3, 1, 1, 1, 1]
    assert diagonal(three, keys=1) == [2, 2, 2, 2, 0, 0]
    assert diagonal(three, keys=range(2)) == [2, 2, 2, 2, 1, 1]
    assert diagonal(three, groups="odd") == [3, 3, 1, 1, 1, 1]
    assert diagonal(three, groups=["even", "odd"]) == [3, 3, 2, 2, 1, 1]
    assert diagonal(three, domains="d4") == diagonal(three, domains=[b"d4"]) == [2, 2, 2, 2, 0, 0]
    assert diagonal(three, addresses=[b"7", "9"]) == [3, 3, 1, 1, 1, 1]
    assert diagonal(three, area=(4, 16)) == [3, 3, 2, 2, 0, 0]
    assert diagonal(three, area=(5, None)) == [2, 2, 2, 2, 1, 1]
    assert diagonal(three, area=(None, 4), groups="even") == [0] * 6
    assert diagonal(three, keys=[]) == [0] * 6
    with opened(three, groups="odd") as ds:
        assert ds.key.values.tolist() == [0, 2]
        assert ds.in_group.values.tolist() == [[True, True], [False, False]]
        assert ds.group_mask.any(("y", "x")).values.tolist() == [True, False]


def test_labels(three):
    big = [7, 2**40, 9]
    assert diagonal(three, labels="key") == [3, 3, 2, 2, 1, 1]
    assert diagonal(three, labels="address") == [9, 9, 2**40, 2**40, 7, 7]
    assert diagonal(three, labels=[5, 5, 8]) == [8, 8, 5, 5, 5, 5]
    assert diagonal(three, labels=np.array([1, 2, 3], np.uint8)) == [3, 3, 2, 2, 1, 1]
    table = {"key": [2, 0, 1], "label": big}
    wanted = [7, 7, 9, 9, 2**40, 2**40]
    structured = np.array(list(zip(*table.values(), strict=True)), [("key", "u4"), ("label", "u8")])
    for labels in (table, pd.DataFrame(table), structured):
        assert diagonal(three, labels=labels) == wanted
    with opened(three, labels="address", layers=True) as ds:
        assert ds.label.dtype == ds.layers.dtype == ds.entry_label.dtype == np.uint64
        assert ds.entry_label.values.tolist() == big
        assert ds.layers.max(("y", "x")).values.tolist() == big
    with opened(three, labels="address", keys=[0, 2]) as ds:
        assert ds.label.dtype == np.uint32
        assert ds.entry_label.values.tolist() == [7, 9]
    # Entries that are not shown may have any label, and need none in a table.
    assert diagonal(three, labels=[0, 5, -3], keys=1) == [5, 5, 5, 5, 0, 0]
    assert diagonal(three, labels={"key": [1], "label": [6]}, keys=[1]) == [6, 6, 6, 6, 0, 0]


def test_addresses_of_nearly_64_bits(tmp_path):
    with IIDWriter(tmp_path / "a.iid") as writer:
        writer.add(b"", b"18446744073709551615", (0, 0, 1, 1), np.ones((1, 1)))
        writer.add(b"", b"00012", (0, 1, 1, 2), np.ones((1, 1)))
    with opened(tmp_path / "a.iid", labels="address", chunks={}, color=True) as ds:
        assert ds.label.values.tolist() == [[2**64 - 1, 12]]
        assert ds.color.values.any(axis=2).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"overlap": "best"}, ValueError, "overlap = 'best': expected one of 'last', 'first'"),
        ({"overlap": None}, ValueError, "overlap = None: expected one of"),
        ({"reduce": "mean"}, ValueError, "reduce = 'mean': expected one of 'nearest', 'any'"),
        ({"stride": 0}, ValueError, "stride = 0: expected an integer"),
        ({"stride": -2}, ValueError, "stride = -2: expected an integer"),
        ({"stride": 1.5}, ValueError, "stride = 1.5: expected an integer"),
        ({"stride": True}, ValueError, "stride = True: expected an integer"),
        ({"stride": 2**70}, ValueError, "stride = 1180591620717411303424: expected an integer"),
        ({"shape": 5}, ValueError, r"shape = 5: expected \(rows, columns\)"),
        ({"shape": (1, 2, 3)}, ValueError, r"expected \(rows, columns\)"),
        ({"shape": (-1, 2)}, ValueError, "shape = -1: expected an integer"),
        ({"shape": "ab"}, ValueError, r"shape = 'ab': expected \(rows, columns\)"),
        ({"keys": [0, 3]}, KeyError, "no entry 3; keys are integers from 0 to 2, 3 in all"),
        ({"keys": [-1]}, KeyError, "no entry -1"),
        ({"keys": "0"}, TypeError, "str"),
        ({"keys": [0.0]}, TypeError, "float"),
        ({"groups": "none"}, KeyError, r"no group 'none'; there is: \['odd', 'even'\]"),
        ({"groups": ["odd", b"even"]}, KeyError, "no group b'even'"),
        ({"domains": "d5"}, KeyError, "no entry has the domain b'd5'; some that exist:"),
        ({"addresses": [b"8"]}, KeyError, "no entry has the address b'8'"),
        ({"addresses": [8]}, TypeError, "addresses: 8 is int, expected bytes or str"),
        ({"area": 5}, ValueError, r"area = 5: expected \(min, max\)"),
        ({"area": (1, 2, 3)}, ValueError, r"expected \(min, max\)"),
        ({"area": ("1", None)}, TypeError, "expected integers, pixels, or None"),
        ({"labels": "name"}, ValueError, "labels = 'name': expected 'key', 'address'"),
        ({"labels": [1, 2]}, ValueError, r"shape \(2,\), expected one integer for each of 3"),
        ({"labels": 4}, ValueError, r"shape \(\), expected one integer"),
        ({"labels": [1.0, 2.0, 3.0]}, ValueError, "dtype float64, expected integers"),
        ({"labels": [1, 0, 3]}, ValueError, "labels: 0 for entry 1, expected 1 or more: 0 is background"),
        ({"labels": {"key": [0, 1], "label": [1, 2]}}, ValueError, "no row for 1 entries, the first is 2"),
        ({"labels": {"key": [0, 1, 5], "label": [1, 2, 3]}}, KeyError, "no entry 5"),
        ({"labels": {"key": [0, 1, 2, 1], "label": [1, 2, 3, 4]}}, ValueError, "2 rows for entry 1, expected one"),
        ({"labels": {"key": [0, 1, 2], "label": [1, 2]}}, ValueError, r"shape \(2,\)"),
        ({"limits": 5}, TypeError, "limits = 5: expected iid_dask.Limits"),
        ({"levels": 2}, TypeError, "levels"),
        ({"strides": 2}, TypeError, "strides"),
    ],
)
def test_bad_options_say_what_was_expected(three, options, error, message):
    gc.collect()
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(error, match=message):
        opened(three, **options)
    gc.collect()
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.parametrize(
    "address", [b"", b"x7", b"-1", b"0", b"1.5", b" 1", b"1\n", "\u0663".encode(), b"18446744073709551616"]
)
def test_addresses_that_are_no_labels_are_named(tmp_path, address):
    with IIDWriter(tmp_path / "a.iid") as writer:
        writer.add(b"", b"3", (0, 0, 1, 1), np.ones((1, 1)))
        writer.add(b"", address, (0, 1, 1, 2), np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"entry 1: address .* is no decimal number from 1 to 2"):
        opened(tmp_path / "a.iid", labels="address")
    with opened(tmp_path / "a.iid", labels="address", keys=[0]) as ds:
        assert ds.label.values.tolist() == [[3, 0]]


def test_entries_layers_and_color_are_asked_for():
    with opened(EDGE) as ds:
        assert not {"layers", "color"} & set(ds)
    with opened(EDGE, entries=False) as ds:
        assert set(ds.data_vars) == {"label", "mask", "depth", "group_mask"}
        assert "entry" not in ds.dims


def test_drop_variables():
    with opened(EDGE, drop_variables=["depth", "nothing", "area"], chunks={}) as ds:
        assert not {"depth", "area"} & set(ds)
        assert "label" in ds
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    with opened(EDGE, drop_variables="label") as ds:
        assert "label" not in ds
        assert "depth" in ds
        assert len(os.listdir("/dev/fd")) == before + 1
    assert len(os.listdir("/dev/fd")) == before


def test_verify_and_limits(indexed, tmp_path):
    data = bytearray(indexed["us"].read_bytes())
    data[data.index(b"us-atlas")] = ord("U")
    with pytest.raises(iid_dask.IIDFormatError, match=r"meta.*crc32"):
        opened(bytes(data))
    with opened(bytes(data), verify=False) as ds:
        assert ds.attrs["source"].startswith("Us-atlas")
    with pytest.raises(iid_dask.IIDFormatError, match=r"meta.*expected at most 10"):
        opened(US, limits=iid_dask.Limits(max_meta=10))


@pytest.mark.parametrize("engine", ["iid", IIDBackendEntrypoint])
@pytest.mark.parametrize("opener", [xr.open_dataset, xr.open_datatree, xr.open_groups])
def test_decoder_keywords_are_accepted(engine, opener):
    def close(found):
        for item in found.values() if isinstance(found, dict) else [found]:
            item.close()

    for keyword in DECODERS:
        for value in (False, None):
            close(opener(EDGE, engine=engine, **{keyword: value}))
    close(opener(EDGE, engine=engine, **dict.fromkeys(DECODERS, False)))
    for decode_cf in (True, False):
        close(opener(EDGE, engine=engine, decode_cf=decode_cf, overlap="first"))
    with pytest.raises(TypeError, match="colour"):
        opener(EDGE, engine=engine, colour=True)


def test_a_class_as_engine_takes_decode_cf_in_a_fresh_process():
    """Once the engine was found by its name, xarray knows its parameters; before, only the class tells them."""
    code = """
    import sys, xarray as xr
    from iid_dask.xarray_backend import IIDBackendEntrypoint
    for opener in (xr.open_datatree, xr.open_dataset):
        print(opener(sys.argv[1], engine=IIDBackendEntrypoint, decode_cf=False, stride=2).attrs != {})
    """
    assert run_python(code, US) == "True\nTrue"


def test_signature_names_every_option():
    import inspect

    named = set(inspect.signature(IIDBackendEntrypoint.open_dataset).parameters) - {"self", "filename_or_obj"}
    assert named == {*OPTIONS, *DECODERS} == set(IIDBackendEntrypoint.open_dataset_parameters)
    assert not named & {"chunks", "cache", "inline_array", "create_default_indexes", "chunked_array_type"}


# --- where files come from --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wanted():
    with np.load(DATA / "edge.expected.npz") as arrays:
        return arrays["last"]


def test_targets(tmp_path, monkeypatch, wanted):
    path = Path(shutil.copyfile(EDGE, tmp_path / "edge.iid"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = path.read_bytes()
    memory = fsspec.filesystem("memory")
    memory.pipe("/folder/edge.iid", data)
    targets = [
        str(path),
        path,
        "~/edge.iid",
        Path("~/edge.iid"),
        "edge.iid",
        Path("edge.iid"),
        "./../" + tmp_path.name + "/edge.iid",
        data,
        memoryview(data),
        bytearray(data),
        io.BytesIO(data),
        f"file://{path}",
        "memory://folder/edge.iid",
        "simplecache::memory://folder/edge.iid",
        fsspec.open(f"file://{path}"),
        fsspec.open("memory://folder/edge.iid"),
    ]
    for target in targets:
        with opened(target) as ds:
            assert np.array_equal(ds.label.values, wanted), target
            assert np.array_equal(ds.chunk({"y": 50}).label.values, wanted), target
            again = pickle.loads(pickle.dumps(ds.label.variable))
            assert np.array_equal(again.values, wanted), target
    with (
        open(path, "rb") as file,
        fsspec.open("memory://folder/edge.iid") as remote,
        memory.open("/folder/edge.iid") as third,
    ):
        for target in (file, remote, third):
            target.seek(5)
            with opened(target, chunks={}) as ds:
                assert np.array_equal(ds.label.values, wanted)
            assert target.tell() == 5


def test_storage_options_reach_the_file_system(tmp_path):
    folder = fsspec.filesystem("memory")
    folder.pipe("/inside/edge.iid", EDGE.read_bytes())
    options = {"path": "/inside", "target_protocol": "memory"}
    with opened("dir://edge.iid", storage_options=options, chunks={}) as ds:
        assert ds.label.values.any()
    with pytest.raises(FileNotFoundError):
        opened("dir://edge.iid", storage_options={**options, "path": "/elsewhere"})


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/no/such/file.iid", FileNotFoundError),
        ("memory://no/such/file.iid", FileNotFoundError),
        ("/", IsADirectoryError),
        (b"", iid_dask.IIDFormatError),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), iid_dask.IIDFormatError),
        (5, TypeError),
        (None, TypeError),
        (io.StringIO("text"), TypeError),
    ],
)
def test_targets_that_are_no_files(target, error):
    with pytest.raises(error):
        IIDBackendEntrypoint().open_dataset(target)


def test_guess_by_name():
    guess = IIDBackendEntrypoint().guess_can_open
    for name in ("a.iid", "a.IID", Path("b.Iid"), "~/a.iid", "s3://bucket/a.iid", "https://host/x.iid?token=1.nc"):
        assert guess(name), name
    for name in ("a.nc", "a.iid.nc", "iid", "a.iid/", "http://host/x.nc", "http://host/x.nc?y=a.iid", "", "s3://b"):
        assert not guess(name), name


def test_guess_by_content(tmp_path):
    guess = IIDBackendEntrypoint().guess_can_open
    plain = tmp_path / "no-suffix"
    for path in (EDGE, US, EMPTY, CORNER):
        data = path.read_bytes()
        assert guess(data)
        assert guess(memoryview(data))
        assert guess(io.BytesIO(data))
        plain.write_bytes(data)
        assert guess(plain)
        iid_dask.add_index(plain)
        assert guess(str(plain))
    with open(plain, "rb") as file:
        for position in (0, 7, 10_000):
            file.seek(position)
            assert guess(file)
            assert file.tell() == position


HEADS = {
    "HDF5": b"\x89HDF\r\n\x1a\n\x00\x00\x00\x00\x00\x08\x08\x00",
    "netCDF 3": b"CDF\x01\x00\x00\x00\x00",
    "netCDF 64": b"CDF\x02\x00\x00\x00\x00",
    "zip": b"PK\x03\x04\x14\x00\x00\x00",
    "PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "TIFF": b"II*\x00\x08\x00\x00\x00",
    "zarr": b'{"zarr_format": 3, "node_type": "group"}',
    "zeros": bytes(16),
    "GRIB": b"GRIB\x00\x00\x00\x02",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_guess_leaves_other_formats_alone(head, tmp_path):
    guess = IIDBackendEntrypoint().guess_can_open
    for size in (0, 32, 1000):
        data = head + bytes(size)
        (tmp_path / "data").write_bytes(data)
        assert not guess(data)
        assert not guess(io.BytesIO(data))
        assert not guess(tmp_path / "data")


@bounded
@given(st.binary(max_size=200))
def test_guess_leaves_random_bytes_alone(data):
    assert IIDBackendEntrypoint().guess_can_open(data) is False


def test_guess_never_raises(tmp_path):
    guess = IIDBackendEntrypoint().guess_can_open
    closed = io.BytesIO(b"")
    closed.close()
    (tmp_path / "folder.iid").mkdir()
    text = io.StringIO("text " * 50)
    text.seek(3)
    folders = [tmp_path, tmp_path / "folder.iid"]
    odd = [None, 5, 1.5, [], {}, object(), closed, text, "a\0b", "\ud800", np.zeros(3)]
    for target in [*folders, *odd, memoryview(np.zeros((4, 4), "f4")[:, ::2])]:
        assert guess(target) is False
    assert text.tell() == 3


def test_engine_is_found_without_being_named(tmp_path):
    shutil.copyfile(EDGE, tmp_path / "EDGE.IID")
    shutil.copyfile(EDGE, tmp_path / "plain")
    for target in (EDGE, str(EDGE), tmp_path / "EDGE.IID", tmp_path / "plain"):
        with xr.open_dataset(target) as ds:
            assert ds.label.shape == (100, 200)
    assert isinstance(xr.backends.list_engines()["iid"], IIDBackendEntrypoint)


# --- laziness ---------------------------------------------------------------------------------------------------


def refuse(*_, **__):
    raise AssertionError("something was computed")


def test_opening_computes_nothing():
    with dask.config.set(scheduler=refuse):
        for opener in (opened, lambda *a, **k: xr.open_datatree(*a, engine="iid", **k)):
            for chunks in (None, {}, "auto"):
                with opener(US, chunks=chunks, entries=chunks != "auto") as found:
                    repr(found)
        with opened(US, chunks={}) as ds, pytest.raises(AssertionError, match="something was computed"):
            ds.label.compute()


def test_opening_reads_header_and_tables(indexed):
    for path in (US, indexed["us"]):
        source = CountingSource(path)
        header = iid_dask.open(path).header
        tables = sum(int(header[f"{section}_length"]) for section in ("lut", "meta", "groups"))
        with chunked(source, {"y": 64, "x": 64}) as ds:
            ds.chunk({"y": 10, "entry": 7})
            ds.isel(y=slice(3, 90, 2)).label.transpose("x", "y")
            assert source.nbytes <= 2**16 + tables + 100
            assert source.nbytes < source.size / 2


def test_a_window_reads_little(indexed):
    source = CountingSource(indexed["us"])
    with opened(source) as ds:
        before = source.nbytes
        index = source.size - US.stat().st_size
        ds.area.load()
        assert source.nbytes - before <= index
        before = source.nbytes
        ds.label[300:310, 400:410].load()
        assert source.nbytes - before < 20_000
        before = source.nbytes
        ds.domain[5:7].load()
        assert source.nbytes - before < 1000


# --- indexing ---------------------------------------------------------------------------------------------------

VIEWS = ({}, {"stride": 3}, {"stride": 3, "reduce": "any"})


@cache
def pair(view):
    """A lazy dataset and the same in memory."""
    options = {"layers": True, "color": True, "overlap": "smallest", **VIEWS[view]}
    # Without the cache, each read goes to the file.
    return opened(EDGE, cache=False, **options), opened(EDGE, **options).load()


def test_views_equal_the_twin():
    with iid_dask.open(EDGE) as reader:
        for view, options in enumerate(VIEWS):
            _, full = pair(view)
            for name, wanted in Twin(reader, overlap="smallest", **options).pixels().items():
                assert np.array_equal(full[name].values, wanted)


def positions(size):
    return st.integers(-size, size - 1)


def indexers(size):
    edge = st.none() | st.integers(-size - 3, size + 3)
    slices = st.builds(slice, edge, edge, st.none() | st.integers(-7, 7).filter(bool))
    return st.one_of(
        # xarray itself takes slice(-9, None, -1) of 8 rows for slice(-1, None, -1).
        slices.filter(lambda found: (found.step or 1) > 0 or (found.start or 0) >= -size),
        positions(size),
        positions(size).map(np.int64),
        st.lists(positions(size), max_size=12).map(lambda found: np.array(found, np.int64)),
        st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random(size) < 0.2),
        st.just(np.array([], int)),
        st.just([]),
        st.just(slice(0, 0)),
    )


def check_index(view, name, *keys):
    lazy, full = (ds[name] for ds in pair(view))
    for key in keys:
        lazy, full = lazy.isel(key), full.isel(key)
    assert lazy.dims == full.dims
    assert lazy.shape == full.shape
    found = lazy.values
    assert found.dtype == full.dtype
    assert np.array_equal(found, full.values)


NAMES = ("label", "mask", "depth", "group_mask", "layers", "color", "key", "domain", "area", "max_col", "in_group")


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_orthogonal_indexing_equals_numpy(name, data):
    view = data.draw(st.sampled_from(range(3)))
    sizes = pair(view)[1][name].sizes
    key = data.draw(st.fixed_dictionaries({}, optional={dim: indexers(size) for dim, size in sizes.items()}))
    check_index(view, name, key)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_pointwise_indexing_equals_numpy(name, data):
    view = data.draw(st.sampled_from(range(3)))
    sizes = pair(view)[1][name].sizes
    shape = data.draw(st.sampled_from([(), (0,), (1,), (9,), (3, 4), (2, 0)]))
    dims = ("p", "q")[: len(shape)]
    key = {}
    for dim, size in sizes.items():
        kind = data.draw(st.sampled_from(["points", "points", "row", "other", "none"]))
        rng = np.random.default_rng(data.draw(seeds))
        if kind == "points":
            key[dim] = xr.Variable(dims, rng.integers(-size, size, shape))
        elif kind == "row" and len(shape) == 2:
            key[dim] = xr.Variable("q", rng.integers(0, size, shape[1]))
        elif kind == "other":
            key[dim] = data.draw(indexers(size))
    check_index(view, name, key)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_an_index_of_an_index_equals_numpy(data):
    view = data.draw(st.sampled_from(range(3)))
    name = data.draw(st.sampled_from(["label", "group_mask", "color", "in_group"]))
    full = pair(view)[1][name]
    keys = []
    for _ in range(2):
        sizes = {dim: size for dim, size in full.sizes.items() if size}
        key = {dim: data.draw(indexers(size)) for dim, size in sizes.items()}
        full = full.isel(key)
        keys.append(key)
    check_index(view, name, *keys)


def test_boolean_masks_and_many_points():
    rng = np.random.default_rng(0)
    for view in range(3):
        sizes = pair(view)[1].sizes
        rows, cols = rng.integers(0, sizes["y"], 4000), rng.integers(0, sizes["x"], 4000)
        for name in ("label", "color", "group_mask", "depth"):
            check_index(view, name, {"y": xr.Variable("p", rows), "x": xr.Variable("p", cols)})
            check_index(view, name, {"y": rng.random(sizes["y"]) < 0.5, "x": rng.random(sizes["x"]) < 0.5})


@pytest.mark.parametrize("view", range(3))
def test_arrays_index_without_xarray_around_them(view):
    """Orders and slices that today's xarray changes before it asks a backend."""
    lazy, full = pair(view)
    rng = np.random.default_rng(view)
    for name in ("label", "group_mask", "color", "in_group"):
        array, values = unwrapped(lazy[name]), full[name].values
        chosen = [rng.integers(0, size, 9) for size in array.shape]
        assert np.array_equal(array.block(chosen), values[np.ix_(*chosen)])
        where = rng.integers(0, array.shape[1], (3, 4))
        key = VectorizedIndexer((slice(1, None, 2), where, *(slice(None) for _ in array.shape[2:])))
        assert np.array_equal(array[key], np.moveaxis(values[1::2][:, where], 0, 2))


@pytest.mark.parametrize("view", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_out_of_range_is_refused(name, view):
    variable = pair(view)[0][name]
    for dim, size in variable.sizes.items():
        for bad in (size, -size - 1, 70_000, [0, size], np.array([size + 5, 0]), [-size - 1]):
            with pytest.raises(IndexError):
                _ = variable.isel({dim: bad}).values
        other = {d: xr.Variable("p", [0, 0]) for d in variable.dims if d != dim}
        for bad in ([0, size], [0, -size - 1]):
            with pytest.raises(IndexError):
                _ = variable.isel({dim: xr.Variable("p", bad), **other}).values


def test_points_of_a_large_image_cost_only_themselves():
    with opened(CORNER) as ds:
        side = ds.sizes["y"]
        assert side == 65_535
        rng = np.random.default_rng(0)
        rows, cols = rng.integers(0, side, (2, 1000))
        rows[0], cols[0] = side - 1, side - 1
        found = ds.label.isel(y=xr.Variable("p", rows), x=xr.Variable("p", cols)).values
        assert found[0] == ds.label[-1, -1].item() > 0
        assert ds.label.isel(y=[0, side - 1], x=[0, side - 1]).values[0, 0] == 3
        assert ds.label.isel(y=slice(None, None, 9000), x=slice(-1, None, -9000)).shape == (8, 8)


def test_scattered_blocks_do_not_become_a_window_each(monkeypatch):
    """Every second row and column of "any" views: thousands of blocks, but few windows."""
    windows = []
    paint = raster.paint

    def counted(view, target, *arguments, **options):
        windows.append(target)
        return paint(view, target, *arguments, **options)

    monkeypatch.setattr(raster, "paint", counted)
    with opened(US, stride=2, reduce="any") as ds:
        full = ds.label.compute().values
        windows.clear()
        assert np.array_equal(ds.label[::2, ::2].values, full[::2, ::2])
        assert len(windows) == 1
        assert np.array_equal(ds.label[[0, 3, 4, 299], ::-3].values, full[[0, 3, 4, 299], ::-3])
        assert len(windows) == 2


# --- computing elsewhere and later ------------------------------------------------------------------------------


def test_load_async():
    with opened(EDGE, layers=True, color=True) as ds:
        found = asyncio.run(ds.load_async())
        full = pair(0)[1]
        for name in ("mask", "depth", "group_mask", "layers", "domain", "in_group"):
            assert np.array_equal(found[name].values, full[name].values)
    with opened(EDGE) as ds:
        rows, cols = xr.Variable("p", [3, 1]), xr.Variable("p", [9, 4])
        part = asyncio.run(ds.label.isel(y=rows, x=cols).load_async())
        assert np.array_equal(part.values, ds.label.values[[3, 1], [9, 4]])


def unwrapped(variable):
    data = variable.variable._data
    while not isinstance(data, PixelArray | TableArray):
        data = data.array
    return data


def test_variables_pickle_small_and_equal():
    options = {"layers": True, "color": True, "groups": ["states"], "keys": range(1, 40)}
    with opened(US, cache=False, **options) as ds:
        for name in ds.data_vars:
            data = pickle.dumps(ds[name].variable)
            assert len(data) < 2500, name
            assert np.array_equal(pickle.loads(data).values, ds[name].values)
            assert type(unwrapped(ds[name])).__name__ in ("PixelArray", "TableArray")
        again = pickle.loads(pickle.dumps(ds.isel(y=slice(0, 9))))
        xr.testing.assert_identical(again.load(), ds.isel(y=slice(0, 9)).load())


def test_graphs_are_small():
    with chunked(CORNER, {"y": 256, "x": 256}) as ds:
        assert ds.label.data.npartitions == 256**2
        assert len(pickle.dumps(ds.label.data.dask)) < 20_000


TOKENS = """
import sys, dask.base, xarray as xr
path = sys.argv[1]
for options in ({}, {"overlap": "first"}, {"stride": 2}, {"stride": 2, "reduce": "any"}, {"keys": [1]},
                {"shape": (9, 9)}, {"labels": list(range(5, 3160))}, {"groups": "states"}, {"area": (5, None)}):
    for chunks in ({}, None):
        ds = xr.open_dataset(path, engine="iid", chunks=chunks, color=True, **options)
        ds = ds if chunks == {} else ds.chunk()
        print(ds.label.data.name, ds.mask.data.name, ds.depth.data.name, ds.color.data.name, ds.key.data.name)
    for name in ("label", "color", "key"):
        data = xr.open_dataset(path, engine="iid", color=True, **options)[name].variable._data
        while not hasattr(data, "view"):
            data = data.array
        print(dask.base.tokenize(data))
"""


def test_tokens_are_equal_in_two_processes_and_differ_with_file_and_options(us):
    first, second = (run_python(TOKENS, us, PYTHONHASHSEED=str(seed)).split() for seed in (1, 2))
    assert first == second
    assert len(set(first)) == len(first)
    status = os.stat(us)
    os.utime(us, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    third = run_python(TOKENS, us).split()
    assert not set(third) & set(first)


def test_tokens_tell_a_nanosecond(us):
    """xarray's own names of `open_dataset(chunks=)` tell a microsecond or so; ours, of `.chunk()`, all there is."""
    names = []
    for _ in range(2):
        with opened(us) as ds:
            names.append({ds.chunk()[name].data.name for name in ("label", "domain")})
        status = os.stat(us)
        os.utime(us, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not names[0] & names[1]


def test_arrays_of_a_file_that_changed_say_so(us):
    with opened(us, chunks={}) as ds, opened(us, cache=False) as lazy:
        assert ds.label[0, 0].compute() == 0
        data = pickle.dumps(lazy.label.variable)
        shutil.copyfile(EDGE, us)
        for read in (ds.label.compute, lambda: lazy.label.values, lambda: pickle.loads(data).values):
            with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
                read()


def test_computing_after_close_works_and_no_descriptor_stays_open(us):
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    ds = opened(us, chunks={}, cache=False)
    lazy = opened(us, cache=False)
    tree = xr.open_datatree(us, engine="iid")
    wanted = ds.label.values
    assert len(os.listdir("/dev/fd")) == before + 3
    for found in (ds, lazy, tree):
        found.close()
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
    assert np.array_equal(ds.label.values, wanted)
    assert np.array_equal(lazy.label.values, wanted)
    assert np.array_equal(tree["0/label"].values, wanted)
    del ds, lazy, tree, found
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


def test_opening_and_closing_leaves_nothing(us):
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for _ in range(100):
        with opened(us, chunks={}) as ds:
            ds.label[:5, :5].compute()
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


def test_eight_threads_read_what_one_reads():
    rng = np.random.default_rng(5)
    with opened(US, cache=False) as ds, np.load(DATA / "us.expected.npz") as arrays:
        last, depth = arrays["last"], arrays["depth"]

        def right(corner):
            window = tuple(slice(int(start), int(start) + 50, 1 + int(start) % 3) for start in corner)
            return np.array_equal(ds.label[window].values, last[window]) and np.array_equal(
                ds.depth[window].values, depth[window]
            )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(right, rng.integers(0, 550, (300, 2))))


def test_worker_processes_make_the_same_arrays():
    with chunked(US, {"y": 300}) as ds, np.load(DATA / "us.expected.npz") as arrays:
        with dask.config.set(scheduler="processes", num_workers=2):
            found, depth, domain = dask.compute(ds.label.data, ds.depth.data, ds.domain.data)
        assert np.array_equal(found, arrays["last"])
        assert np.array_equal(depth, arrays["depth"])
        assert domain[:2].tolist() == ["nation", "states"]


# --- many files -------------------------------------------------------------------------------------------------


@pytest.fixture
def plate(tmp_path):
    """Three files with as many entries, but other names, in a group of the same name."""
    paths = [tmp_path / f"{n}.iid" for n in range(3)]
    for n, path in enumerate(paths):
        with IIDWriter(path, metadata={"image": {"height": 8, "width": 9}}) as writer:
            for entry in range(2):
                box = (n, entry, n + 2, entry + 3)
                writer.add(b"file%d" % n, b"%d" % (10 * n + entry), box, np.ones((2, 3)), groups=["g"])
    return paths


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("new_defaults", [False, True])
def test_names_stay_with_their_files(plate, new_defaults, parallel):
    with xr.set_options(use_new_combine_kwarg_defaults=new_defaults), warnings.catch_warnings():
        # xarray announces its new defaults.
        warnings.simplefilter("ignore", FutureWarning)
        ds = xr.open_mfdataset(plate, engine="iid", combine="nested", concat_dim="file", parallel=parallel)
    with ds:
        assert ds.label.shape == (3, 8, 9)
        assert ds.domain.dims == ("file", "entry")
        assert ds.domain.values.tolist() == [[f"file{n}"] * 2 for n in range(3)]
        assert ds.address.values.tolist() == [[str(10 * n + entry) for entry in range(2)] for n in range(3)]
        assert ds.min_row.values.tolist() == [[n, n] for n in range(3)]
        for n, path in enumerate(plate):
            with opened(path) as one:
                assert np.array_equal(ds.label[n].values, one.label.values)
                assert np.array_equal(ds.group_mask.isel(file=n).values, one.group_mask.values)
        assert ds.label.dtype == np.uint32


@pytest.mark.parametrize("new_defaults", [False, True])
def test_files_of_different_length_combine_without_tables(plate, new_defaults):
    with IIDWriter(plate[1], metadata={"image": {"height": 8, "width": 9}}) as writer:
        writer.add(b"other", b"", (0, 0, 1, 1), np.ones((1, 1)), groups=["g"])
    with xr.set_options(use_new_combine_kwarg_defaults=new_defaults), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        ds = xr.open_mfdataset(plate, engine="iid", combine="nested", concat_dim="file", entries=False)
    with ds:
        assert ds.label.max(("y", "x")).values.tolist() == [2, 1, 2]
        assert "domain" not in ds


# --- size -------------------------------------------------------------------------------------------------------


def sized(path, metadata):
    with IIDWriter(path, metadata=metadata) as writer:
        writer.add(b"", b"", (1, 2, 5, 6), np.ones((4, 4)))
        writer.add(b"", b"", (0, 0, 2, 3), np.ones((2, 3)))
    return path


def test_a_sound_size_is_taken(tmp_path):
    path = sized(tmp_path / "a.iid", {"image": {"height": 7, "width": 65_535}})
    with opened(path) as ds:
        assert ds.label.shape == (7, 65_535)
    with opened(path, shape=(5, 8)) as ds:
        assert ds.label.shape == (5, 8)
        assert ds.label.values[1, 2] == 2
    for metadata in ({}, {"image": None}, {"image": {"name": "x"}}, {"image": [7, 7]}):
        with opened(sized(tmp_path / "b.iid", metadata)) as ds:
            assert ds.label.shape == (5, 6)


@pytest.mark.parametrize(
    "image",
    [
        {"height": 7},
        {"height": 0, "width": 5},
        {"height": 65_536, "width": 5},
        {"height": 7.0, "width": 5},
        {"height": "7", "width": 5},
        {"height": True, "width": 5},
        {"height": -1, "width": None},
    ],
)
def test_an_unsound_size_is_said_and_the_boxes_count(tmp_path, image):
    path = sized(tmp_path / "a.iid", {"image": image})
    with pytest.warns(IIDWarning, match=r"image.height = .* expected integers from 1 to 65535") as found:
        ds = opened(path)
    assert len(found) == 1
    with ds:
        assert ds.label.shape == (5, 6)
        assert ds.label.values.max() == 2
    with opened(path, shape=(9, 9)) as ds:
        assert ds.label.shape == (9, 9)


@pytest.mark.parametrize("first", ["label", "area", "max_col", "depth"])
def test_a_contradiction_is_said_once_when_columns_are_needed(tmp_path, first):
    path = sized(tmp_path / "a.iid", {"image": {"height": 3, "width": 4}})
    with opened(path, cache=False) as ds:
        assert ds.label.shape == (3, 4)
        _ = ds.key.values, ds.domain.values
        with pytest.warns(IIDWarning, match="1 entries reach beyond the image of 3 by 4 pixels.*entry 0") as found:
            _ = ds[first].values
        assert len(found) == 1
        for name in ds.data_vars:
            _ = ds[name].values
        assert ds.label.values.tolist() == [[2, 2, 2, 0], [2, 2, 2, 1], [0, 0, 1, 1]]
        assert ds.max_row.values.tolist() == [5, 2]


# --- processes of their own -------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing_heavy():
    code = """
    import sys, iid_dask
    iid_dask.sample("us")
    print(sorted({name.split(".")[0] for name in sys.modules}
                 & {"numpy", "dask", "numba", "xarray", "pyarrow", "pandas", "zarr", "fsspec", "distributed"}))
    """
    assert run_python(code) == "[]"


def test_importing_the_engine_adds_nothing_heavy():
    code = """
    import sys, xarray
    before = {name.split(".")[0] for name in sys.modules}
    import iid_dask.xarray_backend
    print(sorted({name.split(".")[0] for name in sys.modules} - before))
    """
    assert run_python(code) == "['iid_dask']"


def test_guessing_loads_nothing_heavy(tmp_path):
    (tmp_path / "x.nc").write_bytes(b"CDF\x01" + bytes(100))
    code = """
    import sys, xarray
    before = {name.split(".")[0] for name in sys.modules}
    from iid_dask.xarray_backend import IIDBackendEntrypoint
    IIDBackendEntrypoint().guess_can_open(sys.argv[1])
    print(sorted({name.split(".")[0] for name in sys.modules} - before))
    """
    assert run_python(code, tmp_path / "x.nc") == "['iid_dask']"


def test_works_where_no_compiled_code_can_be_kept(tmp_path):
    package = Path(iid_dask.__file__).parent
    copy = shutil.copytree(package, tmp_path / "iid_dask", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        (folder / "__pycache__").write_text("a file, so that no folder can be made here")
    code = """
    import sys
    from numba import njit
    import iid_dask
    from iid_dask import BBox, kernels, raster
    assert iid_dask.__file__.startswith(sys.argv[1]), iid_dask.__file__
    try:
        njit(cache=True)(kernels.count_block_runs.py_func)
    except RuntimeError as error:
        assert "no locator available" in str(error), error
    else:
        raise SystemExit("numba could keep its cache")
    reader = iid_dask.open(iid_dask.sample("us"))
    view = raster.View(reader, reader.shape)
    print(raster.label(view, raster.Window(BBox(100, 200, 103, 204))).tolist())
    """
    code = "import os; os.environ.pop('NUMBA_CACHE_DIR', None)\n" + textwrap.dedent(code)
    env = {"PYTHONPATH": str(tmp_path), "HOME": "/proc/nonexistent", "XDG_CACHE_HOME": "/proc/nonexistent"}
    with np.load(DATA / "us.expected.npz") as arrays:
        assert run_python(code, tmp_path, **env) == str(arrays["last"][100:103, 200:204].tolist())


@bounded
@given(seed=seeds)
def test_labels_from_addresses_equal_the_twin(seed):
    data = random_bytes(seed, numbers=True)
    reader = iid_dask.open(data)
    labels = {entry.key: int(entry.address) for entry in reader.values()}
    ds = opened(data, labels="address", layers=True, color=True)
    for name, wanted in Twin(reader, labels=labels).pixels().items():
        assert np.array_equal(ds[name].values, wanted)


def test_a_path_and_its_bytes_show_the_same(tmp_path):
    random_file(tmp_path / "a.iid", 7, entries=30)
    with opened(tmp_path / "a.iid") as ds:
        xr.testing.assert_identical(ds.load(), opened((tmp_path / "a.iid").read_bytes()).load())
