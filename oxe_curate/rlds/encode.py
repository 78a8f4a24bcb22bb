"""Write TFDS records without TensorFlow: flatten episodes, serialise tf.train.Example, frame TFRecords.

The formats: `tensorflow/core/example/{example,feature}.proto`, the TFRecord page of TensorFlow's guide, and
tensorflow_datasets' `example_serializer`. The tests compare with TFDS itself and with protobuf's parser.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from tensorflow_datasets.core import features as tfds

from oxe_curate.errors import DataError, did_you_mean

Value: TypeAlias = Sequence[bytes] | NDArray[Any]
"""One feature of an Example: byte strings, or a 1-d array of floats, integers or booleans."""

EpisodeValues: TypeAlias = Mapping[str, Any]
"""One RLDS episode, nested as its features.json: "steps" holds arrays with time first, the rest is metadata.

Images are encoded bytes (kept as they are) or arrays; text is str or bytes.
"""


def encode_example(
    features: Mapping[str, Value], *, packed: bool = True, value_first: bool = False, runs: int = 1
) -> bytes:
    """Serialise a tf.train.Example; its keys keep the order of the mapping.

    The options select encodings that every protobuf parser must accept; the defaults are those of TFDS.

    Args:
        features: key -> list of bytes, or array. Floats of any width become float32; bools and integers
            become int64 (uint64 is reinterpreted, as TFDS does).
        packed: whether numbers are packed, or tagged one by one.
        value_first: whether each map entry has the feature before its key.
        runs: number of packed runs per list.

    Returns:
        The serialised message.

    Raises:
        TypeError: a value is neither bytes nor numbers.
    """
    entries = []
    for key, value in features.items():
        name = _delimited(1, key.encode())
        feature = _delimited(2, _encode_feature(key, value, packed=packed, runs=runs))
        entries.append(_delimited(1, feature + name if value_first else name + feature))
    return _delimited(1, b"".join(entries))


def flatten_episode(features: tfds.FeaturesDict, episode: EpisodeValues) -> dict[str, Value]:
    """Turn a nested episode into the flat features of the Example that TFDS would write, in a fixed order.

    Keys are joined with "/"; the values of all steps are concatenated. Tensors with an encoding become
    one byte string per step, sequences inside a step become `ragged_flat_values` and `ragged_row_lengths_0`,
    tensors with several unknown dimensions `shape` and `value`.

    Args:
        features: the structure, from features.json (`tensorflow_datasets.core.features`).
        episode: values in the same nesting; optional features may be missing.

    Raises:
        DataError: a key is missing or unknown, or a value does not have the declared shape, type or length.
    """
    flat: dict[str, Value] = {}
    _flatten(features, episode, "", 0, flat)
    return flat


def encode_image(pixels: NDArray[Any], encoding: str | None, quality: int = 90) -> bytes:
    """Encode an image as TFDS would: PNG unless `encoding` says "jpeg".

    Args:
        pixels: (height, width, channels): uint8 with 1, 3 or 4 channels, uint16 with 1, or float32 with 1,
            whose bytes are stored as the four channels of a PNG.
        encoding: "jpeg", "png", or None for TFDS's default.
        quality: of JPEG.
    """
    if pixels.dtype == np.float32:
        pixels = np.ascontiguousarray(pixels).view(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    buffer = BytesIO()
    if encoding == "jpeg":
        Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    else:
        Image.fromarray(pixels).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


# --- wire format ---


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(values: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Encode values as varints in one buffer, with the length of each; negative ones take ten bytes."""
    left = values.astype(np.int64, copy=False).view(np.uint64)
    shifted = left[:, None] >> (7 * np.arange(10, dtype=np.uint64))
    lengths = np.maximum(1, (shifted != 0).sum(axis=1))
    used = np.arange(10) < lengths[:, None]
    more = np.arange(1, 11) < lengths[:, None]
    return ((shifted & 0x7F).astype(np.uint8) | (more * np.uint8(0x80)))[used], lengths


def _delimited(field: int, payload: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(payload)) + payload


def _encode_feature(key: str, value: Value, *, packed: bool, runs: int) -> bytes:
    if not isinstance(value, np.ndarray):
        if not all(isinstance(item, bytes) for item in value):
            raise TypeError(f"{key}: expected a list of bytes or an array of numbers, got {value!r:.80}")
        return _delimited(1, b"".join(_delimited(1, item) for item in value))
    flat = value.ravel()
    if flat.dtype.kind == "f":
        numbers = flat.astype("<f4", copy=False)
        if not packed:
            return _delimited(2, _tagged_floats(numbers))
        return _delimited(2, b"".join(_packed(part.tobytes()) for part in np.array_split(numbers, runs)))
    if flat.dtype.kind in "biu":
        integers = flat.view(np.int64) if flat.dtype == np.uint64 else flat.astype(np.int64, copy=False)
        if not packed:
            return _delimited(3, _tagged_integers(integers))
        parts = np.array_split(integers, runs)
        return _delimited(3, b"".join(_packed(_varints(part)[0].tobytes()) for part in parts))
    raise TypeError(f"{key}: expected bytes, floats or integers, got {value.dtype}")


def _packed(payload: bytes) -> bytes:
    return _delimited(1, payload) if payload else b""


