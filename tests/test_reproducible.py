"""The same input gives the same bytes, whatever the clock, the zone, the seed of hashes, and the order of tasks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libfaketime

import iid_dask

JOBS = """
import random, sys, time, warnings
from unittest.mock import patch
import iid_dask
from iid_dask.running.work import batches_of

def shuffled(count, most, threads):
    batches = batches_of(count, 1, 1)
    random.Random(sys.argv[3]).shuffle(batches)
    return batches

states, out = sys.argv[1], sys.argv[2]
warnings.simplefilter("ignore")
stamp = open(f"{out}/made-at", "x")
stamp.write(f"{time.time():.0f} {set('abcdefgh')}")
with patch("iid_dask.export.layout.TILE", 128), patch("iid_dask.export.zarr.batches_of", shuffled):
    group = iid_dask.to_zarr(states, f"{out}/label.zarr", chunks=64, progress=False)
with patch("iid_dask.assembling.writing.batches_of", shuffled):
    iid_dask.to_mosaic(f"{out}/label.zarr/label", f"{out}/mosaic", tile=128, progress=False).close()
    iid_dask.to_iid(f"{out}/label.zarr/label", f"{out}/label.iid", tile=128, progress=False)
"""
"""Tasks run in an order of their own."""

CLOCKS = ["+0", "-1d", "@1970-01-02 00:00:00", "@2099-12-31 23:59:59 x1000"]
ZONES = ["UTC", "Asia/Tokyo", "America/New_York", "UTC"]


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file; a mosaic's manifest and tables have names and ids of their own."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 60
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.parent.name != "mosaic"
    }


def test_clock_zone_hash_seed_and_order_change_no_byte(tmp_path: Path) -> None:
    _, preload = libfaketime.get_reload_information()

    def made(number: int) -> dict[str, str]:
        out = tmp_path / str(number)
        out.mkdir()
        env = {**os.environ, **preload, "FAKETIME": CLOCKS[number], "PYTHONHASHSEED": str(number), "TZ": ZONES[number]}
        command = [sys.executable, "-c", JOBS, iid_dask.sample("us"), str(out), str(number)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return hashes(out)

    with ThreadPoolExecutor(2) as threads:
        first, *others = threads.map(made, range(len(CLOCKS)))
    stamps = {told.pop("made-at") for told in [first, *others]}
    assert len(stamps) == len(CLOCKS), "the clock and the seed were not changed"
    assert others == [first] * len(others)
