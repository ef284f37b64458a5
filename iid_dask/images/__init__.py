"""Label images, whatever holds them, as windows that tasks can read."""

from iid_dask.images.image import Image as Image
from iid_dask.images.lazy import DaskImage as DaskImage
from iid_dask.images.naming import grid_of as grid_of
from iid_dask.images.opening import as_image as as_image
from iid_dask.images.sectors import Sectors as Sectors
