"""One RLDS record -> the requested step arrays, texts and byte ranges, as described by features.json."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Steps
from oxe_curate.errors import CorruptError, DataError, did_you_mean
from oxe_curate.rlds import example
from oxe_curate.rlds.example import KeyOrder, Span
from oxe_curate.rlds.leaf import STEPS, Leaf, camera_key, camera_problem, leaves
from oxe_curate.rlds.tfrecord import Ensure
from oxe_curate.rlds.varint import read_varint

_RAGGED = b"/ragged_flat_values", b"/ragged_row_lengths_0"
"""tfds stores a sequence inside a step as two features: the items of all steps, and how many each step has."""
_LEARN = 1000
"""How often the order of keys is learned anew, in case that it differs from record to record."""


@dataclass(frozen=True, slots=True)
class RawEpisode:
    """The requested parts of one record.

    Attributes:
        num_steps: T.
        steps: flat step key -> array with T rows; texts are object arrays of bytes. Numbers may be views of the shard.
        cameras: image key -> location of its list of encoded frames.
        metadata: flat key outside the steps -> value.
    """

    num_steps: int
    steps: Steps
    cameras: dict[str, Span]
    metadata: dict[str, Any]


class RecordReader:
    """Reads selected features of each record. Created once per data set; holds no file.

    Args:
        features: the tfds FeaturesDict of an episode.
        steps: flat step keys to read as arrays ("observation/state", "language_instruction").
        cameras: image keys to locate, as card keys below `observation/` or full step keys.
        metadata: flat keys outside the steps.
        where: prefix of every error message (the data set's name).

    Raises:
        DataError: features.json has no such key (the closest one is named), or one that cannot be read.
    """

    def __init__(
        self,
        features: Any,
        steps: Iterable[str],
        cameras: Iterable[str] = (),
        metadata: Iterable[str] = (),
        where: str = "features.json",
    ) -> None:
        step_leaves, other = leaves(features)
        self.steps = {key: _lookup(key, step_leaves, where) for key in sorted(set(steps))}
        self.cameras = {key: _lookup(camera_key(key, step_leaves), step_leaves, where) for key in cameras}
        self.metadata = {key: _lookup(key, other, where) for key in sorted(set(metadata))}
        for leaf in (*self.steps.values(), *self.cameras.values(), *self.metadata.values()):
            if leaf.problem:
                raise DataError(f"{where}: the feature {leaf.key!r} {leaf.problem}")
        for leaf in self.cameras.values():
            if problem := camera_problem(leaf):
                raise DataError(f"{where}: camera {leaf.key!r} {problem}")
        rare = [leaf for leaf in (*self.steps.values(), *self.metadata.values()) if leaf.kind == "rare"]
        self._rare = _rare_features(rare) if rare else None
        self._rare_wires = tuple(leaf.wire for leaf in rare)
        self._order: KeyOrder = ()
        self._learned = 0
        # is_first is part of the RLDS standard; it gives the number of steps if nothing else is read
        clock = step_leaves.get("is_first")
        self._clock = clock if clock and clock.kind == "number" else None
        selected = [*self.steps.values(), *self.cameras.values(), *self.metadata.values()]
        self._selected = frozenset(leaf.wire for leaf in selected if leaf.kind not in ("ragged", "rare"))
        self._selected |= {leaf.wire + part for leaf in selected if leaf.kind == "ragged" for part in _RAGGED}
        if self._clock:
            self._selected |= {self._clock.wire}

    def read(self, buffer: memoryview, offset: int, length: int, ensure: Ensure | None = None) -> RawEpisode:
        """Read one record.

        Raises:
            CorruptError: the record is not a well-formed Example.
            DataError: a key is missing, or its values differ in kind or number from features.json.
        """
        spans = self._scan(buffer, offset, length, ensure)
        if ensure:
            images = {leaf.wire for leaf in self.cameras.values()}
            for wire, span in spans.items():
                if wire not in images:
                    ensure(span.offset, span.length)
        rare = self._read_rare(buffer, offset, length, ensure) if self._rare else {}
        steps: dict[str, NDArray[Any]] = {}
        for key, leaf in self.steps.items():
            if leaf.kind == "ragged":
                steps[key] = _ragged(buffer, spans, leaf)
            else:
                steps[key] = rare[key] if leaf.kind == "rare" else _values(buffer, spans.get(leaf.wire), leaf)
        num_steps = self._count(buffer, spans, steps)
        cameras = {}
        for key, leaf in self.cameras.items():
            found = spans.get(leaf.wire)
            if found and found.kind != example.BYTES:
                raise DataError(f"{leaf.wire.decode()!r} has numbers where features.json lists images")
            if found:
                cameras[key] = found
        metadata = {}
        for key, leaf in self.metadata.items():
            if leaf.kind == "rare":
                metadata[key] = rare[key]
            elif leaf.wire in spans:
                value = _values(buffer, spans[leaf.wire], leaf)
                metadata[key] = value[0] if len(value) == 1 else value
        return RawEpisode(num_steps, steps, cameras, metadata)

    def _scan(self, buffer: memoryview, offset: int, length: int, ensure: Ensure | None) -> dict[bytes, Span]:
        """Find the features, first as in the record before."""
        spans = example.scan_alike(buffer, offset, length, self._order, ensure) if self._order else None
        if spans is None:
            spans = example.scan(buffer, offset, length, self._selected, ensure)
            if self._learned < _LEARN:
                self._learned += 1
                self._order = example.key_order(buffer, offset, length, self._selected)
        return spans

    def _count(self, buffer: memoryview, spans: Mapping[bytes, Span], steps: Steps) -> int:
        counts = {key: len(array) for key, array in steps.items()}
        if self._clock and self._clock.key not in counts:
            clock = spans.get(self._clock.wire)
            if clock or not counts:
                counts["is_first"] = _count_flags(buffer, clock, self._clock)
        if len(set(counts.values())) > 1:
            counted = ", ".join(f"{key}: {n}" for key, n in sorted(counts.items()))
            raise DataError(f"its features have different numbers of steps ({counted})")
        return next(iter(counts.values()), 0)

    def _read_rare(self, buffer: memoryview, offset: int, length: int, ensure: Ensure | None) -> dict[str, Any]:
        if ensure:
            ensure(offset, length)
        assert self._rare is not None
        from oxe_curate.rlds.encode import encode_example

        # only what was requested: tfds fails on a ragged feature that is not declared
        found_spans = example.scan(buffer, offset, length)
        within = tuple(wire + b"/" for wire in self._rare_wires)
        chosen = {k: span for k, span in found_spans.items() if k in self._rare_wires or k.startswith(within)}
        try:
            record = encode_example({k.decode(): example.values(buffer, span) for k, span in chosen.items()})
            decoded = self._rare.deserialize_example_np(record)
        except Exception as error:  # tfds passes on the errors of its codecs
            raise DataError(f"tensorflow_datasets cannot decode it: {(str(error).splitlines() or [''])[0]}") from error
        steps = list(decoded.get(STEPS, ()))
        found: dict[str, Any] = {k: _get(decoded, k) for k, leaf in self.metadata.items() if leaf.kind == "rare"}
        for key, leaf in self.steps.items():
            if leaf.kind == "rare":
                found[key] = _as_rows([_get(step, key) for step in steps])
        return found


def _lookup(key: str, known: Mapping[str, Leaf], where: str) -> Leaf:
    if key not in known:
        raise DataError(f"{where} has no feature {key!r}. {did_you_mean(key, known)}")
    return known[key]


def _rare_features(rare: list[Leaf]) -> Any:
    """A FeaturesDict of only the rare leaves, so that tfds decodes nothing else."""
    from tensorflow_datasets.core import features as tfds

    tree: dict[str, Any] = {}
    for leaf in rare:
        node = tree
        *folders, name = leaf.wire.decode().split("/")
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf.feature
    if STEPS in tree:
        tree[STEPS] = tfds.Dataset(tree[STEPS])
    return tfds.FeaturesDict(tree)


def _get(value: Any, key: str) -> Any:
    for part in key.split("/"):
        value = value[part]
    return value


def _as_rows(rows: list[Any]) -> NDArray[Any]:
    """One row per step; an object array if steps differ in shape."""
    try:
        return np.asarray(rows)
    except ValueError:
        ragged = np.empty(len(rows), object)
        ragged[:] = rows
        return ragged


def _values(buffer: memoryview, span: Span | None, leaf: Leaf) -> NDArray[Any]:
    """Values of one feature, (T, *shape) for a step feature, as `leaf` describes them."""
    if span is None:
        return np.empty((0, *(d or 0 for d in leaf.shape)), leaf.dtype)
    if leaf.kind == "text":
        if span.kind != example.BYTES:
            raise DataError(f"{leaf.wire.decode()!r} has numbers where features.json lists text")
        texts = example.byte_values(buffer, span)
        array = np.empty(len(texts), object)
        array[:] = texts
        if leaf.shape and len(texts) % max(leaf.width, 1):
            raise DataError(f"{leaf.wire.decode()!r} has {len(texts)} texts, not a multiple of {leaf.width} per step")
        return array.reshape(-1, *leaf.shape) if leaf.shape else array
    if leaf.encoding != "none":
        return _stored_as_bytes(buffer, span, leaf)
    if span.kind == example.BYTES:
        raise DataError(f"{leaf.wire.decode()!r} has bytes where features.json lists {leaf.dtype}")
    flat: NDArray[Any] = example.floats(buffer, span) if span.kind == example.FLOAT else example.ints(buffer, span)
    if (flat.dtype.kind == "f") != (leaf.dtype.kind == "f"):
        raise DataError(f"{leaf.wire.decode()!r} has {flat.dtype} where features.json lists {leaf.dtype}")
    width = leaf.width
    if width == 0 or len(flat) % width:
        raise DataError(f"{leaf.wire.decode()!r} has {len(flat)} numbers, not a multiple of {width} per step")
    if leaf.dtype == np.uint64:
        flat = flat.view(np.uint64)  # tfds stores the bits
    return flat.astype(leaf.dtype, copy=False).reshape(-1, *leaf.shape)


def _count_flags(buffer: memoryview, span: Span | None, leaf: Leaf) -> int:
    """Number of rows of a feature; of one number per step, packed into a byte each, without decoding them."""
    plain = leaf.encoding == "none" and leaf.width == 1 and leaf.dtype.kind != "f"
    if plain and span and span.kind == example.INT64 and span.length > 1:
        size, start = read_varint(buffer, span.offset + 1)
        end = span.offset + span.length
        if buffer[span.offset] == 0x0A and start + size == end and bytes(buffer[start:end]).isascii():
            return size
    return len(_values(buffer, span, leaf))


def _ragged(buffer: memoryview, spans: Mapping[bytes, Span], leaf: Leaf) -> NDArray[Any]:
    """The rows of a sequence inside a step: the items of all steps, cut by the number that each step has."""
    kind: Any = "text" if leaf.dtype == object else "number"
    items, counts = (spans.get(leaf.wire + part) for part in _RAGGED)
    flat = _values(buffer, items, replace(leaf, kind=kind, shape=leaf.shape[1:]))
    ends = np.cumsum(example.ints(buffer, counts) if counts and counts.kind == example.INT64 else np.empty(0, int))
    if len(flat) != (ends[-1] if len(ends) else 0) or (np.diff(ends, prepend=0) < 0).any():
        raise DataError(f"{leaf.wire.decode()!r} has {len(flat)} items, which do not fit the lengths that it lists")
    if not len(ends):
        return np.empty((0, *(d or 0 for d in leaf.shape)), leaf.dtype)
    return _as_rows(np.split(flat, ends[:-1]))


def _stored_as_bytes(buffer: memoryview, span: Span, leaf: Leaf) -> NDArray[Any]:
    """Tensors that tfds stored as raw or zlib-compressed bytes, one value per step."""
    from oxe_curate.rlds.structure import BFloat16

    if span.kind != example.BYTES:
        raise DataError(f"{leaf.wire.decode()!r} has numbers where features.json lists {leaf.encoding} tensors")
    rows = example.byte_values(buffer, span)
    try:
        raw = b"".join(zlib.decompress(row) for row in rows) if leaf.encoding == "zlib" else b"".join(rows)
    except zlib.error as error:
        raise CorruptError(f"{leaf.wire.decode()!r}: {error}") from None
    dtype = np.dtype(np.uint8) if leaf.dtype == np.bool_ else leaf.dtype
    if isinstance(leaf.feature, BFloat16):
        dtype = np.dtype(np.uint16)
    if len(raw) != len(rows) * leaf.width * dtype.itemsize:
        raise DataError(f"{leaf.wire.decode()!r}: {len(raw)} bytes are not {len(rows)} tensors of {leaf.shape}")
    values = np.frombuffer(raw, dtype)
    if isinstance(leaf.feature, BFloat16):  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(leaf.dtype, copy=False).reshape(len(rows), *leaf.shape)
