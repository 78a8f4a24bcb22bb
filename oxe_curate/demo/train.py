"""`oxe-curate demo --train`: train a tiny OpenVLA with random weights on the demo's mixture, evaluate and call it."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from PIL import Image

from oxe_curate.demo import mixture_text
from oxe_curate.outputs import hold_output
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.ui import tables

_IMAGE_SIZE = 56  # pixels: 16 patches
_OPTIONS = {
    "adapter": "none", "openvla.head": "l1", "steps": 600, "batch_size": 16, "learning_rate": 1e-3,
    "schedule": "cosine", "warmup": 50, "augment": False, "save_every": 200,
}  # fmt: skip


def _flags() -> str:
    """`_OPTIONS` on the command line."""
    names = {key.rpartition(".")[2].replace("_", "-"): value for key, value in _OPTIONS.items()}
    return " ".join(f"--no-{name}" if value is False else f"--{name} {value}" for name, value in names.items())


def run_training_demo(out: Path) -> None:
    """Train on the output of `run_demo`, and print how well the model predicts held-out episodes.

    A finished run is kept, an interrupted one resumes. Raises as tokenize, train and evaluate do.
    """
    with hold_output(out, "demo"):
        _train_and_evaluate(out)


def _train_and_evaluate(out: Path) -> None:
    from oxe_curate.train.config import read_train_config
    from oxe_curate.train.evaluation.evaluate import evaluate_run
    from oxe_curate.train.loop.run import run_training
    from oxe_curate.train.models.openvla.synthetic import openvla_config, write_random_checkpoint
    from oxe_curate.train.serving.policy import Policy

    screen = tables.console()
    base, mixture, shards, run = out / "base", out / "train.yaml", out / "train-mixture", out / "run"
    if not (base / "config.json").exists():
        write_random_checkpoint(base, openvla_config("tiny", image_size=_IMAGE_SIZE), deviation=0.1)
    screen.print(f"\n{base}: an OpenVLA in the published format with 400,000 random weights", markup=False)
    content = yaml.safe_load(mixture_text())
    content["image"]["size"] = _IMAGE_SIZE
    mixture.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    tables.show_command(screen, f"oxe-curate tokenize {mixture} --index {out}/index --out {shards} --tokenizer {base}")
    run_tokenize(mixture, str(out / "index"), str(shards), TokenizeOptions(tokenizer=base))
    tables.show_command(screen, f"oxe-curate train {shards} --base {base} --run {run} {_flags()}")
    config = read_train_config(None, {"data": str(shards), "base": str(base), "run": str(run), **_OPTIONS})
    if not (run / "adapter").is_dir():
        run_training(config, resume=any(run.glob("checkpoint-*")))
    tables.show_command(screen, f"oxe-curate evaluate {run} --episodes 9")
    result = evaluate_run(run, episodes=9)
    screen.print(result.table())
    screen.print(f"Curves: {result.page}", markup=False)
    row = pq.ParquetFile(next(shards.glob("validation-*.parquet"))).read_row_group(0).slice(0, 1).to_pylist()[0]
    with Image.open(io.BytesIO(row["image_primary"]["bytes"])) as image:
        action = Policy.load(run)(image, row["instruction"], unnorm_key=row["dataset"])
    motion = ", ".join(f"{1000 * value:.1f}" for value in action[:3])
    screen.print(
        f"\nFor “{row['instruction']}”, the policy moves by ({motion}) mm, gripper {action[6]:.2f} (1 = open)."
    )
    screen.print(f"To serve it: oxe-curate serve {run} --unnorm-key {row['dataset']}", markup=False)
