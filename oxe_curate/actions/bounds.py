"""Bounds of a data set's actions, normalisation by them, and OpenVLA's dataset_statistics.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oxe_curate.actions.dimensions import GRIPPER_UNMASKED
from oxe_curate.actions.summary import ActionSummary, Values, summarize
from oxe_curate.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True, slots=True, eq=False)
class Bounds(ActionSummary):
    """What a data set's actions are normalised by: OpenVLA's BOUNDS_Q99.

    Attributes:
        mask: bool (D,): which dimensions are scaled. The others pass through unscaled and unclipped.
        num_transitions: steps the statistics were taken over; None where a file does not say.
        num_trajectories: episodes they were taken over; None where unknown.
        proprio: statistics of the proprioceptive state, if any.
    """

    mask: NDArray[np.bool_]
    num_transitions: int | None = None
    num_trajectories: int | None = None
    proprio: ActionSummary | None = None

    def __post_init__(self) -> None:
        if self.mask.shape != (self.width,):
            raise DataError(f"actions have {self.width} dimensions, the mask has {self.mask.size}")

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
        """Take exact statistics of actions; see `summarize` for the arithmetic and the memory.

        Args:
            actions: (N, D), or an iterable of chunks (n, D) that is read twice; cast to float32.
            mask: (D,), True where a dimension is scaled.
            low: probability of the lower bound, kept as `q01` whatever it is.
            high: probability of the upper bound, kept as `q99` whatever it is.
            num_trajectories: number of episodes, to be written beside the statistics.
            proprio: (N, P) or chunks of it; P = 0 counts as none.

        Raises:
            ConfigError: not 0 <= low < high <= 1.
            DataError: no steps, a width other than the mask's, a value that is not finite.
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
        """(D,) dimensions that never change over the data set: min == max."""
        equal: NDArray[np.bool_] = self.min == self.max
        return equal

    def normalize(self, actions: ArrayLike) -> NDArray[np.float32]:
        """Scale actions so that q01 .. q99 becomes -1 .. 1, and clip.

        `2 * (x - q01) / (q99 - q01 + 1e-8) - 1` where the mask is True; elsewhere x itself, neither scaled
        nor clipped. Then every constant dimension becomes 0, masked or not, as in OpenVLA: a gripper that is
        always 1 is fed as 0.

        The arithmetic is that of OpenVLA's loader, bit for bit (compared with TensorFlow 2.21 on a CPU,
        eagerly and inside `tf.data`): the statistics are float64; `q99 - q01 + 1e-8` is formed in float64 and
        then, like q01, rounded to float32; float32 operations follow as written, with a true division.

        Args:
            actions: (..., D), cast to float32.

        Returns:
            float32 (..., D).

        Raises:
            DataError: another width, or a value that is not finite.
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
        """Undo `normalize` for values within the bounds, as OpenVLA's `predict_action` does, in float64.

        `0.5 * (a + 1) * (q99 - q01) + q01` where the mask is True, else a. A scaled constant dimension
        returns its constant; one that passes through (a gripper always 1) returns the 0 it was normalised to.

        Args:
            normalized: (..., D).

        Returns:
            float64 (..., D), in the units of the data set.

        Raises:
            DataError: another width, or a value that is not finite.
        """
        a = self._rows(normalized, np.float64)
        return np.where(self.mask, 0.5 * (a + 1) * (self.q99 - self.q01) + self.q01, a)

    def _rows(self, values: ArrayLike, dtype: type[np.floating[Any]]) -> NDArray[Any]:
        rows = np.asarray(values, dtype)
        if rows.ndim == 0 or rows.shape[-1] != self.width:
            raise DataError(f"actions have shape {rows.shape}, the bounds have {self.width} dimensions")
        if not np.isfinite(rows).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(rows))[0])
            raise DataError(f"action at index {place} is {rows[place]}: drop such episodes (not_finite) first")
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

        A missing mask means the one that OpenVLA's loader sets: the gripper unscaled for 7 dimensions (its
        cache files are written before the mask is set), else every dimension scaled. `proprio` and the
        counts may be missing; all zeros for proprio, OpenVLA's way to say none, count as missing.

        Args:
            entry: parsed JSON.
            where: file and data set, opening every error message.

        Raises:
            ConfigError: a key is missing or is no list of numbers; statistics in Octo's keys.
        """
        if not isinstance(entry, Mapping) or not isinstance(entry.get("action"), Mapping):
            raise ConfigError(f"{where}: expected the key 'action' with statistics below it")
        action = entry["action"]
        arrays = _read_arrays(action, f"{where}: action")
        width = len(arrays["q01"])
        default = GRIPPER_UNMASKED if width == len(GRIPPER_UNMASKED) else (True,) * width
        mask = action.get("mask", default)
        if not isinstance(mask, (list, tuple)) or len(mask) != width or not all(isinstance(m, bool) for m in mask):
            raise ConfigError(f"{where}: action: 'mask' must hold {width} times true or false, found {mask}")
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
        path: the file, or a folder that holds one of the two (the first is preferred).

    Raises:
        ConfigError: no such file, not JSON, or not such statistics.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in ("dataset_statistics.json", "config.json") if (path / name).is_file()]
        if not names:
            raise ConfigError(f"{path}: holds neither dataset_statistics.json nor config.json")
        path = path / names[0]
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # JSON and UTF-8 errors
        raise ConfigError(f"{path}: is not JSON: {error}") from None
    return parse_statistics(content, str(path))


