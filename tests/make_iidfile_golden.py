"""Programs for the API of `iidfile`, and the files that the reference makes of them.

    REFERENCE_PYTHON tests/make_iidfile_golden.py

writes data/iidfile/*.iid; REFERENCE_PYTHON has iidfile 0.2.0, numpy 1.23.5, scikit-image 0.19.3 (its saving needs
them). The tests run the same programs with `iid_dask.IIDFile`. Masks follow from formulas, so that no release of numpy
changes them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "data" / "iidfile"


def pattern(height, width, kind):
    """A mask: noise, a solid, a ring with something in it, a diagonal, a comb, pieces far apart, or nothing."""
    i, j = np.ogrid[:height, :width]
    return {
        "noise": (i * 7 + j * j * 3 + i * j) % 5 < 2,
        "sparse": (i * 31 + j * 17 + i * j * 5) % 11 == 0,
        "solid": (i >= 0) & (j >= 0),
        "ring": (i == 0) | (j == 0) | (i == height - 1) | (j == width - 1) | ((i == height // 2) & (j == width // 2)),
        "diagonal": i == j,
        "antidiagonal": i + j == height - 1,
        "comb": ((j % 2 == 0) | (i == height - 1)) & (i >= 0),
        "apart": ((i < 2) & (j < 2)) | ((i >= height - 2) & (j >= width - 2)),
        "nothing": (i < 0) & (j < 0),
    }[kind]


KINDS = ("noise", "sparse", "solid", "ring", "diagonal", "antidiagonal", "comb", "apart", "nothing")


def put(file, address, domain, row, col, mask, group=None):
    """Add a mask at a corner."""
    file.add(address, domain, (row, col, row + mask.shape[0], col + mask.shape[1]), mask, group)


def page(make):
    """What the examples of the reference's page are run on: groups 'sys' and 'rep', areas around 4000."""
    file = make()
    put(file, b"tree", b"example", 560, 360, pattern(80, 80, "solid"), "sys")
    put(file, b"leaf", b"example", 590, 390, pattern(40, 100, "solid"), "rep")
    put(file, b"root", b"example", 600, 400, pattern(30, 40, "noise"), "sys")
    put(file, b"leaf", b"other", 10, 20, pattern(3999, 1, "solid"), "rep")
    put(file, b"foo", b"bar", 595, 395, pattern(10, 12, "ring"), "rep")
    put(file, b"bark", b"", 0, 0, pattern(5, 6, "noise"))
    file.groups.add("rep", keys=[0])
    file.meta.data["image"] = {"height": 4100, "width": 700}
    file.meta.data["camera"] = "Ü"
    return file


def shapes(make):
    """Every kind of mask at several sizes, loose boxes among them."""
    file = make()
    for n, kind in enumerate(KINDS):
        for height, width in ((1, 1), (3, 8), (17, 13), (40, 33)):
            put(file, kind.encode(), b"%d x %d" % (height, width), 5 * n, 3 * height, pattern(height, width, kind))
    loose = np.zeros((20, 30), bool)
    loose[5:9, 7:21] = pattern(4, 14, "noise")
    put(file, b"loose", b"", 100, 100, loose)
    return file


def kinds_of_numbers(make):
    """Masks of other types than bool, with one value."""
    file = make()
    for value, dtype in ((1, "u1"), (255, "u1"), (1, "i8"), (7, "u2"), (1, "f4")):
        put(file, b"numbers", dtype.encode(), 3, 4, pattern(9, 10, "apart").astype(dtype) * np.dtype(dtype).type(value))
    return file


def names(make):
    """Any bytes, empty and long ones, one IID twice, no domain."""
    file = make()
    for address, domain in (
        (b"", b""),
        (b"a", None),
        (b"\x00\xff\xfe", b"\xc3("),
        (b"a", b"x" * 300),
        (b"y" * 3000, b"d"),
        (b"a", b"d"),
        (b"a", b"d"),
    ):
        put(file, address, domain, 1, 2, pattern(4, 5, "noise"))
    return file


def groups(make):
    """Groups in order of first use, by both ways, of odd names."""
    file = make()
    for key in range(40):
        put(file, b"%d" % key, b"g", key, key, pattern(3, 3, "solid"), ["zz", "aa", None][key % 3])
    file.groups.add("mm", keys=[6, 0, 3])
    file.groups.add("aa", keys=range(2))
    file.groups.add('größe "x"\n', keys=[5])
    file.groups.add("", keys=(1, 2))
    file.groups.add("a set's order", keys=[33, 1, 20])
    return file


def corner(make):
    """Along the last rows and columns of the largest image."""
    file = make()
    put(file, b"corner", b"c", 65535 - 6, 65535 - 9, pattern(6, 9, "noise"))
    put(file, b"row", b"c", 65534, 0, pattern(1, 65535, "solid"))
    put(file, b"column", b"c", 0, 65534, pattern(65535, 1, "apart"))
    return file


def metadata(make):
    """Nothing but metadata."""
    file = make()
    file.meta.data["text"] = 'ü\n"\\'
    file.meta.data["numbers"] = [1, -2.5, 1e300, True, None]
    file.meta.data["nested"] = {"": {"a": []}}
    return file


def nothing(make):
    """No entries, no groups, no metadata."""
    return make()


def edited(make):
    """A file of the reference opened, loaded, added to."""
    file = make(str(GOLDEN / "page.iid"))
    file.fetch(everything=True)
    put(file, b"late", b"example", 7, 9, pattern(12, 11, "comb"), "new")
    file.groups.add("sys", keys=[1])
    file.meta.data["edited"] = True
    return file


PROGRAMS = (page, shapes, kinds_of_numbers, names, groups, corner, metadata, nothing, edited)


def main():
    """Run all with the reference."""
    from iidfile import IIDFile

    GOLDEN.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        path = GOLDEN / f"{program.__name__}.iid"
        program(IIDFile).save(str(path))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
