"""The options of train are those of TrainConfig; packages are required only where they are used."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from typer.testing import CliRunner

from oxe_curate.cli.main import app
from oxe_curate.cli.train_options import option_parameters, overrides
from oxe_curate.config import to_yaml
from oxe_curate.errors import ConfigError
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.settings import FAMILY_DEFAULTS, settings

COMMAND = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
GENERATED = {
    parameter.name: (get_args(get_args(parameter.annotation)[0]), get_args(parameter.annotation)[1])
    for parameter in option_parameters()
}
"""Option -> (its type, None), and what Typer shows of it."""
FIXED = {
    "store_retries",
    "store_timeout",
    "store_requests",
    "config",
    "setting",
    "resume",
    "forecast",
    "quiet",
    "as_json",
}
TODAY = {
    "--model", "--base", "--run", "--adapter", "--tune", "--rank", "--alpha",
    "--targets", "--head", "--decoding", "--chunk", "--camera", "--proprio", "--no-proprio",
    "--steps", "--epochs", "--batch-size", "--accumulation", "--optimizer", "--learning-rate", "--schedule",
    "--warmup", "--clip", "--checkpointing", "--no-checkpointing", "--compile", "--no-compile", "--augment",
    "--no-augment", "--workers", "--seed", "--dtype", "--shard", "--log", "--log-every",
    "--eval-every", "--save-every", "--keep", "--config", "--set", "--resume", "--forecast",
    "--quiet", "-q", "--json",
}  # fmt: skip


def keys(of: Any, prefix: str = "") -> list[str]:
    """Every key of a configuration, those of its sections included."""
    return [
        key
        for field in fields(of)
        for key in (keys(field.default, f"{field.name}.") if is_dataclass(field.default) else [prefix + field.name])
    ]


def test_every_field_is_a_setting_and_every_setting_a_field() -> None:
    assert [setting.key for setting in settings()] == keys(TrainConfig)
    for setting in settings():
        assert setting.help.text, setting.key


def test_every_option_sets_a_field_and_every_field_has_an_option_or_is_in_a_section() -> None:
    assert {parameter.name for parameter in COMMAND.params} == set(GENERATED) | FIXED
    reached = set()
    for name, (kinds, _) in GENERATED.items():
        for value in get_args(kinds[0]) or [object()]:
            (key,) = overrides({name: value})
            reached.add(key)
    assert reached <= set(keys(TrainConfig))
    assert all("." in key for key in set(keys(TrainConfig)) - reached)


def test_no_option_was_renamed() -> None:
    names = {name for parameter in COMMAND.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert names >= TODAY


def test_help_has_text_choices_limits_and_the_defaults_of_each_family() -> None:
    shown = {parameter.name: parameter.help for parameter in COMMAND.params}
    assert shown["rank"] == "LoRA rank (default: 32)."
    assert shown["batch_size"] == "Samples per GPU and forward pass (default: 16; roboflamingo: 6)."
    assert shown["steps"] == "Optimizer steps (default: one epoch)."
    for key in FAMILY_DEFAULTS["roboflamingo"]:
        assert "; roboflamingo: " in shown[key], key
    kind = {name: kinds[0] for name, (kinds, _) in GENERATED.items()}
    assert get_args(kind["head"]) == ("tokens", "l1", "mlp", "gpt", "lstm")
    assert (kind["camera"], kind["targets"], kind["compile"], kind["chunk"]) == (list[str], list[str], bool, int)
    assert {GENERATED[name][1].min for name in ("rank", "steps", "keep")} == {1}
    assert {GENERATED[name][1].min for name in ("warmup", "seed")} == {0}


def test_help_is_built_without_pydantic_numpy_or_torch() -> None:
    code = (
        "import sys, oxe_curate.cli.main, oxe_curate.train.settings\n"
        "print({'pydantic', 'numpy', 'torch', 'yaml'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command up to the training; returns the configuration."""
    pytest.importorskip("torch")
    from oxe_curate.train.loop import run

    seen: list[TrainConfig] = []
    monkeypatch.setattr(run, "run_training", lambda config, **_: seen.append(config))

    def invoke(*arguments: str) -> TrainConfig:
        done = CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return seen[-1]

    return invoke


