"""`iid assemble`, `iid finish`, `iid stitch`, `iid consolidate`: what they write, say and refuse."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from label_images import cells, discs

import iid_dask
from iid_dask.cli import main

DATA = Path(__file__).parent / "data"
ASSEMBLE = DATA / "assemble"
EXPECTED = (ASSEMBLE / "discs.iid").read_bytes()


def call(*words: object):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def works(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def image(tmp_path, monkeypatch) -> np.ndarray:
    """An image as labels.npy in the working folder."""
    monkeypatch.chdir(tmp_path)
    with np.load(ASSEMBLE / "discs.npz") as arrays:
        labels = arrays["image"]
    np.save("labels.npy", labels)
    return labels


def sectors(image: np.ndarray) -> list[str]:
    """The image as files of 50 x 60 pixels, row by row."""
    names = []
    for row in range(0, image.shape[0], 50):
        for col in range(0, image.shape[1], 60):
            names.append(f"tile_{row // 50}_{col // 60}.npy")
            np.save(names[-1], image[row : row + 50, col : col + 60])
    return names


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """That files are forced to disk is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def names_in(folder: str | Path = ".") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_assemble_writes_the_references_file_and_says_what_it_holds(image):
    output = works("assemble", "labels.npy", "-o", "out.iid", "--tile", 30)
    assert Path("out.iid").read_bytes()[: len(EXPECTED)] == EXPECTED
    assert "out.iid: 56 entries, 129 x 140 pixels" in output
    assert names_in() == ["labels.npy", "out.iid"]


def test_tiles_may_be_oblong_and_worker_processes_write_the_same(image):
    works("assemble", "labels.npy", "-o", "out.iid", "--tile", "20x60", "--workers", 2)
    assert Path("out.iid").read_bytes()[: len(EXPECTED)] == EXPECTED


def test_images_across_and_a_pattern_are_one_image(image):
    files = sectors(image)
    works("assemble", *files, "--across", 3, "-o", "across.iid", "--tile", 32)
    works("assemble", "tile_{row}_{col}.npy", "-o", "pattern.iid", "--tile", 32)
    assert Path("across.iid").read_bytes()[: len(EXPECTED)] == EXPECTED
    assert Path("pattern.iid").read_bytes() == Path("across.iid").read_bytes()


def test_dry_run_says_tiles_tasks_and_memory_and_writes_nothing(image):
    output = works("assemble", "labels.npy", "-o", "out.iid", "--tile", 30, "--dry-run")
    assert "129 x 140 pixels, 25 tiles in" in output
    assert re.search(r"in \d+ tasks", output)
    assert re.search(r"a worker needs about [\d.]+ M", output)
    assert re.search(r"reads [\d.]+ \w+; writes", output)
    assert names_in() == ["labels.npy"]


def test_domain_and_connected_reach_the_file(image):
    works("assemble", "labels.npy", "-o", "d.iid", "--domain", "cell", "--connected", "--tile", 40)
    with iid_dask.open("d.iid") as f:
        assert {entry.domain for entry in f.values()} == {b"cell"}
        assert all(len(entry.regions) == 1 for entry in f.values())
        assert len(f) > 56


def test_a_mosaic_in_parts_finished_and_consolidated(image):
    for number in (3, 1, 2):
        output = works("assemble", "labels.npy", "-o", "mosaic", "--tile", 30, "--part", f"{number}/3")
        assert f"part {number} of 3" in output
        assert not Path("mosaic/mosaic.json").exists()
    assert len(list(Path("mosaic/tiles").iterdir())) == 25
    assert "mosaic: 56 entries, 129 x 140 pixels" in works("finish", "mosaic")
    assert "out.iid: 56 entries, 129 x 140 pixels" in works("consolidate", "mosaic", "-o", "out.iid")
    assert Path("out.iid").read_bytes()[: len(EXPECTED)] == EXPECTED


