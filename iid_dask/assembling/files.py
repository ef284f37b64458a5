"""Existing files as input: entries copied as they are stored, those at a window's border cut."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from iid_dask import kernels, raster
from iid_dask.bbox import BBox, union
from iid_dask.cutting import ranges
from iid_dask.errors import IIDLimitError
from iid_dask.format.encode import Names, Segments, encode_segments, plan_head, stored_columns
from iid_dask.format.layout import SPARE
from iid_dask.format.segments import region_lengths
from iid_dask.format.target import atomic_write
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
    def _inside(self) -> np.ndarray:
        """Whether each entry is copied as it is stored: the window holds it, and it is in one piece."""
        boxes = self.reader.columns.boxes[self.keys].astype(np.int64)
        low, high = np.array(tuple(self.window)).reshape(2, 2)
        inside = np.all((boxes[:, :2] >= low) & (boxes[:, 2:] <= high), axis=1)
        if isinstance(self.reader, Mosaic):
            inside &= self.reader.tables.read("segments", ("pieces",))["pieces"][self.keys] <= 1
        return inside

    @cached_property
    def _cut(self) -> dict[int, Segments]:
        """What the window leaves of entries that it cuts, or that are in pieces, by key, in pixels of the image."""
        # Large enough for every box: what the window leaves out is not news.
        reach = union(self.reader.columns.boxes)
        view = View(self.reader, (reach.max_row, reach.max_col))
        found = {}
        for key in self.keys[~self._inside].tolist():
            box = BBox.of(self.reader.columns.boxes[key].tolist()).intersection(self.window)
            if box.height * box.width > self.reader.limits.max_decoded_bytes:
                raise IIDLimitError(
                    f"{self.reader.name}: entry {key}: {box.height} x {box.width} pixels of it are cut anew, more than "
                    f"limits.max_decoded_bytes = {self.reader.limits.max_decoded_bytes}; open the file with higher ones"
                )
            values, segments = segments_of(raster.masks(view, Window(box), np.array([key], np.uint32))[0])
            if len(values):
                found[key] = _moved(segments, box.min_row, box.min_col)
        return found

    @cached_property
    def left(self) -> np.ndarray:
        """Keys of the entries that are written: those with a pixel in the window, or inside it without any."""
        return self.keys[self._inside | np.isin(self.keys, list(self._cut))]

    def parts(self) -> Iterator[Segments]:
        """Segments of the entries in ``left``, some at a time, in pixels of the window."""
        nbytes = self.reader.lut["segment_length"][self.left].astype(np.int64)
        for start, stop in ranges(nbytes, BATCH):
            yield _moved(self._read(self.left[start:stop]), -self.window.min_row, -self.window.min_col)

    def _read(self, keys: np.ndarray) -> Segments:
        columns = self.reader.columns
        plain = keys[~np.isin(keys, list(self._cut))]
        regions = Regions.of(columns, plain, plain)
        if columns.crcs is not None and self.reader.verify_checksums:
            for key in plain.tolist():
                self.reader.segment_bytes(key)
        data, places = self.reader.read_bits(regions.bits.astype(np.int64), region_lengths(regions.boxes))
        owners, boxes, bits, blobs = [regions.keys], [regions.boxes.astype(np.int64)], [places], [data[:-SPARE]]
        areas = dict(zip(plain.tolist(), columns.areas[plain].tolist(), strict=True))
        own = dict(zip(plain.tolist(), columns.boxes[plain].astype(np.int64).tolist(), strict=True))
        at = len(data) - SPARE
        for key in keys.tolist():
            if key in self._cut:
                cut = self._cut[key]
                owners.append(np.full(len(cut.region_bits), key, np.uint32))
                boxes.append(cut.region_boxes)
                bits.append(cut.region_bits + at)
                blobs.append(cut.data[:-SPARE])
                at += len(blobs[-1])
                areas[key], own[key] = int(cut.areas[0]), cut.boxes[0].tolist()
        return _by_key(keys, own, areas, np.concatenate(owners), np.concatenate(boxes), np.concatenate(bits), blobs)


def _by_key(
    keys: np.ndarray,
    boxes: Mapping[int, Sequence[int]],
    areas: Mapping[int, int],
    owners: np.ndarray,
    region_boxes: np.ndarray,
    bits: np.ndarray,
    blobs: Sequence[np.ndarray],
) -> Segments:
    order = np.argsort(owners, kind="stable")
    return Segments(
        np.array([boxes[key] for key in keys.tolist()], np.int64).reshape(-1, 4),
        np.array([areas[key] for key in keys.tolist()], np.int64),
        np.append(np.searchsorted(owners[order], keys), len(owners)),
        region_boxes[order],
        bits[order],
        np.concatenate([*blobs, np.zeros(SPARE, np.uint8)]),
    )


def _moved(segments: Segments, rows: int, cols: int) -> Segments:
    step = np.array([rows, cols, rows, cols])
    return Segments(
        segments.boxes + step,
        segments.areas,
        segments.first_region,
        segments.region_boxes + step,
        segments.region_bits,
        segments.data,
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
        found = [item for item in labels if _is_file(item)]
        if found and len(found) < len(labels):
            raise TypeError(f"{len(found)} of {len(labels)} inputs are .iid files, expected all or none")
        return [one for item in found for one in open_files(item, storage_options)]
    if isinstance(labels, IIDReader):
        return [labels]
    if type(labels).__name__ == "Dataset" and hasattr(labels, "iid"):
        return [_of_dataset(labels)]
    return [opening.open(labels, storage_options=storage_options)] if _is_file(labels) else []


def _is_file(item: Any) -> bool:
    if isinstance(item, str | os.PathLike):
        return os.fsdecode(os.fspath(item)).lower().endswith(".iid") or opening.is_mosaic(item)
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
    inputs: Sequence[Chosen], path: str | os.PathLike[str], metadata: Mapping[str, Any], *, index: bool = True
) -> int:
    """Write the entries of files to one file, one input after another, and return how many there are.

    Parameters
    ----------
    inputs
        Their windows have one corner, pixel (0, 0) of the file.
    path
        A file there is replaced, when the new one is whole.
    metadata
    index

    Raises
    ------
    IIDLimitError
        If the format cannot store it; nothing was written.
    """
    columns = [_columns_of(part) for chosen in inputs for part in chosen.parts()]
    lengths = np.concatenate([*(part.lengths for part in columns), np.zeros(0, np.int64)])
    head = plan_head(os.fspath(path), lengths, _names(inputs), _groups(inputs), metadata)
    crcs = np.zeros(len(lengths), np.uint32)
    with atomic_write(path) as file:
        file.write(head.tobytes())
        key = 0
        for part in (part for chosen in inputs for part in chosen.parts()):
            out = np.empty(int(part.lengths.sum()), np.uint8)
            encode_segments(part, key, out)
            ends = np.cumsum(part.lengths)
            kernels.crc32s(out, ends - part.lengths, ends, crcs[key : key + len(part)])
            file.write(out.data)
            key += len(part)
        if index:
            file.write(head.index(stored_columns(_joined(columns), head.lut), crcs))
    return len(lengths)


def _columns_of(part: Segments) -> Segments:
    """Segments without their bits."""
    none = np.zeros(0, np.uint8)
    return Segments(part.boxes, part.areas, part.first_region, part.region_boxes, part.region_bits[:0], none)


def _joined(parts: Iterable[Segments]) -> Segments:
    boxes, areas, first, region_boxes, count = [], [], [np.zeros(1, np.int64)], [], 0
    for part in parts:
        boxes.append(part.boxes)
        areas.append(part.areas)
        first.append(part.first_region[1:] + count)
        region_boxes.append(part.region_boxes)
        count += len(part.region_boxes)
    four = np.zeros((0, 4), np.int64)
    return Segments(
        np.concatenate([*boxes, four]),
        np.concatenate([*areas, four[:, 0]]),
        np.concatenate(first),
        np.concatenate([*region_boxes, four]),
        four[:, 0],
        np.zeros(0, np.uint8),
    )


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
