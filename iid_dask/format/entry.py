"""An entry and the regions of its segment, read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDLimitError
from iid_dask.format.layout import packed_size
from iid_dask.format.segments import SegmentColumns, region_lengths

if TYPE_CHECKING:
    from iid_dask.format.reader import RecordReader


@dataclass(frozen=True)
class Region:
    """One stored piece of a segment.

    Attributes
    ----------
    bbox : BBox
        In image pixels.
    bits : bytes
        Row-major mask bits, most significant first.
    """

    bbox: BBox
    bits: bytes

    def mask(self) -> np.ndarray:
        """Return the pixels, bool, shape ``bbox.shape``."""
        count = self.bbox.height * self.bbox.width
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=count)
        return bits.view(bool).reshape(self.bbox.shape)


@dataclass(frozen=True)
class Entry:
    """An IID and its segment; everything but ``key`` is read when it is asked for.

    Examples
    --------
    >>> import iid_dask
    >>> with iid_dask.open(iid_dask.sample("us")) as f:
    ...     entry = f[1]
    ...     entry.domain, entry.address, tuple(entry.bbox), entry.area, entry.groups
    (b'states', b'04', (296, 174, 429, 273), 11613, ('states',))
    """

    reader: RecordReader
    key: int

    def _columns(self) -> tuple[SegmentColumns, int]:
        columns, rows = self.reader.segment_columns(np.array([self.key]))
        return columns, int(rows[0])

    @property
    def domain(self) -> bytes:
        """Domain of the IID, exact bytes."""
        return self.reader.names([self.key])[0][0]

    @property
    def address(self) -> bytes:
        """Address of the IID, exact bytes."""
        return self.reader.names([self.key])[1][0]

    @property
    def bbox(self) -> BBox:
        """The segment's box in image pixels; it may be loose."""
        columns, row = self._columns()
        return BBox.of(columns.boxes[row].tolist())

    @property
    def area(self) -> int:
        """Pixels."""
        columns, row = self._columns()
        return int(columns.areas[row])

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that hold the entry."""
        return tuple(name for name, keys in self.reader.groups.items() if _holds(keys, self.key))

    @property
    def regions(self) -> tuple[Region, ...]:
        """The stored pieces, whole.

        Raises
        ------
        IIDFormatError
            If an index tells that the segment's bytes are damaged (unless the file was opened with
            ``verify=False``).
        """
        columns, row = self._columns()
        data = self.reader.segment_bytes(self.key)
        first, stop = int(columns.first_region[row]), int(columns.first_region[row + 1])
        boxes = columns.region_boxes[first:stop]
        sizes = region_lengths(boxes)
        starts = columns.region_bits[first:stop].astype(np.int64) - int(self.reader.lut["segment_offset"][self.key])
        return tuple(
            Region(BBox.of(box), data[start : start + size])
            for box, start, size in zip(boxes.tolist(), starts.tolist(), sizes.tolist(), strict=True)
        )

    def mask(self) -> np.ndarray:
        """Return the segment's pixels.

        Returns
        -------
        bool array, shape ``bbox.shape``
            Element (0, 0) is the image pixel (bbox.min_row, bbox.min_col).

        Raises
        ------
        IIDLimitError
            If the array would be larger than ``limits.max_decoded_bytes`` of the open file.
        """
        box = self.bbox
        limit = self.reader.limits.max_decoded_bytes
        if box.height * box.width > limit:
            raise IIDLimitError(
                f"{self.reader.name}: entry {self.key}: its box of {box.height} x {box.width} pixels takes "
                f"{box.height * box.width} bytes as an array, more than limits.max_decoded_bytes = {limit}; "
                "read a window of it through xr.open_dataset(..., keys=[key]), or raise the limit"
            )
        out = np.zeros(box.shape, bool)
        for region in self.regions:
            rows, cols = region.bbox.slices
            top, left = box.min_row, box.min_col
            part = out[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
            # Bands of a multiple of 8 rows begin with a byte, and spare a second array of the mask's size.
            band = max(8, 2**20 // region.bbox.width // 8 * 8)
            for row in range(0, region.bbox.height, band):
                some = part[row : row + band]
                bits = np.frombuffer(region.bits, np.uint8, packed_size(*some.shape), row * region.bbox.width // 8)
                some |= np.unpackbits(bits, count=some.size).view(bool).reshape(some.shape)
        return out


def _holds(keys: np.ndarray, key: int) -> bool:
    at = int(np.searchsorted(keys, key))
    return at < len(keys) and int(keys[at]) == key
