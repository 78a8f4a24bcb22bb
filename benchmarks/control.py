"""Control frequency of OpenVLA-7B at batch 1: token by token and in parallel, against Hugging Face's generate.

    python -m benchmarks.control --out benchmarks/results

Needs a GPU of 24 GB or more; weights are random (a step does the same work whatever they are). A step goes from uint8
pictures and an instruction to numbers on the host. Every kind is a process of its own; `--tiny` runs all on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks import children

PROMPT = 27  # ids of "In: What action should the robot take to {eight words}?\nOut:"
CHUNK = 8
KINDS = ("generate", "bf16", "nf4", "bf16-torch", "exact")
AIMS = {"autoregressive": 25.0, "parallel": 400.0}  # Hz, actions/s, in bf16
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of control.md and control.json")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--one", choices=KINDS, help="(a child process)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU: tests this script")
    args = parser.parse_args()
    if args.one:
        children.tell(measure(args.one, args.tiny, args.repeats))
        return
    options = ["--repeats", str(args.repeats), *(["--tiny"] if args.tiny else [])]
    children.run_all("benchmarks.control", args.kinds, options, environment(args.tiny), report, args.out, "control")


def environment(tiny: bool) -> dict[str, Any]:
    import torch
    import transformers

    name = "cpu" if tiny else torch.cuda.get_device_name()
    return {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}


def measure(kind: str, tiny: bool, repeats: int) -> Iterator[Row]:
    """The rows of one kind."""
    import torch

    bench = Bench(
        tiny, repeats, torch.float32 if kind == "exact" else torch.bfloat16, layers=2 if kind == "exact" else None
    )
    if kind == "exact":
        yield bench.exact()
    elif kind == "generate":
        yield bench.generate("Hugging Face generate", "bf16")
    elif kind == "nf4":
        bench.quantize()
        yield bench.generate("Hugging Face generate", "NF4")
        yield bench.ours("token by token", "NF4")
        yield bench.ours("parallel, tokens", "NF4", chunk=CHUNK, parallel=True)
    elif kind == "bf16":
        yield bench.ours("token by token", "bf16")
        yield bench.agreement()
        yield bench.ours("parallel, tokens", "bf16", chunk=CHUNK, parallel=True)
        yield bench.ours("parallel, L1 head", "bf16", chunk=CHUNK, parallel=True, head=True)
        yield bench.ours("parallel, L1 head, one action", "bf16", parallel=True, head=True)
    else:
        yield bench.ours("token by token, without Triton", "bf16", kernels=False)


class Bench:
    """A model of random weights, and pictures for it."""

    def __init__(self, tiny: bool, repeats: int, dtype: Any, layers: int | None = None) -> None:
        import torch

        from oxe_curate.train.models.openvla import synthetic
        from oxe_curate.train.models.openvla.config import Architecture
        from oxe_curate.train.models.pixels import PixelNormalizer

        self.torch, self.repeats, self.tiny = torch, repeats, tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        if tiny:
            torch.set_num_threads(1)
        config = synthetic.openvla_config("tiny" if tiny else "7b", layers=layers)
        self.size = config["image_sizes"][0]
        self.vocabulary = config["text_config"]["vocab_size"] - config["pad_to_multiple_of"]
        self.net = synthetic.random_model(Architecture.of(config), self.device, dtype).requires_grad_(False)
        self.normalize = PixelNormalizer()
        random = np.random.default_rng(0)
        self.ids = [1, *random.integers(3, self.vocabulary - 256, PROMPT - 1).tolist()]
        self.pictures = random.integers(0, 256, (16, 1, self.size, self.size, 3), np.uint8)

    def quantize(self) -> None:
        """NF4 for the language model's linear layers but the output head, as --adapter qlora holds it."""
        from oxe_curate.train.models.weights import quantized, replace_linear

        torch = self.torch
        text = self.net.language_model.base_model
        for name in [n for n, module in text.named_modules() if isinstance(module, torch.nn.Linear)]:
            weight = text.get_submodule(name).weight.detach()
            replace_linear(text, name, "nf4", weight.dtype).weight = quantized(weight, "nf4", self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def controller(self, chunk: int = 1, head: bool = False, **changes: Any) -> Any:
        from oxe_curate.train.models.openvla.action_head import L1Head
        from oxe_curate.train.models.openvla.control import Control, OpenVLAController

        weight = self.net.language_model.get_input_embeddings().weight
        made = L1Head(weight.shape[1]).to(self.device, weight.dtype).requires_grad_(False) if head else None
        control = Control(
            prompt=lambda _: self.ids,
            pixels=self.normalize,
            values=lambda ids: (self.vocabulary - ids).astype(np.float32) / 128,
            token_ids=range(self.vocabulary - 256, self.vocabulary),
            cameras=1,
            image_size=self.size,
            chunk=chunk,
            head=made,
            **changes,
        )
        return OpenVLAController(self.net, control)

    def embeddings(self, picture: Any) -> Any:
        torch = self.torch
        pixels = self.normalize(torch.from_numpy(picture).to(self.device))
        return self.net.embed(torch.tensor([self.ids], device=self.device), None, pixels)[0]

    def greedy(self, picture: Any, count: int = 7) -> list[int]:
        """Upstream's predict_action: eager, a growing cache, ids to the host."""
        torch, model = self.torch, self.net.language_model
        model.generation_config.eos_token_id = None  # as many tokens, whatever they are
        with torch.no_grad():
            x = self.embeddings(picture)
            ones = torch.ones(x.shape[:2], dtype=torch.long, device=self.device)
            ids = model.generate(
                inputs_embeds=x, attention_mask=ones, max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        found: list[int] = ids[0].tolist()
        return found

    def generate(self, name: str, weights: str) -> Row:
        return self._row(name, weights, 1, self.greedy, repeats=max(2, self.repeats // 3))

    def ours(self, name: str, weights: str, chunk: int = 1, **changes: Any) -> Row:
        controller = self.controller(chunk, **changes)
        row = self._row(name, weights, chunk, lambda picture: controller.act(picture, "x"))
        with self.torch.no_grad():
            look, read, step = controller._programs(controller._say("x"))
            row["look_ms"] = self._median(look)
            row["read_ms"] = self._median(read)
            if not changes.get("parallel"):
                row["step_ms"] = self._median(step, before=read)
        return row

    def agreement(self) -> Row:
        """Ours against transformers in bf16, where random logits are close to ties: how far each choice is off."""
        torch = self.torch
        ours, same, short, spread = self.controller(), 0, 0.0, 0.0
        for picture in self.pictures[:4]:
            ids = ours.decode(picture, "x").tolist()
            same += ids == self.greedy(picture)
            with torch.no_grad():
                x = self.embeddings(picture)
                told = self.net.language_model.get_input_embeddings()(torch.tensor([ids[:-1]], device=self.device))
                states = self.net.last_hidden(torch.cat([x, told], 1), None)[0, x.shape[1] - 1 :]
                logits = self.net.head(states).float()
            chosen = logits.gather(1, torch.tensor(ids, device=self.device)[:, None])[:, 0]
            short = max(short, (logits.max(1).values - chosen).max().item())
            spread = max(spread, logits.std(1).mean().item())
        return {"check": "bf16 agreement", "sequences_equal": same, "of": 4, "shortfall": short, "logit_std": spread}

    def exact(self) -> Row:
        """Ours against transformers in float32, 2 layers of full width: every id equal, graphs and all."""
        ours, count = self.controller(), min(8, len(self.pictures))
        equal = sum(ours.decode(p, "x").tolist() == self.greedy(p) for p in self.pictures[:count])
        return {"check": "float32 ids equal", "sequences_equal": equal, "of": count}

    def _row(self, name: str, weights: str, chunk: int, step: Callable[[Any], Any], repeats: int | None = None) -> Row:
        cuda = self.device.type == "cuda"
        if cuda:
            self.torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step(self.pictures[0])
        first = time.perf_counter() - start
        for picture in self.pictures[:3]:
            step(picture)
        times = []
        for number in range(repeats or self.repeats):
            picture = self.pictures[number % len(self.pictures)]
            start = time.perf_counter()
            step(picture)  # ends with numbers on the host, so the device is done
            times.append(1e3 * (time.perf_counter() - start))
        middle = median(times)
        return {
            "name": name,
            "weights": weights,
            "chunk": chunk,
            "ms": middle,
            "p90_ms": quantiles(times, n=10)[-1] if len(times) > 1 else middle,
            "hz": 1e3 / middle,
            "actions_s": 1e3 * chunk / middle,
            "first_s": first,
            "gib": self.torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        }

    def _median(self, work: Callable[[], None], before: Callable[[], None] | None = None) -> float:
        """Milliseconds of one program; `before` puts its state back."""
        cuda = self.device.type == "cuda"
        times = []
        for _ in range(min(20, self.repeats)):
            if before:
                before()
            if cuda:
                self.torch.cuda.synchronize()
            start = time.perf_counter()
            work()
            if cuda:
                self.torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - start))
        return median(times)


def report(rows: list[Row], info: dict[str, Any]) -> str:
    """The rows as Markdown."""
    timed = [row for row in rows if "ms" in row]
    slow = next((row["actions_s"] for row in timed if "generate" in row["name"]), None)
    lines = [
        "# Control frequency, OpenVLA-7B, batch 1",
        "",
        f"{info['device']}, torch {info['torch']}, transformers {info['transformers']}; random weights, one picture of "
        f"224 px, a prompt of {PROMPT} tokens. A step goes from a uint8 picture to numbers on the host. look: vision; "
        "read: prompt, or all slots; token: each further one; first: the first step, which records the CUDA graphs.",
        "",
        "| decoding | weights | actions a step | ms | p90 | steps/s | actions/s | against generate | look | read "
        "| token | first s | GiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in timed:
        ratio = f"{row['actions_s'] / slow:.1f} x" if slow else ""
        parts = " | ".join(_number(row.get(key), 2) for key in ("look_ms", "read_ms", "step_ms"))
        lines.append(
            f"| {row['name']} | {row['weights']} | {row['chunk']} | {row['ms']:.2f} | {row['p90_ms']:.2f} "
            f"| {row['hz']:.1f} | {row['actions_s']:.0f} | {ratio} | {parts} | {row['first_s']:.1f} "
            f"| {_number(row['gib'], 1)} |"
        )
    plain = [row for row in timed if row["weights"] == "bf16"]
    by_token = [row["hz"] for row in plain if row["name"].startswith("token by token")]
    together = [row["actions_s"] for row in plain if row["name"].startswith("parallel") and row["chunk"] == CHUNK]
    lines.append("")
    for found, unit, aim in (
        (by_token, "Hz token by token", "autoregressive"),
        (together, "actions/s in parallel", "parallel"),
    ):
        if found and info["device"] != "cpu":
            met = "met" if max(found) >= AIMS[aim] else "missed"
            lines.append(f"- aim of {AIMS[aim]:.0f} {unit}: {met} ({max(found):.1f})")
    for row in rows:
        if "check" in row:
            text = f"- {row['check']}: {row['sequences_equal']} of {row['of']} sequences as transformers generates them"
            if "shortfall" in row:
                text += (
                    f"; at each of our ids transformers' own logit is at most {row['shortfall']:.3f} below its largest "
                    f"(standard deviation of the logits {row['logit_std']:.3f}): rounding between near ties"
                )
            lines.append(text)
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
