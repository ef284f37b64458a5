"""Which tile owns which pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iid_dask.bbox import BBox
from iid_dask.cutting import tiles


def tile_name(origin: tuple[int, int]) -> str:
    """Return the path, in a mosaic's folder, of the tile that begins at a pixel."""
    return f"tiles/r{origin[0]:07d}_c{origin[1]:07d}.iid"


@dataclass(frozen=True)
class Tile:
    """One tile of a mosaic.

    Attributes
    ----------
    box : BBox
        Pixels of the mosaic that the tile's file may hold; its corner is the file's pixel (0, 0).
    core : BBox
        Those that the tile owns; no two tiles of a mosaic own one pixel.
    """

    box: BBox
    core: BBox

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the file's first pixel in the mosaic."""
        return self.box.min_row, self.box.min_col

    @property
    def name(self) -> str:
        """Path of the tile's file in the mosaic's folder."""
        return tile_name(self.origin)


@dataclass(frozen=True)
class Grid:
    """Cores of one size, side by side, each with a halo around it that ends at the image's border.

    Attributes
    ----------
    shape : (rows, columns)
        Of the image, pixels.
    tile : (rows, columns)
        Of a core; those at the image's ends are smaller.
    halo : int
        Pixels that a tile reaches beyond its core on every side.

    Examples
    --------
    >>> [tuple(tile.box) for tile in Grid((9, 12), (5, 12), halo=1)]
    [(0, 0, 6, 12), (4, 0, 9, 12)]
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    halo: int = 0

    def __len__(self) -> int:
        (rows, cols), (height, width) = self.shape, self.tile
        return -(-rows // height) * -(-cols // width)

    def __iter__(self) -> Iterator[Tile]:
        for core in tiles(BBox(0, 0, *self.shape), self.tile):
            yield self._around(core)

    def _around(self, core: BBox) -> Tile:
        grown = BBox(
            core.min_row - self.halo, core.min_col - self.halo, core.max_row + self.halo, core.max_col + self.halo
        )
        return Tile(grown.intersection(BBox(0, 0, *self.shape)), core)

    def find(self, origin: tuple[int, int]) -> Tile | None:
        """Return the tile whose file begins at a pixel of the mosaic, or None."""
        corner = []
        for first, size, side in zip(origin, self.tile, self.shape, strict=True):
            # Only the first tile has no halo above or left of its core.
            start = 0 if first == 0 else first + self.halo
            if first < 0 or start % size or not 0 <= start < max(side, 1):
                return None
            corner.append(start)
        row, col = corner
        end = min(row + self.tile[0], self.shape[0]), min(col + self.tile[1], self.shape[1])
        found = self._around(BBox(row, col, *end))
        return found if found.origin == tuple(origin) else None
