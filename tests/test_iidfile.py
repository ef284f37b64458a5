"""`IIDFile` against the reference: its page's examples, its files, its answers; and what we do better."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import re
import shutil
import sys
import tempfile
import types

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from make_iidfile_golden import GOLDEN, KINDS, PROGRAMS, page, pattern, put
from reference import iidfile, reference
from twins import dense, random_file, random_mask, seeds

import iid_dask
from iid_dask import BBox, IIDFile
from iid_dask.format.plan import FilePlan, plan_file
from iid_dask.format.source import LocalSource

PAGE = GOLDEN / "page.iid"


def keys_of(entries):
    return [entry.key for entry in entries]


def told(entry):
    """All that an entry of either class tells."""
    seg = entry.seg
    regions = [
        (r.bbox, r.mask.tolist(), r.bbox_xywh(), r.bbox_xywh(center=True), r.bbox_polygon()) for r in seg.regions()
    ]
    mask = seg.mask()
    return {
        "key": entry.key,
        "iid": (entry.iid.address, entry.iid.domain, entry.iid.key),
        "seg": (seg.key, seg.bbox, seg.area, seg.bbox_xywh(), seg.bbox_xywh(center=True), seg.bbox_polygon()),
        "regions": regions,
        "mask": (mask.shape, mask.dtype, np.packbits(mask).tobytes()),
    }


def state(file):
    """All that a program can see of an `IIDFile`, as plain values."""
    return {
        "entries": [told(entry) for entry in file.lut.entries],
        "groups": {name: list(file.groups.get(name, keys_only=True)) for name in file.groups.list()},
        "metadata": repr(file.meta.data),
        "loaded": file.lut.fetched_keys,
    }


# --- signatures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("__init__", "(self, fpath=None)"),
        ("add", "(self, address, domain, bbox, mask, group=None)"),
        ("save", "(self, fpath, *, index=True)"),
        ("dump", "(self)"),
        ("remove", "(self, key)"),
        (
            "fetch",
            "(self, keys=None, all_keys=False, groups=None, iids=None, segs=None, everything=False, *, group=None)",
        ),
        ("look_for", "(self, addresses, domains=None, groups=None, segs=False)"),
        ("filter", "(self, groups=None, area=None, domains=None, iids=True, segs=False)"),
        ("at", "(self, x, y, only_loaded=False)"),
        ("region", "(self, bbox, only_loaded=False)"),
        ("overlap_graph", "(self, everything=True)"),
        ("compute_overlap", "(self, everything=True)"),
    ],
)
def test_calls_have_the_published_signatures(name, published):
    signature = inspect.signature(getattr(IIDFile, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == published


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda module: module.Groups.add, "Groups.add"),
        (lambda module: module.Groups.get, "Groups.get"),
        (lambda module: module.Groups.list, "Groups.list"),
        (lambda module: module.Group.keys, "Group.keys"),
        (lambda module: module.Group.add, "Group.add"),
        (lambda module: module.Segment.mask, "Segment.mask"),
        (lambda module: module.Segment.bbox_xywh, "Segment.bbox_xywh"),
        (lambda module: module.Segment.bbox_polygon, "Segment.bbox_polygon"),
        (lambda module: module.Segment.intersects_bbox, "Segment.intersects_bbox"),
        (lambda module: module.Segment.intersects_segment, "Segment.intersects_segment"),
    ],
)
def test_groups_and_segments_take_what_the_reference_takes(ours, theirs):
    from iid_dask import iidfile as our_module

    def parameters(function):
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    kind, name = theirs.split(".")
    assert parameters(ours(our_module)) == parameters(getattr(getattr(iidfile.iidfile, kind), name))


# --- the examples of the published page -------------------------------------------------------------------------


def examples():
    """Blocks of Python on the page that the installed reference carries."""
    # dask may have brought importlib_metadata, which takes the standard library's place and puts the text elsewhere.
    stated = importlib.metadata.metadata("iidfile")
    text = stated.get("Description") or stated.get_payload()
    return re.findall(r"^(?:```|~~~)python\n(.*?)^(?:```|~~~)", text, re.DOTALL | re.MULTILINE)


def test_the_page_has_the_examples_that_the_tests_know():
    assert len(examples()) == 8


@pytest.fixture(params=["ours", "theirs"])
def page_files(request, tmp_path, monkeypatch):
    """The files that the page's examples open, written by our class or by the reference."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("path")
    if request.param == "ours":
        page(IIDFile).save("example.iid")
    else:
        shutil.copyfile(PAGE, "example.iid")
    shutil.copyfile("example.iid", "path/file.iid")


@pytest.mark.parametrize("number", range(8))
@pytest.mark.usefixtures("page_files")
def test_every_example_of_the_page_runs(number, monkeypatch):
    ours = types.ModuleType("iidfile")
    ours.IIDFile = IIDFile
    monkeypatch.setitem(sys.modules, "iidfile", ours)
    solid = np.ones((4, 6), bool)
    given = {
        "np": np,
        "shape": (4, 6),
        **dict(zip(("minr", "minc", "maxr", "maxc"), (10, 20, 14, 26), strict=True)),
        "bbox": (10, 20, 14, 26),
        "mask": solid,
        "x": 3,
        "y": 5,
        "IIDFile": IIDFile,
        "iidfile": page(IIDFile),
        **{f"numpy_buffer_{n}": solid for n in (1, 2, 3)},
        **{f"xy_{n}": (n, 2 * n) for n in (1, 2, 3)},
    }
    exec(examples()[number], given)
    assert "entries" not in given or isinstance(given["entries"], list)


@pytest.mark.usefixtures("page_files")
class TestAnswersOnThePage:
    """What its examples must return on a file with the groups 'sys' and 'rep'."""

    def test_quick_example(self):
        file = IIDFile()
        file.add(address=b"foo", domain=b"bar", bbox=(1, 2, 4, 6), mask=np.ones((3, 4), dtype=np.bool))
        file.save("path/file.iid")
        (entry,) = IIDFile(fpath="path/file.iid").fetch(everything=True)
        assert (entry.key, entry.iid.address, entry.iid.domain) == (0, b"foo", b"bar")
        assert entry.seg.bbox == (1, 2, 4, 6)
        np.testing.assert_array_equal(entry.seg.mask(), np.ones((3, 4), bool), strict=True)

    def test_masks_of_zeros(self):
        file = IIDFile()
        file.add(address=b"foo", domain=b"bar", bbox=(5, 3, 9, 9), mask=np.zeros((4, 6), dtype=np.bool))
        (entry,) = file.fetch(everything=True)
        assert (entry.seg.area, entry.seg.regions(), entry.seg.mask().any()) == (0, [], False)

    def test_groups_on_creation(self):
        file = IIDFile()
        file.add(address=b"foo", domain=b"bar", bbox=(1, 2, 4, 6), mask=np.ones((3, 4)), group="sys")
        file.add(address=b"foo", domain=b"bar", bbox=(1, 2, 4, 6), mask=np.ones((3, 4)))
        file.save("path/file.iid")
        assert keys_of(IIDFile(fpath="path/file.iid").fetch(groups=["sys"])) == [0]

    def test_metadata(self):
        file = IIDFile(fpath="example.iid")
        metadata = file.meta.data
        assert metadata == {"image": {"height": 4100, "width": 700}, "camera": "Ü"}
        metadata["camera"] = "B"
        file.save("example.iid")
        assert IIDFile("example.iid").meta.data["camera"] == "B"

    def test_fetch_everything(self):
        assert keys_of(IIDFile(fpath="example.iid").fetch(everything=True)) == [0, 1, 2, 3, 4, 5]

    def test_fetch_names_of_a_group(self):
        entries = IIDFile(fpath="example.iid").fetch(groups=["sys"], iids=True)
        assert [entry.iid.address for entry in entries] == [b"tree", b"root"]

    def test_fetch_all_segments(self):
        entries = IIDFile(fpath="example.iid").fetch(all_keys=True, segs=True)
        assert [entry.seg.area for entry in entries] == [6400, 4000, 384, 3999, 41, 10]

    def test_fetch_the_first_fifty(self):
        assert keys_of(IIDFile(fpath="example.iid").fetch(keys=range(50), iids=True)) == [0, 1, 2, 3, 4, 5]

    def test_at(self):
        assert keys_of(IIDFile(fpath="example.iid").at(400, 600)) == [0, 1, 2]

    def test_region_of_what_was_loaded(self):
        file = IIDFile(fpath="example.iid")
        file.fetch(group=["sys"], iids=False)
        assert keys_of(file.region((600, 400, 601, 401), only_loaded=True)) == [0, 2]

    def test_look_for(self):
        assert keys_of(IIDFile(fpath="example.iid").look_for(addresses=[b"tree", b"leaf"])) == [0, 1, 3]

    def test_filter(self):
        file = IIDFile(fpath="example.iid")
        file.fetch(everything=True)
        assert keys_of(file.filter(groups=["rep"], area=(4000, None))) == [0, 1]

    def test_compute_overlap(self):
        nodes, edges = IIDFile(fpath="example.iid").compute_overlap()
        assert keys_of(nodes) == [0, 1, 2, 3, 4, 5]
        assert [(a.key, b.key) for a, b, _ in edges] == [(0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4)]
        assert edges[0][2] == 40 * 50


