"""Pictures by byte range from the source shards, action histograms, and the samples that tokenize would draw first."""

from __future__ import annotations

import bisect
import functools
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.editor.catalogue import Catalogue
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.scan import ROLES
from oxe_curate.index import images
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import locate
from oxe_curate.index.store import Index
from oxe_curate.lru import LruCache
from oxe_curate.mixture import sampling as samples
from oxe_curate.mixture.spec import IndexedDataset, Mixture, resolve
from oxe_curate.rlds.remote import open_shard
from oxe_curate.storage import Folder

HEIGHTS = (72, 144, 288)
AXES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
BINS = 48
EXAMPLES = 6
MOST_STEPS = 200_000
"""Steps of a data set that a histogram counts: enough for its shape, and read in a second."""
_CACHE_BYTES = 48 << 20


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A shard's rows before they are shuffled: `parts` are episodes, `starts` the number of each one's first row."""

    order: NDArray[np.int64]
    starts: list[int]
    parts: list[tuple[IndexedDataset, int, int, Episode, NDArray[np.int64], NDArray[np.int64]]]
    shard: str
    shards: int


class FrameViewer:
    """Reads what the page shows of an index. All places are numbers into the index: no name of a file comes in."""

    def __init__(self, catalogue: Catalogue, index: Index) -> None:
        self._catalogue, self._index = catalogue, index
        self._pictures: LruCache[bytes] = LruCache(_CACHE_BYTES)

    def picture(
        self, dataset: str, role: str, file: int, row: int, step: int, height: int, swap: bool | None = None
    ) -> bytes:
        """One frame as a JPEG.

        Args:
            dataset: its name in the index.
            role: of the camera.
            file: number of the index file.
            row: of the episode in it.
            step: of the episode.
            height: one of `HEIGHTS`.
            swap: whether red and blue are exchanged; None: as the card says.

        Raises:
            ConfigError: there is no such frame. DataError: it cannot be decoded.
        """

        def make() -> tuple[bytes, int]:
            picture = self._picture(dataset, role, file, row, step, height, swap)
            return picture, len(picture)

        return self._pictures.get((dataset, role, file, row, step, height, swap), make)

    def _picture(
        self, dataset: str, role: str, file: int, row: int, step: int, height: int, swap: bool | None
    ) -> bytes:
        if height not in HEIGHTS:
            raise ConfigError(f"a picture is {HEIGHTS} pixels high")
        card = self._catalogue.card(dataset)
        camera = card.cameras_by_role().get(role)
        if swap is None:
            swap = camera is not None and card.cameras[camera].channels == "bgr"
        data = self._frame(self._episode(dataset, file, row), role, step)
        try:
            pixels = images.decode(data)
        except ValueError as error:
            raise DataError(f"{dataset}: this frame cannot be decoded ({error})") from None
        return _thumbnail(pixels[:, :, ::-1] if swap else pixels, height)

    def thumbnail(self, dataset: str, height: int) -> bytes:
        """A frame from the middle of a kept episode. Raises ConfigError if there is none."""
        self._catalogue.card(dataset)
        file, row, steps = self._examples(dataset)[0]
        roles = self._episode(dataset, file, row).spans
        role = next((role for role in ("primary", "secondary", "extra", "wrist") if role in roles), None)
        if role is None:
            raise ConfigError(f"{dataset} has no frames")
        return self.picture(dataset, role, file, row, steps // 2, height)

    def details(self, dataset: str) -> dict[str, Any]:
        """Example episodes with their frames' places, and the instructions of the first files."""
        self._catalogue.card(dataset)
        examples = []
        for file, row, steps in self._examples(dataset):
            episode = self._episode(dataset, file, row)
            examples.append(
                {"file": file, "row": row, "steps": steps, "roles": [role for role in ROLES if role in episode.spans],
                 "id": episode.id, "instruction": episode.instruction}
            )  # fmt: skip
        texts: Counter[str] = Counter()
        for path in self._index.files(dataset)[:8]:
            table = self._index.table(path, ["kept", "instruction"])
            kept = np.asarray(table["kept"])
            texts.update(t for t, k in zip(table["instruction"].to_pylist(), kept, strict=True) if k)
        return {
            "dataset": dataset,
            "examples": examples,
            "instructions": [{"text": text, "episodes": n} for text, n in texts.most_common(40)],
            "distinct": len(texts),
            "files": min(len(self._index.files(dataset)), 8),
            "allFiles": len(self._index.files(dataset)),
        }

    def histograms(self, datasets: list[str], low: float, high: float) -> dict[str, Any]:
        """Histograms of each action dimension over common edges, with the bounds and the share beyond them.

        Args:
            datasets: one or two names in the index.
            low: probability of the lower bound, as the mixture's `bounds.low`.
            high: of the upper bound.
        """
        if not 1 <= len(datasets) <= 2 or not 0 <= low < high <= 1:
            raise ConfigError("one or two data sets, and 0 <= low < high <= 1")
        for dataset in datasets:
            self._catalogue.card(dataset)
        actions = {dataset: self._actions(dataset) for dataset in datasets}
        dimensions = []
        for i, axis in enumerate(AXES):
            columns = {dataset: values[:, i] for dataset, values in actions.items()}
            left = min(float(np.quantile(c, 0.001)) for c in columns.values())
            right = max(float(np.quantile(c, 0.999)) for c in columns.values())
            if right - left < 1e-9:
                left, right = left - 0.5, right + 0.5
            edges = np.linspace(left, right, BINS + 1)
            series = [_series(dataset, c, edges, low, high, clips=i < 6) for dataset, c in columns.items()]
            dimensions.append({"axis": axis, "left": left, "right": right, "series": series})
        return {
            "dimensions": dimensions,
            "steps": {dataset: len(values) for dataset, values in actions.items()},
            "all": {dataset: self._index.datasets[dataset].summary.steps_kept for dataset in datasets},
        }

    def next_samples(self, mixture: Mixture, where: str, offset: int, count: int) -> dict[str, Any]:
        """Rows offset..offset+count of the first training shard that tokenize would write of this mixture.

        Raises:
            ConfigError: tokenize would refuse the mixture.
        """
        drawn = self._draw(mixture, where)
        role = mixture.image.cameras[0]
        found = []
        for i in drawn.order[offset : offset + count].tolist():
            part = bisect.bisect_right(drawn.starts, i) - 1
            source, file, row, episode, steps, copies = drawn.parts[part]
            step, copy = int(steps[i - drawn.starts[part]]), int(copies[i - drawn.starts[part]])
            which = episode.instruction_index[step] if episode.instruction_index is not None else -1
            found.append(
                {"dataset": source.dataset, "name": source.entry.name, "file": file, "row": row, "step": step,
                 "steps": episode.num_steps, "copy": copy, "role": role, "swap": role in source.bgr,
                 "sampleId": f"{episode.id}/{step:05d}" + (f"#{copy}" if copy else ""),
                 "instruction": episode.instructions[which] if which >= 0 else episode.instruction}
            )  # fmt: skip
        return {"samples": found, "shard": drawn.shard, "rows": len(drawn.order), "shards": drawn.shards}

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one per process; turning pages draws nothing again)
    def _draw(self, mixture: Mixture, where: str) -> _Drawn:
        """Draw the first training shard as `tokenize.build.gather` does, without its frames."""
        from oxe_curate.tokenize.pipeline import SHARD_BYTES
        from oxe_curate.tokenize.plan import plan_shards

        sources = resolve(mixture, self._index, where, self._catalogue.cards)
        tasks = plan_shards(mixture, self._index, sources, {}, Folder.of(Path("unused")), SHARD_BYTES, {})
        task = tasks[0]
        keys: list[NDArray[np.uint64]] = []
        parts, starts, total = [], [], 0
        for number, path, rows in task.episodes:
            source = sources[number]
            file = self._index.files(source.dataset).index(path)
            for row, episode in zip(rows, Episode.read(task.index, path, rows), strict=True):
                steps, copy = samples.draw(
                    source.entry.weight, mixture.seed, episode.id, episode.num_steps,
                    stride=mixture.stride, validation=task.validation,
                )  # fmt: skip
                episode_hash = samples.episode_hash(mixture.seed, episode.id)
                hashes = samples.step_hashes(episode_hash, episode.num_steps, samples.ORDER)
                keys.append(samples.splitmix64(hashes[steps]) + copy.astype(np.uint64))
                if len(steps):
                    parts.append((source, file, int(row), episode, steps, copy))
                    starts.append(total)
                    total += len(steps)
        order = samples.order(np.concatenate(keys)) if keys else np.empty(0, np.int64)
        return _Drawn(order, starts, parts, task.output, len(tasks))

    def _episode(self, dataset: str, file: int, row: int) -> Episode:
        files = self._index.files(dataset)
        if not 0 <= file < len(files) or row < 0:
            raise ConfigError(f"{dataset}: there is no file {file} in the index")
        try:
            return Episode.read(self._index.folder, files[file], [row])[0]
        except (IndexError, ValueError, AttributeError):
            raise ConfigError(f"{dataset}: there is no episode {row} in file {file}") from None

    def _frame(self, episode: Episode, role: str, step: int) -> bytes:
        if role not in episode.spans or not 0 <= step < episode.num_steps:
            raise ConfigError(f"{episode.id}: there is no frame {step} of a {role} camera")
        frames, source = episode.frames.get(role), self._index.source
        if frames is None or len(frames) == 0:
            span = episode.spans[role]
            shard = open_shard(source, episode.shard)
            shard.prefetch(*span)
            frames = locate(shard.buffer, span, episode.source_steps, role)[episode.frame_index]
        offset, length = frames[step].tolist()
        return source.read_bytes(episode.shard, offset, length)

    @functools.lru_cache(maxsize=256)  # noqa: B019 (one per process)
    def _examples(self, dataset: str) -> list[tuple[int, int, int]]:
        """(file, row, steps) of kept episodes, spread over the data set's files."""
        files = self._index.files(dataset)
        chosen = sorted({round(i) for i in np.linspace(0, len(files) - 1, EXAMPLES).tolist()}) if files else []
        found: list[list[tuple[int, int, int]]] = []
        for file in chosen:
            table = self._index.table(files[file], ["kept", "num_steps"])
            kept = np.flatnonzero(np.asarray(table["kept"]))
            spread = kept[np.unique(np.linspace(0, len(kept) - 1, EXAMPLES).astype(int))] if len(kept) else []
            found.append([(file, int(row), int(table["num_steps"][int(row)].as_py())) for row in spread])
        turns = [rows[i] for i in range(EXAMPLES) for rows in found if i < len(rows)]
        if not turns:
            raise ConfigError(f"the index keeps no episode of {dataset}")
        return turns[:EXAMPLES]

    @functools.lru_cache(maxsize=8)  # noqa: B019 (one per process; 5.6 MB each)
    def _actions(self, dataset: str) -> NDArray[np.float32]:
        held, steps = [], 0
        files = self._index.files(dataset)
        for path in [*files[::7], *(f for i, f in enumerate(files) if i % 7)]:  # not the first files alone
            table = self._index.table(path, ["kept", "action"])
            kept = table.filter(table["kept"])["action"].combine_chunks()
            values = np.asarray(kept.flatten().flatten()).reshape(-1, 7)
            held.append(values)
            steps += len(values)
            if steps >= MOST_STEPS:
                break
        values = np.concatenate(held)[:MOST_STEPS] if held else np.empty((0, 7), np.float32)
        if not len(values):
            raise ConfigError(f"the index keeps no step of {dataset}")
        return values


def _series(
    dataset: str, column: NDArray[np.float32], edges: NDArray[np.float64], low: float, high: float, clips: bool
) -> dict[str, Any]:
    counts, _ = np.histogram(np.clip(column, edges[0], edges[-1]), edges)
    below, above = (float(q) for q in np.quantile(column, [low, high]))
    return {
        "dataset": dataset,
        "counts": (counts / len(column)).round(6).tolist(),
        "low": below,
        "high": above,
        "min": float(column.min()),
        "max": float(column.max()),
        "clipped": float(((column < below) | (column > above)).mean()) if clips else None,
    }


def _thumbnail(pixels: NDArray[np.uint8], height: int) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    width = max(1, round(image.width * height / image.height))
    out = io.BytesIO()
    image.resize((min(width, 4 * height), height), Image.Resampling.LANCZOS).save(out, "JPEG", quality=85)
    return out.getvalue()
