"""Columns from the metadata of files: which, of what type, and what a file has in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iid_dask.errors import IIDFormatError
from iid_dask.format.sections import brief

SIZE = ("image.height", "image.width")
"""Paths whose values are integers: what is none is no size."""


@dataclass(frozen=True)
class Metadata:
    """Columns made from the metadata; a path's dots lead into nested objects.

    Attributes
    ----------
    kinds : dict
        Path -> Arrow type.
    typed : frozenset of str
        Paths whose type the caller set: a value that does not fit is an error, not null.
    """

    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, paths: str | Iterable[str] | Mapping[str, Any] | None) -> Metadata:
        """Check what a caller asks for: one path, several, or a mapping path -> dtype.

        Raises
        ------
        TypeError, ValueError
        """
        if paths is None:
            return cls()
        if isinstance(paths, Mapping):
            return cls({_path(name): _arrow_type(name, dtype) for name, dtype in paths.items()}, frozenset(paths))
        if isinstance(paths, bytes) or not isinstance(paths, Iterable):
            raise TypeError(
                f"metadata = {brief(paths)}: expected paths such as 'camera.model', or a mapping path -> dtype"
            )
        names = [_path(name) for name in ([paths] if isinstance(paths, str) else paths)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"metadata: {brief(name)} twice, expected every path once")
        return cls({name: pa.int64() if name in SIZE else pa.large_string() for name in names})

    def values(self, file: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return a file's value of every column, None where it has none.

        Raises
        ------
        IIDFormatError
            For a value that is not of the type that the caller set.
        """
        return {path: self.value(file, metadata, path) for path in self.kinds}

    def value(self, file: str, metadata: Mapping[str, Any], path: str) -> Any:
        """Return a file's value of one column, as `values` does."""
        kind, value = self.kinds[path], look_up(metadata, path)
        if value is None:
            return None
        if path in self.typed:
            return _converted(file, path, value, kind)
        if path in SIZE:
            fits = isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
            return value if fits else None
        return as_text(value)


def look_up(metadata: Mapping[str, Any], path: str) -> Any:
    """Follow a path into metadata; None where it leads nowhere.

    Examples
    --------
    >>> look_up({"camera": {"model": "X1"}}, "camera.model"), look_up({"camera": 7}, "camera.model")
    ('X1', None)
    """
    value: Any = metadata
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def as_text(value: Any) -> str:
    """Return a JSON string as it is, any other JSON value as JSON text."""
    return value if isinstance(value, str) else json.dumps(value)


def _path(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"metadata: {brief(name)} is {type(name).__name__}, expected a path such as 'camera.model'")
    return name


def _arrow_type(path: str, dtype: Any) -> pa.DataType:
    try:
        kind = dtype if isinstance(dtype, pa.DataType) else pd.api.types.pandas_dtype(dtype)
        if isinstance(kind, pd.ArrowDtype):
            kind = kind.pyarrow_dtype
        if isinstance(kind, np.dtype) and kind.kind not in "OSU":
            kind = pa.from_numpy_dtype(kind)
    except (TypeError, pa.ArrowException) as error:
        raise TypeError(f"metadata: {brief(path)}: {brief(dtype)} is no dtype") from error
    if isinstance(kind, pd.StringDtype) or kind in (pa.string(), pa.large_string(), pa.string_view()):
        return pa.large_string()
    if isinstance(kind, pa.DataType):
        return kind
    raise TypeError(
        f"metadata: {brief(path)}: {brief(dtype)} has no Arrow type; expected for example 'int64' or 'float64'"
    )


def _converted(file: str, path: str, value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_large_string(kind):
        return as_text(value)
    try:
        # True is no 1 in JSON, nor is a list a number.
        if isinstance(value, bool) != pa.types.is_boolean(kind) or isinstance(value, list | dict):
            raise TypeError
        return pa.array([value]).cast(kind)[0].as_py()
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise IIDFormatError(file, "meta", None, None, f"{path} = {brief(value)}", f"a value of type {kind}") from error