def _tagged_floats(values: NDArray[np.float32]) -> bytes:
    tagged = np.empty(len(values), [("tag", "u1"), ("value", "<f4")])
    tagged["tag"], tagged["value"] = 1 << 3 | 5, values
    return tagged.tobytes()


def _tagged_integers(values: NDArray[np.int64]) -> bytes:
    data, lengths = _varints(values)
    tagged: bytes = np.insert(data, np.cumsum(lengths) - lengths, 1 << 3).tobytes()
    return tagged


# --- flattening ---


def _flatten(feature: Any, value: Any, path: str, rank: int, flat: dict[str, Value]) -> None:
    """Add the Example features of one node; `rank` sequences enclose it, so leaves are nested that deep."""
    if isinstance(feature, tfds.FeaturesDict):
        if not isinstance(value, Mapping):
            raise DataError(f"{path or 'episode'}: expected a dict, got {type(value).__name__}")
        for key in value:
            if key not in feature:
                raise DataError(f"{_join(path, key)}: unknown key (not in features.json). {did_you_mean(key, feature)}")
        for key, child in sorted(feature.items()):  # FeaturesDict has the order of a protobuf map, which is undefined
            if key in value:
                _flatten(child, value[key], _join(path, key), rank, flat)
            elif not getattr(child, "_optional", False):
                raise DataError(f"{_join(path, key)}: the key is in features.json but not in the episode")
    elif isinstance(feature, tfds.Sequence):  # includes tfds.Dataset
        _flatten(feature.feature, value, path, rank + 1, flat)
    else:
        try:
            flat.update(_flatten_leaf(feature, value, path, rank))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: {error}") from error


def _join(path: str, key: str) -> str:
    return f"{path}/{key}" if path else key


def _flatten_leaf(feature: Any, value: Any, path: str, rank: int) -> dict[str, Value]:
    info = feature.get_serialized_info()
    if isinstance(info, dict):  # several unknown dimensions: an Example is flat, so the shape is stored separately
        items, _ = _unnest(value, rank) if rank else ([value], [])
        arrays = [np.asarray(item) for item in items]
        shapes = np.concatenate([np.array(a.shape, np.int64) for a in arrays] or [np.empty(0, np.int64)])
        return {f"{path}/shape": shapes, f"{path}/value": [_encode_bytes(feature, a) for a in arrays]}
    if info.np_dtype == np.object_:  # text, encoded images, encoded tensors: one byte string each
        items, row_lengths = _unnest(value, rank + len(info.shape))
        row_lengths = row_lengths[: max(rank - 1, 0)]
        values: Value = [_encode_bytes(feature, item) for item in items]
    elif rank < 2:
        array = _array(value, info.np_dtype)
        _check_shape(array.shape, (None,) * rank + tuple(info.shape))
        values, row_lengths = array.ravel(), []
    else:
        items, row_lengths = _unnest(value, rank)
        arrays = [_array(item, info.np_dtype) for item in items]
        for array in arrays:
            _check_shape(array.shape, info.shape)
        values = np.concatenate([a.ravel() for a in arrays]) if arrays else np.empty(0, info.np_dtype)
    if rank < 2:
        return {path: values}
    lengths = {f"{path}/ragged_row_lengths_{i}": np.array(n, np.int64) for i, n in enumerate(row_lengths)}
    return {f"{path}/ragged_flat_values": values} | lengths


def _unnest(value: Any, depth: int) -> tuple[list[Any], list[list[int]]]:
    """Flatten `depth` levels of lists: the items in order, and the row lengths of the levels below the first."""
    if depth == 0:
        return [value], []
    items, lengths = list(value), []
    for _ in range(depth - 1):
        lengths.append([len(row) for row in items])
        items = [item for row in items for item in row]
    return items, lengths


def _array(value: Any, declared: DTypeLike) -> NDArray[Any]:
    """Convert to an array of the declared type, if only precision is lost."""
    array, dtype = np.asarray(value), np.dtype(declared)
    if array.dtype == dtype or not array.size:
        return array.astype(dtype, copy=False)
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = limits.min <= int(array.min()) and int(array.max()) <= limits.max
    else:
        fits = np.can_cast(array.dtype, dtype, casting="same_kind")
    if not fits:
        raise TypeError(f"expected {dtype} as in features.json, got {array.dtype}")
    return array.astype(dtype)


def _check_shape(found: tuple[int, ...], declared: Iterable[int | None]) -> None:
    declared = tuple(declared)
    if len(found) != len(declared) or any(d not in (None, f) for f, d in zip(found, declared, strict=True)):
        shown = ", ".join("?" if d is None else str(d) for d in declared)
        raise ValueError(f"expected shape ({shown}) as in features.json, got {found}")


def _encode_bytes(feature: Any, item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    if isinstance(feature, tfds.Image):
        pixels = _array(item, feature.np_dtype)
        _check_shape(pixels.shape, feature.shape)
        return encode_image(pixels, feature.encoding_format)
    encoding = getattr(getattr(feature, "_encoding", None), "value", "none")
    if encoding == "none":
        raise TypeError(f"expected text, got {type(item).__name__}")
    array = _array(item, feature.np_dtype)
    _check_shape(array.shape, feature.shape)
    return zlib.compress(array.tobytes()) if encoding == "zlib" else array.tobytes()
