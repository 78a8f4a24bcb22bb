"""Export of a run: adapter or merged weights, and all other files that inference needs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from oxe_curate import __version__
from oxe_curate import config as strict
from oxe_curate.atomic import atomic_folder
from oxe_curate.errors import ConfigError
from oxe_curate.outputs import claim_output, hold_output
from oxe_curate.tokenize.manifest import RESOLVED, STATISTICS, TOKENS
from oxe_curate.train.export.model_card import model_card
from oxe_curate.train.loop.disk import disk_errors
from oxe_curate.train.loop.saved import Saved, check_hashes, open_saved, spec_to_json
from oxe_curate.train.models.base import Family, family
from oxe_curate.train.packages import check_adapter_packages
from oxe_curate.train.run_folder import RunFolder, read_json
from oxe_curate.train.serving.policy import choose_device

_CARD = "README.md"


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    merge: bool = False,
    checkpoint: int | None = None,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Path:
    """Export a run to a folder, atomically.

    A merged folder has the family's published layout: for OpenVLA config.json with norm_stats, safetensors shards with
    their index, tokenizer and preprocessor. Without `merge` it has only the trained weights, an adapter in PEFT's
    layout. Both have dataset_statistics.json, action_tokens.parquet, mixture.yaml, oxe_curate.json and a model card.

    Args:
        run: run folder, or an exported adapter to merge.
        out: new or empty folder.
        merge: write merged weights. Layers that were quantized in training are dequantized first, since merging into
            the original weights would give another model.
        checkpoint: step of the run; default its end.
        base: folder of the base model, if it has moved since the training.
        device: that merges; default the CPU, or the GPU for a quantized base.

    Returns:
        `out`.

    Raises:
        ConfigError: nothing to export, `out` is not empty, or a package is missing.
        DataError: files differ from those of the training.
        StorageError: `out` cannot be written, or the disk is full.
    """
    saved = open_saved(run, checkpoint=checkpoint, base=base)
    if saved.weights is None:
        raise ConfigError(f"{saved.folder}: already merged; nothing to export")
    if saved.kind == "adapter" and not merge:
        raise ConfigError(f"{saved.folder}: already exported; use --merge to merge it into the base")
    target = Path(out).expanduser().absolute()
    claim_output(target, "export", {})
    check_adapter_packages(saved.config.adapter)
    quantized = saved.config.adapter in ("qlora", "int8")
    where = choose_device(device if device is not None or quantized else "cpu")
    with hold_output(target, "export"), disk_errors(target), atomic_folder(target) as temporary:
        # newly restored and never run: on a CPU bitsandbytes repacks 4-bit weights when they are used
        model = family(saved.config.model).restore(saved.config, saved.spec, saved.weights, where)
        _fill(temporary, saved, model, merge, target.name)
    return target


def _fill(folder: Path, saved: Saved, model: Family, merge: bool, name: str) -> None:
    model.export(folder, merge)
    for file in (STATISTICS, TOKENS, RESOLVED):
        shutil.copyfile(saved.folder / file, folder / file)
    check_hashes(folder, saved.spec.hashes, "model")  # check the copies
    RunFolder(folder).export_record.write_text(json.dumps(_record(saved, merge), indent=1) + "\n", encoding="utf-8")
    published = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    (folder / _CARD).write_text(model_card(saved, name, merge, published), encoding="utf-8")
    mode = (folder / _CARD).stat().st_mode & 0o777
    for path in folder.rglob("*"):  # safetensors makes files that only their owner can read
        if path.is_file():
            path.chmod(mode)


def _record(saved: Saved, merge: bool) -> dict[str, Any]:
    """The content of oxe_curate.json: run.json and the configuration, without paths except an adapter's base."""
    base = Path(saved.config.base).name if merge else saved.config.base
    config = replace(saved.config, data=Path(saved.config.data).name, run=Path(saved.config.run).name, base=base)
    return {
        **saved.record,
        "exported_by": f"oxe-curate {__version__}",
        "base": base,
        "contract": spec_to_json(saved.spec),
        "merged": merge,
        "checkpoint": saved.checkpoint if saved.kind == "run" else saved.record.get("checkpoint"),
        "config": yaml.safe_load(strict.to_yaml(config)),
    }
