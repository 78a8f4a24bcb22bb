"""The network against golden values of the released code, and equivalent computations against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oxe_curate.errors import ConfigError
from oxe_curate.train.models.roboflamingo.heads import LSTMHead, MLPHead
from oxe_curate.train.models.roboflamingo.model import load_model
from oxe_curate.train.models.roboflamingo.names import from_published, read_weights, to_published
from oxe_curate.train.models.roboflamingo.net import Flamingo
from oxe_curate.train.models.roboflamingo.policy_loss import policy_losses
from oxe_curate.train.models.roboflamingo.vit import (
    ClipShape,
    ClipTower,
    from_open_clip,
    from_transformers,
    to_open_clip,
)

torch.set_num_threads(1)
HUGGING_FACE = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "dropout": 0.0,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
DECODERS = {
    "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 4, "vocab_size": 50, "max_seq_len": 32},
    "gpt_neox": HUGGING_FACE,
    "opt": HUGGING_FACE,
    "llama": HUGGING_FACE,
}
SHAPE = ClipShape(width=16, layers=2, heads=2, patch=14, image_size=28, mlp_width=32)
IMAGE = 49


def tiny(kind: str = "mpt", every: int = 2, head=None, history: bool = False) -> Flamingo:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **DECODERS[kind], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    language = transformers.AutoModelForCausalLM.from_config(config)
    head = head or LSTMHead(32, window=3, hidden=16, layers=1)
    net = Flamingo(ClipTower(SHAPE), language, head, every, IMAGE, 3, resampler_depth=1, latents=4, history=history)
    for layer in net.layers:
        if layer.gated_cross_attn_layer is not None:
            layer.gated_cross_attn_layer.attn_gate.data.fill_(0.7)
            layer.gated_cross_attn_layer.ff_gate.data.fill_(0.4)
    return net.eval()


def texts(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, 48, (n, 6), generator=torch.Generator().manual_seed(3))
    ids[:, 1] = IMAGE
    mask = torch.ones_like(ids)
    ids[-1, 4:], mask[-1, 4:] = 0, 0
    return ids, mask


@pytest.fixture(scope="module")
def golden(shared: Path):
    folder = shared / "parity" / "flamingo"
    # in float64: in float32 a near tie in the max-pool depends on the processor
    case = {n: torch.from_numpy(v) for n, v in np.load(folder / "f_case.npz").items()}
    case = {n: v.double() if v.is_floating_point() else v for n, v in case.items()}
    net = load_model(folder).double()
    net.requires_grad_(False).train_parts(embeddings=True)
    net.eval()
    out = released_forward(net, case)
    out["loss"].backward()
    return net, case, out


def released_forward(net: Flamingo, case: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One pass as in the released code: padding tokens are pooled too, and the gripper is -1 or 1 in the targets."""
    views = (case["vision_x"], case["vision_gripper"])
    tokens = torch.stack([net.encode_images(view.flatten(0, -4)) for view in views], 1)
    ids, mask = (case[name] for name in ("input_ids", "attention_mask"))
    if len(ids) == len(tokens):  # one text for each step
        ids, mask = ids[:: net.window], mask[:: net.window]
    hidden = net.features(tokens, ids, mask)
    pose, logits = net.lm_head(hidden, logits=True)
    target = case["actions"].unflatten(-1, (1, 7))
    target = torch.cat([target[..., :6], (target[..., 6:] + 1) / 2], -1)
    numbers, binary = policy_losses(pose.unflatten(-1, (1, 6)), logits.unsqueeze(-1), target)
    return {
        "clip_tokens": tokens[:, 0],
        "latents": net.perceiver(tokens[:, 0]).unsqueeze(1),
        "last_hidden": hidden.flatten(0, 1),
        "pose": pose,
        "gripper": logits.sigmoid(),
        "loss_num": numbers.mean(),
        "loss_bin": binary.mean(),
        "loss": numbers.mean() + 0.01 * binary.mean(),
    }


@pytest.mark.parametrize("name", ["clip_tokens", "latents", "pose", "gripper", "loss_num", "loss_bin", "loss"])
def test_golden_outputs(golden, name: str) -> None:
    _, case, out = golden
    torch.testing.assert_close(out[name].detach().double(), case[name], atol=1e-5, rtol=0)


