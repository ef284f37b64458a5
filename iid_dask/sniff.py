"""Is this an ``.iid`` file? The format has no magic number, so the header's numbers must add up."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from iid_dask.format.layout import HEADER, INDEX_MAGIC, LUT, SECTIONS
from iid_dask.mosaic.opening import is_mosaic


def looks_like_iid(target: Any) -> bool:
    """Judge by the name, or by the first and last bytes of what is local.

    Parameters
    ----------
    target : path, URL, bytes or binary file object
        A URL is judged by its name alone. A file object's position is put back. The folder of a mosaic, and
        its manifest, pass.
    """
    if isinstance(target, bytes | bytearray | memoryview):
        view = memoryview(target).cast("B")
        return _adds_up(bytes(view[: HEADER.itemsize]), len(view), bytes(view[-8:]))
    if isinstance(target, str | os.PathLike):
        path = os.fsdecode(os.fspath(target))
        remote = "://" in path
        if is_mosaic(path):
            return True
        if (path.split("?", 1)[0] if remote else path).lower().endswith(".iid"):
            return remote or not os.path.isdir(os.path.expanduser(path))
        if remote or not os.path.isfile(os.path.expanduser(path)):
            return False
        with open(os.path.expanduser(path), "rb") as file:
            return _sniff_file(file)
    if hasattr(target, "read") and hasattr(target, "seek"):
        return _sniff_file(target)
    return False


def _sniff_file(file: Any) -> bool:
    position = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEADER.itemsize)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    finally:
        file.seek(position)
    return _adds_up(head, size, tail)


def _adds_up(head: bytes, size: int, tail: bytes) -> bool:
    """Whether the sections follow one another and fill the file, but for an index."""
    if len(head) < HEADER.itemsize:
        return False
    header = np.frombuffer(head, HEADER)[0]
    if header["version"] or header["lut_length"] % LUT.itemsize:
        return False
    end = HEADER.itemsize
    for section in SECTIONS:
        if header[f"{section}_offset"] != end:
            return False
        end += int(header[f"{section}_length"])
    return end == size or (end < size and tail == INDEX_MAGIC)
