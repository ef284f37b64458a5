"""How an array is cut for writing: chunks, shards, tiles; decided once, before anything is written. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

TILE = 4096
"""Rows and columns of a tile, about: one task's work, 64 MiB of uint32."""

TASK_PIXELS = 2**28
"""Pixels that one task writes, of several tiles: about a second's work."""

MANY_CHUNKS = 100_000
"""Chunks of an array from which on they are gathered into shards, to spare the file system."""


@dataclass(frozen=True)
class Layout:
    """The cut of one array; everything in elements, one number a dimension.

    Attributes
    ----------
    shape, chunk : tuple of int
    shard : tuple of int or None
        Stored together; a whole number of chunks.
    tile : tuple of int
        Written by one task, and by it alone: a whole number of shards, or of chunks where there are none.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    tile: tuple[int, ...]

    def __post_init__(self) -> None:
        unit = self.shard or self.chunk
        if any(t % u for t, u in zip(self.tile, unit, strict=True)):
            raise ValueError(f"a tile of {self.tile} would share a stored object of {unit} with another tile")
        if self.shard and any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(f"shards of {self.shard} are no whole number of chunks of {self.chunk}")

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    @property
    def chunk_grid(self) -> tuple[int, ...]:
        """Chunks along each dimension."""
        return tuple(-(-s // c) for s, c in zip(self.shape, self.chunk, strict=True))

    @property
    def tile_chunks(self) -> tuple[int, ...]:
        """Chunks of a tile along each dimension."""
        return tuple(t // c for t, c in zip(self.tile, self.chunk, strict=True))

    def record(self) -> Layout:
        """Return the cut of the array that holds three numbers a chunk: a tile's are one chunk of it."""
        tile = (*self.tile_chunks, 3)
        return Layout((*self.chunk_grid, 3), tile, None, tile)

    @property
    def tile_grid(self) -> tuple[int, ...]:
        """Tiles along each dimension."""
        return tuple(-(-s // t) for s, t in zip(self.shape, self.tile, strict=True))

    def tile_at(self, number: int) -> tuple[slice, ...]:
        """Place in the array of a tile by its number, row-major."""
        at = np.unravel_index(number, self.tile_grid)
        sides = zip(at, self.tile, self.shape, strict=True)
        return tuple(slice(int(i) * t, min((int(i) + 1) * t, s)) for i, t, s in sides)

    def tiles(self) -> Iterator[tuple[slice, ...]]:
        """Every tile's place in the array, row-major."""
        return map(self.tile_at, range(math.prod(self.tile_grid)))

    def chunks_of(self, tile: Sequence[slice]) -> tuple[slice, ...]:
        """Chunks that a tile holds, in the grid of chunks."""
        return tuple(slice(t.start // c, -(-t.stop // c)) for t, c in zip(tile, self.chunk, strict=True))

    def within(self, at: Sequence[int]) -> tuple[slice, ...]:
        """Place of a chunk in its tile, by its number in it; at the end of the array it reaches beyond."""
        return tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, self.chunk, strict=True))


def plan_layout(dims: Sequence[str], shape: Sequence[int], chunks: Any, shards: Any) -> Layout:
    """Cut an array with dimensions y and x among others.

    Parameters
    ----------
    dims, shape
        Of the array. Other dimensions are cut into single planes, but for "rgb", which stays whole.
    chunks : int or (int, int)
        Rows and columns of a chunk.
    shards : "auto", None, int or (int, int)
        Rows and columns of a shard; "auto": none unless there are very many chunks.

    Raises
    ------
    ValueError
        If shards are no whole number of chunks.
    """
    rows, cols = pair("chunks", chunks)
    sizes = dict(zip(dims, shape, strict=True))
    if shards is not None and not isinstance(shards, str):
        shard_rows, shard_cols = pair("shards", shards)
        shard_pair: tuple[int, int] | None = (shard_rows, shard_cols)
        if shard_rows % rows or shard_cols % cols:
            raise ValueError(f"shards = {shards!r}: expected a whole number of chunks of {(rows, cols)}")
    elif shards not in ("auto", None):
        raise ValueError(f"shards = {shards!r}: expected 'auto', None, or rows and columns of a shard")
    else:
        count = -(-sizes["y"] // rows) * -(-sizes["x"] // cols)
        many = shards == "auto" and count > MANY_CHUNKS
        shard_pair = (near_tile(rows), near_tile(cols)) if many else None
    # A chunk larger than the image would store padding.
    if shard_pair is None:
        rows, cols = min(rows, max(1, sizes["y"])), min(cols, max(1, sizes["x"]))
    unit = shard_pair or (rows, cols)
    tile_pair = tuple(near_tile(u) for u in unit)

    def along(y: int, x: int) -> tuple[int, ...]:
        other = {"y": max(1, y), "x": max(1, x)}
        return tuple(other.get(dim, max(1, size) if dim == "rgb" else 1) for dim, size in sizes.items())

    shard = None if shard_pair is None else along(*shard_pair)
    return Layout(tuple(shape), along(rows, cols), shard, along(*tile_pair))


def near_tile(unit: int) -> int:
    """Return the whole multiple of a chunk's or shard's side that is nearest below `TILE`, or the side itself."""
    return max(1, TILE // unit) * unit


def pair(option: str, value: Any) -> tuple[int, int]:
    """Return rows and columns of one integer or two; ValueError for anything else."""
    items = [value, value] if isinstance(value, int | np.integer) else value
    try:
        rows, cols = (index(item) for item in items)
    except (TypeError, ValueError):
        rows = cols = 0
    if rows < 1 or cols < 1 or isinstance(value, bool):
        raise ValueError(f"{option} = {value!r}: expected rows and columns, integers of 1 or more")
    return rows, cols
