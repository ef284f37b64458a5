"""Files to measure with, made once from a seed and kept in a folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import iid_dask
from iid_dask import BBox, Region

SEED = 20_261_121
DIAMETERS = range(16, 65)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    side, discs : int
        Rows and columns of the sparse image, and its masks.
    dense_side, cells : int
        Of the dense image, and about how many Voronoi cells cover it.
    zarr_side : int
        Rows and columns of the part that is exported.
    memory_side : int
        Rows and columns of the image whose export's memory is measured, with as many discs.
    names, points : int
        Entries among which names are looked for, and pixels asked for at once.
    joined : (rows, columns)
        Label tiles of 1450 x 2048 pixels that are joined.
    mosaic : (rows, columns)
        Pixels of the mosaic of nuclei.
    huge_side, huge_discs : int
        Rows and columns of the mosaic beyond a file's limits, and its masks.
    sectors : (rows, columns)
        Small files that are assembled in one job.
    """

    side: int
    discs: int
    dense_side: int
    cells: int
    zarr_side: int
    memory_side: int
    names: int
    points: int
    joined: tuple[int, int]
    mosaic: tuple[int, int]
    huge_side: int
    huge_discs: int
    sectors: tuple[int, int]


FULL = Sizes(
    side=50_000,
    discs=200_000,
    dense_side=8_192,
    cells=20_000,
    zarr_side=32_768,
    memory_side=65_535,
    names=1_000_000,
    points=1_000_000,
    joined=(10, 10),
    mosaic=(40_000, 60_000),
    huge_side=300_000,
    huge_discs=100_000,
    sectors=(150, 200),
)
SMALL = Sizes(
    side=9_000,
    discs=6_500,
    dense_side=1_024,
    cells=300,
    zarr_side=8_192,
    memory_side=12_000,
    names=20_000,
    points=20_000,
    joined=(2, 3),
    mosaic=(3_000, 4_000),
    huge_side=70_000,
    huge_discs=2_000,
    sectors=(8, 10),
)


def default_folder() -> Path:
    """Return the folder in the system's temporary one."""
    return Path(tempfile.gettempdir()) / "iid_dask-benchmarks"


def sparse(folder: Path, side: int, discs: int, *, index: bool = True) -> Path:
    """Return a file of discs of 16 to 64 pixels at random places, in random order.

    The seed sets places as fractions of the image: another ``side`` has the same masks, moved.
    """
    plain, indexed = (folder / f"sparse-{side}-{discs}{kind}.iid" for kind in ("-plain", ""))
    if not plain.exists():
        print(f"making {plain}", flush=True)
        shapes = {size: np.packbits(disc(size)).tobytes() for size in DIAMETERS}
        rng = np.random.default_rng(SEED)
        sizes = rng.choice(DIAMETERS, discs)
        places = (rng.random((discs, 2)) * (side - sizes[:, None])).astype(np.int64)
        with iid_dask.IIDWriter(plain, metadata=_image(side), index=False) as writer:
            for number, (size, (row, col)) in enumerate(zip(sizes.tolist(), places.tolist(), strict=True)):
                box = BBox(row, col, row + size, col + size)
                writer.add(b"disc", b"%d" % number, box, regions=[Region(box, shapes[size])])
    if index and not indexed.exists():
        temporary = indexed.with_suffix(".tmp")
        shutil.copyfile(plain, temporary)
        iid_dask.add_index(temporary)
        temporary.replace(indexed)
    return indexed if index else plain


def named(folder: Path, entries: int) -> Path:
    """Return a file of entries that have names and no pixels."""
    path = folder / f"named-{entries}.iid"
    if not path.exists():
        print(f"making {path}", flush=True)
        with iid_dask.IIDWriter(path) as writer:
            for number in range(entries):
                writer.add(b"cells", b"cell-%d" % number, BBox(0, 0, 0, 0), regions=[])
    return path


def dense(folder: Path, side: int, cells: int) -> Path:
    """Return a file of Voronoi cells that cover the whole image, one entry each."""
    path = folder / f"dense-{side}-{cells}.iid"
    if not path.exists():
        print(f"making {path}", flush=True)
        with iid_dask.IIDWriter(path, metadata=_image(side)) as writer:
            for number, box, mask in _voronoi(side, cells):
                writer.add(b"cell", b"%d" % number, box, mask)
    return path


def _image(side: int) -> dict[str, dict[str, int]]:
    return {"image": {"height": side, "width": side}}


def disc(size: int) -> np.ndarray:
    """Return the mask of a disc, so many pixels across."""
    offset = np.arange(size) - (size - 1) / 2
    return offset[:, None] ** 2 + offset**2 <= (size / 2) ** 2


def _voronoi(side: int, cells: int) -> Iterator[tuple[int, BBox, np.ndarray]]:
    """Yield number, box and mask of each cell around one random seed a square of a grid.

    With a seed in every square, the one nearest to a pixel lies at most two squares away.
    """
    per_side = round(cells**0.5)
    square = side / per_side
    seeds = (np.indices((per_side, per_side)) + np.random.default_rng(SEED).random((2, per_side, per_side))) * square
    labels = np.empty((side, side), np.int32)
    at = (np.arange(side) / square).astype(np.int64)
    cols = np.arange(side, dtype=np.float32)
    for row in range(side):
        nearest = np.full(side, np.inf, np.float32)
        for i in range(max(0, at[row] - 2), min(per_side, at[row] + 3)):
            for step in range(-2, 3):
                j = np.clip(at + step, 0, per_side - 1)
                away = (seeds[0, i, j] - row) ** 2 + (seeds[1, i, j] - cols) ** 2
                closer = away < nearest
                nearest[closer] = away[closer]
                labels[row, closer] = (i * per_side + j)[closer]
    reach = int(2 * square) + 2
    for number in range(per_side**2):
        top, left = (max(0, int(seeds[axis].flat[number]) - reach) for axis in (0, 1))
        mask = labels[top : top + 2 * reach, left : left + 2 * reach] == number
        rows, cols_of = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            tight = mask[rows[0] : rows[-1] + 1, cols_of[0] : cols_of[-1] + 1]
            origin = top + int(rows[0]), left + int(cols_of[0])
            yield number, BBox(*origin, origin[0] + tight.shape[0], origin[1] + tight.shape[1]), tight
