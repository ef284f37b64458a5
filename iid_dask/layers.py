"""Layers: entries coloured so that none overlaps another of its layer, so that label arrays lose nothing."""

from __future__ import annotations

import numpy as np

from iid_dask import kernels
from iid_dask.apart import thinned
from iid_dask.pairs import Regions, codes, common_pixels, decoded, meeting
from iid_dask.views import View


def layer_numbers(view: View) -> np.ndarray:
    """Return the layer of each entry, by ascending key the first in which it overlaps nobody.

    Returns
    -------
    int32 array, one element a row of the lut
        -1 for entries that the view does not show.

    Notes
    -----
    Decodes every pair of masks whose boxes meet.
    """
    return view.reader.remember(("layers", view.selection), lambda: _colour(view))


def _colour(view: View) -> np.ndarray:
    reader = view.reader
    numbers = np.full(len(reader.live), -1, np.int32)
    numbers[view.keys] = 0
    lower, higher = _overlapping(view)
    by_higher = np.argsort(higher, kind="stable")
    starts = np.searchsorted(higher[by_higher], np.arange(len(numbers) + 1))
    kernels.first_fit(starts, lower[by_higher].astype(np.int64), numbers)
    return numbers


def _overlapping(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Keys of all pairs of entries that share a pixel, the lower ones and the higher ones."""
    thin = thinned(view.reader, Regions.of(view.reader.columns, view.keys, view.keys))
    regions = thin.regions
    found = [np.zeros(0, np.uint64)]
    for pairs in meeting(regions):
        share = common_pixels(thin.bits, regions, pairs) > 0
        found.append(np.unique(codes(*(regions.keys[places[share]] for places in pairs))))
    return decoded(np.unique(np.concatenate(found)))
