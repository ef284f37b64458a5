"""Entries as the reference's programs see them; what was not loaded is read when it is touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.entry import Region
from iid_dask.format.layout import MAX_SIDE
from iid_dask.iidfile.draft import Box, Draft


def as_box(bbox: BBox | Iterable[int]) -> BBox:
    """Return a box of any four integers.

    Raises
    ------
    TypeError, ValueError
        For anything else, and for boxes upside down.
    """
    try:
        return BBox.of(bbox)
    except TypeError as error:
        raise TypeError(f"bbox = {bbox!r}: expected four integers: min_row, min_col, max_row, max_col") from error


class _Boxed:
    """The forms in which other libraries want a box; for classes that have ``bbox``."""

    bbox: Any

    def bbox_xywh(self, center: bool = False) -> tuple[float, float, int, int]:
        """Return the box as x, y, width, height; x and y of its middle if ``center``, else of its corner."""
        top, left, bottom, right = self.bbox
        width, height = right - left, bottom - top
        if center:
            return left + width / 2, top + height / 2, width, height
        return left, top, width, height

    def bbox_polygon(self) -> list[tuple[int, int]]:
        """Return the box's corners as (x, y), from the one nearest to (0, 0) and along the top first."""
        top, left, bottom, right = self.bbox
        return [(left, top), (right, top), (right, bottom), (left, bottom)]


@dataclass(frozen=True)
class SegmentRegion(_Boxed):
    """One stored piece of a segment."""

    region: Region

    @property
    def bbox(self) -> Box:
        """Rows and columns, half-open, in image pixels: min_row, min_col, max_row, max_col."""
        box = self.region.bbox
        return box.min_row, box.min_col, box.max_row, box.max_col

    @cached_property
    def mask(self) -> np.ndarray:
        """Its pixels, bool, shape (rows, columns) of its box."""
        return self.region.mask()


@dataclass(frozen=True)
class Segment(_Boxed):
    """The pixels of an entry.

    Examples
    --------
    >>> import iid_dask
    >>> segment = iid_dask.IIDFile(iid_dask.sample("us")).fetch(keys=1)[0].seg
    >>> segment.bbox, segment.area, segment.bbox_xywh(), segment.mask().shape
    ((296, 174, 429, 273), 11613, (174, 296, 99, 133), (133, 99))
    >>> segment.mask((300, 0, 302, 180)).shape, segment.intersects_bbox((0, 0, 300, 200))
    ((2, 6), True)
    """

    draft: Draft
    key: int

    @property
    def bbox(self) -> Box:
        """Rows and columns, half-open, in image pixels: min_row, min_col, max_row, max_col."""
        return self.draft.head(self.key)[0]

    @property
    def area(self) -> int:
        """Pixels."""
        return self.draft.head(self.key)[1]

    def regions(self) -> list[SegmentRegion]:
        """Return the stored pieces, each with ``bbox`` and ``mask``."""
        return [SegmentRegion(region) for region in self.draft.entry(self.key).regions]

    def mask(self, bbox: BBox | Iterable[int] | None = None) -> np.ndarray:
        """Return the pixels.

        Parameters
        ----------
        bbox : optional
            Only what lies in this box, in image pixels.

        Returns
        -------
        bool array
            Of the shape of ``self.bbox``, or of what it has in common with the box given, which may be nothing:
            then the array is empty.

        Raises
        ------
        IIDLimitError
            For a whole mask of more than a GiB; ask for a box.
        """
        if bbox is None:
            return self.draft.entry(self.key).mask()
        box = BBox(*self.bbox).intersection(as_box(bbox))
        if 0 in box.shape:
            return np.zeros(box.shape, bool)
        from iid_dask import raster
        from iid_dask.views import View, Window

        part = self.draft.part_of(self.key)
        view = View(part.reader, (MAX_SIDE, MAX_SIDE))
        return raster.masks(view, Window(box), np.array([self.key - part.first]))[0]

    def intersects_bbox(self, bbox: BBox | Iterable[int]) -> bool:
        """Whether the segment has a pixel in a box."""
        return bool(self.mask(bbox).any())

    def intersects_segment(self, entry: FileEntry) -> int:
        """Count the pixels that the segment shares with that of another entry, of this file or another."""
        common = BBox(*self.bbox).intersection(BBox(*entry.seg.bbox))
        return int(np.count_nonzero(self.mask(common) & entry.seg.mask(common)))


@dataclass(frozen=True)
class IID:
    """What an entry is called."""

    draft: Draft
    key: int

    @property
    def address(self) -> bytes:
        """The name, exact bytes."""
        return self.draft.names(self.key)[1]

    @property
    def domain(self) -> bytes | None:
        """Where the name means something, exact bytes; None for an empty one, as the reference has it."""
        return self.draft.names(self.key)[0] or None


@dataclass(frozen=True)
class FileEntry:
    """An IID and its segment; entries of one `IIDFile` and key are equal.

    Attributes
    ----------
    key : int
        Its row in the file.

    Examples
    --------
    >>> import iid_dask
    >>> entry = iid_dask.IIDFile(iid_dask.sample("us")).look_for(b"04", domains=b"states")[0]
    >>> entry
    <FileEntry 1>
    >>> entry.iid.address, entry.iid.domain, entry.seg.area
    (b'04', b'states', 11613)
    """

    draft: Draft
    key: int

    @property
    def iid(self) -> IID:
        """Address and domain."""
        return IID(self.draft, self.key)

    @property
    def seg(self) -> Segment:
        """Box, area, regions and mask."""
        return Segment(self.draft, self.key)

    def __repr__(self) -> str:
        return f"<FileEntry {self.key}>"


def found_entries(draft: Draft, keys: np.ndarray, *, only_loaded: bool) -> list[FileEntry]:
    """Return entries by their keys; of those only the ones that were fetched or added, if wanted."""
    return [FileEntry(draft, key) for key in keys.tolist() if not only_loaded or draft.is_loaded(key)]


def load_entries(draft: Draft, keys: np.ndarray, *, iids: bool, segs: bool) -> list[FileEntry]:
    """Return entries by their ascending keys, with names, or boxes and areas, read together."""
    if iids:
        draft.load_names(keys)
    if segs:
        draft.load_heads(keys)
    return found_entries(draft, keys, only_loaded=False)
