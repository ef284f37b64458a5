"""One job at a time on a target: a small file beside it says who works on it, and that it still does."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from errno import EACCES, EPERM, EROFS
from typing import Any

from iid_dask.errors import IIDStoreError
from iid_dask.format.objects import local_path
from iid_dask.lock_places import LockFolder, LockObjects, LockPlace, split_local

BEAT = 20.0
"""Seconds between two signs of life."""

SILENT = 120.0
"""Seconds without one after which a job of another machine counts as dead."""

_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who works on a target, as its lock says.

    Attributes
    ----------
    target : str
        Path or URL.
    what : str
        The call that does.
    host : str
    pid : int
    started : str
        When the process began, in the ticks of its machine's clock; a pid that was given again has another.
    machine : str
        Boot of the machine and the space that the pid counts in; empty where the system does not tell.
    since : str
        When the lock was made, ISO 8601.
    token : str
        Sixteen hexadecimal digits that no other lock has.
    """

    target: str
    what: str
    host: str
    pid: int
    started: str
    machine: str
    since: str
    token: str

    @classmethod
    def here(cls, target: str, what: str) -> Holder:
        """Return this process."""
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        pid, token = os.getpid(), uuid.uuid4().hex[:16]
        return cls(target, what, socket.gethostname(), pid, _state(pid)[1], _machine(), since, token)

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Return what a lock says, or None if it is none of ours."""
        try:
            values = json.loads(data)
            holder = cls(**values)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = {**dict.fromkeys(asdict(holder), str), "pid": int}
        sound = all(type(value) is kinds[name] for name, value in values.items())
        return holder if sound and holder.pid > 0 and re.fullmatch("[0-9a-f]{16}", holder.token) else None

    def dump(self) -> bytes:
        """Return what the lock holds."""
        return json.dumps(asdict(self), indent=1).encode()


@contextmanager
def claimed(
    target: str | os.PathLike[str], what: str, *, storage_options: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Keep other jobs off a target while the block lasts.

    A file ``.NAME.lock`` beside the target names the process that works on it. It is removed at the end, also by an
    error; one of a process that was killed stays, and the next job takes it over: at once if the process ran on this
    machine and is gone, or when the lock has not been touched for two minutes by the clock of the file system, as its
    holder does every twenty seconds. Of several that take over at once, one does. Within the block the same thread
    may claim the target again, as a job does whose steps are jobs of their own.

    A lock spares work; results do not depend on it. Where it cannot be kept (a lock that somebody removed, a job that
    was stopped for minutes and goes on) every file still appears whole, with the bytes that its job alone decides.
    So a lock that is lost is a warning in the log, and where the folder beside the target cannot be written to there
    is none. On object stores the lock is made by a conditional PUT; where a store has none, it is looked for before
    and read back after, which two jobs that start within the same moment may both pass.

    Parameters
    ----------
    target : path or URL
        Of what the job writes, a file or a folder.
    what
        Name of the job, for whoever is refused.
    storage_options
        For the file system of a URL.

    Raises
    ------
    IIDStoreError
        If another job is at work on the target; says which, where, and since when.
    OSError
        With errno and path: no such folder, disk full, and so on.

    Examples
    --------
    >>> import os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with claimed(os.path.join(folder, "out.iid"), "to_iid"):
    ...     os.listdir(folder)
    ['.out.iid.lock']
    >>> os.listdir(folder)
    []
    """
    place, key, name = _place_of(target, storage_options)
    if key in _held.get():
        yield
        return
    lock, mine = lock_name(name), Holder.here(key, what)
    try:
        other = acquire(place, lock, mine)
    except OSError as error:
        if error.errno not in (EACCES, EPERM, EROFS):
            raise
        # A folder that is there may be written to although that which holds it may not.
        _log.warning("%s: no lock keeps other jobs off it: %s", key, error)
        yield
        return
    if other is not None:
        raise IIDStoreError(_refusal(place, lock, key, other))
    before = _held.set(_held.get() | {key})
    try:
        with _beating(place, lock, mine):
            yield
    finally:
        _held.reset(before)
        _release(place, lock, mine)


def lock_name(name: str) -> str:
    """Return the name of the lock of a file or folder; of 255 bytes, what is added to it meanwhile takes 44."""
    return f".{os.fsdecode(os.fsencode(name)[:210])}.lock"


