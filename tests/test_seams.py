"""Who is one across seams: evidence against a dense twin, rules, deciding again, and taking back."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree
from test_finish import check_tables, files_in, manifest_of, named_masks, names_in, random_labels, tiled, write_masks
from twins import seeds

from iid_dask.errors import IIDFormatError, IIDStoreError
from iid_dask.mosaic.evidence import gather
from iid_dask.mosaic.finish import finish
from iid_dask.mosaic.folder import Job, load_job, prepare, tile_reader
from iid_dask.mosaic.rules import checked
from iid_dask.mosaic.seams import IoU, Touch, decide, parse_rule, seams_table, undo
from iid_dask.mosaic.survey import survey
from iid_dask.mosaic.tile import write_tile

NUCLEI = np.load(DATA / "nuclei.labels.npz")
NUCLEI = NUCLEI[NUCLEI.files[0]].astype(np.int64)

COUNTS = ("contact_a", "contact_b", "face_a", "face_b", "intersection", "union")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Hundreds of tiles are written here, and no power fails: that files are forced to disk is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def surveyed(folder):
    job = load_job(folder)
    return job, survey(folder, [tile.name for tile in job.grid])


# --- evidence ---------------------------------------------------------------------------------------------------


def twin_evidence(folder):
    """Pairs and their counts from dense masks in the frame of the mosaic."""
    job, found = surveyed(folder)
    size = np.array(job.shape) + 2
    planes = []
    for number, (path, tile) in enumerate(zip(found.paths, found.places, strict=True)):
        for key, entry in tile_reader(folder, path).items():
            mask = np.zeros(size, bool)  # a margin of one pixel, so that lines grow everywhere
            row, col = tile.origin[0] + entry.bbox.min_row + 1, tile.origin[1] + entry.bbox.min_col + 1
            mask[row : row + entry.bbox.height, col : col + entry.bbox.width] = entry.mask()
            planes.append((number, key, mask))

    def box(part):
        out = np.zeros(size, bool)
        out[part.min_row + 1 : part.max_row + 1, part.min_col + 1 : part.max_col + 1] = True
        return out

    def grown(mask):
        return binary_dilation(mask, np.ones((3, 3)))

    rows = {}
    for a, key_a, mask_a in planes:
        for b, key_b, mask_b in planes:
            if a >= b:
                continue
            core_a, core_b = box(found.places[a].core), box(found.places[b].core)
            both = box(found.places[a].box) & box(found.places[b].box)
            counts = (
                np.sum(mask_a & core_a & grown(mask_b & core_b)),
                np.sum(mask_b & core_b & grown(mask_a & core_a)),
                np.sum(mask_a & core_a & grown(core_b)),
                np.sum(mask_b & core_b & grown(core_a)),
                np.sum(mask_a & mask_b & both),
                np.sum((mask_a | mask_b) & both),
            )
            if counts[0] or counts[4]:
                rows[a, key_a, b, key_b] = counts
    return rows


@given(seed=seeds, tile=st.sampled_from([(3, 5), (6, 8), (16, 16)]), halo=st.integers(0, 2), masks=st.booleans())
@settings(max_examples=25, deadline=None)
def test_evidence_equals_that_of_dense_masks(seed, tile, halo, masks):
    with tempfile.TemporaryDirectory() as folder:
        if masks:
            write_masks(folder, named_masks(seed, 13, 17), (13, 17), tile, stitch="touch", halo=halo)
        else:
            tiled(folder, random_labels(seed, 13, 17), tile, stitch="touch", halo=halo, local=True)
        found = gather(folder, *surveyed(folder))
        pairs = zip(found.tile_a, found.key_a, found.tile_b, found.key_b, strict=True)
        counts = zip(*(getattr(found, name) for name in COUNTS), strict=True)
        wanted = twin_evidence(folder)
        assert dict(zip(pairs, counts, strict=True)) == wanted
        assert list(wanted) == sorted(wanted)
        np.testing.assert_array_equal(found.iou, [row[4] / row[5] if row[5] else 0 for row in wanted.values()])


def test_touching_across_a_corner_is_seen_once_and_joined_only_on_demand(tmp_path):
    image = np.zeros((8, 8), int)
    image[2:4, 2:4] = image[4:6, 4:6] = 1
    folder = tiled(tmp_path, image, 4, stitch="touch", local=True)
    assert len(finish(folder)) == 2
    table = seams_table(folder)
    assert table[["tile_a", "tile_b", *COUNTS]].to_numpy().tolist() == [[0, 3, 1, 1, 1, 1, 0, 0]]
    assert len(decide(folder, Touch(min_pixels=1))) == 1


# --- rules ------------------------------------------------------------------------------------------------------


def merges(folder, image):
    """Joins that the image needs, those of them that were found, and false ones."""
    _, found = surveyed(folder)
    table = seams_table(folder)
    rows = {pair: row for row, pair in enumerate(zip(found.entries.tile, found.entries.key, strict=True))}
    parent = list(range(len(rows)))

    def root(row):
        while parent[row] != row:
            row = parent[row]
        return row

    for seam in table[table.decision].itertuples():
        parent[root(rows[seam.tile_a, seam.key_a])] = root(rows[seam.tile_b, seam.key_b])
    own = [set(np.unique(image[tile.core.slices]).tolist()) for tile in found.places]
    truth = {row: int(image[tuple(first)]) for row, first in enumerate(found.entries.first)}
    # What lies in the halo only is its neighbour's, and goes if it is not joined.
    truth = {row: label for row, label in truth.items() if label in own[found.entries.tile[row]]}
    sets = {(label, root(row)) for row, label in truth.items()}
    needed, good = len(truth) - len(set(truth.values())), len(truth) - len(sets)
    return np.array([needed, good, len(sets) - len({chosen for _, chosen in sets})])


def voronoi(cells, seed, size=384):
    """Cells that fill the image."""
    points = np.random.default_rng(seed).random((cells, 2)) * size
    pixels = np.stack(np.mgrid[:size, :size], axis=-1).reshape(-1, 2)
    return cKDTree(points).query(pixels)[1].reshape(size, size) + 1


def over_sizes(tmp_path, image, tiles, **options):
    """Sums of `merges`, and its precision and recall, over tile sizes."""
    total = np.zeros(3, int)
    for side in tiles:
        folder = tiled(tmp_path / f"{side}", image, side, local=True, **options)
        finish(folder)
        found = merges(folder, image)
        print(f"{options} tiles of {side}: {found[1]} of {found[0]} joins found, {found[2]} false")
        total += found
    needed, good, false = total.tolist()
    precision, recall = good / max(good + false, 1), good / max(needed, 1)
    print(f"{options}: precision {precision:.4f}, recall {recall:.4f}")
    return precision, recall


@pytest.mark.parametrize("halo", [0, 12])
def test_touch_gives_back_nuclei(tmp_path, halo):
    precision, recall = over_sizes(tmp_path, NUCLEI, (64, 100, 128, 256), stitch="touch", halo=halo)
    assert precision == 1
    assert recall >= 0.98


def test_iou_gives_back_every_nucleus(tmp_path):
    for side in (64, 100, 128, 256):
        folder = tiled(tmp_path / f"{side}", NUCLEI, side, stitch="iou", halo=12, local=True)
        finish(folder)
        labels = np.unique(NUCLEI[NUCLEI > 0])
        first = [np.flatnonzero(NUCLEI.ravel() == label)[0] for label in labels]
        check_tables(folder, np.array([label == NUCLEI for label in labels[np.argsort(first)]]))


def test_cells_that_fill_the_image_do_not_fuse(tmp_path):
    for seed in range(3):
        precision, recall = over_sizes(tmp_path / f"{seed}", voronoi(40, seed), (64, 128), stitch="touch")
        assert precision == 1
        assert recall >= 0.96
    # Where a tile's border runs along that of two small cells, contact alone cannot tell them from one.
    precision, recall = over_sizes(tmp_path / "small", voronoi(170, 2), (64, 100, 128), stitch="touch")
    assert precision >= 0.98
    assert recall >= 0.94


def test_agreement_in_halos_never_fuses_cells(tmp_path):
    precision, recall = over_sizes(tmp_path, voronoi(170, 2), (64, 100), stitch="iou", halo=4)
    assert precision == 1
    assert recall >= 0.98


def test_each_joins_its_best_only_so_that_chains_of_contacts_make_no_one(tmp_path):
    """Bricks in two courses, half a brick apart: every one touches two of the other course."""
    image = np.zeros((8, 80), int)
    for n in range(10):
        image[:4, 8 * n : 8 * n + 8] = 100 + n
        image[4:, max(8 * n - 3, 0) : 8 * n + 5] = 200 + n
    prepare(tmp_path, image.shape, tile=(4, 80), stitch="touch")
    write_tile(tmp_path, image[:4], (0, 0))
    write_tile(tmp_path, image[4:], (4, 0))
    chain = Touch(min_share=0.2, min_pixels=1, mutual=False)
    assert len(finish(tmp_path, rule=chain)) == 1
    assert len(decide(tmp_path, Touch(min_share=0.2, min_pixels=1))) == 10
    table = seams_table(tmp_path)
    joined = table[table.decision]
    assert joined.key_a.is_unique
    assert joined.key_b.is_unique


def test_of_equal_partners_the_lower_key_is_joined(tmp_path):
    image = np.array([[1, 1, 1, 1, 1, 1], [2, 2, 0, 0, 3, 3]])
    prepare(tmp_path, image.shape, tile=(1, 6), stitch="touch")
    write_tile(tmp_path, image[:1], (0, 0))
    write_tile(tmp_path, image[1:], (1, 0))
    finish(tmp_path, rule=Touch(min_share=0.1))
    table = seams_table(tmp_path)
    assert table.score.tolist() == [0.5, 0.5]
    assert table.decision.tolist() == [True, False]


def test_fibres_are_joined_where_breadth_is_not_asked_for(tmp_path):
    image = np.zeros((8, 200), int)
    image[3:6] = 1
    folder = tiled(tmp_path, image, (8, 100), stitch="touch", local=True)
    assert len(finish(folder)) == 2
    assert len(decide(folder, Touch(min_breadth=0))) == 1


def test_pieces_far_apart_stay_apart(tmp_path):
    image = np.zeros((8, 16), int)
    image[2:6, 2:6] = image[2:6, 10:14] = 1
    assert len(finish(tiled(tmp_path, image, 8, stitch="touch", local=True))) == 2
    assert len(seams_table(tmp_path)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Touch(min_share=1.5), r"min_share = 1\.5: expected a share, 0 … 1"),
        (lambda: Touch(min_share=float("nan")), r"min_share = nan: expected a share, 0 … 1"),
        (lambda: Touch(min_pixels=0), r"min_pixels = 0: expected pixels, 1 or more"),
        (lambda: Touch(mutual=1), r"mutual = 1: expected True or False"),
        (lambda: IoU(min_iou=True), r"min_iou = True: expected a share"),
        (lambda: IoU(mutual=None), r"mutual = None: expected True or False"),
    ],
)
def test_rules_refuse_what_makes_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TOUCH_OPTIONS = "min_share=0.5, min_pixels=2, min_breadth=0.1, mutual=true"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "near:min_share=1",
            "rule 'near:min_share=1': expected touch:min_share=0.5,min_pixels=2,min_breadth=0.1,mutual=true or "
            "iou:min_iou=0.5,mutual=true, each option or none",
        ),
        ("touch:share=1", f"touch: unknown option 'share'; known: {TOUCH_OPTIONS}"),
        ("touch:min_share=0.5,", f"touch: unknown option ''; known: {TOUCH_OPTIONS}"),
        ("iou:min_share=1", "iou: unknown option 'min_share'; known: min_iou=0.5, mutual=true"),
        ("iou:min_iou=x", "iou: min_iou = 'x': expected a value such as 0.5"),
        ("iou:min_iou", "iou: min_iou = '': expected a value such as 0.5"),
        ("iou:min_iou=0.5=1", "iou: min_iou = '0.5=1': expected a value such as 0.5"),
        ("touch:mutual=yes", "touch: mutual = 'yes': expected a value such as true"),
        ("touch:mutual=1", "touch: mutual = 1: expected True or False"),
        ("touch:min_share=2", "touch: min_share = 2: expected a share, 0 … 1"),
        ("touch:min_pixels=2.5", "touch: min_pixels = 2.5: expected pixels, 1 or more"),
        ("iou:min_iou=0.5,min_iou=0.6", "iou: option 'min_iou' is given twice"),
    ],
)
def test_a_rule_that_cannot_be_read_says_which_option_and_what_is_known(text, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parse_rule(text)


def test_every_rule_is_read_as_it_is_written():
    assert parse_rule("touch:min_share=0.25, mutual=false") == Touch(min_share=0.25, mutual=False)
    assert parse_rule("touch:min_pixels=7,min_breadth=0") == Touch(min_pixels=7, min_breadth=0)
    assert parse_rule("iou:min_iou=1") == IoU(min_iou=1)
    assert parse_rule("iou:") == IoU()


NO_HALO = r"^IoU compares what two tiles both hold, and this mosaic has no halo: take Touch, or prepare it with halo=$"


def test_agreement_in_halos_is_refused_where_there_are_none(tmp_path):
    folder, _ = two_squares(tmp_path)
    with pytest.raises(ValueError, match=NO_HALO):
        finish(folder, rule=IoU())
    assert not (folder / "mosaic.json").exists()
    finish(folder)
    before = files_in(folder)
    with pytest.raises(ValueError, match=NO_HALO):
        decide(folder, IoU())
    with pytest.raises(ValueError, match=NO_HALO):
        decide(seams_table(folder), IoU())
    assert files_in(folder) == before


def test_agreement_in_halos_is_refused_for_tiles_anywhere_that_do_not_overlap(tmp_path):
    job = prepare(tmp_path, (4, 8), stitch="touch")
    assert checked(IoU(), job) == IoU()  # the tiles are not known yet
    for col in (0, 4):
        write_tile(tmp_path, np.ones((4, 4), int), (0, col))
    with pytest.raises(ValueError, match=NO_HALO):
        finish(tmp_path, rule=IoU())
    assert len(finish(tmp_path)) == 1


def test_agreement_in_halos_decides_where_there_are_some_and_one_tile_needs_none(tmp_path):
    folder, image = two_squares(tmp_path / "halo", halo=2)
    assert len(finish(folder, rule=IoU())) == 3
    check_tables(folder, [image == label for label in (1, 2, 3)])
    folder = tiled(tmp_path / "one", np.ones((4, 4), int), 8, stitch="touch", local=True)
    assert len(finish(folder, rule=IoU())) == 1


def test_rules_without_anything_to_decide_are_refused(tmp_path):
    folder = tiled(tmp_path / "a", np.ones((4, 4), int), 2)
    with pytest.raises(ValueError, match=r"stitch = 'label', so there is nothing to decide; leave it out"):
        finish(folder, rule=Touch())
    finish(folder)
    for stitch in ("name", None):
        with pytest.raises(ValueError, match=rf"stitch = {stitch!r}, so there is nothing to decide; leave it out"):
            checked(IoU(), Job((4, 4), stitch))
    folder = tiled(tmp_path / "b", np.ones((4, 4), int), 2, stitch="touch", connected=True)
    with pytest.raises(ValueError, match="connected components join wherever they touch"):
        finish(folder, rule=Touch())
    finish(folder)
    for target in (folder, seams_table(folder)):
        with pytest.raises(ValueError, match="connected components join wherever they touch"):
            decide(target, Touch())
    assert decide(seams_table(folder)).decision.all()
    prepare(tmp_path / "c", (4, 8), stitch="iou")
    for col in (0, 4):
        write_tile(tmp_path / "c", np.ones((4, 4), int), (0, col))
    with pytest.raises(ValueError, match="and none overlap: prepare the mosaic with a halo"):
        finish(tmp_path / "c")


def test_what_is_no_rule_is_refused(tmp_path):
    folder, _ = two_squares(tmp_path)
    message = r"rule = .*: expected iid_dask\.Touch\(…\) or iid_dask\.IoU\(…\)"
    for rule in ("touch", Touch, {"min_share": 0.5}, 0):
        with pytest.raises(TypeError, match=message):
            finish(folder, rule=rule)
    finish(folder)
    for rule in ("touch", Touch):
        with pytest.raises(TypeError, match=message):
            decide(folder, rule)
        with pytest.raises(TypeError, match=message):
            decide(seams_table(folder), rule)


@pytest.mark.parametrize("stitch", ["label", None])
def test_a_mosaic_without_decisions_says_so_and_the_way_out(tmp_path, stitch):
    folder = tiled(tmp_path, np.ones((4, 4), int), 2, stitch=stitch)
    finish(folder)
    before = files_in(folder)
    message = rf"mosaic\.json: a mosaic with stitch = {stitch!r}, in which nothing is decided; .* with stitch=\"touch\""
    for call in (
        decide,
        lambda folder: undo(folder, pairs=[0]),
        lambda folder: undo(folder, segments=[0]),
        seams_table,
    ):
        with pytest.raises(IIDStoreError, match=message):
            call(folder)
    assert files_in(folder) == before


# --- deciding again ---------------------------------------------------------------------------------------------


def two_squares(folder, **options):
    """One object over two tiles, and one that touches it."""
    image = np.zeros((12, 12), int)
    image[1:5, 3:9], image[5:11, 3:6], image[6:11, 6:9] = 1, 2, 3
    return tiled(folder, image, (12, 6), stitch="touch", local=True, **options), image


def test_deciding_again_reads_no_tile_and_undoes_itself(tmp_path):
    folder, _ = two_squares(tmp_path)
    assert len(finish(folder)) == 2
    first = files_in(folder)
    shutil.rmtree(folder / "tiles")
    (folder / "tiles").mkdir()
    rule = Touch(min_share=1.0, min_pixels=5)
    assert len(decide(folder, rule)) == 3
    assert manifest_of(folder)["rule"] == {
        "name": "touch",
        "min_share": 1.0,
        "min_pixels": 5,
        "min_breadth": 0.1,
        "mutual": True,
    }
    decide(folder, Touch())
    assert files_in(folder) == first


def test_a_table_can_be_decided_without_writing(tmp_path):
    folder, _ = two_squares(tmp_path)
    finish(folder)
    before, table = files_in(folder), seams_table(folder)
    assert decide(table, Touch(min_pixels=5)).decision.tolist() == [False, False, True]
    assert decide(table).equals(table)
    assert files_in(folder) == before
    with pytest.raises(ValueError, match="table of seams: no column 'manual'"):
        decide(table.drop(columns="manual"))
    with pytest.raises(TypeError, match="names=, groups= and progress= go with a folder"):
        decide(table, seams=table)
    bare = table.copy()
    bare.attrs.clear()  # as after a CSV file
    assert decide(bare, Touch()).decision.tolist() == table.decision.tolist()
    with pytest.raises(ValueError, match='its attrs do not say which "rule" decided last; give rule='):
        decide(bare)


@pytest.mark.parametrize("halo", [0, 2])
def test_undone_joins_stay_undone(tmp_path, halo):
    folder, image = two_squares(tmp_path, halo=halo)
    finish(folder)
    whole, table = files_in(folder), seams_table(folder)
    joined = np.flatnonzero(table.decision)
    undo(folder, segments=[0])
    assert seams_table(folder).manual.sum() >= 1
    left, right = np.zeros((2, 12, 12), bool)
    left[:, :6] = right[:, 6:] = True
    parts = [(image == 1) & left, (image == 1) & right]
    check_tables(folder, [*parts, image > 1])
    decide(folder, Touch(min_share=0, min_pixels=1))
    assert not seams_table(folder).decision[seams_table(folder).manual].any()
    edited = seams_table(folder).assign(manual=False)
    decide(folder, Touch(), seams=edited.sample(frac=1, random_state=1))
    assert files_in(folder) == whole
    undo(folder, pairs=joined)
    assert not seams_table(folder).decision.any()


def test_edited_decisions_are_kept(tmp_path):
    folder, image = two_squares(tmp_path)
    finish(folder)
    table = seams_table(folder)
    decide(folder, seams=table.assign(decision=True))
    assert seams_table(folder).manual.tolist() == (~table.decision).tolist()
    check_tables(folder, [image > 0])
    with pytest.raises(IIDStoreError, match=r"the table of 1 seams is not this mosaic's, which has 3"):
        decide(folder, seams=table[:1])


def test_an_edited_table_survives_a_csv_file_and_what_it_lacks_is_named(tmp_path):
    folder, _ = two_squares(tmp_path / "m")
    finish(folder)
    table, before = seams_table(folder), files_in(folder)
    for column in ("decision", "manual", "key_b"):
        with pytest.raises(ValueError, match=f"table of seams: no column '{column}'; expected tile_a, key_a, tile_b"):
            decide(folder, seams=table.drop(columns=column))
    words = table.decision.map({True: "yes", False: "no"})
    with pytest.raises(ValueError, match=r"table of seams: decision of row 0 is '(yes|no)', expected True or False"):
        decide(folder, seams=table.assign(decision=words))
    with pytest.raises(ValueError, match="table of seams: manual of row 0 is nan, expected True or False"):
        decide(folder, seams=table.assign(manual=np.nan))
    assert files_in(folder) == before
    numbers = table.assign(decision=[1, 1, 1], manual=[0, 0, 0])
    numbers.to_csv(tmp_path / "seams.csv", index=False)
    decide(folder, seams=pd.read_csv(tmp_path / "seams.csv"))
    assert seams_table(folder).decision.all()
    assert seams_table(folder).manual.tolist() == (~table.decision).tolist()


def test_what_undo_cannot_find_is_named(tmp_path):
    folder, _ = two_squares(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mosaic.json: no such file: call iid_dask.finish"):
        undo(folder, pairs=[0])
    finish(folder)
    with pytest.raises(IndexError, match="no row 7 in the table of seams, which has 3"):
        undo(folder, pairs=[7])
    with pytest.raises(KeyError, match="no segment 9; keys are 0 … 1"):
        undo(folder, segments=[9])
    before = files_in(folder)
    with pytest.raises(TypeError, match=r"^undo: say which, pairs= or segments=$"):
        undo(folder)
    with pytest.raises(TypeError, match="undo: pairs holds bool, expected whole numbers"):
        undo(folder, pairs=seams_table(folder).decision)
    with pytest.raises(TypeError, match="undo: segments holds float64, expected whole numbers"):
        undo(folder, segments=[0.0])
    assert files_in(folder) == before
    undo(folder, pairs=[])
    assert files_in(folder) == before


def test_names_that_were_given_are_asked_for_again(tmp_path):
    folder, _ = two_squares(tmp_path)
    finish(folder, names=lambda n: f"cell {n}", domain=b"d", groups=lambda n: "all")
    with pytest.raises(ValueError, match="was finished with names="):
        undo(folder, segments=[0])
    with pytest.raises(ValueError, match="was finished with groups="):
        undo(folder, segments=[0], names={1: "x", 2: "y", 3: "z"})
    undo(folder, segments=[0], names={1: "x", 2: "y", 3: "z"}, groups=lambda n: None)
    assert names_in(folder) == [(b"d", b"x"), (b"d", b"y"), (b"d", b"z")]


def test_masks_keep_their_groups_when_they_are_decided_again(tmp_path):
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    write_masks(tmp_path, [(b"d", b"1", "g", mask), (b"d", b"2", "h", ~mask)], (8, 8), (8, 4), stitch="touch")
    finish(tmp_path)
    first = files_in(tmp_path)
    assert manifest_of(tmp_path)["groups"] == ["h", "g"]
    assert names_in(tmp_path) == [(b"d", b"2"), (b"d", b"1")]
    undo(tmp_path, segments=[1])
    assert names_in(tmp_path) == [(b"d", b"2"), (b"d", b"1"), (b"d", b"1")]
    decide(tmp_path, seams=seams_table(tmp_path).assign(manual=False))
    assert files_in(tmp_path) == first
    assert Path(tmp_path, "mosaic.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: {**manifest, "version": 9}, "version 9"),
        (lambda manifest: {**manifest, "naming": None}, "no naming"),
        (lambda manifest: {**manifest, "shape": [1]}, "shape"),
        (lambda manifest: [], "a JSON list"),
    ],
)
def test_a_damaged_manifest_is_named_and_left_as_it_is(tmp_path, change, words):
    folder = tiled(tmp_path / "m", NUCLEI, 256, stitch="touch", local=True)
    finish(folder).close()
    path = folder / "mosaic.json"
    damaged = json.dumps(change(json.loads(path.read_bytes())))
    path.write_text(damaged)
    with pytest.raises(IIDFormatError, match=words):
        decide(folder, Touch())
    assert path.read_text() == damaged
