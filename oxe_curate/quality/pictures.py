"""Frames without information, missing cameras, and a format that changes.

Each camera is compared with itself in the other episodes. Encoded lengths need no look: noise is longer than a picture;
blur, darkness, a covered lens and strong compression are shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.frozen import blank_lengths
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.looks import LookedFrames
from oxe_curate.quality.measure import Judgement, Part

_Floats = NDArray[np.floating[Any]]

_BLACK, _FLAT = 8.0, 3.0
"""Grey levels: mean and deviation of a black image, and the deviation of one without contents."""
_RARE = 0.25
"""Share of a data set's episodes up to which what they have in common is a defect and not how the data set is."""
FLAT_KINDS = {
    "length": ("encoded far longer or shorter than usual", 0.45),
    "step_length": ("a frame encoded far longer or shorter than the others", 0.4),
    "contrast": ("hardly any contrast", 0.9),
    "noise": ("noise", 0.7),
    "blur": ("far less sharp than usual", 0.7),
    "exposure": ("far brighter or darker than usual", 1.2),
}
"""What makes an image flat: words, and the least deviation that counts, as a logarithm; of exposure in 40 levels."""
_REFERENCES, _FEWEST = 96, 16
"""Episodes that hues are compared with, at most and at least."""
_MISSING = ("off", "off or without frames at some steps", "frames that cannot be decoded")


@dataclass(frozen=True, eq=False)
class CameraFacts:
    """What is usual for one camera of a data set.

    Attributes:
        blank: encoded lengths of images without contents.
        length: mean logarithm of an episode's encoded lengths, median over episodes.
        look: median of each feature of `_features` over looked-at frames with contents; empty if there are none.
        size: width, height and channels of most frames; None if sizes are mixed.
        hues: float32 (R, 48), the hues of the coloured thumbnail in some episodes, to compare others with.
        colour: usual saturation, in grey levels.
    """

    blank: NDArray[np.int32]
    length: float
    look: _Floats
    size: tuple[int, int, int] | None = None
    hues: _Floats = field(default_factory=lambda: np.empty((0, 48)))
    colour: float = 0.0


@dataclass(frozen=True)
class Pictures:
    """Criteria `flat_image`, `missing_camera` and `image_format`."""

    criteria = ("flat_image", "missing_camera", "image_format")
    columns = frozenset({"frame_bytes", "looks"})

    def fit(self, sample: EpisodeBatch) -> dict[str, CameraFacts]:
        """What is usual for each camera, in the order of the cameras' names."""
        return {role: _learn(role, sample) for role in sorted({*sample.frame_bytes, *sample.looks})}

    def part(self, batch: EpisodeBatch, fitted: Mapping[str, CameraFacts]) -> Part:
        """Per camera: deviations of each kind, shares of frames that are off, and deviations of size and colour."""
        found: dict[str, NDArray[Any]] = {}
        for role, facts in fitted.items():
            for name in FLAT_KINDS:
                found[f"{role} {name}"] = np.full(len(batch), np.nan)
                found[f"{role} {name} at"] = np.full(len(batch), -1)
            for name in ("off", "broken", "size", "sizes", "swapped", "grey"):
                found[f"{role} {name}"] = np.full(len(batch), np.nan)
            if role in batch.frame_bytes:
                _lengths(role, batch, facts, found)
            if role in batch.looks:
                _looked(role, batch, facts, found)
        return found

    def judge(self, part: Part, fitted: Mapping[str, CameraFacts]) -> Mapping[str, Judgement]:
        """How far beyond the usual, as a multiple of the limit; the share of missing frames; 1 for another format."""
        if not fitted:
            return {}
        flat, missing, formats = Worst(part, 1.0), Worst(part, 0.0), Worst(part, 0.5)
        for role in fitted:
            for name, (words, least) in FLAT_KINDS.items():
                value = part[f"{role} {name}"]
                limit = max(robust_limit(value, least=least), least)
                flat.add(value / limit, f"{role}: {words}", part[f"{role} {name} at"])
            off, broken = part[f"{role} off"], part[f"{role} broken"]
            for kind, share in ((0, np.where(off == 1, 1.0, 0.0)), (1, np.where(off < 1, off, 0)), (2, broken)):
                if np.mean(share > 0) <= _RARE:
                    missing.add(share, f"{role}: {_MISSING[kind]}")
            for name, words in (
                ("size", "another size or number of channels"), ("sizes", "the size changes"),
                ("swapped", "red and blue swapped"), ("grey", "grey instead of colour"),
            ):  # fmt: skip
                value = part[f"{role} {name}"]
                if name == "swapped":  # needs hues that tell
                    limit = min(robust_limit(value, least=0.05, times=4), 0.1)
                    known = np.isfinite(value).any() and np.nanmedian(value) < -0.1
                    value = (value > limit).astype(float) if known else np.zeros(len(value))
                if np.mean(value > 0) <= _RARE:
                    formats.add(value, f"{role}: {words}")
        return {
            "flat_image": flat.judgement("of the usual range"),
            "missing_camera": missing.judgement("of the frames"),
            "image_format": formats.judgement(""),
        }


