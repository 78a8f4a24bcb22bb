import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from oxe_curate.errors import ConfigError, CorruptError
from oxe_curate.train.models import weights
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.config import Architecture
from oxe_curate.train.models.openvla.model import OpenVLA, load_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return synthetic.write_random_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def golden(shared):
    """In float64: float32 sums differ between processors."""
    case = {
        name: np.asarray(v, np.float64) if v.dtype == np.float32 else v
        for name, v in np.load(shared / "parity/openvla/a_case.npz").items()
    }
    model = load_model(shared / "parity/openvla").double()
    names = ("pixel_values", "input_ids", "attention_mask", "labels")
    output = model(**{name: torch.from_numpy(case[name]) for name in names})
    output.loss.backward()
    return case, model, output


def error(found, expected) -> float:
    """Largest deviation relative to the largest value."""
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


def test_features_and_logits_equal_upstream(golden):
    case, _, output = golden
    for name in ("dino_patches", "siglip_patches", "projector_features"):
        assert error(getattr(output, name), case[name]) < 2e-6, name  # the golden numbers are rounded to float32
    assert error(output.logits, case["logits"]) < 1e-5
    assert error(output.hidden_states[-1], case["last_hidden"]) < 1e-5
    assert abs(output.loss.item() - case["loss"]) < 1e-6


def test_gradients_equal_upstream(golden):
    case, model, _ = golden
    parameters = dict(model.named_parameters())
    names = [name for name in case if name.startswith("grad/")]
    assert len(names) == 10
    for name in names:
        assert error(parameters[name[5:]].grad, case[name]) < 1e-5, name


def test_every_parameter_has_a_gradient(golden):
    _, model, _ = golden
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_checkpointed_activations_give_the_same_gradients(golden, shared):
    case, model, _ = golden
    again = load_model(shared / "parity/openvla").double().train()
    again.checkpoint_activations()
    names = ("pixel_values", "input_ids", "attention_mask", "labels")
    again(**{name: torch.from_numpy(case[name]) for name in names}).loss.backward()
    for (name, expected), (_, found) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_save_round_trips_a_loaded_checkpoint(tiny, tmp_path):
    load_model(tiny).save(tmp_path)
    files = ["config.json", *sorted(path.name for path in tiny.glob("model*"))]
    assert len(files) > 3
    for name in files:
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes(), name


def test_save_keeps_the_parity_folders_half_precision(shared, tmp_path):
    load_model(shared / "parity/openvla").save(tmp_path)
    stored = weights.Checkpoint.open(shared / "parity/openvla")
    saved = weights.Checkpoint.open(tmp_path)
    assert {n: (s.shape, s.dtype) for n, s in saved.tensors.items()} == {
        n: (s.shape, s.dtype) for n, s in stored.tensors.items()
    }
    for (name, a), (_, b) in zip(saved.read(), stored.read(), strict=True):
        assert torch.equal(a, b), name
    assert load_model(tmp_path).architecture.vits == load_model(shared / "parity/openvla").architecture.vits


def test_the_full_architecture_has_the_published_names_and_size():
    shapes = dict(synthetic.tensor_shapes(Architecture.of(synthetic.openvla_config("7b"))))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 7_541_237_184
    assert shapes["vision_backbone.featurizer.blocks.23.ls2.scale_factor"] == (1024,)
    assert shapes["vision_backbone.featurizer.pos_embed"] == (1, 256, 1024)
    assert shapes["vision_backbone.fused_featurizer.attn_pool.mlp.fc1.weight"] == (4304, 1152)
    assert shapes["projector.fc1.weight"] == (8704, 2176)
    assert shapes["language_model.lm_head.weight"] == (32064, 4096)


