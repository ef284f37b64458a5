"""All pairs of masks that share pixels; against COCO's tools and the reference where they can finish."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import iid_dask
from benchmarks import data
from benchmarks.open import REFERENCE, told
from benchmarks.timing import Spent, Table, alternate, digits, held, spent

GRAPH = """
import sys, time
from iidfile import IIDFile
file = IIDFile(sys.argv[1])
file.fetch(everything=True)
begin = time.perf_counter()
file.overlap_graph()
print(time.perf_counter() - begin)
"""


def measure(sizes: data.Sizes, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Yield the tables."""
    del out
    yield many_table(data.sparse(folder, sizes.side, sizes.discs), sizes.discs, repeats)
    yield sample_table(repeats)


def many_table(path: Path, discs: int, repeats: int) -> Table:
    """Measure a file of many masks, opened afresh."""
    with iid_dask.open(path) as reader:
        pairs = len(reader.overlaps())  # kernels are compiled
    tasks: dict[str, Callable[[], Spent]] = {
        "f.overlaps(), one thread": lambda: spent(lambda: _open_and_ask(path)),
        "iid_dask.overlaps(path).compute(), threads": lambda: spent(lambda: iid_dask.overlaps(str(path)).compute()),
    }
    table = Table(f"{pairs} overlapping pairs among {discs} masks, opening counted", ["work", "s", "figure", "held"])
    for work, rounds in alternate(tasks, repeats).items():
        table.add(work, rounds.wall, *held(rounds.wall, most=3.0))
    return table


def _open_and_ask(path: Path) -> None:
    with iid_dask.open(path) as reader:
        reader.overlaps()


def sample_table(repeats: int) -> Table:
    """Compare on the sample, whose 3,155 masks nest and touch."""
    path = iid_dask.sample("us")
    with iid_dask.open(path) as reader:
        pairs = len(reader.overlaps())
    ours = "f.overlaps(), one thread"
    tasks: dict[str, Callable[[], Spent]] = {ours: lambda: spent(lambda: _open_and_ask(Path(path)))}
    if importlib.util.find_spec("pycocotools"):
        masks = _coco_masks(path)
        tasks["pycocotools.mask.iou, all pairs"] = lambda: spent(lambda: _coco(masks))
    python = os.environ.get(REFERENCE)
    if python:
        tasks["reference, overlap_graph()"] = lambda: told([python, "-c", GRAPH, path])
    found = alternate(tasks, repeats)
    table = Table(f"sample: {pairs} overlapping pairs among 3155 masks", ["work", "ms", "x ours"])
    for work, rounds in found.items():
        table.add(work, rounds.wall * 1e3, digits(rounds.over(found[ours]).wall))
    return table


def _coco_masks(path: str) -> list[dict[str, object]]:
    """Run-length encoded masks, of which encoding is not counted."""
    from pycocotools import mask as coco

    with iid_dask.open(path) as reader:
        found = []
        for entry in reader.values():
            canvas = np.zeros(reader.shape, np.uint8, order="F")
            canvas[entry.bbox.slices] = entry.mask()
            found.append(coco.encode(canvas))
    return found


def _coco(masks: list[dict[str, object]]) -> None:
    from pycocotools import mask as coco

    coco.iou(masks, masks, [0] * len(masks))
