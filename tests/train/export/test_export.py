import errno
import http.client
import io
import json
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import yaml

pytest.importorskip("torch")

import uvicorn
from PIL import Image

from oxe_curate.errors import ConfigError, DataError, StorageError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from oxe_curate.train import Policy
from oxe_curate.train.config import TrainConfig
from oxe_curate.train.evaluation.evaluate import evaluate_run
from oxe_curate.train.evaluation.scores import NAMES
from oxe_curate.train.export.export import export_run
from oxe_curate.train.export.model_card import upstream_obstacles
from oxe_curate.train.loop.saved import open_saved
from oxe_curate.train.models import base as family
from oxe_curate.train.serving import serve, wire
from tests.train import toy_policy as toy
from tests.train.toy_policy import red


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(family._FAMILIES, "openvla", "tests.train.toy_policy:ToyFamily")


@pytest.fixture
def run(tmp_path, toys):
    base = toy.write_base(tmp_path / "base", gain=2.0)
    return toy.write_run(tmp_path / "run", base, names=("bridge_orig", "kuka"), checkpoints=(2, 3), augment=True)


def act(folder, **load):
    return Policy.load(folder, "kuka", **load)(red(200), "lift")


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_acts_like_its_run(run, tmp_path, merge):
    out = export_run(run, tmp_path / "out", merge=merge)
    assert out == tmp_path / "out"
    np.testing.assert_allclose(act(out), act(run), rtol=1e-6)
    assert Policy.load(out, "kuka").center_crop is True
    assert open_saved(out).kind == ("whole" if merge else "adapter")
    held = {"README.md", "oxe_curate.json", "dataset_statistics.json", "action_tokens.parquet", "mixture.yaml"}
    assert held < {path.name for path in out.iterdir()}
    for name in held - {"README.md", "oxe_curate.json"}:
        assert (out / name).read_bytes() == (run / name).read_bytes()
    modes = {path.stat().st_mode for path in out.iterdir()}
    assert len(modes) == 1  # all files are equally readable


def test_a_checkpoint_is_exported(run, tmp_path):
    out = export_run(run, tmp_path / "out", merge=True, checkpoint=3)
    np.testing.assert_allclose(act(out), act(run, checkpoint=3), rtol=1e-6)
    assert json.loads((out / "oxe_curate.json").read_text())["checkpoint"] == 3


def test_a_merged_model_needs_no_base_and_contains_no_paths(run, tmp_path):
    expected = act(run)
    out = export_run(run, tmp_path / "out", merge=True)
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(run)
    np.testing.assert_allclose(act(out), expected, rtol=1e-6)
    for path in out.iterdir():
        assert str(tmp_path) not in path.read_bytes().decode("latin-1")


def test_an_exported_adapter_accepts_a_moved_base_and_can_be_merged(run, tmp_path):
    adapter = export_run(run, tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="--base"):
        act(adapter)
    np.testing.assert_allclose(act(adapter, base=tmp_path / "moved"), act(run, base=tmp_path / "moved"))
    whole = export_run(adapter, tmp_path / "whole", merge=True, base=tmp_path / "moved")
    np.testing.assert_allclose(act(whole), act(run, base=tmp_path / "moved"), rtol=1e-6)
    with pytest.raises(ConfigError, match="already exported"):
        export_run(adapter, tmp_path / "again", base=tmp_path / "moved")
    with pytest.raises(ConfigError, match="nothing to export"):
        export_run(whole, tmp_path / "again", merge=True)


@pytest.mark.parametrize("name", ["dataset_statistics.json", "action_tokens.parquet", "mixture.yaml"])
def test_a_changed_export_is_refused(run, tmp_path, name):
    out = export_run(run, tmp_path / "out", merge=True)
    (out / name).write_bytes((out / name).read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"{name}: differs from the"):
        Policy.load(out)


def test_changed_norm_stats_are_refused(run, tmp_path):
    out = export_run(run, tmp_path / "out", merge=True)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"norm_stats": toy.statistics("bridge_orig", scale=9.0)}))
    with pytest.raises(DataError, match="norm_stats differ"):
        Policy.load(out)


