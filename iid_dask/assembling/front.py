"""`to_iid` and `to_mosaic`: one call from an image, or from existing files, to the result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Unpack

from iid_dask.assembling.files import Chosen, copy_entries
from iid_dask.assembling.prepared import InputOptions, Prepared, prepare_input
from iid_dask.assembling.writing import Resume
from iid_dask.errors import IIDLimitError
from iid_dask.format.folder import Folder, FolderLike, as_folder
from iid_dask.format.layout import MAX_SIDE
from iid_dask.format.objects import local_path
from iid_dask.format.target import check_target, remove_abandoned
from iid_dask.locks import claimed
from iid_dask.mosaic.consolidate import consolidate
from iid_dask.mosaic.files import forget
from iid_dask.mosaic.finish import finish
from iid_dask.mosaic.folder import Job
from iid_dask.mosaic.naming import Lookup, Naming
from iid_dask.mosaic.reader import Mosaic
from iid_dask.mosaic.rules import Rule, checked
from iid_dask.running import scheduled
from iid_dask.running.admission import admit
from iid_dask.shared import check_seen


def to_iid(
    labels: Any,
    path: str | os.PathLike[str],
    *,
    names: Lookup | None = None,
    domain: bytes = b"",
    groups: Lookup | None = None,
    rule: Rule | None = None,
    index: bool = True,
    scratch: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    resume: Resume = True,
    **options: Unpack[InputOptions],
) -> None:
    """Write a label image, or entries of existing files, as one canonical ``.iid`` file, tile by tile.

    The bytes depend on the image and the options alone: not on tiles, scheduler, workers, or interruptions. The file
    appears when it is whole; until then what stood there does.

    Parameters
    ----------
    labels : array, path, URL, list of paths, or ``.iid`` files
        A label image of two dimensions and any integer type, 0 is background: a numpy, dask, zarr or xarray array;
        the path of a ``.npy``, TIFF or PNG file; the path or URL of a Zarr array or an OME-Zarr label image; a grid
        of tile images (`grid_of`, or a list with ``across=`` or ``at=``). Or existing files: the path of an ``.iid``
        file, a list of these with ``at=``, an open file, or a dataset of engine "iid".
    path
        Of the file to write, or the URL of an object; the scratch lies beside it unless ``scratch`` says otherwise.
    names : mapping or function, optional
        Label -> address; text is UTF-8. Default: the number in decimal.
    domain : bytes
        Of all entries.
    groups : mapping or function, optional
        Label -> name of a group, or several.
    rule : Touch or IoU, optional
        Thresholds of ``stitch`` "touch" and "iou".
    index : bool
        Put the index behind the last section.
    scratch : path or URL, optional
        Folder for the tiles, which are removed at the end; it must be reached by all workers.
    scheduler : str, optional
        "threads", "synchronous", "processes", or the address of a distributed scheduler. Default: the distributed
        client in scope, or else dask's configuration.
    progress : bool
        Show bars on stderr.
    resume : bool or "trust"
        Continue an interrupted call with the same options: a tile is kept if it was made from the same pixels, which
        are read again to know it; "trust": without reading them, if the folder has met this image alone, by the name
        and time of its file; of an array in memory only shape and dtype are known.
    **options
        ``metadata``, ``tile``, ``stitch`` ("label", "touch", "iou", None), ``halo``, ``connected``, ``across``,
        ``at``, ``keys``, ``window``, ``storage_options``: see `iid_dask.InputOptions`.

    Raises
    ------
    IIDLimitError
        If the image has more than 65,535 rows or columns, or the file would pass 4 GiB: write a mosaic instead. If
        workers have too little memory, before anything is written; see `iid_dask.plan`.
    ValueError, TypeError
        For anything that is no label image, and options that cannot be; the target is as it was.

    Examples
    --------
    >>> import iid_dask, numpy as np, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "two.iid")
    >>> labels = np.zeros((100, 100), np.uint16)
    >>> labels[10:60, 10:60], labels[70:80, 5:95] = 3, 7
    >>> iid_dask.to_iid(labels, path, domain=b"cell", groups={3: "large"}, tile=32, progress=False)
    >>> with iid_dask.open(path) as f:
    ...     [(entry.domain, entry.address, entry.area, entry.groups) for entry in f.values()]
    [(b'cell', b'3', 2500, ('large',)), (b'cell', b'7', 900, ())]
    """
    target, storage_options = check_target(path), options.get("storage_options")
    prepared = prepare_input(labels, **options)
    _check_naming(prepared, names, domain, groups, rule)
    with scheduled(scheduler):
        admit(prepared.plan(target, merged=True))
        with claimed(target, "to_iid", storage_options=storage_options):
            remove_abandoned(target)
            check_seen(os.path.dirname(target))
            if len(prepared.files) == 1:
                _copy_one(prepared.files[0][0], target, prepared.job.metadata, index, progress, storage_options)
                return
            with _scratch(prepared.job, target, scratch, storage_options) as folder:
                prepared.write(folder, progress=progress, resume=resume)
                with finish(folder, names=names, domain=domain, groups=groups, rule=rule, progress=progress) as mosaic:
                    consolidate(mosaic, target, index=index, progress=progress, storage_options=storage_options)


def to_mosaic(
    labels: Any,
    folder: FolderLike,
    *,
    names: Lookup | None = None,
    domain: bytes = b"",
    groups: Lookup | None = None,
    rule: Rule | None = None,
    part: tuple[int, int] | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    resume: Resume = True,
    **options: Unpack[InputOptions],
) -> Mosaic | None:
    """Write a label image, or entries of existing files, as a mosaic: a folder of tiles that opens like a file.

    A mosaic has neither the limit of 65,535 pixels a side nor that of 4 GiB. Called again with the same options, it
    continues where it was interrupted.

    Parameters
    ----------
    labels, names, domain, groups, rule, scheduler, progress, resume, **options
        As for `to_iid`.
    folder
        Path of the mosaic, made if it is not there, or URL.
    part : (int, int), optional
        Write only part I of N (1 … N) of the tiles, for array jobs; `finish` then completes the mosaic, and is the
        one to be given ``names``, ``domain``, ``groups`` and ``rule``.

    Returns
    -------
    Mosaic
        Open; None with ``part``.

    Raises
    ------
    IIDStoreError
        If the folder holds something else, or a mosaic that was begun with other options.

    Examples
    --------
    >>> import iid_dask, numpy as np, os, tempfile
    >>> labels = np.kron(np.arange(1, 5, dtype=np.uint8).reshape(2, 2), np.ones((50, 50), np.uint8))
    >>> folder = os.path.join(tempfile.mkdtemp(), "four")
    >>> with iid_dask.to_mosaic(labels, folder, tile=64, progress=False) as mosaic:
    ...     len(mosaic), mosaic.shape, tuple(mosaic[3].bbox)
    (4, (100, 100), (50, 50, 100, 100))
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise ValueError(f"part = {part!r}: expected (I, N) with I from 1 to N")
    if part is not None and (domain or any(given is not None for given in (names, groups, rule))):
        raise ValueError(
            "part=: names, domain, groups and rule are given to iid_dask.finish, which completes the mosaic"
        )
    prepared = prepare_input(labels, **options)
    _check_naming(prepared, names, domain, groups, rule)
    place = as_folder(folder, options.get("storage_options"))
    with scheduled(scheduler):
        admit(prepared.plan(str(place), parts=1 if part is None else part[1]))
        with nullcontext() if part else _alone(place, "to_mosaic"):
            prepared.write(place, progress=progress, resume=resume, part=part or (1, 1))
            if part is not None:
                return None
            return finish(place, names=names, domain=domain, groups=groups, rule=rule, progress=progress)


