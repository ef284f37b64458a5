"""Existing files as input: entries copied as they are stored, those at a window's border cut."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from iid_dask import raster
from iid_dask.bbox import BBox, union
from iid_dask.cutting import ranges
from iid_dask.errors import IIDLimitError
from iid_dask.format.columns import Names, Segments
from iid_dask.format.encode import write_parts
from iid_dask.format.layout import SPARE
from iid_dask.format.segments import SegmentColumns, region_lengths
from iid_dask.format.verifying import read_segments
from iid_dask.lookup import as_keys
from iid_dask.mosaic import opening
from iid_dask.mosaic.blocks import segments_of
from iid_dask.mosaic.reader import Mosaic
from iid_dask.pairs import Regions
from iid_dask.reader import IIDReader
from iid_dask.views import View, Window

BATCH = 8 * 2**20
"""Bytes of masks held at once, or one segment."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Entries of an open file, and the window of it that is wanted.

    Attributes
    ----------
    reader : IIDReader
    keys : uint32 array
        In the order in which they are written.
    window : BBox
        Image pixels; its corner becomes pixel (0, 0).
    """

    reader: IIDReader
    keys: np.ndarray
    window: BBox

    @classmethod
    def of(
        cls, reader: IIDReader, keys: Any = None, window: Any = None, *, shape: tuple[int, int] | None = None
    ) -> Chosen:
        """Choose entries; all, and the whole image, by default; ``shape`` is of the image, where the file is wrong.

        Raises
        ------
        KeyError
            For a key that the file does not have.
        ValueError
            For a window that leaves the image.
        """
        chosen = reader.entry_keys if keys is None else np.unique(as_keys(reader, keys))
        boxes = reader.columns.boxes[chosen].astype(np.int64)
        reach = np.max([*boxes[:, 2:], reader.shape], axis=0).tolist() if len(boxes) else reader.shape
        if window is None:
            return cls(reader, chosen, BBox(0, 0, *reach))
        box = BBox.of(window)
        if box.intersection(BBox(0, 0, *(shape or reach))) != box or not box.height or not box.width:
            raise ValueError(
                f"{reader.name}: window {tuple(box)}: expected a part of the image of {reader.shape[0]} x "
                f"{reader.shape[1]} pixels"
            )
        low, high = np.array(tuple(box)).reshape(2, 2)
        return cls(reader, chosen[np.all((boxes[:, :2] < high) & (boxes[:, 2:] > low), axis=1)], box)

    def narrowed(self, keys: Any, window: Any) -> Chosen:
        """Choose some of these entries, and a part of the window, in its own pixels; None is all.

        Raises
        ------
        KeyError
            For a key that is not among them.
        ValueError
            For a window that leaves this one.
        """
        chosen = self.keys if keys is None else as_keys(self.reader, keys)
        hidden = np.setdiff1d(chosen, self.keys)
        if len(hidden):
            raise KeyError(
                f"{self.reader.name}: entry {hidden[0]} is not among the {len(self.keys)} that are shown here"
            )
        row, col, bottom, right = self.window
        inner = BBox(0, 0, bottom - row, right - col) if window is None else BBox.of(window)
        box = BBox(inner.min_row + row, inner.min_col + col, inner.max_row + row, inner.max_col + col)
        if inner.min_row < 0 or inner.min_col < 0 or inner.max_row + row > bottom or inner.max_col + col > right:
            raise ValueError(f"window {tuple(inner)} leaves the dataset of {bottom - row} x {right - col} pixels")
        return Chosen.of(self.reader, chosen, box, shape=(bottom, right))

    @property
    def is_all(self) -> bool:
        """Whether all entries of the whole image are chosen."""
        return len(self.keys) == len(self.reader) and self.window == BBox(0, 0, *self.reader.shape)

    @cached_property
    def inside(self) -> np.ndarray:
        """Whether each entry is copied as it is stored: the window holds it, and it is in one piece."""
        boxes = self.reader.columns.boxes[self.keys].astype(np.int64)
        low, high = np.array(tuple(self.window)).reshape(2, 2)
        inside = np.all((boxes[:, :2] >= low) & (boxes[:, 2:] <= high), axis=1)
        if isinstance(self.reader, Mosaic):
            inside &= self.reader.tables.read("segments", ("pieces",))["pieces"][self.keys] <= 1
        return inside

    @cached_property
    def _cut(self) -> tuple[np.ndarray, Segments]:
        """What the window leaves of entries that it cuts, or that are in pieces: keys, and segments in image pixels."""
        # Large enough for every box: what the window leaves out is not news.
        reach = union(self.reader.columns.boxes)
        view = View(self.reader, (reach.max_row, reach.max_col))
        keys, found = [], []
        for key in self.keys[~self.inside].tolist():
            box = BBox.of(self.reader.columns.boxes[key].tolist()).intersection(self.window)
            if box.height * box.width > self.reader.limits.max_decoded_bytes:
                raise IIDLimitError(
                    f"{self.reader.name}: entry {key}: {box.height} x {box.width} pixels of it are cut anew, more than "
                    f"limits.max_decoded_bytes = {self.reader.limits.max_decoded_bytes}; open the file with higher ones"
                )
            values, segments = segments_of(raster.masks(view, Window(box), np.array([key], np.uint32))[0])
            if len(values):
                keys.append(key)
                found.append(segments.moved(box.min_row, box.min_col))
        return np.array(keys, np.uint32), Segments.joined(found)

    @cached_property
    def left(self) -> np.ndarray:
        """Keys of the entries that are written: those with a pixel in the window, or inside it without any."""
        return self.keys[self.inside | np.isin(self.keys, self._cut[0])]

    @cached_property
    def planned(self) -> Segments:
        """Segments of the entries in ``left``, in pixels of the window, without their bits."""
        copied = self.left[~np.isin(self.left, self._cut[0])]
        stored = _segments(
            Regions.of(self.reader.columns, copied, copied), copied, self.reader.columns, np.zeros(SPARE, np.uint8)
        )
        return self._in_order(copied, stored, *self._cut).without_bits()

    def parts(self) -> Iterator[Segments]:
        """The same with their bits, some at a time."""
        cut, segments = self._cut
        for start, stop in ranges(self.planned.lengths, BATCH):
            keys = self.left[start:stop]
            low, high = np.searchsorted(cut, (keys[0], keys[-1] + 1)).tolist()
            copied = keys[~np.isin(keys, cut)]
            yield self._in_order(copied, self._read(copied), cut[low:high], segments.part(low, high))

    def _in_order(self, copied: np.ndarray, stored: Segments, cut: np.ndarray, segments: Segments) -> Segments:
        """Put entries that are copied and those that were cut into one order, and into the window."""
        order = np.argsort(np.concatenate([copied, cut]))
        return Segments.joined([stored, segments]).take(order).moved(-self.window.min_row, -self.window.min_col)

    def _read(self, keys: np.ndarray) -> Segments:
        """Read entries as they are stored; where an index has their checksums, verified."""
        columns = self.reader.columns
        regions = Regions.of(columns, keys, keys)
        if columns.crcs is not None and self.reader.verify_checksums:
            found = read_segments(self.reader, keys, columns, keys)
            data, bits = found.data, found.bits
        else:
            data, bits = self.reader.read_bits(regions.bits.astype(np.int64), region_lengths(regions.boxes))
        return _segments(replace(regions, bits=bits), keys, columns, data)


def _segments(regions: Regions, keys: np.ndarray, columns: SegmentColumns, data: np.ndarray) -> Segments:
    """Return entries of a file as segments; ``regions`` are all of theirs."""
    return Segments(
        columns.boxes[keys].astype(np.int64),
        columns.areas[keys].astype(np.int64),
        np.append(np.searchsorted(regions.keys, keys), len(regions.keys)),
        regions.boxes.astype(np.int64),
        regions.bits.astype(np.int64),
        data,
    )


def open_files(labels: Any, storage_options: Mapping[str, Any] | None) -> list[IIDReader | Chosen]:
    """Open the input if it is existing files: one or several paths, open files, or a dataset; [] if it is none.

    Raises
    ------
    TypeError
        For a list of files and something else.
    ValueError
        For a dataset that no longer knows its file.
    """
    if isinstance(labels, list | tuple):
        found = [item for item in labels if _is_file(item, storage_options)]
        if found and len(found) < len(labels):
            raise TypeError(f"{len(found)} of {len(labels)} inputs are .iid files, expected all or none")
        return [one for item in found for one in open_files(item, storage_options)]
    if isinstance(labels, IIDReader):
        return [labels]
    if type(labels).__name__ == "Dataset" and hasattr(labels, "iid"):
        return [_of_dataset(labels)]
    return [opening.open(labels, storage_options=storage_options)] if _is_file(labels, storage_options) else []


def _is_file(item: Any, storage_options: Mapping[str, Any] | None) -> bool:
    if isinstance(item, str | os.PathLike):
        named = os.fsdecode(os.fspath(item)).lower().endswith(".iid")
        return named or opening.names_mosaic(item, storage_options)
    return isinstance(item, IIDReader)


def _of_dataset(ds: Any) -> Chosen:
    view, rows, cols = ds.iid.placed
    if view.stride > 1 or any(np.any(np.diff(some) != 1) for some in (rows, cols)):
        raise ValueError("the dataset is no plain window of its file: rows or columns were left out or turned around")
    if not len(rows) or not len(cols):
        raise ValueError("the dataset has no pixels, expected a window of 1 x 1 pixel or more")
    keys = np.sort(ds["key"].values) if "key" in ds.variables else view.keys
    return Chosen.of(view.reader, keys, (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1), shape=view.shape)


def copy_entries(
    inputs: Sequence[Chosen],
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    *,
    index: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Write the entries of files to one file, one input after another, and return how many there are.

    Parameters
    ----------
    inputs
        Their windows have one corner, pixel (0, 0) of the file.
    path
        Or URL; what is there is replaced, when the new file is whole.
    metadata
    index
    storage_options
        For the fsspec file system of a URL.

    Raises
    ------
    IIDLimitError
        If the format cannot store it; nothing was written.
    """
    planned = Segments.joined([chosen.planned for chosen in inputs])
    parts = (part for chosen in inputs for part in chosen.parts())
    write_parts(
        path,
        planned,
        parts,
        _names(inputs),
        groups=_groups(inputs),
        metadata=metadata,
        index=index,
        storage_options=storage_options,
    )
    return len(planned)


def _names(inputs: Sequence[Chosen]) -> Names:
    texts, places, at = [], [], 0
    for chosen in inputs:
        text, *spans = chosen.reader.name_spans(chosen.left)
        texts.append(np.frombuffer(text, np.uint8))
        places.append(np.array(spans, np.int64).reshape(3, -1) + at)
        at += len(text)
    return Names(np.concatenate(texts), *np.concatenate(places, axis=1))


def _groups(inputs: Sequence[Chosen]) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {}
    at = 0
    for chosen in inputs:
        for name, keys in chosen.reader.groups.items():
            found.setdefault(name, []).append(np.flatnonzero(np.isin(chosen.left, keys)) + at)
        at += len(chosen.left)
    return {name: np.concatenate(keys) for name, keys in found.items()}
