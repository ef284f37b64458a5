"""Make the files of ``data/malformed`` and ``data/unusual``: by hand, with struct, one defect or oddity a file.

Run it to write them: ``python tests/make_malformed.py``. Nothing of iid_dask is used, so that a mistake in the
package's idea of the format cannot hide in its own corpus.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

DATA = Path(__file__).parent / "data"
SECTIONS = ("lut", "iids", "meta", "groups", "segments")
LAST = 2**32 - 1

Box = tuple[int, int, int, int]


def u4(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def u2(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def iid(key: int, domain: bytes, address: bytes) -> bytes:
    return u4(key, len(domain), len(address)) + domain + address


def region(box: Box, bits: bytes) -> bytes:
    return u4(12 + len(bits)) + u2(*box) + bits


def segment(key: int, box: Box, area: int, *regions: bytes) -> bytes:
    return u4(key) + u2(*box) + u4(area) + b"".join(regions)


def group_section(rows: object, keys: bytes) -> bytes:
    text = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    return u4(len(text)) + text + keys


@dataclass(frozen=True)
class Parts:
    """A file before it is laid out; `TINY` is the sound one that all others are made from."""

    iids: tuple[bytes, ...]
    segments: tuple[bytes, ...]
    meta: bytes
    groups: bytes
    order: tuple[str, ...] = SECTIONS
    gap: int = 0
    removed: tuple[int, ...] = field(default=())

    def lut(self) -> bytes:
        rows, iid_at, segment_at = [], 0, 0
        for key, (name, mask) in enumerate(zip(self.iids, self.segments, strict=True)):
            if key in self.removed:
                rows.append(u4(key, 0, 0, 0, 0))
                continue
            rows.append(u4(key, iid_at, len(name), segment_at, len(mask)))
            iid_at += len(name)
            segment_at += len(mask)
        return b"".join(rows)

    def bytes(self) -> bytes:
        held = [key for key in range(len(self.iids)) if key not in self.removed]
        sections = {
            "lut": self.lut(),
            "iids": b"".join(self.iids[key] for key in held),
            "meta": self.meta,
            "groups": self.groups,
            "segments": b"".join(self.segments[key] for key in held),
        }
        at, body, places = 48, b"", {}
        for section in self.order:
            body += bytes(self.gap)
            places[section] = (at + self.gap, len(sections[section]))
            body += sections[section]
            at += self.gap + len(sections[section])
        return u4(0, 0) + b"".join(u4(*places[section]) for section in SECTIONS) + body


TINY = Parts(
    iids=(iid(0, b"cell", b"1"), iid(1, b"cell", b"2"), iid(2, b"cell", b"3"), iid(3, b"", b"\xff")),
    segments=(
        segment(0, (0, 0, 2, 3), 4, region((0, 0, 2, 3), b"\xcc")),
        segment(1, (4, 4, 8, 9), 5, region((4, 4, 5, 5), b"\x80"), region((6, 6, 8, 9), b"\xe8")),
        segment(2, (1, 1, 1, 1), 0),
        segment(3, (2, 0, 3, 8), 8, region((2, 0, 3, 8), b"\xff")),
    ),
    meta=b'{"image": {"height": 10, "width": 10}}',
    groups=group_section(
        [{"name": "a", "offset": 0, "length": 8}, {"name": "b", "offset": 8, "length": 4}], u4(0, 2, 3)
    ),
)
BASE = TINY.bytes()


def place(data: bytes, section: str) -> int:
    """Offset of a section, as the header has it."""
    return struct.unpack_from("<I", data, 8 + 8 * SECTIONS.index(section))[0]


LUT, IIDS, META, GROUPS, SEGMENTS = (place(BASE, section) for section in SECTIONS)
STARTS = [SEGMENTS + sum(map(len, TINY.segments[:key])) for key in range(4)]


def patch(at: int, new: bytes, data: bytes = BASE) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def indexed(data: bytes = BASE, *, rows: bytes | None = None, entries: int = 4, **changes: int) -> bytes:
    """Put an index behind a file that has `TINY`'s segments."""
    segment_rows, region_rows, n, start = b"", b"", 0, 0
    for mask in TINY.segments:
        segment_rows += mask[4:16] + u4(n, zlib.crc32(mask))
        at = 16
        while at < len(mask):
            (length,) = struct.unpack_from("<I", mask, at)
            region_rows += mask[at + 4 : at + 12] + u4(start + at + 12)
            n, at = n + 1, at + length
        start += len(mask)
    rows = segment_rows + region_rows if rows is None else rows
    crcs = {"rows": zlib.crc32(rows), "lut": zlib.crc32(data[:48] + data[LUT:IIDS])}
    for section, stop in (("iids", META), ("meta", GROUPS), ("groups", SEGMENTS)):
        crcs[section] = zlib.crc32(BASE[place(BASE, section) : stop])
    crcs.update(changes)
    trailer = u4(entries, n) + struct.pack("<Q", len(data)) + u4(*crcs.values()) + u4(1, 0) + b"IIDINDEX"
    return data + rows + trailer


