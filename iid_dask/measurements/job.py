"""What tasks of a measurement share, and what may be asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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
    TypeError
        For what is not text, or several.
    ValueError
        For one that is not known, one that comes twice, or none at all; says which there are.
    """
    known = ", ".join((*INTENSITY, *SHAPE))
    if not isinstance(properties, Iterable):
        raise TypeError(
            f"measure: properties = {properties!r} is {type(properties).__name__}, expected one or several of: {known}"
        )
    names = (properties,) if isinstance(properties, str) else tuple(properties)
    if not names:
        raise ValueError(f"measure: no properties; expected some of: {known}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"measure: properties: {name!r} is {type(name).__name__}, expected str, some of: {known}")
        if name not in (*INTENSITY, *SHAPE):
            raise ValueError(f"measure: no property {name!r}; there is: {known}")
        if names.count(name) > 1:
            raise ValueError(f"measure: property {name!r} comes {names.count(name)} times, expected once")
    return names
