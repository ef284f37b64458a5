"""Sets that grow together, as numbers that lead to one of each: what union-find asks for."""

from __future__ import annotations

import numpy as np

from iid_dask.kernels.jit import inlined


@inlined
def root_of(parent, i):
    """What stands for the set that ``i`` belongs to; the way there becomes shorter."""
    while parent[np.uint64(i)] != i:
        up = parent[np.uint64(parent[np.uint64(i)])]
        parent[np.uint64(i)] = up
        i = up
    return i
