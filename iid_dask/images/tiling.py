"""Tiles that suit what is stored."""

from __future__ import annotations

from iid_dask.format.layout import MAX_SIDE


def aligned_tile(blocks: tuple[int, int] | None, side: int) -> tuple[int, int]:
    """Return rows and columns of tiles that cut no block, if those are not far larger than they need be.

    A block that several tiles cut is decoded for each of them: a strip of 32,768 columns by 8 tiles of 4,096.

    Parameters
    ----------
    blocks : (rows, cols), optional
        Of an `Image`.
    side : int
        A tile has about as many pixels as a square of this side.

    Returns
    -------
    (rows, cols)
        Whole multiples of ``blocks``; the square itself if a block has more than four times its pixels, or is too
        wide for a tile's file.

    Examples
    --------
    >>> aligned_tile((16, 32_768), 4096)  # strips
    (512, 32768)
    >>> aligned_tile((1000, 1000), 4096)
    (4000, 4000)
    >>> aligned_tile((40_000, 60_000), 4096)
    (4096, 4096)
    """
    if blocks is None:
        return side, side
    height, width = blocks
    cols = max(1, side // width) * width
    rows = max(1, side * side // cols // height) * height
    if max(rows, cols) > MAX_SIDE or rows * cols > 4 * side * side:
        return side, side
    return rows, cols
