"""Memory, tasks and files of an export, from what was decided; pure but for columns that are already in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from iid_dask.costs import CUT, PIECE, Grid, columns_bytes, most_in_a_tile, region_boxes, stored_bytes
from iid_dask.export.layout import Layout, plan_layout
from iid_dask.export.sources import Rastered
from iid_dask.export.template import Plan as Decided
from iid_dask.overlapping import search_bytes
from iid_dask.pieces import BATCH
from iid_dask.running.plan import MIB, TABLES_BYTES, Plan

PUT_BYTES = 16 * 2**20
"""Bytes of encoded chunks that are gathered before they are stored, all at once."""

BATCHES = 6
"""Batches of mask bits that are in memory at once, where a tile has so many."""

ROW = 120
"""Bytes of memory of a row of the table of entries, in the process that calls, beside its columns."""

RECORD = 24
"""Bytes of a chunk's record."""

TASK = 4096
"""Bytes of a task in the process that calls."""


def plan_export(decided: Decided, name: str, tasks: int, parts: int = 1) -> Plan:
    """Return what an export takes.

    Parameters
    ----------
    decided
    name
        Of the store.
    tasks
        Batches of tiles.
    parts
        The job is one of so many, about.
    """
    layouts = decided.layouts
    readers = {id(s.array.view.reader): s.array.view.reader for s in decided.sources.values() if s is not None}
    entries = sum(len(reader.lut) for reader in readers.values())
    tiles = sum(math.prod(layout.tile_grid) for layout in layouts.values())
    stored = sum(stored_bytes(reader) for reader in readers.values())
    graphs = sum(array.nbytes for array in decided.graphs.values())
    images = sum(math.prod(layout.shape) * decided.ds[n].dtype.itemsize for n, layout in layouts.items())
    chunks = sum(math.prod(layout.chunk_grid) for layout in layouts.values())
    objects = sum(_objects(layout) for layout in layouts.values())
    return Plan(
        f"to_zarr {', '.join(layouts)} to {name}",
        -(-tiles // parts),
        tasks,
        stored + graphs,
        -(-images // parts) + chunks * RECORD + decided.table.nbytes,
        -(-objects // parts) + 3 * len(decided.table.variables) + 2 * len(layouts) + 2,
        TABLES_BYTES + sum(map(columns_bytes, readers.values())),
        max(_thread_bytes(decided, n, layout) for n, layout in layouts.items()),
        entries * ROW + decided.table.nbytes + tasks * TASK,
        shape=(decided.ds.sizes["y"], decided.ds.sizes["x"]),
        ways_out=tuple(_ways_out(decided)),
    )


def _objects(layout: Layout) -> int:
    unit = layout.shard or layout.chunk
    return math.prod(-(-s // u) for s, u in zip(layout.shape, unit, strict=True)) + math.prod(layout.tile_grid)


# --- a thread ---------------------------------------------------------------------------------------------------


def _thread_bytes(decided: Decided, name: str, layout: Layout) -> int:
    """Bytes of memory of a thread that writes tiles of a variable, the whole of what it makes at once."""
    dtype, source = decided.ds[name].dtype, decided.sources[name]
    chunks = math.prod(layout.tile_chunks)
    writing = _writing_bytes(layout, dtype, str(decided.options["codec"])) + 3 * RECORD * chunks
    tile = _tile_pixels(layout) * dtype.itemsize
    if source is None:
        # The block as it comes, once more where it is put together of others, and floats without their -0.0.
        return writing + (3 if dtype.kind == "f" else 2) * tile
    return writing + _made_bytes(source, layout, dtype) + _read_bytes(source, layout)


def _tile_pixels(layout: Layout) -> int:
    """Elements of the largest tile."""
    return math.prod(min(t, s) for t, s in zip(layout.tile, layout.shape, strict=True))


def _writing_bytes(layout: Layout, dtype: np.dtype, codec: str) -> int:
    """Chunks that are encoded and not yet stored, one that is being encoded, and what the codec needs."""
    chunk, tile = math.prod(layout.chunk) * dtype.itemsize, math.prod(layout.tile) * dtype.itemsize
    if layout.shard is None:
        return min(tile, PUT_BYTES + chunk) * 257 // 256 + chunk + codec_bytes(codec, chunk)
    shard = math.prod(layout.shard) * dtype.itemsize
    # The tile as it was made, a shard's values in one piece, its chunks encoded, and these joined.
    return tile + 3 * shard + codec_bytes(codec, chunk)


def codec_bytes(codec: str, chunk: int) -> int:
    """Bytes of memory that encoding a chunk needs beside its input and output.

    zstd's tables grow with its level, and with the input up to a size that the level sets; measured.

    Examples
    --------
    >>> [codec_bytes(codec, 2**22) >> 20 for codec in ("none", "zstd-1", "zstd-9", "zstd-22")]
    [0, 2, 12, 69]
    """
    kind, _, level = codec.partition("-")
    if kind == "none":
        return 0
    number = int(level)
    if number < 10:
        return (2 if number < 4 else 12) * MIB
    return MIB + min(17 * chunk, (68 if number < 16 else 720) * MIB)


def _made_bytes(source: Rastered, layout: Layout, dtype: np.dtype) -> int:
    """Pixels in memory while a tile is painted."""
    array, view = source.array, source.array.view
    chunk, pixels = math.prod(layout.chunk), _tile_pixels(layout)
    depth = view.depth_dtype.itemsize
    # Who covers a pixel is counted where more than one entry does: the count, who came last, and a comparison.
    counted = pixels * (depth + 5)
    if array.variable == "label" and view.overlap != "raise":
        if view.stride == 1 and view.labels is None:
            return chunk * (dtype.itemsize + 1)
        return pixels * dtype.itemsize + counted
    if array.variable == "label":
        return 2 * pixels * dtype.itemsize + counted
    if array.variable == "color":
        pixels //= min(layout.tile[-1], layout.shape[-1])
        return pixels * (3 * 3 + view.label_dtype.itemsize + depth + 5)
    if array.variable == "depth":
        return pixels * (2 * dtype.itemsize + 4)
    # Layers are told apart by a search for pairs, in every process.
    return 2 * pixels * dtype.itemsize + (search_bytes(view.reader) if array.variable == "layers" else 0)


def _read_bytes(source: Rastered, layout: Layout) -> int:
    """Mask bits, and columns of the regions that meet the most crowded tile."""
    view = source.array.view
    y = layout.ndim - (3 if source.array.variable == "color" else 2)
    grid = Grid(*((part[y], part[y + 1]) for part in (layout.shape, layout.chunk, layout.tile_chunks)))
    boxes = region_boxes(view.reader).astype(np.int64)
    boxes[:, 2:] += view.stride - 1  # a row more, where a part of one would do
    pieces, cuts = most_in_a_tile(boxes // view.stride - np.tile(source.origin[y : y + 2], 2), grid)
    return min(BATCHES * BATCH, 3 * stored_bytes(view.reader)) + pieces * PIECE + cuts * CUT


# --- what would fit ---------------------------------------------------------------------------------------------


def _ways_out(decided: Decided) -> Iterator[tuple[str, int]]:
    """Smaller shards, none, or smaller chunks, and what a thread takes then."""
    chunk, shards = tuple(decided.options["chunks"]), decided.options["shards"]
    stored = [layout.shard for layout in decided.layouts.values() if layout.shard is not None]
    sides = [256 * 2**i for i in range(8, -1, -1)]
    if stored:
        larger = max(max(shard) for shard in stored)
        fits = [side for side in sides if side < larger and not any(side % c for c in chunk)]
        changes: list[tuple[str, Any, Any]] = [(f"shards={side}", chunk, side) for side in fits]
        changes.append(("shards=None", chunk, None))
    else:
        changes = [(f"chunks={side}", side, shards) for side in sides if side < max(chunk)]
    for change, chunks, shard in changes:
        layouts = _layouts(decided, chunks, shard)
        yield change, max(_thread_bytes(decided, name, layout) for name, layout in layouts.items())


def _layouts(decided: Decided, chunks: Any, shards: Any) -> Mapping[str, Layout]:
    return {
        name: plan_layout([str(d) for d in decided.ds[name].dims], layout.shape, chunks, shards)
        for name, layout in decided.layouts.items()
    }
