"""Weights from what a small model finds hard: group distributionally robust optimisation of excess loss.

The idea is Re-Mix's (Hejna et al., "Re-Mix: Optimizing Data Mixtures for Large Scale Imitation Learning", CoRL 2024),
which takes it from DoReMi (Xie et al., NeurIPS 2023). A reference model learns to predict action classes with data
drawn by size. A second one learns with data set weights a_k that follow its excess loss over the reference:

    excess_k = max(0, loss_k - reference_k)
    a_k ~ a_k exp(rate excess_k), mixed with a little of the shares by size

The mean of a over the training is the proposed share. What is hard for all models (noise) has no excess; what is soon
learnt has none either; what can be learnt but has not been yet, has. Everything here is decided by the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.mixture.proxy_data import CLASSES, WORDS, Examples

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ProxySettings:
    """How the two models are trained.

    Attributes:
        steps: of each model. batch: samples of a step, over all data sets.
        robust_rate: how fast weights follow the excess loss.
        smoothing: share of the weights that always goes by size.
    """

    steps: int = 400
    batch: int = 192
    learning_rate: float = 1e-3
    robust_rate: float = 0.2
    smoothing: float = 0.05
    width: int = 128


@dataclass(frozen=True, eq=False)
class ProxyResult:
    """What came out, one entry a data set.

    Attributes:
        shares: float64 (K,), the mean weights a.
        reference: float64 (K,), the reference model's loss on held-out episodes, nats an action dimension.
        excess: float64 (K,), the second model's mean excess loss over its training.
    """

    shares: Floats
    reference: Floats
    excess: Floats


def optimise(
    examples: Sequence[Examples],
    sizes: Sequence[float],
    seed: int = 0,
    settings: ProxySettings | None = None,
    progress: Callable[[str, int], None] = lambda stage, step: None,
) -> ProxyResult:
    """Train the two models, on one thread of the CPU so that a seed gives the same bits on any number of cores.

    Args:
        examples: of each data set.
        sizes: of each data set, in steps.
        seed: of initial weights and batches.
        settings: None for the defaults.
        progress: called with "reference" or "robust" and the number of steps done.

    Raises:
        ConfigError: torch is not installed, or a data set has too few episodes to hold one out.
    """
    torch = _torch()
    settings = settings or ProxySettings()
    for number, some in enumerate(examples):
        if some.held.all() or not some.held.any():
            raise ConfigError(f"data set {number + 1} has too few episodes for --method proxy; use --method diversity")
    by_size = np.asarray(sizes, np.float64) / np.sum(sizes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            return _run(torch, examples, by_size, seed, settings, progress)
    finally:
        torch.set_num_threads(threads)


def _run(
    torch: Any,
    examples: Sequence[Examples],
    by_size: Floats,
    seed: int,
    settings: ProxySettings,
    progress: Callable[[str, int], None],
) -> ProxyResult:
    data = _Data(torch, examples)
    reference = _reference(torch, data, by_size, seed, settings, progress)
    known = data.all_losses(reference)
    # the second model: as many samples of each data set, weighed by a
    model, optimiser = _model(torch, seed, settings)
    rng = np.random.default_rng([seed, 2])
    groups, each = len(examples), max(2, settings.batch // len(examples))
    weight, total, excess_total = by_size.copy(), np.zeros(groups), np.zeros(groups)
    for step in range(settings.steps):
        rows = np.concatenate([rng.choice(own, each) for own in data.training])
        losses = data.losses(model, rows).view(groups, each)
        gap = losses.detach().numpy().mean(axis=1) - known[rows].reshape(groups, each).mean(axis=1)
        excess = np.maximum(gap.astype(np.float64), 0)
        weight = weight * np.exp(settings.robust_rate * excess)
        weight = (1 - settings.smoothing) * weight / weight.sum() + settings.smoothing * by_size
        total += weight
        excess_total += excess
        _step(optimiser, torch.from_numpy(weight.astype(np.float32)) @ losses.mean(dim=1))
        progress("robust", step + 1)
    baseline = np.array([known[own].mean() for own in data.held], np.float64)
    return ProxyResult(total / total.sum(), baseline, excess_total / settings.steps)


def _reference(
    torch: Any,
    data: _Data,
    by_size: Floats,
    seed: int,
    settings: ProxySettings,
    progress: Callable[[str, int], None],
) -> Any:
    """Train with data drawn by size, and keep the state that did best on held-out episodes, by size too.

    The last state would know small data sets by heart, and then they would look hard for ever after.
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
        progress("reference", step + 1)
    assert best_state is not None
    model.load_state_dict(best_state)
    return model


class _Data:
    """All data sets' examples in one row of tensors.

    Attributes:
        training, held: of each data set, int64 row numbers.
    """

    def __init__(self, torch: Any, examples: Sequence[Examples]) -> None:
        self._torch = torch
        # frames stay bytes until a batch needs them: as floats those of all of OXE would be a gigabyte
        frames = np.concatenate([some.frames for some in examples]).transpose(0, 3, 1, 2)
        self._frames = torch.from_numpy(np.ascontiguousarray(frames))
        self._words = torch.from_numpy(np.concatenate([some.words for some in examples]))
        self._classes = torch.from_numpy(np.concatenate([some.classes for some in examples]))
        starts = np.cumsum([0, *(len(some) for some in examples)])
        self.training = [np.flatnonzero(~some.held) + start for some, start in zip(examples, starts, strict=False)]
        self.held = [np.flatnonzero(some.held) + start for some, start in zip(examples, starts, strict=False)]

    def losses(self, model: Any, rows: NDArray[np.int64]) -> Any:
        """Cross-entropy of each row, mean over the seven action dimensions: a tensor (n,)."""
        at = self._torch.from_numpy(rows)
        out = model(self._frames[at].float() / 127.5 - 1, self._words[at])
        loss = self._torch.nn.functional.cross_entropy(out, self._classes[at].reshape(-1), reduction="none")
        return loss.view(-1, 7).mean(dim=1)

    def all_losses(self, model: Any, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Losses of some rows (None: of all), at their place in an array for all rows; NaN elsewhere."""
        result = np.full(len(self._frames), np.nan, np.float32)
        wanted = np.arange(len(result)) if rows is None else rows
        with self._torch.no_grad():
            for part in np.array_split(wanted, -(-len(wanted) // 1024)):
                result[part] = self.losses(model, part).numpy()
        return result


def _model(torch: Any, seed: int, settings: ProxySettings) -> tuple[Any, Any]:
    """Three strided convolutions, the words beside them, one hidden layer: some 220,000 parameters."""
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
                nn.Linear(64 * 16 + WORDS, settings.width), nn.GELU(), nn.Linear(settings.width, 7 * CLASSES)
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
