"""Mosaics made by hand, and the ordinary file that holds the same masks: whatever is asked, both must say the same."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from twins import random_box, random_mask, random_name

from iid_dask import BBox, IIDWriter
from iid_dask.mosaic.folder import MANIFEST, VERSION
from iid_dask.mosaic.tables import BOX, SCHEMAS, write_table

JOB = "0123456789abcdef"


@dataclass
class Scene:
    """Segments as dense masks of the whole image, by key."""

    shape: tuple[int, int]
    masks: np.ndarray
    names: list[tuple[bytes, bytes]]
    groups: dict[str, list[int]]
    metadata: dict

    def boxes(self):
        """Tight boxes, zeros for empty masks."""
        return [tight(mask) for mask in self.masks]


def tight(mask):
    """The smallest box around a mask's pixels."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return BBox(rows[0], cols[0], rows[-1] + 1, cols[-1] + 1) if len(rows) else BBox(0, 0, 0, 0)


def random_scene(rng, *, entries=10, numbers=False):
    """Segments that overlap, some empty, with any names."""
    height, width = int(rng.integers(1, 60)), int(rng.integers(1, 90))
    count = int(rng.integers(entries + 1))
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        box = random_box(rng, height, width)
        mask[box.slices] = random_mask(rng, *box.shape)
    names = [(random_name(rng), str(2 ** rng.integers(30, 60) + key).encode()) for key in range(count)]
    if not numbers:
        names = [(domain, random_name(rng)) for domain, _ in names]
    groups = {f"group {n}": np.flatnonzero(rng.random(count) < 0.4).tolist() for n in range(rng.integers(3))}
    return Scene((height, width), masks, names, groups, {"image": {"height": height, "width": width}, "note": "ü"})


def write_file(path, scene):
    """Write a scene as one ordinary file."""
    with IIDWriter(path, metadata=scene.metadata) as writer:
        for name in scene.groups:
            writer.add_group(name)
        for key, (mask, (domain, address), box) in enumerate(zip(scene.masks, scene.names, scene.boxes(), strict=True)):
            groups = [name for name, keys in scene.groups.items() if key in keys]
            writer.add(domain, address, box, mask[box.slices], groups=groups)
    return Path(path)


def cores(rng, shape, *, ragged, step=None):
    """Boxes that cover an image once: of ``step`` pixels, of any size, or of any sizes."""

    step = step or int(rng.integers(5, 40))

    def edges(side):
        if not ragged:
            return [*range(0, side, step), side]
        return sorted({0, side, *rng.integers(0, side + 1, 3).tolist()})

    rows, cols = edges(shape[0]), edges(shape[1])
    return [BBox(r0, c0, r1, c1) for r0, r1 in pairwise(rows) for c0, c1 in pairwise(cols)]


def pieces_of(rng, mask, core, box):
    """Cut one mask to a tile: (cut to its core?, mask in the tile) once or twice, whose union is the tile's part."""
    cut = rng.random() < 0.3
    inside = np.zeros_like(mask)
    inside[(core if cut else box).slices] = mask[(core if cut else box).slices]
    local = inside[box.slices]
    if not local.any() and rng.random() < 0.95:
        return []
    if local.any() and rng.random() < 0.2:  # two pieces of one segment in one file, which share a row
        half = local.shape[0] // 2
        return [
            (cut, np.where(np.arange(len(local))[:, None] <= half, local, False)),
            (cut, np.where(np.arange(len(local))[:, None] >= half, local, False)),
        ]
    return [(cut, local)]


def write_tile(folder, path, origin, core, masks, rng, *, cut, job=JOB, offset=(0, 0), index=True):
    """Write a tile's masks as a file; return its crc and size."""
    row, col = origin[0] + offset[0], origin[1] + offset[1]
    shape = masks.shape[1:]
    place = {
        "job": job,
        "origin": [row, col],
        "shape": list(shape),
        "core": [core[0] + offset[0], core[1] + offset[1], core[2] + offset[0], core[3] + offset[1]],
        "input": None,
    }
    if cut:
        place["cut"] = True
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with IIDWriter(folder / path, metadata={"mosaic": place}, index=index) as writer:
        for number, mask in enumerate(masks):
            box = tight(mask)
            writer.add(b"", str(number).encode(), box, mask[box.slices])
    data = (folder / path).read_bytes()
    return zlib.crc32(data), len(data)


