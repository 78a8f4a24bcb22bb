"""Which optional packages a command needs; checked before anything that imports them."""

from __future__ import annotations

import importlib.util

from oxe_curate.errors import ConfigError
from oxe_curate.train.settings import TrainSettings

_BASE = ("accelerate", "safetensors", "torch", "transformers")


def check_packages(*names: str, why: str | None = None) -> None:
    """Check that packages are installed; without names, those that all training and inference needs.

    Args:
        names: as they are imported and installed.
        why: the option that needs them, for the message.

    Raises:
        ConfigError: names the missing packages and the pip command that installs them.
    """
    missing = [name for name in names or _BASE if not _installed(name)]
    if missing:
        packages = '"oxe-curate[train]"' if set(missing) & set(_BASE) else " ".join(missing)
        what = why or ("training and inference need" if not names else "this command needs")
        raise ConfigError(f"{what} packages that are not installed ({', '.join(missing)}): pip install {packages}")


def check_adapter_packages(adapter: str, lora: bool = True) -> None:
    """Check what an adapter needs: peft for LoRA, bitsandbytes for a quantised language model. Raises ConfigError.

    Args:
        adapter: "lora", "qlora", "int8" or "none".
        lora: whether there are adapter weights; False for a merged model that is quantized.
    """
    if adapter != "none" and lora:
        check_packages("peft", why=f"adapter {adapter} needs")
    if adapter in ("qlora", "int8"):
        check_packages("bitsandbytes", why=f"quantization ({adapter}) needs")


def check_training_packages(config: TrainSettings) -> None:
    """Check what a training run needs, by its configuration. Raises ConfigError."""
    check_packages()
    check_adapter_packages(config.adapter)
    if config.optimizer == "adamw8bit":
        check_packages("bitsandbytes", why="--optimizer adamw8bit needs")
    if config.log != "none":
        check_packages(config.log, why=f"--log {config.log} (--log none works without) needs")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # imported without a spec
        return True
