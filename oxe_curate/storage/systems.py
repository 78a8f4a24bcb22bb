"""The pyarrow file systems behind gs:// and s3://, opened once per process."""

from __future__ import annotations

import functools
import os
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from oxe_curate.errors import StorageError
from oxe_curate.storage.options import StoreOptions

_CONNECT = 8.0  # seconds


@functools.lru_cache(maxsize=64)
def file_system(uri: str, options: StoreOptions, listing: bool = False) -> tuple[Any, str]:
    """The file system of a URI and the path inside it.

    gs:// and s3:// use the default credentials; `gs://anonymous@bucket` or OXE_CURATE_ANONYMOUS=1 reads public data
    without credentials, as does gs:// where none are configured. Only listings are repeated by the clients themselves,
    page by page; `attempt` repeats everything else.
    """
    scheme, _, rest = uri.partition("://")
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    anonymous = rest.startswith("anonymous@") or os.environ.get("OXE_CURATE_ANONYMOUS") == "1"
    rest = rest.removeprefix("anonymous@").rstrip("/")
    if not rest.partition("/")[0]:
        raise StorageError(f"{uri}: no bucket is named; expected {scheme}://BUCKET/FOLDER")
    try:
        if scheme in ("gs", "gcs"):
            return _gcs(anonymous), rest
        if scheme == "s3":
            return _s3(anonymous, options, listing), rest
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{uri}: {error}") from error
    raise StorageError(f"{uri}: unknown scheme {scheme}://; use a local path, gs:// or s3://")


def _s3(anonymous: bool, options: StoreOptions, listing: bool) -> Any:
    if options.requests > pa.io_thread_count():
        pa.set_io_thread_count(options.requests)  # the client keeps as many connections
    return fs.S3FileSystem(
        anonymous=anonymous,
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=options.timeout,
        request_timeout=options.timeout,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=options.retries + 1 if listing else 1),
        allow_delayed_open=True,  # a small object is one request instead of three
    )


def _gcs(anonymous: bool) -> Any:
    """Google Cloud Storage, with the credentials that are set up, if any."""
    adc = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or Path(
        os.environ.get("CLOUDSDK_CONFIG", Path.home() / ".config" / "gcloud"),
        "application_default_credentials.json",
    )
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")  # Google's own variable for a test server
    scheme, _, host = (endpoint or "").rpartition("://")
    if not any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        name, _, port = (host or "storage.googleapis.com").partition(":")
        check_reachable(name, int(port or (80 if scheme == "http" else 443)))
    return fs.GcsFileSystem(
        anonymous=anonymous or bool(endpoint) or not Path(adc).exists(),
        endpoint_override=host or None,
        scheme=scheme or ("http" if endpoint else None),
        retry_time_limit=timedelta(seconds=1),  # the least: `attempt` counts, pauses and explains,
    )


def check_reachable(host: str, port: int, seconds: float = _CONNECT) -> None:
    """Raise OSError at once where there is no route: Google's client would retry for a quarter of an hour."""
    problem: list[OSError] = [TimeoutError(f"no answer within {seconds:.0f} s")]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError as error:
            problem[0] = error
        else:
            problem.clear()

    thread = threading.Thread(target=connect, daemon=True)  # the name look-up has no time limit of its own
    thread.start()
    thread.join(seconds)
    if problem:
        raise OSError(f"cannot connect to {host}:{port} ({problem[0]}). Check the network; HTTPS_PROXY sets a proxy")
