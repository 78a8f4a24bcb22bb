"""A run as a folder that others load: adapter or whole weights, and everything that inference needs beside them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from oxe_curate import __version__
from oxe_curate.errors import ConfigError
from oxe_curate.storage import TEMPORARY
from oxe_curate.tokenize.manifest import RESOLVED, STATISTICS, TOKENS
from oxe_curate.train.config import to_yaml
from oxe_curate.train.export.model_card import model_card
from oxe_curate.train.loop import checkpoints
from oxe_curate.train.loop.saved import EXPORT, Saved, check_hashes, open_saved, read_json, spec_to_json
from oxe_curate.train.models.base import Family, family
from oxe_curate.train.serving.policy import choose_device

CARD = "README.md"


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    merge: bool = False,
    checkpoint: int | None = None,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Path:
    """Write a run as a folder; it appears complete or not at all.

    A merged folder has the family's published layout: for OpenVLA config.json with norm_stats, safetensors shards with
    their index, tokenizer and preprocessor. Without `merge`: the trained weights alone, an adapter in PEFT's layout.
    Both hold dataset_statistics.json, action_tokens.parquet, mixture.yaml, oxe_curate.json and a model card.

    Args:
        run: folder that train wrote; or an exported adapter, to be merged.
        out: folder to make; an empty one may be there.
        merge: whole weights. The base is loaded afresh; layers that were quantised in training are dequantised first,
            since merging into the original weights would give another model.
        checkpoint: step of the run; default its end.
        base: where the base checkpoint lies, if not where it lay in training.
        device: that merges; default the CPU, or the GPU where the base is quantised.

    Returns:
        `out`.

    Raises:
        ConfigError: nothing to export, or `out` holds something.
        DataError: files that are not those of the training.
        StorageError: `out` cannot be written, or the disk is full.
    """
    saved = open_saved(run, checkpoint=checkpoint, base=base)
    if saved.weights is None:
        raise ConfigError(f"{saved.folder}: is whole as it stands; there is nothing to export")
    if saved.kind == "adapter" and not merge:
        raise ConfigError(f"{saved.folder}: is exported already; --merge makes whole weights of it")
    target = Path(out).expanduser().absolute()
    _check_free(target)
    quantized = saved.config.adapter in ("qlora", "int8")
    where = choose_device(device if device is not None or quantized else "cpu")
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")

    def write() -> None:
        temporary.mkdir(parents=True)
        # freshly restored, never run: bitsandbytes repacks 4-bit weights where a CPU runs them
        model = family(saved.config.model).restore(saved.config, saved.spec, saved.weights, where)
        _fill(temporary, saved, model, merge, target.name)
        checkpoints.flush(temporary)

    try:
        checkpoints.told(target, write)
        checkpoints.told(target, lambda: _rename(temporary, target))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _fill(folder: Path, saved: Saved, model: Family, merge: bool, name: str) -> None:
    model.export(folder, merge)
    for file in (STATISTICS, TOKENS, RESOLVED):
        shutil.copyfile(saved.folder / file, folder / file)
    check_hashes(folder, saved.spec.hashes, "model")  # what was copied is what was checked
    (folder / EXPORT).write_text(json.dumps(_record(saved, merge), indent=1) + "\n", encoding="utf-8")
    published = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    (folder / CARD).write_text(model_card(saved, name, merge, published), encoding="utf-8")
    mode = (folder / CARD).stat().st_mode & 0o777
    for path in folder.rglob("*"):  # safetensors makes files that their owner alone can read
        if path.is_file():
            path.chmod(mode)


def _rename(temporary: Path, target: Path) -> None:
    if target.is_dir():
        target.rmdir()  # it was empty
    temporary.rename(target)
    checkpoints.flush(target.parent, recursive=False)


def _record(saved: Saved, merge: bool) -> dict[str, Any]:
    """oxe_curate.json: run.json, the configuration, what was exported; without paths, but for an adapter's base."""
    base = Path(saved.config.base).name if merge else saved.config.base
    config = replace(saved.config, data=Path(saved.config.data).name, run=Path(saved.config.run).name, base=base)
    return {
        **saved.record,
        "exported_by": f"oxe-curate {__version__}",
        "base": base,
        "contract": spec_to_json(saved.spec),
        "merged": merge,
        "checkpoint": saved.checkpoint if saved.kind == "run" else saved.record.get("checkpoint"),
        "config": yaml.safe_load(to_yaml(config)),
    }


def _check_free(target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"--out {target}: is there already and holds something. Name another folder, or remove it.")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--out {target}: is a file")
    target.parent.mkdir(parents=True, exist_ok=True)
