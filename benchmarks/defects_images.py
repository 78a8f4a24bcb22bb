"""Defects of frames: a camera does not show what happened. `image_*` is the primary camera, `second_*` another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.defects_episode import Pixels, StoredEpisode, decode, encode_like, resized
from benchmarks.defects_kinds import Scene, kind

NEED, ALL = ("cameras",), ("camera",)


def _each(scene: Scene, change: Callable[[Pixels], NDArray[Any]], rows: slice = slice(None)) -> StoredEpisode:
    """Change the pixels of some frames."""
    frames = scene.frames
    frames[rows] = [encode_like(change(decode(frame)), frame) for frame in frames[rows]]
    return scene.with_frames(frames)


def _moves(scene: Scene) -> bool:
    """Whether the camera shows a change at all; some episodes of some data sets have black cameras."""
    first, last = decode(scene.frames[0]), decode(scene.frames[-1])
    return bool(np.abs(first.astype(int) - last).mean() > 1)


@kind("the first frame at every step", *NEED, touches=ALL)
def image_frozen(scene: Scene) -> StoredEpisode | None:
    return scene.with_frames([scene.frames[0]] * scene.steps) if _moves(scene) else None


@kind("one frame for a third of the steps", *NEED, touches=ALL)
def image_stalled(scene: Scene) -> StoredEpisode | None:
    frames, part = scene.frames, scene.stretch(0.33, 0.4, at_least=3)
    frames[part] = [frames[part.start]] * (part.stop - part.start)
    return scene.with_frames(frames) if _moves(scene) else None


@kind("black frames", *NEED, touches=ALL)
def image_black(scene: Scene) -> StoredEpisode | None:
    return _each(scene, np.zeros_like) if _moves(scene) else None


@kind("black frames from the middle on", *NEED, touches=ALL)
def image_black_half(scene: Scene) -> StoredEpisode | None:
    return _each(scene, np.zeros_like, slice(scene.steps // 2, None)) if _moves(scene) else None


@kind("frames of one colour", *NEED, touches=ALL)
def image_one_colour(scene: Scene) -> StoredEpisode | None:
    colour = scene.rng.integers(40, 220, 3)
    return _each(scene, lambda pixels: np.broadcast_to(colour, pixels.shape))


@kind("frames of noise", *NEED, touches=ALL)
def image_noise(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: scene.rng.integers(0, 256, pixels.shape))


@kind("over-exposed frames", *NEED, touches=ALL)
def image_overexposed(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: pixels * 2.5 + 90.0) if _moves(scene) else None


@kind("frames far too dark", *NEED, touches=ALL)
def image_dark(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: pixels * 0.06) if _moves(scene) else None


@kind("heavily blurred frames", *NEED, touches=ALL)
def image_blurred(scene: Scene) -> StoredEpisode | None:
    def blur(pixels: Pixels) -> NDArray[Any]:
        return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(pixels.shape[0] / 20)))

    return _each(scene, blur) if _moves(scene) else None


@kind("frames of another camera of the episode", *NEED, touches=ALL, cameras=2)
def image_other_camera(scene: Scene) -> StoredEpisode | None:
    shown = list(scene.episode.values[scene.parts.cameras[-1]])
    return scene.with_frames(shown) if decode(shown[0]).any() else None


@kind("frames of another data set", *NEED, touches=ALL)
def image_foreign(scene: Scene) -> StoredEpisode | None:
    size = decode(scene.frames[0]).shape[:2]
    shown = scene.foreign[int(scene.rng.integers(len(scene.foreign)))]
    chosen = [shown[row] for row in np.linspace(0, len(shown) - 1, scene.steps).round().astype(int)]
    frames = [encode_like(resized(decode(f), size), own) for f, own in zip(chosen, scene.frames, strict=True)]
    return scene.with_frames(frames)


@kind("frames of another episode", *NEED, touches=ALL)
def image_other_episode(scene: Scene) -> StoredEpisode | None:
    other = scene.as_long()
    if other is None or not _moves(scene):
        return None
    return scene.with_frames(other.values[scene.camera][: scene.steps])


@kind("frames 3 to 5 steps late or early", *NEED, touches=("steps",))
def image_shifted(scene: Scene) -> StoredEpisode | None:
    by = int(scene.rng.integers(3, 6)) * int(scene.rng.choice([-1, 1]))
    return scene.shifted([scene.camera], by) if _moves(scene) else None


@kind("frames in reverse order", *NEED, touches=ALL)
def image_reversed(scene: Scene) -> StoredEpisode | None:
    return scene.with_frames(scene.frames[::-1]) if _moves(scene) else None


@kind("frames in random order", *NEED, touches=ALL)
def image_shuffled(scene: Scene) -> StoredEpisode | None:
    return scene.with_frames([scene.frames[row] for row in scene.rng.permutation(scene.steps)])


@kind("the second half shows another episode", *NEED, touches=ALL)
def image_cut(scene: Scene) -> StoredEpisode | None:
    other = scene.as_long()
    if other is None:
        return None
    half = scene.steps // 2
    return scene.with_frames(scene.frames[:half] + other.values[scene.camera][half : scene.steps])


@kind("a few single frames are black or from another episode", *NEED, touches=ALL)
def image_flicker(scene: Scene) -> StoredEpisode | None:
    other = scene.as_long()
    if other is None:
        return None
    frames = scene.frames
    black = scene.rng.random() < 0.5
    for row in scene.rng.choice(scene.steps, max(2, scene.steps // 8), replace=False):
        strange = other.values[scene.camera][row]
        frames[row] = encode_like(np.zeros_like(decode(frames[row])), frames[row]) if black else strange
    return scene.with_frames(frames)


@kind("red and blue swapped", *NEED, touches=ALL)
def image_channels(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: pixels[..., ::-1]) if _moves(scene) else None


@kind("frames have another size", *NEED, touches=ALL)
def image_size(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: resized(pixels, (pixels.shape[0] * 3 // 4, pixels.shape[1] * 3 // 4)))


@kind("frames have another size from the middle on", *NEED, touches=ALL)
def image_size_changes(scene: Scene) -> StoredEpisode | None:
    half = slice(scene.steps // 2, None)
    return _each(scene, lambda pixels: resized(pixels, (pixels.shape[0] // 2, pixels.shape[1] // 2)), half)


@kind("upside down", *NEED, touches=ALL)
def image_upside_down(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: pixels[::-1]) if _moves(scene) else None


@kind("mirrored", *NEED, touches=ALL)
def image_mirrored(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: pixels[:, ::-1]) if _moves(scene) else None


@kind("the camera was pushed: another view from the middle on", *NEED, touches=ALL)
def image_moved(scene: Scene) -> StoredEpisode | None:
    def push(pixels: Pixels) -> NDArray[Any]:
        height, width = pixels.shape[:2]
        return resized(pixels[height // 4 :, : 3 * width // 4], (height, width))

    return _each(scene, push, slice(scene.steps // 2, None)) if _moves(scene) else None


@kind("something covers most of the lens", *NEED, touches=ALL)
def image_covered(scene: Scene) -> StoredEpisode | None:
    def cover(pixels: Pixels) -> NDArray[Any]:
        new = pixels.copy()
        new[:, : round(pixels.shape[1] * 0.85)] = (60, 45, 40)
        return new

    return _each(scene, cover) if _moves(scene) else None


@kind("a third of the frames end after half of their bytes", *NEED, touches=ALL)
def image_truncated(scene: Scene) -> StoredEpisode | None:
    frames = scene.frames
    for row in scene.rng.choice(scene.steps, max(1, scene.steps // 3), replace=False):
        frames[row] = frames[row][: len(frames[row]) // 2]
    return scene.with_frames(frames)


@kind("some frames are empty bytes", *NEED, touches=ALL)
def image_missing(scene: Scene) -> StoredEpisode | None:
    frames = scene.frames
    for row in scene.rng.choice(scene.steps, max(1, scene.steps // 5), replace=False):
        frames[row] = b""
    return scene.with_frames(frames)


@kind("grey instead of colour", *NEED, touches=ALL)
def image_grey(scene: Scene) -> StoredEpisode | None:
    return _each(scene, lambda pixels: pixels.mean(axis=2, keepdims=True).repeat(3, axis=2)) if _moves(scene) else None


@kind("compressed until blocks are all that is left", *NEED, touches=ALL)
def image_compressed(scene: Scene) -> StoredEpisode | None:
    if scene.frames[0][:2] != b"\xff\xd8" or not _moves(scene):
        return None
    return scene.with_frames([encode_like(decode(frame), frame, quality=2) for frame in scene.frames])


# --- the last of several cameras ---


def _second(scene: Scene) -> list[bytes] | None:
    """Its frames; None if it is black in this episode."""
    frames = list(scene.episode.values[scene.parts.cameras[-1]])
    return frames if decode(frames[0]).any() else None


@kind("another camera: the first frame at every step", *NEED, touches=("camera2",), cameras=2)
def second_frozen(scene: Scene) -> StoredEpisode | None:
    frames = _second(scene)
    return scene.episode.with_values(**{scene.parts.cameras[-1]: [frames[0]] * scene.steps}) if frames else None


@kind("another camera: frames of noise", *NEED, touches=("camera2",), cameras=2)
def second_noise(scene: Scene) -> StoredEpisode | None:
    frames = _second(scene)
    if frames is None:
        return None
    noise = [encode_like(scene.rng.integers(0, 256, decode(frame).shape), frame) for frame in frames]
    return scene.episode.with_values(**{scene.parts.cameras[-1]: noise})


@kind("two cameras swapped", *NEED, touches=("camera", "camera2"), cameras=2)
def second_swapped(scene: Scene) -> StoredEpisode | None:
    frames = _second(scene)
    if frames is None:
        return None
    return scene.episode.with_values(**{scene.camera: frames, scene.parts.cameras[-1]: scene.frames})
