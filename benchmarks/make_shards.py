"""Build a large multi-shard RLDS data set by varying real Bridge episodes: all frames and states differ.

    python -m benchmarks.make_shards FOLDER --gb 1.6 --image-size 256

The 25 real episodes of 10 steps (64 px) are played forwards and backwards to 30 to 50 steps, so that the state has
no jumps. Offsets, drift and gripper timing are drawn for each episode, actions follow the states, wordings change;
every image is cropped, brightened, resized, given sensor noise and re-encoded (JPEG 95, 4:2:0, as TFDS writes them).
With the noise, images are about as large as real Bridge frames: 3.5 kB at 64 px, 20 to 25 kB at 256 px. Without the
real shard, episodes of the demo are varied instead.

Every shard depends only on (seed, shard): shards are made in parallel, and a second run makes only the missing ones.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from tensorflow_datasets.core import features as tfds
from tqdm import tqdm

from oxe_curate.demo import episodes as demo
from oxe_curate.demo.structure import features_json
from oxe_curate.rlds.encode import encode_example
from oxe_curate.rlds.synthetic import write_dataset
from oxe_curate.rlds.tfrecord import frame_record

CAMERAS = ("image_0", "image_1", "image_2", "image_3")
BLACK = 8  # a camera that never gets brighter was absent (image_3 of the real shard) and stays black
NOISE = 2.5  # standard deviation, in grey levels
NAME = "bridge_dataset"

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class BaseEpisode:
    """An episode to vary: states (T, 7), text, embedding (512,), images (camera, T, side, side, 3)."""

    state: NDArray[np.float32]
    instruction: str
    embedding: NDArray[np.float32]
    images: NDArray[np.uint8]

    @property
    def lit(self) -> list[bool]:
        """Which cameras have images that are not black."""
        return [bool(pictures.max() > BLACK) for pictures in self.images]


def shared_folder() -> Path:
    """Folder of the real data: $OXE_CURATE_SHARED, or `shared` next to the checkout."""
    return Path(os.environ.get("OXE_CURATE_SHARED", Path(__file__).parents[2] / "shared"))


def find_base(shared: Path, scratch: Path) -> Path:
    """The folder of episodes to vary: the real shard below `shared`, else demo episodes, written to `scratch`."""
    real = shared / "data" / "rlds" / NAME / "1.0.0"
    if real.is_dir():
        return real
    drawn = scratch / NAME / "1.0.0"
    if not drawn.exists():
        episodes = (demo.bridge(number, np.random.default_rng(number)) for number in range(12))
        write_dataset(scratch, NAME, "1.0.0", features_json(NAME), episodes, shards=1)
    return drawn


def records(shard: Path) -> Iterator[bytes]:
    """The payloads of a TFRecord file."""
    data, at = shard.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += length + 16


@cache
def base_episodes(source: Path) -> list[BaseEpisode]:
    """Read and decode the train split, one shard, of the folder `source` (<name>/<version>)."""
    features = tfds.FeaturesDict.from_config(str(source))
    out = []
    for record in records(next(source.glob("*-train.tfrecord-*"))):
        steps = list(features.deserialize_example_np(record)["steps"])
        observations = [step["observation"] for step in steps]
        out.append(
            BaseEpisode(
                state=np.stack([o["state"] for o in observations]),
                instruction=steps[0]["language_instruction"].decode(),
                embedding=steps[0]["language_embedding"],
                images=np.array([[o[camera] for o in observations] for camera in CAMERAS]),
            )
        )
    return out


@cache
def noise_pool(size: int) -> NDArray[np.int16]:
    """Noise larger than an image, cropped at random: drawing new noise for each frame is slow."""
    return np.random.default_rng(size).normal(0, NOISE, (2 * size, 2 * size, 3)).round().astype(np.int16)


def vary_image(pixels: NDArray[np.uint8], size: int, box: Box, gain: float, at: Any) -> bytes:
    """Crop to `box`, resize to `size`, multiply by `gain`, add the noise cropped at `at` = (y, x); encode."""
    resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS, box=box)
    noise = noise_pool(size)[at[0] : at[0] + size, at[1] : at[1] + size]
    varied = np.clip(np.asarray(resized) * np.float32(gain) + noise, 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(varied, quality=95, colorsubsampling="420"))


def vary_text(text: str, rng: np.random.Generator) -> str:
    """Another wording; one episode in twenty has none, so that the language criterion drops something."""
    if rng.random() < 0.05:
        return ""
    return str(rng.choice(["", "please ", "now ", "robot, "])) + text + str(rng.choice(["", " slowly", " again", " ."]))


def vary_states(base: NDArray[np.float32], rng: np.random.Generator) -> tuple[Any, Any, NDArray[np.int64]]:
    """Return states (T, 7), actions (T, 7) and the base step of each step, for a T drawn from 30 to 50."""
    length, period = int(rng.integers(30, 51)), 2 * (len(base) - 1)
    phase = (np.arange(length) + rng.integers(period)) % period
    index = np.minimum(phase, period - phase)
    state = base[index].astype(np.float64)
    state[:, :6] += rng.normal(0, 0.02, 6) + np.cumsum(rng.normal(0, 0.001, (length, 6)), axis=0)
    close, reopen = np.sort(rng.choice(length, 2, replace=False))
    gripper = np.ones(length)
    gripper[close:reopen] = 0.0
    gripper[close] = 0.5  # moving: neither open nor closed
    state[:, 6] = gripper * rng.uniform(0.95, 1.0) + 0.03
    action = np.column_stack([np.zeros((length, 6)), gripper])
    action[1:-1, :6] = np.diff(state[1:, :6], axis=0) + rng.normal(0, 0.0005, (length - 2, 6))
    return state.astype(np.float32), action.astype(np.float32), index


def make_episode(source: Path, size: int, seed: int, shard: int, number: int) -> bytes:
    """The Example of the `number`-th episode of a shard."""
    rng = np.random.default_rng((seed, shard, number))
    bases = base_episodes(source)
    base = bases[int(rng.integers(len(bases)))]
    state, action, index = vary_states(base.state, rng)
    text = vary_text(base.instruction, rng)
    embedding = base.embedding + rng.normal(0, 0.001, base.embedding.shape)
    side = base.images.shape[2]
    crop, gain = rng.uniform(7 / 8, 1) * side, rng.uniform(0.8, 1.2)
    x, y = rng.uniform(0, side - crop, 2)
    steps = len(index)
    first, last = np.arange(steps) == 0, np.arange(steps) == steps - 1
    has_image = [np.array([lit]) for lit in base.lit]

    def frames(camera: int) -> list[bytes]:
        if not base.lit[camera]:
            return [encode_black(size)] * steps
        places = rng.integers(0, size, (steps, 2))
        box = (x, y, x + crop, y + crop)
        pictures = zip(base.images[camera, index], places, strict=True)
        return [vary_image(picture, size, box, gain, at) for picture, at in pictures]

    # in the order of the real records: a protobuf map has none, but each writer uses a fixed one
    features: dict[str, Any] = {
        "steps/reward": last.astype(np.float32),
        "steps/observation/image_0": frames(0),
        "steps/observation/state": state,
        "episode_metadata/has_image_0": has_image[0],
        "episode_metadata/has_image_1": has_image[1],
        "steps/is_terminal": last,
        "steps/is_first": first,
        "steps/action": action,
        "steps/discount": np.ones(steps, np.float32),
        "steps/language_instruction": [text.encode()] * steps,
        "episode_metadata/has_language": np.array([text != ""]),
        "episode_metadata/episode_id": np.array([number]),
        "steps/observation/image_1": frames(1),
        "steps/observation/image_3": frames(3),
        "episode_metadata/has_image_2": has_image[2],
        "episode_metadata/file_path": [f"varied/{shard:05d}/{number:05d}/out.npy".encode()],
        "steps/observation/image_2": frames(2),
        "episode_metadata/has_image_3": has_image[3],
        "steps/is_last": last,
        "steps/language_embedding": np.tile(embedding.astype(np.float32), (steps, 1)),
    }
    return encode_example(features)


@cache
def encode_black(size: int) -> bytes:
    """A black image, as stored for absent cameras."""
    return bytes(simplejpeg.encode_jpeg(np.zeros((size, size, 3), np.uint8), quality=95, colorsubsampling="420"))


def make_shard(folder: Path, shards: int, episodes: int, source: Path, size: int, seed: int, shard: int) -> None:
    """Write one shard unless it exists; under a temporary name until it is complete."""
    path = folder / f"{NAME}-train.tfrecord-{shard:05d}-of-{shards:05d}"
    if path.exists():
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        for number in range(episodes):
            file.write(frame_record(make_episode(source, size, seed, shard, number)))
    unfinished.rename(path)


def make_dataset(out: Path, source: Path, *, gb: float, shards: int, size: int, seed: int = 0) -> Path:
    """Make OUT/bridge_dataset/1.0.0 with one train split, unless it exists; return OUT."""
    folder = out / NAME / "1.0.0"
    wanted = {"gb": gb, "shards": shards, "image_size": size, "seed": seed}
    note = folder / "made.json"
    if note.exists() and json.loads(note.read_text()) != wanted:
        raise SystemExit(f"{folder} contains another data set, {note.read_text()}; delete it or choose another folder")
    if (folder / "dataset_info.json").exists():  # written last
        return out
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))
    sample = [len(make_episode(source, size, seed, 0, number)) for number in range(8)]
    episodes = max(1, round(gb * 1e9 / shards / (sum(sample) / len(sample))))
    make = partial(make_shard, folder, shards, episodes, source, size, seed)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        done = pool.map(make, range(shards))
        list(tqdm(done, total=shards, desc=f"{gb:g} GB of {size} px", unit="shard", disable=None))
    write_description(source, folder, [episodes] * shards, size)
    return out


def write_description(source: Path, folder: Path, lengths: list[int], size: int) -> None:
    """Write features.json and dataset_info.json for the train shards in `folder`."""
    features = dict(tfds.FeaturesDict.from_config(str(source)).items())
    steps = dict(features["steps"].feature.items())
    images = {camera: tfds.Image(shape=(size, size, 3), encoding_format="jpeg") for camera in CAMERAS}
    steps["observation"] = {**dict(steps["observation"].items()), **images}
    tfds.FeaturesDict({**features, "steps": tfds.Dataset(steps)}).save_config(str(folder))
    info = json.loads((source / "dataset_info.json").read_text())
    payload = sum(path.stat().st_size for path in folder.glob("*.tfrecord-*")) - 16 * sum(lengths)
    train = next(split for split in info["splits"] if split["name"] == "train")
    info["splits"] = [train | {"numBytes": str(payload), "shardLengths": [str(n) for n in lengths]}]
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))


def link_part(whole: Path, out: Path, source: Path, shards: int) -> Path:
    """Make OUT from the first `shards` shards of the data set at `whole`, with hard links; return OUT."""
    old, folder = whole / NAME / "1.0.0", out / NAME / "1.0.0"
    made = json.loads((old / "made.json").read_text())
    lengths = json.loads((old / "dataset_info.json").read_text())["splits"][0]["shardLengths"][:shards]
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / f"{NAME}-train.tfrecord-{shard:05d}-of-{shards:05d}"
        if not path.exists():
            path.hardlink_to(old / f"{NAME}-train.tfrecord-{shard:05d}-of-{made['shards']:05d}")
    write_description(source, folder, [int(n) for n in lengths], made["image_size"])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make; the data set becomes OUT/bridge_dataset/1.0.0")
    parser.add_argument("--gb", type=float, default=1.6, help="size in 10^9 bytes (%(default)s)")
    parser.add_argument("--shards", type=int, default=16, help="number of shards (%(default)s)")
    parser.add_argument("--image-size", type=int, default=256, help="width and height in pixels (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=shared_folder(), help="folder with data/rlds (%(default)s)")
    args = parser.parse_args()
    source = find_base(args.shared, args.out / "base")
    make_dataset(args.out, source, gb=args.gb, shards=args.shards, size=args.image_size, seed=args.seed)


if __name__ == "__main__":
    main()
