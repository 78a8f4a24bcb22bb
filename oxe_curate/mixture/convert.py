"""Conversion between weights, shares and epochs, and between a mixture and a file of "name: number" lines.

bridge_orig: 0.7                 # shares; only their ratios matter
fractal20220817_data: 0.3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np

from oxe_curate import config
from oxe_curate.arrays import Floats
from oxe_curate.errors import ConfigError, cut, quoted
from oxe_curate.mixture import shares
from oxe_curate.mixture.members import Member
from oxe_curate.mixture.spec import Mixture, MixtureEntry

WeightUnit = Literal["weights", "shares", "epochs"]


def quantities(
    mixture: Mixture, members: Sequence[Member], unit: WeightUnit, samples: int | None = None
) -> dict[str, float]:
    """Name -> weight, share, or epochs in `samples` samples (None: in one pass of the mixture).

    Raises:
        ConfigError: a size is unknown.
    """
    weights = np.array([m.entry.weight for m in members])
    if unit == "weights":
        values = weights
    else:
        steps = _training_steps(mixture, members)
        values = (
            shares.shares(weights, steps)
            if unit == "shares"
            else shares.epochs(weights, steps, samples or float(weights @ steps))
        )
    return {m.entry.name: float(value) for m, value in zip(members, values, strict=True)}


def with_quantities(
    mixture: Mixture,
    members: Sequence[Member],
    targets: Mapping[str, float],
    unit: WeightUnit,
    samples: int | None = None,
) -> Mixture:
    """The mixture with weights that give the target shares or epochs; exact, up to rounding in float64.

    Args:
        mixture: its entries are the data sets.
        members: of the mixture, see `members.members`.
        targets: entry name -> number, for every entry.
        unit: of the numbers.
        samples: size of one pass of the result, without the validation share. None: for shares, the largest weight
            becomes 1; epochs become weights, so that one pass is the whole training.

    Raises:
        ConfigError: an entry without a number, a number without an entry, or a number or size that is not above zero.
    """
    names = [m.entry.name for m in members]
    if odd := set(targets) ^ set(names):
        raise ConfigError(f"{sorted(odd)[0]!r} is not in both the mixture and the list of {unit}")
    values = [targets[name] for name in names]
    if unit == "weights":
        weights = np.asarray(values, np.float64)
    else:
        steps = _training_steps(mixture, members)
        solve = shares.weights_for_shares if unit == "shares" else shares.weights_for_epochs
        weights = solve(values, steps, samples)
    return with_weights(mixture, weights.tolist())


def with_weights(mixture: Mixture, weights: Sequence[float]) -> Mixture:
    """The mixture with other weights, in the order of its entries. Raises ConfigError for one that is not possible."""
    entries = [
        config.build(MixtureEntry, {**asdict(entry), "weight": float(weight)}, f"{mixture.name}: {entry.name}")
        for entry, weight in zip(mixture.datasets, weights, strict=True)
    ]
    return replace(mixture, datasets=tuple(entries))


def _training_steps(mixture: Mixture, members: Sequence[Member]) -> Floats:
    """Training samples of each data set at weight 1: steps that are not held out, divided by the stride.

    Raises:
        ConfigError: a size is unknown or zero.
    """
    for member in members:
        if not member.steps:
            problem = "is unknown" if member.steps is None else "is zero"
            raise ConfigError(
                f"{mixture.name}: the number of steps of {member.entry.name!r} {problem}, so shares and epochs cannot "
                "be computed. Run filter on it and give the index with --index, or remove it."
            )
    return np.array([m.steps for m in members], np.float64) * (1 - mixture.validation) / mixture.stride


def read_quantities(path: Path, unit: WeightUnit) -> tuple[Mixture, dict[str, float]]:
    """Read a file of "name: number" lines, and make a mixture of its data sets at weight 1.

    Raises:
        ConfigError: not such a file.
    """
    data = config.read_yaml(path)
    if not isinstance(data, dict) or not data or "datasets" in data:
        raise ConfigError(f"{path}: expected {unit}, one per line, as in `bridge_orig: 0.7`")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{path}: {cut(str(name))}: expected a number above zero, got {quoted(value)}")
    entries = [{"name": str(name), "weight": 1.0} for name in data]
    mixture = config.build(Mixture, {"name": path.stem[:100], "datasets": entries}, str(path))
    return mixture, {str(name): float(value) for name, value in data.items()}


def to_text(mixture: Mixture, comments: Mapping[str, str] | None = None, header: str = "") -> str:
    """A mixture file with name, data sets and the keys without default values; `comments` go above the entries."""
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    lines += [f"name: {_scalar(mixture.name)}", "datasets:"]
    for entry in mixture.datasets:
        lines += [f"  # {line}" for line in (comments or {}).get(entry.name, "").splitlines()]
        lines += [f"  - name: {_scalar(entry.name)}", f"    weight: {entry.weight!r}"]
        if entry.splits != ("train",):
            lines.append(f"    splits: [{', '.join(map(_scalar, entry.splits))}]")
        if entry.swap_channels is not None:
            lines.append(f"    swap_channels: {str(entry.swap_channels).lower()}")
    return "\n".join([*lines, _rest(mixture)]).rstrip() + "\n"


def _rest(mixture: Mixture) -> str:
    """The keys after `datasets` whose values are not the defaults, as YAML."""
    import yaml

    from oxe_curate.mixture.spec import mixture_yaml

    default = yaml.safe_load(mixture_yaml(Mixture(name=mixture.name, datasets=mixture.datasets)))
    mine = yaml.safe_load(mixture_yaml(mixture))
    changed = {key: value for key, value in mine.items() if value != default[key]}
    return yaml.safe_dump(changed, sort_keys=False, default_flow_style=None) if changed else ""


def _scalar(text: str) -> str:
    import yaml

    return str(yaml.safe_dump(text, allow_unicode=True, width=10**6)).removesuffix("\n").removesuffix("...").strip()
