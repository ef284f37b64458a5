"""Faults of storage: which may pass, how long to wait for that, and what is said when they do not."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Mapping
from typing import Any

from iid_dask.errors import IIDChangedError

ATTEMPTS = 5
"""Times that something is read before its fault is taken for lasting."""

FIRST_WAIT = 0.2
"""Most seconds before the second attempt; before each later one it is twice as many."""

PATIENCE = 60.0
"""Seconds after which no attempt begins: libraries below have attempts of their own, some 25 and more."""

_NUMBERS = (
    "EIO ESTALE EINTR EAGAIN EBUSY ETIMEDOUT EREMOTEIO ENOBUFS ECONNABORTED ECONNREFUSED ECONNRESET EPIPE "
    "ENOTCONN ESHUTDOWN ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH"
)
PASSING = frozenset(getattr(errno, name) for name in _NUMBERS.split() if hasattr(errno, name))
"""Error numbers of disks, mounted servers and connections that may pass; not every system has all."""

PASSING_STATUS = frozenset((408, 429, 500, 502, 503, 504))
"""The same for answers of servers."""

BROKEN = frozenset(
    {
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "ConnectionError",  # botocore's too
        "HTTPClientError",
        "HTTPException",  # http.client
        "IncompleteReadError",
        "ProtocolError",  # urllib3
        "RequestException",  # requests
        "ResponseParserError",
        "gaierror",  # socket: a name that was not found now
    }
)
"""Classes of errors of connections that broke or were not made; of libraries that need not be here."""

# Not the generator that a caller may have seeded, nor one that workers have copies of.
_dice = random.SystemRandom()


class Patience:
    """The attempts at one read: `ATTEMPTS` of them, begun within `PATIENCE` seconds."""

    def __init__(self) -> None:
        self.tried = 1
        self._until = time.monotonic() + PATIENCE

    def wait(self) -> bool:
        """Wait before another attempt; False at once if there is to be none.

        The time is random, from none on: many workers that met one fault do not come back as one.
        """
        if self.tried >= ATTEMPTS or time.monotonic() >= self._until:
            return False
        time.sleep(_dice.uniform(0, FIRST_WAIT * 2 ** (self.tried - 1)))
        self.tried += 1
        return True


def changed(name: str) -> IIDChangedError:
    """Say that a file is not the one that was opened."""
    return IIDChangedError(f"{name}: changed since opened; open it again")


def short(name: str, offset: int, wanted: int, got: int) -> IIDChangedError:
    """Say that a file ends before it did."""
    return IIDChangedError(
        f"{name}: changed since opened: {got} of {wanted} bytes are left at offset {offset}; open it again"
    )


def unread(name: str, what: str, tried: int, error: BaseException) -> OSError:
    """Say what could not be read, and why, when no attempt is left.

    Examples
    --------
    >>> raise unread("a.iid", "12 bytes at offset 48", 4, OSError(5, "Input/output error"))
    Traceback (most recent call last):
    OSError: [Errno 5] 12 bytes at offset 48 could not be read in 4 attempts: Input/output error: 'a.iid'
    """
    error = _behind(error)
    number = getattr(error, "errno", None)
    cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
    times = "1 attempt" if tried == 1 else f"{tried} attempts"
    # Numbers of failed look-ups of names are not the system's, and one may mean there that a file is missing.
    known = number if number in PASSING else errno.EIO
    return OSError(known, f"{what} could not be read in {times}: {cause}", name)


def may_pass(error: BaseException) -> bool:
    """Whether what failed may succeed when it is tried again.

    Examples
    --------
    >>> may_pass(ConnectionResetError()), may_pass(PermissionError())
    (True, False)
    """
    error = _behind(error)
    status = _status(error)
    if status is None:
        if isinstance(error, TimeoutError | ConnectionError | EOFError) or _is_broken(error):
            return True
        status = _status(error.__cause__)  # fsspec and s3fs raise an error of the system's from the server's answer
    if status is not None:
        return status in PASSING_STATUS
    return isinstance(error, OSError) and error.errno in PASSING


def _behind(error: BaseException) -> BaseException:
    """Return why a file is missing, where it is told; fsspec's HTTP says so of servers that did not answer, too."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _is_broken(error: BaseException) -> bool:
    return not BROKEN.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _status(error: BaseException | None) -> int | None:
    """Return the status of the answer that an error is about."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((error, "status"), (error, "code"), (response, "status_code")):
        status = getattr(holder, name, None)
        if isinstance(status, int):
            return status
    return None
