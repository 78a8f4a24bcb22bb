"""Propose weights for the data sets of an index, with the reason for each. Nothing is changed."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from oxe_curate.errors import ConfigError
from oxe_curate.index.store import Index
from oxe_curate.mixture import convert, diversity, shares
from oxe_curate.mixture.diff import Difference, diff
from oxe_curate.mixture.diversity import MAX_WEIGHT
from oxe_curate.mixture.members import Member, members
from oxe_curate.mixture.spec import Mixture, MixtureEntry
from oxe_curate.mixture.survey import SAMPLE, survey

Method = Literal["diversity", "proxy"]
_RUNS = 2
"""Runs of the proxy from different seeds; their difference shows how reliable a share is."""


@dataclass(frozen=True)
class ProposedWeight:
    """A data set's proposed weight.

    Attributes:
        name: as in the mixture.
        weight: None if the data set should be removed.
        current: its weight in the given mixture; None if none was given.
        reason: one sentence with the numbers it is based on.
        numbers: those numbers, by name.
    """

    name: str
    weight: float | None
    current: float | None
    reason: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class Proposal:
    """A proposed mixture, with reasons.

    Attributes:
        mixture: with the data sets that are kept.
        rows: one per data set that was considered, in order.
        absent: entries of the current mixture that are not in the index; their weights are kept.
        change: compared with the current mixture, or with every data set at weight 1.
    """

    method: Method
    mixture: Mixture
    rows: tuple[ProposedWeight, ...]
    absent: tuple[str, ...]
    change: Difference

    def to_text(self) -> str:
        """The mixture as YAML, with the reasons above its entries."""
        gone = [row.reason for row in self.rows if row.weight is None]
        header = "\n".join([f"Weights proposed by --method {self.method}.", *map(_wrapped, gone)])
        return convert.to_text(self.mixture, {row.name: _wrapped(row.reason) for row in self.rows}, header)

    def to_json(self) -> dict[str, Any]:
        """The proposal as JSON data."""
        return {
            "method": self.method, "rows": [asdict(row) for row in self.rows], "absent": list(self.absent),
            "change": asdict(self.change), "mixture": convert.to_text(self.mixture),
        }  # fmt: skip


def propose(
    index: Index,
    current: Mixture | None = None,
    method: Method = "diversity",
    *,
    seed: int = 0,
    sample: int = SAMPLE,
    cards: Path | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Proposal:
    """Propose weights.

    Args:
        index: the opened index; its source must be readable.
        current: the mixture whose weights to replace; its other keys are kept. None: all data sets of the index.
        method: "diversity" or "proxy"; see docs/decisions/weights.md.
        seed: of the proxy's models and batches; "diversity" is not random.
        sample: episodes of each data set to read.
        cards: a folder of the user's own cards.
        progress: called with a data set's name before it is read.

    Raises:
        ConfigError: the index has none of the data sets.
    """
    base = current or _everything(index)
    found = members(base, index, cards)
    held = [m for m in found if m.dataset is not None and m.episodes]
    if not held:
        raise ConfigError(f"{index.folder}: no data set of {base.name} is in the index. Run filter on them first.")
    compute = _by_diversity if method == "diversity" else _by_proxy
    rows = compute(index, base, held, current is not None, seed, sample, progress)
    by_name = {row.name: row.weight for row in rows}
    absent = tuple(m.entry.name for m in found if m.dataset is None)
    entries = [
        replace(entry, weight=by_name.get(entry.name) or entry.weight)
        for entry in base.datasets
        if entry.name in absent or by_name.get(entry.name) is not None
    ]
    mixture = replace(base, datasets=tuple(entries))
    change = diff((base, found), (mixture, members(mixture, index, cards)))
    change = replace(change, before=base.name if current else "every weight 1", after="proposed")
    return Proposal(method, mixture, tuple(rows), absent, change)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 112, break_long_words=False))


def _everything(index: Index) -> Mixture:
    entries = [
        MixtureEntry(name=name, weight=1.0, splits=_splits(held.split_names))
        for name, held in index.datasets.items()
        if held.summary.kept
    ]
    if not entries:
        raise ConfigError(f"{index.folder}: the index keeps no episode; see `oxe-curate report` for the reasons")
    return Mixture(name="proposed", datasets=tuple(entries))


def _splits(names: tuple[str, ...]) -> tuple[str, ...]:
    return ("train",) if "train" in names else names


def _by_diversity(
    index: Index,
    base: Mixture,
    held: Sequence[Member],
    has_current: bool,
    seed: int,
    sample: int,
    progress: Callable[[str], None],
) -> list[ProposedWeight]:
    surveys = {}
    for member in held:
        progress(member.entry.name)
        assert member.dataset is not None
        surveys[member.entry.name] = survey(index, member.dataset, member.entry.splits, sample)
    current = sum(
        m.entry.weight * m.steps for m in held if m.steps
    )  # entries that are not in the index keep their share
    result = diversity.weights(surveys, current if has_current else None)
    return [
        ProposedWeight(
            name=member.entry.name,
            weight=(found := result[member.entry.name]).weight,
            current=member.entry.weight if has_current else None,
            reason=found.reason,
            numbers={**asdict(surveys[member.entry.name]), "variety": found.variety, "quantity": found.quantity},
        )
        for member in held
    ]


def _by_proxy(
    index: Index,
    base: Mixture,
    held: Sequence[Member],
    has_current: bool,
    seed: int,
    sample: int,
    progress: Callable[[str], None],
) -> list[ProposedWeight]:
    from oxe_curate.mixture import proxy
    from oxe_curate.mixture.proxy_data import CLASSES, read_examples

    examples = []
    for member in held:
        progress(member.entry.name)
        assert member.dataset is not None
        examples.append(read_examples(index, member.dataset, member.entry.splits, sample))
    steps = np.array([m.steps for m in held], np.float64)
    runs = []
    for run in range(_RUNS):
        progress(f"two small models, run {run + 1} of {_RUNS}")
        runs.append(proxy.optimise(examples, steps.tolist(), _RUNS * seed + run))
    share, reference, excess = (
        np.mean([getattr(run, name) for run in runs], axis=0) for name in ("shares", "reference", "excess")
    )
    one_pass = sum(m.entry.weight * m.steps for m in held if m.steps) if has_current else float(steps.sum())
    weights = shares.weights_for_shares(share, steps, one_pass)
    by_size, mean = steps / steps.sum(), float(share @ excess)
    rows = []
    for i, member in enumerate(held):
        each = " and ".join(f"{100 * run.shares[i]:.3g}" for run in runs)
        reason = (
            f"{member.entry.name} goes from {100 * by_size[i]:.3g} % of the samples by size to {100 * share[i]:.3g} % "
            f"({each} in {_RUNS} runs): on held-out episodes the reference model "
            f"has a loss of {reference[i]:.3g} nats per action dimension (guessing: {np.log(CLASSES):.3g}), and the "
            f"second model was {excess[i]:.2g} behind it during training ({mean:.2g} on average)"
            f"{f', limited to {MAX_WEIGHT:g} copies' if weights[i] > MAX_WEIGHT else ''}."
        )
        rows.append(
            ProposedWeight(
                name=member.entry.name,
                weight=float(f"{min(weights[i], MAX_WEIGHT):.4g}"),
                current=member.entry.weight if has_current else None,
                reason=reason,
                numbers={
                    "examples": len(examples[i]), "share_by_size": float(by_size[i]), "share": float(share[i]),
                    "reference_loss": float(reference[i]), "excess_loss": float(excess[i]),
                },
            )
        )  # fmt: skip
    return rows
