"""The command line: what it says, its exit codes, and that no error is a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import iid_dask
from iid_dask.cli import main
from iid_dask.cli.demo import DEMO

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
US = iid_dask.sample("us")


def expected(name: str) -> dict[str, np.ndarray]:
    """The arrays that the reference's masks give."""
    with np.load(DATA / f"{name}.expected.npz") as arrays:
        return dict(arrays)


US_LAST = expected("us")["last"]


def call(*words: object):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Nuclei with one bit of entry 3's mask flipped, so that its area is wrong."""
    data = bytearray((DATA / "nuclei.iid").read_bytes())
    with iid_dask.open(bytes(data)) as f:
        start = int(f.header["segments_offset"]) + int(f.lut["segment_offset"][3])
        middle = start + int(f.lut["segment_length"][3]) // 2
    data[middle] ^= 0x10
    path = tmp_path / "damaged.iid"
    path.write_bytes(data)
    return path


def test_info_says_what_is_in_the_file():
    output = call("info", US).output
    for words in ("600 x 1000 pixels", "3,155", "nation (1), states (49), counties (3105)", "no (`iid index FILE`"):
        assert words in output
    facts = json.loads(call("info", "--json", "--pixels", DATA / "nuclei.iid").output)
    depth = expected("nuclei")["depth"]
    assert facts["entries"] == 125
    assert (facts["height"], facts["width"]) == (512, 512)
    assert facts["groups"] == {"large": 96, "small": 29}
    assert facts["covered"] == pytest.approx((depth > 0).mean())
    assert facts["largest_depth"] == depth.max()
    assert facts["index"] is False


def test_index_is_added_atomically_and_seen(tmp_path):
    path = tmp_path / "us.iid"
    shutil.copy(US, path)
    assert call("index", path).exit_code == 0
    assert path.read_bytes().startswith(Path(US).read_bytes())
    assert json.loads(call("info", "--json", path).output)["index"] is True
    assert call("index", US, "-o", tmp_path / "other.iid").exit_code == 0
    assert (tmp_path / "other.iid").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.iid", "us.iid"]


def test_check_names_every_defect_with_entry_and_byte(damaged):
    assert call("check", US).output.endswith("sound\n")
    result = call("check", damaged)
    assert result.exit_code == 1
    assert re.search(r"segments, entry 3, byte \d+: found area \d+, expected \d+", result.output)
    assert "1 defect found" in result.output
    before = damaged.read_bytes()
    assert call("index", damaged).exit_code == 1
    assert damaged.read_bytes() == before


def test_rasterize_in_parts_with_a_window(tmp_path):
    out = tmp_path / "o.zarr"
    options = ("--bbox", 100, 50, 500, 900, "--chunks", 100, "--group", "states", "--variable", "label")
    assert "complete" in call("rasterize", US, out, "--part", "1/2", *options).output
    result = call("rasterize", US, out, "--part", "2/2", *options)
    assert result.exit_code == 0
    assert "label 400 x 850; complete" in result.output
    with iid_dask.open(US) as f:
        states = np.isin(US_LAST[100:500, 50:900], f.groups["nation"] + 1)
    labels = iid_dask.open_zarr(out).label.values
    assert not np.isin(labels, np.arange(51, 3156)).any()
    assert labels.shape == states.shape
    result = call("check", out)
    assert result.exit_code == 0
    next((out / "label" / "c").rglob("*/*")).unlink()
    result = call("check", out)
    assert result.exit_code == 1
    assert "is missing" in result.output


def test_rasterize_options_reach_the_arrays(tmp_path):
    import xarray as xr

    cases = {
        ("--overlap", "first"): {"overlap": "first"},
        ("--stride", "3", "--reduce", "any"): {"stride": 3, "reduce": "any"},
        ("--keys", "0,5-9", "--keys", "60"): {"keys": [0, 5, 6, 7, 8, 9, 60]},
        ("--address", "01", "--address", "56"): {"addresses": ["01", "56"]},
        ("--domain", "states"): {"domains": "states"},
        ("--labels", "address", "--domain", "counties"): {"labels": "address", "domains": "counties"},
    }
    for i, (words, options) in enumerate(cases.items()):
        result = call("rasterize", US, tmp_path / f"{i}.zarr", *words)
        assert result.exit_code == 0, result.output
        with xr.open_dataset(US, engine="iid", **options) as ds:
            np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / f"{i}.zarr").label.values, ds.label.values)


def test_overlaps_are_said_once_on_stderr(tmp_path):
    result = call("rasterize", US, tmp_path / "o.zarr")
    assert result.stderr.count("covered by more than one entry") == 1
    assert "iid: note:" in result.stderr


def test_worker_processes_write_the_same(tmp_path):
    result = call("rasterize", US, tmp_path / "o.zarr", "--workers", 2, "--chunks", 128)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(iid_dask.open_zarr(tmp_path / "o.zarr").label.values, US_LAST)


