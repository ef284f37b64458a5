"""Seams of a finished mosaic: their table, deciding again, and taking joins back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask.errors import IIDFormatError
from iid_dask.mosaic.evidence import SCHEMA, Evidence
from iid_dask.mosaic.finish import complete, opened
from iid_dask.mosaic.folder import MANIFEST, load_job
from iid_dask.mosaic.naming import Lookup, Naming
from iid_dask.mosaic.rules import IoU, Rule, Touch, checked, decided, edited, from_json, parse_rule, to_json
from iid_dask.mosaic.state import State, load
from iid_dask.mosaic.tables import SCHEMAS, read_table

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["IoU", "Rule", "Touch", "decide", "parse_rule", "seams_table", "undo"]


def seams_table(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the table of seams of a finished mosaic, to look at, or to edit and give to `decide`.

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

    found = load(Path(folder).expanduser())
    table = pd.DataFrame(found.evidence.columns())
    table.attrs["rule"] = found.manifest["rule"]
    return table


def decide(
    target: str | os.PathLike[str] | pd.DataFrame,
    rule: Rule | None = None,
    *,
    seams: pd.DataFrame | None = None,
    names: Lookup | None = None,
    groups: Lookup | None = None,
    progress: bool = False,
) -> Any:
    """Decide again who is one in a finished mosaic, from its table of seams; no tile is segmented again.

    Parameters
    ----------
    target
        Folder of a mosaic with ``stitch="touch"`` or ``"iou"``; or the table of its seams: then nothing is written,
        and the table comes back with the scores and decisions of the rule.
    rule : Touch or IoU, optional
        Default: the one that decided last.
    seams : DataFrame, optional
        The mosaic's table of seams, edited: rows whose ``manual`` is set, and those whose ``decision`` was changed,
        are decided by it, the others by the rule. Default: as the mosaic has it.
    names, groups : mapping or function, optional
        As in `finish`; needed again where they were given there, because labels may be others now.
    progress
        Show bars.

    Returns
    -------
    Mosaic, or DataFrame
        Open; or the table.

    Raises
    ------
    IIDStoreError
        If nothing is decided in this mosaic, or the table is another one's.
    ValueError
        If names or groups were given to `finish`, and are not here.
    """
    if not isinstance(target, str | os.PathLike):
        return _decided_table(target, rule)
    path = Path(target).expanduser()
    found = load(path)
    evidence = found.evidence if seams is None else edited(found.evidence, seams, str(path))
    _decide_again(path, found, evidence, rule, names, groups, progress)
    return opened(path)


def _decided_table(table: pd.DataFrame, rule: Rule | None) -> pd.DataFrame:
    missing = [name for name in SCHEMA if name not in table.columns]
    if missing:
        raise ValueError(f"table of seams: no column {missing[0]!r}; expected {', '.join(SCHEMA)}")
    chosen = from_json(table.attrs.get("rule")) if rule is None else rule
    evidence = decided(Evidence(**{name: table[name].to_numpy() for name in SCHEMA}), chosen)
    made = table.assign(score=evidence.score, decision=evidence.decision)
    made.attrs["rule"] = to_json(chosen)
    return made


def undo(
    folder: str | os.PathLike[str],
    *,
    pairs: Any = None,
    segments: Any = None,
    names: Lookup | None = None,
    groups: Lookup | None = None,
    progress: bool = False,
) -> Any:
    """Take joins back, for good: rules do not make them again.

    Parameters
    ----------
    folder
        With ``stitch="touch"`` or ``"iou"``.
    pairs : sequence of int, optional
        Rows of the table of seams.
    segments : sequence of int, optional
        Keys: all joins within each of these.
    names, groups, progress
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
    """
    path = Path(folder).expanduser()
    found = load(path)
    rows = np.asarray([] if pairs is None else pairs, np.int64)
    wrong = rows[(rows < 0) | (rows >= len(found.evidence))]
    if len(wrong):
        raise IndexError(f"{path}: no row {wrong[0]} in the table of seams, which has {len(found.evidence)}")
    if segments is not None:
        rows = np.concatenate([rows, _joins_within(path, found, np.asarray(segments, np.int64))])
    manual, decision = found.evidence.manual.copy(), found.evidence.decision.copy()
    manual[rows], decision[rows] = True, False
    evidence = replace(found.evidence, manual=manual, decision=decision)
    _decide_again(path, found, evidence, None, names, groups, progress)
    return opened(path)


def _joins_within(folder: Path, found: State, segments: np.ndarray) -> np.ndarray:
    """Rows of the table of seams that join pieces of these segments."""
    count = found.manifest["counts"]["segments"]
    wrong = segments[(segments < 0) | (segments >= count)]
    if len(wrong):
        raise KeyError(f"{folder}: no segment {wrong[0]}; keys are 0 … {count - 1}")
    wanted = ("tile", "key", "label")
    pieces = read_table(folder, found.manifest["tables"]["pieces"], SCHEMAS["pieces"], wanted)
    chosen = np.isin(pieces["label"].astype(np.int64) - 1, segments)
    held = pieces["tile"][chosen] << 32 | pieces["key"][chosen]
    ends = found.evidence.tile_a << 32 | found.evidence.key_a
    return np.flatnonzero(found.evidence.decision & np.isin(ends, held))


def _decide_again(
    folder: Path,
    found: State,
    evidence: Evidence,
    rule: Rule | None,
    names: Lookup | None,
    groups: Lookup | None,
    progress: bool,
) -> None:
    job, was = load_job(folder), found.manifest["naming"]
    if found.manifest["job"] != job.id:
        raise IIDFormatError(str(folder / MANIFEST), "manifest", None, None, found.manifest["job"], f"job {job.id}")
    for what, value in (("names", names), ("groups", groups)):
        if was[what] and value is None:
            raise ValueError(f"{folder}: was finished with {what}=; labels may be others now, so give {what}= again")
    naming = Naming(names, bytes.fromhex(was["domain"]), groups)
    rule = from_json(found.manifest["rule"]) if rule is None else checked(rule, job)
    complete(folder, job, found.found, naming, decided(evidence, rule), rule, progress=progress)
