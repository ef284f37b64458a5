"""Work cut into batches, run on whatever dask scheduler is active: threads, processes, a cluster."""

from iid_dask.running.jobs import run, run_graph
from iid_dask.running.schedulers import LOCAL, client_in_scope, scheduled, threads_in_scope
from iid_dask.running.work import Work, batches_of, named

__all__ = [
    "LOCAL",
    "Work",
    "batches_of",
    "client_in_scope",
    "named",
    "run",
    "run_graph",
    "scheduled",
    "threads_in_scope",
]
