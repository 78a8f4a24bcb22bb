"""Fixtures that more than one room uses."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data and golden cases; tests that need it are skipped elsewhere."""
    folder = Path(os.environ.get("OXE_CURATE_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("real data not found: set OXE_CURATE_SHARED to the folder that holds data/ and parity/")
    return folder
