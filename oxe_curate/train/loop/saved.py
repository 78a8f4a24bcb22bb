"""Folders that a policy can be loaded from: runs, exported models and published OpenVLA checkpoints.

No weights are loaded here. The description of the folder is read, and the files next to the weights are compared with
the hashes recorded in training: other statistics or another token table would decode into wrong actions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from oxe_curate import config as strict
from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import Bounds, parse_statistics
from oxe_curate.errors import ConfigError, DataError, closest, did_you_mean
from oxe_curate.tokenize.manifest import RESOLVED, STATISTICS, TOKENS
from oxe_curate.train.config import TrainConfig, read_train_config
from oxe_curate.train.models.base import PolicySpec
from oxe_curate.train.run_folder import RunFolder, checkpoint_step, read_json
from oxe_curate.train.settings import ResizeFilter

_RUN, _EXPORT = "run.json", "oxe_curate.json"  # in messages
_FILES = {"statistics": STATISTICS, "tokens": TOKENS, "mixture": RESOLVED}


@dataclass(frozen=True)
class Saved:
    """A folder that a policy can be loaded from.

    Attributes:
        kind: "run" (trained weights on top of a base), "adapter" (the same, exported), "whole" (an exported merged
            model) or "published" (an OpenVLA checkpoint that this software did not write).
        config: of the run; its `base` is the present path of the base model.
        spec: what the model sees and does.
        weights: folder of the trained weights for `Family.restore`; None where `config.base` is the whole model.
        record: run.json or oxe_curate.json as read; empty for a published checkpoint.
        checkpoint: step of the weights; None for the end of the run.
    """

    folder: Path
    kind: Literal["run", "adapter", "whole", "published"]
    config: TrainConfig
    spec: PolicySpec
    weights: Path | None
    record: dict[str, Any]
    checkpoint: int | None = None

    @property
    def bounds(self) -> dict[str, Bounds]:
        """Data set -> its bounds."""
        return parse_statistics(self.spec.statistics, str(self.folder))

    @property
    def layout(self) -> RunFolder:
        """Names and places of the folder's files."""
        return RunFolder(self.folder)


def open_saved(folder: str | Path, *, checkpoint: int | None = None, base: str | Path | None = None) -> Saved:
    """Read and check the description of a folder.

    Args:
        folder: a run, an exported model, or a published OpenVLA checkpoint.
        checkpoint: step of a run, instead of its end.
        base: folder of the base model, if it has moved since the training.

    Raises:
        ConfigError: no such folder, none of the three, an unfinished run, a missing base model.
        DataError: a file is missing, damaged, or differs from the one used in training.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such folder. {did_you_mean(path.name, near) if near else 'Check the path.'}")
    layout = RunFolder(path)
    if layout.record.is_file():
        return _open_run(layout, checkpoint, base)
    if checkpoint is not None:
        raise ConfigError(f"{path}: not a run ({_RUN} not found), so it has no checkpoint {checkpoint}")
    if layout.export_record.is_file():
        return _open_export(layout, base)
    if (path / "config.json").is_file():
        return _open_published(path, base)
    for parent in path.parents[:2]:
        if RunFolder(parent).record.is_file():
            steps = [step for p in (path, path.parent) if (step := checkpoint_step(p.name)) is not None]
            hint = f" with --checkpoint {steps[0]}" if steps else ""
            raise ConfigError(f"{path}: part of a run; use {parent}{hint}")
    raise ConfigError(
        f"{path}: not a run ({_RUN}), an exported model ({_EXPORT}) or a published checkpoint (config.json)"
    )


def choose_key(names: Iterable[str], key: str | None, where: str) -> str:
    """The data set whose bounds denormalize the model's output.

    Raises:
        ConfigError: no key although there are several data sets, or an unknown key; lists the data sets.
    """
    known = list(names)
    listed = ", ".join(known[:60]) + (f", … ({len(known)} in all)" if len(known) > 60 else "")
    if key is None and len(known) == 1:
        return known[0]
    if key is None:
        raise ConfigError(
            f"{where}: trained on {len(known)} data sets; choose the one to act like with unnorm_key: {listed}"
        )
    if key not in known:
        hint = f" {suggestion}" if (suggestion := closest(key, known)) else ""
        raise ConfigError(f"{where}: unknown unnorm_key {key!r}.{hint} Known: {listed}.")
    return key


def spec_to_json(spec: PolicySpec) -> dict[str, Any]:
    """The spec as run.json holds it."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return data


