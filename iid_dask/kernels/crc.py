"""Checksums of bytes, as zlib's crc32."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined, jit


def _crc_tables():
    """Tables of the crc32 that zlib and PNG use (reflected polynomial 0xEDB88320), for eight bytes a step.

    After M. E. Kounavis and F. L. Berry, "Novel table lookup-based algorithms for high-performance CRC generation"
    (2008): table t holds what a byte does that t more bytes follow.
    """
    tables = np.zeros((8, 256), np.uint64)
    for i in range(256):
        value = i
        for _ in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        tables[0, i] = value
    for t in range(1, 8):
        before = tables[t - 1]
        tables[t] = (before >> np.uint64(8)) ^ tables[0][before & np.uint64(0xFF)]
    return tables


CRC_TABLES = _crc_tables()


@inlined
def crc32_of(data, at, end):
    """Return the crc32 of ``data[at:end]`` as a uint64."""
    low, byte = np.uint64(0xFFFFFFFF), np.uint64(0xFF)
    crc = low
    while at + 8 <= end:
        word = np.uint64(0)
        for i in range(8):
            word |= np.uint64(data[np.uint64(at + i)]) << np.uint64(8 * i)
        word ^= crc
        crc = np.uint64(0)
        for i in range(8):
            crc ^= CRC_TABLES[7 - i, (word >> np.uint64(8 * i)) & byte]
        at += 8
    while at < end:
        crc = CRC_TABLES[0, (crc ^ np.uint64(data[np.uint64(at)])) & byte] ^ (crc >> np.uint64(8))
        at += 1
    return crc ^ low


@jit
def crc32s(data, starts, stops, out):
    """Checksums of pieces of bytes.

    Parameters
    ----------
    data : uint8 array
    starts, stops : int64 arrays, shape (n,)
    out : uint32 array, shape (n,)
        Filled in.
    """
    for p in range(len(starts)):
        out[p] = crc32_of(data, starts[p], stops[p])
