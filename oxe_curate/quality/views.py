"""What a camera shows: a view that is not this camera's, and a scene that changes within an episode.

A view is compared with those of other episodes as it is, mirrored, turned, and with the views of other cameras. Only
the part of the other episodes that it resembles most counts, since a data set may have many scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.looks import LookedFrames
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.pictures import Worst, has_contents

_Floats = NDArray[np.floating[Any]]

_REFERENCES, _FEWEST = 96, 16
"""Episodes that every view is compared with, at most and at least."""
_NEAREST = 0.3
"""Share of them that it must resemble; more than the share of episodes that may be defective."""
_GAIN, _SURE = (0.05, 0.15), 0.2
"""By how much a view must resemble others more if it is turned, as a correlation: at least, at most; and to be sure."""
_TURNS = {"mirrored": np.s_[:, :, ::-1], "upside down": np.s_[:, ::-1], "turned by 180 degrees": np.s_[:, ::-1, ::-1]}
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class ViewFacts:
    """Views of one camera in some episodes.

    Attributes:
        views: float32 (2, R, 256), two normalised thumbnails of each.
        checksums: uint32 (2, R), of their frames, by which an episode recognises itself.
    """

    views: NDArray[np.float32]
    checksums: NDArray[np.uint32]


@dataclass(frozen=True)
class Views:
    """Criteria `wrong_camera` and `image_cut`."""

    criteria = ("wrong_camera", "image_cut")
    columns = frozenset({"looks"})

    def fit(self, sample: EpisodeBatch) -> dict[str, ViewFacts]:
        """Reference views of each camera."""
        found = {}
        for role in sorted(sample.looks):
            looks = sample.looks[role]
            frames, episodes = _two_frames(looks)
            if len(episodes) >= _FEWEST:
                chosen = np.linspace(0, len(episodes) - 1, min(len(episodes), _REFERENCES)).round().astype(int)
                frames = frames[:, chosen]
                found[role] = ViewFacts(_normalised(looks.grey[frames]), looks.checksum[frames])
        return found

    def part(self, batch: EpisodeBatch, fitted: Mapping[str, ViewFacts]) -> Part:
        """Per camera: how well a view fits as it is, what it gains turned or as another camera's, and its cuts."""
        found: dict[str, NDArray[Any]] = {}
        for role, facts in fitted.items():
            others = [other for other in fitted if other != role]
            for name in ("fit", *_TURNS, *others, "cut", "flash", "disorder"):
                found[f"{role} {name}"] = np.full(len(batch), np.nan)
            for name in ("cut at", "flash at", "disorder at"):
                found[f"{role} {name}"] = np.full(len(batch), -1)
            if role not in batch.looks:
                continue
            looks = batch.looks[role]
            frames, episodes = _two_frames(looks)
            own = _resemblance(looks.grey[frames], looks.checksum[frames], facts)
            found[f"{role} fit"][episodes] = 1 - own
            for name, turn in _TURNS.items():
                turned = looks.grey[frames].reshape(-1, *looks.grey.shape[1:])[turn].reshape(looks.grey[frames].shape)
                gain = _resemblance(turned, looks.checksum[frames], facts) - own
                found[f"{role} {name}"][episodes] = gain
            for other in others:
                gain = _resemblance(looks.grey[frames], looks.checksum[frames], fitted[other]) - own
                found[f"{role} {other}"][episodes] = gain
            _cuts(looks, role, found)
        return found

    def judge(self, part: Part, fitted: Mapping[str, ViewFacts]) -> Mapping[str, Judgement]:
        """Multiples of the limit: of the gain in correlation, and of the change in grey levels."""
        if not fitted:
            return {}
        wrong, cut = Worst(part, 1.0), Worst(part, 1.0)
        for role in fitted:
            for name in (*_TURNS, *(other for other in fitted if other != role)):
                gain = part[f"{role} {name}"]
                # a camera that looks the same turned, or two that show the same, cannot be told apart
                if not np.isfinite(gain).any() or np.nanmedian(gain) > -_GAIN[0]:
                    continue
                words = name if name in _TURNS else f"shows what the {name} camera shows in other episodes"
                likely = np.where(gain > _SURE, np.nan, gain)
                limit = min(robust_limit(gain, least=_GAIN[0], times=5), _GAIN[1])
                wrong.add(likely / limit, f"{role}: likely {words}")
                wrong.add(np.where(gain > _SURE, gain, np.nan) / limit, f"{role}: {words}")
            strange = part[f"{role} fit"]
            wrong.add(strange / robust_limit(strange, least=0.3, times=5), f"{role}: no other episode looks like it")
            for name, words, least, times in (
                ("cut", "another scene from here on", 6.0, 6), ("flash", "single frames of another scene", 10.0, 8),
                ("disorder", "the frames do not follow each other", 0.93, 3),
            ):  # fmt: skip
                value = part[f"{role} {name}"]
                limit = robust_limit(value, least=least, times=times)
                cut.add(value / limit, f"{role}: {words}", part[f"{role} {name} at"])
        return {"wrong_camera": wrong.judgement("of the limit"), "image_cut": cut.judgement("of the limit")}


