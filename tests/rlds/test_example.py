"""The scanner against protobuf's own parser, in every legal form of the wire, and on bytes that are none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from oxe_curate.errors import CorruptError, DataError
from oxe_curate.rlds import example
from oxe_curate.rlds.encode import encode_example
from oxe_curate.rlds.example import BYTES, FLOAT, INT64, Span

floats = st.lists(st.floats(width=32, allow_nan=False), max_size=20).map(lambda v: np.array(v, np.float32))
ints = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20).map(lambda v: np.array(v, np.int64))
texts = st.lists(st.binary(max_size=300), max_size=6)
features = st.dictionaries(st.text(max_size=12), st.one_of(floats, ints, texts), max_size=6)


def by_protobuf(data: bytes) -> dict[str, list[object]]:
    found = tf_example_pb2.Example.FromString(data).features.feature
    return {k: list(getattr(f, f.WhichOneof("kind")).value) for k, f in found.items() if f.WhichOneof("kind")}


def by_scanner(data: bytes) -> dict[str, list[object]]:
    view = memoryview(b"??" + data + b"??")  # not at the start of the buffer
    spans = example.scan(view, 2, len(data))
    return {key.decode(): list(example.values(view, span)) for key, span in spans.items()}


@given(features, st.booleans(), st.booleans(), st.integers(1, 3))
def test_every_legal_form_reads_as_protobuf_reads_it(found: dict, packed: bool, value_first: bool, runs: int) -> None:
    data = encode_example(found, packed=packed, value_first=value_first, runs=runs)
    assert by_scanner(data) == by_protobuf(data)


@given(features)
def test_protobufs_own_bytes_read_the_same(found: dict) -> None:
    message = tf_example_pb2.Example()
    for key, value in found.items():
        kind = message.features.feature[key]
        if isinstance(value, list):
            kind.bytes_list.value.extend(value)
        elif value.dtype == np.float32:
            kind.float_list.value.extend(value.tolist())
        else:
            kind.int64_list.value.extend(value.tolist())
    data = message.SerializeToString()
    assert by_scanner(data) == by_protobuf(data)


def test_unknown_fields_are_skipped_and_the_last_duplicate_key_wins() -> None:
    unknown = b"\x18\x05" + b"\x2a\x02hi" + b"\x35\0\0\0\0" + b"\x31" + bytes(8)  # varint, bytes, fixed32, fixed64
    data = unknown + encode_example({"a": np.float32([1])}) + encode_example({"a": np.float32([2, 3])})
    assert by_scanner(data) == by_protobuf(data) == {"a": [2, 3]}


@settings(max_examples=300)
@given(features, st.data())
def test_damaged_records_never_crash_and_never_read_outside(found: dict, data: st.DataObject) -> None:
    whole = bytearray(encode_example(found))
    for _ in range(data.draw(st.integers(1, 4))):
        if whole:
            place = data.draw(st.integers(0, len(whole) - 1))
            whole[place] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    view = memoryview(cut)
    try:
        for span in example.scan(view, 0, len(cut)).values():
            assert 0 <= span.offset <= span.offset + span.length <= len(cut)
            if span.kind == BYTES:
                ranges = example.byte_ranges(view, span)
                assert (ranges >= 0).all()
                assert (ranges.sum(axis=1) <= span.offset + span.length).all()
            example.values(view, span)
    except (CorruptError, DataError):
        pass


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        ours = by_scanner(data)
    except (CorruptError, UnicodeDecodeError):
        return
    try:
        theirs = by_protobuf(data)
    except Exception:  # protobuf refuses more: UTF-8 keys, field numbers
        return
    assert ours.keys() == theirs.keys()


def test_packed_floats_are_a_view_of_the_buffer() -> None:
    buffer = bytearray(encode_example({"a": np.float32([1, 2])}))
    values = example.floats(memoryview(buffer), example.scan(memoryview(buffer), 0, len(buffer))[b"a"])
    buffer[-4:] = np.float32(9).tobytes()
    assert values.tolist() == [1, 9]


def test_images_are_located_without_being_read() -> None:
    images = [bytes([i]) * n for i, n in enumerate((0, 1, 127, 128, 16_383, 16_384, 2_097_152))]
    data = encode_example({"image": images, "other": [b"x"]})
    view = memoryview(data)
    spans = example.scan(view, 0, len(data), frozenset([b"image"]))
    assert set(spans) == {b"image"}
    ranges = example.byte_ranges(view, spans[b"image"])
    assert [data[o : o + n] for o, n in ranges.tolist()] == images


@given(ints)
def test_varints_come_back(values: np.ndarray) -> None:
    raw = np.frombuffer(b"".join(_varint(int(v)) for v in values), np.uint8)
    assert example.varints(raw).tolist() == values.tolist()


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize("kind", [FLOAT, INT64, BYTES])
def test_an_empty_list_has_no_values(kind: int) -> None:
    assert len(example.values(memoryview(b""), Span(kind, 0, 0))) == 0


def test_equal_texts_and_texts_that_only_begin_alike_both_come_back() -> None:
    for texts in ([b"go"] * 5, [b"go", b"go", b"no"], [b"", b""], [b"a" * 200] * 3):
        data = encode_example({"t": texts})
        view = memoryview(data)
        assert example.byte_values(view, example.scan(view, 0, len(data))[b"t"]) == texts


@settings(max_examples=200)
@given(features, features, st.data())
def test_records_with_the_same_keys_are_compared_instead_of_parsed(one: dict, other: dict, data: st.DataObject) -> None:
    selected = frozenset(key.encode() for key in one if data.draw(st.booleans()))
    first = encode_example(one)
    order = example.key_order(memoryview(first), 0, len(first), selected)
    alike = encode_example(dict(zip(one, [*other.values(), *one.values()], strict=False)))
    damaged = bytearray(alike)
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for record in (first, alike, encode_example(other), bytes(damaged), first[:-1]):
        view = memoryview(b"??" + record + b"??")
        found = example.scan_alike(view, 2, len(record), order)
        if record == first and order:
            assert found is not None
        if found is not None:  # the parser finds the same, and does not complain
            assert found == example.scan(view, 2, len(record), selected)


def test_an_order_is_learned_from_usual_records_only() -> None:
    usual = encode_example({"a": np.float32([1]), "b": [b"text"]})
    assert len(example.key_order(memoryview(usual), 0, len(usual), frozenset({b"a"}))) == 2
    value_first = encode_example({"a": np.float32([1])}, value_first=True)
    for record in (value_first, usual + usual, encode_example({"a" * 200: np.float32([1])})):
        assert example.key_order(memoryview(record), 0, len(record), frozenset({b"a"})) == ()
