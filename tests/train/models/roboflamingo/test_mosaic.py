"""MPT-1B's first form: its weights, its norm on queries and keys, and what the released code reads of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.adapters import needs_quantized, quantize
from oxe_curate.train.models.roboflamingo.config import FlamingoSpec, HeadSpec
from oxe_curate.train.models.roboflamingo.model import build_flamingo
from tests.train.models.roboflamingo.bases import write_base

WIDTH, HEADS, LAYERS, ROWS = 32, 2, 4, 64


def layer_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, (WIDTH,), weight, eps=1e-5)


def mosaic(state: dict[str, torch.Tensor], ids: torch.Tensor) -> list[torch.Tensor]:
    """Reference: inputs of all layers and output of the final norm."""
    x, seen = state["transformer.wte.weight"][ids], []
    length = ids.shape[1]
    slopes = torch.tensor([2 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)])
    bias = -(torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0) * slopes[:, None, None]
    bias = bias.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    for i in range(LAYERS):
        seen.append(x)
        p = {name: state[f"transformer.blocks.{i}.{name}.weight"] for name in BLOCK}
        q, k, v = (layer_norm(x, p["ln_1"]) @ p["attn.Wqkv"].T).chunk(3, -1)
        q, k = layer_norm(q, p["attn.q_ln"]), layer_norm(k, p["attn.k_ln"])
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + bias
        x = x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ p["attn.out_proj"].T
        x = x + torch.nn.functional.gelu(layer_norm(x, p["ln_2"]) @ p["mlp.mlp_up"].T) @ p["mlp.mlp_down"].T
    return [*seen, layer_norm(x, state["transformer.ln_f.weight"])]


BLOCK = {
    "ln_1": (WIDTH,), "ln_2": (WIDTH,), "attn.Wqkv": (3 * WIDTH, WIDTH), "attn.q_ln": (WIDTH,), "attn.k_ln": (WIDTH,),
    "attn.out_proj": (WIDTH, WIDTH), "mlp.mlp_up": (4 * WIDTH, WIDTH), "mlp.mlp_down": (WIDTH, 4 * WIDTH),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a published mosaic_gpt in language/: pickled weights and its original configuration."""
    base = write_base(tmp_path_factory.mktemp("mosaic") / "base")
    torch.manual_seed(1)
    state = {"transformer.wte.weight": torch.randn(ROWS, WIDTH), "transformer.ln_f.weight": torch.rand(WIDTH) + 0.5}
    for i in range(LAYERS):
        for name, shape in BLOCK.items():
            value = torch.rand(shape) + 0.5 if len(shape) == 1 else torch.randn(shape) / WIDTH**0.5
            state[f"transformer.blocks.{i}.{name}.weight"] = value
    (base / "language" / "model.safetensors").unlink()
    torch.save(state, base / "language" / "pytorch_model.bin")
    config = {
        "model_type": "mosaic_gpt", "d_model": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 64,
        "vocab_size": ROWS, "attn_qk_ln": True, "alibi": True, "no_bias": True, "mlp_ratio": 4,
    }  # fmt: skip
    (base / "language" / "config.json").write_text(json.dumps(config))
    return base


def test_equals_a_reference_implementation(folder: Path) -> None:
    net = build_flamingo(folder, FlamingoSpec.read(folder), HeadSpec("mlp", 2), torch.float32).eval()
    for layer in net.layers:  # text only
        if layer.gated_cross_attn_layer is not None:
            layer.gated_cross_attn_layer.attn_gate.data.zero_()
            layer.gated_cross_attn_layer.ff_gate.data.zero_()
    state = torch.load(folder / "language" / "pytorch_model.bin", weights_only=True)
    # the embedding in flamingo.safetensors takes precedence
    state["transformer.wte.weight"] = net.lang_encoder.transformer.wte.weight.detach()
    ids = torch.randint(3, 60, (2, 7))
    layers = mosaic(state, ids)
    with torch.no_grad():
        whole = net.run_decoder(ids, torch.ones_like(ids), torch.randn(2, 4, WIDTH))
        early = net.run_decoder(ids, torch.ones_like(ids), torch.randn(2, 4, WIDTH), early=True)
        features = net.features(torch.randn(2, 1, 4, WIDTH), ids, torch.ones_like(ids))
    torch.testing.assert_close(whole, layers[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(early, layers[-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(features[:, 0], layers[-2], atol=1e-5, rtol=0)


def test_keeps_its_norms_when_quantized_or_adapted(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    net = build_flamingo(folder, FlamingoSpec.read(folder), HeadSpec("mlp", 2), torch.float32).eval()
    ids = torch.randint(3, 60, (2, 7))
    latents = torch.randn(2, 4, WIDTH)
    with torch.no_grad():
        exact = net.run_decoder(ids, torch.ones_like(ids), latents)
        names = [name for name in needs_quantized(net, "lang_encoder") if ".gated_cross_attn_layer." not in name]
        quantize(net, names, "int8", torch.device("cpu"))
        rough = net.run_decoder(ids, torch.ones_like(ids), latents)
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_other_variants_are_rejected(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base")
    where = tmp_path / "base" / "language" / "config.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"alibi": False}))
    with pytest.raises(ConfigError, match="'alibi': False"):
        FlamingoSpec.read(tmp_path / "base")
