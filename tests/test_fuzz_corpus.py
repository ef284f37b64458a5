"""Inputs of the fuzzer that once failed, and those that reached the most code: all are answered as is promised."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz_targets import CORPUS, TARGETS, Target, examine

import iid_dask

KEPT = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


@pytest.fixture(scope="module", autouse=True)
def ready() -> None:
    """Compile kernels and load modules: no part of an input's time and memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iid_dask.IIDWarning)
        for target in TARGETS.values():
            for sound in target.seeds():
                target.run(sound)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_input_is_a_value_or_an_error(path: Path) -> None:
    examine(TARGETS[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_sound_inputs_go_all_the_way(name: str) -> None:
    target = TARGETS[name]
    reached = [examine(target, data) for data in target.seeds()]
    assert set(reached) <= {"sound", "sound with index", "read"}
    assert reached[0].startswith("sound")


REACHED = {
    "file": {"open", "columns", "names", "unsound", "sound"},
    "index": {"open", "columns", "names", "masks", "unsound", "sound", "sound with index", "unsound with index"},
    "manifest": {"open", "columns", "sound"},
    "tables": {"open", "columns", "sound"},
    "job": {"open", "read"},
}


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_reach_every_stage(name: str) -> None:
    # Inputs that are all refused at the door would replay nothing.
    target = TARGETS[name]
    reached = {examine(target, path.read_bytes()) for path in KEPT if path.parent.name == name}
    assert reached >= REACHED[name]


def reads_slowly(data: bytes) -> str:
    start = time.process_time()
    while time.process_time() < start + 1.1:
        continue
    return "slow"


def takes_memory(data: bytes) -> str:
    return str(np.ones(2**29, np.uint8)[-1])


def warns(data: bytes) -> str:
    for number in range(50):
        warnings.warn(f"{number}", iid_dask.IIDWarning, stacklevel=2)
    return "warned"


def divides(data: bytes) -> str:
    return str(np.int64(1) / np.zeros(1))


@pytest.mark.parametrize(
    ("run", "said"), [(reads_slowly, " s$"), (takes_memory, "MiB"), (warns, "50 warnings"), (divides, "none of ours")]
)
def test_what_is_promised_is_measured(run: Callable[[bytes], str], said: str) -> None:
    # The control: targets that break each promise in turn.
    with pytest.raises(AssertionError, match=said):
        examine(Target(run, list), b"")
