"""The image column: frames gathered from several files in any order, row groups, and the schema."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.index.images import EncodedFrames
from oxe_curate.tokenize import shards
from tests.index.test_images import Held


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12), st.integers(1, 3), st.randoms())
def test_images_equal_the_bytes_in_any_order(values: list[bytes], buffers: int, random: object) -> None:
    parts: list[list[bytes]] = [[b"head"] for _ in range(buffers)]
    where = []
    for i, value in enumerate(values):
        part = parts[i % buffers]
        where.append((i % buffers, sum(map(len, part)), len(value)))
        part.append(value)
    columns = np.array(where, np.int64)
    order = [*range(len(values)), 0, -1]
    random.shuffle(order)  # type: ignore[attr-defined]
    sources = [Held(b"".join(part)) for part in parts]
    frames = EncodedFrames(sources, columns[:, 0], columns[:, 1], columns[:, 2])
    array = shards._images(frames, np.array(order), pa.array(np.array(order) < 0))
    array.validate(full=True)
    assert [v and v["bytes"] for v in array.to_pylist()] == [values[i] if i >= 0 else None for i in order]


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
