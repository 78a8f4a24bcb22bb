"""One thread of linear algebra."""

from threadpoolctl import threadpool_info, threadpool_limits

from oxe_curate import blas


def test_one_thread_in_the_block_and_as_many_as_before_after_it() -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        with blas.one_thread():
            assert threads() == {1}
        assert threads() == {2}
