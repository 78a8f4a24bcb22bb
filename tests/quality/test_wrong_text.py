"""Texts that fit other trajectories but not their own."""

from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.wrong_text import ChangingText, WrongText, text_vectors
from tests.quality.seen import judged, marked

TASKS = {
    "open the drawer": (0.3, -0.2, 0.0),
    "close the drawer": (-0.3, 0.2, 0.0),
    "lift the red cup": (0.1, 0.1, 0.4),
    "push the button": (0.4, 0.4, -0.2),
}


def episodes(count: int = 60, seed: int = 0, noise: float = 0.03, texts: dict[str, str] | None = None) -> EpisodeBatch:
    """Every task in turn, with its own direction; `texts` renames every other episode of a task."""
    rng = np.random.default_rng(seed)
    action, proprio, said = [], [], []
    for episode in range(count):
        text, goal = list(TASKS.items())[episode % len(TASKS)]
        steps = int(rng.integers(15, 25))
        moves = np.zeros((steps, 7), np.float32)
        moves[:, :3] = (np.array(goal) + rng.normal(0, noise, 3)) / steps + rng.normal(0, 0.004, (steps, 3))
        moves[:, 6] = np.arange(steps) < steps // 2
        action.append(moves)
        proprio.append(np.cumsum(moves[:, :3], axis=0) + rng.normal(0, 0.02, 3).astype(np.float32))
        said.append((texts or {}).get(text, text) if episode // len(TASKS) % 2 else text)
    return EpisodeBatch(
        action=np.concatenate(action),
        proprio=np.concatenate(proprio).astype(np.float32),
        starts=np.cumsum([0, *map(len, action)]),
        instruction=said,
        success=np.full(count, -1, np.int8),
    )


def with_texts(batch: EpisodeBatch, change: dict[int, str]) -> EpisodeBatch:
    return replace(batch, instruction=[change.get(i, text) for i, text in enumerate(batch.instruction)])


@pytest.mark.parametrize("count", [40, 60, 240])
def test_good_texts_are_not_marked(count: int) -> None:
    for seed in range(5):
        assert marked(judged(WrongText(), episodes(count, seed))["wrong_text"]) == []


@pytest.mark.parametrize("count", [40, 60, 240])
def test_a_text_of_another_task_is_found_with_the_one_that_fits(count: int) -> None:
    wrong = {4: "push the button", 9: "open the drawer", 14: "close the drawer"}
    found = judged(WrongText(), with_texts(episodes(count), wrong))["wrong_text"]
    assert marked(found) == [4, 9, 14]
    assert "moves like 'open the drawer'" in found.detail(4)
    assert "moves like 'close the drawer'" in found.detail(9)
    assert "% of episodes" in found.detail(4)


def test_paraphrases_are_not_wrong() -> None:
    same = {"open the drawer": "pull it towards you", "lift the red cup": "raise the mug"}
    batch = episodes(80, texts=same)
    assert marked(judged(WrongText(), batch)["wrong_text"]) == []
    assert marked(judged(WrongText(), with_texts(batch, {8: "raise the mug"}))["wrong_text"]) == [8]


def test_texts_that_do_not_follow_from_motion_are_not_judged() -> None:
    rng = np.random.default_rng(3)
    batch = episodes(60)
    shuffled = [batch.instruction[i] for i in rng.permutation(60)]
    assert judged(WrongText(), replace(batch, instruction=shuffled)) == {}
    assert judged(WrongText(), replace(batch, instruction=[f"task number {i}" for i in range(60)])) == {}
    assert judged(WrongText(), replace(batch, instruction=["lift the cup"] * 60)) == {}


def test_a_strange_trajectory_does_not_make_its_text_wrong() -> None:
    batch = episodes(60)
    action = batch.action.copy()
    action[batch.steps_of(8)] *= -3
    assert marked(judged(WrongText(), replace(batch, action=action))["wrong_text"]) == []


def test_texts_are_compared_by_their_rare_words() -> None:
    texts = ["open the drawer", "close the drawer", "opened drawers", "lift the cup"]
    likeness = text_vectors(texts, np.ones(4, np.int64))
    likeness = likeness @ likeness.T
    assert likeness[0, 2] == pytest.approx(1)
    assert likeness[0, 1] < 0.6
    assert likeness[0, 3] < 0.3


def test_a_text_that_changes_within_an_episode() -> None:
    usual = [["lift the cup"]] * 17
    some = [["lift the cup", "open the drawer"], ["lift the cup", "lift the red cup"], ["open drawer", "Opens Drawers"]]
    batch = replace(episodes(20), instructions=[*usual, *some])
    assert marked(judged(ChangingText(), batch)["changing_text"]) == [17]
    assert judged(ChangingText(), replace(batch, instructions=[["lift the cup", "open the drawer"]] * 20)) == {}
    assert judged(ChangingText(), replace(batch, instructions=[])) == {}