def _normalised(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails (..., 16, 16) as vectors (..., 256) of mean 0 and length 1, so that products are correlations."""
    flat = grey.reshape(*grey.shape[:-2], -1).astype(np.float32)
    flat -= flat.mean(axis=-1, keepdims=True)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-3))


def _two_frames(looks: LookedFrames) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames (2, k) at a quarter and three quarters of those with contents, of the k episodes (k,) that have any."""
    seen = np.flatnonzero(has_contents(looks))
    episodes, first, count = np.unique(looks.episode[seen], return_index=True, return_counts=True)
    return np.stack([seen[first + count // 4], seen[first + 3 * count // 4]]) if len(seen) else np.empty(
        (2, 0), int
    ), episodes


def _resemblance(grey: NDArray[np.uint8], checksums: NDArray[np.uint32], facts: ViewFacts) -> _Floats:
    """float (k,): mean correlation with the references that each view resembles most; of two views (2, k, 16, 16)."""
    count = facts.views.shape[1]
    nearest = max(3, int(_NEAREST * count))
    result = np.zeros(grey.shape[1])
    for start in range(0, grey.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        itself = np.zeros((len(result[part]), count), bool)
        for own in checksums[:, part]:
            for known in facts.checksums:
                if np.isin(own, known).any():
                    itself |= own[:, None] == known[None]
        for view in _normalised(grey[:, part]):
            likeness = np.maximum(view @ facts.views[0].T, view @ facts.views[1].T)
            likeness[itself] = -1
            result[part] += np.partition(likeness, count - nearest, axis=1)[:, count - nearest :].mean(axis=1)
    return result / len(grey)


def _cuts(looks: LookedFrames, role: str, found: dict[str, NDArray[Any]]) -> None:
    """The largest lasting change between two looked-at frames, and the strangest single frame, in grey levels.

    A pixel changed for good if its values before and after do not overlap; a moving arm changes few for good.
    """
    seen = np.flatnonzero(has_contents(looks))
    episodes, first, counts = np.unique(looks.episode[seen], return_index=True, return_counts=True)
    for count in np.unique(counts[counts >= 5]).tolist():
        mine = np.flatnonzero(counts == count)
        for start in range(0, len(mine), _CHUNK):
            chosen = mine[start : start + _CHUNK]
            frames = seen[first[chosen, None] + np.arange(count)]
            grey = looks.grey[frames].reshape(len(chosen), count, -1).astype(np.int16)
            cut, flash = _changes(grey)
            if count > 5:
                found[f"{role} disorder"][episodes[chosen]] = _disorder(grey)
            rows = np.arange(len(chosen))
            for name, change, offset in (("cut", cut, 2), ("flash", flash, 0))[: 2 if count > 5 else 1]:
                place = change.argmax(axis=1)
                found[f"{role} {name}"][episodes[chosen]] = change[rows, place]
                found[f"{role} {name} at"][episodes[chosen]] = looks.step[frames[rows, place + offset]]


def _changes(grey: NDArray[np.int16]) -> tuple[_Floats, _Floats]:
    """Of frames (k, c, p): lasting changes (k, c - 3) between frame j + 1 and j + 2, and strangeness of each (k, c)."""
    low, high = np.minimum.accumulate(grey, axis=1), np.maximum.accumulate(grey, axis=1)
    low_after = np.minimum.accumulate(grey[:, ::-1], axis=1)[:, ::-1]
    high_after = np.maximum.accumulate(grey[:, ::-1], axis=1)[:, ::-1]
    gap = np.maximum(low_after[:, 2:-1] - high[:, 1:-2], low[:, 1:-2] - high_after[:, 2:-1])
    two = np.sort(grey, axis=1)
    below = two[:, 1][:, None] - grey  # only the lowest can be below the second lowest
    above = grey - two[:, -2][:, None]
    return np.maximum(gap, 0).mean(axis=2), np.maximum(np.maximum(below, above), 0).mean(axis=2)


def _disorder(grey: NDArray[np.int16]) -> _Floats:
    """float (k,): mean distance of neighbours of frames (k, c, p), relative to that of any two; 1 for random order."""
    values = grey.astype(np.float32)
    count = values.shape[1]
    length = np.einsum("kcp,kcp->kc", values, values)
    square = length[:, :, None] + length[:, None] - 2 * values @ values.transpose(0, 2, 1)
    distance = np.sqrt(np.maximum(square, 0) / values.shape[2])
    any_two = distance.sum(axis=(1, 2)) / (count * (count - 1))
    neighbours = np.diagonal(distance, 1, axis1=1, axis2=2).mean(axis=1)
    return np.where(any_two > 1, neighbours / np.maximum(any_two, 1), np.nan)
