"""What a job will take, for who asks before starting it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from iid_dask.running.admission import Planned, only_asked
from iid_dask.running.plan import Plan

JOBS = {
    f"iid_dask.{name}"
    for name in (
        "assembling.front.to_iid",
        "assembling.front.to_mosaic",
        "export.zarr.to_zarr",
        "measurements.table.measure",
        "mosaic.consolidate.consolidate",
        "mosaic.finish.finish",
        "mosaic.reader.Mosaic.to_iid",
        "overlapping.overlaps",
    )
}
"""Functions that say their plan before they write."""


def plan(job: Callable[..., Any], *args: Any, **kwargs: Any) -> Plan:
    """Return what a job will take; nothing is written.

    Input is opened and options are checked as the job itself does it, so what is wrong with them is raised here, too.

    Parameters
    ----------
    job : function
        `to_zarr`, `to_iid`, `to_mosaic`, `finish`, `measure`, `overlaps`, or ``to_iid`` of a `Mosaic`.
    *args, **kwargs
        Of the call.

    Returns
    -------
    Plan
        Tiles, tasks, bytes, files, and memory: ``plan.peak_bytes(threads)`` of a process with so many threads.

    Raises
    ------
    TypeError
        For other functions.

    Examples
    --------
    >>> import iid_dask
    >>> plan = iid_dask.plan(iid_dask.to_zarr, iid_dask.sample("us"), "states.zarr", chunks=256)
    >>> plan.tiles, plan.tasks, plan.peak_bytes(threads=4) < 2**30
    (1, 1, True)
    """
    name = f"{getattr(job, '__module__', '')}.{getattr(job, '__qualname__', '')}"
    if name not in JOBS:
        known = ", ".join(sorted({known.rsplit(".", 1)[1] for known in JOBS}))
        raise TypeError(f"plan: {job!r} is no job, expected one of: {known}")
    try:
        with only_asked():
            job(*args, **kwargs)
    except Planned as found:
        return found.plan
    raise RuntimeError(f"{name} ended without a plan")