def test_nothing_is_overwritten(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_run(run, out, merge=True)  # an empty folder is accepted
    with pytest.raises(ConfigError, match=r"--out .*: is not empty"):
        export_run(run, out, merge=True)
    with pytest.raises(ConfigError, match="is a file"):
        export_run(run, run / "run.json")


def test_a_full_disk_leaves_no_files(run, tmp_path, monkeypatch):
    def full(self, folder, merge):
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(toy.ToyFamily, "export", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StorageError, match="the disk is full"):
        export_run(run, tmp_path / "out", merge=True)
    assert sorted(tmp_path.iterdir()) == before


# ── the card ──


def test_the_card_has_data_settings_and_results(run, tmp_path):
    entry = {"samples": 64, "l1": [0.01, 0.01, 0.01, np.pi / 180, 0.02, 0.02, 0.1]}
    past = [{"step": s, "samples": 64, "loss": 0.5 * s, "datasets": {"kuka": entry}} for s in (2, 3)]
    (run / "validation.json").write_text(json.dumps(past))
    (run / "checkpoint-2" / "progress.json").write_text('{"step": 2, "consumed": 32, "global_batch": 16}')
    card = (export_run(run, tmp_path / "my-model", checkpoint=2) / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "unknown"
    assert "| `bridge_orig` | 1 | 10 | 100 |" in text  # weight, episodes, steps; no mixture at hand
    assert "LoRA, rank 32, alpha 16" in text
    assert "2 of 16 samples (32 samples)" in text
    assert "after step 2: loss 1." in text
    assert "| `kuka` | 64 | 0.01 | 0.01 | 0.01 | 1 | 1.15 | 1.15 | 0.1 |" in text  # radians to degrees
    assert 'Policy.load("my-model", unnorm_key="bridge_orig", base=' in text
    assert "`bridge_orig`, `kuka`" in text.split("## License")[1]
    bare = (export_run(run, tmp_path / "bare", checkpoint=3) / "README.md").read_text()
    assert "after step 3: loss 1.5" in bare


def test_the_card_names_the_versions_that_openvlas_code_needs(run, monkeypatch):
    from oxe_curate.train.export import model_card

    monkeypatch.setattr(model_card, "upstream_obstacles", lambda *_: [])
    text = model_card.model_card(open_saved(run), "m", True, {})
    assert "transformers 4.40.1, tokenizers 0.19.1, timm 0.9.10 and torch 2.2" in text
    assert "transformers 4.50 or newer" in text
    assert "predict_action" in text


def test_the_card_shows_openvlas_own_code_only_if_it_works(run):
    saved = open_saved(run)
    published = {"text_config": {"vocab_size": 32064}, "pad_to_multiple_of": 64}
    assert upstream_obstacles(saved, published) == []
    for change, message in (
        ({"cameras": ("primary", "wrist")}, "2 cameras"),
        ({"proprio": 7}, "robot state"),
        ({"chunk": 8}, "chunks of 8"),
        ({"bins": "uniform"}, "uniform bins"),
        ({"tokens": tuple(range(256))}, "not the last of the vocabulary"),
    ):
        other = replace(saved, spec=replace(saved.spec, **change))
        assert message in "; ".join(upstream_obstacles(other, published))
    for head, decoding, message in (
        ("l1", "parallel", "continuous action head"),
        ("tokens", "parallel", "in parallel"),
    ):
        openvla = replace(saved.config.openvla, head=head, decoding=decoding)
        other = replace(saved, config=replace(saved.config, openvla=openvla))
        assert message in "; ".join(upstream_obstacles(other, published))
    assert "language model" in upstream_obstacles(saved, published | {"text_config": {"model_type": "qwen2"}})[-1]


# ── a tiny real model ──


@pytest.fixture(scope="module")
def bridge(shared, tmp_path_factory):
    """A tiny OpenVLA and a mixture of the real Bridge shard, with images of its size."""
    from oxe_curate.train.models.openvla.synthetic import write_random_checkpoint

    root = tmp_path_factory.mktemp("bridge")
    write_random_checkpoint(root / "base")
    options = FilterOptions(datasets=("bridge_dataset",), workers=1, progress=False)
    run_filter(str(shared / "data" / "rlds"), str(root / "index"), options)
    mixture = "name: bridge\ndatasets: [{name: bridge_dataset, weight: 1.0}]\nvalidation: 0.2\n"
    (root / "mixture.yaml").write_text(mixture)
    tokenizer = TokenizeOptions(workers=1, progress=False, tokenizer=root / "base" / "tokenizer.json")
    run_tokenize(root / "mixture.yaml", str(root / "index"), str(root / "mixture"), tokenizer)
    return root


@pytest.mark.parametrize("adapter", ["lora", "qlora", "none"])
def test_from_shards_to_a_served_policy(bridge, adapter):
    from oxe_curate.train.loop.run import run_training

    folder = bridge / adapter
    config = TrainConfig(
        data=str(bridge / "mixture"), base=str(bridge / "base"), run=str(folder / "run"), adapter=adapter, steps=3,
        batch_size=4, learning_rate=0.01, dtype="fp32", eval_samples=8, workers=1, log="none",
    )  # fmt: skip
    run_training(config, progress=False, device="cpu")
    result = evaluate_run(folder / "run", episodes=2, device="cpu", progress=False)
    assert result.whole.steps == 16

    whole = export_run(folder / "run", folder / "whole", merge=True, device="cpu")
    trained = export_run(folder / "run", folder / "trained", device="cpu")
    image, text = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), "put the pot on the stove"
    policies = [Policy.load(path, device="cpu") for path in (folder / "run", trained, whole)]
    actions = [policy(image, text) for policy in policies]
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])

    # the predictions equal those of the policy
    rows = pl.concat(pl.read_parquet(path) for path in sorted((bridge / "mixture").glob("validation-*.parquet")))
    shown = {(row["episode_id"], row["step"]): row for row in rows.iter_rows(named=True)}
    for predicted in pl.read_parquet(result.folder / "predictions.parquet")[::5].iter_rows(named=True):
        row = shown[predicted["episode_id"], predicted["step"]]
        done = policies[0](Image.open(io.BytesIO(row["image_primary"]["bytes"])), row["instruction"])
        np.testing.assert_allclose([predicted[f"predicted_{name}"] for name in NAMES], done, rtol=1e-5, atol=1e-7)
    config_json = json.loads((whole / "config.json").read_text())
    assert config_json["norm_stats"] == json.loads((bridge / "mixture" / "dataset_statistics.json").read_text())

    served = over_http(policies[2], {"image": image, "instruction": text, "unnorm_key": "bridge_dataset"})
    np.testing.assert_array_equal(served, actions[0])
    assert not layers(policies[2], "Linear4bit")
    small = Policy.load(whole, quantize="nf4", device="cpu")
    assert all(name.startswith("language_model.") for name in layers(small, "Linear4bit"))
    assert len(layers(small, "Linear4bit")) == 2 * 7  # of two blocks
    assert np.isfinite(small(image, text)).all()


