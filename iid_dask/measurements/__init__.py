"""What an image is like under every mask, and what the masks are like.

`measure` is imported when it is used: the tasks of a tile need none of xarray, pandas and pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iid_dask.measurements.table import measure as measure

__all__ = ["measure"]


def __getattr__(name: str) -> Any:
    if name == "measure":
        from iid_dask.measurements.table import measure

        return measure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
