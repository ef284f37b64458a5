"""Lazy datasets to Zarr v3: template first, then tiles in parallel, with a record of every chunk."""

from __future__ import annotations

import math
import os
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import xarray as xr
import zarr

from iid_dask.errors import IIDStoreError, IIDWarning
from iid_dask.export.chunks import joined, store_chunks
from iid_dask.export.completion import forget_tiles, record_slabs, unsound_tiles
from iid_dask.export.layout import TASK_PIXELS, Layout, pair, plan_layout
from iid_dask.export.plan import plan_export
from iid_dask.export.sources import Rastered, cut, find_raster
from iid_dask.export.store import ATTRIBUTE, RECORD, Place, naming, quiet, stored_sizes
from iid_dask.export.template import Plan, begun, beside, compressors, prepare, put_in_place, table_of
from iid_dask.locks import claimed
from iid_dask.running import Work, batches_of, named, run, run_graph, threads_in_scope
from iid_dask.running.admission import admit
from iid_dask.shared import check_seen

Resume = Literal[True, False, "trust"]


@dataclass(frozen=True)
class Job:
    """What a task needs to know of one variable; the same for all its tiles."""

    place: Place
    variable: str
    layout: Layout
    codec: str
    source: Rastered | None

    def write(self, number: int, block: np.ndarray | None = None) -> None:
        """Write one tile, then its record; doing it again with the same values changes nothing."""
        with named(f"{self.about(number)} of {self.place.name}"), naming(self.place.name):
            self._write(self.layout.tile_at(number), block)

    def about(self, number: int) -> str:
        """Return what messages call a tile."""
        return f"{self.variable}{[f'{s.start}:{s.stop}' for s in self.layout.tile_at(number)]}".replace("'", "")

    def _write(self, tile: tuple[slice, ...], block: np.ndarray | None) -> None:
        layout = self.layout
        array = self.place.array(self.variable, sharded=layout.shard is not None)
        places = layout.chunks_of(tile)
        facts = np.zeros((*(part.stop - part.start for part in places), 3), np.uint64)
        if self.source is not None:
            chunks = self.source.chunks(tile, layout, facts)
        else:
            chunks = cut(np.asarray(block), layout, facts)
        if layout.shard is None:
            store_chunks(array, tile, layout, self.codec, chunks)
        else:
            values = joined(tile, layout, array.dtype, chunks)
            if facts[..., 0].max(initial=1) > 1:
                array[tile] = values
        at = (0,) * facts.ndim
        record = self.place.record(self.variable)
        store_chunks(record, (*places, slice(0, 3)), layout.record(), "none", [(at, facts)])


