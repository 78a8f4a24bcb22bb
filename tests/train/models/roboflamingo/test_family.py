"""RoboFlamingo as a family: from windows to losses, checkpoints, control and export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.config import FlamingoConfig, LoraConfig, TrainConfig, read_train_config
from oxe_curate.train.data.batch import Rows, TextRows
from oxe_curate.train.data.episodes import EpisodeReader
from oxe_curate.train.data.loader import Loader
from oxe_curate.train.loop.run import run_training
from oxe_curate.train.models.base import family
from oxe_curate.train.models.roboflamingo.family import FlamingoFamily
from oxe_curate.train.models.roboflamingo.model import load_model
from tests import ROOT
from tests.train import mixtures
from tests.train.models.roboflamingo.bases import write_base

torch.set_num_threads(1)
WINDOW, CHUNK, CPU = 4, 2, torch.device("cpu")
FORM = f"window: {WINDOW}\nchunk: {CHUNK}\nimage: {{cameras: [primary, secondary], quality: 100}}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flamingo")


@pytest.fixture(scope="module")
def mixture(place: Path) -> MixtureFolder:
    return mixtures.build(mixtures.index(place), place / "mix", FORM + "stride: 2\n", 60_000)


@pytest.fixture(scope="module")
def base(place: Path) -> Path:
    return write_base(place / "base", words=["lift", "cup"])


def settings(base: Path, **change: Any) -> TrainConfig:
    flamingo = FlamingoConfig(**{"head": "lstm", "history": False, **change.pop("flamingo", {})})
    return TrainConfig(
        **{
            "data": "mix", "base": str(base), "run": str(base.parent / "run"), "model": "roboflamingo",
            "adapter": "none", "dtype": "fp32", "augment": False, "flamingo": flamingo, **change,
        }
    )  # fmt: skip


def made(base: Path, mixture: MixtureFolder, **change: Any) -> FlamingoFamily:
    found = FlamingoFamily.build(settings(base, **change), mixture, CPU)
    for layer in found.flamingo.layers:
        if layer.gated_cross_attn_layer is not None:
            layer.gated_cross_attn_layer.attn_gate.data.fill_(0.5)
            layer.gated_cross_attn_layer.ff_gate.data.fill_(0.5)
    return found


def some(mixture: MixtureFolder, model: FlamingoFamily, count: int = 4, mixed: bool = False) -> Rows:
    size = model.spec.image_size
    return Loader(mixture, model.collator, image_size=size, batch_size=count, workers=1, mixed=mixed).rows(0)


def with_texts(rows: Rows, count: int = 2) -> Rows:
    size = rows.images.shape[-2]
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    factor = np.linspace(0.5, 1.0, count, dtype=np.float32)
    place = np.arange(count) + len(rows.position)
    return replace(
        rows, texts=TextRows(images, ["what is on", ""][:count], ["a pot", "red cup"][:count], factor, place)
    )


def test_registered_under_its_name() -> None:
    assert family("roboflamingo") is FlamingoFamily


def test_frames_and_actions_of_a_window_line_up(mixture: MixtureFolder, base: Path, place: Path) -> None:
    """Each step has the image recorded with its action; colors encode the raw step."""
    model = made(base, mixture)
    rows = some(mixture, model, 12)
    batch = model.collator(rows)
    index = {
        row["episode_id"]: row
        for file in (place / "index").rglob("*.parquet")
        for row in pq.read_table(file, columns=["episode_id", "action", "frame_index"]).to_pylist()
    }
    images = batch["images"].unflatten(0, (-1, 2))[batch["frames"]].numpy().astype(float)  # (n, W, C, S, S, 3)
    checked = 0
    for i, name in enumerate(rows.sample_id):
        episode_id, step = name.rsplit("/", 1)
        episode = index[episode_id]
        bounds = mixture.statistics["bridge_orig"]
        for w in range(WINDOW):
            t = int(step) - (WINDOW - 1) + w
            assert bool(rows.observation_mask[i, w]) == (t >= 0)
            if t < 0:
                continue
            raw = episode["frame_index"][t]
            assert images[i, w, :, :, :, 1].mean() == pytest.approx(raw * 10, abs=3)  # 10 per step
            assert images[i, w, 1, :, :, 2].mean() - images[i, w, 0, :, :, 2].mean() == pytest.approx(60, abs=3)
            for k in range(CHUNK):
                inside = t + k < len(episode["action"])
                assert bool(batch["action_mask"][i, w, k]) == inside
                if inside:
                    expected = bounds.normalize(np.asarray(episode["action"][t + k], np.float32)[None])[0]
                    np.testing.assert_allclose(batch["actions"][i, w, k], expected, atol=1e-6)
                    checked += 1
    assert checked > 30


def test_padding_repeats_the_first_frame_without_encoding_it_again(mixture: MixtureFolder, base: Path) -> None:
    model = made(base, mixture)
    rows = some(mixture, model, 12)
    batch = model.collator(rows)
    shown = batch["images"].unflatten(0, (-1, 2))[batch["frames"]]
    np.testing.assert_array_equal(shown.numpy(), rows.images)
    assert len(batch["images"]) == 2 * rows.observation_mask.sum() < rows.images[..., 0, 0, 0].size


HEADS = [("lstm", False), ("gpt", False), ("mlp", False), ("mlp", True)]


@pytest.mark.parametrize(("head", "history"), HEADS)
def test_every_head_overfits_windows_of_the_real_bridge(
    real: MixtureFolder, base: Path, head: str, history: bool
) -> None:
    model = made(base, real, flamingo={"head": head, "history": history, "gripper_weight": 0.3})
    rows = Loader(real, model.collator, image_size=28, batch_size=3, workers=1).rows(0)
    batch = model.collator(rows)
    optimizer = torch.optim.AdamW(model.parameter_groups(None), lr=1.5e-3)
    for part in model.modules():
        if isinstance(part, torch.nn.LSTM | torch.nn.Dropout) or hasattr(part, "c_attn"):
            setattr(part, "p" if isinstance(part, torch.nn.Dropout) else "dropout", 0.0)
    first = model(**batch)
    for _ in range(120):
        out = model(**batch)
        optimizer.zero_grad()
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert out["pose_loss"] < 0.2 * first["pose_loss"]
    assert out["gripper_accuracy"] > 0.9
    model.eval()
    error = (model.predict(batch) - batch["actions"][:, -1]).abs()[batch["action_mask"][:, -1]]
    assert error[:, :6].mean() < 0.25


@pytest.fixture(scope="module")
def real(shared: Path, place: Path) -> MixtureFolder:
    folder = place / "real"
    folder.mkdir()
    return mixtures.build(mixtures.real_index(folder, shared), folder / "mix", FORM + "stride: 3\n", 2_000_000)


@pytest.fixture(scope="module")
def every_step(mixture: MixtureFolder, place: Path) -> MixtureFolder:
    return mixtures.build(place / "index", place / "dense", FORM, 60_000)


@pytest.mark.parametrize(("head", "history"), HEADS)
def test_control_equals_prediction_step_by_step(
    every_step: MixtureFolder, base: Path, head: str, history: bool
) -> None:
    """The controller's state gives the same actions as windows, including padded ones at the start."""
    model = made(base, every_step, flamingo={"head": head, "history": history}).eval()
    reader = EpisodeReader(every_step, image_size=28, split="train")
    name = max(reader.ids, key=lambda i: len(reader.steps(i)))
    rows, controller = reader.read(name), model.controller()
    assert reader.steps(name).tolist() == list(range(len(rows.position)))
    assert len(rows.position) > WINDOW + 1  # longer than the window, where the state restarts
    with torch.no_grad():
        for i in range(len(rows.position)):
            windowed = model.predict(model.collator(take(rows, [i])))[0].numpy()
            np.testing.assert_allclose(
                controller.act(rows.images[i, -1], rows.instruction[i], None), windowed, atol=1e-5
            )