def test_golden_hidden_states(golden) -> None:
    """All golden weights are positive, so rounding errors add up: float64 differs by 5.5e-5 from the float32 values."""
    _, case, out = golden
    torch.testing.assert_close(out["last_hidden"].detach(), case["last_hidden"], atol=2e-4, rtol=0)
    assert (out["last_hidden"] - case["last_hidden"]).norm() < 3e-5 * case["last_hidden"].norm()


def test_golden_gradients(golden) -> None:
    """float64 differs from the golden values by 1.6e-4 (relative); the tolerance is absolute for gradients of 1e-3."""
    net, case, _ = golden
    parameters = dict(net.named_parameters())
    for name, expected in case.items():
        if name.startswith("grad/"):
            got = parameters[name.removeprefix("grad/")].grad
            assert (got - expected).abs().max() < 1e-5 * max(1e-1, float(expected.abs().max())), name
            assert (got - expected).norm() < 4e-4 * expected.norm(), name


def test_golden_weight_names(golden, shared: Path) -> None:
    net, _, _ = golden
    stored = read_weights(shared / "parity" / "flamingo" / "f_weights.safetensors")
    unused = {
        "vision_encoder.visual.ln_post.weight",
        "vision_encoder.visual.ln_post.bias",
        "vision_encoder.visual.proj",
    }
    own = to_published(net.state_dict())
    assert set(stored) - unused == set(own) - {"lang_encoder.lm_head.weight"}
    for name in set(stored) - unused:
        assert torch.equal(own[name], stored[name].double()), name


def test_vision_tower_gives_the_last_blocks_patch_tokens() -> None:
    torch.manual_seed(0)
    theirs = transformers.CLIPVisionModel(ClipTower(SHAPE).visual.config).eval()
    assert ClipShape.from_transformers(theirs.config.to_dict()) == SHAPE
    pixels = torch.randn(3, 3, 28, 28)
    for prefix in ("", "vision_model."):  # current format of CLIPVisionModel, and format of published CLIP checkpoints
        ours = ClipTower(SHAPE)
        ours.visual.load_state_dict(
            from_transformers({prefix + name: value for name, value in theirs.state_dict().items()})
        )
        with torch.no_grad():
            torch.testing.assert_close(ours(pixels), theirs(pixels).last_hidden_state[:, 1:])


def test_open_clip_names_of_the_vision_tower() -> None:
    state = ClipTower(SHAPE).visual.state_dict()
    renamed = to_open_clip(state)
    assert renamed["transformer.resblocks.1.attn.in_proj_weight"].shape == (48, 16)
    assert {name for name in renamed if "resblocks" not in name} == {
        "class_embedding", "conv1.weight", "ln_pre.bias", "ln_pre.weight", "positional_embedding"
    }  # fmt: skip
    back = from_open_clip(renamed)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", DECODERS)
def test_closed_gates_do_not_change_a_decoder(kind: str) -> None:
    net = tiny(kind, every=1)
    for layer in net.layers:
        layer.gated_cross_attn_layer.attn_gate.data.zero_()
        layer.gated_cross_attn_layer.ff_gate.data.zero_()
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(net.lang_encoder.config).eval()
    ids, mask = texts(2)
    with torch.no_grad():
        got = net.run_decoder(ids, mask, torch.randn(2, 4, 16))
        expected = plain.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", DECODERS)
def test_text_before_the_image_does_not_attend_to_it(kind: str) -> None:
    net = tiny(kind, every=1)
    ids, mask = texts(2)
    with torch.no_grad():
        one, other = (net.run_decoder(ids, mask, torch.randn(2, 4, 16)) for _ in range(2))
    torch.testing.assert_close(one[:, :1], other[:, :1])
    assert (one[:, 1:4] - other[:, 1:4]).abs().amax((0, 2)).min() > 1e-4