# --- files of the reference -------------------------------------------------------------------------------------


def with_ascending_groups(data):
    """A file's bytes, but for the order of keys in each group."""
    with iid_dask.open(data) as reader:
        begin, length = int(reader.header["groups_offset"]), int(reader.header["groups_length"])
        keys_begin = begin + 4 + int.from_bytes(data[begin : begin + 4], "little")
        keys = b"".join(members.astype("<u4").tobytes() for members in reader.groups.values())
        assert keys_begin + len(keys) == begin + length
    return data[:keys_begin] + keys + data[begin + length :]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_same_calls_make_the_same_bytes(program, tmp_path):
    golden = (GOLDEN / f"{program.__name__}.iid").read_bytes()
    file = program(IIDFile)
    dumped = file.dump()
    file.save(tmp_path / "ours.iid", index=False)
    assert (tmp_path / "ours.iid").read_bytes() == dumped == with_ascending_groups(golden)


def test_one_golden_file_has_a_group_in_the_order_of_a_set():
    golden = (GOLDEN / "groups.iid").read_bytes()
    assert with_ascending_groups(golden) != golden


@pytest.mark.parametrize("name", ["us", "nuclei", "edge", "empty"])
def test_saving_a_file_of_the_reference_again_changes_nothing(name, tmp_path):
    original = (DATA / f"{name}.iid").read_bytes()
    file = IIDFile(DATA / f"{name}.iid")
    file.save(tmp_path / "again.iid", index=False)
    assert (tmp_path / "again.iid").read_bytes() == with_ascending_groups(original)


def test_the_index_is_all_that_a_plain_save_adds(tmp_path):
    page(IIDFile).save(tmp_path / "page.iid")
    data = (tmp_path / "page.iid").read_bytes()
    assert data.startswith(PAGE.read_bytes())
    with iid_dask.open(data) as reader:
        assert reader.has_index
        assert reader.check() == []


# --- the reference reads ours -----------------------------------------------------------------------------------


