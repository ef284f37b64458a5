"""What tasks of a measurement share, and what may be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from iid_dask.format.reader import RecordReader

INTENSITY = ("mean", "min", "max", "sum", "std", "count")
"""Properties of an image under a mask; each is a column."""

SHAPE = {
    "area": ("area",),
    "centroid": ("centroid_row", "centroid_col"),
    "bbox": ("min_row", "min_col", "max_row", "max_col"),
    "perimeter": ("perimeter",),
    "holes": ("holes",),
    "eccentricity": ("eccentricity",),
}
"""Properties of a mask, and their columns."""


@dataclass(frozen=True, eq=False)
class Job:
    """A measurement; one a graph, whatever the number of its tasks.

    Attributes
    ----------
    reader : RecordReader
    properties : tuple of str
    keys : uint32 array, optional
        Entries that are measured, ascending; None for all.
    shape : (rows, columns)
        Of the image; pixels beyond it are cut.
    dtype : numpy.dtype
        Of the values that are measured; see `iid_dask.measurements.sums.measured_dtype`.
    channels : int, optional
        Of the image; None for one of two dimensions.
    """

    reader: RecordReader
    properties: tuple[str, ...]
    keys: np.ndarray | None = None
    shape: tuple[int, int] = (0, 0)
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    channels: int | None = None

    @property
    def of_image(self) -> bool:
        """Whether pixels of the image are needed."""
        return any(name in INTENSITY for name in self.properties)

    @property
    def of_masks(self) -> bool:
        """Whether properties of the masks alone are asked for."""
        return any(name in SHAPE for name in self.properties)

    @property
    def all_keys(self) -> np.ndarray:
        """Keys that are measured, ascending uint32."""
        return self.reader.entry_keys if self.keys is None else self.keys


def as_properties(properties: str | Iterable[str]) -> tuple[str, ...]:
    """Return property names as a tuple.

    Raises
    ------
    ValueError
        For one that is not known, one that comes twice, or none at all; says which there are.
    """
    names = (properties,) if isinstance(properties, str) else tuple(properties)
    known = ", ".join((*INTENSITY, *SHAPE))
    if not names:
        raise ValueError(f"measure: no properties; expected some of: {known}")
    for name in names:
        if not isinstance(name, str) or name not in (*INTENSITY, *SHAPE):
            raise ValueError(f"measure: no property {name!r}; there is: {known}")
        if names.count(name) > 1:
            raise ValueError(f"measure: property {name!r} comes {names.count(name)} times, expected once")
    return names


def as_keys(reader: RecordReader, keys: Any) -> np.ndarray | None:
    """Return keys ascending, each once; None for all.

    Raises
    ------
    KeyError
        For a key that the file does not have.
    TypeError
        For what is not integers.
    """
    if keys is None:
        return None
    found = np.asarray(keys)
    if found.size and (found.dtype.kind not in "iu" or found.ndim != 1):
        raise TypeError(
            f"measure: keys of {found.ndim} dimensions and type {found.dtype}, expected a sequence of integers"
        )
    found = np.unique(found)
    outside = (found < 0) | (found >= len(reader.live))
    unknown = outside.copy()
    unknown[~outside] = ~reader.live[found[~outside].astype(np.int64)]
    for key in found[unknown][:1].tolist():
        _ = reader[key]  # raises, and says which there are
    return found.astype(np.uint32)
