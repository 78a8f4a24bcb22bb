"""Frames read by byte range from the source shards, action histograms, and the samples that tokenize writes first."""

from __future__ import annotations

import functools
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from oxe_curate.actions.dimensions import DIMENSION_NAMES, NUM_DIMENSIONS, POSE_WIDTH
from oxe_curate.arrays import Floats
from oxe_curate.editor.catalogue import Catalogue
from oxe_curate.episode import EpisodeId
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.scanner import ROLES
from oxe_curate.index import images
from oxe_curate.index.episodes import Episode
from oxe_curate.index.frame_pool import locate
from oxe_curate.index.store import Index
from oxe_curate.mixture import sampling
from oxe_curate.mixture.spec import Mixture, resolve
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder
from oxe_curate.tokenize.build import EpisodeDraw, draw_episodes, sample_ids
from oxe_curate.tokenize.plan import DEFAULT_SHARD_BYTES, plan_shards

_HEIGHTS = (72, 144, 288)
_HISTOGRAM_BINS = 48
_EXAMPLES = 6
_MAX_STEPS = 200_000
"""Steps of a data set that a histogram counts: enough for its shape, and read in a second."""
_TEXT_FILES = 8
"""Index files whose instructions are listed."""


@dataclass(frozen=True, eq=False)
class _FirstShard:
    """The first shard that tokenize would write.

    Attributes:
        shards: number of shards in all.
        order: int64 (n,), the order in which its rows are written.
        draws: its samples before they are shuffled.
        files: path of an index file -> its number among those of its data set.
    """

    name: str
    shards: int
    order: NDArray[np.int64]
    draws: list[EpisodeDraw]
    files: dict[str, int]


