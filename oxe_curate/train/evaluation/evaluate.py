"""Evaluation of a run on whole episodes: errors in metres and degrees, curves of every dimension.

At each step the model gets the observation of the data, whatever it predicted before (teacher forcing). A model without
state between steps predicts in batches; one with a window predicts step by step with its `Controller`, as on a robot.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from oxe_curate import __version__
from oxe_curate.actions.bins import ActionBins
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.mixture.sampling import episode_hash
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.storage import Folder, stderr_is_terminal
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data.episodes import EpisodeReader
from oxe_curate.train.evaluation.page import Drawn, evaluation_page, score_table
from oxe_curate.train.evaluation.predict_episode import Predicted, predict_batches, predict_in_order
from oxe_curate.train.evaluation.scores import NAMES, Scores, score, together
from oxe_curate.train.loop.compare import with_known_sources
from oxe_curate.train.loop.saved import Saved, open_saved
from oxe_curate.train.models.weights import Quantization
from oxe_curate.train.serving.policy import restore_model

_EPISODES = 20
_DRAWN = 12
"""Episodes with curves on the page; predictions.parquet has all."""
_Done = list[tuple[str, str, Predicted]]
"""(Data set, episode, predictions)."""
_RESULT, _PAGE, _PREDICTIONS = "evaluation.json", "index.html", "predictions.parquet"


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        folder: of the output. page: its HTML page.
        how: "batches" or "controller".
        scores: data set -> its scores. whole: of all steps.
        episodes: data set -> number of episodes.
    """

    folder: Path
    run: str
    checkpoint: int | None
    split: str
    how: str
    scores: dict[str, Scores]
    whole: Scores
    episodes: dict[str, int]
    seconds: float

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / _PAGE

    def table(self) -> Any:
        """A table for the terminal (rich)."""
        return score_table(self.scores, self.whole)

    def to_json(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        return {
            "software": f"oxe-curate {__version__}",
            "run": self.run,
            "checkpoint": self.checkpoint,
            "split": self.split,
            "how": self.how,
            "dimensions": list(NAMES),
            "episodes": self.episodes,
            "datasets": {name: part.to_json() for name, part in self.scores.items()},
            "all": self.whole.to_json(),
            "seconds": round(self.seconds, 3),
        }


def evaluate_run(
    run: str | Path,
    *,
    checkpoint: int | None = None,
    split: Literal["validation", "train"] = "validation",
    episodes: int | None = None,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    quantize: Quantization | None = None,
    progress: bool = True,
    data: str | None = None,
    source: str | Path | None = None,
    base: str | Path | None = None,
    batch_size: int = 16,
    center_crop: bool | None = None,
) -> Evaluation:
    """Predict whole episodes of a run's mixture; write scores, predictions and a page of curves.

    Args:
        run: a run or an exported model.
        checkpoint: step of a run; default its end.
        split: held-out episodes, or those trained on (with only the steps that the mixture drew).
        episodes: maximum number, equally from all data sets as far as possible; default 20.
        out: output folder; default `evaluation` in the run folder (`evaluation/checkpoint-<step>` for a checkpoint).
        device: default the GPU, if there is one.
        quantize: see `Policy.load`.
        progress: show a progress bar, if standard error is a terminal.
        data: folder of the mixture, if it has moved since the training.
        source: folder of the data sets that a mixture by reference refers to, if they have moved since the training.
        base: folder of the base model, if it has moved since the training.
        batch_size: samples per forward pass, for models that predict in batches.
        center_crop: crop the center of each image; default as in training (True after random crops).

    Raises:
        ConfigError: see `open_saved`; no such mixture, no episodes in the split, or `out` belongs to something else.
        DataError: files differ from those of the training; the model's output is not finite.
        StorageError: `out` cannot be written.
    """
    saved = open_saved(run, checkpoint=checkpoint, base=base)
    mixture = _mixture(saved, data, source)
    folder = Folder.of(out or saved.layout.evaluation(saved.checkpoint))
    # an exported model is its own base, and its evaluation is inside it
    inputs = {"mixture": str(mixture.folder)} | ({} if saved.weights is None else {"base model": saved.config.base})
    claim_output(folder.uri, "evaluation", inputs)
    crop = saved.config.augment if center_crop is None else center_crop
    with hold_output(folder.uri, "evaluation"):
        folder.check_writable()
        folder.sweep()
        restore = functools.partial(restore_model, saved, quantize=quantize, device=device)
        result, done = _evaluate(saved, mixture, Path(folder.uri), restore, split, episodes, crop, batch_size, progress)
        _write(folder, result, done, saved)
    return result


def _evaluate(
    saved: Saved,
    mixture: MixtureFolder,
    folder: Path,
    restore: Callable[[], Any],
    split: Literal["validation", "train"],
    episodes: int | None,
    crop: bool,
    batch_size: int,
    progress: bool,
) -> tuple[Evaluation, _Done]:
    started, spec = time.monotonic(), saved.spec
    reader = EpisodeReader(
        mixture, split=split, image_size=spec.image_size, cameras=spec.cameras, window=spec.window,
        chunk=spec.chunk, proprio=spec.proprio > 0,
    )  # fmt: skip
    chosen = choose_episodes(reader.by_dataset, episodes or _EPISODES)
    model = restore().eval().requires_grad_(False)
    # a row has the proprio of its own step only, so the steps of a window with proprio cannot be separated
    how = "controller" if spec.window > 1 and spec.proprio == 0 else "batches"
    done: _Done = []
    for dataset, name in tqdm(chosen, desc="evaluate", disable=not (progress and stderr_is_terminal())):
        read, steps = functools.partial(reader.read, name), reader.steps(name)
        if how == "controller":
            found = predict_in_order(model, read, steps, crop)
        else:
            found = predict_batches(model, saved.config, read, steps, crop, batch_size)
        if not np.isfinite(found.predicted).all():
            raise DataError(f"{saved.folder}: the model's output is not finite; the training may have diverged")
        done.append((dataset, name, found))
    return _result(done, saved, split, how, folder, time.monotonic() - started), done


def choose_episodes(by_dataset: Mapping[str, Sequence[str]], count: int) -> list[tuple[str, str]]:
    """Choose episodes: one of each data set in turn, those of a data set in the order of a hash of their ids.

    Returns:
        (data set, episode) pairs, grouped by data set.
    """
    ranked = {name: sorted(ids, key=lambda one: (episode_hash(0, one), one)) for name, ids in by_dataset.items()}
    turns = [(turn, place, one) for place, ids in enumerate(ranked.values()) for turn, one in enumerate(ids)]
    names = list(ranked)
    taken = sorted((place, turn, one) for turn, place, one in sorted(turns)[:count])
    return [(names[place], one) for place, _, one in taken]


def _mixture(saved: Saved, data: str | None, source: str | Path | None) -> MixtureFolder:
    """Open the mixture; its statistics and token table must be those of the training, and its sources be there."""
    where = data or saved.config.data
    if not where:
        raise ConfigError(f"{saved.folder}: the mixture of the training is not recorded; set --data")
    mixture = MixtureFolder.open(where, source or (saved.config.source if data is None else None))
    for key in ("statistics", "tokens"):
        expected = saved.spec.hashes.get(key)
        if expected is not None and expected != mixture.hashes[key]:
            raise DataError(
                f"{mixture.folder}: its {key} differ from those that {saved.folder} was trained with, so errors would "
                "have other units. Evaluate on the mixture of the training."
            )
    mixture = with_known_sources(mixture, saved.layout)
    mixture.sources.find()  # contents are compared as shards are opened: an evaluation reads few of them
    return mixture


def _result(done: _Done, saved: Saved, split: str, how: str, folder: Path, seconds: float) -> Evaluation:
    bins, bounds = ActionBins("uniform" if saved.spec.bins == "uniform" else "openvla"), saved.bounds
    total = sum(len(found.steps) for _, _, found in done)
    scores, count = {}, {}
    for name in dict.fromkeys(dataset for dataset, _, _ in done):
        mine = [found for dataset, _, found in done if dataset == name]
        parts = [np.concatenate([getattr(found, part) for found in mine]) for part in ("predicted", "target", "mask")]
        scores[name] = score(parts[0], parts[1], parts[2], bounds[name], bins, total)
        count[name] = len(mine)
    return Evaluation(folder, str(saved.folder), saved.checkpoint, split, how, scores, together(scores), count, seconds)


def _write(folder: Folder, result: Evaluation, done: _Done, saved: Saved) -> None:
    """Write the predictions, the page and, last, evaluation.json."""
    table = _table(done, saved)
    folder.publish(_PREDICTIONS, lambda sink: pq.write_table(table, sink, compression="zstd", write_page_checksum=True))
    facts = {"data": Path(saved.config.data).name, "split": result.split, "base": Path(saved.config.base).name}
    if result.checkpoint is not None:
        facts["checkpoint"] = str(result.checkpoint)
    notes = [
        "At each step the model gets the observation of the data. The actions of the data are clipped to the bounds.",
        "Steps are predicted one after another with the model's own state, as on a robot."
        if result.how == "controller"
        else "Steps are predicted in batches; the model has no state between steps.",
    ]
    if saved.spec.tokens is None:
        notes.append("The model has no action tokens; token accuracy compares the bins of its values.")
    drawn = [
        Drawn(
            dataset, name, found.instruction, found.steps, saved.bounds[dataset].denormalize(found.target[:, 0]),
            saved.bounds[dataset].denormalize(found.predicted[:, 0]), found.frames,
        )
        for dataset, name, found in _few(done)
    ]  # fmt: skip
    title = f"Evaluation: {saved.folder.name}"
    page = evaluation_page(title, facts, result.scores, result.whole, drawn, notes)
    folder.publish_bytes(_PAGE, page.encode())
    folder.publish_bytes(_RESULT, (json.dumps(result.to_json(), indent=1) + "\n").encode())


def _few(done: _Done) -> _Done:
    """The episodes to show on the page."""
    by_dataset: dict[str, list[str]] = {}
    for dataset, name, _ in done:
        by_dataset.setdefault(dataset, []).append(name)
    shown = set(choose_episodes(by_dataset, _DRAWN))
    return [entry for entry in done if entry[:2] in shown]


def _table(done: _Done, saved: Saved) -> Any:
    """One row per step in the data set's units: `target_x`, ..., `predicted_x`, ..., and whole chunks if any."""
    texts = [(dataset, name, found.instruction) for dataset, name, found in done for _ in found.steps]
    columns: dict[str, Any] = {
        key: pa.array(list(values)).dictionary_encode()
        for key, values in zip(("dataset", "episode_id", "instruction"), zip(*texts, strict=True), strict=True)
    }
    columns["step"] = np.concatenate([found.steps for _, _, found in done]).astype(np.int32)
    for what in ("target", "predicted"):
        parts = [saved.bounds[dataset].denormalize(getattr(found, what)) for dataset, _, found in done]
        real = np.concatenate(parts).astype(np.float32)
        columns |= {f"{what}_{name}": np.ascontiguousarray(real[:, 0, d]) for d, name in enumerate(NAMES)}
        if real.shape[1] > 1:
            flat = pa.FixedSizeListArray.from_arrays(pa.array(real.reshape(-1)), real.shape[2])
            columns[f"{what}_chunk"] = pa.FixedSizeListArray.from_arrays(flat, real.shape[1])
    return pa.table(columns)
