"""Views that are not the camera's own, and scenes that change."""

from collections.abc import Callable

import numpy as np
import pytest

from oxe_curate.quality.views import Views
from tests.quality.seen import Picture, drawn, judged, marked, pixels, scene

BAD = [3, 11, 15]


@pytest.mark.parametrize("count", [8, 25])
def test_good_episodes_are_not_marked(count: int) -> None:
    for judgement in judged(Views(), drawn(count)).values():
        assert marked(judgement) == []


@pytest.mark.parametrize("role", ["primary", "wrist"])
@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda image: image[:, ::-1], "mirrored"),
        (lambda image: image[::-1], "upside down"),
        (lambda image: image[::-1, ::-1], "turned by 180 degrees"),
    ],
    ids=["mirrored", "upside down", "180 degrees"],
)
def test_a_view_that_is_turned(turn: Callable[[Picture], Picture], words: str, role: str) -> None:
    found = judged(Views(), drawn(20, BAD, pixels(turn), role))["wrong_camera"]
    assert marked(found) == BAD
    assert all(found.detail(episode).startswith(f"{role}: ") for episode in BAD)
    assert (
        sum(words in found.detail(episode) for episode in BAD) >= 2
    )  # a nearly symmetric view may be turned either way


def test_a_view_of_another_camera_is_named() -> None:
    batch = drawn(20)
    swapped = batch.looks["wrist"].take(np.array([3, 11]))
    keep = np.array([i for i in range(20) if i not in (3, 11)])
    order = np.argsort(np.concatenate([keep, [3, 11]]))
    from dataclasses import replace

    from oxe_curate.quality.looks import join_looks

    primary = join_looks([batch.looks["primary"].take(keep), swapped]).take(order)
    found = judged(Views(), replace(batch, looks={**batch.looks, "primary": primary}))["wrong_camera"]
    assert marked(found) == [3, 11]
    assert found.detail(3) == "primary: shows what the wrist camera shows in other episodes"


def test_another_scene_from_the_middle_on() -> None:
    def other(image: Picture) -> Picture:
        return np.roll(scene("wrist", 0.5, 0.5, 77), 20, axis=0)

    found = judged(Views(), drawn(20, BAD, pixels(other, 8)))["image_cut"]
    assert marked(found) == BAD
    assert found.detail(3) == "primary: another scene from here on"
    assert 8 <= found.step[3] <= 10


def test_a_pushed_camera_is_a_cut() -> None:
    def pushed(image: Picture) -> Picture:
        return np.roll(image, (14, -14), axis=(0, 1))

    assert marked(judged(Views(), drawn(20, BAD, pixels(pushed, 8)))["image_cut"]) == BAD


def test_few_episodes_tell_nothing() -> None:
    assert judged(Views(), drawn(5)) == {}


def test_frames_in_random_order_are_found_without_the_state() -> None:
    def shuffled(frames: list[bytes], role: str) -> list[bytes]:
        return [frames[t] for t in (0, 5, 12, 7, 3, 9, 14, 2, 6, 1, 8, 10, 11, 4, 15, 13)]

    found = judged(Views(), drawn(20, BAD, shuffled))["image_cut"]
    assert set(marked(found)) <= set(BAD)
    assert len(marked(found)) >= 2
    assert found.detail(marked(found)[0]) == "primary: the frames do not follow each other"