def take(rows: Rows, which: list[int]) -> Rows:
    texts = {name: [getattr(rows, name)[i] for i in which] for name in ("instruction", "sample_id")}
    arrays = {f.name: getattr(rows, f.name)[which] for f in fields(rows) if f.name not in (*texts, "texts")}
    return Rows(**arrays, **texts)


def test_controllers_have_separate_state(mixture: MixtureFolder, base: Path) -> None:
    model = made(base, mixture).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 28, 28, 3), np.uint8)
    one, other = model.controller(), model.controller()
    first = one.act(images[0], "lift the cup", None)
    assert first.shape == (CHUNK, 7)
    assert set(first[:, 6]) <= {0.0, 1.0}
    one.act(images[1], "lift the cup", None)
    np.testing.assert_array_equal(other.act(images[0], "lift the cup", None), first)
    one.reset()
    np.testing.assert_array_equal(one.act(images[0], "lift the cup", None), first)


@pytest.mark.parametrize("kind", ["robots", "texts", "both"])
def test_every_trained_weight_gets_a_gradient_from_any_batch(mixture: MixtureFolder, base: Path, kind: str) -> None:
    model = made(base, mixture, flamingo={"head": "mlp", "history": True}).train()
    rows = some(mixture, model)
    if kind != "robots":
        rows = with_texts(rows)
    if kind == "texts":
        rows = replace(take(rows, []), texts=rows.texts)
    out = model(**model.collator(rows))
    out["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert len(model.predict(model.collator(rows))) == len(rows.position)


def test_loss_is_the_mean_over_samples_of_both_kinds(mixture: MixtureFolder, base: Path) -> None:
    """The losses of both halves of a batch average to the loss of the batch, with any padding."""
    model = made(base, mixture).eval()
    model._texts = True
    rows = with_texts(some(mixture, model, 4))
    rows = replace(rows, instruction=["lift", "put the cup in the pot on the drawer", "open", "a red cup"])
    with torch.no_grad():
        whole = model(**model.collator(rows))
        halves = [model(**model.collator(take(rows, part)))["loss"] for part in ([0, 1], [2, 3])]
        texts = replace(take(rows, []), texts=rows.texts)
        text = model(**model.collator(texts))
    torch.testing.assert_close(whole["loss"], (2 * sum(halves) + 2 * text["loss"]) / 6)
    torch.testing.assert_close(whole["text_loss"], text["text_loss"])


def test_scalars_without_rows_are_nan(mixture: MixtureFolder, base: Path) -> None:
    """Zeros would change the averages."""
    model = made(base, mixture).train()
    model._texts = True
    rows = some(mixture, model, 2)
    texts = replace(take(rows, []), texts=with_texts(rows).texts)
    robots, language = (model(**model.collator(each)) for each in (rows, texts))
    assert list(robots) == list(language)
    assert [key for key, value in robots.items() if value.isnan()] == ["text_loss"]
    assert [key for key, value in language.items() if value.isnan()] == [
        "pose_loss",
        "gripper_loss",
        "gripper_accuracy",
    ]
    model._texts = False
    assert "text_loss" not in model(**model.collator(rows))


def test_trains_with_its_defaults_and_resumes_from_the_run_folder(
    mixture: MixtureFolder, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    where = {"data": str(mixture.folder), "base": str(base), "run": str(tmp_path / "run"), "model": "roboflamingo"}
    config = read_train_config(None, {**where, "steps": 2, "workers": 1, "eval_samples": 0, "log": "none"})
    result = run_training(config, device="cpu")
    assert "the warm-up is longer than the run: --warmup 500 of 2 steps" in result.forecast.notes
    assert result.values["learning_rate"] == pytest.approx(1e-4 / 500)
    assert "Loading weights" not in capfd.readouterr().err
    kept = read_train_config(tmp_path / "run" / "config.yaml", {})
    assert (kept.adapter, kept.batch_size, kept.learning_rate, kept.augment) == ("none", 6, 1e-4, False)
    assert not (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    resumed = read_train_config(None, {"run": str(tmp_path / "run"), "steps": 3}, resume=True)
    assert run_training(resumed, resume=True, progress=False, device="cpu").steps == 3


def test_two_processes_equal_one(mixture: MixtureFolder, base: Path, tmp_path: Path) -> None:
    """Data-parallel training without a search for unused parameters."""
    where = {"data": str(mixture.folder), "base": str(base), "model": "roboflamingo", "flamingo.head": "mlp"}
    short = {"steps": 3, "workers": 1, "eval_samples": 0, "log": "none", "log_every": 1, "dtype": "fp32", "warmup": 0}
    one = read_train_config(None, {**where, **short, "run": str(tmp_path / "one"), "batch_size": 4})
    run_training(one, progress=False, device="cpu")
    two = replace(one, run=str(tmp_path / "two"), batch_size=2)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "tests.train.launched", json.dumps(asdict(two))],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("one", "two")]
    first, second = ([json.loads(line)["loss"] for line in lines] for lines in logs)
    assert len(first) == 3
    assert second == pytest.approx(first, rel=1e-5)


def test_loading_shows_no_progress_bar_without_a_terminal(
    mixture: MixtureFolder, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transformers.utils.logging.enable_progress_bar()
    made(base, mixture)
    assert capfd.readouterr().err == ""


def test_text_loss_equals_the_language_models_loss(mixture: MixtureFolder, base: Path) -> None:
    model = made(base, mixture).eval()
    rows = with_texts(some(mixture, model, 1), 1)
    batch = model.collator(rows)
    net = model.flamingo
    with torch.no_grad():
        got = model._text_losses(batch)
        pixels = torch.from_numpy(rows.texts.images).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(x)[:, None, None] for x in ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)))
        latents = net.resample(net.encode_images((pixels - mean) / std).unsqueeze(1))
        hidden = net.run_decoder(batch["text_ids"], batch["text_mask"], latents)
        logits = net.lang_encoder.lm_head(hidden)
        expected = torch.nn.functional.cross_entropy(logits[0, :-1], batch["text_labels"][0, 1:], ignore_index=-100)
    torch.testing.assert_close(got[0], expected, atol=1e-3, rtol=0)
    ids, labels = batch["text_ids"][0].tolist(), batch["text_labels"][0].tolist()
    tokens = [model._prompter.tokenizer.convert_ids_to_tokens(i) for i, x in zip(ids, labels, strict=True) if x >= 0]
    assert tokens == ["a", "pot", "<|endofchunk|>", "</s>"]


