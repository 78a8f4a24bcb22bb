"""The image column: views of several buffers, and its schema."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.index.images import EncodedFrames
from oxe_curate.tokenize import shards
from oxe_curate.tokenize.shards import FrameViews


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12), st.integers(1, 3), st.randoms())
def test_views_equal_the_bytes_in_any_order(values: list[bytes], buffers: int, random: object) -> None:
    parts: list[list[bytes]] = [[b"head"] for _ in range(buffers)]
    where = []
    for i, value in enumerate(values):
        part = parts[i % buffers]
        where.append((i % buffers, sum(map(len, part)), len(value)))
        part.append(value)
    columns = np.array(where, np.int64)
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    frames = EncodedFrames([memoryview(b"".join(p)) for p in parts], columns[:, 0], columns[:, 1], columns[:, 2])
    array = FrameViews(frames).pick(np.array(order))
    array.validate(full=True)
    assert array.to_pylist() == [values[i] for i in order]


def test_a_buffer_over_two_gib_is_split_into_windows(monkeypatch: object) -> None:
    monkeypatch.setattr(shards, "_WINDOW", 4)  # type: ignore[attr-defined]
    data = bytes(range(200))
    offsets = np.array([0, 15, 16, 17, 100], np.int64)
    frames = EncodedFrames([memoryview(data)], np.zeros(5, np.int64), offsets, np.full(5, 20, np.int64))
    assert FrameViews(frames).pick(np.arange(5)).to_pylist() == [data[o : o + 20] for o in offsets]


def test_the_schema_has_hugging_face_features() -> None:
    import json

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
