"""Fixtures that more than one room uses."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a shared machine may stall for longer than hypothesis' 200 ms; the same examples every time keep CI deterministic
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data and golden cases; tests that need it are skipped elsewhere."""
    named = os.environ.get("OXE_CURATE_SHARED")
    folder = Path(named or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        if named:
            pytest.fail(f"OXE_CURATE_SHARED names {named}, which contains no data/")
        pytest.skip("real data not found: set OXE_CURATE_SHARED to the folder that holds data/ and parity/")
    return folder
