"""The batches of a run, read from the shards of a mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.data.batch import Collator
from oxe_curate.train.data.loader import Loader, ValidationLoader
from oxe_curate.train.loop.distributed import Distributed
from oxe_curate.train.loop.validate import HeldOut
from oxe_curate.train.models.base import PolicySpec


@dataclass(frozen=True)
class MixtureSource:
    """Training and held-out batches for a model.

    Attributes:
        mixture: the shards. spec: of the model. collator: of its family.
        config: of the run. dist: the processes that share the samples.
    """

    mixture: MixtureFolder
    spec: PolicySpec
    collator: Collator
    config: TrainConfig
    dist: Distributed

    def train(self, consumed: int) -> Loader:
        """This process's batches to the end of the run, after `consumed` samples of all processes."""
        return self._loader(consumed, self.steps - consumed // self.global_batch)

    def validation(self) -> ValidationLoader:
        """This process's held-out batches."""
        return self._held_out

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, of all processes."""
        return self.config.batch_size * self.config.accumulation * self.dist.world

    @cached_property
    def samples(self) -> int:
        """Rows of an epoch, robot and image-text rows."""
        return self._loader(0, None).samples

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: as configured, or as many as the epochs take."""
        return self.config.steps or max(1, math.ceil((self.config.epochs or 1) * self.samples / self.global_batch))

    @property
    def validates(self) -> bool:
        """Whether there are held-out samples to validate on."""
        held = sum(self.mixture.manifest["rows"]["validation"].values())
        return self.config.eval_samples > 0 and held >= self.dist.world

    @cached_property
    def _held_out(self) -> ValidationLoader:
        spec, config = self.spec, self.config
        return ValidationLoader(
            self.mixture,
            HeldOut(self.collator, crop=config.augment),
            image_size=spec.image_size,
            batch_size=config.batch_size,
            count=config.eval_samples,
            rank=self.dist.rank,
            world=self.dist.world,
            cameras=spec.cameras,
            window=spec.window,
            chunk=spec.chunk,
            proprio=spec.proprio > 0,
            workers=config.workers,
            pin=self.dist.device.type == "cuda",
            resize=spec.resize,
            mixed=self.dist.device.type == "cuda",  # on a CPU the loader's threads resize while the model computes
        )

    def _loader(self, start: int, steps: int | None) -> Loader:
        spec, config = self.spec, self.config
        return Loader(
            self.mixture,
            self.collator,
            image_size=spec.image_size,
            batch_size=config.batch_size,
            accumulation=config.accumulation,
            rank=self.dist.rank,
            world=self.dist.world,
            seed=config.seed,
            start=start,
            steps=steps,
            cameras=spec.cameras,
            window=spec.window,
            chunk=spec.chunk,
            proprio=spec.proprio > 0,
            text_factor=config.text_factor,
            workers=config.workers,
            pin=self.dist.device.type == "cuda",
            resize=spec.resize,
            mixed=self.dist.device.type == "cuda",
        )
