"""Chunks into a store: each encoded while it is still in a cache, or gathered into tiles where shards hold many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numcodecs
import numpy as np
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from iid_dask.export.layout import Layout
from iid_dask.export.plan import PUT_BYTES
from iid_dask.export.sources import Chunk
from iid_dask.export.template import compressors


def store_chunks(array: Any, tile: Sequence[slice], layout: Layout, codec: str, chunks: Iterable[Chunk]) -> None:
    """Write the chunks of a tile of an array without shards.

    Encoded here, and not by a pipeline of zarr, which asks for whole tiles, and copies each chunk out of them again.
    A store sees every object whole or not at all. Encoded chunks are stored as soon as there are some MiB of them: all
    of a tile would be the most memory that its task takes.

    Parameters
    ----------
    array : zarr.Array
        With the codecs "bytes", little-endian, and ``codec``, and no others.
    tile
        Its place in the array.
    layout
    codec
        As in `compressors`.
    chunks
        Those that are not all background.
    """
    encode = _encoder(codec)
    from_bytes = default_buffer_prototype().buffer.from_bytes
    corner = [part.start for part in layout.chunks_of(tile)]
    objects, held = [], 0
    for at, values in chunks:
        key = array.metadata.encode_chunk_key(tuple(c + i for c, i in zip(corner, at, strict=True)))
        encoded = encode(_whole(values, layout.chunk))
        objects.append((f"{array.store_path.path}/{key}", from_bytes(encoded)))
        held += len(encoded)
        if held >= PUT_BYTES:
            _put(array.store, objects)
            objects, held = [], 0
    _put(array.store, objects)


def _put(store: Any, objects: Sequence[tuple[str, Any]]) -> None:
    """Write objects to a store: all at once to one that answers slowly, in this thread to one that waits for nobody."""
    if hasattr(store, "set_sync"):
        # Threads that hand small files to each other take a tenth of the whole export.
        for key, buffer in objects:
            store.set_sync(key, buffer)
        return

    async def write() -> None:
        await asyncio.gather(*(store.set(key, buffer) for key, buffer in objects))

    sync(write())


def _encoder(codec: str) -> Callable[[np.ndarray], bytes]:
    zstd = compressors(codec)
    return np.ndarray.tobytes if zstd is None else numcodecs.Zstd(level=zstd.level).encode


def _whole(values: np.ndarray, chunk: tuple[int, ...]) -> np.ndarray:
    """Return a chunk as it is encoded: contiguous, little-endian, filled up with background."""
    dtype = values.dtype.newbyteorder("<")
    if values.shape == chunk:
        return np.ascontiguousarray(values, dtype)
    whole = np.zeros(chunk, dtype)
    whole[tuple(map(slice, values.shape))] = values
    return whole


def joined(tile: Sequence[slice], layout: Layout, dtype: Any, chunks: Iterable[Chunk]) -> np.ndarray:
    """Return a tile of its chunks, background where there is none."""
    values = np.zeros([part.stop - part.start for part in tile], dtype)
    for at, part in chunks:
        values[layout.within(at)] = part
    return values
