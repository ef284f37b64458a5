"""Zarr arrays opened with the codec pipeline that measures fastest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import zarr
from zarr.storage import LocalStore


@contextmanager
def fastest_pipeline(*, sharded: bool, local: bool) -> Iterator[None]:
    """Configure zarr's codec pipeline by layout; the figures are in ``benchmarks/README.md``.

    Where zarr itself writes, that is shards, and where it reads. Without shards the Rust pipeline is the fastest, with
    shards zarr's fused one, which zarr has from 3.3 on. The Rust pipeline reaches local folders only.
    """
    import zarr.core.codec_pipeline as pipelines

    fused = hasattr(pipelines, "FusedCodecPipeline")
    if local and not (sharded and fused):
        path = "zarrs.ZarrsCodecPipeline"
    elif fused:
        path = "zarr.core.codec_pipeline.FusedCodecPipeline"
    else:
        path = "zarr.core.codec_pipeline.BatchedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": path, "threading.max_workers": 1}):
        yield


def with_fastest_pipeline(array: zarr.Array) -> zarr.Array:
    """Return the same array for reading, with the fastest pipeline that knows its codecs."""
    local = isinstance(array.store_path.store, LocalStore)
    if not array.dtype.isnative:  # the Rust pipeline finds out only when it reads
        return array
    with fastest_pipeline(sharded=array.shards is not None, local=local), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unsupported by.*")
        try:
            return zarr.open_array(array.store_path, mode="r")
        except UserWarning:
            return array