def spec_from_json(data: Any, where: str) -> PolicySpec:
    """Read back what `spec_to_json` wrote. Raises DataError if it is something else."""
    names = {field.name for field in fields(PolicySpec)}
    if isinstance(data, dict):
        data = {"resize": "bicubic", **data}  # of models from before there was a choice
    if not isinstance(data, dict) or set(data) != names:
        raise DataError(f"{where}: contract: expected the keys {', '.join(sorted(names))}. Was the file changed?")
    try:
        return PolicySpec(
            cameras=tuple(str(role) for role in data["cameras"]),
            window=int(data["window"]),
            chunk=int(data["chunk"]),
            image_size=int(data["image_size"]),
            proprio=int(data["proprio"]),
            statistics=dict(data["statistics"]),
            tokens=None if data["tokens"] is None else tuple(int(token) for token in data["tokens"]),
            bins=str(data["bins"]),
            hashes={str(key): str(value) for key, value in data["hashes"].items()},
            resize=_resize_filter(data["resize"]),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: contract: {error}. Was the file changed?") from None


def _resize_filter(name: Any) -> ResizeFilter:
    known: tuple[ResizeFilter, ...] = get_args(ResizeFilter)
    if name not in known:
        raise ValueError(f"resize: expected {' or '.join(known)}, got {name!r}")
    return known[known.index(name)]


def run_record(config: TrainConfig, spec: PolicySpec, versions: Mapping[str, str]) -> dict[str, Any]:
    """The content of run.json.

    Args:
        config: of the run.
        spec: of its model.
        versions: package -> version.
    """
    from oxe_curate import __version__

    return {
        "family": config.model,
        "software": f"oxe-curate {__version__}",
        "hashes": dict(spec.hashes),
        "base": config.base,
        "base_sha256": file_sha256(Path(config.base) / "config.json"),
        "contract": spec_to_json(spec),
        "versions": dict(versions),
    }


def file_sha256(path: Path) -> str | None:
    """SHA-256 of a small file, None if it does not exist."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def check_hashes(folder: Path, hashes: Mapping[str, str], kind: str = "run") -> None:
    """Compare the tables next to some weights with those used in training.

    Args:
        folder: holds the tables.
        hashes: key of the spec ("statistics", "tokens", "mixture") -> SHA-256.
        kind: of the folder, for messages.

    Raises:
        DataError: a table is missing or differs.
    """
    for key, name in _FILES.items():
        if key not in hashes:
            continue
        found = file_sha256(folder / name)
        if found is None:
            raise DataError(f"{folder / name}: not found, but this {kind} was trained with it. Restore the file.")
        if found != hashes[key]:
            raise DataError(
                f"{folder / name}: differs from the {key} file that this {kind} was trained with (SHA-256 "
                f"{found[:12]}…, expected {hashes[key][:12]}…), so actions would be decoded wrongly. Restore the file."
            )


def _open_run(run: RunFolder, checkpoint: int | None, base: str | Path | None) -> Saved:
    path, record = run.path, read_json(run.record)
    spec = spec_from_json(record.get("contract"), str(run.record))
    if not run.config.is_file():
        raise DataError(f"{run.config}: not found. Restore it; {_RUN} does not describe the whole model.")
    steps = [step for step in run.steps() if run.checkpoint(step).weights.is_dir()]
    if checkpoint is None:
        weights = run.adapter
        if not weights.is_dir():
            which = f"Resume it, or choose a checkpoint with --checkpoint: {', '.join(map(str, steps))}."
            raise ConfigError(f"{path}: the run is not finished. {which if steps else 'It has no checkpoint yet.'}")
    else:
        weights = run.checkpoint(checkpoint).weights
        if checkpoint not in steps:
            known = f"Known: {', '.join(map(str, steps))}." if steps else "The run has none."
            raise ConfigError(f"{path}: no checkpoint {checkpoint}. {known}")
    check_hashes(path, spec.hashes)
    train = read_train_config(run.config, {})
    _same_family(train, record, path)
    train = _with_base(train, record, path, base)
    return Saved(path, "run", train, spec, weights, record, checkpoint)


def _open_export(model: RunFolder, base: str | Path | None) -> Saved:
    path, where, record = model.path, str(model.export_record), read_json(model.export_record)
    spec = spec_from_json(record.get("contract"), where)
    check_hashes(path, spec.hashes, "model")
    train = strict.build(TrainConfig, record.get("config"), f"{where}: config")
    _same_family(train, record, path)
    if not record.get("merged"):
        return Saved(path, "adapter", _with_base(train, record, path, base), spec, path, record)
    if base is not None:
        raise ConfigError(f"{path}: already merged; remove --base")
    if (path / "config.json").is_file():
        held = read_json(path / "config.json").get("norm_stats", spec.statistics)
        if held != spec.statistics:
            raise DataError(
                f"{path / 'config.json'}: norm_stats differ from the statistics used in training. "
                f"Restore them from {STATISTICS}."
            )
    return Saved(path, "whole", replace(train, base=str(path), adapter="none", tune=None), spec, None, record)


def _open_published(path: Path, base: str | Path | None) -> Saved:
    if base is not None:
        raise ConfigError(f"{path}: a published checkpoint needs no base; remove --base")
    where = path / "config.json"
    data = read_json(where)
    if data.get("model_type") != "openvla":
        raise ConfigError(
            f"{where}: model_type is {data.get('model_type')!r}; a folder without {_RUN} or {_EXPORT} must be an "
            "OpenVLA checkpoint ('openvla')"
        )
    # as in OpenVLA's scripts the file wins: config.json of a fine-tuned checkpoint still has the statistics of its base
    statistics = read_json(path / STATISTICS) if (path / STATISTICS).is_file() else data.get("norm_stats")
    if not isinstance(statistics, dict) or not statistics:
        raise ConfigError(
            f"{path}: neither {STATISTICS} nor norm_stats in config.json found, so actions cannot be decoded. If the "
            f"model was trained on robot data, add the {STATISTICS} of its training to the folder."
        )
    statistics = {name: _without_empty(entry) for name, entry in statistics.items()}
    for name, bounds in parse_statistics(statistics, str(path)).items():
        if bounds.width != 7:
            raise ConfigError(f"{path}: {name}: expected actions of 7 dimensions, got {bounds.width}")
    try:
        vocabulary = int(data["text_config"]["vocab_size"]) - int(data.get("pad_to_multiple_of", 0))
        image_size, edges = int(data["image_sizes"][0]), int(data.get("n_action_bins", 256))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{where}: text_config.vocab_size or image_sizes is missing or not a number: {error}") from None
    if edges != 256 or vocabulary < edges:
        raise ConfigError(f"{where}: expected 256 action bins, got {edges} in a vocabulary of {vocabulary}")
    # the released rule: bin b is the b-th token from the end of the tokenizer's vocabulary, before its padding
    shift = vocabulary - ActionTokens.default().vocabulary_size
    spec = PolicySpec(
        cameras=("primary",),
        window=1,
        chunk=1,
        image_size=image_size,
        proprio=0,
        statistics=statistics,
        tokens=tuple(int(token) + shift for token in ActionTokens.default().token_id),
        bins="openvla",
        hashes={},
    )
    train = TrainConfig(data="", base=str(path), run="", model="openvla", adapter="none", augment=False)
    return Saved(path, "published", train, spec, None, {})


def _without_empty(entry: Any) -> Any:
    """Statistics without the empty `proprio: {}` of some checkpoints."""
    if isinstance(entry, dict) and entry.get("proprio") == {}:
        return {key: value for key, value in entry.items() if key != "proprio"}
    return entry


def _same_family(train: TrainConfig, record: Mapping[str, Any], path: Path) -> None:
    if record.get("family") != train.model:
        raise DataError(
            f"{path}: a {record.get('family')!r} model, but its configuration says {train.model!r}. Restore the files."
        )


def _with_base(train: TrainConfig, record: Mapping[str, Any], path: Path, base: str | Path | None) -> TrainConfig:
    """The configuration with the present path of the base, after comparing the base with the one used in training."""
    where = Path(base or train.base).expanduser()
    if not where.is_dir():
        raise ConfigError(f"{path}: base model folder not found: {where} (set --base; in training it was {train.base})")
    found, expected = file_sha256(where / "config.json"), record.get("base_sha256")
    if expected and found != expected:
        raise DataError(
            f"{where}: differs from the base model that {path} was trained on: its config.json "
            + ("is missing" if found is None else f"has SHA-256 {found[:12]}…, expected {expected[:12]}…")
        )
    return replace(train, base=str(where))
