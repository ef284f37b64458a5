"""What a job will take is said before it starts, and it takes no more."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from distributed import Client, LocalCluster
from planned import Case, measured, peak, run

import iid_dask
from iid_dask.cli import main
from iid_dask.costs import Grid, most_in_a_tile
from iid_dask.errors import IIDLimitError
from iid_dask.mosaic.consolidate import consolidate
from iid_dask.running.plan import MIB, Plan

PROPERTIES = ["mean", "perimeter"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the cases' data."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A label image, 300 x 400."""
    path = tmp_path / "labels.npy"
    np.save(path, np.kron(np.arange(12, dtype=np.uint32).reshape(3, 4), np.ones((100, 100), np.uint32)))
    return path


@pytest.fixture
def mosaic(labels: Path, tmp_path: Path) -> Path:
    """A mosaic of it."""
    iid_dask.to_mosaic(labels, tmp_path / "m", tile=128, progress=False).close()
    return tmp_path / "m"


def files_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# --- what is said -----------------------------------------------------------------------------------------------


def calls(labels: Path, mosaic: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """Name -> job and its arguments."""
    us, image = iid_dask.sample("us"), np.zeros((600, 1000), np.uint16)
    quiet = {"progress": False}
    return {
        "to_zarr": (iid_dask.to_zarr, (us, out / "a.zarr"), {"groups": "states", **quiet}),
        "to_iid": (iid_dask.to_iid, (labels, out / "a.iid"), {"tile": 100, **quiet}),
        "to_iid of a file": (iid_dask.to_iid, (us, out / "b.iid"), {"window": (0, 0, 300, 300), **quiet}),
        "to_mosaic": (iid_dask.to_mosaic, (labels, out / "b"), {"tile": 100, **quiet}),
        "finish": (iid_dask.finish, (mosaic,), {}),
        "consolidate": (consolidate, (mosaic, out / "c.iid"), {}),
        "measure": (iid_dask.measure, (us, image, PROPERTIES), {"tile": 500}),
        "overlaps": (iid_dask.overlaps, (us,), {}),
    }


@pytest.mark.parametrize("name", ["to_zarr", "to_iid", "to_iid of a file", "to_mosaic", "finish", "consolidate"])
def test_a_plan_writes_nothing_and_is_what_the_job_logs_when_it_starts(name, labels, mosaic, tmp_path, caplog):
    out = tmp_path / "out"
    out.mkdir()
    job, arguments, options = calls(labels, mosaic, out)[name]
    before = files_in(tmp_path)
    plan = iid_dask.plan(job, *arguments, **options)
    assert files_in(tmp_path) == before
    with caplog.at_level(logging.INFO, "iid_dask"):
        job(*arguments, **options)
    assert caplog.messages[0] == str(plan)
    written = [path for path, when in files_in(tmp_path).items() if path.is_file() and before.get(path) != when]
    assert 0 < len(written) <= plan.files


@pytest.mark.parametrize("name", ["measure", "overlaps"])
def test_a_lazy_table_says_its_plan_when_it_is_made(name, labels, mosaic, tmp_path, caplog):
    job, arguments, options = calls(labels, mosaic, tmp_path)[name]
    with caplog.at_level(logging.INFO, "iid_dask"):
        frame = job(*arguments, **options)
    plan = iid_dask.plan(job, *arguments, **options)
    assert caplog.messages == [str(plan)]
    assert plan.files == 0
    assert frame.npartitions <= plan.tasks


def test_a_mosaic_opened_plans_its_file_as_its_folder_does(mosaic, tmp_path):
    with iid_dask.open_mosaic(mosaic) as opened:
        plan = iid_dask.plan(opened.to_iid, tmp_path / "one.iid")
    assert plan == iid_dask.plan(consolidate, mosaic, tmp_path / "one.iid")


def test_tiles_tasks_and_bytes_are_those_of_the_export(tmp_path):
    with dask.config.set(scheduler="threads", num_workers=1):
        plan = iid_dask.plan(iid_dask.to_zarr, iid_dask.sample("us"), tmp_path / "a.zarr", chunks=50)
    image = 600 * 1000 * 4
    assert (plan.tiles, plan.tasks) == (1, 1)
    assert image < plan.bytes_out < 1.2 * image
    with iid_dask.open(iid_dask.sample("us")) as reader:
        assert plan.bytes_in == sum(map(int, reader.lut["segment_length"]))


def test_a_part_takes_its_share_of_tiles_and_no_less_memory(labels, tmp_path):
    whole = iid_dask.plan(iid_dask.to_mosaic, labels, tmp_path / "m", tile=100, progress=False)
    part = iid_dask.plan(iid_dask.to_mosaic, labels, tmp_path / "m", tile=100, progress=False, part=(1, 4))
    assert (whole.tiles, part.tiles) == (12, 3)
    assert part.thread_bytes == whole.thread_bytes


def test_what_is_wrong_with_a_call_is_raised_when_it_is_planned(labels, tmp_path):
    with pytest.raises(ValueError, match="chunks = 0"):
        iid_dask.plan(iid_dask.to_zarr, iid_dask.sample("us"), tmp_path / "a.zarr", chunks=0)
    with pytest.raises(TypeError, match="unknown options"):
        iid_dask.plan(iid_dask.to_iid, labels, tmp_path / "a.iid", tiles=100)
    with pytest.raises(TypeError, match=r"is no job, expected one of: consolidate, finish, .*to_zarr"):
        iid_dask.plan(os.remove, labels)
    assert labels.exists()


def test_memory_grows_with_threads_and_tiles(tmp_path):
    labels = sparse_labels(tmp_path / "labels.npy")
    plans = [iid_dask.plan(iid_dask.to_iid, labels, tmp_path / "a.iid", tile=tile) for tile in (256, 4096)]
    assert plans[0].thread_bytes < plans[1].thread_bytes
    for plan in plans:
        assert plan.peak_bytes(3) - plan.peak_bytes(1) == 2 * plan.thread_bytes
        assert plan.usual_bytes(1) < plan.peak_bytes(1)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("rasterize", "US", "OUT.zarr"), r"to_zarr label to .*: 600 x 1000 pixels, 1 tile in 1 task"),
        (("assemble", "LABELS", "-o", "OUT.iid", "--tile", "100"), r"300 x 400 pixels, 12 tiles in"),
        (("assemble", "LABELS", "-o", "OUT", "--tile", "100", "--part", "1/3"), r"300 x 400 pixels, 4 tiles in"),
        (("consolidate", "MOSAIC", "-o", "OUT.iid"), r"a mosaic to .*OUT.iid: 1 tile in 1 task"),
        (("measure", "MADE", "LABELS", "-o", "OUT.csv"), r"measure mean, .*: 1 tile in"),
    ],
)
def test_a_dry_run_prints_the_plan_and_writes_nothing(command, said, labels, mosaic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    iid_dask.to_iid(labels, tmp_path / "made.iid", progress=False)
    names = {"US": iid_dask.sample("us"), "LABELS": "labels.npy", "MOSAIC": "m", "MADE": "made.iid"}
    before = files_in(tmp_path)
    done = CliRunner().invoke(main, [*(names.get(word, word) for word in command), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert files_in(tmp_path) == before
    assert re.search(said, done.output)
    assert re.search(r"a worker needs about [\d.]+ MiB", done.output)


# --- what is refused --------------------------------------------------------------------------------------------


@contextmanager
def worker(threads: int, memory_limit: int, *, processes: bool) -> Iterator[Client]:
    """Client of one worker."""
    options: dict[str, Any] = {"dashboard_address": "127.0.0.1:0", "protocol": "tcp"}
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            processes=processes,
            memory_limit=memory_limit,
            host="127.0.0.1",
            **options,
        ) as local,
        Client(local) as client,
    ):
        yield client


def sparse_labels(path: Path) -> Path:
    """A label image of 8192 x 8192 that takes no space."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint32, shape=(8192, 8192))
    array[5000:5100, 3000:3100] = 7
    array.flush()
    return path


def test_a_job_too_large_for_the_workers_is_refused_before_anything_is_written_and_says_what_fits(tmp_path):
    path = sparse_labels(tmp_path / "labels.npy")
    words = (
        r"labels.npy to .*a.iid: needs [\d.]+ MiB on a worker with 2 threads, expected at most 409.60 MiB, at which "
        r"it is paused; take tile=(\d+), which needs [\d.]+ MiB, or workers of more memory; nothing of this step was "
        r"written"
    )
    with worker(2, 512 * MIB, processes=True) as client:
        with pytest.raises(IIDLimitError, match=words) as refused:
            iid_dask.to_iid(path, tmp_path / "a.iid", progress=False)
        dry = [
            "assemble",
            str(path),
            "-o",
            str(tmp_path / "a.iid"),
            "--dry-run",
            "--scheduler",
            client.scheduler.address,
        ]
        said = CliRunner().invoke(main, dry)
        assert said.exit_code == 2
        assert "8192 x 8192 pixels" in said.output.splitlines()[0]
        assert re.search(words, said.output)
        assert sorted(os.listdir(tmp_path)) == ["labels.npy"]
        tile = int(str(refused.value).partition("take tile=")[2].partition(",")[0])
        iid_dask.to_iid(path, tmp_path / "a.iid", tile=tile, progress=False)
        assert max(client.run(peak).values()) < 0.8 * 512 * MIB
    with iid_dask.open(tmp_path / "a.iid") as one:
        assert [tuple(entry.bbox) for entry in one.values()] == [(5000, 3000, 5100, 3100)]


def test_shards_too_large_for_the_workers_are_refused_and_smaller_ones_named(tmp_path):
    ds = xr.Dataset({"a": (("y", "x"), da.zeros((8192, 8192), dtype=np.uint32, chunks=2048))})
    with (
        worker(1, 1024 * MIB, processes=False),
        pytest.raises(IIDLimitError, match=r"take shards=4096, which needs .*nothing of this step was written"),
    ):
        iid_dask.to_zarr(ds, tmp_path / "a.zarr", variables="a", shards=8192, progress=False)
    assert os.listdir(tmp_path) == []


def test_without_a_limit_nothing_is_refused(labels, tmp_path):
    with worker(1, 0, processes=False):
        plan = iid_dask.plan(iid_dask.to_iid, labels, tmp_path / "a.iid", progress=False)
        assert not plan.shared
        iid_dask.to_iid(labels, tmp_path / "a.iid", progress=False)
    assert iid_dask.plan(iid_dask.to_iid, labels, tmp_path / "a.iid", progress=False).shared


@pytest.mark.parametrize(
    ("scheduler", "shared"), [("threads", True), ("sync", True), ("processes", False), ("multiprocessing", False)]
)
def test_who_calls_takes_part_where_tasks_run_in_its_process(labels, tmp_path, scheduler, shared):
    with dask.config.set(scheduler=scheduler):
        assert iid_dask.plan(iid_dask.to_iid, labels, tmp_path / "a.iid", progress=False).shared is shared


def test_blocks_larger_than_tiles_are_counted_and_named(tmp_path):
    big = da.zeros((8192, 8192), dtype=np.uint32, chunks=8192)
    plans = [iid_dask.plan(iid_dask.to_mosaic, labels, tmp_path / "m", tile=512) for labels in (big, big.rechunk(512))]
    assert plans[0].thread_bytes - plans[1].thread_bytes >= big.nbytes - 512**2 * 4
    words = replace(plans[0], shared=False).refusal(400 * MIB, 1)
    assert "take an image stored in smaller blocks, or workers of more memory" in str(words)


def test_where_tiles_cannot_be_smaller_fewer_threads_are_named():
    plan = Plan("a to b", 1, 1, 0, None, 1, base_bytes=300 * MIB, thread_bytes=100 * MIB, shared=False)
    assert plan.refusal(500 * MIB, 2) is None
    assert "take workers of 2 threads, or workers of more memory" in str(plan.refusal(500 * MIB, 3))
    assert "take workers of more memory" in str(plan.refusal(300 * MIB, 3))


# --- how crowded a tile is --------------------------------------------------------------------------------------


def test_boxes_that_meet_tiles_are_counted_as_one_by_one():
    rng = np.random.default_rng(3)
    for _ in range(30):
        shape, chunk, tile = (tuple(rng.integers(low, high, 2).tolist()) for low, high in ((1, 90), (1, 12), (1, 4)))
        corners = rng.integers(0, 90, (40, 2))
        boxes = np.concatenate([corners, corners + rng.integers(1, 30, (40, 2))], axis=1)
        pieces = cuts = 0
        sides = [c * t for c, t in zip(chunk, tile, strict=True)]
        for place in np.ndindex(*(math.ceil(s / t) for s, t in zip(shape, sides, strict=True))):
            low = np.array(place) * sides
            high = np.minimum(low + sides, shape)
            mine = boxes[((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(axis=1)]
            first, last = np.maximum(mine[:, :2], low) // chunk, (np.minimum(mine[:, 2:], high) - 1) // chunk
            pieces, cuts = max(pieces, len(mine)), max(cuts, int((last - first + 1).prod(axis=1).sum()))
        assert most_in_a_tile(boxes, Grid(shape, chunk, tile)) == (pieces, cuts)


# --- what is taken ----------------------------------------------------------------------------------------------

CASES = [
    Case("to_zarr", "sparse", 8192, {"variables": ["depth"], "codec": "none"}, threads=2),
    Case("to_zarr", "noise", 512, {"chunks": 64}),
    Case("graph to_zarr", "sparse", 8192, {}, threads=2),
    Case("to_iid", "noise", 512, {"tile": 256}),
    Case("copy", "noise", 300, {}, workers=1),
    Case("copy", "cells", 512, {"window": [3, 3, 500, 500]}),
    Case("finish", "noise", 512, {}),
    Case("consolidate", "noise", 512, {}),
    Case("measure", "noise", 512, {}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_job_takes_more_memory_than_planned_nor_far_less(case, data):
    found = measured(case, data)
    assert max(found.peaks) <= found.planned, found.said
    assert found.share >= 0.4, found.said


@pytest.mark.parametrize(
    ("options", "forgotten"),
    [({"shards": 8192}, "iid_dask.export.plan:_writing_bytes"), ({}, "iid_dask.export.plan:TABLES_BYTES")],
)
def test_a_plan_that_forgets_a_term_is_found_out(options, forgotten, data):
    found = measured(Case("to_zarr", "sparse", 8192, options, forgotten=forgotten), data)
    assert max(found.peaks) > found.planned


def test_small_workers_export_a_large_image_without_a_pause_and_a_small_one_takes_them_as_much(data):
    peaks = []
    for side in (4096, 16_000):
        found = measured(Case("to_zarr", "sparse", side, {}, workers=2, memory_limit=512 * MIB), data)
        assert found.events == {"pauses": 0, "spilled": 0, "restarts": 0}
        assert max(found.peaks) <= found.planned
        peaks.append(max(found.peaks))
    assert max(peaks) < 1.1 * min(peaks)


def test_an_open_file_takes_64_bytes_an_entry(data):
    case = Case("measure", "noise", 512, {})
    run("prepare", case, data)
    assert run("open", case, data) <= 64
