"""What a run is told: defaults by family, files under options, a run folder under both."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from oxe_curate.errors import ConfigError
from oxe_curate.train.config import FAMILY_DEFAULTS, TrainConfig, read_train_config, to_yaml

WHERE = {"data": "mix", "base": "base", "run": "run"}


def flamingo(**values: Any) -> TrainConfig:
    return TrainConfig(**WHERE, model="roboflamingo", **values)


def test_defaults_are_the_familys_however_a_configuration_is_made() -> None:
    openvla = TrainConfig("mix", "base", "run")
    assert (openvla.adapter, openvla.batch_size, openvla.learning_rate) == ("lora", 16, 5e-4)
    assert (openvla.warmup, openvla.augment) == (0, True)
    made = flamingo()
    assert (made.adapter, made.batch_size, made.learning_rate) == ("none", 6, 1e-4)
    assert (made.warmup, made.augment) == (500, False)
    assert made == TrainConfig("mix", "base", "run", "roboflamingo")
    assert made == read_train_config(None, {**WHERE, "model": "roboflamingo"})
    assert {key: asdict(made)[key] for key in FAMILY_DEFAULTS["roboflamingo"]} == FAMILY_DEFAULTS["roboflamingo"]


def test_what_is_told_goes_before_the_familys_and_none_asks_for_it() -> None:
    told = read_train_config(None, {**WHERE, "model": "roboflamingo", "batch_size": 16, "warmup": None, "clip": None})
    assert (told.batch_size, told.warmup, told.clip) == (16, 500, None)
    assert replace(told, learning_rate=5e-4).learning_rate == 5e-4
    assert replace(told, steps=3).batch_size == 16
    assert TrainConfig(**WHERE, batch_size=None).batch_size == 16


def test_the_saved_configuration_holds_the_values(tmp_path: Path) -> None:
    made = flamingo(cameras=("primary", "wrist"))
    (tmp_path / "config.yaml").write_text(to_yaml(made))
    assert yaml.safe_load(to_yaml(made))["learning_rate"] == 1e-4
    assert read_train_config(tmp_path / "config.yaml", {}) == made


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, r"options: train needs MIXTURE \(.*\), --base \(.*\), --run \(.*\)$"),
        ({"data": "mix", "run": "run"}, r"train needs --base \(the checkpoint folder to start from\)$"),
        (WHERE | {"model": "openvlla"}, "model: 'openvlla' is not known. Did you mean 'openvla'"),
        (WHERE | {"batch_sice": 4}, "unknown key 'batch_sice'. Did you mean 'batch_size'"),
        (WHERE | {"data": "mix", "lora": 3, "lora.rank": 4}, "lora is 3, not a section"),
        (WHERE | {"optimizer": "adamw8bit", "shard": "fsdp"}, "adamw8bit needs each weight whole"),
    ],
)
def test_what_is_wrong_is_named(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_train_config(None, told)


def test_a_run_folder_is_enough_to_go_on(tmp_path: Path) -> None:
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


def test_a_run_that_has_not_begun_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs MIXTURE .*, --base .* \(.*config\.yaml is not there: no run to"):
        read_train_config(None, {"run": str(tmp_path)}, resume=True)
    with pytest.raises(ConfigError, match=r"train needs MIXTURE .*, --base .*, --run"):
        read_train_config(None, {}, resume=True)
    assert read_train_config(None, {**WHERE, "run": str(tmp_path)}, resume=True).batch_size == 16  # it begins


def test_every_option_reaches_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    from typer.testing import CliRunner

    from oxe_curate.cli.main import app
    from oxe_curate.train.loop import run

    seen: list[TrainConfig] = []
    monkeypatch.setattr(run, "run_training", lambda config, **_: seen.append(config))

    def train(*arguments: str) -> TrainConfig:
        done = CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return seen[-1]

    where = ("mix", "--base", "base", "--run", str(tmp_path))
    told = train(
        *where, "--targets", "openvla", "--keep", "7", "--workers", "3", "--clip", "0.5", "--log-every", "2",
        "--optimizer", "adamw8bit",
    )  # fmt: skip
    assert (told.lora.targets, told.keep, told.workers, told.clip, told.log_every, told.optimizer) == (
        "openvla", 7, 3, 0.5, 2, "adamw8bit",
    )  # fmt: skip
    assert train(*where, "--targets", "q_proj", "--targets", "v_proj").lora.targets == ("q_proj", "v_proj")
    assert train(*where, "--set", "clip=null").clip is None
    assert train(*where, "--model", "roboflamingo") == TrainConfig("mix", "base", str(tmp_path), "roboflamingo")
    (tmp_path / "config.yaml").write_text(to_yaml(told))
    assert train("--resume", "--run", str(tmp_path)) == told


def test_a_head_of_the_other_family_is_refused() -> None:
    from typer.testing import CliRunner

    from oxe_curate.cli.main import app

    result = CliRunner().invoke(
        app, ["train", "mixture", "--base", "b", "--run", "r", "--head", "lstm"], catch_exceptions=True
    )
    assert "openvla has no such head" in str(result.exception)
