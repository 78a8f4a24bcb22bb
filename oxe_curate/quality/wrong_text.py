"""An instruction that fits other trajectories but not its own: nearest neighbours within the data set.

Each trajectory is compared with those that move most like it. Where the texts of a data set can be told from motion at
all, which is measured by leaving each episode out, a text that none of its neighbours shares, while they agree on
another, is likely the wrong one. Texts are compared by the words they share, weighted by how rare these are, so that
paraphrases agree and "open" and "close the drawer" do not.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.words import distinct_texts

_Cosines = NDArray[np.floating[Any]]

_POINTS = 8
"""Points of a trajectory that are compared."""
_REFERENCES = 1500
"""Episodes that every episode is compared with at most."""
_BLOCK = 2048
_WORDS = 128
"""Dimensions to which words are hashed."""
_FEWEST = 30
"""Fewer episodes do not tell what texts go with which motion."""
_CLOSE, _PREDICTABLE = 0.2, 0.85
"""Texts follow from motion if for this share of the episodes no other text is better by more than this."""
_LEAST = 0.5
"""By how much another text must be better."""
_ALIKE = 0.5
"""Similarity of texts from which on they may name the same task."""
_SEVERAL = 0.25
"""Share of episodes with several texts from which on that is how the data set is."""
_OTHERS, _CANDIDATES = 4, 1000
"""Other episodes with a text that are needed to know its motion; and texts that are tried."""
_FARTHER = 1.4
"""How much farther the nearest trajectories with the own text must be than those with the better one."""
_STOP = frozenset(
    ("a", "an", "the", "to", "of", "in", "on", "at", "it", "its", "and", "with", "for", "is", "that", "this")
)
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class ChangingText:
    """Criterion `changing_text`."""

    criteria = ("changing_text",)
    columns = frozenset({"instruction", "instructions"})

    def fit(self, sample: EpisodeBatch) -> None:
        """Nothing."""

    def part(self, batch: EpisodeBatch, fitted: None) -> Part:
        """Different texts of each episode that share no word; paraphrases and spellings of a task do."""
        texts = np.ones(len(batch))
        for episode, said in enumerate(batch.instructions):
            if len(said) > 1:
                words = [_said(text) for text in said]
                texts[episode] = 1 + sum(not a & b for a, b in itertools.pairwise(words))
        return {
            "texts": texts,
            "several": np.array([len(said) > 1 for said in batch.instructions] or np.ones(len(batch)), bool),
        }

    def judge(self, part: Part, fitted: None) -> Mapping[str, Judgement]:
        """How many tasks the texts of an episode name; nothing where many episodes have several texts."""
        nothing = np.full(len(part["texts"]), -1)
        if part["several"].mean() > _SEVERAL:
            return {}
        return {"changing_text": Judgement(value=part["texts"], limit=1, step=nothing, what=nothing, unit="texts")}


@dataclass(frozen=True)
class WrongText:
    """Criterion `wrong_text`."""

    criteria = ("wrong_text",)
    columns = frozenset({"proprio", "instruction"})

    def fit(self, sample: EpisodeBatch) -> NDArray[np.float32]:
        """Range of each proprio value."""
        finite = np.where(np.isfinite(sample.proprio), sample.proprio, 0)
        return np.asarray(np.ptp(finite, axis=0) if len(finite) else np.zeros(finite.shape[1]), np.float32)

    def part(self, batch: EpisodeBatch, fitted: NDArray[np.float32]) -> Part:
        """The trajectories at a few points, and the texts."""
        text = np.empty(len(batch), object)
        text[:] = list(batch.instruction)
        return {"path": _describe(batch, fitted), "text": text}

    def judge(self, part: Part, fitted: NDArray[np.float32]) -> Mapping[str, Judgement]:
        """How much better another text explains an episode's neighbours than its own, as a difference of cosines."""
        texts, place = distinct_texts(part["text"].tolist())
        count = len(place)
        known = np.flatnonzero(place != (texts.index("") if "" in texts else -1))
        if len(known) < _FEWEST or len(texts) < 2:
            return {}
        path = _weighted(part["path"], known)
        chosen = known[np.linspace(0, len(known) - 1, min(len(known), _REFERENCES)).round().astype(int)]
        words = text_vectors(texts, np.bincount(place, minlength=len(texts)))
        usual = _Neighbourhoods(words, place, chosen, path)
        own, best, chance = (np.full(count, np.nan) for _ in range(3))
        what = np.full(count, -1)
        for start in range(0, len(known), _BLOCK):
            rows = known[start : start + _BLOCK]
            own[rows], best[rows], chance[rows], what[rows] = usual.compare(rows)
        value = best - own
        measured = np.isfinite(value)
        accuracy = float((value[measured] < _CLOSE).mean()) if measured.sum() >= _FEWEST else 0.0
        if accuracy < _PREDICTABLE or float(np.mean((own - chance)[measured])) < _CLOSE:
            return {}
        limit = min(robust_limit(value, least=_LEAST, times=6), 0.8)
        listed: dict[str, int] = {}
        for row in np.flatnonzero(value > limit).tolist():
            if usual.is_elsewhere(row, what[row]):
                said = f"moves like {texts[what[row]][:80]!r} (texts follow from motion in {accuracy:.0%} of episodes)"
                what[row] = listed.setdefault(said, len(listed))
            else:
                value[row], what[row] = limit, -1
        what[~(value > limit)] = -1
        judged = Judgement(value=value, limit=limit, step=np.full(count, -1), what=what, words=tuple(listed))
        return {"wrong_text": judged}


