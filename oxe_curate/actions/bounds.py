"""Bounds of a data set's actions, normalisation by them, and OpenVLA's dataset_statistics.json."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.dimensions import GRIPPER_UNMASKED
from oxe_curate.actions.summary import ActionSummary, Values, summarize
from oxe_curate.errors import ConfigError, DataError, did_you_mean, quoted
from oxe_curate.inputs import load_json

_MAX_BYTES = 16 << 20
"""The statistics of all 98 data sets have 300 kB; OpenVLA's config.json has 40 kB."""


@dataclass(frozen=True, slots=True, eq=False)
class Bounds(ActionSummary):
    """The statistics by which a data set's actions are normalised: OpenVLA's BOUNDS_Q99.

    Attributes:
        mask: bool (D,), which dimensions are scaled. The others are neither scaled nor clipped.
        num_transitions: number of steps that the statistics cover; None if unknown.
        num_trajectories: number of episodes that they cover; None if unknown.
        proprio: statistics of the proprioceptive state, if any.
    """

    mask: NDArray[np.bool_]
    num_transitions: int | None = None
    num_trajectories: int | None = None
    proprio: ActionSummary | None = None

    def __post_init__(self) -> None:
        if self.mask.shape != (self.width,):
            raise DataError(f"expected a mask of {self.width} dimensions, as the actions have, got {self.mask.size}")

    @classmethod
    def fit(
        cls,
        actions: Values,
        mask: Sequence[bool] = GRIPPER_UNMASKED,
        *,
        low: float = 0.01,
        high: float = 0.99,
        num_trajectories: int | None = None,
        proprio: Values | None = None,
    ) -> Bounds:
        """Compute exact statistics of actions; see `summarize` for the arithmetic and the memory use.

        Args:
            actions: (N, D), or an iterable of blocks (n, D), which is read twice; cast to float32.
            mask: (D,), True for a dimension that is scaled.
            low: probability of the lower bound, which is always called `q01`.
            high: probability of the upper bound, which is always called `q99`.
            num_trajectories: number of episodes, to write with the statistics.
            proprio: (N, P) or blocks of it; P = 0 counts as none.

        Raises:
            ConfigError: not 0 <= low < high <= 1.
            DataError: no steps, not as many dimensions as the mask, or a value that is not finite.
        """
        summary, count = summarize(actions, low, high)
        state = None if proprio is None else summarize(proprio, low, high)[0]
        return cls(
            **_arrays(summary),
            mask=np.asarray(mask, np.bool_),
            num_transitions=count,
            num_trajectories=num_trajectories,
            proprio=state if state is not None and state.width else None,
        )

    @property
    def constant(self) -> NDArray[np.bool_]:
        """bool (D,), dimensions that are constant over the data set: min == max."""
        equal: NDArray[np.bool_] = self.min == self.max
        return equal

    def normalize(self, actions: ArrayLike) -> NDArray[np.float32]:
        """Scale actions so that q01 .. q99 becomes -1 .. 1, and clip.

        `2 * (x - q01) / (q99 - q01 + 1e-8) - 1` where the mask is True; elsewhere x itself, neither scaled nor
        clipped. Then every constant dimension becomes 0, scaled or not, as in OpenVLA: a gripper that is always 1
        becomes 0.

        The arithmetic equals that of OpenVLA's loader bit for bit (compared with TensorFlow 2.21 on a CPU, eagerly and
        inside `tf.data`): the statistics are float64; `q99 - q01 + 1e-8` is computed in float64 and then, like q01,
        rounded to float32; the rest is float32, in the order written, with a true division.

        Args:
            actions: (..., D), cast to float32.

        Returns:
            float32 (..., D).

        Raises:
            DataError: wrong number of dimensions, or a value that is not finite.
        """
        x = self._rows(actions, np.float32)
        low = self.q01.astype(np.float32)
        span = (self.q99 - self.q01 + 1e-8).astype(np.float32)
        with np.errstate(over="ignore"):  # an infinity is clipped below
            scaled = x - low
            scaled *= np.float32(2)
            scaled /= span
        scaled -= np.float32(1)
        np.clip(scaled, np.float32(-1), np.float32(1), out=scaled)
        np.copyto(scaled, x, where=~self.mask)
        np.copyto(scaled, np.float32(0), where=self.constant)
        return scaled

    def denormalize(self, normalized: ArrayLike) -> NDArray[np.float64]:
        """Invert `normalize` for values within the bounds, as OpenVLA's `predict_action` does, in float64.

        `0.5 * (a + 1) * (q99 - q01) + q01` where the mask is True, else a. A scaled constant dimension returns its
        constant; an unscaled one (a gripper that is always 1) returns the 0 it was normalised to.

        Args:
            normalized: (..., D).

        Returns:
            float64 (..., D), in the units of the data set.

        Raises:
            DataError: wrong number of dimensions, or a value that is not finite.
        """
        a = self._rows(normalized, np.float64)
        return np.where(self.mask, 0.5 * (a + 1) * (self.q99 - self.q01) + self.q01, a)

    def _rows(self, values: ArrayLike, dtype: type[np.floating[Any]]) -> NDArray[Any]:
        rows = np.asarray(values, dtype)
        if rows.ndim == 0 or rows.shape[-1] != self.width:
            raise DataError(f"expected actions (..., {self.width}), got shape {rows.shape}")
        if not np.isfinite(rows).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(rows))[0])
            raise DataError(
                f"action at index {place} is {rows[place]}; drop such episodes first (criterion not_finite)"
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return one data set's entry of OpenVLA's dataset_statistics.json and `norm_stats`."""
        action = {key: value.tolist() for key, value in _arrays(self).items()}
        entry: dict[str, Any] = {"action": {**action, "mask": self.mask.tolist()}}
        if self.proprio is not None:
            entry["proprio"] = {key: value.tolist() for key, value in _arrays(self.proprio).items()}
        if self.num_transitions is not None:
            entry["num_transitions"] = self.num_transitions
        if self.num_trajectories is not None:
            entry["num_trajectories"] = self.num_trajectories
        return entry

    @classmethod
    def from_json(cls, entry: Any, where: str = "statistics") -> Bounds:
        """Read one data set's entry, as published by OpenVLA and its descendants.

        A missing mask means the mask of OpenVLA's loader: the gripper unscaled for 7 dimensions (its cache files are
        written before the mask is set), else every dimension scaled. `proprio` and the counts may be missing; a
        proprio of zeros, which OpenVLA writes if there is none, counts as missing.

        Args:
            entry: parsed JSON.
            where: file and data set; every error message starts with it.

        Raises:
            ConfigError: a key is missing or is not a list of numbers, the numbers contradict each other (q99 below
                q01), or the keys are Octo's.
        """
        if not isinstance(entry, Mapping) or not isinstance(entry.get("action"), Mapping):
            raise ConfigError(f"{where}: expected the key 'action' with statistics in it")
        action = entry["action"]
        arrays = _read_arrays(action, f"{where}: action")
        width = len(arrays["q01"])
        default = GRIPPER_UNMASKED if width == len(GRIPPER_UNMASKED) else (True,) * width
        mask = action.get("mask", default)
        if not isinstance(mask, (list, tuple)) or len(mask) != width or not all(isinstance(m, bool) for m in mask):
            raise ConfigError(f"{where}: action: mask: expected {width} booleans, got {quoted(mask)}")
        proprio = None
        if isinstance(entry.get("proprio"), Mapping):
            proprio = ActionSummary(**_read_arrays(entry["proprio"], f"{where}: proprio"))
            if not any(value.any() for value in _arrays(proprio).values()):
                proprio = None
        return cls(
            **arrays,
            mask=np.asarray(mask, np.bool_),
            num_transitions=_read_count(entry, "num_transitions", where),
            num_trajectories=_read_count(entry, "num_trajectories", where),
            proprio=proprio,
        )


def read_statistics(path: str | Path) -> dict[str, Bounds]:
    """Read every data set's bounds from a dataset_statistics.json, or from a config.json with `norm_stats`.

    Args:
        path: the file, or a folder with one of the two (dataset_statistics.json comes first).

    Raises:
        ConfigError: file not found, not JSON, or not statistics.
    """
    path = Path(path)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        names = [name for name in ("dataset_statistics.json", "config.json") if (path / name).is_file()]
        if not names:
            raise ConfigError(f"{path}: contains neither dataset_statistics.json nor config.json")
        path = path / names[0]
    return parse_statistics(load_json(path, _MAX_BYTES), str(path))


def parse_statistics(content: Any, where: str) -> dict[str, Bounds]:
    """Read every data set's bounds from the parsed JSON of such a file; every error starts with `where`.

    Raises:
        ConfigError: not statistics.
    """
    if isinstance(content, dict) and "norm_stats" in content:
        content = content["norm_stats"]
    elif isinstance(content, dict) and "model_type" in content:
        raise ConfigError(f"{where}: the model's configuration has no 'norm_stats'; use a dataset_statistics.json")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where}: expected statistics by data set name")
    if "action" in content:
        raise ConfigError(
            f'{where}: contains the statistics of one data set without its name; wrap them: {{"<data set>": ...}}'
        )
    return {name: Bounds.from_json(entry, f"{where}: {name}") for name, entry in content.items()}


def lookup(statistics: Mapping[str, Bounds], name: str, aliases: Iterable[str] = ()) -> Bounds:
    """Return the bounds of a data set by its name or, failing that, by its first alias that is present.

    Raises:
        ConfigError: none of them is present; the message has the closest match.
    """
    names = [name, *aliases]
    for candidate in names:
        if candidate in statistics:
            return statistics[candidate]
    also = f" (or {', '.join(repr(alias) for alias in names[1:])})" if names[1:] else ""
    raise ConfigError(f"no statistics of {name!r}{also}. {did_you_mean(name, statistics)}")


def _arrays(summary: ActionSummary) -> dict[str, NDArray[np.float64]]:
    """OpenVLA's keys, in its order."""
    return {field.name: getattr(summary, field.name) for field in fields(ActionSummary)}


