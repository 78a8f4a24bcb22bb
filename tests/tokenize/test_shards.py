"""The image column: frames gathered from several files in any order, row groups, and the schema."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.index.images import EncodedFrames
from oxe_curate.storage import Folder
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.checksum import FileHashes, hash_file
from tests.index.test_images import Held


def shard(images: list[bytes], frame: np.ndarray, buffers: int = 1, cameras: int = 1) -> shards.ShardRows:
    """Rows that show these images, which are spread over some buffers; the second camera has them reversed."""
    held: list[list[bytes]] = [[b"head"] for _ in range(buffers)]
    where = []
    for i, value in enumerate(images):
        part = held[i % buffers]
        where.append((i % buffers, sum(map(len, part)), len(value)))
        part.append(value)
    places = np.array(where, np.int64).reshape(-1, 3)
    sources = [Held(b"".join(part)) for part in held]
    rows, window = frame.shape
    rng = np.random.default_rng(rows)
    return shards.ShardRows(
        sample_id=pa.array([f"sample {i}" for i in range(rows)], pa.string()),
        texts={"dataset": ["a", "b"], "episode_id": ["a/1", "b/2"], "instruction": ["", "pick \u00e9"]},
        codes={name: rng.integers(0, 2, rows, np.int32) for name in ("dataset", "episode_id", "instruction")},
        step=np.arange(rows, dtype=np.int32),
        frame=frame,
        frames={
            role: EncodedFrames(sources, *places[::step].T) for role, step in [("primary", 1), ("wrist", -1)][:cameras]
        },
        action=rng.random((rows, window, 7), np.float32),
        bins=rng.integers(0, 256, (rows, window, 7), np.uint8),
        action_mask=rng.random((rows, window)) < 0.5,
        observation_mask=frame >= 0,
        proprio=rng.random(3 * rows, np.float32),
        proprio_width=np.full(rows, 3),
    )


def write(folder: Path, rows: shards.ShardRows, order: np.ndarray) -> tuple[Path, FileHashes]:
    hashes = shards.write_shard_file(Folder.of(folder), "a.parquet", rows, order, {"counts": {}}, lambda: None)
    return folder / "a.parquet", hashes


def as_pyarrow_writes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: shards.ShardRows, order: np.ndarray
) -> bytes:
    """The same shard, whose images pyarrow writes like any other column."""

    def filled(rows: shards.ShardRows, chosen: np.ndarray) -> pa.Table:
        table = blank(rows, chosen)
        for role, found in rows.frames.items():
            shown = [
                [None if i < 0 else {"bytes": bytes(found.read(i)), "path": None} for i in row]
                for row in rows.frame[chosen].tolist()
            ]
            name = f"image_{role}"
            column = pa.array(
                shown if rows.frame.shape[1] > 1 else [row[0] for row in shown], table.schema.field(name).type
            )
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
        return table

    blank = shards.shard_table
    with monkeypatch.context() as patch:
        patch.setattr(shards, "shard_table", filled)
        patch.setattr(shards, "ImagePages", PassedOn)
        return write(folder, rows, order)[0].read_bytes()


class PassedOn:
    """In the place of `ImagePages`: pyarrow's bytes, unchanged."""

    closed = False

    def __init__(self, sink: Any, leaves: object) -> None:
        self.write = sink.write

    def end_row_group(self, rows: int, pages: object) -> None: ...

    finish = flush = close = lambda self: None


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_a_shard_is_as_pyarrow_would_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cameras: int, window: int, count: int
) -> None:
    rng = np.random.default_rng(count + window)
    images = [rng.bytes(int(n)) for n in rng.integers(1, 3000, 300)]
    frame = rng.integers(0 if window == 1 else -1, 300, (count, window))
    rows, order = shard(images, frame, buffers=3, cameras=cameras), rng.permutation(count)
    (tmp_path / "pyarrow").mkdir()
    expected = as_pyarrow_writes(tmp_path / "pyarrow", monkeypatch, rows, order)
    path, hashes = write(tmp_path, rows, order)
    assert path.read_bytes() == expected
    assert hashes == hash_file(Folder.of(tmp_path), "a.parquet")
    read = pq.read_table(path, page_checksum_verification=True)
    assert read["sample_id"].to_pylist() == [f"sample {i}" for i in order]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12), st.integers(1, 3), st.randoms())
def test_images_equal_the_bytes_in_any_order(values: list[bytes], buffers: int, random: Any) -> None:
    order = [*range(len(values)), 0, -1]
    random.shuffle(order)
    rows = shard(values, np.array([[i, -1] for i in order]), buffers)
    with tempfile.TemporaryDirectory() as folder:
        read = pq.read_table(write(Path(folder), rows, np.arange(len(order)))[0])["image_primary"].to_pylist()
    assert [row[1] for row in read] == [None] * len(order)
    assert [row[0] and row[0]["bytes"] for row in read] == [values[i] if i >= 0 else None for i in order]


def test_row_groups_have_fewer_rows_where_images_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_GROUP_BYTES", 100)
    sizes = np.array([10, 10, 10, 60, 60, 500, 1, 1], np.int64)

    def groups(order: list[int], group: int) -> list[list[int]]:
        return [rows.tolist() for rows in shards._groups(np.array(order, np.int64), sizes, group)]

    assert groups([0, 1, 2, 3, 4, 5, 6, 7], 8) == [[0, 1, 2, 3], [4], [5], [6, 7]]
    assert groups([5, 0, 1, 2], 2) == [[5], [0, 1], [2]]
    assert groups([], 8) == [[]]


def test_the_schema_has_hugging_face_features() -> None:
    fields = shards.schema(["primary", "wrist"], window=2)
    described = json.loads(shards._hugging_face(fields))["info"]["features"]
    assert list(described) == fields.names
    assert described["image_wrist"] == {"feature": {"_type": "Image"}, "_type": "Sequence"}
    assert described["bins"]["feature"] == {
        "feature": {"dtype": "uint8", "_type": "Value"},
        "length": 7,
        "_type": "Sequence",
    }
    assert pa.types.is_binary(fields.field("image_primary").type.value_type.field("bytes").type)