def write_mosaic(
    folder, scene, seed, *, ragged=False, halo=0, offset=(0, 0), shape=None, row_group=65_536, index=True, step=None
):
    """Write a scene as a mosaic whose tiles hold its masks in pieces; ``offset`` moves all of it."""
    rng, folder = np.random.default_rng(seed), Path(folder)
    height, width = scene.shape
    tiles, held = [], []
    for core in cores(rng, scene.shape, ragged=ragged, step=step):
        box = BBox(core.min_row - halo, core.min_col - halo, core.max_row + halo, core.max_col + halo)
        box = box.intersection(BBox(0, 0, height, width))
        some = [(key, *piece) for key, mask in enumerate(scene.masks) for piece in pieces_of(rng, mask, core, box)]
        for cut in (False, True):
            mine = [(key, mask) for key, of_cut, mask in some if of_cut == cut]
            if cut and not mine:
                continue
            order = rng.permutation(len(mine) + 1)  # one more, which is not shown
            masks = np.zeros((len(mine) + 1, *box.shape), bool)
            masks[order[-1]] = rng.random(box.shape) < 0.1
            rows = []
            for place, (key, mask) in zip(order.tolist(), mine, strict=False):
                masks[place] = mask
                rows.append((key, place))
            tiles.append((cut, core, box, masks))
            held.append(sorted(rows))
    areas = scene.masks.sum(axis=(1, 2), dtype=np.int64) if len(scene.masks) else np.zeros(0, np.int64)
    columns = {name: [] for name in SCHEMAS["tiles"]}
    pieces = {name: [] for name in SCHEMAS["pieces"]}
    for number in sorted(range(len(tiles)), key=lambda i: tiles[i][0]):  # cut files last
        cut, core, box, masks = tiles[number]
        tile = len(columns["path"])
        path = f"{'cuts' if cut else 'tiles'}/r{core.min_row + offset[0]:07d}_c{core.min_col + offset[1]:07d}.iid"
        crc, nbytes = write_tile(
            folder, path, tuple(box)[:2], tuple(core), masks, rng, cut=cut, offset=offset, index=index
        )
        moved = [side + offset[axis % 2] for axis, side in enumerate(core)]
        values = [path, "cut" if cut else "tile", box.min_row + offset[0], box.min_col + offset[1], *box.shape, *moved]
        tail = zlib.crc32((folder / path).read_bytes()[-52:])
        values += [len(masks), nbytes, crc, tail, len(pieces["tile"]), len(held[number])]
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
        for key, place in held[number]:
            for name, value in zip(pieces, (tile, place, key + 1, areas[key]), strict=True):
                pieces[name].append(value)
    members = [(group, key) for group, keys in enumerate(scene.groups.values()) for key in keys]
    tables = {
        "tiles": columns,
        "pieces": pieces,
        "segments": segment_columns(scene, areas, np.array(pieces["label"], np.int64), offset),
        "members": {"group": [group for group, _ in members], "key": [key for _, key in members]},
    }
    listed = {
        name: write_table(folder, f"{name}-ID.parquet", table, SCHEMAS[name], row_group=row_group)
        for name, table in tables.items()
    }
    manifest = {
        "version": VERSION,
        "job": JOB,
        "shape": list(scene.shape if shape is None else shape),
        "metadata": scene.metadata,
        "groups": list(scene.groups),
        "rule": None,
        "tables": listed,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def segment_columns(scene, areas, labels, offset):
    """The table of segments."""
    shift = np.array([*offset, *offset])
    boxes = np.array([tuple(box) for box in scene.boxes()], np.int64).reshape(-1, 4)
    boxes = np.where(areas[:, None] > 0, boxes + shift, 0)
    first = np.full((len(areas), 2), -1)
    for key, mask in enumerate(scene.masks):
        if mask.any():
            first[key] = np.argwhere(mask)[0] + offset
    return {
        "domain": [domain for domain, _ in scene.names],
        "address": [address for _, address in scene.names],
        **dict(zip(BOX, boxes.T, strict=True)),
        "area": areas,
        "first_row": first[:, 0],
        "first_col": first[:, 1],
        "pieces": np.bincount(labels - 1, minlength=len(areas)),
    }


def random_pair(folder, seed, **options):
    """Write a random scene as a mosaic and as a file; return the scene and both paths."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, numbers=options.pop("numbers", False))
    folder = Path(folder)
    (folder / "mosaic").mkdir(parents=True, exist_ok=True)
    choice = {
        "ragged": bool(rng.integers(2)),
        "halo": int(rng.choice([0, 0, 3])),
        "row_group": int(rng.choice([1, 3, 65_536])),
        "index": bool(rng.integers(4)),
        **options,
    }
    write_mosaic(folder / "mosaic", scene, seed, **choice)
    return scene, folder / "mosaic", write_file(folder / "file.iid", scene)
