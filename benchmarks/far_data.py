"""Bridge episodes of a stated record size, for measurements of far stores.

Numbers and texts differ between episodes, as in make_shards.py; images are drawn from a small pool, since only their
sizes matter here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import make_shards
from benchmarks.make_shards import NAME
from oxe_curate.rlds import example, tfrecord
from oxe_curate.rlds.encode import encode_example
from oxe_curate.rlds.tfrecord import frame_record

SIDES = {0.1: 64, 1.0: 128, 10.0: 256, 100.0: 480}
"""Record size in MB -> pixels of an image's side."""
_POOL = 24
Ranges = list[tuple[int, int]]


@functools.cache
def _pool(source: Path, side: int) -> list[bytes]:
    rng = np.random.default_rng(side)
    pictures = [image for base in make_shards.base_episodes(source) for image in base.images[0]]
    chosen = [pictures[i] for i in rng.integers(0, len(pictures), _POOL)]
    whole = chosen[0].shape[0]
    return [
        make_shards.vary_image(picture, side, (0, 0, whole, whole), 1.0, rng.integers(0, side, 2)) for picture in chosen
    ]


def _episode(source: Path, megabytes: float, shard: int, number: int) -> bytes:
    """An Example of about the stated size: three cameras, and a fourth that is black."""
    rng = np.random.default_rng((round(megabytes * 10), shard, number))
    side = SIDES[megabytes]
    pool = _pool(source, side)
    mean = float(np.mean([len(image) for image in pool]))
    steps = max(
        8, round(megabytes * 1e6 / (3 * mean + len(make_shards.encode_black(side)) + 2100) * rng.uniform(0.9, 1.1))
    )
    bases = make_shards.base_episodes(source)
    base = bases[int(rng.integers(len(bases)))]
    state, action = _states(base.state, steps, rng)
    text = make_shards.vary_text(base.instruction, rng) or "pick up the cup"
    embedding = base.embedding + rng.normal(0, 0.001, base.embedding.shape)
    first, last = np.arange(steps) == 0, np.arange(steps) == steps - 1
    lit = np.array([True])

    def frames() -> list[bytes]:
        return [pool[i] for i in rng.integers(0, len(pool), steps)]

    features: dict[str, Any] = {
        "steps/reward": last.astype(np.float32),
        "steps/observation/image_0": frames(),
        "steps/observation/state": state,
        "episode_metadata/has_image_0": lit,
        "episode_metadata/has_image_1": lit,
        "steps/is_terminal": last,
        "steps/is_first": first,
        "steps/action": action,
        "steps/discount": np.ones(steps, np.float32),
        "steps/language_instruction": [text.encode()] * steps,
        "episode_metadata/has_language": lit,
        "episode_metadata/episode_id": np.array([number]),
        "steps/observation/image_1": frames(),
        "steps/observation/image_3": [make_shards.encode_black(side)] * steps,
        "episode_metadata/has_image_2": lit,
        "episode_metadata/file_path": [f"far/{shard:05d}/{number:05d}/out.npy".encode()],
        "steps/observation/image_2": frames(),
        "episode_metadata/has_image_3": ~lit,
        "steps/is_last": last,
        "steps/language_embedding": np.tile(embedding.astype(np.float32), (steps, 1)),
    }
    return encode_example(features)


def _states(base: Any, steps: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """States and actions, (T, 7), from a base episode played forwards and backwards with noise."""
    period = 2 * (len(base) - 1)
    phase = (np.arange(steps) + rng.integers(period)) % period
    state = base[np.minimum(phase, period - phase)].astype(np.float64)
    state[:, :6] += rng.normal(0, 0.02, 6) + np.cumsum(rng.normal(0, 0.001, (steps, 6)), axis=0)
    state[:, 6] = 1 - (np.arange(steps) > steps // 3) * 0.9
    action = np.column_stack([np.zeros((steps, 6)), state[:, 6] > 0.5])
    action[:-1, :6] = np.diff(state[:, :6], axis=0)
    return state.astype(np.float32), action.astype(np.float32)


def _shard(folder: Path, source: Path, megabytes: float, shards: int, episodes: int, shard: int) -> None:
    with (folder / f"{NAME}-train.tfrecord-{shard:05d}-of-{shards:05d}").open("wb") as file:
        for number in range(episodes):
            file.write(frame_record(_episode(source, megabytes, shard, number)))


def make(out: Path, source: Path, megabytes: float, shards: int, episodes: int) -> Path:
    """Make OUT/bridge_dataset/1.0.0 with `episodes` records in each shard, unless it exists; return OUT."""
    folder = out / NAME / "1.0.0"
    note, wanted = folder / "made.json", {"megabytes": megabytes, "shards": shards, "episodes": episodes}
    if note.exists() and json.loads(note.read_text()) == wanted:
        return out
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as workers:
        list(workers.map(functools.partial(_shard, folder, source, megabytes, shards, episodes), range(shards)))
    make_shards.write_description(source, folder, [episodes] * shards, SIDES[megabytes])
    note.write_text(json.dumps(wanted))  # last
    return out


def needed(path: Path, camera: str | None, records: Collection[int] | None = None) -> Ranges:
    """(offset, length) of the bytes of a shard that a command needs, ascending.

    Args:
        path: of the shard.
        camera: tokenize: the list of this camera's frames; None: filter, which needs everything but the frames.
        records: numbers of the records; None: all.
    """
    data, found = np.memmap(path, np.uint8, "r").data, []
    for number, (offset, length) in enumerate(tfrecord.records(data)):
        if records is not None and number not in records:
            continue
        spans = example.scan(data, offset, length)
        lists = sorted((span.offset, span.length) for key, span in spans.items() if b"/observation/image_" in key)
        if camera is not None:
            span = spans[f"steps/observation/{camera}".encode()]
            found.append((span.offset, span.length))
            continue
        begin, end = offset - tfrecord.HEADER, offset + length + tfrecord.FOOTER
        for start, size in lists:
            found.append((begin, start - begin))
            begin = start + size
        found.append((begin, end - begin))
    return found
