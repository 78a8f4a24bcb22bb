"""`oxe-curate train`, `evaluate`, `export`, `serve` and `compose`: parse, call one function, show the result."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from oxe_curate.cli import train_options
from oxe_curate.cli.options import Json, Quiet, print_json, reads_stores
from oxe_curate.train.packages import check_packages, check_training_packages

_Checkpoint = Annotated[
    int | None,
    typer.Option("--checkpoint", metavar="STEP", min=1, help="Step of the checkpoint (default: the final result)."),
]
_Device = Annotated[
    str | None, typer.Option("--device", help="cuda, cuda:1 or cpu (default: the GPU if there is one).")
]
_Base = Annotated[
    Path | None, typer.Option("--base", metavar="DIR", help="Base model folder (default: as recorded in training).")
]
_Crop = Annotated[
    bool | None,
    typer.Option("--center-crop/--no-center-crop", help="Crop the center of each image (default: as trained)."),
]
_Quantize = Annotated[
    Literal["none", "int8", "nf4"], typer.Option("--quantize", help="Quantization of the language model.")
]


def train(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file of settings; options override it.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as lora.dropout=0.1; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint of --run, with its settings.")
    ] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Measure steps, memory and hours, then stop.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Fine-tune a model on a mixture: LoRA, QLoRA, int8 or the weights themselves.

    Starts with a forecast of steps, epochs, memory and hours. For several GPUs: `torchrun --nproc-per-node 4 -m --
    oxe_curate train ...`. After an interruption, `train --resume --run DIR` continues from the last checkpoint.
    """
    from oxe_curate.train.config import read_train_config

    chosen = read_train_config(config, train_options.overrides(options) | _settings(setting or []), resume)
    train_options.check_family(options, chosen.model)
    check_training_packages(chosen)
    from oxe_curate.train.loop.run import run_training

    result = run_training(chosen, resume=resume, forecast_only=forecast, progress=not quiet)
    if as_json:
        print_json(result.to_json())


# Typer reads the options from the signature
_fixed = [p for p in inspect.signature(train, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
_generated = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in train_options.option_parameters()]
train.__signature__ = inspect.Signature(_generated + _fixed)  # type: ignore[attr-defined]


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder or exported model.")],
    checkpoint: _Checkpoint = None,
    split: Annotated[
        Literal["validation", "train"], typer.Option("--split", help="Held-out or training episodes.")
    ] = "validation",
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="Maximum number of episodes (default: 20).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Output folder (default: RUN/evaluation).")] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Mixture folder (default: as recorded in training).")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="ROOT",
            help="Folder with the data sets that a mixture by reference refers to (default: as recorded in training).",
        ),
    ] = None,
    base: _Base = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples per forward pass.")] = 16,
    center_crop: _Crop = None,
    device: _Device = None,
    quantize: _Quantize = "none",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict whole episodes step by step; report errors in metres and degrees and curves of every dimension."""
    check_packages()
    from oxe_curate.train.evaluation.evaluate import evaluate_run

    result = evaluate_run(
        run, checkpoint=checkpoint, split=split, episodes=episodes, out=out, device=device,
        quantize=None if quantize == "none" else quantize, progress=not quiet, data=data, source=source,
        base=base, batch_size=batch_size, center_crop=center_crop,
    )  # fmt: skip
    if as_json:
        print_json(result.to_json())
        return
    from oxe_curate.ui import tables

    screen = tables.console()
    screen.print(result.table())
    screen.print(f"Curves: {result.page}", markup=False)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or exported adapter to merge.")],
    out: Annotated[Path, typer.Option("--out", help="New output folder.")],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Write merged bf16 weights instead of the adapter."),
    ] = False,
    checkpoint: _Checkpoint = None,
    base: _Base = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device that merges (default: cpu; for a quantized base the GPU).")
    ] = None,
) -> None:
    """Export a run: adapter or merged weights, statistics, tokenizer and model card."""
    check_packages()
    from oxe_curate.train.export.export import export_run

    typer.echo(f"Exported: {export_run(run, out, merge=merge, checkpoint=checkpoint, base=base, device=device)}")


def serve(
    folder: Annotated[Path, typer.Argument(help="Run folder, exported model or published checkpoint.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    unnorm_key: Annotated[
        str | None,
        typer.Option("--unnorm-key", metavar="DATASET", help="Statistics to use where a request names no data set."),
    ] = None,
    quantize: _Quantize = "none",
    device: _Device = None,
    dtype: Annotated[
        Literal["bf16", "fp32"] | None, typer.Option("--dtype", help="Type of weights (default: as trained).")
    ] = None,
    checkpoint: _Checkpoint = None,
    base: _Base = None,
    center_crop: _Crop = None,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="Maximum size of a request in MiB.")] = 32,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Use torch.compile on a GPU: starts slower, runs four times faster."
        ),
    ] = True,
) -> None:
    """Serve a policy over HTTP: POST /act, as in OpenVLA's deploy.py. Listens on localhost by default.

    On a GPU, OpenVLA is compiled before requests are accepted: about 100 s at the first start, less from torch's cache.
    """
    check_packages()
    check_packages("starlette", "uvicorn")
    from oxe_curate.train.serving.serve import serve_policy

    serve_policy(
        folder, host=host, port=port, unnorm_key=unnorm_key, quantize=None if quantize == "none" else quantize,
        device=device, max_bytes=max_mb << 20, dtype=dtype, checkpoint=checkpoint, base=base, center_crop=center_crop,
        compile=compile_,
    )  # fmt: skip


def _compose(
    language_model: Annotated[Path, typer.Argument(help="Folder of a Hugging Face causal language model.")],
    vision: Annotated[
        list[Path], typer.Argument(help="OpenVLA checkpoint with the vision towers, or timm's DINOv2 and SigLIP.")
    ],
    out: Annotated[Path, typer.Option("--out", help="New output folder, a base model for train.")],
) -> None:
    """Combine a language model (Llama 3, Qwen) with OpenVLA's vision towers into a base model for train."""
    check_packages()
    from oxe_curate.atomic import atomic_folder
    from oxe_curate.errors import ConfigError
    from oxe_curate.outputs import claim_output, hold_output
    from oxe_curate.train.loop.disk import disk_errors
    from oxe_curate.train.models.openvla.compose import compose_checkpoint

    if len(vision) > 2:
        raise ConfigError(
            f"compose: expected one OpenVLA checkpoint, or DINOv2 and SigLIP; got {len(vision)} vision folders"
        )
    inputs = {"language model": language_model} | {f"vision model {path.name}": path for path in vision}
    claim_output(out, "export", inputs)
    with hold_output(out, "export"), disk_errors(out), atomic_folder(out) as temporary:
        compose_checkpoint(language_model, vision[0] if len(vision) == 1 else (vision[0], vision[1]), temporary)
    typer.echo(f"Base model: {out}. Run tokenize with --tokenizer {out}, so that the action tokens match it.")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command, text in (
        (reads_stores(train), "Fine-tune a model on a mixture."),
        (reads_stores(evaluate), "Measure the errors on held-out episodes."),
        (export, "Export a run for other software."),
        (serve, "Serve a policy over HTTP."),
        (_compose, "Combine a language model with vision towers."),
    ):
        app.command(command.__name__.removeprefix("_"), short_help=text)(command)


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
