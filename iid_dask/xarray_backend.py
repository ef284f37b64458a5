"""The xarray engine "iid". Imports nothing heavy: xarray imports every engine's module to list the engines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from xarray import Dataset, DataTree
from xarray.backends import BackendEntrypoint

OPTIONS = (
    "drop_variables",
    "overlap",
    "labels",
    "keys",
    "groups",
    "domains",
    "addresses",
    "area",
    "shape",
    "stride",
    "reduce",
    "layers",
    "color",
    "entries",
    "verify",
    "limits",
    "storage_options",
)
DECODERS = ("mask_and_scale", "decode_times", "decode_timedelta", "use_cftime", "concat_characters", "decode_coords")
"""Keywords of xarray that have nothing to do here, accepted because users set them for all their files."""


class IIDBackendEntrypoint(BackendEntrypoint):
    """Open ``.iid`` files, and mosaics of them, as lazy label, mask and depth arrays.

    ``xr.open_dataset(path, engine="iid", chunks={})`` gives dask arrays, without ``chunks`` lazy ones that
    suit small windows better.

    Parameters
    ----------
    filename_or_obj : path, URL, bytes or binary file object
        Anything that fsspec reads; for a mosaic its folder, or the ``mosaic.json`` in it.
    drop_variables : str or list of str, optional
    overlap : {"last", "first", "smallest", "largest", "raise"}
        Which entry a pixel of ``label`` shows where several cover it: the highest key, the lowest, the smallest
        or the largest area (ties to the higher key); "raise" refuses such pixels.
    labels : {"key", "address"}, array or table
        What ``label`` shows: key + 1; the address, where all are decimal numbers; or given integers of 1 or more,
        one an entry in the order of keys, or a table with columns ``key`` and ``label``.
    keys, groups, domains, addresses, area
        Show only entries that pass all of these; labels stay. ``area=(min, max)`` in pixels, both included,
        None is no bound.
    shape : (rows, columns), optional
        Default: the metadata's ``image`` size, else what the boxes span.
    stride : int
        One element for stride × stride pixels.
    reduce : {"nearest", "any"}
        "nearest" samples the middle pixel of each such block; "any" shows what has a pixel anywhere in it.
    layers : bool
        Add ``layers`` (layer, y, x): label arrays that lose no entry to overlaps. Decodes all masks at opening. With
        ``reduce="any"`` entries of a layer that share a block, though no pixel, still hide one another.
    color : bool
        Add ``color`` (y, x, rgb): a stable colour a label.
    entries : bool
        Add the entry table on dimension ``entry``.
    verify : bool
        Compare what is read with the checksums of the file's index, if it has one.
    limits : iid_dask.Limits, optional
    storage_options : mapping, optional
        For the fsspec file system of a URL.

    Raises
    ------
    IIDFormatError
        If the bytes are not a sound ``.iid`` file.
    KeyError
        For keys, groups, domains or addresses that the file does not have.

    Examples
    --------
    >>> import iid_dask, xarray as xr
    >>> ds = xr.open_dataset(iid_dask.sample("us"), engine="iid", groups="states")
    >>> dict(ds.label.sizes), ds.label.dtype, int(ds.label.max())
    ({'y': 600, 'x': 1000}, dtype('uint32'), 50)
    """

    description: ClassVar[str] = "Open .iid segmentation files as lazy label, mask and depth arrays"
    supports_groups: ClassVar[bool] = True
    # Explicit: xarray cannot find them by itself for a class given as engine together with decode_cf=False.
    open_dataset_parameters: ClassVar[tuple[str, ...] | None] = (*OPTIONS, *DECODERS)

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        overlap: str = "last",
        labels: Any = "key",
        keys: Any = None,
        groups: Any = None,
        domains: Any = None,
        addresses: Any = None,
        area: Any = None,
        shape: Any = None,
        stride: int = 1,
        reduce: str = "nearest",
        layers: bool = False,
        color: bool = False,
        entries: bool = True,
        verify: bool = True,
        limits: Any = None,
        storage_options: Any = None,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        decode_timedelta: Any = None,
        use_cftime: Any = None,
        concat_characters: Any = None,
        decode_coords: Any = None,
    ) -> Dataset:
        """Open a file as one dataset; see the class for the parameters."""
        given = locals()
        from iid_dask.dataset import open_dataset

        return open_dataset(filename_or_obj, **{name: given[name] for name in OPTIONS})

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        levels: int | None = None,
        mask_and_scale: Any = None,
        decode_times: Any = None,
        decode_timedelta: Any = None,
        use_cftime: Any = None,
        concat_characters: Any = None,
        decode_coords: Any = None,
        **options: Any,
    ) -> dict[str, Dataset]:
        """Open a file as a pyramid: "/" with the ``multiscales`` attributes, and levels "/0", "/1", …

        Level n has stride 2**n, sampled from the masks themselves. Levels go down to 512 pixels on the longer
        side unless ``levels`` says how many; the entry table is in "/0". Other options as in `open_dataset`.
        """
        from iid_dask.dataset import open_pyramid

        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise TypeError(f"unknown options {sorted(unknown)}; there are: levels, {', '.join(OPTIONS)}")
        return open_pyramid(filename_or_obj, levels=levels, **options)

    def open_datatree(self, filename_or_obj: Any, **options: Any) -> DataTree:
        """Open a file as a pyramid; see `open_groups_as_dict`."""
        groups = self.open_groups_as_dict(filename_or_obj, **options)
        tree = DataTree.from_dict(groups)
        for path, dataset in groups.items():
            tree[path].set_close(dataset._close)
        return tree

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the name ends in ``.iid``, or local bytes or a folder look like it; asks no network."""
        from iid_dask.sniff import looks_like_iid

        try:
            return looks_like_iid(filename_or_obj)
        except Exception:  # a guess that raises would warn users of every other engine
            return False
