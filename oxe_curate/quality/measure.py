"""A measure: what a criterion looks at, from the facts of a data set to a limit that its episodes should not exceed.

A data set is judged in three steps, so that its size does not matter and its files can be read one at a time:
`fit` learns what is normal from a sample, `part` reduces each batch to a few numbers per episode, and `judge` compares
the numbers of all episodes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oxe_curate.quality.episodes import EpisodeBatch

SAMPLE = 512
"""Episodes that `fit` sees at most, spread over the data set."""

Part = Mapping[str, NDArray[Any]]
"""Numbers of some episodes, first axis episodes; `judge` gets those of all batches, concatenated."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Judgement:
    """What one criterion found in all episodes of a data set.

    Attributes:
        value: float (n,): the larger, the worse; NaN where it cannot be measured.
        limit: an episode is marked or dropped if its value is larger. Infinite if the data set cannot be judged.
        step: int (n,): the step at which the value was found, -1 if it is not a single one.
        what: int (n,): the number of the words for each episode in `words`, -1 for none.
        words: such as the axis, or the defect.
        copy_of: int (n,), for copies: the position of the episode that each one resembles, -1 for none.
        unit: of value and limit, for messages: "of the usual", "steps", "" for a plain number.
    """

    value: NDArray[np.floating[Any]]
    limit: float
    step: NDArray[np.integer[Any]]
    what: NDArray[np.integer[Any]]
    words: Sequence[str] = ()
    copy_of: NDArray[np.int64] | None = None
    unit: str = ""

    @property
    def exceeds(self) -> NDArray[np.bool_]:
        """bool (n,): the episodes to mark or drop."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.value > self.limit)

    def detail(self, episode: int) -> str:
        """Words for one episode, "" if there are none."""
        number = int(self.what[episode])
        return self.words[number] if 0 <= number < len(self.words) else ""


class Measure(Protocol):
    """Decides one or more criteria of a data set.

    Attributes:
        criteria: names of the criteria, as in a criteria file.
        columns: what `fit` and `part` use of a batch besides action and starts: "proprio", "instruction", "success",
            "frame_bytes", "looks". Others may be empty.
    """

    @property
    def criteria(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def columns(self) -> frozenset[str]: ...  # noqa: D102

    def fit(self, sample: EpisodeBatch) -> Any:
        """Facts of the data set that `part` and `judge` need; at most `SAMPLE` episodes are given."""

    def part(self, batch: EpisodeBatch, fitted: Any) -> Part:
        """Numbers of each episode of a batch."""

    def judge(self, part: Part, fitted: Any) -> Mapping[str, Judgement]:
        """Criterion -> judgement of all episodes of the data set, in order."""


def judge_batches(
    measures: Iterable[Measure],
    sample: EpisodeBatch,
    batches: Callable[[], Iterable[EpisodeBatch]],
    criteria: Collection[str],
    limits: Mapping[str, float] | None = None,
) -> dict[str, Judgement]:
    """Judge all episodes of a data set.

    Args:
        measures: all that there are.
        sample: some episodes.
        batches: all episodes, in order; called once.
        criteria: those to decide.
        limits: criterion -> limit that replaces the learned one.

    Returns:
        Criterion -> judgement; a criterion that cannot be decided (no proprio, no flag) is missing.
    """
    chosen = [measure for measure in measures if set(measure.criteria) & set(criteria)]
    fitted = [measure.fit(sample) for measure in chosen]

    def reduce(batch: EpisodeBatch) -> list[Part]:
        return [measure.part(batch, facts) for measure, facts in zip(chosen, fitted, strict=True)]

    parts = list(_in_threads(reduce, batches()))
    judged: dict[str, Judgement] = {}
    for number, (measure, facts) in enumerate(zip(chosen, fitted, strict=True)):
        if not parts:
            continue
        whole = {name: np.concatenate([part[number][name] for part in parts]) for name in parts[0][number]}
        for criterion, judgement in measure.judge(whole, facts).items():
            if criterion in criteria:
                limit = (limits or {}).get(criterion)
                judged[criterion] = judgement if limit is None else replace(judgement, limit=limit)
    return judged


def _in_threads(reduce: Callable[[EpisodeBatch], list[Part]], batches: Iterable[EpisodeBatch]) -> Iterator[list[Part]]:
    """`reduce` of each batch, in order; a few at a time, since numpy releases the interpreter lock."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(cores, 8)
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append(pool.submit(reduce, batch))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
