"""The configuration of a training run: read from YAML, overridden by options, validated, saved as resolved."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic import model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from oxe_curate import config
from oxe_curate.errors import ConfigError
from oxe_curate.registry.card import IndexedRole
from oxe_curate.train.run_folder import RunFolder
from oxe_curate.train.settings import (
    FAMILY_DEFAULTS,
    FamilyName,
    FlamingoSettings,
    LoraSettings,
    OpenVLASettings,
    TrainSettings,
    Tuning,
)

_NEEDED = {
    "data": "MIXTURE (the folder that tokenize wrote; `data` in a file)",
    "base": "--base (the base model folder)",
    "run": "--run (the run folder)",
}


@dataclass(frozen=True, config=config.STRICT)
class LoraConfig(LoraSettings):
    """The LoRA adapter, validated."""


@dataclass(frozen=True, config=config.STRICT)
class OpenVLAConfig(OpenVLASettings):
    """Settings that only OpenVLA reads, validated."""


@dataclass(frozen=True, config=config.STRICT)
class FlamingoConfig(FlamingoSettings):
    """Settings that only RoboFlamingo reads, validated."""


@dataclass(frozen=True, config=config.STRICT)
class TrainConfig(TrainSettings):
    """A training run, validated; `settings.py` describes every key.

    Every instance is complete: a key of `FAMILY_DEFAULTS` that is missing or None takes the family's value.
    """

    lora: LoraConfig = LoraConfig()
    openvla: OpenVLAConfig = OpenVLAConfig()
    flamingo: FlamingoConfig = FlamingoConfig()
    cameras: tuple[IndexedRole, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, data: Any) -> Any:
        """Fill the keys that are not given with the family's defaults."""
        if isinstance(data, ArgsKwargs):
            data = dict(zip((field.name for field in fields(cls)), data.args, strict=False)) | (data.kwargs or {})
        if not isinstance(data, dict) or data.get("model", "openvla") not in get_args(FamilyName):
            return data  # rejected by the validation of `model`
        by_family = {key for defaults in FAMILY_DEFAULTS.values() for key in defaults}
        given = {key: value for key, value in data.items() if value is not None or key not in by_family}
        return FAMILY_DEFAULTS[data.get("model", "openvla")] | given

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.tune is not None and self.adapter != "none":
            raise ValueError(f"tune: {self.tune!r} trains the weights themselves; set adapter: none")
        if self.optimizer == "adamw8bit" and self.shard == "fsdp":
            raise ValueError(
                "optimizer: adamw8bit does not support shard: fsdp, which divides the weights. Use optimizer: adamw "
                "(fsdp divides its moments too) or shard: ddp"
            )

    @property
    def tuning(self) -> Tuning:
        """`tune`, or its default."""
        return self.tune or "full"


def read_train_config(path: Path | None, overrides: dict[str, Any], resume: bool = False) -> TrainConfig:
    """Read a run's configuration: the file's keys, then `overrides` ("lora.rank" reaches into a section).

    Args:
        path: YAML file.
        overrides: key -> value.
        resume: start from the configuration in the run folder, if there is one, so that `run` is enough.

    Returns:
        the configuration with every default filled in.

    Raises:
        ConfigError: an unknown key or a value out of range, with the file, the key and the closest match; a missing
            mixture, base or run.
    """
    given = _read_keys(path) if path is not None else {}
    for key, value in overrides.items():
        section = given
        *parents, last = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{key}: expected {parent} to be a section, got {section!r}")
        section[last] = value
    where, begun = str(path or "options"), ""
    if resume and given.get("run"):
        kept = RunFolder(Path(str(given["run"])).expanduser()).config
        if kept.is_file():
            before = _read_keys(kept)
            if given.get("steps") is not None or given.get("epochs") is not None:
                before["steps"] = before["epochs"] = None  # the new length, in whichever measure
            given, where = _merged(before, given), f"{kept} with {where}"
        else:
            begun = f" ({kept} not found: no run to resume)"
    missing = [what for key, what in _NEEDED.items() if given.get(key) is None]
    if missing:
        raise ConfigError(f"{where}: train needs {', '.join(missing)}{begun}")
    return config.build(TrainConfig, given, where)


def _read_keys(path: Path) -> dict[str, Any]:
    found = config.read_yaml(path) or {}
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(found).__name__}")
    return found


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`one` updated with `other`, section by section."""
    both = dict(one)
    for key, value in other.items():
        inside = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merged(both[key], value) if inside else value
    return both
