"""The last step of a mosaic: its tiles become segments, tables and a manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask import kernels
from iid_dask.errors import IIDStoreError
from iid_dask.format.folder import Folder, FolderLike, as_folder
from iid_dask.locks import claimed
from iid_dask.mosaic import cuts, evidence, identity, rules, state
from iid_dask.mosaic.areas import count_common
from iid_dask.mosaic.folder import VERSION, Job, load_job
from iid_dask.mosaic.grid import tile_name
from iid_dask.mosaic.identity import Pieces
from iid_dask.mosaic.naming import Lookup, Naming, groups_of, names_of, ordered_groups
from iid_dask.mosaic.plan import plan_finish
from iid_dask.mosaic.survey import Strings, Survey, survey
from iid_dask.running.admission import admit

if TYPE_CHECKING:
    from iid_dask.mosaic.reader import Mosaic

TILE = re.compile(r"r(\d+)_c(\d+)\.iid")


def finish(
    folder: FolderLike,
    *,
    names: Lookup | None = None,
    domain: bytes = b"",
    groups: Lookup | None = None,
    rule: rules.Rule | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Mosaic:
    """Make the tiles of a folder a mosaic: find out which pieces are one segment, and write its tables.

    Called again on the same tiles it writes the same bytes. Readers of an older state of the mosaic go on with the
    tables that they have opened; the manifest is replaced last.

    Parameters
    ----------
    folder
        Path or URL; begun with `prepare`, with a tile in every place of its grid.
    names : mapping or function, optional
        Label -> address, str or bytes. Labels are those of a label image; where they are local to their tiles, those
        of the mosaic (key + 1). Default: the label in decimal. Two labels of one name stay two segments.
    domain : bytes
        Of all segments.
    groups : mapping or function, optional
        Label -> name of a group, several, or None. Where segments are connected components the label is the value
        that they were made of.
    rule : Touch or IoU, optional
        What joins segments of local labels; default: that of the job's ``stitch``, with its defaults.
    progress
        Show bars.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    Mosaic
        Open.

    Raises
    ------
    IIDStoreError
        For missing tiles, tiles of another job, and tiles that own one pixel twice.
    IIDFormatError
        For damaged tiles.
    KeyError
        For a label that a mapping lacks.

    Examples
    --------
    >>> import iid_dask, os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "cells")
    >>> job = iid_dask.prepare(folder, (4, 6), tile=3)
    >>> labels = np.repeat([[7, 7, 0, 0, 0, 300]], 4, axis=0)
    >>> for tile in job.grid:
    ...     _ = iid_dask.write_tile(folder, labels[tile.box.slices], tile.origin)
    >>> with iid_dask.finish(folder, names={7: "seven", 300: "many"}) as mosaic:
    ...     mosaic.names()
    ([b'', b''], [b'seven', b'many'])
    """
    place = as_folder(folder, storage_options)
    job = load_job(place)
    naming = Naming(names, domain, groups)
    rule = rules.checked(rule, job)
    tiles = _tiles_there(place, job)
    admit(plan_finish(str(place), tiles))
    with claimed(str(place), "finish", storage_options=place.storage_options):
        found = survey(place, list(tiles), progress=progress)
        check_cores(place, found)
        decided = None
        if job.stitch in ("touch", "iou"):
            decided = rules.decided(evidence.gather(place, job, found, progress=progress), rule)
        complete(place, job, found, naming, decided, rule, progress=progress)
        place.remove_abandoned("tiles", "cuts")
    return opened(place)


def opened(folder: Folder) -> Mosaic:
    """Open the mosaic of a folder."""
    from iid_dask.mosaic.reader import open_mosaic  # it stands above this module

    return open_mosaic(folder)


# --- tiles ------------------------------------------------------------------------------------------------------


def _tiles_there(folder: Folder, job: Job) -> dict[str, int]:
    """Return paths of the tiles, by row and column of their origin, and bytes; IIDStoreError if some are missing."""
    there: dict[str, tuple[int, int]] = {}
    sizes = folder.sizes("tiles")
    for name in sizes:
        if name.startswith(".") or not name.endswith(".iid"):
            continue
        match = TILE.fullmatch(name)
        if match is None:
            raise IIDStoreError(
                f"{folder.child(f'tiles/{name}')}: no name of a tile, expected r0000000_c0000000.iid with the row and "
                "column of its origin; move it out of the folder"
            )
        there[f"tiles/{name}"] = int(match[1]), int(match[2])
    if job.grid is not None and len(job.grid) > len(there):
        # A damaged job may tell of more tiles than there is memory for their names.
        known = sum(tile_name(origin) == name and job.grid.find(origin) is not None for name, origin in there.items())
        first = islice((tile.name for tile in job.grid if tile.name not in there), 3)
        raise _missing(folder, list(first), len(job.grid) - known, len(job.grid))
    wanted = job.origins
    if wanted is not None:
        missing = [name for name in wanted if name not in there]
        if missing:
            raise _missing(folder, missing[:3], len(missing), len(wanted))
        for name in sorted(there.keys() - wanted.keys()):
            raise IIDStoreError(
                f"{folder}: {name} is none of the mosaic's {len(wanted)} tiles; move it out of the folder"
            )
    return {name: sizes[name.removeprefix("tiles/")] for name in sorted(there, key=lambda name: there[name])}


def _missing(folder: Folder, first: list[str], missing: int, wanted: int) -> IIDStoreError:
    return IIDStoreError(
        f"{folder}: {missing} of {wanted} tiles are missing: {', '.join(first)}"
        f"{', …' if missing > len(first) else ''}; write them, then call finish again"
    )


def check_cores(folder: Folder, found: Survey) -> None:
    """Refuse tiles that own one pixel twice, by a sweep over rows."""
    cores = np.array([tuple(tile.core) for tile in found.places], np.int64).reshape(-1, 4)
    held = np.flatnonzero(np.all(cores[:, :2] < cores[:, 2:], axis=1))
    order = held[np.argsort(cores[held, 0], kind="stable")]
    first, second = np.zeros((2, 1), np.int64)
    count = kernels.meeting_boxes(cores[order], np.zeros(len(order), np.int64), 0, first, second)
    if count:
        a, b = sorted(order[[first[0], second[0]]].tolist())
        raise IIDStoreError(
            f"{folder}: {count} pairs of tiles own the same pixels, such as {found.paths[a]} with core "
            f"{tuple(cores[a].tolist())} and {found.paths[b]} with core {tuple(cores[b].tolist())}; expected cores "
            "that do not overlap: give core= to write_tile, or delete one of them"
        )


# --- from entries to tables -------------------------------------------------------------------------------------


def complete(
    folder: Folder,
    job: Job,
    found: Survey,
    naming: Naming,
    decided: evidence.Evidence | None,
    rule: rules.Rule | None,
    *,
    progress: bool,
) -> None:
    """Write tables and manifest from what tiles hold and what was decided."""
    pieces, made = _pieces(folder, job, found, decided, progress=progress)
    by_label = job.stitch == "label"
    ranks = np.zeros(len(found.entries), np.int64) if by_label else identity.name_ranks(found.entries)
    pieces, segments = identity.ordered(pieces, ranks, by_number=by_label)
    count_common(folder, found, made, pieces, segments.areas, progress=progress)
    names = _names(job, found, naming, segments.leaders)
    groups, members = _groups(job, found, naming, pieces, segments.leaders)
    tables = {
        **state.file_tables(found, made, pieces, segments),
        "segments": state.segment_columns(segments, *names),
        "members": {"group": members[:, 0], "key": members[:, 1]},
        **({} if decided is None else state.seam_tables(found, decided)),
    }
    manifest = {
        "version": VERSION,
        "job": job.id,
        "shape": list(job.shape),
        "metadata": job.metadata,
        "stitch": job.stitch,
        "rule": rules.to_json(rule),
        "identity": list(job.identity),
        "groups": groups,
        "counts": {"tiles": len(found.paths), "segments": len(segments.areas), "pieces": len(pieces.entry)},
        "naming": {
            "masks": not _labelled(found),
            "names": naming.names is not None,
            "groups": naming.groups is not None,
            "domain": naming.domain.hex(),
            "entry_groups": found.entries.groups,
        },
    }
    state.save(folder, manifest, tables)


def _pieces(
    folder: Folder, job: Job, found: Survey, decided: evidence.Evidence | None, *, progress: bool
) -> tuple[Pieces, list[cuts.Cut]]:
    """Return the pieces of segments, and the files that hold those which were cut to their tile's core."""
    entries = found.entries
    pairs = np.zeros((0, 2), np.int64) if decided is None else decided.joined_rows(entries)
    segment = identity.components(job, entries, found.paths, pairs)
    pieces = Pieces(
        np.arange(len(entries)), entries.tile, entries.key, entries.boxes, entries.areas, entries.first, segment
    )
    if job.stitch == "name":
        return pieces, []
    rows = np.flatnonzero(cuts.beyond_core(found, segment))
    made = cuts.cut(folder, found, rows, progress=progress)
    return cuts.with_cuts(pieces, rows, made, found), made