INDEXED = indexed()
ROWS = INDEXED[len(BASE) : -52]


def header_defects() -> Iterator[tuple[str, str, bytes]]:
    yield "file-empty", "no bytes at all", b""
    yield "file-1-byte", "one byte", BASE[:1]
    yield "file-47-bytes", "one byte less than a header", BASE[:47]
    yield "file-header-only", "cut behind the header, which points beyond the end", BASE[:48]
    swapped = struct.pack(">12I", *struct.unpack_from("<12I", BASE))
    yield "file-big-endian", "header in big-endian order", patch(0, swapped)
    yield "header-version-1", "version 1", patch(0, u4(1))
    yield "header-version-max", "version 2^32 - 1", patch(0, u4(LAST))
    for i, section in enumerate(SECTIONS):
        at = 8 + 8 * i
        offset, length = struct.unpack_from("<II", BASE, at)
        yield f"header-{section}-offset-minus-1", f"{section} section begins a byte early", patch(at, u4(offset - 1))
        yield f"header-{section}-offset-plus-1", f"{section} section begins a byte late", patch(at, u4(offset + 1))
        past = patch(at, u4(len(BASE) + 1))
        yield f"header-{section}-offset-past-end", f"{section} section begins behind the end", past
        yield f"header-{section}-offset-max", f"{section} section begins at 2^32 - 1", patch(at, u4(LAST))
        yield f"header-{section}-length-minus-1", f"{section} section is a byte short", patch(at + 4, u4(length - 1))
        yield f"header-{section}-length-plus-1", f"{section} section is a byte long", patch(at + 4, u4(length + 1))
        yield f"header-{section}-length-max", f"{section} section of 2^32 - 1 bytes", patch(at + 4, u4(LAST))
    yield "header-sections-equal", "meta and groups are the same bytes", patch(32, BASE[24:32])
    yield "header-section-in-header", "meta section inside the header", patch(24, u4(40, 8))


