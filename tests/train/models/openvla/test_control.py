import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oxe_curate.errors import DataError
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.action_head import L1Head
from oxe_curate.train.models.openvla.config import Architecture
from oxe_curate.train.models.openvla.control import ControlSettings, OpenVLAController
from oxe_curate.train.models.openvla.kv_cache import FusedDecoder, PlainDecoder, build_decoder, fusable
from oxe_curate.train.models.openvla.model import load_model
from oxe_curate.train.models.openvla.parallel import best_action_ids
from oxe_curate.train.models.openvla.projections import Projection, merge_lora
from oxe_curate.train.models.pixels import PixelNormalizer
from oxe_curate.train.models.weights import quantized, replace_linear
from tests.train.models.openvla.slots import parallel_states

VOCABULARY, PAD = 64, 0
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,  # avoids ties between tokens
}
GROUPED = SMALL | {"num_key_value_heads": 2}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama, grouped queries": lambda: transformers.LlamaConfig(**GROUPED),
    "llama 3": lambda: transformers.LlamaConfig(
        **GROUPED,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=16),
}
FUSED = ("llama", "llama, grouped queries", "llama 3", "qwen2", "qwen3", "mistral")


def language_model(name: str):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name](), attn_implementation="sdpa")
    return model.eval()


def generate(model, embeddings, count: int) -> list[int]:
    """Greedy tokens of transformers, without stopping at a stop token."""
    model.generation_config.eos_token_id = None
    settings = transformers.GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=PAD)
    ones = torch.ones(1, len(embeddings), dtype=torch.long)
    found = model.generate(inputs_embeds=embeddings[None], attention_mask=ones, generation_config=settings)
    return found[0].tolist()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)


