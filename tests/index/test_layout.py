"""A row's numbers, read by byte range, equal those that pyarrow reads."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oxe_curate.episode import EpisodeId, Trajectory
from oxe_curate.index.layout import VALUE_TYPES, WRITE_OPTIONS, value_offsets
from oxe_curate.index.table import SCHEMA, IndexRow, index_table

LENGTHS = (3, 0, 5, 1, 4)


def rows(exact: bool, without: tuple[int, ...] = ()) -> list[IndexRow]:
    """Episodes of several lengths; those in `without` have no recipe and so no numbers."""
    rng = np.random.default_rng(0)
    found = []
    for i, steps in enumerate(LENGTHS):
        trajectory = Trajectory(
            rng.normal(size=(steps, 7)).astype(np.float32), np.arange(1, steps + 1, dtype=np.int32),
            rng.normal(size=(steps, i)).astype(np.float32), "lift", ("lift",), np.zeros(steps, np.int32),
        )  # fmt: skip
        places = {role: rng.integers(1, 1 << 40, (steps, 2)) % (1 << 31) for role in ("primary", "wrist")[: 1 + i % 2]}
        found.append(
            IndexRow(
                id=EpisodeId("d", "1.0.0", "train", 0, i), shard="d/1.0.0/s", record=(i, 1), source_steps=steps + 1,
                record_crc=0, applies=(), success=None, trajectory=None if i in without else trajectory,
                frames=places if exact else {},
                spans=dict.fromkeys(places, (7, 9)), control_hz=None,
            )
        )  # fmt: skip
    return found


def written(table: pa.Table, **changes: Any) -> bytes:
    sink = io.BytesIO()
    rows_of_group = changes.pop("row_group_size", max(len(table), 1))
    with pq.ParquetWriter(sink, table.schema, **{**WRITE_OPTIONS, **changes}) as writer:
        writer.write_table(table, row_group_size=rows_of_group)
    return sink.getvalue()


def positions(data: bytes) -> dict[str, int]:
    return value_offsets(pq.read_metadata(io.BytesIO(data)), lambda offset, length: data[offset : offset + length])


def flat(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [x for item in value for x in flat(item)]
    return [] if value is None else [value]


def expected(row: dict[str, Any], name: str) -> list[Any]:
    column, _, leaf = name.partition(".")
    if not leaf:
        return flat(row[column])
    return [frame[leaf] for _, frames in row[column] for frame in frames]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "span"])
@pytest.mark.parametrize("without", [(), (0, 2), tuple(range(5))], ids=["all", "some without a recipe", "none"])
def test_byte_ranges_have_the_numbers_of_each_row(exact: bool, without: tuple[int, ...]) -> None:
    table = index_table(rows(exact, without))
    data = written(table)
    at = positions(data)
    assert set(at) == set(VALUE_TYPES)
    for name, kind in VALUE_TYPES.items():
        start = at[name]
        for row in pq.read_table(io.BytesIO(data), page_checksum_verification=True).to_pylist():
            values = expected(row, name)
            assert np.frombuffer(data, kind, len(values), start).tolist() == values
            start += len(values) * np.dtype(kind).itemsize


def test_a_file_without_rows_has_no_numbers_to_address() -> None:
    data = written(index_table([]))
    assert positions(data) == {}
    assert pq.read_table(io.BytesIO(data)).num_rows == 0


def test_what_cannot_be_addressed_is_left_out() -> None:
    table = index_table(rows(True))
    everything = set(VALUE_TYPES)
    assert positions(written(table, row_group_size=2)) == {}
    action = written(table, use_dictionary=["action.list.element.list.element"])
    assert set(positions(action)) == everything - {"action"}
    assert positions(written(table, compression="zstd", compression_level=1)) == {}
    pages = {"max_rows_per_page": 1, "write_batch_size": 1}
    assert positions(written(table, **pages)) == {}
    assert set(positions(written(table.drop_columns(["proprio"])))) == everything - {"proprio"}
    assert set(positions(written(table, data_page_version="2.0"))) == everything


def test_the_other_columns_are_compressed() -> None:
    """A column that is added to the schema needs an entry in the options."""
    group = pq.read_metadata(io.BytesIO(written(index_table(rows(True))))).row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert len({c.path_in_schema.split(".")[0] for c in columns}) == len(SCHEMA)
    plain = {c.path_in_schema for c in columns if c.compression == "UNCOMPRESSED"}
    assert plain == {
        "action.list.element.list.element", "proprio.list.element.list.element", "frame_index.list.element",
        "cameras.key_value.value.list.element.offset", "cameras.key_value.value.list.element.length",
    }  # fmt: skip


def test_many_rows_and_steps_are_in_one_page() -> None:
    steps = 100_000
    one = Trajectory(
        np.zeros((steps, 7), np.float32), np.arange(steps, dtype=np.int32), np.zeros((steps, 0), np.float32), "a",
        ("a",), np.zeros(steps, np.int32),
    )  # fmt: skip
    row = IndexRow(
        id=EpisodeId("d", "1.0.0", "train", 0, 0), shard="s", record=(0, 1), record_crc=0, source_steps=steps,
        applies=(), success=None, trajectory=one, frames={}, spans={}, control_hz=None,
    )  # fmt: skip
    table = index_table([row])
    many = pa.concat_tables([table, table.slice(0, 0), *[index_table(rows(False))] * 5000])
    data = written(many)
    at = positions(data)
    assert set(at) == set(VALUE_TYPES)
    last = many["action"][-1].as_py()
    start = at["action"] + 4 * sum(len(a) * 7 for a in many["action"].slice(0, len(many) - 1).to_pylist())
    assert np.frombuffer(data, "<f4", 28, start).tolist() == flat(last)