def test_an_interruption_is_a_sentence(monkeypatch):
    def interrupted(**_: object) -> None:
        error = KeyboardInterrupt()
        error.add_note("the same call continues")
        raise error

    monkeypatch.setattr("iid_dask.cli.files.info.callback", interrupted)
    result = call("info", US)
    assert (result.exit_code, result.output) == (130, "iid: interrupted; the same call continues\n")


@pytest.mark.parametrize("text", ["{}", "xx", "[]", '{"type": "Scheduler"}'])
def test_a_scheduler_file_without_an_address_is_refused(tmp_path, text):
    file = tmp_path / "scheduler.json"
    file.write_text(text)
    result = call("overlaps", US, "--scheduler-file", file)
    assert result.exit_code == 2
    assert "found no address of a scheduler in it" in " ".join(result.output.split())


def test_missing_credentials_are_a_sentence(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    result = call("info", "s3://bucket/a.iid")
    assert result.exit_code == 2
    assert result.output.startswith("iid: ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("info", "nothing.iid"), 2, "nothing.iid: No such file or directory"),
        (("info", "."), 2, "is a directory"),
        (("info", "http+nix://x/y.iid"), 2, "iid: "),
        (("check", __file__), 1, "found"),
        (("rasterize", US, "o.zarr", "--overlap", "middle"), 2, "middle"),
        (("rasterize", US, "o.zarr", "--keys", "a-b"), 2, "expected keys such as"),
        (("rasterize", US, "o.zarr", "--keys", "5-3"), 2, "expected keys such as"),
        (("rasterize", US, "o.zarr", "--keys", "9999"), 2, "no entry 9999; keys are integers from 0 to 3154"),
        (("rasterize", US, "o.zarr", "--group", "towns"), 2, "no group 'towns'; there is"),
        (("rasterize", US, "o.zarr", "--address", "nowhere"), 2, "no entry has the address"),
        (("rasterize", US, "o.zarr", "--part", "3/2"), 2, "expected I/N"),
        (("rasterize", US, "o.zarr", "--bbox", 0, 0, 601, 5), 2, "leaves the image of 600 x 1000"),
        (("rasterize", US, "o.zarr", "--variable", "towns"), 2, "no variable 'towns'"),
        (("rasterize", US, "o.zarr", "--codec", "zip"), 2, "expected 'zstd-1'"),
        (("rasterize", US, "o.zarr", "--shards", "some"), 2, "expected auto, none or pixels"),
        (("rasterize", US, "missing/o.zarr"), 2, "make it first"),
        (("rasterize", US, "o.zarr", "--workers", 2, "--scheduler", "tcp://127.0.0.1:1"), 2, "not both"),
        (("rasterize", US, "o.zarr", "--overlap", "raise"), 1, "entries cover the pixel"),
        (("index", "nothing.iid"), 2, "No such file"),
        (("nix",), 2, "No such command"),
    ],
)
def test_errors_are_a_sentence_and_an_exit_code(tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    result = call(*words)
    assert result.exit_code == code, result.output
    assert said in result.output


def test_a_full_disk_is_a_sentence(tmp_path):
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from iid_dask.cli import main; sys.argv = ['iid', 'index', sys.argv[1], '-o', sys.argv[2]]; main()"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    target = tmp_path / "out.iid"
    target.write_bytes(b"old")
    child = subprocess.run(
        [sys.executable, "-c", code, US, str(target)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert child.returncode == 2, child.stderr
    assert "File too large" in child.stderr
    assert "Traceback" not in child.stderr
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.iid"]


def test_demo_writes_a_store_and_a_picture_and_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("demo")
    assert result.exit_code == 0, result.output
    for name in ("us.zarr", "us.png"):
        assert str((tmp_path / "iid-demo" / name).resolve()) in result.output
    np.testing.assert_array_equal(iid_dask.open_zarr("iid-demo/us.zarr").label.values, US_LAST)
    picture = Path("iid-demo/us.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert call("demo").exit_code == 0  # a second time, over the first
    program = DEMO.split("\n")
    assert len(program) == 5
    subprocess.run([sys.executable, "-W", "ignore", "-c", DEMO], check=True, capture_output=True, timeout=120)
    assert Path("us.png").read_bytes() == picture
    np.testing.assert_array_equal(iid_dask.open_zarr("us.zarr").label.values, US_LAST)


def test_the_readme_shows_the_demo_and_every_command():
    readme = (ROOT / "README.md").read_text()
    assert DEMO in readme
    for name in main.commands:
        assert f"iid {name}" in readme


def test_a_written_picture_holds_the_pixels(tmp_path):
    import zlib

    image = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    iid_dask.write_png(tmp_path / "p.png", image)
    data = (tmp_path / "p.png").read_bytes()
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    lines = np.frombuffer(zlib.decompress(data[start : start + length]), np.uint8).reshape(5, 22)
    np.testing.assert_array_equal(lines[:, 1:].reshape(image.shape), image)
    with pytest.raises(ValueError, match="expected"):
        iid_dask.write_png(tmp_path / "q.png", image[..., 0])
    assert not (tmp_path / "q.png").exists()
