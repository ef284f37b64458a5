"""Seams of a finished mosaic: their table, deciding again, and taking joins back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from iid_dask.errors import IIDFormatError
from iid_dask.format.folder import Folder, FolderLike, as_folder
from iid_dask.locks import claimed
from iid_dask.mosaic.edits import check_columns, edited, joins_within, whole_numbers
from iid_dask.mosaic.evidence import SCHEMA, Evidence
from iid_dask.mosaic.finish import complete, opened
from iid_dask.mosaic.folder import MANIFEST, load_job
from iid_dask.mosaic.naming import Lookup, Naming
from iid_dask.mosaic.rules import (
    CONNECTED,
    IoU,
    Rule,
    Touch,
    check_kind,
    checked,
    decided,
    from_json,
    nothing_to_decide,
    parse_rule,
    to_json,
)
from iid_dask.mosaic.state import State, load

if TYPE_CHECKING:
    import pandas as pd

    from iid_dask.mosaic.reader import Mosaic

__all__ = ["IoU", "Rule", "Touch", "decide", "parse_rule", "seams_table", "undo"]


def seams_table(folder: FolderLike, storage_options: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return the table of seams of a finished mosaic, to look at, or to edit and give to `decide`.

    Parameters
    ----------
    folder
        Path or URL.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    DataFrame
        A row for every two entries of neighbouring tiles that touch or share pixels; its columns are those of
        `iid_dask.mosaic.evidence.Evidence`. ``attrs["rule"]`` is the rule that decided.

    Raises
    ------
    IIDStoreError
        If nothing is decided in this mosaic.
    """
    import pandas as pd

    found = load(as_folder(folder, storage_options))
    table = pd.DataFrame(found.evidence.columns())
    table.attrs["rule"] = found.manifest["rule"]
    return table