class FrameViewer:
    """Reads what the page shows of an index. Every frame is addressed by numbers: no request names a file."""

    def __init__(self, catalogue: Catalogue, index: Index) -> None:
        self._catalogue, self._index = catalogue, index

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (one viewer per process; about 10 kB each)
    def image(
        self, dataset: str, role: str, file: int, row: int, step: int, height: int, swap: bool | None = None
    ) -> bytes:
        """One frame as a JPEG.

        Args:
            dataset: its name in the index.
            role: of the camera.
            file: number of the index file.
            row: of the episode in it.
            step: of the episode.
            height: in pixels, one of 72, 144 and 288.
            swap: whether to swap red and blue; None: as the card says.

        Raises:
            ConfigError: there is no such frame. DataError: it cannot be decoded.
        """
        if height not in _HEIGHTS:
            raise ConfigError(f"image height: expected one of {_HEIGHTS}, got {height}")
        card = self._catalogue.card(dataset)
        camera = card.cameras_by_role().get(role)
        if swap is None:
            swap = camera is not None and card.cameras[camera].channels == "bgr"
        data = self._frame(self._episode(dataset, file, row), role, step)
        try:
            pixels = images.decode(data)
        except ValueError as error:
            raise DataError(f"{dataset}: cannot decode this frame: {error}") from None
        return _jpeg(pixels[:, :, ::-1] if swap else pixels, height)

    def thumbnail(self, dataset: str, height: int) -> bytes:
        """A frame from the middle of a kept episode, as a JPEG. Raises ConfigError if there is none."""
        self._catalogue.card(dataset)
        file, row, steps = self._examples(dataset)[0]
        roles = self._episode(dataset, file, row).spans
        role = next((role for role in ROLES if role in roles), None)
        if role is None:
            raise ConfigError(f"{dataset} has no frames")
        return self.image(dataset, role, file, row, steps // 2, height)

    def details(self, dataset: str) -> dict[str, Any]:
        """Example episodes with the numbers of their frames, and the instructions of the first files."""
        self._catalogue.card(dataset)
        examples = []
        for file, row, steps in self._examples(dataset):
            episode = self._episode(dataset, file, row)
            examples.append(
                {"file": file, "row": row, "steps": steps, "roles": [role for role in ROLES if role in episode.spans],
                 "id": episode.id, "instruction": episode.instruction}
            )  # fmt: skip
        files = self._index.files(dataset)
        texts: Counter[str] = Counter()
        for path in files[:_TEXT_FILES]:
            table = self._index.table(path, ["kept", "instruction"])
            texts.update(table.filter(table["kept"])["instruction"].to_pylist())
        return {
            "dataset": dataset,
            "examples": examples,
            "instructions": [{"text": text, "episodes": n} for text, n in texts.most_common(40)],
            "distinct": len(texts),
            "files": min(len(files), _TEXT_FILES),
            "allFiles": len(files),
        }

    def histograms(self, datasets: list[str], low: float, high: float) -> dict[str, Any]:
        """Histograms of each action dimension over common edges, with the bounds and the share outside them.

        Args:
            datasets: one or two names in the index.
            low: probability of the lower bound, as in the mixture's `bounds.low`.
            high: of the upper bound.
        """
        if not 1 <= len(datasets) <= 2 or not 0 <= low < high <= 1:
            raise ConfigError("expected one or two data sets, and 0 <= low < high <= 1")
        for dataset in datasets:
            self._catalogue.card(dataset)
        actions = {dataset: self._actions(dataset) for dataset in datasets}
        dimensions = []
        for i, axis in enumerate(DIMENSION_NAMES):
            columns = {dataset: values[:, i] for dataset, values in actions.items()}
            left = min(float(np.quantile(c, 0.001)) for c in columns.values())
            right = max(float(np.quantile(c, 0.999)) for c in columns.values())
            if right - left < 1e-9:
                left, right = left - 0.5, right + 0.5
            edges = np.linspace(left, right, _HISTOGRAM_BINS + 1)
            series = [_series(name, c, edges, low, high, clips=i < POSE_WIDTH) for name, c in columns.items()]
            dimensions.append({"axis": axis, "left": left, "right": right, "series": series})
        return {
            "dimensions": dimensions,
            "steps": {dataset: len(values) for dataset, values in actions.items()},
            "all": {dataset: self._index.datasets[dataset].summary.steps_kept for dataset in datasets},
        }

    def next_samples(self, mixture: Mixture, where: str, offset: int, count: int) -> dict[str, Any]:
        """Rows offset .. offset + count of the first training shard that tokenize would write.

        Raises:
            ConfigError: tokenize would refuse the mixture.
        """
        shard = self._first_shard(mixture, where)
        ends = np.cumsum([len(drawn.steps) for drawn in shard.draws])
        role = mixture.image.cameras[0]
        found = []
        for row in shard.order[offset : offset + count].tolist():
            number = int(np.searchsorted(ends, row, side="right"))
            drawn = shard.draws[number]
            i = row - int(ends[number]) + len(drawn.steps)
            texts, chosen = drawn.instructions()
            found.append(
                {"dataset": drawn.source.dataset, "name": drawn.source.entry.name, "role": drawn.shown[role],
                 "swap": role in drawn.source.bgr, "file": shard.files[drawn.path], "row": drawn.row,
                 "step": int(drawn.steps[i]), "steps": drawn.episode.num_steps, "copy": int(drawn.copies[i]),
                 "sampleId": _sample_id(drawn, i), "instruction": texts[chosen[i]]}
            )  # fmt: skip
        return {"samples": found, "shard": shard.name, "rows": len(shard.order), "shards": shard.shards}

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one viewer per process; paging does not draw again)
    def _first_shard(self, mixture: Mixture, where: str) -> _FirstShard:
        """Draw the first training shard.

        Uses tokenize's own functions, without bounds and index hashes: they decide neither the rows nor their order.
        """
        sources = resolve(mixture, self._index, where, self._catalogue.cards)
        plan = plan_shards(mixture, self._index, sources, {}, Folder.of(Path("unused")), DEFAULT_SHARD_BYTES, {})
        first = plan.tasks[0]
        draws = list(draw_episodes(plan.job, plan.part(0), first.validation))
        keys = [drawn.keys for drawn in draws] or [np.empty(0, np.uint64)]
        files = {path: i for s in sources for i, path in enumerate(self._index.files(s.dataset))}
        return _FirstShard(first.output, len(plan.tasks), sampling.order(np.concatenate(keys)), draws, files)

    def _episode(self, dataset: str, file: int, row: int) -> Episode:
        files = self._index.files(dataset)
        if not 0 <= file < len(files) or row < 0:
            raise ConfigError(f"{dataset}: the index has no file {file}")
        try:
            return Episode.read(self._index.folder, files[file], [row])[0]
        except (IndexError, ValueError, AttributeError):
            raise ConfigError(f"{dataset}: file {file} of the index has no episode {row}") from None

    def _frame(self, episode: Episode, role: str, step: int) -> bytes:
        if role not in episode.spans or not 0 <= step < episode.num_steps:
            raise ConfigError(f"{episode.id}: no frame {step} of a {role} camera")
        frames = episode.frames.get(role)
        source = self._index.source_of(EpisodeId.parse(episode.id).dataset)
        if frames is None or len(frames) == 0:
            span = episode.spans[role]
            shard = open_shard(source, episode.shard)
            shard.prefetch(*span)
            frames = locate(shard.buffer, span, episode.source_steps, role, shard.ensure)[episode.frame_index]
        offset, length = frames[step].tolist()
        return source.read_bytes(episode.shard, offset, length)

    @functools.lru_cache(maxsize=256)  # noqa: B019 (one viewer per process)
    def _examples(self, dataset: str) -> list[tuple[int, int, int]]:
        """(file, row, steps) of kept episodes, spread over the data set's files."""
        files = self._index.files(dataset)
        chosen = sorted({round(i) for i in np.linspace(0, len(files) - 1, _EXAMPLES).tolist()}) if files else []
        found: list[list[tuple[int, int, int]]] = []
        for file in chosen:
            table = self._index.table(files[file], ["kept", "num_steps"])
            kept = np.flatnonzero(np.asarray(table["kept"]))
            spread = kept[np.unique(np.linspace(0, len(kept) - 1, _EXAMPLES).astype(int))] if len(kept) else []
            found.append([(file, int(row), int(table["num_steps"][int(row)].as_py())) for row in spread])
        turns = [rows[i] for i in range(_EXAMPLES) for rows in found if i < len(rows)]
        if not turns:
            raise ConfigError(f"the index keeps no episode of {dataset}")
        return turns[:_EXAMPLES]

    @functools.lru_cache(maxsize=8)  # noqa: B019 (one viewer per process; 5.6 MB each)
    def _actions(self, dataset: str) -> NDArray[np.float32]:
        """Actions of up to `_MAX_STEPS` kept steps, float32 (n, 7)."""
        held, steps = [], 0
        files = self._index.files(dataset)
        for path in [*files[::7], *(f for i, f in enumerate(files) if i % 7)]:  # spread over the files
            table = self._index.table(path, ["kept", "action"])
            kept = table.filter(table["kept"])["action"].combine_chunks()
            held.append(np.asarray(kept.flatten().flatten()).reshape(-1, NUM_DIMENSIONS))
            steps += len(held[-1])
            if steps >= _MAX_STEPS:
                break
        if not steps:
            raise ConfigError(f"the index keeps no step of {dataset}")
        return np.concatenate(held)[:_MAX_STEPS]


def _series(
    dataset: str, column: NDArray[np.float32], edges: Floats, low: float, high: float, clips: bool
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


def _sample_id(drawn: EpisodeDraw, i: int) -> str:
    name = pa.array([drawn.episode.id])
    return str(sample_ids(name, drawn.steps[i : i + 1], drawn.copies[i : i + 1])[0])


def _jpeg(pixels: NDArray[np.uint8], height: int) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    width = max(1, round(image.width * height / image.height))
    out = io.BytesIO()
    image.resize((min(width, 4 * height), height), Image.Resampling.LANCZOS).save(out, "JPEG", quality=85)
    return out.getvalue()
