"""Lazy datasets to Zarr v3: template first, then tiles in parallel, with a record of every chunk."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
import zarr
from xarray.core import indexing
from zarr.codecs import ZstdCodec

from iid_dask import raster
from iid_dask.arrays import LazyArray, PixelArray, targets
from iid_dask.errors import IIDStoreError, IIDWarning
from iid_dask.export.completion import VERSION, chunk_facts
from iid_dask.export.layout import Layout, plan_layout
from iid_dask.export.store import ATTRIBUTE, RECORD, Place, quiet
from iid_dask.progress import run
from iid_dask.views import Window

# --- what is written --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rastered:
    """Pixels that a task makes itself from the file: a window of a `PixelArray`."""

    array: PixelArray
    origin: tuple[int, ...]

    def read(self, part: Sequence[slice], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """Return values, good until the next call in this thread, and the facts of their chunks."""
        view = self.array.view
        positions = [np.arange(s.start + o, s.stop + o) for s, o in zip(part, self.origin, strict=True)]
        if self.array.variable != "label" or view.overlap == "raise":
            block = self.array.block(positions)
            return block, chunk_facts(block, layout)
        ((_, _, target),) = targets(view, *positions)
        out = _used_memory(target.shape, view.label_dtype)
        if isinstance(target, Window) and view.stride == 1 and view.labels is None:
            rows, cols = layout.chunk
            facts = raster.paint_recorded(view, target, out, (rows, cols))
            facts[..., 0] += np.uint64(1)
            return out, facts
        out.fill(0)
        painted = raster.paint(view, target, out, values=raster.label_values(view))
        facts = chunk_facts(out, layout)
        if painted > np.count_nonzero(out):
            facts[0, 0, 2] = raster.overlapping_pixels(view, target)
        return out, facts


_buffers = threading.local()


def _used_memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array in memory that this thread used before: fresh memory costs as much as the painting."""
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = getattr(_buffers, "data", None)
    if buffer is None or len(buffer) < nbytes:
        _buffers.data = buffer = np.empty(nbytes, np.uint8)
    return buffer[:nbytes].view(dtype).reshape(shape)


def find_raster(variable: xr.Variable) -> Rastered | None:
    """Return the source of a variable that is still as it was opened, or a plain window of it; else None."""
    data: Any = variable._data
    if isinstance(data, da.Array):
        # xarray's from_array: one task that holds the array, and one layer that cuts it into chunks.
        layers = dict(data.dask.layers)
        original = layers.get(f"original-{data.name}")
        if len(layers) != 2 or original is None or data.name not in layers:
            return None
        data = next(iter(dict(original).values()), None)
        data = getattr(data, "value", data)
    origin: tuple[int, ...] | None = None
    while not isinstance(data, LazyArray):
        if isinstance(data, indexing.LazilyIndexedArray) and origin is None:
            origin = _window_origin(data)
            if origin is None:
                return None
        elif isinstance(data, indexing.LazilyIndexedArray | indexing.LazilyVectorizedIndexedArray):
            return None
        data = getattr(data, "array", None)
        if data is None:
            return None
    if not isinstance(data, PixelArray) or origin is None or len(origin) != variable.ndim:
        return None
    return Rastered(data, origin)


def _window_origin(lazy: Any) -> tuple[int, ...] | None:
    parts = lazy.key.tuple
    if any(not isinstance(part, slice) or part.step not in (None, 1) for part in parts):
        return None
    return tuple(part.indices(size)[0] for part, size in zip(parts, lazy.array.shape, strict=True))


# --- the job ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a task needs to know of one variable; the same for all its tiles."""

    place: Place
    variable: str
    layout: Layout
    source: Rastered | None

    def write(self, tile: tuple[slice, ...], block: np.ndarray | None = None) -> None:
        """Write one tile, then its record; doing it twice changes nothing."""
        if self.source is not None:
            values, facts = self.source.read(tile, self.layout)
        else:
            values = np.asarray(block)
            facts = chunk_facts(values, self.layout)
        if facts[..., 0].max(initial=1) > 1:
            self.place.array(self.variable, sharded=self.layout.shard is not None)[tile] = values
        self.place.array(f"{RECORD}/{self.variable}", sharded=False)[self.layout.chunks_of(tile)] = facts