def rewrite(source: Path, target: Path, change) -> Path:
    """Copy a checkpoint to one file with changed tensors."""
    tensors = change(dict(weights.Checkpoint.open(source).read()))
    weights.write_weights(target, {"model.safetensors": list(tensors)}, tensors.__getitem__)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {n: v for n, v in t.items() if n != "projector.fc1.bias"},
            r"1 tensors are missing: projector.fc1.b",
        ),
        (lambda t: t | {"value_head.weight": torch.ones(2)}, r"1 tensors are not part of the model: value_head.wei"),
        (
            lambda t: t | {"projector.fc1.bias": torch.ones(3)},
            r"a wrong shape: projector.fc1.bias: expected \[320\], got \[3\]",
        ),
    ],
)
def test_mismatched_weights_are_reported_in_one_error(tiny, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        load_model(rewrite(tiny, tmp_path, change))


def test_a_checkpoint_without_the_unused_tensors_loads(tiny, tmp_path):
    unused = load_model(tiny).unused
    assert "vision_backbone.featurizer.blocks.2.attn.qkv.weight" in unused
    rewrite(tiny, tmp_path, lambda t: {name: v for name, v in t.items() if name not in unused})
    assert load_model(tmp_path).unused == {}


def test_errors_name_missing_and_damaged_files(tiny, tmp_path):
    with pytest.raises(ConfigError, match="folder not found"):
        load_model(tmp_path / "nowhere")
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = sorted(tmp_path.glob("model-*"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-8])
    with pytest.raises(CorruptError, match="00002"):
        load_model(tmp_path)
    shard.unlink()
    with pytest.raises(ConfigError, match="1 of 4 shards are missing: model-00002"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match=r"not the configuration of an OpenVLA checkpoint.*'llama'"):
        load_model(tmp_path)


def inputs(model: OpenVLA, images: int = 1):
    generator = torch.Generator().manual_seed(0)
    size = model.architecture.image_size
    pixels = torch.rand((2, images, 6, size, size), generator=generator)
    ids = torch.randint(3, 400, (2, 9), generator=generator)
    return {"pixel_values": pixels[:, 0] if images == 1 else pixels, "input_ids": ids}


def test_order_of_images_and_proprio(tiny):
    model = load_model(tiny, proprio=5)
    batch = inputs(model, images=2)
    state = torch.ones(2, 5)
    embeds, mask = model.embed(**batch, attention_mask=torch.ones(2, 9, dtype=torch.bool), proprio=state)
    patches = model.vision_backbone.num_patches
    assert embeds.shape[1] == mask.shape[1] == 9 + model.prefix_tokens(2) == 9 + 2 * patches + 1
    second, _ = model.features(batch["pixel_values"][:, 1])
    torch.testing.assert_close(embeds[:, 1 + patches : 1 + 2 * patches], second)
    torch.testing.assert_close(embeds[:, 1 + 2 * patches : 2 + 2 * patches], model.proprio_projector(state))
    output = model(**batch, labels=batch["input_ids"], proprio=state)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_proprio_projector_round_trips(tiny, tmp_path):
    model = load_model(tiny, proprio=5)
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert again.proprio == 5
    torch.testing.assert_close(
        again.proprio_projector.fc1.weight, model.proprio_projector.fc1.weight, rtol=0, atol=0.01
    )


def test_padding_on_the_right_changes_nothing(tiny):
    model = load_model(tiny)
    batch = inputs(model)
    short = model(**batch, labels=batch["input_ids"])
    ids = torch.nn.functional.pad(batch["input_ids"], (0, 4), value=832)
    labels = torch.nn.functional.pad(batch["input_ids"], (0, 4), value=-100)
    padded = model(pixel_values=batch["pixel_values"], input_ids=ids, attention_mask=ids != 832, labels=labels)
    torch.testing.assert_close(padded.loss, short.loss)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_selected_layers_are_quantized_while_loading(tiny, how):
    bnb = pytest.importorskip("bitsandbytes")
    kind = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}[how]

    def choose(name):
        return how if name.startswith("language_model.") and "lm_head" not in name else None

    model, plain = load_model(tiny, quantize=choose), load_model(tiny)
    found = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert found == {
        name
        for name, module in plain.language_model.model.named_modules(prefix="language_model.model")
        if isinstance(module, torch.nn.Linear)
    }
    assert len(found) == 14
    batch = inputs(model)
    with torch.no_grad():
        a, b = model(**batch).last_hidden, plain(**batch).last_hidden
    assert 0 < (a - b).norm() / b.norm() < 0.2


def test_random_model_needs_no_file():
    model = synthetic.random_openvla(Architecture.of(synthetic.openvla_config(image_size=56)))
    assert model.vision_backbone.num_patches == 16
    output = model(**inputs(model))
    assert output.logits.shape == (2, 25, 896)
    assert torch.isfinite(output.logits).all()
