"""`to_iid` and `to_mosaic`: one call from an image, or from existing files, to the result."""

from __future__ import annotations

import operator
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np

from iid_dask.assembling.files import Chosen, copy_entries, open_files
from iid_dask.assembling.plan import Plan, plan_job
from iid_dask.assembling.writing import Resume, Writer, tile_tasks
from iid_dask.errors import IIDLimitError
from iid_dask.format.layout import MAX_SIDE
from iid_dask.format.target import check_target, remove_abandoned
from iid_dask.format.writer import encode_metadata
from iid_dask.images import Image, as_image
from iid_dask.images.tiling import aligned_tile
from iid_dask.mosaic.consolidate import consolidate
from iid_dask.mosaic.finish import finish
from iid_dask.mosaic.folder import Job, Stitch, begin, check_stitch, with_image_size
from iid_dask.mosaic.reader import Mosaic
from iid_dask.mosaic.rules import Rule
from iid_dask.mosaic.tile import tile_metadata
from iid_dask.progress import run, scheduled

TILE = 4096
"""Rows and columns of a tile where nothing else is said: 64 MiB of uint32."""

Names = Mapping[int, str | bytes] | Callable[[int], str | bytes]
Groups = Mapping[int, str | Iterable[str]] | Callable[[int], str | Iterable[str]]


