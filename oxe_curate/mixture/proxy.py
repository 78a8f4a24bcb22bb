"""Weights from the excess loss of a small model: group distributionally robust optimisation.

The method follows Re-Mix (Hejna et al., "Re-Mix: Optimizing Data Mixtures for Large Scale Imitation Learning", CoRL
2024), which adapts DoReMi (Xie et al., NeurIPS 2023). A reference model learns to predict action classes from data
drawn by size. A second model learns with data set weights a_k that follow its excess loss over the reference:

    excess_k = max(0, loss_k - reference_k)
    a_k ~ a_k exp(rate excess_k), mixed with a little of the shares by size

The mean of a over the training is the proposed share. Data that is hard for every model (noise) has no excess loss, nor
has data that is learnt quickly; data that can be learnt but has not been yet does. The seed determines everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.actions.dimensions import NUM_DIMENSIONS
from oxe_curate.arrays import Floats
from oxe_curate.errors import ConfigError
from oxe_curate.mixture.proxy_data import CLASSES, WORDS, Examples

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ProxySettings:
    """How the two models are trained.

    Attributes:
        steps: training steps of each model.
        batch: samples per step, over all data sets.
        robust_rate: how fast the weights follow the excess loss.
        smoothing: share of the weights that is always by size.
        width: of the hidden layer.
    """

    steps: int = 400
    batch: int = 192
    learning_rate: float = 1e-3
    robust_rate: float = 0.2
    smoothing: float = 0.05
    width: int = 128


@dataclass(frozen=True, eq=False)
class ProxyResult:
    """The result, one entry per data set.

    Attributes:
        shares: float64 (K,), the mean weights a.
        reference: float64 (K,), the reference model's loss on held-out episodes, in nats per action dimension.
        excess: float64 (K,), the second model's mean excess loss during training.
    """

    shares: Floats
    reference: Floats
    excess: Floats


def optimise(
    examples: Sequence[Examples],
    sizes: Sequence[float],
    seed: int = 0,
    settings: ProxySettings | None = None,
) -> ProxyResult:
    """Train the two models, on one CPU thread so that a seed gives the same bits on any number of cores.

    Args:
        examples: one per data set.
        sizes: of the data sets, in steps.
        seed: of initial weights and batches.
        settings: None for the defaults.

    Raises:
        ConfigError: torch is not installed, or a data set has too few episodes to hold one out.
    """
    torch = _torch()
    settings = settings or ProxySettings()
    for number, some in enumerate(examples):
        if some.held.all() or not some.held.any():
            raise ConfigError(f"data set {number + 1}: too few episodes for --method proxy; use --method diversity")
    by_size = np.asarray(sizes, np.float64) / np.sum(sizes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            return _run(torch, examples, by_size, seed, settings)
    finally:
        torch.set_num_threads(threads)


def _run(
    torch: Any,
    examples: Sequence[Examples],
    by_size: Floats,
    seed: int,
    settings: ProxySettings,
) -> ProxyResult:
    data = _Data(torch, examples)
    reference = _reference(torch, data, by_size, seed, settings)
    known = data.all_losses(reference)
    # the second model: equally many samples of each data set, weighted by a
    model, optimiser = _model(torch, seed, settings)
    rng = np.random.default_rng([seed, 2])
    groups, each = len(examples), max(2, settings.batch // len(examples))
    weight, total, excess_total = by_size.copy(), np.zeros(groups), np.zeros(groups)
    for _ in range(settings.steps):
        rows = np.concatenate([rng.choice(own, each) for own in data.training])
        losses = data.losses(model, rows).view(groups, each)
        gap = losses.detach().numpy().mean(axis=1) - known[rows].reshape(groups, each).mean(axis=1)
        excess = np.maximum(gap.astype(np.float64), 0)
        weight = weight * np.exp(settings.robust_rate * excess)
        weight = (1 - settings.smoothing) * weight / weight.sum() + settings.smoothing * by_size
        total += weight
        excess_total += excess
        _step(optimiser, torch.from_numpy(weight.astype(np.float32)) @ losses.mean(dim=1))
    baseline = np.array([known[own].mean() for own in data.held], np.float64)
    return ProxyResult(total / total.sum(), baseline, excess_total / settings.steps)


def _reference(
    torch: Any,
    data: _Data,
    by_size: Floats,
    seed: int,
    settings: ProxySettings,
) -> Any:
    """Train on data drawn by size, and return the state with the lowest loss on held-out episodes, also by size.

    The last state would have memorised small data sets, and the second model would then never catch up on them.
    """
    model, optimiser = _model(torch, seed, settings)
    rng = np.random.default_rng([seed, 1])
    best, best_state = np.inf, None
    every = max(1, settings.steps // 20)
    for step in range(settings.steps):
        counts = rng.multinomial(settings.batch, by_size)
        rows = np.concatenate([rng.choice(own, n) for own, n in zip(data.training, counts, strict=True)])
        _step(optimiser, data.losses(model, rows).mean())
        if (step + 1) % every == 0:
            losses = data.all_losses(model, np.concatenate(data.held))
            score = float(by_size @ [losses[own].mean() for own in data.held])
            if score < best:
                best, best_state = score, {k: v.clone() for k, v in model.state_dict().items()}
    assert best_state is not None
    model.load_state_dict(best_state)
    return model


class _Data:
    """The examples of all data sets, concatenated.

    Attributes:
        training, held: int64 row numbers of each data set.
    """

    def __init__(self, torch: Any, examples: Sequence[Examples]) -> None:
        self._torch = torch
        # frames are converted per batch: as floats, those of all of OXE would take a gigabyte
        frames = np.concatenate([some.frames for some in examples]).transpose(0, 3, 1, 2)
        self._frames = torch.from_numpy(np.ascontiguousarray(frames))
        self._words = torch.from_numpy(np.concatenate([some.words for some in examples]))
        self._classes = torch.from_numpy(np.concatenate([some.classes for some in examples]))
        starts = np.cumsum([0, *(len(some) for some in examples)])
        self.training = [np.flatnonzero(~some.held) + start for some, start in zip(examples, starts, strict=False)]
        self.held = [np.flatnonzero(some.held) + start for some, start in zip(examples, starts, strict=False)]

    def losses(self, model: Any, rows: NDArray[np.int64]) -> Any:
        """Cross-entropy of each row, mean over the action dimensions: a tensor (n,)."""
        at = self._torch.from_numpy(rows)
        out = model(self._frames[at].float() / 127.5 - 1, self._words[at])
        loss = self._torch.nn.functional.cross_entropy(out, self._classes[at].reshape(-1), reduction="none")
        return loss.view(-1, NUM_DIMENSIONS).mean(dim=1)

    def all_losses(self, model: Any, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """float32 (all rows,), the losses of some rows (None: of all); NaN for the others."""
        result = np.full(len(self._frames), np.nan, np.float32)
        chosen = np.arange(len(result)) if rows is None else rows
        with self._torch.no_grad():
            for part in np.array_split(chosen, -(-len(chosen) // 1024)):
                result[part] = self.losses(model, part).numpy()
        return result


def _model(torch: Any, seed: int, settings: ProxySettings) -> tuple[Any, Any]:
    """Three strided convolutions, concatenated with the words, and one hidden layer: about 220,000 parameters."""
    nn = torch.nn
    torch.manual_seed(seed)

    class Proxy(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.see = nn.Sequential(
                nn.Conv2d(3, 16, 5, 2, 2), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU(),
                nn.Conv2d(32, 64, 3, 2, 1), nn.GELU(), nn.Flatten(),
            )  # fmt: skip
            self.join = nn.Sequential(
                nn.Linear(64 * 16 + WORDS, settings.width),
                nn.GELU(),
                nn.Linear(settings.width, NUM_DIMENSIONS * CLASSES),
            )

        def forward(self, frames: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.join(torch.cat([self.see(frames), words], dim=1))
            return out.view(-1, CLASSES)

    model = Proxy()
    return model, torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=1e-2)


def _step(optimiser: Any, loss: Any) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ConfigError('--method proxy needs PyTorch: pip install "oxe-curate[train]"') from None
    return torch
