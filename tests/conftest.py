"""What all tests share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from object_store import Bucket, new_bucket, serving

import iid_dask

DATA = Path(__file__).parent / "data"
REFERENCE = sorted(path.name.split(".")[0] for path in DATA.glob("*.expected.npz"))
"""Files with arrays by the reference implementation."""


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of the sample files, with an index."""
    folder = tmp_path_factory.mktemp("indexed")
    for source in DATA.glob("*.iid"):
        iid_dask.add_index(source, folder / source.name)
    return {path.stem: path for path in folder.glob("*.iid")}


@pytest.fixture
def us(tmp_path: Path) -> Path:
    """A copy of the sample that a test may change."""
    return Path(shutil.copyfile(iid_dask.sample("us"), tmp_path / "us.iid"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a server that speaks S3."""
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str) -> Bucket:
    """An empty bucket."""
    return new_bucket(s3_endpoint)
