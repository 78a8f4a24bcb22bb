"""What a folder holds that a policy can be made of: a run, an exported folder or a published checkpoint.

Nothing is loaded here. The folder's description is read, and the files beside the weights are compared with the hashes
that the training run noted down: actions decoded with other statistics or another token table are wrong actions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from oxe_curate import config as strict
from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import Bounds, parse_statistics
from oxe_curate.errors import ConfigError, DataError, did_you_mean
from oxe_curate.tokenize.manifest import RESOLVED, STATISTICS, TOKENS
from oxe_curate.train.config import CONFIG_FILE, TrainConfig, read_train_config
from oxe_curate.train.models.base import PolicySpec

RUN, EXPORT, CONFIG = "run.json", "oxe_curate.json", CONFIG_FILE
ADAPTER, WEIGHTS = "adapter", "weights"
CHECKPOINT = "checkpoint-"

_FILES = {"statistics": STATISTICS, "tokens": TOKENS, "mixture": RESOLVED}


@dataclass(frozen=True)
class Saved:
    """A folder that a policy can be loaded from.

    Attributes:
        kind: "run" (trained weights beside a base), "adapter" (the same, exported), "whole" (an exported model with
            everything in it) or "published" (an OpenVLA checkpoint that this software did not write).
        config: of the run; its `base` is where the base lies now.
        spec: what the model sees and does.
        weights: folder of the trained weights for `Family.restore`; None where `config.base` is whole.
        record: run.json or oxe_curate.json as read; empty for a published checkpoint.
        checkpoint: the step whose weights these are; None for the end of the run.
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
        """Data set's name -> its bounds."""
        return parse_statistics(self.spec.statistics, str(self.folder))


def open_saved(folder: str | Path, *, checkpoint: int | None = None, base: str | Path | None = None) -> Saved:
    """Read what a folder holds, and check it.

    Args:
        folder: a run, an exported folder, or a published OpenVLA checkpoint.
        checkpoint: of a run, the step to take instead of its end.
        base: where the base checkpoint lies, if not where it lay in training.

    Raises:
        ConfigError: no such folder, none of the three, an unfinished run, a missing base.
        DataError: a file is missing, damaged, or not the one that the run was trained with.
    """
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        near = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such folder. {did_you_mean(path.name, near) if near else 'Check the path.'}")
    if (path / RUN).is_file():
        return _open_run(path, checkpoint, base)
    if checkpoint is not None:
        raise ConfigError(f"{path}: holds no {RUN}: only a run has checkpoints to choose from")
    if (path / EXPORT).is_file():
        return _open_export(path, base)
    if (path / "config.json").is_file():
        return _open_published(path, base)
    for parent in path.parents[:2]:
        if (parent / RUN).is_file():
            step = next((p.name for p in (path, path.parent) if p.name.startswith(CHECKPOINT)), "")
            hint = f" with --checkpoint {step.removeprefix(CHECKPOINT)}" if step else ""
            raise ConfigError(f"{path}: lies within a run; give {parent}{hint}")
    raise ConfigError(
        f"{path}: is no run ({RUN}), no exported folder ({EXPORT}) and no published checkpoint (config.json)"
    )


def steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints, ascending."""
    names = [p.name.removeprefix(CHECKPOINT) for p in run.glob(f"{CHECKPOINT}*") if (p / WEIGHTS).is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def choose_key(names: Iterable[str], key: str | None, where: str) -> str:
    """The data set whose bounds turn the model's output into actions.

    Raises:
        ConfigError: none given where there are several, or one that is not there; lists them.
    """
    known = list(names)
    listed = ", ".join(known[:60]) + (f", … ({len(known)} in all)" if len(known) > 60 else "")
    if key is None and len(known) == 1:
        return known[0]
    if key is None:
        raise ConfigError(
            f"{where}: was trained on {len(known)} data sets; say with unnorm_key whose actions are wanted: {listed}"
        )
    if key not in known:
        closest = did_you_mean(key, known)
        hint = f" {closest}" if closest.startswith("Did you mean") else ""
        raise ConfigError(f"{where}: unnorm_key: {key!r} is not known.{hint} Known: {listed}.")
    return key


def spec_to_json(spec: PolicySpec) -> dict[str, Any]:
    """The spec as it stands in run.json."""
    data: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return data


def spec_from_json(data: Any, where: str) -> PolicySpec:
    """Read back what `spec_to_json` wrote. Raises DataError where it is not that."""
    names = {field.name for field in fields(PolicySpec)}
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
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{where}: contract: {error}. Was the file changed?") from None


def run_record(config: TrainConfig, spec: PolicySpec, versions: Mapping[str, str]) -> dict[str, Any]:
    """What run.json holds.

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
    """SHA-256 of a small file, None where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises DataError where it is not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: expected keys and values")
    return data


def check_hashes(folder: Path, hashes: Mapping[str, str], kind: str = "run") -> None:
    """Compare the files beside some weights with what the run was trained with.

    Raises:
        DataError: one is missing, or another.
    """
    for key, name in _FILES.items():
        if key not in hashes:
            continue
        found = file_sha256(folder / name)
        if found is None:
            raise DataError(f"{folder / name}: is missing; this {kind} was trained with it. Restore it.")
        if found != hashes[key]:
            raise DataError(
                f"{folder / name}: is not the {key} file that this {kind} was trained with (SHA-256 {found[:12]}…, "
                f"trained with {hashes[key][:12]}…). The model's output would be decoded into wrong actions: restore "
                "the file."
            )


def _open_run(path: Path, checkpoint: int | None, base: str | Path | None) -> Saved:
    record = read_json(path / RUN)
    spec = spec_from_json(record.get("contract"), str(path / RUN))
    if not (path / CONFIG).is_file():
        raise DataError(f"{path / CONFIG}: is missing. Restore it: {RUN} alone does not say how the model is built.")
    found = steps(path)
    if checkpoint is None:
        weights = path / ADAPTER
        if not weights.is_dir():
            which = f"Resume it, or take a checkpoint with --checkpoint: {', '.join(map(str, found))}."
            raise ConfigError(f"{path}: the run is not finished. {which if found else 'It has no checkpoint yet.'}")
    else:
        weights = path / f"{CHECKPOINT}{checkpoint}" / WEIGHTS
        if checkpoint not in found:
            there = f"There are {', '.join(map(str, found))}." if found else "The run keeps none."
            raise ConfigError(f"{path}: has no checkpoint {checkpoint}. {there}")
    check_hashes(path, spec.hashes)
    train = read_train_config(path / CONFIG, {})
    _same_family(train, record, path)
    train = _with_base(train, record, path, base)
    return Saved(path, "run", train, spec, weights, record, checkpoint)


def _open_export(path: Path, base: str | Path | None) -> Saved:
    record = read_json(path / EXPORT)
    spec = spec_from_json(record.get("contract"), str(path / EXPORT))
    check_hashes(path, spec.hashes, "model")
    where = str(path / EXPORT)
    train = strict.build(TrainConfig, record.get("config"), f"{where}: config")
    _same_family(train, record, path)
    if not record.get("merged"):
        return Saved(path, "adapter", _with_base(train, record, path, base), spec, path, record)
    if base is not None:
        raise ConfigError(f"{path}: is a merged model, whole as it stands: it takes no base")
    if (path / "config.json").is_file():
        held = read_json(path / "config.json").get("norm_stats", spec.statistics)
        if held != spec.statistics:
            raise DataError(
                f"{path / 'config.json'}: norm_stats differ from the statistics that this model was trained with. "
                f"Restore them from {STATISTICS}."
            )
    return Saved(path, "whole", replace(train, base=str(path), adapter="none", tune=None), spec, None, record)


def _open_published(path: Path, base: str | Path | None) -> Saved:
    if base is not None:
        raise ConfigError(f"{path}: is a published checkpoint, whole as it stands: it takes no base")
    where = path / "config.json"
    data = read_json(where)
    if data.get("model_type") != "openvla":
        raise ConfigError(
            f"{where}: model_type is {data.get('model_type')!r}; a folder without {RUN} or {EXPORT} must be an OpenVLA "
            "checkpoint ('openvla')"
        )
    # OpenVLA's scripts let the file beside a fine-tuned checkpoint win over config.json, which is still its base's
    statistics = read_json(path / STATISTICS) if (path / STATISTICS).is_file() else data.get("norm_stats")
    if not isinstance(statistics, dict) or not statistics:
        raise ConfigError(
            f"{path}: has neither {STATISTICS} nor norm_stats in config.json, without which no action can be decoded. "
            f"Is this a base that was never trained on robots? Put the {STATISTICS} of its training beside it."
        )
    statistics = {name: _without_empty(entry) for name, entry in statistics.items()}
    for name, bounds in parse_statistics(statistics, str(path)).items():
        if bounds.width != 7:
            raise ConfigError(f"{path}: {name}: actions have {bounds.width} dimensions; this software knows 7")
    try:
        vocabulary = int(data["text_config"]["vocab_size"]) - int(data.get("pad_to_multiple_of", 0))
        image_size, edges = int(data["image_sizes"][0]), int(data.get("n_action_bins", 256))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{where}: text_config.vocab_size or image_sizes is missing or no number: {error}") from None
    if edges != 256 or vocabulary < edges:
        raise ConfigError(f"{where}: {edges} action bins in a vocabulary of {vocabulary}; this software knows 256 bins")
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
    """Statistics without the `proprio: {}` that some checkpoints carry for none."""
    if isinstance(entry, dict) and entry.get("proprio") == {}:
        return {key: value for key, value in entry.items() if key != "proprio"}
    return entry


def _same_family(train: TrainConfig, record: Mapping[str, Any], path: Path) -> None:
    if record.get("family") != train.model:
        raise DataError(
            f"{path}: is a {record.get('family')!r} model, its configuration says {train.model!r}. Restore the files."
        )


def _with_base(train: TrainConfig, record: Mapping[str, Any], path: Path, base: str | Path | None) -> TrainConfig:
    """The configuration with the base where it lies now, after comparing it with the one trained on."""
    where = Path(base or train.base).expanduser()
    if not where.is_dir():
        raise ConfigError(
            f"{path}: was trained on the checkpoint {train.base}, and {where} is no folder here. Say with base "
            "(--base) where it lies."
        )
    found, told = file_sha256(where / "config.json"), record.get("base_sha256")
    if told and found != told:
        raise DataError(
            f"{where}: is not the base that {path} was trained on: its config.json "
            + ("is missing." if found is None else f"has SHA-256 {found[:12]}…, trained on {told[:12]}….")
        )
    return replace(train, base=str(where))
