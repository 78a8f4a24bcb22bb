"""What is trained, how it is saved, and that merging changes nothing but the number of weights."""

import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from torch import nn

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.train.config import LoraConfig, TrainConfig
from oxe_curate.train.models import adapter_files, adapters
from tests import ROOT

PARTS = adapters.Parts("language_model", vision=("vision_backbone",), whole=("fresh",))
OPENVLAS_KEYS = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight"


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 64, 4, 4)})
        self.qkv = nn.Linear(64, 64)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.qkv(self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2))


class Net(nn.Module):
    """A small vision-language-action model: vision, projector, Llama, and one new layer."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
        )
        self.vision_backbone = Vision()
        self.projector = nn.Linear(64, 64)
        self.fresh = nn.Linear(5, 64)
        self.language_model = transformers.LlamaForCausalLM(config)

    def forward(self, pixels: torch.Tensor, state: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        words = self.language_model.get_input_embeddings()(ids)
        parts = [self.projector(self.vision_backbone(pixels)), self.fresh(state)[:, None], words]
        return self.language_model(inputs_embeds=torch.cat(parts, 1)).logits


def settings(adapter: str = "lora", **values: object) -> TrainConfig:
    return TrainConfig(data="-", base="-", run="-", adapter=adapter, **values)


def built(adapter: str = "lora", seed: int = 1, **values: object) -> nn.Module:
    net = Net(seed)
    if adapter in ("qlora", "int8"):
        names = adapters.needs_quantized(net, "language_model")
        adapters.quantize(net, names, adapter, torch.device("cpu"))
    return adapters.attach(net, settings(adapter, **values), PARTS)


def batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 96, (2, 6), generator=generator)
    return torch.randn(2, 3, 8, 8, generator=generator), torch.randn(2, 5, generator=generator), ids


def trained(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


def learn(net: nn.Module, steps: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = net(*batch()).log_softmax(-1)[..., 3].neg().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_all_linear_excludes_the_output_head_and_new_modules() -> None:
    targets = adapters.lora_targets(Net(), LoraConfig(), PARTS)
    assert len(targets) == 2 * 7 + 2  # seven per block, the ViT and the projector
    assert "projector" in targets
    assert not {"language_model.lm_head", "fresh", "vision_backbone.patch_embed.proj"} & set(targets)


def test_openvla_targets_equal_those_of_its_script() -> None:
    plain = set(adapters.lora_targets(Net(), LoraConfig(), PARTS))
    theirs = set(adapters.lora_targets(Net(), LoraConfig(targets="openvla"), PARTS))
    assert theirs - plain == {"language_model.lm_head", "vision_backbone.patch_embed.proj"}


def test_targets_by_suffix_and_by_regular_expression() -> None:
    lora = LoraConfig(targets=("q_proj", r".*layers\.1\.mlp\..*"))
    assert len(adapters.lora_targets(Net(), lora, PARTS)) == 2 + 3
    with pytest.raises(ConfigError, match=r"'q_prj' matches no layer. Did you mean 'q_proj'"):
        adapters.lora_targets(Net(), LoraConfig(targets=("q_prj",)), PARTS)


def test_adapted_limits_lora_to_one_part() -> None:
    parts = dataclasses.replace(PARTS, adapted=("language_model",))
    assert all(name.startswith("language_model.") for name in adapters.lora_targets(Net(), LoraConfig(), parts))


def test_lora_trains_only_the_adapter_and_new_modules_in_float32() -> None:
    torch.manual_seed(0)
    net = adapters.attach(Net().to(torch.bfloat16), settings(), PARTS)
    assert all(".lora_" in name or ".fresh." in name for name in trained(net))
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    assert net.base_model.model.projector.base_layer.weight.dtype == torch.bfloat16


def test_initial_weights_depend_on_the_seed_and_keep_the_generator_state() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        adapter_files.trained_state(adapters.attach(Net(), settings(seed=seed), PARTS))[0] for seed in (3, 3, 4)
    )
    torch.random.set_rng_state(before)
    assert torch.equal(one[OPENVLAS_KEYS], same[OPENVLAS_KEYS])
    assert not torch.equal(one[OPENVLAS_KEYS], other[OPENVLAS_KEYS])


@pytest.mark.parametrize("tuning", ["full", "last-layer", "frozen-vision", "sandwich"])
def test_tuning_follows_openvlas_table(tuning: str) -> None:
    names = trained(built("none", tune=tuning))
    parts = {
        "vision": "vision_backbone.qkv.weight", "projector": "projector.weight", "first": "layers.0.mlp.up_proj.weight",
        "last": "layers.1.mlp.up_proj.weight", "embedding": "embed_tokens.weight", "head": "lm_head.weight",
    }  # fmt: skip
    found = {key for key, ending in parts.items() if any(name.endswith(ending) for name in names)}
    assert (
        found
        == {
            "full": set(parts),
            "last-layer": {"last", "embedding", "head"},
            "frozen-vision": set(parts) - {"vision"},
            "sandwich": set(parts) - {"first"},
        }[tuning]
    )


@pytest.mark.parametrize("adapter", ["lora", "qlora", "int8", "none"])
def test_every_trained_weight_gets_a_gradient_and_the_loss_falls(adapter: str) -> None:
    net = built(adapter)
    net(*batch()).square().mean().backward()
    without = {n for n, p in net.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    losses = learn(net, 6)
    assert losses[-1] < losses[0]


def test_vision_projector_and_head_are_not_quantized() -> None:
    net = built("qlora")
    kinds = {n: type(m).__name__ for n, m in net.named_modules() if n.endswith((".base_layer", "lm_head"))}
    assert {k for n, k in kinds.items() if "layers." in n} == {"Linear4bit"}
    assert {k for n, k in kinds.items() if "layers." not in n} == {"Linear"}


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_saved_weights_round_trip(adapter: str, tmp_path: Path) -> None:
    net = built(adapter)
    learn(net)
    adapter_files.save_trained(net, tmp_path)
    again = built(adapter)
    adapter_files.load_trained(again, tmp_path)
    assert torch.equal(again(*batch()), net(*batch()))


def test_adapter_loads_in_peft_and_has_no_keys_unknown_to_old_peft(tmp_path: Path) -> None:
    import peft

    net = built("lora", lora=LoraConfig(rank=4, alpha=8))
    learn(net)
    adapter_files.save_trained(net, tmp_path, base="openvla/openvla-7b")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {"r": 4, "lora_alpha": 8, "peft_type": "LORA", "base_model_name_or_path": "openvla/openvla-7b"}.items() <= (
        written.items()
    )
    assert not {"lora_bias", "eva_config", "corda_config", "trainable_token_indices", "use_qalora"} & set(written)
    assert OPENVLAS_KEYS in adapter_files.read_tensors(tmp_path / "adapter_model.safetensors")

    plain = Net()
    plain.fresh.load_state_dict(net.base_model.model.fresh.state_dict())
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path)
    torch.testing.assert_close(theirs(*batch()), net(*batch()))


def test_weights_of_another_rank_or_targets_are_rejected(tmp_path: Path) -> None:
    adapter_files.save_trained(built("lora", lora=LoraConfig(rank=4)), tmp_path)
    with pytest.raises(DataError, match="another rank"):
        adapter_files.load_trained(built("lora", lora=LoraConfig(rank=8)), tmp_path)
    with pytest.raises(DataError, match=r"\d+ weights are not trained by the model"):
        adapter_files.load_trained(built("lora", lora=LoraConfig(rank=4, targets=("q_proj",))), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(DataError, match="damaged"):
        adapter_files.load_trained(built("lora", lora=LoraConfig(rank=4)), tmp_path)


@pytest.mark.parametrize(
    ("adapter", "targets"),
    [("none", None), *((a, t) for a in ("lora", "qlora", "int8") for t in ("all-linear", "openvla"))],
)
def test_merged_weights_equal_base_and_adapter(adapter: str, targets: str | None, tmp_path: Path) -> None:
    values = {} if targets is None else {"lora": LoraConfig(rank=4, targets=targets)}
    net = built(adapter, **values)
    learn(net)
    adapter_files.save_trained(net, tmp_path)
    with torch.no_grad():
        expected = net(*batch())
        fresh = built(adapter, **values)
        adapter_files.load_trained(fresh, tmp_path)
        plain = Net(seed=2)
        plain.load_state_dict(adapter_files.merged_state(fresh, dtype=None))
        untrained = Net()(*batch())
    # int8 layers quantize their input too: the merged model is exact, the quantized one is not
    torch.testing.assert_close(plain(*batch()), expected, **({"rtol": 0, "atol": 0.02} if adapter == "int8" else {}))
    assert (expected - untrained).abs().max() > 0.05


def test_merged_bf16_is_rounded_once(tmp_path: Path) -> None:
    net = built()
    learn(net)
    exact, rounded = adapter_files.merged_state(net, None), adapter_files.merged_state(net)
    assert all(torch.equal(rounded[name], exact[name].to(torch.bfloat16)) for name in exact)


def test_quantizing_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    adapters.check_quantization("lora", torch.device("cpu"))
    with pytest.raises(ConfigError, match="pip install"):
        adapters.check_quantization("qlora", torch.device("cpu"))


def test_quantizing_needs_a_supported_device() -> None:
    pytest.importorskip("bitsandbytes")
    adapters.check_quantization("qlora", torch.device("cpu"))
    with pytest.raises(ConfigError, match="does not support mps"):
        adapters.check_quantization("int8", torch.device("mps"))


def test_unquantized_network_is_rejected() -> None:
    with pytest.raises(ConfigError, match="is not quantized"):
        adapters.attach(Net(), settings("qlora"), PARTS)


def test_unused_layers_get_no_adapter() -> None:
    """Its weights would have no gradient, which data-parallel training does not allow."""
    unread = dataclasses.replace(PARTS, frozen=("language_model.lm_head",))
    lora = LoraConfig(targets="openvla")
    assert "language_model.lm_head" in adapters.lora_targets(Net(), lora, PARTS)
    assert "language_model.lm_head" not in adapters.lora_targets(Net(), lora, unread)


def test_only_irrelevant_bitsandbytes_warnings_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure", "no kernels")
    logger.warning("Failed to load the native library")
    logging.getLogger("bitsandbytes.autograd._functions").warning("MatMul8bitLt: inputs will be cast from %s", "x")
    logging.getLogger("bitsandbytes.autograd._functions").warning("MatMul8bitLt: something new")
    assert caplog.messages == ["Failed to load the native library", "MatMul8bitLt: something new"]


def test_bitsandbytes_is_imported_silently() -> None:
    pytest.importorskip("bitsandbytes")
    code = "import oxe_curate.train.loop.run, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_merging_into_a_bf16_base_is_the_same_in_every_release() -> None:
    """Updates near half a step of bf16 are lost or doubled where they are rounded before the sum, or cut off after."""
    import peft

    net = nn.Sequential(nn.Linear(4, 2, bias=False, dtype=torch.bfloat16))
    net[0].weight.data = torch.tensor([[1, 1.0078125, 1, -1], [2, 1, 0.5, 1]], dtype=torch.bfloat16)
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data = torch.tensor([[1025.0, 1024, 1536, -1025], [0, 0, 0, 0]]) / 1024
    layer.lora_B["default"].weight.data = torch.tensor([[1.0, 3], [1, 3]]) / 512
    merged = adapter_files.merged_state(model)["0.weight"]
    assert merged.dtype == torch.bfloat16
    assert merged.tolist() == [[1.0078125, 1.015625, 1.0078125, -1.0078125], [2, 1, 0.5078125, 0.99609375]]
    exact = adapter_files.merged_state(model, None)["0.weight"]
    assert exact.tolist() == [
        [1.0039100646972656, 1.01171875, 1.005859375, -1.0039100646972656],
        [2.0039100646972656, 1.00390625, 0.505859375, 0.9960899353027344],
    ]
