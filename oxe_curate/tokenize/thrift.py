"""Thrift's compact protocol, as much of it as Parquet's headers and footers use, read and written byte for byte.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

from oxe_curate.rlds.varint import read_varint

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12

ThriftStruct = dict[int, list[Any]]
"""Field number -> [type, value], in the order of the file. A value is an int, bytes, `ThriftStruct`, or for a list
(type of its elements, list of values)."""


def read_struct(data: bytes, place: int = 0) -> tuple[ThriftStruct, int]:
    """Parse a struct; return it and the position after it. Raises ValueError on a type that Parquet does not use."""
    fields: ThriftStruct = {}
    number = 0
    while byte := data[place]:
        place += 1
        kind = byte & 15
        if byte >> 4:
            number += byte >> 4
        else:
            number, place = _read_int(data, place)
        if kind in (TRUE, FALSE):
            fields[number] = [kind, 0]
        else:
            value, place = _read_value(data, place, kind)
            fields[number] = [kind, value]
    return fields, place + 1


def _read_int(data: bytes, place: int) -> tuple[int, int]:
    value, place = read_varint(data, place)
    return (value >> 1) ^ -(value & 1), place


def _read_value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in (I16, I32, I64):
        return _read_int(data, place)
    if kind == STRUCT:
        return read_struct(data, place)
    if kind == BINARY:
        length, place = read_varint(data, place)
        return data[place : place + length], place + length
    if kind == LIST:
        count, of = data[place] >> 4, data[place] & 15
        place += 1
        if count == 15:
            count, place = read_varint(data, place)
        values = []
        for _ in range(count):
            value, place = _read_value(data, place, of)
            values.append(value)
        return (of, values), place
    if kind in (BYTE, TRUE, FALSE):
        return data[place], place + 1
    if kind == DOUBLE:
        return data[place : place + 8], place + 8
    raise ValueError(f"Thrift type {kind}")


def write_struct(fields: ThriftStruct) -> bytes:
    """The bytes of a struct that `read_struct` returned."""
    out = bytearray()
    _write_struct(out, fields)
    return bytes(out)


def _write_struct(out: bytearray, fields: ThriftStruct) -> None:
    before = 0
    for number, (kind, value) in fields.items():
        if 0 < number - before < 16:
            out.append((number - before) << 4 | kind)
        else:
            out.append(kind)
            _write_int(out, number)
        before = number
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, value)
    out.append(0)


def _write_int(out: bytearray, value: int) -> None:
    _write_varint(out, value << 1 if value >= 0 else (-value << 1) - 1)


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in (I16, I32, I64):
        _write_int(out, value)
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind == LIST:
        of, values = value
        out.append((len(values) if len(values) < 15 else 15) << 4 | of)
        if len(values) >= 15:
            _write_varint(out, len(values))
        for element in values:
            _write_value(out, of, element)
    elif kind == BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind == DOUBLE:
        out += value
    else:
        out.append(value)
