"""A wheel of the installed package, which Beam stages so that workers elsewhere run the same code.

Beam's containers hold Beam only. The wheel is made from the files of the running package, a checkout included, and
requires exactly the versions that the command runs with, so that the workers write the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import oxe_curate

_DISTRIBUTION = "oxe-curate"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same files make the same bytes, so that Beam's caches find the wheel again
_OWN_PACKAGING = (
    "--setup_file", "--extra_package", "--extra_packages", "--sdk_container_image", "--requirements_file",
)  # fmt: skip


def stages_package(kind: str, beam_args: Sequence[str]) -> bool:
    """Whether the package is staged: the runner starts containers, and no option says how they get the package."""
    names = {argument.partition("=")[0] for argument in beam_args}
    return kind != "dask" and not names & set(_OWN_PACKAGING) and environment(kind, beam_args) != "LOOPBACK"


def environment(kind: str, beam_args: Sequence[str]) -> str:
    """Return where a portable runner's workers run: the value of --environment_type, or the runner's default."""
    from oxe_curate.beam.fn import PipelineOptions

    options = PipelineOptions(list(beam_args)).get_all_options(retain_unknown_options=True)
    return str(options.get("environment_type") or ("LOOPBACK" if kind == "prism" else "DOCKER")).upper()


def write_wheel(folder: Path) -> Path:
    """Write a wheel of the running package to a folder; return its path."""
    version = metadata.version(_DISTRIBUTION)
    info = f"oxe_curate-{version}.dist-info"
    files = {f"oxe_curate/{name}": path.read_bytes() for name, path in _package_files()}
    files[f"{info}/METADATA"] = _pinned_metadata()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: oxe-curate\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\noxe-curate = oxe_curate.cli.main:main\n"
    files[f"{info}/RECORD"] = "".join(
        f"{name},{_digest(data)},{len(data)}\n" for name, data in files.items()
    ).encode() + (f"{info}/RECORD,,\n".encode())
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"oxe_curate-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data, zipfile.ZIP_DEFLATED)
    return wheel


def _package_files() -> Iterator[tuple[str, Path]]:
    root = Path(oxe_curate.__file__).parent
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and "__pycache__" not in name.parts:
            yield name.as_posix(), path


def _pinned_metadata() -> bytes:
    """The package's METADATA, without extras, with the installed version of each package that it requires."""
    found = Parser().parsestr(metadata.distribution(_DISTRIBUTION).read_text("METADATA") or "")
    pinned = Message()
    for name in ("Metadata-Version", "Name", "Version", "Summary", "Requires-Python"):
        if value := found.get(name):
            pinned[name] = value
    for requirement in found.get_all("Requires-Dist", []):
        needed, _, marker = requirement.partition(";")
        match = re.match(r"[A-Za-z0-9._-]+", needed)
        if match and "extra" not in marker:
            pinned["Requires-Dist"] = f"{match[0]}=={metadata.version(match[0])}" + (f";{marker}" if marker else "")
    return pinned.as_bytes()


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
