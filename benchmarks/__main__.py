"""Parse, make the data, measure, print."""

from __future__ import annotations

import argparse
import importlib
import warnings
from pathlib import Path

from benchmarks import data, timing
from iid_dask.errors import IIDWarning

RUNS = (
    *("rasterize", "open", "zarr", "queries", "overlaps", "measure", "assemble", "mosaic", "crash"),
    *("faults", "reading_faults", "scale", "memory", "fuzz"),
)


def main() -> None:
    """Run one benchmark and print its tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--data", type=Path, default=data.default_folder(), help="folder of the files made from a seed")
    parser.add_argument("--out", type=Path, help="folder for the stores that are written (default: /dev/shm or --data)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each measurement is taken (default 5)")
    parser.add_argument("--small", action="store_true", help="small files: a check that all runs, not a measurement")
    options = parser.parse_args()

    options.data.mkdir(parents=True, exist_ok=True)
    if options.out is None:
        shared_memory = Path("/dev/shm")
        options.out = shared_memory if shared_memory.is_dir() else options.data
    # Discs at random places overlap, and windows cut some: that is not news here.
    warnings.simplefilter("ignore", IIDWarning)
    print(timing.machine(), flush=True)
    sizes = data.SMALL if options.small else data.FULL
    module = importlib.import_module(f"benchmarks.{options.what}")
    for table in module.measure(sizes, options.data, options.out, options.repeats):
        print(f"\n{table.markdown()}", flush=True)


if __name__ == "__main__":
    main()