def lut_defects() -> Iterator[tuple[str, str, bytes]]:
    def row(key: int, at: int, value: int) -> bytes:
        return patch(LUT + 20 * key + at, u4(value))

    yield "lut-key-not-row", "row 1 has key 9", row(1, 0, 9)
    yield "lut-key-twice", "rows 0 and 1 have key 0", row(1, 0, 0)
    yield "lut-iid-offset-plus-1", "name of entry 1 begins a byte late, in entry 2", row(1, 4, 18)
    yield "lut-iid-offset-max", "name of entry 1 begins at 2^32 - 1", row(1, 4, LAST)
    yield "lut-iid-length-11", "name of entry 1 is shorter than its head", row(1, 8, 11)
    yield "lut-iid-length-minus-1", "name of entry 1 is a byte short", row(1, 8, 16)
    yield "lut-iid-length-max", "name of entry 1 has 2^32 - 1 bytes", row(1, 8, LAST)
    yield "lut-iid-shared", "entries 0 and 1 share a name", row(1, 4, 0)
    yield "lut-iid-removed-half", "entry 1 has a segment but no name", row(1, 8, 0)
    yield "lut-segment-offset-minus-1", "segment 1 begins in the last byte of segment 0", row(1, 12, 28)
    yield "lut-segment-offset-max", "segment 1 begins at 2^32 - 1", row(1, 12, LAST)
    yield "lut-segment-length-15", "segment 2 is shorter than its head", row(2, 16, 15)
    yield "lut-segment-length-minus-1", "segment 1 is a byte short", row(1, 16, 41)
    yield "lut-segment-length-plus-1", "segment 1 reaches a byte into segment 2", row(1, 16, 43)
    yield "lut-segment-length-max", "segment 1 has 2^32 - 1 bytes", row(1, 16, LAST)
    yield "lut-segment-shared", "entries 0 and 3 share a segment", patch(LUT + 72, u4(0, 29))
    yield "lut-segment-removed-half", "entry 1 has a name but no segment", row(1, 16, 0)


def iid_defects() -> Iterator[tuple[str, str, bytes]]:
    yield "iids-key-of-another", "name of entry 1 has key 2", patch(IIDS + 17, u4(2))
    yield "iids-domain-length-plus-1", "domain of entry 1 is a byte too long", patch(IIDS + 21, u4(5))
    yield "iids-domain-length-max", "domain of entry 1 has 2^32 - 1 bytes", patch(IIDS + 21, u4(LAST))
    yield "iids-address-length-0", "address of entry 1 leaves a byte over", patch(IIDS + 25, u4(0))
    yield "iids-lengths-wrap", "lengths of entry 1 add up only modulo 2^32", patch(IIDS + 21, u4(LAST, 6))


def meta_defects() -> Iterator[tuple[str, str, bytes]]:
    def meta(text: bytes) -> bytes:
        return replace(TINY, meta=text).bytes()

    yield "meta-not-utf8", "a byte that is not UTF-8", meta(b'{"a": "\xff"}')
    yield "meta-not-json", "text that is not JSON", meta(b"hello")
    yield "meta-cut", "an object that does not end", meta(b'{"a": [1, 2')
    yield "meta-string-open", "a string that does not end", meta(b'{"a": "' + b'\\"' * 100)
    yield "meta-list", "a list", meta(b"[1, 2]")
    yield "meta-null", "null", meta(b"null")
    yield "meta-nan", "NaN", meta(b'{"a": NaN}')
    yield "meta-infinity", "-Infinity", meta(b'{"a": -Infinity}')
    yield "meta-lone-surrogate", "half of a surrogate pair", meta(b'{"a": "\\ud83d"}')
    yield "meta-surrogate-bytes", "a surrogate in the place of UTF-8", meta(b'{"a": "\xed\xa0\xbd"}')
    yield "meta-key-twice", "an object with a key twice", meta(b'{"a": {"b": 1, "b": 2}}')
    yield "meta-5000-digits", "an integer of 5,000 digits", meta(b'{"a": ' + b"9" * 5000 + b"}")
    yield "meta-depth-65", "lists nested 66 deep", meta(b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}")
    yield "meta-depth-100000", "lists nested 100,000 deep", meta(b"[" * 100_000 + b"]" * 100_000)
    yield "meta-bom", "a byte order mark", meta(b"\xef\xbb\xbf{}")
    yield "meta-two-values", "a second object behind the first", meta(b"{} {}")


