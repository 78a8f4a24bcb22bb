"""Measures of frames and words on data that lacks something: no error, no warning, no mark without a reason."""

from dataclasses import replace

import numpy as np
import pytest

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.frozen import FrozenFrames
from oxe_curate.quality.in_step import InStep
from oxe_curate.quality.looks import empty_looks
from oxe_curate.quality.measure import Measure, judge_batches
from oxe_curate.quality.pictures import Pictures
from oxe_curate.quality.views import Views
from oxe_curate.quality.words import Words
from oxe_curate.quality.wrong_text import WrongText
from tests.quality.seen import drawn, judged, marked

MEASURES = [FrozenFrames(), Pictures(), Views(), InStep(), Words(), WrongText()]


def single_steps(count: int) -> EpisodeBatch:
    return EpisodeBatch(
        action=np.zeros((count, 7), np.float32),
        proprio=np.zeros((count, 3), np.float32),
        starts=np.arange(count + 1),
        instruction=["lift the cup"] * count,
        success=np.full(count, -1, np.int8),
        frame_bytes={"primary": np.zeros(count, np.int32)},
        looks={"primary": empty_looks(0, count)},
    )


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: type(measure).__name__)
def test_little_or_nothing_to_measure(measure: Measure) -> None:
    whole = drawn(20)
    nan = np.full_like(whole.proprio, np.nan)
    odd = [
        single_steps(1), single_steps(40), drawn(1), drawn(2),
        replace(whole, proprio=nan), replace(whole, proprio=np.zeros((len(nan), 0), np.float32)),
        replace(whole, looks={}), replace(whole, frame_bytes={}), replace(whole, looks={}, frame_bytes={}),
        replace(whole, instruction=[""] * 20), replace(whole, action=np.zeros_like(whole.action), proprio=nan * 0),
        replace(whole, looks={"primary": empty_looks(0, 20), "wrist": whole.looks["wrist"]}),
    ]  # fmt: skip
    for batch in odd:
        found = judge_batches([measure], batch, lambda batch=batch: [batch], measure.criteria)
        if batch.frame_bytes.get("primary", np.ones(1)).any():
            assert [name for name, judgement in found.items() if marked(judgement)] == []


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: type(measure).__name__)
def test_batches_may_lack_what_the_sample_has(measure: Measure) -> None:
    whole = drawn(20)
    first, second = whole.take(np.arange(12)), whole.take(np.arange(12, 20))
    lacking = replace(
        second,
        proprio=second.proprio[:, :1],
        looks={"wrist": second.looks["wrist"]},
        frame_bytes={"primary": second.frame_bytes["primary"]},
    )
    found = judge_batches([measure], whole, lambda: [first, lacking], measure.criteria)
    assert all(len(judgement.value) == 20 for judgement in found.values())
    assert [name for name, judgement in found.items() if marked(judgement)] == []


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: type(measure).__name__)
def test_each_of_several_batches_gives_the_same_as_one(measure: Measure) -> None:
    whole = drawn(20, [3], lambda frames, role: frames[::-1])
    one = judge_batches([measure], whole, lambda: [whole], measure.criteria)
    two = judged(measure, whole)
    assert one.keys() == two.keys()
    for name, judgement in one.items():
        assert np.array_equal(judgement.value, two[name].value, equal_nan=True)
