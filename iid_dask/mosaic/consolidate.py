"""A mosaic as one canonical ``.iid`` file: every byte is placed first, then ranges are written in parallel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iid_dask.errors import IIDLimitError
from iid_dask.format.columns import Names
from iid_dask.format.folder import Folder, FolderLike
from iid_dask.format.layout import MAX_SIDE
from iid_dask.format.target import atomic_parts
from iid_dask.locks import claimed
from iid_dask.mosaic.folder import JOB, load_job
from iid_dask.mosaic.placing import WAY_OUT, plan_consolidated
from iid_dask.mosaic.plan import plan_consolidation
from iid_dask.mosaic.ranges import Range, TileFiles, combine_crc32, write_range
from iid_dask.mosaic.reader import Mosaic, open_mosaic
from iid_dask.mosaic.stored import OpenTile, Shown
from iid_dask.running import Work, run
from iid_dask.running.admission import admit


def consolidate(
    mosaic: Mosaic | FolderLike,
    path: str | os.PathLike[str],
    *,
    index: bool = True,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a mosaic as one canonical ``.iid`` file, whatever tiles it is made of.

    The bytes are those that `iid_dask.IIDWriter` writes for the whole masks. Tasks write ranges of at most 32 MiB, on
    the distributed client in scope or else dask's configured scheduler; all must reach the mosaic and ``path``. The
    file appears when it is whole; until then what stood there does. An object's ranges are objects meanwhile, beside
    it, which this process puts together, holding few at a time.

    Parameters
    ----------
    mosaic
        Open, or the path or URL of its folder.
    path
        Of the file to write, or the URL of an object.
    index
        Put the index behind the last section.
    progress
        Show a bar on stderr.
    storage_options : mapping, optional
        For the fsspec file systems of URLs.

    Raises
    ------
    IIDLimitError
        If the mosaic has more than 65,535 rows or columns, or the file would pass 4 GiB; nothing was written.
    IIDStoreError, IIDFormatError, IIDChangedError
        If a tile is missing, of another job, damaged, or changed meanwhile.
    OSError
        With errno and path: disk full, read-only folder, and so on.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> labels = np.kron(np.eye(3, dtype=np.uint8), np.ones((4, 4), np.uint8))
    >>> mosaic = iid_dask.to_mosaic(labels, os.path.join(folder, "mosaic"), tile=5, progress=False)
    >>> consolidate(mosaic, os.path.join(folder, "one.iid"))
    >>> with iid_dask.open(os.path.join(folder, "one.iid")) as one:
    ...     [tuple(region.bbox) for region in one[0].regions]
    [(0, 0, 12, 12)]
    """
    if not isinstance(mosaic, Mosaic):
        with open_mosaic(mosaic, storage_options=storage_options) as opened:
            consolidate(opened, path, index=index, progress=progress, storage_options=storage_options)
        return
    height, width = mosaic.shape
    if max(height, width) > MAX_SIDE:
        raise IIDLimitError(
            f"{os.fspath(path)}: a mosaic of {height} x {width} pixels: a file holds at most {MAX_SIDE} a side; "
            f"{WAY_OUT}"
        )
    files = mosaic.tiles.columns
    admit(plan_consolidation(os.fspath(path), int(files["pieces"].sum()), files["nbytes"]))
    table = mosaic.tables.read("pieces", ("tile", "key", "label"))
    text, *places = mosaic.name_spans()
    with claimed(path, "consolidate", storage_options=storage_options):
        write_consolidated(
            path,
            TileFiles(
                mosaic.manifest.folder,
                dict(enumerate(mosaic.tiles.paths)),
                dict(enumerate(map(tuple, mosaic.tiles.boxes[:, :2].tolist()))),
            ),
            Shown(table["tile"], table["key"], table["label"].astype(np.int64) - 1),
            Names(np.frombuffer(text, np.uint8), *places),
            groups=mosaic.groups,
            metadata=mosaic.metadata,
            index=index,
            progress=progress,
            loose=_may_be_loose(mosaic.manifest.folder),
            open_tile=mosaic.tiles.open,
            storage_options=storage_options,
        )


