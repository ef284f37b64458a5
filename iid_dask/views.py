"""How a file is seen, and which of its pixels are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.reader import RecordReader
from iid_dask.lookup import find_names, members

OVERLAPS = ("last", "first", "smallest", "largest", "raise")
REDUCES = ("nearest", "any")

Overlap = Literal["last", "first", "smallest", "largest", "raise"]


@dataclass(frozen=True)
class Selection:
    """Which entries are painted: those that pass every filter; None passes all.

    Attributes
    ----------
    keys : tuple of int, optional
    groups : tuple of str, optional
        Members of any of them.
    domains, addresses : tuple of bytes, optional
    area : (min, max), optional
        Pixels, both included; None is no bound.
    """

    keys: tuple[int, ...] | None = None
    groups: tuple[str, ...] | None = None
    domains: tuple[bytes, ...] | None = None
    addresses: tuple[bytes, ...] | None = None
    area: tuple[int | None, int | None] | None = None

    def resolve(self, reader: RecordReader) -> np.ndarray:
        """Return a bool array, one element a row of the lut.

        Raises
        ------
        KeyError
            For a key, group, domain or address that the file does not have; says what it has.
        """
        keep = reader.live.copy()
        if self.keys is not None:
            for key in self.keys:
                reader[key]
            keep &= _only(keep, list(self.keys))
        if self.groups is not None:
            keep &= _only(keep, members(reader, self.groups))
        for what, wanted in (("domain", self.domains), ("address", self.addresses)):
            if wanted is not None:
                keep &= _only(keep, _bearing(reader, what, wanted))
        if self.area is not None:
            low, high = self.area
            areas = reader.columns.areas
            keep &= (areas >= (0 if low is None else low)) & (areas <= (2**63 - 1 if high is None else high))
        return keep


def _only(like: np.ndarray, keys: Any) -> np.ndarray:
    chosen = np.zeros_like(like)
    chosen[keys] = True
    return chosen


def _bearing(reader: RecordReader, what: str, wanted: Sequence[bytes]) -> np.ndarray:
    """Return the keys of entries with one of some domains or addresses, of which each must occur."""
    text, starts, middles, stops = reader.name_spans()
    spans = (starts, middles) if what == "domain" else (middles, stops)
    found = find_names(text, *spans, wanted)
    missing = np.setdiff1d(np.arange(len(set(wanted))), found)
    if len(missing):
        some = sorted({text[a:b] for a, b in zip(*(span.tolist() for span in spans), strict=True)})[:5]
        name = sorted(set(wanted))[missing[0]]
        raise KeyError(f"{reader.name}: no entry has the {what} {name!r}; some that exist: {some}")
    return reader.entry_keys[found >= 0]


ALL = Selection()


@dataclass(frozen=True)
class View:
    """How a file is seen as arrays.

    Attributes
    ----------
    reader : RecordReader
    shape : (rows, cols)
        Of the image at full resolution; pixels beyond it are cut.
    overlap : {"last", "first", "smallest", "largest", "raise"}
        Who wins a pixel that more than one entry covers: the highest key, the lowest, the smallest or largest
        area (ties to the higher key), or nobody (IIDOverlapError).
    stride, reduce
        One element for stride × stride pixels: "nearest" samples pixel min(i * stride + stride // 2, H - 1),
        "any" lets every entry with a pixel in the block cover it.
    selection : Selection
    labels : unsigned integer array, shape (rows of the lut,), optional
        What is painted for each key; default key + 1 as uint32.
    """

    reader: RecordReader
    shape: tuple[int, int]
    overlap: Overlap = "last"
    stride: int = 1
    reduce: Literal["nearest", "any"] = "nearest"
    selection: Selection = ALL
    labels: np.ndarray | None = field(default=None, compare=False)

    @property
    def out_shape(self) -> tuple[int, int]:
        """Rows and columns of the arrays."""
        return -(-self.shape[0] // self.stride), -(-self.shape[1] // self.stride)

    @property
    def label_dtype(self) -> np.dtype:
        """Of the painted labels."""
        return np.dtype(np.uint32) if self.labels is None else self.labels.dtype

    @property
    def depth_dtype(self) -> np.dtype:
        """Wide enough for every entry covering one pixel."""
        return np.dtype(np.uint16 if len(self.reader.live) <= 65_535 else np.uint32)

    @cached_property
    def keep(self) -> np.ndarray | None:
        """Bool array, one element a row of the lut; None if every entry is painted."""
        if self.selection == ALL:
            return None
        return self.reader.remember(self.selection, lambda: self.selection.resolve(self.reader))

    @cached_property
    def keys(self) -> np.ndarray:
        """Keys of the entries painted, ascending uint32."""
        if self.keep is None:
            return self.reader.entry_keys
        return np.flatnonzero(self.keep).astype(np.uint32)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        labels = None
        if self.labels is not None:
            labels = (self.labels.dtype.str, hashlib.blake2b(self.labels.tobytes(), digest_size=16).hexdigest())
        reader, selection = self.reader.__dask_tokenize__(), astuple(self.selection)
        return ("iid_dask.View", reader, self.shape, self.overlap, self.stride, self.reduce, selection, labels)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


# --- which pixels are wanted ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """All pixels of a box, or all blocks of one where the view reduces with "any"."""

    box: BBox

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return self.box.shape


@dataclass(frozen=True, eq=False)
class Samples:
    """The pixels at every pair of some rows and columns (ascending int64 arrays)."""

    rows: np.ndarray
    cols: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return len(self.rows), len(self.cols)


@dataclass(frozen=True, eq=False)
class Points:
    """The pixels (rows[i], cols[i]), by ascending row; the array has one column."""

    rows: np.ndarray
    cols: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Of the array."""
        return len(self.rows), 1


Target = Window | Samples | Points


def sampled(view: View, indices: np.ndarray, axis: int) -> np.ndarray:
    """Return the image rows (axis 0) or columns (axis 1) that elements of the view's arrays show."""
    return np.minimum(indices * view.stride + view.stride // 2, view.shape[axis] - 1)