class Worst:
    """Collects the largest value of each episode over cameras and kinds."""

    def __init__(self, part: Part, limit: float) -> None:
        count = len(next(iter(part.values())))
        self._value, self._limit = np.full(count, np.nan), limit
        self._step, self._what = np.full(count, -1), np.full(count, -1)
        self.words: list[str] = []

    def add(self, value: _Floats, words: str, step: NDArray[Any] | None = None) -> None:
        """Take over the values (n,) that are larger than those so far, with their words and steps."""
        better = np.nan_to_num(value, nan=-1) > np.nan_to_num(self._value, nan=-1)
        self._value[better], self._what[better] = value[better], len(self.words)
        self._step[better] = -1 if step is None else step[better]
        self.words.append(words)

    def judgement(self, unit: str) -> Judgement:
        """The largest values, with the limit."""
        return Judgement(
            value=self._value, limit=self._limit, step=self._step, what=self._what, words=self.words, unit=unit
        )


def _learn(role: str, sample: EpisodeBatch) -> CameraFacts:
    blank, length = np.empty(0, np.int32), np.nan
    if role in sample.frame_bytes:
        lengths = sample.frame_bytes[role]
        blank = blank_lengths(lengths, sample.starts)
        mean, _, _ = _episode_lengths(lengths, blank, sample)
        known = np.isfinite(mean)
        if known.any():
            length = float(np.median(mean[known]))
    if role not in sample.looks:
        return CameraFacts(blank, length, np.empty(0))
    looks = sample.looks[role]
    seen = has_contents(looks)
    if not seen.any():
        return CameraFacts(blank, length, np.empty(0))
    look = np.median(_features(looks)[seen], axis=0)
    sizes, counts = np.unique(_sizes(looks)[seen], axis=0, return_counts=True)
    size = tuple(sizes[counts.argmax()].tolist()) if counts.max() > 0.75 * seen.sum() else None
    hues = _per_episode(_hues(looks.colour), seen, looks)
    hues = hues[np.isfinite(hues).all(axis=1)]
    hues = hues[np.linspace(0, len(hues) - 1, min(len(hues), _REFERENCES)).round().astype(int)]
    colour = float(np.median(_saturation(looks)[seen]))
    return CameraFacts(blank, length, look, size, hues, colour)


def has_contents(looks: LookedFrames) -> NDArray[np.bool_]:
    """bool (m,): frames that were decoded and show more than one colour."""
    return np.asarray((looks.width > 0) & (looks.deviation.max(axis=1, initial=0) >= _FLAT))


def _features(looks: LookedFrames) -> _Floats:
    """float (m, 4): logarithms of contrast, detail per contrast and detail; and mean brightness in 40 grey levels."""
    contrast = looks.deviation.max(axis=1, initial=0) + 1.0
    rough = np.log((looks.detail + 0.1) / contrast)
    return np.stack([np.log(contrast), rough, np.log(looks.detail + 0.1), looks.mean.mean(axis=1) / 40], axis=1)


def _sizes(looks: LookedFrames) -> NDArray[np.int64]:
    return np.stack([looks.width, looks.height, looks.channels], axis=1).astype(np.int64)


def _hues(colour: NDArray[np.uint8]) -> _Floats:
    """float (m, 48): red, green and blue of each cell without its brightness."""
    values = colour.astype(np.float64)
    return np.asarray((values - values.mean(axis=-1, keepdims=True)).reshape(len(values), -1))


def _swap_gain(looks: LookedFrames, seen: NDArray[np.bool_], hues: _Floats) -> _Floats:
    """How much nearer an episode's hues are to those of others if red and blue are swapped (n,), from -1 to 1.

    The larger of those of the first and the second half of the frames; NaN for an episode without contents.
    """
    nearest = max(3, int(0.3 * len(hues)))
    gains = []
    later = looks.step > np.repeat(_mean_step(looks), looks.counts)
    for half in (seen & ~later, seen & later):
        distance = []
        for colour in (looks.colour, looks.colour[..., ::-1]):
            own = _per_episode(_hues(colour), half, looks)
            square = (own**2).sum(axis=1)[:, None] + (hues**2).sum(axis=1) - 2 * own @ hues.T
            square = np.where(square < 1, np.inf, square)  # itself
            part = np.partition(np.sqrt(np.maximum(square, 0) / 16), nearest - 1, axis=1)[:, :nearest]
            distance.append(
                np.where(np.isfinite(part), part, 0).sum(axis=1) / np.maximum(np.isfinite(part).sum(axis=1), 1)
            )
            distance[-1][~np.isfinite(own).all(axis=1)] = np.nan
        gains.append((distance[0] - distance[1]) / (distance[0] + distance[1] + 2))
    return np.asarray(np.fmax(*gains))


def _mean_step(looks: LookedFrames) -> _Floats:
    counts = np.maximum(looks.counts, 1)
    return np.asarray(np.bincount(looks.episode, looks.step, minlength=len(looks)) / counts)