# --- writing ----------------------------------------------------------------------------------------------------


def to_zarr(
    source: Any,
    store: Any,
    *,
    variables: Sequence[str] = ("label",),
    chunks: int | tuple[int, int] = 1024,
    shards: Any = "auto",
    codec: str = "zstd-1",
    resume: bool = True,
    overwrite: bool = False,
    part: tuple[int, int] | None = None,
    progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Write variables of a dataset to a Zarr v3 store, tile by tile, on whatever dask scheduler is active.

    Parameters
    ----------
    source : xarray.Dataset, path, URL, bytes or binary file object
        A dataset is written with exactly its values: from its file where it is as opened, or a plain window of
        that; else by its own dask graph. Anything else is opened with engine "iid" and ``options``.
    store : path, URL or zarr store
    variables : sequence of str
        Variables with dimensions y and x. Variables without them (the entry table, groups) and the metadata go
        along.
    chunks : int or (int, int)
        Rows and columns of a chunk.
    shards : "auto", None, int or (int, int)
        Rows and columns of a shard. "auto": none, which is the fastest, unless there are over 100,000 chunks.
    codec : "zstd-LEVEL" or "none"
        Level 1 to 22.
    resume : bool
        Continue an interrupted run with the same parameters: tiles whose record is there are not made again.
        For datasets that are not windows of a file "the same" is the name that dask gives their graph: where data
        behind that name may have changed, use ``overwrite=True``.
    overwrite : bool
        Replace the Zarr store that is there: in a folder, when the new one is whole.
    part : (int, int), optional
        Write only part I of N (1 … N) of the tiles, for array jobs without dask; any number may run at once, and
        the last to end completes the store.
    progress : bool
        Show a bar on stderr.
    storage_options : mapping, optional
        For the file system of a store that is a URL.
    **options
        Of the engine "iid".

    Returns
    -------
    zarr.Group
        The store's root. Chunks that are all background are not stored; `open_zarr` and `check_zarr` tell them
        from lost ones by the record.

    Raises
    ------
    FileExistsError
        If something else is at ``store``.
    IIDStoreError
        If the store there was begun with other parameters.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> store = os.path.join(tempfile.mkdtemp(), "states.zarr")
    >>> group = iid_dask.to_zarr(iid_dask.sample("us"), store, groups="states", progress=False)
    >>> int(iid_dask.open_zarr(store).label.max())
    50
    """
    if isinstance(source, xr.Dataset):
        if options:
            raise TypeError(f"{sorted(options)} are options of opening a file, but a dataset was given")
        return _write(
            source,
            Place.of(store, storage_options),
            _options(variables, chunks, shards, codec),
            resume,
            overwrite,
            _part(part),
            progress,
        )
    with xr.open_dataset(source, engine="iid", **options) as ds:
        return to_zarr(
            ds,
            store,
            variables=variables,
            chunks=chunks,
            shards=shards,
            codec=codec,
            resume=resume,
            overwrite=overwrite,
            part=part,
            progress=progress,
            storage_options=storage_options,
        )


def _options(variables: Sequence[str], chunks: Any, shards: Any, codec: str) -> dict[str, Any]:
    names = [variables] if isinstance(variables, str) else list(dict.fromkeys(variables))
    if not names:
        raise ValueError("variables = (): expected at least one")
    _compressors(codec)
    return {"variables": names, "chunks": chunks, "shards": shards, "codec": codec}


def _part(part: tuple[int, int] | None) -> tuple[int, int]:
    number, of = part or (1, 1)
    if not 1 <= number <= of:
        raise ValueError(f"part = {part!r}: expected (I, N) with I from 1 to N")
    return number, of


def _compressors(codec: str) -> Any:
    kind, _, level = codec.partition("-")
    if codec == "none":
        return None
    if kind == "zstd" and level.isdecimal() and 1 <= int(level) <= 22:
        return ZstdCodec(level=int(level))
    raise ValueError(f"codec = {codec!r}: expected 'zstd-1' to 'zstd-22' or 'none'")


def _write(
    ds: xr.Dataset,
    place: Place,
    options: dict[str, Any],
    resume: bool,
    overwrite: bool,
    part: tuple[int, int],
    progress: bool,
) -> Any:
    for name in options["variables"]:
        if name not in ds.variables:
            raise KeyError(f"no variable {name!r}; there is: {[str(n) for n in ds.variables]}")
        if not {"y", "x"} <= set(ds[name].dims):
            raise ValueError(f"variable {name!r} has dimensions {ds[name].dims}, expected y and x among them")
        if ds[name].dtype.kind not in "biuf":
            raise ValueError(f"variable {name!r} has dtype {ds[name].dtype}, expected bool, integers or floats")
    layouts = {
        name: plan_layout([str(d) for d in ds[name].dims], ds[name].shape, options["chunks"], options["shards"])
        for name in options["variables"]
    }
    sources = {name: find_raster(ds[name].variable) for name in options["variables"]}
    arrays = {name: _graph(ds[name].variable, layouts[name]) for name, source in sources.items() if source is None}
    fingerprint = _fingerprint(ds, options, layouts, sources, arrays)
    final = place.local if overwrite and isinstance(place.target, str) else None
    if final is not None and os.path.lexists(final):
        # Beside the old store, which is there until the new one is whole; a second try finds its beginning.
        _refuse_unless_store(final)
        place = replace(place, target=str(final.with_name(f".{final.name}.{fingerprint[:16]}.new")))
        overwrite = False
    else:
        final = None
    _prepare(ds, place, options, layouts, fingerprint, resume or final is not None, overwrite)
    place = replace(place, job=uuid.uuid4().hex)
    tasks = []
    for name, layout in layouts.items():
        job = Job(place, name, layout, sources[name])
        tasks += _tasks(job, arrays.get(name), _done(place, name, layout), part)
    run(tasks, f"to {final or place.name}", progress=progress)
    group = _finish(place, layouts)
    if final is None or not group.attrs[ATTRIBUTE]["complete"]:
        return group
    old = final.with_name(f".{final.name}.{place.job}.tmp")
    os.rename(final, old)
    os.rename(place.target, final)
    shutil.rmtree(old)
    return replace(place, target=str(final)).group("r")


def _refuse_unless_store(folder: Path) -> None:
    if not (folder / "zarr.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: is no Zarr store, so it is not overwritten; choose another path")


def _graph(variable: xr.Variable, layout: Layout) -> Any:
    """Return a variable as a dask array of whole tiles."""
    return variable.chunk(dict(zip(variable.dims, layout.tile, strict=True))).data


def _fingerprint(
    ds: xr.Dataset,
    options: dict[str, Any],
    layouts: Mapping[str, Layout],
    sources: Mapping[str, Rastered | None],
    arrays: Mapping[str, Any],
) -> str:
    parts = []
    for name, layout in layouts.items():
        source = sources[name]
        what = (source.array.__dask_tokenize__(), source.origin) if source is not None else arrays[name].name
        parts.append((name, layout, ds[name].dtype.str, what))
    return dask.base.tokenize(options, parts, ds.attrs)


def _prepare(
    ds: xr.Dataset,
    place: Place,
    options: dict[str, Any],
    layouts: Mapping[str, Layout],
    fingerprint: str,
    resume: bool,
    overwrite: bool,
) -> None:
    """Make the template, or find that it is there."""
    if not overwrite and _is_ours(place, fingerprint, resume):
        return
    folder = place.local
    if folder is None or not isinstance(place.target, str):
        _template(ds, place, options, layouts, fingerprint)
        return
    # Whole under another name first, so that parts that start together find a whole template or none.
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{folder.parent}: no such folder to write {folder.name} into; make it first")
    try:
        _template(ds, replace(place, target=str(temporary)), options, layouts, fingerprint)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not _is_ours(place, fingerprint, resume):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_ours(place: Place, fingerprint: str, resume: bool) -> bool:
    """Whether the store was begun by this very job; raises if something else is there."""
    try:
        group = place.group("r")
    except (FileNotFoundError, zarr.errors.GroupNotFoundError):
        folder = place.local
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{place.name}: exists and is no Zarr group; choose another path") from None
        return False
    record = group.attrs.get(ATTRIBUTE)
    if not isinstance(record, dict):
        raise FileExistsError(f"{place.name}: a Zarr group that to_zarr did not write; overwrite=True replaces it")
    if not resume:
        raise FileExistsError(f"{place.name}: exists; resume=True continues it, overwrite=True replaces it")
    if record.get("fingerprint") != fingerprint:
        raise IIDStoreError(
            f"{place.name}: was begun with other parameters or another source ({json.dumps(record.get('options'))}); "
            "overwrite=True replaces it"
        )
    return True


def _template(
    ds: xr.Dataset, place: Place, options: dict[str, Any], layouts: Mapping[str, Layout], fingerprint: str
) -> None:
    """Write everything but the tiles: arrays without chunks, the entry table, attributes."""
    table = ds[[name for name, v in ds.variables.items() if not {"y", "x"} & set(v.dims)]]
    target = place.target
    with quiet():
        # One chunk a column: a table is small beside its image.
        table.drop_encoding().load().to_zarr(
            target, mode="w", consolidated=False, zarr_format=3, storage_options=dict(place.storage_options) or None
        )
    group: Any = place.group("r+")
    for name, layout in layouts.items():
        variable = ds[name].variable
        array = group.create_array(
            name,
            shape=layout.shape,
            chunks=layout.chunk,
            shards=layout.shard,
            dtype=variable.dtype,
            compressors=_compressors(options["codec"]),
            fill_value=False if variable.dtype == bool else 0,
            dimension_names=[str(dim) for dim in variable.dims],
        )
        array.attrs.update({key: value for key, value in variable.attrs.items() if key not in ("_FillValue",)})
        group.require_group(RECORD).create_array(
            name,
            shape=(*layout.chunk_grid, 3),
            chunks=(*layout.tile_chunks, 3),
            dtype=np.uint64,
            compressors=None,
            fill_value=0,
        )
    group.attrs[ATTRIBUTE] = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "options": options,
        "complete": False,
        "labels": {name: variable_labels(ds[name].variable) for name in layouts},
    }


def variable_labels(variable: xr.Variable) -> str:
    """Return how a variable's values name entries: "key" means key + 1."""
    source = find_raster(variable)
    if source is None or source.array.variable not in ("label", "layers"):
        return "values"
    return "key" if source.array.view.labels is None else "given"


def _done(place: Place, name: str, layout: Layout) -> np.ndarray:
    """Return which tiles are recorded, bool, shape ``layout.tile_grid``."""
    group: Any = place.group("r")
    record = group[f"{RECORD}/{name}"][..., 0]
    corner = tuple(slice(None, None, step) for step in layout.tile_chunks)
    return np.asarray(record)[corner] > 0


def _tasks(job: Job, array: Any, done: np.ndarray, part: tuple[int, int]) -> list[Any]:
    number, of = part
    whole = dask.delayed(job, name=f"iid-job-{uuid.uuid4().hex}", traverse=False)
    write = dask.delayed(Job.write, pure=False)
    blocks = np.array(array.to_delayed()).ravel() if array is not None else None
    tasks = []
    for i, tile in enumerate(job.layout.tiles()):
        if done.ravel()[i] or i % of != number - 1:
            continue
        tasks.append(write(whole, tile) if blocks is None else write(whole, tile, blocks[i]))
    return tasks


def _finish(place: Place, layouts: Mapping[str, Layout]) -> Any:
    """Complete the store if every tile is recorded."""
    if not all(_done(place, name, layout).all() for name, layout in layouts.items()):
        return place.group("r")
    group: Any = place.group("r+")
    overlapping = {name: int(np.asarray(group[f"{RECORD}/{name}"][..., 2]).sum()) for name in layouts}
    if not group.attrs[ATTRIBUTE]["complete"]:
        group.attrs[ATTRIBUTE] = {**group.attrs[ATTRIBUTE], "complete": True, "overlapping_pixels": overlapping}
        with quiet():
            zarr.consolidate_metadata(group.store)
    for name, count in overlapping.items():
        if count:
            warnings.warn(
                f"{place.name}: {name}: {count} pixels are covered by more than one entry and show only one of them "
                "(the variable's attribute overlap says which); layers=True keeps all",
                IIDWarning,
                stacklevel=5,
            )
    return place.group("r")
