"""Control frequency of OpenVLA-7B at batch 1: compiled and eager, against transformers' generate.

    python -m benchmarks.control --out benchmarks/results

Needs a GPU with 24 GB or more. Weights are random: they do not change the work of a step, which starts with a uint8
image and an instruction and ends with numbers on the host. Each kind runs in its own process; `--tiny` runs a tiny
model on the CPU, without torch.compile. Kinds:

    generate  transformers' generate in bf16: eager, dynamic cache
    eager     the product with compile=False: StaticCache without torch.compile
    bf16      the product: StaticCache under torch.compile; and parallel decoding
    nf4       the product and generate with NF4 weights (needs bitsandbytes)
    exact     ids in float32 against generate, 2 layers
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
TOKENS = 7  # of one action
LONGER = 51  # ids of a longer instruction, for the first step with another prompt
KINDS = ("generate", "eager", "bf16", "nf4", "exact")
OURS, EAGER = "token by token", "token by token, eager"
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
        children.send_rows(measure(args.one, args.tiny, args.repeats))
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
        yield bench.exact("compiled", bench.controller(compile=not tiny).decode)
        yield bench.exact("eager", bench.controller(compile=False).decode)
    elif kind == "generate":
        yield bench.generate("transformers generate", "bf16")
    elif kind == "eager":
        yield bench.ours(EAGER, "bf16", compile=False)
    else:
        weights = "NF4" if kind == "nf4" else "bf16"
        if kind == "nf4":
            bench.quantize()
            yield bench.generate("transformers generate", weights)
        yield bench.ours(OURS, weights)
        if kind == "bf16":
            yield bench.agreement("compiled", bench.last.decode)
        yield bench.ours("parallel, tokens", weights, chunk=CHUNK, parallel=True)
        if kind == "bf16":
            yield bench.ours("parallel, L1 head", weights, chunk=CHUNK, parallel=True, head=True)


class Bench:
    """A model with random weights, and images for it."""

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
        self.net = synthetic.random_openvla(Architecture.of(config), self.device, dtype).requires_grad_(False)
        self.normalize = PixelNormalizer()
        random = np.random.default_rng(0)
        words = random.integers(3, self.vocabulary - 256, LONGER - 1).tolist()
        self.ids, self.longer = [1, *words[: PROMPT - 1]], [1, *words]
        self.images = random.integers(0, 256, (16, 1, self.size, self.size, 3), np.uint8)

    def quantize(self) -> None:
        """Quantize the language model's linear layers except the output head to NF4, as --adapter qlora does."""
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
        from oxe_curate.train.models.openvla.control import ControlSettings, OpenVLAController

        weight = self.net.language_model.get_input_embeddings().weight
        made = L1Head(weight.shape[1]).to(self.device, weight.dtype).requires_grad_(False) if head else None
        control = ControlSettings(
            prompt=lambda instruction: self.longer if instruction == "longer" else self.ids,
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

    def embeddings(self, image: Any) -> Any:
        torch = self.torch
        pixels = self.normalize(torch.from_numpy(image).to(self.device))
        return self.net.embed(torch.tensor([self.ids], device=self.device), None, pixels)[0]

    def greedy(self, image: Any, count: int = TOKENS) -> list[int]:
        """Decode as OpenVLA's predict_action does: eager, with a growing cache."""
        torch, model = self.torch, self.net.language_model
        model.generation_config.eos_token_id = None  # as many tokens, whatever they are
        with torch.no_grad():
            x = self.embeddings(image)
            ones = torch.ones(x.shape[:2], dtype=torch.long, device=self.device)
            ids = model.generate(
                inputs_embeds=x, attention_mask=ones, max_new_tokens=count, do_sample=False, pad_token_id=0
            )
        found: list[int] = ids[0].tolist()
        return found

    def generate(self, name: str, weights: str) -> Row:
        return self._row(name, weights, 1, self.greedy, repeats=max(2, self.repeats // 3))

    def ours(self, name: str, weights: str, chunk: int = 1, **changes: Any) -> Row:
        controller = self.last = self.controller(chunk, **({"compile": not self.tiny} | changes))
        row = self._row(name, weights, chunk, lambda image: controller.act(image, "x"))
        start = time.perf_counter()
        controller.act(self.images[0], "longer")
        row["longer_ms"] = 1e3 * (time.perf_counter() - start)
        row["compiled"] = controller.compiled
        ids, length = controller._prompt("x")

        def parts() -> Row:
            prefix = controller.encode(self.images[0], None)
            found = {"look_ms": self._median(lambda: controller.encode(self.images[0], None))}
            found["read_ms"] = self._median(lambda: controller.read(prefix, ids, length))
            if not changes.get("parallel"):
                token = controller.read(prefix, ids, length)

                def rewind() -> None:
                    controller.read(prefix, ids, length)

                found["step_ms"] = self._median(lambda: controller.next(ids, token), before=rewind)
            return found

        row |= controller.run(parts)
        return row

    def agreement(self, name: str, decode: Callable[..., Any]) -> Row:
        """Compare with generate in bf16, where random weights give near ties: how far is each choice from the best?"""
        torch, same, short, spread = self.torch, 0, 0.0, 0.0
        for image in self.images[:4]:
            ids = list(map(int, decode(image, "x")))
            same += ids == self.greedy(image)
            with torch.no_grad():
                x = self.embeddings(image)
                given = self.net.language_model.get_input_embeddings()(torch.tensor([ids[:-1]], device=self.device))
                states = self.net.last_hidden(torch.cat([x, given], 1), None)[0, x.shape[1] - 1 :]
                logits = self.net.head(states).float()
            chosen = logits.gather(1, torch.tensor(ids, device=self.device)[:, None])[:, 0]
            short = max(short, (logits.max(1).values - chosen).max().item())
            spread = max(spread, logits.std(1).mean().item())
        row: Row = {"check": f"bf16 agreement, {name}", "sequences_equal": same, "of": 4}
        return row | {"shortfall": short, "logit_std": spread}

    def exact(self, name: str, decode: Callable[..., Any]) -> Row:
        """Compare with generate in float32: 2 layers of full width, every id equal."""
        count = min(8, len(self.images))
        equal = sum(list(map(int, decode(image, "x"))) == self.greedy(image) for image in self.images[:count])
        return {"check": f"float32 ids equal, {name}", "sequences_equal": equal, "of": count}

    def _row(self, name: str, weights: str, chunk: int, step: Callable[[Any], Any], repeats: int | None = None) -> Row:
        cuda = self.device.type == "cuda"
        if cuda:
            self.torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step(self.images[0])  # compiles and records CUDA graphs
        first = time.perf_counter() - start
        for image in self.images[:3]:
            step(image)
        times = []
        for number in range(repeats or self.repeats):
            image = self.images[number % len(self.images)]
            start = time.perf_counter()
            step(image)  # ends with numbers on the host, so the device is done
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

    def _median(self, work: Callable[[], Any], before: Callable[[], None] | None = None) -> float:
        """Milliseconds of one program; `before` resets its state."""
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
        f"{info['device']}, torch {info['torch']}, transformers {info['transformers']}; random weights, one image of "
        f"224 px, a prompt of {PROMPT} tokens. A step starts with a uint8 image and ends with numbers on the host. "
        "vision: towers and projector; prompt: the first token, or all slots in parallel decoding; token: each further "
        "token; first: the first step, which compiles and records CUDA graphs (3 steps); other: the first step with a "
        f"longer prompt, of {LONGER} tokens.",
        "",
        "| decoding | weights | actions a step | ms | p90 | steps/s | actions/s | against generate | vision "
        "| prompt | token | first s | other ms | GiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in timed:
        ratio = f"{row['actions_s'] / slow:.1f} x" if slow else ""
        parts = " | ".join(_number(row.get(key), 2) for key in ("look_ms", "read_ms", "step_ms"))
        lines.append(
            f"| {row['name']} | {row['weights']} | {row['chunk']} | {row['ms']:.2f} | {row['p90_ms']:.2f} "
            f"| {row['hz']:.1f} | {row['actions_s']:.0f} | {ratio} | {parts} | {row['first_s']:.1f} "
            f"| {_number(row.get('longer_ms'), 2)} | {_number(row['gib'], 1)} |"
        )
    plain = [row for row in timed if row["weights"] == "bf16"]
    by_token = [row["hz"] for row in plain if row["name"] == OURS]
    together = [row["actions_s"] for row in plain if row["name"].startswith("parallel") and row["chunk"] == CHUNK]
    lines.append("")
    for found, unit, aim in (
        (by_token, "Hz token by token", "autoregressive"),
        (together, "actions/s in parallel", "parallel"),
    ):
        if found and info["device"] != "cpu":
            met = "met" if max(found) >= AIMS[aim] else "missed"
            lines.append(f"- aim of {AIMS[aim]:.0f} {unit}: {met} ({max(found):.1f})")
    ours = next((row for row in plain if row["name"] == OURS), None)
    for row in plain:
        if ours and row is not ours and row["chunk"] == 1 and "step_ms" in row:
            parts = ", ".join(
                f"{label} {row[key] / ours[key]:.2f} x"
                for label, key in (
                    ("step", "ms"), ("vision", "look_ms"), ("prompt", "read_ms"), ("token", "step_ms")
                )
            )  # fmt: skip
            lines.append(f"- time of {row['name']} relative to {OURS}: {parts}")
    lines += [
        f"- {row['name']}, {row['weights']}: torch.compile failed, so these steps are eager"
        for row in timed
        if info["device"] != "cpu" and row["name"] != EAGER and row.get("compiled") is False
    ]
    for row in rows:
        if "check" in row:
            text = f"- {row['check']}: {row['sequences_equal']} of {row['of']} sequences equal those of generate"
            if "shortfall" in row:
                text += (
                    f"; the logit of a chosen id is at most {row['shortfall']:.3f} below the largest "
                    f"(standard deviation of the logits {row['logit_std']:.3f})"
                )
            lines.append(text)
    return "\n".join(lines) + "\n"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