def assert_the_reference_agrees(file, path):
    """Compare what the installed reference reads with what our object says."""
    with reference(path) as theirs:
        live = [
            entry for entry in theirs.fetch(everything=True) if entry.key not in theirs.meta.data.get("removed", [])
        ]
        assert [told(entry) for entry in live] == [told(entry) for entry in file.fetch(everything=True)]
        assert theirs.groups.list() == file.groups.list()
        for name in file.groups.list():
            assert theirs.groups.get(name, keys_only=True) == file.groups.get(name, keys_only=True)
        assert {k: v for k, v in theirs.meta.data.items() if k != "removed"} == file.meta.data


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_the_reference_reads_what_we_save(program, index, tmp_path):
    file = program(IIDFile)
    file.save(tmp_path / "ours.iid", index=index)
    assert_the_reference_agrees(file, tmp_path / "ours.iid")


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_the_reference_reads_random_files_that_we_saved(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("random")
    random_file(folder / "random.iid", seed)
    file = IIDFile(folder / "random.iid")
    rng = np.random.default_rng(seed)
    for key in file.lut.fetched_keys | set(keys_of(file.fetch(range(0, 12, 5)))):
        file.remove(key)
    put(file, b"new", b"", 1, 2, random_mask(rng, 9, 14), "new")
    file.save(folder / "ours.iid")
    assert_the_reference_agrees(file, folder / "ours.iid")


# --- one program, two classes -----------------------------------------------------------------------------------


def refused(call, *arguments, **options):
    """Whether a call is a KeyError."""
    try:
        call(*arguments, **options)
    except KeyError:
        return True
    return False


SAME = {
    "fetch nothing": lambda f: f.fetch(),
    "one key": lambda f: keys_of(f.fetch(2)),
    "a list of keys": lambda f: keys_of(f.fetch(keys=[3, 1])),
    "keys twice": lambda f: keys_of(f.fetch(keys=[1, 1])),
    "a tuple of keys": lambda f: keys_of(f.fetch(keys=(3, 1))),
    "a set of keys": lambda f: keys_of(f.fetch(keys={3, 1})),
    "an array of keys": lambda f: keys_of(f.fetch(keys=np.array([3, 1]))),
    "a generator of keys": lambda f: keys_of(f.fetch(keys=(key for key in (1, 2)))),
    "a range": lambda f: keys_of(f.fetch(keys=range(1, 4))),
    "no keys": lambda f: f.fetch(keys=[]),
    "all keys": lambda f: keys_of(f.fetch(all_keys=True)),
    "all keys goes before keys": lambda f: keys_of(f.fetch(keys=[1], all_keys=True)),
    "a group": lambda f: keys_of(f.fetch(groups="rep")),
    "groups": lambda f: keys_of(f.fetch(groups=["sys", "rep"])),
    "groups go before keys": lambda f: keys_of(f.fetch(keys=[5], groups=["sys"])),
    "groups go before all keys": lambda f: keys_of(f.fetch(all_keys=True, groups=["sys"])),
    "everything goes before all": lambda f: keys_of(f.fetch(keys=[1], groups=["sys"], everything=True)),
    "no groups is no restriction": lambda f: keys_of(f.fetch(keys=[1], groups=[])),
    "everything, told": lambda f: [told(entry) for entry in f.fetch(everything=True)],
    "names and segments": lambda f: [told(entry) for entry in f.fetch([1, 5], iids=True, segs=True)],
    "look for": lambda f: keys_of(f.look_for([b"leaf", b"foo", b"nobody"])),
    "look for one": lambda f: keys_of(f.look_for(b"leaf")),
    "look for nobody": lambda f: f.look_for([b"nobody"]),
    "look for no addresses": lambda f: f.look_for([]),
    "look for in a domain": lambda f: keys_of(f.look_for([b"leaf"], domains=[b"other"])),
    "look for in a domain, bare": lambda f: keys_of(f.look_for(b"leaf", b"other")),
    "look for in domains": lambda f: keys_of(f.look_for([b"leaf", b"foo"], domains=[b"other", b"bar"])),
    "look for in the empty domain": lambda f: keys_of(f.look_for([b"bark"], domains=[None])),
    "look for in a group": lambda f: keys_of(f.look_for([b"tree", b"leaf"], groups="rep")),
    "look for in groups": lambda f: keys_of(f.look_for([b"tree", b"leaf"], groups=["sys", "rep"])),
    "look for without restriction": lambda f: keys_of(f.look_for([b"leaf"], domains=[], groups=[])),
    "look for, with segments": lambda f: [told(entry) for entry in f.look_for([b"leaf"], segs=True)],
    "names of look for": lambda f: [entry.iid.address for entry in f.look_for([b"leaf"])],
    "filter": lambda f: keys_of(f.filter()),
    "filter by group": lambda f: keys_of(f.filter(groups="rep")),
    "filter by groups": lambda f: keys_of(f.filter(["rep", "sys"])),
    "filter by no groups": lambda f: keys_of(f.filter(groups=[], domains=[])),
    "filter by domain": lambda f: keys_of(f.filter(domains=b"example")),
    "filter by domains": lambda f: keys_of(f.filter(domains=[b"bar", None])),
    "filter by area": lambda f: keys_of(f.filter(area=(40, 4001))),
    "filter by a least area": lambda f: keys_of(f.filter(area=(40, None))),
    "filter by a largest area": lambda f: keys_of(f.filter(area=[None, 4001])),
    "filter by all": lambda f: keys_of(f.filter(groups="rep", area=(100, None), domains=[b"example"])),
    "filter, with segments": lambda f: [told(entry) for entry in f.filter(groups="rep", segs=True)],
    "outside the image": lambda f: [f.at(100_000, 5), f.at(-1, -1), f.at(0, 5000)],
    "inside all": lambda f: keys_of(f.at(399, 599)),
    "alone": lambda f: keys_of(f.at(361, 561)),
    "region": lambda f: keys_of(f.region((0, 0, 601, 401))),
    "region, a list": lambda f: keys_of(f.region([12, 0, 600, 22])),
    "region without pixels": lambda f: keys_of(f.region((596, 396, 599, 399))),
    "region, loaded": lambda f: (f.fetch(groups="sys"), keys_of(f.region((600, 400, 601, 401), only_loaded=True)))[1],
    "nothing loaded": lambda f: [f.at(400, 600, only_loaded=True), f.region((0, 0, 999, 999), only_loaded=True)],
    "empty region": lambda f: f.region((600, 400, 600, 401)),
    "region around the image": lambda f: keys_of(f.region((-9, -9, 3, 3))),
    "groups list": lambda f: f.groups.list(),
    "groups get": lambda f: keys_of(f.groups.get("rep")),
    "groups get several": lambda f: keys_of(f.groups.get(["sys", "rep"])),
    "groups get none": lambda f: [f.groups.get([]), f.groups.get([], keys_only=True) == set()],
    "groups get with segments": lambda f: [told(entry) for entry in f.groups.get("sys", segs=True)],
    "groups keys": lambda f: f.groups.get("rep", keys_only=True) == {0, 1, 3, 4},
    "groups keys in": lambda f: (3 in f.groups.get("rep", keys_only=True), len(f.groups.get("rep", keys_only=True))),
    "groups keys shared": lambda f: f.groups.get("rep", keys_only=True) & f.groups.get("sys", keys_only=True) == {0},
    "group made": lambda f: f.groups.add("new", keys=[4, 1]).keys(),
    "group grown": lambda f: (f.groups.add("sys", keys=range(2)), f.groups.get("sys", keys_only=True) == {0, 1, 2})[1],
    "group of entries": lambda f: (g := f.groups.add("new"), g.add(f.fetch([3, 2])), g.keys(), g.name)[2:],
    "group listed": lambda f: (f.groups.add("a"), f.groups.list())[1],
    "what add returns": lambda f: f.add(b"a", b"d", (0, 0, 1, 1), np.ones((1, 1), bool)),
    "add, then the table": lambda f: (put(f, b"a", b"", 0, 0, pattern(1, 1, "solid")), keys_of(f.lut.entries))[1],
    "metadata": lambda f: f.meta.data,
    "the table": lambda f: keys_of(f.lut.entries),
    "what is fetched": lambda f: (f.fetch([1, 2]), f.groups.get("sys"), f.lut.fetched_keys)[2],
    "fetched entries": lambda f: (f.fetch([1, 2]), keys_of(f.lut.fetched_entries()))[1],
    "crop": lambda f: [f.fetch(2)[0].seg.mask(box).tolist() for box in ((600, 400, 605, 407), [590, 395, 602, 500])],
    "crop around": lambda f: f.fetch(2)[0].seg.mask((-5, -5, 999, 999)).tolist(),
    "crop beyond": lambda f: f.fetch(2)[0].seg.mask((700, 500, 800, 600)).shape,
    "segment and box": lambda f: [
        f.fetch(4)[0].seg.intersects_bbox(box)
        for box in (
            (596, 396, 599, 399),
            (595, 395, 596, 396),
            (0, 0, 595, 395),
            (590, 390, 596, 999),
            (605, 0, 699, 999),
        )
    ],
    "segments": lambda f: [
        a.seg.intersects_segment(b) for a in f.fetch(everything=True) for b in f.fetch(everything=True)
    ],
    "dump": lambda f: (f.fetch(everything=True), f.dump())[1],
    "unknown group": lambda f: refused(f.fetch, groups=["nobody"]),
    "unknown group of look for": lambda f: refused(f.look_for, [b"leaf"], groups="nobody"),
    "unknown group of filter": lambda f: refused(f.filter, groups="nobody"),
    "unknown group of groups": lambda f: refused(f.groups.get, "nobody"),
    "overlaps": lambda f: in_numbers(f.overlap_graph()),
    "overlaps of loaded": lambda f: (f.fetch([0, 1, 3]), in_numbers(f.overlap_graph(everything=False)))[1],
    "overlaps of nothing": lambda f: f.overlap_graph(everything=False),
}


def in_numbers(graph):
    """An overlap graph with keys for entries."""
    nodes, edges = graph
    return keys_of(nodes), [(a.key, b.key, pixels) for a, b, pixels in edges]


@pytest.mark.parametrize("program", SAME.values(), ids=SAME)
def test_one_program_gives_one_answer_with_both_classes(program, tmp_path):
    copy = shutil.copyfile(PAGE, tmp_path / "page.iid")
    ours = program(IIDFile(copy))
    with reference(copy) as file:
        theirs = program(file)
    assert ours == theirs
    assert type(ours) is type(theirs)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_both_classes_tell_the_same_of_random_files(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("random") / "random.iid"
    random_file(path, seed)
    assert_the_reference_agrees(IIDFile(path), path)


# --- where the reference is odd (format.md, section 6) ----------------------------------------------------------


def test_at_is_exactly_one_pixel(tmp_path):
    file = IIDFile()
    put(file, b"a", b"", 4, 7, pattern(1, 1, "solid"))
    assert [(x, y) for x in range(12) for y in range(12) if file.at(x, y)] == [(7, 4)]
    file.save(tmp_path / "dot.iid")
    with reference(tmp_path / "dot.iid") as theirs:
        assert len([(x, y) for x in range(12) for y in range(12) if theirs.at(x, y)]) == 4


def test_areas_include_both_ends():
    file = IIDFile(PAGE)
    assert keys_of(file.filter(area=(384, 4000))) == [1, 2, 3]
    assert keys_of(file.filter(area=(4000, 4000))) == [1]
    assert keys_of(file.filter(area=(None, None))) == [0, 1, 2, 3, 4, 5]


def test_no_bound_passes_empty_segments():
    file = IIDFile()
    put(file, b"a", b"", 4, 7, pattern(2, 2, "nothing"))
    assert keys_of(file.filter(area=(None, 0))) == keys_of(file.filter(area=(0, None))) == [0]
    assert file.filter(area=(1, None)) == []


def test_overlaps_have_both_names():
    file = IIDFile(PAGE)
    assert file.compute_overlap() == file.overlap_graph()
    file.fetch([0, 1])
    assert file.compute_overlap(everything=False) == file.overlap_graph(False)
    assert keys_of(file.compute_overlap(False)[0]) == [0, 1]


def test_answers_ascend():
    file = IIDFile(GOLDEN / "groups.iid")
    assert keys_of(file.fetch([33, 1, 20])) == keys_of(file.filter(groups="a set's order")) == [1, 20, 33]
    assert list(file.groups.get("a set's order", keys_only=True)) == [1, 20, 33]
    with reference(GOLDEN / "groups.iid") as theirs:
        assert keys_of(theirs.fetch([33, 1, 20])) == [33, 20, 1]


def test_group_is_another_name_of_groups():
    file = IIDFile(PAGE)
    assert file.fetch(group=["sys"]) == file.fetch(groups="sys") == file.fetch(group="sys")
    with pytest.raises(TypeError, match="are one argument"):
        file.fetch(group="sys", groups="rep")


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (range(50), [0, 1, 2, 3, 4, 5]),
        (range(4, 10**15), [4, 5]),
        (range(10**15, 2, -1), [3, 4, 5]),
        (range(-(10**15), 3), [0, 1, 2]),
        (range(-3, 9, 2), [1, 3, 5]),
        (range(9, 0, -4), [1, 5]),
        (range(7, 9), []),
        (range(0), []),
    ],
)
def test_ranges_are_clipped_like_slices(keys, found):
    assert keys_of(IIDFile(PAGE).fetch(keys=keys)) == found


