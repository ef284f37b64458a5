"""Bytes of ``.iid`` files to records and back; numpy and kernels only."""