def test_finish_names_the_tiles_of_a_part_that_was_not_run(image):
    works("assemble", "labels.npy", "-o", "mosaic", "--tile", 70, "--part", "1/4")
    result = call("finish", "mosaic")
    assert result.exit_code in (1, 2)
    assert re.search(r"row 70, column 0|r0000070_c0000000", result.output)
    assert not Path("mosaic/mosaic.json").exists()


def test_a_mosaic_in_one_call_is_the_same(image):
    assert "mosaic: 56 entries" in works("assemble", "labels.npy", "-o", "mosaic", "--tile", 50)
    works("assemble", "labels.npy", "-o", "mosaic", "--tile", 50)
    works("consolidate", "mosaic", "-o", "out.iid", "--workers", 2)
    assert Path("out.iid").read_bytes()[: len(EXPECTED)] == EXPECTED


def test_info_and_queries_understand_a_mosaic(image):
    works("assemble", "labels.npy", "-o", "mosaic", "--tile", 50)
    works("assemble", "labels.npy", "-o", "out.iid", "--tile", 50)
    row, col = np.argwhere(image)[100]
    assert re.search(rf"\b{image[row, col]}\b", works("at", "mosaic", int(row), int(col)))
    # Not the regions: those of a mosaic end at the borders of its tiles.
    columns = ("--columns", "key,address,min_row,min_col,max_row,max_col,area,groups")
    assert works("ls", "mosaic", *columns) == works("ls", "out.iid", *columns)
    assert "129 x 140 pixels" in works("info", "mosaic")


def local_labels() -> np.ndarray:
    """Cells with gaps, numbered anew in each tile of 40 pixels."""
    image = cells(120, 120, 12)
    image[(np.diff(image, axis=0, append=0) != 0) | (np.diff(image, axis=1, append=0) != 0)] = 0
    out = np.zeros(image.shape, np.uint16)
    for row in range(0, 120, 40):
        for col in range(0, 120, 40):
            block = image[row : row + 40, col : col + 40]
            out[row : row + 40, col : col + 40] = np.unique(np.append(block, 0), return_inverse=True)[1][:-1].reshape(
                block.shape
            )
    return out


def test_stitch_decides_again_after_saying_what_it_would_do(image):
    np.save("local.npy", local_labels())
    joined = works("assemble", "local.npy", "-o", "m", "--tile", 40, "--stitch", "touch")
    before = {path: path.read_bytes() for path in Path("m").rglob("*") if path.is_file()}
    output = works("stitch", "m", "--rule", "touch:min_pixels=1000", "--dry-run")
    assert re.search(r"0 of \d+ pairs at seams would be joined", output)
    assert {path: path.read_bytes() for path in Path("m").rglob("*") if path.is_file()} == before
    none = works("stitch", "m", "--rule", "touch:min_pixels=1000")
    pieces = sum(len(np.unique(local_labels()[r : r + 40, c : c + 40])) - 1 for r in (0, 40, 80) for c in (0, 40, 80))
    assert f"m: {pieces} entries" in none
    assert re.search(r"0 of \d+ pairs", works("stitch", "m", "--dry-run"))
    assert works("stitch", "m") == none
    again = works("stitch", "m", "--rule", "touch")
    assert again == joined
    assert int(re.search(r"m: (\d+) entries", again)[1]) < pieces


