"""Sample whole episodes spread over the shards of a data set: numbers, texts, flags, and some decoded frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.episode import Steps
from oxe_curate.errors import ConfigError, CorruptError, DataError
from oxe_curate.index.images import decode
from oxe_curate.inspection.series import WIDEST
from oxe_curate.inspection.vision import Clip
from oxe_curate.rlds import example, tfrecord
from oxe_curate.rlds.dataset import RldsDataset, Shard
from oxe_curate.rlds.foreign import ForeignFileError
from oxe_curate.rlds.leaf import Leaf, camera_problem, leaves
from oxe_curate.rlds.reader import RawEpisode, RecordReader
from oxe_curate.rlds.shards import open_shard

_DECODED_EPISODES = 8
"""Episodes whose frames are decoded."""
_FRAMES = 10
"""Frames of each camera and episode, spread evenly from the first to the last."""
_LARGEST = 128
"""Frames are reduced to less than twice this many pixels on their shorter side."""
_TEXT_WIDTH = 2048  # int features up to this wide may be texts as code points


@dataclass(frozen=True, slots=True, eq=False)
class SampledCamera:
    """One camera's frames in the sample.

    Attributes:
        key: full step key.
        encoding: "jpeg" or "png" by the bytes, "tensor" for plain arrays, "unspecified" where no frame was read.
        shape: (height, width, channels) of the first frame that was decoded, else as in features.json.
        frames: per episode with decoded frames, uint8 (n, h, w, 3), reduced; empty for tensors and images of floats,
            which are not decoded.
        at: per episode with decoded frames, the steps of the frames.
        missing: frames without bytes. unreadable: frames that cannot be decoded.
        looked_at: total number of frames checked.
    """

    key: str
    encoding: str
    shape: tuple[int | None, ...]
    dtype: str
    frames: tuple[Clip, ...]
    at: tuple[NDArray[np.int64], ...]
    missing: int
    unreadable: int
    looked_at: int


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The sampled data.

    Attributes:
        episodes: step dicts; numbers and texts.
        ids: "split/shard/record" of each.
        flags: per episode, the boolean metadata. No other metadata is read.
        metadata: names of all features outside the steps -> "bool", "text" and so on.
        steps: the step features as in features.json.
        cameras: frames.
        not_read: step keys that are too large or of an unsupported type -> reason.
    """

    episodes: tuple[Steps, ...]
    ids: tuple[str, ...]
    flags: tuple[dict[str, bool], ...]
    metadata: Mapping[str, str]
    steps: Mapping[str, Leaf]
    cameras: tuple[SampledCamera, ...]
    not_read: Mapping[str, str]


