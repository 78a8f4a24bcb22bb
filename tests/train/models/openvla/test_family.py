import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from oxe_curate import config as strict
from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bounds import parse_statistics
from oxe_curate.errors import ConfigError
from oxe_curate.mixture.spec import Mixture
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import LoraConfig, OpenVLAConfig, TrainConfig
from oxe_curate.train.data.batch import IGNORE, Rows, TextRows
from oxe_curate.train.models.openvla import synthetic
from oxe_curate.train.models.openvla.family import OpenVLAFamily
from oxe_curate.train.models.openvla.model import load_model
from oxe_curate.train.models.weights import Checkpoint

CPU = torch.device("cpu")
SIZE = 28
HEADS = {
    "tokens": OpenVLAConfig(),
    "parallel": OpenVLAConfig(decoding="parallel"),
    "l1": OpenVLAConfig(head="l1"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return synthetic.write_random_checkpoint(tmp_path_factory.mktemp("base"))


def bounds(width: int) -> dict:
    low, high = [-1.0] * width, [1.0] * width
    return {"mean": [0.0] * width, "std": high, "max": high, "min": low, "q01": low, "q99": high}


def mixture(base: Path, cameras=("primary",), chunk=1, proprio=0) -> MixtureFolder:
    statistics_json = {"bridge_dataset": {"action": bounds(7)} | ({"proprio": bounds(proprio)} if proprio else {})}
    spec = {"name": "toy", "datasets": [{"name": "bridge_dataset", "weight": 1.0}], "chunk": chunk}
    return MixtureFolder(
        folder=SimpleNamespace(),
        manifest={},
        mixture=strict.build(Mixture, spec | {"image": {"cameras": list(cameras)}}, "test"),
        statistics=parse_statistics(statistics_json, "test"),
        statistics_json=statistics_json,
        tokens=ActionTokens.build(base),
        hashes={},
    )


def rows(n=3, chunk=1, cameras=1, proprio=0, texts=0, seed=0) -> Rows:
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, 255, (n, 1, chunk, 7), np.uint8)
    return Rows(
        position=np.arange(n),
        dataset=np.zeros(n, np.int64),
        instruction=["Put the pot on the stove", "open drawer", "pick up"][:n],
        images=rng.integers(0, 256, (n, 1, cameras, SIZE, SIZE, 3), np.uint8),
        observation_mask=np.ones((n, 1), bool),
        actions=ActionTokens.default().action_bins.decode(bins),
        bins=bins,
        action_mask=np.ones((n, 1, chunk), bool),
        proprio=rng.uniform(-1, 1, (n, proprio)).astype(np.float32),
        random=rng.random((n, 8), np.float32),
        sample_id=[str(i) for i in range(n)],
        texts=text_rows(texts, n) if texts else None,
    )


def text_rows(m: int, n: int) -> TextRows:
    return TextRows(
        images=np.random.default_rng(1).integers(0, 256, (m, SIZE, SIZE, 3), np.uint8),
        question=["What is in the pot?", ""][:m],
        answer=["a carrot", "two cups on the table"][:m],
        factor=np.full(m, 0.5, np.float32),
        place=np.arange(n, n + m),
    )


def train_config(base: Path, **changed) -> TrainConfig:
    settings = {"data": "", "base": str(base), "run": "", "dtype": "fp32", "augment": False, "lora": LoraConfig(rank=4)}
    return TrainConfig(**(settings | changed))


def build(base: Path, cameras=("primary",), chunk=1, proprio=0, **changed) -> OpenVLAFamily:
    config = train_config(base, proprio=bool(proprio), **changed)
    return OpenVLAFamily.build(config, mixture(base, cameras, chunk, proprio), CPU)


def test_loss_equals_the_network_loss_with_full_labels(base):
    family = build(base)
    found = family(**family.collator(rows()))
    prompter, ids = family.prompter, family.collator.tokens[rows().bins[:, 0, 0]]
    losses = []
    for image, instruction, actions in zip(rows().images[:, 0], rows().instruction, ids, strict=True):
        prompt, target = prompter.prompt(instruction), [*actions.tolist(), prompter.eos]
        labels = torch.tensor([[IGNORE] * len(prompt) + target])
        output = family.base(family.normalize(torch.from_numpy(image)), torch.tensor([prompt + target]), labels=labels)
        losses.append(output.loss)
    torch.testing.assert_close(found["loss"], torch.stack(losses).mean())


def test_accuracy_and_l1_equal_those_of_upstreams_finetune(shared):
    """Gathers hidden states here, because the golden labels do not continue the golden input."""
    case = np.load(shared / "parity/openvla/a_case.npz")
    family = SimpleNamespace(base=load_model(shared / "parity/openvla"))
    labels = torch.from_numpy(case["labels"])
    targets = torch.stack([row[row != -100] for row in labels])
    places = torch.stack([torch.nonzero(row != -100)[:, 0] for row in labels]) + 16 - 1
    tokens = ActionTokens.default()
    family._values = torch.from_numpy(
        replace(tokens, token_id=511 - np.arange(256), vocabulary_size=512).decode(np.arange(576), clip=True)
    )
    family._scores = lambda *args: OpenVLAFamily._scores(family, *args)
    batch = {"places": places, "targets": targets, "action_ids": targets[:, None, :7]}
    batch["action_mask"] = torch.ones(3, 1, dtype=torch.bool)
    losses, scores = OpenVLAFamily._token_losses(family, torch.from_numpy(case["last_hidden"]), batch)
    assert losses.mean().item() == pytest.approx(float(case["loss"]), abs=1e-5)
    assert scores["token_accuracy"].item() == pytest.approx(float(case["action_accuracy"]), abs=1e-6)
    assert scores["l1"].item() == pytest.approx(float(case["action_l1"]), abs=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_the_mean_of_per_sample_losses(base, head):
    family = build(base, chunk=2, openvla=HEADS[head]).eval()
    batch = rows(chunk=2)
    batch.action_mask[0, 0, 1] = False
    whole = family(**family.collator(batch))["loss"]
    fields = ("dataset", "instruction", "images", "observation_mask", "actions", "bins", "action_mask", "proprio")
    singles = []
    for i in range(3):
        one = {name: getattr(batch, name)[i : i + 1] for name in (*fields, "random")}
        singles.append(family(**family.collator(replace(batch, **one)))["loss"])
    torch.testing.assert_close(whole, torch.stack(singles).mean())


@pytest.mark.parametrize("head", HEADS)
def test_text_losses_are_weighted_by_their_factor(base, head):
    family = build(base, openvla=HEADS[head]).eval()
    robots, mixed = family.collator(rows()), family.collator(rows(texts=2))
    robot_loss, both = family(**robots)["loss"], family(**mixed)
    prompter, losses = family.prompter, []
    texts = text_rows(2, 3)
    for i in range(2):
        ids, labels = prompter.text(texts.question[i], texts.answer[i])
        pixels = family.normalize(torch.from_numpy(texts.images[i : i + 1]))
        losses.append(family.base(pixels, torch.tensor([ids]), labels=torch.tensor([labels])).loss)
    torch.testing.assert_close(both["text_loss"], torch.stack(losses).mean())
    torch.testing.assert_close(both["loss"], (3 * robot_loss + 0.5 * sum(losses)) / 5)


@pytest.mark.parametrize("head", HEADS)
def test_text_only_batches_give_every_trained_weight_a_gradient(base, head):
    family = build(base, proprio=3, openvla=HEADS[head])
    only = rows(n=0, proprio=3, texts=2)
    output = family(**family.collator(only))
    output["loss"].backward()
    assert torch.isfinite(output["text_loss"])
    assert torch.isnan(output["l1"])
    assert [name for name, p in family.named_parameters() if p.requires_grad and p.grad is None] == []


def test_batches_of_a_mixture_with_texts_report_the_same_names(base):
    """Processes average by position, so missing values are NaN."""
    family = build(base)
    family.texts = True
    robots, mixed = (family(**family.collator(rows(texts=count))) for count in (0, 2))
    assert list(robots) == list(mixed)
    assert torch.isnan(robots["text_loss"])
    assert "text_loss" not in family.eval()(**family.collator(rows()))


@pytest.mark.parametrize("head", HEADS)
def test_overfits_a_batch_and_predicts_its_actions(base, head):
    family = build(base, ("primary", "wrist"), chunk=2, proprio=3, adapter="none", openvla=HEADS[head])
    data = rows(chunk=2, cameras=2, proprio=3)
    batch = family.collator(data)
    optimizer = torch.optim.AdamW(family.parameter_groups(None), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        output = family(**batch)
        output["loss"].backward()
        optimizer.step()
        if output["l1"] < 0.01 and output.get("token_accuracy", 1) == 1:
            break
    assert [name for name, p in family.named_parameters() if p.requires_grad and p.grad is None] == []
    family.eval()
    predicted = family.predict(batch).numpy()
    assert predicted.shape == (3, 2, 7)
    assert np.abs(predicted - data.actions[:, 0]).max() < (0.2 if head == "l1" else 1e-6)


def test_batched_greedy_decoding_equals_decoding_without_a_cache(base):
    family = build(base, chunk=2).eval()
    batch = family.collator(rows(chunk=2))
    found = family.predict(batch)
    for i, instruction in enumerate(rows().instruction):
        ids = family.prompter.prompt(instruction)
        pixels = family.normalize(torch.from_numpy(rows(chunk=2).images[i, 0]))
        for _ in range(14):
            with torch.no_grad():
                ids.append(int(family.base(pixels, torch.tensor([ids])).logits[0, -1].argmax()))
        expected = family.vocabulary.decode(np.array(ids[-14:]), clip=True).reshape(2, 7)
        assert np.array_equal(found[i].numpy(), expected)


@pytest.mark.parametrize("head", HEADS)
def test_controller_actions_equal_predictions(base, head):
    pytest.importorskip("oxe_curate.train.models.openvla.control")
    family = build(base, chunk=2, openvla=HEADS[head]).eval()
    data = rows(chunk=2)
    expected = family.predict(family.collator(data)).numpy()
    family.requires_grad_(False)
    controller = family.controller()
    for i, instruction in enumerate(data.instruction):
        found = controller.act(data.images[i, 0], instruction, None)
        np.testing.assert_allclose(found, expected[i], atol=1e-5)


@pytest.mark.parametrize("adapter", ["lora", "qlora", "none"])
def test_trained_weights_round_trip_and_merge_into_the_published_layout(base, tmp_path, adapter):
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
    family = build(base, proprio=3, chunk=2, adapter=adapter)
    with torch.no_grad():
        for parameter in family.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    family.eval()
    batch = family.collator(rows(chunk=2, proprio=3))
    expected = family(**batch)["loss"]
    family.save(tmp_path / "adapter")
    again = OpenVLAFamily.restore(family.config, family.spec, tmp_path / "adapter", CPU)
    torch.testing.assert_close(again(**batch)["loss"], expected, rtol=1e-6, atol=0)

    fresh = OpenVLAFamily.restore(family.config, family.spec, tmp_path / "adapter", CPU)
    fresh.export(tmp_path / "merged", merge=True)
    whole = replace(family.config, base=str(tmp_path / "merged"), adapter="none", tune=None)
    merged = OpenVLAFamily.restore(whole, family.spec, None, CPU)
    torch.testing.assert_close(merged(**batch)["loss"], expected, rtol=2e-3, atol=0)  # stored as bf16
    assert set(merged.base.checkpoint.tensors) - set(family.base.checkpoint.tensors) == {
        f"proprio_projector.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")
    }
    assert set(family.base.checkpoint.tensors) <= set(merged.base.checkpoint.tensors)
    assert list(merged.base.architecture.config["norm_stats"]) == ["bridge_dataset"]
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_merged_model_has_the_filter_of_its_training(base, tmp_path):
    published = json.loads((base / "preprocessor_config.json").read_text())
    for kind, name, number in (("bicubic", "bicubic", 3), ("lanczos3", "lanczos", 1)):
        build(base, resize=kind).export(tmp_path / kind, merge=True)
        found = json.loads((tmp_path / kind / "preprocessor_config.json").read_text())
        assert set(found.pop("interpolations")) == {name}
        assert {step.pop("interpolation") for step in found["tvf_resize_params"]} == {number}
        for step in published["tvf_resize_params"]:
            step.pop("interpolation", None)
        published.pop("interpolations", None)
        assert found == published


def test_only_training_augments_images(base):
    family = build(base, ("primary", "wrist"), augment=True)
    batch = family.collator(rows(cameras=2))
    trained, again = family(**batch)["loss"], family(**batch)["loss"]
    assert torch.equal(trained, again)  # depends on Rows.random only
    other = batch | {"random": torch.flip(batch["random"], (0,))}
    assert not torch.equal(family(**other)["loss"], trained)
    family.eval()
    plain = build(base, ("primary", "wrist"))
    torch.testing.assert_close(family(**other)["loss"], plain(**batch)["loss"])


def test_held_out_samples_are_not_augmented(base):
    from oxe_curate.train.loop.validate import HeldOut
    from oxe_curate.train.serving.observe import as_images

    collator, data = build(base).collator, rows()
    cut = HeldOut(collator, crop=True)(data)["images"][1, 0]
    assert np.array_equal(cut, as_images([data.images[1, 0, 0]], ("primary",), SIZE, center_crop=True)[0])
    assert np.array_equal(HeldOut(collator)(data)["images"][1, 0], data.images[1, 0, 0])


def test_collator_is_picklable(base):
    collator = build(base).collator
    batch = pickle.loads(pickle.dumps(collator))(rows())
    assert torch.equal(batch["input_ids"], collator(rows())["input_ids"])


def test_action_tokens_of_another_tokenizer_are_rejected(base, shared):
    other = replace(mixture(base), tokens=ActionTokens.build(shared / "data/tokenizers/qwen2_5"))
    with pytest.raises(ConfigError, match="those of another tokenizer"):
        OpenVLAFamily.build(train_config(base), other, CPU)
    other = replace(mixture(base), tokens=replace(ActionTokens.default(), vocabulary_size=832))
    with pytest.raises(ConfigError, match="action token 31999 is outside its vocabulary of 896 tokens"):
        OpenVLAFamily.build(train_config(base), other, CPU)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_merge_into_a_bf16_base_is_the_same_in_every_release(base, tmp_path, dtype):
    """Rounded once, after the sum: updates near half a step of bf16 would be lost or doubled otherwise."""
    family = build(base, adapter="lora", dtype=dtype, lora=LoraConfig(rank=4, alpha=16))
    layer = family.net.get_submodule("base_model.model.projector.fc1")
    with torch.no_grad():
        layer.base_layer.weight[0, :4] = torch.tensor([1, 1, 1, 1.0078125])
        layer.lora_A["default"].weight[:, :4] = torch.tensor([[1025.0, 1024, 1536, 1024], *[[9.0] * 4] * 3]) / 1024
        layer.lora_B["default"].weight[0] = torch.tensor([1, 0, 0, 0]) / 1024
    family.export(tmp_path, merge=True)
    merged = Checkpoint.open(tmp_path).tensor("projector.fc1.weight")
    assert merged.dtype == torch.bfloat16
    assert merged[0, :4].tolist() == [1.0078125, 1, 1.0078125, 1.015625]
