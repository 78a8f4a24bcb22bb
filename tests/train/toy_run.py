"""Trains the toy family in a separate process: python -m tests.train.toy_run '{"run": ..., "steps": ...}'.

Keys in addition to the settings of a run: steps, pause (seconds per step), dropout, width.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from oxe_curate.train.loop.checkpoints import last_checkpoint
from oxe_curate.train.loop.distributed import join_processes
from oxe_curate.train.loop.progress_log import Log
from oxe_curate.train.loop.sharding import shard
from oxe_curate.train.loop.trainer import FamilyTrainer
from oxe_curate.train.run_folder import RunFolder
from tests.train import toy


def train(given: dict[str, Any]) -> FamilyTrainer:
    given = dict(given)
    steps, pause, dropout = given.pop("steps"), given.pop("pause", 0.0), given.pop("dropout", 0.1)
    run, width = Path(given.pop("run")), given.pop("width", 16)
    run.mkdir(exist_ok=True)
    config = toy.settings(run, **given)
    with join_processes("cpu") as dist:
        family = toy.ToyFamily(config, dropout, width)
        resumed = last_checkpoint(RunFolder(run))
        if resumed is not None:
            family.load(resumed[0].weights)
        if config.shard == "fsdp":
            assert shard(family, dist.device) == 3
            assert "DTensor" in type(family.net["blocks"][0].up.weight).__name__
        source = toy.ToySource(config, dist)
        if pause:
            source = Slow(config, dist, pause)
        log = Log(RunFolder(run), "none", {}, steps, resumed[1].step if resumed else 0, False) if dist.first else None
        trainer = FamilyTrainer(
            family, config, toy.mixture(), source, steps=steps, dist=dist, hashes={}, log=log, resumed=resumed
        )
        try:
            trainer.run_all()
        finally:
            if log is not None:
                log.close()
        if dist.first:
            (run / "stopped").write_text(str(trainer.stopped is not None))
    return trainer


class Slow(toy.ToySource):
    def __init__(self, config: Any, dist: Any, pause: float) -> None:
        super().__init__(config, dist)
        self.pause = pause

    def train(self, consumed: int) -> Any:
        for batch in super().train(consumed):
            time.sleep(self.pause)
            yield batch


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    train(json.loads(sys.argv[1]))
