"""The manifest of a mosaic and the tables that it lists: checked when they are read, trusted from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from iid_dask.errors import IIDChangedError, IIDFormatError
from iid_dask.format.folder import Folder, Stamp
from iid_dask.format.layout import Limits
from iid_dask.format.sections import brief, parse_json
from iid_dask.mosaic.folder import MANIFEST, MAX_MOSAIC_SIDE, VERSION
from iid_dask.mosaic.recent import Recent
from iid_dask.mosaic.tables import SCHEMAS, TableFile, read_table, table_file

TABLES = ("tiles", "segments", "pieces", "members")
"""Those that a reader needs."""

ROWS_A_BYTE = 256
"""Rows of a table that a byte of its file stands for, at most: its columns are no larger than that allows."""

KEPT = 2**25
"""Bytes of row groups that are kept."""

MAX_SEGMENTS = 2**32 - 2
"""Labels, key + 1, have 32 bits."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """What ``mosaic.json`` says.

    Attributes
    ----------
    folder : Folder
    name : str
        Of the manifest's file, for messages.
    job : str
        What the metadata of each tile must name.
    shape : (rows, columns)
        Of the mosaic, pixels.
    metadata : dict
    groups : tuple of str
        In their order.
    tables : dict
        Name -> ``path``, ``rows``, ``nbytes`` and ``crc``, of all that are listed.
    """

    folder: Folder
    name: str
    job: str
    shape: tuple[int, int]
    metadata: dict[str, Any]
    groups: tuple[str, ...]
    tables: dict[str, dict[str, Any]]

    @classmethod
    def parse(cls, folder: Folder, data: bytes, limits: Limits) -> Manifest:
        """Check the manifest of a folder.

        Raises
        ------
        IIDFormatError
            For what `iid_dask.finish` does not write; says which field.
        """

        path = folder.child(MANIFEST)

        def fail(found: str, expected: str) -> IIDFormatError:
            return IIDFormatError(path, "manifest", None, None, found, expected)

        if len(data) > limits.max_meta:
            raise fail(f"{len(data)} bytes", f"at most {limits.max_meta} (limits=)")
        # Metadata may be as deep as in a file; here they stand in an object.
        value = parse_json(data, replace(limits, max_json_depth=limits.max_json_depth + 1), fail)
        if not isinstance(value, dict):
            raise fail(f"a JSON {type(value).__name__}", "a JSON object")
        if value.get("version") != VERSION:
            raise fail(f"version {brief(value.get('version'))}", f"{VERSION}")
        check_fields(path, value, FIELDS)
        tables = dict.fromkeys(TABLES) | value["tables"]
        for name, listed in tables.items():
            if not _is_listed(listed):
                raise fail(f"table {name:.80} {brief(listed)}", "an object with path, rows, nbytes and crc")
            folder.inside(listed["path"])
        if tables["segments"]["rows"] > MAX_SEGMENTS:
            raise fail(f"{tables['segments']['rows']} segments", f"at most {MAX_SEGMENTS}")
        height, width = value["shape"]
        groups = tuple(value["groups"])
        return cls(folder, path, value["job"], (height, width), value["metadata"], groups, tables)


def _is_count(value: object, most: int = 2**62) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(side, MAX_MOSAIC_SIDE) for side in value)


def are_groups(value: object) -> bool:
    """Whether a value is a list of names, each once."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)


def _is_listed(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("path"), str)
        and all(_is_count(value.get(name)) for name in ("rows", "nbytes", "crc"))
        and value["rows"] <= ROWS_A_BYTE * value["nbytes"]
    )


def is_a(kind: type) -> Callable[[object], bool]:
    """Return what tells whether a value is of a kind."""
    return lambda value: isinstance(value, kind)


Fields: TypeAlias = Mapping[str, tuple[Callable[[object], bool], str]]
"""Fields of an object: whether a value is sound, and what is expected."""

FIELDS: Fields = {
    "job": (is_a(str), "the job's name"),
    "shape": (_is_shape, f"[rows, columns], each 0 … {MAX_MOSAIC_SIDE}"),
    "metadata": (is_a(dict), "an object"),
    "groups": (are_groups, "a list of names, each once"),
    "tables": (is_a(dict), "an object"),
}
"""What a reader needs of a manifest."""


