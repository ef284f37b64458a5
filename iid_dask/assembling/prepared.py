"""What an assembly is asked for: input and options checked, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from iid_dask.assembling.files import Chosen, copy_entries, open_files
from iid_dask.assembling.plan import plan_copy, plan_job
from iid_dask.assembling.writing import Resume, Writer, tile_batches, write_tiles
from iid_dask.errors import IIDLimitError
from iid_dask.format.folder import Folder, FolderLike, as_folder
from iid_dask.format.layout import MAX_SIDE
from iid_dask.format.metadata import encode_metadata
from iid_dask.images import DaskImage, Image, as_image
from iid_dask.images.tiling import aligned_tile
from iid_dask.mosaic.folder import (
    Job,
    Stitch,
    as_pair,
    as_tile,
    begin,
    check_stitch,
    load_job,
    same_input,
    with_image_size,
)
from iid_dask.mosaic.tile import tile_metadata
from iid_dask.running import Work, run
from iid_dask.running.plan import Plan

TILE = 4096
"""Rows and columns of a tile where nothing else is said: 64 MiB of uint32."""


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

    def plan(self, name: str, *, parts: int = 1, merged: bool = False) -> Plan:
        """Return what the job will take.

        Parameters
        ----------
        name
            Of what is made.
        parts
            The job is one of so many, about.
        merged
            Whether the tiles become one file.
        """
        if self.image is None:
            chosen = [[chosen for chosen, at in self.files if at == place] for place in {at for _, at in self.files}]
            return plan_copy(chosen, -(-len(chosen) // parts), name=f"entries to {name}")
        grid = self.job.grid
        assert grid is not None  # images are always cut by a grid
        tiles = -(-len(grid) // parts)
        tasks = tiles if isinstance(self.image, DaskImage) else len(tile_batches(grid, tiles))
        name = f"{self.image.name} to {name}"
        dtype, blocks = self.image.dtype, self.image.blocks
        return plan_job(self.job, dtype, tiles, tasks, blocks=blocks, name=name, merged=merged)

    def write(
        self,
        folder: FolderLike,
        *,
        progress: bool,
        resume: Resume,
        part: tuple[int, int] = (1, 1),
    ) -> tuple[int, int]:
        """Write the tiles, and return how many were written, and how many were there."""
        if resume not in (True, False, "trust"):
            raise ValueError(f'resume = {resume!r}: expected True, False or "trust"')
        place = as_folder(folder)
        begin(place, self.job)
        if self.image is not None and not same_input(place, self.image.token()) and resume == "trust":
            resume = True  # the tiles that are there may be another image's
        if self.image is None:
            return self._copy(place, part), 0
        writer = Writer(place, self.job.id, resume)
        counts = write_tiles(self.image, self.job, writer, part, progress=progress)
        return sum(written for written, _ in counts), sum(kept for _, kept in counts)

    def _copy(self, folder: Folder, part: tuple[int, int]) -> int:
        number, of = part
        places = sorted({place for _, place in self.files})[number - 1 :: of]
        work = Work(
            _copy_tile,
            folder,
            [(i, i + 1) for i in range(len(places))],
            arguments=lambda i, _: ([chosen for chosen, at in self.files if at == places[i]], places[i]),
            about=lambda i: f"{folder}: the tile at {places[i]}",
        )
        return len(run(work, "writing tiles", progress=False))


def _copy_tile(folder: Folder, inputs: Sequence[Chosen], place: tuple[int, int]) -> None:
    shape = _reach([(chosen, (0, 0)) for chosen in inputs])
    # Named masks are never cut: nobody asks who owns a pixel.
    job = load_job(folder)
    tile = job.place(place, shape, (*place, *place))
    metadata = tile_metadata(job, tile, None)
    copy_entries(inputs, folder.inside(tile.name), metadata, storage_options=folder.storage_options)


class InputOptions(TypedDict, total=False):
    """What `to_iid` and `to_mosaic` take beside their own: how the input is read, and cut into tiles.

    Attributes
    ----------
    metadata : mapping
        What JSON can hold. ``image`` is set to the image's size.
    tile : int or (rows, columns)
        Unit of parallel work, pixels. Default: about 4096, a multiple of the blocks in which the image is stored; where
        labels are local to blocks (``stitch`` "touch", "iou" or None), these blocks.
    stitch : {"label", "name", "touch", "iou"} or None
        What makes pieces in several tiles one segment. "label", the default: an equal label. "touch", "iou": labels are
        local to their tile, and contact at the border, or agreement in the common ``halo``, joins; see `decide`. None:
        nothing. Existing files have names: there "label" means "name", an equal IID.
    halo : int
        Pixels that tiles reach beyond the pixels they own; default 0.
    connected : bool
        Segments are the 8-connected components of equal values, of a bool mask or a class map; ``groups`` is then
        given the class. Default False.
    across : int
        Tile images are given row by row, so many a row.
    at : sequence of (row, column)
        Where the first pixel of each image or file lies; of images that overlap the later one wins. Files without it
        all begin at (0, 0), so that masks of one image can be put together.
    keys, window
        Of existing files: only these entries, and the part of the image to keep, (min_row, min_col, max_row, max_col).
    storage_options : mapping
        For the file systems of URLs, of input and output alike.
    """

    metadata: Mapping[str, Any] | None
    tile: int | tuple[int, int] | None
    stitch: Stitch | None
    halo: int
    connected: bool
    across: int | None
    at: Sequence[tuple[int, int]] | None
    keys: Any
    window: Any
    storage_options: Mapping[str, Any] | None


def prepare_input(labels: Any, **options: Unpack[InputOptions]) -> Prepared:
    """Check input and options, and open the input; see `to_iid`."""
    known = InputOptions.__annotations__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"unknown options {unknown}; of the input there are: {', '.join(known)}")
    return _prepare(labels, **options)


def _prepare(
    labels: Any,
    *,
    metadata: Mapping[str, Any] | None = None,
    tile: int | tuple[int, int] | None = None,
    stitch: Stitch | None = "label",
    halo: int = 0,
    connected: bool = False,
    across: int | None = None,
    at: Sequence[tuple[int, int]] | None = None,
    keys: Any = None,
    window: Any = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Prepared:
    encode_metadata(metadata or {})
    check_stitch(stitch)
    readers = open_files(labels, storage_options)
    if readers:
        if across is not None or tile is not None:
            raise ValueError("across= and tile= are for label images; files are placed by at=[(row, column), …]")
        if connected or halo or stitch not in ("label", "name", None):
            raise ValueError("entries of files are joined by name or not at all: stitch=None, and no halo or connected")
        chosen = [
            reader.narrowed(keys, window) if isinstance(reader, Chosen) else Chosen.of(reader, keys, window)
            for reader in readers
        ]
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
    return as_tile(tile)


def _prepare_files(
    inputs: Sequence[Chosen], at: Any, metadata: Mapping[str, Any] | None, stitch: Stitch | None
) -> Prepared:
    places = [(0, 0)] * len(inputs) if at is None else [as_pair("at", place) for place in at]
    if len(places) != len(inputs) or any(min(place) < 0 for place in places):
        raise ValueError(f"at = {at!r:.80}: expected a (row, column) of 0 or more for each of {len(inputs)} files")
    if len(inputs) == 1 and places != [(0, 0)]:
        raise ValueError("at= moves several files beside one another; of one file choose a window=")
    for chosen in inputs if len(inputs) > 1 else ():
        if max(chosen.window.shape) > MAX_SIDE:
            raise IIDLimitError(
                f"{chosen.reader.name}: a window of {chosen.window.height} x {chosen.window.width} pixels: expected at "
                f"most {MAX_SIDE} a side, one tile's; choose a window="
            )
    files = tuple(zip(inputs, places, strict=True))
    shape = _reach(files)
    given = _common_metadata(inputs, shape) if metadata is None else metadata
    job = Job(shape, stitch, metadata=with_image_size(given, shape), places=tuple(sorted(set(places))))
    return Prepared(job, None, files)


def _reach(files: Iterable[tuple[Chosen, tuple[int, int]]]) -> tuple[int, int]:
    """Rows and columns of the smallest image that holds all windows."""
    ends = [(row + chosen.window.height, col + chosen.window.width) for chosen, (row, col) in files]
    return max(end[0] for end in ends), max(end[1] for end in ends)


def _common_metadata(inputs: Sequence[Chosen], shape: tuple[int, int]) -> dict[str, Any]:
    """What all files say, in the order of the first, with the size of the image that they become."""
    first, *others = [chosen.reader.metadata for chosen in inputs]
    common: dict[str, Any] = {}
    for name, value in first.items():
        if name == "image" and isinstance(value, Mapping):
            common[name] = {**value, "height": shape[0], "width": shape[1]}
        elif name not in ("image", "mosaic") and all(name in other and other[name] == value for other in others):
            common[name] = value
    return common
