"""Samples per second and memory of a RoboFlamingo training step, compared with a step of the released trainer.

    python -m benchmarks.train_flamingo --out benchmarks/results

CLIP ViT-L/14 with an MPT-1B ("3b", cross-attention at every layer) or an MPT-7B ("9b", at every fourth), random
weights, windows of 12 steps of two cameras, instructions of 16 ids, batch 6, as in the released script. The reference
is float32 without TF32, with eager attention in resampler and cross-attention, the text run for every frame, unfused
AdamW, and the loss read at every step. Ours is the product's family on uint8 frames. Needs a GPU with 80 GB or more;
each kind runs in its own process; `--tiny` runs tiny models on the CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from benchmarks import children

BATCH, WINDOW, CAMERAS, TEXT = 6, 12, 2, 16
WARMUP, STEPS = 2, 5
HEADS = ("lstm", "gpt", "mlp", "mlp-history")
KINDS = ("3b-reference", "3b", "9b-reference", "9b", "3b-compiled", "9b-nf4")
DEFAULT = ("3b-reference", "3b", "9b-reference", "9b")
# (variant, checkpointing, cached vision features)
VARIANTS = (("bf16", False, False), ("bf16, checkpointing", True, False), ("bf16, checkpointing, cached", True, True))
PREDICTED = {  # samples/s and GiB, before the first run: work at 48 (float32) and 350 (bf16) TFLOP/s, 16 bytes a
    # trained weight, activations by hand
    ("3b-reference", "float32"): (7.0, 36.0),
    ("3b", "bf16"): (37.0, 29.0),
    ("3b", "bf16, checkpointing"): (30.0, 22.0),
    ("3b", "bf16, checkpointing, cached"): (45.0, 22.0),
    ("9b-reference", "float32"): (4.0, 71.0),
    ("9b", "bf16"): (25.0, 47.0),
    ("9b", "bf16, checkpointing"): (19.0, 39.0),
    ("9b", "bf16, checkpointing, cached"): (24.0, 39.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of train-flamingo.md and .json")
    parser.add_argument("--kinds", nargs="+", default=DEFAULT, choices=KINDS)
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--one", choices=KINDS, help="(a child process)")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU: tests this script")
    args = parser.parse_args()
    if args.one:
        children.send_rows(measure(args.one, args.heads, args.tiny))
        return
    options = ["--heads", *args.heads, *(["--tiny"] if args.tiny else [])]
    children.run_all(
        "benchmarks.train_flamingo", args.kinds, options, environment(args.tiny), report, args.out, "train-flamingo"
    )


def environment(tiny: bool) -> dict[str, Any]:
    import torch
    import transformers

    name = "cpu" if tiny else torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def measure(kind: str, heads: list[str], tiny: bool) -> Any:
    """Yield a row per head and variant of one kind; the large parts are built once."""
    import torch

    from oxe_curate.train.models.roboflamingo.config import HeadSpec
    from oxe_curate.train.models.roboflamingo.synthetic import random_flamingo

    torch.manual_seed(0)
    device = torch.device("cpu" if tiny else "cuda")
    reference = kind.endswith("reference")
    dtype = torch.float32 if reference else torch.bfloat16
    net = random_flamingo("tiny" if tiny else kind[:2], device, dtype)  # type: ignore[arg-type]
    if reference:
        use_eager_attention()
    variants = (("float32", False, False),) if reference else VARIANTS
    for name in heads:
        history = name == "mlp-history"
        if reference and history:
            continue  # the released code has no separate implementation
        sizes = {"hidden": 32, "layers": 1, "heads": 4} if tiny else {}
        spec = HeadSpec(name.removesuffix("-history"), WINDOW, history=history, **sizes)
        net.lm_head = spec.build(net.lang_encoder.config.hidden_size).to(device)
        net.history, net.window = history, WINDOW
        if history:
            net.frame_embs = torch.nn.Parameter(torch.randn(WINDOW, net.perceiver.latents.shape[1], device=device))
        for variant, checkpointing, cached in variants[: 1 if kind.endswith("compiled") else None]:
            model = assemble(kind, net, name, checkpointing, device, tiny)
            batch = random_batch(model, cached, device, tiny)
            yield {"kind": kind, "head": name, "variant": variant, **run(model, batch, kind, device, tiny)}
            del model, batch
        if history:
            del net.frame_embs


def assemble(kind: str, net: Any, head: str, checkpointing: bool, device: Any, tiny: bool) -> Any:
    """The product's family around a network; the reference runs the same network in float32."""
    import torch

    from oxe_curate.train.config import FlamingoConfig, TrainConfig
    from oxe_curate.train.models import adapters
    from oxe_curate.train.models.base import PolicySpec
    from oxe_curate.train.models.compiling import compile_blocks
    from oxe_curate.train.models.roboflamingo.family import FlamingoFamily

    if kind.endswith("nf4") and not any(type(m).__name__ == "Linear4bit" for m in net.modules()):
        names = [n for n in adapters.needs_quantized(net, "lang_encoder") if ".gated_cross_attn_layer." not in n]
        adapters.quantize(net, names, "qlora", device)
    net.requires_grad_(False)
    net.train_parts(embeddings=True)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    net.enable_checkpointing(checkpointing)
    if kind.endswith("compiled") and not tiny:
        torch._dynamo.reset()
        compile_blocks(net)
    reference = kind.endswith("reference")
    settings = FlamingoConfig(head="mlp" if head.startswith("mlp") else head, history=net.history)  # type: ignore[arg-type]
    config = TrainConfig(
        data="-", base="-", run="-", model="roboflamingo", adapter="none", augment=False,
        dtype="fp32" if reference else "bf16", flamingo=settings,
    )  # fmt: skip
    size = net.vision_encoder.shape.image_size
    spec = PolicySpec(("primary", "wrist"), WINDOW, 1, size, 0, {}, None, "openvla", {})
    return FlamingoFamily(net, config, spec, False, None).train()


