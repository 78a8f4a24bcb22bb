"""docs/reliability.md names tests that exist."""

import re

import pytest

from tests import ROOT

TEXT = (ROOT / "docs/reliability.md").read_text()
FILES = sorted(set(re.findall(r"[\w/]*test_\w+\.py", TEXT)))


def named() -> list[tuple[str, str]]:
    """(file, test) of every test in the tables; `::name` alone is in the file before it."""
    found, file = [], ""
    for path, name in re.findall(r"([\w/]*test_\w+\.py)?(?:::(test_\w+))?", TEXT):
        file = path or file
        if name:
            found.append((file, name))
    return found


@pytest.mark.parametrize("path", FILES)
def test_the_files_exist(path: str) -> None:
    assert (ROOT / "tests" / path).is_file()


def test_the_tests_exist() -> None:
    assert len(named()) > 50
    missing = [f"{path}::{name}" for path, name in named() if f"def {name}(" not in (ROOT / "tests" / path).read_text()]
    assert missing == []
