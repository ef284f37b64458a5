"""`IIDFile`: the calls of the published `iidfile` package."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from operator import index as as_index
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.reader import open_records
from iid_dask.format.target import atomic_write
from iid_dask.iidfile.draft import Draft
from iid_dask.iidfile.entries import FileEntry, as_box, found_entries, load_entries
from iid_dask.iidfile.tables import GroupNames, Groups, Keys, LookupTable, Meta
from iid_dask.lookup import as_groups, as_names
from iid_dask.reader import IIDReader

Names = bytes | Iterable[bytes | None] | None


class IIDFile:
    """An ``.iid`` file: read it, ask it, add to it, save it; a drop-in for ``iidfile.IIDFile``.

    Opening reads tables only. The rest is read when a call needs it or an entry is touched, so nothing that is
    asked for is ever None. Entries just added can be fetched and asked like those of the file. Boxes are
    (min_row, min_col, max_row, max_col), half-open, in image pixels; all answers are lists of entries by
    ascending key.

    Parameters
    ----------
    fpath : path, optional
        The file to open; anything that `iid_dask.open` reads. Default: begin a new one.

    Attributes
    ----------
    meta : Meta
        ``meta.data`` is the metadata, a dict that may be changed.
    groups : Groups
        ``groups.add``, ``groups.get``, ``groups.list``.
    lut : LookupTable
        ``lut.entries``, ``lut.fetched_keys``.

    Raises
    ------
    FileNotFoundError, IIDFormatError
        No such file, or not a sound one.

    Notes
    -----
    Programs written for ``iidfile`` 0.2.0 run unchanged but for these differences, all on purpose:

    ============================================  ====================================================
    ``iidfile`` 0.2.0                             here
    ============================================  ====================================================
    ``at(x, y)`` looks at the 2 × 2 pixels        exactly the pixel of row y, column x
    from (y - 1, x - 1)
    ``filter(area=(a, b))`` leaves out both ends  both included; None is no bound
    ``overlap_graph`` only                        also ``compute_overlap``, as its page names it
    ``fetch``, ``filter`` and keys of groups      ascending keys; ``groups.get(keys_only=True)`` is an
    come in the order of a set                    ordered set (a dict's keys)
    ``fetch(group=...)``: TypeError               the same as ``groups=``
    a range beyond the file: IndexError           clipped like a slice
    ``fetch(keys=-1)`` is the last entry          KeyError, as for every key that no entry has
    ``iids=True`` also loads segments             names only; ``segs=True`` alone: segments only
    what was not fetched is None                  it is read when it is touched
    any query counts all entries as fetched       only ``fetch`` and ``groups.get`` do; so
                                                  ``only_loaded=True`` means what was asked for
    entries just added: AttributeError            they answer as others do
    after ``save`` the object is of no more use   it goes on, on the file that was saved
    saving what was partly loaded loses the rest  the rest is copied
    a failing ``save`` leaves 0 bytes             what stood there stays
    an empty group fails on save                  stored
    no way to remove an entry                     ``remove(key)``
    integer masks are split by value; a mask of   any truthy value is a pixel; area 0
    zero size fails
    ``seg.mask(bbox)`` of a box that ends before  an empty array
    the segment: a wrong crop
    ``look_for(["text"])`` finds nothing          TypeError: names are bytes
    a box or an area upside down finds nothing    ValueError
    opens files for writing                       for reading only
    ============================================  ====================================================

    As there, ``groups`` goes before ``keys`` where both are given, an empty list of groups or domains is no
    restriction, and an empty domain reads as None (``b""`` finds it too). Entries cannot be assigned to: to
    rename one or change its mask, remove it and add another. The reference's tables of bytes (``header``,
    ``iids``, ``segs``, ``mmap``, ``bufloc``) are not offered.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from iid_dask import IIDFile
    >>> file = IIDFile()
    >>> file.add(address=b"leaf", domain=b"plant", bbox=(10, 20, 12, 23), mask=np.ones((2, 3)), group="sys")
    >>> file.add(address=b"root", domain=b"plant", bbox=(11, 22, 13, 24), mask=np.ones((2, 2)))
    >>> file.meta.data["camera"] = "A"
    >>> [entry.iid.address for entry in file.at(22, 11)]
    [b'leaf', b'root']
    >>> path = os.path.join(tempfile.mkdtemp(), "plant.iid")
    >>> file.save(path)
    >>> [entry.seg.bbox for entry in IIDFile(path).fetch(groups="sys")]
    [(10, 20, 12, 23)]
    """

    def __init__(self, fpath: Any = None) -> None:
        self._draft = Draft(None if fpath is None else open_records(fpath, reader=IIDReader))
        self.meta = Meta({} if self._draft.base is None else self._draft.base.metadata)
        self.groups = Groups(self._draft)
        self.lut = LookupTable(self._draft)

    def __repr__(self) -> str:
        return f"<IIDFile {self._draft.name}: {len(self._draft.keys)} entries, {len(self._draft.group_names)} groups>"

    # --- changes

    def add(
        self,
        address: bytes,
        domain: bytes | None,
        bbox: BBox | Iterable[int],
        mask: Any,
        group: GroupNames | None = None,
    ) -> None:
        """Add an entry; its key is the next one.

        Parameters
        ----------
        address, domain : bytes
            The IID; either may be empty. None is the empty domain.
        bbox
            Where the mask lies.
        mask : array, shape of the box, any dtype
            What is truthy is a pixel.
        group : str or several, optional
            Groups to put it into, which are made if need be.

        Raises
        ------
        TypeError
            Names that are not bytes, groups that are not text, a box that is not of integers.
        ValueError
            A mask that does not fit its box, a box upside down; IIDLimitError, which is one, for a box outside
            0 … 65,535. Nothing is added then.
        """
        names = as_groups(group) or ()
        self._draft.add(b"" if domain is None else domain, address, as_box(bbox), mask, names)

    def remove(self, key: int) -> None:
        """Remove an entry.

        Its key stays taken: others keep theirs. In the file an empty record is left, listed under ``removed`` in
        the metadata, so that the reference opens it.

        Raises
        ------
        KeyError
            No such entry; says which keys exist.
        """
        (key,) = self._draft.chosen([key]).tolist()
        self._draft.remove(key)

    def save(self, fpath: str | os.PathLike[str], *, index: bool = True) -> None:
        """Write the file, whole or not at all, and go on with it.

        Entries of the file that was opened keep their keys and bytes, loaded or not; those added follow. Any
        file may be written over, also the one that was opened.

        Parameters
        ----------
        fpath
            A file there is replaced when the new one is complete.
        index
            Put iid_dask's index behind the last section, which the reference does not see. Without it, the bytes
            are those that the reference writes, but for the order of keys in a group (here ascending).

        Raises
        ------
        TypeError, ValueError
            Metadata that JSON cannot hold, a file beyond the format's limits (IIDLimitError).
        OSError
            With errno and path. After any error what stood at ``fpath`` still does, and the object is unchanged.
        """
        plan = self._draft.plan(os.fspath(fpath), self._metadata())
        with atomic_write(fpath) as file:
            plan.write(file, index=index)
        self._draft.rebase(open_records(fpath, reader=IIDReader))

    def dump(self) -> bytes:
        """Return what ``save(..., index=False)`` would write."""
        data = io.BytesIO()
        self._draft.plan(self._draft.name, self._metadata()).write(data, index=False)
        return data.getvalue()

    def _metadata(self) -> Mapping[str, Any]:
        if not isinstance(self.meta.data, Mapping):
            raise TypeError(f"meta.data is {type(self.meta.data).__name__}, expected a dict")
        return self.meta.data

    # --- entries

    def fetch(
        self,
        keys: Keys | None = None,
        all_keys: bool = False,
        groups: GroupNames | None = None,
        iids: bool | None = None,
        segs: bool | None = None,
        everything: bool = False,
        *,
        group: GroupNames | None = None,
    ) -> list[FileEntry]:
        """Load entries and return them; without arguments none.

        Parameters
        ----------
        keys : int, range or several ints, optional
            A range is clipped to the file like a slice.
        all_keys
            All entries.
        groups : str or several, optional
            Members of any of these; goes before ``keys`` and ``all_keys``.
        iids, segs : bool, optional
            Whether to read names; boxes and areas. One alone given as True leaves the other out, given as False
            leaves that one out; default: both. Masks are read when they are asked for.
        everything
            All entries, names and boxes, whatever else is given.
        group
            Another name of ``groups``.

        Returns
        -------
        list of FileEntry

        Raises
        ------
        KeyError
            An unknown key or group; says what exists.
        TypeError
            Keys that are not integers; both ``groups`` and ``group``.
        """
        if group is not None:
            if groups is not None:
                raise TypeError("fetch: groups= and group= are one argument, give either")
            groups = group
        members = as_groups(groups)
        if everything or (all_keys and not members):
            found = self._draft.keys
        elif members:
            found = self._draft.members(members)
        else:
            found = self._draft.chosen([] if keys is None else keys)
        names = not segs if iids is None else iids
        heads = not iids if segs is None else segs
        self._draft.fetched.update(found.tolist())
        return load_entries(self._draft, found, iids=names or everything, segs=heads or everything)

    def look_for(
        self,
        addresses: bytes | Iterable[bytes],
        domains: Names = None,
        groups: GroupNames | None = None,
        segs: bool = False,
    ) -> list[FileEntry]:
        """Find the entries of certain names.

        Parameters
        ----------
        addresses : bytes or several
            One of these, exactly.
        domains : bytes or several, optional
            And in one of these domains; None among several, like ``b""``, is the empty one.
        groups : str or several, optional
            And in one of these groups.
        segs
            Read boxes and areas of those found, too.

        Raises
        ------
        TypeError
            For a name that is not bytes.
        KeyError
            For an unknown group; says which exist.
        """
        wanted = as_names("addresses", addresses)
        if wanted is None:
            raise TypeError("addresses: None, expected bytes or several")
        found = self._draft.named(self._in_groups(groups), _as_domains(domains), wanted)
        return load_entries(self._draft, found, iids=True, segs=segs)

    def filter(
        self,
        groups: GroupNames | None = None,
        area: tuple[int | None, int | None] | None = None,
        domains: Names = None,
        iids: bool = True,
        segs: bool = False,
    ) -> list[FileEntry]:
        """Find the entries that pass all of these, loaded or not.

        Parameters
        ----------
        groups : str or several, optional
            Members of any of these.
        area : (min, max), optional
            Pixels, both included; None is no bound.
        domains : bytes or several, optional
            As in `look_for`.
        iids, segs
            Whether to read names, boxes and areas of those found now, together, rather than when touched.

        Raises
        ------
        KeyError, TypeError, ValueError
            An unknown group; domains that are not bytes; an area that is no pair.
        """
        of_domains = _as_domains(domains)
        found = self._draft.within(self._in_groups(groups), area)
        return load_entries(self._draft, self._draft.named(found, of_domains), iids=iids, segs=segs)

    def at(self, x: int, y: int, only_loaded: bool = False) -> list[FileEntry]:
        """Find the entries that cover a pixel.

        Parameters
        ----------
        x, y : int
            Column and row. Outside the image nothing is found.
        only_loaded
            Only among entries that were fetched or added.

        Raises
        ------
        TypeError
            For positions that are not integers.
        """
        try:
            col, row = as_index(x), as_index(y)
        except TypeError as error:
            raise TypeError(f"at({x!r}, {y!r}): expected integers, the column and the row of a pixel") from error
        return found_entries(self._draft, self._draft.ask(lambda reader: reader.at(row, col)), only_loaded=only_loaded)

    def region(self, bbox: BBox | Iterable[int], only_loaded: bool = False) -> list[FileEntry]:
        """Find the entries that have a pixel in a box.

        Parameters
        ----------
        bbox
            It may leave the image.
        only_loaded
            Only among entries that were fetched or added.

        Raises
        ------
        TypeError, ValueError
            For a box that is not four integers, or upside down.
        """
        box = as_box(bbox)
        return found_entries(self._draft, self._draft.ask(lambda reader: reader.region(box)), only_loaded=only_loaded)

    def overlap_graph(self, everything: bool = True) -> tuple[list[FileEntry], list[tuple[FileEntry, FileEntry, int]]]:
        """Find all pairs of entries that share pixels.

        Parameters
        ----------
        everything
            Among all entries; else only among those that were fetched or added.

        Returns
        -------
        nodes : list of FileEntry
            The entries looked at.
        edges : list of (FileEntry, FileEntry, int)
            Two that overlap, the lower key first, and in how many pixels; ordered by both keys.
        """
        nodes = found_entries(self._draft, self._draft.keys, only_loaded=not everything)
        by_key = {entry.key: entry for entry in nodes}
        keys = np.array(list(by_key), np.int64)
        return nodes, [(by_key[a], by_key[b], pixels) for a, b, pixels in self._draft.overlapping(keys)]

    def compute_overlap(
        self, everything: bool = True
    ) -> tuple[list[FileEntry], list[tuple[FileEntry, FileEntry, int]]]:
        """Do what `overlap_graph` does; the reference's page calls it so."""
        return self.overlap_graph(everything)

    def _in_groups(self, groups: GroupNames | None) -> np.ndarray:
        names = as_groups(groups)
        return self._draft.members(names) if names else self._draft.keys


def _as_domains(domains: Names) -> tuple[bytes, ...] | None:
    """Return domains as bytes; None for no restriction."""
    if domains is None or isinstance(domains, bytes):
        return as_names("domains", domains) or None
    if isinstance(domains, Iterable) and not isinstance(domains, str):
        return as_names("domains", [b"" if domain is None else domain for domain in domains]) or None
    return as_names("domains", domains) or None
