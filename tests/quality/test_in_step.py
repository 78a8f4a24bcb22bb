"""Images out of step with the motion."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.quality.in_step import InStep
from tests.quality.seen import STEPS, drawn, judged, marked

BAD = [3, 11]
ORDER = [t * 7 % STEPS for t in range(STEPS)]


def test_good_episodes_are_not_marked() -> None:
    found = judged(InStep(), drawn(30))["image_motion_lag"]
    assert marked(found) == []
    assert np.isfinite(found.value).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frames, role: frames[::-1], "primary: the images are in reverse order"),
        (lambda frames, role: [frames[t] for t in ORDER], "primary: the images do not follow the motion"),
    ],
    ids=["reversed", "shuffled"],
)
def test_images_in_another_order_are_found(change: Callable, words: str) -> None:
    found = judged(InStep(), drawn(30, BAD, change))["image_motion_lag"]
    assert set(marked(found)) == set(BAD)
    assert words in {found.detail(episode) for episode in BAD}


def test_late_images_are_found_with_the_lag() -> None:
    found = judged(InStep(), drawn(30, [11], lambda frames, role: [frames[max(t - 4, 0)] for t in range(STEPS)]))
    assert marked(found["image_motion_lag"]) == [11]
    assert found["image_motion_lag"].detail(11) == "primary: the images are about 4 steps late"


def test_actions_serve_where_there_is_no_state() -> None:
    batch = drawn(30, BAD, lambda frames, role: frames[::-1])
    batch = replace(batch, proprio=np.zeros((len(batch.action), 0), np.float32))
    assert marked(judged(InStep(), batch)["image_motion_lag"]) == BAD


def test_images_that_do_not_show_the_motion_are_not_judged() -> None:
    batch = drawn(30)
    rng = np.random.default_rng(0)
    other = np.repeat(rng.random((30 * 4, 2)), 4, axis=0).cumsum(axis=0).astype(np.float32)
    assert judged(InStep(), replace(batch, proprio=other, action=np.zeros_like(batch.action))) == {}


def test_few_episodes_or_frames_are_not_judged() -> None:
    assert judged(InStep(), drawn(10)) == {}
    assert judged(InStep(), drawn(30), look=False) == {}


def test_an_arm_that_rests_is_not_judged() -> None:
    batch = drawn(30, [5], lambda frames, role: [frames[0]] * STEPS)
    proprio = batch.proprio.copy()
    proprio[batch.steps_of(5)] = proprio[batch.steps_of(5)][0]
    found = judged(InStep(), replace(batch, proprio=proprio))["image_motion_lag"]
    assert np.isnan(found.value[5])
    assert marked(found) == []
