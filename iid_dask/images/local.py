"""What images in one local file have in common."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

from iid_dask.bbox import BBox
from iid_dask.format.source import LocalSource
from iid_dask.once import Once

_SOURCES: Once[LocalSource] = Once(32)


@dataclass(frozen=True)
class LocalImage:
    """An image in a file that is opened by its path, once a process.

    Attributes
    ----------
    name : str
        Absolute path.
    stamp : (mtime in ns, bytes)
    shape : (rows, cols)
    """

    name: str
    stamp: tuple[int, int]
    shape: tuple[int, int]

    @property
    def source(self) -> LocalSource:
        """The open file, kept by this process; IIDChangedError if it is not what it was."""
        return _SOURCES.get((self.name, self.stamp), lambda: LocalSource(self.name, self.stamp))

    def part(self, box: BBox) -> Self:
        """Return the image itself, which is small."""
        return self

    def token(self) -> str:
        """Kind, path, stamp, and where in the file the pixels are."""
        # A dtype's repr tells whether its byte order was given or found out.
        return f"{type(self).__name__} {[getattr(value, 'str', value) for value in astuple(self)]}"
