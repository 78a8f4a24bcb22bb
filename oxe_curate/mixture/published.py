"""The published mixtures, by name: OpenVLA's, Octo's, RT-1-X's.

They are YAML files of `mixtures/`, which a wheel carries inside the package. The first two lines of each name the
project, the name there, and the source.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from oxe_curate.errors import ConfigError, did_you_mean
from oxe_curate.mixture.spec import Mixture, read_mixture

_HEADER = re.compile(
    r"# Published mixture: (?P<project>[^,\n]+), (?P<upstream>[^\n]+)\r?\n# Source: (?P<source>[^\n]+)"
)
_FOLDERS = (Path(__file__).parent / "data", Path(__file__).parents[2] / "mixtures")
"""Inside a wheel, and in a checkout."""


@dataclass(frozen=True)
class Published:
    """A published mixture.

    Attributes:
        name: of the file and of the mixture in it, "openvla_rtx".
        project: "OpenVLA", "OpenVLA-OFT", "Octo" or "RT-1-X".
        upstream: its name there, "rtx".
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
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    found = {}
    for path in sorted(folder.glob("*.yaml")) if folder else ():
        with path.open(encoding="utf-8") as file:
            header = _HEADER.match(file.readline() + file.readline())
        if header:  # the folder may hold a user's own files beside them
            found[path.stem] = Published(path.stem, header["project"], header["upstream"], header["source"], path)
    return found


def published_names() -> list[str]:
    """The names that `load` knows, sorted."""
    return list(published_mixtures())


def find_published(name: str) -> Published:
    """Look a mixture up by its name, or by its name in its project where only one has it.

    >>> find("oxe_magic_soup_plus").name
    'openvla_oxe_magic_soup_plus'

    Raises:
        ConfigError: nothing is called so, or several projects have a mixture of that name.
    """
    known = published_mixtures()
    if name in known:
        return known[name]
    own = [mixture for mixture in known.values() if mixture.upstream == name]
    if len(own) > 1:
        raise ConfigError(f"{name!r} is published by several projects: say {' or '.join(m.name for m in own)}.")
    if not own:
        everything = [*known, *(mixture.upstream for mixture in known.values())]
        raise ConfigError(f"no published mixture is called {name!r}. {did_you_mean(name, everything)}")
    return own[0]


def load_published(name: str) -> Mixture:
    """Read a published mixture. Raises ConfigError as `find` does."""
    return read_mixture(find_published(name).path)


def path_of(file_or_name: str | Path) -> Path:
    """The file that a command's argument means: a path, or the name of a published mixture.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(file_or_name)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path  # read_mixture says what is wrong with a missing file
    return find_published(str(file_or_name)).path
