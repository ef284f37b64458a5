"""Damaged and hostile files: each defect is found, named and placed; no input ends in another exception."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import make_malformed
import numpy as np
import pytest
from reading import DATA, answers, everything

import iid_dask
from iid_dask.format.check import MAX_DEFECTS, file_defects
from iid_dask.format.source import as_source

# File -> how far it gets (refused by open, when it is touched, or by a full check), block, entry, offset and a part
# of what was found or expected.
EXPECTED: dict[str, tuple[str, str, int | None, int, str]] = {
    "file-1-byte": ("open", "file", None, 0, "1 bytes"),
    "file-47-bytes": ("open", "file", None, 0, "47 bytes"),
    "file-big-endian": ("open", "header", None, 8, "lut section at bytes 805306368 to 2147483648"),
    "file-empty": ("open", "file", None, 0, "0 bytes"),
    "file-header-only": ("open", "header", None, 8, "lut section at bytes 48 to 128"),
    "groups-3-bytes": ("open", "groups", None, 230, "3 bytes"),
    "groups-depth-65": ("open", "groups", None, 234, "JSON nested 65 deep"),
    "groups-json-length-0": ("open", "groups", None, 234, "expected JSON"),
    "groups-json-length-max": ("open", "groups", None, 230, "JSON of 4294967295 bytes"),
    "groups-json-length-plus-1": ("open", "groups", None, 234, "expected JSON"),
    "groups-key-max": ("open", "groups", None, 275, "key 4294967295 in group 'a'"),
    "groups-key-of-no-entry": ("open", "groups", None, 275, "key 4 in group 'a'"),
    "groups-key-twice": ("open", "groups", None, 275, "key 1 twice in group 'a'"),
    "groups-keys-gap": ("open", "groups", None, 275, "4 bytes of keys in no group"),
    "groups-keys-shared": ("open", "groups", None, 234, "group 'b' sharing bytes with another"),
    "groups-keys-uncovered": ("open", "groups", None, 279, "4 bytes of keys in no group"),
    "groups-length-negative": ("open", "groups", None, 234, "length -4 of group 'a'"),
    "groups-length-odd": ("open", "groups", None, 234, "length 3 of group 'a'"),
    "groups-length-past-end": ("open", "groups", None, 234, "keys of group 'a' to byte 8"),
    "groups-name-missing": ("open", "groups", None, 234, "the group {'length': 0, 'offset': 0}"),
    "groups-name-number": ("open", "groups", None, 234, "the group {'length': 4, 'name': 7, 'offset': 0}"),
    "groups-name-surrogate": ("open", "groups", None, 234, "half of a surrogate pair"),
    "groups-name-twice": ("open", "groups", None, 234, "group 'a' twice"),
    "groups-object": ("open", "groups", None, 234, "a JSON dict"),
    "groups-offset-4300-digits": ("open", "groups", None, 234, "offset 9999999999"),
    "groups-offset-float": ("open", "groups", None, 234, "offset 0.0 of group 'a'"),
    "groups-offset-missing": ("open", "groups", None, 234, "offset None of group 'a'"),
    "groups-offset-negative": ("open", "groups", None, 234, "offset -4 of group 'a'"),
    "groups-offset-odd": ("open", "groups", None, 234, "offset 2 of group 'a'"),
    "groups-offset-text": ("open", "groups", None, 234, "offset '0' of group 'a'"),
    "groups-offset-true": ("open", "groups", None, 234, "offset True of group 'a'"),
    "groups-row-number": ("open", "groups", None, 234, "the group 7"),
    "header-groups-length-max": ("open", "header", None, 32, "groups section at bytes 230 to 4294967525"),
    "header-groups-length-minus-1": ("open", "groups", None, 234, "keys of group 'b' to byte 12"),
    "header-groups-length-plus-1": ("open", "header", None, 40, "segments section at byte 328, inside the"),
    "header-groups-offset-max": ("open", "header", None, 32, "groups section at bytes 4294967295 to 4294967393"),
    "header-groups-offset-minus-1": ("open", "header", None, 32, "groups section at byte 229, inside the meta section"),
    "header-groups-offset-past-end": ("open", "header", None, 32, "groups section at bytes 445 to 543"),
    "header-groups-offset-plus-1": ("open", "header", None, 40, "segments section at byte 328, inside the"),
    "header-iids-length-max": ("open", "header", None, 16, "iids section at bytes 128 to 4294967423"),
    "header-iids-length-minus-1": ("open", "lut", 3, 108, "iid at bytes 51 to 64 of its section"),
    "header-iids-length-plus-1": ("open", "header", None, 24, "meta section at byte 192, inside the iids section"),
    "header-iids-offset-max": ("open", "header", None, 16, "iids section at bytes 4294967295 to 4294967359"),
    "header-iids-offset-minus-1": ("open", "header", None, 16, "iids section at byte 127, inside the lut section"),
    "header-iids-offset-past-end": ("open", "header", None, 16, "iids section at bytes 445 to 509"),
    "header-iids-offset-plus-1": ("open", "header", None, 24, "meta section at byte 192, inside the iids section"),
    "header-lut-length-max": ("open", "header", None, 8, "lut section at bytes 48 to 4294967343"),
    "header-lut-length-minus-1": ("open", "header", None, 12, "a lut of 79 bytes"),
    "header-lut-length-plus-1": ("open", "header", None, 16, "iids section at byte 128, inside the lut section"),
    "header-lut-offset-max": ("open", "header", None, 8, "lut section at bytes 4294967295 to 4294967375"),
    "header-lut-offset-minus-1": ("open", "header", None, 8, "lut section at byte 47"),
    "header-lut-offset-past-end": ("open", "header", None, 8, "lut section at bytes 445 to 525"),
    "header-lut-offset-plus-1": ("open", "header", None, 16, "iids section at byte 128, inside the lut section"),
    "header-meta-length-max": ("open", "header", None, 24, "meta section at bytes 192 to 4294967487"),
    "header-meta-length-minus-1": ("open", "meta", None, 192, "expected JSON"),
    "header-meta-length-plus-1": ("open", "header", None, 32, "groups section at byte 230, inside the meta section"),
    "header-meta-offset-max": ("open", "header", None, 24, "meta section at bytes 4294967295 to 4294967333"),
    "header-meta-offset-minus-1": ("open", "header", None, 24, "meta section at byte 191, inside the iids section"),
    "header-meta-offset-past-end": ("open", "header", None, 24, "meta section at bytes 445 to 483"),
    "header-meta-offset-plus-1": ("open", "header", None, 32, "groups section at byte 230, inside the meta section"),
    "header-section-in-header": ("open", "header", None, 24, "meta section at byte 40"),
    "header-sections-equal": ("open", "header", None, 24, "meta section at byte 192, inside the groups section"),
    "header-segments-length-max": ("open", "header", None, 40, "segments section at bytes 328 to 4294967623"),
    "header-segments-length-minus-1": ("open", "lut", 3, 108, "segment at bytes 87 to 116 of its section"),
    "header-segments-length-plus-1": ("open", "header", None, 40, "segments section at bytes 328 to 445"),
    "header-segments-offset-max": ("open", "header", None, 40, "segments section at bytes 4294967295 to 4294967411"),
    "header-segments-offset-minus-1": ("open", "header", None, 40, "segments section at byte 327, inside the"),
    "header-segments-offset-past-end": ("open", "header", None, 40, "segments section at bytes 445 to 561"),
    "header-segments-offset-plus-1": ("open", "header", None, 40, "segments section at bytes 329 to 445"),
    "header-version-1": ("open", "header", None, 0, "version 1"),
    "header-version-max": ("open", "header", None, 0, "version 4294967295"),
    "iids-address-length-0": ("touch", "iids", 1, 145, "key 1 with names of 4 and 0 bytes"),
    "iids-domain-length-max": ("touch", "iids", 1, 145, "key 1 with names of 4294967295 and 1 bytes"),
    "iids-domain-length-plus-1": ("touch", "iids", 1, 145, "key 1 with names of 5 and 1 bytes"),
    "iids-key-of-another": ("touch", "iids", 1, 145, "key 2 with names of 4 and 1 bytes"),
    "iids-lengths-wrap": ("touch", "iids", 1, 145, "key 1 with names of 4294967295 and 6 bytes"),
    "index-area-lie": ("touch", "index", 0, 444, "area"),
    "index-box-lie": ("touch", "index", 0, 444, "area"),
    "index-crc-groups": ("open", "groups", None, 230, "crc32 0x9042801c: damaged bytes"),
    "index-crc-iids": ("touch", "iids", None, 128, "crc32 0xee45e737: damaged bytes"),
    "index-crc-meta": ("open", "meta", None, 192, "crc32 0x086412a4"),
    "index-crc-segment": ("touch", "segments", 1, 357, "crc32 0x443e40cd: damaged bytes"),
    "index-region-lie": ("touch", "index", 0, 444, "area"),
    "lut-iid-length-11": ("open", "lut", 1, 68, "iid of 11 bytes"),
    "lut-iid-length-max": ("open", "lut", 1, 68, "iid at bytes 17 to 4294967312 of its section"),
    "lut-iid-length-minus-1": ("touch", "iids", 1, 145, "key 1 with names of 4 and 1 bytes"),
    "lut-iid-offset-max": ("open", "lut", 1, 68, "iid at bytes 4294967295 to 4294967312 of its section"),
    "lut-iid-offset-plus-1": ("open", "lut", 2, 88, "iid at byte 34 of its section, inside that of entry 1"),
    "lut-iid-removed-half": ("open", "lut", 1, 68, "iid of 0 bytes"),
    "lut-iid-shared": ("open", "lut", 1, 68, "iid at byte 0 of its section, inside that of entry 0"),
    "lut-key-not-row": ("open", "lut", 1, 68, "key 9"),
    "lut-key-twice": ("open", "lut", 1, 68, "key 0"),
    "lut-segment-length-15": ("open", "lut", 2, 88, "segment of 15 bytes"),
    "lut-segment-length-max": ("open", "lut", 1, 68, "segment at bytes 29 to 4294967324 of its section"),
    "lut-segment-length-minus-1": ("touch", "segments", 1, 386, "a region of 12 bytes"),
    "lut-segment-length-plus-1": ("open", "lut", 2, 88, "segment at byte 71 of its section, inside that of entry 1"),
    "lut-segment-offset-max": ("open", "lut", 1, 68, "segment at bytes 4294967295 to 4294967337 of its section"),
    "lut-segment-offset-minus-1": ("open", "lut", 1, 68, "segment at byte 28 of its section, inside that of entry 0"),
    "lut-segment-removed-half": ("open", "lut", 1, 68, "segment of 0 bytes"),
    "lut-segment-shared": ("open", "lut", 3, 108, "segment at byte 0 of its section, inside that of entry 0"),
    "meta-5000-digits": ("open", "meta", None, 192, "expected JSON"),
    "meta-bom": ("open", "meta", None, 192, "expected JSON"),
    "meta-cut": ("open", "meta", None, 192, "expected JSON"),
    "meta-depth-100000": ("open", "meta", None, 192, "JSON nested 100000 deep"),
    "meta-depth-65": ("open", "meta", None, 192, "JSON nested 66 deep"),
    "meta-infinity": ("open", "meta", None, 192, "-Infinity, which is not JSON"),
    "meta-key-twice": ("open", "meta", None, 192, "an object that names 'b' twice"),
    "meta-list": ("open", "meta", None, 192, "a JSON list"),
    "meta-lone-surrogate": ("open", "meta", None, 192, "half of a surrogate pair"),
    "meta-nan": ("open", "meta", None, 192, "NaN, which is not JSON"),
    "meta-not-json": ("open", "meta", None, 192, "expected JSON"),
    "meta-not-utf8": ("open", "meta", None, 192, "byte 0xff at byte 7 of the text"),
    "meta-null": ("open", "meta", None, 192, "a JSON NoneType"),
    "meta-string-open": ("open", "meta", None, 192, "expected JSON"),
    "meta-surrogate-bytes": ("open", "meta", None, 192, "byte 0xed at byte 7 of the text"),
    "meta-two-values": ("open", "meta", None, 192, "expected JSON"),
    "region-box-empty": ("touch", "segments", 0, 348, "a region with an empty or inverted box"),
    "region-box-huge": ("touch", "segments", 0, 344, "a region of 13 bytes"),
    "region-box-inverted": ("touch", "segments", 0, 348, "a region with an empty or inverted box"),
    "region-cut": ("touch", "segments", 0, 357, "11 bytes left of the segment"),
    "region-length-0": ("touch", "segments", 0, 344, "a region of 0 bytes"),
    "region-length-1": ("touch", "segments", 0, 344, "a region of 1 bytes"),
    "region-length-11": ("touch", "segments", 0, 344, "a region of 11 bytes"),
    "region-length-12": ("touch", "segments", 0, 344, "a region of 12 bytes"),
    "region-length-max": ("touch", "segments", 0, 344, "a region of 4294967295 bytes"),
    "region-length-minus-1": ("touch", "segments", 0, 344, "a region of 13 bytes"),
    "region-length-of-rest": ("touch", "segments", 1, 373, "a region of 26 bytes"),
    "region-length-plus-1": ("touch", "segments", 0, 344, "a region of 14 bytes"),
    "region-loose": ("check", "segments", 0, 348, "a region with no pixel in its last row, last column"),
    "region-outside-left": ("touch", "segments", 1, 377, "a region that leaves its segment's box"),
    "region-outside": ("touch", "segments", 0, 348, "a region that leaves its segment's box"),
    "region-pad-bits": ("check", "segments", 0, 356, "last byte 0xcd"),
    "region-without-pixels": ("check", "segments", 0, 348, "first row, last row, first column, last column"),
    "segment-area-0": ("check", "segments", 0, 340, "area 0"),
    "segment-area-max": ("check", "segments", 0, 340, "area 4294967295"),
    "segment-area-minus-1": ("check", "segments", 0, 340, "area 3"),
    "segment-area-of-empty": ("check", "segments", 2, 411, "area 1"),
    "segment-area-plus-1": ("check", "segments", 0, 340, "area 5"),
    "segment-box-inverted-columns": ("touch", "segments", 0, 332, "box (0, 4, 2, 3)"),
    "segment-box-inverted": ("touch", "segments", 0, 332, "box (3, 0, 2, 3)"),
    "segment-key-of-another": ("touch", "segments", 1, 357, "key 0"),
}

EDGE, EMPTY = (DATA / "edge.iid").read_bytes(), (DATA / "empty.iid").read_bytes()


@cache
def small(folder: Path) -> bytes:
    """Four entries and an index, as the writer makes them."""
    path = folder / "small.iid"
    with iid_dask.IIDWriter(path, metadata={"image": {"height": 12, "width": 12}}) as writer:
        writer.add(b"cell", b"1", (0, 0, 3, 3), np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), groups=["a"])
        writer.add(b"cell", b"2", (4, 4, 8, 9), np.eye(4, 5), groups=["a", "b"])
        writer.add(b"", b"\xff\x00", (9, 9, 9, 9), np.zeros((0, 0)))
        writer.add(b"cell", b"3", (2, 0, 4, 12), np.array([[1, 0, 0] * 4, [1, 0, 0] * 4]), groups=["b"])
    return path.read_bytes()


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return small(tmp_path_factory.mktemp("small"))


def test_corpus_on_disk_is_what_the_script_makes() -> None:
    made = make_malformed.files()
    assert len(make_malformed.malformed()) >= 45
    for path, data in made.items():
        assert path.read_bytes() == data, path
    found = {path for folder in ("malformed", "unusual") for path in (DATA / folder).iterdir()}
    assert found == set(made)
    assert set(make_malformed.malformed()) == set(EXPECTED)


def _agrees(error: iid_dask.IIDFormatError, path: Path) -> None:
    _, block, entry, offset, words = EXPECTED[path.stem]
    assert error.file == str(path)
    assert (error.block, error.entry, error.offset) == (block, entry, offset), error
    assert words in str(error)


@pytest.mark.parametrize("name", EXPECTED)
def test_defect_is_named_and_placed(name: str) -> None:
    path = DATA / "malformed" / f"{name}.iid"
    reached = "open"
    try:
        with iid_dask.open(path) as reader:
            reached = "touch"
            everything(reader)
            reached = "check"
            raise reader.check()[0]
    except iid_dask.IIDFormatError as error:
        assert reached == EXPECTED[name][0]
        _agrees(error, path)


@pytest.mark.parametrize("name", EXPECTED)
def test_full_check_names_the_defect_first(name: str) -> None:
    path = DATA / "malformed" / f"{name}.iid"
    source = as_source(path)
    defects = file_defects(source)
    source.close()
    _agrees(defects[0], path)


@pytest.mark.parametrize("name", [name for name, row in EXPECTED.items() if row[0] == "touch"])
def test_check_lists_what_reading_raises(name: str) -> None:
    path = DATA / "malformed" / f"{name}.iid"
    with iid_dask.open(path) as reader:
        _agrees(reader.check()[0], path)


@pytest.mark.parametrize("name", make_malformed.unusual())
def test_what_the_format_allows_opens_and_checks_clean(name: str) -> None:
    path = DATA / "unusual" / f"{name}.iid"
    with iid_dask.open(path) as reader:
        everything(reader)
        assert reader.check() == []
    source = as_source(path)
    assert file_defects(source) == []
    source.close()


ODD_INDEX = ("rformat", "rformat-max", "trailing-bytes", "trailing-magic", "sections-reversed", "sections-apart")


@pytest.mark.parametrize("name", [*ODD_INDEX, *(n for n in make_malformed.unusual() if n.startswith("index"))])
def test_layout_and_index_do_not_change_the_answers(name: str) -> None:
    plain, odd = make_malformed.BASE, make_malformed.unusual()[name][1]
    assert answers(odd) == answers(plain)
    with iid_dask.open(odd) as reader:
        assert reader.has_index == (name == "index")


def test_damage_is_read_on_request() -> None:
    for name in ("index-crc-segment", "index-crc-iids", "index-crc-meta", "index-crc-groups"):
        with iid_dask.open(DATA / "malformed" / f"{name}.iid", verify=False) as reader:
            assert len(everything(reader)["entries"]) == 4
            assert [defect.block for defect in reader.check()] == [EXPECTED[name][1]]


def test_every_defect_is_listed() -> None:
    data = make_malformed.patch(make_malformed.LUT + 60, b"\x07", make_malformed.patch(4, b"\x01"))
    meta = make_malformed.patch(make_malformed.META, b"!", data)
    groups = make_malformed.patch(make_malformed.GROUPS, b"\xff", meta)
    assert [defect.block for defect in file_defects(as_source(groups))] == ["lut", "meta", "groups"]

    data = make_malformed.BASE
    for key in (0, 1, 3):
        data = make_malformed.patch(make_malformed.STARTS[key], b"\x09", data)
        data = make_malformed.patch(make_malformed.IIDS + (0, 17, 0, 51)[key], b"\x09", data)
    found = [(defect.block, defect.entry) for defect in file_defects(as_source(data))]
    assert found == [(block, key) for block in ("iids", "segments") for key in (0, 1, 3)]


def test_a_damaged_index_hides_no_damaged_segment() -> None:
    rows = make_malformed.unusual()["index-rows-damaged"][1]
    data = make_malformed.patch(make_malformed.STARTS[1], b"\x09", rows)
    data = make_malformed.patch(make_malformed.STARTS[3], b"\x09", data)
    with iid_dask.open(data) as reader:
        for _ in range(2):
            assert [(defect.block, defect.entry) for defect in reader.check()] == [("segments", 1), ("segments", 3)]


def test_a_wrong_checksum_hides_no_damaged_segment() -> None:
    data = make_malformed.malformed()["index-crc-meta"][1]
    data = make_malformed.patch(make_malformed.STARTS[1], b"\x09", data)
    found = [(defect.block, defect.entry) for defect in file_defects(as_source(data))]
    assert found == [("meta", None), ("segments", 1)]


def test_list_of_defects_ends() -> None:
    n = 2 * MAX_DEFECTS
    lut = np.zeros((n, 5), "<u4")
    lut[:, 2], lut[:, 4] = 12, 16
    header = np.array([0, 0, 48, 20 * n, 48 + 20 * n, 12, 48, 0, 48, 0, 60 + 20 * n, 16], "<u4")
    assert len(file_defects(as_source(header.tobytes() + lut.tobytes() + bytes(28)))) == MAX_DEFECTS


# --- every prefix, every flipped bit ----------------------------------------------------------------------------


def _flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    flipped = bytearray(data)
    for at in range(len(data)):
        for bit in range(8):
            flipped[at] ^= 1 << bit
            yield at, bytes(flipped)
            flipped[at] ^= 1 << bit


def _block(at: int, data: bytes) -> str:
    header = np.frombuffer(data, "<u4", 12)
    if at < 48:
        return "rformat" if 4 <= at < 8 else "header"
    for i, section in enumerate(make_malformed.SECTIONS):
        if header[2 + 2 * i] <= at < header[2 + 2 * i] + header[3 + 2 * i]:
            return section
    return "index"


def _detection(data: bytes) -> tuple[dict[str, float], list[tuple[str, bytes]]]:
    """Share of the bits of each block whose flip is found, and the files where it was not."""
    total: dict[str, int] = {}
    missed: list[tuple[str, bytes]] = []
    for at, flipped in _flips(data):
        block = _block(at, data)
        total[block] = total.get(block, 0) + 1
        if answers(flipped) is None:
            assert file_defects(as_source(flipped)), at
        else:
            missed.append((block, flipped))
    shares = {block: 1 - sum(b == block for b, _ in missed) / count for block, count in total.items()}
    print({block: round(share, 4) for block, share in shares.items()})
    return shares, missed


def test_every_prefix_is_refused(seed: bytes) -> None:
    for data in (EDGE, EMPTY):
        for length in range(len(data)):
            assert answers(data[:length]) is None, length
            assert file_defects(as_source(data[:length])), length
    # A prefix that ends in the index is a whole file without one.
    sections = int(np.frombuffer(seed, "<u4", 2, 40).sum())
    whole = answers(seed)
    for length in range(len(seed)):
        assert answers(seed[:length]) == (None if length < sections else whole), length


def test_flipped_bits_without_an_index() -> None:
    found, _ = _detection(EDGE)
    assert found["header"] == found["lut"] == 1
    assert found["segments"] >= 0.85
    # Names, metadata and keys of groups are free: any byte there is as sound as another.
    assert found["rformat"] == 0


def test_flipped_bits_with_an_index(seed: bytes) -> None:
    # Every flip is found, or changes no answer: rformat is free; a section may reach into bytes that no other
    # owns; a flip in the index, or one in the header that leaves the file sound, makes it a file without an index.
    found, missed = _detection(seed)
    for block in ("lut", "iids", "meta", "groups", "segments"):
        assert found[block] == 1, block
    whole = answers(seed)
    assert {block for block, _ in missed} <= {"rformat", "header", "index"}
    for block, flipped in missed:
        assert answers(flipped) == whole, block


def test_flipped_bits_of_an_empty_file() -> None:
    # Sections without bytes may be said to begin anywhere: such flips change nothing.
    whole = answers(EMPTY)
    for at, flipped in _flips(EMPTY):
        found = answers(flipped)
        assert found is None or {**found, "metadata": ""} == {**whole, "metadata": ""}, at


def test_two_defects_at_once() -> None:
    base = np.frombuffer(make_malformed.BASE, np.uint8)
    patches = []
    for _, data in make_malformed.malformed().values():
        if len(data) == len(base):
            changed = np.frombuffer(data, np.uint8)
            patches.append((np.flatnonzero(changed != base), changed))
    assert len(patches) > 50
    choose = random.Random(1)
    for _ in range(500):
        both = base.copy()
        for where, changed in choose.sample(patches, 2):
            both[where] = changed[where]
        assert answers(both.tobytes()) is None
        assert file_defects(as_source(both.tobytes()))


# --- no false alarms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(DATA.glob("*.iid")), ids=lambda path: path.stem)
def test_files_of_the_reference_are_sound(path: Path) -> None:
    source = as_source(path)
    assert file_defects(source) == []
    source.close()


def test_what_the_writer_writes_is_sound(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    path = tmp_path / "random.iid"
    for case in range(200):
        with iid_dask.IIDWriter(path, metadata={"case": case}, index=bool(case % 2)) as writer:
            for key in range(rng.integers(0, 8)):
                box = np.sort(rng.integers(0, 40, (2, 2)), axis=0).ravel()
                mask = rng.random((box[2] - box[0], box[3] - box[1])) < rng.random()
                groups = [name for name in "ab" if rng.random() < 0.5]
                writer.add(rng.bytes(rng.integers(0, 4)), str(key).encode(), box, mask, groups=groups)
            if rng.random() < 0.2:
                writer.add_removed()
        with iid_dask.open(path) as reader:
            assert reader.check() == []
            everything(reader)


def test_warnings_are_few() -> None:
    data = make_malformed.replace(make_malformed.TINY, meta=b'{"image": {"height": "' + b"9" * 10_000 + b'"}}').bytes()
    with iid_dask.open(data) as reader, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert reader.shape == (8, 9)
        for entry in reader.values():
            entry.mask()
    assert [warning.category for warning in caught] == [iid_dask.IIDWarning]
    assert len(str(caught[0].message)) < 400
