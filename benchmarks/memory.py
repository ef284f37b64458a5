"""Memory of jobs against their plans, 48 cases, and an image of 65,535 x 65,535 on two workers of 512 MiB."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.timing import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from planned import Case, Measured, measured, run

LIMIT = 512 * 2**20
"""Bytes of a small worker."""

SIDES = (4096, 16_384, 65_535)
"""Rows and columns of sparse images, whose workers take the same memory."""

OPTIONS: dict[str, Sequence[dict[str, Any]]] = {
    "to_zarr": (
        {},
        {"chunks": 256},
        {"variables": ["mask"], "codec": "none"},
        {"variables": ["depth"]},
        {"variables": ["color"], "color": True},
        {"overlap": "smallest"},
        {"labels": "address"},
        {"stride": 2, "reduce": "any"},
        {"shards": 4096},
    ),
    "graph to_zarr": ({}, {"chunks": 2048}),
    "mosaic to_zarr": ({},),
    "to_iid": ({}, {"tile": 1024}, {"tile": 2048, "connected": True}),
    "to_mosaic": ({"tile": 1024},),
    "finish": ({},),
    "consolidate": ({},),
    "measure": ({}, {"tile": 1024}, {"properties": ["mean", "perimeter", "eccentricity"]}),
    "overlaps": ({},),
}
"""Job -> its options; with images of cells on one thread and on two, and with noise or rings."""


def cases(side: int) -> Iterator[Case]:
    """All cases; noise, rings and dust on images that fit a tile."""
    for job, options in OPTIONS.items():
        for some, threads in product(options, (1, 2)):
            yield Case(job, "cells", side, some, threads)
    for job in ("to_zarr", "mosaic to_zarr", "to_iid", "finish", "consolidate", "measure", "overlaps"):
        yield Case(job, "noise", side // 8, {})
    for job in ("to_iid", "overlaps"):
        yield Case(job, "rings", side // 4, {})
    for job in ("to_zarr", "consolidate", "measure"):
        yield Case(job, "dust", side // 8, {})


def measure(sizes: Any, folder: Path, out: Path, repeats: int) -> Iterator[Table]:
    """Run all cases; ``repeats`` is not used, as peaks of fresh processes hardly differ."""
    side = sizes.dense_side
    yield _against_plans(folder, side)
    yield _flat(folder, [some for some in SIDES if some <= sizes.memory_side])
    yield _opening(folder, (side // 16, side // 8, side // 4))


def _against_plans(folder: Path, side: int) -> Table:
    table = Table(
        "Most memory of a process, MiB", ("case", "measured", "planned, usually", "planned, at most", "share")
    )
    for case in cases(side):
        found = measured(case, folder)
        table.add(str(case), *_mib(found), f"{max(found.peaks) / found.usual:.2f} … {found.share:.2f}")
    return table


def _flat(folder: Path, sides: Sequence[int]) -> Table:
    title = "to_zarr of 10,000 masks on two workers of 512 MiB"
    table = Table(title, ("side", "most memory of a worker, MiB", "planned, MiB", "paused", "spilled", "restarted"))
    for side in sides:
        found = measured(Case("to_zarr", "sparse", side, {}, workers=2, memory_limit=LIMIT), folder)
        table.add(f"{side:,}", _mib(found)[0], _mib(found)[2], *found.events.values())
    return table


def _opening(folder: Path, sides: Sequence[int]) -> Table:
    table = Table("An open file, all columns in memory", ("entries", "bytes an entry"))
    for side in sides:
        case = Case("to_zarr", "noise", side, {})
        run("prepare", case, folder)
        table.add(f"{side * side:,}", float(run("open", case, folder)))
    return table


def _mib(found: Measured) -> tuple[str, str, str]:
    mib = [f"{n / 2**20:,.0f}" for n in (max(found.peaks), found.usual, found.planned)]
    return mib[0], mib[1], mib[2]
