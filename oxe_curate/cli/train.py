"""`oxe-curate train`, `evaluate`, `export` and `serve`: parse, call one function, show the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_NEEDED = (
    "accelerate", "bitsandbytes", "peft", "safetensors", "starlette", "tensorboard", "torch", "transformers", "uvicorn",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Checkpoint = Annotated[
    int | None, typer.Option("--checkpoint", metavar="STEP", min=1, help="Of this step. Default: the finished run.")
]
Device = Annotated[str | None, typer.Option("--device", help="cuda, cuda:1, cpu. Default: the GPU if there is one.")]
Base = Annotated[
    Path | None, typer.Option("--base", metavar="DIR", help="Where the base checkpoint lies, if it moved.")
]
Crop = Annotated[
    bool | None,
    typer.Option("--center-crop/--no-center-crop", help="Cut out the middle of each picture. Default: as trained."),
]
Quantize = Annotated[
    Literal["none", "int8", "nf4"], typer.Option("--quantize", help="Of the language model while it runs.")
]


def train(
    data: Annotated[str | None, typer.Argument(metavar="MIXTURE", help="Folder that tokenize wrote.")] = None,
    model: Annotated[
        Literal["openvla", "roboflamingo"] | None, typer.Option("--model", help="Model family. Default: openvla.")
    ] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="DIR", help="Checkpoint folder to start from.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="DIR", help="Folder of the results.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML with any of the settings; options win.")
    ] = None,
    adapter: Annotated[
        Literal["lora", "qlora", "int8", "none"] | None,
        typer.Option(
            "--adapter", help="LoRA; LoRA on an NF4 or int8 language model; none. Default: lora; roboflamingo: none."
        ),
    ] = None,
    tune: Annotated[
        Literal["full", "last-layer", "frozen-vision", "sandwich"] | None,
        typer.Option("--tune", help="Which weights, with --adapter none."),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Of LoRA. Default: 32.")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Of LoRA: scaled by alpha / rank. Default: 16.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--targets", help="Of LoRA: all-linear, openvla, or endings of layers' names; repeatable."),
    ] = None,
    head: Annotated[
        Literal["tokens", "l1", "mlp", "gpt", "lstm"] | None,
        typer.Option("--head", help="openvla: tokens or l1; roboflamingo: mlp, gpt or lstm."),
    ] = None,
    decoding: Annotated[
        Literal["autoregressive", "parallel"] | None,
        typer.Option("--decoding", help="openvla: token by token, or all of a chunk in one pass."),
    ] = None,
    chunk: Annotated[int | None, typer.Option("--chunk", min=1, help="Actions predicted at once.")] = None,
    camera: Annotated[
        list[str] | None, typer.Option("--camera", help="Role to look at; repeatable. Default: the mixture's.")
    ] = None,
    proprio: Annotated[bool | None, typer.Option("--proprio/--no-proprio", help="Show the robot's state.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps. Default: one epoch.")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the mixture, instead.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Samples a GPU and forward pass. Default: 16; roboflamingo: 6."),
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option("--accumulation", min=1, help="Forward passes an optimizer step. Default: 1.")
    ] = None,
    optimizer: Annotated[
        Literal["adamw", "adamw8bit"] | None,
        typer.Option("--optimizer", help="adamw8bit: a quarter of the memory for moments. Default: adamw."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Default: 5e-4; roboflamingo: 1e-4.")
    ] = None,
    schedule: Annotated[
        Literal["constant", "cosine", "linear"] | None, typer.Option("--schedule", help="Default: constant.")
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option("--warmup", min=0, help="Steps of rising learning rate. Default: 0; roboflamingo: 500."),
    ] = None,
    clip: Annotated[
        float | None, typer.Option("--clip", help="Norm of the gradients at most. Default: 1; --set clip=null for any.")
    ] = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing/--no-checkpointing", help="Less memory: compute activations twice."),
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile: slower start, faster steps.")
    ] = None,
    augment: Annotated[bool | None, typer.Option("--augment/--no-augment", help="OpenVLA's image changes.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode. Default: by the machine.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of order, augmentation and fresh weights.")] = None,
    dtype: Annotated[Literal["bf16", "fp32"] | None, typer.Option("--dtype", help="Default: bf16.")] = None,
    shard: Annotated[
        Literal["ddp", "fsdp"] | None, typer.Option("--shard", help="Where torchrun started several processes.")
    ] = None,
    log: Annotated[
        Literal["tensorboard", "wandb", "none"] | None, typer.Option("--log", help="Default: tensorboard.")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option("--log-every", min=1, help="Steps between lines of the log. Default: 10.")
    ] = None,
    eval_every: Annotated[int | None, typer.Option("--eval-every", min=1, help="Steps between validations.")] = None,
    save_every: Annotated[int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="Checkpoints that stay. Default: 2.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting (lora.dropout=0.1); repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of --run, as configured.")
    ] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Measure, say memory and hours, and stop.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on a mixture: LoRA, QLoRA, int8 or the weights themselves.

    Starts with a forecast of steps, epochs, memory and hours. Several GPUs: `torchrun --nproc-per-node 4 -m --
    oxe_curate train ...`. Interrupted at any moment, `train --resume --run DIR` goes on as if nothing had happened.
    """
    check_packages()
    from oxe_curate.train.config import read_train_config

    sections = {"tokens": "openvla", "l1": "openvla", "mlp": "flamingo", "gpt": "flamingo", "lstm": "flamingo"}
    overrides: dict[str, Any] = {
        "data": data, "model": model, "base": base, "run": run, "adapter": adapter, "tune": tune, "lora.rank": rank,
        "lora.alpha": alpha, "openvla.decoding": decoding, "chunk": chunk, "cameras": camera, "proprio": proprio,
        "steps": steps, "epochs": epochs, "batch_size": batch_size, "accumulation": accumulation,
        "learning_rate": learning_rate, "schedule": schedule, "warmup": warmup, "checkpointing": checkpointing,
        "compile": compile_, "augment": augment, "seed": seed, "dtype": dtype, "shard": shard, "log": log,
        "eval_every": eval_every, "save_every": save_every, "optimizer": optimizer, "clip": clip, "workers": workers,
        "log_every": log_every, "keep": keep,
        # one may be a word for a set of layers
        "lora.targets": targets[0] if targets and len(targets) == 1 else targets,
    }  # fmt: skip
    if head is not None:
        overrides[f"{sections[head]}.head"] = head
    overrides = {key: value for key, value in overrides.items() if value is not None} | _settings(setting or [])
    chosen = read_train_config(config, overrides, resume)
    if head is not None and sections[head] != {"openvla": "openvla", "roboflamingo": "flamingo"}[chosen.model]:
        from oxe_curate.errors import ConfigError

        raise ConfigError(
            f"--head {head}: {chosen.model} has no such head. openvla: tokens, l1; roboflamingo: mlp, gpt, lstm"
        )
    from oxe_curate.train.loop.run import run_training

    result = run_training(chosen, resume=resume, forecast_only=forecast, progress=not quiet)
    if as_json:
        _print_json(result.to_json())


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    checkpoint: Checkpoint = None,
    split: Annotated[
        Literal["validation", "train"], typer.Option("--split", help="Episodes held out, or trained on.")
    ] = "validation",
    episodes: Annotated[int | None, typer.Option("--episodes", min=1, help="At most. Default: 20.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder. Default: RUN/evaluation.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Where the mixture lies, if it moved.")] = None,
    base: Base = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples a forward pass.")] = 16,
    center_crop: Crop = None,
    device: Device = None,
    quantize: Quantize = "none",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict whole episodes step by step, and show errors in metres and degrees beside curves of every dimension."""
    check_packages()
    from oxe_curate.train.evaluation.evaluate import evaluate_run

    result = evaluate_run(
        run, checkpoint=checkpoint, split=split, episodes=episodes, out=out, device=device,
        quantize=None if quantize == "none" else quantize, progress=not quiet, data=data, base=base,
        batch_size=batch_size, center_crop=center_crop,
    )  # fmt: skip
    if as_json:
        _print_json(result.to_json())
        return
    from oxe_curate.ui import tables

    screen = tables.console()
    screen.print(result.table())
    screen.print(f"Curves: {result.page}", markup=False)


def export(
    run: Annotated[Path, typer.Argument(help="Folder that train wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    merge: Annotated[bool, typer.Option("--merge", help="Whole bf16 weights instead of the adapter.")] = False,
    checkpoint: Checkpoint = None,
    base: Base = None,
    device: Annotated[
        str | None, typer.Option("--device", help="That merges. Default: cpu; the GPU where the base is quantised.")
    ] = None,
) -> None:
    """Write a run as a folder that others load: adapter or merged weights, statistics, tokenizer, model card."""
    check_packages()
    from oxe_curate.train.export.export import export_run

    typer.echo(f"Exported: {export_run(run, out, merge=merge, checkpoint=checkpoint, base=base, device=device)}")


def serve(
    folder: Annotated[Path, typer.Argument(help="Run, exported folder or published checkpoint.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.")] = 8000,
    unnorm_key: Annotated[
        str | None, typer.Option("--unnorm-key", metavar="DATASET", help="Whose statistics, unless a request says so.")
    ] = None,
    quantize: Quantize = "none",
    device: Device = None,
    dtype: Annotated[Literal["bf16", "fp32"] | None, typer.Option("--dtype", help="Default: as trained.")] = None,
    checkpoint: Checkpoint = None,
    base: Base = None,
    center_crop: Crop = None,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="Largest request.")] = 32,
) -> None:
    """Answer POST /act with actions, as OpenVLA's deploy.py does. Listens on this machine alone by default."""
    check_packages()
    from oxe_curate.train.serving.serve import serve_policy

    serve_policy(
        folder, host=host, port=port, unnorm_key=unnorm_key, quantize=None if quantize == "none" else quantize,
        device=device, max_bytes=max_mb << 20, dtype=dtype, checkpoint=checkpoint, base=base, center_crop=center_crop,
    )  # fmt: skip


