"""What segments of label arrays are called, and the groups that they are in."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from iid_dask.format.columns import Names
from iid_dask.format.plan import check_group_names
from iid_dask.mosaic.survey import Strings

Lookup = Mapping[int, Any] | Callable[[int], Any]
"""A mapping, or a function, of a label."""


@dataclass(frozen=True)
class Naming:
    """What segments of label arrays are called; masks keep the names that they came with.

    Attributes
    ----------
    names
        Label -> address, str (UTF-8) or bytes; default: the label in decimal.
    domain : bytes
        Of all of them.
    groups
        Label -> name of a group, or several, or None; labels that a mapping lacks are in no group.
    """

    names: Lookup | None = None
    domain: bytes = b""
    groups: Lookup | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.domain, bytes):
            raise TypeError(f"domain = {self.domain!r}: expected bytes")
        for what in ("names", "groups"):
            value = getattr(self, what)
            if value is not None and not callable(value) and not hasattr(value, "keys"):
                raise TypeError(f"{what} is a {type(value).__name__}: expected a mapping or a function of the label")

    @property
    def given(self) -> bool:
        """Whether anything but the defaults is asked for."""
        return bool(self.names is not None or self.domain or self.groups is not None)


def names_of(naming: Naming, labels: np.ndarray) -> tuple[Strings, Strings]:
    """Return domain and address of each label.

    Raises
    ------
    KeyError
        For labels that a mapping of names lacks.
    TypeError
        For a name that is neither text nor bytes.
    """
    domains = Strings.of([naming.domain] * len(labels))
    if naming.names is None:
        plain = Names.decimal(b"", labels)
        return domains, Strings.cut(plain.text, plain.starts, plain.stops)
    return domains, Strings.of([_name(label, value) for label, value in _look_up(naming.names, labels)])


def _name(label: int, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"names: label {label} is called {value!r:.80}, which has no UTF-8 form") from error
    if isinstance(value, bytes):
        return value
    raise TypeError(f"names: label {label} is called {value!r:.80}: expected str or bytes")


def _look_up(lookup: Any, labels: np.ndarray) -> Iterable[tuple[int, Any]]:
    numbers = labels.tolist()
    if not hasattr(lookup, "keys"):
        return ((number, lookup(number)) for number in numbers)
    missing = [number for number in numbers if number not in lookup]
    if missing:
        raise KeyError(
            f"names: no entry for {len(missing)} of {len(numbers)} labels, the first is {missing[0]}; add them, "
            "or give a function, which can say what the others are"
        )
    return ((number, lookup[number]) for number in numbers)


def groups_of(naming: Naming, labels: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return names of groups, and (place in them, row of the label) of their members."""
    numbers: dict[str, int] = {}
    groups, rows = array("q"), array("q")
    lookup: Any = naming.groups
    if hasattr(lookup, "keys"):
        lookup = lookup.get if hasattr(lookup, "get") else dict(lookup).get  # who is not in it is in no group
    for row, label in enumerate(labels.tolist() if lookup is not None else ()):
        value = lookup(label)
        names = () if value is None else (value,) if isinstance(value, str) else value
        if isinstance(names, bytes) or not isinstance(names, Iterable):
            raise TypeError(f"groups: label {label} is in {value!r:.80}: expected str, or several")
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"groups: label {label} is in {name!r:.80}: expected str, or several")
            if name not in numbers:
                check_group_names([name])
            groups.append(numbers.setdefault(name, len(numbers)))
            rows.append(row)
    return list(numbers), np.stack([np.array(groups, np.int64), np.array(rows, np.int64)], axis=1)


def ordered_groups(names: list[str], members: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Sort groups by their smallest key, then name, and leave out empty ones.

    Parameters
    ----------
    names : list of str
    members : int64 array, shape (m, 2)
        Place in ``names`` and key; pairs may come several times.

    Examples
    --------
    >>> names, members = ordered_groups(["b", "a", "c"], np.array([[0, 3], [1, 0], [0, 3], [0, 1]]))
    >>> names, members.tolist()
    (['a', 'b'], [[0, 0], [1, 1], [1, 3]])
    """
    codes = np.unique(members[:, 0] << 32 | members[:, 1])
    pairs = np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1)
    used, starts = np.unique(pairs[:, 0], return_index=True)
    lowest = dict(zip(used.tolist(), pairs[starts, 1].tolist(), strict=True))
    order = sorted(lowest, key=lambda number: (lowest[number], names[number]))
    place = np.zeros(len(names), np.int64)
    place[order] = np.arange(len(order))
    pairs[:, 0] = place[pairs[:, 0]]
    return [names[number] for number in order], pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
