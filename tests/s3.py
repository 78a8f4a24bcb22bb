"""An S3 server on this machine, with a bucket."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from oxe_curate.storage.systems import file_system
from tests import faults


@contextmanager
def bucket() -> Iterator[str]:
    """The address of an empty bucket, with the environment set so that everything finds it; skips without moto."""
    with server() as host, at(host):
        yield "s3://bucket"


@contextmanager
def faulty_bucket() -> Iterator[tuple[str, faults.Proxy]]:
    """A bucket behind a proxy that can make requests fail."""
    with server() as host, faults.proxy(host) as proxy, at(proxy.address):
        yield "s3://bucket", proxy


@contextmanager
def server() -> Iterator[str]:
    """Host and port of a server with a bucket named "bucket"."""
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    from pyarrow import fs

    fs.S3FileSystem(
        access_key="test", secret_key="test", region="us-east-1", endpoint_override=f"http://{host}:{port}",
        allow_bucket_creation=True,
    ).create_dir("bucket")  # fmt: skip
    yield f"{host}:{port}"
    running.stop()


@contextmanager
def at(host: str) -> Iterator[None]:
    """The environment with which everything uses this server."""
    patch = pytest.MonkeyPatch()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        patch.setenv(key, value)
    file_system.cache_clear()
    yield
    patch.undo()
    file_system.cache_clear()
