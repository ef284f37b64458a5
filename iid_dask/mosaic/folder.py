"""The folder of a mosaic: what `prepare` fixes, which files there are, and opening them once a process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from operator import index
from typing import Any, Literal

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDFormatError, IIDLimitError, IIDStoreError
from iid_dask.format.folder import Folder, FolderLike, as_folder, stamp_of
from iid_dask.format.layout import Limits
from iid_dask.format.metadata import encode_metadata
from iid_dask.format.reader import RecordReader, open_records
from iid_dask.format.sections import parse_json
from iid_dask.mosaic.grid import Grid, Tile, tile_name
from iid_dask.once import Once

VERSION = 1
"""Of the folder's layout; other ones are refused."""

MAX_MOSAIC_SIDE = 2**31 - 1
"""Rows or columns of a mosaic: products of two sides stay within 64 bits."""

MAX_TILE_SIDE = 65_535
"""Rows or columns of a tile, which is an ordinary file."""

MANIFEST, JOB, INPUT = "mosaic.json", "job.json", "input.txt"

SEVERAL = "several images"
"""Noted of a folder that has met two; no image has this token."""

STITCHES = ("label", "name", "touch", "iou")

Stitch = Literal["label", "name", "touch", "iou"]


@dataclass(frozen=True)
class Job:
    """What is the same for all tiles of a mosaic; fixed by `prepare`.

    Attributes
    ----------
    shape : (rows, columns)
        Of the mosaic, pixels.
    stitch : {"label", "name", "touch", "iou"}, optional
        What makes pieces in several tiles one segment: an equal label, an equal name, contact, or agreement in the
        common halo; None: nothing.
    tile : (rows, columns), optional
        Of the grid's cores; None: tiles lie anywhere.
    halo : int
        Pixels that a tile of the grid reaches beyond its core.
    connected : bool
        Segments are the connected components of equal values.
    identity : tuple of str
        With ``stitch="name"``: ("domain", "address"), or with "group".
    on_duplicate : {"merge", "refuse"}
        With ``stitch="name"``: what to do with one identity twice in a tile.
    metadata : dict
        Of the mosaic.
    places : tuple of (row, column), optional
        Where tiles begin, if they lie anywhere and this is known beforehand.
    """

    shape: tuple[int, int]
    stitch: Stitch | None = "label"
    tile: tuple[int, int] | None = None
    halo: int = 0
    connected: bool = False
    identity: tuple[str, ...] = ("domain", "address")
    on_duplicate: Literal["merge", "refuse"] = "merge"
    metadata: dict[str, Any] = field(default_factory=dict)
    places: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        _check_sides("shape", self.shape, 0, MAX_MOSAIC_SIDE)
        if self.tile is not None:
            _check_sides("tile", self.tile, 1, MAX_TILE_SIDE)
        check_stitch(self.stitch)
        if self.identity not in (("domain", "address"), ("domain", "address", "group")):
            raise ValueError(
                f'identity = {self.identity!r}: expected ("domain", "address") or ("domain", "address", "group")'
            )
        if self.on_duplicate not in ("merge", "refuse"):
            raise ValueError(f'on_duplicate = {self.on_duplicate!r}: expected "merge" or "refuse"')
        most = 0 if self.tile is None else min(self.tile) - 1
        if not isinstance(self.halo, int) or isinstance(self.halo, bool) or not 0 <= self.halo <= most:
            raise ValueError(f"halo = {self.halo!r}: expected 0 … {most} pixels, less than a tile")
        if self.stitch == "iou" and self.grid is not None and len(self.grid) > 1 and not self.halo:
            raise ValueError(
                'stitch="iou" compares what two tiles both hold: give halo=, pixels, or take stitch="touch"'
            )
        if self.tile is not None and max(self.tile) + 2 * self.halo > MAX_TILE_SIDE:
            raise IIDLimitError(
                f"tile = {self.tile} with halo = {self.halo} makes files of more than {MAX_TILE_SIDE} pixels a side, "
                "the format's 16 bits; take a smaller tile"
            )
        if self.connected and self.stitch not in ("touch", None):
            raise ValueError(f'connected=True joins what touches: stitch = {self.stitch!r}, expected "touch"')
        if not isinstance(self.connected, bool):
            raise TypeError(f"connected = {self.connected!r:.80}: expected True or False")
        encode_metadata(self.metadata)

    @property
    def grid(self) -> Grid | None:
        """Of the tiles; None where they lie anywhere."""
        return None if self.tile is None else Grid(self.shape, self.tile, self.halo)

    @property
    def origins(self) -> dict[str, tuple[int, int]] | None:
        """Path and first pixel of every tile that belongs to the mosaic; None where that is not known beforehand."""
        if self.grid is not None:
            return {tile.name: tile.origin for tile in self.grid}
        return None if self.places is None else {tile_name(place): place for place in self.places}

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits: jobs with the same options have the same."""
        return hashlib.blake2b(self._json(sort_keys=True).encode(), digest_size=8).hexdigest()

    def _json(self, *, sort_keys: bool = False) -> str:
        # Metadata keep their order in the file: the bytes that the mosaic becomes depend on it.
        return json.dumps({"version": VERSION, **asdict(self)}, sort_keys=sort_keys)

    def place(self, origin: Sequence[int], shape: Sequence[int], core: BBox | Sequence[int] | None = None) -> Tile:
        """Return the tile of a box of the mosaic.

        Parameters
        ----------
        origin, shape
            Of the tile's file, mosaic pixels.
        core
            Box that it owns; default: as the grid says, else all of it.

        Raises
        ------
        ValueError
            For a tile that leaves the mosaic, or is none of its grid.
        IIDLimitError
            For a tile of more than 65,535 pixels a side.
        """
        row, col, height, width = (index(number) for number in (*origin, *shape))
        box = BBox(row, col, row + height, col + width)
        where = f"tile at row {row}, column {col} of {height} x {width} pixels"
        if max(height, width) > MAX_TILE_SIDE:
            raise IIDLimitError(f"{where}: a file holds at most {MAX_TILE_SIDE} a side; cut it into several tiles")
        if box.intersection(BBox(0, 0, *self.shape)) != box:
            raise ValueError(f"{where} leaves the mosaic of {self.shape[0]} x {self.shape[1]} pixels")
        grid = self.grid
        if grid is None:
            tile = Tile(box, box if core is None else BBox.of(core))
            if tile.core.intersection(box) != tile.core:
                raise ValueError(f"{where}: its core {tuple(tile.core)} leaves it, expected a part of it")
            return tile
        known = grid.find((row, col))
        if known is None or known.box != box or (core is not None and BBox.of(core) != known.core):
            raise ValueError(
                f"{where} is none of the grid of {grid.tile[0]} x {grid.tile[1]} pixels"
                f" with a halo of {self.halo}: expected {'another origin' if known is None else tuple(known.box)}"
            )
        return known


def check_stitch(stitch: object) -> None:
    """Raise ValueError for anything that is no way to join pieces."""
    if stitch is not None and stitch not in STITCHES:
        raise ValueError(f"stitch = {stitch!r}: expected None or one of {', '.join(map(repr, STITCHES))}")


def as_pair(what: str, numbers: Any) -> tuple[int, int]:
    """Return rows and columns; TypeError or ValueError for what is not two integers."""
    try:
        row, col = numbers
        if isinstance(row, bool) or isinstance(col, bool):
            raise TypeError("found bool")
        row, col = index(row), index(col)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} = {numbers!r:.80}: expected two integers, rows before columns") from error
    return row, col


def as_tile(tile: Any) -> tuple[int, int]:
    """Return rows and columns of a tile that is given so, or by one number for both."""
    if isinstance(tile, int | np.integer):
        return as_pair("tile", (tile, tile))
    return as_pair("tile", tile)


def _check_sides(what: str, sides: object, least: int, most: int) -> None:
    def fits(side: object) -> bool:
        return isinstance(side, int) and not isinstance(side, bool) and least <= side <= most

    if not isinstance(sides, tuple) or len(sides) != 2 or not all(map(fits, sides)):
        raise ValueError(f"{what} = {sides!r}: expected (rows, columns), each {least} … {most}")


def prepare(
    folder: FolderLike,
    shape: Sequence[int],
    *,
    stitch: Stitch | None = "label",
    tile: int | Sequence[int] | None = None,
    halo: int = 0,
    connected: bool = False,
    identity: Sequence[str] = ("domain", "address"),
    on_duplicate: Literal["merge", "refuse"] = "merge",
    metadata: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Job:
    """Begin a mosaic: fix what is the same for all its tiles.

    Any number of processes may then call `write_tile`, in any order; the last step is `finish`. Called again with
    the same options it changes nothing, so every process of an array job may call it.

    Parameters
    ----------
    folder
        Path, made if it is not there, or URL. All processes must reach it.
    shape : (rows, columns)
        Of the mosaic, pixels.
    stitch, halo, connected, identity, on_duplicate
        See `Job`.
    tile : int or (rows, columns), optional
        Tiles form a grid, and `finish` names those that are missing. Default: they lie anywhere.
    metadata : mapping, optional
        Of the mosaic; its ``image`` is set to the shape, and may not contradict it.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Raises
    ------
    IIDStoreError
        If the folder holds a mosaic that was begun with other options.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "cells")
    >>> job = iid_dask.prepare(folder, (600, 1000), tile=500)
    >>> [tuple(tile.box) for tile in job.grid]
    [(0, 0, 500, 500), (0, 500, 500, 1000), (500, 0, 600, 500), (500, 500, 600, 1000)]
    """
    size = as_pair("shape", shape)
    job = Job(
        size,
        stitch,
        None if tile is None else as_tile(tile),
        halo,
        connected,
        tuple(identity),
        on_duplicate,
        with_image_size(metadata or {}, size),
    )
    return begin(as_folder(folder, storage_options), job)


def begin(folder: FolderLike, job: Job) -> Job:
    """Write a job into its folder, or find it there."""
    place = as_folder(folder)
    if place.is_file(JOB):
        there = load_job(place)
        if there != job:
            raise IIDStoreError(f"{place}: holds a mosaic that was begun with other options: {_difference(there, job)}")
        return job
    _refuse_foreign(place)
    place.make("tiles")
    with place.write(JOB) as file:
        file.write(job._json().encode())
    return job


def _refuse_foreign(place: Folder) -> None:
    """Refuse to make a mosaic of a folder of something else."""
    # A killed process may have left the folder of tiles and temporary files, and another one writes the job just now.
    own = ("tiles", JOB, INPUT)
    held = [name for name in place.sizes() if name not in own and name[0] != "."]
    if held:
        raise IIDStoreError(f"{place}: holds {min(held)!r} and is no mosaic's; give a new folder, or an empty one")


def _difference(there: Job, wanted: Job) -> str:
    old, new = asdict(there), asdict(wanted)
    return "; ".join(f"{name} is {old[name]!r:.80}, now {new[name]!r:.80}" for name in old if old[name] != new[name])


def same_input(folder: FolderLike, token: str) -> bool:
    """Return whether a folder has met only the image that a token tells, and note it there for later."""
    place = as_folder(folder)
    with contextlib.suppress(FileNotFoundError):
        if place.read(INPUT) == token.encode():
            return True
        # Tiles of the other image go one by one, in several processes: no note can tell when the last one is gone.
        token = SEVERAL
    with place.write(INPUT) as file:
        file.write(token.encode())
    return False


def load_job(folder: FolderLike) -> Job:
    """Return the job of a folder.

    Raises
    ------
    FileNotFoundError
        If nobody called `prepare` on it.
    IIDFormatError
        If its file is damaged.
    """
    place = as_folder(folder)
    path = place.child(JOB)
    try:
        data = place.read(JOB)
    except FileNotFoundError:
        way_out = "begin the mosaic with iid_dask.prepare(folder, shape)"
        raise FileNotFoundError(f"{path}: no such file: {way_out}") from None
    return _jobs.get((path, data), lambda: _parse_job(path, data))


_jobs: Once[Job] = Once(16)


def _parse_job(path: str, data: bytes) -> Job:
    def fail(found: str, expected: str = "what iid_dask.prepare wrote") -> IIDFormatError:
        return IIDFormatError(path, "file", None, None, found, expected)

    limits = Limits()
    if len(data) > limits.max_meta:
        raise fail(f"{len(data)} bytes", f"at most {limits.max_meta}")
    # Metadata may be as deep as in a file; here they stand in an object.
    values = parse_json(data, replace(limits, max_json_depth=limits.max_json_depth + 1), fail)
    try:
        version = values.pop("version")
        if version != VERSION:
            raise ValueError(f"version {version!r}, expected {VERSION}")
        for name in ("shape", "tile", "identity"):
            values[name] = values[name] if values[name] is None else tuple(values[name])
        if values["places"] is not None:
            values["places"] = tuple(as_pair("places", place) for place in values["places"])
        if not isinstance(values["metadata"], dict):
            raise TypeError(f"metadata {values['metadata']!r:.80}, expected an object")
        return Job(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise fail(f"{error!s:.300}") from error


def mosaic_folder(target: FolderLike, storage_options: Mapping[str, Any] | None = None) -> Folder:
    """Return the folder of a mosaic that is given by itself, or by its manifest."""
    if isinstance(target, Folder):
        return target
    path = os.fsdecode(os.fspath(target))
    return as_folder(path.removesuffix(MANIFEST) if posixpath.basename(path) == MANIFEST else path, storage_options)


def with_image_size(metadata: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Return metadata with the image's size in it, as other programs expect it.

    Raises
    ------
    ValueError
        If it states another size.

    Examples
    --------
    >>> with_image_size({"camera": "a"}, (600, 1000))
    {'camera': 'a', 'image': {'height': 600, 'width': 1000}}
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata = {metadata!r:.80}: expected a mapping, such as {{'camera': 'a'}}")
    height, width = shape
    image = metadata.get("image", {})
    if not isinstance(image, Mapping):
        raise ValueError(f"metadata: image = {image!r:.80}: expected an object with height and width, or none")
    for name, size in (("height", height), ("width", width)):
        if image.get(name, size) != size:
            raise ValueError(f"metadata: image.{name} = {image[name]!r:.80} contradicts the image's {size} pixels")
    sized = {**metadata, "image": {**image, "height": int(height), "width": int(width)}}
    # What JSON makes of it, so that a job that is read back is the same.
    return json.loads(encode_metadata(sized))


tile_readers: Once[RecordReader] = Once(256)
"""Tiles that this process has open."""


OPEN = 64
"""Tiles that a task has open: it asks a store once for each, and holds few of a process's descriptors."""


def tiles_of(folder: FolderLike) -> Callable[[str], RecordReader]:
    """Return what opens the tiles of a folder for one task, each by `tile_reader` when it is first asked for."""
    place = as_folder(folder)
    return lru_cache(OPEN)(lambda path: tile_reader(place, path))


def tile_reader(folder: FolderLike, path: str) -> RecordReader:
    """Open a tile's file, or return this process's reader of it.

    Parameters
    ----------
    folder
    path
        As tables name it, relative to the folder.
    """
    place = as_folder(folder)
    place.inside(path)
    source = place.source(path)  # a server is asked once, and what is read has the stamp that it is kept under
    return tile_readers.get((place, path, stamp_of(source)), lambda: open_records(source))
