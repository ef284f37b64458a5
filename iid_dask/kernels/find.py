"""Which regions touch a window."""

from __future__ import annotations

from iid_dask.kernels.jit import jit


@jit
def find(order, stop, boxes, zone, zones, min_row, min_col, max_row, max_col, out):
    """Regions whose box meets a window.

    Parameters
    ----------
    order : uint32 array, shape (m,)
        Regions by ascending first row.
    stop : int
        Regions before this place in ``order`` begin above the window's last row.
    boxes : uint16 or int64 array, shape (m, 4)
    zone : int
        Regions in a zone; ``zones`` (number of zones, 3) holds each one's largest max_row, smallest min_col and
        largest max_col, so that zones beside the window are skipped whole.
    out : uint32 array
        Filled in, unless it is empty: then they are only counted.

    Returns
    -------
    int
        How many.
    """
    n = 0
    for first in range(0, stop, zone):
        z = first // zone
        if zones[z, 0] <= min_row or zones[z, 1] >= max_col or zones[z, 2] <= min_col:
            continue
        for i in range(first, min(first + zone, stop)):
            k = order[i]
            if boxes[k, 2] > min_row and boxes[k, 1] < max_col and boxes[k, 3] > min_col:
                if len(out):
                    out[n] = k
                n += 1
    return n