def to_zarr(
    source: Any,
    store: Any,
    *,
    variables: Sequence[str] = ("label",),
    chunks: int | tuple[int, int] = 1024,
    shards: Any = "auto",
    codec: str = "zstd-1",
    resume: Resume = True,
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
    resume : bool or "trust"
        Continue an interrupted run with the same parameters: tiles that hold what their record says are not made
        again; "trust": those that have a record, without reading them.
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
        For the file systems of URLs, of a source that is opened here and of the store alike.
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
    IIDLimitError
        If workers have too little memory; nothing was written. See `iid_dask.plan`.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> store = os.path.join(tempfile.mkdtemp(), "states.zarr")
    >>> group = iid_dask.to_zarr(iid_dask.sample("us"), store, groups="states", progress=False)
    >>> int(iid_dask.open_zarr(store).label.max())
    50
    """
    if resume not in (True, False, "trust"):
        raise ValueError(f'resume = {resume!r}: expected True, False or "trust"')
    chosen, place = _options(variables, chunks, shards, codec), Place.of(store, storage_options)
    checked = _part(part)
    with _opened(source, storage_options, options) as ds, naming(place.name):
        plan = _plan(ds, chosen)
        admit(plan_export(plan, place.name, _tasks_of(plan, checked), 1 if checked is None else checked[1]))
        with nullcontext() if checked else _alone(place):
            return _write(plan, place, resume, overwrite, checked, progress)


def _alone(place: Place) -> AbstractContextManager[None]:
    """Keep other jobs off a place, and make sure that all workers see it; of open stores only they know."""
    if not isinstance(place.target, str):
        return nullcontext()
    if place.folder is not None and place.folder.parent.is_dir():
        check_seen(place.folder.parent)
    return claimed(place.target, "to_zarr", storage_options=place.storage_options)


@contextmanager
def _opened(source: Any, storage_options: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Iterator[xr.Dataset]:
    """Give a dataset as it is; open anything else for the time of the block."""
    if not isinstance(source, xr.Dataset):
        with xr.open_dataset(source, engine="iid", storage_options=storage_options, **options) as ds:
            yield ds
    elif options:
        raise TypeError(f"{sorted(options)} are options of opening a file, but a dataset was given")
    else:
        yield source


def _options(variables: Sequence[str], chunks: Any, shards: Any, codec: str) -> dict[str, Any]:
    names = [variables] if isinstance(variables, str) else list(dict.fromkeys(variables))
    if not names:
        raise ValueError("variables = (): expected at least one")
    compressors(codec)
    chunks = list(pair("chunks", chunks))
    shards = shards if shards is None or isinstance(shards, str) else list(pair("shards", shards))
    return {"variables": names, "chunks": chunks, "shards": shards, "codec": codec}


def _part(part: tuple[int, int] | None) -> tuple[int, int] | None:
    if part is not None and not 1 <= part[0] <= part[1]:
        raise ValueError(f"part = {part!r}: expected (I, N) with I from 1 to N")
    return part


def _write(
    plan: Plan,
    place: Place,
    resume: Resume,
    overwrite: bool,
    part: tuple[int, int] | None,
    progress: bool,
) -> Any:
    fingerprint, verify = plan.fingerprint(), resume != "trust"
    final = None
    if overwrite and place.folder is not None:
        record = begun(place) if (place.folder / "zarr.json").is_file() and part is not None else None
        if record is not None and record.get("fingerprint") == fingerprint:
            overwrite = False  # another part of this job has put it there
        else:
            final = place.folder
            # Other parts' tiles are kept; those of an earlier run only where it is certain that they are the same.
            new = beside(final, fingerprint, resume=part is not None or (bool(resume) and not plan.graphs))
            place, resume, overwrite = replace(place, target=str(new)), True, False
    elif overwrite and place.folder is None and plan.graphs:
        raise ValueError(
            f"{place.name}: overwrite=True removes the old store first here, and this dataset may still read it; write "
            "to another place"
        )
    prepare(plan, place, fingerprint, resume=bool(resume), overwrite=overwrite, part=part[0] if part else None)
    place = replace(place, job=uuid.uuid4().hex)
    graphs: list[Any] = []
    about: list[str] = []
    for name, layout in plan.layouts.items():
        job = Job(place, name, layout, plan.options["codec"], plan.sources[name])
        left = _left(job, part or (1, 1), verify=verify, progress=progress)
        if name in plan.graphs:
            graphs += _tasks(job, plan.graphs[name], left)
            about += [job.about(number) for number in left.tolist()]
            continue
        run(_work(job, left), f"{name} to {os.path.basename((final or place).name)}", progress=progress)
    # Together: they may share what they are computed from.
    run_graph(graphs, f"to {os.path.basename((final or place).name)}", progress=progress, about=about.__getitem__)
    group = _finish(place, plan, place.name if final is None else str(final))
    if part is None and not group.attrs[ATTRIBUTE]["complete"]:
        raise IIDStoreError(
            f"{place.name}: tiles were written where this process does not see them: tasks of other processes need a "
            "store that all of them reach, such as a folder"
        )
    if final is None or not group.attrs[ATTRIBUTE]["complete"]:
        return group
    put_in_place(Path(place.target), final, place.job)
    return replace(place, target=str(final)).group("r")


def _plan(ds: xr.Dataset, options: dict[str, Any]) -> Plan:
    for name in options["variables"]:
        if name not in ds.variables:
            raise KeyError(f"no variable {name!r}; there is: {[str(n) for n in ds.variables]}")
        if not {"y", "x"} <= set(ds[name].dims):
            raise ValueError(f"variable {name!r} has dimensions {ds[name].dims}, expected y and x among them")
        if ds[name].dtype.kind not in "biuf":
            raise ValueError(f"variable {name!r} has dtype {ds[name].dtype}, expected bool, integers or floats")
    if RECORD in ds.variables:
        raise ValueError(f"a variable is named {RECORD!r}, which the store keeps its record under; rename it")
    layouts = {
        name: plan_layout([str(d) for d in ds[name].dims], ds[name].shape, options["chunks"], options["shards"])
        for name in options["variables"]
    }
    sources = {name: find_raster(ds[name].variable) for name in options["variables"]}
    graphs = {name: _graph(ds[name].variable, layouts[name]) for name, source in sources.items() if source is None}
    return Plan(ds, options, layouts, sources, graphs, table_of(ds, options["variables"]))


def _graph(variable: xr.Variable, layout: Layout) -> Any:
    """Return a variable as a dask array of whole tiles."""
    return variable.chunk(dict(zip(variable.dims, layout.tile, strict=True))).data


def _done(place: Place, name: str, layout: Layout) -> np.ndarray:
    """Return which tiles are recorded, bool, shape ``layout.tile_grid``."""
    # By the record's chunks, one a tile, all of one size: to read them takes long where they are many.
    done, whole = np.zeros(layout.tile_grid, bool), 8 * math.prod(layout.record().chunk)
    for key, size in stored_sizes(place.group("r"), f"{RECORD}/{name}").items():
        *at, last = key.split("/")[1:]
        if last == "0" and size == whole:  # else a name that it had until it was whole
            done[tuple(map(int, at))] = True
    return done


def _left(job: Job, part: tuple[int, int], *, verify: bool, progress: bool) -> np.ndarray:
    """Return the numbers of the tiles of part I of N that are not recorded, or are not what their record says."""
    number, of = part
    done = _done(job.place, job.variable, job.layout).ravel()
    mine = np.arange(number - 1, len(done), of)
    left, there = mine[~done[mine]], mine[done[mine]]
    if not verify:
        return left
    unsound = unsound_tiles(job.place, job.variable, job.layout, there, progress=progress)
    forget_tiles(job.place, job.variable, job.layout, unsound)
    return np.union1d(left, unsound)


def _work(job: Job, left: np.ndarray) -> Work:
    size = math.prod(job.layout.tile)
    return Work(
        _write_tiles,
        job,
        _batches(job.layout, len(left)),
        arguments=lambda start, stop: (left[start:stop],),
        about=lambda item: job.about(int(left[item])),
        pixels=lambda start, stop: (stop - start) * size,
    )


def _batches(layout: Layout, tiles: int) -> list[tuple[int, int]]:
    """Cut tiles into what one task writes."""
    return batches_of(tiles, max(1, TASK_PIXELS // math.prod(layout.tile)), threads_in_scope())


def _tasks_of(plan: Plan, part: tuple[int, int] | None) -> int:
    """Return how many tasks write the tiles of a part."""
    tiles = {name: -(-math.prod(cut.tile_grid) // (part[1] if part else 1)) for name, cut in plan.layouts.items()}
    return sum(n if name in plan.graphs else len(_batches(plan.layouts[name], n)) for name, n in tiles.items())


def _write_tiles(job: Job, numbers: np.ndarray) -> None:
    # Returns nothing: what a worker holds for the client is made again when it dies.
    for number in numbers.tolist():
        job.write(number)


def _tasks(job: Job, array: Any, left: np.ndarray) -> list[Any]:
    whole = dask.delayed(job, name=f"iid-job-{uuid.uuid4().hex}", traverse=False)
    write = dask.delayed(Job.write, pure=False)
    blocks = np.array(array.to_delayed()).ravel()
    return [write(whole, number, blocks[number]) for number in left.tolist()]


def _overlapping(group: Any, name: str) -> int:
    """Return the pixels that more than one entry covers, by the record."""
    return sum(int(facts[..., 2].sum()) for _, facts in record_slabs(group[f"{RECORD}/{name}"]))


def _remove_partial(folder: Path) -> None:
    """Remove what zarr left under a temporary name where a worker was killed."""
    for path in folder.rglob("*.partial"):
        path.unlink(missing_ok=True)


def _finish(place: Place, plan: Plan, name: str) -> Any:
    """Complete the store, which will have a name, if every tile is recorded."""
    if not all(_done(place, variable, layout).all() for variable, layout in plan.layouts.items()):
        return place.group("r")
    group: Any = place.group("r+")
    if group.attrs[ATTRIBUTE]["complete"]:
        return place.group("r")
    overlapping = {
        variable: None if source is None else _overlapping(group, variable) for variable, source in plan.sources.items()
    }
    if place.folder is not None:
        _remove_partial(place.folder)
    with quiet():
        group = zarr.consolidate_metadata(group.store)
    # Last, and in one write: whoever finds it complete does nothing more.
    group.attrs[ATTRIBUTE] = {**group.attrs[ATTRIBUTE], "complete": True, "overlapping_pixels": overlapping}
    for variable, count in overlapping.items():
        if count:
            warnings.warn(
                f"{name}: {variable}: {count} pixels are covered by more than one entry and show only one of them "
                "(the variable's attribute overlap says which); layers=True keeps all",
                IIDWarning,
                stacklevel=4,
            )
    return place.group("r")
