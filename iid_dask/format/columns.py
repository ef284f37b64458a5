"""Entries in memory as columns, before they are the bytes of a file: segments with their mask bits, and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iid_dask.cutting import spread
from iid_dask.format.layout import REGION_HEAD, SEGMENT_HEAD, SPARE
from iid_dask.format.segments import region_lengths


@dataclass(frozen=True, eq=False)
class Segments:
    """Segments and their mask bits in memory; those of segment i are ``first_region[i] : first_region[i + 1]``.

    Attributes
    ----------
    boxes : int64 array, shape (n, 4)
        Tight: min_row, min_col, max_row, max_col; zeros for an empty segment.
    areas : int64 array, shape (n,)
        Pixels.
    first_region : int64 array, shape (n + 1,)
    region_boxes : int64 array, shape (m, 4)
        In the same frame as ``boxes``.
    region_bits : int64 array, shape (m,)
        Byte of ``data`` where each region's mask bits begin.
    data : uint8 array
        With `SPARE` bytes at its end.
    """

    boxes: np.ndarray
    areas: np.ndarray
    first_region: np.ndarray
    region_boxes: np.ndarray
    region_bits: np.ndarray
    data: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each segment in a file, its head included; int64, shape (n,)."""
        ends = np.concatenate(([0], np.cumsum(region_lengths(self.region_boxes) + REGION_HEAD.itemsize)))
        return ends[self.first_region[1:]] - ends[self.first_region[:-1]] + SEGMENT_HEAD.itemsize

    def part(self, start: int, stop: int) -> Segments:
        """Return some consecutive segments; their bits are not copied."""
        first, last = int(self.first_region[start]), int(self.first_region[stop])
        return Segments(
            self.boxes[start:stop],
            self.areas[start:stop],
            self.first_region[start : stop + 1] - first,
            self.region_boxes[first:last],
            self.region_bits[first:last],
            self.data,
        )

    def take(self, order: np.ndarray) -> Segments:
        """Return segments in another order; their bits stay where they are."""
        first, counts = self.first_region[:-1][order], np.diff(self.first_region)[order]
        regions = spread(first, counts)
        return Segments(
            self.boxes[order],
            self.areas[order],
            np.concatenate(([0], np.cumsum(counts))),
            self.region_boxes[regions],
            self.region_bits[regions],
            self.data,
        )

    def moved(self, rows: int, cols: int) -> Segments:
        """Return them in another frame; those without pixels too."""
        step = np.array([rows, cols, rows, cols])
        return replace(self, boxes=self.boxes + step, region_boxes=self.region_boxes + step)

    def without_bits(self) -> Segments:
        """Return what a plan needs: all but the bits."""
        return replace(self, region_bits=self.region_bits[:0], data=self.data[:0])

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        """Return the segments of several, one after another."""
        sizes = [max(0, len(part.data) - SPARE) for part in parts]
        regions = [len(part.region_boxes) for part in parts]
        places, firsts = np.cumsum([0, *sizes]).tolist(), np.cumsum([0, *regions]).tolist()
        four, one = np.zeros((0, 4), np.int64), np.zeros(0, np.int64)
        return cls(
            np.concatenate([four, *(part.boxes for part in parts)]),
            np.concatenate([one, *(part.areas for part in parts)]),
            np.concatenate([[0], *(part.first_region[1:] + at for part, at in zip(parts, firsts, strict=False))]),
            np.concatenate([four, *(part.region_boxes for part in parts)]),
            np.concatenate([one, *(part.region_bits + at for part, at in zip(parts, places, strict=False))]),
            np.concatenate(
                [*(part.data[:size] for part, size in zip(parts, sizes, strict=True)), np.zeros(SPARE, np.uint8)]
            ),
        )


@dataclass(frozen=True, eq=False)
class Names:
    """IIDs in one array of bytes.

    Attributes
    ----------
    text : uint8 array
    starts, middles, stops : int64 arrays, shape (n,)
        Domain i is ``text[starts[i]:middles[i]]``, address i ``text[middles[i]:stops[i]]``.

    Examples
    --------
    >>> names = Names.decimal(b"cell", np.array([7, 2**64 - 1], np.uint64))
    >>> names.lists()
    ([b'cell', b'cell'], [b'7', b'18446744073709551615'])
    """

    text: np.ndarray
    starts: np.ndarray
    middles: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, domains: Sequence[bytes], addresses: Sequence[bytes]) -> Names:
        """Lay out pairs of domain and address."""
        parts = [part for pair in zip(domains, addresses, strict=True) for part in pair]
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        text = np.frombuffer(b"".join(parts), np.uint8)
        starts = np.concatenate((np.zeros(min(1, len(ends)), np.int64), ends[1:-1:2]))
        return cls(text, starts, ends[0::2], ends[1::2])

    @classmethod
    def decimal(cls, domain: bytes, numbers: np.ndarray) -> Names:
        """Name entries by numbers in decimal ASCII.

        Parameters
        ----------
        domain
            Of all of them.
        numbers : array of unsigned integers, shape (n,)
        """
        rest = numbers.astype(np.uint64)
        powers = np.array([10**k for k in range(1, 20)], np.uint64)
        digits = np.searchsorted(powers, rest, side="right") + 1
        stops = np.cumsum(digits + len(domain))
        starts, middles = stops - digits - len(domain), stops - digits
        text = np.empty(int(stops[-1]) if len(stops) else 0, np.uint8)
        for i, byte in enumerate(domain):
            text[starts + i] = byte
        ends = stops.copy()
        while len(ends):
            ends -= 1
            rest, digit = np.divmod(rest, np.uint64(10))
            text[ends] = digit.astype(np.uint8) + ord("0")
            more = rest > 0
            ends, rest = ends[more], rest[more]
        return cls(text, starts, middles, stops)

    def lists(self) -> tuple[list[bytes], list[bytes]]:
        """Return domains and addresses."""
        text = self.text.tobytes()
        places = self.starts.tolist(), self.middles.tolist(), self.stops.tolist()
        pairs = [(text[a:b], text[b:c]) for a, b, c in zip(*places, strict=True)]
        return [domain for domain, _ in pairs], [address for _, address in pairs]
