"""tf.train.Example scanned in place: numbers as views of the bytes read, images as byte ranges.

The wire format (tensorflow/core/example/{example,feature}.proto):

    Example  { Features features = 1 }
    Features { map<string, Feature> feature = 1 }    an entry is { key = 1, value = 2 }
    Feature  { oneof: BytesList = 1, FloatList = 2, Int64List = 3 }, each { repeated value = 1 }

Lists of numbers may be packed (one block) or not (a tag before each value). A feature that is not requested is skipped
by its length, so images cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import CorruptError
from oxe_curate.rlds.tfrecord import Ensure
from oxe_curate.rlds.varint import read_varint

BYTES, FLOAT, INT64 = 1, 2, 3
_VARINT = 10  # bytes of the longest varint
_HEAD = 256  # bytes of an entry before its payload: tags, lengths and the key
_FEATURE = 24  # bytes before the payload of a value: two tags and two lengths
_PAGE = 4095  # the rest of a page costs nothing


@dataclass(frozen=True, slots=True)
class Span:
    """A list inside the shard: its kind (BYTES, FLOAT, INT64) and the byte range of the list message."""

    kind: int
    offset: int
    length: int


def _skip(buffer: memoryview, position: int, tag: int) -> int:
    """Position after an unknown field's value. Groups (wire types 3, 4) are not legal here."""
    wire = tag & 7
    if wire == 0:
        return read_varint(buffer, position)[1]
    if wire == 2:
        length, position = read_varint(buffer, position)
        return position + length
    if wire in (1, 5):
        return position + (8 if wire == 1 else 4)
    raise CorruptError(f"byte {position}: not a tf.train.Example (wire type {wire})")


def scan(
    buffer: memoryview,
    offset: int,
    length: int,
    selected: frozenset[bytes] | None = None,
    ensure: Ensure | None = None,
) -> dict[bytes, Span]:
    """Find the features of the Example at `offset` without reading their values.

    Args:
        buffer: the shard.
        offset: where the record's data begins.
        length: its length in bytes.
        selected: the features to return; None for all. Others are skipped.
        ensure: called before a byte range is read (object stores); payloads are not ensured.

    Returns:
        A Span per feature. As in protobuf, the last of duplicate keys wins.

    Raises:
        CorruptError: the bytes are not a well-formed Example.
    """
    end = offset + length
    found: dict[bytes, Span] = {}
    ready = offset  # bytes before this have been ensured
    try:
        position = offset
        while position < end:
            if ensure:
                ensure(position, min(16, end - position))
            tag, position = read_varint(buffer, position)
            if tag != 0x0A:
                position = _skip(buffer, position, tag)
                continue
            size, position = read_varint(buffer, position)
            features_end = _checked(position, size, end)
            while position < features_end:
                if ensure and position + _HEAD > ready and ready < end:
                    ready = min(max(position + _HEAD, (position | _PAGE) + 1), end)
                    ensure(position, ready - position)
                tag, position = read_varint(buffer, position)
                if tag != 0x0A:
                    position = _skip(buffer, position, tag)
                    continue
                size, position = read_varint(buffer, position)
                entry_end = _checked(position, size, features_end)
                _entry(buffer, position, entry_end, selected, found, ensure, ready)
                position = entry_end
            if position != features_end:
                raise CorruptError(f"byte {position}: a field extends beyond its end")
        if position != end:
            raise CorruptError(f"byte {position}: a field extends beyond the record's end")
    except IndexError:
        raise CorruptError(f"record at byte {offset}: the record ends inside a field") from None
    return found


KeyOrder = Sequence[tuple[bytes, bytes | None]]
"""The entries of an Example in order: the bytes around the key, and the key if the feature is selected, else None."""


def key_order(buffer: memoryview, offset: int, length: int, selected: frozenset[bytes]) -> KeyOrder:
    """The order of a record's keys; a writer uses the same for all records of a file. () if it has an unusual form.

    Args:
        buffer: the shard, in which the bytes that `scan` needs are present.
        offset: of a record that `scan` has accepted.
        length: its length in bytes.
        selected: as for `scan`.
    """
    end = offset + length
    found: dict[bytes, tuple[bytes, bytes | None]] = {}
    try:
        position = read_varint(buffer, offset + 1)[1]
        while position < end:
            size, start = read_varint(buffer, position + 1)
            position = start + size
            width, at = read_varint(buffer, start + 1)
            key = bytes(buffer[at : at + width])
            # such as a value before its key, a key twice, one too long for the bytes that are read at once
            if buffer[start] != 0x0A or buffer[at + width] != 0x12 or key in found or width > _HEAD // 2:
                return ()
            found[key] = bytes(buffer[start : at + width + 1]), key if key in selected else None
    except (IndexError, CorruptError):
        return ()
    return tuple(found.values())


