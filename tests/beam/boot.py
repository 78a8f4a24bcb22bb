"""Beam's container start-up (`boot`), in Python: install what the job staged, then start the SDK harness.

Only Beam and its dependencies are there before, as in Beam's containers: `-S` leaves out the checkout.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    assert not any((Path(folder) / "oxe_curate").is_dir() and "wt" in folder for folder in sys.path)
    folder = Path(tempfile.mkdtemp(prefix="boot-"))
    fetch(args.id, args.provision_endpoint, folder)
    names = (folder / "extra_packages.txt").read_text().split()
    site = folder / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, *install, *(str(folder / name) for name in names)], check=True)
    code = (
        "import sys; from apache_beam.runners.worker.sdk_worker import SdkHarness; "
        f"SdkHarness({args.control_endpoint!r}, worker_id={args.id!r}, state_cache_size=0, "
        "data_buffer_time_limit_ms=-1).run()"
    )
    path = os.pathsep.join([str(site), *[folder for folder in sys.path if folder.endswith("site-packages")]])
    os.execve(sys.executable, [sys.executable, "-S", "-c", code], {**os.environ, "PYTHONPATH": path})


def fetch(worker: str, endpoint: str, folder: Path) -> None:
    """Download the artifacts of the job's environment."""
    channel = grpc.intercept_channel(grpc.insecure_channel(endpoint), _WorkerId(worker))
    provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
    info = provision.GetProvisionInfo(beam_provision_api_pb2.GetProvisionInfoRequest()).info
    artifacts = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
    for dependency in info.dependencies:
        role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(dependency.role_payload)
        request = beam_artifact_api_pb2.GetArtifactRequest(artifact=dependency)
        with (folder / role.staged_name).open("wb") as file:
            for part in artifacts.GetArtifact(request):
                file.write(part.data)


class _WorkerId(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self, worker: str) -> None:
        self._worker = worker

    def _with_id(self, details: grpc.ClientCallDetails) -> grpc.ClientCallDetails:
        return details._replace(metadata=[*(details.metadata or ()), ("worker_id", self._worker)])

    def intercept_unary_unary(self, call, details, request):  # type: ignore[no-untyped-def]
        return call(self._with_id(details), request)

    def intercept_unary_stream(self, call, details, request):  # type: ignore[no-untyped-def]
        return call(self._with_id(details), request)


if __name__ == "__main__":
    main()