@pytest.mark.parametrize("keys", [6, -1, [0, 6], np.int64(6), [-1]])
def test_missing_keys_are_errors_that_say_what_exists(keys):
    with pytest.raises(KeyError, match=r"page.iid: no entry (6|-1); keys are integers from 0 to 5, 6 in all"):
        IIDFile(PAGE).fetch(keys=keys)


def test_a_file_without_entries_says_so():
    with pytest.raises(KeyError, match="a new file: no entry 0; it has none"):
        IIDFile().fetch(0)


@pytest.mark.parametrize("keys", ["1", 1.0, [1.5], b"1", True, [True], [None], {"a": 1}])
def test_keys_that_are_no_integers_are_refused(keys):
    with pytest.raises(TypeError, match="expected an int, a range or several ints"):
        IIDFile(PAGE).fetch(keys=keys)


class RecordingSource(LocalSource):
    """A local file that keeps the ranges read."""

    def __init__(self, path):
        super().__init__(str(path))
        self.ranges = []

    def read(self, offset, length):
        self.ranges.append((offset, length))
        return super().read(offset, length)

    def read_many(self, offsets, lengths, out):
        self.ranges += zip(offsets.tolist(), lengths.tolist(), strict=True)
        super().read_many(offsets, lengths, out)


def touched(source, reader, section):
    """Bytes of a section that were read."""
    begin = int(reader.header[f"{section}_offset"])
    end = begin + int(reader.header[f"{section}_length"])
    return sum(max(0, min(end, at + n) - max(begin, at)) for at, n in source.ranges)


@pytest.fixture(params=[True, False], ids=["index", "plain"])
def recorded(request, indexed):
    """A file of 3,155 entries, the ranges read from it since it was opened, and how to count them."""
    source = RecordingSource(indexed["us"] if request.param else DATA / "us.iid")
    file = IIDFile(source)
    source.ranges.clear()
    with iid_dask.open(source.name) as reader:
        yield file, lambda section: touched(source, reader, section)


SOME = {"keys": [5, 3000]}, {"groups": "states"}, {"all_keys": True}


@pytest.mark.parametrize("which", SOME, ids=str)
def test_names_alone_read_no_segment(recorded, which):
    file, nbytes = recorded
    entries = file.fetch(**which, iids=True)
    assert nbytes("segments") == 0
    assert nbytes("iids") > 0
    before = nbytes("iids")
    assert all(entry.iid.address and entry.iid.domain for entry in entries)
    assert nbytes("iids") == before


@pytest.mark.parametrize("flags", [{"segs": True}, {"iids": False}, {"iids": False, "segs": True}], ids=str)
@pytest.mark.parametrize("which", SOME, ids=str)
def test_segments_alone_read_no_name(recorded, which, flags):
    file, nbytes = recorded
    entries = file.fetch(**which, **flags)
    assert all(entry.seg.area > 0 for entry in entries)
    assert entries[0].seg.mask().any()
    assert nbytes("iids") == 0
    assert nbytes("segments") > 0


def test_a_few_entries_cost_a_few_bytes(recorded):
    file, nbytes = recorded
    (entry,) = file.fetch(3000)
    assert (entry.iid.domain, len(entry.iid.address)) == (b"counties", 5)
    assert entry.seg.mask().sum() == entry.seg.area
    assert nbytes("iids") < 100
    assert nbytes("segments") < 2000


def test_neither_reads_nothing(recorded):
    file, nbytes = recorded
    assert len(file.fetch(all_keys=True, iids=False, segs=False)) == 3155
    assert nbytes("iids") == nbytes("segments") == 0


@pytest.mark.parametrize("flags", [{}, {"iids": True}, {"segs": True}, {"iids": False, "segs": False}], ids=str)
def test_what_was_not_fetched_is_read_when_touched(flags):
    everything = [told(entry) for entry in IIDFile(PAGE).fetch(everything=True)]
    assert [told(entry) for entry in IIDFile(PAGE).fetch(all_keys=True, **flags)] == everything


def test_entries_just_added_answer():
    file = page(IIDFile)
    assert [told(entry) for entry in file.fetch(everything=True)] == [
        told(entry) for entry in IIDFile(PAGE).fetch(everything=True)
    ]
    assert keys_of(file.fetch(3)) == [3]
    assert keys_of(file.at(400, 600)) == keys_of(file.at(400, 600, only_loaded=True)) == [0, 1, 2]
    assert keys_of(file.region((0, 0, 11, 21))) == [3, 5]
    assert keys_of(file.look_for(b"leaf", groups="rep")) == [1, 3]
    assert keys_of(file.filter(groups="rep", area=(4000, None), domains=b"example")) == [0, 1]
    assert keys_of(file.groups.get("sys")) == [0, 2]
    assert in_numbers(file.overlap_graph()) == in_numbers(IIDFile(PAGE).overlap_graph())
    assert in_numbers(file.overlap_graph(False)) == in_numbers(IIDFile(PAGE).overlap_graph())