def _labelled(found: Survey) -> bool:
    """Whether entries are named by numbers of label arrays; IIDStoreError if only some are."""
    used = np.unique(found.entries.tile)
    kinds = found.labelled[used]
    if kinds.any() and not kinds.all():
        raise IIDStoreError(
            f"{found.paths[used[kinds][0]]} is made of a label array, {found.paths[used[~kinds][0]]} of named masks; "
            "expected one kind in a mosaic"
        )
    return bool(kinds.all())


def _names(job: Job, found: Survey, naming: Naming, leaders: np.ndarray) -> tuple[Strings, Strings]:
    if _labelled(found):
        labels = _labels(job, found, leaders) if job.stitch == "label" else _keys_plus_one(leaders)
        domains, addresses = names_of(naming, labels)
        return domains if naming.domain else found.entries.domains.take(leaders), addresses
    if naming.given:
        raise ValueError("names=, domain= and groups= are for label arrays: the masks in these tiles have names")
    return found.entries.domains.take(leaders), found.entries.addresses.take(leaders)


def _keys_plus_one(leaders: np.ndarray) -> np.ndarray:
    return np.arange(1, len(leaders) + 1, dtype=np.uint64)


def _labels(job: Job, found: Survey, leaders: np.ndarray) -> np.ndarray:
    """Return the number that the leading entry of each segment is named by, uint64."""
    return identity.labels_of(found.entries, found.paths)[leaders]


def _groups(
    job: Job, found: Survey, naming: Naming, pieces: Pieces, leaders: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return groups and (group, key): what pieces bring, and what is asked for."""
    number, row = found.entries.members.T
    order = np.argsort(pieces.entry, kind="stable")
    at = np.searchsorted(pieces.entry[order], row)
    held = np.flatnonzero(at < len(order))
    held = held[pieces.entry[order[at[held]]] == row[held]]
    brought = np.stack([number[held], pieces.segment[order[at[held]]]], axis=1)
    if naming.groups is None:
        return ordered_groups(found.entries.groups, brought)
    by_value = job.stitch == "label" or job.connected
    labels = _labels(job, found, leaders) if by_value else _keys_plus_one(leaders)
    names, asked = groups_of(naming, labels)
    asked[:, 0] += len(found.entries.groups)
    return ordered_groups([*found.entries.groups, *names], np.concatenate([brought, asked]))