def parse_statistics(content: Any, where: str) -> dict[str, Bounds]:
    """Read every data set's bounds from the parsed JSON of such a file; `where` opens every error.

    Raises:
        ConfigError: not such statistics.
    """
    if isinstance(content, dict) and "norm_stats" in content:
        content = content["norm_stats"]
    elif isinstance(content, dict) and "model_type" in content:
        raise ConfigError(f"{where}: this model's configuration has no 'norm_stats'; give a dataset_statistics.json")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{where}: expected data set names with statistics below them")
    if "action" in content:
        raise ConfigError(
            f'{where}: holds the statistics of one data set without its name; wrap them: {{"<data set>": ...}}'
        )
    return {name: Bounds.from_json(entry, f"{where}: {name}") for name, entry in content.items()}


def lookup(statistics: Mapping[str, Bounds], name: str, aliases: Iterable[str] = ()) -> Bounds:
    """Return the bounds of a data set under its name or, failing that, the first alias present.

    Raises:
        ConfigError: none of them is there; lists what is.
    """
    names = [name, *aliases]
    for candidate in names:
        if candidate in statistics:
            return statistics[candidate]
    also = f" (nor {', '.join(repr(alias) for alias in names[1:])})" if names[1:] else ""
    raise ConfigError(f"the statistics hold no {name!r}{also}. {did_you_mean(name, statistics)}")


def _arrays(summary: ActionSummary) -> dict[str, NDArray[np.float64]]:
    """OpenVLA's keys, in its order."""
    return {field.name: getattr(summary, field.name) for field in fields(ActionSummary)}


def _read_arrays(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    keys = [field.name for field in fields(ActionSummary)]
    if "q01" not in block and "p01" in block:
        raise ConfigError(
            f"{where}: has Octo's keys p01 and p99, and Octo normalises by other rules. Rename them to q01 and "
            f"q99 if that is what you want, or leave the file out: the bounds are then taken from the data"
        )
    missing = [key for key in keys if key not in block]
    if missing:
        raise ConfigError(f"{where}: the key {missing[0]!r} is missing. {did_you_mean(missing[0], block)}")
    arrays = {}
    for key in keys:
        try:
            arrays[key] = np.asarray(block[key], np.float64)
        except (TypeError, ValueError):
            arrays[key] = np.empty(())
        if arrays[key].ndim != 1 or not np.isfinite(arrays[key]).all():
            raise ConfigError(f"{where}: {key!r} must be a list of finite numbers, found {block[key]!r}")
        if len(arrays[key]) != len(arrays["mean"]):
            raise ConfigError(f"{where}: {key!r} has {len(arrays[key])} numbers, 'mean' has {len(arrays['mean'])}")
    return arrays


def _read_count(entry: Mapping[str, Any], key: str, where: str) -> int | None:
    count = entry.get(key)
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 0):
        raise ConfigError(f"{where}: {key!r} must be a whole number, found {count!r}")
    return count
