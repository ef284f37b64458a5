"""The API of the published ``iidfile`` package, on top of iid_dask: ``from iid_dask import IIDFile``.

What differs from ``iidfile`` 0.2.0 is listed in the notes of `IIDFile`.
"""

from iid_dask.iidfile.entries import IID, FileEntry, Segment, SegmentRegion
from iid_dask.iidfile.file import IIDFile
from iid_dask.iidfile.tables import Group, Groups, LookupTable, Meta

__all__ = ["IID", "FileEntry", "Group", "Groups", "IIDFile", "LookupTable", "Meta", "Segment", "SegmentRegion"]
