"""Label images that are hard to cut into tiles, from formulas or seeds; numpy only, so the reference can run it."""

from __future__ import annotations

import numpy as np

TILE = (7, 11)
"""The odd tile that the pictures below are drawn around."""


# --- pictures ---------------------------------------------------------------------------------------------------


def spiral(height, width, gap=1):
    """A path of one pixel's width that winds inwards, ``gap`` pixels from itself, as a mask."""
    out = np.zeros((height, width), bool)
    top, left, bottom, right = 0, 0, height - 1, width - 1
    step, start = gap + 1, 0
    while top <= bottom and left <= right:
        out[top, start : right + 1] = True
        out[top : bottom + 1, right] = True
        if bottom - top >= step:
            out[bottom, left : right + 1] = True
        if right - left >= step:
            out[top + step : bottom + 1, left] = True
        start = left
        top, left, bottom, right = top + step, left + step, bottom - step, right - step
    return out


def spirals(height, width):
    """Two spirals beside each other, the second's labels lower, and what is between them in a third."""
    out = np.full((height, width), 500, np.uint16)
    half = width // 2
    out[:, :half][spiral(height, half)] = 90
    out[:, half:][spiral(height, width - half, 3)[::-1, ::-1]] = 12
    out[:, half:][~spiral(height, width - half, 1)] = 0
    return out


def combs(height, width):
    """Two combs whose teeth interlock, their backs in the first and last row; two more that lie down inside."""
    i, j = np.ogrid[:height, :width]
    out = np.zeros((height, width), np.uint8)
    out[np.broadcast_to((j % 4 == 0) & (i < height - 2), out.shape)] = 7
    out[np.broadcast_to((j % 4 == 2) & (i > 1), out.shape)] = 3
    out[0], out[-1] = 7, 3
    middle = out[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4]
    i, j = np.ogrid[: middle.shape[0], : middle.shape[1]]
    middle[:] = np.where(i % 2 == 0, 1, np.where(j == 0, 1, 0))
    return out


