"""Files and mosaics written to a store that speaks S3: the bytes of a local folder, and nothing half done."""

from __future__ import annotations

import json
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from label_images import discs
from object_store import Bucket

import iid_dask
from iid_dask.format import objects, parts
from iid_dask.format.faults import ATTEMPTS
from iid_dask.format.folder import as_folder
from iid_dask.format.target import atomic_parts, atomic_write
from iid_dask.mosaic.consolidate import consolidate
from iid_dask.mosaic.folder import MANIFEST, load_job, tile_reader
from iid_dask.mosaic.seams import seams_table
from iid_dask.mosaic.tables import SCHEMAS, read_table, table_file, write_table

IMAGE = discs(90, 110, 30, seed=4)
OLD = b"what stood here before"


class Recorded(list):
    """Requests as (method, key), made by this thread; answers may be put in their place."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket, self.answers, self.ranges = bucket, [], []

    def see(self, request, **_):
        """Note a request, and answer it if an answer is left."""
        key = request.url.split("?")[0].partition(f"/{self.bucket.name}/")[2]
        self.append((request.method, key))
        if "Range" in request.headers:
            start, stop = re.search(r"bytes=(\d+)-(\d*)", str(request.headers["Range"])).groups()
            self.ranges.append((key, int(start), int(stop) if stop else None))
        return self.answers.pop(0) if self.answers and request.method == "PUT" else None

    def puts(self, pattern: str = "") -> list[str]:
        """Return the keys of objects that were put, in order."""
        return [key for method, key in self if method == "PUT" and re.search(pattern, key)]


@pytest.fixture
def requests(bucket: Bucket) -> Iterator[Recorded]:
    """What this thread asks the bucket's server for."""
    recorded = Recorded(bucket)
    fs, _ = objects.filesystem(bucket.url(""), bucket.storage_options)
    events = fs.s3.meta.events
    events.register_first("before-send.s3", recorded.see)
    yield recorded
    events.unregister("before-send.s3", recorded.see)


@pytest.fixture(autouse=True)
def _one_thread():
    """Requests are seen by the thread that makes them."""
    with dask.config.set(scheduler="synchronous"):
        yield


def stored(bucket: Bucket, prefix: str = "") -> dict[str, bytes]:
    """Return all objects below a prefix."""
    start = f"{bucket.name}/{prefix}"
    return {path.removeprefix(start): bucket.fs.cat_file(path) for path in bucket.fs.find(start)}


