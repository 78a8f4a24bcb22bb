"""One thread of linear algebra."""

import numpy as np
import pytest

from oxe_curate import blas


def test_one_thread_in_the_block_and_as_many_as_before_after_it() -> None:
    calls = blas._openblas()
    if calls is None:
        pytest.skip("numpy has no OpenBLAS of its own here")
    get, put = calls
    before = get()
    try:
        put(2)
        with blas.one_thread():
            assert get() == 1
        assert get() == 2
    finally:
        put(before)


def test_nothing_happens_without_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    with blas.one_thread():
        assert (np.eye(3) @ np.eye(3)).sum() == 3
