import json

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.errors import ConfigError
from oxe_curate.train.models import weights
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.compose import compose_checkpoint, resample_positions
from oxe_curate.train.models.openvla.model import load_model
from oxe_curate.train.models.openvla.prompt import Prompter

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    return synthetic.write_random_checkpoint(tmp_path_factory.mktemp("towers"))


def language_model(folder, kind, **settings):
    config = transformers.AutoConfig.for_model(kind, **(SHAPE | {"vocab_size": 900} | settings))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(synthetic.letter_tokenizer(832)))
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}),
        ("llama", {"num_key_value_heads": 2, "rope_theta": 500000.0, "eos_token_id": [2, 3]}),
        ("gpt_neox", {"bos_token_id": 1, "eos_token_id": 2}),
    ],
)
def test_composes_with_any_language_model(towers, tmp_path, kind, settings):
    (tmp_path / "lm").mkdir()
    expected = language_model(tmp_path / "lm", kind, **settings)
    folder = compose_checkpoint(tmp_path / "lm", towers, tmp_path / "out", dtype=torch.float32)
    model = load_model(folder)
    ids = torch.randint(3, 800, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.last_hidden(model.language_model.get_input_embeddings()(ids), None)
        torch.testing.assert_close(model.head(hidden), expected(ids).logits)
        original = load_model(towers)
        pixels = torch.rand(2, 6, 28, 28)
        torch.testing.assert_close(model.vision_backbone(pixels), original.vision_backbone(pixels))
    output = model(pixels, ids, labels=ids)
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.save(tmp_path / "again")
    first, second = (weights.Checkpoint.open(path) for path in (folder, tmp_path / "again"))
    assert first.tensors == second.tensors
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first.read(), second.read(), strict=True))


def test_action_tokens_match_openvlas_vocabulary_size(towers, tmp_path):
    (tmp_path / "lm").mkdir()
    language_model(tmp_path / "lm", "llama")
    folder = compose_checkpoint(tmp_path / "lm", towers, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    tokens = ActionTokens.build(folder)
    assert config["text_config"]["vocab_size"] - config["pad_to_multiple_of"] - 1 == tokens.token_id[0] == 831
    tokens.check_tokenizer(folder)
    assert Prompter.of(folder, load_model(folder).architecture.text).prompt("move")[0] == 1


def test_towers_of_timm_get_published_names(tmp_path, monkeypatch, towers):
    """Tiny towers in timm's format: LayerScale is `gamma`, positions have another image size."""
    from oxe_curate.train.models.openvla import compose as fresh
    from oxe_curate.train.models.openvla import vit

    (tmp_path / "lm").mkdir()
    language_model(tmp_path / "lm", "llama")
    shapes = synthetic.openvla_config()["vision_transformers"]
    monkeypatch.setattr(vit, "PUBLISHED", dict(zip(vit.PUBLISHED, [None, None], strict=False)))
    monkeypatch.setattr(
        fresh,
        "published_config",
        lambda *args: synthetic.published_config(args[0], 28, args[2]) | {"vision_transformers": shapes},
    )
    monkeypatch.setattr(fresh, "_PATCHES", 4)
    original = weights.Checkpoint.open(towers)
    for part, name in (("featurizer", "dino"), ("fused_featurizer", "siglip")):
        prefix = f"vision_backbone.{part}."
        tensors = {
            n.removeprefix(prefix).replace("scale_factor", "gamma"): t
            for n, t in original.read()
            if n.startswith(prefix)
        }
        if name == "dino":
            tensors["pos_embed"] = torch.ones(1, 9, 32) * 3
            tensors["mask_token"] = torch.zeros(1, 32)
        (tmp_path / name).mkdir()
        weights.write_weights(tmp_path / name, {"model.safetensors": list(tensors)}, tensors.__getitem__)
    folder = compose_checkpoint(
        tmp_path / "lm", (tmp_path / "dino", tmp_path / "siglip"), tmp_path / "out", dtype=torch.float32
    )
    model, old = load_model(folder), load_model(towers)
    torch.testing.assert_close(model.vision_backbone.featurizer.pos_embed, torch.ones(1, 4, 32) * 3)
    torch.testing.assert_close(
        model.vision_backbone.featurizer.blocks[1].ls1.scale_factor,
        old.vision_backbone.featurizer.blocks[1].ls1.scale_factor,
    )
    torch.testing.assert_close(
        model.vision_backbone.fused_featurizer.pos_embed, old.vision_backbone.fused_featurizer.pos_embed
    )
    assert set(model.unused) == set(old.unused)


def test_positions_are_resampled():
    ramp = torch.linspace(0, 1, 6)
    grid = (ramp[:, None] + 10 * ramp[None]).reshape(1, 36, 1)
    assert torch.equal(resample_positions(grid, 36), grid)
    small = resample_positions(grid, 9).view(3, 3)
    assert small[1, 1].item() == pytest.approx(5.5, abs=1e-5)
    assert (small[1:] > small[:-1]).all()
    assert (small[:, 1:] - small[:, :-1] > 2).all()
    with pytest.raises(ConfigError, match="not both squares"):
        resample_positions(grid[:, :35], 9)


def test_folder_without_a_language_model_is_an_error(towers, tmp_path):
    with pytest.raises(ConfigError, match="not the configuration of a language model"):
        compose_checkpoint(tmp_path, towers, tmp_path / "out")