def group_defects() -> Iterator[tuple[str, str, bytes]]:
    def groups(rows: object, keys: bytes = b"") -> bytes:
        return replace(TINY, groups=group_section(rows, keys)).bytes()

    def one(name: object = "a", offset: object = 0, length: object = 4, keys: bytes = u4(0)) -> bytes:
        return groups([{"name": name, "offset": offset, "length": length}], keys)

    two = [{"name": "a", "offset": 0, "length": 8}, {"name": "b", "offset": 0, "length": 8}]
    yield "groups-3-bytes", "a section shorter than its first number", replace(TINY, groups=b"\0\0\0").bytes()
    yield "groups-json-length-plus-1", "JSON a byte too long", patch(GROUPS, u4(len(TINY.groups) - 4 - 12 + 1))
    yield "groups-json-length-max", "JSON of 2^32 - 1 bytes", patch(GROUPS, u4(LAST))
    yield "groups-json-length-0", "JSON of no bytes", replace(TINY, groups=u4(0)).bytes()
    yield "groups-object", "an object instead of a list", groups({"name": "a"})
    yield "groups-row-number", "a number instead of a group", groups([7])
    yield "groups-name-missing", "a group without a name", groups([{"offset": 0, "length": 0}])
    yield "groups-name-number", "a group named by a number", one(name=7)
    yield "groups-name-surrogate", "a group's name with half of a surrogate pair", one(name="\ud83d")
    same = [two[0], {**two[1], "name": "a", "offset": 8}]
    yield "groups-name-twice", "two groups of one name", groups(same, u4(0, 1, 2, 3))
    yield "groups-offset-missing", "a group without an offset", groups([{"name": "a", "length": 0}])
    yield "groups-offset-negative", "an offset of -4", one(offset=-4)
    yield "groups-offset-text", "an offset that is text", one(offset="0")
    yield "groups-offset-float", "an offset of 0.0", one(offset=0.0)
    yield "groups-offset-true", "an offset that is true", one(offset=True)
    yield "groups-offset-odd", "an offset of 2", one(offset=2, length=0)
    huge = 10**4300 - 4
    yield "groups-offset-4300-digits", "offset and length of 4,300 digits", one(offset=huge, length=huge)
    yield "groups-length-odd", "keys of 3 bytes", one(length=3)
    yield "groups-length-negative", "keys of -4 bytes", one(length=-4)
    yield "groups-length-past-end", "keys that leave the section", one(length=8)
    yield "groups-keys-uncovered", "keys that belong to no group", one(keys=u4(0, 1))
    yield "groups-keys-gap", "keys before the first group's", one(offset=4, keys=u4(0, 1))
    yield "groups-keys-shared", "two groups that share keys, and keys in none", groups(two, u4(0, 1, 2, 3))
    yield "groups-key-of-no-entry", "a key as large as the number of entries", one(keys=u4(4))
    yield "groups-key-max", "key 2^32 - 1", one(keys=u4(LAST))
    yield "groups-key-twice", "a key twice in a group", one(length=8, keys=u4(1, 1))
    yield "groups-depth-65", "JSON nested 65 deep", groups(b"[" * 65 + b"]" * 65)


