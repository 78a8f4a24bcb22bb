"""One RLDS record -> the requested step arrays, texts and byte ranges, as described by features.json."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oxe_curate.episode import Steps
from oxe_curate.errors import CorruptError, DataError, did_you_mean
from oxe_curate.rlds import example
from oxe_curate.rlds.example import Span
from oxe_curate.rlds.tfrecord import Ensure

STEPS = "steps"
FeatureKind = Literal["number", "text", "image", "rare"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A feature with values.

    Attributes:
        key: flat key; below the step for a step feature ("observation/state"), from the top otherwise.
        wire: its name in the record.
        kind: number (float or int list, or a tensor stored as bytes), text, image (encoded bytes), or rare: nested
            sequences, ragged or dynamic shapes, and video, which tfds decodes.
        shape: of one step's value.
        encoding: "none", "bytes" or "zlib": how a tensor is stored.
    """

    key: str
    wire: bytes
    kind: FeatureKind
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    encoding: str
    feature: Any = field(repr=False, compare=False)

    @property
    def width(self) -> int:
        """Numbers per step."""
        return math.prod(d or 0 for d in self.shape)


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


def leaves(features: Any) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """Flatten a tfds FeaturesDict into (step leaves, other leaves), keyed as `Leaf.key`.

    Raises:
        DataError: there is no `steps` sequence, so the data set is not RLDS.
    """
    if STEPS not in features or not hasattr(features[STEPS], "feature"):
        raise DataError(f"features.json has no sequence {STEPS!r}, so it does not describe an RLDS data set")
    steps = _flatten(features[STEPS].feature, "", f"{STEPS}/")
    other: dict[str, Leaf] = {}
    for name, feature in features.items():
        if name != STEPS:
            other.update(_flatten(feature, name, ""))
    return steps, other


def _flatten(feature: Any, key: str, prefix: str) -> dict[str, Leaf]:
    from tensorflow_datasets.core import features as tfds

    if isinstance(feature, tfds.FeaturesDict):
        found: dict[str, Leaf] = {}
        for name, below in feature.items():
            found.update(_flatten(below, f"{key}/{name}" if key else name, prefix))
        return found
    kind: FeatureKind = "rare"
    encoding, dtype, shape = "none", np.dtype(object), ()
    if isinstance(feature, tfds.Video | tfds.Sequence | tfds.Dataset):
        pass
    elif isinstance(feature, tfds.Image):
        kind, shape = "image", tuple(feature.shape)
    elif isinstance(feature, tfds.Text):
        kind = "text"
    elif isinstance(feature, tfds.Tensor | tfds.ClassLabel):
        dtype, shape = np.dtype(feature.np_dtype), tuple(feature.shape)
        encoding = str(getattr(getattr(feature, "_encoding", None), "value", "none"))
        if dtype.kind in "OSU":
            kind, dtype = ("text", np.dtype(object)) if not shape else ("rare", np.dtype(object))
        elif None not in shape:
            kind = "number"
    return {key: Leaf(key, f"{prefix}{key}".encode(), kind, dtype, shape, encoding, feature)}


