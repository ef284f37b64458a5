"""What can go wrong, as few classes as a caller needs to tell apart."""

from __future__ import annotations

__all__ = [
    "IIDChangedError",
    "IIDError",
    "IIDFormatError",
    "IIDLimitError",
    "IIDOverlapError",
    "IIDStoreError",
    "IIDWarning",
    "IIDWorkerError",
]


class IIDError(Exception):
    """Base of every error that iid_dask raises about data."""


class IIDFormatError(IIDError, ValueError):
    """Bytes that are not a sound ``.iid`` file.

    Attributes
    ----------
    file : str
        Path or URL.
    block : str
        "file", "header", "lut", "iids", "meta", "groups", "segments" or "index".
    entry : int or None
        Key of the entry, where the defect belongs to one.
    offset : int or None
        Byte offset of the defect from the start of the file.
    found, expected : str
    """

    def __init__(self, file: str, block: str, entry: int | None, offset: int | None, found: str, expected: str) -> None:
        super().__init__(file, block, entry, offset, found, expected)
        self.file, self.block, self.entry, self.offset = file, block, entry, offset
        self.found, self.expected = found, expected

    def __str__(self) -> str:
        where = f"{self.file}: {self.block}"
        if self.entry is not None:
            where += f", entry {self.entry}"
        if self.offset is not None:
            where += f", byte {self.offset}"
        return f"{where}: found {self.found}, expected {self.expected}"


class IIDLimitError(IIDError, ValueError):
    """More than the format can store, or more memory than the caller's limits allow."""


class IIDChangedError(IIDError):
    """The file was replaced or written to after it was opened."""


class IIDOverlapError(IIDError, ValueError):
    """Entries overlap and ``overlap="raise"`` was asked for."""


class IIDStoreError(IIDError):
    """A Zarr store lacks chunks that were written, holds others, or belongs to another job."""


class IIDWorkerError(IIDError):
    """Workers of a cluster die of a tile, or none is left."""


class IIDWarning(UserWarning):
    """Something a reader of the data should know, said once."""
