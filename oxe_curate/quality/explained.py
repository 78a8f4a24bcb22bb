"""Do an episode's actions explain how its state moves, as those of its data set do?

`Response` predicts the displacement from the actions. Compared with the real one: the share that stays unexplained, a
shift in time that explains more, and the factor between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oxe_curate.arrays import Floats
from oxe_curate.quality.episodes import EpisodeBatch
from oxe_curate.quality.grips import Opening, gripper_part, judge_gripper, learn_opening
from oxe_curate.quality.limits import robust_limit
from oxe_curate.quality.measure import Judgement, Part
from oxe_curate.quality.response import Response, learn_responses
from oxe_curate.quality.segments import delayed, peak_each, sum_each, window_sums
from oxe_curate.quality.verdict import Test, factor_limit, judged, worst

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
_SHIFTS = tuple(range(-6, 7))
_EXACT = 1e-4
"""Actions that leave less unexplained were computed from the state."""


@dataclass(frozen=True)
class ExplainedMotion:
    """`unexplained_motion`, `shifted_actions`, `scaled_actions` and `gripper_mismatch`."""

    criteria: tuple[str, ...] = ("unexplained_motion", "shifted_actions", "scaled_actions", "gripper_mismatch")
    columns: frozenset[str] = frozenset({"proprio"})

    def fit(self, sample: EpisodeBatch) -> tuple[list[_Fitted], Opening | None]:
        """The responses of position, rotation and gripper."""
        found = learn_responses(sample)
        taken = [c for response in found for c in range(response.state, response.state + 3)]
        return [_Fitted.of(response, sample) for response in found], learn_opening(sample, taken)

    def part(self, batch: EpisodeBatch, fitted: tuple[list[_Fitted], Opening | None]) -> Part:
        """Products of explained and real displacement: 21 numbers per group of axes, and 23 for the gripper."""
        found: dict[str, NDArray[np.float64]] = {"steps": batch.lengths.astype(np.float64)}
        if fitted[1] is not None:
            found |= gripper_part(batch, fitted[1])
        for group in fitted[0]:
            explained, real = group.response.compare(batch)
            sums = sum_each(np.concatenate([explained * explained, real * real]), batch.starts)
            cross = sum_each((explained[:, None] * real[None]).reshape(9, -1), batch.starts)
            # the power of each axis counts the same, or the largest would decide
            p, d = explained * group.weight, real * group.weight
            shifts = [sum_each(_dot(delayed(p, shift, batch), d), batch.starts) for shift in _SHIFTS]
            table = np.array(shifts)
            power = _dot(p, p) + _dot(d, d)
            parts = window_sums(np.stack([_dot(p - d, p - d), power]), group.block, batch)
            local, at = peak_each(parts[0] / np.maximum(parts[1] + group.power, 1e-30), batch.starts)
            rows = [*sums, *cross, np.array(_SHIFTS, float)[table.argmax(axis=0)], table.max(axis=0),
                    table[_SHIFTS.index(0)], sum_each(power, batch.starts), local, at]  # fmt: skip
            found[f"group {group.response.action}"] = np.array(rows).T
        return found

    def judge(self, part: Part, fitted: tuple[list[_Fitted], Opening | None]) -> Mapping[str, Judgement]:
        """Compare every episode with the others of the data set."""
        groups = [_Group.of(part[f"group {g.response.action}"], part["steps"], g.response) for g in fitted[0]]
        found: dict[str, Judgement] = {}
        if groups:
            found = {
                "unexplained_motion": _unexplained(groups),
                "shifted_actions": _shifted(groups),
                "scaled_actions": _scaled(groups),
            }
        if fitted[1] is not None:
            found["gripper_mismatch"] = judge_gripper(part)
        return found


def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = np.einsum("an,an->n", a, b)
    return out


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A response, and how a part of an episode is compared.

    Attributes:
        weight: float32 (3, 1), by which axes of different motion count the same.
        block: steps, a fifth of a typical episode.
        power: of explained and real displacement in half a typical block: a part that hardly moves does not count.
    """

    response: Response
    weight: NDArray[np.float32]
    block: int
    power: float

    @classmethod
    def of(cls, response: Response, sample: EpisodeBatch) -> _Fitted:
        weight = np.asarray(1 / np.maximum(response.limits[3:], 1e-30), np.float32)[:, None]
        p, d = (np.asarray(x * weight, np.float32) for x in response.compare(sample))
        block = int(np.clip(np.median(sample.lengths) // 5, 2, 20))
        return cls(response, weight, block, 0.5 * block * float(np.mean(_dot(p, p) + _dot(d, d))))


@dataclass(frozen=True, eq=False)
class _Group:
    """Three axes of all episodes.

    Attributes:
        names: of the axes.
        explained, real: power (3, n).
        cross: (3, 3, n), explained by real.
        enough: bool (3, n): whether an axis moves enough to be judged.
        shift, gain: (n,), the shift that explains most, and the share of the power that it explains in addition.
        rest: (n,), what that shift leaves unexplained.
        local, at: (n,), the unexplained share of the worst block, and its first step.
        exact: whether the data set's actions were computed from its state.
        loose: how far noise and few steps move the numbers of a clean episode.
        typical: steps of a typical episode.
    """

    names: Sequence[str]
    explained: Floats
    real: Floats
    cross: Floats
    enough: NDArray[np.bool_]
    shift: Floats
    gain: Floats
    rest: Floats
    local: Floats
    at: Floats
    exact: bool
    loose: float
    typical: float

    @classmethod
    def of(cls, rows: Floats, steps: Floats, response: Response) -> _Group:
        values = rows.T
        explained, real, cross = values[:3], values[3:6], values[6:15].reshape(3, 3, -1)
        shift, best, zero, total, local, at = values[15:21]
        power = explained + real
        residual = np.maximum(power - 2 * np.einsum("aan->an", cross), 0)
        noise = np.median(residual / steps, axis=1, keepdims=True)
        enough = (power > 0) & (power >= 0.1 * np.median(power, axis=1, keepdims=True)) & (power >= 8 * noise * steps)
        share = np.divide(total - 2 * zero, total, out=np.zeros_like(total), where=total > 0)
        gain = np.divide(2 * (best - zero), total, out=np.zeros_like(total), where=total > 0)
        axes = AXES[response.action : response.action + 3]
        names = [axes[a] for a in _main_axes(response)]
        exact = response.share < _EXACT
        typical = float(np.median(steps))
        loose = 0.0 if exact else 1.5 * response.share + 1 / typical
        return cls(names, explained, real, cross, enough, shift, gain, share - gain, local, at, exact, loose, typical)

    @property
    def power(self) -> Floats:
        return self.explained + self.real

    @property
    def shares(self) -> Floats:
        """(3, n): the unexplained share of each axis, 0 to 2; NaN where it does not move enough."""
        agree = np.einsum("aan->an", self.cross)
        share = np.full(self.power.shape, np.nan)
        np.divide(np.maximum(self.power - 2 * agree, 0), self.power, out=share, where=self.enough)
        return share

    @property
    def whole(self) -> Floats:
        """(n,): the unexplained share of all axes together."""
        agree = np.einsum("aan->n", np.where(self.enough, self.cross, 0))
        power = np.where(self.enough, self.power, 0).sum(axis=0)
        share = np.full(len(power), np.nan)
        np.divide(np.maximum(power - 2 * agree, 0), power, out=share, where=power > 0)
        return share

    @property
    def factors(self) -> Floats:
        """(4, n): real by explained displacement of each axis and of all; NaN where they hardly correlate."""
        agree = np.einsum("aan->an", np.where(self.enough, self.cross, 0))
        explained, real = np.where(self.enough, self.explained, 0), np.where(self.enough, self.real, 0)
        agree, explained, real = (np.vstack([v, v.sum(axis=0)]) for v in (agree, explained, real))
        fits = (agree > 0) & (agree * agree >= 0.7 * explained * real) & (explained > 0)
        factor = np.full(agree.shape, np.nan)
        np.divide(agree, explained, out=factor, where=fits)
        return factor

    def fault(self, episode: int) -> str:
        """What is wrong with an episode's actions, as far as the axes tell."""
        cross = self.cross[:, :, episode]
        scale = np.sqrt(np.outer(self.explained[:, episode], self.real[:, episode]))
        r = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
        enough = self.enough[:, episode]
        moved, still = self.real[:, episode], self.explained[:, episode]
        if moved[enough].sum() < 0.02 * still[enough].sum():
            return "the state does not follow the actions: it does not move"
        if still[enough].sum() < 0.02 * moved[enough].sum():
            return "the state moves without actions"
        flipped = [n for k, n in enumerate(self.names) if enough[k] and r[k, k] < -0.6]
        for i in range(3):
            for j in range(i):
                if min(abs(r[i, j]), abs(r[j, i])) > 0.6 and max(r[i, i], r[j, j]) < 0.5:
                    return f"{self.names[j]} and {self.names[i]} swapped"
        if self.gain[episode] > 0.1 and self.rest[episode] < 0.3:
            return _steps(self.shift[episode])
        if flipped:
            return f"{', '.join(flipped)}: sign flipped"
        share = np.nan_to_num(self.shares[:, episode])
        axes = [n for k, n in enumerate(self.names) if share[k] > 0.5]
        return f"the actions do not explain the motion{' in ' + ', '.join(axes) if 0 < len(axes) < 3 else ''}"


def _main_axes(response: Response) -> list[int]:
    """The action axis that moves each state column most; in order if that is not one to one."""
    power = (response.factors.reshape(3, len(response.delays), 3) ** 2).sum(axis=1)
    power = power * response.limits[:3] ** 2
    axes = power.argmax(axis=1).tolist()
    return axes if len(set(axes)) == 3 else [0, 1, 2]


def _steps(shift: float) -> str:
    count = f"{abs(shift):.0f} step{'' if abs(shift) == 1 else 's'}"
    return f"the actions are {count} {'early' if shift > 0 else 'late'}"


def _unexplained(groups: Sequence[_Group]) -> Judgement:
    tests: list[Test] = []
    for g in groups:
        tests.append((g.whole, _whole_limit(g)))
        floor = 0.1 if g.exact else 0.8 + 2 * g.loose
        tests.extend((share, robust_limit(share, least=floor)) for share in (*g.shares, g.local))
    value, limit, which = worst(tests)
    at = np.array([groups[k // 5].at[i] if k % 5 == 4 else -1 for i, k in enumerate(which.tolist())], np.int64)
    return judged(value, limit, lambda i: groups[int(which[i]) // 5].fault(i), step=at)


def _whole_limit(group: _Group) -> float:
    """A few times what is usual, within absolute bounds unless the response explains little in all episodes."""
    whole = group.whole[np.isfinite(group.whole)]
    if group.exact or len(whole) < 8:
        return robust_limit(whole, least=0.05)
    usual = float(np.quantile(whole, 0.8))
    return max(float(np.clip(7 * usual, 0.15, 0.35)), robust_limit(whole, least=0.15, within=2.5))


def _shifted(groups: Sequence[_Group]) -> Judgement:
    tests: list[Test] = []
    for g in groups:
        better = g.gain / (g.gain + g.rest + 0.01)
        tests.append((better, robust_limit(better, least=0.28 + 1 / g.typical, within=2)))
    value, limit, which = worst(tests)
    return judged(value, limit, lambda i: _steps(groups[int(which[i])].shift[i]), unit="of the unexplained")


def _scaled(groups: Sequence[_Group]) -> Judgement:
    tests: list[Test] = []
    times: list[Floats] = []
    for g in groups:
        for number, factor in enumerate(g.factors):
            known = factor[np.isfinite(factor)]
            usual = np.median(known) if len(known) else 1.0
            times.append(factor / usual)
            off = np.maximum(times[-1], 1 / times[-1])
            least = (1.15 if g.exact else 1.3 + g.loose) if number == 3 else (1.25 if g.exact else 1.8 + 3 * g.loose)
            tests.append((off, factor_limit(off, least=least)))
    order = sorted(range(len(tests)), key=lambda k: k % 4 != 3)
    value, limit, which = worst([tests[k] for k in order])

    def words(episode: int) -> str:
        number = order[int(which[episode])]
        axis = groups[number // 4].names[number % 4] if number % 4 < 3 else ("position", "rotation")[number // 4]
        return f"{axis}: the actions are {1 / times[number][episode]:.2g} times as large as the motion suggests"

    return judged(value, limit, words, unit="times")
