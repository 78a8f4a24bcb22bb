"""tfds's rules for the names of data sets, builder configs and versions."""

from __future__ import annotations

from collections.abc import Iterable

INCOMPLETE = ".incomplete"
"""What tfds adds to the name of a version folder while it writes it, followed by some letters and digits."""


def is_version(name: str) -> bool:
    """Whether a folder's whole name is a version, `MAJOR.MINOR.PATCH` without leading zeros.

    >>> is_version("1.0.0"), is_version("1.0.0.incompleteA1B2"), is_version("1.0"), is_version("v1.0.0")
    (True, False, False, False)
    """
    from tensorflow_datasets.core.utils.version import Version

    return bool(Version.is_valid(name))


def is_incomplete(name: str) -> bool:
    """Whether tfds gave a folder this name while it wrote a version into it."""
    version, found, _ = name.partition(INCOMPLETE)
    return bool(found) and is_version(version)


def newest(versions: Iterable[str], wanted: str = "*.*.*") -> str | None:
    """The highest version that fits `wanted`, whose parts may be `*`; None if there is none.

    >>> newest(["1.0.0", "1.10.0", "1.9.0", "2.0.0"], "1.*.*")
    '1.10.0'
    """
    from tensorflow_datasets.core.utils.version import Version

    try:
        return max((v for v in versions if Version(v).match(wanted)), key=lambda v: Version(v).tuple, default=None)
    except ValueError:  # not a version; `versions` may have one that was given by its path
        return wanted if wanted in versions else None


def snake_case(name: str) -> str:
    """The name that tfds gives to the folder of a builder class.

    >>> snake_case("BridgeDataset")
    'bridge_dataset'
    """
    from tensorflow_datasets.core import naming

    return str(naming.camelcase_to_snakecase(name)) if name.isidentifier() else name
