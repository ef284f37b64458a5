"""Writing one tile of a mosaic: what a task does, with nothing but its arguments and the folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.columns import Names, Segments
from iid_dask.format.encode import write_file
from iid_dask.format.folder import FolderLike, as_folder
from iid_dask.mosaic.blocks import Mask, block_crc, segments_of, segments_of_masks
from iid_dask.mosaic.folder import Job, as_pair, load_job
from iid_dask.mosaic.grid import Tile


@dataclass(frozen=True)
class TileWritten:
    """What `write_tile` wrote.

    Attributes
    ----------
    path : str
        Of the file, relative to the mosaic's folder.
    entries : int
    nbytes : int
        Of the file.
    """

    path: str
    entries: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class _Content:
    """A tile's entries, and the checksum of the block that they were found in."""

    names: Names
    segments: Segments
    groups: Mapping[str, np.ndarray]
    input: int | None


def write_tile(
    folder: FolderLike,
    content: np.ndarray | Iterable[Mask],
    origin: Sequence[int],
    *,
    shape: Sequence[int] | None = None,
    core: BBox | Sequence[int] | None = None,
    domain: bytes = b"",
    storage_options: Mapping[str, Any] | None = None,
) -> TileWritten:
    """Write a block of a mosaic as one ``.iid`` file in its folder.

    Needs nothing but its arguments and what `prepare` left in the folder, so any process may write any tile, in any
    order. A tile written again gives the same bytes; its file appears whole, or not at all.

    Parameters
    ----------
    folder
        Path or URL of a mosaic that `iid_dask.prepare` began.
    content : array of integers or bool, shape (h, w), or iterable of masks
        A label array, 0 is background; or items (domain, address, bbox, mask) or (domain, address, bbox, mask, group
        or groups), boxes in the tile's pixels; they may overlap. A global label image (``stitch="label"``) and
        connected components come as label arrays, masks with names (``stitch="name"``) as items; either will do
        for the rest.
    origin : (row, column)
        Pixel of the mosaic where the tile begins.
    shape : (rows, columns)
        Of the tile. Needed with masks, unless tiles form a grid.
    core : box, optional
        Pixels of the mosaic that the tile owns where it overlaps others. Default: as the grid says, else all of it.
    domain : bytes
        Of the entries of a label array.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    TileWritten

    Raises
    ------
    FileNotFoundError
        If nobody called `prepare` on the folder.
    TypeError, ValueError
        For a tile that leaves the mosaic or its grid, content of the wrong kind, a wrong item, and with
        ``on_duplicate="refuse"`` two items with one identity.
    IIDLimitError
        For a tile of more than 65,535 pixels a side, or more than a file can hold.

    Examples
    --------
    >>> import iid_dask, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> job = iid_dask.prepare(folder, (600, 1000), tile=500)
    >>> iid_dask.write_tile(folder, np.eye(500, dtype=bool), (0, 500))
    TileWritten(path='tiles/r0000000_c0000500.iid', entries=1, nbytes=...)
    """
    place = as_folder(folder, storage_options)
    job = load_job(place)
    start = as_pair("origin", origin)
    if isinstance(content, np.ma.MaskedArray):
        raise TypeError("content is a masked array, expected a plain one: give labels.filled(0)")
    block = np.asarray(content) if hasattr(content, "__array__") else None
    _check_kind(job, block is not None, domain)
    tile = job.place(start, _shape_of(job, start, block, shape), core)
    try:
        found = _of_masks(job, content, tile) if block is None else _of_labels(job, block, domain)
    except Exception as error:
        error.add_note(f"in {tile.name} of {place}")
        raise
    nbytes = write_file(
        place.inside(tile.name),
        found.segments,
        found.names,
        groups=found.groups,
        metadata=tile_metadata(job, tile, found.input),
        storage_options=place.storage_options,
    )
    return TileWritten(tile.name, len(found.names), nbytes)


def tile_metadata(job: Job, tile: Tile, input_crc: int | None) -> dict[str, Any]:
    """Return the metadata of a tile's file.

    Parameters
    ----------
    job, tile
    input_crc
        `block_crc` of the label array that the tile is made from; None for masks.
    """
    height, width = tile.box.shape
    place = {"origin": list(tile.origin), "shape": [height, width], "core": list(tile.core), "input": input_crc}
    return {"image": {"height": height, "width": width}, "mosaic": {"job": job.id, **place}}


def _check_kind(job: Job, is_labels: bool, domain: object) -> None:
    if not isinstance(domain, bytes):
        raise TypeError(f"domain is {type(domain).__name__}, expected bytes: encode text yourself")
    if is_labels and job.stitch == "name":
        raise TypeError(
            'content is a label array, but the mosaic joins masks by their names (stitch="name"): expected an iterable '
            'of (domain, address, bbox, mask); for a global label image prepare the folder with stitch="label"'
        )
    if not is_labels and (job.stitch == "label" or job.connected):
        why = "is made of connected components (connected=True)" if job.connected else 'joins labels (stitch="label")'
        raise TypeError(
            f"content is no array, but the mosaic {why}: expected a label array; for masks prepare the folder with "
            'stitch="name", "touch", "iou" or None'
        )
    if not is_labels and domain:
        raise ValueError(f"domain = {domain!r:.80} is for label arrays: items bring their own")


def _shape_of(
    job: Job, origin: tuple[int, int], block: np.ndarray | None, shape: Sequence[int] | None
) -> tuple[int, int]:
    given = None if shape is None else as_pair("shape", shape)
    if block is not None:
        if block.ndim != 2:
            raise TypeError(f"label array of shape {block.shape}: expected two dimensions, rows and columns")
        if given not in (None, block.shape):
            raise ValueError(f"shape = {given} contradicts the label array's {block.shape}")
        return block.shape[0], block.shape[1]
    if given is not None:
        return given
    known = None if job.grid is None else job.grid.find(origin)
    if known is None:
        raise ValueError(
            f"tile at row {origin[0]}, column {origin[1]}: masks do not tell its size; give shape=(rows, columns)"
        )
    return known.box.shape


def _of_labels(job: Job, block: np.ndarray, domain: bytes) -> _Content:
    values, segments = segments_of(block, connected=job.connected)
    return _Content(Names.decimal(domain, values), segments, {}, block_crc(block))


def _of_masks(job: Job, items: Iterable[Mask], tile: Tile) -> _Content:
    names, segments, groups = segments_of_masks(items, tile.box.shape)
    if job.stitch == "name" and job.on_duplicate == "refuse":
        _refuse_duplicates(names, groups if "group" in job.identity else None)
    return _Content(names, segments, groups, None)


def _refuse_duplicates(names: Names, groups: Mapping[str, np.ndarray] | None) -> None:
    """Refuse two items with one name; with ``groups`` only where they are in the same groups."""
    domains, addresses = names.lists()
    held: list[list[str]] = [[] for _ in domains]
    for name, keys in (groups or {}).items():
        for key in keys.tolist():
            held[key].append(name)
    seen: dict[tuple[bytes, bytes, frozenset[str]], int] = {}
    for number, (domain, address) in enumerate(zip(domains, addresses, strict=True)):
        first = seen.setdefault((domain, address, frozenset(held[number])), number)
        if first != number:
            where = f" in group {', '.join(map(repr, held[number]))}" if held[number] else ""
            raise ValueError(
                f"items {first} and {number} are both ({domain!r:.80}, {address!r:.80}){where}, and the mosaic was "
                'prepared with on_duplicate="refuse"; name them apart, or prepare it with "merge"'
            )
