"""Everything that can be read from an open file, as plain values that compare."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

import iid_dask

DATA = Path(__file__).parent / "data"
PIXELS = 2**22


def everything(reader: iid_dask.IIDReader) -> dict[str, Any]:
    """Touch all of a file; masks only of boxes up to `PIXELS`."""
    columns = reader.columns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iid_dask.IIDWarning)
        shape = reader.shape
    live = reader.live
    entries = {}
    for key, entry in reader.items():
        regions = [(tuple(region.bbox), region.bits) for region in entry.regions]
        box = entry.bbox
        mask = np.packbits(entry.mask()).tobytes() if box.height * box.width <= PIXELS else None
        entries[key] = (entry.domain, entry.address, tuple(box), entry.area, entry.groups, regions, mask)
    return {
        "shape": shape,
        "names": reader.names(),
        "boxes": columns.boxes[live].tolist(),
        "areas": columns.areas[live].tolist(),
        "regions": (columns.region_boxes.tolist(), columns.region_bits.tolist()),
        "entries": entries,
        "groups": {name: keys.tolist() for name, keys in reader.groups.items()},
        "metadata": reader.metadata_json,
    }


def answers(data: bytes) -> dict[str, Any] | None:
    """Everything in a file that opens and checks clean, or None for one that does not."""
    try:
        with iid_dask.open(data) as reader:
            found = everything(reader)
            return None if reader.check() else found
    except iid_dask.IIDError:
        return None
