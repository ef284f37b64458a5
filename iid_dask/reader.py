"""An open ``.iid`` file and the questions it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.reader import RecordReader

# What answers is imported where it is called: opening a file loads neither numba nor pandas.
if TYPE_CHECKING:
    import pandas as pd

    from iid_dask.flattening import FlattenReport


class IIDReader(RecordReader):
    """A read-only mapping key -> `Entry` over an open ``.iid`` file, and its queries; made by `iid_dask.open`.

    Opening reads the header, the lut, the metadata and the groups. Columns that need the segments are made at
    first use: from the index, or by one pass over the segments. Safe to use from many threads; pickles to the
    path and a stamp of the file's version.

    Queries return keys, ascending uint32 arrays: ``reader[key]`` is the entry.

    Attributes
    ----------
    name : str
        Path or URL.
    lut : structured array, shape (n,)
        Locations; rows of removed entries are among them.
    live : bool array, shape (n,)
        False for removed entries, which are in no table.
    metadata : dict
        As stored, but for the list of removed entries.
    metadata_json : str
        The stored text.
    groups : dict
        Group name -> ascending uint32 keys.
    limits : Limits
    """

    def at(self, row: Any, col: Any) -> Any:
        """Find the entries that cover a pixel, or many pixels.

        Parameters
        ----------
        row, col : int, or integer arrays of one shape
            Image pixels; those outside the image are covered by nothing.

        Returns
        -------
        uint32 array, or two arrays
            For one pixel: keys, ascending. For arrays: ``keys, points``, one element for every entry and pixel of
            which the one covers the other, ordered by key, then point; ``points`` (int64) are positions in the
            flattened arrays.

        Examples
        --------
        >>> import iid_dask
        >>> with iid_dask.open(iid_dask.sample("us")) as f:
        ...     [f[key].address for key in f.at(300, 200)]
        ...     keys, points = f.at([300, 0], [200, 0])
        ...     keys.tolist(), points.tolist()
        [b'None', b'04', b'04015']
        ([0, 1, 50], [0, 0, 0])
        """
        from iid_dask import queries

        return queries.at(self, row, col)

    def region(self, bbox: BBox | Sequence[int], *, exact: bool = True) -> np.ndarray:
        """Find the entries in a section of the image.

        Parameters
        ----------
        bbox
            Half-open, image pixels; it may leave the image.
        exact
            Entries that have a pixel in it; if False, entries whose box meets it, and no mask is read.

        Returns
        -------
        uint32 array
            Keys, ascending.

        Examples
        --------
        >>> import iid_dask
        >>> with iid_dask.open(iid_dask.sample("us")) as f:
        ...     f.region((300, 200, 310, 210)).tolist(), len(f.region((300, 200, 310, 210), exact=False))
        ([0, 1, 50], 4)
        """
        from iid_dask import queries

        return queries.region(self, bbox, exact=exact)

    def look_for(
        self,
        addresses: bytes | Iterable[bytes] | None,
        domains: bytes | Iterable[bytes] | None = None,
        groups: str | Iterable[str] | None = None,
    ) -> np.ndarray:
        """Find the entries of certain names; reads names only.

        Parameters
        ----------
        addresses, domains : bytes or several, optional
            One of these, exactly; None is any.
        groups : str or several, optional
            Only members of any of these.

        Returns
        -------
        uint32 array
            Keys, ascending; empty if nobody bears such a name.

        Raises
        ------
        TypeError
            For a name that is not bytes.
        KeyError
            For a group that the file does not have.

        Examples
        --------
        >>> import iid_dask
        >>> with iid_dask.open(iid_dask.sample("us")) as f:
        ...     f.look_for([b"04", b"04013"], domains=b"states").tolist()
        [1]
        """
        from iid_dask import queries

        return queries.look_for(self, addresses, domains, groups)

    def filter(
        self,
        *,
        groups: str | Iterable[str] | None = None,
        domains: bytes | Iterable[bytes] | None = None,
        area: tuple[int | None, int | None] | None = None,
        bbox: BBox | Sequence[int] | None = None,
    ) -> np.ndarray:
        """Find the entries that pass all of these; None passes all. No mask is read.

        Parameters
        ----------
        groups : str or several, optional
            Members of any of these.
        domains : bytes or several, optional
        area : (min, max), optional
            Pixels, both included; None is no bound.
        bbox : optional
            Entries whose box meets it; `region` looks at pixels.

        Returns
        -------
        uint32 array
            Keys, ascending.

        Examples
        --------
        >>> import iid_dask
        >>> with iid_dask.open(iid_dask.sample("us")) as f:
        ...     [f[key].address for key in f.filter(groups="states", area=(16_593, None))]
        [b'48', b'06', b'30']
        """
        from iid_dask import queries

        return queries.filter_entries(self, groups=groups, domains=domains, area=area, bbox=bbox)

    def entries(self, keys: Any = None, *, columns: Sequence[str] | None = None, names: str = "bytes") -> pd.DataFrame:
        """Return the entry table.

        Parameters
        ----------
        keys : sequence of int, optional
            Which entries, and in which order; default: all, ascending.
        columns, names
            As in `iid_dask.read_entries`.

        Returns
        -------
        pandas.DataFrame
            One row an entry, indexed by key.

        Examples
        --------
        >>> import iid_dask
        >>> with iid_dask.open(iid_dask.sample("us")) as f:
        ...     print(f.entries(f.at(300, 200), columns=["domain", "area"], names="text"))
                 domain    area
        entry
        0        nation  327509
        1        states   11613
        50     counties    1387
        """
        from iid_dask import entries

        return entries.table(self, keys, columns=columns, names=names)

    def overlaps(self, keys: Any = None, *, min_pixels: int = 1) -> pd.DataFrame:
        """Find all pairs of entries that share pixels, and how many; see `iid_dask.overlaps`, which is parallel.

        Parameters
        ----------
        keys : sequence of int, optional
            Only pairs among these.
        min_pixels
            Only pairs that share at least so many, 1 or more.

        Returns
        -------
        pandas.DataFrame
            Columns key_a < key_b, pixels, iou, containment, ordered by both keys.
        """
        from iid_dask import overlapping

        return overlapping.table(self, keys, min_pixels=min_pixels)

    def flatten_report(self, *, overlap: str = "last", shape: tuple[int, int] | None = None) -> FlattenReport:
        """Say what a label array loses: for each entry, pixels kept and pixels lost, and to whom.

        Parameters
        ----------
        overlap : {"last", "first", "smallest", "largest"}
            As in ``xr.open_dataset``.
        shape : (rows, columns), optional
            As in ``xr.open_dataset``.
        """
        from iid_dask import flattening

        return flattening.flatten_report(self, overlap=overlap, shape=shape)
