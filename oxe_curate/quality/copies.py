"""Near copies: episodes whose numbers agree far better than those of neighbours in their data set do.

An episode is reduced to its states and actions at four instants, each followed by a few more steps, so that a copy that
lost its first steps still has the same numbers a little later. The instants depend on the length only by a few classes,
each episode being in its own and the next shorter one, so that lost last steps do not matter. How near is too near
depends on the data set: scripted experts repeat themselves. The distances between neighbours give its scale and its
dimension (E. Facco et al. 2017, "Estimating the intrinsic dimension of datasets by a minimal neighborhood
information"), and with them how often two episodes are this close by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.tasks import episodes_by_task, task_of

_INSTANTS = (0.1, 0.35, 0.6, 0.85)
_SHIFTS = 5
"""Steps that a copy may have lost at its start, plus 1."""
_NUMBERS = 3
"""Random projections of the state and action of a step."""
_CHANCE, _LIMIT = 2000.0, 400.0
"""Episodes are compared further, and are copies, if by chance one pair in so many is this close."""
_QUERIES, _PEERS = 256, 2048
"""Episodes from which the distances between neighbours are learned, and those among which the neighbours are sought."""
_FEWEST, _FEW = 8, 5
_CERTAIN = 1e9
_EQUAL = 1e-3
"""Episodes this close are copies, whose distance says nothing of neighbours."""
_SAME = 1e-5
"""Episodes this close have the same numbers."""
_PAIRS = 1 << 20
_MOST = 8192
"""Episodes that are compared with each other."""
_AXES, _CELLS = 5, 1 << 12


@dataclass(frozen=True, eq=False)
class Prints:
    """How episodes are reduced.

    Attributes:
        lengths: of the shortest episodes of each class, ascending.
        middle, scale: float32 (rows,), of actions and proprio; scale 0 for rows that are not used.
        project: float32 (instants, numbers, rows).
    """

    lengths: NDArray[np.int64]
    middle: NDArray[np.float32]
    scale: NDArray[np.float32]
    project: NDArray[np.float32]


@dataclass(frozen=True)
class NearCopies:
    """`near_duplicate`. Looked-at frames would be further numbers of the prints, or a last test in `_isolation`."""

    criteria: tuple[str, ...] = ("near_duplicate",)
    columns: frozenset[str] = frozenset({"proprio", "instruction"})

    def fit(self, sample: EpisodeBatch) -> Prints:
        """Lengths and scales."""
        rows = np.concatenate([sample.actions, sample.states])
        low, middle, high = np.quantile(rows, (0.05, 0.5, 0.95), axis=1)
        scale = np.where(high > low, 1 / np.maximum(high - low, 1e-30), 0)
        shortest = np.quantile(sample.lengths, (0.03, 0.35, 0.65)).astype(np.int64)
        shortest = np.append(shortest, shortest[0] - 2 * _SHIFTS)  # for copies of the shortest
        rng = np.random.default_rng(0)
        project = rng.normal(0, 1, (len(_INSTANTS), _NUMBERS, len(rows))) / np.sqrt(max(int((scale > 0).sum()), 1))
        return Prints(
            np.unique(np.maximum(shortest, _SHIFTS - 1)), middle.astype(np.float32), scale.astype(np.float32),
            project.astype(np.float32),
        )  # fmt: skip

    def part(self, batch: EpisodeBatch, fitted: Prints) -> Part:
        """The prints of each episode in its class of length and the next shorter one: float32, 60 numbers each."""
        own = np.searchsorted(fitted.lengths, batch.lengths, side="right") - 1
        # the first few steps of a long episode do not tell it from others
        below = fitted.lengths[np.maximum(own - 1, 0)]
        short = (own > 0) & (2 * below + 2 * _SHIFTS >= batch.lengths)
        prints = [
            _prints(batch, np.maximum(own - back, 0), known, fitted) for back, known in ((0, own >= 0), (1, short))
        ]
        task = np.array([task_of(text) for text in batch.instruction], np.int64)
        return {"class": own, "own": prints[0], "shorter": prints[1], "task": task}

    def judge(self, part: Part, fitted: Prints) -> Mapping[str, Judgement]:
        """Compare every episode with the earlier ones."""
        count = len(part["class"])
        value = np.zeros(count)
        original = np.full(count, -1, np.int64)
        for number in range(len(fitted.lengths)):
            own, longer = (np.flatnonzero(part["class"] == number + more) for more in (0, 1))
            episodes = np.concatenate([own, longer])
            prints = np.concatenate([part["own"][own], part["shorter"][longer]])
            for later, earlier, chance in _close_in_blocks(prints, part["task"][episodes]):
                a, b = episodes[later], episodes[earlier]
                first, second = np.minimum(a, b), np.maximum(a, b)
                order = np.argsort(-chance, kind="stable")
                for i, j, times in zip(
                    first[order].tolist(), second[order].tolist(), chance[order].tolist(), strict=True
                ):
                    if times > value[j]:
                        value[j], original[j] = times, i
        # an episode that is the copy of a copy is a copy of the first
        for j in np.flatnonzero(original >= 0).tolist():
            seen = original[j]
            while original[seen] >= 0 and value[seen] > _LIMIT:
                seen = original[seen]
            original[j] = seen
        limit = _LIMIT if count >= _FEWEST else np.inf
        copy_of = np.where(value > limit, original, -1)
        none = np.full(count, -1, np.int64)
        found = Judgement(
            value=value, limit=limit, step=none, what=np.where(copy_of >= 0, 0, -1),
            words=("the numbers nearly agree",), copy_of=copy_of, unit="to one against chance",
        )  # fmt: skip
        return {"near_duplicate": found}


def _prints(
    batch: EpisodeBatch, number: NDArray[np.int64], known: NDArray[np.bool_], fitted: Prints
) -> NDArray[np.float32]:
    """float32 (n, shifts, instants * numbers); NaN after an episode's end."""
    rows = np.concatenate([batch.actions, batch.states])
    length = fitted.lengths[number]
    out = np.full((len(batch), _SHIFTS, len(_INSTANTS), _NUMBERS), np.nan, np.float32)
    for place, share in enumerate(_INSTANTS):
        first = np.floor(share * (length - 1)).astype(np.int64)
        for shift in range(_SHIFTS):
            inside = np.flatnonzero(known & (first + shift < batch.lengths))
            at = batch.starts[inside] + first[inside] + shift
            values = np.clip((rows[:, at] - fitted.middle[:, None]) * fitted.scale[:, None], -10, 10)
            out[inside, shift, place] = (fitted.project[place] @ values).T
    prints = out.reshape(len(batch), _SHIFTS, -1)
    # episodes that do not move are all alike
    with np.errstate(invalid="ignore"):
        prints[(prints[:, 0] == prints[:, 1]).all(axis=1)] = np.nan
    return prints


