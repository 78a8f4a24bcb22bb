"""Between weights, shares and epochs, as files: a mixture on one side, a plain "name: number" list on the other.

bridge_orig: 0.7                 # shares; only their ratios count
fractal20220817_data: 0.3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from oxe_curate import config
from oxe_curate.errors import ConfigError
from oxe_curate.mixture import shares
from oxe_curate.mixture.members import Member
from oxe_curate.mixture.spec import Mixture, MixtureEntry

WeightUnit = Literal["weights", "shares", "epochs"]


def quantities(
    mixture: Mixture, members: Sequence[Member], unit: WeightUnit, samples: int | None = None
) -> dict[str, float]:
    """Name -> weight, share, or epochs in `samples` samples (None: in one pass of the mixture).

    Raises:
        ConfigError: a size is not known.
    """
    weights = np.array([m.entry.weight for m in members])
    if unit == "weights":
        values = weights
    else:
        steps = training_steps(mixture, members)
        values = (
            shares.shares(weights, steps)
            if unit == "shares"
            else shares.epochs(weights, steps, samples or float(weights @ steps))
        )
    return {m.entry.name: float(value) for m, value in zip(members, values, strict=True)}


def with_quantities(
    mixture: Mixture,
    members: Sequence[Member],
    wanted: Mapping[str, float],
    unit: WeightUnit,
    samples: int | None = None,
) -> Mixture:
    """The mixture with weights that give the wanted shares or epochs; exact, up to rounding in float64.

    Args:
        mixture: its entries name the data sets.
        members: as `members.members` gives them.
        wanted: entry name -> number, for every entry.
        unit: what the numbers are.
        samples: size of one pass of the result, its validation share taken off. None: for shares the largest weight
            becomes 1; epochs become weights, so that one pass is the whole training.

    Raises:
        ConfigError: an entry has no number, a number no entry, or a number or size is not above zero.
    """
    names = [m.entry.name for m in members]
    if odd := set(wanted) ^ set(names):
        raise ConfigError(f"{sorted(odd)[0]!r} is not in both the mixture and the list of {unit}")
    values = [wanted[name] for name in names]
    if unit == "weights":
        weights = np.asarray(values, np.float64)
    else:
        steps = training_steps(mixture, members)
        solve = shares.weights_for_shares if unit == "shares" else shares.weights_for_epochs
        weights = solve(values, steps, samples)
    return with_weights(mixture, weights.tolist())


def with_weights(mixture: Mixture, weights: Sequence[float]) -> Mixture:
    """The mixture with other weights, in the entries' order."""
    entries = zip(mixture.datasets, weights, strict=True)
    return replace(mixture, datasets=tuple(replace(entry, weight=float(weight)) for entry, weight in entries))


def training_steps(mixture: Mixture, members: Sequence[Member]) -> shares.Floats:
    """Samples of each data set that training may draw: steps not held out for validation, over the stride.

    Raises:
        ConfigError: a size is not known, or zero.
    """
    for member in members:
        if not member.steps:
            known = "is not known" if member.steps is None else "is zero"
            raise ConfigError(
                f"{mixture.name}: the number of steps of {member.entry.name!r} {known}, so shares and epochs cannot be "
                "worked out. Filter it and name the index with --index, or take it out."
            )
    return np.array([m.steps for m in members], np.float64) * (1 - mixture.validation) / mixture.stride


def read_quantities(path: Path, unit: WeightUnit) -> tuple[Mixture, dict[str, float]]:
    """Read a "name: number" file; the mixture has its data sets, each at weight 1.

    Raises:
        ConfigError: it is not such a file.
    """
    data = config.read_yaml(path)
    if not isinstance(data, dict) or not data or "datasets" in data:
        raise ConfigError(f"{path}: expected a list of {unit}, a line each: `bridge_orig: 0.7`")
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{path}: {name}: expected a number above zero, found {value!r}")
    entries = tuple(MixtureEntry(name=str(name), weight=1.0) for name in data)
    return Mixture(name=path.stem, datasets=entries), {str(name): float(value) for name, value in data.items()}


def to_text(mixture: Mixture, comments: Mapping[str, str] | None = None, header: str = "") -> str:
    """A short mixture file: name and data sets, then what is not a default; `comments` go above the entries."""
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
    """The keys after `datasets`, as `to_yaml` writes them, without those that have their default."""
    import yaml

    from oxe_curate.mixture.spec import mixture_yaml

    default = yaml.safe_load(mixture_yaml(Mixture(name=mixture.name, datasets=mixture.datasets)))
    mine = yaml.safe_load(mixture_yaml(mixture))
    changed = {key: value for key, value in mine.items() if value != default[key]}
    return yaml.safe_dump(changed, sort_keys=False, default_flow_style=None) if changed else ""


def _scalar(text: str) -> str:
    import yaml

    return str(yaml.safe_dump(text, allow_unicode=True, width=10**6)).removesuffix("\n").removesuffix("...").strip()
