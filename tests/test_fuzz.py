"""Files broken on purpose by something that knows the format: a value or an IIDError, quickly, and no lie believed."""

from __future__ import annotations

import random
import struct
import time
import warnings
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import make_malformed as corpus
import numpy as np
import pytest
from fuzz_targets import paint, read_file
from reading import DATA

import iid_dask

CASES = 20_000
NUMBERS = (0, 1, 2, 4, 7, 8, 11, 12, 13, 15, 16, 17, 19, 20, 48, 52, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16)
LARGE = (2**24, 2**31 - 1, 2**31, 2**32 - 21, 2**32 - 16, 2**32 - 12, 2**32 - 1)
TEXTS = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b'"',
    b'"\\',
    b'{"a": 1e999}',
    b'{"a": "\\ud800"}',
    b"[" * 63 + b"]" * 63,
    b"[" * 3000,
    b'{"removed": [0, 1, 2, 3]}',
    b'{"removed": [2]}',
    b'{"removed": [9]}',
    b'{"removed": [true, 2.0]}',
    b'{"image": {"height": 0, "width": -1}}',
    b'{"image": {"height": 65535, "width": 65535}}',
    b'{"image": 3}',
    b'[{"name": "a", "offset": 0, "length": 12}]',
    b'[{"name": "a", "offset": 4, "length": 8}, {"name": "b", "offset": 0, "length": 4}]',
    b'[{"name": "a", "offset": 1e3, "length": 12}]',
    b'[{"name": "a", "offset": 0, "length": ' + b"4" * 4300 + b"}]",
    b'[{"name": ["a"], "offset": 0, "length": 12}]',
    b"9" * 5000,
)

Field = tuple[int, int]
"""Offset and width in bytes."""


def fields(data: bytes) -> list[Field]:
    """Every number of a sound file: header, lut, heads of names, segments and regions, index rows, trailer."""
    found = [(at, 4) for at in range(0, 48, 4)]
    lut, n_lut, iids, _, _, _, groups, n_groups, segments, _ = struct.unpack_from("<10I", data, 8)
    found += [(lut + at, 4) for at in range(0, n_lut, 4)]
    if n_groups:
        found += [(groups, 4)] + [(at, 4) for at in range(groups + n_groups - 8, groups + n_groups, 4)]
    for row in range(0, n_lut, 20):
        _, iid, iid_length, start, length = struct.unpack_from("<5I", data, lut + row)
        if not iid_length:
            continue
        found += [(iids + iid + at, 4) for at in (0, 4, 8)]
        at = segments + start
        found += [(at, 4), (at + 12, 4)] + [(at + side, 2) for side in (4, 6, 8, 10)]
        stop, at = at + length, at + 16
        while at < stop:
            found += [(at, 4)] + [(at + side, 2) for side in (4, 6, 8, 10)]
            at += struct.unpack_from("<I", data, at)[0]
    if data.endswith(b"IIDINDEX"):
        entries, regions = struct.unpack_from("<II", data, len(data) - 52)
        rows = len(data) - 52 - 20 * entries - 12 * regions
        found += [(len(data) - 52 + at, 4) for at in range(0, 44, 4)]
        for at in range(rows, rows + 20 * entries, 20):
            found += [(at + side, 2) for side in (0, 2, 4, 6)] + [(at + side, 4) for side in (8, 12, 16)]
        for at in range(rows + 20 * entries, len(data) - 52, 12):
            found += [(at + side, 2) for side in (0, 2, 4, 6)] + [(at + 8, 4)]
    return found


