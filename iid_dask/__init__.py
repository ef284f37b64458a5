"""Segmentation files (``.iid``) as lazy arrays and tables.

Names are imported when they are used: ``import iid_dask`` alone loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iid_dask.assembling import InputOptions as InputOptions
    from iid_dask.assembling import to_iid as to_iid
    from iid_dask.assembling import to_mosaic as to_mosaic
    from iid_dask.bbox import BBox as BBox
    from iid_dask.entries import link as link
    from iid_dask.entries import look_for as look_for
    from iid_dask.entries import read_entries as read_entries
    from iid_dask.entries import read_files as read_files
    from iid_dask.errors import IIDChangedError as IIDChangedError
    from iid_dask.errors import IIDError as IIDError
    from iid_dask.errors import IIDFormatError as IIDFormatError
    from iid_dask.errors import IIDLimitError as IIDLimitError
    from iid_dask.errors import IIDOverlapError as IIDOverlapError
    from iid_dask.errors import IIDStoreError as IIDStoreError
    from iid_dask.errors import IIDWarning as IIDWarning
    from iid_dask.errors import IIDWorkerError as IIDWorkerError
    from iid_dask.export.completion import check_zarr as check_zarr
    from iid_dask.export.completion import open_zarr as open_zarr
    from iid_dask.export.zarr import to_zarr as to_zarr
    from iid_dask.format.entry import Entry as Entry
    from iid_dask.format.entry import Region as Region
    from iid_dask.format.indexing import add_index as add_index
    from iid_dask.format.layout import Limits as Limits
    from iid_dask.format.regions import regions_of as regions_of
    from iid_dask.format.writer import IIDWriter as IIDWriter
    from iid_dask.iidfile import IIDFile as IIDFile
    from iid_dask.images import grid_of as grid_of
    from iid_dask.leftovers import clean as clean
    from iid_dask.measurements import measure as measure
    from iid_dask.mosaic.finish import finish as finish
    from iid_dask.mosaic.folder import prepare as prepare
    from iid_dask.mosaic.opening import open as open
    from iid_dask.mosaic.reader import Mosaic as Mosaic
    from iid_dask.mosaic.reader import open_mosaic as open_mosaic
    from iid_dask.mosaic.rules import IoU as IoU
    from iid_dask.mosaic.rules import Touch as Touch
    from iid_dask.mosaic.seams import decide as decide
    from iid_dask.mosaic.seams import undo as undo
    from iid_dask.mosaic.tile import write_tile as write_tile
    from iid_dask.names import from_text as from_text
    from iid_dask.names import to_text as to_text
    from iid_dask.overlapping import overlaps as overlaps
    from iid_dask.plans import plan as plan
    from iid_dask.plot import write_png as write_png
    from iid_dask.reader import IIDReader as IIDReader

__version__ = "0.1.0"

_HOMES = {
    "BBox": "iid_dask.bbox",
    "Entry": "iid_dask.format.entry",
    "IIDChangedError": "iid_dask.errors",
    "IIDError": "iid_dask.errors",
    "IIDFile": "iid_dask.iidfile",
    "IIDFormatError": "iid_dask.errors",
    "IIDLimitError": "iid_dask.errors",
    "IIDOverlapError": "iid_dask.errors",
    "IIDReader": "iid_dask.reader",
    "IIDStoreError": "iid_dask.errors",
    "IIDWarning": "iid_dask.errors",
    "IIDWorkerError": "iid_dask.errors",
    "IIDWriter": "iid_dask.format.writer",
    "IoU": "iid_dask.mosaic.rules",
    "InputOptions": "iid_dask.assembling",
    "Limits": "iid_dask.format.layout",
    "Mosaic": "iid_dask.mosaic.reader",
    "Region": "iid_dask.format.entry",
    "Touch": "iid_dask.mosaic.rules",
    "add_index": "iid_dask.format.indexing",
    "check_zarr": "iid_dask.export.completion",
    "clean": "iid_dask.leftovers",
    "decide": "iid_dask.mosaic.seams",
    "finish": "iid_dask.mosaic.finish",
    "from_text": "iid_dask.names",
    "grid_of": "iid_dask.images",
    "link": "iid_dask.entries",
    "look_for": "iid_dask.entries",
    "measure": "iid_dask.measurements",
    "open": "iid_dask.mosaic.opening",
    "open_mosaic": "iid_dask.mosaic.reader",
    "open_zarr": "iid_dask.export.completion",
    "overlaps": "iid_dask.overlapping",
    "plan": "iid_dask.plans",
    "prepare": "iid_dask.mosaic.folder",
    "read_entries": "iid_dask.entries",
    "read_files": "iid_dask.entries",
    "regions_of": "iid_dask.format.regions",
    "to_iid": "iid_dask.assembling",
    "to_mosaic": "iid_dask.assembling",
    "to_text": "iid_dask.names",
    "to_zarr": "iid_dask.export.zarr",
    "undo": "iid_dask.mosaic.seams",
    "write_png": "iid_dask.plot",
    "write_tile": "iid_dask.mosaic.tile",
}

__all__ = ["__version__", "sample"]
__all__ += list(_HOMES)


def sample(name: str = "us") -> str:
    """Return the path of a file that ships with the package.

    Parameters
    ----------
    name
        "us": the nation, 49 states and 3,105 counties of the United States as overlapping masks on
        600 × 1,000 pixels (US Census Bureau by way of us-atlas 3.0.1, public domain).

    Examples
    --------
    >>> sample("us").endswith("us.iid")
    True
    """
    from pathlib import Path

    folder = Path(__file__).parent / "samples"
    path = folder / f"{name}.iid"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.iid")))
        raise FileNotFoundError(f"no sample {name!r}; there is: {known}")
    return str(path)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'iid_dask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
