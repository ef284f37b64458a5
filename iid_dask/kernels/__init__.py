"""Compiled loops on plain arrays. Callers check dtypes and shapes; nothing here allocates by what a file says.

Bits are numbered as the format lays them: bit 0 is the most significant bit of byte 0.
"""

from iid_dask.kernels.find import box_pairs, find, first_fit, masks_meet
from iid_dask.kernels.names import find_names
from iid_dask.kernels.paint import (
    chunk_facts,
    colorize,
    paint_blocks,
    paint_points,
    paint_recorded,
    paint_samples,
    paint_window,
)
from iid_dask.kernels.points import any_bits, points_in_boxes
from iid_dask.kernels.read import read_ranges
from iid_dask.kernels.runs import count_runs, label_runs, pack_runs, run_boxes
from iid_dask.kernels.scan import (
    KEY,
    REGION_BOX,
    REGION_CUT,
    REGION_LENGTH,
    REGION_OUTSIDE,
    SEGMENT_BOX,
    SOUND,
    damaged,
    loose_sides,
    popcount,
    scan,
)

__all__ = [
    "KEY",
    "REGION_BOX",
    "REGION_CUT",
    "REGION_LENGTH",
    "REGION_OUTSIDE",
    "SEGMENT_BOX",
    "SOUND",
    "any_bits",
    "box_pairs",
    "chunk_facts",
    "colorize",
    "count_runs",
    "damaged",
    "find",
    "find_names",
    "first_fit",
    "label_runs",
    "loose_sides",
    "masks_meet",
    "pack_runs",
    "paint_blocks",
    "paint_points",
    "paint_recorded",
    "paint_samples",
    "paint_window",
    "points_in_boxes",
    "popcount",
    "read_ranges",
    "run_boxes",
    "scan",
]
