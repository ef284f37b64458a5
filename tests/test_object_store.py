"""Files read from a server that speaks S3: how many requests, and what a bad network does to them."""

from __future__ import annotations

import errno
import json
import math
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import s3fs
import xarray as xr
from bad_networks import CarelessSource, read_under_faults
from fault_proxy import FAULTS, Proxy, proxying, seeded
from moving_files import Version, make_versions, random_box, window_of, within
from object_store import Bucket

import iid_dask
from iid_dask import BBox, IIDWriter, Region
from iid_dask.format import faults
from iid_dask.format.folder import as_folder
from iid_dask.format.source import REMOTE_GAP, RemoteSource

PASSING = [fault for fault in FAULTS if fault != "etag"]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(faults, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def proxy(s3_endpoint) -> Iterator[Proxy]:
    with proxying(s3_endpoint) as running:
        running.stall = 1.5
        yield running


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> list[Version]:
    return make_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def behind(bucket, proxy) -> Bucket:
    """The bucket, seen through the proxy by a client that neither waits long nor tries again itself."""
    proxy.forget()
    options = {"read_timeout": 1, "retries": {"max_attempts": 0}}
    return bucket.through(proxy.endpoint, config_kwargs=options)


@pytest.fixture
def once(monkeypatch) -> None:
    """s3fs does not try again either, so that all attempts are ours."""
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def put(bucket: Bucket, name: str, data: bytes | Path) -> None:
    bucket.fs.pipe_file(f"{bucket.name}/{name}", data if isinstance(data, bytes) else data.read_bytes())


def opened(bucket: Bucket, name: str) -> RemoteSource:
    return RemoteSource(bucket.url(name), bucket.storage_options)


DATA = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def held(bucket, behind, proxy) -> RemoteSource:
    """An open object of 300,000 bytes, behind the proxy."""
    put(bucket, "data", DATA)
    found = opened(behind, "data")
    proxy.forget()
    return found


# --- few requests -----------------------------------------------------------------------------------------------


def file_of(path: Path, n: int, side: int) -> Path:
    """Write full squares beside one another, 40 in a row."""
    with IIDWriter(path, metadata={"image": {"height": 65_000, "width": 40 * side}}) as writer:
        bits = np.packbits(np.ones(side * side, bool)).tobytes()
        for key in range(n):
            row, col = key // 40 * side, key % 40 * side
            box = BBox(row, col, row + side, col + side)
            writer.add(b"cell of a name", f"{key:09}".encode(), box, regions=[Region(box, bits)])
    return path


@pytest.mark.parametrize(("n", "side", "gets"), [(10, 8, 1), (2_000, 30, 3), (20_000, 8, 3)])
def test_opening_with_the_index_takes_one_head_and_at_most_three_ranges(n, side, gets, tmp_path, bucket, behind, proxy):
    path = file_of(tmp_path / "x.iid", n, side)
    put(bucket, "x.iid", path)
    with iid_dask.open(behind.url("x.iid"), storage_options=behind.storage_options) as reader:
        assert reader.has_index
        assert reader.columns.areas.tolist() == [side * side] * n
        assert len(reader) == n
    assert dict(proxy.requests) == {("HEAD", f"{bucket.name}/x.iid"): 1, ("GET", f"{bucket.name}/x.iid"): gets}


def test_a_dataset_opens_with_as_few(tmp_path, bucket, behind, proxy):
    put(bucket, "x.iid", file_of(tmp_path / "x.iid", 2_000, 30))
    with xr.open_dataset(behind.url("x.iid"), engine="iid", storage_options=behind.storage_options) as ds:
        assert dict(ds.sizes)["entry"] == 2_000
        opening = proxy.count("HEAD"), proxy.count("GET")
        assert ds.label[:100, :100].values.all()
    assert opening == (1, 3)
    assert (proxy.count("HEAD"), proxy.count("GET")) == (1, 4)


def test_a_window_takes_at_most_one_range_for_each_megabyte_and_asks_for_nothing_else(tmp_path, bucket, behind, proxy):
    path = file_of(tmp_path / "x.iid", 1_600, 200)  # 8 MB of bits, in the order of the image
    put(bucket, "x.iid", path)
    rng = np.random.default_rng(0)
    asked = Counting(behind.url("x.iid"), behind.storage_options)
    with iid_dask.open(asked) as reader, iid_dask.open(path) as local:
        _ = reader.columns
        for _ in range(12):
            row, col = int(rng.integers(0, 7_000)), int(rng.integers(0, 7_000))
            box = BBox(row, col, row + 1000, col + 1000)
            proxy.forget()
            asked.spans.clear()
            assert np.array_equal(window_of(reader, box), window_of(local, box))
            (low, high) = min(start for start, _ in asked.spans), max(stop for _, stop in asked.spans)
            assert proxy.count("GET") <= max(1, math.ceil((high - low) / 2**20))
            assert proxy.count("HEAD") == 0


class Counting(RemoteSource):
    """Keeps which ranges were asked for."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.spans: list[tuple[int, int]] = []

    def _cat(self, starts, stops):
        self.spans += zip(starts, stops, strict=True)
        return super()._cat(starts, stops)


def test_ranges_far_apart_are_asked_for_apart_and_at_once(held, proxy):
    out = np.zeros(300, np.uint8)
    held.read_many(np.array([0, 100_000, 200_000]), np.array([100, 100, 100]), out)
    assert out.tobytes() == DATA[:100] + DATA[100_000:100_100] + DATA[200_000:200_100]
    assert (proxy.count("GET"), proxy.count("HEAD")) == (3, 0)
    assert len(DATA) > REMOTE_GAP, "gathering would have made one of them"


# --- faults that pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", PASSING)
def test_one_fault_is_survived(fault, held, proxy, once):
    proxy.inject([fault])
    assert held.read(1000, 2000) == DATA[1000:3000]
    assert proxy.done == {fault: 1}
    assert proxy.count("GET") == 2


@pytest.mark.parametrize("fault", ["503", "reset before", "stall"])
def test_faults_at_opening_are_survived(fault, bucket, behind, proxy, once, versions):
    put(bucket, "v.iid", versions[0].path)
    proxy.inject([fault, fault] if fault == "503" else [fault], methods=("HEAD", "GET"))
    with iid_dask.open(behind.url("v.iid"), storage_options=behind.storage_options) as reader:
        box = BBox(0, 0, 300, 300)
        assert np.array_equal(window_of(reader, box), within(versions[0].labels, box))
    assert proxy.done[fault] >= 1


def test_only_the_ranges_that_failed_are_asked_for_again(held, proxy, once):
    proxy.inject([None, "cut", None, "503", None])
    out = np.zeros(500, np.uint8)
    starts = np.arange(5) * 50_000
    held.read_many(starts, np.full(5, 100), out)
    assert out.tobytes() == b"".join(DATA[at : at + 100] for at in starts.tolist())
    assert proxy.count("GET") == 7


@pytest.mark.parametrize("fault", ["503", "429", "cut", "reset after", "200 for 206"])
def test_a_fault_that_stays_is_told_after_a_few_attempts(fault, held, proxy, once):
    proxy.inject([fault] * 100)
    message = r"2000 bytes at offset 1000 could not be read in 5 attempts: .*'s3://.*/data'"
    with pytest.raises(OSError, match=message) as caught:
        held.read(1000, 2000)
    assert caught.value.filename == held.name
    assert caught.value.__cause__ is not None
    # aiohttp itself asks again, once, when a server hangs up without an answer.
    assert proxy.count("GET") == faults.ATTEMPTS * (2 if fault == "reset after" else 1)


def test_a_server_that_ignores_ranges_is_told_of(held, proxy):
    proxy.inject(["200 for 206"] * 5)
    with pytest.raises(OSError, match="sent all 300000 bytes: if it cannot send ranges, copy the file first") as caught:
        held.read(1000, 2000)
    assert caught.value.errno == errno.EIO
    assert held.read(1000, 2000) == DATA[1000:3000]


def test_ranges_without_bytes_are_not_asked_for(held, proxy):
    proxy.forget()
    out = np.zeros(5, np.uint8)
    held.read_many(np.array([7, 1000, 0, 90_000, 300_000]), np.array([0, 2, 0, 3, 0]), out)
    assert out.tobytes() == DATA[1000:1002] + DATA[90_000:90_003]
    assert proxy.count("GET") == 2
    held.read_many(np.array([7, 0]), np.array([0, 0]), out[:0])
    assert proxy.count("GET") == 2


def test_an_empty_file_of_a_web_server_is_read(by_http, bucket):
    bucket.fs.pipe_file(f"{bucket.name}/empty", b"", ACL="public-read")
    url, _, name = by_http.name.rpartition("/")
    folder = as_folder(url)
    assert folder.read(name) == DATA
    assert folder.read("empty") == b""


@pytest.mark.parametrize(("status", "error"), [("403", PermissionError), ("404", FileNotFoundError)])
def test_what_does_not_pass_is_neither_tried_again_nor_masked(status, error, held, proxy, once):
    proxy.inject([status] * 4, methods=("GET",))
    with pytest.raises(error):
        held.read(0, 10)
    assert proxy.count("GET") == 1


def test_an_object_that_was_deleted_is_missing(held, bucket, proxy):
    bucket.fs.rm_file(f"{bucket.name}/data")
    with pytest.raises(FileNotFoundError):
        held.read(0, 10)
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(held))
    assert proxy.count("GET") <= 4


def test_no_attempt_begins_after_patience_has_ended(held, proxy, once, monkeypatch):
    monkeypatch.setattr(faults, "PATIENCE", 0.0)
    proxy.inject(["503"] * 4)
    with pytest.raises(OSError, match="could not be read in 1 attempt: "):
        held.read(0, 10)
    assert proxy.count("GET") == 1


def test_half_of_the_answers_bad_and_no_array_wrong(bucket, behind, proxy, once, versions):
    put(bucket, "v.iid", versions[0].path)
    proxy.stall = 0.05
    found = read_under_faults(behind, "v.iid", proxy, versions[0], seeded(PASSING, 20, 50, seed=1), reads=40)
    control = read_under_faults(
        behind, "v.iid", proxy, versions[0], seeded(PASSING, 20, 50, seed=1), reads=40, kind=CarelessSource
    )
    proxy.stall = 1.5
    assert (found["wrong"], found["error"], found["right"]) == (0, 0, 40)
    assert found["faults"] == 20
    assert control["wrong"] + control["error"] > 0, "the faults are such that a careless reader is deceived"


# --- objects that are replaced ----------------------------------------------------------------------------------

OTHER = DATA[::-1]


@pytest.mark.parametrize("new", [OTHER, DATA[:100_000], DATA * 2], ids=["same size", "shorter", "longer"])
def test_an_object_that_is_replaced_while_open_is_refused(new, held, bucket):
    put(bucket, "data", new)
    with pytest.raises(iid_dask.IIDChangedError, match=r"/data: changed since opened; open it again"):
        held.read(200_000, 100)
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
        pickle.loads(pickle.dumps(held))


@pytest.mark.parametrize("kind", [RemoteSource, CarelessSource])
def test_an_object_that_is_replaced_between_two_ranges_is_never_read_as_a_mixture(kind, behind, bucket, proxy):
    put(bucket, "data", DATA)
    held = kind(behind.url("data"), behind.storage_options)

    def replace() -> None:
        time.sleep(0.3)  # until the first range has come
        put(bucket, "data", OTHER)

    proxy.inject([None, replace])
    out = np.zeros(200, np.uint8)
    ranges = np.array([1000, 200_000]), np.array([100, 100])
    if kind is RemoteSource:
        with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
            held.read_many(*ranges, out)
    else:
        held.read_many(*ranges, out)
        assert out.tobytes() not in [data[1000:1100] + data[200_000:200_100] for data in (DATA, OTHER)]


def test_an_answer_of_another_version_is_refused(held, proxy):
    proxy.inject(["etag"])
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
        held.read(0, 100)
    assert proxy.done == {"etag": 1}


# --- another file system ----------------------------------------------------------------------------------------


@pytest.fixture
def by_http(bucket, proxy) -> RemoteSource:
    """The object by its plain URL, open to all."""
    bucket.fs.pipe_file(f"{bucket.name}/data", DATA, ACL="public-read")
    proxy.forget()
    return RemoteSource(f"{proxy.endpoint}/{bucket.name}/data")


def test_other_file_systems_are_asked_for_the_version_after_each_read(by_http, proxy, bucket):
    proxy.forget()
    assert by_http.read(1000, 2000) == DATA[1000:3000]
    assert (proxy.count("GET"), proxy.count("HEAD")) == (1, 1)
    bucket.fs.pipe_file(f"{bucket.name}/data", OTHER, ACL="public-read")
    with pytest.raises(iid_dask.IIDChangedError, match="changed since opened"):
        by_http.read(1000, 2000)


@pytest.mark.parametrize("fault", [fault for fault in PASSING if fault != "stall"])
def test_their_faults_are_survived_too(fault, by_http, proxy):
    proxy.inject([fault, fault, None])
    assert by_http.read(1000, 2000) == DATA[1000:3000]
    assert proxy.done == {fault: 2}


def test_their_faults_that_stay_are_told(by_http, proxy):
    proxy.inject(["cut"] * 10)
    with pytest.raises(OSError, match=r"2000 bytes at offset 1000 could not be read in 5 attempts: .*/data'"):
        by_http.read(1000, 2000)
    assert proxy.count("GET") == faults.ATTEMPTS
    proxy.inject(["503"] * 20, methods=("GET", "HEAD"))
    with pytest.raises((OSError, FileNotFoundError), match="size and version could not be read in 5 attempts"):
        RemoteSource(by_http.name)


# --- threads and processes --------------------------------------------------------------------------------------


def test_windows_read_by_16_threads_are_those_read_by_one(bucket, versions):
    put(bucket, "v.iid", versions[0].path)
    boxes = [random_box(np.random.default_rng(seed), 200) for seed in range(64)]
    with iid_dask.open(bucket.url("v.iid"), storage_options=bucket.storage_options) as reader:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda box: window_of(reader, box), boxes))
        assert len(pickle.dumps(reader)) <= 1024
    assert all(
        np.array_equal(window, within(versions[0].labels, box)) for box, window in zip(boxes, found, strict=True)
    )


CHILDREN = """
import json, multiprocessing, os, sys, warnings
sys.path.insert(0, {tests!r})
import numpy as np
import iid_dask
from moving_files import random_box, window_of

def child(reader, results):
    results.put(window_of(reader, random_box(np.random.default_rng(1))).tobytes())

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    reader = iid_dask.open(sys.argv[1], storage_options=json.loads(sys.argv[2]))
    expected = window_of(reader, random_box(np.random.default_rng(1))).tobytes()
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        results = context.SimpleQueue()
        process = context.Process(target=child, args=(reader, results))
        process.start()
        print(method, results.get() == expected)
        process.join()
"""


def test_what_is_open_is_read_in_forked_and_spawned_children(bucket, versions, tmp_path):
    put(bucket, "v.iid", versions[0].path)
    script = tmp_path / "children.py"
    script.write_text(textwrap.dedent(CHILDREN.format(tests=str(Path(__file__).parent))))
    done = subprocess.run(
        [sys.executable, str(script), bucket.url("v.iid"), json.dumps(bucket.storage_options)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == ["fork", "True", "spawn", "True"], done.stderr
