"""What opening reads of a file: its tables and its end, with few requests."""

from __future__ import annotations

import numpy as np

from iid_dask.format.layout import HEADER, INDEX_TRAILER, SECTIONS
from iid_dask.format.source import Source, gather

FIRST_READ = 64 * 1024
"""Bytes of the first read: header and tables of a small file in one request."""

AHEAD = 8 * 2**20
"""Where a request costs more than reading on: bytes of names read in vain, and of an index before it is needed."""


def end_span(header: np.void, size: int, ahead: int) -> tuple[int, int]:
    """Return offset and length of what follows the sections, or of the trailer where that is more than ``ahead``.

    Parameters
    ----------
    header
        As in `HEADER`.
    size, ahead
        Bytes of the file, and of the longest index to read with the trailer.
    """
    sections = [int(header[f"{s}_offset"]) + int(header[f"{s}_length"]) for s in SECTIONS if header[f"{s}_length"]]
    behind = size - max([HEADER.itemsize, *sections])
    length = min(size, max(INDEX_TRAILER.itemsize, behind if behind <= ahead else 0))
    return size - length, length


def read_tables(source: Source, header: np.void, head: bytes) -> list[bytes]:
    """Return lut, meta, groups and the end of a file with one round of requests.

    Parameters
    ----------
    source, header
        The header's sections lie within the source.
    head
        The first bytes, which were read already.

    Returns
    -------
    list of bytes
        The end is the trailer; where requests are dear and the index is not long, the index and the trailer.
    """
    places = {name: (int(header[f"{name}_offset"]), int(header[f"{name}_length"])) for name in SECTIONS}
    ahead = AHEAD if source.gap >= FIRST_READ else 0
    spans = [places["lut"], places["meta"], places["groups"], end_span(header, source.size, ahead)]
    # A request for no bytes has no form in HTTP: servers answer it with an error.
    missing = [span for span in spans if span[1] and sum(span) > len(head)]
    if len(missing) > 1 and places["iids"][1] <= ahead and sum(places["iids"]) > len(head):
        missing.append(places["iids"])  # between the others, so it may make one request of two
    offsets, lengths = (np.array([span[i] for span in missing], np.int64) for i in (0, 1))
    data, starts = gather(source, offsets, lengths)
    found = {span: data[at : at + span[1]].tobytes() for span, at in zip(missing, starts.tolist(), strict=True)}
    return [found[span] if span in found else head[span[0] : sum(span)] for span in spans]
