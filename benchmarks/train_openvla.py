"""Samples per second and memory of an OpenVLA-7B fine-tuning step, compared with a step of OpenVLA's finetune.py.

    python -m benchmarks.train_openvla --out benchmarks/results

Needs a GPU with 80 GB or more. Weights are random: they do not change the work of a step. Data is uint8 images and ids
as from the loader. Each kind of model runs in its own process; `--tiny` runs a tiny model on the CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import children

IMAGE = 224
TEXT = 40  # ids of prompt, 7 actions and stop; with 256 patches a sequence of 296
LABELS = 8
WARMUP, STEPS = 3, 8
KINDS = ("reference-eager", "reference-sdpa", "lora", "lora-compiled", "qlora")
SETTINGS: dict[str, list[tuple[int, bool]]] = {  # (batch size, checkpointing)
    "reference-eager": [(16, False)],
    "reference-sdpa": [(16, False)],
    "lora": [(16, False), (8, False), (1, False), (16, True), (8, True), (1, True)],
    "lora-compiled": [(16, False), (16, True)],
    "qlora": [(16, True), (8, True), (1, True)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of train-openvla.md and .json")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--one", choices=KINDS, help="(a child process)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: tests this script")
    args = parser.parse_args()
    if args.one:
        children.send_rows(measure(args.one, args.tiny))
        return
    options = ["--tiny"] if args.tiny else []
    children.run_all(
        "benchmarks.train_openvla", args.kinds, options, environment(args.tiny), report, args.out, "train-openvla"
    )


def environment(tiny: bool) -> dict[str, Any]:
    """The machine, and the throughput of a large bf16 product of random data in TFLOP/s."""
    import torch
    import transformers

    device = torch.device("cpu" if tiny else "cuda")
    n = 256 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: torch.mm(a, b), device, 3, 10)
    return {
        "device": "cpu" if tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "ceiling_tflops": 2 * n**3 / seconds / 1e12,
    }


def timed(work: Any, device: Any, warmup: int, repeats: int) -> float:
    """Median seconds of one call, from CUDA events if available."""
    import torch

    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
    return float(median(seconds))


def measure(kind: str, tiny: bool) -> Any:
    """Yield a row per setting of one kind."""
    import torch

    torch.manual_seed(0)
    device = torch.device("cpu" if tiny else "cuda")
    model, flops = build(kind, device, tiny)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, fused=not kind.startswith("reference"))
    for batch_size, checkpointing in SETTINGS[kind]:
        set_checkpointing(model, checkpointing)
        if kind == "lora-compiled":
            torch._dynamo.reset()
        batch = random_batch(batch_size, device, tiny)
        losses: list[Any] = []

        def step(batch: Any = batch, losses: list[Any] = losses) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(model, kind, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())

        if device.type == "cuda":
            torch.cuda.empty_cache()
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        first = time.perf_counter() - begin
        seconds = timed(step, device, 1 if tiny else WARMUP, 2 if tiny else STEPS)
        values = torch.stack(losses).float()
        if not torch.isfinite(values).all():
            raise RuntimeError(f"{kind}: the loss is not finite: {values.tolist()}")
        if values[-1] >= values[0]:
            raise RuntimeError(f"{kind}: the loss of one batch does not fall: {values.tolist()}")
        yield {
            "kind": kind, "batch": batch_size, "checkpointing": checkpointing, "seconds": seconds,
            "samples_per_second": batch_size / seconds, "first_step_seconds": first, "flops_per_sample": flops,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
            "first_loss": values[0].item(), "last_loss": values[-1].item(),
        }  # fmt: skip
        del batch


def build(kind: str, device: Any, tiny: bool) -> tuple[Any, float]:
    """The network of one kind, ready to train, and the minimum number of operations per sample."""
    import torch

    from oxe_curate.train.config import TrainConfig
    from oxe_curate.train.models import adapters
    from oxe_curate.train.models.compiling import compile_blocks
    from oxe_curate.train.models.norms import fuse_rms_norms
    from oxe_curate.train.models.openvla.config import Architecture
    from oxe_curate.train.models.openvla.synthetic import openvla_config, random_openvla

    # the reference uses eager attention, the default of the class that finetune.py loads
    architecture = Architecture.of(openvla_config("tiny" if tiny else "7b"))
    net = random_openvla(architecture, device, torch.bfloat16)
    tokens = TEXT + net.vision_backbone.num_patches
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
    text = {id(m) for m in net.language_model.modules()}
    head = net.language_model.get_output_embeddings()
    flops = 4.0 * LABELS * head.weight.numel()
    flops += sum(
        4.0 * m.weight.numel() * (tokens if id(m) in text else net.vision_backbone.num_patches)
        for m in linear
        if m is not head
    )
    if kind == "reference-eager":
        net.language_model.set_attn_implementation("eager")
    config = TrainConfig(data="-", base="-", run="-", adapter="qlora" if kind == "qlora" else "lora")
    parts = adapters.Parts("language_model", ("vision_backbone",))
    if kind == "qlora":
        adapters.quantize(net, adapters.needs_quantized(net, "language_model"), "qlora", device)
    model = adapters.attach(net, config, parts)
    if kind.startswith("reference"):
        for module in model.modules():
            module.__dict__.pop("forward", None)  # PEFT's own layers again
    else:
        fuse_rms_norms(net)  # as OpenVLAFamily.build does
    if kind == "lora-compiled" and not tiny:
        compile_blocks(model)
    model.train()
    return model, flops


def loss_of(model: Any, kind: str, batch: dict[str, Any]) -> Any:
    """The loss of a batch, as finetune.py's model computes it or as ours does."""
    import torch

    if not kind.startswith("reference"):
        return model(**{**batch, "attention_mask": None}).loss  # padding is on the right, so no token attends to it
    out = model(**{**batch, "labels": None})
    logits = out.logits.float()
    labels = batch["labels"]
    prefix = logits.shape[1] - labels.shape[1]
    ignored = labels.new_full((len(labels), prefix), -100)
    full = torch.cat([labels[:, :1], ignored, labels[:, 1:]], dim=1)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), full[:, 1:].flatten())


