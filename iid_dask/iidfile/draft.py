"""A file and what was done to it since it was opened: it can be asked before it is written."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.entry import Entry
from iid_dask.format.plan import REMOVED, FilePlan, Planned, plan_file
from iid_dask.format.reader import open_records
from iid_dask.format.source import BytesSource
from iid_dask.format.writer import IIDWriter
from iid_dask.iidfile.keys import as_keys
from iid_dask.lookup import named
from iid_dask.reader import IIDReader

Box = tuple[int, int, int, int]


class Added(IIDWriter):
    """Entries checked and planned by the writer, kept in memory; keys go on from those of a file."""

    def __init__(self, name: str, first: int = 0) -> None:
        super().__init__(name)
        self.first = first
        # Placeholders of the file's rows: so the writer counts, and names in its messages, the keys of the whole.
        self._entries = [REMOVED] * first

    @property
    def stop(self) -> int:
        """The next key."""
        return len(self._entries)

    @property
    def memberships(self) -> Mapping[str, Sequence[int]]:
        """Group name -> keys put into it, in order of first use."""
        return self._groups

    def since(self, key: int) -> list[Planned]:
        """Return the entries from a key on."""
        return self._entries[key:]


@dataclass(frozen=True)
class Part:
    """A run of rows in one reader; row i of it has the key ``first + i``."""

    first: int
    reader: IIDReader

    @property
    def stop(self) -> int:
        """The key behind its last."""
        return self.first + len(self.reader.lut)


class Draft:
    """Entries of a file, those added to it, and what was removed; the file is not changed.

    Queries return ascending int64 keys. Names and boxes that were loaded stay loaded.

    Parameters
    ----------
    base : IIDReader, optional
        The file; default: none yet.

    Attributes
    ----------
    fetched : set of int
        Keys that the caller asked to load, whatever else was read; some may be removed since.
    """

    def __init__(self, base: IIDReader | None = None) -> None:
        self._names: dict[int, tuple[bytes, bytes]] = {}
        self._heads: dict[int, tuple[Box, int]] = {}
        self.fetched: set[int] = set()
        self._begin(base)

    def rebase(self, base: IIDReader) -> None:
        """Go on with another file, which has the same entries under the same keys; none wait any more."""
        self.fetched.update(range(self.added.first, self.added.stop))
        self._begin(base)

    def _begin(self, base: IIDReader | None) -> None:
        self.name = "a new file" if base is None else base.name
        self.base = base
        self.removed: set[int] = set()
        self.added = Added(self.name, 0 if base is None else len(base.lut))
        self._parts = [] if base is None else [Part(0, base)]

    # --- what there is

    def __contains__(self, key: int) -> bool:
        if key in self.removed:
            return False
        return self.added.first <= key < self.added.stop or (self.base is not None and key in self.base)

    @property
    def keys(self) -> np.ndarray:
        """Keys of all entries."""
        held = np.zeros(0, np.int64) if self.base is None else self.base.entry_keys.astype(np.int64)
        return self._kept(np.concatenate([held, np.arange(self.added.first, self.added.stop)]))

    @property
    def group_names(self) -> list[str]:
        """Names of all groups, in order of first use."""
        stored = () if self.base is None else self.base.groups
        return list(dict.fromkeys([*stored, *self.added.memberships]))

    def members(self, names: Sequence[str]) -> np.ndarray:
        """Return the keys of the members of any of some groups.

        Raises
        ------
        KeyError
            For a group that does not exist; says which do.
        """
        known = self.group_names
        keys = [np.zeros(0, np.int64)]
        for name in names:
            if name not in known:
                raise KeyError(f"{self.name}: no group {name!r}; there is: {known}")
            if self.base is not None and name in self.base.groups:
                keys.append(self.base.groups[name].astype(np.int64))
            keys.append(np.array(self.added.memberships.get(name, ()), np.int64))
        return self._kept(np.unique(np.concatenate(keys)))

    def chosen(self, keys: int | Iterable[int]) -> np.ndarray:
        """Return the keys of the entries that an int, a range, which is clipped, or several ints name.

        Raises
        ------
        KeyError
            For a key that no entry has; says which exist.
        """
        found = as_keys(keys, self.added.stop)
        if isinstance(found, range):
            found = [key for key in found if key in self]
        for key in found:
            self.check(key)
        return np.array(found, np.int64)

    def check(self, key: int) -> None:
        """Raise a KeyError that says which keys exist if this one does not."""
        if key not in self:
            keys = self.keys
            exist = (
                f"keys are integers from {keys[0]} to {keys[-1]}, {len(keys)} in all" if len(keys) else "it has none"
            )
            raise KeyError(f"{self.name}: no entry {key}; {exist}")

    def is_loaded(self, key: int) -> bool:
        """Whether an entry was fetched or added."""
        return key in self.fetched or key >= self.added.first

    def _kept(self, keys: np.ndarray) -> np.ndarray:
        return keys[~np.isin(keys, list(self.removed))] if self.removed else keys

    # --- readers of it

    def parts(self) -> list[Part]:
        """Return readers of all rows: of the file, and of what was added, from memory.

        What was added since the last call becomes a part of its own or joins the last ones that are no larger:
        adding and asking in turn writes each entry into memory log(n) times, not n times.
        """
        first = self._parts[-1].stop if self._parts else 0
        if first < self.added.stop:
            while (
                self._parts and first > self.added.first and len(self._parts[-1].reader.lut) <= self.added.stop - first
            ):
                first = self._parts.pop().first
            data = io.BytesIO()
            plan_file(self.name, self.added.since(first), {}, {}).write(data, index=True)
            source = BytesSource(data.getvalue(), f"{self.name} (entries added from {first} on)")
            self._parts.append(Part(first, IIDReader(source)))
        return self._parts

    def part_of(self, key: int) -> Part:
        """Return the part that holds an entry."""
        self.check(key)
        return next(part for part in reversed(self.parts()) if part.first <= key)

    def entry(self, key: int) -> Entry:
        """Return an entry as its part has it, under the part's own number."""
        part = self.part_of(key)
        return part.reader[key - part.first]

    def ask(self, question: Callable[[IIDReader], np.ndarray]) -> np.ndarray:
        """Return the keys with which all parts answer a question."""
        answers = [question(part.reader).astype(np.int64) + part.first for part in self.parts()]
        return self._kept(np.concatenate([*answers, np.zeros(0, np.int64)]))

    def ask_about(self, keys: np.ndarray, question: Callable[[IIDReader, np.ndarray], np.ndarray]) -> np.ndarray:
        """Return those of some ascending keys that pass; a question gets and returns a part's own numbers."""
        answers = [question(part.reader, rows).astype(np.int64) + part.first for part, rows in self._split(keys)]
        return np.concatenate([*answers, np.zeros(0, np.int64)])

    def _split(self, keys: np.ndarray) -> Iterator[tuple[Part, np.ndarray]]:
        for part in self.parts():
            begin, end = np.searchsorted(keys, (part.first, part.stop))
            if begin < end:
                yield part, keys[begin:end] - part.first

    def named(
        self, keys: np.ndarray, domains: Sequence[bytes] | None, addresses: Sequence[bytes] | None = None
    ) -> np.ndarray:
        """Return those of some keys whose entries have one of the domains and one of the addresses; None is any."""
        return self.ask_about(keys, lambda reader, rows: named(reader, rows, domains, addresses))

    def within(self, keys: np.ndarray, area: tuple[int | None, int | None] | None) -> np.ndarray:
        """Return those of some keys whose areas lie within (min, max), both included; None is no bound."""
        from iid_dask import queries

        bounds = queries.as_bounds(area)
        if bounds is None:
            return keys

        def question(reader: IIDReader, rows: np.ndarray) -> np.ndarray:
            columns, places = reader.segment_columns(rows)
            return rows[queries.within(columns.areas[places], bounds)]

        return self.ask_about(keys, question)

    def overlapping(self, keys: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Yield every two of some keys whose segments share pixels, and how many, ordered by both keys."""
        if not len(keys):
            return
        if len(self.parts()) == 1:
            yield from _pairs(self._parts[0].reader, keys)
            return
        # Pairs cross parts: a file that has all of them answers as any file does.
        with tempfile.TemporaryDirectory(prefix="iid_dask_") as folder:
            path = os.path.join(folder, "draft.iid")
            with open(path, "wb") as file:
                self.plan(path, {}).write(file, index=True)
            with open_records(path, reader=IIDReader) as whole:
                yield from _pairs(whole, keys)

    # --- names and boxes, read once

    def load_names(self, keys: np.ndarray) -> None:
        """Read the names of ascending keys together, where they were not read yet."""
        for part, rows in self._split(_missing(keys, self._names)):
            # All names of a file are one read, which its index can vouch for.
            domains, addresses = part.reader.names(None if len(rows) == len(part.reader) else rows)
            self._names.update(zip((rows + part.first).tolist(), zip(domains, addresses, strict=True), strict=True))

    def load_heads(self, keys: np.ndarray) -> None:
        """Read the boxes and areas of ascending keys together, where they were not read yet."""
        for part, rows in self._split(_missing(keys, self._heads)):
            columns, places = part.reader.segment_columns(rows)
            heads = zip(map(tuple, columns.boxes[places].tolist()), columns.areas[places].tolist(), strict=True)
            self._heads.update(zip((rows + part.first).tolist(), heads, strict=True))

    def names(self, key: int) -> tuple[bytes, bytes]:
        """Return the domain and the address of an entry."""
        if key not in self._names:
            self.check(key)
            self.load_names(np.array([key]))
        return self._names[key]

    def head(self, key: int) -> tuple[Box, int]:
        """Return the box and the area of an entry's segment."""
        if key not in self._heads:
            self.check(key)
            self.load_heads(np.array([key]))
        return self._heads[key]

    # --- changes

    def add(self, domain: bytes, address: bytes, bbox: BBox, mask: Any, groups: Sequence[str]) -> int:
        """Add an entry and return its key; see `IIDWriter.add` for what is refused, by which nothing changes."""
        return self.added.add(domain, address, bbox, np.asarray(mask), groups=groups)

    def remove(self, key: int) -> None:
        """Remove an entry: its key stays taken, and it is in no answer."""
        self.check(key)
        self.removed.add(key)
        self._names.pop(key, None)
        self._heads.pop(key, None)

    # --- writing

    def plan(self, path: str, metadata: Mapping[str, Any]) -> FilePlan:
        """Plan the file; what was not changed is copied from ``base`` when the plan is written.

        Raises
        ------
        IIDLimitError, TypeError, ValueError
            If the format cannot store it.
        """
        stored, gone = Added(path), set(self.removed)
        if self.base is not None:
            stored.copy(self.base)
            gone.update(np.flatnonzero(~self.base.live).tolist())
        entries = [*stored.since(0), *self.added.since(self.added.first)]
        for key in gone:
            entries[key] = REMOVED
        groups = {name: self.members([name]).tolist() for name in self.group_names}
        return plan_file(path, entries, groups, metadata, sorted(gone))


def _pairs(reader: IIDReader, keys: np.ndarray) -> Iterator[tuple[int, int, int]]:
    table = reader.overlaps(keys)
    yield from zip(*(table[column].tolist() for column in ("key_a", "key_b", "pixels")), strict=True)


def _missing(keys: np.ndarray, known: Mapping[int, Any]) -> np.ndarray:
    return np.array([key for key in keys.tolist() if key not in known], np.int64) if known else keys