def segment_defects() -> Iterator[tuple[str, str, bytes]]:
    def first(box: Box, area: int, *regions: bytes) -> bytes:
        return replace(TINY, segments=(segment(0, box, area, *regions), *TINY.segments[1:])).bytes()

    box = (0, 0, 2, 3)
    yield "segment-key-of-another", "segment 1 has key 0", patch(STARTS[1], u4(0))
    yield "segment-box-inverted", "segment 0 has min_row > max_row", patch(STARTS[0] + 4, u2(3))
    yield "segment-box-inverted-columns", "segment 0 has min_col > max_col", patch(STARTS[0] + 6, u2(4))
    yield "segment-area-0", "segment 0 of 4 pixels says 0", patch(STARTS[0] + 12, u4(0))
    yield "segment-area-minus-1", "segment 0 of 4 pixels says 3", patch(STARTS[0] + 12, u4(3))
    yield "segment-area-plus-1", "segment 0 of 4 pixels says 5", patch(STARTS[0] + 12, u4(5))
    yield "segment-area-max", "segment 0 of 4 pixels says 2^32 - 1", patch(STARTS[0] + 12, u4(LAST))
    yield "segment-area-of-empty", "segment 2 has no regions and says 1", patch(STARTS[2] + 12, u4(1))
    for name, length in (("0", 0), ("1", 1), ("11", 11), ("12", 12), ("plus-1", 14), ("max", LAST)):
        yield f"region-length-{name}", f"region of 13 bytes says {length}", patch(STARTS[0] + 16, u4(length))
    yield (
        "region-length-minus-1",
        "region of 14 bytes says 13",
        first((0, 0, 3, 3), 9, u4(13) + u2(0, 0, 3, 3) + b"\xff\x80"),
    )
    yield "region-length-of-rest", "region of 13 bytes says 26, all that is left", patch(STARTS[1] + 16, u4(26))
    yield "region-cut", "11 bytes behind the last region", first(box, 4, region(box, b"\xcc"), bytes(11))
    yield "region-box-empty", "region without rows", first(box, 0, region((1, 1, 1, 2), b""))
    yield "region-box-inverted", "region with min_col > max_col", patch(STARTS[0] + 22, u2(4))
    yield (
        "region-box-huge",
        "region of 65,535 by 65,535 pixels in one byte",
        first((0, 0, 65535, 65535), 4, region((0, 0, 65535, 65535), b"\xcc")),
    )
    yield "region-outside", "region that leaves its segment's box by a row", patch(STARTS[0] + 8, u2(1))
    yield "region-outside-left", "region that begins left of its segment's box", patch(STARTS[1] + 6, u2(5))
    yield "region-pad-bits", "last pad bit of a region set", patch(STARTS[0] + 28, b"\xcd")
    yield "region-loose", "region with an empty last row", first(box, 2, region(box, b"\xc0"))
    yield "region-without-pixels", "region without any pixel", first(box, 0, region(box, b"\0"))


def index_defects() -> Iterator[tuple[str, str, bytes]]:
    yield (
        "index-crc-segment",
        "a pixel of segment 1 moved, its checksum did not",
        patch(STARTS[1] + 41, b"\xf0", INDEXED),
    )
    yield "index-crc-iids", "a letter of a name changed, the checksum did not", patch(IIDS + 12, b"k", INDEXED)
    yield "index-crc-meta", "a digit of the metadata changed, the checksum did not", patch(GROUPS - 3, b"9", INDEXED)
    yield "index-crc-groups", "a key of a group changed, the checksum did not", patch(SEGMENTS - 4, u4(1), INDEXED)
    yield "index-area-lie", "index with sound checksums and another area", indexed(rows=patch(8, u4(6), ROWS))
    yield "index-box-lie", "index with sound checksums and another segment box", indexed(rows=patch(4, u2(9), ROWS))
    yield (
        "index-region-lie",
        "index with sound checksums and a region turned on its side",
        indexed(rows=patch(84, u2(3, 2), patch(4, u2(3), ROWS))),
    )


def malformed() -> dict[str, tuple[str, bytes]]:
    """Return file name -> (defect, bytes)."""
    made: dict[str, tuple[str, bytes]] = {}
    for source in (
        header_defects,
        lut_defects,
        iid_defects,
        meta_defects,
        group_defects,
        segment_defects,
        index_defects,
    ):
        for name, defect, data in source():
            assert name not in made, name
            made[name] = defect, data
    return made


