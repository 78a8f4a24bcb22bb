"""Images out of step with the motion: a linear model predicts the state's changes from those of the looked-at images.

Both are taken relative to their means within the episode, so that what a scene shows does not matter, only what moves
in it. Where the model predicts episodes that it has not seen, an episode whose images say something else has images of
another time, order or episode. Where it does not (few episodes, many scenes, a camera on the hand), nothing is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.looks import GREY
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.pictures import Worst, has_contents

_Values = NDArray[np.floating[Any]]

_LAGS = (-12, -8, -6, -5, -4, -3, -2, 2, 3, 4, 5, 6, 8, 12)
"""Steps by which the images may be late (positive) or early."""
_ON_THE_ROBOT = ("wrist", "egocentric")
"""Cameras whose images change with everything around them."""
_FRAMES = 5
"""Looked-at frames with contents that an episode needs."""
_EPISODES = 24
_FOLDS = 5
"""Each episode is predicted by a model of the episodes of other folds."""
_COMPONENTS = 16
_RIDGE = 0.03
"""Of the mean variance of the components."""
_EXPLAINED, _FOLLOWS = 0.25, 0.6
"""Share of a state's variance that must be predicted, and the correlation of three of four episodes, to judge any."""
_STILL = 0.1
"""Share of the usual motion below which an episode is not judged."""
_LOST, _GAIN = (0.7, 0.95), (0.15, 0.3)
"""The loss of correlation that counts, and the gain by a lag: at least, at most."""


@dataclass(frozen=True, eq=False)
class StepModel:
    """Predicts state changes from image changes of one camera.

    Attributes:
        actions: whether the states are accumulated actions, see `_states`.
        weights: float64 (folds, 256, d), from thumbnails to states; fold k is learned without the episodes of fold k.
        mean, scale: float64 (d,), of the states.
        trust: float64 (d,), share of each state's variance that is predicted.
        usual: median motion of an episode.
    """

    actions: bool
    weights: _Values
    mean: _Values
    scale: _Values
    trust: _Values
    usual: float


@dataclass(frozen=True)
class InStep:
    """Criterion `image_motion_lag`."""

    criteria = ("image_motion_lag",)
    columns = frozenset({"proprio", "looks"})

    def fit(self, sample: EpisodeBatch) -> dict[str, StepModel]:
        """A model for each camera whose images tell the state."""
        roles = [role for role in sorted(sample.looks) if role not in _ON_THE_ROBOT]
        return {role: model for role in roles if (model := _learn(role, sample)) is not None}

    def part(self, batch: EpisodeBatch, fitted: Mapping[str, StepModel]) -> Part:
        """Per camera: correlation of predicted and real state changes, the largest gain by a lag, and which."""
        found: dict[str, NDArray[Any]] = {}
        for role, model in fitted.items():
            lost, gain = np.full(len(batch), np.nan), np.full(len(batch), np.nan)
            lag = np.zeros(len(batch), np.int64)
            if role in batch.looks:
                lost, gain, lag = _compare(role, batch, model)
            found |= {f"{role} lost": lost, f"{role} gain": gain, f"{role} lag": lag}
        return found

    def judge(self, part: Part, fitted: Mapping[str, StepModel]) -> Mapping[str, Judgement]:
        """The loss of correlation or the gain by a lag, as a multiple of the limit."""
        worst = Worst(part, 1.0) if fitted else None
        for role in fitted:
            lost, gain, lag = (part[f"{role} {name}"] for name in ("lost", "gain", "lag"))
            known = np.isfinite(lost)
            if worst is None or known.sum() < _EPISODES or np.quantile(lost[known], 0.75) > 1 - _FOLLOWS:
                continue  # the images of too many good episodes say nothing
            limit = min(robust_limit(lost, least=_LOST[0], times=5), _LOST[1])
            least = min(robust_limit(gain, least=_GAIN[0]), _GAIN[1])
            value = np.fmax(lost / limit, gain / least)
            shifted = gain > max(least, 0.2)
            for steps in (0, *np.unique(lag[shifted]).tolist()):
                chosen = ~shifted if steps == 0 else shifted & (lag == steps)
                words = (
                    "the images do not follow the motion" if steps == 0
                    else "the images are in reverse order" if steps == _REVERSED
                    else f"the images are about {abs(steps)} steps {'late' if steps > 0 else 'early'}"
                )  # fmt: skip
                worst.add(np.where(chosen, value, np.nan), f"{role}: {words}")
        return {} if worst is None or not worst.words else {"image_motion_lag": worst.judgement("of the limit")}


_REVERSED = 999


def _states(batch: EpisodeBatch, actions: bool) -> _Values:
    """float64 (N, d): the proprio or, with `actions`, the accumulated pose actions."""
    if not actions:
        return np.nan_to_num(batch.proprio.astype(np.float64), posinf=0, neginf=0)
    total = np.cumsum(np.nan_to_num(batch.action[:, :6].astype(np.float64), posinf=0, neginf=0), axis=0)
    return np.asarray(total - np.repeat(total[batch.starts[:-1]], batch.lengths, axis=0))


