"""A family of a few hundred weights and synthetic rows, to test the trainer without data or a real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from oxe_curate.actions.bounds import Bounds
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.batch import Batch, Collator, Rows
from oxe_curate.train.data.order import batch_positions
from oxe_curate.train.loop.checkpoints import Progress
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.validate import HeldOut
from oxe_curate.train.models import adapter_files
from oxe_curate.train.models.base import Controller, Family, PolicySpec

FEATURES, CHUNK = 6, 2
NAMES = ("arm_a", "arm_b")
ALONE = Distributed(0, 1, torch.device("cpu"))


def collate(rows: Rows) -> Batch:
    return {
        "x": torch.from_numpy(rows.proprio),
        "actions": torch.from_numpy(rows.actions[:, -1]),
    }


class Block(nn.Module):
    """Has the shape of a transformer block, so that FSDP finds it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(torch.tanh(self.up(x)))


class ToyFamily(Family):
    """Predicts a chunk of actions from the proprio, by least squares."""

    name = "toy"

    def __init__(self, config: TrainConfig, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.net = nn.ModuleDict(
                {
                    "enter": nn.Linear(FEATURES, width),
                    "blocks": nn.ModuleList(Block(width) for _ in range(2)),
                    "leave": nn.Linear(width, CHUNK * 7),
                }
            )
        for block in self.net["blocks"]:
            block.drop.p = dropout
        self.net["enter"].requires_grad_(False)
        self.spec = PolicySpec(("primary",), 1, CHUNK, 8, FEATURES, {}, None, "openvla", {})

    @classmethod
    def build(cls, config: TrainConfig, mixture: Any, device: torch.device) -> ToyFamily:
        return cls(config)

    @classmethod
    def restore(cls, config: TrainConfig, spec: PolicySpec, folder: Path | None, device: torch.device) -> ToyFamily:
        found = cls(config)
        if folder is not None:
            found.load(folder)
        return found

    @property
    def collator(self) -> Collator:
        return collate

    def _actions(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.net["enter"](x)
        for block in self.net["blocks"]:
            hidden = block(hidden)
        return self.net["leave"](hidden).view(-1, CHUNK, 7)

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        error = (self._actions(batch["x"]) - batch["actions"]).square().mean(dim=(1, 2))
        return {"loss": error.mean(), "token_accuracy": (error.detach() < 0.1).float().mean()}

    def predict(self, batch: Batch) -> torch.Tensor:
        return self._actions(batch["x"])

    def parameter_groups(self, weight_decay: float | None) -> list[dict[str, Any]]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay or 0.01},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def save(self, folder: Path) -> None:
        adapter_files.save_trained(self.net, folder)

    def load(self, folder: Path) -> None:
        adapter_files.load_trained(self.net, folder)

    def controller(self, compile: bool = True) -> Controller:
        raise NotImplementedError

    def export(self, folder: Path, merge: bool) -> None:
        raise NotImplementedError


class ToySource:
    """Rows that are a function of their position."""

    def __init__(self, config: TrainConfig, dist: Distributed = ALONE, held: int = 8) -> None:
        self.config, self.dist, self.held = config, dist, held

    def train(self, consumed: int) -> Iterator[Batch]:
        step = 0
        while True:
            yield collate(
                rows(
                    batch_positions(
                        consumed,
                        step,
                        self.dist.rank,
                        self.dist.world,
                        self.config.batch_size,
                        self.config.accumulation,
                    )
                )
            )
            step += 1

    def validation(self) -> Iterator[Batch]:
        for start in range(0, self.held, 4):
            if start // 4 % self.dist.world == self.dist.rank:
                yield HeldOut(collate)(rows(np.arange(10_000 + start, 10_004 + start)))


def rows(positions: np.ndarray) -> Rows:
    """Actions are a fixed mixing of the state."""
    n = len(positions)
    state = np.stack([np.random.default_rng(int(p)).standard_normal(FEATURES, np.float32) for p in positions])
    mixing = np.random.default_rng(0).standard_normal((FEATURES, CHUNK * 7)).astype(np.float32) / 3
    return Rows(
        position=positions,
        dataset=positions % len(NAMES),
        instruction=["push"] * n,
        images=np.zeros((n, 1, 1, 8, 8, 3), np.uint8),
        observation_mask=np.ones((n, 1), np.bool_),
        actions=np.tanh(state @ mixing).reshape(n, 1, CHUNK, 7),
        bins=np.zeros((n, 1, CHUNK, 7), np.uint8),
        action_mask=np.ones((n, 1, CHUNK), np.bool_),
        proprio=state,
        random=np.zeros((n, 8), np.float32),
        sample_id=[str(p) for p in positions],
    )


def mixture() -> Any:
    """The part of a mixture that the trainer uses."""
    actions = np.linspace(-1, 1, 70, dtype=np.float32).reshape(10, 7)
    return SimpleNamespace(
        names=NAMES, manifest={"rows": {}}, statistics={"arm_a": Bounds.fit(actions), "arm_b": Bounds.fit(3 * actions)}
    )


def settings(run: Path, **values: Any) -> TrainConfig:
    """A short run on the CPU."""
    usual = {"batch_size": 4, "dtype": "fp32", "learning_rate": 1e-2, "log": "none", "log_every": 1, "adapter": "none"}
    return TrainConfig(data="-", base="-", run=str(run), **{**usual, **values})


def progress(step: int = 1, **values: Any) -> Progress:
    """The progress of a checkpoint, for tests of the folder."""
    usual: dict[str, Any] = {"step": step, "consumed": 4 * step, "global_batch": 4, "config": {}, "hashes": {}}
    return Progress(**{**usual, **values})
