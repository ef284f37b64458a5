"""A server on loopback that speaks S3, for tests."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of a server.

    Attributes
    ----------
    name : str
    endpoint : str
        URL of the server.
    """

    name: str
    endpoint: str
    storage_options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": self.endpoint}}
        object.__setattr__(self, "storage_options", options)

    def url(self, path: str) -> str:
        """Return the URL of an object."""
        return f"s3://{self.name}/{path}"

    def through(self, endpoint: str, **options: Any) -> Bucket:
        """Return the bucket as it is seen at another URL, by a client with further options."""
        other = Bucket(self.name, endpoint)
        other.storage_options.update(options)
        return other

    @property
    def fs(self) -> Any:
        """The bucket's file system, which remembers no listings."""
        import s3fs

        return s3fs.S3FileSystem(**self.storage_options, use_listings_cache=False)


@contextmanager
def serving() -> Iterator[str]:
    """Run a server for the time of the block, and give its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(endpoint: str) -> Bucket:
    """Make a bucket that nobody else uses."""
    bucket = Bucket(f"b{uuid.uuid4().hex}", endpoint)
    bucket.fs.mkdir(bucket.name)
    return bucket
