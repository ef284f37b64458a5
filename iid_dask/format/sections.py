"""Header, lut, metadata and groups: bytes -> checked arrays. Pure; every defect is yielded, the first raised.

Each ``*_defects`` generator yields `IIDFormatError` objects, so that opening can raise the first and a full
check can list them all.
"""

from __future__ import annotations

import json
import re
import reprlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from iid_dask.errors import IIDFormatError, IIDWarning
from iid_dask.format.layout import HEADER, IID_HEAD, LUT, MAX_LENGTH, MAX_SIDE, SECTIONS, SEGMENT_HEAD, Limits

Defects = Iterator[IIDFormatError]

SURROGATE = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
# Possessive, and content with a string that never ends: a hostile text costs one pass and no stack.
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
BRACKETS = np.zeros(256, np.int8)
BRACKETS[list(b"[{")], BRACKETS[list(b"]}")] = 1, -1


def raise_first(defects: Iterable[IIDFormatError]) -> None:
    """Raise the first defect, if there is one."""
    for defect in defects:
        raise defect


def crc_defect(name: str, block: str, entry: int | None, offset: int, crc: int, wanted: int) -> IIDFormatError:
    """Return the error for bytes that an index tells are damaged."""
    expected = f"{wanted:#010x}, as in the index (verify=False reads on)"
    return IIDFormatError(name, block, entry, offset, f"crc32 {crc:#010x}: damaged bytes", expected)


def header_defects(name: str, header: np.void, size: int) -> Defects:
    """Check the header against the file's real size."""
    if header["version"] != 0:
        yield IIDFormatError(name, "header", None, 0, f"version {header['version']}", "version 0, the only one known")
        return
    spans = []
    for i, section in enumerate(SECTIONS):
        offset, length = int(header[f"{section}_offset"]), int(header[f"{section}_length"])
        at = 8 + 8 * i
        if offset + length > size:
            yield IIDFormatError(
                name,
                "header",
                None,
                at,
                f"{section} section at bytes {offset} to {offset + length}",
                f"an end within the file's {size} bytes",
            )
        elif length and offset < HEADER.itemsize:
            yield IIDFormatError(
                name, "header", None, at, f"{section} section at byte {offset}", "it behind the 48 bytes of the header"
            )
        elif length:
            spans.append((offset, offset + length, section, at))
    spans.sort()
    for (_, stop, first, _), (start, _, second, at) in pairwise(spans):
        if start < stop:
            yield IIDFormatError(
                name,
                "header",
                None,
                at,
                f"{second} section at byte {start}, inside the {first} section",
                f"it at byte {stop} or later: sections share no bytes",
            )
    if header["lut_length"] % LUT.itemsize:
        yield IIDFormatError(
            name, "header", None, 12, f"a lut of {header['lut_length']} bytes", f"a multiple of {LUT.itemsize}"
        )


def lut_defects(name: str, header: np.void, lut: np.ndarray) -> Defects:
    """Check keys, and that names and segments lie in their sections and share no bytes."""
    base = int(header["lut_offset"])

    def at(row: int) -> int:
        return base + int(row) * LUT.itemsize

    for row in np.flatnonzero(lut["key"] != np.arange(len(lut), dtype=np.uint32)).tolist():
        yield IIDFormatError(name, "lut", row, at(row), f"key {lut['key'][row]}", f"{row}, its row")
    empty = (lut["iid_length"] == 0) & (lut["segment_length"] == 0)
    for part, section, head in (("iid", "iids", IID_HEAD), ("segment", "segments", SEGMENT_HEAD)):
        offset, length = lut[f"{part}_offset"].astype(np.int64), lut[f"{part}_length"].astype(np.int64)
        limit = int(header[f"{section}_length"])
        short = ~empty & (length < head.itemsize)
        for row in np.flatnonzero(short).tolist():
            yield IIDFormatError(
                name, "lut", row, at(row), f"{part} of {length[row]} bytes", f"at least {head.itemsize}"
            )
        outside = ~empty & (offset + length > limit)
        for row in np.flatnonzero(outside).tolist():
            yield IIDFormatError(
                name,
                "lut",
                row,
                at(row),
                f"{part} at bytes {offset[row]} to {offset[row] + length[row]} of its section",
                f"an end within the {limit} bytes of the {section} section",
            )
        held = np.flatnonzero(~empty)
        starts = offset[held]
        if len(held) and np.any(starts[1:] < starts[:-1]):
            order = np.argsort(starts, kind="stable")
            held, starts = held[order], starts[order]
        shared = np.flatnonzero(starts[1:] < starts[:-1] + length[held[:-1]])
        for i in shared.tolist():
            row, before = int(held[i + 1]), int(held[i])
            yield IIDFormatError(
                name,
                "lut",
                row,
                at(row),
                f"{part} at byte {starts[i + 1]} of its section, inside that of entry {before}",
                f"byte {starts[i] + length[before]} or later: entries share no bytes",
            )


