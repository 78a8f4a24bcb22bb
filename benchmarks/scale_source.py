"""Synthetic source data at the limits: thousands of tiny shards, one very long episode, very large frames."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from tensorflow_datasets.core import features as tfds

from benchmarks.make_shards import CAMERAS, NAME, encode_black, write_description
from oxe_curate.demo import episodes as demo
from oxe_curate.demo.structure import features_json
from oxe_curate.rlds.encode import encode_example, flatten_episode
from oxe_curate.rlds.synthetic import load_features, write_dataset
from oxe_curate.rlds.tfrecord import frame_record

SMALL = 32
"""Pixels per side of the tiny shards' images."""
_LONG_SIZE, _PICTURES = 256, 32
_VARIED = 8  # episodes that the tiny shards' ones are varied from


def small_shards(root: Path, shards: int) -> Path:
    """Make a data set of `shards` files of two to four episodes of 5 steps below `root`, unless it is there."""
    folder = root / NAME / "1.0.0"
    if (folder / "dataset_info.json").exists():  # written last
        return root
    shutil.rmtree(root, ignore_errors=True)
    base = write_dataset(root / "base", NAME, "1.0.0", features_json(NAME), [_demo_episode(0)], shards=1).path
    folder.mkdir(parents=True)
    lengths = [2 + shard % 3 for shard in range(shards)]
    number = 0
    for shard, length in enumerate(lengths):
        data = b"".join(frame_record(_small_record(number + i)) for i in range(length))
        (folder / f"{NAME}-train.tfrecord-{shard:05d}-of-{shards:05d}").write_bytes(data)
        number += length
    write_description(base, folder, lengths, SMALL)
    shutil.rmtree(root / "base")
    return root


def _demo_episode(number: int) -> dict[str, Any]:
    episode = demo.bridge(number, np.random.default_rng(number), num_steps=5)
    tiny = [_encode(_picture(SMALL, number), 90)] * 5
    black = [encode_black(SMALL)] * 5
    seen = dict.fromkeys(CAMERAS, black) | {"image_0": tiny}
    steps = dict(episode["steps"])
    return {**episode, "steps": {**steps, "observation": {**steps["observation"], **seen}}}


@cache
def _varied() -> list[dict[str, Any]]:
    features = load_features(features_json(NAME))
    return [flatten_episode(features, _demo_episode(number)) for number in range(_VARIED)]


def _small_record(number: int) -> bytes:
    """An episode whose states differ from those of all others."""
    base = _varied()[number % _VARIED]
    rng = np.random.default_rng(number)
    state = base["steps/observation/state"].reshape(-1, 7) + rng.normal(0, 0.01, (5, 7)).astype(np.float32)
    return encode_example({**base, "steps/observation/state": state, "episode_metadata/episode_id": np.array([number])})


def long_episode(root: Path, steps: int) -> Path:
    """Make a data set of one episode of `steps` steps with images of 256 px, unless it is there."""
    if not (root / NAME).exists():
        pictures = [_encode(_picture(_LONG_SIZE, i), 90) for i in range(_PICTURES)]
        frames = [pictures[i % _PICTURES] for i in range(steps)]
        write_dataset(root, NAME, "1.0.0", _structure(_LONG_SIZE, "jpeg"), [_episode(0, frames)], shards=1)
    return root


def large_frames(root: Path, side: int, episodes: int = 4, steps: int = 5) -> Path:
    """Make a data set whose frames are PNG images of noise, 3 * side^2 bytes each, unless it is there."""

    def made() -> Iterator[dict[str, Any]]:
        pictures = [_encode_png(np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)) for i in range(3)]
        for number in range(episodes):
            yield _episode(number, [pictures[(number + step) % len(pictures)] for step in range(steps)])

    if not (root / NAME).exists():
        write_dataset(root, NAME, "1.0.0", _structure(side, "png"), made(), shards=1)
    return root


def _structure(size: int, encoding: str) -> dict[str, Any]:
    """Bridge's features with another size and encoding of the first camera."""
    features = dict(load_features(features_json(NAME)).items())
    steps = dict(features["steps"].feature.items())
    first = tfds.Image(shape=(size, size, 3), encoding_format=encoding)
    steps["observation"] = {**dict(steps["observation"].items()), "image_0": first}
    structure: dict[str, Any] = tfds.FeaturesDict({**features, "steps": tfds.Dataset(steps)}).to_json()
    return structure


def _episode(number: int, frames: list[bytes]) -> dict[str, Any]:
    """An episode of Bridge's structure with these frames of its first camera."""
    rng, steps = np.random.default_rng(number), len(frames)
    first, last = np.arange(steps) == 0, np.arange(steps) == steps - 1
    black = [encode_black(256)] * steps
    action = np.zeros((steps, 7), np.float32)
    action[:, 6] = rng.integers(0, 2, steps)
    return {
        "steps": {
            "observation": {
                "state": np.cumsum(rng.normal(0, 0.01, (steps, 7)), axis=0).astype(np.float32),
                **dict.fromkeys(CAMERAS, black), "image_0": frames,
            },
            "action": action,
            "language_instruction": ["put the pot on the stove"] * steps,
            "language_embedding": np.zeros((steps, 512), np.float32),
            "discount": np.ones(steps, np.float32), "reward": last.astype(np.float32),
            "is_first": first, "is_last": last, "is_terminal": last,
        },
        "episode_metadata": {
            "episode_id": number, "file_path": f"scale/{number}", "has_language": True,
            **{f"has_{camera}": camera == "image_0" for camera in CAMERAS},
        },
    }  # fmt: skip


def _picture(size: int, seed: int) -> NDArray[np.uint8]:
    """Noise of several resolutions, uint8 (size, size, 3): its JPEG is about as large as a camera's."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size, size, 3), np.float32)
    for side, strength in ((4, 40), (16, 20), (64, 8)):
        coarse = rng.normal(128, strength, (min(side, size), min(side, size), 3)).clip(0, 255).astype(np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), np.float32) - 128
    return np.clip(total + 128 + rng.normal(0, 2, total.shape), 0, 255).astype(np.uint8)


def _encode(pixels: NDArray[np.uint8], quality: int) -> bytes:
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420"))


def _encode_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png", compress_level=0)
    return buffer.getvalue()
