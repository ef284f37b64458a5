"""Jobs give the same results on a cluster as on threads, and what passes through the client is small."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from cluster_work import SMALL, separate_cluster
from distributed import Client
from distributed.comm import tcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_images import discs

import iid_dask
from iid_dask.cli import main
from iid_dask.mosaic.consolidate import consolidate

US = iid_dask.sample("us")


@pytest.fixture(scope="module")
def scheduler_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scheduler and two workers in processes of their own, as on a cluster; the file that tells its address."""
    file = tmp_path_factory.mktemp("cluster") / "scheduler.json"
    with separate_cluster(file):
        yield file


@pytest.fixture(scope="module")
def client(scheduler_file: Path) -> Iterator[Client]:
    """A client in scope."""
    with Client(scheduler_file=str(scheduler_file)) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A label image, a picture of the sample's size, and a mosaic."""
    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "labels.npy", discs(600, 1000, 200, seed=11))
    zarr.save_array(folder / "picture.zarr", np.random.default_rng(4).integers(0, 999, (600, 1000), np.uint16))
    iid_dask.to_mosaic(str(folder / "labels.npy"), folder / "mosaic", tile=90, progress=False).close()
    return {name: str(folder / name) for name in ("labels.npy", "picture.zarr", "mosaic")}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are cut small."""
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


def results(sources: dict[str, str], folder: Path) -> dict[str, Any]:
    """Do every job, and return what it made, or what it returned."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*covered by more than one entry.*")
        iid_dask.to_zarr(US, folder / "us.zarr", chunks=50, progress=False)
    iid_dask.to_iid(sources["labels.npy"], folder / "labels.iid", tile=50, progress=False)
    iid_dask.to_mosaic(sources["labels.npy"], folder / "mosaic", tile=70, progress=False).close()
    consolidate(sources["mosaic"], folder / "whole.iid")
    made = held(folder)
    (folder / "us.zarr" / "label" / "c" / "5" / "7").unlink()
    return {
        **made,
        "check": [str(defect).rpartition("us.zarr")[2] for defect in iid_dask.check_zarr(folder / "us.zarr")],
        "measure": iid_dask.measure(US, zarr.open_array(sources["picture.zarr"], mode="r"), tile=406).compute(),
        "overlaps": iid_dask.overlaps(US).compute(),
    }


