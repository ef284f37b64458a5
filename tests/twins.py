"""Slow twins: every mask of a file as a dense array, and what follows from them by brute force; random files."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

import iid_dask
from iid_dask import BBox, IIDReader, IIDWriter, Region
from iid_dask.format.source import LocalSource

TABLE = ("key", "domain", "address", "area", "min_row", "min_col", "max_row", "max_col")


class Twin:
    """All arrays of a file, from the masks of all its entries.

    ``masks`` are those of the entries in ``keys``, reduced by ``stride``, shape (n, *shape).
    """

    def __init__(self, reader, *, shape=None, overlap="last", stride=1, reduce="nearest", keys=None, labels=None):
        self.reader, self.overlap = reader, overlap
        self.keys = np.array(sorted(reader if keys is None else keys), np.int64)
        self.full = dense(reader, self.keys)
        self.shape = tuple(reader.shape if shape is None else shape)
        self.labels = {key: key + 1 for key in reader} if labels is None else labels
        self.masks = shrink(fit(self.full, self.shape), stride, reduce)
        self.out_shape = self.masks.shape[1:]

    def label(self, planes=None):
        """What wins each pixel; ``planes`` chooses entries by their place."""
        areas = {key: self.reader[int(key)].area for key in self.keys}
        order = {
            "last": lambda i: self.keys[i],
            "raise": lambda i: self.keys[i],
            "first": lambda i: -self.keys[i],
            "smallest": lambda i: (-areas[self.keys[i]], self.keys[i]),
            "largest": lambda i: (areas[self.keys[i]], self.keys[i]),
        }[self.overlap]
        out = np.zeros(self.out_shape, np.uint64)
        for i in sorted(range(len(self.keys)) if planes is None else planes, key=order):
            out[self.masks[i]] = self.labels[int(self.keys[i])]
        return out

    def mask(self):
        return self.masks.any(axis=0)

    def depth(self):
        return self.masks.sum(axis=0)

    def group_mask(self):
        planes = [self.masks[np.isin(self.keys, members)].any(axis=0) for members in self.reader.groups.values()]
        return np.array(planes, bool).reshape(-1, *self.out_shape)

    def layer_numbers(self):
        """First fit by ascending key, over overlaps of whole masks."""
        numbers = []
        for i in range(len(self.keys)):
            taken = {numbers[j] for j in range(i) if np.any(self.full[i] & self.full[j])}
            numbers.append(next(n for n in range(i + 1) if n not in taken))
        return numbers

    def layers(self):
        numbers = np.array(self.layer_numbers(), np.int64)
        planes = [self.label(np.flatnonzero(numbers == n)) for n in range(numbers.max(initial=-1) + 1)]
        return np.array(planes, np.uint64).reshape(-1, *self.out_shape)

    def color(self):
        return colors(self.label())

    def pixels(self):
        """Every variable with dimensions y and x."""
        names = ("label", "mask", "depth", "group_mask", "layers", "color")
        return {name: getattr(self, name)() for name in names if name != "group_mask" or self.reader.groups}


def dense(reader, keys):
    """Whole masks on a canvas that holds all boxes, bool, shape (n, rows, cols)."""
    entries = [reader[int(key)] for key in keys]
    size = np.max([(e.bbox.max_row, e.bbox.max_col) for e in entries] + [(0, 0)], axis=0)
    out = np.zeros((len(entries), *size), bool)
    for plane, entry in zip(out, entries, strict=True):
        plane[entry.bbox.slices] = entry.mask()
    return out


def fit(masks, shape):
    """Cut or pad planes to an image's shape."""
    out = np.zeros((len(masks), *shape), bool)
    rows, cols = min(shape[0], masks.shape[1]), min(shape[1], masks.shape[2])
    out[:, :rows, :cols] = masks[:, :rows, :cols]
    return out


