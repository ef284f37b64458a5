"""What an `IIDFile` has beside its calls: metadata, groups, the table of entries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, KeysView
from dataclasses import dataclass, field
from typing import Any

from iid_dask.iidfile.draft import Draft
from iid_dask.iidfile.entries import FileEntry, found_entries, load_entries
from iid_dask.lookup import as_groups

Keys = int | Iterable[int]
GroupNames = str | Iterable[str]


@dataclass
class Meta:
    """What a file says about itself and its image.

    Attributes
    ----------
    data : dict
        Change it at will; it is stored by `IIDFile.save`.
    """

    data: dict[str, Any] = field(default_factory=dict)


class LookupTable:
    """The entries of a file, and which of them were loaded."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def entries(self) -> list[FileEntry]:
        """All of them."""
        return found_entries(self._draft, self._draft.keys, only_loaded=False)

    @property
    def fetched_keys(self) -> set[int]:
        """Keys of those that were fetched or added."""
        return {entry.key for entry in self.fetched_entries()}

    def fetched_entries(self) -> list[FileEntry]:
        """Return those that were fetched or added."""
        return found_entries(self._draft, self._draft.keys, only_loaded=True)


@dataclass(frozen=True)
class Group:
    """A group of entries; made by `Groups.add`.

    Attributes
    ----------
    groups : Groups
    name : str
    """

    groups: Groups
    name: str

    def keys(self) -> list[int]:
        """Return the keys of its members, ascending."""
        return list(self.groups.get(self.name, keys_only=True))

    def add(self, entries: Iterable[FileEntry]) -> None:
        """Put entries of the same file into it."""
        self.groups.add(self.name, [self.groups.key_of(entry) for entry in entries])


class Groups:
    """The groups of an `IIDFile`.

    Examples
    --------
    >>> import iid_dask
    >>> file = iid_dask.IIDFile(iid_dask.sample("us"))
    >>> file.groups.add("corner", keys=[1, 50]).keys()
    [1, 50]
    >>> file.groups.list()
    ['corner', 'counties', 'nation', 'states']
    >>> [entry.iid.address for entry in file.groups.get("corner")]
    [b'04', b'04015']
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def add(self, name: str, keys: Keys | None = None) -> Group:
        """Make a group, or put entries into it.

        Parameters
        ----------
        name
        keys : int, range or several ints, optional
            Entries to put in.

        Raises
        ------
        KeyError, TypeError, ValueError
            An unknown key; a name that is not text, or has no UTF-8 form. No group is made then.
        """
        found = self._draft.chosen([] if keys is None else keys)
        self._draft.added.add_group(name, found.tolist())
        return Group(self, name)

    def get(
        self, groups: GroupNames, keys_only: bool = False, iids: bool = True, segs: bool = False
    ) -> Collection[Any] | KeysView[int]:
        """Load the members of one group or several.

        Parameters
        ----------
        groups : str or several
        keys_only
            Return their keys and load nothing.
        iids, segs
            Whether to read names; boxes and areas.

        Returns
        -------
        list of FileEntry, or of their keys an ordered set

        Raises
        ------
        KeyError
            An unknown group; says which exist.
        """
        keys = self._draft.members(as_groups(groups) or ())
        if keys_only:
            return dict.fromkeys(keys.tolist()).keys()
        self._draft.fetched.update(keys.tolist())
        return load_entries(self._draft, keys, iids=iids, segs=segs)

    def key_of(self, entry: FileEntry) -> int:
        """Return the key of an entry of this file; ValueError for one of another."""
        if entry.draft is not self._draft:
            raise ValueError(f"{entry!r} is of {entry.draft.name}, expected an entry of {self._draft.name}")
        return entry.key

    def list(self) -> list[str]:
        """Return the names of all groups, in alphabetical order."""
        return sorted(self._draft.group_names)