def compose(
    language_model: Annotated[Path, typer.Argument(help="Folder of a Hugging Face causal language model.")],
    vision: Annotated[
        list[Path], typer.Argument(help="OpenVLA checkpoint whose towers are taken; or timm's DINOv2, then SigLIP.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make: a base for train.")],
) -> None:
    """Put a language model (Llama 3, Qwen) behind OpenVLA's vision towers, as a base to train from."""
    check_packages()
    from oxe_curate.errors import ConfigError
    from oxe_curate.train.models.openvla.compose import compose_checkpoint as put_together

    if len(vision) > 2:
        raise ConfigError(f"compose: {len(vision)} vision folders; give one OpenVLA checkpoint, or DINOv2 and SigLIP")
    put_together(language_model, vision[0] if len(vision) == 1 else (vision[0], vision[1]), out)
    typer.echo(f"Base: {out}. Tokenize with --tokenizer {out}, so that the action tokens fit it.")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (train, evaluate, export, serve, compose):
        app.command(command.__name__)(command)


def _settings(pairs: list[str]) -> dict[str, Any]:
    from oxe_curate.config import parse_yaml
    from oxe_curate.errors import ConfigError

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: expected KEY=VALUE, such as lora.dropout=0.1")
        found[key] = parse_yaml(value, f"--set {pair}")
    return found


def check_packages() -> None:
    """Raise ConfigError, which says what to install, unless the extra `[train]` is there."""
    from importlib.util import find_spec

    from oxe_curate.errors import ConfigError

    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f'training needs more packages ({", ".join(missing)}): pip install "oxe-curate[train]"')


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))