def random_batch(model: Any, cached: bool, device: Any, tiny: bool) -> dict[str, Any]:
    """A batch as from the loader, in page-locked memory: distinct frames, no padding."""
    import torch

    shape = model.flamingo.vision_encoder.shape
    n = 2 if tiny else BATCH
    frames = n * WINDOW
    images = frames * CAMERAS
    vocabulary = model.flamingo.media_token
    ids = torch.randint(3, vocabulary, (n, TEXT))
    ids[:, 0] = vocabulary
    mask = torch.arange(TEXT) < torch.tensor([TEXT - 4 * (i % 2) for i in range(n)])[:, None]
    actions = torch.rand(n, WINDOW, 1, 7) * 2 - 1
    actions[..., 6] = (actions[..., 6] > 0).float()
    batch = {
        "frames": torch.arange(frames).view(n, WINDOW), "random": torch.rand(n, 8), "actions": actions,
        "action_mask": torch.ones(n, WINDOW, 1, dtype=torch.bool), "input_ids": ids, "attention_mask": mask,
        "observation_mask": torch.ones(n, WINDOW, dtype=torch.bool),
        "image_sample": torch.arange(images) // (WINDOW * CAMERAS), "image_place": torch.arange(images),
        "images": torch.randint(0, 256, (images, shape.image_size, shape.image_size, 3), dtype=torch.uint8),
    }  # fmt: skip
    if cached:
        batch["cached"] = torch.randn(images, shape.tokens, shape.width).to(torch.bfloat16)
        batch["cached_place"] = batch["image_place"]
        for name in ("images", "image_place", "image_sample"):
            batch[name] = batch[name][:0]
    return {key: value if tiny else value.pin_memory() for key, value in batch.items()}