def acquire(place: LockPlace, name: str, mine: Holder) -> Holder | None:
    """Make a lock, or take over that of a dead process; return its holder if it lives.

    Who takes over first makes a lock on the very lock that it found: of several one does, and who comes too late
    finds another lock than the one it looked at. That lock is made like any other, so also a process that dies while
    it takes over is taken over from.
    """
    while True:
        if place.create(name, mine.dump()):
            return None
        data = place.read(name)
        if data is None:
            continue  # given back just now
        found = Holder.parse(data)
        if _token(data) == mine.token:
            return None  # the answer to an earlier attempt was lost
        if is_alive(found, lambda: place.silence(name)):
            return found or _unknown(place, name)
        claim = f"{name}.{_token(data)}"
        other = acquire(place, claim, mine)
        if other is not None:
            return other
        try:
            if _token(place.read(name)) == _token(data):
                place.replace(name, mine.dump())
                return None
        finally:
            place.remove(claim)


def is_alive(holder: Holder | None, silence: Callable[[], float]) -> bool:
    """Whether the process of a lock is at work.

    Parameters
    ----------
    holder
        None: the lock cannot be read.
    silence
        Gives the seconds since the lock was touched; asked only where the process cannot be looked at.
    """
    if holder is not None and holder.machine and (holder.host, holder.machine) == (socket.gethostname(), _machine()):
        state, started = _state(holder.pid)
        return state not in "ZX" and started in ("", holder.started)
    return silence() < SILENT


# --- looking at processes ---------------------------------------------------------------------------------------


def _machine() -> str:
    """Return what two processes share that see each other by pid; empty where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, str]:
    """Return a process's state ("X" if there is none, "R" if it hides) and when it began, in ticks, or nothing."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name before it may hold spaces and brackets.
            fields = file.read().rpartition(b")")[2].decode().split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        pass
    if not _machine():
        return "R", ""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return "X", ""
    except PermissionError:
        pass
    return "R", ""


# --- keeping and giving back ------------------------------------------------------------------------------------


@contextmanager
def _beating(place: LockPlace, name: str, mine: Holder) -> Iterator[None]:
    """Touch a lock from time to time while the block lasts."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            try:
                if _token(place.read(name)) != mine.token:
                    _say_lost(place, name, mine)
                    return
                place.touch(name, mine.dump())
            except Exception as error:
                _log.warning("%s: its lock could not be touched: %s", mine.target, error)

    thread = threading.Thread(target=beat, name=f"lock of {mine.target}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # a last touch must not bring back a lock that is given back


def _release(place: LockPlace, name: str, mine: Holder) -> None:
    # What the block did stands, also where its lock cannot be reached any more.
    try:
        if _token(place.read(name)) == mine.token:
            place.remove(name)
        else:
            _say_lost(place, name, mine)
    except Exception as error:
        _log.warning("%s: its lock could not be removed: %s", mine.target, error)


def _say_lost(place: LockPlace, name: str, mine: Holder) -> None:
    data = place.read(name)
    now = "is gone" if data is None else f"was taken over by {_described(Holder.parse(data) or _unknown(place, name))}"
    _log.warning("%s: the lock of this %s %s; another job may be at work on it", mine.target, mine.what, now)


def _token(data: bytes | None) -> str:
    """Return what tells a lock from all others, also one that is none of ours; empty for none."""
    if data is None:
        return ""
    holder = Holder.parse(data)
    return uuid.uuid5(uuid.NAMESPACE_OID, data.hex()).hex[:16] if holder is None else holder.token


def _unknown(place: LockPlace, name: str) -> Holder:
    return Holder(place.path(name), "something", "an unknown host", 0, "", "", "an unknown time", "")


def _described(holder: Holder) -> str:
    return f"{holder.what}, process {holder.pid} on {holder.host}, since {holder.since}"


def _refusal(place: LockPlace, name: str, target: str, other: Holder) -> str:
    here = (socket.gethostname(), _machine())
    if other.machine and (other.host, other.machine) == here:
        how = "end that process" if other.pid != os.getpid() else "it is a thread of this very process"
    else:
        with suppress(FileNotFoundError):
            ago = f"; its last sign of life was {max(0.0, place.silence(name)):.0f} s ago"
            return (
                f"{target}: another job is at work on it: {_described(other)}{ago}, expected none: let it end. If it "
                f"was killed, call again when {SILENT:.0f} s without a sign have passed, or remove {place.path(name)}"
            )
        how = "it ends just now"
    return (
        f"{target}: another job is at work on it: {_described(other)}, expected none: let it end ({how}), then call "
        f"again; what says so is {place.path(name)}"
    )


def _place_of(target: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> tuple[LockPlace, str, str]:
    """Return where locks of a target are, the target's full path, and its name."""
    path = local_path(target)
    if path is None:
        key = os.fsdecode(os.fspath(target)).rstrip("/")
        return LockObjects.of(key, storage_options or {}), key, key.rpartition("/")[2]
    folder, name = split_local(path)
    return LockFolder(folder), os.path.join(folder, name), name
