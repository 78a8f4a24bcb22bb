"""Cameras on drawn scenes: a static pattern, a panning one, black frames, swapped channels."""

import numpy as np

from oxe_curate.inspection import vision


def scene(rng: np.random.Generator, size: int = 160) -> np.ndarray:
    """Coloured squares on a table."""
    image = np.full((size, size, 3), (150, 110, 70), np.uint8)
    for _ in range(60):
        y, x = rng.integers(0, size - 14, 2)
        image[y : y + 14, x : x + 14] = rng.integers(0, 255, 3)
    return image


def fixed(rng: np.random.Generator, distance: np.ndarray) -> np.ndarray:
    """A dark arm moves over a static scene: (n, 96, 96, 3)."""
    frames, at = np.repeat(scene(rng)[None, :96, :96], len(distance) + 1, axis=0), 5.0
    for i, step in enumerate([0.0, *distance]):
        at += 40 * step
        left = int(abs((at + 70) % 140 - 70))  # back and forth
        frames[i, 30:60, left : left + 20] = 10
    return frames


def panning(rng: np.random.Generator, distance: np.ndarray) -> np.ndarray:
    """The image moves with the gripper; two fingers stay: (n, 96, 96, 3)."""
    world, at, frames = scene(rng), 0.0, []
    for step in [0.0, *distance]:
        at += 40 * step
        frame = world[int(at) % 60 :, int(at) % 60 :][:96, :96].copy()
        frame[70:, 20:30] = frame[70:, 66:76] = 10
        frames.append(frame)
    return np.stack(frames)


def episodes(draw: object, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    motion = [rng.uniform(0, 0.4, 9) for _ in range(4)]
    return [draw(rng, m) for m in motion], motion  # type: ignore[operator]


def test_a_fixed_camera() -> None:
    finding = vision.camera_mount(*episodes(fixed))
    assert finding.answer == "third-person"
    assert finding.confidence > 0.6


def test_a_wrist_camera() -> None:
    finding = vision.camera_mount(*episodes(panning))
    assert finding.answer == "wrist"
    assert finding.confidence > 0.5
    assert "moving base" in finding.why


def test_a_static_image_is_not_a_fixed_camera() -> None:
    rng = np.random.default_rng(0)
    frames = [np.repeat(scene(rng)[None], 9, axis=0) for _ in range(4)]
    assert not vision.camera_mount(frames, [rng.uniform(0, 1, 8) for _ in range(4)]).known


def test_black_frames_and_too_few_frames_are_undecided() -> None:
    black = [np.zeros((9, 64, 64, 3), np.uint8)] * 3
    finding = vision.camera_mount(black, [np.ones(8)] * 3)
    assert (finding.known, finding.why) == (False, "the frames are black")
    assert vision.black_share(black) == 1.0
    assert not vision.camera_mount([f[:2] for f in black], [np.ones(1)] * 3).known
    assert not vision.camera_mount([np.empty((0, 0, 0, 3), np.uint8)], [np.empty(0)]).known


def test_jpeg_noise_is_still_black_but_a_dark_room_is_not() -> None:
    noise = np.random.default_rng(0).integers(0, 6, (3, 32, 32, 3)).astype(np.uint8)
    assert vision.black_share([noise]) == 1.0
    noise[:, 4, 4] = 80
    assert vision.black_share([noise]) == 0.0
    assert vision.black_share([]) == 0.0


def test_a_wooden_table_with_red_and_blue_swapped_is_a_weak_cue() -> None:
    wood = np.full((3, 64, 64, 3), (170, 120, 70), np.uint8)
    right, wrong = vision.channel_order([wood]), vision.channel_order([wood[..., ::-1]])
    assert (right.answer, wrong.answer) == ("rgb", "bgr")
    assert max(right.confidence, wrong.confidence) <= 0.35
    assert "weak" in wrong.why
    assert not vision.channel_order([np.full((3, 64, 64, 3), 128, np.uint8)]).known
