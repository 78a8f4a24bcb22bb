import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oxe_curate.errors import DataError
from oxe_curate.train.models.compiling import run_on_graph_thread
from oxe_curate.train.models.fast_lora import fuse, merge_lora
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.action_head import L1Head
from oxe_curate.train.models.openvla.config import Architecture
from oxe_curate.train.models.openvla.control import ControlSettings, OpenVLAController
from oxe_curate.train.models.openvla.model import load_model
from oxe_curate.train.models.openvla.parallel import best_action_ids
from oxe_curate.train.models.pixels import PixelNormalizer
from oxe_curate.train.models.weights import quantized, replace_linear
from tests.train.models.openvla.slots import parallel_states

PAD = 0
SMALL = {
    "vocab_size": 896,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "llama, grouped queries": lambda: transformers.LlamaConfig(**GROUPED),
    "llama 3": lambda: transformers.LlamaConfig(
        **GROUPED, rope_parameters=LLAMA3 | {"original_max_position_embeddings": 16}
    ),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=16),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=None),
    "mistral, sliding window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=6),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED, head_dim=16),
}


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
LONG = "put the pot on the stove " * 4


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
def test_language_models_generate_the_tokens_of_transformers(name, images):
    net = tiny(MODELS[name]().to_dict())
    expected = generate(net.language_model, embeddings(net, images, prompt("pick")), 7)
    assert OpenVLAController(net, control()).decode(images, "pick").tolist() == expected
    assert len(set(expected)) > 3


def test_token_by_token_decoding_equals_greedy_generation(images):
    net = tiny()
    controller = OpenVLAController(net, control(chunk=2))
    for instruction in ("pick", LONG, "pick"):  # the second does not fit in the first cache
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


def test_flipped_and_read_only_images_are_accepted(images):
    controller = OpenVLAController(tiny(), control())
    flipped = images[:, ::-1]
    frozen = flipped.copy()
    frozen.flags.writeable = False
    assert controller.decode(flipped, "go").tolist() == controller.decode(frozen, "go").tolist()


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


def test_a_model_in_training_keeps_its_mixed_weight_types(images):
    net = tiny().to(torch.bfloat16)
    block = net.language_model.model.layers[1].float().requires_grad_(True)
    controller = OpenVLAController(net, control())
    assert controller.decode(images, "go").shape == (7,)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}
    assert net.language_model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


@pytest.fixture
def inductor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at import
        return pytest.importorskip("torch._inductor.cudagraph_trees")


@pytest.fixture
def cpu_compilation(monkeypatch, inductor):
    """Compile on the CPU, with Dynamo only."""
    compiler = torch.compile
    monkeypatch.setattr("oxe_curate.train.models.openvla.control._obstacle", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda function, mode, **k: compiler(function, backend="eager", **k))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_ordinary_instructions_share_one_compilation(images, cpu_compilation):
    net = tiny()
    eager, compiled = (OpenVLAController(net, control(compile=on)) for on in (False, True))
    for instruction, expected in (("pick", 3), ("put the pot on the stove", 3), (LONG, 5), ("pick", 5)):
        found = compiled.decode(images, instruction)
        assert found.tolist() == eager.decode(images, instruction).tolist()
        assert graphs() == expected, instruction
    assert compiled.compiled


def test_parallel_control_compiles_two_functions(images, cpu_compilation):
    net, settings = tiny(), {"parallel": True, "chunk": 3, "head": L1Head(64).requires_grad_(False)}
    eager, compiled = (OpenVLAController(net, control(compile=on, **settings)) for on in (False, True))
    for instruction in ("pick", "put the pot on the stove"):
        np.testing.assert_array_equal(compiled.decode(images, instruction), eager.decode(images, instruction))
    assert graphs() == 2


@pytest.mark.parametrize("adapter", [False, True])
def test_nf4_layers_compile_without_graph_breaks(images, cpu_compilation, adapter):
    pytest.importorskip("bitsandbytes")
    net = quantized_net("nf4")
    net.is_loaded_in_4bit = True
    if adapter:
        fuse(with_lora(net).requires_grad_(False))
    eager, compiled = (OpenVLAController(net, control(compile=on)) for on in (False, True))
    assert compiled.decode(images, "go").tolist() == eager.decode(images, "go").tolist()
    assert graphs() == 3


def test_control_runs_eagerly_where_compilation_fails(images, cpu_compilation, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("Failed to find C compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    net = tiny()
    controller = OpenVLAController(net, control())
    expected = OpenVLAController(net, control(compile=False)).decode(images, "go").tolist()
    assert controller.decode(images, "go").tolist() == controller.decode(images, "go").tolist() == expected
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "control runs without torch.compile, several times slower than with it: RuntimeError: Failed to find C compiler"
    ]


def test_control_on_the_cpu_runs_eagerly_without_a_warning(caplog):
    controller = OpenVLAController(tiny(), control())
    assert not controller.compiled
    assert not caplog.records


def test_cuda_graphs_are_used_on_one_thread_of_the_process(inductor):
    """torch's graphs are thread-local, but `serve` warms up on one thread and answers on another."""

    def work():
        return threading.get_ident(), inductor.get_obj(inductor.local, "tree_manager_containers")

    with ThreadPoolExecutor(2) as pool:
        threads = [pool.submit(run_on_graph_thread, work).result()[0] for _ in range(4)]
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


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


def quantized_net(how: str):
    net = tiny()
    text = net.language_model.base_model
    quantize(text, [name for name, module in text.named_modules() if isinstance(module, torch.nn.Linear)], how)
    return net


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_quantized_language_models_generate_the_tokens_of_transformers(images, how):
    pytest.importorskip("bitsandbytes")
    net = quantized_net(how)
    expected = generate(net.language_model, embeddings(net, images, prompt("go")), 7)
    assert OpenVLAController(net, control()).decode(images, "go").tolist() == expected


@pytest.mark.parametrize("training", [True, False])
def test_adapters_over_quantized_layers_stay_separate(images, training):
    pytest.importorskip("bitsandbytes")
    net = quantized_net("nf4")
    net.is_loaded_in_4bit = True
    model = with_lora(net)
    assert fuse(model)
    model.requires_grad_(False)
    expected = generate(net.language_model, embeddings(net, images, prompt("go")), 7)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(training and "lora_" in name)
    layer = net.language_model.model.layers[0].self_attn.q_proj
    before = layer.get_base_layer().weight.data.clone()
    assert OpenVLAController(net, control()).decode(images, "go").tolist() == expected
    assert torch.equal(layer.get_base_layer().weight.data, before)
    assert not layer.merged


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
