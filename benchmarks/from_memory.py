"""Arrays from memory to Zarr: what the codec costs alone, and what each pipeline adds to it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
import zarr.core.codec_pipeline as pipelines

from benchmarks.rasterize import tiles
from benchmarks.timing import Spent, Table, alternate, spent, total
from iid_dask import raster
from iid_dask.export.chunks import store_chunks
from iid_dask.export.layout import Layout, plan_layout
from iid_dask.export.store import Place
from iid_dask.views import View

CHUNK = 1024
SHARD = 4096
THREADS = 2
BATCH = 8
"""Tiles of 64 MiB that are held at once."""


def remove(store: Path) -> None:
    """Remove a store, if it is there."""
    shutil.rmtree(store, ignore_errors=True)


def batches(view: View) -> Iterator[list[tuple[tuple[slice, slice], np.ndarray]]]:
    """Yield tiles and their places, some at a time."""
    windows = list(tiles(view.shape))
    for start in range(0, len(windows), BATCH):
        yield [(window.box.slices, raster.label(view, window)) for window in windows[start : start + BATCH]]


def _timed_map(work: Callable[[Any], Any], items: list[Any], threads: int = THREADS) -> Spent:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(id, items))  # the threads have started
        return spent(lambda: list(pool.map(work, items)))


def floor(view: View, *, copy: bool = False) -> Spent:
    """Compress all chunks of a view on `THREADS` threads, and nothing else; ``copy`` counts cutting them out, too."""
    return total(_compress(batch, THREADS, copy=copy) for batch in batches(view))


def _compress(batch: list[tuple[tuple[slice, slice], np.ndarray]], threads: int, *, copy: bool = False) -> Spent:
    """Compress the chunks of some tiles, and return the seconds; ``copy`` counts making them contiguous, too."""
    codec = numcodecs.Zstd(level=1)
    parts = [
        block[row : row + CHUNK, col : col + CHUNK]
        for _, block in batch
        for row in range(0, block.shape[0], CHUNK)
        for col in range(0, block.shape[1], CHUNK)
    ]
    if copy:
        return _timed_map(lambda part: codec.encode(np.ascontiguousarray(part)), parts, threads)
    return _timed_map(codec.encode, [np.ascontiguousarray(part) for part in parts], threads)


def from_memory(view: View, store: Path) -> Spent:
    """Write all tiles of a view as the export writes chunks; making the tiles does not count."""
    _create(store, view.shape, None)
    place = replace(Place.of(store), job=uuid.uuid4().hex)
    array = place.array("label", sharded=False)
    layout = plan_layout(("y", "x"), view.shape, CHUNK, None)

    def write(item: tuple[tuple[slice, slice], np.ndarray]) -> None:
        tile, block = item
        store_chunks(array, tile, layout, "zstd-1", _chunks(block, layout))

    seconds = total(_timed_map(write, batch) for batch in batches(view))
    remove(store)
    return seconds


def _chunks(block: np.ndarray, layout: Layout) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Chunks of a tile that are not all background."""
    for at in np.ndindex(*(-(-size // CHUNK) for size in block.shape)):
        part = block[layout.within(at)]
        if part.any():
            yield at, part


def _create(store: Path, shape: tuple[int, ...], shard: int | None) -> None:
    zarr.open_group(store, mode="w").create_array(
        "label",
        shape=shape,
        chunks=(CHUNK, CHUNK),
        shards=None if shard is None else (shard, shard),
        dtype=np.uint32,
        compressors=zarr.codecs.ZstdCodec(level=1),
        fill_value=0,
    )


# --- layouts ----------------------------------------------------------------------------------------------------


def layout_table(view: View, store: Path, repeats: int) -> Table:
    """Write the same tiles from memory through every pipeline and layout: what `fastest_pipeline` rests on."""
    known = {"default": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
    if hasattr(pipelines, "FusedCodecPipeline"):
        known["fused"] = "zarr.core.codec_pipeline.FusedCodecPipeline"
    batch = next(batches(view))
    pixels = sum(block.size for _, block in batch)

    def write(pipeline: str, shard: int | None, threads: int) -> Spent:
        _create(store, view.shape, shard)
        with zarr.config.set({"codec_pipeline.path": known[pipeline], "threading.max_workers": 1}):
            array = zarr.open_group(store, mode="r+")["label"]
            seconds = _timed_map(lambda item: array.__setitem__(*item), batch, threads)
        remove(store)
        return seconds

    cases = [(name, shard, threads) for name in known for shard in (None, SHARD) for threads in (1, THREADS)]
    tasks = {str(case): (lambda case=case: write(*case)) for case in cases}
    tasks |= {f"codec {threads}": (lambda threads=threads: _compress(batch, threads)) for threads in (1, THREADS)}
    found = alternate(tasks, min(repeats, 3), budget=90)
    columns = [(shard, threads) for shard in (None, SHARD) for threads in (1, THREADS)]
    titles = [f"{'no shards' if s is None else f'shards of {s}²'}, {t} thread{'s'[: t > 1]}" for s, t in columns]
    table = Table(f"writing {len(batch)} tiles from memory, Gpx/s", ["pipeline", *titles])
    alone = [pixels / found[f"codec {threads}"].wall / 1e9 for _, threads in columns]
    table.add("the codec alone", *alone[:2], "", "")
    for name in known:
        table.add(name, *(pixels / found[str((name, *column))].wall / 1e9 for column in columns))
    return table