def read_sample(dataset: RldsDataset, episodes: int = 32, seed: int = 0) -> Sample:
    """Read `episodes` episodes, drawn with `seed` from as many shards as possible.

    Raises:
        ConfigError: `episodes` is less than 1.
        DataError, CorruptError: the data set contains no episodes, or a record does not match features.json.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes {episodes}: must be at least 1")
    # sorted: protobuf loses the order of features.json, and a report must not change from run to run
    steps, other = (dict(sorted(part.items())) for part in leaves(dataset.features))
    images = [key for key, leaf in steps.items() if not camera_problem(leaf)]
    not_read = {key: why for key, leaf in steps.items() if leaf.kind != "image" and (why := _too_much(leaf))}
    selected = [key for key, leaf in steps.items() if leaf.kind != "image" and key not in not_read]
    flags = [key for key, leaf in other.items() if leaf.kind == "number" and leaf.dtype == np.bool_ and not leaf.shape]
    reader = RecordReader(dataset.features, selected, images, flags, where=f"{dataset.label} features.json")
    read: list[tuple[str, RawEpisode]] = []
    film = _Film(images)
    for shard, records in draw_sample(dataset.shards(), episodes, seed):
        for number, episode, buffer, ensure in _read_shard(dataset, shard, records, reader):
            read.append((f"{shard.split}/{shard.number:05d}/{number:05d}", episode))
            if len(read) <= _DECODED_EPISODES:
                film.add(episode, buffer, ensure)
    if not read:
        raise DataError(f"{dataset.source}/{dataset.path}: its shards contain no episodes")
    others = [_unread_camera(leaf) for leaf in steps.values() if leaf.key not in images and _is_image(leaf)]
    return Sample(
        episodes=tuple(episode.steps for _, episode in read),
        ids=tuple(name for name, _ in read),
        flags=tuple({key: bool(value) for key, value in episode.metadata.items()} for _, episode in read),
        metadata={key: "text" if leaf.kind == "text" else str(leaf.dtype) for key, leaf in other.items()},
        steps=steps,
        cameras=(*(film.camera(steps[key]) for key in images), *others),
        not_read=not_read,
    )


def draw_sample(shards: list[Shard], episodes: int, seed: int) -> list[tuple[Shard, list[int]]]:
    """Choose the records to read: shards in random order, as few records of each as possible."""
    rng = np.random.default_rng(seed)
    order = [shards[i] for i in rng.permutation(len(shards)) if shards[i].take > 0]
    taken = [0] * len(order)
    left = episodes
    while left and any(n < shard.take for n, shard in zip(taken, order, strict=True)):
        for i, shard in enumerate(order):
            if left and taken[i] < shard.take:
                taken[i], left = taken[i] + 1, left - 1
    return [
        (shard, sorted(shard.skip + int(r) for r in rng.choice(shard.take, n, replace=False)))
        for shard, n in zip(order, taken, strict=True)
        if n
    ]


def _read_shard(dataset: RldsDataset, shard: Shard, records: list[int], reader: RecordReader) -> Any:
    """Yield (record number, episode, buffer, ensure); errors name shard and record."""
    opened = open_shard(dataset.source, shard.path)
    buffer, ensure = opened.buffer, opened.ensure
    selected, where = set(records), f"{dataset.source}/{shard.path}"
    number = -1
    try:
        for number, (offset, length) in enumerate(tfrecord.records(buffer, ensure)):
            if number in selected:
                yield number, reader.read(buffer, offset, length, ensure), buffer, ensure
            if number >= records[-1]:
                return
    except ForeignFileError as error:
        raise ForeignFileError(f"{where}: {error}") from None
    except (CorruptError, DataError) as error:
        raise type(error)(f"{where}, record {max(number, 0)}: {error}") from error
    raise CorruptError(f"{where}: dataset_info.json lists {shard.records} records, the file contains {number + 1}")


def _too_much(leaf: Leaf) -> str:
    """The reason for not reading a step feature, "" if it is read."""
    if leaf.kind == "unreadable":
        return leaf.problem
    if leaf.kind == "rare" or (leaf.kind == "ragged" and leaf.dtype != object):
        return "a sequence or a tensor whose shape differs from step to step"
    if leaf.kind == "number" and _is_image(leaf):
        return "an image stored as a plain tensor; write it with tfds.features.Image to use it as a camera"
    limit = _TEXT_WIDTH if leaf.dtype.kind in "iu" else WIDEST
    if leaf.kind == "number" and leaf.width > limit:
        return f"{leaf.width} numbers per step"
    return ""


def _is_image(leaf: Leaf) -> bool:
    shape = [d or 0 for d in leaf.shape]
    return leaf.kind == "image" or (leaf.kind == "number" and len(shape) in (2, 3) and min(shape[:2]) >= 16)


def _unread_camera(leaf: Leaf) -> SampledCamera:
    """A camera whose frames are not decoded: a plain tensor, or an image of floats."""
    encoding = "tensor" if leaf.kind == "number" else leaf.feature.encoding_format or "png"
    return SampledCamera(leaf.key, encoding, leaf.shape, str(leaf.dtype), (), (), 0, 0, 0)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At most `_LARGEST` pixels on the shorter side, by averaging whole blocks."""
    factor = min(image.shape[:2]) // _LARGEST
    return np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image


class _Film:
    """Collects the frames of the episodes whose frames are decoded."""

    def __init__(self, keys: list[str]) -> None:
        self._frames: dict[str, list[Clip]] = {key: [] for key in keys}
        self._at: dict[str, list[NDArray[np.int64]]] = {key: [] for key in keys}
        self._encoding = dict.fromkeys(keys, "unspecified")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._counts = {key: [0, 0, 0] for key in keys}  # missing, unreadable, checked

    def add(self, episode: RawEpisode, buffer: memoryview, ensure: Any) -> None:
        at = np.unique(np.linspace(0, max(episode.num_steps - 1, 0), _FRAMES).astype(np.int64))
        for key in self._frames:
            images: list[NDArray[np.uint8]] = []
            steps: list[int] = []
            span = episode.cameras.get(key)
            if span is not None and ensure:
                ensure(span.offset, span.length)
            ranges = example.byte_ranges(buffer, span).tolist() if span is not None else []
            for t in at.tolist() if episode.num_steps else []:
                self._counts[key][2] += 1
                offset, length = ranges[t] if t < len(ranges) else (0, 0)
                if length == 0:
                    self._counts[key][0] += 1
                    continue
                data = buffer[offset : offset + length]
                try:
                    image = decode(data)
                except ValueError:
                    self._counts[key][1] += 1
                    continue
                self._encoding[key] = "jpeg" if bytes(data[:2]) == b"\xff\xd8" else "png"
                self._shapes.setdefault(key, image.shape)
                small = _small(image)
                if not images or small.shape == images[0].shape:
                    images.append(small)
                    steps.append(t)
            self._frames[key].append(np.stack(images) if images else np.empty((0, 0, 0, 3), np.uint8))
            self._at[key].append(np.array(steps, np.int64))

    def camera(self, leaf: Leaf) -> SampledCamera:
        missing, unreadable, looked_at = self._counts[leaf.key]
        channels = leaf.shape[2] if len(leaf.shape) == 3 else 3
        shape = (*self._shapes[leaf.key][:2], channels) if leaf.key in self._shapes else leaf.shape
        dtype = str(np.dtype(leaf.feature.np_dtype))
        encoding = self._encoding[leaf.key]
        frames, at = tuple(self._frames[leaf.key]), tuple(self._at[leaf.key])
        return SampledCamera(leaf.key, encoding, shape, dtype, frames, at, missing, unreadable, looked_at)