def shrink(masks, stride, reduce):
    """One element for stride × stride pixels of each plane."""
    _, height, width = masks.shape
    rows, cols = -(-height // stride), -(-width // stride)
    if reduce == "nearest":
        i = [min(i * stride + stride // 2, height - 1) for i in range(rows)]
        j = [min(j * stride + stride // 2, width - 1) for j in range(cols)]
        return masks[:, i][:, :, j]
    padded = np.zeros((len(masks), rows * stride, cols * stride), bool)
    padded[:, :height, :width] = masks
    return padded.reshape(-1, rows, stride, cols, stride).any(axis=(2, 4))


@functools.cache
def color_of(label):
    """The colour of a label, from its definition."""
    if not label:
        return 0, 0, 0
    hue = (label * 2654435769 % 2**32) * 6
    sextant, part = divmod(hue, 2**32)
    part >>= 24
    high = 255 - 40 * ((label ^ (label >> 16)) % 3)
    low = high * 5 // 16
    step = (high - low) * part // 255
    up, down = low + step, high - step
    return [(high, up, low), (down, high, low), (low, high, up), (low, down, high), (up, low, high), (high, low, down)][
        sextant
    ]


def colors(labels):
    """A colour for every element, uint8, with a last axis of three."""
    values, where = np.unique(labels, return_inverse=True)
    palette = np.array([color_of(int(value)) for value in values], np.uint8).reshape(-1, 3)
    return palette[where.reshape(labels.shape)]


# --- random files -----------------------------------------------------------------------------------------------


def random_mask(rng, height, width):
    """Noise, a solid, a ring with something in it, pieces far apart, a diagonal, a comb, or nothing."""
    kind = rng.integers(8)
    i, j = np.ogrid[:height, :width]
    if kind == 0:
        return rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9])
    if kind == 1:
        return np.ones((height, width), bool)
    if kind == 2:
        border = (i == 0) | (j == 0) | (i == height - 1) | (j == width - 1)
        return border | ((i == height // 2) & (j == width // 2))
    if kind == 3:
        return ((i < height / 3) & (j < width / 3)) | ((i > height / 1.5) & (j > width / 1.5))
    if kind == 4:
        return i == j
    if kind == 5:
        return (i % 2 == 0) & (j % 3 > 0)
    if kind == 6:
        return ((i - height / 2) / height) ** 2 + ((j - width / 2) / width) ** 2 < 0.2
    return np.zeros((height, width), bool)


def random_box(rng, height, width):
    """A small box, a wide or tall one, one in the far corner, one without pixels, or the whole image."""
    kind = rng.integers(8)
    if kind == 0:
        return BBox(0, 0, height, width)
    if kind == 1:
        row = rng.integers(height)
        return BBox(row, 0, row + 1, width)
    if kind == 2:
        col = rng.integers(width)
        return BBox(0, col, height, col + 1)
    rows, cols = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
    if kind == 3:
        rows[1], cols[1] = height, width
    return BBox(rows[0], cols[0], rows[1], cols[1])


def random_name(rng):
    """Any bytes, text, or none."""
    return rng.choice([b"", b"cell", "größe".encode(), b"a\\b\\x41", b"\xff\xfe\x00"]) + rng.bytes(rng.integers(3))


def random_file(path, seed, *, entries=12, image=True, numbers=False, index=None):
    """Write a file that has a bit of everything; ``numbers`` makes every address a number."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(1, 70)), int(rng.integers(1, 150))
    metadata = {"image": {"height": height, "width": width}, "note": "ü"} if image else {"note": [1, None]}
    names = [f"group {n}" for n in range(rng.integers(4))]
    index = bool(rng.integers(2)) if index is None else index
    with IIDWriter(path, metadata=metadata, index=index) as writer:
        for name in names:
            writer.add_group(name)
        for key in range(rng.integers(entries + 1)):
            if rng.random() < 0.1:
                writer.add_removed()
                continue
            box = random_box(rng, height, width)
            groups = [name for name in names if rng.random() < 0.4]
            address = str(2 ** rng.integers(30, 60) + key).encode() if numbers else random_name(rng)
            mask = random_mask(rng, *box.shape)
            if box.height > 2 and box.width > 2 and rng.random() < 0.15:
                # Two regions that share pixels: legal bytes, though no writer of ours makes them.
                half = np.ones((box.height - 1, 1), bool)
                bits = np.packbits(half).tobytes()
                pieces = [
                    Region(BBox(box.min_row + d, box.min_col, box.max_row - 1 + d, box.min_col + 1), bits)
                    for d in (0, 1)
                ]
                writer.add(random_name(rng), address, box, regions=pieces, groups=groups)
            else:
                writer.add(random_name(rng), address, box, mask, groups=groups)


def random_bytes(seed, **options):
    """The bytes of a random file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.iid"
        random_file(path, seed, **options)
        return path.read_bytes()


def random_reader(seed, **options) -> IIDReader:
    """An open random file."""
    return iid_dask.open(random_bytes(seed, **options))


seeds = st.integers(0, 2**32 - 1)
strides = st.sampled_from([1, 2, 3, 5, 16, 200])
reduces = st.sampled_from(["nearest", "any"])
overlaps = st.sampled_from(["last", "first", "smallest", "largest"])


class CountingSource(LocalSource):
    """A local file that counts the bytes read."""

    def __init__(self, path):
        super().__init__(str(path))
        self.nbytes = 0

    def read(self, offset, length):
        self.nbytes += length
        return super().read(offset, length)

    def read_many(self, offsets, lengths, out):
        self.nbytes += int(lengths.sum())
        super().read_many(offsets, lengths, out)


def quiet(function, *arguments, **options):
    """Call without the warnings about sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iid_dask.IIDWarning)
        return function(*arguments, **options)