def reseal(data: bytes) -> bytes:
    """Compute the checksums of an index anew, as far as its numbers still lead anywhere."""
    if not data.endswith(b"IIDINDEX") or len(data) < 100:
        return data
    sealed = bytearray(data)
    entries, regions, start = struct.unpack_from("<IIQ", data, len(data) - 52)
    sections = [struct.unpack_from("<II", data, 8 + 8 * i) for i in range(5)]
    lut, iids, meta, groups, segments = (data[offset : offset + length] for offset, length in sections)
    for row in range(min(entries, len(lut) // 20)):
        at = start + 20 * row + 16
        _, _, _, offset, length = struct.unpack_from("<5I", lut, 20 * row)
        if at + 4 <= len(data) - 52:
            sealed[at : at + 4] = corpus.u4(zlib.crc32(segments[offset : offset + length]))
    rows = sealed[start : start + 20 * entries + 12 * regions] if start < len(data) else b""
    crcs = [zlib.crc32(part) for part in (rows, data[:48] + lut, iids, meta, groups)]
    sealed[-36:-16] = corpus.u4(*crcs)
    return bytes(sealed)


class Mutator:
    """Breaks sound files; the same seed breaks them the same way."""

    def __init__(self, seeds: list[bytes], seed: int) -> None:
        self.choose = random.Random(seed)
        self.seeds = [(data, fields(data)) for data in seeds]

    def __call__(self) -> bytes:
        choose = self.choose
        if choose.random() < 0.05:
            meta, groups = choose.choice(TEXTS), choose.choice(TEXTS)
            parts = replace(corpus.TINY, meta=meta) if choose.random() < 0.5 else corpus.TINY
            section = corpus.group_section(groups, corpus.u4(0, 2, 3)) if choose.random() < 0.9 else groups
            return replace(parts, groups=section).bytes()
        data, known = choose.choice(self.seeds)
        for _ in range(choose.choice((1, 1, 1, 2, 3))):
            data = choose.choice(self.ways)(self, data, known)
        return reseal(data) if choose.random() < 0.5 else data

    def number(self, data: bytes, known: list[Field]) -> bytes:
        """Set a field to a value that is interesting, near, or another field's."""
        at, width = self.choose.choice(known)
        old = int.from_bytes(data[at : at + width], "little")
        near = old + self.choose.choice((-16, -12, -4, -2, -1, 1, 2, 4, 12, 16))
        other, other_width = self.choose.choice(known)
        copied = int.from_bytes(data[other : other + other_width], "little")
        value = self.choose.choice((near, near, copied, len(data) - copied, *self.choose.sample(NUMBERS + LARGE, 2)))
        return data[:at] + (value % 256**width).to_bytes(width, "little") + data[at + width :]

    def swap(self, data: bytes, known: list[Field]) -> bytes:
        """Exchange two fields, or two rows of the lut."""
        (a, width), (b, _) = sorted(self.choose.sample(known, 2))
        if self.choose.random() < 0.3:
            a, b = (48 + 20 * row for row in sorted(self.choose.sample(range(4), 2)))
            width = 20
        if b < a + width or b + width > len(data):
            return data
        return data[:a] + data[b : b + width] + data[a + width : b] + data[a : a + width] + data[b + width :]

    def turn(self, data: bytes, known: list[Field]) -> bytes:
        """Exchange rows and columns of one box: as many bits, another shape."""
        sides = [at for at, width in known if width == 2]
        at = sides[self.choose.randrange(len(sides) // 4) * 4]
        box = struct.unpack_from("<4H", data.ljust(at + 8, b"\0"), at)
        corner = (box[0] + box[3] - box[1], box[1] + box[2] - box[0])
        return corpus.patch(at + 4, corpus.u2(*(side & 65535 for side in corner)), data)

    def bit(self, data: bytes, known: list[Field]) -> bytes:
        """Flip one bit of anything."""
        if not data:
            return data
        at = self.choose.randrange(len(data))
        return corpus.patch(at, bytes([data[at] ^ 1 << self.choose.randrange(8)]), data)

    def cut(self, data: bytes, known: list[Field]) -> bytes:
        """Drop the end, or some bytes within."""
        at = self.choose.randrange(len(data) + 1)
        return data[:at] if self.choose.random() < 0.5 else data[:at] + data[at + self.choose.choice((1, 4, 12, 20)) :]

    def splice(self, data: bytes, known: list[Field]) -> bytes:
        """Put a stretch of another file into this one."""
        other, _ = self.choose.choice(self.seeds)
        at, start = self.choose.randrange(len(data) + 1), self.choose.randrange(len(other))
        length = self.choose.choice((1, 8, 20, 52, 200))
        keep = at if self.choose.random() < 0.5 else at + length
        return data[:at] + other[start : start + length] + data[keep:]

    ways = (number, number, number, number, swap, turn, bit, cut, splice)


def seeds() -> list[bytes]:
    unusual = corpus.unusual()
    odd = [unusual[name][1] for name in ("segments-swapped", "row-removed", "sections-apart")]
    return [corpus.BASE, corpus.INDEXED, corpus.INDEXED, (DATA / "edge.iid").read_bytes(), *odd]


def test_hostile_files_give_a_value_or_an_error() -> None:
    read_file(corpus.BASE)  # compiles the kernels
    mutate = Mutator(seeds(), seed=20_260)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    begin = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iid_dask.IIDWarning)
        for case in range(CASES):
            data = mutate()
            start = time.process_time()  # other processes take of the clock's time
            try:
                outcomes[read_file(data)] += 1
            except BaseException as error:
                error.add_note(f"case {case}: {data.hex()}")
                raise
            slowest = max(slowest, time.process_time() - start)
    print(f"{CASES} cases in {time.monotonic() - begin:.1f} s, slowest {slowest:.3f} s: {dict(outcomes)}")
    assert slowest < 1
    # A fuzzer that is stopped at the door tests the door only.
    for reached in ("open", "columns", "names", "masks", "sound", "unsound", "sound with index"):
        assert outcomes[reached] >= 20, reached
    assert outcomes["open"] < 0.8 * CASES


def test_lies_with_sound_checksums_are_told_apart() -> None:
    # The same answers with and without an index, or an error: for each field of each row of one that was resealed.
    start = len(corpus.BASE)
    lies = caught = ignored = 0
    for at, width in fields(corpus.INDEXED):
        if not start <= at < len(corpus.INDEXED) - 52:
            continue
        for step in (-2, -1, 1, 2):
            value = int.from_bytes(corpus.INDEXED[at : at + width], "little") + step
            patched = corpus.patch(at, (value % 256**width).to_bytes(width, "little"), corpus.INDEXED)
            data = reseal(patched)
            if data == corpus.INDEXED:
                continue  # a checksum, put right again
            lies += 1
            with iid_dask.open(data) as reader, iid_dask.open(corpus.BASE) as plain:
                if not reader.has_index:
                    ignored += 1
                    assert reader.check() == []
                    assert all(map(np.array_equal, paint(reader), paint(plain)))
                    continue
                caught += 1
                (defect,) = reader.check()
                assert defect.block == "index"
                assert defect.entry is not None
                with pytest.raises(iid_dask.IIDFormatError, match="differ from the segment's") as caught_here:
                    reader[defect.entry].mask()
                error = caught_here.value
                assert (error.block, error.entry, error.offset) == ("index", defect.entry, defect.offset)
    assert lies == caught + ignored
    assert caught > 10
    assert ignored > 50


def test_index_that_tells_of_removed_entries_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "removed.iid"
    path.write_bytes(corpus.unusual()["row-removed"][1])
    size = iid_dask.add_index(path)
    data = path.read_bytes()
    with iid_dask.open(data) as reader:
        assert reader.has_index
    for at, value in ((4, corpus.u2(1, 1)), (8, corpus.u4(1))):
        with iid_dask.open(reseal(corpus.patch(len(data) - size + 20 + at, value, data))) as reader:
            assert not reader.has_index
            assert not reader.columns.boxes[1].any()
