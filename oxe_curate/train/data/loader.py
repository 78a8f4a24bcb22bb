"""Batches of a mixture, in order, made ahead by threads.

Threads and not processes: pread, the JPEG decoder, Pillow and the tokenizers all let go of the interpreter's lock, so
they scale, nothing is pickled, and no process is forked beside CUDA. Measured: benchmarks/results/train-stream.md.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from oxe_curate.errors import ConfigError
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.assemble import assemble
from oxe_curate.train.data.batch import Batch, Collator, Rows
from oxe_curate.train.data.local import MEMORY, LocalRows, split_shards
from oxe_curate.train.data.order import shuffled
from oxe_curate.train.data.row_source import open_rows, order_of
from oxe_curate.train.data.rows import Form, Located

AHEAD, AHEAD_BYTES = 3, 512 << 20
"""Batches that each thread may be ahead, and bytes of pictures that all may be, where that is fewer."""

Claim = Callable[[], Sequence[Located]]


class Loader:
    """A run's micro-batches for one process, from any sample on.

    The order is a function of the seed and the mixture alone. `start` counts the samples that all processes have
    consumed together; a run continued from there sees what it would have seen, on any number of threads and GPUs and
    with any division of the global batch.

    Args:
        mixture: a finished mixture. collator: makes a batch of rows; called in several threads.
        image_size: S, pixels of a side.
        batch_size: samples a micro-batch of this process. accumulation: micro-batches an optimizer step.
        rank, world: this process, and how many there are.
        seed: of order and augmentation.
        start: samples consumed before.
        steps: optimizer steps to make; None: to the end of the epoch, rounded up to a whole step.
        cameras, window, chunk, proprio: what of the rows is wanted; None: all that the mixture has.
        text_factor: of the language loss on image-text rows.
        workers: threads that decode; None: one for each core, eight at most.
        memory: bytes of the rows' numbers that are kept.
        pin: put the tensors into page-locked memory, for a copy to the GPU beside its work.
        row_groups: read whole row groups and mix in a bounded buffer, as from an object store: for disks that are slow
            at single reads. It is another order, so a resumed run must keep it. None: for object stores alone.

    Raises:
        ConfigError: a form of rows that the mixture does not have; an empty mixture.
        DataError: a shard is missing or not the one that the manifest tells of.
    """

    def __init__(
        self,
        mixture: MixtureFolder,
        collator: Collator,
        *,
        image_size: int,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start: int = 0,
        steps: int | None = None,
        cameras: Sequence[str] | None = None,
        window: int | None = None,
        chunk: int | None = None,
        proprio: bool = False,
        text_factor: float = 1.0,
        workers: int | None = None,
        memory: int = MEMORY,
        pin: bool = False,
        row_groups: bool | None = None,
    ) -> None:
        self.form = Form.of(mixture, cameras, window, chunk, proprio)
        self._rows = open_rows(mixture, split_shards(mixture, "train", "text"), self.form, memory, row_groups)
        if len(self._rows) == 0:
            raise ConfigError(f"{mixture.folder}: holds no rows to train on")
        self._collator, self._image_size = collator, image_size
        self._batch_size, self._accumulation = batch_size, accumulation
        self._rank, self._world, self._seed, self._start = rank, world, seed, start
        self._text_factor, self._pin = text_factor, pin
        self._workers = workers or default_workers()
        self._order = order_of(self._rows, seed, self.global_batch, world)
        left = self.samples - start % self.samples
        self._steps = -(-left // self.global_batch) if steps is None else steps

    @property
    def samples(self) -> int:
        """Rows in an epoch, of all processes."""
        return len(self._rows)

    @property
    def global_batch(self) -> int:
        """Samples an optimizer step, of all processes."""
        return self._world * self._batch_size * self._accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, rounded up: the last one reaches into the next epoch."""
        return -(-self.samples // self.global_batch)

    def __len__(self) -> int:
        """Micro-batches of this process."""
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches. Leaving the loop early stops the threads."""
        plan, kept = itertools.tee(self._positions(step) for step in range(len(self)))
        with closing(self._rows.batches(self._order.rows(positions) for positions in plan)) as claims:
            jobs = (functools.partial(self._batch, *job) for job in zip(kept, claims, strict=True))
            yield from ahead(
                jobs, self._workers, batches_ahead(self._workers, self._batch_size, self._image_size, self.form)
            )

    def rows(self, step: int) -> Rows:
        """The rows of a micro-batch, made in the caller's thread: for tests and tools."""
        positions = self._positions(step)
        return self._assemble(positions, self._rows.claim(self._order.rows(positions)))

    def _positions(self, step: int) -> NDArray[np.int64]:
        return self._order.positions(self._start, step, self._rank, self._world, self._batch_size, self._accumulation)

    def _assemble(self, positions: NDArray[np.int64], claim: Claim) -> Rows:
        return assemble(positions, claim(), self.form, self._image_size, self._seed, self._text_factor)

    def _batch(self, positions: NDArray[np.int64], claim: Claim) -> Batch:
        batch = self._collator(self._assemble(positions, claim))
        return pinned(batch) if self._pin else batch


class ValidationLoader:
    """Held-out samples, each once, in a fixed shuffled order that no seed changes.

    Processes take equal parts, so that all make the same number of forward passes, as sharded models need: the last
    `count % world` samples are left out (none with one process). A process's last batch may be smaller.

    Args:
        count: samples looked at, of all processes; None or more than there are: all.
        others: as `Loader`'s.

    Raises:
        ConfigError: the mixture holds out fewer samples than there are processes.
    """

    def __init__(
        self,
        mixture: MixtureFolder,
        collator: Collator,
        *,
        image_size: int,
        batch_size: int,
        count: int | None = None,
        rank: int = 0,
        world: int = 1,
        cameras: Sequence[str] | None = None,
        window: int | None = None,
        chunk: int | None = None,
        proprio: bool = False,
        workers: int | None = None,
        memory: int = MEMORY,
        pin: bool = False,
    ) -> None:
        self.form = Form.of(mixture, cameras, window, chunk, proprio)
        self._rows = open_rows(mixture, split_shards(mixture, "validation"), self.form, memory)
        held = len(self._rows)
        self.samples = min(held, held if count is None else count) // world * world
        if self.samples == 0:
            raise ConfigError(
                f"{mixture.folder}: holds out {held} samples, too few for {world} processes. "
                "Give the mixture a larger share for validation and run tokenize again, or set eval_samples: 0."
            )
        self._places = np.arange(rank, self.samples, world, dtype=np.int64)
        self._collator, self._image_size, self._batch_size = collator, image_size, batch_size
        self._workers, self._pin = workers or default_workers(), pin

    def __len__(self) -> int:
        """Batches of this process; the same number for every process."""
        return -(-len(self._places) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches. Leaving the loop early stops the threads."""
        jobs = (functools.partial(self._batch, step) for step in range(len(self)))
        return ahead(jobs, self._workers, batches_ahead(self._workers, self._batch_size, self._image_size, self.form))

    def _batch(self, step: int) -> Batch:
        batch = self._collator(self.rows(step))
        return pinned(batch) if self._pin else batch

    def rows(self, step: int) -> Rows:
        """The rows of a batch."""
        places = self._places[step * self._batch_size : (step + 1) * self._batch_size]
        local = isinstance(self._rows, LocalRows)  # elsewhere in the order of the shards, whose rows are shuffled
        rows = shuffled(0, 0, len(self._rows), places) if local else places
        return assemble(places, self._rows.claim(rows)(), self.form, self._image_size, 0)


def default_workers() -> int:
    """Threads that decode: one for each core this process may use, two at least, eight at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 2), 8)


def batches_ahead(workers: int, batch_size: int, image_size: int, form: Form) -> int:
    """How many batches are made ahead: enough for the threads, but no more pictures than `AHEAD_BYTES` hold."""
    size = batch_size * form.window * len(form.cameras) * image_size**2 * 3
    return max(min(workers * AHEAD, AHEAD_BYTES // size), workers + 1)


def ahead(jobs: Iterator[Callable[[], Batch]], workers: int, limit: int) -> Iterator[Batch]:
    """Run jobs in threads and yield their results in order, at most `limit` of them made ahead.

    A job's exception is raised at its turn. The threads end with the last result, an exception, or the generator.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="oxe-loader")
    waiting: deque[Future[Batch]] = deque()
    try:
        for job in itertools.islice(jobs, limit):
            waiting.append(pool.submit(job))
        while waiting:
            batch = waiting.popleft().result()
            for job in itertools.islice(jobs, 1):
                waiting.append(pool.submit(job))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pinned(batch: Batch) -> Batch:
    """The batch with its tensors in page-locked memory."""
    return {name: value.pin_memory() if hasattr(value, "pin_memory") else value for name, value in batch.items()}
