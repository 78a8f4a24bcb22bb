"""The published mixtures of OpenVLA, Octo and RT-1-X, by name.

They are the YAML files of `mixtures/`, which a wheel carries inside the package. The first two lines of each file give
the project, the name used there, and the source.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from oxe_curate.errors import ConfigError, did_you_mean, quoted
from oxe_curate.mixture.spec import Mixture, read_mixture

_HEADER = re.compile(
    r"# Published mixture: (?P<project>[^,\n]+), (?P<upstream>[^\n]+)\r?\n# Source: (?P<source>[^\n]+)"
)
_PACKAGED = Path(__file__).parent / "data"
_CHECKOUT = Path(__file__).parents[2] / "mixtures"


@dataclass(frozen=True)
class Published:
    """A published mixture.

    Attributes:
        name: of the file and of the mixture in it, "openvla_rtx".
        project: "OpenVLA", "OpenVLA-OFT", "Octo" or "RT-1-X".
        upstream: its name in the project, "rtx".
        source: repository, file and commit.
        path: of the YAML file.
    """

    name: str
    project: str
    upstream: str
    source: str
    path: Path


@functools.cache
def published_mixtures() -> dict[str, Published]:
    """Every published mixture by name, sorted."""
    folder = next((folder for folder in (_PACKAGED, _CHECKOUT) if folder.is_dir()), None)
    found = {}
    for path in sorted(folder.glob("*.yaml")) if folder else ():
        with path.open(encoding="utf-8") as file:
            header = _HEADER.match(file.readline() + file.readline())
        if header:  # a checkout's folder may hold a user's own files too
            found[path.stem] = Published(path.stem, header["project"], header["upstream"], header["source"], path)
    return found


def find_published(name: str) -> Published:
    """Find a mixture by its name, or by its name in its project if only one project uses it.

    >>> find_published("oxe_magic_soup_plus").name
    'openvla_oxe_magic_soup_plus'

    Raises:
        ConfigError: unknown name, or several projects have a mixture of that name.
    """
    known = published_mixtures()
    if name in known:
        return known[name]
    own = [mixture for mixture in known.values() if mixture.upstream == name]
    if len(own) > 1:
        names = " or ".join(mixture.name for mixture in own)
        raise ConfigError(f"{name!r} is published by several projects; use {names}")
    if not own:
        everything = [*known, *(mixture.upstream for mixture in known.values())]
        raise ConfigError(f"{quoted(name)}: no such file or published mixture. {did_you_mean(name, everything)}")
    return own[0]


def load_published(name: str) -> Mixture:
    """Read a published mixture. Raises ConfigError as `find_published` does."""
    return read_mixture(find_published(name).path)


def resolve_mixture(name_or_path: str | Path) -> Path:
    """Return the file of a mixture that is given as a path or as the name of a published mixture.

    A file comes before a published mixture of the same name. A path (with a suffix .yaml or .yml, or with a folder)
    is returned as it is, whether or not the file exists.

    Raises:
        ConfigError: it is neither; the message has the closest match.
    """
    return Path(name_or_path) if is_path(name_or_path) else find_published(str(name_or_path)).path


def is_path(name_or_path: str | Path) -> bool:
    """Whether `resolve_mixture` takes this for a path."""
    path = Path(name_or_path)
    exists = os.path.exists(path)  # noqa: PTH110 (Path.exists raises for a name that is too long)
    return exists or path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def is_packaged(path: Path) -> bool:
    """Whether a file belongs to the installed package, and must not be edited."""
    return Path(os.path.realpath(path)).parent == Path(os.path.realpath(_PACKAGED))
