"""What a job will take, before it starts; pure."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 2**20

TILES_BYTES, TABLES_BYTES = 300 * MIB, 340 * MIB
"""Of a process with what tasks import that write tiles, and what those import that use xarray and pandas.

Measured: 233 to 249 MiB and 286 to 306, and where kernels are compiled there and then 283 and 323.
"""


@dataclass(frozen=True)
class Plan:
    """Tiles, tasks, files and memory of a job; see `iid_dask.plan`.

    Memory is stated twice where content matters much: the bound, which holds for noise too, and what images take whose
    objects have some pixels each.

    Attributes
    ----------
    job : str
        What is made of what.
    tiles, tasks : int
        Units of work, and dask tasks that do them.
    bytes_in : int
        Of what is read, uncompressed; masks as they are stored.
    bytes_out : int or None
        Of what is written: at most, before compression. None where it depends on masks that are not read yet.
    files : int
        Files or objects that are written, at most.
    base_bytes : int
        Of memory of a process before its first task.
    thread_bytes : int
        Of memory of each thread at work, at most.
    caller_bytes : int
        Of memory of the process that calls, such as tables of all entries, at most.
    shared : bool
        Whether tasks run in the process that calls.
    usual_thread_bytes, usual_caller_bytes : int, optional
        The same of images that are no noise; default: no less.
    shape : (rows, columns), optional
        Of the image.
    advice : str
        What else would do, if not by how much.
    ways_out : tuple of (str, int)
        What may be changed, the least change first, and what a thread then takes, usually.
    """

    job: str
    tiles: int
    tasks: int
    bytes_in: int
    bytes_out: int | None
    files: int
    base_bytes: int
    thread_bytes: int
    caller_bytes: int = 0
    shared: bool = True
    usual_thread_bytes: int | None = None
    usual_caller_bytes: int | None = None
    shape: tuple[int, int] | None = None
    advice: str = ""
    ways_out: tuple[tuple[str, int], ...] = field(default=(), repr=False)

    def peak_bytes(self, threads: int = 1) -> int:
        """Return the most memory of a process that works with so many threads: a worker, or else the one that calls.

        Examples
        --------
        >>> plan = Plan("a.iid to a.zarr", 4, 2, 2**20, 2**26, 9, base_bytes=300, thread_bytes=50, caller_bytes=7)
        >>> plan.peak_bytes(2)
        407
        """
        return self.base_bytes + threads * self.thread_bytes + self.caller_bytes * self.shared

    def usual_bytes(self, threads: int = 1) -> int:
        """Return the same for images that are no noise."""
        thread = self.thread_bytes if self.usual_thread_bytes is None else self.usual_thread_bytes
        caller = self.caller_bytes if self.usual_caller_bytes is None else self.usual_caller_bytes
        return self.base_bytes + threads * thread + caller * self.shared

    def __str__(self) -> str:
        thread = self.thread_bytes if self.usual_thread_bytes is None else self.usual_thread_bytes
        pixels = "" if self.shape is None else f"{self.shape[0]} x {self.shape[1]} pixels, "
        said = [
            f"{self.job}: {pixels}{_counted(self.tiles, 'tile')} in {_counted(self.tasks, 'task')}",
            f"reads {_text(self.bytes_in)}",
            f"writes {_counted(self.files, 'file')} at most, "
            + ("of a size that depends on the masks" if self.bytes_out is None else f"of {_text(self.bytes_out)}"),
            f"a worker needs about {_text(self.usual_bytes())}, and {_text(thread)} more for each further thread",
        ]
        if self.usual_bytes() < self.peak_bytes():
            noise = f"{_text(self.peak_bytes())} and {_text(self.thread_bytes)}"
            said[-1] += f" (for images that are noise, up to {noise})"
        return "; ".join(said)

    def refusal(self, limit: int, threads: int) -> str | None:
        """Say why a worker cannot do it, and what would; None if it can.

        Parameters
        ----------
        limit : int
            Bytes of memory at which the worker is paused.
        threads : int
            Of the worker.

        Examples
        --------
        >>> ways = (("tile=2048", 40 * 2**20), ("tile=1024", 12 * 2**20))
        >>> plan = Plan("a.npy to a.iid", 4, 2, 0, None, 9, 300 * 2**20, 150 * 2**20, shared=False, ways_out=ways)
        >>> plan.refusal(2**30, 2) is None
        True
        >>> plan.refusal(400 * 2**20, 2)
        'a.npy to a.iid: needs 600.00 MiB on a worker with 2 threads, expected at most 400.00 MiB, at which it is \
paused; take tile=2048, which needs 380.00 MiB, or workers of more memory; nothing of this step was written'
        """
        needed = self.usual_bytes(threads)
        if needed <= limit:
            return None
        return (
            f"{self.job}: needs {_text(needed)} on a worker with {_counted(threads, 'thread')}, expected at most "
            f"{_text(limit)}, at which it is paused; take {', or '.join([*self._changes(limit, threads), MORE])}; "
            "nothing of this step was written"
        )

    def _changes(self, limit: int, threads: int) -> list[str]:
        """What would do: the least change of the job that fits, and the most threads that fit as it is."""
        found = []
        thread = self.thread_bytes if self.usual_thread_bytes is None else self.usual_thread_bytes
        for change, nbytes in self.ways_out:
            if self.base_bytes + threads * nbytes <= limit:
                found.append(f"{change}, which needs {_text(self.base_bytes + threads * nbytes)}")
                break
        if self.advice:
            found.append(self.advice)
        fewer = (limit - self.base_bytes) // max(1, thread)
        if 1 <= fewer < threads:
            found.append(f"workers of {_counted(fewer, 'thread')}")
        return found


MORE = "workers of more memory"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _text(nbytes: int) -> str:
    from dask.utils import format_bytes

    return format_bytes(nbytes)