def test_entries_added_to_a_file_answer_beside_its_own():
    file = IIDFile(PAGE)
    put(file, b"leaf", b"late", 600, 400, pattern(2, 2, "solid"), "rep")
    assert keys_of(file.at(400, 600)) == [0, 1, 2, 6]
    put(file, b"leaf", b"", 601, 401, pattern(1, 1, "solid"), ["sys", "new"])
    assert keys_of(file.at(401, 601)) == [0, 1, 2, 6, 7]
    assert keys_of(file.at(401, 601, only_loaded=True)) == [6, 7]
    assert keys_of(file.region((601, 401, 602, 402), only_loaded=True)) == [6, 7]
    assert keys_of(file.look_for([b"leaf"])) == [1, 3, 6, 7]
    assert keys_of(file.look_for([b"leaf"], domains=[None])) == keys_of(file.look_for(b"leaf", b"")) == [7]
    assert keys_of(file.filter(groups=["new", "rep"], area=(None, 41))) == [4, 6, 7]
    assert keys_of(file.fetch(range(5, 99))) == [5, 6, 7]
    assert file.groups.list() == ["new", "rep", "sys"]
    nodes, edges = in_numbers(file.overlap_graph())
    assert nodes == list(range(8))
    assert [edge for edge in edges if edge[1] > 5] == [
        (0, 6, 4),
        (0, 7, 1),
        (1, 6, 4),
        (1, 7, 1),
        *[(a, b, n) for a, b, n in edges if a > 1 and b > 5],
    ]
    assert (6, 7, 1) in edges
    file.fetch(0)
    assert in_numbers(file.overlap_graph(False)) == ([0, 5, 6, 7], [(0, 6, 4), (0, 7, 1), (6, 7, 1)])


@pytest.mark.parametrize(
    ("metadata", "error"),
    [({"a": object()}, TypeError), ({"a": float("nan")}, ValueError), ({1: 2}, ValueError), ([1], TypeError)],
)
def test_metadata_that_json_cannot_hold_is_refused_before_the_target_is_touched(tmp_path, metadata, error):
    path = shutil.copyfile(PAGE, tmp_path / "page.iid")
    file = IIDFile(path)
    put(file, b"late", b"", 0, 0, pattern(3, 3, "noise"), "late")
    file.meta.data = metadata
    before = state(file)
    with pytest.raises(error, match=r"metadata|meta\.data"):
        file.save(path)
    assert path.read_bytes() == PAGE.read_bytes()
    assert os.listdir(tmp_path) == ["page.iid"]
    assert state(file) == before
    file.meta.data = {}
    file.save(path)
    assert len(IIDFile(path).fetch(everything=True)) == 7


@pytest.mark.parametrize("fetch", [{}, {"keys": 1}, {"groups": "sys", "iids": True}])
def test_saving_what_was_partly_loaded_loses_nothing(tmp_path, fetch):
    path = shutil.copyfile(PAGE, tmp_path / "page.iid")
    file = IIDFile(path)
    file.fetch(**fetch)
    file.save(path, index=False)
    assert path.read_bytes() == PAGE.read_bytes()


def test_a_removed_row_is_an_empty_record_that_the_reference_opens(tmp_path):
    file = IIDFile(PAGE)
    file.remove(1)
    file.remove(4)
    file.save(tmp_path / "less.iid", index=False)
    with reference(tmp_path / "less.iid") as theirs:
        entries = theirs.fetch(everything=True)
        assert theirs.meta.data["removed"] == [1, 4]
        assert [(e.iid.address, e.iid.domain, e.seg.bbox, e.seg.area) for e in (entries[1], entries[4])] == [
            (b"", None, (0, 0, 0, 0), 0)
        ] * 2
        assert theirs.groups.get("rep", keys_only=True) == {0, 3}
    again = IIDFile(tmp_path / "less.iid")
    assert keys_of(again.fetch(everything=True)) == [0, 2, 3, 5]
    assert "removed" not in again.meta.data
    with iid_dask.open(tmp_path / "less.iid") as reader:
        assert reader.check() == []
        assert [reader.lut[f"{part}_length"][1] for part in ("iid", "segment")] == [12, 16]


def test_rows_of_zero_length_are_read_and_not_written(tmp_path):
    reader = iid_dask.open(PAGE)
    data = bytearray(PAGE.read_bytes())
    row = int(reader.header["lut_offset"]) + 5 * 20
    data[row + 4 : row + 20] = bytes(16)
    (tmp_path / "zero.iid").write_bytes(data)
    file = IIDFile(tmp_path / "zero.iid")
    assert keys_of(file.fetch(everything=True)) == [0, 1, 2, 3, 4]
    file.save(tmp_path / "zero.iid")
    assert_the_reference_agrees(file, tmp_path / "zero.iid")
    put(file, b"next", b"", 0, 0, pattern(1, 1, "solid"))
    assert keys_of(file.fetch(everything=True)) == [0, 1, 2, 3, 4, 6]


def test_empty_groups_are_stored(tmp_path):
    file = IIDFile()
    put(file, b"a", b"", 0, 0, pattern(1, 1, "solid"))
    assert file.groups.add("empty").keys() == []
    file.save(tmp_path / "empty.iid")
    for opened in (file, IIDFile(tmp_path / "empty.iid")):
        assert opened.groups.list() == ["empty"]
        assert opened.groups.get("empty") == opened.fetch(groups="empty") == []
    with reference(tmp_path / "empty.iid") as theirs:
        assert theirs.groups.get("empty", keys_only=True) == set()


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (0, 0, 600, 999), (0, 0, 999, 400), (630, 440, 700, 700)])
def test_crops_that_miss_the_segment_are_empty(box):
    assert IIDFile(PAGE).fetch(2)[0].seg.mask(box).size == 0


def test_the_empty_domain_is_none_here_only():
    (entry,) = IIDFile(PAGE).fetch(5)
    assert entry.iid.domain is None
    with iid_dask.open(PAGE) as reader:
        assert reader[5].domain == b""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["i4", "f8", "u1", object])
def test_any_truthy_value_is_a_pixel(kind, dtype):
    plain = pattern(9, 10, kind)
    values = np.arange(1, 91).reshape(9, 10) * (-1) ** np.arange(10)
    file = IIDFile()
    put(file, b"plain", b"", 3, 4, plain)
    put(file, b"values", b"", 3, 4, np.where(plain, values, 0).astype(dtype))
    one, other = (told(entry) for entry in file.fetch(everything=True))
    assert {**other, "key": 0, "iid": one["iid"], "seg": (0, *other["seg"][1:])} == one


def test_lists_are_masks():
    file = IIDFile()
    file.add(b"a", b"", (0, 0, 2, 2), [[1, 0], [0, 7]])
    assert file.fetch(0)[0].seg.mask().tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_masks_of_no_size_have_no_area(shape, tmp_path):
    file = IIDFile()
    file.add(b"a", b"", (3, 4, 3 + shape[0], 4 + shape[1]), np.ones(shape))
    file.save(tmp_path / "none.iid")
    (entry,) = file.fetch(0)
    assert (entry.seg.area, entry.seg.bbox, entry.seg.mask().shape) == (0, (3, 4, 3 + shape[0], 4 + shape[1]), shape)
    assert_the_reference_agrees(file, tmp_path / "none.iid")


# --- brute force ------------------------------------------------------------------------------------------------

boxes = st.tuples(*[st.integers(-3, 75), st.integers(-3, 155)] * 2).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
areas = st.none() | st.tuples(*[st.none() | st.integers(0, 200)] * 2).filter(lambda a: None in a or a[0] <= a[1])


