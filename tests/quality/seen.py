"""Episodes of a small drawn scene, with the looked-at frames of two cameras."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.filter.frames import FrameLook
from oxe_curate.filter.looking import look_at_camera
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.looks import join_looks
from oxe_curate.quality.measure import Judgement, Measure, judge_batches

Picture = NDArray[np.uint8]
STEPS = 16
LOOKS = 8


def scene(camera: str, x: float, y: float, seed: int, size: int = 64) -> Picture:
    """A table with objects that differ between episodes, and an arm at (x, y); each camera sees it from elsewhere."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[0:size, 0:size] / size
    warm = np.stack([190 - 60 * down, 140 - 50 * right, 90 - 60 * down + 20 * right], axis=2)
    if camera == "wrist":
        warm = np.stack([60 + 90 * right, 70 + 60 * down, 40 + 30 * (down + right)], axis=2)
        warm[(down - 0.2) ** 2 + (right - 0.7) ** 2 < 0.03] = (200, 60, 30)
    else:
        warm[:10] = (40, 50, 70)
        warm[:30, :10] = (220, 220, 230)
    image = warm + rng.normal(0, 4, warm.shape)
    for _ in range(3):
        top, left = rng.integers(size // 3, size - 14, 2)
        image[top : top + 7, left : left + 7] = rng.integers(40, 220, 3)
    top, left = int(12 + y * (size - 30)), int(2 + x * (size - 18))
    image[top : top + 14, left : left + 14] = (25, 25, 30)
    return image.clip(0, 255).astype(np.uint8)


def encode(image: Picture, quality: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return out.getvalue()


Change = Callable[[list[bytes], str], Sequence[bytes]]


def drawn(
    count: int = 20, bad: Sequence[int] = (), change: Change | None = None, role: str = "primary"
) -> EpisodeBatch:
    """Episodes whose arm moves from place to place; `change` replaces one camera's frames in some of them."""
    action, proprio, frames = [], [], dict[str, list[list[bytes]]](primary=[], wrist=[])
    for episode in range(count):
        rng = np.random.default_rng(1000 + episode)
        places = np.stack([np.interp(np.arange(STEPS), [0, 7, 15], rng.random(3)) for _ in range(2)], axis=1)
        proprio.append(places.astype(np.float32))
        action.append(np.pad(np.diff(places, axis=0, append=places[-1:]), ((0, 0), (0, 5))).astype(np.float32))
        for camera, shown in frames.items():
            shown.append([encode(scene(camera, x, y, episode)) for x, y in places.tolist()])
    for episode in bad if change else ():
        frames[role][episode] = list(change(frames[role][episode], role))
    return EpisodeBatch(
        action=np.concatenate(action),
        proprio=np.concatenate(proprio),
        starts=np.arange(count + 1) * STEPS,
        instruction=["lift the cup"] * count,
        success=np.full(count, -1, np.int8),
        frame_bytes={
            camera: np.array([len(f) for shown in every for f in shown], np.int32) for camera, every in frames.items()
        },
        looks={camera: join_looks([look_at(shown) for shown in every]) for camera, every in frames.items()},
    )


def look_at(frames: Sequence[bytes]):
    data = memoryview(b"".join(frames))
    lengths = [len(frame) for frame in frames]
    places = np.stack([np.cumsum([0, *lengths[:-1]]), lengths], axis=1)
    return look_at_camera(FrameLook(data), places, LOOKS)


def pixels(change: Callable[[Picture], NDArray[np.generic]], first: int = 0) -> Change:
    """Change the pixels of the frames from a step on."""

    def changed(frames: list[bytes], role: str) -> list[bytes]:
        images = [np.asarray(Image.open(io.BytesIO(frame))) for frame in frames[first:]]
        return frames[:first] + [encode(np.ascontiguousarray(change(i).clip(0, 255).astype(np.uint8))) for i in images]

    return changed


def judged(measure: Measure, batch: EpisodeBatch, *, look: bool = True) -> dict[str, Judgement]:
    """All criteria of a measure, with the episodes in two batches."""
    batch = batch if look else replace(batch, looks={})
    halves = np.array_split(np.arange(len(batch)), 2)
    return judge_batches([measure], batch, lambda: map(batch.take, halves), measure.criteria)


def marked(judgement: Judgement) -> list[int]:
    return [int(i) for i in np.flatnonzero(judgement.exceeds)]