class _Neighbourhoods:
    """Which texts the trajectories nearest to those with a certain text have.

    Attributes:
        usual: float32 (U, k), the mean texts near trajectories with each text or a similar one, as unit vectors.
    """

    def __init__(
        self, words: NDArray[np.float32], place: NDArray[np.int64], chosen: NDArray[np.int64], path: NDArray[np.float32]
    ) -> None:
        self._place, self._chosen, self._path, self._words = place, chosen, path, words
        self._count = 5 if len(chosen) < 100 else 8
        self._texts = np.unique(place[chosen])
        # a text by its words and by itself, so that neither paraphrases nor texts with common words are the same
        itself = text_vectors([f"{number}" for number in range(len(words))], np.ones(len(words), np.int64))
        self._vectors = np.concatenate([words, itself], axis=1) / np.float32(2**0.5)
        near = np.concatenate([self._near(chosen[i : i + _BLOCK]) for i in range(0, len(chosen), _BLOCK)])
        sums = np.zeros((len(words), near.shape[1]), np.float32)
        np.add.at(sums, place[chosen], near)
        self._counts = np.zeros(len(words), np.int64)
        self.usual = np.zeros_like(sums)
        own = np.bincount(place[chosen], minlength=len(words))
        for start in range(0, len(words), _BLOCK):
            alike = words[start : start + _BLOCK] @ words[self._texts].T >= _ALIKE
            self.usual[start : start + _BLOCK] = alike @ sums[self._texts]
            self._counts[start : start + _BLOCK] = alike @ own[self._texts]
        common = np.argsort(-own, kind="stable")[:_CANDIDATES]
        self._candidates = common[self._counts[common] >= _OTHERS]
        self._shares = own[self._candidates] / max(own[self._candidates].sum(), 1)

    def _near(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The mean text of the nearest trajectories of each row."""
        nearest = np.argpartition(_distances(self._path, rows, self._chosen), self._count, axis=1)[:, : self._count]
        return np.asarray(self._vectors[self._place[self._chosen[nearest]]].mean(axis=1), np.float32)

    def compare(self, rows: NDArray[np.int64]) -> tuple[_Cosines, _Cosines, _Cosines, NDArray[np.int64]]:
        """Likeness of what is near each row to what is near its own text, the best one, and any; and the best one."""
        near = self._near(rows)
        text = self._place[rows]
        itself = np.isin(rows, self._chosen)[:, None]
        own = _cosine(near, self.usual[text] - near * itself)
        own[self._counts[text] - itself[:, 0] < _OTHERS] = np.nan
        if not len(self._candidates):
            return own, own, own, text
        unit = self.usual[self._candidates]
        unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-9)
        likeness = near @ unit.T / np.maximum(np.linalg.norm(near, axis=1, keepdims=True), 1e-9)
        best = likeness.argmax(axis=1)
        return own, likeness[np.arange(len(rows)), best], likeness @ self._shares, self._candidates[best]

    def is_elsewhere(self, row: int, better: int) -> bool:
        """Whether the trajectories with the row's own text are much farther than those with the better one."""
        distance = np.sqrt(_distances(self._path, np.array([row]), self._chosen)[0])
        texts = self._words[self._place[self._chosen]]
        own = np.sort(distance[(texts @ self._words[self._place[row]] >= _ALIKE) & np.isfinite(distance)])
        fitting = np.sort(distance[texts @ self._words[better] >= _ALIKE])
        few = min(len(own), len(fitting), 3)
        return few > 1 and bool(np.median(own[:few] / np.maximum(fitting[:few], 1e-9)) > _FARTHER)


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(np.einsum("ij,ij->i", a, b) / np.maximum(norm, 1e-9), np.float32)


def text_vectors(texts: list[str], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit vectors whose products say how many words texts share, weighted by their rarity: float32 (n, 128).

    Args:
        texts: n different texts.
        counts: int64 (n,), episodes of each.
    """
    words = [_said(text) or {text.casefold()} for text in texts]
    episodes: dict[str, int] = {}
    for said, count in zip(words, counts.tolist(), strict=True):
        for word in said:
            episodes[word] = episodes.get(word, 0) + count
    total = int(counts.sum())
    vectors = np.zeros((len(texts), _WORDS), np.float32)
    for row, said in enumerate(words):
        for word in said:
            bits = int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
            weight = np.log(total / episodes[word]) + 0.05
            for _ in range(4):  # a few signed places each, so that two words hardly ever look the same
                vectors[row, bits % _WORDS] += weight * (1 if bits & 1 << 12 else -1)
                bits >>= 13
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def _said(text: str) -> set[str]:
    """The stems of a text's words that name something."""
    return {_stem(word) for word in _WORD.findall(text.casefold())} - _STOP


def _stem(word: str) -> str:
    """Without the endings of English plurals and participles."""
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    return word


def _describe(batch: EpisodeBatch, ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (n, 8 * 7 + 2 P + 1): accumulated pose actions and gripper at points, first and last state, length."""
    first, last = batch.starts[:-1], batch.starts[1:] - 1
    action = np.where(np.isfinite(batch.action), batch.action, 0)
    total = np.cumsum(action[:, :6], axis=0, dtype=np.float64)
    share = np.arange(1, _POINTS + 1) / _POINTS
    points = first[:, None] + np.ceil(batch.lengths[:, None] * share).astype(np.int64) - 1
    path = total[points] - (total[first] - action[first, :6])[:, None]
    proprio = batch.proprio if batch.proprio.shape[1] == len(ranges) else np.zeros((len(action), len(ranges)))
    scaled = np.where(np.isfinite(proprio), proprio, 0) / np.where(ranges > 1e-9, ranges, np.inf)
    parts = (
        path.reshape(len(batch), -1), action[points, 6], scaled[first], scaled[last], np.log(batch.lengths)[:, None],
    )  # fmt: skip
    return np.concatenate(parts, axis=1).astype(np.float32)


def _weighted(path: NDArray[np.float32], known: NDArray[np.int64]) -> NDArray[np.float32]:
    """Positions, angles, gripper, states and length with the same weight, whatever their units."""
    path = np.asarray(path - np.median(path[known], axis=0), np.float32)
    width = (path.shape[1] - _POINTS * 7 - 1) // 2
    pose = np.arange(_POINTS * 6).reshape(_POINTS, 6)
    states = _POINTS * 7 + np.arange(2 * width)
    groups = [
        pose[:, :3].ravel(),
        pose[:, 3:].ravel(),
        _POINTS * 6 + np.arange(_POINTS),
        states[:width],
        states[width:],
    ]
    for columns, weight in zip((*groups, np.array([path.shape[1] - 1])), (1, 0.5, 1, 0.7, 0.7, 0.3), strict=True):
        if len(columns):
            spread = np.sqrt(np.mean(np.minimum(path[known][:, columns] ** 2, 1e12)) * len(columns))
            path[:, columns] *= weight / spread if spread > 1e-9 else 0
    return np.asarray(np.clip(path, -1e3, 1e3), np.float32)


def _distances(path: NDArray[np.float32], rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float32]:
    """Squared distances (rows, others), infinite to itself."""
    square = (path**2).sum(axis=1)
    found = square[rows, None] + square[others] - 2 * path[rows] @ path[others].T
    found[rows[:, None] == others] = np.inf
    return np.asarray(np.maximum(found, 0))