@overload
def decide(
    target: FolderLike,
    rule: Rule | None = None,
    *,
    seams: pd.DataFrame | None = None,
    names: Lookup | None = None,
    groups: Lookup | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Mosaic: ...


@overload
def decide(target: pd.DataFrame, rule: Rule | None = None) -> pd.DataFrame: ...


def decide(
    target: FolderLike | pd.DataFrame,
    rule: Rule | None = None,
    *,
    seams: pd.DataFrame | None = None,
    names: Lookup | None = None,
    groups: Lookup | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Mosaic | pd.DataFrame:
    """Decide again who is one in a finished mosaic, from its table of seams; no tile is segmented again.

    Parameters
    ----------
    target
        Path or URL of a mosaic with ``stitch="touch"`` or ``"iou"``; or the table of its seams: then nothing is
        written, and the table comes back with the scores and decisions of the rule.
    rule : Touch or IoU, optional
        Default: the one that decided last.
    seams : DataFrame, optional
        The mosaic's table of seams, edited: rows whose ``manual`` is set, and those whose ``decision`` was changed,
        are decided by it, the others by the rule. Default: as the mosaic has it.
    names, groups : mapping or function, optional
        As in `finish`; needed again where they were given there, because labels may be others now.
    progress
        Show bars.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    Mosaic, or DataFrame
        Open; or the table.

    Raises
    ------
    IIDStoreError
        If nothing is decided in this mosaic, or the table is another one's.
    ValueError
        If names or groups were given to `finish`, and are not here; for `IoU` where tiles have no halo, and for a
        table that lacks a column.
    TypeError
        For what is no rule, and for options that go with a folder, and not with a table.

    Examples
    --------
    A disc that the borders of four tiles cut is one segment, until contact of more pixels is asked for:

    >>> import iid_dask, os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "disc")
    >>> rows, cols = np.ogrid[:20, :20]
    >>> disc = (rows - 10) ** 2 + (cols - 10) ** 2 < 64
    >>> with iid_dask.to_mosaic(disc, folder, tile=10, stitch="touch", progress=False) as mosaic:
    ...     len(mosaic)
    1
    >>> with iid_dask.decide(folder, iid_dask.Touch(min_pixels=9)) as mosaic:
    ...     len(mosaic), mosaic.seams().decision.tolist()
    (4, [False, False, False, False, False, False])
    >>> with iid_dask.decide(folder, seams=mosaic.seams().assign(decision=True)) as mosaic:
    ...     len(mosaic)
    1
    """
    if not isinstance(target, str | os.PathLike | Folder):
        if progress or any(given is not None for given in (seams, names, groups)):
            raise TypeError("decide: seams=, names=, groups= and progress= go with a folder; a table is only decided")
        return _decided_table(target, rule)
    folder = as_folder(target, storage_options)
    with claimed(str(folder), "decide", storage_options=folder.storage_options):
        found = load(folder)
        evidence = found.evidence if seams is None else edited(found.evidence, seams, str(folder))
        _decide_again(folder, found, evidence, rule, names, groups, progress)
    return opened(folder)


def _decided_table(table: pd.DataFrame, rule: Rule | None) -> pd.DataFrame:
    check_kind(rule)
    check_columns(table, SCHEMA)
    known = "rule" in table.attrs
    if rule is None and not known:
        raise ValueError('table of seams: its attrs do not say which "rule" decided last; give rule=')
    last = from_json(table.attrs["rule"]) if known else None
    if rule is not None and known and last is None:
        raise nothing_to_decide(rule, CONNECTED)
    chosen = last if rule is None else rule
    evidence = decided(Evidence(**{name: table[name].to_numpy() for name in SCHEMA}), chosen)
    made = table.assign(score=evidence.score, decision=evidence.decision)
    made.attrs["rule"] = to_json(chosen)
    return made


def undo(
    folder: FolderLike,
    *,
    pairs: Any = None,
    segments: Any = None,
    names: Lookup | None = None,
    groups: Lookup | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Mosaic:
    """Take joins back: no rule makes them again, until `finish` gathers the evidence anew.

    Parameters
    ----------
    folder
        Path or URL of a mosaic with ``stitch="touch"`` or ``"iou"``.
    pairs : sequence of int, optional
        Rows of the table of seams.
    segments : sequence of int, optional
        Keys: all joins within each of these.
    names, groups, progress, storage_options
        As in `decide`.

    Returns
    -------
    Mosaic
        Open; segments have new keys.

    Raises
    ------
    IndexError
        For a row that the table lacks.
    KeyError
        For a key that the mosaic lacks.
    IIDStoreError
        If nothing is decided in this mosaic.
    TypeError
        For neither ``pairs`` nor ``segments``, and for what are no whole numbers.

    Examples
    --------
    What two tiles hold of one rectangle becomes two, whatever rule decides later:

    >>> import iid_dask, os, tempfile
    >>> folder = os.path.join(tempfile.mkdtemp(), "two")
    >>> labels = np.zeros((10, 20), np.uint8)
    >>> labels[2:8, 6:14] = 1
    >>> with iid_dask.to_mosaic(labels, folder, tile=10, stitch="touch", progress=False) as mosaic:
    ...     len(mosaic)
    1
    >>> with iid_dask.undo(folder, segments=[0]) as mosaic:
    ...     len(mosaic), mosaic.seams()[["decision", "manual"]].to_numpy().tolist()
    (2, [[False, True]])
    >>> with iid_dask.decide(folder, iid_dask.Touch()) as mosaic:
    ...     len(mosaic)
    2
    """
    if pairs is None and segments is None:
        raise TypeError("undo: say which, pairs= or segments=")
    place = as_folder(folder, storage_options)
    with claimed(str(place), "undo", storage_options=place.storage_options):
        found = load(place)
        rows = whole_numbers("pairs", pairs)
        wrong = rows[(rows < 0) | (rows >= len(found.evidence))]
        if len(wrong):
            raise IndexError(f"{place}: no row {wrong[0]} in the table of seams, which has {len(found.evidence)}")
        if segments is not None:
            rows = np.concatenate([rows, joins_within(place, found, whole_numbers("segments", segments))])
        manual, decision = found.evidence.manual.copy(), found.evidence.decision.copy()
        manual[rows], decision[rows] = True, False
        evidence = replace(found.evidence, manual=manual, decision=decision)
        _decide_again(place, found, evidence, None, names, groups, progress)
    return opened(place)


def _decide_again(
    folder: Folder,
    found: State,
    evidence: Evidence,
    rule: Rule | None,
    names: Lookup | None,
    groups: Lookup | None,
    progress: bool,
) -> None:
    job, was = load_job(folder), found.manifest["naming"]
    if found.manifest["job"] != job.id:
        raise IIDFormatError(folder.child(MANIFEST), "manifest", None, None, found.manifest["job"], f"job {job.id}")
    for what, value in (("names", names), ("groups", groups)):
        if was[what] and value is None:
            raise ValueError(f"{folder}: was finished with {what}=; labels may be others now, so give {what}= again")
    naming = Naming(names, bytes.fromhex(was["domain"]), groups)
    rule = from_json(found.manifest["rule"]) if rule is None else checked(rule, job)
    complete(folder, job, found.found, naming, decided(evidence, rule), rule, progress=progress)
