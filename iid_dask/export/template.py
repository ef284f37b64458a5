"""The beginning of a store, and its end: a template that appears whole, and a new store in the place of an old one."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BytesCodec, ZstdCodec

from iid_dask.errors import IIDStoreError
from iid_dask.export.completion import VERSION, column_facts, is_whole
from iid_dask.export.layout import Layout
from iid_dask.export.sources import Rastered
from iid_dask.export.store import ATTRIBUTE, RECORD, Place, quiet


@dataclass(frozen=True, eq=False)
class Plan:
    """What a job writes, decided before anything is written.

    Attributes
    ----------
    ds : xarray.Dataset
    options : dict
        As the record keeps them.
    layouts : dict
        Variable -> its cut.
    sources : dict
        Variable -> where its tiles come from; None: from ``graphs``.
    graphs : dict
        Variable -> dask array of whole tiles.
    table : xarray.Dataset
        What goes along whole, in memory.
    """

    ds: xr.Dataset
    options: Mapping[str, Any]
    layouts: Mapping[str, Layout]
    sources: Mapping[str, Rastered | None]
    graphs: Mapping[str, Any]
    table: xr.Dataset

    @cached_property
    def column_facts(self) -> dict[str, Any]:
        """What the record holds of each column of the table."""
        return {str(name): column_facts(variable) for name, variable in self.table.variables.items()}

    def fingerprint(self) -> str:
        """Return what tells this job from every other: options, layouts, sources, table and attributes."""
        parts = []
        for name, layout in self.layouts.items():
            source = self.sources[name]
            what = (source.array.__dask_tokenize__(), source.origin) if source is not None else self.graphs[name].name
            parts.append((name, repr(layout), self.ds[name].dtype.str, what, self.ds[name].attrs))
        table = [(str(name), self.column_facts[str(name)], v.dims, v.attrs) for name, v in self.table.variables.items()]
        return dask.base.tokenize(self.options, parts, table, self.ds.attrs)


def table_of(ds: xr.Dataset, variables: list[str]) -> xr.Dataset:
    """Return what goes along with the variables: the entry table, groups, and coordinates of one dimension.

    Raises
    ------
    ValueError
        For coordinates in two or more dimensions that are not among the variables.
    """
    for name, coordinate in ds.coords.items():
        if {"y", "x"} & set(coordinate.dims) and coordinate.ndim > 1 and name not in variables:
            raise ValueError(
                f"coordinate {name!r} has dimensions {coordinate.dims}: name it in variables=, or drop it by drop_vars"
            )
    names = [n for n, v in ds.variables.items() if not {"y", "x"} & set(v.dims) or (n in ds.coords and v.ndim == 1)]
    return ds[[n for n in names if n not in variables]].drop_encoding().load()


def compressors(codec: str) -> Any:
    """Return zarr's codecs for "zstd-LEVEL" or "none"."""
    kind, _, level = codec.partition("-")
    if codec == "none":
        return None
    if kind == "zstd" and level.isdecimal() and 1 <= int(level) <= 22:
        return ZstdCodec(level=int(level))
    raise ValueError(f"codec = {codec!r}: expected 'zstd-1' to 'zstd-22' or 'none'")


def prepare(plan: Plan, place: Place, fingerprint: str, *, resume: bool, overwrite: bool, part: int | None) -> None:
    """Make the template at ``place``, or find that this very job has made it.

    Raises
    ------
    FileExistsError
        If something else is there.
    IIDStoreError
        If another job began it, or a later part of this one comes first where that cannot be sorted out.
    """
    if not overwrite and is_ours(place, plan, fingerprint, resume):
        return
    folder = place.folder
    if folder is None:
        if part not in (None, 1):
            if (begun(place) or {}).get("fingerprint") == fingerprint:
                return  # part 1 has, and removed what was there before
            raise IIDStoreError(f"{place.name}: no part has begun it; on this kind of store start part 1 first")
        _template(plan, place, fingerprint)
        return
    # Whole under another name first, so that parts that start together find a whole template or none.
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"{folder.parent}: no such folder to write {folder.name} into; make it first")
    try:
        _template(plan, replace(place, target=str(temporary)), fingerprint)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not is_ours(place, plan, fingerprint, resume):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_ours(place: Place, plan: Plan, fingerprint: str, resume: bool) -> bool:
    """Whether the store was begun by this very job; raises if something else is there."""
    record = begun(place)
    if record is None:
        return False
    if not resume:
        raise FileExistsError(f"{place.name}: exists; resume=True continues it, overwrite=True replaces it")
    if record.get("fingerprint") != fingerprint:
        raise IIDStoreError(
            f"{place.name}: was begun with other parameters or another source{_differences(record, plan)}; "
            "overwrite=True (--overwrite) replaces it"
        )
    return "options" in record  # else its template is not whole