LOCAL = ("assemble", "labels.npy", "-o", "o.iid", "--stitch", "touch", "--tile", 40)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_stitch_refuses_what_finish_would_have_refused(image, dry):
    np.save("local.npy", local_labels())
    works("assemble", "local.npy", "-o", "m", "--tile", 40, "--stitch", "touch")
    works("assemble", "labels.npy", "-o", "labels", "--tile", 40)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for words, code, said in (
        (("m", "--rule", "iou"), 2, "this mosaic has no halo: take Touch, or prepare it with halo="),
        (("m", "--rule", "iou:share=1"), 2, "iou: unknown option 'share'; known: min_iou=0.5, mutual=true"),
        (("labels",), 2, "stitch = 'label', in which nothing is decided"),
    ):
        result = call("stitch", *words, *dry)
        assert result.exit_code == code, result.output
        assert said in result.output
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("assemble", "nothing.npy", "-o", "o.iid"), 2, "nothing.npy"),
        (("assemble", "labels.npy"), 2, "--out"),
        (("assemble", "labels.npy", "-o", "missing/o.iid"), 2, "missing"),
        (("assemble", "labels.npy", "-o", "o.iid", "--tile", "0"), 2, "tile"),
        (("assemble", "labels.npy", "-o", "o.iid", "--tile", "a"), 2, "expected pixels, 4096 or 2048x4096"),
        (("assemble", "labels.npy", "-o", "o.iid", "--stitch", "sew"), 2, "sew"),
        (("assemble", "labels.npy", "-o", "o.iid", "--part", "1/2"), 2, "give a folder"),
        (("assemble", "labels.npy", "-o", "m", "--part", "3/2"), 2, "expected I/N"),
        (("assemble", "labels.npy", "-o", "o.iid", "--workers", 2, "--scheduler", "tcp://127.0.0.1:1"), 2, "not both"),
        (("assemble", "labels.npy", "-o", "o.iid", "--rule", "sew:x=1"), 2, "sew"),
        (
            ("assemble", "labels.npy", "-o", "o.iid", "--rule", "touch"),
            2,
            "so there is nothing to decide; leave it out",
        ),
        ((*LOCAL, "--rule", "touch:share=1"), 2, "touch: unknown option 'share'; known: min_share=0.5, min_pixels=2"),
        ((*LOCAL, "--rule", "touch:min_share=much"), 2, "touch: min_share = 'much': expected a value such as 0.5"),
        ((*LOCAL, "--rule", "iou"), 2, "this mosaic has no halo: take Touch, or prepare it with halo="),
        (("assemble", "labels.npy", "-o", "full"), 2, "holds 'a.txt' and is no mosaic's"),
        (("assemble", "float.npy", "-o", "o.iid"), 2, "float64"),
        (("assemble", "negative.npy", "-o", "o.iid"), 2, "-7"),
        (("assemble", "labels.npy", "labels.npy", "-o", "o.iid"), 2, "across"),
        (("assemble", "labels.npy", "labels.npy", "labels.npy", "--across", 2, "-o", "o.iid"), 2, "3"),
        (("assemble", "none_{row}_{col}.npy", "-o", "o.iid"), 2, "none_"),
        (("finish", "nothing"), 2, "nothing"),
        (("finish", "."), 2, "prepare"),
        (("stitch", "nothing"), 2, "nothing"),
        (("consolidate", "nothing", "-o", "o.iid"), 2, "nothing"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(image, words, code, said):
    np.save("float.npy", np.zeros((3, 4)))
    np.save("negative.npy", np.array([[0, -7]]))
    Path("full").mkdir()
    Path("full", "a.txt").write_text("mine")
    before = names_in()
    result = call(*words)
    assert result.exit_code == code, result.output
    assert said in result.output
    assert "Usage:" in result.output or result.output.startswith("iid: ")
    assert names_in("full") == ["a.txt"]
    left = set(names_in()) - set(before)
    if "negative.npy" in words:  # pixels are read last: what was done is kept for the next call
        assert [name.endswith(".scratch") for name in left] == [True]
    else:
        assert left == set()


def test_an_old_file_stands_after_an_error(image):
    Path("out.iid").write_bytes(b"old")
    np.save("negative.npy", -discs(30, 40).astype(np.int32))
    assert call("assemble", "negative.npy", "-o", "out.iid", "--tile", 10).exit_code == 2
    assert Path("out.iid").read_bytes() == b"old"
