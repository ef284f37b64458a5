"""Label images to assemble, made once from a seed or from the project's own and kept in a folder."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import iid_dask
from benchmarks import data
from iid_dask import BBox, raster
from iid_dask.views import View, Window

CHUNK = 2048
SECTOR = 1450, 2048
SMALL_SECTOR = 256, 256
SPREAD = 2_000
"""Pixels, one standard deviation of a cluster of discs."""
CLUSTER = 1_000
"""Discs of a cluster."""

Read = Callable[[BBox], np.ndarray]


# --- nuclei -----------------------------------------------------------------------------------------------------


@cache
def _patch() -> np.ndarray:
    """512 x 512 pixels of nuclei, 1 … n."""
    labels = np.load(Path(__file__).parents[1] / "tests/data/nuclei.labels.npz")["labels"]
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint32)


def nuclei(shape: tuple[int, int]) -> Read:
    """Return what reads windows of an image that repeats the nuclei of `tests/data` with ids that grow.

    Examples
    --------
    >>> nuclei((600, 600))(BBox(0, 0, 600, 600)).max() == 4 * nuclei((512, 512))(BBox(0, 0, 512, 512)).max()
    True
    """
    patch, across = _patch(), -(-shape[1] // len(_patch()))
    step, side = patch.max(), np.uint32(len(patch))

    def read(box: BBox) -> np.ndarray:
        rows = np.arange(box.min_row, box.max_row, dtype=np.uint32)
        cols = np.arange(box.min_col, box.max_col, dtype=np.uint32)
        out = patch[rows % side].take(cols % side, axis=1)
        before = (rows // side * (step * np.uint32(across)))[:, None] + cols // side * step
        return np.where(out > 0, out + before, out)

    return read


def nuclei_store(folder: Path, shape: tuple[int, int]) -> Path:
    """Return a Zarr array of nuclei."""
    return store(folder / f"nuclei-{shape[0]}-{shape[1]}.zarr", shape, nuclei(shape))


def nuclei_sectors(folder: Path, grid: tuple[int, int], sector: tuple[int, int]) -> str:
    """Return the pattern of deflated TIFF files that nuclei are cut into."""
    import tifffile

    shape = grid[0] * sector[0], grid[1] * sector[1]
    here = folder / f"sectors-{shape[0]}-{shape[1]}-{sector[0]}"
    pattern = "s_{row:03d}_{col:03d}.tif"
    read = nuclei(shape)

    def write(target: Path, place: tuple[int, int]) -> None:
        row, col = place[0] * sector[0], place[1] * sector[1]
        block = read(BBox(row, col, row + sector[0], col + sector[1]))
        tifffile.imwrite(target / pattern.format(row=place[0], col=place[1]), block, compression="zlib", metadata=None)

    _once(here, lambda target: _each(lambda place: write(target, place), itertools.product(*map(range, grid))))
    return str(here / pattern)


# --- from files of masks ----------------------------------------------------------------------------------------


def file_store(path: Path) -> Path:
    """Return a Zarr array of a file's label image."""
    with iid_dask.open(path) as reader:
        view = View(reader, reader.shape)
        return store(path.with_suffix(".labels.zarr"), reader.shape, lambda box: raster.label(view, Window(box)))


def store(path: Path, shape: tuple[int, int], read: Read) -> Path:
    """Return a Zarr array of uint32, chunks of `CHUNK` squared, zstd."""

    def make(target: Path) -> None:
        array = zarr.create_array(
            target,
            shape=shape,
            chunks=(min(CHUNK, shape[0]), min(CHUNK, shape[1])),
            dtype=np.uint32,
            compressors=zarr.codecs.ZstdCodec(level=1),
            fill_value=0,
        )

        def write(box: BBox) -> None:
            array[box.slices] = read(box)

        _each(write, boxes(shape, CHUNK))

    return _once(path, make)


def boxes(shape: tuple[int, int], side: int) -> list[BBox]:
    """Return squares that cover an image."""
    corners = itertools.product(range(0, shape[0], side), range(0, shape[1], side))
    return [BBox(row, col, min(row + side, shape[0]), min(col + side, shape[1])) for row, col in corners]


def _each(work: Callable[[Any], Any], items: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, items))


def _once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a folder whole, or not at all."""
    if not path.exists():
        print(f"making {path}", flush=True)
        temporary = path.with_name(f"{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        make(temporary)
        temporary.rename(path)
    return path


# --- discs far apart --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Discs:
    """Discs in clusters on an image that is empty elsewhere.

    Attributes
    ----------
    side : int
        Rows and columns of the image.
    places : int64 array, shape (n, 2)
        Row and column of each one's first pixel.
    sizes : int64 array, shape (n,)
        Pixels across.
    """

    side: int
    places: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, side: int, count: int) -> Discs:
        """Choose places from the seed."""
        rng = np.random.default_rng(data.SEED)
        middles = rng.random((max(1, count // CLUSTER), 2)) * side
        sizes = rng.choice(data.DIAMETERS, count)
        places = middles[np.arange(count) % len(middles)] + rng.normal(0, SPREAD, (count, 2))
        return cls(side, np.clip(places, 0, side - sizes[:, None]).astype(np.int64), sizes)

    @property
    def farthest(self) -> int:
        """Number of the disc that is farthest from the first pixel."""
        return int(self.places.sum(axis=1).argmax())

    def window(self, number: int, side: int) -> BBox:
        """Return a square amid the cluster of a disc."""
        clusters = max(1, len(self.places) // CLUSTER)
        middle = np.median(self.places[number % clusters :: clusters], axis=0)
        row, col = np.clip(middle - side // 2, 0, self.side - side).astype(np.int64).tolist()
        return BBox(row, col, row + side, col + side)

    def masks(self, box: BBox, shapes: dict[int, np.ndarray]) -> list[tuple[bytes, bytes, BBox, np.ndarray]]:
        """Return what a tile holds, in its own pixels, as `iid_dask.write_tile` takes it."""
        low, high = np.array(tuple(box)).reshape(2, 2)
        ends = self.places + self.sizes[:, None]
        found = np.flatnonzero(np.all((self.places < high) & (ends > low), axis=1))
        items = []
        for number in found.tolist():
            start, stop = np.maximum(self.places[number], low), np.minimum(ends[number], high)
            (top, left), (bottom, right) = (start - self.places[number]).tolist(), (stop - self.places[number]).tolist()
            mask = shapes[int(self.sizes[number])][top:bottom, left:right]
            items.append((b"disc", b"%d" % number, BBox(*(start - low).tolist(), *(stop - low).tolist()), mask))
        return items

    def shown(self, box: BBox) -> np.ndarray:
        """Return which pixels of a window any disc covers."""
        out = np.zeros(box.shape, bool)
        for _, _, place, mask in self.masks(box, disc_shapes()):
            out[place.slices] |= mask
        return out


def disc_shapes() -> dict[int, np.ndarray]:
    """Return the mask of each size of disc."""
    return {size: data.disc(size) for size in data.DIAMETERS}
