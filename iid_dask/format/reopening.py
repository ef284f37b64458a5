"""Readers that travel: pickled as what opens them, and opened at their first use, once a process."""

from __future__ import annotations

from dataclasses import astuple
from functools import cached_property
from typing import Any, Self, TypeVar, cast

from iid_dask.format.layout import Limits
from iid_dask.format.source import BytesSource, LocalSource, RemoteSource, Source
from iid_dask.once import Once


class cached(cached_property[Any]):
    """A cached property of a reader that may have to be opened first: that exchanges the dictionary of its values."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None:
            instance._open_now()
        return super().__get__(instance, owner)


class Reopened:
    """A reader of a source, equal to every other of the same version of it; pickles to what opens it.

    Attributes
    ----------
    source : Source
    verify_checksums : bool
    limits : Limits
    """

    def __init__(self, source: Source, *, verify: bool = True, limits: Limits | None = None) -> None:
        self.source, self.verify_checksums, self.limits = source, verify, limits or Limits()
        self._identity = source.identity()

    def __hash__(self) -> int:
        return hash(self._identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reopened) and self._identity == other._identity

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays opened from it open it again when they are computed."""
        if "_pending" not in self.__dict__:
            _readers.drop(lambda kept: kept.__dict__ is self.__dict__)
            self.source.close()

    def __reduce__(self) -> tuple[Any, ...]:
        kind, arguments = self.source.__reduce__()[:2]
        return _later, (type(self), kind, arguments, self.verify_checksums, self.limits)

    def __getattr__(self, name: str) -> Any:
        # Of an unpickled reader that was not used yet everything is missing; copies are made without their attributes.
        if "_pending" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._open_now()
        return getattr(self, name)

    def _open_now(self) -> None:
        """Become this process's reader of what an unpickled one stands for, and share all of its state."""
        pending = self.__dict__.get("_pending")
        if pending is not None:
            self.__dict__ = reopen(type(self), *pending).__dict__

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("iid_dask.IIDReader", self._identity, self.verify_checksums, astuple(self.limits))


# --- once a process ---------------------------------------------------------------------------------------------

_readers: Once[Reopened] = Once(64)

R = TypeVar("R", bound=Reopened)


def _later(reader: type[R], *pending: Any) -> R:
    """Stand for what a pickle names, unopened: schedulers unpickle graphs too, and need not reach the files."""
    made = reader.__new__(reader)
    made.__dict__["_pending"] = pending
    return made


def reopen(reader: type[R], kind: Any, arguments: tuple[Any, ...], verify: bool, limits: Limits) -> R:
    """Open what a pickle names, or return this process's reader of it."""
    if kind not in (LocalSource, RemoteSource, BytesSource):  # a caller's own, of which nothing is known
        return reader(kind(*arguments), verify=verify, limits=limits)
    token = (reader, kind, *(repr(a) if isinstance(a, dict) else a for a in arguments), verify, limits)
    return cast(R, _readers.get(token, lambda: reader(kind(*arguments), verify=verify, limits=limits)))
