"""PNG files: greyscale labels, decoded whole."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from iid_dask.bbox import BBox
from iid_dask.format.source import LocalSource
from iid_dask.images.image import as_plane, check_inside, library
from iid_dask.images.local import LocalImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0: "grey", 2: "colour", 3: "palette", 4: "grey with alpha", 6: "colour with alpha"}


@dataclass(frozen=True)
class PngImage(LocalImage):
    """A greyscale PNG of 8 or 16 bits.

    Attributes
    ----------
    dtype : numpy.dtype
        uint8 or uint16.
    """

    dtype: np.dtype

    @property
    def blocks(self) -> tuple[int, int]:
        """A PNG is one stream."""
        return self.shape

    def read(self, box: BBox) -> np.ndarray:
        """Return the pixels of a window."""
        check_inside(self, box)
        data = self.source.read(0, self.stamp[1])
        try:
            pixels = library("imagecodecs", self.name).png_decode(data)
        except RuntimeError as error:
            raise ValueError(f"{self.name}: is no sound PNG: {error}; write it again") from error
        if pixels.shape != self.shape or pixels.dtype != self.dtype:
            raise ValueError(f"{self.name}: found {pixels.shape} {pixels.dtype}, expected {self.shape} {self.dtype}: "
                             "its transparent colour cannot be a label; write it again without")  # fmt: skip
        return pixels[box.slices]


def open_png(path: str) -> PngImage:
    """Open a greyscale PNG of 8 or 16 bits; reads its header.

    Raises
    ------
    ImportError
        Without the extra [tiff].
    ValueError
        For other kinds, whose numbers in the file are not those that a reader gives.
    """
    library("imagecodecs", path)
    source = LocalSource(path)
    head = source.read(0, min(33, source.size))
    if len(head) < 33 or not head.startswith(SIGNATURE) or head[12:16] != b"IHDR":
        raise ValueError(f"{path}: found no PNG header, expected one in its first 33 bytes; copy it again")
    cols, rows, bits, colour = struct.unpack(">IIBB", head[16:26])
    if colour != 0 or bits not in (8, 16):
        raise ValueError(
            f"{path}: found a PNG of {bits} bits, {_COLOURS.get(colour, colour)}, expected 8 or 16 bits, grey: what it "
            "shows are not its numbers; write the labels as a 16-bit grey PNG, TIFF or .npy"
        )
    return PngImage(source.name, source.stamp, as_plane(path, (rows, cols)), np.dtype(f"u{bits // 8}"))