class _Frames:
    """Looked-at frames with contents of the episodes that have enough, relative to the episode's mean."""

    def __init__(self, role: str, batch: EpisodeBatch) -> None:
        looks = batch.looks[role]
        seen = has_contents(looks)
        enough = np.bincount(looks.episode[seen], minlength=len(batch)) >= _FRAMES
        rows = np.flatnonzero(seen & enough[looks.episode])
        self.batch, self.episode, self.step = batch, looks.episode[rows], looks.step[rows].astype(np.int64)
        self.images = self.centred(looks.grey[rows].astype(np.float64).reshape(len(rows), GREY * GREY))
        first = np.zeros(len(batch), np.int64)
        first[self.episode[::-1]] = looks.checksum[rows][::-1]
        self.fold = first[self.episode] % _FOLDS

    def centred(self, values: _Values) -> _Values:
        """Values (m, k) without their episode's mean."""
        return values - (self.sums(values) / self._counts()[:, None])[self.episode]

    def sums(self, values: _Values) -> _Values:
        """Sums (n, k) over each episode."""
        found = np.zeros((len(self.batch), values.shape[1]))
        first = np.flatnonzero(np.diff(self.episode, prepend=-1))
        if len(first):
            found[self.episode[first]] = np.add.reduceat(values, first, axis=0)
        return found

    def _counts(self) -> NDArray[np.int64]:
        return np.maximum(np.bincount(self.episode, minlength=len(self.batch)), 1)

    def states(self, states: _Values, lag: int = 0) -> _Values:
        """The states (m, d) at the frames' steps, or `lag` steps before, or of the steps in reverse order."""
        last = self.batch.lengths[self.episode] - 1
        step = last - self.step if lag == _REVERSED else np.clip(self.step - lag, 0, last)
        return self.centred(states[self.batch.starts[:-1][self.episode] + step])


def _learn(role: str, sample: EpisodeBatch) -> StepModel | None:
    frames = _Frames(role, sample)
    if len(np.unique(frames.episode)) < _EPISODES:
        return None
    actions = not sample.proprio.size or not np.ptp(_states(sample, False), axis=0).max() > 1e-6
    states = _states(sample, actions)
    mean, scale = states.mean(axis=0), states.std(axis=0)
    scale = np.where(scale > 1e-6, scale, np.inf)
    targets = frames.states((states - mean) / scale)
    weights = np.zeros((_FOLDS, frames.images.shape[1], targets.shape[1]))
    predicted = np.zeros_like(targets)
    good = np.ones(len(targets), bool)
    for _ in range(2):  # again without the quarter of the episodes that fits worst, which may be defective
        for fold in range(_FOLDS):
            used = frames.fold != fold
            if (used & good).any():
                weights[fold] = _ridge(frames.images[used & good], targets[used & good])
                predicted[~used] = frames.images[~used] @ weights[fold]
        total = (targets[good] ** 2).sum(axis=0)
        error = ((predicted - targets)[good] ** 2).sum(axis=0)
        trust = 1 - error / np.where(total > 1e-9, total, np.inf)
        trust = np.where((trust > _EXPLAINED) & (total > 1e-9), trust, 0)
        if not trust.any():
            trust = np.where(total > 1e-9, 1.0, 0.0) if good.all() else trust
        fit = _correlation(frames, predicted, targets, trust)
        if not np.isfinite(fit).any():
            return None
        good = (fit > np.nanquantile(fit, 0.25))[frames.episode]
    if not trust.any():
        return None
    motion = frames.sums(targets**2) @ trust
    return StepModel(actions, weights, mean, scale, trust, float(np.median(motion[np.unique(frames.episode)])))


def _correlation(frames: _Frames, predicted: _Values, targets: _Values, trust: _Values) -> _Values:
    """Correlation of each episode's predicted and real changes (n,), NaN where either is none."""
    product = frames.sums(predicted * targets) @ trust
    square = (frames.sums(targets**2) @ trust) * (frames.sums(predicted**2) @ trust)
    return np.asarray(np.where(square > 1e-18, product / np.sqrt(np.maximum(square, 1e-18)), np.nan))


def _ridge(images: _Values, targets: _Values) -> _Values:
    """Weights (256, d) of a ridge regression on the principal components of the images."""
    values, vectors = np.linalg.eigh(images.T @ images)
    values, vectors = values[-_COMPONENTS:], vectors[:, -_COMPONENTS:]
    damped = values + _RIDGE * max(float(values.mean()), 1e-9)
    return np.asarray(vectors @ ((vectors.T @ (images.T @ targets)) / damped[:, None]))


def _compare(role: str, batch: EpisodeBatch, model: StepModel) -> tuple[_Values, _Values, NDArray[np.int64]]:
    """1 - correlation (n,), the largest gain of correlation by a lag (n,), and that lag (n,)."""
    frames = _Frames(role, batch)
    states = _states(batch, model.actions)
    if states.shape[1] != len(model.mean):
        nothing = np.full(len(batch), np.nan)
        return nothing, nothing, np.zeros(len(batch), np.int64)
    states = (states - model.mean) / model.scale
    predicted = np.zeros((len(frames.step), len(model.trust)))
    for fold in range(_FOLDS):
        mine = frames.fold == fold
        predicted[mine] = frames.images[mine] @ model.weights[fold]

    def correlation(lag: int) -> _Values:
        theirs = frames.states(states, lag)
        still = frames.sums(theirs**2) @ model.trust < _STILL * model.usual
        return np.where(still, np.nan, _correlation(frames, predicted, theirs, model.trust))

    at_once = correlation(0)
    candidates = np.array([*_LAGS, _REVERSED])
    others = np.stack([np.nan_to_num(correlation(int(lag)), nan=-1) for lag in candidates])
    best = others.argmax(axis=0)
    return 1 - at_once, others[best, np.arange(len(batch))] - at_once, candidates[best]