def _close_in_blocks(
    prints: NDArray[np.float32], task: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
    """`_close`; of many episodes, only those of the same or few tasks are compared, so that the time is linear."""
    order = np.arange(len(task)) if len(task) <= _MOST else np.argsort(task, kind="stable")
    for block in np.array_split(order, max(1, -(-len(task) // _MOST))):
        for a, b, chance in _close(prints[block], task[block]):
            yield block[a], block[b], chance


def _close(
    prints: NDArray[np.float32], task: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
    """Pairs of episodes that are closer than neighbours are, and how unlikely that is: one in so many."""
    if len(prints) < 2:
        return
    everyone = _scale_of(prints)
    if everyone is None:
        return
    scale, dimension = np.full(len(prints), everyone[0]), np.full(len(prints), everyone[1])
    for part in episodes_by_task(task):
        own = _scale_of(prints[part]) if len(part) >= 2 * _FEWEST else None
        if own is not None:
            scale[part], dimension[part] = own
    near = scale * _CHANCE ** (-1 / dimension)
    for a, b, distance in _pairs_within(prints, near):
        chance = np.minimum(np.minimum(*(_isolation(prints, task, one, distance) for one in (a, b))), _CERTAIN)
        found = chance > _LIMIT
        yield a[found], b[found], chance[found]


def _isolation(
    prints: NDArray[np.float32], task: NDArray[np.int64], episodes: NDArray[np.int64], distance: Floats
) -> Floats:
    """How unlikely a neighbour at a distance is, one in so many, given the neighbours that are farther away.

    Those within three times the distance may be further copies and do not count. The dimension is estimated from the
    next few of the same task, since experts with and without noise may be in one data set. Equal prints are copies for
    certain.
    """
    out = np.full(len(episodes), np.inf)
    order = np.argsort(task, kind="stable")
    first, last = (np.searchsorted(task[order], task[episodes], side) for side in ("left", "right"))
    for row in np.flatnonzero(distance > _SAME).tolist():
        here, near = episodes[row], distance[row]
        peers = order[first[row] : last[row]]
        alone = len(peers) <= _FEW  # then the nearest others may be of the same task, and all farther ones of others
        peers = order if alone else peers
        share = max(1, len(peers) // _PEERS)
        apart = np.sqrt(((prints[peers[::share], 0] - prints[here, 0]) ** 2).sum(axis=1)).astype(np.float64)
        apart = np.sort(apart[apart > 3 * near])[: _FEWEST + 1]
        if len(apart) < _FEW or apart[0] < (7 if alone else 4) * near:
            out[row] = 0
            continue
        dimension = 1 / max(float(np.mean(np.log(apart[-1] / apart[:-1]))), 0.1)
        sure = 0.75 * min(len(apart) / _FEWEST, 1)
        out[row] = min(apart[0] / near, 1e3) ** min(sure * dimension, 6.0) / share
    return out


def _scale_of(prints: NDArray[np.float32]) -> tuple[float, float] | None:
    """The usual distance between neighbours, and the dimension in which they vary; None if there are too few."""
    known = prints[np.isfinite(prints[:, 0]).all(axis=1)]
    if len(known) < _FEWEST:
        return None
    peers = known[np.linspace(0, len(known) - 1, min(len(known), _PEERS)).astype(int), 0].astype(np.float64)
    chosen = np.unique(np.linspace(0, len(peers) - 1, min(len(peers), _QUERIES)).astype(int))
    square = (peers**2).sum(axis=1)
    apart = square[chosen, None] + square[None] - 2 * peers[chosen] @ peers.T
    apart[np.arange(len(chosen)), chosen] = np.inf
    apart[apart < _EQUAL**2] = np.inf
    nearest = np.sqrt(np.maximum(np.partition(apart, 1, axis=1)[:, :2], 0))
    nearest = nearest[np.isfinite(nearest).all(axis=1)]
    if len(nearest) < _FEWEST:
        return None
    ratio = float(np.median(np.log(nearest[:, 1] / nearest[:, 0])))
    # copies and too few episodes make the dimension uncertain; low ones ask for more agreement
    dimension = float(np.clip(np.log(2) / max(ratio, 1e-3), 1.0, 6.0))
    rest = len(known) / len(peers)
    return float(np.median(nearest[:, 0])) * rest ** (-1 / dimension), dimension


def _pairs_within(
    prints: NDArray[np.float32], near: Floats
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
    """Episodes a whose print agrees with that of b, a few steps later, to less than `near`; blocks of bounded size.

    Both are sorted into cells of that size along the projections that vary most; only the cells around each
    episode's own are compared.
    """
    known = np.asarray(np.isfinite(prints).all(axis=2))
    target, shift = np.nonzero(known)
    points = prints[target, shift]
    query = np.flatnonzero(known[:, 0])
    size = float(near[query].max(initial=0))
    if size <= 0 or not len(query):
        return
    axes = np.argsort(-points.std(axis=0))[:_AXES]
    low, high = np.quantile(points[:, axes], (0.001, 0.999), axis=0)
    size = max(size, float((high - low).max()) / (_CELLS - 4))

    def cells(of: NDArray[np.float32]) -> NDArray[np.int64]:
        number = np.floor((of[:, axes] - low) / size)
        return np.asarray(np.clip(number, -1, _CELLS - 4) + 2, np.int64)

    weight = _CELLS ** np.arange(_AXES - 1, -1, -1, dtype=np.int64)
    key = cells(points) @ weight
    order = np.argsort(key, kind="stable")
    key, target, shift = key[order], target[order], shift[order]
    mine = cells(prints[query, 0]) @ weight
    nearby = np.argsort(mine, kind="stable")
    query, mine = query[nearby], mine[nearby]
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=_AXES - 1)), np.int64) @ weight[:-1]
    for around in np.array_split(steps, max(1, len(steps) * len(mine) // _PAIRS)):
        # the cells before and after along the last axis have adjoining keys
        at = mine + around[:, None]
        start, stop = np.searchsorted(key, at - 1, "left"), np.searchsorted(key, at + 1, "right")
        row, some = np.nonzero(stop > start)
        yield from _compared(prints, near, query[some], target, shift, start[row, some], stop[row, some])


def _compared(
    prints: NDArray[np.float32], near: Floats, query: NDArray[np.int64], target: NDArray[np.int64],
    shift: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:  # fmt: skip
    """Compare each query with the candidates [start, stop)."""
    counts = stop - start
    total = np.cumsum(counts)
    begin = 0
    while begin < len(query):
        done = total[begin] - counts[begin]
        end = max(begin + 1, int(np.searchsorted(total, done + _PAIRS, side="right")))
        part = counts[begin:end]
        a = np.repeat(query[begin:end], part)
        at = np.arange(len(a)) - np.repeat(np.cumsum(part) - part, part) + np.repeat(start[begin:end], part)
        b, later = target[at], shift[at]
        other = a != b
        a, b, later = a[other], b[other], later[other]
        distance = np.sqrt(((prints[a, 0] - prints[b, later]) ** 2).sum(axis=1, dtype=np.float64))
        found = distance < np.minimum(near[a], near[b])
        yield a[found], b[found], distance[found]
        begin = end
