"""Label images and named masks, and the files that the reference makes of them.

    REFERENCE_PYTHON tests/make_assemble_golden.py

writes data/assemble/*.npz (the images as numpy made them), *.iid (what the reference stores) and sums.json (crc and
size of larger files, whose images follow from label_images.py); REFERENCE_PYTHON has iidfile 0.2.0, numpy 1.23.5,
scikit-image 0.19.3 (its saving needs them). One `add` a label, ascending, its address the label in decimal.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from label_images import GOLDEN, GOLDEN_SUMS, box_of, canonical_order, masks

DATA = Path(__file__).parent / "data" / "assemble"


def assembled(image):
    """The reference's file of a label image."""
    from iidfile import IIDFile

    file = IIDFile()
    file.meta.data["image"] = {"height": image.shape[0], "width": image.shape[1]}
    order = np.argsort(image, axis=None, kind="stable")
    labels, starts = np.unique(image.ravel()[order], return_index=True)
    for label, where in zip(labels.tolist(), np.split(order, starts[1:]), strict=True):
        if label:
            put(file, b"", b"%d" % label, where, image.shape)
    return file


def put(file, domain, address, pixels, shape, group=None):
    """Add a mask given by its pixels' places in raster order."""
    rows, cols = np.unravel_index(pixels, shape)
    box = rows.min(), cols.min(), rows.max() + 1, cols.max() + 1
    mask = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
    mask[rows - box[0], cols - box[1]] = True
    file.add(address, domain, tuple(map(int, box)), mask, group)


def named(all_masks):
    """The reference's file of named masks, in the canonical order."""
    from iidfile import IIDFile

    file = IIDFile()
    height, width = all_masks[0][2].shape
    file.meta.data["image"] = {"height": height, "width": width}
    for k in canonical_order(all_masks):
        domain, address, mask, group = all_masks[k]
        if mask.any():
            put(file, domain, address, np.flatnonzero(mask), mask.shape, group)
        else:
            # It refuses masks of no size, so its box is set afterwards.
            file.add(address, domain, (0, 0, 1, 1), np.zeros((1, 1), bool), group)
            file.lut.entries[-1].seg.bbox = box_of(mask)
    return file


def main():
    """Run all with the reference."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name, make in GOLDEN.items():
        image = make()
        np.savez_compressed(DATA / f"{name}.npz", image=image)
        assembled(image).save(str(DATA / f"{name}.iid"))
    named(masks()).save(str(DATA / "masks.iid"))
    sums = {}
    for name, make in GOLDEN_SUMS.items():
        data = assembled(make()).dump()
        sums[name] = {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (DATA / "sums.json").write_text(json.dumps(sums, indent=1) + "\n")
    for path in sorted(DATA.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
