"""The one rectangle of the package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import index

import numpy as np

__all__ = ["BBox", "union"]


@dataclass(frozen=True, slots=True)
class BBox:
    """Half-open rectangle in image pixels: rows ``min_row`` to ``max_row - 1``, columns likewise.

    Examples
    --------
    >>> box = BBox(10, 20, 14, 26)
    >>> box.shape
    (4, 6)
    >>> box.intersection(BBox(12, 0, 99, 22))
    BBox(min_row=12, min_col=20, max_row=14, max_col=22)
    >>> tuple(box)
    (10, 20, 14, 26)
    """

    min_row: int
    min_col: int
    max_row: int
    max_col: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, index(value))
            except TypeError as error:
                raise TypeError(f"bounding box: {name} = {value!r} is no integer: expected pixels") from error
        if self.min_row > self.max_row or self.min_col > self.max_col:
            raise ValueError(
                f"bounding box {tuple(self)} is upside down: expected (min_row, min_col, max_row, max_col) "
                "with each min at most its max"
            )

    @classmethod
    def of(cls, values: Iterable[int]) -> BBox:
        """Make a box from any four integers, for example a row of a numpy array."""
        if isinstance(values, cls):
            return values
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError(f"a bounding box is (min_row, min_col, max_row, max_col), found {values!r:.60}")
        items = list(values)
        if len(items) != 4:
            raise ValueError(f"a bounding box is (min_row, min_col, max_row, max_col), found {len(items)} values")
        return cls(*items)

    def __iter__(self) -> Iterator[int]:
        yield from (self.min_row, self.min_col, self.max_row, self.max_col)

    @property
    def height(self) -> int:
        """Rows."""
        return self.max_row - self.min_row

    @property
    def width(self) -> int:
        """Columns."""
        return self.max_col - self.min_col

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an image."""
        return slice(self.min_row, self.max_row), slice(self.min_col, self.max_col)

    def intersection(self, other: BBox) -> BBox:
        """Return what both boxes cover; a box without pixels at the nearer corner if they do not meet."""
        min_row, min_col = max(self.min_row, other.min_row), max(self.min_col, other.min_col)
        return BBox(
            min_row,
            min_col,
            max(min_row, min(self.max_row, other.max_row)),
            max(min_col, min(self.max_col, other.max_col)),
        )


def union(boxes: np.ndarray) -> BBox:
    """Smallest box around boxes with pixels, shape (n, 4); ``BBox(0, 0, 0, 0)`` if there are none.

    Examples
    --------
    >>> union(np.array([[1, 2, 3, 4], [9, 9, 9, 9], [0, 3, 2, 8]]))
    BBox(min_row=0, min_col=2, max_row=3, max_col=8)
    """
    full = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
    if not len(full):
        return BBox(0, 0, 0, 0)
    return BBox(full[:, 0].min(), full[:, 1].min(), full[:, 2].max(), full[:, 3].max())
