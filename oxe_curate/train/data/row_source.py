"""Where rows come from, and in which order: a local disk reads any row at any time, an object store by row groups."""

from __future__ import annotations

from collections.abc import Sequence

from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.local import MEMORY, LocalRows, ShardName
from oxe_curate.train.data.order import Shuffle
from oxe_curate.train.data.rows import Form
from oxe_curate.train.data.stream import BUFFER, RemoteRows, StreamOrder, lanes

RowSource = LocalRows | RemoteRows
"""`len`, `claim(rows)` and `batches(plan)`."""

RowOrder = Shuffle | StreamOrder
"""`rows(positions)` and `positions(...)`."""


def open_rows(
    mixture: MixtureFolder,
    shards: Sequence[ShardName],
    form: Form,
    memory: int = MEMORY,
    row_groups: bool | None = None,
) -> RowSource:
    """The rows of some shards; `row_groups`: read by whole row groups, None: where the mixture is in an object store.

    Raises:
        DataError: a shard is missing, damaged or not the one that the manifest tells of.
    """
    if row_groups or not mixture.folder.is_local:
        return RemoteRows(mixture, shards, form)
    return LocalRows(mixture, shards, form, memory)


def order_of(source: RowSource, seed: int, global_batch: int, world: int) -> RowOrder:
    """The order of training samples; for an object store also how far each process looks ahead."""
    if isinstance(source, LocalRows):
        return Shuffle(seed, len(source))
    rows = max(BUFFER // (source.form.window * len(source.form.cameras)), 1)
    count = lanes(global_batch, len(source.sizes))
    source.ahead = -(-rows // world)
    return StreamOrder(seed, source.sizes, count, -(-rows // count))
