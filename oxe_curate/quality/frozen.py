"""Frames that stay the same, or come again, while the arm moves.

Two different images hardly ever have the same encoded length, so a run of equal lengths is a frozen image; how long a
run must be follows from how often neighbouring frames of this data set have equal lengths. Frames that were decoded
(`--look`) are compared by their checksums and pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.looks import LookedFrames
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.moving import MotionUnit, learn_motion, longest_run, step_motion

_MOVES = 0.3
"""Usual steps; less motion than this may leave a small image as it is."""
_LAGS = 8
"""Steps; frames that come again later than this are not looked for."""
_CHANCE = 1e-3
"""Runs of equal lengths that an episode may have by chance."""
_FEW, _COMMON = 0.03, 0.15
"""Share of neighbouring frames with equal lengths that is likely in any data set, as few episodes do not tell, and the
share above which lengths tell nothing: very small or plain images."""
_BLANK = 3.0
"""Grey levels: the deviation of an image without contents."""
_BLANK_LENGTH = 0.7
"""Of the usual encoded length; an image without contents is shorter."""
_SAME = 0.03
"""Share of the usual change of consecutive looked-at frames below which they count as the same."""
_KINDS = ("the same frame", "every frame twice", "the same frames again", "the same image")


@dataclass(frozen=True, eq=False)
class FrozenFacts:
    """What is usual in a data set.

    Attributes:
        equal: role -> share of moving steps whose frame is as long as the next one; only cameras that can be judged.
        least: equal neighbours in a row that hardly any episode has by chance.
        change: role -> usual mean difference of consecutive looked-at frames in grey levels, and the motion between.
        blank: role -> encoded lengths of images without contents.
        roles: all cameras, in the order of `what`.
    """

    unit: MotionUnit
    equal: Mapping[str, float]
    least: int
    change: Mapping[str, tuple[float, float]]
    blank: Mapping[str, NDArray[np.int32]]
    roles: tuple[str, ...]


@dataclass(frozen=True)
class FrozenFrames:
    """Criterion `frozen_frames`."""

    criteria = ("frozen_frames",)
    columns = frozenset({"proprio", "frame_bytes", "looks"})

    def fit(self, sample: EpisodeBatch) -> FrozenFacts:
        """How often frames of equal length follow each other by chance, and how much images usually change."""
        unit = learn_motion(sample)
        motion = step_motion(sample, unit)
        equal, change = {}, {}
        blank = {role: blank_lengths(lengths, sample.starts) for role, lengths in sample.frame_bytes.items()}
        for role, lengths in sample.frame_bytes.items():
            share = _share_equal(lengths, _contents(lengths, blank[role]) & (motion > _MOVES), sample)
            if len(share) and (usual := _lower_mean(share)) <= _COMMON:
                equal[role] = max(usual, 0.01)
        for role, looks in sample.looks.items():
            difference, moved, _, _ = look_changes(looks, motion, sample)
            if len(seen := np.flatnonzero(moved > 1)) >= 8:
                change[role] = float(np.median(difference[seen])), float(np.median(moved[seen]))
        worst = max(equal.values(), default=0.01)
        longest = float(sample.lengths.max(initial=1))
        least = max(math.ceil(math.log(longest * max(len(equal), 1) / _CHANCE) / -math.log(worst)), 3)
        return FrozenFacts(unit, equal, least, change, blank, tuple(sorted({*sample.frame_bytes, *sample.looks})))

    def part(self, batch: EpisodeBatch, fitted: FrozenFacts) -> Part:
        """Frozen steps of each episode, by lengths and by looked-at frames, where they begin, and camera and kind."""
        motion = step_motion(batch, fitted.unit)
        count = len(batch)
        steps, looked = np.zeros(count), np.zeros(count)
        begin, what = np.full(count, -1), np.full(count, -1)
        for role, usual in fitted.equal.items():
            if role not in batch.frame_bytes:
                continue
            lengths = batch.frame_bytes[role]
            counted = _contents(lengths, fitted.blank[role]) & (motion > _MOVES)
            for run, first, kind in _repeats(lengths, counted, usual, fitted.least, batch):
                better = run > steps
                steps[better], begin[better] = run[better], first[better]
                what[better] = len(_KINDS) * fitted.roles.index(role) + kind
        for role in fitted.change.keys() & batch.looks.keys():
            still, first = _frozen_looks(batch.looks[role], motion, batch, fitted.change[role])
            better = still > np.maximum(looked, steps)
            looked = np.maximum(looked, still)
            begin[better] = first[better]
            what[better] = len(_KINDS) * fitted.roles.index(role) + 3
        return {"steps": steps, "looked": looked, "begin": begin, "what": what}

    def judge(self, part: Part, fitted: FrozenFacts) -> Mapping[str, Judgement]:
        """Steps during which the arm moves and the image does not."""
        if not fitted.equal and not fitted.change:
            return {}
        steps, looked = part["steps"], part["looked"]
        usual = float(np.quantile(steps, 0.75)) if len(steps) else 0.0
        limit = max(fitted.least - 1.0, 2 * usual)
        if np.mean(looked > 0) <= 0.25:  # else the images of this data set are like this
            steps = np.where(looked > 0, np.maximum(np.maximum(steps, looked), limit + 1), steps)
        words = [f"{role}: {kind}" for role in fitted.roles for kind in _KINDS]
        judged = Judgement(
            value=steps, limit=limit, step=part["begin"], what=part["what"], words=words, unit="steps in motion"
        )
        return {"frozen_frames": judged}


def blank_lengths(lengths: NDArray[np.int32], starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """The encoded lengths that all frames of two or more episodes have: a camera that is off, not a frozen image.

    Frames of other episodes are longer; two frozen episodes of one scene may have equal lengths, too.

    Args:
        lengths: int32 (N,), of the frames of one camera.
        starts: as in `EpisodeBatch`.
    """
    first = starts[:-1]
    least = np.minimum.reduceat(lengths, first)
    same = np.maximum.reduceat(lengths, first) == least
    steady, times = np.unique(least[same], return_counts=True)
    others = lengths[~np.repeat(same, np.diff(starts))]
    usual = np.median(others) if len(others) else np.inf
    return np.asarray(steady[(times > 1) & (steady < _BLANK_LENGTH * usual)])


def look_changes(
    looks: LookedFrames, motion: NDArray[np.float32], batch: EpisodeBatch
) -> tuple[NDArray[np.floating[Any]], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Compare consecutive looked-at frames that have contents.

    Args:
        looks: of one camera, of all episodes of `batch`.
        motion: float32 (N,), see `step_motion`.
        batch: the episodes.

    Returns:
        Of each pair: mean difference in grey levels (0 only for the same bytes), motion between, episode, first frame.
    """
    episode = looks.episode
    clear = (looks.width > 0) & (looks.deviation.max(axis=1, initial=0) > _BLANK)
    pair = np.flatnonzero((episode[1:] == episode[:-1]) & clear[1:] & clear[:-1])
    grey = looks.grey.reshape(-1, looks.grey.shape[1] * looks.grey.shape[2]).astype(np.int16)
    difference = np.abs(grey[pair + 1] - grey[pair]).mean(axis=1)
    difference = np.where(looks.checksum[pair + 1] == looks.checksum[pair], 0, difference + 1e-3)
    path = np.concatenate(([0.0], np.cumsum(motion, dtype=np.float64)))
    place = batch.starts[:-1][episode] + looks.step
    return difference, path[place[pair + 1]] - path[place[pair]], episode[pair], pair