def nesting(text: bytes) -> int:
    """Return how deep JSON is nested, without parsing it.

    Examples
    --------
    >>> nesting(b'{"a]": [[1], {}]}')
    3
    """
    marks = np.frombuffer(STRING.sub(b"", text), np.uint8)
    deepest = depth = 0
    for at in range(0, len(marks), 2**18):
        steps = np.cumsum(BRACKETS[marks[at : at + 2**18]], dtype=np.int64)
        deepest = max(deepest, depth + int(steps.max()))
        depth += int(steps[-1])
    return deepest


def brief(value: object) -> str:
    """Return a value's repr, cut where a hostile file would make it long."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def parse_json(text: bytes, limits: Limits, fail: Callable[[str, str], IIDFormatError]) -> Any:
    """Parse JSON from an untrusted file.

    Refused, by ``fail(found, expected)``: what is not UTF-8 or not JSON (NaN is not), nesting beyond the limit,
    an object that names a key twice, text that has no UTF-8 form, integers too long for Python to convert.
    """
    depth = nesting(text)
    if depth > limits.max_json_depth:
        raise fail(f"JSON nested {depth} deep", f"at most {limits.max_json_depth} (limits=)")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key, count in counts.items() if count > 1)
            raise ValueError(f"an object that names {brief(twice)} twice")
        return result

    def constant(word: str) -> Any:
        raise ValueError(f"{word}, which is not JSON")

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise fail(f"byte {text[error.start]:#04x} at byte {error.start} of the text", "UTF-8") from error
    except UnicodeEncodeError as error:
        raise fail("half of a surrogate pair", "text that has a UTF-8 form") from error
    except (ValueError, RecursionError) as error:
        raise fail(str(error), "JSON") from error
    return value


def parse_metadata(name: str, header: np.void, text: bytes, limits: Limits) -> dict[str, Any]:
    """Parse the metadata section; an empty section is an empty object."""
    offset = int(header["meta_offset"])

    def fail(found: str, expected: str) -> IIDFormatError:
        return IIDFormatError(name, "meta", None, offset, found, expected)

    if not text:
        return {}
    value = parse_json(text, limits, fail)
    if not isinstance(value, dict):
        raise fail(f"a JSON {type(value).__name__}", "a JSON object")
    return value


def parse_groups(name: str, header: np.void, data: bytes, n_rows: int, limits: Limits) -> dict[str, np.ndarray]:
    """Parse the groups section.

    Returns
    -------
    dict
        Group name -> ascending uint32 keys, in the file's order of groups.
    """
    base = int(header["groups_offset"])
    if not data:
        return {}

    def fail(at: int, found: str, expected: str) -> IIDFormatError:
        return IIDFormatError(name, "groups", None, base + at, found, expected)

    if len(data) < 4:
        raise fail(0, f"{len(data)} bytes", "at least 4")
    length = int.from_bytes(data[:4], "little")
    if 4 + length > len(data):
        raise fail(0, f"JSON of {length} bytes", f"at most the {len(data) - 4} bytes left of the section")
    if length > limits.max_meta:
        raise fail(0, f"JSON of {length} bytes", f"at most {limits.max_meta} (limits=)")
    rows = parse_json(data[4 : 4 + length], limits, lambda found, expected: fail(4, found, expected))
    if not isinstance(rows, list):
        raise fail(4, f"a JSON {type(rows).__name__}", "a JSON list")
    keys = data[4 + length :]
    groups: dict[str, np.ndarray] = {}
    spans: list[tuple[int, int, str]] = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise fail(4, f"the group {brief(row)}", 'an object with a "name" string')
        group = row["name"]
        for field in ("offset", "length"):
            value = row.get(field)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_LENGTH or value % 4:
                wanted = f"a multiple of 4 from 0 to {MAX_LENGTH}"
                raise fail(4, f"{field} {brief(value)} of group {brief(group)}", wanted)
        start, stop = row["offset"], row["offset"] + row["length"]
        if stop > len(keys):
            raise fail(4, f"keys of group {brief(group)} to byte {stop}", f"at most the {len(keys)} bytes of keys")
        if group in groups:
            raise fail(4, f"group {brief(group)} twice", "every group once")
        if start < stop:
            spans.append((start, stop, group))
        members = np.sort(np.frombuffer(keys, "<u4", (stop - start) // 4, start))
        if len(members) and members[-1] >= n_rows:
            raise fail(4 + length + start, f"key {members[-1]} in group {brief(group)}", f"a key below {n_rows}")
        twice = np.flatnonzero(members[1:] == members[:-1])
        if len(twice):
            raise fail(4 + length + start, f"key {members[twice[0]]} twice in group {brief(group)}", "every key once")
        groups[group] = members
    reach = 0
    for start, stop, group in sorted(spans):
        if start < reach:
            raise fail(4, f"group {brief(group)} sharing bytes with another", "groups that share no bytes")
        if start > reach:
            raise fail(4 + length + reach, f"{start - reach} bytes of keys in no group", "a group for every key")
        reach = stop
    if reach != len(keys):
        raise fail(4 + length + reach, f"{len(keys) - reach} bytes of keys in no group", "a group for every key")
    return groups


def find_names(
    name: str, base: int, rows: np.ndarray, data: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the names in records of the iids section.

    Parameters
    ----------
    name
        Of the file, for errors.
    base
        Byte of the file where the section begins.
    rows : structured array, shape (n,)
        Of the lut.
    data : uint8 array
    places : int64 array, shape (n,)
        Where each record begins in ``data``.

    Returns
    -------
    starts, middles, stops : int64 arrays, shape (n,)
        Domains lie at ``data[starts[i]:middles[i]]``, addresses at ``data[middles[i]:stops[i]]``.

    Raises
    ------
    IIDFormatError
        For a record that is not as the lut says.
    """
    width = IID_HEAD.itemsize
    heads = data[places[:, None] + np.arange(width)].view(IID_HEAD)[:, 0] if len(places) else np.zeros(0, IID_HEAD)
    domain, address = heads["domain_length"].astype(np.int64), heads["address_length"].astype(np.int64)
    wrong = (heads["key"] != rows["key"]) | (width + domain + address != rows["iid_length"])
    for i in np.flatnonzero(wrong).tolist():
        row = rows[i]
        raise IIDFormatError(
            name,
            "iids",
            int(row["key"]),
            base + int(row["iid_offset"]),
            f"key {heads['key'][i]} with names of {domain[i]} and {address[i]} bytes",
            f"key {row['key']} and {int(row['iid_length']) - width} bytes in all, as in the lut",
        )
    starts = places + width
    return starts, starts + domain, starts + domain + address


def image_shape(name: str, metadata: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the rows and columns that metadata state; None, with a warning if they are unsound, if they do not."""
    image = metadata.get("image")
    if not isinstance(image, dict) or not ("height" in image or "width" in image):
        return None
    height, width = image.get("height"), image.get("width")
    if height is not None and width is not None and _is_side(height) and _is_side(width):
        return height, width
    warnings.warn(
        f"{name}: metadata image.height = {brief(height)}, image.width = {brief(width)}: expected "
        f"integers from 1 to {MAX_SIDE}; the size is taken from the entries' boxes (shape= sets another)",
        IIDWarning,
        stacklevel=3,
    )
    return None


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIDE
