"""One source shard -> its rows of the episode index. Plain functions, which Beam only distributes."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from oxe_curate.errors import CorruptError, DataError
from oxe_curate.filter.decisions import own_reasons
from oxe_curate.filter.scanner import FilterTask, FoundRecord, Scanner, scanner_of
from oxe_curate.index.files import SourceShard
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import write_table
from oxe_curate.index.table import IndexRow, index_table, with_decisions
from oxe_curate.rlds import tfrecord
from oxe_curate.rlds.foreign import ForeignFileError
from oxe_curate.rlds.remote import ShardBytes
from oxe_curate.rlds.shards import open_shard

EXACT_BELOW = 256 << 20
"""Every frame of a data set below this many bytes is located while it is scanned. Above it, only each camera's list of
frames is located: finding every frame reads one disk page each, a fifth of the data with 256 px images. Later readers
locate the frames then (see `locate`)."""
_TOGETHER = 256
"""Episodes that are standardised at once."""


def write_scanned_shard(task: FilterTask) -> Summary:
    """Scan a shard and publish its rows. Raises DataError, CorruptError or StorageError, naming shard and record."""
    table, summary, shard = scan_shard(task)
    write_table(task.out, task.output, table, summary, task.fingerprint, shard)
    return summary


def scan_shard(task: FilterTask) -> tuple[pa.Table, Summary, SourceShard]:
    """Read, standardise and screen every selected record of a shard: its index table, and what identifies the shard."""
    framing = tfrecord.Framing()
    with open_shard(task.dataset.source, task.shard.path) as shard:
        shard.expect(task.shard.records)
        rows, corrupt, read = _read_rows(task, shard, framing)
        size = shard.file_size
    # a record's checksum is read after its data, when the next record is looked for
    rows = [replace(row, record_crc=framing.crcs[row.id.record]) for row in rows]
    table = index_table(rows)
    reasons = own_reasons(table, task.criteria).tolist()
    summary = Summary.count((row.num_steps, reason) for row, reason in zip(rows, reasons, strict=True))
    summary.corrupt, summary.bytes_read = corrupt, read
    identity = SourceShard(path=task.shard.path, bytes=size, records=len(framing.crcs), digest=framing.digest)
    return with_decisions(table, reasons), summary, identity


def _read_rows(task: FilterTask, shard: ShardBytes, framing: tfrecord.Framing) -> tuple[list[IndexRow], list[str], int]:
    """Return the rows, descriptions of corrupt records, and the number of bytes read."""
    scanner = scanner_of(task.dataset, task.card, task.recipe)
    buffer, ensure = shard.buffer, shard.ensure
    rows: list[IndexRow] = []
    corrupt: list[str] = []
    read = 0
    waiting: list[FoundRecord] = []
    # frames are read record by record, since it is the order of the bytes
    together = 1 if shard.remote or task.look or task.criteria.bad_image else _TOGETHER

    def failed(number: int, offset: int, error: Exception) -> None:
        where = f"record {number} at byte {offset}: {error}"
        if not task.skip_corrupt:
            raise type(error)(where) from error
        corrupt.append(f"{task.shard.path}: {where}")

    def finish() -> None:
        """Make rows of the records that were read, in order, before a later record is complained about."""
        nonlocal read
        found, waiting[:] = list(waiting), []
        for record, trajectory in zip(found, scanner.standardize(found), strict=True):
            try:
                row, touched = scanner.row(task, record, trajectory(), buffer, ensure)
                rows.append(row)
                read += touched
            except (CorruptError, DataError) as error:
                failed(record.number, record.offset, error)

    number, first, last = -1, task.shard.skip, task.shard.skip + task.shard.take
    try:
        try:
            for number, (offset, length) in enumerate(tfrecord.records(buffer, ensure, framing)):
                if not first <= number < last:
                    continue
                try:
                    if task.verify:
                        ensure(offset, length + tfrecord.FOOTER)
                        tfrecord.check_data(buffer, offset, length)
                    waiting.append(scanner.read(task, buffer, number, offset, length, ensure))
                except (CorruptError, DataError) as error:
                    finish()
                    failed(number, offset, error)
                if len(waiting) == together:
                    finish()
        except (CorruptError, DataError):
            finish()
            raise
        finish()
        if number + 1 != task.shard.records:
            raise CorruptError(f"dataset_info.json lists {task.shard.records} records, the file has {number + 1}")
    except (CorruptError, DataError) as error:
        if task.skip_corrupt:
            corrupt.append(f"{task.shard.path}: {error}")
        else:
            advice = "" if isinstance(error, ForeignFileError) else f".\n{_ADVICE[isinstance(error, CorruptError)]}"
            raise type(error)(f"{task.name}: {error}{advice}") from error
    return rows, corrupt, read


_ADVICE = {
    True: "Download the shard again, or pass --skip-corrupt to count and list such records instead.",
    False: "Compare the data set's features.json and its card (`oxe-curate datasets NAME`), or pass --skip-corrupt.",
}


__all__ = ["EXACT_BELOW", "FilterTask", "Scanner", "scan_shard", "write_scanned_shard"]