def _contents(lengths: NDArray[np.int32], blank: NDArray[np.int32]) -> NDArray[np.bool_]:
    found = lengths > 0
    for length in blank[:16].tolist():
        found &= lengths != length
    return np.asarray(found)


def _share_equal(lengths: NDArray[np.int32], counted: NDArray[np.bool_], batch: EpisodeBatch) -> NDArray[np.float64]:
    """Of each episode with contents: the share of moving steps whose frame is as long as the next one."""
    first = batch.starts[:-1]
    moving = np.add.reduceat(counted.astype(np.int64), first)
    equal = np.add.reduceat((_equal_later(lengths, 1, batch) & counted).astype(np.int64), first)
    return np.asarray(equal[moving > 0] / moving[moving > 0])


def _lower_mean(share: NDArray[np.float64]) -> float:
    """The mean without the upper quarter, which may be frozen, enlarged for what is missing."""
    return 1.5 * float(np.sort(share)[: math.ceil(0.75 * len(share))].mean())


def _equal_later(lengths: NDArray[np.int32], lag: int, batch: EpisodeBatch) -> NDArray[np.bool_]:
    """bool (N,): the frame `lag` steps later in the same episode is as long."""
    equal = np.zeros(len(lengths), bool)
    np.equal(lengths[:-lag], lengths[lag:], out=equal[:-lag])
    for back in range(1, lag + 1):
        equal[np.maximum(batch.starts[1:] - back, batch.starts[:-1])] = False
    return equal


def _repeats(
    lengths: NDArray[np.int32], counted: NDArray[np.bool_], usual: float, least: int, batch: EpisodeBatch
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], int]]:
    """Yield (steps, begin, kind): runs of one frame, frames shown twice, and sequences that come again."""
    first = batch.starts[:-1]
    equal = _equal_later(lengths, 1, batch)
    run, begin = longest_run(equal, counted, batch.starts)
    yield run, begin, 0
    count = np.add.reduceat((equal & counted).astype(np.int64), first)
    moving = np.add.reduceat(counted.astype(np.int64), first)
    expected = max(usual, _FEW) * moving
    with np.errstate(divide="ignore", invalid="ignore"):  # Chernoff's bound of a Poisson variable
        excess = count * np.log(count / expected) - count + expected
    often = (count > np.maximum(0.4 * moving, 2 * run)) & (excess > -math.log(_CHANCE))
    yield np.where(often, count, 0), begin, 1
    for lag in range(2, _LAGS + 1):
        again = _equal_later(lengths, lag, batch)
        again &= ~equal
        run, begin = longest_run(again, counted, batch.starts)
        yield np.maximum(run - 1, 0), begin, 2


def _frozen_looks(
    looks: LookedFrames, motion: NDArray[np.float32], batch: EpisodeBatch, usual: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Steps between looked-at frames that are the same though the arm moved, of each episode, and the first of them."""
    difference, moved, episode, pair = look_changes(looks, motion, batch)
    still = (moved > 0.5 * usual[1]) & (moved > 1) & (difference <= _SAME * usual[0])
    # a gripper that closes changes few pixels: equal pixels count if they stay, equal bytes always
    lasting = still[1:] & still[:-1] & (episode[1:] == episode[:-1])
    sure = difference == 0
    sure[1:] |= lasting
    sure[:-1] |= lasting
    same = np.flatnonzero(still & sure)
    between = (looks.step[pair + 1] - looks.step[pair])[same]
    steps = np.bincount(episode[same], between, minlength=len(batch)).astype(np.float64)
    begin = np.full(len(batch), -1)
    begin[episode[same][::-1]] = looks.step[pair[same]][::-1]
    return steps, begin