def scan_alike(
    buffer: memoryview, offset: int, length: int, order: KeyOrder, ensure: Ensure | None = None
) -> dict[bytes, Span] | None:
    """`scan` of a record whose keys are in the given order; None where anything differs, so that `scan` must read it.

    The keys are compared, not parsed: three times as fast.
    """
    end, ready = offset + length, offset
    found: dict[bytes, Span] = {}
    try:
        if ensure:
            ensure(offset, min(16, length))
        size, position = read_varint(buffer, offset + 1)
        if buffer[offset] != 0x0A or position + size != end:
            return None
        for head, key in order:
            if ensure and position + _HEAD > ready and ready < end:
                ready = min(max(position + _HEAD, (position | _PAGE) + 1), end)
                ensure(position, ready - position)
            size = buffer[position + 1]
            at = position + 2
            if size >= 0x80:
                size, at = read_varint(buffer, position + 1)
            stop, value = at + size, at + len(head)
            if buffer[position] != 0x0A or buffer[at:value] != head or stop > end:
                return None
            size = buffer[value]
            at = value + 1
            if size >= 0x80:
                size, at = read_varint(buffer, value)
            if at + size != stop:
                return None
            if key is not None and at < stop:
                kind = _KINDS.get(buffer[at])
                size, at = read_varint(buffer, at + 1)
                if kind is None or at + size != stop:
                    return None
                found[key] = Span(kind, at, size)
            position = stop
    except (IndexError, CorruptError):
        return None
    return found if position == end else None


_KINDS = {kind << 3 | 2: kind for kind in (BYTES, FLOAT, INT64)}
"""Tag of a list in a Feature -> its kind."""


def _checked(position: int, size: int, end: int) -> int:
    if position + size > end:
        raise CorruptError(f"byte {position}: a field of {size} bytes extends beyond byte {end}")
    return position + size


def _entry(
    buffer: memoryview,
    position: int,
    end: int,
    selected: frozenset[bytes] | None,
    found: dict[bytes, Span],
    ensure: Ensure | None,
    ready: int,
) -> None:
    key = b""
    value = None
    while position < end:
        if ensure and position + _FEATURE > ready:  # after a long key or value
            ensure(position, min(_HEAD, end - position))
        tag, position = read_varint(buffer, position)
        if tag == 0x0A:
            size, position = read_varint(buffer, position)
            stop = _checked(position, size, end)
            if ensure and stop > ready:
                ensure(position, size)
            key = bytes(buffer[position:stop])
            position = stop
        elif tag == 0x12:
            size, position = read_varint(buffer, position)
            stop = _checked(position, size, end)
            value = (position, stop)
            position = stop
        else:
            position = _skip(buffer, position, tag)
    if position != end:
        raise CorruptError(f"byte {position}: a field extends beyond its end")
    if selected is not None and key not in selected:
        return
    span = _feature(buffer, *value, ensure) if value else None
    if span:
        found[key] = span
    else:
        found.pop(key, None)  # an empty Feature is a missing one


def _feature(buffer: memoryview, position: int, end: int, ensure: Ensure | None) -> Span | None:
    span = None
    while position < end:
        tag, position = read_varint(buffer, position)
        kind = tag >> 3
        if tag & 7 == 2 and kind in (BYTES, FLOAT, INT64):
            size, position = read_varint(buffer, position)
            stop = _checked(position, size, end)
            if span and span.kind == kind:
                # protobuf would merge the two lists; no writer produces this, and views cannot represent it
                raise CorruptError(f"byte {position}: a feature has two lists")
            span = Span(kind, position, size)
            position = stop
            if ensure:
                ensure(position, min(_FEATURE, end - position))
        else:
            position = _skip(buffer, position, tag)
    if position != end:
        raise CorruptError(f"byte {position}: a field extends beyond its end")
    return span