def check_fields(path: str, value: Mapping[str, Any], fields: Fields, *, of: str = "") -> None:
    """Raise IIDFormatError for a field of a manifest that is missing, or not what is expected.

    Parameters
    ----------
    path
        Of the manifest, for the message.
    value
        What holds the fields.
    fields
    of
        What stands before their names in the message.
    """
    for name, (sound, expected) in fields.items():
        if name not in value or not sound(value[name]):
            found = f"no {of}{name}" if value.get(name) is None else f"{of}{name} {brief(value[name])}"
            raise IIDFormatError(path, "manifest", None, None, found, f"{expected}; finish the mosaic again")


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of a table, by name."""

    values: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(int(values.nbytes) for values in self.values.values())


class Tables:
    """The tables of a mosaic; each is compared with its checksums: a local file whole before its first use, an object
    page by page as it is read.

    Parameters
    ----------
    manifest
    stamp
        Of the manifest's file when it was read: tables of another one are refused.
    verify
        Whether checksums are compared.
    """

    def __init__(self, manifest: Manifest, stamp: Stamp, *, verify: bool) -> None:
        self.manifest, self.stamp, self.verify = manifest, stamp, verify
        self._starts: dict[str, np.ndarray] = {}
        self._files: dict[str, TableFile] = {}
        self._recent = Recent(KEPT)

    def rows(self, name: str) -> int:
        """Rows of a table."""
        return int(self.manifest.tables[name]["rows"])

    def read(self, name: str, columns: Iterable[str], rows: np.ndarray | None = None) -> dict[str, Any]:
        """Read columns of a table, or some rows of them.

        Parameters
        ----------
        name, columns
        rows : int64 array, optional
            Which, in which order; only row groups that hold some of them are read. Default: all.

        Returns
        -------
        dict
            Numpy arrays; names are Arrow arrays.

        Raises
        ------
        IIDFormatError
            If the file is damaged, or not what the manifest lists.
        IIDChangedError
            If the manifest was replaced since it was read.
        """
        starts, wanted = self._checked(name), tuple(columns)
        if rows is None:
            return self._read(name, wanted).values
        of = np.searchsorted(starts, rows, side="right") - 1
        groups = np.unique(of)
        if len(groups) == 1:  # neighbours often ask for the same one
            found = self._recent.get(
                (name, wanted, int(groups[0])), lambda: self._read(name, wanted, groups.tolist())
            ).values
        else:
            found = self._read(name, wanted, groups.tolist()).values
        sizes = np.diff(starts)[groups]
        shift = np.zeros(len(starts), np.int64)
        shift[groups] = np.cumsum(sizes) - sizes - starts[groups]
        places = rows + shift[of]
        return {
            column: values[places] if isinstance(values, np.ndarray) else values.take(pa.array(places))
            for column, values in found.items()
        }

    def _read(self, name: str, columns: tuple[str, ...], row_groups: list[int] | None = None) -> Columns:
        """Read columns, and refuse nulls: numpy makes floats of integers beside them."""
        listed = self.manifest.tables[name]
        try:
            found = read_table(
                self.manifest.folder,
                listed,
                SCHEMAS[name],
                columns,
                row_groups=row_groups,
                file=self._files.get(name),
            )
        except FileNotFoundError as error:
            raise self._gone(name) from error
        for column, values in found.items():
            null = values.dtype.kind not in "iu" if isinstance(values, np.ndarray) else values.null_count > 0
            if null:
                path = self.manifest.folder.child(listed["path"])
                raise IIDFormatError(path, "file", None, None, f"nulls in {column}", "none")
        return Columns(found)

    def refuse_replaced(self) -> None:
        """Raise IIDChangedError if the manifest is not the one that was read any more."""
        try:
            stamp = self.manifest.folder.stamp(MANIFEST)
        except FileNotFoundError:
            raise IIDChangedError(f"{self.manifest.name}: gone since opened; open the mosaic again") from None
        if stamp != self.stamp:
            raise IIDChangedError(f"{self.manifest.name}: changed since opened; open the mosaic again")

    def _checked(self, name: str) -> np.ndarray:
        """Where the row groups of a table begin, and its rows; what is wrong with its file is said at its first use."""
        self.refuse_replaced()
        if name not in self._starts:
            listed = self.manifest.tables[name]
            try:
                file = table_file(self.manifest.folder, listed, verify=self.verify)
                if self.verify and file.source is None:
                    check_crc(self.manifest.folder, listed["path"], listed["crc"])
                self._starts[name] = _row_groups(file, listed)
                if file.source is not None:
                    self._files[name] = file
            except FileNotFoundError as error:
                raise self._gone(name) from error
        return self._starts[name]

    def _gone(self, name: str) -> IIDFormatError:
        self.refuse_replaced()  # who decides anew removes old tables when the new manifest is in place
        path = self.manifest.tables[name]["path"]
        return IIDFormatError(
            self.manifest.name,
            "manifest",
            None,
            None,
            f"no file {path}",
            f"the table of {name}; finish the mosaic again",
        )


def _row_groups(file: TableFile, listed: dict[str, Any]) -> np.ndarray:
    """Return the first row of each row group, and the number of rows; int64."""
    path = file.path
    try:
        facts = file.facts
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise IIDFormatError(path, "file", None, None, f"{error!s:.300}", "a Parquet file") from error
    sizes = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
    if facts.num_rows != listed["rows"] or sum(sizes) != listed["rows"]:
        raise IIDFormatError(path, "file", None, None, f"{facts.num_rows} rows", f"{listed['rows']}")
    return np.cumsum([0, *sizes], dtype=np.int64)


def check_crc(folder: Folder, name: str, expected: int) -> None:
    """Raise IIDFormatError for a file that has another crc32."""
    found = folder.crc32(name)
    if found != expected:
        raise IIDFormatError(folder.child(name), "file", None, None, f"crc32 {found:#010x}", f"{expected:#010x}")