def random_batch(size: int, device: Any, tiny: bool) -> dict[str, Any]:
    """Images, ids and labels of a batch; a quarter of the rows are shorter and padded."""
    import torch

    side, vocabulary = (28, 400) if tiny else (IMAGE, 32000)
    ids = torch.randint(3, vocabulary, (size, TEXT), device=device)
    labels = torch.full_like(ids, -100)
    mask = torch.ones_like(ids, dtype=torch.bool)
    for row in range(size):
        end = TEXT - (4 if row % 4 == 3 else 0)
        labels[row, end - LABELS : end] = ids[row, end - LABELS : end]
        mask[row, end:] = False
    pixels = torch.randn(size, 6, side, side, device=device)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": labels}


def set_checkpointing(model: Any, on: bool) -> None:
    """Recompute activations in the backward pass, or keep them."""
    model.get_base_model().checkpoint_activations(on)


def report(rows: list[dict[str, Any]], info: dict[str, Any]) -> str:
    """A Markdown table; ratios are to the faster of the two reference steps."""
    references = [row["samples_per_second"] for row in rows if row["kind"].startswith("reference")]
    reference = max(references, default=float("nan"))
    lines = [
        "# OpenVLA-7B: one fine-tuning step",
        "",
        f"{info['device']}, torch {info['torch']}, transformers {info['transformers']}; random weights; sequences of "
        f"{TEXT + (IMAGE // 14) ** 2} tokens; LoRA rank 32 on all linear layers; bf16; medians of {STEPS} steps, "
        f"forward, backward, clipping and AdamW. Matrix ceiling: {info['ceiling_tflops']:.0f} TFLOP/s "
        "(8192 x 8192 x 8192 in bf16, random data).",
        "",
        "Command: `python -m benchmarks.train_openvla --out benchmarks/results`. The reference steps do what OpenVLA's "
        "finetune.py does (PEFT's own LoRA layers, logits at every position, AdamW), with eager attention, the default "
        "of its model class, and with SDPA.",
        "",
        "| step | batch | checkpointing | samples/s | to reference | share of ceiling | peak GiB | first step s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = row["samples_per_second"] * row["flops_per_sample"] / 1e12 / info["ceiling_tflops"]
        peak = f"{row['peak_gib']:.1f}" if row["peak_gib"] is not None else "-"
        lines.append(
            f"| {row['kind']} | {row['batch']} | {'yes' if row['checkpointing'] else 'no'} "
            f"| {row['samples_per_second']:.1f} | {row['samples_per_second'] / reference:.2f} | {share:.0%} | {peak} "
            f"| {row['first_step_seconds']:.1f} |"
        )
    lines += [
        "",
        "Share of ceiling counts only the required products: forward and the gradient of activations (4 operations per "
        "weight and token, without attention), not the recomputation of checkpointing.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