def to_iid(
    labels: Any,
    path: str | os.PathLike[str],
    *,
    names: Names | None = None,
    domain: bytes = b"",
    groups: Groups | None = None,
    metadata: Mapping[str, Any] | None = None,
    tile: int | tuple[int, int] | None = None,
    stitch: Stitch | None = "label",
    halo: int = 0,
    rule: Rule | None = None,
    connected: bool = False,
    across: int | None = None,
    at: Sequence[tuple[int, int]] | None = None,
    keys: Any = None,
    window: Any = None,
    index: bool = True,
    scratch: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    resume: Resume = True,
    storage_options: Mapping[str, Any] | None = None,
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
        Of the file to write; its folder holds the scratch unless ``scratch`` says otherwise.
    names : mapping or function, optional
        Label -> address; text is UTF-8. Default: the number in decimal.
    domain : bytes
        Of all entries.
    groups : mapping or function, optional
        Label -> name of a group, or several.
    metadata : mapping, optional
        What JSON can hold. ``image`` is set to the image's size.
    tile : int or (rows, columns), optional
        Unit of parallel work, pixels. Default: about 4096, a multiple of the blocks in which the image is stored; where
        labels are local to blocks (``stitch`` "touch", "iou" or None), these blocks.
    stitch : {"label", "name", "touch", "iou"}, optional
        What makes pieces in several tiles one segment. "label": an equal label. "touch", "iou": labels are local to
        their tile, and contact at the border, or agreement in the common ``halo``, joins; see `decide`. None:
        nothing. Existing files have names: there "label" means "name", an equal IID.
    halo : int
        Pixels that tiles reach beyond the pixels they own.
    rule : Touch or IoU, optional
        Thresholds of "touch" and "iou".
    connected : bool
        Segments are the 8-connected components of equal values, of a bool mask or a class map; ``groups`` is then
        given the class.
    across : int, optional
        Tile images are given row by row, so many a row.
    at : sequence of (row, column), optional
        Where the first pixel of each image or file lies; of images that overlap the later one wins. Files without it
        all begin at (0, 0), so that masks of one image can be put together.
    keys, window : optional
        Of existing files: only these entries, and the part of the image to keep, (min_row, min_col, max_row, max_col).
    index : bool
        Put the index behind the last section.
    scratch : path, optional
        Folder for the tiles, which are removed at the end; it must be reached by all workers.
    scheduler : str, optional
        "threads", "synchronous", "processes", or the address of a distributed scheduler. Default: the distributed
        client in scope, or else dask's configuration.
    progress : bool
        Show bars on stderr.
    resume : bool or "trust"
        Continue an interrupted call with the same options: a tile is kept if it was made from the same pixels, which
        are read again to know it; "trust": without reading them.
    storage_options : mapping, optional
        For the file systems of URLs.

    Raises
    ------
    IIDLimitError
        If the image has more than 65,535 rows or columns, or the file would pass 4 GiB: write a mosaic instead.
    ValueError, TypeError
        For anything that is no label image, and metadata that JSON cannot hold; nothing was written.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "two.iid")
    >>> labels = np.zeros((100, 100), np.uint16)
    >>> labels[10:60, 10:60], labels[70:80, 5:95] = 3, 7
    >>> iid_dask.to_iid(labels, path, domain=b"cell", groups={3: "large"}, tile=32, progress=False)
    >>> with iid_dask.open(path) as f:
    ...     [(entry.domain, entry.address, entry.area, entry.groups) for entry in f.values()]
    [(b'cell', b'3', 2500, ('large',)), (b'cell', b'7', 900, ())]
    """
    target = check_target(path)
    remove_abandoned(target)
    prepared = prepare_input(
        labels,
        metadata=metadata,
        tile=tile,
        stitch=stitch,
        halo=halo,
        connected=connected,
        across=across,
        at=at,
        keys=keys,
        window=window,
        storage_options=storage_options,
    )
    if len(prepared.files) == 1:
        _refuse_names(names, domain, groups)
        with scheduled(scheduler):
            _copy_one(prepared.files[0][0], target, prepared.job.metadata, index, progress)
        return
    if max(prepared.job.shape) > MAX_SIDE:
        raise IIDLimitError(
            f"{target}: an image of {prepared.job.shape[0]} x {prepared.job.shape[1]} pixels: a file holds at most "
            f"{MAX_SIDE} a side; write a mosaic, iid_dask.to_mosaic(labels, folder), which has no such limit"
        )
    folder = scratch_folder(target, scratch, prepared.job)
    try:
        with scheduled(scheduler):
            prepared.write(folder, progress=progress, resume=resume)
            with finish(folder, names=names, domain=domain, groups=groups, rule=rule, progress=progress) as mosaic:
                consolidate(mosaic, target, index=index, progress=progress)
    except BaseException as error:
        error.add_note(f"what was done is kept in {folder}: the same call continues from there; or remove it")
        raise
    shutil.rmtree(folder)


def to_mosaic(
    labels: Any,
    folder: str | os.PathLike[str],
    *,
    names: Names | None = None,
    domain: bytes = b"",
    groups: Groups | None = None,
    metadata: Mapping[str, Any] | None = None,
    tile: int | tuple[int, int] | None = None,
    stitch: Stitch | None = "label",
    halo: int = 0,
    rule: Rule | None = None,
    connected: bool = False,
    across: int | None = None,
    at: Sequence[tuple[int, int]] | None = None,
    keys: Any = None,
    window: Any = None,
    part: tuple[int, int] | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    resume: Resume = True,
    storage_options: Mapping[str, Any] | None = None,
) -> Mosaic | None:
    """Write a label image, or entries of existing files, as a mosaic: a folder of tiles that opens like a file.

    A mosaic has neither the limit of 65,535 pixels a side nor that of 4 GiB. Called again with the same options, it
    continues where it was interrupted.

    Parameters
    ----------
    labels, names, domain, groups, metadata, tile, stitch, halo, rule, connected, across, at, keys, window
        As for `to_iid`.
    folder
        Of the mosaic; made if it is not there.
    part : (int, int), optional
        Write only part I of N (1 … N) of the tiles, for array jobs; `finish` then completes the mosaic, and is the
        one to be given ``names``, ``domain``, ``groups`` and ``rule``.
    scheduler, progress, resume, storage_options
        As for `to_iid`.

    Returns
    -------
    Mosaic
        Open; None with ``part``.

    Raises
    ------
    IIDStoreError
        If the folder holds a mosaic that was begun with other options.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> labels = np.kron(np.arange(1, 5, dtype=np.uint8).reshape(2, 2), np.ones((50, 50), np.uint8))
    >>> folder = os.path.join(tempfile.mkdtemp(), "four")
    >>> with iid_dask.to_mosaic(labels, folder, tile=64, progress=False) as mosaic:
    ...     len(mosaic), mosaic.shape, tuple(mosaic[3].bbox)
    (4, (100, 100), (50, 50, 100, 100))
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise ValueError(f"part = {part!r}: expected (I, N) with I from 1 to N")
    if part is not None and any(given is not None for given in (names, groups, rule)):
        raise ValueError("part=: names, groups and rule are given to iid_dask.finish, which completes the mosaic")
    prepared = prepare_input(
        labels,
        metadata=metadata,
        tile=tile,
        stitch=stitch,
        halo=halo,
        connected=connected,
        across=across,
        at=at,
        keys=keys,
        window=window,
        storage_options=storage_options,
    )
    if prepared.files:
        _refuse_names(names, domain, groups)
    with scheduled(scheduler):
        prepared.write(folder, progress=progress, resume=resume, part=part or (1, 1))
        if part is not None:
            return None
        return finish(folder, names=names, domain=domain, groups=groups, rule=rule, progress=progress)