def on_disk(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- one object -------------------------------------------------------------------------------------------------


def save(target, **options):
    """Write a file of two entries that overlap."""
    with iid_dask.IIDWriter(target, **options) as writer:
        writer.add(b"cell", b"1", (0, 0, 4, 4), np.ones((4, 4)))
        writer.add(b"cell", b"2", (2, 2, 8, 8), np.ones((6, 6)))


def test_a_file_is_one_put_of_the_same_bytes(bucket, requests, tmp_path):
    save(tmp_path / "a.iid")
    save(bucket.url("a.iid"), storage_options=bucket.storage_options)
    assert requests == [("PUT", "a.iid")]
    assert stored(bucket) == on_disk(tmp_path)


def test_an_index_is_added_at_and_to_a_url(bucket, tmp_path):
    save(tmp_path / "plain.iid", index=False)
    save(bucket.url("plain.iid"), index=False, storage_options=bucket.storage_options)
    iid_dask.add_index(tmp_path / "plain.iid", tmp_path / "other.iid")
    iid_dask.add_index(bucket.url("plain.iid"), bucket.url("other.iid"), storage_options=bucket.storage_options)
    assert stored(bucket) == on_disk(tmp_path)
    iid_dask.add_index(bucket.url("plain.iid"), storage_options=bucket.storage_options)
    assert stored(bucket)["plain.iid"] == (tmp_path / "other.iid").read_bytes()


def test_an_index_is_added_with_few_requests(bucket, requests, tmp_path):
    tmp_path.joinpath("us.iid").write_bytes(Path(iid_dask.sample("us")).read_bytes())
    bucket.fs.pipe_file(f"{bucket.name}/us.iid", (tmp_path / "us.iid").read_bytes())
    requests.clear()
    iid_dask.add_index(bucket.url("us.iid"), storage_options=bucket.storage_options)
    assert len(requests) <= 20, "3,155 masks"
    iid_dask.add_index(tmp_path / "us.iid")
    assert stored(bucket) == on_disk(tmp_path)


def test_a_block_that_fails_stores_nothing(bucket, requests):
    bucket.fs.pipe_file(f"{bucket.name}/a.iid", OLD)
    requests.clear()

    def fails():
        with atomic_write(bucket.url("a.iid"), bucket.storage_options) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not requests
    assert stored(bucket) == {"a.iid": OLD}


def test_a_file_url_is_a_path(tmp_path):
    save(f"file://{tmp_path}/a.iid")
    save(tmp_path / "b.iid")
    files = on_disk(tmp_path)
    assert files["a.iid"] == files["b.iid"]


@pytest.mark.parametrize("place", ["", "folder/", "folder/name/"])
def test_a_bucket_or_a_folder_is_no_target(bucket, requests, place):
    for url in {bucket.url(place), bucket.url(place).rstrip("/") if not place else bucket.url(place)}:
        with pytest.raises(IsADirectoryError, match=r"bucket or a folder, expected the URL of an object.*s3://"):
            iid_dask.to_iid(IMAGE, url, progress=False, storage_options=bucket.storage_options)
    with pytest.raises(OSError, match="a chain of file systems"):
        save("zip://a.iid::s3://bucket/x.zip")
    assert not requests


def answer(status: int, code: str):
    """Return an answer that says that a request failed."""
    from aiobotocore.awsrequest import AioAWSResponse

    class Body:
        async def read(self):
            return f"<Error><Code>{code}</Code><Message>said by a test</Message></Error>".encode()

    class Raw:
        content = Body()
        read = Body.read
        raw_headers = ()

    return AioAWSResponse("http://127.0.0.1", status, {}, Raw())


IMPATIENT = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
"""What makes botocore leave failures to us."""


@pytest.mark.parametrize(
    ("status", "code", "failures", "tried", "error"),
    [
        (500, "InternalError", 2, 3, None),
        (503, "ServiceUnavailable", 1, 2, None),
        (429, "TooManyRequests", 1, 2, None),
        (500, "InternalError", 99, ATTEMPTS, r"\[Errno \d+\] said by a test: 's3://.*a\.iid'"),
        (403, "AccessDenied", 99, 1, r"\[Errno 13\] said by a test: 's3://.*a\.iid'"),
    ],
)
def test_what_may_pass_is_tried_again_and_what_does_not_is_told(bucket, status, code, failures, tried, error):
    options = bucket.storage_options | IMPATIENT
    recorded = Recorded(bucket)
    for _ in range(2):  # botocore writes into the options at first use, and fsspec then takes them for others
        fs, _ = objects.filesystem(bucket.url(""), options)
        fs.pipe_file(f"{bucket.name}/a.iid", OLD)
    fs.s3.meta.events.register_first("before-send.s3", recorded.see)
    recorded.answers = [answer(status, code) for _ in range(failures)]
    try:
        if error is None:
            save(bucket.url("a.iid"), storage_options=options)
        else:
            with pytest.raises(OSError, match=error):
                save(bucket.url("a.iid"), storage_options=options)
    finally:
        fs.s3.meta.events.unregister("before-send.s3", recorded.see)
    assert len(recorded.puts()) == tried
    assert (stored(bucket)["a.iid"] == OLD) == (error is not None)


def test_a_bucket_that_is_not_there_is_named(bucket):
    url = f"s3://{bucket.name}x/a.iid"
    with pytest.raises(FileNotFoundError, match=re.escape(url)):
        save(url, storage_options=bucket.storage_options)


# --- an object of many parts ------------------------------------------------------------------------------------

MIB = 2**20


def test_a_large_object_is_seen_when_all_its_parts_are_there(bucket, requests, monkeypatch):
    monkeypatch.setattr(objects, "WHOLE", 5 * MIB)
    monkeypatch.setattr(objects, "BLOCK", 5 * MIB)
    url, data = bucket.url("a.iid"), np.random.default_rng(1).bytes(12 * MIB)
    bucket.fs.pipe_file(f"{bucket.name}/a.iid", OLD)

    def blocks(fail):
        for at in range(0, len(data), MIB):
            assert stored(bucket) == {"a.iid": OLD}
            if fail and at == 8 * MIB:
                raise ZeroDivisionError
            yield data[at : at + MIB]

    with pytest.raises(ZeroDivisionError):
        objects.store(url, len(data), lambda: blocks(True), bucket.storage_options)
    assert len(requests.puts()) == 1, "nothing was sent, so this proves nothing"
    uploads = bucket.fs.call_s3("list_multipart_uploads", Bucket=bucket.name)
    assert not uploads.get("Uploads")
    assert stored(bucket) == {"a.iid": OLD}
    objects.store(url, len(data), lambda: blocks(False), bucket.storage_options)
    assert stored(bucket) == {"a.iid": data}


def test_parts_become_one_object_in_order_and_go(bucket):
    url, dead = bucket.url("a/b.iid"), f"{bucket.name}/a/.b.iid.parts/dead/000000000000"
    for path in (f"{bucket.name}/a/b.iid", dead):
        bucket.fs.pipe_file(path, OLD)
    with atomic_parts(url, 9, bucket.storage_options) as target:
        assert list(stored(bucket)) == ["a/b.iid"], "what a killed job left is removed first"
        for offset, data in ((6, b"end"), (0, b"first"), (5, b"-"), (0, b"first")):
            target.put(offset, memoryview(data))
        assert stored(bucket)["a/b.iid"] == OLD
        assert len(pickle.dumps(target)) < 500
    assert stored(bucket) == {"a/b.iid": b"first-end"}


@pytest.mark.parametrize("offset", [4, 6])
def test_parts_with_a_gap_or_an_overlap_are_refused(bucket, offset):
    bucket.fs.pipe_file(f"{bucket.name}/b.iid", OLD)

    def put():
        with parts.joined(bucket.url("b.iid"), bucket.storage_options, 8) as target:
            target.put(0, memoryview(b"first"))
            target.put(offset, memoryview(b"end"))

    with pytest.raises(iid_dask.IIDStoreError, match=rf"b\.iid: a part at byte {offset}, expected one at 5"):
        put()
    assert stored(bucket) == {"b.iid": OLD}


@pytest.mark.parametrize(("removed", "end"), [((), 9), ((6,), 6), ((5, 6), 5)])
def test_parts_that_end_too_early_are_refused(bucket, removed, end):
    bucket.fs.pipe_file(f"{bucket.name}/b.iid", OLD)

    def put():
        with parts.joined(bucket.url("b.iid"), bucket.storage_options, 9) as target:
            for offset, data in ((0, b"first"), (5, b"-"), (6, b"end")):
                target.put(offset, memoryview(data))
            for offset in removed:
                bucket.fs.rm_file(f"{target.url.removeprefix('s3://')}/{offset:012d}")

    if not removed:
        put()
        assert stored(bucket) == {"b.iid": b"first-end"}
        return
    with pytest.raises(iid_dask.IIDStoreError, match=rf"b\.iid: the parts end at byte {end}, expected 9"):
        put()
    assert stored(bucket) == {"b.iid": OLD}


# --- mosaics ----------------------------------------------------------------------------------------------------


def labels_into(folder, **options):
    """A global label image, with groups."""
    job = iid_dask.prepare(folder, IMAGE.shape, tile=40, metadata={"camera": "A"}, **options)
    for tile in job.grid:
        iid_dask.write_tile(folder, IMAGE[tile.box.slices], tile.origin, **options)
    iid_dask.finish(folder, names="cell {}".format, groups=lambda n: "some" if n % 3 else None, **options)


def masks_into(folder, **options):
    """Named masks that overlap, within tiles and across their borders."""
    job = iid_dask.prepare(folder, IMAGE.shape, tile=(40, 60), stitch="name", **options)
    for tile in job.grid:
        values = np.unique(IMAGE[tile.box.slices])
        items = [
            (b"cell", b"%d" % n, *around(IMAGE[tile.box.slices], n), ["odd"] * (n % 2)) for n in values[values > 0]
        ]
        items.append((b"", b"all", (0, 0, *tile.box.shape), np.ones(tile.box.shape)))
        iid_dask.write_tile(folder, items, tile.origin, **options)
    iid_dask.finish(folder, **options)


def around(block, value):
    """Return the box and the mask of a value in a block."""
    rows, cols = np.nonzero(block == value)
    box = int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1
    return box, (block == value)[box[0] : box[2], box[1] : box[3]]


def touching_into(folder, **options):
    """Labels local to their tiles, joined by contact; then decided anew, and a join undone."""
    with iid_dask.to_mosaic(IMAGE, folder, tile=40, stitch="touch", progress=False, **options) as mosaic:
        assert len(mosaic.seams()) > 5
    with iid_dask.decide(folder, iid_dask.Touch(min_pixels=4), **options) as mosaic:
        decided = len(mosaic)
    rows = np.flatnonzero(seams_table(folder, **options).decision)[:2]
    with iid_dask.undo(folder, pairs=rows, **options) as mosaic:
        assert len(mosaic) > decided


def halos_into(folder, **options):
    """Tiles that overlap: what is not joined is cut."""
    iid_dask.to_mosaic(IMAGE, folder, tile=40, stitch="iou", halo=6, rule=iid_dask.IoU(0.9), progress=False, **options)


@pytest.mark.parametrize("make", [labels_into, masks_into, touching_into, halos_into])
def test_a_mosaic_has_the_bytes_that_it_has_on_disk(make, bucket, requests, tmp_path):
    options = {"storage_options": bucket.storage_options}
    make(tmp_path / "m")
    make(bucket.url("m"), **options)
    assert stored(bucket, "m/") == on_disk(tmp_path / "m")
    assert requests.puts()[-1] == f"m/{MANIFEST}"
    with iid_dask.open(bucket.url("m"), **options) as far, iid_dask.open(tmp_path / "m") as near:
        assert far.names() == near.names()
        assert far.groups.keys() == near.groups.keys()
        found = far.region((30, 30, 60, 60))
        assert found.tolist() == near.region((30, 30, 60, 60)).tolist()
        assert all(np.array_equal(far[key].mask(), near[key].mask()) for key in found.tolist()[:4])
    consolidate(tmp_path / "m", tmp_path / "one.iid")
    iid_dask.to_iid(bucket.url("m"), bucket.url("one.iid"), progress=False, **options)
    assert stored(bucket)["one.iid"] == (tmp_path / "one.iid").read_bytes()
    consolidate(bucket.url("m"), tmp_path / "two.iid", **options)
    assert (tmp_path / "two.iid").read_bytes() == (tmp_path / "one.iid").read_bytes()
    assert not [key for key in stored(bucket) if not key.startswith("m/") and key != "one.iid"]


def test_a_tile_is_one_put(bucket, requests):
    job = iid_dask.prepare(bucket.url("m"), IMAGE.shape, tile=40, storage_options=bucket.storage_options)
    requests.clear()
    for tile in job.grid:
        iid_dask.write_tile(
            bucket.url("m"), IMAGE[tile.box.slices], tile.origin, storage_options=bucket.storage_options
        )
    assert sorted(requests.puts()) == sorted(f"m/{tile.name}" for tile in job.grid)
    assert {method for method, _ in requests} == {"PUT", "GET"}
    assert len(requests) == 2 * len(job.grid), "the job is read for each tile, and the tile put"


def test_a_tile_that_is_opened_is_asked_for_once(bucket, requests):
    job = iid_dask.prepare(bucket.url("m"), IMAGE.shape, tile=40, storage_options=bucket.storage_options)
    tile = next(iter(job.grid))
    written = [image[tile.box.slices] for image in (IMAGE, IMAGE > 0)]
    folder, readers = as_folder(bucket.url("m"), bucket.storage_options), []
    for block in written:
        iid_dask.write_tile(folder, block, (0, 0))
        for _ in range(2):
            requests.clear()
            readers.append(tile_reader(folder, tile.name))
            assert [method for method, _ in requests].count("HEAD") == 1
    assert readers[0] is readers[1]
    assert readers[2] is readers[3]
    assert [len(reader) for reader in readers[::2]] == [len(np.unique(block)) - 1 for block in written]


def test_an_empty_object_is_no_job_and_no_manifest(bucket, requests):
    folder = as_folder(bucket.url("m"), bucket.storage_options)
    for name in ("job.json", MANIFEST):
        bucket.fs.pipe_file(f"{bucket.name}/m/{name}", b"")
        assert folder.read(name) == b""
    with pytest.raises(iid_dask.IIDFormatError, match=r"m/job\.json: file: found .*"):
        load_job(folder)
    for use in (iid_dask.finish, iid_dask.decide, seams_table, iid_dask.open_mosaic):
        with pytest.raises(iid_dask.IIDFormatError, match=r"m/(job|mosaic)\.json: (file|manifest): found"):
            use(bucket.url("m"), storage_options=bucket.storage_options)
    bucket.fs.pipe_file(f"{bucket.name}/m/one", b"1")
    requests.clear()
    assert folder.read("one") == b"1"
    assert requests == [("GET", "m/one")], "what holds something is asked for once"
    with pytest.raises(FileNotFoundError):
        folder.read("none")


def test_a_folder_of_something_else_and_other_options_are_refused(bucket):
    options = {"storage_options": bucket.storage_options}
    bucket.fs.pipe_file(f"{bucket.name}/m/notes.txt", OLD)
    with pytest.raises(iid_dask.IIDStoreError, match=r"s3://.*/m: holds 'notes.txt' and is no mosaic's"):
        iid_dask.prepare(bucket.url("m"), (9, 9), **options)
    iid_dask.prepare(bucket.url("n"), (9, 9), **options)
    with pytest.raises(iid_dask.IIDStoreError, match=r"begun with other options: shape is \(9, 9\), now \(9, 8\)"):
        iid_dask.prepare(bucket.url("n"), (9, 8), **options)
    with pytest.raises(iid_dask.IIDStoreError, match=r"/n: the mosaic was begun, but not finished"):
        iid_dask.open(bucket.url("n"), **options)
    with pytest.raises(FileNotFoundError, match=r"/none"):
        iid_dask.open(bucket.url("none"), **options)
    with pytest.raises(FileNotFoundError, match=r"s3://.*/none/job\.json: no such file: begin the mosaic"):
        iid_dask.write_tile(bucket.url("none"), IMAGE, (0, 0), **options)


def test_a_folder_travels_small_and_keeps_its_secret(bucket):
    folder = as_folder(bucket.url("m/"), bucket.storage_options | {"secret": "hidden"})
    assert len(pickle.dumps(folder)) < 500
    assert pickle.loads(pickle.dumps(folder)) == folder
    assert "hidden" not in repr(folder) + str(folder)


# --- opened -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mosaic(bucket: Bucket) -> str:
    """URL of a mosaic."""
    iid_dask.to_mosaic(IMAGE, bucket.url("m"), tile=40, progress=False, storage_options=bucket.storage_options).close()
    return bucket.url("m")


@pytest.mark.parametrize("name", ["", "/", f"/{MANIFEST}"])
def test_a_mosaic_opens_as_a_dataset(mosaic, bucket, name):
    ds = xr.open_dataset(mosaic + name, engine="iid", chunks={}, storage_options=bucket.storage_options)
    values = ds.address.values.astype(int)[ds.label.values.astype(int) - 1] * (ds.label.values > 0)
    assert np.array_equal(values, IMAGE)


def test_opening_reads_no_tile(mosaic, bucket, requests):
    with iid_dask.open(mosaic, storage_options=bucket.storage_options) as opened:
        assert opened.shape == IMAGE.shape
        assert not [key for _, key in requests if key.endswith(".iid")]
        opened.region((0, 0, 5, 5))
    assert {key for _, key in requests if key.endswith(".iid")} == {"m/tiles/r0000000_c0000000.iid"}


def test_what_is_replaced_while_open_is_told(mosaic, bucket):
    options = {"storage_options": bucket.storage_options}
    with iid_dask.open(mosaic, **options) as opened:
        assert len(opened.region((0, 0, *IMAGE.shape))) == len(opened)
        bucket.fs.pipe_file(f"{bucket.name}/m/{MANIFEST}", stored(bucket)[f"m/{MANIFEST}"] + b" ")
        with pytest.raises(iid_dask.IIDChangedError, match=rf"m/{MANIFEST}: changed since opened; open the mosaic"):
            opened.region((0, 0, 5, 5))
        bucket.fs.rm_file(f"{bucket.name}/m/{MANIFEST}")
        with pytest.raises(iid_dask.IIDChangedError, match=rf"m/{MANIFEST}: gone since opened"):
            opened.region((0, 0, 5, 5))


def test_a_tile_replaced_while_open_is_told(mosaic, bucket):
    with iid_dask.open(mosaic, storage_options=bucket.storage_options) as opened:
        whole = opened.region((0, 0, 40, 40))
        path = f"{bucket.name}/m/tiles/r0000000_c0000000.iid"
        bucket.fs.pipe_file(path, bucket.fs.cat_file(path)[:-60] + bytes(60))
        with pytest.raises((iid_dask.IIDChangedError, iid_dask.IIDStoreError), match=r"r0000000_c0000000\.iid"):
            opened[int(whole[0])].mask()


HOSTILE = (
    *("../secret", "/secret", "s3://other/secret", "http://127.0.0.1/secret", "tiles/../../secret", "tiles\\x"),
    *("tiles/*.iid", "tiles/a.iid?versionId=1", "%2e%2e/secret", "secret\0", ".", ""),
)


def test_no_path_leaves_the_folder(mosaic, bucket, requests):
    manifest = json.loads(stored(bucket)[f"m/{MANIFEST}"])
    folder = as_folder(mosaic, bucket.storage_options)
    tiles = read_table(folder, manifest["tables"]["tiles"], SCHEMAS["tiles"])
    others = tiles["path"].to_pylist()[1:]
    for path in HOSTILE:
        tiles["path"] = [path, *others]
        listed = write_table(folder, "tiles-ID.parquet", tiles, SCHEMAS["tiles"])
        requests.clear()
        for table, value in (("tiles", listed), ("pieces", manifest["tables"]["pieces"] | {"path": path})):
            hostile = json.dumps(manifest | {"tables": manifest["tables"] | {table: value}}).encode()
            bucket.fs.pipe_file(f"{bucket.name}/m/{MANIFEST}", hostile)
            with pytest.raises(iid_dask.IIDFormatError, match=r"s3://.*/m: manifest: found path .*a file within"):
                iid_dask.open(mosaic, storage_options=bucket.storage_options).region((0, 0, 40, 40))
        assert {key for _, key in requests} == {f"m/{MANIFEST}", "m/tiles-ID.parquet", listed_pieces(manifest)}


def listed_pieces(manifest):
    """Return the key of the table of pieces."""
    return f"m/{manifest['tables']['pieces']['path']}"


def test_a_mosaic_is_checked_where_it_is(mosaic, bucket):
    with iid_dask.open(mosaic, storage_options=bucket.storage_options) as opened:
        assert opened.check() == []
        path = f"{bucket.name}/m/tiles/r0000040_c0000040.iid"
        data = bytearray(bucket.fs.cat_file(path))
        data[-100] ^= 1
        bucket.fs.pipe_file(path, bytes(data))
    with iid_dask.open(mosaic, storage_options=bucket.storage_options) as opened:
        defects = [str(defect) for defect in opened.check()]
    assert any(re.search(r"s3://.*/tiles/r0000040_c0000040\.iid: file: found crc32", defect) for defect in defects)


def test_rows_of_a_table_are_read_by_ranges_and_checked(bucket, requests):
    folder = as_folder(bucket.url("m"), bucket.storage_options)
    rows = np.random.default_rng(3).integers(0, 2**40, 50_000)
    columns = {"group": rows, "key": rows[::-1].copy()}
    listed = write_table(folder, "members.parquet", columns, SCHEMAS["members"], row_group=5_000)
    file = table_file(folder, listed)
    requests.clear()
    found = read_table(folder, listed, SCHEMAS["members"], ["key"], row_groups=[3], file=file)
    assert np.array_equal(found["key"], rows[::-1][15_000:20_000])
    assert len(requests) <= 2, "the end of the file, and the pages"
    assert sum(stop - start + 1 for _, start, stop in requests.ranges) < listed["nbytes"] / 3
    data = bytearray(bucket.fs.cat_file(f"{bucket.name}/m/members.parquet"))
    data[len(data) // 4] ^= 1
    bucket.fs.pipe_file(f"{bucket.name}/m/members.parquet", bytes(data))
    with pytest.raises(iid_dask.IIDFormatError, match=r"s3://.*members\.parquet: file: found .*[Cc][Rr][Cc]"):
        read_table(folder, listed, SCHEMAS["members"])
    untold = read_table(folder, listed, SCHEMAS["members"], file=table_file(folder, listed, verify=False))
    assert any(not np.array_equal(untold[name], columns[name]) for name in columns), (
        "the pages without their checksums show other numbers"
    )


# --- whole jobs -------------------------------------------------------------------------------------------------


def test_what_is_removed_is_no_pattern(bucket):
    for path in ("a[1].iid/x", "a*/x", "a1.iid/x", "ab/x", "a/x", "a/y/z", "ab"):
        bucket.fs.pipe_file(f"{bucket.name}/{path}", OLD)
    for name in ("a[1].iid", "a*", "a", "none"):
        as_folder(bucket.url(name), bucket.storage_options).remove_all()
    assert sorted(stored(bucket)) == ["a1.iid/x", "ab", "ab/x"]


@pytest.mark.parametrize("scratch", [None, "local", "remote"])
def test_an_image_becomes_an_object(bucket, tmp_path, scratch):
    iid_dask.to_iid(IMAGE, tmp_path / "a.iid", tile=40, progress=False)
    where = {"local": tmp_path / "scratch", "remote": bucket.url("elsewhere")}.get(scratch)
    bucket.fs.pipe_file(f"{bucket.name}/a.iid", OLD)
    options = {"progress": False, "storage_options": bucket.storage_options}
    iid_dask.to_iid(IMAGE, bucket.url("a.iid"), tile=(30, 64), scratch=where, **options)
    assert stored(bucket) == {"a.iid": (tmp_path / "a.iid").read_bytes()}
    if scratch == "local":
        assert not list(where.iterdir())
    iid_dask.to_iid(bucket.url("a.iid"), bucket.url("b.iid"), window=(10, 10, 60, 60), **options)
    iid_dask.to_iid(tmp_path / "a.iid", tmp_path / "b.iid", window=(10, 10, 60, 60), progress=False)
    assert stored(bucket)["b.iid"] == (tmp_path / "b.iid").read_bytes()


JOB = """
import json, os, signal, sys
import dask
import numpy as np
import iid_dask
from iid_dask.format import objects

url, options, image, kill_at, word = json.loads(sys.argv[1])
fs, _ = objects.filesystem(url, options)
count = 0

def see(request, **_):
    global count
    count += request.method == "PUT" and word in request.url
    if count == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

fs.exists(url)
fs.s3.meta.events.register_first("before-send.s3", see)
with dask.config.set(scheduler="synchronous"):
    iid_dask.to_iid(np.load(image), url, tile=40, progress=False, storage_options=options)
"""


@pytest.mark.parametrize(("kill_at", "word", "kept"), [(5, "/tiles/", 4), (2, ".parts/", 9), (1, "/a.iid", 9)])
def test_a_killed_job_run_again_makes_the_object_and_leaves_nothing_else(
    bucket, requests, tmp_path, kill_at, word, kept
):
    url, image = bucket.url("a.iid"), tmp_path / "image.npy"
    np.save(image, IMAGE)
    iid_dask.to_iid(image, tmp_path / "a.iid", tile=40, progress=False)
    bucket.fs.pipe_file(f"{bucket.name}/a.iid", OLD)
    arguments = json.dumps([url, bucket.storage_options, str(image), kill_at, word])
    done = subprocess.run([sys.executable, "-c", JOB, arguments], timeout=100, check=False)
    assert done.returncode == -signal.SIGKILL
    left = stored(bucket)
    assert left["a.iid"] == OLD
    assert sum("/tiles/" in key for key in left) == kept, "the job was not in the middle, so this proves nothing"
    assert any(".parts/" in key for key in left) == (word != "/tiles/")
    requests.clear()
    iid_dask.to_iid(np.load(image), url, tile=40, progress=False, storage_options=bucket.storage_options)
    assert len(requests.puts("/tiles/")) == 9 - kept
    assert stored(bucket) == {"a.iid": (tmp_path / "a.iid").read_bytes()}


def test_a_cluster_writes_and_reads(bucket, tmp_path):
    from distributed import Client, LocalCluster

    options = {"storage_options": bucket.storage_options}
    iid_dask.to_iid(IMAGE, tmp_path / "a.iid", tile=40, progress=False)
    masks_into(bucket.url("m"), **options)
    masks_into(tmp_path / "m")
    near = xr.open_dataset(tmp_path / "m", engine="iid", chunks={}).compute(scheduler="synchronous")
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        Client(cluster),
        dask.config.set(scheduler=None),
    ):
        iid_dask.to_iid(IMAGE, bucket.url("a.iid"), tile=40, progress=False, **options)
        assert stored(bucket)["a.iid"] == (tmp_path / "a.iid").read_bytes()
        far = xr.open_dataset(bucket.url("m"), engine="iid", chunks={}, **options)
        xr.testing.assert_equal(far.compute(), near)
    assert not [key for key in stored(bucket) if not key.startswith("m/") and key != "a.iid"]