def test_saved_weights_round_trip(mixture: MixtureFolder, base: Path, tmp_path: Path) -> None:
    model = made(base, mixture).eval()
    model.save(tmp_path)
    config = settings(base)
    other = FlamingoFamily.restore(config, model.spec, tmp_path, CPU).eval()
    batch = model.collator(some(mixture, model))
    with torch.no_grad():
        torch.testing.assert_close(other(**batch)["loss"], model(**batch)["loss"], atol=0, rtol=0)
    stored = pq_names(tmp_path / "extra.safetensors")
    assert "lang_encoder.transformer.blocks.1.gated_cross_attn_layer.attn_gate" in stored
    assert not any("decoder_layer" in name or name.startswith("vision_encoder") for name in stored)
    with pytest.raises(ConfigError, match="no policy head"):
        FlamingoFamily.restore(config, model.spec, None, CPU)
    with pytest.raises(DataError, match="lm_head"):
        FlamingoFamily.restore(settings(base, flamingo={"head": "gpt"}), model.spec, tmp_path, CPU)


def pq_names(file: Path) -> set[str]:
    from oxe_curate.train.models.roboflamingo.names import read_weights

    return set(read_weights(file))


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_exported_folder_is_a_complete_model(mixture: MixtureFolder, base: Path, tmp_path: Path, adapter: str) -> None:
    model = made(base, mixture, adapter=adapter, lora=LoraConfig(rank=2)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.export(tmp_path, merge=True)
    whole = FlamingoFamily.restore(settings(tmp_path), model.spec, None, CPU).eval()
    batch = model.collator(some(mixture, model))
    with torch.no_grad():
        torch.testing.assert_close(whole(**batch)["loss"], model(**batch)["loss"], atol=1e-6, rtol=0)
    assert load_model(tmp_path).lm_head.chunk == CHUNK
    rough = FlamingoFamily.restore(settings(tmp_path, dtype="bf16"), model.spec, None, CPU)
    assert torch.equal(rough.flamingo.lm_head.rnn.weight_ih_l0, model.flamingo.lm_head.rnn.weight_ih_l0)
    released = torch.load(tmp_path / "roboflamingo.pt", weights_only=True)["model_state_dict"]
    assert "module.lm_head.rnn.weight_ih_l0" in released
    decoder = "module.lang_encoder.transformer.blocks.0.decoder_layer.attn.Wqkv.weight"
    assert (decoder in released) == (adapter == "lora")


def test_released_checkpoint_on_a_base(mixture: MixtureFolder, base: Path, tmp_path: Path) -> None:
    """Training continues from a trained head of the configured kind."""
    model = made(base, mixture)
    model.export(tmp_path, merge=False)
    for name in ("vision", "language", "config.json"):
        (tmp_path / name).symlink_to(base / name)
    (tmp_path / "extra.safetensors").unlink()
    again = FlamingoFamily.build(settings(tmp_path), mixture, CPU)
    torch.testing.assert_close(again.flamingo.lm_head.state_dict(), model.flamingo.lm_head.state_dict())
    other = FlamingoFamily.build(settings(tmp_path, flamingo={"head": "gpt"}), mixture, CPU)
    assert hasattr(other.flamingo.lm_head, "gpt")


@pytest.mark.parametrize(("adapter", "targets", "lora"), [("lora", "all-linear", True), ("none", (), False)])
def test_lora_on_the_decoder_is_optional(
    mixture: MixtureFolder, base: Path, adapter: str, targets: Any, lora: bool
) -> None:
    model = made(base, mixture, adapter=adapter, lora=LoraConfig(rank=2, targets=targets))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    adapted = {name for name in names if ".lora_" in name}
    assert bool(adapted) == lora
    assert all("decoder_layer" in name for name in adapted)
    assert any(name.endswith("perceiver.latents") for name in names)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    model(**model.collator(some(mixture, model)))["loss"].backward()


@pytest.mark.parametrize("targets", ["all-linear", ()])
def test_decoder_in_nf4(mixture: MixtureFolder, base: Path, targets: Any) -> None:
    pytest.importorskip("bitsandbytes")
    model = made(base, mixture, adapter="qlora", lora=LoraConfig(rank=2, targets=targets))
    kinds = {type(m).__name__ for n, m in model.named_modules() if "decoder_layer" in n and "Wqkv" in n}
    assert any("Linear4bit" in kind for kind in {type(m).__name__ for m in model.modules()}), kinds
    assert all(
        type(m).__name__ != "Linear4bit"
        for n, m in model.named_modules()
        if "gated_cross_attn" in n or "vision_encoder" in n
    )
    model(**model.collator(some(mixture, model)))["loss"].backward()


def test_bf16_with_checkpointing_is_near_fp32(mixture: MixtureFolder, base: Path) -> None:
    exact, rough = made(base, mixture), made(base, mixture, dtype="bf16", checkpointing=True)
    for head in (exact, rough):
        head.flamingo.lm_head.rnn.dropout = 0.0
    batch = exact.collator(some(mixture, exact))
    one, other = exact(**batch)["loss"], rough(**batch)["loss"]
    other.backward()
    torch.testing.assert_close(other, one, atol=5e-3, rtol=0)
    assert rough.flamingo.perceiver.latents.grad.dtype == torch.float32
    frozen = {p.dtype for n, p in rough.named_parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_only_the_cross_attention_has_weight_decay(mixture: MixtureFolder, base: Path) -> None:
    model = made(base, mixture)
    decayed, plain = model.parameter_groups(None)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    assert all("gated_cross_attn_layer" in names[id(p)] for p in decayed["params"])
    assert not any("gate" in names[id(p)].rpartition(".")[2] or "norm" in names[id(p)] for p in decayed["params"])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(plain["params"]) == len(trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": True}, "does not support proprioception"),
        ({"adapter": "none", "tune": "full"}, "remove the key"),
        ({"augment": True, "flamingo": {"cache_vision": True}}, "augmented frames cannot be cached"),
        ({"chunk": 3}, "3 is larger than the chunk"),
    ],
)
def test_unsupported_settings_are_rejected(mixture: MixtureFolder, base: Path, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(base, mixture, **change)


def test_window_of_one_is_rejected_by_heads_with_history(mixture: MixtureFolder, base: Path) -> None:
    narrow = replace(mixture, mixture=replace(mixture.mixture, window=1, stride=1))
    with pytest.raises(ConfigError, match="window: 12"):
        made(base, narrow)
    assert made(base, narrow, flamingo={"head": "mlp"}).spec.window == 1


def test_from_shards_to_a_policy(mixture: MixtureFolder, base: Path, place: Path) -> None:
    """Train with cached vision and texts, stop, resume, load, act, reset."""
    from oxe_curate.train import Policy
    from oxe_curate.train.loop.run import run_training

    source = mixtures.texts(place / "captions", 6)
    form = FORM + f"stride: 2\nvalidation: 0.2\ntexts: [{{name: captions, path: {source}, weight: 1}}]\n"
    mixed = mixtures.build(place / "index", place / "mixed", form, 60_000)
    config = replace(
        settings(base, flamingo={"cache_vision": True}, checkpointing=True),
        data=str(mixed.folder), run=str(place / "whole-run"), steps=2, save_every=2, batch_size=4, log="none",
    )  # fmt: skip
    run_training(config, progress=False)
    result = run_training(replace(config, steps=4), resume=True, progress=False)
    assert result.validation is not None
    assert {"pose_loss", "gripper_accuracy"} <= set(result.validation)
    with pytest.raises(ConfigError, match="use ddp"):
        FlamingoFamily.build(replace(config, shard="fsdp"), mixed, CPU)
    policy = Policy.load(place / "whole-run")
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 40, 50, 3), np.uint8)
    first = policy(list(images[0]), "lift the cup")
    policy(list(images[1]), "lift the cup")
    policy.reset()
    np.testing.assert_array_equal(policy(list(images[0]), "lift the cup"), first)
    assert policy.chunk(list(images[1]), "lift the cup").shape == (CHUNK, 7)


