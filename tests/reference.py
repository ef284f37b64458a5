"""The reference implementation, for tests that compare with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of releases newer than the reference
    iidfile = pytest.importorskip("iidfile")


@contextmanager
def reference(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file by the reference, which neither closes files nor opens those that it may not write."""
    file = iidfile.IIDFile(str(path))
    try:
        yield file
    finally:
        file.mmap.close()
        file.file.close()