def rings(height, width):
    """Rings around whole tiles, one in another, each with its own label; a pixel in the innermost tile."""
    rows, cols = TILE
    i, j = np.ogrid[:height, :width]
    out = np.zeros((height, width), np.int32)
    for n, (row, col) in enumerate([(0, 0), (rows, cols), (2 * rows, cols), (2 * rows, 3 * cols)]):
        for reach in (0, 1, 3):
            # How far a pixel lies outside the tile, negative inside it.
            beyond = np.maximum(np.maximum(row - i, i - row - rows + 1), np.maximum(col - j, j - col - cols + 1))
            out[beyond == reach] = 1000 * (n + 1) - reach
        out[(i == row + rows // 2) & (j == col + cols // 2)] = 5
    return out


def corners(height, width):
    """Contacts across the corners of tiles: both diagonals, of one label and of two that must not join."""
    rows, cols = TILE
    out = np.zeros((height, width), np.uint16)
    for n, row in enumerate(range(rows, height, rows)):
        for m, col in enumerate(range(cols, width, cols)):
            kind, label = (n + m) % 4, 10 * (n * 64 + m) + 1
            if kind in (0, 2):
                out[row - 1, col - 1], out[row, col] = label, label + (kind == 2)
            if kind in (1, 2, 3):
                out[row - 1, col], out[row, col - 1] = label + 2, label + 2 + (kind == 3)
    return out


def borders(height, width):
    """Objects one pixel wide along the image's border and along both sides of tile borders."""
    rows, cols = TILE
    out = np.zeros((height, width), np.int16)
    out[0, ::2], out[-1, : width // 2], out[:, 0], out[1:, -1] = 9, 8, 7, 6
    for row in range(rows, height, 2 * rows):
        out[row - 1, 3 : width - 3] = 20
        out[row, 5 : width - 8] = 21
    for col in range(cols, width, 2 * cols):
        out[3 : height - 2, col] = 30
        out[4 : height - 5, col - 1] = 31
    return out


def apart(height, width):
    """One label in pieces far apart, the first in the last tile of the first row; another between them."""
    out = np.zeros((height, width), np.uint32)
    out[0, width - 2 :] = 2**32 - 1
    out[height - 3 :, :2] = 2**32 - 1
    out[height // 2, width // 2] = 2**32 - 1
    out[height - 1, width - 1] = 2**32 - 1
    out[1:3, width // 3 : width // 2] = 44
    out[height - 2, width // 3] = 44
    return out


def cells(height, width, n=40, seed=0):
    """Full coverage: every pixel has the label of the nearest of n seeds; labels are not in raster order."""
    rng = np.random.RandomState(seed)
    seeds = np.stack([rng.randint(0, height, n), rng.randint(0, width, n)], axis=1)
    i, j = np.mgrid[:height, :width]
    distance = (i[..., None] - seeds[:, 0]) ** 2 + (j[..., None] - seeds[:, 1]) ** 2
    return (rng.permutation(n) + 1).astype(np.uint16)[distance.argmin(axis=2)]


def nothing(height, width):
    """No labels."""
    return np.zeros((height, width), np.uint8)


def own(height, width):
    """Every pixel its own label, from right to left."""
    return np.arange(1, height * width + 1, dtype=np.uint32).reshape(height, width)[:, ::-1]


def huge(height, width, seed=3):
    """Blobs with labels around 2^63 and up to 2^64 - 1, whose order as int64 or float64 would be another."""
    labels = np.array([0, 2**64 - 1, 1, 2**63, 2**63 - 1, 2**53 + 1, 2**53, 2**64 - 2, 2**32], np.uint64)
    coarse = np.random.RandomState(seed).randint(0, len(labels), (height // 5 + 1, width // 6 + 1))
    return labels[np.kron(coarse, np.ones((5, 6), np.int64))[:height, :width]]


def noise(height, width, labels=3, seed=5, dtype=np.uint8):
    """Each pixel one of a few labels or background."""
    return np.random.RandomState(seed).randint(0, labels + 1, (height, width)).astype(dtype)


def checkers(height, width):
    """A checkerboard: one component by its diagonals, its background another label's."""
    i, j = np.ogrid[:height, :width]
    return np.where((i + j) % 2 == 0, 2, 1).astype(np.int8)


def discs(height, width, n=60, seed=1, dtype=np.uint32):
    """Discs of several sizes, later ones on top, labels at random."""
    rng = np.random.RandomState(seed)
    out = np.zeros((height, width), dtype)
    labels = rng.permutation(20 * n)[:n] + 1
    for label in labels:
        row, col, radius = rng.randint(0, height), rng.randint(0, width), rng.randint(1, max(height, width) // 8 + 2)
        top, left = max(row - radius, 0), max(col - radius, 0)
        part = out[top : row + radius + 1, left : col + radius + 1]
        i, j = np.ogrid[: part.shape[0], : part.shape[1]]
        part[(i + top - row) ** 2 + (j + left - col) ** 2 <= radius**2] = min(int(label), np.iinfo(dtype).max)
    return out


GOLDEN = {
    "spirals": lambda: spirals(130, 150),
    "combs": lambda: combs(66, 75),
    "rings": lambda: rings(40, 60),
    "corners": lambda: corners(50, 71),
    "borders": lambda: borders(45, 68),
    "apart": lambda: apart(66, 70),
    "cells": lambda: cells(130, 97),
    "nothing": lambda: nothing(20, 30),
    "huge": lambda: huge(41, 57),
    "noise": lambda: noise(30, 44),
    "checkers": lambda: checkers(20, 26),
    "discs": lambda: discs(129, 140),
    "row": lambda: noise(1, 90, dtype=np.int64),
    "column": lambda: noise(90, 1, seed=6),
    "pixel": lambda: np.ones((1, 1), np.uint64),
}
"""Images with a whole file of the reference beside them."""

GOLDEN_SUMS = {
    "own": lambda: own(260, 260),
    "many": lambda: discs(1100, 1300, n=900, seed=2),
}
"""Larger images, of which the sums of the reference's files are kept."""


# --- masks with names -------------------------------------------------------------------------------------------


def masks(height=60, width=80, seed=8):
    """Named masks that overlap: list of (domain, address, whole mask as bool (height, width), group or None).

    Not in the canonical order; some are empty, some share their first pixel, one lies in another.
    """
    rng = np.random.RandomState(seed)
    i, j = np.ogrid[:height, :width]
    out = []
    for n in range(14):
        row, col, radius = rng.randint(0, height), rng.randint(0, width), rng.randint(2, 25)
        mask = np.abs(i - row) + np.abs(j - col) <= radius
        out.append(([b"", b"cell", b"\xff\x00"][n % 3], b"%d" % rng.randint(1000), mask, [None, "b", "a"][n % 3]))
    out.append((b"spiral", b"", spiral(height, width, 2), None))
    whole = np.ones((height, width), bool)
    for domain, address in ((b"z", b"1"), (b"a", b"2"), (b"a", b"10"), (b"", b"\xff")):
        out.append((domain, address, whole, "whole"))
    nobody = np.zeros((height, width), bool)
    out += [(b"none", b"2", nobody, "b"), (b"none", b"1", nobody, None), (b"", b"", nobody, "empty")]
    last = nobody.copy()
    last[-1, -1] = last[0, -1] = True
    out.append((b"last", b"pixel", last, "a"))
    return [out[k] for k in rng.permutation(len(out))]


def canonical_order(named):
    """Places of named masks: by first pixel in raster order, then (domain, address), empty ones last."""

    def rank(k):
        domain, address, mask, _ = named[k]
        first = int(mask.argmax()) if mask.any() else mask.size
        return first, domain, address

    return sorted(range(len(named)), key=rank)


def box_of(mask):
    """Tight box of a mask, (0, 0, 0, 0) if it has no pixel."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1) if len(rows) else (0, 0, 0, 0)


# --- at random --------------------------------------------------------------------------------------------------

DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "?", ">u2", ">u4", ">u8", ">i2", ">i4", ">i8")


def random_image(seed, most=40):
    """A small image of a random kind, dtype, byte order and memory layout."""
    rng = np.random.RandomState(seed % 2**32)
    height, width = rng.randint(1, most), rng.randint(1, most)
    kinds = (spirals, combs, rings, corners, borders, apart, nothing, own, huge, noise, checkers)
    kind = rng.randint(len(kinds) + 4)
    if kind < len(kinds):
        image = kinds[kind](max(height, 8), max(width, 8))[:height, :width]
    elif kind < len(kinds) + 2:
        image = cells(height, width, rng.randint(1, 12), seed % 2**32)
    else:
        image = discs(height, width, rng.randint(1, 20), seed % 2**32)
    dtype = np.dtype(DTYPES[rng.randint(len(DTYPES))])
    if dtype.kind != "b" and rng.randint(3):
        image = image.astype(np.uint64) % np.uint64(np.iinfo(dtype).max) if image.max() > np.iinfo(dtype).max else image
    elif dtype.kind != "b":
        dtype = image.dtype
    return laid_out(image.astype(dtype), rng.randint(5))


def laid_out(image, layout):
    """The same values in memory as they are, by columns, backwards, as every other pixel, or read-only."""
    if layout == 1:
        return np.asfortranarray(image)
    if layout == 2:
        return np.ascontiguousarray(image[::-1, ::-1])[::-1, ::-1]
    if layout == 3:
        wide = np.zeros((image.shape[0] * 2, image.shape[1] * 3), image.dtype)
        wide[::2, 1::3] = image
        return wide[::2, 1::3]
    image = np.ascontiguousarray(image)
    image.flags.writeable = layout != 4
    return image