def test_flamingos_tokens_are_added_to_a_plain_language_model(base: Path, tmp_path: Path) -> None:
    """In OpenFlamingo's order: <|endofchunk|>, <image> and, if there is no padding token, <PAD>."""
    import json
    import shutil

    from oxe_curate.train.models.roboflamingo.config import FlamingoSpec, HeadSpec
    from oxe_curate.train.models.roboflamingo.model import build_flamingo, tokenizer

    shutil.copytree(base, tmp_path / "base")
    folder = tmp_path / "base" / "language"
    plain = json.loads((folder / "tokenizer.json").read_text())
    plain["model"]["vocab"] = {f"w{i}": i for i in range(62)} | {"<unk>": 62, "</s>": 63}
    plain["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizer(tmp_path / "base")
    assert found.convert_tokens_to_ids(["<|endofchunk|>", "<image>", "<PAD>"]) == [64, 65, 66]
    (tmp_path / "base" / "flamingo.safetensors").unlink()
    with pytest.raises(ConfigError, match="gated_cross_attn_layer"):
        build_flamingo(tmp_path / "base", FlamingoSpec.read(tmp_path / "base"), HeadSpec(), torch.float32)
    from safetensors.torch import load_file, save_file

    part = load_file(base / "flamingo.safetensors")
    part.pop("lang_encoder.transformer.wte.weight")
    save_file(part, tmp_path / "base" / "flamingo.safetensors")
    net = build_flamingo(tmp_path / "base", FlamingoSpec.read(tmp_path / "base"), HeadSpec(), torch.float32)
    assert net.lang_encoder.get_input_embeddings().num_embeddings == 67
    assert net.media_token == 65


def test_a_merge_in_bf16_is_the_same_in_every_release(mixture: MixtureFolder, base: Path, tmp_path: Path) -> None:
    """Rounded once, after the sum: updates near half a step of bf16 would be lost or doubled otherwise."""
    from safetensors.torch import load_file

    model = made(base, mixture, adapter="lora", dtype="bf16", lora=LoraConfig(rank=2, alpha=4))
    name = "lang_encoder.transformer.blocks.0.decoder_layer.attn.Wqkv"
    layer = model.net.get_submodule(f"base_model.model.{name}")
    with torch.no_grad():
        layer.base_layer.weight[0, :4] = torch.tensor([1, 1, 1, 1.0078125])
        layer.lora_A["default"].weight[:, :4] = torch.tensor([[1025.0, 1024, 1536, 1024], [9.0] * 4]) / 1024
        layer.lora_B["default"].weight[0] = torch.tensor([1, 0]) / 512
    model.export(tmp_path, merge=True)
    merged = load_file(tmp_path / "flamingo.safetensors")[f"{name}.weight"]
    assert merged.dtype == torch.bfloat16
    assert merged[0, :4].tolist() == [1.0078125, 1, 1.0078125, 1.015625]