def run(model: Any, batch: dict[str, Any], kind: str, device: Any, tiny: bool) -> dict[str, Any]:
    """Time optimizer steps, including copies to the device."""
    import torch

    reference = kind.endswith("reference")
    groups = model.parameter_groups(None)
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=not reference and not tiny)
    losses = []
    gpu = device.type == "cuda"

    def step() -> None:
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        loss = model(**moved)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() if reference else loss.detach())

    if gpu:
        torch.cuda.empty_cache()
    for _ in range(1 if tiny else WARMUP):
        step()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    count = 1 if tiny else STEPS
    begin = time.perf_counter()
    for _ in range(count):
        step()
    if gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / count
    values = [float(value) for value in losses]
    if not all(value == value and abs(value) < 1e6 for value in values):
        raise RuntimeError(f"{kind}: the loss is not finite: {values}")
    return {
        "batch": len(batch["actions"]), "seconds": seconds, "samples_per_second": len(batch["actions"]) / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "trained": sum(p.numel() for p in parameters), "weights": sum(p.numel() for p in model.parameters()),
        "first_loss": values[0], "last_loss": values[-1],
    }  # fmt: skip


def use_eager_attention() -> None:
    """Use eager attention in resampler and cross-attention, and run the text for every frame of a window."""
    import torch

    from oxe_curate.train.models.roboflamingo import net as flamingo_net
    from oxe_curate.train.models.roboflamingo import resampler

    def attend(q: Any, kv: Any) -> Any:
        q = q.unflatten(-1, (resampler.HEADS, resampler.HEAD_WIDTH)).transpose(1, 2) * resampler.HEAD_WIDTH**-0.5
        k, v = kv.unflatten(-1, (2, resampler.HEADS, resampler.HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("...id,...jd->...ij", q, k)
        scores = scores - scores.amax(-1, keepdim=True).detach()
        return torch.einsum("...ij,...jd->...id", scores.softmax(-1), v).transpose(1, 2).flatten(2)

    resampler._attend = attend
    flamingo_net.FlamingoLayer.before_cross_attention = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


def report(rows: list[dict[str, Any]], info: dict[str, Any]) -> str:
    """A Markdown table; the last columns compare with the reference of the same size and head."""
    lines = [
        "# RoboFlamingo: a training step",
        "",
        f"{info['device']}, torch {info['torch']}, transformers {info['transformers']}. CLIP ViT-L/14 with an MPT-1B "
        f"(3b) or an MPT-7B (9b), random weights; batch {BATCH}, windows of {WINDOW} steps, {CAMERAS} cameras, texts "
        f"of {TEXT} ids; whole steps with AdamW, copies to the GPU included. The reference works like the released "
        "trainer: float32 without TF32, attention not fused. In brackets: predicted before the first run (LSTM).",
        "",
        "| model | head | variant | samples/s | GiB | speed, x reference | memory, x reference |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        size = row["kind"].partition("-")[0]
        head = row["head"].removesuffix("-history")
        other = next((r for r in rows if r["kind"] == f"{size}-reference" and r["head"] == head), None)
        guess = PREDICTED.get((row["kind"], row["variant"])) if row["head"] == "lstm" else None
        speed, memory = f"{row['samples_per_second']:.1f}", "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
        if guess:
            speed, memory = f"{speed} ({guess[0]:g})", f"{memory} ({guess[1]:g})"
        ratios = ["", ""]
        if other and other is not row:
            ratios[0] = f"{row['samples_per_second'] / other['samples_per_second']:.2f}"
            ratios[1] = f"{row['peak_gib'] / other['peak_gib']:.2f}" if row["peak_gib"] else ""
        variant = "reference" if row["kind"].endswith("reference") else row["variant"]
        variant += {"compiled": ", compiled", "nf4": ", NF4 decoder"}.get(row["kind"].partition("-")[2], "")
        lines.append(f"| {size} | {row['head']} | {variant} | {speed} | {memory} | {ratios[0]} | {ratios[1]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
