"""What a finished mosaic keeps: tables and manifest written, and read back to decide again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from iid_dask.bbox import BBox
from iid_dask.errors import IIDFormatError, IIDStoreError
from iid_dask.format.folder import Folder, LocalFolder
from iid_dask.format.layout import Limits
from iid_dask.mosaic.cuts import Cut
from iid_dask.mosaic.evidence import ENTRY_MEMBERS, Evidence
from iid_dask.mosaic.evidence import SCHEMA as SEAMS
from iid_dask.mosaic.folder import MANIFEST, STITCHES
from iid_dask.mosaic.grid import Tile
from iid_dask.mosaic.identity import Pieces, Segments, from_arrow, to_arrow
from iid_dask.mosaic.manifest import Fields, Manifest, are_groups, check_crc, check_fields, is_a
from iid_dask.mosaic.rules import from_json
from iid_dask.mosaic.survey import Entries, Strings, Survey
from iid_dask.mosaic.tables import BOX, SCHEMAS, read_table, table_file, write_table


def _described(
    boxes: np.ndarray, areas: np.ndarray, first: np.ndarray, domains: Strings, addresses: Strings
) -> dict[str, Any]:
    return {
        "domain": to_arrow(domains),
        "address": to_arrow(addresses),
        **dict(zip(BOX, boxes.T, strict=True)),
        "area": areas,
        "first_row": first[:, 0],
        "first_col": first[:, 1],
    }


def file_tables(found: Survey, made: list[Cut], pieces: Pieces, segments: Segments) -> dict[str, dict[str, Any]]:
    """Return the columns of the tables of tiles, entries and pieces, by name."""
    files = _file_columns(found, made)
    order = np.lexsort((pieces.key, pieces.segment, pieces.file))
    places, keys = pieces.file[order], pieces.segment[order]
    files["first_piece"] = np.searchsorted(places, np.arange(len(files["path"])))
    files["pieces"] = np.bincount(places, minlength=len(files["path"]))
    labels = (keys + 1).astype(np.uint32)
    shown = {"tile": places, "key": pieces.key[order], "label": labels, "area": segments.areas[keys]}
    return {"tiles": files, "entries": _entry_columns(found), "pieces": shown}


def segment_columns(segments: Segments, domains: Strings, addresses: Strings) -> dict[str, Any]:
    """Return the columns of the table of segments."""
    columns = _described(segments.boxes, segments.areas, segments.first, domains, addresses)
    return {**columns, "pieces": segments.counts}


def seam_tables(found: Survey, decided: Evidence) -> dict[str, dict[str, Any]]:
    """Return the columns of the tables that deciding again needs, by name."""
    members = found.entries.members
    groups = {"entry_members": {"group": members[:, 0], "entry": members[:, 1]}} if len(members) else {}
    return {"seams": decided.columns(), **groups}


def _entry_columns(found: Survey) -> dict[str, Any]:
    entries = found.entries
    columns = _described(entries.boxes, entries.areas, entries.first, entries.domains, entries.addresses)
    return {"tile": entries.tile, "key": entries.key, **columns}


def _file_columns(found: Survey, made: list[Cut]) -> dict[str, Any]:
    """Columns of the table of tiles, cuts last, without those about pieces."""
    which = np.concatenate([np.arange(len(found.paths)), np.array([one.tile for one in made], np.int64)])
    boxes = np.array([tuple(tile.box) for tile in found.places], np.int64).reshape(-1, 4)[which]
    cores = np.array([tuple(tile.core) for tile in found.places], np.int64).reshape(-1, 4)[which]
    entries = np.bincount(found.entries.tile, minlength=len(found.paths))
    return {
        "path": [*found.paths, *[one.path for one in made]],
        "kind": ["tile"] * len(found.paths) + ["cut"] * len(made),
        "row": boxes[:, 0],
        "col": boxes[:, 1],
        "height": boxes[:, 2] - boxes[:, 0],
        "width": boxes[:, 3] - boxes[:, 1],
        **dict(zip(("core_row0", "core_col0", "core_row1", "core_col1"), cores.T, strict=True)),
        "entries": np.concatenate([entries, np.array([len(one.keys) for one in made], np.int64)]),
        "nbytes": np.concatenate([found.nbytes, np.array([one.nbytes for one in made], np.int64)]),
        "crc": np.concatenate([found.crcs, np.array([one.crc for one in made], np.int64)]),
        "tail": np.concatenate([found.tails, np.array([one.tail for one in made], np.int64)]),
    }


def save(folder: Folder, manifest: dict[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write tables beside the old ones, then the manifest that names them, then remove the old ones."""
    schemas = {**SCHEMAS, "seams": SEAMS, "entry_members": ENTRY_MEMBERS}
    mark = _fingerprint(manifest, tables)
    listed = {
        name: write_table(folder, f"{name}-{mark}.parquet", columns, schemas[name]) for name, columns in tables.items()
    }
    with folder.write(MANIFEST) as file:
        file.write(json.dumps({**manifest, "tables": listed}, indent=1).encode())
    kept = {table["path"] for table in listed.values()}
    for old in folder.sizes():
        if re.fullmatch(rf"({'|'.join(schemas)})-[0-9a-f]{{16}}\.parquet", old) and old not in kept:
            folder.remove(old)
    used = set(tables["tiles"]["path"])
    for old in folder.sizes("cuts"):
        if old.endswith(".iid") and f"cuts/{old}" not in used:
            folder.remove(f"cuts/{old}")