def layers(policy, kind):
    return [name for name, module in policy._model.net.named_modules() if type(module).__name__ == kind]


def test_from_shards_to_a_served_policy_with_a_window(bridge, tmp_path):
    from oxe_curate.train.config import FlamingoConfig
    from oxe_curate.train.loop.run import run_training
    from tests.train.models.roboflamingo.bases import write_base

    text = (bridge / "mixture.yaml").read_text() + "window: 4\nstride: 2\n"
    (tmp_path / "windows.yaml").write_text(text)
    options = TokenizeOptions(workers=1, progress=False)
    run_tokenize(tmp_path / "windows.yaml", str(bridge / "index"), str(tmp_path / "mixture"), options)
    config = TrainConfig(
        data=str(tmp_path / "mixture"), base=str(write_base(tmp_path / "base")), run=str(tmp_path / "run"),
        model="roboflamingo", adapter="none", flamingo=FlamingoConfig(head="lstm"), steps=2, batch_size=2,
        dtype="fp32", eval_samples=4, workers=1, log="none",
    )  # fmt: skip
    run_training(config, progress=False, device="cpu")
    result = evaluate_run(tmp_path / "run", episodes=1, device="cpu", progress=False)
    assert (result.how, result.whole.steps) == ("controller", 8)

    whole = export_run(tmp_path / "run", tmp_path / "whole", merge=True, device="cpu")
    policies = [Policy.load(path, device="cpu") for path in (tmp_path / "run", whole)]
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    first, other = (np.array([policy(frame, "lift") for frame in frames]) for policy in policies)
    np.testing.assert_allclose(first, other, atol=1e-6)
    again = policies[1](frames[0], "lift")
    assert np.abs(again - other[0]).max() > 0  # it remembers the episode
    policies[1].reset()
    np.testing.assert_array_equal(policies[1](frames[0], "lift"), other[0])
    policies[1].reset()
    served = over_http(policies[1], {"image": frames[0], "instruction": "lift"})
    np.testing.assert_array_equal(served, other[0])


def over_http(policy, payload):
    with serve.bind("127.0.0.1", 0) as sock:
        config = uvicorn.Config(serve.policy_application(policy), log_level="warning", ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        connection = http.client.HTTPConnection("127.0.0.1", sock.getsockname()[1], timeout=30)
        connection.request("POST", "/act", wire.dumps(payload), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        server.should_exit = True
        thread.join(10)
    assert answer.status == 200, body
    return wire.loads(body)