def _read_arrays(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    keys = [field.name for field in fields(ActionSummary)]
    if "q01" not in block and "p01" in block:
        raise ConfigError(
            f"{where}: these are Octo's keys p01 and p99, and Octo normalises differently. Rename them to q01 and q99 "
            f"to use them anyway, or omit the file to compute the bounds from the data"
        )
    missing = [key for key in keys if key not in block]
    if missing:
        raise ConfigError(f"{where}: missing key {missing[0]!r}. {did_you_mean(missing[0], block)}")
    arrays = {}
    for key in keys:
        numbers = block[key] if isinstance(block[key], list | tuple) else [None]
        if all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
            arrays[key] = np.array(numbers, np.float64)
        if key not in arrays or not np.isfinite(arrays[key]).all():
            raise ConfigError(f"{where}: {key}: expected a list of finite numbers, got {quoted(block[key])}")
        if len(arrays[key]) != len(arrays["mean"]):
            raise ConfigError(
                f"{where}: {key}: expected {len(arrays['mean'])} numbers, as for mean, got {len(arrays[key])}"
            )
    _check_order(arrays, where)
    return arrays


def _check_order(arrays: Mapping[str, NDArray[np.float64]], where: str) -> None:
    """Raise ConfigError unless min <= q01 <= q99 <= max and 0 <= std, up to the rounding of float32."""
    slack = 0.01 * np.abs(arrays["max"] - arrays["min"]) + 1e-6
    rules = (("q01", "q99", 0.0), ("min", "max", 0.0), ("min", "q01", slack), ("q99", "max", slack))
    for low, high, allowed in rules:
        wrong = np.flatnonzero(arrays[low] > arrays[high] + allowed)
        if len(wrong):
            i = int(wrong[0])
            raise ConfigError(
                f"{where}: expected {low} <= {high}, got {arrays[low][i]:g} and {arrays[high][i]:g} in dimension {i}; "
                "restore the file, or omit it to compute the statistics from the data"
            )
    if (arrays["std"] < 0).any():
        raise ConfigError(f"{where}: std: expected numbers of at least zero, got {quoted(arrays['std'].tolist())}")


def _read_count(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    count = entry.get(key)
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise ConfigError(f"{where}: {key}: expected an integer, got {quoted(count)}")
    return count
