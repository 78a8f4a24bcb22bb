"""An S3 server on this machine, with a bucket."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from oxe_curate.storage.systems import file_system


@contextmanager
def bucket() -> Iterator[str]:
    """The address of an empty bucket, with the environment set so that everything finds it; skips without moto."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        patch.setenv(key, value)
    file_system.cache_clear()
    from pyarrow import fs

    fs.S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True).create_dir("bucket")
    yield "s3://bucket"
    patch.undo()
    file_system.cache_clear()
    server.stop()
