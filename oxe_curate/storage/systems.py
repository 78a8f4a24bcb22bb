"""The pyarrow file systems behind gs:// and s3://, opened once per process."""

from __future__ import annotations

import functools
import os
import socket
import threading
from pathlib import Path
from typing import Any

from pyarrow import fs

from oxe_curate.errors import StorageError

_CONNECT = 8.0  # seconds


@functools.lru_cache(maxsize=64)
def file_system(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path inside it.

    gs:// and s3:// use the default credentials; `gs://anonymous@bucket` or OXE_CURATE_ANONYMOUS=1 reads public data
    without credentials, as does gs:// where none are configured.
    """
    scheme, _, rest = uri.partition("://")
    if not rest:
        return fs.LocalFileSystem(), uri
    anonymous = rest.startswith("anonymous@") or os.environ.get("OXE_CURATE_ANONYMOUS") == "1"
    rest = rest.removeprefix("anonymous@").rstrip("/")
    try:
        if scheme in ("gs", "gcs"):
            return _gcs(anonymous), rest
        if scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            return fs.S3FileSystem(anonymous=anonymous, endpoint_override=endpoint), rest
    except (OSError, ValueError) as error:
        raise StorageError(f"{uri}: {error}") from error
    raise StorageError(f"{uri}: unknown scheme {scheme}://; use a local path, gs:// or s3://")


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
        retry_time_limit=None,
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
