"""Batches of a mixture, in order, prepared ahead by threads.

Threads instead of processes: pread, the JPEG decoder, Pillow and the tokenizers release the interpreter lock, so
threads scale, nothing is pickled, and no process is forked after CUDA started. See
benchmarks/results/README.md.
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
from oxe_curate.train.data.local import MEMORY
from oxe_curate.train.data.row_source import Claim, open_rows
from oxe_curate.train.data.rows import SampleFormat
from oxe_curate.train.data.shards import split_shards
from oxe_curate.train.settings import ResizeFilter

_AHEAD, _AHEAD_BYTES = 3, 512 << 20
"""Limits of what is prepared ahead: batches per thread, and bytes of all threads."""


class Loader:
    """The micro-batches of one process in a run, starting at any sample.

    The order is a function of the seed and the mixture. `start` counts the samples that all processes have consumed
    together; a run that continues from there sees the same samples as without the interruption, on any number of
    threads and GPUs and with any division of the global batch.

    Args:
        mixture: a finished mixture. collator: makes a batch of rows; called in several threads.
        image_size: S, side in pixels.
        resize: the filter for images of another size.
        mixed: leave images at their own size, for the model's device to resize (`MixedImages`).
        batch_size: samples per micro-batch of this process. accumulation: micro-batches per optimizer step.
        rank, world: number of this process, and of all processes.
        seed: of order and augmentation.
        start: samples consumed before.
        steps: optimizer steps; None: to the end of the epoch, rounded up to a whole step.
        cameras, window, chunk, proprio: the part of the rows to read; None: all that the mixture has.
        text_factor: factor of the language loss on image-text rows.
        workers: decoding threads; None: one per core, at most eight.
        memory: bytes of the rows' numbers to keep.
        pin: put the tensors into page-locked memory, so that copies to the GPU overlap with its work.
        row_groups: read whole row groups and mix them in a bounded buffer, as from an object store: for disks with slow
            random reads. The order differs, so a resumed run must keep it. None: for object stores only.

    Raises:
        ConfigError: the mixture does not have this part of the rows, or no rows at all.
        DataError: a shard is missing or differs from the manifest.
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
        resize: ResizeFilter = "bicubic",
        mixed: bool = False,
        row_groups: bool | None = None,
    ) -> None:
        self.sample_format = SampleFormat.of(mixture, cameras, window, chunk, proprio)
        self._rows = open_rows(mixture, split_shards(mixture, "train", "text"), self.sample_format, memory, row_groups)
        if len(self._rows) == 0:
            raise ConfigError(f"{mixture.folder}: contains no training rows")
        self._collator, self._image_size = collator, image_size
        self._batch_size, self._accumulation = batch_size, accumulation
        self._rank, self._world, self._seed, self._start = rank, world, seed, start
        self._text_factor, self._pin = text_factor, pin
        self._resize, self._mixed = resize, mixed
        self._workers = workers or _default_workers()
        self._order = self._rows.order(seed, self.global_batch, world)
        left = self.samples - start % self.samples
        self._steps = -(-left // self.global_batch) if steps is None else steps

    @property
    def samples(self) -> int:
        """Rows per epoch, of all processes."""
        return len(self._rows)

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step, of all processes."""
        return self._world * self._batch_size * self._accumulation

    def __len__(self) -> int:
        """Number of micro-batches of this process."""
        return self._steps * self._accumulation

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; closing the iterator stops the threads."""
        plan, kept = itertools.tee(self._positions(step) for step in range(len(self)))
        with closing(self._rows.batches(self._order.rows(positions) for positions in plan)) as claims:
            jobs = (functools.partial(self._batch, *job) for job in zip(kept, claims, strict=True))
            yield from prefetched(jobs, self._workers)

    def rows(self, step: int) -> Rows:
        """The rows of a micro-batch, read in the caller's thread: for tests and tools."""
        positions = self._positions(step)
        return self._assemble(positions, self._rows.claim(self._order.rows(positions)))

    def _positions(self, step: int) -> NDArray[np.int64]:
        return self._order.positions(self._start, step, self._rank, self._world, self._batch_size, self._accumulation)

    def _assemble(self, positions: NDArray[np.int64], claim: Claim) -> Rows:
        return assemble(
            positions, claim(), self.sample_format, self._image_size, self._seed, self._text_factor, self._resize,
            self._mixed, self._pin,
        )  # fmt: skip

    def _batch(self, positions: NDArray[np.int64], claim: Claim) -> Batch:
        batch = self._collator(self._assemble(positions, claim))
        return _pinned(batch) if self._pin else batch


class ValidationLoader:
    """Held-out samples, each once, in a fixed order that is independent of the seed.

    Processes take equal parts, since sharded models need the same number of forward passes in each: the last
    `count % world` samples are left out. The last batch of a process may be smaller.

    Args:
        count: number of samples, of all processes; None or more than there are: all.
        others: see `Loader`.

    Raises:
        ConfigError: the mixture has fewer held-out samples than there are processes.
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
        resize: ResizeFilter = "bicubic",
        mixed: bool = False,
    ) -> None:
        self.sample_format = SampleFormat.of(mixture, cameras, window, chunk, proprio)
        self._rows = open_rows(mixture, split_shards(mixture, "validation"), self.sample_format, memory)
        held = len(self._rows)
        self.samples = min(held, held if count is None else count) // world * world
        if self.samples == 0:
            raise ConfigError(
                f"{mixture.folder}: {held} held-out samples are too few for {world} processes. "
                "Increase `validation` in the mixture and run tokenize again, or set eval_samples: 0."
            )
        self._places = np.arange(rank, self.samples, world, dtype=np.int64)
        self._collator, self._image_size, self._batch_size = collator, image_size, batch_size
        self._workers, self._pin = workers or _default_workers(), pin
        self._resize, self._mixed = resize, mixed

    def __len__(self) -> int:
        """Number of batches, the same in every process."""
        return -(-len(self._places) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; closing the iterator stops the threads."""
        jobs = (functools.partial(self._batch, step) for step in range(len(self)))
        return prefetched(jobs, self._workers)

    def _batch(self, step: int) -> Batch:
        batch = self._collator(self.rows(step))
        return _pinned(batch) if self._pin else batch

    def rows(self, step: int) -> Rows:
        """Read the rows of a batch."""
        places = self._places[step * self._batch_size : (step + 1) * self._batch_size]
        claim = self._rows.claim(self._rows.held_out(places))
        return assemble(
            places, claim(), self.sample_format, self._image_size, 0, 1.0, self._resize, self._mixed, self._pin
        )


def _default_workers() -> int:
    """Decoding threads: one per core that this process may use, from two to eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 2), 8)


def batches_ahead(workers: int, largest: int) -> int:
    """Number of batches to prepare ahead: enough for the threads, limited to `_AHEAD_BYTES` of batches of that size."""
    return max(min(workers * _AHEAD, _AHEAD_BYTES // max(largest, 1)), workers + 1)


def prefetched(jobs: Iterator[Callable[[], Batch]], workers: int) -> Iterator[Batch]:
    """Run jobs in threads and yield their results in order, as many ahead as the largest one so far allows.

    The exception of a job is raised at its turn. The threads end with the last result, an exception, or the generator.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="oxe-loader")
    waiting: deque[Future[Batch]] = deque()
    limit, largest = workers + 1, 0  # until the first batch shows how large they are
    try:
        for job in itertools.islice(jobs, limit):
            waiting.append(pool.submit(job))
        while waiting:
            batch = waiting.popleft().result()
            largest = max(largest, _bytes_of(batch))
            limit = batches_ahead(workers, largest)
            for job in itertools.islice(jobs, max(limit - len(waiting), 0)):
                waiting.append(pool.submit(job))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bytes_of(batch: Batch) -> int:
    values = batch.values() if isinstance(batch, dict) else ()  # tools collate into other types
    return sum(getattr(value, "nbytes", 0) for value in values)


def _pinned(batch: Batch) -> Batch:
    """Move the tensors of a batch to page-locked memory."""
    return {name: value.pin_memory() if hasattr(value, "pin_memory") else value for name, value in batch.items()}
