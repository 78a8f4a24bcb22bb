import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.errors import CorruptError
from oxe_curate.rlds.tfrecord import FOOTER, HEADER, check_data, frame_record, masked_crc, records


def test_masked_crc_is_tfrecords() -> None:
    # CRC-32C's check value for "123456789" is 0xE3069283 (RFC 3720); masked as tensorflow/core/lib/hash/crc32c.h
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_records_come_back(payloads: list[bytes]) -> None:
    data = memoryview(b"".join(map(frame_record, payloads)))
    found = list(records(data))
    assert [bytes(data[o : o + n]) for o, n in found] == payloads
    for offset, length in found:
        check_data(data, offset, length)


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4), st.data())
def test_every_truncation_is_detected_and_earlier_records_are_kept(payloads: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(frame_record, payloads))
    ends = [sum(len(p) + HEADER + FOOTER for p in payloads[:i]) for i in range(len(payloads) + 1)]
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda n: n not in ends))
    found = records(memoryview(whole[:cut]))
    complete = sum(end <= cut for end in ends) - 1
    for payload in payloads[:complete]:
        offset, length = next(found)
        assert whole[offset : offset + length] == payload
    with pytest.raises(CorruptError, match=f"record {complete} at byte"):
        next(found)


@given(st.binary(min_size=1, max_size=60), st.data())
def test_every_flipped_bit_is_detected(payload: bytes, data: st.DataObject) -> None:
    whole = bytearray(frame_record(payload))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    view = memoryview(bytes(whole))
    with pytest.raises(CorruptError):
        [check_data(view, offset, length) for offset, length in records(view)]


def test_a_remote_reader_fetches_only_headers() -> None:
    asked: list[tuple[int, int]] = []
    data = memoryview(frame_record(b"x" * 1000) + frame_record(b"y"))
    assert len(list(records(data, lambda o, n: asked.append((o, n))))) == 2
    assert asked == [(0, HEADER), (1016, HEADER)]