def _copy_one(chosen: Chosen, target: str, metadata: Mapping[str, Any], index: bool, progress: bool) -> None:
    reader = chosen.reader
    if isinstance(reader, Mosaic) and chosen.is_all and metadata == reader.metadata:
        consolidate(reader, target, index=index, progress=progress)
    else:
        copy_entries([chosen], target, metadata, index=index)


def _refuse_names(names: Any, domain: bytes, groups: Any) -> None:
    if names is not None or domain or groups is not None:
        raise ValueError("names=, domain= and groups= are for label images; entries of files keep theirs")


# --- what is asked for ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """Checked input and options.

    Attributes
    ----------
    job : Job
    image : Image, optional
        A label image; or else
    files : tuple of (entries of a file, (row, column))
    """

    job: Job
    image: Image | None
    files: tuple[tuple[Chosen, tuple[int, int]], ...] = ()

    def plan(self) -> Plan:
        """Return what the job will take."""
        if self.image is None:
            count = len({place for _, place in self.files})
            return plan_job(self.job, np.dtype(bool), count, count)
        grid = self.job.grid
        assert grid is not None
        writer = Writer("", self.job.id, True)
        return plan_job(self.job, self.image.dtype, len(grid), len(tile_tasks(self.image, self.job, writer)))

    def write(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: bool,
        resume: Resume,
        part: tuple[int, int] = (1, 1),
    ) -> tuple[int, int]:
        """Write the tiles, and return how many were written, and how many were there."""
        if resume not in (True, False, "trust"):
            raise ValueError(f'resume = {resume!r}: expected True, False or "trust"')
        begin(folder, self.job)
        root = os.path.abspath(os.path.expanduser(os.fspath(folder)))
        if self.image is None:
            return self._copy(root, part), 0
        writer = Writer(root, self.job.id, resume)
        tasks = tile_tasks(self.image, self.job, writer, part)
        made, pixels = [task for task, _ in tasks], [some for _, some in tasks]
        counts = run(made, "writing tiles", progress=progress, pixels=pixels)
        return sum(written for written, _ in counts), sum(kept for _, kept in counts)

    def _copy(self, folder: str, part: tuple[int, int]) -> int:
        number, of = part
        places = sorted({place for _, place in self.files})[number - 1 :: of]
        copy = dask.delayed(_copy_tile, pure=False, traverse=False)
        tasks = [copy([chosen for chosen, at in self.files if at == place], folder, place) for place in places]
        return len(run(tasks, "writing tiles", progress=False))


def _copy_tile(inputs: Sequence[Chosen], folder: str, place: tuple[int, int]) -> None:
    from iid_dask.mosaic.folder import load_job

    shape = _reach([(chosen, (0, 0)) for chosen in inputs])
    # Named masks are never cut: nobody asks who owns a pixel.
    tile = load_job(folder).place(place, shape, (*place, *place))
    copy_entries(inputs, Path(folder) / tile.name, tile_metadata(load_job(folder), tile, None))


def prepare_input(
    labels: Any,
    *,
    metadata: Mapping[str, Any] | None,
    tile: int | tuple[int, int] | None,
    stitch: Stitch | None,
    halo: int,
    connected: bool,
    across: int | None,
    at: Sequence[tuple[int, int]] | None,
    keys: Any,
    window: Any,
    storage_options: Mapping[str, Any] | None,
) -> Prepared:
    """Check input and options, and open the input; see `to_iid`."""
    encode_metadata(metadata or {})
    check_stitch(stitch)
    readers = open_files(labels, storage_options)
    if readers:
        if connected or halo or stitch not in ("label", "name", None):
            raise ValueError("entries of files are joined by name or not at all: stitch=None, and no halo or connected")
        chosen = [reader if isinstance(reader, Chosen) else Chosen.of(reader, keys, window) for reader in readers]
        return _prepare_files(chosen, at, metadata, "name" if stitch == "label" else stitch)
    if keys is not None or window is not None:
        raise ValueError("keys= and window= are for existing files; of an array take the part that you want")
    if stitch == "name":
        raise ValueError('stitch="name" joins masks with names; a label image takes "label", "touch", "iou" or None')
    image = as_image(labels, across=across, at=at, storage_options=storage_options)
    if connected:
        stitch = "touch" if stitch == "label" else stitch
    size = _tile_of(image, tile, stitch, connected)
    job = Job(
        image.shape,
        stitch,
        size,
        halo,
        connected,
        metadata=with_image_size(metadata or {}, image.shape),
    )
    return Prepared(job, image)


def _tile_of(image: Image, tile: Any, stitch: Stitch | None, connected: bool) -> tuple[int, int]:
    if tile is None and stitch != "label" and not connected:
        if image.blocks is None:
            raise ValueError(
                f"{image.name}: stitch={stitch!r} means that labels are local to tiles: say which, tile=(rows, columns)"
            )
        tile = image.blocks
    elif tile is None:
        tile = aligned_tile(image.blocks, TILE)
    try:
        rows, cols = (operator.index(side) for side in (tile if np.ndim(tile) else (tile, tile)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"tile = {tile!r}: expected a whole number of pixels, or (rows, columns)") from error
    return rows, cols


def _prepare_files(
    inputs: Sequence[Chosen], at: Any, metadata: Mapping[str, Any] | None, stitch: Stitch | None
) -> Prepared:
    places = [(0, 0)] * len(inputs) if at is None else [(int(row), int(col)) for row, col in at]
    if len(places) != len(inputs) or any(min(place) < 0 for place in places):
        raise ValueError(f"at = {at!r:.80}: expected a (row, column) of 0 or more for each of {len(inputs)} files")
    if len(inputs) == 1 and places != [(0, 0)]:
        raise ValueError("at= moves several files beside one another; of one file choose a window=")
    files = tuple(zip(inputs, places, strict=True))
    given = _common_metadata(inputs) if metadata is None else metadata
    shape = _reach(files)
    return Prepared(Job(shape, stitch, metadata=with_image_size(given, shape)), None, files)


def _reach(files: Iterable[tuple[Chosen, tuple[int, int]]]) -> tuple[int, int]:
    """Rows and columns of the smallest image that holds all windows."""
    ends = [(row + chosen.window.height, col + chosen.window.width) for chosen, (row, col) in files]
    return max(end[0] for end in ends), max(end[1] for end in ends)


def _common_metadata(inputs: Sequence[Chosen]) -> dict[str, Any]:
    """What all files say, but for the image's size."""
    first, *others = [chosen.reader.metadata for chosen in inputs]
    common: dict[str, Any] = {}
    for name, value in first.items():
        if name == "image" and isinstance(value, Mapping):
            common[name] = {k: v for k, v in value.items() if k not in ("height", "width")}
        elif name not in ("image", "mosaic") and all(name in other and other[name] == value for other in others):
            common[name] = value
    return common


def scratch_folder(target: str, scratch: str | os.PathLike[str] | None, job: Job) -> str:
    """Return where the tiles of a file are kept meanwhile: the same for the same target and options."""
    folder, name = os.path.split(target)
    if scratch is not None:
        folder = os.path.abspath(os.path.expanduser(os.fspath(scratch)))
    short = os.fsdecode(os.fsencode(name)[:200])
    return os.path.join(folder, f".{short}.{job.id}.scratch")
