"""Pictures of segmentations."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np

from iid_dask.format.target import atomic_write


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write a picture as PNG.

    Parameters
    ----------
    path
        A file there is replaced when the new one is whole.
    image : uint8 array, shape (rows, columns, 3)
        Red, green, blue, as the variable ``color`` holds them.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"an image of shape {image.shape} and dtype {image.dtype}, expected (rows, columns, 3), uint8")
    rows, cols = image.shape[:2]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Each line begins with its filter: 0, none.
    lines = np.zeros((rows, 1 + 3 * cols), np.uint8)
    lines[:, 1:] = image.reshape(rows, 3 * cols)
    with atomic_write(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.write(chunk(b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0)))
        file.write(chunk(b"IDAT", zlib.compress(lines.tobytes(), 6)))
        file.write(chunk(b"IEND", b""))
