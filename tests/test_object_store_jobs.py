"""Zarr stores, tables and commands on an object store: what they are on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from label_images import discs
from object_store import Bucket

import iid_dask

LABELS = discs(500, 600, 120, seed=8)


@pytest.fixture
def states(bucket: Bucket) -> str:
    """A file in the bucket, with an index."""
    url = bucket.url("in/us.iid")
    iid_dask.add_index(iid_dask.sample("us"), url, storage_options=bucket.storage_options)
    return url


def dataset(url: str, bucket: Bucket) -> xr.Dataset:
    return xr.open_dataset(url, engine="iid", groups="states", chunks={}, storage_options=bucket.storage_options)


def stored(bucket: Bucket) -> list[str]:
    return sorted(path.removeprefix(f"{bucket.name}/") for path in bucket.fs.find(bucket.name))


def test_a_store_in_a_bucket_holds_what_one_on_disk_does(bucket, states, tmp_path):
    options = {"chunks": 100, "progress": False}
    with dataset(states, bucket) as ds:
        iid_dask.to_zarr(ds, bucket.url("us.zarr"), storage_options=bucket.storage_options, **options)
    with xr.open_dataset(iid_dask.sample("us"), engine="iid", groups="states", chunks={}) as ds:
        iid_dask.to_zarr(ds, tmp_path / "us.zarr", **options)
    assert iid_dask.check_zarr(bucket.url("us.zarr"), storage_options=bucket.storage_options) == []
    with (
        iid_dask.open_zarr(bucket.url("us.zarr"), storage_options=bucket.storage_options) as there,
        iid_dask.open_zarr(tmp_path / "us.zarr") as here,
    ):
        assert there.attrs.pop("iid_dask")["table"] == here.attrs.pop("iid_dask")["table"]
        xr.testing.assert_identical(there.load(), here.load())
    there_only = {path.removeprefix("us.zarr/") for path in stored(bucket) if path.startswith("us.zarr/")}
    here_all = {str(path.relative_to(tmp_path / "us.zarr")) for path in tmp_path.rglob("*") if path.is_file()}
    assert there_only == here_all


def test_a_chunk_that_is_gone_from_a_bucket_is_named(bucket, states):
    url, options = bucket.url("us.zarr"), {"storage_options": bucket.storage_options}
    with dataset(states, bucket) as ds:
        iid_dask.to_zarr(ds, url, chunks=100, progress=False, **options)
    bucket.fs.rm_file(f"{bucket.name}/us.zarr/label/c/2/3")
    with pytest.raises(iid_dask.IIDStoreError, match=r"chunk c/2/3 with .* labelled pixels is missing"):
        iid_dask.open_zarr(url, **options)


KILLED = """
import json, os, signal, sys
import iid_dask, iid_dask.export.layout, iid_dask.export.zarr as zarr_job
import dask, xarray as xr
dask.config.set(scheduler="synchronous")
iid_dask.export.layout.TILE = 100
url, target, options, most = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
write, count = zarr_job.Job.write, 0
def counted(*arguments):
    global count
    if count == most:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return write(*arguments)
zarr_job.Job.write = counted
with xr.open_dataset(url, engine="iid", groups="states", chunks={}, storage_options=options) as ds:
    iid_dask.to_zarr(ds, target, chunks=100, storage_options=options, progress=False)
print(count)
"""


def killed_after(tiles: int, states: str, bucket: Bucket) -> subprocess.CompletedProcess[str]:
    import json

    words = [states, bucket.url("us.zarr"), json.dumps(bucket.storage_options), str(tiles)]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_job_that_was_killed_goes_on_and_makes_no_tile_again(bucket, states):
    assert killed_after(23, states, bucket).returncode == -signal.SIGKILL
    with pytest.raises(iid_dask.IIDStoreError, match="is not complete"):
        iid_dask.open_zarr(bucket.url("us.zarr"), storage_options=bucket.storage_options)
    # The lock of the killed process does not keep the next one off.
    done = killed_after(-1, states, bucket)
    assert done.stdout == f"{60 - 23}\n", done.stderr
    assert iid_dask.check_zarr(bucket.url("us.zarr"), storage_options=bucket.storage_options) == []
    assert [path for path in stored(bucket) if not path.startswith(("us.zarr/", "in/"))] == []


def test_a_label_image_in_a_bucket_becomes_a_file_in_a_bucket(bucket, tmp_path):
    import zarr

    store = zarr.storage.FsspecStore.from_url(bucket.url("in.zarr"), storage_options=bucket.storage_options)
    zarr.create_array(store, data=LABELS, chunks=(128, 128))
    options = {"tile": 256, "progress": False}
    target = bucket.url("out.iid")
    iid_dask.to_iid(bucket.url("in.zarr"), target, storage_options=bucket.storage_options, **options)
    iid_dask.to_iid(LABELS, tmp_path / "out.iid", **options)
    assert bucket.fs.cat_file(f"{bucket.name}/out.iid") == (tmp_path / "out.iid").read_bytes()


def test_tables_and_measures_read_files_in_a_bucket(bucket, states):
    bucket.fs.put_file(str(iid_dask.sample("us")), f"{bucket.name}/in/b.iid")
    options = {"storage_options": bucket.storage_options}
    table = iid_dask.read_entries(bucket.url("in/*.iid"), columns=["file", "area"], **options).compute()
    assert table.groupby("file").area.sum().nunique() == 1
    assert len(table) == 2 * 3155
    with iid_dask.open(states, **options) as f, iid_dask.open(iid_dask.sample("us")) as here:
        image = np.arange(600 * 1000, dtype=np.float32).reshape(600, 1000)
        found, expected = (iid_dask.measure(each, image, properties=("mean",)).compute() for each in (f, here))
        assert found["mean"].equals(expected["mean"])


def iid(bucket: Bucket, *words: str) -> str:
    """Run a command that is told of the server by the environment."""
    told = {"FSSPEC_S3_ENDPOINT_URL": bucket.endpoint, "FSSPEC_S3_KEY": "test", "FSSPEC_S3_SECRET": "test"}
    done = subprocess.run(
        [sys.executable, "-c", "from iid_dask.cli import main; main()", *words],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_take_urls(bucket, states, tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    assert "541,404 bytes" in iid(bucket, "info", states)
    assert "complete" in iid(bucket, "rasterize", states, bucket.url("us.zarr"), "--group", "states", "--no-progress")
    iid(bucket, "assemble", str(tmp_path / "labels.npy"), "-o", bucket.url("cells"), "--tile", "256", "--no-progress")
    iid(bucket, "consolidate", bucket.url("cells"), "-o", bucket.url("cells.iid"), "--no-progress")
    iid_dask.to_iid(LABELS, tmp_path / "cells.iid", progress=False)
    assert bucket.fs.cat_file(f"{bucket.name}/cells.iid") == (tmp_path / "cells.iid").read_bytes()