def unusual() -> dict[str, tuple[str, bytes]]:
    """Return file name -> (oddity, bytes) of files that the format allows."""
    holes = replace(TINY, removed=(1,), groups=group_section([], b""))
    overlapping = segment(0, (0, 0, 1, 3), 4, region((0, 0, 1, 2), b"\xc0"), region((0, 1, 1, 3), b"\xc0"))
    swapped = patch(LUT + 12, u4(42, 29), patch(LUT + 32, u4(0, 42)))
    return {
        "tiny": ("nothing: the file all others are made from", BASE),
        "rformat": ("rformat 7", patch(4, u4(7))),
        "rformat-max": ("rformat 2^32 - 1", patch(4, u4(LAST))),
        "sections-reversed": ("sections in reverse order", replace(TINY, order=SECTIONS[::-1]).bytes()),
        "sections-apart": ("9 bytes before every section", replace(TINY, gap=9).bytes()),
        "trailing-bytes": ("100 bytes behind the last section", BASE + bytes(100)),
        "trailing-magic": ("the magic of an index, but no index", BASE + bytes(44) + b"IIDINDEX"),
        "segments-swapped": (
            "segment 1 before segment 0",
            swapped[:SEGMENTS] + TINY.segments[1] + TINY.segments[0] + b"".join(TINY.segments[2:]),
        ),
        "segment-box-loose": ("segment 0 in a box of 7 by 9", patch(STARTS[0] + 8, u2(7, 9))),
        "segment-box-beyond-image": ("segment 2, empty, in a box beyond the image", patch(STARTS[2] + 8, u2(99, 99))),
        "box-65535-empty": (
            "segment 2, empty, in a box of 65,535 by 65,535",
            patch(STARTS[2] + 4, u2(0, 0, 65535, 65535)),
        ),
        "regions-overlap": (
            "two regions that share a pixel, which counts twice in the area",
            replace(TINY, segments=(overlapping, *TINY.segments[1:])).bytes(),
        ),
        "row-removed": ("row 1 of the lut has no bytes", holes.bytes()),
        "group-unsorted": ("keys of a group descend", patch(SEGMENTS - 12, u4(2, 0))),
        "group-empty": (
            "groups without keys",
            replace(TINY, groups=group_section([{"name": "", "offset": 0, "length": 0}], b"")).bytes(),
        ),
        "groups-none": ("a groups section of no bytes", replace(TINY, groups=b"").bytes()),
        "groups-more-fields": (
            "a group with a field of its own",
            replace(TINY, groups=group_section([{"name": "a", "offset": 0, "length": 0, "color": [1]}], b"")).bytes(),
        ),
        "meta-none": ("a metadata section of no bytes", replace(TINY, meta=b"").bytes()),
        "meta-utf8": ("metadata as UTF-8, not escaped", replace(TINY, meta='{"å": "樹"}'.encode()).bytes()),
        "meta-depth-64": ("lists nested 64 deep", replace(TINY, meta=b'{"":' + b"[" * 63 + b"]" * 63 + b"}").bytes()),
        "empty-section-at-end": (
            "an empty groups section behind the last byte",
            patch(32, u4(len(BASE) - len(TINY.groups), 0), replace(TINY, groups=b"").bytes()),
        ),
        "index": ("an index", INDEXED),
        "index-stale": ("an index made before rformat was set", patch(4, u4(7), INDEXED)),
        "index-rows-damaged": ("a damaged row of the index", patch(len(BASE) + 8, b"\x05", INDEXED)),
        "index-version-2": ("an index of an unknown version", patch(len(INDEXED) - 16, u4(2), INDEXED)),
        "index-of-other-size": ("an index of three entries", indexed(entries=3)),
    }


def files() -> dict[Path, bytes]:
    """Return every file of both folders, path -> bytes."""
    made: dict[Path, bytes] = {}
    for folder, title, corpus in (
        ("malformed", "Files with one defect each", malformed()),
        ("unusual", "Files that the format allows and no known program writes", unusual()),
    ):
        lines = [f"# {title}\n\nMade by `tests/make_malformed.py`.\n\n| file | what |\n|---|---|\n"]
        for name, (what, data) in corpus.items():
            made[DATA / folder / f"{name}.iid"] = data
            lines.append(f"| {name}.iid | {what} |\n")
        made[DATA / folder / "README.md"] = "".join(lines).encode()
    return made


if __name__ == "__main__":
    for path, data in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