@settings(deadline=None, max_examples=40)
@given(seeds, st.data())
def test_queries_agree_with_dense_masks(tmp_path_factory, seed, data):
    """On random files to which entries are added and from which some are removed, before any save."""
    path = tmp_path_factory.mktemp("random") / "random.iid"
    random_file(path, seed)
    file, rng = IIDFile(path), np.random.default_rng(seed)
    fetched = set(keys_of(file.fetch(range(0, 99, 2))))
    for _ in range(data.draw(st.integers(0, 3))):
        put(file, rng.choice([b"", b"cell"]), b"", *rng.integers(0, 40, 2).tolist(), random_mask(rng, 8, 11), "added")
        file.at(0, 0)
    for key in data.draw(st.sets(st.sampled_from(keys_of(file.lut.entries)), max_size=2)) if file.lut.entries else ():
        file.remove(key)
        fetched.discard(key)
    with iid_dask.open(path) as reader:
        fetched |= {entry.key for entry in file.lut.entries if entry.key >= len(reader.lut)}

    entries = file.lut.entries
    canvas = np.zeros((len(entries), 80, 160), bool)
    for plane, entry in zip(canvas, entries, strict=True):
        plane[BBox(*entry.seg.bbox).slices] = entry.seg.mask()

    def where(wanted, only_loaded=False):
        return [e.key for e, w in zip(entries, wanted, strict=True) if w and (not only_loaded or e.key in fetched)]

    x, y = data.draw(st.integers(-3, 155)), data.draw(st.integers(-3, 75))
    box = data.draw(boxes)
    rows, cols = (slice(max(s.start, 0), max(s.stop, 0)) for s in BBox(*box).slices)
    inside = canvas[:, rows, cols].any(axis=(1, 2))
    covered = canvas[:, y, x] if x >= 0 and y >= 0 else np.zeros(len(entries), bool)
    for only_loaded in (False, True):
        assert keys_of(file.at(x, y, only_loaded)) == where(covered, only_loaded)
        assert keys_of(file.region(box, only_loaded)) == where(inside, only_loaded)
    assert file.lut.fetched_keys == fetched

    low, high = area = data.draw(areas) or (None, None)
    sizes = np.array([entry.seg.area for entry in entries], int)
    fits = (sizes >= (low or 0)) & (sizes <= (2**40 if high is None else high))
    names = [(entry.iid.domain or b"", entry.iid.address) for entry in entries]
    group = data.draw(st.sampled_from([None, *file.groups.list()]))
    member = np.array([group is None or e.key in file.groups.get(group, keys_only=True) for e in entries], bool)
    assert keys_of(file.filter(group, area)) == where(fits & member)
    for domain, address in {*names, (b"", b"cell")}:
        for asked in (None, domain):
            bears = np.array([a == address and asked in (None, d) for d, a in names], bool)
            assert keys_of(file.look_for(address, asked, group)) == where(bears & member)
        there = np.array([d == domain for d, _ in names], bool)
        assert keys_of(file.filter(group, area, domain)) == where(fits & member & there)

    shared = np.einsum("ayx,byx->ab", canvas.astype(np.int64), canvas.astype(np.int64), optimize=True)
    pairs = [
        (a.key, b.key, int(shared[i, j]))
        for i, a in enumerate(entries)
        for j, b in enumerate(entries)
        if i < j and shared[i, j]
    ]
    assert in_numbers(file.overlap_graph()) == (keys_of(entries), pairs)
    for entry, plane in zip(entries, canvas, strict=True):
        common = BBox(*entry.seg.bbox).intersection(BBox(*box))
        expected = plane[common.slices] if all(common.shape) else np.zeros(common.shape, bool)
        np.testing.assert_array_equal(entry.seg.mask(box), expected, strict=True)
        assert entry.seg.intersects_bbox(box) == expected.any()
    for i, a in enumerate(entries[:4]):
        assert [a.seg.intersects_segment(b) for b in entries] == shared[i].tolist()


@pytest.mark.parametrize("name", ["nuclei", "edge"])
def test_samples_agree_with_dense_masks(name):
    file = IIDFile(DATA / f"{name}.iid")
    with iid_dask.open(DATA / f"{name}.iid") as reader:
        masks = dense(reader, list(reader))
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    shared = (flat @ flat.T).astype(int)
    edges = [(i, j, int(shared[i, j])) for i in range(len(masks)) for j in range(i + 1, len(masks)) if shared[i, j]]
    assert in_numbers(file.overlap_graph()) == (list(range(len(masks))), edges)
    for row, col in [
        (0, 0),
        (5, 7),
        (masks.shape[1] - 1, masks.shape[2] - 1),
        *np.argwhere(masks.any(0))[::97].tolist(),
    ]:
        assert keys_of(file.at(col, row)) == np.flatnonzero(masks[:, row, col]).tolist()


# --- editing ----------------------------------------------------------------------------------------------------


def test_an_opened_file_keeps_keys_and_bytes_of_what_it_had(tmp_path):
    path = shutil.copyfile(PAGE, tmp_path / "page.iid")
    file = IIDFile(path)
    before = [told(entry) for entry in file.fetch(everything=True)]
    put(file, b"late", b"d", 9, 8, pattern(5, 4, "noise"), "late")
    file.save(path, index=False)
    with iid_dask.open(PAGE) as old, iid_dask.open(path) as new:
        assert [new.segment_bytes(key) for key in old] == [old.segment_bytes(key) for key in old]
    assert [told(entry) for entry in IIDFile(path).fetch(everything=True)][:6] == before
    assert keys_of(IIDFile(path).groups.get("late")) == [6]


def test_the_object_goes_on_after_a_save(tmp_path):
    file = page(IIDFile)
    held = file.fetch(2)[0]
    file.save(tmp_path / "one.iid")
    assert held.iid.address == b"root"
    assert held in file.at(400, 600)
    assert file.lut.fetched_keys == set(range(6))
    put(file, b"more", b"", 600, 400, pattern(1, 1, "solid"), "more")
    file.save(tmp_path / "two.iid")
    assert keys_of(file.at(400, 600)) == [0, 1, 2, 6]
    assert [len(IIDFile(tmp_path / f"{name}.iid").lut.entries) for name in ("one", "two")] == [6, 7]
    os.remove(tmp_path / "one.iid")
    assert [told(entry) for entry in file.lut.entries] == [
        told(entry) for entry in IIDFile(tmp_path / "two.iid").lut.entries
    ]


def test_a_file_may_be_saved_over_another(tmp_path):
    shutil.copyfile(DATA / "us.iid", tmp_path / "us.iid")
    file = IIDFile(PAGE)
    file.save(tmp_path / "us.iid", index=False)
    assert (tmp_path / "us.iid").read_bytes() == PAGE.read_bytes()


def test_removing_leaves_other_keys_and_all_answers(tmp_path):
    file = IIDFile(PAGE)
    put(file, b"late", b"", 600, 400, pattern(1, 1, "solid"), "rep")
    put(file, b"later", b"", 600, 400, pattern(1, 1, "solid"), "rep")
    held = file.fetch(everything=True)
    for key in (1, np.int64(6)):
        file.remove(key)
    for at_time in ("before", "after"):
        assert keys_of(file.fetch(everything=True)) == keys_of(file.fetch(range(99))) == [0, 2, 3, 4, 5, 7], at_time
        assert keys_of(file.at(400, 600)) == keys_of(file.at(400, 600, only_loaded=True)) == [0, 2, 7]
        assert keys_of(file.groups.get("rep")) == [0, 3, 4, 7]
        assert keys_of(file.look_for([b"leaf", b"late"])) == [3]
        for gone in (1, 6):
            for call in (file.fetch, file.remove, lambda key: file.groups.add("rep", key)):
                with pytest.raises(KeyError, match=f"no entry {gone}; keys are integers from 0 to 7, 6 in all"):
                    call(gone)
            with pytest.raises(KeyError, match=f"no entry {gone}"):
                _ = held[gone].seg.bbox
            with pytest.raises(KeyError, match=f"no entry {gone}"):
                _ = held[gone].iid.address
        file.save(tmp_path / "less.iid")
    assert_the_reference_agrees(file, tmp_path / "less.iid")


