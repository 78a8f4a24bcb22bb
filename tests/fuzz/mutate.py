"""Damage to files, determined by a seed: each mutation has a description with which it can be found again."""

import json
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import yaml

Mutation = tuple[str, bytes]

HUGE = "9" * 5000
DEEP = 2000
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, -1e308, 1e308, 5e-324, 2**31, 2**63, -(2**63), 10**18, 10**299, "", " ",
    "x" * 100_000, "../..", "a/b", "\n", "é" * 300, "nan", "1", [], {}, [[]], [None], [1, "x"], {"x": 1},
    {"name": "x"}, [0] * 1000,
]  # fmt: skip
_RAW_JSON = [
    "NaN", "Infinity", "-Infinity", "1e999", HUGE, "-" + HUGE, "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    '"\\ud800"', '"\\u0000"', "0x10", "01", "'x'", "undefined", "", "1 2", "[1,]", "//x",
]  # fmt: skip
_RAW_YAML = [
    ".nan", ".inf", "1e999", HUGE, "0x" + "f" * 4000, "0o17", "010", "1:30", "0b11", "2024-01-01", "2024-13-45",
    "[" * DEEP, "[" * 50 + "]" * 50, "- " * 400, "{a: " * DEEP, '"\\ud800"', '"\\0"', '"\\x1b[31m"', '"\\U00110000"',
    "!!python/object:os.system x", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!int x", "!!bool x", "!!float x",
    "!!timestamp x", "!x y", "*a", "&a [*a]", "<<: 1", "~", "=", "|", ">", "? [a]", "'", '"', "\t", "@", "`", "%",
    "yes", "\n---\nx: 1", "&a [x,x,x,x,x,x,x,x,x]",
]  # fmt: skip


def mutations(data: bytes, kind: str, seed: int, count: int) -> Iterator[Mutation]:
    """`count` damaged versions of a file.

    Args:
        data: the undamaged file.
        kind: "json", "yaml", "parquet", "tfrecord" or "binary": which structure the mutations know.
        seed: every mutation is a function of it and of its number.
        count: number of mutations.
    """
    for number in range(count):
        yield mutation(data, kind, seed, number)