def _may_be_loose(folder: Folder) -> bool:
    """Whether tiles may hold regions that touch: named masks may come from files of other programs."""
    return not folder.is_file(JOB) or load_job(folder).stitch == "name"


def write_consolidated(
    path: str | os.PathLike[str],
    files: TileFiles,
    shown: Shown,
    names: Names,
    *,
    groups: Mapping[str, Sequence[int] | np.ndarray],
    metadata: Mapping[str, Any],
    index: bool = True,
    progress: bool = False,
    loose: bool = False,
    open_tile: OpenTile | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Write segments whose pieces lie in many files as one file, and return its bytes.

    The bytes are those that `IIDWriter` writes for whole masks, however they were cut; a segment of one piece is
    copied with the regions that its file holds.

    Parameters
    ----------
    path
        Or URL; what is there is replaced when all is written.
    files
        Of the mosaic.
    shown
        The entries that are pieces of segments; segments without any are empty.
    names
        Of all segments, in the order of their keys.
    groups
        Name -> keys, in the order of the file.
    metadata
        What JSON can hold.
    index
        Put the index behind the last section.
    progress
        Show a bar on stderr.
    loose
        Whether regions of an entry may touch or share pixels in the files, as other programs may write them.
    open_tile
        Used when the columns of files are read. Default: ``files.open``.
    storage_options
        For the fsspec file system of a URL.

    Raises
    ------
    IIDLimitError
        If the format cannot store it; nothing was written.
    IIDFormatError
        If a file of the mosaic is damaged; what stood at the path still does.
    OSError
        With errno and path; what stood at the path still does.
    """
    target = os.fspath(path)
    opened = open_tile or files.open
    layout = plan_consolidated(
        target, files, shown, names, groups=groups, metadata=metadata, loose=loose, open_tile=opened
    )
    tail = layout.head.nbytes
    nbytes = tail + (layout.head.index_nbytes(layout.columns) if index else 0)
    with atomic_parts(target, nbytes, storage_options) as parts:
        base = layout.head.segments_offset
        ranges = list(layout.ranges())
        work = Work(
            write_range,
            parts,
            [(i, i + 1) for i in range(len(ranges))],
            arguments=lambda i, _: (base, layout.files.only(ranges[i].tiles), ranges[i], index),
            about=lambda i: f"{target}: bytes {base + ranges[i].start} to {base + ranges[i].stop}",
        )
        results = run(work, "writing", progress=progress)
        _check_cover(target, base, tail, results)
        parts.put(0, memoryview(layout.head.tobytes()))
        if index:
            rows = layout.head.index(layout.columns, _segment_crcs(len(names), ranges, results))
            parts.put(tail, memoryview(rows))
    return nbytes


def _check_cover(path: str, start: int, stop: int, results: Sequence[tuple[int, int, np.ndarray]]) -> None:
    for offset, nbytes, _ in results:
        if offset != start:
            raise RuntimeError(f"{path}: a range was written at byte {offset}, expected {start}")
        start += nbytes
    if start != stop:
        raise RuntimeError(f"{path}: ranges end at byte {start}, expected {stop}")


def _segment_crcs(n: int, ranges: Sequence[Range], results: Sequence[tuple[int, int, np.ndarray]]) -> np.ndarray:
    """Put together the checksums of segments, of which some lie in several ranges."""
    crcs, done = np.zeros(n, np.uint32), 0
    for part, (_, _, found) in zip(ranges, results, strict=True):
        numbers = np.arange(part.first_segment, part.first_segment + len(found))
        if done > part.first_segment:
            crc, more, size = int(crcs[done - 1]), int(found[0]), int(part.spans[1] - part.spans[0])
            crcs[done - 1] = combine_crc32(crc, more, size)
            numbers, found = numbers[1:], found[1:]
        crcs[numbers] = found
        done = part.first_segment + len(part.spans) - 1
    return crcs
