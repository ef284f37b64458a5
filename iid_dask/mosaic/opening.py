"""Opening what a path names, a file or a mosaic; for a file this imports nothing heavy."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from typing import Any

from iid_dask.format.layout import Limits
from iid_dask.format.objects import local_path
from iid_dask.format.reader import open_records
from iid_dask.mosaic.folder import JOB, MANIFEST, mosaic_folder
from iid_dask.reader import IIDReader


def is_mosaic(target: object) -> bool:
    """Whether a path is that of a mosaic: a folder with a manifest or a job, or a manifest.

    A URL is judged by its name alone; see `names_mosaic`.
    """
    if not isinstance(target, str | os.PathLike):
        return False
    local = local_path(target)
    if local is None:
        return posixpath.basename(os.fsdecode(target)) == MANIFEST and "::" not in os.fsdecode(target)
    path = os.path.expanduser(local)
    if os.path.basename(path) == MANIFEST:
        return os.path.isfile(path)
    return any(os.path.isfile(os.path.join(path, name)) for name in (MANIFEST, JOB))


def names_mosaic(target: object, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether a path or URL is that of a mosaic; its server is asked, unless the name is that of a file or manifest."""
    if not isinstance(target, str | os.PathLike) or local_path(target) is not None or is_mosaic(target):
        return is_mosaic(target)
    url = os.fsdecode(target)
    if "::" in url or url.startswith(("http://", "https://")) or url.lower().endswith(".iid"):
        return False
    folder = mosaic_folder(url, storage_options)
    try:
        return any(folder.is_file(name) for name in (MANIFEST, JOB))
    except PermissionError:  # what stores say of objects that are not there to those who may not list
        return False


def open(
    target: Any,
    *,
    verify: bool = True,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> IIDReader:
    """Open an ``.iid`` file, or a mosaic.

    Parameters
    ----------
    target : path, URL, bytes or binary file object
        Anything that fsspec reads; ``~`` is expanded. A folder, or its ``mosaic.json``, is opened as a mosaic. A URL
        that ends in ``.iid`` is that of a file; so is one of a web server, unless it ends in ``mosaic.json``.
    verify
        Compare what is read with the checksums of the file's index, if it has one. False reads damaged files.
    limits : Limits, optional
        What the file may cost.
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Returns
    -------
    IIDReader
        Also a context manager, which closes the file.

    Raises
    ------
    IIDFormatError
        If the bytes are not a sound ``.iid`` file.
    IIDStoreError
        If a mosaic was not finished.
    FileNotFoundError, IsADirectoryError, PermissionError

    Examples
    --------
    >>> import iid_dask
    >>> with iid_dask.open(iid_dask.sample("us")) as f:
    ...     print(len(f), f.shape, list(f.groups))
    3155 (600, 1000) ['nation', 'states', 'counties']
    """
    if names_mosaic(target, storage_options):
        from iid_dask.mosaic.reader import open_mosaic

        return open_mosaic(target, verify=verify, limits=limits, storage_options=storage_options)
    return open_records(target, verify=verify, limits=limits, storage_options=storage_options, reader=IIDReader)