def tiny(text: dict | None = None, seed: int = 1):
    """An OpenVLA with random weights that are large enough to avoid ties."""
    config = synthetic.openvla_config()
    config["text_config"] |= text or {}
    net = synthetic.random_openvla(Architecture.of(config), seed=seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return net.requires_grad_(False)


PIXELS = PixelNormalizer()


def prompt(instruction: str) -> list[int]:
    return [1, *(ord(letter) for letter in instruction), 29]


def control(**changes) -> ControlSettings:
    ids = list(range(576, 832))
    defaults = {"prompt": prompt, "pixels": PIXELS, "values": lambda ids: (ids / 832).astype(np.float32)}
    return ControlSettings(**(defaults | {"token_ids": ids, "cameras": 2, "image_size": 28} | changes))


def embeddings(net, images, ids) -> torch.Tensor:
    """(L, D): the sequence as embedded by `OpenVLA`."""
    with torch.no_grad():
        x, _ = net.embed(torch.tensor([ids]), None, PIXELS(torch.from_numpy(images))[None])
    return x[0]


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_decoders_generate_the_tokens_of_transformers(name):
    model = language_model(name)
    assert fusable(model.config) == (name in FUSED)
    decoder = build_decoder(model, capacity=48)
    assert type(decoder) is (FusedDecoder if name in FUSED else PlainDecoder)
    x = torch.randn(13, 32, generator=torch.Generator().manual_seed(2))
    expected = generate(model, x, 9)
    padded = torch.cat([x, torch.full((3, 32), 7.0)])  # padding after the prompt must not matter
    states = decoder.prefill(padded)
    head = model.get_output_embeddings()
    found = [head(states[12]).argmax(-1)]
    for position in range(13, 21):
        token = model.get_input_embeddings()(found[-1][None])
        state = decoder.decode_token(token, torch.tensor([position]), visible=32)
        found.append(head(state[0]).argmax(-1))
    assert [token.item() for token in found] == expected


def test_unsupported_models_use_the_plain_decoder():
    assert not fusable(transformers.MistralConfig(sliding_window=128))
    assert not fusable(
        transformers.LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    )
    assert not fusable(transformers.LlamaConfig(hidden_act="gelu"))


@torch.no_grad()
def test_failing_kernels_are_replaced_by_torch(caplog):
    class Broken:
        def decoder_block(self, *_):
            raise RuntimeError("Failed to find C compiler")

    model = language_model("llama")
    plain, broken = FusedDecoder(model, 32), FusedDecoder(model, 32)
    broken._kernels = Broken()
    x, at = torch.ones(1, 32), torch.tensor([0])
    assert torch.equal(broken.decode_token(x, at, visible=16), plain.decode_token(x, at, visible=16))
    assert "Triton kernels are disabled: Failed to find C compiler" in caplog.text


def test_token_by_token_decoding_equals_greedy_generation(images):
    net = tiny()
    controller = OpenVLAController(net, control(chunk=2))
    for instruction in ("pick", "put the pot on the stove " * 4, "pick"):  # the second does not fit in the first cache
        expected = generate(net.language_model, embeddings(net, images, prompt(instruction)), 14)
        found = controller.decode(images, instruction)
        assert found.tolist() == expected
        np.testing.assert_array_equal(
            controller.act(images, instruction), (found.reshape(2, 7) / 832).astype(np.float32)
        )
    assert len(set(expected)) > 4
    assert controller.decode(255 - images, "pick").tolist() != expected


def test_token_by_token_decoding_of_the_golden_model(shared):
    net = load_model(shared / "parity/openvla").requires_grad_(False)
    case = np.load(shared / "parity/openvla/a_case.npz")
    image = np.random.default_rng(5).integers(0, 256, (1, 56, 56, 3), np.uint8)
    for row, labels in zip(case["input_ids"], case["labels"], strict=True):
        ids = row[: np.flatnonzero(labels != -100)[0]].tolist()
        controller = OpenVLAController(net, control(prompt=lambda _, ids=ids: ids, cameras=1, image_size=56))
        found = controller.decode(image, "any").tolist()
        assert found == generate(net.language_model, embeddings(net, image, ids), 7)


def test_image_normalization_is_bit_identical(images):
    seen = []
    net = tiny()
    hooks = [
        tower.register_forward_pre_hook(lambda _, args: seen.append(*args)) for tower in net.vision_backbone.towers
    ]
    OpenVLAController(net, control()).decode(images, "go")
    for hook in hooks:
        hook.remove()
    assert torch.equal(torch.cat(seen, 1), PIXELS(torch.from_numpy(images)))


@pytest.mark.parametrize("kind", ["tokens", "l1"])
def test_parallel_control_equals_the_training_forward_pass(images, kind):
    net = tiny()
    head = L1Head(64) if kind == "l1" else None
    told = control(parallel=True, chunk=3, head=head)
    found = OpenVLAController(net, told).decode(images, "push")
    ids = prompt("push")
    blank = embeddings(net, images, [*ids, *[0] * 20])
    with torch.no_grad():
        states = parallel_states(net.decoder, blank[None], torch.tensor([len(blank)]), 21)
        expected = head(states)[0] if head else best_action_ids(net.head(states)[0], torch.arange(576, 832))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_proprio_adds_one_token(images):
    config = synthetic.openvla_config()
    net = synthetic.random_openvla(Architecture.of(config), proprio=8).requires_grad_(False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    controller = OpenVLAController(net, control(proprio=8))
    state = np.linspace(-1, 1, 8, dtype=np.float32)
    with torch.no_grad():
        wide = PIXELS(torch.from_numpy(images))[None]
        x, _ = net.embed(torch.tensor([prompt("go")]), None, wide, torch.from_numpy(state)[None])
    assert controller.decode(images, "go", state).tolist() == generate(net.language_model, x[0], 7)
    with pytest.raises(DataError, match="proprio: expected 8 numbers, got 0"):
        controller.act(images, "go", None)


def test_wrong_image_shapes_are_rejected(images):
    controller = OpenVLAController(tiny(), control())
    with pytest.raises(DataError, match=r"expected uint8 \(2, 28, 28, 3\), got uint8 \(1, 28, 28, 3\)"):
        controller.act(images[:1], "go")


def test_weights_are_shared_and_unchanged(images):
    net = tiny()
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    controller = OpenVLAController(net, control())
    first = controller.decode(images, "go")
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), name
    again = OpenVLAController(net, control())
    block = net.language_model.model.layers[0].self_attn
    assert block.q_proj.weight.untyped_storage().data_ptr() == block.v_proj.weight.untyped_storage().data_ptr()
    assert again.decode(images, "go").tolist() == first.tolist()
    with torch.no_grad():
        block.v_proj.weight.mul_(-1)  # visible to both
    assert controller.decode(images, "go").tolist() == again.decode(images, "go").tolist()
    assert controller.decode(images, "go").tolist() != first.tolist()


def test_mixed_weight_types_compute_in_the_type_of_the_embeddings(images):
    """Trained weights are float32, others bfloat16."""
    net = tiny()
    net.language_model.model.layers[0].to(torch.bfloat16)
    net.vision_backbone.to(torch.bfloat16)
    found = OpenVLAController(net, control()).decode(images, "go").tolist()
    with torch.no_grad():
        parts = PIXELS(torch.from_numpy(images)).to(torch.bfloat16).split(3, 1)
        patches = torch.cat([t(part) for t, part in zip(net.vision_backbone.towers, parts, strict=True)], 2)
        seen = net.projector(patches.float()).flatten(0, 1)
        text = net.language_model.get_input_embeddings()(torch.tensor(prompt("go")))
    x = torch.cat([text[:1], seen, text[1:]])
    assert found == generate(net.language_model.float(), x, 7)


def with_lora(net):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*\.(q_proj|v_proj|o_proj|up_proj|qkv)")
    torch.manual_seed(3)
    model = peft.get_peft_model(net, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize("training", [True, False])
def test_separate_and_merged_adapters(images, training):
    net = tiny()
    plain = OpenVLAController(net, control()).decode(images, "go").tolist()
    model = with_lora(net)
    expected = generate(net.language_model, embeddings(net, images, prompt("go")), 7)
    assert expected != plain
    model.requires_grad_(training)
    weight = net.language_model.model.layers[0].self_attn.q_proj.base_layer.weight
    before = weight.clone()
    assert OpenVLAController(net, control()).decode(images, "go").tolist() == expected
    assert torch.equal(weight, before) == training  # a model in training is unchanged


def quantize(module, names, how):
    for name in names:
        weight = module.get_submodule(name).weight.detach()
        replace_linear(module, name, how, weight.dtype).weight = quantized(weight, how, "cpu")
    return module.eval()


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_quantized_layers(how):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(*(torch.nn.Linear(64, width, bias=False) for width in (64, 32)))
    layers = quantize(copy.deepcopy(plain), ("0", "1"), how)
    x = torch.randn(3, 64)
    with torch.no_grad():
        found = Projection(layers, torch.float32)(x)
        expected = torch.cat([layer(x) for layer in layers], -1)
        true = torch.cat([layer(x) for layer in plain], -1)
        assert (found - expected).abs().max() < (1e-6 if how == "nf4" else 0.02) * expected.abs().max()
        assert (found - true).abs().max() < (0.2 if how == "nf4" else 0.02) * true.abs().max()
        after = Projection(layers, torch.float32)(x)  # the first forward pass of bitsandbytes moves its scales
    torch.testing.assert_close(after, found)


def test_merging_skips_quantized_layers():
    pytest.importorskip("bitsandbytes")
    net = tiny()
    block = net.language_model.model.layers[0].self_attn
    quantize(block, ["q_proj"], "nf4")
    net.is_loaded_in_4bit = True
    model = with_lora(net)
    total = sum(hasattr(module, "lora_A") for module in model.modules())
    assert merge_lora(net) == total - 1
    assert not block.q_proj.merged


def test_what_is_merged_for_control_is_what_an_export_holds():
    """In any release: see the exports' tests for the numbers."""
    peft = pytest.importorskip("peft")
    net = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16))
    net[0].weight.data = torch.tensor([[1, 1, 1, 1.0078125]], dtype=torch.bfloat16)
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data = torch.tensor([[1025.0, 1024, 1536, 1024], [9.0] * 4]) / 1024
    layer.lora_B["default"].weight.data = torch.tensor([[1.0, 0]]) / 512
    assert merge_lora(model) == 1
    assert layer.base_layer.weight.tolist() == [[1.0078125, 1, 1.0078125, 1.015625]]
