"""``ds.iid``: what a dataset of the engine "iid" knows beyond its arrays, in the dataset's own positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr
from xarray.core import indexing

from iid_dask import queries
from iid_dask.arrays import PixelArray
from iid_dask.bbox import BBox, union
from iid_dask.lookup import as_keys
from iid_dask.pieces import Parted, image_box
from iid_dask.placed import find_positions
from iid_dask.reader import IIDReader
from iid_dask.views import View, Window, sampled

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd


class IIDAccessor:
    """Queries and crops of a dataset opened with ``engine="iid"``, also after ``isel``.

    Rows and columns are positions in the dataset, as ``isel`` takes them: in a window they count from its corner,
    with ``stride=`` they count elements. Only entries that the dataset shows (``keys=``, ``groups=``, …) answer.

    Examples
    --------
    >>> import iid_dask, xarray as xr
    >>> ds = xr.open_dataset(iid_dask.sample("us"), engine="iid", groups="states")
    >>> ds.iid.at(300, 200)
    array([1], dtype=uint32)
    >>> arizona = ds.iid.crop(1, margin=5)
    >>> dict(arizona.sizes)["y"], arizona.iid.at(300 - 291, 200 - 169)
    (143, array([1], dtype=uint32))
    """

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    @cached_property
    def placed(self) -> tuple[View, np.ndarray, np.ndarray]:
        """How the file is seen, and the rows and columns of the view's arrays that the dataset has."""
        for variable in self._ds.variables.values():
            found = find_positions(variable) if variable.dims == ("y", "x") else None
            if found is not None:
                array, rows, cols = found
                return array.view, rows, cols
        raise ValueError(
            'ds.iid: no variable (y, x) of this dataset is lazy and as engine="iid" opened it, so nothing tells where '
            "its pixels lie in which file; use it on the opened dataset or on ds.isel(...) of it, before load() or "
            "persist()"
        )

    @property
    def reader(self) -> IIDReader:
        """The open file."""
        return cast(IIDReader, self.placed[0].reader)

    # --- arrays

    def masks(self, keys: int | Iterable[int]) -> xr.DataArray:
        """Return the masks of some entries, a plane each, lazily.

        Parameters
        ----------
        keys
            Of entries of the file, also of those that the dataset does not show.

        Returns
        -------
        bool DataArray (entry, y, x)
            With the coordinate ``key`` on ``entry``; a dask array with a chunk an entry where the dataset has chunks.

        Raises
        ------
        KeyError
            For a key that the file does not have.
        """
        view, rows, cols = self.placed
        known = as_keys(view.reader, keys)
        array = PixelArray(view, "masks", (len(known), *view.out_shape), np.dtype(bool), known)
        lazy = indexing.LazilyIndexedArray(
            array, indexing.OuterIndexer((slice(None), _as_slice(rows), _as_slice(cols)))
        )
        out = xr.DataArray(xr.Variable(("entry", "y", "x"), lazy), coords={"key": ("entry", known)}, name="masks")
        chunks = {dim: sizes for dim, sizes in self._ds.chunksizes.items() if dim in ("y", "x")}
        return out.chunk({"entry": 1, **chunks}) if chunks else out

    def crop(self, key: int, margin: int = 0) -> xr.Dataset:
        """Return the window of an entry's box.

        Parameters
        ----------
        key
        margin
            Elements around it, as far as the dataset reaches.

        Raises
        ------
        KeyError
            If the file has no such entry.
        ValueError
            If the box lies outside the dataset.
        """
        return self._cropped(self.reader[key].bbox, margin, f"entry {key}")

    def autocrop(self, margin: int = 0) -> xr.Dataset:
        """Return the window of all segments that the dataset shows, from boxes alone; ``margin`` as in `crop`."""
        view = self.placed[0]
        columns = view.reader.columns
        if isinstance(view.reader, Parted):  # of a mosaic the boxes of segments are known, and tight
            return self._cropped(union(columns.boxes[view.keys]), margin, "what the dataset shows")
        boxes = columns.region_boxes
        if view.keep is not None:
            boxes = boxes[view.keep[columns.region_keys(np.arange(len(boxes)))]]
        return self._cropped(union(boxes), margin, "what the dataset shows")

    def _cropped(self, box: BBox, margin: int, what: str) -> xr.Dataset:
        if not isinstance(margin, int | np.integer) or isinstance(margin, bool) or margin < 0:
            raise ValueError(f"ds.iid: margin = {margin!r}, expected 0 or more elements")
        view, corner, shape = self._window()
        step = view.stride
        low, high = (box.min_row // step, box.min_col // step), (-(-box.max_row // step), -(-box.max_col // step))
        spans = []
        for start, stop, first, size in zip(low, high, corner, shape, strict=True):
            begin, end = max(start - first, 0), min(stop - first, size)
            if begin >= end:
                raise ValueError(f"ds.iid: {what}, box {tuple(box)}, has no pixel in the window that the dataset is")
            spans.append(slice(max(begin - margin, 0), end + margin))
        return self._ds.isel(y=spans[0], x=spans[1])

    def _window(self) -> tuple[View, tuple[int, int], tuple[int, int]]:
        """The view, and the corner and shape of the dataset in its arrays."""
        view, rows, cols = self.placed
        down, across = _as_slice(rows), _as_slice(cols)
        if not (isinstance(down, slice) and isinstance(across, slice)):
            raise ValueError(
                "ds.iid: the dataset is no plain window of the image: rows or columns were left out or turned around; "
                "at() and masks() work on it, for the others choose a window first"
            )
        return view, (down.start, across.start), (len(rows), len(cols))

    # --- queries

    def at(self, row: Any, col: Any) -> Any:
        """Find the entries at one element or many; as `iid_dask.IIDReader.at`, in positions of the dataset.

        With ``stride=`` an element stands for the pixel that ``label`` shows there; with ``reduce="any"`` for its
        whole block.

        Raises
        ------
        IndexError
            For positions outside the dataset; negative ones count from its end.
        """
        view, rows, cols = self.placed
        where = (rows, cols)
        given = [queries.as_positions(what, value) for what, value in (("row", row), ("col", col))]
        i, j = (np.take(known, some) for known, some in zip(where, given, strict=True))
        if view.reduce == "any" and view.stride > 1:
            return self._in_blocks(view, i, j)
        found = queries.at(view.reader, sampled(view, i, 0), sampled(view, j, 1))
        if not np.ndim(i):
            return found[self._shown(found)]
        keys, points = found
        return keys[self._shown(keys)], points[self._shown(keys)]

    def _in_blocks(self, view: View, rows: np.ndarray, cols: np.ndarray) -> Any:
        parts = []
        for i, j in np.nditer(np.broadcast_arrays(rows, cols), flags=["zerosize_ok"]):
            keys = queries.region(view.reader, image_box(view, Window(BBox(int(i), int(j), int(i) + 1, int(j) + 1))))
            parts.append(keys[self._shown(keys)])
        if not rows.ndim:
            return parts[0]
        keys = np.concatenate([*parts, np.zeros(0, np.uint32)])
        points = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        order = np.lexsort((points, keys))
        return keys[order], points[order]

    def region(self, bbox: BBox | Sequence[int], *, exact: bool = True) -> np.ndarray:
        """Find the entries in a section; as `iid_dask.IIDReader.region`, in positions of the dataset.

        With ``stride=`` an element stands for all pixels of its block.
        """
        keys = queries.region(self.reader, self._in_image(BBox.of(bbox)), exact=exact)
        return keys[self._shown(keys)]

    def _in_image(self, box: BBox) -> BBox:
        view, (top, left), (height, width) = self._window()
        row0, col0, row1, col1 = box.intersection(BBox(0, 0, height, width))
        step, (rows, cols) = view.stride, view.shape
        low, high = ((row0 + top) * step, (col0 + left) * step), ((row1 + top) * step, (col1 + left) * step)
        return BBox(low[0], low[1], max(low[0], min(high[0], rows)), max(low[1], min(high[1], cols)))

    def _shown(self, keys: np.ndarray) -> np.ndarray:
        keep = self.placed[0].keep
        return np.ones(len(keys), bool) if keep is None else keep[keys]

    def overlaps(self, *, min_pixels: int = 1) -> pd.DataFrame:
        """Find the pairs of entries that share pixels, among those with a pixel in the dataset.

        Pixels are those of whole masks; see `iid_dask.IIDReader.overlaps`.
        """
        _, _, shape = self._window()
        from iid_dask import overlapping

        return overlapping.table(self.reader, self.region((0, 0, *shape)), min_pixels=min_pixels)

    @property
    def entries(self) -> dd.DataFrame:
        """The entry table, a dask dataframe: of a window, the entries whose box meets it, in image pixels."""
        from iid_dask.entries import read_entries

        view, (top, left), shape = self._window()
        whole = (top, left) == (0, 0) and shape == view.out_shape
        chosen = view.selection
        low, high = chosen.area or (None, None)
        tests = (
            ("key", "in", chosen.keys),
            ("domain", "in", chosen.domains),
            ("address", "in", chosen.addresses),
            ("area", ">=", low),
            ("area", "<=", high),
        )
        return read_entries(
            view.reader,
            filters=[test for test in tests if test[2] is not None] or None,
            bbox=None if whole else self._in_image(BBox(0, 0, *shape)),
            groups=chosen.groups,
        )


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """A slice where positions follow one another."""
    if len(positions) and np.any(np.diff(positions) != 1):
        return positions
    start = int(positions[0]) if len(positions) else 0
    return slice(start, start + len(positions))
