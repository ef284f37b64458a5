"""The entries of one file, or of ten thousand, as a table."""

from iid_dask.entries.frames import look_for, read_entries, read_files
from iid_dask.entries.linking import link
from iid_dask.entries.single import table

__all__ = ["link", "look_for", "read_entries", "read_files", "table"]