def _saturation(looks: LookedFrames) -> _Floats:
    return np.asarray(np.ptp(looks.colour.astype(np.float64), axis=-1).mean(axis=(1, 2)))


def _per_episode(values: _Floats, chosen: NDArray[np.bool_], looks: LookedFrames) -> _Floats:
    """Means (n, k) of the chosen frames of each episode, NaN where there are none."""
    episode = looks.episode[chosen]
    count = np.bincount(episode, minlength=len(looks))
    sums = np.zeros((len(looks), values.shape[1]))
    np.add.at(sums, episode, values[chosen])
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / np.where(count, count, np.nan)[:, None])


def _episode_lengths(
    lengths: NDArray[np.int32], blank: NDArray[np.int32], batch: EpisodeBatch
) -> tuple[_Floats, _Floats, NDArray[np.bool_]]:
    """Mean logarithm of the lengths of frames with contents (n,), all logarithms (N,), and which frames have any."""
    shown = lengths > 0
    for length in blank[:16].tolist():
        shown &= lengths != length
    logs = np.log(np.maximum(lengths, 1)).astype(np.float32)
    first = batch.starts[:-1]
    count = np.add.reduceat(shown, first, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        return np.add.reduceat(logs * shown, first) / np.where(count, count, np.nan), logs, shown


def _lengths(role: str, batch: EpisodeBatch, facts: CameraFacts, found: dict[str, NDArray[Any]]) -> None:
    mean, logs, shown = _episode_lengths(batch.frame_bytes[role], facts.blank, batch)
    first = batch.starts[:-1]
    found[f"{role} off"] = 1 - np.add.reduceat(shown, first, dtype=np.int64) / batch.lengths
    found[f"{role} length"] = np.abs(mean - facts.length)
    away = np.abs(logs - np.repeat(mean, batch.lengths).astype(np.float32)) * shown
    worst = np.maximum.reduceat(away, first)
    found[f"{role} step_length"] = worst.astype(np.float64)
    place = np.where(away >= np.repeat(worst, batch.lengths), np.arange(len(away)), len(away))
    found[f"{role} step_length at"] = np.minimum.reduceat(place, first) - first


def _looked(role: str, batch: EpisodeBatch, facts: CameraFacts, found: dict[str, NDArray[Any]]) -> None:
    looks = batch.looks[role]
    episode, counts = looks.episode, looks.counts
    decoded, contents = looks.width > 0, has_contents(looks)
    black = decoded & ~contents & (looks.mean.max(axis=1, initial=0) < _BLACK)
    with np.errstate(invalid="ignore"):
        number = np.where(counts, counts, np.nan)
        share = np.bincount(episode[black | (looks.length == 0)], minlength=len(looks)) / number
        broken = np.bincount(episode[~decoded & (looks.length > 0)], minlength=len(looks)) / number
    found[f"{role} off"] = np.fmax(found[f"{role} off"], share)
    found[f"{role} broken"] = broken
    if not len(facts.look):
        return
    away = _features(looks) - facts.look
    shown = decoded & ~black
    for name, values in (
        ("contrast", -away[:, 0]), ("noise", away[:, 1]), ("blur", np.minimum(-away[:, 2], -2 * away[:, 1])),
        ("exposure", np.abs(away[:, 3])),
    ):  # fmt: skip
        worst, place = _largest(values, shown, looks)
        found[f"{role} {name}"], found[f"{role} {name} at"] = worst, place
    sizes = _sizes(looks)
    known = np.flatnonzero(decoded)
    if facts.size is not None:
        other = (sizes != facts.size).any(axis=1) & decoded
        found[f"{role} size"] = (np.bincount(episode[other], minlength=len(looks)) > 0).astype(np.float64)
    change = (sizes[known[1:]] != sizes[known[:-1]]).any(axis=1) & (episode[known[1:]] == episode[known[:-1]])
    found[f"{role} sizes"] = (np.bincount(episode[known[1:]][change], minlength=len(looks)) > 0).astype(np.float64)
    if len(facts.hues) >= _FEWEST:
        found[f"{role} swapped"] = _swap_gain(looks, contents, facts.hues)
    if facts.colour > 6:
        grey = (_saturation(looks) < 2) & contents
        found[f"{role} grey"] = (np.bincount(episode[grey], minlength=len(looks)) > 0).astype(np.float64)


def _largest(values: _Floats, chosen: NDArray[np.bool_], looks: LookedFrames) -> tuple[_Floats, NDArray[np.int64]]:
    """The largest value of each episode's chosen frames (n,), NaN for none, and its step (n,)."""
    found, step = np.full(len(looks), np.nan), np.full(len(looks), -1)
    frames = np.flatnonzero(chosen)
    order = frames[np.argsort(values[frames], kind="stable")]
    found[looks.episode[order]] = values[order]  # the largest is written last
    step[looks.episode[order]] = looks.step[order]
    return found, step
