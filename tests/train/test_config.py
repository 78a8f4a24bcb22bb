"""The configuration of a run: defaults by family, files, options and resumed runs."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oxe_curate.config import to_yaml
from oxe_curate.errors import ConfigError
from oxe_curate.train.config import TrainConfig, read_train_config
from oxe_curate.train.settings import FAMILY_DEFAULTS

WHERE = {"data": "mix", "base": "base", "run": "run"}


def flamingo(**values: Any) -> TrainConfig:
    return TrainConfig(**WHERE, model="roboflamingo", **values)


def test_defaults_depend_on_the_family() -> None:
    openvla = TrainConfig("mix", "base", "run")
    assert (openvla.adapter, openvla.batch_size, openvla.learning_rate) == ("lora", 16, 5e-4)
    assert (openvla.warmup, openvla.augment) == (0, True)
    made = flamingo()
    assert (made.adapter, made.batch_size, made.learning_rate) == ("none", 6, 1e-4)
    assert (made.warmup, made.augment) == (500, False)
    assert made == TrainConfig("mix", "base", "run", "roboflamingo")
    assert made == read_train_config(None, {**WHERE, "model": "roboflamingo"})
    assert {key: asdict(made)[key] for key in FAMILY_DEFAULTS["roboflamingo"]} == FAMILY_DEFAULTS["roboflamingo"]


def test_given_values_override_the_family_and_none_means_its_default() -> None:
    given = read_train_config(None, {**WHERE, "model": "roboflamingo", "batch_size": 16, "warmup": None, "clip": None})
    assert (given.batch_size, given.warmup, given.clip) == (16, 500, None)
    assert replace(given, learning_rate=5e-4).learning_rate == 5e-4
    assert replace(given, steps=3).batch_size == 16
    assert TrainConfig(**WHERE, batch_size=None).batch_size == 16


def test_the_saved_configuration_holds_the_values(tmp_path: Path) -> None:
    made = flamingo(cameras=("primary", "wrist"))
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert yaml.safe_load(to_yaml(made))["learning_rate"] == 1e-4
    assert read_train_config(tmp_path / "config.yaml", {}) == made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"options: train needs MIXTURE \(.*\), --base \(.*\), --run \(.*\)$"),
        ({"data": "mix", "run": "run"}, r"train needs --base \(the base model folder\)$"),
        (WHERE | {"model": "openvlla"}, "model: unknown value 'openvlla'. Did you mean 'openvla'"),
        (WHERE | {"batch_sice": 4}, "unknown key 'batch_sice'. Did you mean 'batch_size'"),
        (WHERE | {"data": "mix", "lora": 3, "lora.rank": 4}, "expected lora to be a section, got 3"),
        (WHERE | {"optimizer": "adamw8bit", "shard": "fsdp"}, "adamw8bit does not support shard: fsdp"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_train_config(None, given)


def test_a_run_folder_is_enough_to_resume(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    (tmp_path / "run").mkdir()
    begun = TrainConfig("mix", "base", "/moved/from", epochs=2.0, batch_size=3, lora={"rank": 8, "dropout": 0.1})
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(begun))
    assert read_train_config(None, {"run": run}, resume=True) == replace(begun, run=run)

    longer = read_train_config(None, {"run": run, "steps": 9, "keep": 5, "lora.rank": 4}, resume=True)
    assert (longer.steps, longer.epochs, longer.keep) == (9, None, 5)
    assert (longer.lora.rank, longer.lora.dropout) == (4, 0.1)

    (tmp_path / "train.yaml").write_text(f"run: {run}\nbatch_size: 4\nlora: {{alpha: 8}}\n")
    both = read_train_config(tmp_path / "train.yaml", {"base": "other"}, resume=True)
    assert (both.batch_size, both.base, both.lora.alpha, both.lora.rank) == (4, "other", 8, 8)

    with pytest.raises(ConfigError, match=r"config\.yaml with options: batch_size: .* greater than or equal to 1"):
        read_train_config(None, {"run": run, "batch_size": 0}, resume=True)


def test_resuming_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs MIXTURE .*, --base .* \(.*config\.yaml not found: no run to"):
        read_train_config(None, {"run": str(tmp_path)}, resume=True)
    with pytest.raises(ConfigError, match=r"train needs MIXTURE .*, --base .*, --run"):
        read_train_config(None, {}, resume=True)
    assert read_train_config(None, {**WHERE, "run": str(tmp_path)}, resume=True).batch_size == 16  # it starts
