"""Compiled loops on plain arrays. Callers check dtypes and shapes; nothing here allocates by what a file says.

Bits are numbered as the format lays them: bit 0 is the most significant bit of byte 0.
"""

from iid_dask.kernels.blocks import block_components, count_block_runs, label_block, pack_block
from iid_dask.kernels.crc import crc32s
from iid_dask.kernels.entries import gather_spans, mark_special, or_bits
from iid_dask.kernels.find import find
from iid_dask.kernels.joining import (
    adjacent_boxes,
    first_pixels,
    join_zones,
    meeting_parts,
    move_segments,
    or_parts,
    unite,
)
from iid_dask.kernels.lay import lay_names, lay_segments
from iid_dask.kernels.measure import (
    add_floats,
    add_integers,
    find_runs,
    float_results,
    gather_touching,
    merge_floats,
)
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
from iid_dask.kernels.pairs import box_pairs, clear_common, common_pixels, find_losses, first_fit
from iid_dask.kernels.points import any_bits, points_in_boxes
from iid_dask.kernels.read import read_ranges
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
from iid_dask.kernels.seams import (
    common_runs,
    meeting_boxes,
    merge_runs,
    parse_decimals,
    segment_starts,
    window_runs,
)
from iid_dask.kernels.shape import FACTS, paint_words, shape_facts

__all__ = [
    "FACTS",
    "KEY",
    "REGION_BOX",
    "REGION_CUT",
    "REGION_LENGTH",
    "REGION_OUTSIDE",
    "SEGMENT_BOX",
    "SOUND",
    "add_floats",
    "add_integers",
    "adjacent_boxes",
    "any_bits",
    "block_components",
    "box_pairs",
    "chunk_facts",
    "clear_common",
    "colorize",
    "common_pixels",
    "common_runs",
    "count_block_runs",
    "crc32s",
    "damaged",
    "find",
    "find_losses",
    "find_names",
    "find_runs",
    "first_fit",
    "first_pixels",
    "float_results",
    "gather_spans",
    "gather_touching",
    "join_zones",
    "label_block",
    "lay_names",
    "lay_segments",
    "loose_sides",
    "mark_special",
    "meeting_boxes",
    "meeting_parts",
    "merge_floats",
    "merge_runs",
    "move_segments",
    "or_bits",
    "or_parts",
    "pack_block",
    "paint_blocks",
    "paint_points",
    "paint_recorded",
    "paint_samples",
    "paint_window",
    "paint_words",
    "parse_decimals",
    "points_in_boxes",
    "popcount",
    "read_ranges",
    "scan",
    "segment_starts",
    "shape_facts",
    "unite",
    "window_runs",
]