def held(folder: Path) -> dict[str, str]:
    """Checksums of all files by their paths, without what is random in the names of tables."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "mosaic.json"]
    return {
        str(path.relative_to(folder)).split("-")[0]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture(scope="module")
def expected(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one thread makes."""
    with pytest.MonkeyPatch.context() as patched, dask.config.set(scheduler="synchronous"):
        for name, value in SMALL.items():
            patched.setattr(name, value)
        return results(sources, tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("scheduler", ["threads", "cluster"])
def test_every_job_gives_the_same_on_any_scheduler(small, expected, sources, tmp_path, request, scheduler):
    if scheduler == "cluster":
        request.getfixturevalue("client")
        found = results(sources, tmp_path)
    else:
        with dask.config.set(scheduler=scheduler, num_workers=3):
            found = results(sources, tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(found[name], value, check_exact=True)
        else:
            assert found[name] == value, name
    assert len(expected["check"]) == 1


COMMANDS = {
    "rasterize": lambda sources: [US, "us.zarr", "--chunks", "100"],
    "assemble": lambda sources: [sources["labels.npy"], "-o", "labels.iid", "--tile", "90"],
    "consolidate": lambda sources: [sources["mosaic"], "-o", "whole.iid"],
    "measure": lambda sources: [US, sources["picture.zarr"], "-o", "measured.csv"],
    "overlaps": lambda sources: [US, "-o", "overlaps.csv"],
}


def command(name: str, sources: dict[str, str], *options: str) -> None:
    main([name, *COMMANDS[name](sources), *options], standalone_mode=False)


@pytest.fixture(scope="module")
def commanded(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands make that are told of no cluster."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patched, dask.config.set(scheduler="threads"):
        patched.chdir(folder)
        for name in COMMANDS:
            command(name, sources)
    return held(folder)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("--workers", ["rasterize"]),
        ("--scheduler", list(COMMANDS)),
        ("--scheduler-file", ["assemble", "overlaps"]),
    ],
)
def test_commands_give_the_same_wherever_they_run(
    client, scheduler_file, sources, commanded, tmp_path, monkeypatch, where, names
):
    value = {"--workers": "2", "--scheduler": client.scheduler.address, "--scheduler-file": str(scheduler_file)}[where]
    monkeypatch.chdir(tmp_path)
    for name in names:
        command(name, sources, where, value)
    found = held(tmp_path)
    assert found == {name: commanded[name] for name in found}
    assert len({name.partition("/")[0] for name in found}) == len(names)


def test_jobs_in_tasks_leave_their_threads_to_the_cluster(client, sources, tmp_path):
    def export(target: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", iid_dask.IIDWarning)
            iid_dask.to_zarr(iid_dask.sample("us"), target, chunks=200, progress=False)
        return target

    # More than there are threads: else somebody is left to do what they wait for.
    targets = [str(tmp_path / f"{number}.zarr") for number in range(3)]
    assert client.gather(client.map(export, targets)) == targets
    expected = xr.open_dataset(US, engine="iid").label.values
    assert all(np.array_equal(iid_dask.open_zarr(target).label.values, expected) for target in targets)


def test_a_scheduler_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(click.BadParameter, match=r"none.json' does not exist"):
        main(["overlaps", US, "--scheduler-file", str(tmp_path / "none.json")], standalone_mode=False)


# --- what passes through the client -----------------------------------------------------------------------------


@pytest.fixture
def traffic(client: Client, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that this process, in which there is nothing but a client, receives and sends."""
    counted = {"received": 0, "sent": 0}
    from_frames, to_frames = tcp.from_frames, tcp.to_frames

    async def receive(frames: Any, **options: Any) -> Any:
        counted["received"] += sum(memoryview(frame).nbytes for frame in frames)
        return await from_frames(frames, **options)

    async def send(*args: Any, **options: Any) -> Any:
        frames = await to_frames(*args, **options)
        counted["sent"] += sum(memoryview(frame).nbytes for frame in frames)
        return frames

    monkeypatch.setattr(tcp, "from_frames", receive)
    monkeypatch.setattr(tcp, "to_frames", send)
    return counted


TILES, FIXED = 600, 2**16
"""Tiles of the jobs below; bytes that a job may take whatever the number of its tiles."""


@pytest.mark.parametrize("job", ["to_zarr", "to_iid"])
def test_neither_pixels_nor_much_else_pass_through_the_client(client, traffic, tmp_path, monkeypatch, job):
    monkeypatch.setattr("iid_dask.export.layout.TILE", 40)
    labels = discs(800, 1200, 300, seed=2)
    np.save(tmp_path / "labels.npy", labels)
    iid_dask.to_iid(labels, tmp_path / "labels.iid", progress=False, scheduler="synchronous")
    traffic.update(received=0, sent=0)
    if job == "to_zarr":
        iid_dask.to_zarr(tmp_path / "labels.iid", tmp_path / "out.zarr", chunks=40, progress=False)
    else:
        iid_dask.to_iid(str(tmp_path / "labels.npy"), tmp_path / "out.iid", tile=40, progress=False)
    assert traffic["received"] <= 1000 * TILES
    assert traffic["sent"] <= 200 * TILES + FIXED


def test_pixels_that_pass_through_the_client_are_counted(client, traffic):
    """Or else the test above would show nothing."""
    image = da.ones((800, 1200), chunks=100, dtype=np.uint32)
    image.compute()
    assert traffic["received"] > image.nbytes


# --- layouts ----------------------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    chunks=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shards=st.none() | st.tuples(st.integers(1, 80), st.integers(1, 80)) | st.integers(1, 3),
    tile=st.integers(1, 90),
    blocks=st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)),
    threads=st.sampled_from([1, 4]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layout_is_written_right_or_refused(tmp_path, monkeypatch, shape, chunks, shards, tile, blocks, threads):
    monkeypatch.setattr("iid_dask.export.layout.TILE", tile)
    pixels = np.arange(1, shape[0] * shape[1] + 1, dtype=np.uint32).reshape(shape)
    shards = (chunks[0] * shards, chunks[1] * shards) if isinstance(shards, int) else shards
    source = dataset_of(pixels, blocks)
    target = tmp_path / hashlib.sha256(repr((shape, chunks, shards, tile, blocks, threads)).encode()).hexdigest()
    fits = shards is None or all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
    with dask.config.set(scheduler="threads" if threads > 1 else "synchronous", num_workers=threads):
        if fits:
            iid_dask.to_zarr(source, target, chunks=chunks, shards=shards, overwrite=True, progress=False)
            np.testing.assert_array_equal(zarr.open_array(target / "label", mode="r")[...], pixels)
        else:
            with pytest.raises(ValueError, match="whole number of chunks"):
                iid_dask.to_zarr(source, target, chunks=chunks, shards=shards, overwrite=True, progress=False)
            assert not target.exists()


def dataset_of(pixels: np.ndarray, blocks: tuple[int, int] | None) -> Any:
    array = da.from_array(pixels, chunks=blocks or pixels.shape)
    return xr.Dataset({"label": (("y", "x"), array)})


def test_tasks_that_share_a_shard_lose_each_others_pixels(tmp_path):
    """What the layouts avoid: each task reads a shard, and writes it again with its own pixels in it."""
    array = zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), dtype="u4", chunks=(8, 8), shards=(64, 64))
    ones = da.ones((64, 64), chunks=8, dtype="u4")
    with dask.config.set(scheduler="threads", num_workers=8):
        da.store(ones, array, lock=False)
    assert (array[...] == 0).any()


@given(
    seed=st.integers(0, 2**32 - 1),
    tile=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    scheduler=st.sampled_from(["synchronous", "threads", None]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_image_gives_one_file_whatever_tiles_and_scheduler(client, tmp_path, monkeypatch, seed, tile, scheduler):
    monkeypatch.setattr("iid_dask.mosaic.placing.RANGE", 500)
    labels = discs(50 + seed % 31, 50 + seed % 47, 20, seed=seed)
    made = []
    for name, options in (("one", {"scheduler": "synchronous"}), ("many", {"tile": tile, "scheduler": scheduler})):
        path = tmp_path / f"{name}.iid"
        iid_dask.to_iid(labels, path, progress=False, **options)
        made.append(path.read_bytes())
        path.unlink()
    assert made[0] == made[1]