@contextmanager
def _scratch(
    job: Job,
    target: str,
    scratch: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
) -> Iterator[Folder]:
    """Give the folder for the tiles of a file, and remove it when the block ends well."""
    if max(job.shape) > MAX_SIDE:
        raise IIDLimitError(
            f"{target}: an image of {job.shape[0]} x {job.shape[1]} pixels: a file holds at most {MAX_SIDE} a side; "
            "write a mosaic, iid_dask.to_mosaic(labels, folder), which has no such limit"
        )
    folder = scratch_folder(target, scratch, job, storage_options)
    with _alone(folder, "to_iid"):
        try:
            yield folder
        except BaseException as error:
            error.add_note(f"what was done is kept in {folder}: the same call continues from there; or remove it")
            raise
        forget(folder)
        folder.remove_all()


def _alone(folder: Folder, what: str) -> AbstractContextManager[None]:
    """Keep other jobs off a folder that is about to be written, and make sure that all workers see it."""
    path = local_path(str(folder))
    if path is not None:
        beside = os.path.dirname(os.path.abspath(path))
        os.makedirs(beside, exist_ok=True)
        check_seen(beside)
    return claimed(str(folder), what, storage_options=folder.storage_options)


def _copy_one(
    chosen: Chosen,
    target: str,
    metadata: Mapping[str, Any],
    index: bool,
    progress: bool,
    storage_options: Mapping[str, Any] | None,
) -> None:
    reader = chosen.reader
    if isinstance(reader, Mosaic) and chosen.is_all and metadata == reader.metadata:
        consolidate(reader, target, index=index, progress=progress, storage_options=storage_options)
    else:
        copy_entries([chosen], target, metadata, index=index, storage_options=storage_options)


def _check_naming(
    prepared: Prepared, names: Lookup | None, domain: bytes, groups: Lookup | None, rule: Rule | None
) -> None:
    """Refuse now what `finish` would refuse when all tiles are written."""
    naming = Naming(names, domain, groups)
    checked(rule, prepared.job)
    if prepared.files and naming.given:
        raise ValueError("names=, domain= and groups= are for label images; entries of files keep theirs")


def scratch_folder(
    target: str,
    scratch: str | os.PathLike[str] | None,
    job: Job,
    storage_options: Mapping[str, Any] | None = None,
) -> Folder:
    """Return where the tiles of a file are kept meanwhile: the same for the same target and options."""
    beside, name = os.path.split(target)
    folder = as_folder(beside if scratch is None else scratch, storage_options)
    short = os.fsdecode(os.fsencode(name)[:200])
    return folder.within(f".{short}.{job.id}.scratch")