def test_entries_of_one_file_and_key_are_equal():
    file, other = IIDFile(PAGE), IIDFile(PAGE)
    assert file.fetch(1)[0] == file.at(400, 600)[1]
    assert len({*file.fetch(everything=True), *file.at(400, 600)}) == 6
    assert file.fetch(1) != other.fetch(1)


def test_groups_take_only_entries_of_their_file():
    file, other = IIDFile(PAGE), IIDFile(PAGE)
    with pytest.raises(ValueError, match="expected an entry of"):
        file.groups.add("new").add(other.fetch(1))
    assert file.groups.get("new") == []


def test_changing_metadata_changes_the_file_only_by_a_save(tmp_path):
    path = shutil.copyfile(PAGE, tmp_path / "page.iid")
    file = IIDFile(path)
    file.meta.data["image"]["height"] = 5
    assert IIDFile(path).meta.data["image"]["height"] == 4100
    file.meta.data = {"new": [1]}
    file.save(path)
    assert IIDFile(path).meta.data == {"new": [1]}


def test_read_only_files_can_be_opened(tmp_path):
    path = shutil.copyfile(PAGE, tmp_path / "page.iid")
    path.chmod(0o444)
    assert len(IIDFile(path).fetch(everything=True)) == 6


# --- failures change nothing ------------------------------------------------------------------------------------

SOLID = np.ones((2, 3), bool)
BAD_ADDS = {
    "address of text": ({"address": "a"}, TypeError, "address is str, expected bytes"),
    "no address": ({"address": None}, TypeError, "address is NoneType, expected bytes"),
    "domain of text": ({"domain": "d"}, TypeError, "domain is str, expected bytes"),
    "mask of another shape": ({"mask": SOLID.T}, ValueError, r"entry 7: mask of shape \(3, 2\), expected \(2, 3\)"),
    "mask of three dimensions": ({"mask": SOLID[None]}, ValueError, r"mask of shape \(1, 2, 3\)"),
    "no mask": ({"mask": None}, ValueError, r"mask of shape \(\)"),
    "box upside down": ({"bbox": (4, 0, 2, 3)}, ValueError, "upside down"),
    "box above the image": ({"bbox": (-1, 0, 1, 3)}, iid_dask.IIDLimitError, "leaves 0 … 65535"),
    "box beyond 16 bits": ({"bbox": (0, 65_533, 2, 65_536)}, iid_dask.IIDLimitError, "entry 7: .* leaves 0 … 65535"),
    "box of floats": ({"bbox": (0.0, 0, 2, 3)}, TypeError, "expected four integers"),
    "box of three": ({"bbox": (0, 0, 2)}, ValueError, "found 3 values"),
    "no box": ({"bbox": None}, TypeError, "expected four integers"),
    "group of a number": ({"group": [5]}, TypeError, "5 is int, expected str"),
    "group of bytes": ({"group": b"sys"}, TypeError, "expected str"),
    "groups of which one is bad": ({"group": ["fine", 5]}, TypeError, "expected str"),
    "group without UTF-8": ({"group": "\ud800"}, ValueError, "no UTF-8 form"),
}


@pytest.fixture
def changed():
    """An opened file with an entry added, one removed, and a group made."""
    file = IIDFile(PAGE)
    put(file, b"late", b"", 600, 400, pattern(3, 3, "noise"), "late")
    file.remove(1)
    file.fetch(2)
    return file


@pytest.mark.parametrize(("wrong", "error", "text"), BAD_ADDS.values(), ids=BAD_ADDS)
def test_a_bad_entry_is_refused_and_nothing_changes(changed, wrong, error, text):
    before = state(changed)
    with pytest.raises(error, match=text):
        changed.add(**{"address": b"a", "domain": b"d", "bbox": (0, 0, 2, 3), "mask": SOLID, "group": "new", **wrong})
    assert state(changed) == before


BAD_CALLS = {
    "unknown group": (lambda f: f.fetch(groups="no"), KeyError, r"no group 'no'; there is: \['sys', 'rep', 'late'\]"),
    "one unknown group": (lambda f: f.fetch(groups=["sys", "no"]), KeyError, "no group 'no'"),
    "groups of bytes": (lambda f: f.fetch(groups=b"sys"), TypeError, "expected str"),
    "key among others": (lambda f: f.fetch([0, 1]), KeyError, "no entry 1; keys are integers from 0 to 6, 6 in all"),
    "remove twice": (lambda f: f.remove(1), KeyError, "no entry 1"),
    "remove nobody": (lambda f: f.remove(99), KeyError, "no entry 99"),
    "remove text": (lambda f: f.remove("1"), TypeError, "expected an int"),
    "group of a missing key": (lambda f: f.groups.add("new", [0, 99]), KeyError, "no entry 99"),
    "group of a removed key": (lambda f: f.groups.add("sys", 1), KeyError, "no entry 1"),
    "group that is no text": (lambda f: f.groups.add(5), TypeError, "group"),
    "group without UTF-8": (lambda f: f.groups.add("\ud800"), ValueError, "no UTF-8 form"),
    "unknown group got": (lambda f: f.groups.get(["sys", "no"]), KeyError, "no group 'no'"),
    "text looked for": (lambda f: f.look_for(["leaf"]), TypeError, r"addresses: 'leaf' is str, expected bytes"),
    "one text looked for": (lambda f: f.look_for("leaf"), TypeError, "expected bytes"),
    "None looked for": (lambda f: f.look_for(None), TypeError, "addresses: None, expected bytes"),
    "domains of text": (lambda f: f.look_for([b"leaf"], domains="d"), TypeError, "domains: 'd' is str"),
    "filter by text": (lambda f: f.filter(domains=["d"]), TypeError, "domains: 'd' is str"),
    "filter by a number": (lambda f: f.filter(area=5), ValueError, r"area = 5: expected \(min, max\)"),
    "filter by a fraction": (lambda f: f.filter(area=(0.5, None)), TypeError, "integer"),
    "filter by an unknown group": (lambda f: f.filter("no"), KeyError, "no group 'no'"),
    "a fraction of a pixel": (lambda f: f.at(1.5, 2), TypeError, "expected integers, the column and the row"),
    "several pixels": (lambda f: f.at([1, 2], [3, 4]), TypeError, "expected integers"),
    "region upside down": (lambda f: f.region((4, 0, 2, 3)), ValueError, "upside down"),
    "region of fractions": (lambda f: f.region((0.5, 0, 2, 3)), TypeError, "expected four integers"),
    "crop upside down": (lambda f: f.fetch(2)[0].seg.mask((4, 0, 2, 3)), ValueError, "upside down"),
    "assignment": (lambda f: setattr(f.fetch(2)[0].iid, "address", b"x"), AttributeError, "address"),
    "saving into nowhere": (lambda f: f.save("/no/such/folder/a.iid"), FileNotFoundError, "no such folder"),
    "saving over a folder": (lambda f: f.save("/"), IsADirectoryError, "is a directory"),
}


