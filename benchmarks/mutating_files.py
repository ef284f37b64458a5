"""Sound ``.iid`` files made hostile by something that knows them: offsets, lengths and checksums still fit, mostly.

Mutators are called as those of `benchmarks.mutating`.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from random import Random

import make_malformed as corpus
import numpy as np
import test_fuzz

from benchmarks.mutating import Blind, change_json

MOST = 48
"""Entries of a file that are looked at: what a fuzzer finds in more it finds in fewer."""


def sections_of(data: bytes) -> dict[str, bytes] | None:
    """Return the sections that a header tells of, as far as the bytes go."""
    if len(data) < 48:
        return None
    spans = [struct.unpack_from("<II", data, 8 + 8 * i) for i in range(5)]
    return {name: data[at : at + length] for name, (at, length) in zip(corpus.SECTIONS, spans, strict=True)}


def parts_of(data: bytes) -> corpus.Parts | None:
    """Take a file apart, as far as its lut leads anywhere."""
    sections = sections_of(data)
    if sections is None:
        return None
    iids, segments, removed = [], [], []
    lut = sections["lut"]
    for row in range(min(len(lut) // 20, MOST)):
        _, iid, iid_length, start, length = struct.unpack_from("<5I", lut, 20 * row)
        if not iid_length and not length:
            removed.append(row)
        iids.append(sections["iids"][iid : iid + min(iid_length, 4096)])
        segments.append(sections["segments"][start : start + min(length, 4096)])
    return corpus.Parts(tuple(iids), tuple(segments), sections["meta"], sections["groups"], removed=tuple(removed))


def regions_of(segment: bytes) -> list[bytes]:
    """Cut a segment into its regions; what follows the last whole one is a region too."""
    found, at = [], 16
    while at < len(segment):
        length = max(12, int.from_bytes(segment[at : at + 4], "little"))
        found.append(segment[at : at + length])
        at += length
    return found


def places_of(data: bytes) -> list[test_fuzz.Field]:
    """Return where numbers stand in a file that may be broken already."""
    found = [(at, 4) for at in range(0, 48, 4)]
    spans = [struct.unpack_from("<II", data, 8 + 8 * i) for i in range(5)]
    (lut, n_lut), (iids, _), _, (groups, n_groups), (segments, _) = spans
    found += [(lut + at, 4) for at in range(0, min(n_lut, 20 * MOST), 4)]
    found += [(groups, 4), (groups + n_groups - 4, 4)]
    for row in range(min(n_lut // 20, MOST)):
        if lut + 20 * row + 20 > len(data):
            break
        _, iid, _, start, length = struct.unpack_from("<5I", data, lut + 20 * row)
        at = segments + start
        found += [(iids + iid + field, 4) for field in (0, 4, 8)]
        found += [(at, 4), (at + 12, 4), *((at + side, 2) for side in (4, 6, 8, 10))]
        stop, at = min(at + length, len(data)), at + 16
        while at < stop:
            found += [(at, 4), *((at + side, 2) for side in (4, 6, 8, 10))]
            at += max(12, int.from_bytes(data[at : at + 4], "little"))
    if data.endswith(b"IIDINDEX") and len(data) >= 100:
        found += [(len(data) - 52 + at, 4) for at in range(0, 44, 4)]
        start = min(struct.unpack_from("<Q", data, len(data) - 44)[0], len(data))
        found += [(at, 2) for at in range(start, len(data) - 54, 2)][: 12 * MOST]
    return [(at, width) for at, width in found if 0 <= at <= len(data) - width]


def number(data: bytes, choose: Random, blind: Blind) -> bytes:
    """Change numbers of a file, or exchange or drop bytes where they begin, as the seeded tests do."""
    if len(data) < 100:
        return blind(data)
    other = test_fuzz.Mutator([], choose.getrandbits(32))
    other.seeds = [(data, [])]
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        places = places_of(data) if len(data) >= 48 else []
        if len([width for _, width in places if width == 2]) < 4:
            break
        data = choose.choice(other.ways)(other, data, places)
    return data


def random_box(choose: Random) -> corpus.Box:
    """Return a box, mostly small and near the corner."""
    most = choose.choice((4, 12, 64, 64, 300, 65_535))
    rows, cols = (sorted(choose.randrange(most + 1) for _ in range(2)) for _ in range(2))
    return rows[0], cols[0], rows[1], cols[1]


def random_region(choose: Random) -> bytes:
    """Return a region whose bits are as many as its box demands, unless these are very many."""
    r0, c0, r1, c1 = box = random_box(choose)
    count = (r1 - r0) * (c1 - c0)
    nbytes = min((count + 7) // 8, 600)
    bits = bytearray(choose.choice((bytes(nbytes), b"\xff" * nbytes, choose.randbytes(nbytes))))
    if bits and count % 8 and choose.random() < 0.9:
        bits[-1] &= 256 - (1 << (8 - count % 8))
    return corpus.region(box, bytes(bits))


def tidy(key: int, segment: bytes, choose: Random) -> bytes:
    """Give a segment the key, mostly the box, and mostly the area that its regions demand."""
    regions = regions_of(segment)
    boxes = np.array([struct.unpack_from("<4H", region.ljust(12, b"\0"), 4) for region in regions]).reshape(-1, 4)
    head = bytearray(segment[:16].ljust(16, b"\0"))
    head[:4] = corpus.u4(key)
    if len(boxes) and choose.random() < 0.8:
        head[4:12] = corpus.u2(*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    if choose.random() < 0.8:
        head[12:16] = corpus.u4(sum(int.from_bytes(region[12:], "big").bit_count() for region in regions) % 2**32)
    return bytes(head) + b"".join(regions)


def change_segment(segment: bytes, choose: Random, blind: Blind) -> bytes:
    """Add, drop, repeat or change a region."""
    regions = regions_of(segment)
    way = choose.randrange(5)
    if way == 0 or not regions:
        regions.insert(choose.randrange(len(regions) + 1), random_region(choose))
    elif way == 1:
        regions.pop(choose.randrange(len(regions)))
    elif way == 2:
        regions.append(choose.choice(regions))
    elif way == 3:
        at = choose.randrange(len(regions))
        regions[at] = regions[at][:12] + blind(regions[at][12:])[: len(regions[at]) - 12].ljust(len(regions[at]) - 12)
    else:
        choose.shuffle(regions)
    return segment[:16].ljust(16, b"\0") + b"".join(regions)


def random_groups(entries: int, choose: Random) -> bytes:
    """Return a section of groups whose offsets fit, mostly."""
    rows, keys = [], b""
    for name in choose.sample(("a", "b", "", "ü", "../x", "__proto__"), choose.randrange(4)):
        some = [choose.randrange(max(entries, 1)) for _ in range(choose.randrange(4))]
        rows.append({"name": name, "offset": len(keys), "length": 4 * len(some)})
        keys += corpus.u4(*(set(some) if choose.random() < 0.9 else some))
        rows[-1]["length"] = len(keys) - rows[-1]["offset"]
    text = json.dumps(rows).encode()
    return corpus.group_section(change_json(text, choose, bytes) if choose.random() < 0.2 else text, keys)


def structure(data: bytes, choose: Random, blind: Blind) -> bytes:
    """Change what a file holds, and lay it out again."""
    parts = parts_of(data)
    if parts is None:
        return blind(data)
    iids, segments, meta, groups = list(parts.iids), list(parts.segments), parts.meta, parts.groups
    for _ in range(choose.choice((1, 1, 2, 4))):
        way = choose.randrange(9)
        if not iids or way == 0:
            iids.append(corpus.iid(len(iids), choose.choice((b"", b"cell", b"\xff/..")), choose.randbytes(3)))
            segments.append(corpus.segment(len(segments), (0, 0, 0, 0), 0, random_region(choose)))
            continue
        at = choose.randrange(len(iids))
        if way == 1 and len(iids) < MOST:
            iids.append(iids[at])
            segments.append(segments[at])
        elif way == 2:
            iids.pop(at)
            segments.pop(at)
        elif way == 3:
            name = blind(iids[at][12:])[:64]
            cut = choose.randrange(len(name) + 1)
            iids[at] = corpus.iid(at, name[:cut], name[cut:])
        elif way == 4:
            text = choose.choice(test_fuzz.TEXTS)
            meta = text if choose.random() < 0.5 else change_json(meta or b"{}", choose, blind)
        elif way == 5:
            groups = random_groups(len(iids), choose)
        elif way == 6 and len(groups) >= 4:
            groups = corpus.group_section(change_json(groups[4:], choose, blind), b"")
        else:
            segments[at] = change_segment(segments[at], choose, blind)
    order = corpus.SECTIONS if choose.random() < 0.9 else tuple(choose.sample(corpus.SECTIONS, 5))
    if choose.random() < 0.9:
        segments = [tidy(key, segment, choose) for key, segment in enumerate(segments)]
        iids = [corpus.u4(key) + iid[4:].ljust(8, b"\0") for key, iid in enumerate(iids)]
    some = {"order": order, "gap": choose.choice((0, 0, 0, 3)), "removed": ()}
    made = replace(parts, iids=tuple(iids), segments=tuple(segments), meta=meta, groups=groups, **some)
    return made.bytes()


def with_index(data: bytes) -> bytes:
    """Put an index behind a file, right as far as the file is."""
    sections = sections_of(data)
    if sections is None:
        return data
    rows, regions = b"", b""
    for row in range(len(sections["lut"]) // 20):
        _, _, _, start, length = struct.unpack_from("<5I", sections["lut"], 20 * row)
        segment = sections["segments"][start : start + length]
        rows += segment[4:16].ljust(12, b"\0") + corpus.u4(len(regions) // 12, zlib.crc32(segment))
        at = start + 16
        for region in regions_of(segment):
            regions += region[4:12].ljust(8, b"\0") + corpus.u4((at + 12) % 2**32)
            at += len(region)
    crcs = [zlib.crc32(rows + regions), zlib.crc32(data[:48] + sections["lut"])]
    crcs += [zlib.crc32(sections[name]) for name in ("iids", "meta", "groups")]
    counts = corpus.u4(len(rows) // 20, len(regions) // 12)
    return data + rows + regions + counts + struct.pack("<Q", len(data)) + corpus.u4(*crcs, 1, 0) + b"IIDINDEX"


def change_file(data: bytes, choose: Random, blind: Blind) -> bytes:
    """Mutate a file."""
    way = choose.random()
    return blind(data) if way < 0.15 else (number if way < 0.5 else structure)(data, choose, blind)


def change_indexed(data: bytes, choose: Random, blind: Blind) -> bytes:
    """Mutate a file that has an index, or give it one; the checksums are mostly put right again."""
    way = choose.random()
    if way < 0.1:
        return blind(data)
    if way < 0.55:
        data = number(data, choose, blind)
    else:
        data = with_index(structure(data, choose, blind))
        if choose.random() < 0.4:
            data = number(data, choose, blind)
    return test_fuzz.reseal(data) if choose.random() < 0.8 else data


def cross_files(data: bytes, other: bytes, choose: Random) -> bytes:
    """Return a file with entries of two; sections beside them come from either."""
    mine, theirs = parts_of(data), parts_of(other)
    if mine is None or theirs is None:
        return data
    iids, segments = [], []
    for parts in (mine, theirs):
        held = [key for key in range(len(parts.iids)) if choose.random() < 0.5]
        iids += [parts.iids[key] for key in held]
        segments += [parts.segments[key] for key in held]
    iids = [corpus.u4(key) + iid[4:].ljust(8, b"\0") for key, iid in enumerate(iids)]
    meta, groups = choose.choice((mine, theirs)).meta, random_groups(len(iids), choose)
    segments = [tidy(key, segment, choose) for key, segment in enumerate(segments)]
    made = replace(mine, iids=tuple(iids), segments=tuple(segments), meta=meta, groups=groups, removed=()).bytes()
    return with_index(made) if data.endswith(b"IIDINDEX") else made
