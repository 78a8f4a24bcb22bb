"""Whether cameras are where the card says."""

import numpy as np

from oxe_curate.quality.camera_roles import judge_cameras, still_cells
from oxe_curate.quality.looks import LookedFrames, join_looks
from tests.quality.seen import STEPS, drawn, encode, look_at


def on_the_hand(count: int) -> LookedFrames:
    """A view that moves over a texture from frame to frame."""
    texture = (
        np.random.default_rng(0).integers(30, 220, (16, 16, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    )
    shown = [
        [encode(np.roll(texture, (5 * t + e, 3 * t), axis=(0, 1))[:64, :64]) for t in range(STEPS)]
        for e in range(count)
    ]
    return join_looks([look_at(frames) for frames in shown])


def test_cameras_that_are_where_the_card_says_raise_nothing() -> None:
    assert list(judge_cameras({"primary": drawn(12).looks["primary"], "wrist": on_the_hand(12)})) == []


def test_swapped_roles_are_named() -> None:
    found = list(judge_cameras({"primary": on_the_hand(12), "wrist": drawn(12).looks["primary"]}))
    assert [finding.name for finding in found] == ["moving_camera", "fixed_camera"]
    assert "primary camera moves" in found[0].text
    assert "wrist instead of primary" in found[0].advice


def test_few_episodes_say_nothing() -> None:
    assert list(judge_cameras({"primary": on_the_hand(5), "wrist": drawn(3).looks["primary"]})) == []


def test_still_cells() -> None:
    assert still_cells(drawn(2).looks["primary"]).min() > 0.5
    assert still_cells(on_the_hand(2)).max() < 0.1
