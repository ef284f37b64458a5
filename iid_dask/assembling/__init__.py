"""Images and files to one ``.iid`` file or a mosaic: tiles, seams, and one file, in parallel."""

from iid_dask.assembling.front import to_iid, to_mosaic
from iid_dask.assembling.plan import Plan
from iid_dask.assembling.prepared import InputOptions

__all__ = ["InputOptions", "Plan", "to_iid", "to_mosaic"]
