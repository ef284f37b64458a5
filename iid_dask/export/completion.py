"""The completion record of a store: what each chunk held when it was written, and what of it is still there."""

from __future__ import annotations

import asyncio
import json
import math
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.core.sync import sync

from iid_dask import kernels
from iid_dask.errors import IIDStoreError
from iid_dask.export.layout import TASK_PIXELS, Layout, near_tile
from iid_dask.export.store import ATTRIBUTE, RECORD, Place, stored_sizes
from iid_dask.running import Work, batches_of, run, threads_in_scope

VERSION = 1
"""Of the completion record."""

SLAB = 4096
"""Chunks of a record that are read at once."""


def chunk_facts(block: np.ndarray, layout: Layout) -> np.ndarray:
    """Return what the record holds of every chunk of a tile: pixels that are not 0, plus 1; a checksum; 0.

    The last is the place for the number of pixels that more than one entry covers, which values do not tell.

    Parameters
    ----------
    block : array
        A tile's values, of any dtype.
    layout : Layout

    Returns
    -------
    uint64 array, shape (chunks along each dimension, 3)
    """
    grid = tuple(-(-size // chunk) for size, chunk in zip(block.shape, layout.chunk, strict=True))
    facts = np.zeros((*grid, 3), np.uint64)
    if block.dtype.kind == "f":
        block = block + 0  # -0.0, which zarr takes for background
    if block.dtype.kind not in "ub":
        block = np.ascontiguousarray(block).view(f"u{block.dtype.itemsize}")
    for at in np.ndindex(*grid):
        part = block[layout.within(at)]
        pixels, sums = np.zeros((2, 1, 1), np.uint64)
        flat = part.reshape(-1, part.shape[-1])
        kernels.chunk_facts(flat, len(flat) or 1, flat.shape[1] or 1, pixels, sums)
        facts[at] = pixels[0, 0] + np.uint64(1), sums[0, 0], 0
    return facts


def column_facts(variable: xr.Variable) -> list[Any]:
    """Return what the record holds of a column of the table: its shape, and the crc32 of its values."""
    values = np.asarray(variable.values)
    if values.dtype.kind in "OTU":
        data = json.dumps(values.astype(object).tolist()).encode()
    else:
        data = np.ascontiguousarray(values).tobytes()
    return [list(values.shape), zlib.crc32(data)]


def open_zarr(
    store: Any, *, partial: bool = False, storage_options: Mapping[str, Any] | None = None, **options: Any
) -> xr.Dataset:
    """Open a store that `to_zarr` wrote, after making sure that no chunk is lost.

    Looks at the names and sizes of the images' stored objects, not into them; `check_zarr` does. The table is read.

    Parameters
    ----------
    store : path, URL or zarr store
    partial : bool
        Open also what is not complete; chunks that are not there read as background.
    storage_options : mapping, optional
    **options
        Of ``xarray.open_zarr``.

    Raises
    ------
    IIDStoreError
        If the store is not complete, or a chunk that was written is not there; names it.
    """
    place = Place.of(store, storage_options)
    if not partial:
        group = _ours(place)
        lost = _all_lost(group)
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise IIDStoreError(
                f"{place.name}: {lost[0]}{more}; write the store again, or open it with partial=True, where such "
                "chunks read as background"
            )
    options.setdefault("chunks", {})
    return xr.open_zarr(place.target, storage_options=dict(place.storage_options) or None, **options)


def _ours(place: Place) -> Any:
    try:
        # Consolidated metadata would still tell of arrays that are gone.
        group = place.group("r", use_consolidated=False)
    except zarr.errors.GroupNotFoundError:
        raise FileNotFoundError(f"{place.name}: no Zarr group is there") from None
    record = group.attrs.get(ATTRIBUTE)
    if not isinstance(record, dict) or "options" not in record:
        raise IIDStoreError(f"{place.name}: has no completion record: to_zarr did not write it; use xarray.open_zarr")
    if record.get("version") != VERSION:
        raise IIDStoreError(f"{place.name}: completion record of version {record.get('version')}, expected {VERSION}")
    if not record.get("complete"):
        raise IIDStoreError(
            f"{place.name}: is not complete; run to_zarr again with the same parameters, or open it with partial=True"
        )
    return group


def is_whole(place: Place) -> bool:
    """Whether a store is complete, and nothing that its record tells of is missing."""
    try:
        return not _all_lost(_ours(place))
    except (IIDStoreError, FileNotFoundError):
        return False


def _all_lost(group: Any) -> list[str]:
    """Name everything that the record tells of and that is not there."""
    return [*(line for name in _names(group) for line in _lost(group, name)), *_changed_columns(group)]


def _changed_columns(group: Any) -> list[str]:
    """Name the columns of the table that are not as they were written."""
    lines = []
    for name, (shape, crc) in group.attrs[ATTRIBUTE]["table"].items():
        try:
            found = column_facts(
                xr.Variable(None, group[name][...], fastpath=True) if not shape else _column(group[name])
            )
        except Exception as error:  # a codec's own
            lines.append(f"{name}: cannot be read: {type(error).__name__}: {error}")
            continue
        if found != [shape, crc]:
            lines.append(f"{name}: shape {found[0]}, crc32 {found[1]:#010x}, expected {shape}, {crc:#010x} as recorded")
    return lines


def _column(array: Any) -> xr.Variable:
    return xr.Variable(array.metadata.dimension_names, array[...])


def record_slabs(record: Any) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Yield a record in order, some thousand chunks at a time: zarr takes a KB of memory for each that it reads."""
    budget, sides = SLAB, []
    for size, chunk in zip(reversed(record.shape), reversed(record.chunks), strict=True):
        sides.append(chunk * max(1, min(budget, -(-size // chunk))))
        budget //= sides[-1] // chunk
    for at in Layout(record.shape, record.chunks, None, tuple(reversed(sides))).tiles():
        yield at, np.asarray(record[at])


def _lost(group: Any, name: str) -> list[str]:
    """Name the stored objects of an array that hold pixels by the record, but are missing or empty."""
    try:
        array, record = group[name], group[f"{RECORD}/{name}"]
    except KeyError as error:
        return [f"{name}: {error.args[0]} is missing"]
    pixels = np.zeros(record.shape[:-1], np.uint64)
    try:
        for slab, facts in record_slabs(record):
            pixels[slab[:-1]] = facts[..., 0]
    except ValueError as error:  # zarr's, of a chunk of another size
        return [f"{name}: its record cannot be read: {error}"]
    unit = array.shards or array.chunks
    steps = [u // c for u, c in zip(unit, array.chunks, strict=True)]
    sizes = stored_sizes(group, name)
    lost = []
    for at in np.ndindex(*(-(-n // step) for n, step in zip(pixels.shape, steps, strict=True))):
        part = pixels[tuple(slice(i * step, (i + 1) * step) for i, step in zip(at, steps, strict=True))]
        key = "c/" + "/".join(map(str, at))
        size = sizes.get(key)
        if part.min(initial=1) == 0:
            lost.append(f"{name}: the record of chunk {key} is missing")
        elif part.max() > 1 and not size:
            what = "chunk" if array.shards is None else "shard"
            found = "is missing" if size is None else "is empty"
            lost.append(f"{name}: {what} {key} with {int((part.clip(1) - 1).sum())} labelled pixels {found}")
    return lost


def check_zarr(
    store: Any, *, storage_options: Mapping[str, Any] | None = None, progress: bool = False
) -> list[IIDStoreError]:
    """Compare a store that `to_zarr` wrote with its record, and return every defect.

    Lost chunks are found first, by their names; if there are none, every chunk is read, and those that are damaged,
    exchanged or older than the record are found.
    """
    place = Place.of(store, storage_options)
    try:
        group = _ours(place)
    except IIDStoreError as error:
        return [error]
    lost = _all_lost(group)
    if lost:
        return [IIDStoreError(f"{place.name}: {line}") for line in lost]
    place = replace(place, job=uuid.uuid4().hex)
    lines: list[str] = []
    for name in _names(group):
        array = group[name]
        dims = array.metadata.dimension_names
        unit = zip(array.shards or array.chunks, dims, strict=True)
        size = tuple(near_tile(u) if dim in ("y", "x") else u for u, dim in unit)
        layout = Layout(array.shape, array.chunks, array.shards, size)
        work = Work(
            _compare_tiles,
            (place, name, layout),
            batches_of(math.prod(layout.tile_grid), max(1, TASK_PIXELS // math.prod(layout.tile)), threads_in_scope()),
            arguments=lambda start, stop: (start, stop),
            pixels=partial(_pixels_of, layout),
        )
        for found in run(work, f"check {name} of {place.name}", progress=progress):
            lines += found
    return [IIDStoreError(f"{place.name}: {line}") for line in lines]


def unsound_tiles(place: Place, name: str, layout: Layout, numbers: np.ndarray, *, progress: bool) -> np.ndarray:
    """Return which tiles do not hold what their record says, as their numbers.

    Parameters
    ----------
    place : Place
        With a job.
    name
        Of the variable.
    layout
    numbers : integer array
        Of tiles that are recorded.
    progress
        Show a bar.
    """
    if not len(numbers):
        return numbers
    size = math.prod(layout.tile)
    work = Work(
        _unsound,
        (place, name, layout),
        batches_of(len(numbers), max(1, TASK_PIXELS // size), threads_in_scope()),
        arguments=lambda start, stop: (numbers[start:stop],),
        pixels=lambda start, stop: (stop - start) * size,
    )
    found = run(work, f"check what is there of {name}", progress=progress)
    return np.array([number for numbers in found for number in numbers], np.intp)


def _unsound(shared: tuple[Place, str, Layout], numbers: np.ndarray) -> list[int]:
    place, name, layout = shared
    return [number for number in numbers.tolist() if _compare(place, name, layout, layout.tile_at(number))]


def forget_tiles(place: Place, name: str, layout: Layout, numbers: np.ndarray) -> None:
    """Remove the records of tiles, and then all that is stored of them, so that nothing of it is read or stays.

    For the process that has the job: a task that ends late would remove what was made again.
    """
    group = place.group("r+")
    cut = layout.record()
    for path, unit in ((f"{RECORD}/{name}", cut.chunk), (name, layout.shard or layout.chunk)):
        array: Any = group[path]
        for number in numbers.tolist():
            tile = layout.tile_at(number)
            if path != name:
                tile = (*layout.chunks_of(tile), slice(0, 3))
            objects = [range(part.start // u, -(-part.stop // u)) for part, u in zip(tile, unit, strict=True)]
            keys = [f"{array.store_path.path}/{array.metadata.encode_chunk_key(at)}" for at in product(*objects)]
            sync(_delete(group.store, keys))


async def _delete(store: Any, keys: list[str]) -> None:
    await asyncio.gather(*map(store.delete, keys))


def _pixels_of(layout: Layout, start: int, stop: int) -> int:
    return (stop - start) * math.prod(layout.tile)


def _compare_tiles(shared: tuple[Place, str, Layout], start: int, stop: int) -> list[str]:
    place, name, layout = shared
    return [line for number in range(start, stop) for line in _compare(place, name, layout, layout.tile_at(number))]


def _names(group: Any) -> list[str]:
    return list(group.attrs[ATTRIBUTE]["options"]["variables"])


def _compare(place: Place, name: str, layout: Layout, tile: tuple[slice, ...]) -> list[str]:
    array = place.array(name, sharded=layout.shard is not None, mode="r")
    try:
        record = place.record(name, mode="r")[layout.chunks_of(tile)]
        found = chunk_facts(np.asarray(array[tile]), layout)
    except Exception as error:  # every codec has its own; the tile is what matters
        rows = ", ".join(f"{s.start}:{s.stop}" for s in tile)
        return [f"{name}: tile [{rows}] cannot be decoded: {type(error).__name__}: {error}"]
    lines = []
    for at in np.argwhere((found[..., :2] != record[..., :2]).any(axis=-1)).tolist():
        chunk = [i + s.start for i, s in zip(at, layout.chunks_of(tile), strict=True)]
        wanted, pixels = int(record[tuple(at)][0]) - 1, int(found[tuple(at)][0]) - 1
        lines.append(
            f"{name}: chunk c/{'/'.join(map(str, chunk))}: found {pixels} labelled pixels, checksum "
            f"{int(found[tuple(at)][1]):#x}, expected {wanted}, {int(record[tuple(at)][1]):#x} as recorded"
        )
    return lines
