"""Stretches without motion."""

import numpy as np
import pytest

from oxe_curate.quality.idling import Idling
from tests.quality.arms import Steps, change, judge, marked, teleoperated

ARM = teleoperated()


def pause(steps: Steps, at: int, count: int) -> Steps:
    action, proprio = (np.repeat(values[at : at + 1], count, axis=0) for values in steps)
    action[:, :6] = 0
    action[:, 6] = steps[0][max(at - 1, 0), 6]
    return tuple(  # type: ignore[return-value]
        np.concatenate([v[:at], still, v[at:]]) for v, still in zip(steps, (action, proprio), strict=True)
    )


@pytest.mark.parametrize("seed", range(4))
def test_usual_pauses_are_not_marked(seed: int) -> None:
    for count, steps in ((60, 12), (24, 3), (8, 12), (3, 12)):
        assert marked(Idling(), teleoperated(count, seed, steps=steps)) == {}


def test_longer_pauses_are_found_where_they_are() -> None:
    length = len(ARM.action[ARM.steps_of(8)])
    for name, at in (("idle_start", 0), ("idle_middle", 20), ("idle_end", length - 1)):
        judged = judge(Idling(), change(ARM, 8, lambda steps, at=at: pause(steps, at, 25)))
        assert {n: np.flatnonzero(j.exceeds).tolist() for n, j in judged.items() if j.exceeds.any()} == {name: [8]}
        assert abs(int(judged[name].step[8]) - at) <= 6


def test_an_episode_without_motion_is_idle_from_its_start() -> None:
    def still(steps: Steps) -> Steps:
        steps[0][:, :6] = 0
        steps[0][:, 6] = 1
        steps[1][:] = steps[1][0]
        return steps

    assert marked(Idling(), change(ARM, 8, still)) == {"idle_start": [8]}
