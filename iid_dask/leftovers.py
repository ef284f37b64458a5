"""What killed jobs left in a folder: found by name and content, told from what live jobs use, and removed."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from iid_dask.errors import IIDStoreError
from iid_dask.lock_places import LockFolder
from iid_dask.locks import Holder, acquire, claimed, is_alive, lock_name

QUIET = 3600.0
"""Seconds without a change after which what has no lock counts as left; array jobs, for one, work without."""

GRACE = 60.0
"""Seconds by which the last change of a job may follow the last sign of life in its lock."""

Fate = Literal["remove", "put in place", "keep"]


@dataclass(frozen=True)
class Leftover:
    """Something that a job left, or that a live one uses.

    Attributes
    ----------
    path : Path
    fate : {"remove", "put in place", "keep"}
        What `clean` does with it.
    why : str
        What it is, and the reason.
    targets : tuple of Path
        What no other job may work on meanwhile; the first is where it is put.
    """

    path: Path
    fate: Fate
    why: str
    targets: tuple[Path, ...] = field(default=())


def clean(folder: str | os.PathLike[str], *, dry_run: bool = False) -> list[str]:
    """Remove what killed jobs left in a folder.

    These are temporary files that no living process has locked; tiles of `to_iid` (``.NAME.JOB.scratch``); stores
    that `to_zarr` had begun beside their target; and locks of dead processes. What a job that is at work uses stays,
    and so does all that has not exactly the names and the content that this package gives. Tiles of an interrupted
    call are what it would continue from: without them it begins anew.

    A store that was whole and was not given its name yet, because the job was killed between two renames, is given
    it; the same holds for the old one if the new one is not there. If another store has the name, both are kept.

    Parameters
    ----------
    folder
        On this machine's file systems. Folders in it are not looked into. On object stores the
        next job on the same target takes over what a killed one left there: its lock, its parts and its tiles.
    dry_run
        Only say what would be done.

    Returns
    -------
    list of str
        Paths that were removed or given their name, sorted.

    Raises
    ------
    OSError
        If there is no such folder, or something cannot be removed.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> half = os.path.join(folder, ".out.iid.0123abcd.tmp")
    >>> open(half, "wb").close()
    >>> os.utime(half, (0, 0))
    >>> clean(folder) == [half]
    True
    >>> os.listdir(folder)
    []
    """
    return sorted(str(found.path) for found, done in cleaned(folder, dry_run=dry_run) if done)


def cleaned(folder: str | os.PathLike[str], *, dry_run: bool) -> Iterator[tuple[Leftover, bool]]:
    """Do what `clean` does, and yield everything that was found, and whether it was, or would be, removed or named."""
    for found in leftovers(folder):
        yield found, found.fate != "keep" and (dry_run or _carry_out(found))


def leftovers(folder: str | os.PathLike[str]) -> list[Leftover]:
    """Return everything in a folder that jobs make for a time, and what becomes of it; in the order of doing it."""
    root = Path(os.path.realpath(os.path.expanduser(folder)))
    found = [leftover for name in sorted(os.listdir(root)) for leftover in _judged(root, name)]
    # What an old store gives way to stands before it is removed; a dead job's lock tells of all else that it left.
    return sorted(found, key=lambda leftover: (leftover.fate != "put in place", ".lock" in leftover.path.name))


def _carry_out(found: Leftover) -> bool:
    """Do what was decided; False if a job is at work meanwhile."""
    path, place = found.path, LockFolder(str(found.path.parent))
    if _LOCK.fullmatch(path.name):
        mine = Holder.here(str(path), "clean")
        if acquire(place, path.name, mine) is not None:
            return False
        place.remove(path.name)
        return True
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    with ExitStack() as stack:
        try:
            for target in found.targets:
                stack.enter_context(claimed(target, "clean"))
        except IIDStoreError:
            return False
        if found.fate == "put in place":
            os.rename(path, found.targets[0])
        else:
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
    return True


# --- what it is -------------------------------------------------------------------------------------------------

_HEX = "[0-9a-f]"
_LOCK = re.compile(rf"\..+\.lock(\.{_HEX}{{16}})*", re.DOTALL)
_FOLDER = rf"\.(?P<target>.+)\.(?P<job>{_HEX}{{%s}})\.%s"


def _judged(root: Path, name: str) -> Iterator[Leftover]:
    """Yield what a name in a folder is, if it is one of ours."""
    path = root / name
    if path.is_symlink():
        return
    for pattern, judge in _KINDS:
        match = pattern.fullmatch(name)
        if match:
            with suppress(FileNotFoundError):  # gone just now
                found = judge(path, match)
                if found is not None:
                    yield found
            return


def _temporary(path: Path, match: re.Match[str]) -> Leftover | None:
    if path.is_dir():
        return _by_lock(path, match["target"], "a store that a job had begun") if _is_store(path) else None
    if not path.is_file():
        return None
    if _is_locked(path):
        return Leftover(path, "keep", "a file that a process is writing")
    # Not locked says little: other programs give such names, and locks of other machines may not be seen here.
    return _by_lock(path, match["target"], "a file that a process was writing")


def _scratch(path: Path, match: re.Match[str]) -> Leftover | None:
    own = re.compile(rf"\..*|tiles|cuts|job\.json|input\.txt|mosaic\.json|\w+-{_HEX}{{16}}\.parquet")
    if not path.is_dir() or not all(map(own.fullmatch, os.listdir(path))):
        return None
    return _by_lock(path, match["target"], "tiles that an interrupted call would continue from", path)


def _begun(path: Path, match: re.Match[str]) -> Leftover | None:
    what = "a store that an interrupted call would continue from"
    return _by_lock(path, match["target"], what) if _is_store(path) else None


def _whole(path: Path, match: re.Match[str]) -> Leftover | None:
    record, final = _record(path), path.parent / match["target"]
    if record is None:
        return None
    if _last_sign(path.parent, match["target"]) == math.inf:
        return Leftover(path, "keep", "a whole store of a job that is at work")
    if not final.exists():
        return Leftover(path, "put in place", "a whole store whose job was killed before it was named", (final,))
    there = _record(final) or {}
    if there.get("complete") and there.get("fingerprint") == record["fingerprint"]:
        return _by_lock(path, match["target"], f"a whole store like that of {final.name}")
    return Leftover(path, "keep", f"a whole store that was to replace {final.name}: rename it to that, or remove it")


def _old(path: Path, match: re.Match[str]) -> Leftover | None:
    final = path.parent / match["target"]
    if not _is_store(path):
        return None
    if _last_sign(path.parent, match["target"]) == math.inf:
        return Leftover(path, "keep", "a store that a job at work is replacing")
    if final.exists() or _record(path.with_name(f".{match['target']}.{match['job']}.whole")) is not None:
        return Leftover(path, "remove", "a store that was replaced", (final,))
    return Leftover(path, "put in place", "a store whose successor is not there", (final,))


def _lock(path: Path, match: re.Match[str]) -> Leftover | None:
    place = LockFolder(str(path.parent))
    holder = Holder.parse(place.read(path.name) or b"") if path.is_file() else None
    if holder is None:
        return None
    words = f"lock of {holder.what}, process {holder.pid} on {holder.host}"
    if is_alive(holder, lambda: place.silence(path.name)):
        return Leftover(path, "keep", f"{words}, which is at work")
    return Leftover(path, "remove", f"{words}, which is gone")


def _passing(path: Path, match: re.Match[str]) -> Leftover | None:
    if not path.is_file():
        return None
    if _age(path) < QUIET:
        return Leftover(path, "keep", "a file that is there for a moment, made within the last hour")
    return Leftover(path, "remove", "a file that is there for a moment, made long ago")


_KINDS: tuple[tuple[re.Pattern[str], Callable[[Path, re.Match[str]], Leftover | None]], ...] = (
    (re.compile(rf"\..+\.lock(\.{_HEX}{{16}})+\.tmp", re.DOTALL), _passing),
    (re.compile(rf"\.iid\.{_HEX}{{16}}\.probe(\.\w+)?"), _passing),
    (_LOCK, _lock),
    (re.compile(_FOLDER % ("8", "tmp"), re.DOTALL), _temporary),
    (re.compile(_FOLDER % ("16", "scratch"), re.DOTALL), _scratch),
    (re.compile(_FOLDER % ("16", "new"), re.DOTALL), _begun),
    (re.compile(_FOLDER % ("32", "whole"), re.DOTALL), _whole),
    (re.compile(_FOLDER % ("32", r"\d+\.old"), re.DOTALL), _old),
)


def _is_store(path: Path) -> bool:
    """Whether a folder is a Zarr store, or what is left of one that was being made or removed."""
    if not path.is_dir():
        return False
    files = [entry.name for entry in os.scandir(path) if not entry.is_dir()]
    if files:
        return any(name.startswith("zarr.json") for name in files)
    # Metadata of arrays, and chunks, which have numbers for names.
    below = (name for _, _, names in os.walk(path) for name in names)
    return all(re.fullmatch(r"zarr\.json.*|zarr\..*\.partial|c|\d+(\..*)?", name) for name in below)


def _record(store: Path) -> dict[str, Any] | None:
    """Return what to_zarr notes in a store, or None if it did not write it."""
    try:
        record = json.loads((store / "zarr.json").read_bytes())["attributes"]["iid_dask"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if isinstance(record, dict) and "fingerprint" in record else None


# --- whether a job is at work -----------------------------------------------------------------------------------


def _last_sign(root: Path, target: str) -> float | None:
    """Return the time of the last sign of life of a job, infinite if it is at work; None if there is no lock."""
    place, name = LockFolder(str(root)), lock_name(target)
    try:
        data = place.read(name)
        if data is None:
            return None
        if is_alive(Holder.parse(data), lambda: place.silence(name)):
            return math.inf
        return os.stat(place.path(name)).st_mtime
    except FileNotFoundError:
        return None
    except OSError:  # a folder or link of that name, or one that may not be read
        return math.inf


def _by_lock(path: Path, target: str, what: str, *own: Path) -> Leftover:
    """Judge a folder by the locks of its job's target, and of its own; or else by the time of its last change."""
    targets = (path.parent / target, *own)
    signs = [sign for sign in (_last_sign(one.parent, one.name) for one in targets) if sign is not None]
    if math.inf in signs:
        return Leftover(path, "keep", f"{what}: it is at work")
    if signs and _changed(path) <= max(signs) + GRACE:
        return Leftover(path, "remove", f"{what}: it was killed", targets)
    if _age(path) < QUIET:
        return Leftover(path, "keep", f"{what}: changed within the last hour, and no lock tells whether it is at work")
    return Leftover(path, "remove", f"{what}: not changed for an hour", targets)


def _age(path: Path) -> float:
    """Return the seconds since the last change below a path, by the clock of its file system."""
    probe = path.parent / f".iid.{os.urandom(8).hex()}.probe"
    try:
        probe.touch(exist_ok=False)
    except OSError:  # a folder that may not be written; nothing is removed there
        return time.time() - _changed(path)
    try:
        return probe.stat().st_mtime - _changed(path)
    finally:
        probe.unlink()


def _changed(path: Path) -> float:
    """Return the time of the last change below a path."""
    latest = path.lstat().st_mtime
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(FileNotFoundError):
                latest = max(latest, os.lstat(os.path.join(folder, name)).st_mtime)
    return latest


def _is_locked(path: Path) -> bool:
    """Whether a process has locked a file; also where the system cannot tell."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
