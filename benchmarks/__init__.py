"""How fast and how lean: ``python -m benchmarks rasterize|open|zarr``."""