def _fingerprint(manifest: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Sixteen hexadecimal digits that tell this content from others."""
    digest = hashlib.blake2b(json.dumps(manifest, sort_keys=True).encode(), digest_size=8)
    for name, columns in tables.items():
        for column, values in columns.items():
            digest.update(f"{name}.{column}\0".encode())
            if isinstance(values, pa.Array):
                strings = from_arrow(values)
                digest.update(np.ascontiguousarray(strings.offsets).data)
                digest.update(np.ascontiguousarray(strings.data).data)
            elif isinstance(values, np.ndarray):
                digest.update(np.ascontiguousarray(values).data)
            else:
                digest.update(json.dumps(list(values)).encode())
    return digest.hexdigest()


# --- reading back -----------------------------------------------------------------------------------------------


def _is_stitch(value: object) -> bool:
    return value is None or value in STITCHES


def _is_rule(value: Any) -> bool:
    try:
        from_json(value)
    except (KeyError, TypeError, ValueError):
        return False
    return True


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("(?:[0-9a-f]{2})*", value) is not None


FIELDS: Fields = {
    "stitch": (_is_stitch, f"null or one of {', '.join(STITCHES)}"),
    "rule": (_is_rule, "null, or a rule's name and options"),
    "naming": (is_a(dict), "an object"),
}
"""What deciding again needs of a manifest beside what a reader needs."""

NAMING: Fields = {
    **dict.fromkeys(("masks", "names", "groups"), (is_a(bool), "true or false")),
    "domain": (_is_hex, "bytes as hexadecimal digits"),
    "entry_groups": (are_groups, "a list of names, each once"),
}
"""The same of what it says of names."""


@dataclass(frozen=True, eq=False)
class State:
    """A finished mosaic, as far as deciding again needs it.

    Attributes
    ----------
    manifest : dict
    found : Survey
    evidence : Evidence
    """

    manifest: dict[str, Any]
    found: Survey
    evidence: Evidence


def load(folder: Folder) -> State:
    """Read what `save` wrote for a mosaic with seams.

    Raises
    ------
    FileNotFoundError
        If the mosaic was not finished yet.
    IIDStoreError
        If nothing was decided in it.
    IIDFormatError
        If its manifest or a table is damaged.
    """
    path = folder.child(MANIFEST)
    try:
        data = folder.read(MANIFEST)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file: call iid_dask.finish(folder) first") from None
    tables = Manifest.parse(folder, data, Limits()).tables
    manifest = json.loads(data)
    check_fields(path, manifest, FIELDS)
    check_fields(path, manifest["naming"], NAMING, of="naming.")
    if "seams" not in tables:
        raise IIDStoreError(
            f"{path}: a mosaic with stitch = {manifest['stitch']!r}, in which nothing is decided; seams are those of "
            'labels that are local to their tiles: write such tiles into a new folder, with stitch="touch" or "iou"'
        )
    if "entries" not in tables:
        raise IIDFormatError(path, "manifest", None, None, "no table entries", "one beside that of seams")
    tiles = checked_table(folder, tables["tiles"], SCHEMAS["tiles"])
    evidence = Evidence(**checked_table(folder, tables["seams"], SEAMS))
    entries = checked_table(folder, tables["entries"], SCHEMAS["entries"])
    members = np.zeros((0, 2), np.int64)
    if "entry_members" in tables:
        columns = checked_table(folder, tables["entry_members"], ENTRY_MEMBERS)
        members = np.stack([columns["group"], columns["entry"]], axis=1)
    return State(manifest, _survey(manifest, tiles, entries, members), evidence)


def checked_table(
    folder: Folder,
    listed: Mapping[str, Any],
    schema: Mapping[str, pa.DataType],
    columns: Iterable[str] | None = None,
) -> dict[str, Any]:
    """Read columns of a table as `read_table` does, of a local file when its checksum is the one that is listed.

    Of an object each page has its own, which is compared when it is read.
    """
    file = table_file(folder, listed)
    if isinstance(folder, LocalFolder):
        check_crc(folder, listed["path"], listed["crc"])
    return read_table(folder, listed, schema, columns, file=file)


def _survey(manifest: Mapping[str, Any], tiles: dict[str, Any], entries: dict[str, Any], members: np.ndarray) -> Survey:
    whole = [i for i, kind in enumerate(tiles["kind"].to_pylist()) if kind == "tile"]
    return Survey(
        [tiles["path"][i].as_py() for i in whole],
        [_tile(tiles, i) for i in whole],
        np.full(len(whole), not manifest["naming"]["masks"]),
        tiles["nbytes"][whole],
        tiles["crc"][whole],
        tiles["tail"][whole],
        Entries(
            entries["tile"],
            entries["key"],
            np.stack([entries[side] for side in BOX], axis=1),
            entries["area"],
            np.stack([entries["first_row"], entries["first_col"]], axis=1),
            from_arrow(entries["domain"]),
            from_arrow(entries["address"]),
            manifest["naming"]["entry_groups"],
            members,
        ),
    )


def _tile(tiles: dict[str, Any], i: int) -> Tile:
    row, col, height, width = (int(tiles[name][i]) for name in ("row", "col", "height", "width"))
    core = (tiles[name][i] for name in ("core_row0", "core_col0", "core_row1", "core_col1"))
    return Tile(BBox(row, col, row + height, col + width), BBox.of(core))