class RecordReader:
    """Reads selected features of each record. Created once per data set; holds no file.

    Args:
        features: the tfds FeaturesDict of an episode.
        steps: flat step keys to read as arrays ("observation/state", "language_instruction").
        cameras: image keys to locate, as card keys below `observation/` or full step keys.
        metadata: flat keys outside the steps.
        where: prefix of every error message (the data set's name).

    Raises:
        DataError: features.json has no such key; the closest one is named.
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
        for leaf in self.cameras.values():
            if leaf.kind != "image":
                raise DataError(f"{where}: camera {leaf.key!r} is not an image feature")
        requested = any(leaf.kind == "rare" for leaf in (*self.steps.values(), *self.metadata.values()))
        # all rare leaves, requested or not: tfds fails on a ragged feature that is not declared
        rare = [leaf for leaf in (*step_leaves.values(), *other.values()) if leaf.kind == "rare"]
        self._rare = _rare_features(rare) if requested else None
        # is_first is part of the RLDS standard; it gives the number of steps if nothing else is read
        self._clock = step_leaves.get("is_first")
        selected = [*self.steps.values(), *self.cameras.values(), *self.metadata.values()]
        self._selected = frozenset(leaf.wire for leaf in selected if leaf.kind != "rare")
        if self._clock:
            self._selected |= {self._clock.wire}

    def read(self, buffer: memoryview, offset: int, length: int, ensure: Ensure | None = None) -> RawEpisode:
        """Read one record.

        Raises:
            CorruptError: the record is not a well-formed Example.
            DataError: a key is missing, or its values differ in kind or number from features.json.
        """
        spans = example.scan(buffer, offset, length, self._selected, ensure)
        if ensure:
            images = {leaf.wire for leaf in self.cameras.values()}
            for wire, span in spans.items():
                if wire not in images:
                    ensure(span.offset, span.length)
        rare = self._read_rare(buffer, offset, length, ensure) if self._rare else {}
        steps: dict[str, NDArray[Any]] = {}
        for key, leaf in self.steps.items():
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

    def _count(self, buffer: memoryview, spans: Mapping[bytes, Span], steps: Steps) -> int:
        counts = {key: len(array) for key, array in steps.items()}
        if self._clock and self._clock.key not in counts:
            clock = spans.get(self._clock.wire)
            if clock or not counts:
                counts["is_first"] = len(_values(buffer, clock, self._clock))
        if len(set(counts.values())) > 1:
            counted = ", ".join(f"{key}: {n}" for key, n in sorted(counts.items()))
            raise DataError(f"its features have different numbers of steps ({counted})")
        return next(iter(counts.values()), 0)

    def _read_rare(self, buffer: memoryview, offset: int, length: int, ensure: Ensure | None) -> dict[str, Any]:
        if ensure:
            ensure(offset, length)
        assert self._rare is not None
        try:
            decoded = self._rare.deserialize_example_np(bytes(buffer[offset : offset + length]))
        except Exception as error:  # tfds passes on the errors of its codecs
            raise DataError(f"tensorflow_datasets cannot decode it: {(str(error).splitlines() or [''])[0]}") from error
        steps = list(decoded.get(STEPS, ()))
        found: dict[str, Any] = {k: _get(decoded, k) for k, leaf in self.metadata.items() if leaf.kind == "rare"}
        for key, leaf in self.steps.items():
            if leaf.kind == "rare":
                found[key] = _as_rows([_get(step, key) for step in steps])
        return found


def camera_key(key: str, step_leaves: Mapping[str, Leaf]) -> str:
    """The full step key of a camera, which cards name below `observation/`."""
    return key if key in step_leaves or f"observation/{key}" not in step_leaves else f"observation/{key}"


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
        return array
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


def _stored_as_bytes(buffer: memoryview, span: Span, leaf: Leaf) -> NDArray[Any]:
    """Tensors that tfds stored as raw or zlib-compressed bytes, one value per step."""
    if span.kind != example.BYTES:
        raise DataError(f"{leaf.wire.decode()!r} has numbers where features.json lists {leaf.encoding} tensors")
    rows = example.byte_values(buffer, span)
    try:
        raw = b"".join(zlib.decompress(row) for row in rows) if leaf.encoding == "zlib" else b"".join(rows)
    except zlib.error as error:
        raise CorruptError(f"{leaf.wire.decode()!r}: {error}") from None
    dtype = np.dtype(np.uint8) if leaf.dtype == np.bool_ else leaf.dtype
    if len(raw) != len(rows) * leaf.width * dtype.itemsize:
        raise DataError(f"{leaf.wire.decode()!r}: {len(raw)} bytes are not {len(rows)} tensors of {leaf.shape}")
    return np.frombuffer(raw, dtype).astype(leaf.dtype, copy=False).reshape(len(rows), *leaf.shape)
