"""Episodes as they are stored: read whole, changed by feature, written again; unchanged records keep their bytes."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.rlds import example, tfrecord
from oxe_curate.rlds.encode import Value, encode_example
from oxe_curate.rlds.leaf import Leaf, leaves
from oxe_curate.rlds.synthetic import load_features
from oxe_curate.rlds.tfrecord import frame_record

Floats: TypeAlias = NDArray[np.floating[Any]]
Pixels: TypeAlias = NDArray[np.uint8]

BOOKKEEPING = ("is_first", "is_last", "is_terminal", "reward", "discount", "terminate_episode", "first", "last")
"""Step features that say where an episode begins and ends; a writer makes them anew for the steps it has."""


@dataclass(frozen=True, eq=False)
class StoredEpisode:
    """One record.

    Attributes:
        values: name in the record -> list of byte strings (images, texts), or array; (T, ...) for a step feature.
        steps: T.
        record: the bytes it was read from.
    """

    values: Mapping[str, Any]
    steps: int
    record: bytes

    def encode(self) -> bytes:
        """The Example's bytes."""
        flat: dict[str, Value] = {k: v.ravel() if isinstance(v, np.ndarray) else v for k, v in self.values.items()}
        return encode_example(flat)

    def with_values(self, **changes: Any) -> StoredEpisode:
        """A copy with other values, by name in the record (use `**{name: value}`)."""
        unknown = changes.keys() - self.values.keys()
        if unknown:
            raise KeyError(f"the episode has no {', '.join(sorted(unknown))}")
        return replace(self, values={**self.values, **changes})

    @property
    def step_names(self) -> list[str]:
        """Names of the features of every step."""
        return [name for name, value in self.values.items() if name.startswith("steps/") and len(value) == self.steps]

    def take(self, index: Sequence[int] | NDArray[np.integer[Any]]) -> StoredEpisode:
        """The given steps in the given order; `BOOKKEEPING` is that of an episode of this length."""
        order = np.asarray(index, np.int64)
        if not len(order):
            raise ValueError("an episode needs a step")
        begin_end = np.clip(np.arange(len(order)), 0, 1)
        begin_end[-1] = self.steps - 1
        begin_end = np.minimum(begin_end, self.steps - 1)
        values = dict(self.values)
        for name in self.step_names:
            rows = begin_end if name.rsplit("/", 1)[-1] in BOOKKEEPING else order
            value = self.values[name]
            values[name] = value[rows] if isinstance(value, np.ndarray) else [value[i] for i in rows]
        return replace(self, values=values, steps=len(order))


def read_episodes(folder: Path, split: str = "train") -> list[StoredEpisode]:
    """Every episode of a split of the TFDS version folder, in the order of its shards."""
    shapes = step_leaves(folder)
    found = []
    for path in sorted(folder.glob(f"*-{split}.tfrecord-*")):
        buffer = memoryview(path.read_bytes())
        for offset, length in tfrecord.records(buffer):
            found.append(parse(bytes(buffer[offset : offset + length]), shapes))
    return found


def step_leaves(folder: Path) -> dict[str, Leaf]:
    """Name in the record -> description, of every step feature in the folder's features.json."""
    steps, _ = leaves(load_features(json.loads((folder / "features.json").read_text())))
    return {leaf.wire.decode(): leaf for leaf in steps.values()}


def parse(record: bytes, shapes: Mapping[str, Leaf]) -> StoredEpisode:
    """Read one record whole."""
    buffer = memoryview(record)
    values: dict[str, Any] = {}
    for wire, span in example.scan(buffer, 0, len(record)).items():
        name = wire.decode()
        value = example.values(buffer, span)
        if isinstance(value, np.ndarray):
            value = value.reshape(-1, *shapes[name].shape).copy() if name in shapes else value.copy()
        values[name] = value
    return StoredEpisode(values, len(values["steps/is_first"]), record)


def write_episodes(like: Path, folder: Path, splits: Mapping[str, Sequence[StoredEpisode | bytes]]) -> None:
    """Write a TFDS version folder with one shard per split and the features.json of `like`.

    Args:
        like: the version folder that the episodes are from.
        folder: `<root>/<name>/<version>`; existing files are replaced.
        splits: split -> episodes: changed ones, or bytes of a record.
    """
    info = json.loads((like / "dataset_info.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tfrecord-*"):
        old.unlink()
    listed = []
    for split, episodes in splits.items():
        records = [item if isinstance(item, bytes) else item.encode() for item in episodes]
        path = folder / f"{info['name']}-{split}.tfrecord-00000-of-00001"
        path.write_bytes(b"".join(map(frame_record, records)))
        listed.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(map(len, records))),
                "shardLengths": [str(len(records))],
            }
        )
    (folder / "features.json").write_bytes((like / "features.json").read_bytes())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": listed}, indent=1))


# --- frames ---


@functools.lru_cache(4096)
def decode(frame: bytes) -> Pixels:
    """uint8 (height, width, 3)."""
    pixels = np.asarray(Image.open(BytesIO(frame)).convert("RGB"))
    pixels.flags.writeable = False
    return pixels


def encode_like(pixels: NDArray[Any], frame: bytes, quality: int = 90) -> bytes:
    """Encode an image in the format of another frame."""
    image = np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if frame[:2] == b"\xff\xd8":
        return bytes(simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="420"))
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def again(frame: bytes, rng: np.random.Generator, sigma: float = 1.5) -> bytes:
    """The same view a moment later: other sensor noise, encoded again."""
    pixels = decode(frame).astype(np.float32)
    return encode_like(pixels + rng.normal(0, sigma, pixels.shape), frame)


def resized(pixels: NDArray[Any], size: tuple[int, int]) -> Pixels:
    """Resize to (height, width)."""
    return np.asarray(Image.fromarray(np.asarray(pixels, np.uint8)).resize(size[::-1], Image.Resampling.BILINEAR))
