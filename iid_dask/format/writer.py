"""Writing one ``.iid`` file: gather, plan every offset, then write once, whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.errors import IIDLimitError
from iid_dask.format.entry import Entry, Region
from iid_dask.format.layout import (
    MAX_SIDE,
    REGION_HEAD,
    SEGMENT_HEAD,
    packed_size,
)
from iid_dask.format.metadata import encode_metadata
from iid_dask.format.plan import REMOVED, WAY_OUT, Planned, check_group_names, plan_file
from iid_dask.format.reader import RecordReader
from iid_dask.format.regions import regions_of
from iid_dask.format.target import atomic_write


class IIDWriter:
    """Gather entries, then write them as one canonical ``.iid`` file.

    Nothing is written before `close`: offsets are planned and limits checked first. Used as a context manager,
    the file appears when the block ends without an error; else what stood at ``path`` still does.

    Parameters
    ----------
    path
        Of the file to write, or the URL of an object; what is there is replaced.
    metadata : mapping, optional
        What JSON can hold.
    index
        Put the index behind the last section. Programs that do not know it do not see it.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Examples
    --------
    >>> import iid_dask, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "two.iid")
    >>> with iid_dask.IIDWriter(path, metadata={"image": {"height": 8, "width": 8}}) as w:
    ...     w.add(b"cell", b"1", (0, 0, 2, 2), np.ones((2, 2)), groups=["small"])
    ...     w.add(b"cell", b"2", (1, 1, 8, 8), np.ones((7, 7)))
    0
    1
    >>> with iid_dask.open(path) as f:
    ...     [entry.area for entry in f.values()], f.groups["small"].tolist()
    ([4, 49], [0])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        metadata: Mapping[str, Any] | None = None,
        index: bool = True,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.index = index
        self.storage_options = storage_options
        self.metadata = dict(metadata or {})
        self._entries: list[Planned] = []
        self._removed: list[int] = []
        self._groups: dict[str, list[int]] = {}
        self._closed = False
        encode_metadata(self.metadata, self.path)

    def __enter__(self) -> IIDWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._closed = True

    def add(
        self,
        domain: bytes,
        address: bytes,
        bbox: BBox | Sequence[int],
        mask: np.ndarray | None = None,
        *,
        regions: Iterable[Region] | None = None,
        groups: Iterable[str] = (),
    ) -> int:
        """Add an entry and return its key.

        Parameters
        ----------
        domain, address : bytes
            The IID; either may be empty.
        bbox
            Box of the segment, image pixels. It is kept, also where it is loose.
        mask : array, shape ``bbox.shape``, any dtype
            Anything not zero is a pixel.
        regions
            Instead of a mask: ready regions inside ``bbox``. They are stored as they are; canonical files hold
            connected components in raster order, as `iid_dask.regions_of` makes them.
        groups
            Names of groups to put the entry into.

        Raises
        ------
        TypeError
            Names that are not bytes, neither or both of mask and regions.
        ValueError
            A mask that does not fit its box.
        IIDLimitError
            A box outside 0 … 65,535.
        """
        key = len(self._entries)
        box = self._check_head(key, domain, address, bbox)
        if (mask is None) == (regions is None):
            raise TypeError(f"entry {key}: give either mask= or regions=")
        if mask is not None:
            mask = np.asarray(mask)
            if mask.shape != box.shape:
                raise ValueError(f"entry {key}: mask of shape {mask.shape}, expected {box.shape} as box {tuple(box)}")
            regions = regions_of(mask, box)
        return self._append(_plan_regions(key, domain, address, box, list(regions or ())), groups)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path}: the writer is closed")

    def _append(self, planned: Planned, groups: Iterable[str]) -> int:
        self._check_open()
        key, names = len(self._entries), check_group_names(groups)
        self._entries.append(planned)
        for name in names:
            self._groups.setdefault(name, []).append(key)
        return key

    def add_entry(self, entry: Entry, *, groups: Iterable[str] | None = None) -> int:
        """Add an entry of an open file, its regions as they are stored there, and return its new key.

        Parameters
        ----------
        entry
            Its pixels are copied when the file is written, so its file must stay open until then.
        groups
            Default: the groups it has there.
        """
        domains, addresses = entry.reader.names([entry.key])
        return self._add_stored(entry, domains[0], addresses[0], entry.groups if groups is None else groups)

    def _add_stored(self, entry: Entry, domain: bytes, address: bytes, groups: Iterable[str]) -> int:
        reader, old = entry.reader, entry.key
        columns, rows = reader.segment_columns(np.array([old]))
        row = int(rows[0])
        first, stop = int(columns.first_region[row]), int(columns.first_region[row + 1])
        head = SEGMENT_HEAD.itemsize
        planned = Planned(
            domain,
            address,
            BBox.of(columns.boxes[row].tolist()),
            int(columns.areas[row]),
            columns.region_boxes[first:stop],
            int(reader.lut["segment_length"][old]) - head,
            lambda: reader.segment_bytes(old)[head:],
        )
        return self._append(planned, groups)

    def add_removed(self) -> int:
        """Add a removed entry, which keeps its key and appears in no table, and return the key."""
        self._check_open()
        key = len(self._entries)
        self._entries.append(REMOVED)
        self._removed.append(key)
        return key

    def add_group(self, name: str, keys: Iterable[int] = ()) -> None:
        """Make a group, or add entries to it; groups are stored in order of first use.

        Raises
        ------
        KeyError
            A key that was not added yet, or is removed.
        """
        self._check_open()
        (name,) = check_group_names([name])
        found = [int(key) for key in keys]
        gone = set(self._removed)
        for key in found:
            if not 0 <= key < len(self._entries) or key in gone:
                raise KeyError(f"group {name!r}: no entry {key} was added")
        self._groups.setdefault(name, []).extend(found)

    def copy(self, reader: RecordReader) -> None:
        """Add everything of an open file: entries, removed entries, groups."""
        offset = len(self._entries)
        _ = reader.columns  # one pass for all, where there is no index
        names = iter(zip(*reader.names(), strict=True))
        for name in reader.groups:
            self.add_group(name)
        for key, alive in enumerate(reader.live.tolist()):
            if alive:
                self._add_stored(Entry(reader, key), *next(names), groups=())
            else:
                self.add_removed()
        for name, keys in reader.groups.items():
            self.add_group(name, (keys.astype(np.int64) + offset).tolist())

    def close(self) -> None:
        """Plan, check the limits, and write the file.

        Raises
        ------
        IIDLimitError
            If the format cannot store it; nothing was written.
        OSError
            With errno, and path or URL; what stood there still does.
        """
        if self._closed:
            return
        self._closed = True
        plan = plan_file(self.path, self._entries, self._groups, self.metadata, self._removed)
        with atomic_write(self.path, self.storage_options) as file:
            plan.write(file, index=self.index)

    def _check_head(self, key: int, domain: object, address: object, bbox: BBox | Sequence[int]) -> BBox:
        self._check_open()
        for what, value in (("domain", domain), ("address", address)):
            if not isinstance(value, bytes):
                raise TypeError(f"entry {key}: {what} is {type(value).__name__}, expected bytes: encode text yourself")
        box = BBox.of(bbox)
        if box.min_row < 0 or box.min_col < 0 or box.max_row > MAX_SIDE or box.max_col > MAX_SIDE:
            raise IIDLimitError(
                f"{self.path}: entry {key}: box {tuple(box)} leaves 0 … {MAX_SIDE}, the format's 16 bits; {WAY_OUT}"
            )
        return box


