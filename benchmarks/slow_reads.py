"""A Dask preload: every read of a source shard takes at least 50 ms, as on a slow network file system."""

import time

from oxe_curate.rlds.remote import LocalShard

SECONDS = 0.05
_load = LocalShard._load


def _slowly(self: LocalShard, first: int, stop: int) -> None:
    time.sleep(SECONDS)
    _load(self, first, stop)


LocalShard._load = _slowly  # type: ignore[method-assign]