@pytest.mark.parametrize(("call", "error", "text"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_refused_and_nothing_changes(changed, call, error, text):
    before = state(changed)
    with pytest.raises(error, match=text):
        call(changed)
    assert state(changed) == before


def test_files_that_do_not_exist_are_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nobody\.iid"):
        IIDFile(tmp_path / "nobody.iid")
    assert os.listdir(tmp_path) == []


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "bad.iid").write_bytes(b"no header")
    with pytest.raises(iid_dask.IIDFormatError, match=r"bad\.iid"):
        IIDFile(tmp_path / "bad.iid")


@pytest.mark.parametrize("when", ["planning", "writing", "renaming"])
def test_a_save_that_fails_leaves_the_old_file_and_the_object(changed, tmp_path, monkeypatch, when):
    path = shutil.copyfile(PAGE, tmp_path / "page.iid")
    before = state(changed)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if when == "planning":
            patch.setattr("iid_dask.iidfile.draft.plan_file", fail)
        elif when == "writing":
            whole = FilePlan.write

            def half(self, file, *, index):
                file.write(b"half of it")
                whole(self, file, index=index)
                fail()

            patch.setattr(FilePlan, "write", half)
        else:
            patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            changed.save(path)
    assert path.read_bytes() == PAGE.read_bytes()
    assert os.listdir(tmp_path) == ["page.iid"]
    assert state(changed) == before
    changed.save(path)
    assert state(IIDFile(path))["entries"] == before["entries"]


def test_a_damaged_segment_is_not_copied_silently(tmp_path, indexed):
    path = shutil.copyfile(indexed["nuclei"], tmp_path / "nuclei.iid")
    with iid_dask.open(path) as reader:
        at = int(reader.header["segments_offset"]) + int(reader.lut["segment_offset"][3]) + 30
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    with pytest.raises(iid_dask.IIDFormatError, match="entry 3"):
        IIDFile(path).save(path)
    assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["nuclei.iid"]


def test_metadata_named_removed_is_refused_where_entries_are_removed(changed, tmp_path):
    changed.meta.data["removed"] = "yes"
    with pytest.raises(ValueError, match='already has a key "removed"'):
        changed.save(tmp_path / "new.iid")
    assert os.listdir(tmp_path) == []


def test_files_beyond_the_formats_limits_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("iid_dask.format.plan.MAX_ENTRIES", 6)
    file = IIDFile(PAGE)
    put(file, b"one too many", b"", 0, 0, pattern(1, 1, "solid"))
    with pytest.raises(iid_dask.IIDLimitError, match="7 entries"):
        file.save(tmp_path / "new.iid")
    assert os.listdir(tmp_path) == []


# --- adding and asking in turn ----------------------------------------------------------------------------------


def test_adding_and_asking_in_turn_writes_each_entry_few_times_and_asks_few_readers(monkeypatch):
    written, asked = [], []
    at = iid_dask.IIDReader.at
    monkeypatch.setattr(iid_dask.IIDReader, "at", lambda *arguments: asked.append(0) or at(*arguments))

    def counted(path, entries, *rest):
        written.append(len(entries))
        return plan_file(path, entries, *rest)

    monkeypatch.setattr("iid_dask.iidfile.draft.plan_file", counted)
    file = IIDFile(PAGE)
    for n in range(64):
        put(file, b"%d" % n, b"turn", n, n, pattern(1, 1, "solid"))
        assert keys_of(file.at(n, n))[-1] == 6 + n
    assert sum(written) <= 64 * 8
    assert len(asked) <= 64 * 8
    assert keys_of(file.look_for([b"0", b"31", b"63"], b"turn")) == [6, 37, 69]


# --- a model ----------------------------------------------------------------------------------------------------


class Edits(RuleBasedStateMachine):
    """Any sequence of calls, against dictionaries."""

    @initialize(start=st.sampled_from(["new", "page", "random"]), seed=seeds)
    def begin(self, start, seed):
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "file.iid")
        self.rng = np.random.default_rng(seed)
        if start == "page":
            shutil.copyfile(PAGE, self.path)
        elif start == "random":
            random_file(self.path, seed, entries=6)
        self.saved = start != "new"
        self.file = IIDFile(self.path) if self.saved else IIDFile()
        self.entries, self.groups, self.rows, self.loaded = {}, {}, 0, set()
        if self.saved:
            with iid_dask.open(self.path) as reader:
                self.entries = {k: (e.domain, e.address, tuple(e.bbox), e.mask()) for k, e in reader.items()}
                self.groups = {name: set(keys.tolist()) for name, keys in reader.groups.items()}
                self.rows = len(reader.lut)
        self.metadata = dict(self.file.meta.data)

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    @rule(kind=st.sampled_from(KINDS), name=st.sampled_from([b"", b"a", b"b"]), group=st.sampled_from([None, "g", "h"]))
    def add(self, kind, name, group):
        row, col = self.rng.integers(0, 30, 2).tolist()
        mask = pattern(*self.rng.integers(1, 12, 2).tolist(), kind)
        put(self.file, name, name[::-1] or None, row, col, mask, group)
        self.entries[self.rows] = (name, name, (row, col, row + mask.shape[0], col + mask.shape[1]), mask)
        self.loaded.add(self.rows)
        if group:
            self.groups.setdefault(group, set()).add(self.rows)
        self.rows += 1

    @precondition(lambda self: self.entries)
    @rule(data=st.data())
    def remove(self, data):
        key = data.draw(st.sampled_from(sorted(self.entries)))
        self.file.remove(key)
        del self.entries[key]
        self.loaded.discard(key)
        for members in self.groups.values():
            members.discard(key)

    @rule(data=st.data(), name=st.sampled_from(["g", "h", "empty"]))
    def group(self, data, name):
        keys = data.draw(st.sets(st.sampled_from(sorted(self.entries)))) if self.entries else set()
        self.file.groups.add(name, keys)
        self.groups.setdefault(name, set()).update(keys)

    @rule(value=st.integers())
    def note(self, value):
        self.file.meta.data["note"] = self.metadata["note"] = value

    @rule(index=st.booleans(), elsewhere=st.booleans())
    def save(self, index, elsewhere):
        if elsewhere:
            self.path = os.path.join(self.folder.name, f"{self.rng.integers(3)}.iid")
        self.file.save(self.path, index=index)
        self.saved = True
        with iid_dask.open(self.path) as reader:
            assert reader.check() == []

    @precondition(lambda self: self.saved)
    @rule()
    def save_and_open(self):
        self.file.save(self.path)
        self.file = IIDFile(self.path)
        self.loaded = set()

    @rule(start=st.integers(-5, 20), stop=st.integers(-5, 20))
    def fetch(self, start, stop):
        found = [key for key in sorted(self.entries) if start <= key < stop]
        assert keys_of(self.file.fetch(range(start, stop))) == found
        self.loaded.update(found)

    @rule(x=st.integers(0, 30), y=st.integers(0, 30), only_loaded=st.booleans())
    def at(self, x, y, only_loaded):
        found = []
        for key, (_, _, (top, left, bottom, right), mask) in sorted(self.entries.items()):
            if top <= y < bottom and left <= x < right and mask[y - top, x - left]:
                found.append(key)
        assert keys_of(self.file.at(x, y, only_loaded)) == [k for k in found if not only_loaded or k in self.loaded]

    @rule(address=st.sampled_from([b"", b"a", b"b", b"leaf"]))
    def look_for(self, address):
        found = [key for key, entry in sorted(self.entries.items()) if entry[1] == address]
        assert keys_of(self.file.look_for(address)) == found

    @invariant()
    def all_is_there(self):
        if not hasattr(self, "file"):
            return
        assert keys_of(self.file.lut.entries) == sorted(self.entries)
        assert self.file.lut.fetched_keys == self.loaded
        assert self.file.groups.list() == sorted(self.groups)
        for name, members in self.groups.items():
            assert self.file.groups.get(name, keys_only=True) == members
        assert self.file.meta.data == self.metadata
        for entry in self.file.lut.entries:
            domain, address, box, mask = self.entries[entry.key]
            assert (entry.iid.domain or b"", entry.iid.address, entry.seg.bbox) == (domain, address, box)
            assert np.array_equal(entry.seg.mask(), mask)


TestEdits = Edits.TestCase
TestEdits.settings = settings(deadline=None, max_examples=30, stateful_step_count=15)