def _plan_regions(key: int, domain: bytes, address: bytes, box: BBox, regions: list[Region]) -> Planned:
    from iid_dask import kernels

    boxes = np.array([tuple(region.bbox) for region in regions], np.int64).reshape(-1, 4)
    area = 0
    for region in regions:
        if region.bbox != region.bbox.intersection(box) or not region.bbox.height or not region.bbox.width:
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} is empty or leaves its box {tuple(box)}")
        wanted = packed_size(*region.bbox.shape)
        if len(region.bits) != wanted:
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} of {len(region.bits)} bytes, expected {wanted}")
        bits = np.frombuffer(region.bits, np.uint8)
        pixels = int(kernels.popcount(bits, region.bbox.height * region.bbox.width))
        if int(kernels.popcount(bits, len(bits) * 8)) != pixels:
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} has pad bits that are not zero")
        if kernels.loose_sides(bits, *region.bbox.shape):
            raise ValueError(f"entry {key}: region {tuple(region.bbox)} is no tight box of its pixels")
        area += pixels
    if area > box.height * box.width:
        raise ValueError(f"entry {key}: regions of {area} pixels in box {tuple(box)}: some overlap, expected pieces")

    def segment() -> bytes:
        parts = []
        for region in regions:
            head = np.array([(REGION_HEAD.itemsize + len(region.bits), tuple(region.bbox))], REGION_HEAD)
            parts += [head.tobytes(), region.bits]
        return b"".join(parts)

    length = sum(REGION_HEAD.itemsize + len(region.bits) for region in regions)
    return Planned(domain, address, box, area, boxes.astype(np.uint16), length, segment)
