"""The segments of a mosaic as columns and names: from its tables, and regions from the tiles when they are needed."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask import kernels
from iid_dask.cutting import spread
from iid_dask.errors import IIDFormatError
from iid_dask.format.segments import SegmentColumns
from iid_dask.mosaic.part import TilePart
from iid_dask.mosaic.tables import BOX

if TYPE_CHECKING:
    from iid_dask.mosaic.reader import Mosaic


class SegmentTable(SegmentColumns):
    """Columns of a mosaic's segments, each read when it is first used: the regions from the tiles.

    Parameters
    ----------
    mosaic
    keys : int64 array, optional
        Of whom; default: all.
    """

    _mosaic: Mosaic
    _keys: np.ndarray | None

    def __init__(self, mosaic: Mosaic, keys: np.ndarray | None = None) -> None:
        self.__dict__.update(_mosaic=mosaic, _keys=keys, crcs=None)

    @cached_property
    def boxes(self) -> np.ndarray:
        """Int64, shape (n, 4)."""
        table = self._mosaic.tables.read("segments", BOX, self._keys)
        boxes = np.stack([table[side] for side in BOX], axis=1)
        height, width = self._mosaic.shape
        within = [boxes[:, :2] >= 0, boxes[:, :2] <= boxes[:, 2:], boxes[:, 2:] <= np.array([height, width])]
        self._refuse(~np.all(within, axis=(0, 2)), boxes, f"a box inside {height} x {width} pixels")
        return boxes

    @cached_property
    def areas(self) -> np.ndarray:
        """Int64."""
        areas = self._mosaic.tables.read("segments", ("area",), self._keys)["area"]
        self._refuse(areas < 0, areas, "an area of 0 or more pixels")
        return areas

    def _refuse(self, bad: np.ndarray, values: np.ndarray, expected: str) -> None:
        for i in np.flatnonzero(bad)[:1].tolist():
            key = i if self._keys is None else int(self._keys[i])
            raise IIDFormatError(self._mosaic.source.name, "segments", key, None, str(values[i].tolist()), expected)

    @cached_property
    def _regions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._keys is None:
            every = np.flatnonzero(self._mosaic.tiles.columns["pieces"] > 0)
            return by_entry(self._mosaic.tiles.part(every), np.arange(len(self._mosaic)))
        return by_entry(self._mosaic.pieces_of(self._keys), self._keys)

    @property
    def first_region(self) -> np.ndarray:
        """Int64, shape (n + 1,)."""
        return self._regions[0]

    @property
    def region_boxes(self) -> np.ndarray:
        """Int64, shape (m, 4)."""
        return self._regions[1]

    @property
    def region_bits(self) -> np.ndarray:
        """Int64, as `MosaicFiles.read_bits` takes them."""
        return self._regions[2]


def by_entry(part: TilePart, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first_region, region_boxes and region_bits of some entries, of which a part holds all pieces."""
    first = part.columns.first_region
    starts, stops = (first[np.searchsorted(part.keys, keys, side=side)] for side in ("left", "right"))
    counts = stops - starts
    boxes, bits = part.columns.region_boxes, part.columns.region_bits
    if int(counts.sum()) != len(bits) or np.any(starts[1:] < starts[:-1]):
        regions = spread(starts, counts)
        boxes, bits = boxes[regions], bits[regions]
    return np.concatenate(([0], np.cumsum(counts))), boxes, bits


# --- names ------------------------------------------------------------------------------------------------------


def _buffers(names: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of an Arrow array of names, and where each begins and the last ends."""
    _, offsets, data = names.buffers()
    ends = np.frombuffer(offsets, np.int64)[names.offset : names.offset + len(names) + 1]
    if not len(ends):
        ends = np.zeros(1, np.int64)
    return np.frombuffer(data or b"", np.uint8), ends


def interleaved(domains: Any, addresses: Any) -> tuple[bytes, np.ndarray, np.ndarray, np.ndarray]:
    """Lay each domain before its address; Arrow arrays in, out as `RecordReader.name_spans` returns it."""
    (text, ends_of_domains), (more, ends_of_addresses) = _buffers(domains), _buffers(addresses)
    data = np.concatenate([text, more])
    ends = ends_of_domains, ends_of_addresses + len(text)
    starts = np.stack([some[:-1] for some in ends], axis=1).ravel()
    stops = np.stack([some[1:] for some in ends], axis=1).ravel()
    places = np.concatenate(([0], np.cumsum(stops - starts)))
    out = np.empty(int(places[-1]), np.uint8)
    kernels.gather_spans(data, starts, stops, out)
    return out.tobytes(), places[:-1:2], places[1::2], places[2::2]
