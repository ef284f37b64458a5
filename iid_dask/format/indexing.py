"""An index for a file that has none."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iid_dask import kernels
from iid_dask.cutting import ranges
from iid_dask.format.layout import HEADER
from iid_dask.format.reader import open_records
from iid_dask.format.segments import index_bytes
from iid_dask.format.target import BUFFER, atomic_write


def add_index(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Copy a file and put an index behind it, so that opening needs no pass over the segments.

    Parameters
    ----------
    path
        Of an ``.iid`` file, or its URL; one that has an index is given a fresh one.
    out
        Path or URL to write to; default: over ``path``, atomically.
    storage_options : mapping, optional
        For the fsspec file systems of URLs.

    Returns
    -------
    int
        Bytes of the index.

    Raises
    ------
    IIDFormatError
        If the file is damaged; nothing was written.
    """
    with open_records(os.fspath(path), storage_options=storage_options) as reader:
        defects = reader.check()
        if defects:
            raise defects[0]
        source, header, lut = reader.source, reader.header, reader.lut
        crcs = {
            s: zlib.crc32(source.read(int(header[f"{s}_offset"]), int(header[f"{s}_length"])))
            for s in ("iids", "meta", "groups")
        }
        segment_crcs = np.zeros(len(lut), np.uint32)
        keys = np.flatnonzero(lut["segment_length"] > 0)
        offsets, lengths = (lut[name][keys].astype(np.int64) for name in ("segment_offset", "segment_length"))
        for start, stop in ranges(lengths, BUFFER):
            data, places = reader.read_bits(offsets[start:stop], lengths[start:stop])
            some = np.empty(stop - start, np.uint32)
            kernels.crc32s(data, places, places + lengths[start:stop], some)
            segment_crcs[keys[start:stop]] = some
        end = max(
            int(header[f"{s}_offset"]) + int(header[f"{s}_length"])
            for s in ("lut", "iids", "meta", "groups", "segments")
        )
        end = max(end, HEADER.itemsize)
        foreign = 0 if reader.index is not None else source.size - end
        if foreign and out is None:
            raise ValueError(
                f"{reader.name}: the last {foreign} bytes belong to no section and would be lost; write to another path"
            )
        index = index_bytes(end, header.tobytes() + lut.tobytes(), crcs, reader.columns, segment_crcs)
        with atomic_write(path if out is None else out, storage_options) as file:
            for at in range(0, end, BUFFER):
                file.write(source.read(at, min(BUFFER, end - at)))
            file.write(index)
    return len(index)