@pytest.mark.parametrize("kind", DECODERS)
def test_shared_layers_and_distinct_frames_change_nothing(kind: str) -> None:
    """Layers before the first cross-attention run once per text; repeated frames run once."""
    net = tiny(kind, every=3)
    ids, mask = texts(2)
    tokens = torch.randn(5, 2, 4, 16)
    frames = torch.tensor([[0, 0, 1], [2, 3, 4]])
    net.train()
    results = []
    for which in (None, frames):
        net.zero_grad()
        out = net.features(tokens if which is not None else tokens[frames.flatten()], ids, mask, which)
        out[:, :, :4].square().sum().backward()
        results.append((out.detach()[:, :, :4], net.perceiver.latents.grad.clone()))
    rows = ids.repeat_interleave(3, 0), mask.repeat_interleave(3, 0)
    plain = net.run_decoder(*rows, net.resample(tokens[frames.flatten()])).unflatten(0, (2, 3))
    torch.testing.assert_close(results[0][0], plain[:, :, :4].detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_layers_before_the_first_cross_attention_run_once_for_each_text() -> None:
    net = tiny(every=3)
    rows: list[int] = []
    for layer in net.layers:
        layer.decoder_layer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    with torch.no_grad():
        net.features(torch.randn(6, 1, 4, 16), *texts(2))
    assert rows == [2, 2, 6, 6]


def test_checkpointing_gives_the_same_gradients() -> None:
    ids, mask = texts(2)
    tokens, grads = torch.randn(6, 1, 4, 16), []
    for checkpointing in (False, True):
        net = tiny(every=1).train()
        net.requires_grad_(False).train_parts(embeddings=False)
        if checkpointing:
            net.enable_checkpointing()
        robot = net.features(tokens, ids, mask).square().mean()
        text = net.run_decoder(ids[:1], mask[:1], net.resample(tokens[:1])).square().mean()
        (robot + text).backward()
        grads.append([p.grad for p in net.parameters() if p.requires_grad and p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1])


def test_history_attends_to_the_whole_window() -> None:
    net = tiny(head=MLPHead(32, window=3), history=True)
    ids, mask = texts(2)
    tokens = torch.randn(6, 2, 4, 16)
    with torch.no_grad():
        one = net.features(tokens, ids, mask)
        tokens[0] *= -1  # the first frame of the first window
        other = net.features(tokens, ids, mask)
    assert one.shape == (2, 1, 6, 32)
    assert not torch.allclose(one[0], other[0], atol=1e-5)
    torch.testing.assert_close(one[1], other[1])


def test_only_connecting_parts_are_trained() -> None:
    net = tiny()
    net.requires_grad_(False).train_parts(embeddings=True)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert {"perceiver.latents", "lm_head.rnn.weight_hh_l0", "lang_encoder.transformer.wte.weight"} <= trained
    assert "lang_encoder.transformer.blocks.1.gated_cross_attn_layer.attn_gate" in trained
    assert not any("decoder_layer" in name or name.startswith("vision_encoder") for name in trained)
    net.requires_grad_(False).train_parts(embeddings=False)
    assert not net.lang_encoder.get_input_embeddings().weight.requires_grad


def test_names_of_published_checkpoints() -> None:
    value = torch.zeros(1)
    found = from_published(
        {
            "module.perceiver.latents": value,
            "module.lang_encoder.gated_cross_attn_layers.3.attn_gate": value,
            "module.lang_encoder.old_decoder_blocks.3.attn.Wqkv.weight": value,
            "module.lang_encoder.transformer.blocks.0.decoder_layer.mlp.mlp_up.weight": value,
            "module.action_head.actions.mlp.0.weight": value,
            "module.lm_head.gpt.h.0.attn.masked_bias": value,
            "module.vision_encoder.logit_scale": value,
        },
        "transformer.blocks",
    )
    assert set(found) == {
        "perceiver.latents",
        "lang_encoder.transformer.blocks.3.gated_cross_attn_layer.attn_gate",
        "lang_encoder.transformer.blocks.3.decoder_layer.attn.Wqkv.weight",
        "lang_encoder.transformer.blocks.0.decoder_layer.ffn.up_proj.weight",
        "lm_head.actions.mlp.0.weight",
    }


def test_error_messages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder not found"):
        load_model(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"expected config\.json, found 0"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "openvla"}')
    with pytest.raises(ConfigError, match="model_type: expected 'roboflamingo', got 'openvla'"):
        load_model(tmp_path)
