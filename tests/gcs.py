"""A Google Cloud Storage emulator on this machine, with a bucket: a process of its own, gcp-storage-emulator."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from oxe_curate.storage.systems import file_system
from tests import ROOT, faults

_INSTALLED = ROOT / ".venv-gcs/bin/gcp-storage-emulator"  # by `make gcs-emulator`


def command() -> list[str]:
    """The emulator's command; skips where there is none."""
    named = os.environ.get("OXE_CURATE_GCS_EMULATOR")
    if named:
        return [named]
    if importlib.util.find_spec("gcp_storage_emulator"):
        return [sys.executable, "-m", "gcp_storage_emulator"]
    if _INSTALLED.exists():
        return [str(_INSTALLED)]
    pytest.skip("no emulator of Google Cloud Storage: run `make gcs-emulator`")


@contextmanager
def faulty_bucket() -> Iterator[tuple[str, faults.ProxyProcess]]:
    """An empty bucket behind a proxy that can make requests fail, with the environment set so that everything finds it.

    Skips where no emulator is installed.
    """
    start = command()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*start, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patch = pytest.MonkeyPatch()
    try:
        _create(f"127.0.0.1:{port}", process)
        with faults.proxy_process(f"127.0.0.1:{port}") as proxy:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://{proxy.address}")
            file_system.cache_clear()
            yield "gs://bucket", proxy
    finally:
        patch.undo()
        file_system.cache_clear()
        process.terminate()
        process.wait(60)


def _create(host: str, process: subprocess.Popen[bytes]) -> None:
    """Create the bucket, as soon as the server answers."""
    request = urllib.request.Request(
        f"http://{host}/storage/v1/b?project=test", json.dumps({"name": "bucket"}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            return urllib.request.urlopen(request, timeout=60).close()
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.05)
