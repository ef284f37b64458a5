"""What the tests of assembling share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from label_images import box_of

import iid_dask

DATA = Path(__file__).parent / "data"
ASSEMBLE = DATA / "assemble"
SUMS = json.loads((ASSEMBLE / "sums.json").read_text())


def golden(name):
    """An image and the reference's file of it."""
    with np.load(ASSEMBLE / f"{name}.npz") as arrays:
        return arrays["image"], (ASSEMBLE / f"{name}.iid").read_bytes()


def image_size(image):
    return {"image": {"height": image.shape[0], "width": image.shape[1]}}


def written(tmp_path, labels, **options):
    """The bytes that `to_iid` writes; nothing else may be left in the folder."""
    path = tmp_path / "out.iid"
    iid_dask.to_iid(labels, path, progress=False, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["out.iid"]
    data = path.read_bytes()
    path.unlink()
    return data


def whole(path, image, name=str, group=None):
    """What `IIDWriter` makes of an image held in memory: one `add` a label."""
    with iid_dask.IIDWriter(path, metadata=image_size(image)) as writer:
        for label in np.unique(image).tolist():
            if label:
                mask = image == label
                box = iid_dask.BBox(*box_of(mask))
                writer.add(b"", name(int(label)).encode(), box, mask[box.slices], groups=group(label) if group else ())
    return path.read_bytes()


def section_end(data):
    """Where the segments section ends, which is the last that the reference knows."""
    with iid_dask.open(data) as f:
        return int(f.header["segments_offset"]) + int(f.header["segments_length"])


def entries(path):
    """(domain, address, groups, box, mask) of each entry, in order."""
    with iid_dask.open(path) as f:
        return [(e.domain, e.address, sorted(e.groups), tuple(e.bbox), e.mask().tobytes()) for e in f.values()]


def cut(image, tile):
    """Blocks of an image and their origins."""
    for row in range(0, image.shape[0], tile[0]):
        for col in range(0, image.shape[1], tile[1]):
            yield image[row : row + tile[0], col : col + tile[1]], (row, col)


def collected(folder, out):
    """Finish a mosaic and consolidate it."""
    iid_dask.finish(folder)
    with iid_dask.open_mosaic(folder) as mosaic:
        mosaic.to_iid(out)
    return Path(out).read_bytes()