def floats(buffer: memoryview, span: Span) -> NDArray[np.float32]:
    """Values of a FloatList, float32 (n,), as a view if the list is one packed block."""
    blocks: list[NDArray[np.float32]] = []
    position, end = span.offset, span.offset + span.length
    while position < end:
        tag = buffer[position]
        if tag == 0x0A:
            size, position = read_varint(buffer, position + 1)
            stop = _checked(position, size, end)
            if size % 4:
                raise CorruptError(f"byte {position}: a float list of {size} bytes")
            blocks.append(np.frombuffer(buffer, "<f4", size // 4, position))
            position = stop
        elif tag == 0x0D:
            count = _run(buffer, position, end, 5, 0x0D)
            raw = np.frombuffer(buffer, np.uint8, count * 5, position).reshape(count, 5)
            blocks.append(np.ascontiguousarray(raw[:, 1:]).view("<f4")[:, 0])
            position += count * 5
        else:
            position = _skip_in_list(buffer, position, end)
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _run(buffer: memoryview, position: int, end: int, stride: int, tag: int) -> int:
    """Number of consecutive fixed-size fields with the same tag."""
    count = (end - position) // stride
    if count == 0:
        raise CorruptError(f"byte {position}: a list ends inside a value")
    tags = np.frombuffer(buffer, np.uint8, count * stride, position)[::stride]
    other = np.flatnonzero(tags != tag)
    return int(other[0]) if len(other) else count


def _skip_in_list(buffer: memoryview, position: int, end: int) -> int:
    try:
        tag, position = read_varint(buffer, position)
        position = _skip(buffer, position, tag)
    except IndexError:
        raise CorruptError(f"byte {position}: a list ends inside a value") from None
    if tag >> 3 == 0 or position > end:
        raise CorruptError(f"byte {position}: not a list of values")
    return position


def ints(buffer: memoryview, span: Span) -> NDArray[np.int64]:
    """Values of an Int64List, int64 (n,): a copy, since the encoding has variable length."""
    blocks: list[NDArray[np.int64]] = []
    position, end = span.offset, span.offset + span.length
    while position < end:
        tag = buffer[position]
        if tag == 0x0A:
            size, position = read_varint(buffer, position + 1)
            stop = _checked(position, size, end)
            blocks.append(varints(np.frombuffer(buffer, np.uint8, size, position)))
            position = stop
        elif tag == 0x08:
            value, position = read_varint(buffer, position + 1)
            if position > end:
                raise CorruptError(f"byte {position}: a list ends inside a value")
            blocks.append(np.array([value & 0xFFFFFFFFFFFFFFFF], np.uint64).view(np.int64))
        else:
            position = _skip_in_list(buffer, position, end)
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def varints(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Decode a block of base-128 varints, uint8 (n,) -> int64 (m,), in one pass per byte."""
    last = raw < 0x80
    if last.all():
        return raw.astype(np.int64)
    if len(raw) and not last[-1]:
        raise CorruptError("a packed list ends inside a varint")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > 10:
        raise CorruptError("a varint of more than 10 bytes")
    values = np.zeros(len(ends), np.uint64)
    for byte in range(int(lengths.max(initial=0))):
        has = lengths > byte
        part = (raw[starts[has] + byte] & 0x7F).astype(np.uint64)
        values[has] |= part << np.uint64(7 * byte)
    return values.view(np.int64)


def byte_ranges(buffer: memoryview, span: Span, ensure: Ensure | None = None) -> NDArray[np.int64]:
    """int64 (n, 2): offset and length of each value of a BytesList; reads only a few bytes before each value."""
    ranges: list[int] = []
    append = ranges.append
    position, end = span.offset, span.offset + span.length
    try:
        while position < end:
            if ensure:
                ensure(position, min(_VARINT + 1, end - position))
            if buffer[position] != 0x0A:
                position = _skip_in_list(buffer, position, end)
                continue
            # unrolled read_varint: this loop runs once per image of the data set
            size = buffer[position + 1]
            position += 2
            if size >= 0x80:
                byte = buffer[position]
                size += (byte << 7) - 0x80
                position += 1
                if byte >= 0x80:
                    byte = buffer[position]
                    size += (byte << 14) - 0x4000
                    position += 1
                    if byte >= 0x80:
                        size, position = read_varint(buffer, position - 3)
            append(position)
            append(size)
            position += size
    except IndexError:
        raise CorruptError(f"byte {position}: a list ends inside a value") from None
    if position > end:
        raise CorruptError(f"byte {position}: a value extends beyond the end of its list")
    return np.array(ranges, np.int64).reshape(-1, 2)


def byte_values(buffer: memoryview, span: Span) -> list[bytes]:
    """The values of a BytesList, copied (texts and the like)."""
    raw = bytes(buffer[span.offset : span.offset + span.length])
    # an instruction is usually the same at every step: one repeated value needs no loop
    if raw[:1] == b"\x0a" and len(raw) > 2:
        size, start = read_varint(memoryview(raw), 1)
        item = raw[: start + size]
        count = len(raw) // len(item)
        if raw == item * count:
            return [item[start:]] * count
    view = memoryview(raw)
    return [raw[o : o + n] for o, n in byte_ranges(view, Span(BYTES, 0, len(raw))).tolist()]


def values(buffer: memoryview, span: Span) -> Any:
    """The values of any list: float32 or int64 (n,), or a list of bytes."""
    if span.kind == FLOAT:
        return floats(buffer, span)
    if span.kind == INT64:
        return ints(buffer, span)
    return byte_values(buffer, span)


__all__ = [
    "BYTES", "FLOAT", "INT64", "KeyOrder", "Span", "byte_ranges", "byte_values", "floats", "ints", "key_order", "scan",
    "scan_alike", "values", "varints",
]  # fmt: skip