def test_options_reach_their_fields(train: Any, tmp_path: Path) -> None:
    where = ("mix", "--base", "base", "--run", str(tmp_path))
    given = train(
        *where, "--targets", "openvla", "--rank", "8", "--keep", "7", "--workers", "3", "--clip", "0.5", "--log-every",
        "2", "--camera", "wrist", "--camera", "primary", "--no-augment", "--compile", "--head", "l1", "--eval-samples",
        "0", "--set", "lora.dropout=0.1",
    )  # fmt: skip
    assert (given.lora.targets, given.lora.rank, given.lora.dropout) == ("openvla", 8, 0.1)
    assert (given.keep, given.workers, given.clip, given.log_every, given.eval_samples) == (7, 3, 0.5, 2, 0)
    assert (given.cameras, given.augment, given.compile) == (("wrist", "primary"), False, True)
    assert given.openvla.head == "l1"
    assert train(*where, "--targets", "q_proj", "--targets", "v_proj").lora.targets == ("q_proj", "v_proj")
    assert train(*where, "--set", "clip=null").clip is None
    assert train(*where, "--model", "roboflamingo") == TrainConfig("mix", "base", str(tmp_path), "roboflamingo")
    flamingo = train(*where, "--model", "roboflamingo", "--head", "gpt")
    assert (flamingo.flamingo.head, flamingo.openvla.head) == ("gpt", "tokens")
    (tmp_path / "config.yaml").write_text(to_yaml(given))
    assert train("--resume", "--run", str(tmp_path)) == given


def test_a_head_of_the_other_family_is_refused() -> None:
    arguments = ["train", "mixture", "--base", "b", "--run", "r", "--head", "lstm"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=True)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "--head lstm: openvla has no such head; choose from tokens, l1"


# ── packages ──

OPTIONAL = ("bitsandbytes", "peft", "starlette", "tensorboard", "uvicorn", "wandb")


def blocked(code: str, *missing: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process where packages are not installed."""
    block = f"import sys\nfor name in {missing}: sys.modules[name] = None\n"
    return subprocess.run(
        [sys.executable, "-c", block + inspect.cleandoc(code)], capture_output=True, text=True, check=False
    )


def test_modules_import_without_optional_packages() -> None:
    pytest.importorskip("torch")
    code = """
        import oxe_curate.train.loop.run, oxe_curate.train.serving.policy, oxe_curate.train.export.export
        import oxe_curate.train.evaluation.evaluate, oxe_curate.train.models.openvla.compose
    """
    done = blocked(code, *OPTIONAL)
    assert done.returncode == 0, done.stderr


def check(config: dict[str, Any], *missing: str) -> str:
    """The message of the package check, "" if it passes."""
    code = f"""
        from oxe_curate.errors import ConfigError
        from oxe_curate.train.packages import check_training_packages
        from oxe_curate.train.config import TrainConfig
        try:
            check_training_packages(TrainConfig("m", "b", "r", **{config!r}))
        except ConfigError as error:
            print(error, end="")
    """
    done = blocked(code, *missing)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lora_needs_neither_bitsandbytes_nor_a_server() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    assert (
        check({"adapter": "lora", "log": "none"}, "bitsandbytes", "starlette", "uvicorn", "tensorboard", "wandb") == ""
    )


@pytest.mark.parametrize(
    ("config", "missing", "message"),
    [
        ({"adapter": "none", "log": "none"}, "peft", ""),
        ({"adapter": "lora", "log": "none"}, "peft", r"adapter lora needs .*: pip install peft"),
        ({"adapter": "qlora", "log": "none"}, "bitsandbytes", r"\(qlora\) needs .*: pip install bitsandbytes"),
        ({"adapter": "int8", "log": "none"}, "bitsandbytes", r"\(int8\) needs .*: pip install bitsandbytes"),
        (
            {"adapter": "none", "log": "none", "optimizer": "adamw8bit"}, "bitsandbytes",
            r"--optimizer adamw8bit needs .*: pip install bitsandbytes",
        ),
        ({"adapter": "none"}, "tensorboard", r"--log tensorboard .* needs .*: pip install tensorboard"),
        ({"adapter": "none", "log": "wandb"}, "wandb", r"--log wandb .* needs .*: pip install wandb"),
        ({"adapter": "none", "log": "none"}, "accelerate", r'\(accelerate\): pip install "oxe-curate\[train\]"'),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_the_pip_command(config: dict[str, Any], missing: str, message: str) -> None:
    pytest.importorskip("torch")
    assert re.fullmatch(f".*{message}", found := check(config, missing)), found
    assert bool(found) == bool(message)


def test_serve_needs_a_server() -> None:
    pytest.importorskip("torch")
    done = blocked(
        "sys.argv[1:] = ['serve', 'run']\nfrom oxe_curate.cli.main import main\nmain()", "starlette", "uvicorn"
    )
    assert done.returncode == 2
    assert "(starlette, uvicorn): pip install starlette uvicorn" in done.stderr


# ── output folders ──


def test_compose_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ["compose", str(tmp_path / "llm"), str(tmp_path / "vision"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=True)
    assert "--out" in str(result.exception)
    assert "is not empty" in str(result.exception)