def _differences(record: Mapping[str, Any], plan: Plan) -> str:
    """Say in what a job differs from the one that a store was begun with."""
    there = record.get("options") or {}
    changed = {name: value for name, value in plan.options.items() if there.get(name) != value}
    found = [f"{name}: found {there.get(name)}, asked for {value}" for name, value in changed.items()]
    if not found:
        found = [
            "the source, or how it is opened; a dataset that was opened without chunks= and looked at is another one "
            "than its path"
        ]
    return f" ({'; '.join(found)})" if there else ""


def begun(place: Place, *, again: bool = True) -> dict[str, Any] | None:
    """Return the job of the store at a place, or None if nothing is there; FileExistsError for anything else.

    ``again`` looks a second time where another part put its template in place between two looks.
    """
    try:
        group = place.group("r")
    except (FileNotFoundError, zarr.errors.GroupNotFoundError):
        folder = place.folder
        if again and folder is not None and (folder / "zarr.json").is_file():
            return begun(place, again=False)
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{place.name}: exists and is no Zarr group; choose another path") from None
        return None
    record = group.attrs.get(ATTRIBUTE)
    if not isinstance(record, dict):
        raise FileExistsError(f"{place.name}: a Zarr group that to_zarr did not write; overwrite=True replaces it")
    return record


def _template(plan: Plan, place: Place, fingerprint: str) -> None:
    """Write everything but the tiles: arrays without chunks, the table, attributes."""
    options = dict(place.storage_options) or None
    # First whose it is: where stores cannot be renamed, a call that was killed in here is made again.
    begun_by: dict[str, Any] = {ATTRIBUTE: {"fingerprint": fingerprint}}
    zarr.open_group(place.target, mode="w", storage_options=options, attributes=begun_by)
    with quiet():
        # One chunk a column: a table is small beside its image.
        plan.table.assign_attrs(begun_by).to_zarr(
            place.target,
            mode="a",
            consolidated=False,
            zarr_format=3,
            storage_options=options,
        )
    group: Any = place.group("r+")
    for name, layout in plan.layouts.items():
        variable = plan.ds[name].variable
        array = group.create_array(
            name,
            shape=layout.shape,
            chunks=layout.chunk,
            shards=layout.shard,
            dtype=variable.dtype,
            # Said, not left to zarr's configuration: `store_chunks` encodes by it.
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=compressors(plan.options["codec"]),
            fill_value=False if variable.dtype == bool else 0,
            dimension_names=[str(dim) for dim in variable.dims],
        )
        array.attrs.update({key: _plain(value) for key, value in variable.attrs.items() if key != "_FillValue"})
        group.require_group(RECORD).create_array(
            name,
            shape=layout.record().shape,
            chunks=layout.record().chunk,
            dtype=np.uint64,
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=None,
            fill_value=0,
        )
    group.attrs[ATTRIBUTE] = {
        "version": VERSION,
        "fingerprint": fingerprint,
        "options": plan.options,
        "complete": False,
        "labels": {name: plan.ds[name].attrs.get("labels", "values") for name in plan.layouts},
        "origin": {name: None if source is None else source.origin for name, source in plan.sources.items()},
        "table": plan.column_facts,
    }


def _plain(value: Any) -> Any:
    """Return an attribute as JSON holds it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return value


# --- in the place of an old store -------------------------------------------------------------------------------


def beside(final: Path, fingerprint: str, *, resume: bool) -> Path:
    """Return the folder in which the successor of a store grows; what an interrupted run left is there again.

    Parameters
    ----------
    final
        The old store.
    fingerprint
    resume
        Keep what is there; else it is removed.
    """
    with suppress(FileNotFoundError, NotADirectoryError):  # another run may just be replacing it
        if final.is_file() or (not (final / "zarr.json").is_file() and any(final.iterdir())):
            raise FileExistsError(f"{final}: is no Zarr store, so it is not overwritten; choose another path")
    new = final.with_name(f".{final.name}.{fingerprint[:16]}.new")
    if not resume:
        shutil.rmtree(new, ignore_errors=True)
    return new


def put_in_place(new: Path, final: Path, job: str) -> None:
    """Replace a store by its successor.

    Who renames ``new`` first owns it, so of several runs that end together each store is put in place once, and the
    last of them stays.
    """
    mine = final.with_name(f".{final.name}.{job}.whole")
    try:
        os.rename(new, mine)
    except FileNotFoundError:
        return  # another run of the same job was faster
    if not is_whole(Place(str(mine))):
        # It was faster while this one wrote: what this one wrote since is all that is here.
        shutil.rmtree(mine)
        raise IIDStoreError(f"{final}: another run of the same job put its store there meanwhile; look at that one")
    for attempt in range(100):
        old = final.with_name(f".{final.name}.{job}.{attempt}.old")
        with suppress(FileNotFoundError):
            os.rename(final, old)
        try:
            os.rename(mine, final)
        except OSError:
            if not final.exists():
                if old.exists():
                    os.rename(old, final)
                raise
            shutil.rmtree(old, ignore_errors=True)
            continue
        shutil.rmtree(old, ignore_errors=True)
        return
    raise IIDStoreError(f"{final}: other runs keep replacing it; the store of this one is {mine}")
