import json

import numpy as np
import pytest

pytest.importorskip("torch")

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.train.loop import saved
from oxe_curate.train.loop.saved import choose_key, open_saved
from tests.train import toy_policy as toy


@pytest.fixture
def run(tmp_path):
    return toy.write_run(tmp_path / "run", toy.write_base(tmp_path / "base"), checkpoints=(10, 5))


def test_a_run_opens_at_its_end_and_at_a_checkpoint(run):
    end, early = open_saved(run), open_saved(run, checkpoint=5)
    assert (end.kind, end.weights, end.checkpoint) == ("run", run / "adapter", None)
    assert (early.weights, early.checkpoint) == (run / "checkpoint-5" / "weights", 5)
    assert end.spec == early.spec
    assert end.spec.tokens[:2] == (31999, 31998)
    assert list(end.bounds) == ["bridge_dataset"]


def test_an_unfinished_run_names_its_checkpoints(tmp_path):
    base = toy.write_base(tmp_path / "base")
    run = toy.write_run(tmp_path / "run", base, finished=False, checkpoints=(20, 100))
    with pytest.raises(ConfigError, match=r"not finished.*--checkpoint: 20, 100"):
        open_saved(run)
    assert open_saved(run, checkpoint=20).checkpoint == 20
    fresh = toy.write_run(tmp_path / "fresh", base, finished=False)
    with pytest.raises(ConfigError, match="It has no checkpoint yet"):
        open_saved(fresh)


def test_a_missing_checkpoint_lists_the_known_ones(run):
    with pytest.raises(ConfigError, match=r"no checkpoint 7\. Known: 5, 10"):
        open_saved(run, checkpoint=7)


@pytest.mark.parametrize("name", ["dataset_statistics.json", "action_tokens.parquet", "mixture.yaml"])
def test_a_changed_or_missing_file_is_refused(run, name):
    file = run / name
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(DataError, match=f"{name}: differs from the .* trained with"):
        open_saved(run)
    file.unlink()
    with pytest.raises(DataError, match=f"{name}: not found"):
        open_saved(run)


def test_another_base_is_refused_and_a_moved_one_can_be_given(run, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="--base"):
        open_saved(run)
    assert open_saved(run, base=tmp_path / "moved").config.base == str(tmp_path / "moved")
    other = toy.write_base(tmp_path / "other", gain=3.0)
    with pytest.raises(DataError, match=r"differs from the base model that .* was trained on"):
        open_saved(run, base=other)


def test_a_folder_inside_a_run_points_to_the_run(run):
    with pytest.raises(ConfigError, match=r"run with --checkpoint 5"):
        open_saved(run / "checkpoint-5" / "weights")
    with pytest.raises(ConfigError, match=r"part of a run; use .*run$"):
        open_saved(run / "adapter")


def test_a_misspelled_folder_gets_the_closest_name(run):
    with pytest.raises(ConfigError, match="Did you mean 'run'"):
        open_saved(run.parent / "runn")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a run"):
        open_saved(tmp_path)


def test_a_damaged_record_is_reported_with_its_place(run):
    record = json.loads((run / "run.json").read_text())
    del record["contract"]["window"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"run.json: contract: expected the keys .*window"):
        open_saved(run)
    (run / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run.json:1: not valid JSON"):
        open_saved(run)


def test_the_spec_survives_json(run):
    spec = open_saved(run).spec
    text = json.dumps(saved.spec_to_json(spec))
    assert saved.spec_from_json(json.loads(text), "test") == spec
    given = json.loads(text) | {"resize": "lanczos3"}
    assert saved.spec_from_json(given, "test").resize == "lanczos3"
    del given["resize"]  # of an older run
    assert saved.spec_from_json(given, "test").resize == "bicubic"
    with pytest.raises(DataError, match=r"resize: expected bicubic or lanczos3, got 'nearest'"):
        saved.spec_from_json(given | {"resize": "nearest"}, "test")


def test_unnorm_keys_are_listed_when_none_or_a_wrong_one_is_given():
    with pytest.raises(ConfigError, match=r"2 data sets; .* with unnorm_key: bridge_orig, kuka"):
        choose_key(["bridge_orig", "kuka"], None, "run")
    with pytest.raises(ConfigError, match=r"unknown unnorm_key 'bridge_orgi'\. Did you mean 'bridge_orig'\? Known"):
        choose_key(["bridge_orig", "kuka"], "bridge_orgi", "run")
    assert choose_key(["kuka"], None, "run") == "kuka"


def published(folder, **change):
    data = {
        "model_type": "openvla", "norm_stats": toy.statistics("toy_robot"), "n_action_bins": 256,
        "image_sizes": [56, 56], "pad_to_multiple_of": 64, "text_config": {"vocab_size": 32064}, "gain": 1.0,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(data | change))
    return folder


def test_a_published_checkpoint_has_the_last_tokens_before_the_padding(tmp_path):
    found = open_saved(published(tmp_path / "7b"))
    assert (found.kind, found.weights, found.config.adapter) == ("published", None, "none")
    assert found.spec.tokens[0] == 31999
    assert found.spec.tokens[-1] == 31744
    assert found.spec.image_size == 56
    small = open_saved(published(tmp_path / "tiny", text_config={"vocab_size": 576}))
    assert (small.spec.tokens[0], small.spec.tokens[-1]) == (511, 256)


def test_dataset_statistics_override_norm_stats(tmp_path):
    folder = published(tmp_path / "7b")
    (folder / "dataset_statistics.json").write_text(json.dumps(toy.statistics("mine")))
    assert list(open_saved(folder).bounds) == ["mine"]


def test_a_base_without_statistics_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither dataset_statistics.json nor norm_stats"):
        open_saved(published(tmp_path / "prism", norm_stats=None))


def test_another_kind_of_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        open_saved(published(tmp_path / "llama", model_type="llama"))


def test_the_published_golden_case_opens(shared, tmp_path):
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "config.json").write_bytes((shared / "parity/openvla/a_config.json").read_bytes())
    found = open_saved(folder)
    assert np.sort(found.spec.tokens).tolist() == list(range(256, 512))


def test_a_files_hash_is_the_same_in_every_release(tmp_path):
    """A run that an earlier release wrote is opened and resumed by it."""
    assert saved.file_sha256(tmp_path / "config.json") is None
    (tmp_path / "config.json").write_bytes(b"{}\r\n")
    found = saved.file_sha256(tmp_path / "config.json")
    assert found == "e3566b3a06430868d71e9287dfd6c6c520a3da027aabea01951d407ee131dc2f"