def mutation(data: bytes, kind: str, seed: int, number: int) -> Mutation:
    """The mutation of this number: (description, damaged bytes)."""
    rng = random.Random(f"{seed}/{kind}/{number}")
    structured: dict[str, list[Callable[[bytes, random.Random], Mutation]]] = {
        "json": [_json], "yaml": [_yaml, _yaml_bomb], "parquet": [_footer], "tfrecord": [_records],
    }  # fmt: skip
    known = structured.get(kind, [])
    if known and rng.random() < 0.6:
        weights = [8, 1][: len(known)]
        what, damaged = rng.choices(known, weights)[0](data, rng)
    else:
        what, damaged = rng.choice(_BYTES)(data, rng)
    return f"{kind} seed {seed} number {number}: {what}", damaged


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────────────────


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice([1, 2, 4, 8, 16, 64, 512, len(data) // 2]))


def _flip(data: bytes, rng: random.Random) -> Mutation:
    damaged = bytearray(data)
    places = [rng.randrange(len(data)) for _ in range(rng.choice([1, 1, 1, 2, 8, 64]))] if data else []
    for place in places:
        damaged[place] ^= 1 << rng.randrange(8)
    return f"flip a bit at {places[:4]}", bytes(damaged)


def _set(data: bytes, rng: random.Random) -> Mutation:
    start, end = _span(data, rng)
    value = rng.choice([0, 0xFF, 0x7F, 0x80, 0x0A, 0x20])
    return f"set {start}..{end} to {value}", data[:start] + bytes([value]) * (end - start) + data[end:]


def _truncate(data: bytes, rng: random.Random) -> Mutation:
    end = rng.choice([0, 1, len(data) // 2, max(len(data) - 1, 0), rng.randrange(len(data) + 1)])
    return f"truncate to {end}", data[:end]


def _insert(data: bytes, rng: random.Random) -> Mutation:
    start, noise = rng.randrange(len(data) + 1), rng.randbytes(rng.choice([1, 4, 64]))
    return f"insert {len(noise)} bytes at {start}", data[:start] + noise + data[start:]


def _delete(data: bytes, rng: random.Random) -> Mutation:
    start, end = _span(data, rng)
    return f"delete {start}..{end}", data[:start] + data[end:]


def _duplicate(data: bytes, rng: random.Random) -> Mutation:
    start, end = _span(data, rng)
    return f"duplicate {start}..{end}", data[:end] + data[start:end] + data[end:]


def _swap(data: bytes, rng: random.Random) -> Mutation:
    (a, b), (c, d) = sorted([_span(data, rng), _span(data, rng)])
    b = min(b, c)
    return f"swap {a}..{b} and {c}..{d}", data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _other(data: bytes, rng: random.Random) -> Mutation:
    found = {
        "an empty file": b"", "zeros": bytes(len(data)), "noise": rng.randbytes(len(data)), "text": b"hello\n" * 100,
        "UTF-16": "name: x\n".encode("utf-16"), "a mark before it": b"\xef\xbb\xbf" + data, "twice": data + data,
        "CRLF": data.replace(b"\n", b"\r\n"), "a NUL at the end": data + b"\0", "half a letter": data + b"\xc3",
    }  # fmt: skip
    what = rng.choice(list(found))
    return what, found[what]


_BYTES = [_flip, _flip, _flip, _set, _truncate, _insert, _delete, _duplicate, _swap, _other]


# ── Parquet and TFRecord ─────────────────────────────────────────────────────────────────────────────────────


def _footer(data: bytes, rng: random.Random) -> Mutation:
    """Damage within the footer, where a flipped bit moves columns and lengths."""
    length = int.from_bytes(data[-8:-4], "little") + 8
    what, damaged = rng.choice(_BYTES[:9])(data[-length:-8], rng)
    end = (len(damaged)).to_bytes(4, "little") + b"PAR1"
    return f"footer: {what}", data[:-length] + damaged + end


def _records(data: bytes, rng: random.Random) -> Mutation:
    """Damage of whole records, or of the bytes of one record with framing that fits them."""
    from oxe_curate.rlds.tfrecord import frame_record

    records, offset = [], 0
    while offset + 12 <= len(data):
        length = int.from_bytes(data[offset : offset + 8], "little")
        records.append(data[offset + 12 : offset + 12 + length])
        offset += 16 + length
    i, j = rng.randrange(len(records)), rng.randrange(len(records))
    choice = rng.choice(["inside", "inside", "inside", "inside", "varint", "drop", "duplicate", "swap", "empty"])
    if choice == "inside":
        what, records[i] = rng.choice(_BYTES[:9])(records[i], rng)
        choice = f"inside record {i}: {what}"
    elif choice == "varint":
        place = rng.randrange(min(len(records[i]), 64))
        long = rng.choice([b"\xff" * 9 + b"\x01", b"\xff" * 12, b"\x80" * 10, b"\xff" * 8 + b"\x7f", b"\x80"])
        records[i] = records[i][:place] + long + records[i][place + 1 :]
    elif choice == "drop":
        del records[i]
    elif choice == "duplicate":
        records.insert(j, records[i])
    elif choice == "swap":
        records[i], records[j] = records[j], records[i]
    else:
        records[i] = b""
    return choice, b"".join(map(frame_record, records))


# ── JSON and YAML ────────────────────────────────────────────────────────────────────────────────────────────

_MARK = "@@here@@"


def _damage_tree(tree: Any, rng: random.Random, raw: list[str]) -> tuple[str, Any, str | None]:
    """Change one value of a tree; the third result is a text to put in place of `_MARK`."""
    tree = deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, below in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
            places.append((value, key))
            if isinstance(below, dict | list):
                walk(below)

    if isinstance(tree, dict | list):
        walk(tree)
    if not places:
        return "the root", rng.choice(_VALUES), None
    parent, key = rng.choice(places)
    choice = rng.choice(["value", "value", "value", "raw", "raw", "drop", "rename", "nest", "number"])
    what = f"{choice} at {str(key)[:40]!r}"
    if choice == "value":
        parent[key] = deepcopy(rng.choice(_VALUES))
    elif choice == "number" and isinstance(parent[key], int | float):
        parent[key] = parent[key] * rng.choice([-1, 0, 10, 1e6, 0.5]) + rng.choice([0, 1, -1])
    elif choice == "raw":
        parent[key] = _MARK
        return what, tree, rng.choice(raw)
    elif choice == "drop":
        del parent[key]
    elif choice == "rename" and isinstance(parent, dict):
        name = rng.choice(["x", "", "a" * 100_000, str(key) + "s", "é"])
        parent[name] = parent.pop(key)
    elif choice == "nest":
        parent[key] = rng.choice([[parent[key]], {"x": parent[key]}])
    return what, tree, None


def _json(data: bytes, rng: random.Random) -> Mutation:
    what, tree, raw = _damage_tree(json.loads(data), rng, _RAW_JSON)
    if raw is None and isinstance(tree, dict) and tree and rng.random() < 0.1:
        key = rng.choice(list(tree))
        return f"a second key {key!r}", (json.dumps(tree)[:-1] + f", {json.dumps(key)}: 1}}").encode()
    text = json.dumps(tree)
    return what, text.encode() if raw is None else text.replace(json.dumps(_MARK), raw).encode()


def _yaml(data: bytes, rng: random.Random) -> Mutation:
    what, tree, raw = _damage_tree(yaml.safe_load(data), rng, _RAW_YAML)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=rng.choice([None, False, True]))
    if raw is None and rng.random() < 0.1:
        text += text.splitlines()[0] + "\n"
        what = "the first line again"
    for quote in (f"'{_MARK}'", f'"{_MARK}"', _MARK):
        text = text if raw is None else text.replace(quote, raw)
    return f"{what}{'' if raw is None else f' = {raw[:30]!r}'}", text.encode()


def _yaml_bomb(data: bytes, rng: random.Random) -> Mutation:
    """Aliases of aliases, as lists, mappings or merges, in addition to the file or in place of a value."""
    width, depth = rng.choice([(10, 6), (10, 9), (2, 30), (100, 4), (1000, 2)])
    merge = rng.random() < 0.3
    lines = ["b0: &b0 " + ("{x: 1}" if merge else "[x, x]")]
    for level in range(1, depth):
        many = ", ".join([f"*b{level - 1}"] * width)
        lines.append(f"b{level}: &b{level} " + (f"{{<<: [{many}]}}" if merge else f"[{many}]"))
    bomb = "\n".join(lines).encode() + b"\n"
    place = rng.choice(["before", "after", "datasets"])
    if place == "datasets":
        return f"bomb {width}^{depth} as datasets", bomb + b"name: x\ndatasets: *b%d\n" % (depth - 1)
    return f"bomb {width}^{depth} {place}", bomb + data if place == "before" else data.rstrip() + b"\n" + bomb
