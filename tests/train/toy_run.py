"""Trains the toy family in a process of its own: python -m tests.train.toy_run '{"run": ..., "steps": ...}'.

Keys besides the run's settings: steps, pause (seconds a step), dropout, width.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from oxe_curate.train.loop import checkpoints
from oxe_curate.train.loop.processes import processes
from oxe_curate.train.loop.progress_log import Log
from oxe_curate.train.loop.sharding import shard
from oxe_curate.train.loop.trainer import FamilyTrainer
from tests.train import toy


def train(told: dict[str, Any]) -> FamilyTrainer:
    told = dict(told)
    steps, pause, dropout = told.pop("steps"), told.pop("pause", 0.0), told.pop("dropout", 0.1)
    run, width = Path(told.pop("run")), told.pop("width", 16)
    run.mkdir(exist_ok=True)
    config = toy.settings(run, **told)
    with processes("cpu") as here:
        family = toy.ToyFamily(config, dropout, width)
        resumed = checkpoints.last(run)
        if resumed is not None:
            family.load(resumed[0] / checkpoints.WEIGHTS)
        if config.shard == "fsdp":
            assert shard(family, here.device) == 3
            assert "DTensor" in type(family.net["blocks"][0].up.weight).__name__
        source = toy.ToySource(config, here)
        if pause:
            source = Slow(config, here, pause)
        log = Log(run, "none", {}, steps, resumed[1].step if resumed else 0, False) if here.first else None
        trainer = FamilyTrainer(
            family, config, toy.mixture(), source, steps=steps, processes=here, hashes={}, log=log, resumed=resumed
        )
        try:
            trainer.run_all()
        finally:
            if log is not None:
                log.close()
        if here.first:
            (run / "stopped").write_text(str(trainer.stopped is not None))
    return trainer


class Slow(toy.ToySource):
    def __init__(self, config: Any, here: Any, pause: float) -> None:
        super().__init__(config, here)
        self.pause = pause

    def train(self, consumed: int) -> Any:
        for batch in super().train(consumed):
            time.sleep(self.pause)
            yield batch


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    train(json.loads(sys.argv[1]))
