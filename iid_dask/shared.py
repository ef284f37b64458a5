"""Whether all workers of a cluster see a folder, asked before a job begins and not found out after an hour."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from iid_dask.errors import IIDStoreError
from iid_dask.format.objects import local_path
from iid_dask.running import client_in_scope

PATIENCE = 5.0
"""Seconds that a file server may take to show one machine what another one wrote."""


def check_seen(folder: str | os.PathLike[str]) -> None:
    """Make sure that all workers of the distributed client in scope read and write a folder, if there is one.

    This process writes a small file there, and every worker one beside it with the same content, which this process
    reads. All are removed. A job without a client runs on this machine, and URLs are reached from everywhere: for
    these nothing is done.

    Parameters
    ----------
    folder
        That is there, or a URL.

    Raises
    ------
    IIDStoreError
        If a worker does not see the folder, sees another one, or cannot write there; names folder and workers.
    OSError
        With errno and path, if this process cannot write there.

    Examples
    --------
    >>> import tempfile
    >>> check_seen(tempfile.mkdtemp())  # no client: nothing to ask
    """
    path, client = local_path(folder), client_in_scope()
    if client is None or path is None:
        return
    path = os.path.abspath(os.path.expanduser(path))
    token = uuid.uuid4().hex
    probe = os.path.join(path, f".iid.{token[:16]}.probe")
    _write(probe, token)
    try:
        # By the workers' event loops: those that are busy answer, too.
        answers = client.run(answer, probe, token, on_error="return")
        unseen = _unseen(answers, token)
        unseen = {worker: why for worker, why in unseen.items() if worker in client.nthreads()}
    finally:
        for name in os.listdir(path):
            if name.startswith(os.path.basename(probe)):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(path, name))
    if unseen:
        raise IIDStoreError(_words(path, unseen, len(answers)))


def answer(probe: str, token: str) -> tuple[str, str]:
    """Read a probe and write an answer beside it, on a worker.

    Parameters
    ----------
    probe
        Path.
    token
        What it must hold.

    Returns
    -------
    (path, what is wrong)
        One of them is empty.
    """
    host = socket.gethostname()
    try:
        found = _read_soon(probe)
        if found != token:
            return "", f"host {host}: another folder is there"
        path = f"{probe}.{uuid.uuid4().hex}"
        _write(path, token)
    except OSError as error:
        return "", f"host {host}: {error.strerror}: {error.filename}"
    return path, ""


def _unseen(answers: Mapping[str, Any], token: str) -> dict[str, str]:
    """Return what is wrong with each worker that does not see what this process sees."""
    wrong, start = {}, time.monotonic()
    for worker, said in answers.items():
        if isinstance(said, BaseException):
            wrong[worker] = f"{type(said).__name__}: {said}"
            continue
        path, why = said
        try:
            if why or _read_soon(path, start) != token:
                wrong[worker] = why or f"{path} holds something else"
        except OSError:
            wrong[worker] = "what it writes there is not seen here"
    return wrong


def _read_soon(path: str, start: float | None = None) -> str:
    """Read a file that somebody else has written just now, or at a time of this process's clock."""
    start = time.monotonic() if start is None else start
    while True:
        try:
            with open(path) as file:
                return file.read(1000)
        except FileNotFoundError:
            # Without the folder the file will not come either.
            if not os.path.isdir(os.path.dirname(path)) or time.monotonic() - start > PATIENCE:
                raise
        time.sleep(0.05)


def _write(path: str, token: str) -> None:
    try:
        with open(path, "x") as file:
            file.write(token)
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


def _words(folder: str, unseen: Mapping[str, str], workers: int) -> str:
    some = "; ".join(f"{worker} ({why})" for worker, why in list(unseen.items())[:3])
    more = f"; and {len(unseen) - 3} more" if len(unseen) > 3 else ""
    return (
        f"{folder}: {len(unseen)} of {workers} workers do not see this folder as this process does: {some}{more}; "
        "expected one that all of them read and write: give a path on a file system that all machines share (scratch= "
        "for the tiles of to_iid)"
    )
