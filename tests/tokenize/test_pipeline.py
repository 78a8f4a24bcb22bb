"""tokenize, from the index to the shards, compared with the raw episodes and OpenVLA's rules."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from oxe_curate.actions.action_tokens import ActionTokens
from oxe_curate.actions.bins import ActionBins
from oxe_curate.actions.bounds import read_statistics
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.images import decode
from oxe_curate.mixture import sampling as samples
from oxe_curate.rlds.synthetic import write_dataset
from oxe_curate.tokenize.pipeline import TokenizeOptions, TokenizeResult, run_tokenize
from tests import bridge
from tests.structures import BRIDGE

SHARED_TEST = "data/rlds"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index")
    episodes = {"train": [bridge.episode(i, 6 + i % 5) for i in range(12)], "val": [bridge.episode(100)]}
    bridge.write(root / "in", episodes=episodes)
    bridge.write(
        root / "in", "bridge_data_msr", {"train": [bridge.episode(50 + i, text=f"task {i}") for i in range(4)]}
    )
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1))
    return root / "index"


def tokenize(index: Path, out: Path, text: str = "", **options: Any) -> TokenizeResult:
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f"{out.name}.yaml"
    path.write_text(text if "datasets" in text else f"name: m\ndatasets: [{{name: bridge_dataset, weight: 1}}]\n{text}")
    options = {"progress": False, "workers": 1, **options}
    return run_tokenize(path, index, out, TokenizeOptions(**options))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(out: Path, split: str = "*") -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob(f"{split}-*-of-*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_step_of_the_train_split_is_one_row(index: Path, tmp_path: Path) -> None:
    result = tokenize(index, tmp_path / "out", "validation: 0.2")
    found = rows(tmp_path / "out")
    expected = {
        f"bridge_dataset/1.0.0/train/{i % 2:05d}/{i // 2:05d}/{t:05d}" for i in range(12) for t in range(4 + i % 5)
    }
    assert {r["sample_id"] for r in found} == expected
    assert len(found) == len(expected)
    held = {r["episode_id"] for r in rows(tmp_path / "out", "validation")}
    assert held
    assert not held & {r["episode_id"] for r in rows(tmp_path / "out", "train")}
    counts = result.manifest["rows"]
    assert counts["train"]["bridge_dataset"] + counts["validation"]["bridge_dataset"] == len(expected)


def test_a_row_has_the_frame_and_the_action_of_its_step(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "image: {cameras: [primary, secondary]}")
    bounds = read_statistics(tmp_path / "out/dataset_statistics.json")["bridge_dataset"]
    for row in rows(tmp_path / "out"):
        shard, record = map(int, row["episode_id"].split("/")[-2:])
        seed, step = record * 2 + shard, row["step"] + 1  # the recipe drops the first raw step
        state = bridge.episode(seed, 6 + seed % 5)["steps"]["observation"]["state"]
        for role, camera in (("primary", 0), ("secondary", 1)):
            image = decode(row[f"image_{role}"]["bytes"]).astype(int)
            assert np.abs(image - bridge.colour(seed, step, camera)).max() <= 3
        (action,), (bins,) = np.float32(row["action"]), np.uint8(row["bins"])
        motion = np.append((state[step + 1] - state[step])[:6], np.float32(0))
        assert np.array_equal(bounds.normalize(motion)[:6], action[:6])
        assert np.array_equal(ActionBins().encode(action), bins)
        assert np.array_equal(np.float32(row["proprio"])[:6], state[step, :6])
        assert (row["instruction"], row["action_mask"]) == ("lift the cup", [True])


def test_rows_are_shuffled(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "validation: 0")
    names = [r["sample_id"] for r in rows(tmp_path / "out")]
    assert names != sorted(names)
    neighbours = sum(a.rsplit("/", 1)[0] == b.rsplit("/", 1)[0] for a, b in pairwise(names))
    assert neighbours < len(names) / 3


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_have_the_frames_and_actions_of_every_step(index: Path, tmp_path: Path, stride: int) -> None:
    tokenize(index, tmp_path / "out", f"window: 3\nstride: {stride}\nchunk: 4\nvalidation: 0")
    tokenize(index, tmp_path / "single", "validation: 0")
    single = {r["sample_id"]: r for r in rows(tmp_path / "single")}
    drawn = set()
    for row in rows(tmp_path / "out"):
        episode, step = row["episode_id"], row["step"]
        steps = sum(r["episode_id"] == episode for r in single.values())
        drawn.add((episode, step, steps))
        assert row["proprio"] == single[row["sample_id"]]["proprio"]
        for back, (image, valid) in enumerate(zip(row["image_primary"], row["observation_mask"], strict=True)):
            t = step - 2 + back
            assert valid == (t >= 0)
            assert (image["bytes"] if image else None) == (
                single[f"{episode}/{t:05d}"]["image_primary"]["bytes"] if t >= 0 else None
            )
        assert len(row["action"]) == len(row["bins"]) == len(row["action_mask"]) == 6
        for i, (action, bins, valid) in enumerate(zip(row["action"], row["bins"], row["action_mask"], strict=True)):
            t = step - 2 + i
            same = single[f"{episode}/{min(max(t, 0), steps - 1):05d}"]
            assert valid == (0 <= t < steps)
            assert (action, bins) == (same["action"][0], same["bins"][0])
    for episode in {e for e, _, _ in drawn}:
        ends = sorted(step for e, step, _ in drawn if e == episode)
        (steps,) = {s for e, _, s in drawn if e == episode}
        assert ends == list(range((steps - 1) % stride, steps, stride))


def test_the_actions_of_a_window_move_between_its_frames(index: Path, tmp_path: Path) -> None:
    """Fails if frames and actions are shifted by a step."""
    tokenize(index, tmp_path / "out", "window: 4\nstride: 2\nvalidation: 0")
    bounds = read_statistics(tmp_path / "out/dataset_statistics.json")["bridge_dataset"]
    for row in rows(tmp_path / "out"):
        shard, record = map(int, row["episode_id"].split("/")[-2:])
        seed = record * 2 + shard
        state = bridge.episode(seed, 6 + seed % 5)["steps"]["observation"]["state"]
        for image, action, valid in zip(row["image_primary"], row["action"], row["action_mask"], strict=True):
            if valid:
                raw = round(float(decode(image["bytes"])[..., 1].mean()) / 10)  # the colour encodes the raw step
                motion = np.append((state[raw + 1] - state[raw])[:6], np.float32(0))
                assert np.array_equal(bounds.normalize(motion)[:6], np.float32(action)[:6])


def test_the_manifest_counts_stored_frames(index: Path, tmp_path: Path) -> None:
    manifest = tokenize(
        index, tmp_path / "out", "window: 4\nstride: 2\nimage: {cameras: [primary, secondary]}"
    ).manifest
    for split in ("train", "validation"):
        found = rows(tmp_path / "out", split)
        frames = [
            (row["episode_id"], row["step"] - 3 + i, role, image["bytes"])
            for row in found for role in ("primary", "secondary")
            for i, image in enumerate(row[f"image_{role}"]) if image
        ]  # fmt: skip
        different = {frame[:3]: len(frame[3]) for frame in frames}
        assert manifest["frames"][split] == {
            "stored": len(frames), "distinct": len(different),
            "bytes": sum(len(data) for *_, data in frames), "distinct_bytes": sum(different.values()),
        }  # fmt: skip
    steps = [4 + i % 5 for i in range(12)]
    counted = manifest["frames"]
    assert sum(counted[s]["stored"] for s in counted) == 2 * samples.stored_frames(np.array(steps), 4, 2).sum()
    assert sum(counted[s]["distinct"] for s in counted) == 2 * sum(steps)
    assert "frames" not in tokenize(index, tmp_path / "single").manifest


def test_a_weight_is_the_expected_copies_of_a_window(index: Path, tmp_path: Path) -> None:
    tokenize(
        index, tmp_path / "out", "name: m\ndatasets: [{name: bridge_orig, weight: 3}]\nwindow: 4\nstride: 4\n"
        "validation: 0",
    )  # fmt: skip
    names = [row["sample_id"] for row in rows(tmp_path / "out")]
    windows = {name.split("#")[0] for name in names}
    assert len(windows) == sum(-(-(4 + i % 5) // 4) for i in range(12))
    assert sorted(names) == sorted(name + end for name in windows for end in ("", "#1", "#2"))


def test_row_groups_and_shards_shrink_with_the_window(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "window: 100\nvalidation: 0")
    (path,) = (tmp_path / "out").glob("train-*")
    footer = pq.read_metadata(path)
    assert {footer.row_group(i).num_rows for i in range(footer.num_row_groups - 1)} == {3}
    tokenize(index, tmp_path / "one", "validation: 0", shard_bytes=20000)
    tokenize(index, tmp_path / "five", "window: 5\nvalidation: 0", shard_bytes=20000)
    assert len(list((tmp_path / "five").glob("train-*"))) > 2 * len(list((tmp_path / "one").glob("train-*")))


def test_weights_are_expected_copies_and_the_manifest_has_the_shares(index: Path, tmp_path: Path) -> None:
    text = (
        "name: m\ndatasets:\n- {name: bridge_orig, weight: 2.5}\n- {name: bridge_data_msr, weight: 0.5}\nvalidation: 0"
    )
    result = tokenize(index, tmp_path / "out", text)
    found = rows(tmp_path / "out")
    steps = {"bridge_orig": sum(4 + i % 5 for i in range(12)), "bridge_data_msr": 4 * 6}
    for name, weight in (("bridge_orig", 2.5), ("bridge_data_msr", 0.5)):
        drawn = [r["sample_id"] for r in found if r["dataset"] == name]
        assert abs(len(drawn) - weight * steps[name]) < 12
        assert len({s.split("#")[0] for s in drawn}) <= steps[name]
        assert len(set(drawn)) == len(drawn)
        share = result.manifest["share"][name]
        assert share["weight"] == weight
        assert abs(share["asked"] - share["drawn"]) < 0.05
    assert {r["instruction"] for r in found if r["dataset"] == "bridge_data_msr"} <= {f"task {i}" for i in range(4)}
    assert set(json.loads((tmp_path / "out/dataset_statistics.json").read_text())) == set(steps)


def test_statistics_cover_all_indexed_splits_with_openvla_keys(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out")
    (entry,) = json.loads((tmp_path / "out/dataset_statistics.json").read_text()).values()
    assert set(entry) == {"action", "proprio", "num_transitions", "num_trajectories"}
    assert set(entry["action"]) == {"mean", "std", "max", "min", "q01", "q99", "mask"}
    assert entry["action"]["mask"] == [True] * 6 + [False]
    states = [bridge.episode(i, 6 + i % 5)["steps"]["observation"]["state"] for i in range(12)]
    states.append(bridge.episode(100)["steps"]["observation"]["state"])
    motion = np.concatenate([(s[2:] - s[1:-1])[:, :6] for s in states])
    assert (entry["num_transitions"], entry["num_trajectories"]) == (len(motion), 13)
    for key, q in (("q01", 0.01), ("q99", 0.99)):
        assert np.allclose(entry["action"][key][:6], np.quantile(motion, np.float64(q), axis=0), rtol=1e-7)
    assert np.allclose(entry["action"]["mean"][:6], motion.astype(np.float64).mean(axis=0), rtol=1e-9)


def test_published_statistics_can_be_used(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "one")
    published = json.loads((tmp_path / "one/dataset_statistics.json").read_text())
    for key in ("q99", "max"):
        published["bridge_dataset"]["action"][key] = [1.0] * 7
    (tmp_path / "stats.json").write_text(json.dumps({"bridge_orig": published["bridge_dataset"]}))
    tokenize(index, tmp_path / "two", statistics=tmp_path / "stats.json")
    found = json.loads((tmp_path / "two/dataset_statistics.json").read_text())["bridge_dataset"]
    assert found["action"]["q99"] == [1.0] * 7
    (tmp_path / "stats.json").write_text(json.dumps({"kuka": published["bridge_dataset"]}))
    with pytest.raises(ConfigError, match="bridge_dataset"):
        tokenize(index, tmp_path / "three", statistics=tmp_path / "stats.json")


def test_the_output_does_not_depend_on_the_number_of_workers(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "one", shard_bytes=8000)
    tokenize(index, tmp_path / "two", shard_bytes=8000, workers=3)
    assert len(list((tmp_path / "one").glob("train-*"))) > 3
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    tokenize(index, tmp_path / "other", "seed: 1", shard_bytes=8000)
    assert tree(tmp_path / "one") != tree(tmp_path / "other")


def test_an_interrupted_run_resumes_to_the_same_bytes(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenize(index, out, shard_bytes=8000)
    before = tree(out)
    shards = sorted(out.glob("train-*"))
    shards[0].unlink()
    shards[1].write_bytes(b"half")
    (out / "manifest.json").unlink()
    result = tokenize(index, out, shard_bytes=8000)
    assert result.shards_done == 2
    assert tree(out) == before
    assert tokenize(index, out, shard_bytes=8000).shards_done == 0
    assert tree(out) == before


def test_another_mixture_does_not_overwrite_a_finished_one(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", shard_bytes=8000)
    with pytest.raises(ConfigError, match=r"contains another finished mixture.*--overwrite"):
        tokenize(index, tmp_path / "out", "seed: 1", shard_bytes=20000)
    tokenize(index, tmp_path / "out", "seed: 1", shard_bytes=20000, overwrite=True)
    names = {p.name for p in (tmp_path / "out").glob("*.parquet")} - {"action_tokens.parquet"}
    assert names == set(json.loads((tmp_path / "out/manifest.json").read_text())["outputs"]) - {
        "action_tokens.parquet", "dataset_statistics.json", "mixture.yaml",
    }  # fmt: skip


def test_the_manifest_has_the_hash_of_every_file(index: Path, tmp_path: Path) -> None:
    import hashlib

    manifest = tokenize(index, tmp_path / "out").manifest
    for name, entry in manifest["outputs"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    (report,) = manifest["round_trip"].values()
    widths = [d["interval"] for d in report["dimensions"]]
    for dimension, width in zip(report["dimensions"][:6], widths[:6], strict=True):
        assert dimension["unclipped"]["largest_error"] <= width / 2 * 1.01


def test_resized_frames(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "image: {size: 32, quality: 95}")
    for row in rows(tmp_path / "out"):
        image = decode(row["image_primary"]["bytes"])
        shard, record = map(int, row["episode_id"].split("/")[-2:])
        assert image.shape == (32, 32, 3)
        assert np.abs(image.astype(int) - bridge.colour(record * 2 + shard, row["step"] + 1, 0)[:1, :1]).max() <= 4


def test_a_shard_without_episodes_is_empty(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "image: {size: 32}\nvalidation: 0", shard_bytes=5000)
    counts = [pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob("train-*")]
    assert min(counts) == 0
    assert sum(counts) == sum(4 + i % 5 for i in range(12))


def test_frames_located_late_are_the_same(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    found = []
    for frames in ("exact", "span"):
        run_filter(tmp_path / "in", tmp_path / frames, FilterOptions(progress=False, workers=1, frames=frames))  # type: ignore[arg-type]
        for weight in (1.0, 0.2):
            tokenize(
                tmp_path / frames,
                tmp_path / f"{frames}{weight}",
                f"name: m\ndatasets: [{{name: bridge_v2, weight: {weight}}}]",
            )
            found.append(rows(tmp_path / f"{frames}{weight}"))
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert 0 < len(found[1]) < len(found[0])


def test_two_versions_of_a_data_set_are_not_mixed(tmp_path: Path) -> None:
    version = bridge.write(tmp_path / "in")
    run_filter(tmp_path / "in", tmp_path / "index", FilterOptions(progress=False, workers=1))
    write_dataset(version.parents[1], "bridge_dataset", "2.0.0", BRIDGE, {"train": [bridge.episode(0)]})
    run_filter(tmp_path / "in", tmp_path / "index", FilterOptions(progress=False, workers=1))
    assert (tmp_path / "index/bridge_dataset/1.0.0").is_dir()
    tokenize(tmp_path / "index", tmp_path / "out")
    assert {row["episode_id"] for row in rows(tmp_path / "out")} == {"bridge_dataset/2.0.0/train/00000/00000"}


def test_a_missing_source_shard_is_reported(tmp_path: Path) -> None:
    folder = bridge.write(tmp_path / "in")
    run_filter(tmp_path / "in", tmp_path / "index", FilterOptions(progress=False, workers=1))
    shard = folder / "bridge_dataset-train.tfrecord-00000-of-00002"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(Exception, match=shard.name):
        tokenize(tmp_path / "index", tmp_path / "out")
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=rf"{shard.name}.*filter"):
        tokenize(tmp_path / "index", tmp_path / "out")


def test_readers_open_the_shards(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize(index, tmp_path / "out", "validation: 0")
    files = str(tmp_path / "out/train-*.parquet")
    frame = pl.read_parquet(files)
    assert frame["bins"].dtype == pl.List(pl.Array(pl.UInt8, 7))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(frame)
    assert loaded[0]["image_primary"].size == (16, 16)
    assert loaded[0]["bins"] == frame["bins"][0].to_list()
    streamed = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert next(iter(streamed.shuffle(seed=0, buffer_size=8)))["image_primary"].size == (16, 16)


def test_readers_open_windows_with_missing_frames(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenize(index, tmp_path / "out", "window: 3\nvalidation: 0")
    files = str(tmp_path / "out/train-*.parquet")
    frame = pl.read_parquet(files).filter(pl.col("step") == 0)
    assert {tuple(image is None for image in window) for window in frame["image_primary"]} == {(True, True, False)}
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    streamed = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    for row in (*loaded, *streamed.shuffle(seed=0, buffer_size=8)):
        sizes = [image.size if image else None for image in row["image_primary"]]
        assert sizes == [(16, 16) if valid else None for valid in row["observation_mask"]]


def test_images_are_plain_and_uncompressed(index: Path, tmp_path: Path) -> None:
    tokenize(index, tmp_path / "out", "window: 2")
    (path,) = (tmp_path / "out").glob("train-*")
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    image = columns["image_primary.list.element.bytes"]
    assert image.compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in image.encodings
    assert columns["action.list.element.list.element"].compression == "ZSTD"


def test_the_real_bridge_shard_and_the_real_llama_tokenizer(shared: Path, tmp_path: Path) -> None:
    run_filter(
        shared / SHARED_TEST,
        tmp_path / "index",
        FilterOptions(("bridge_dataset",), ("train",), progress=False, workers=1),
    )
    text = "name: m\ndatasets: [{name: bridge_orig, weight: 1}]\nvalidation: 0"
    tokenize(tmp_path / "index", tmp_path / "out", text, tokenizer=shared / "data/tokenizers/llama2/tokenizer.model")
    (entry,) = json.loads((tmp_path / "out/dataset_statistics.json").read_text()).values()
    assert (entry["num_transitions"], entry["num_trajectories"]) == (200, 25)
    found = rows(tmp_path / "out")
    assert len(found) == 200
    assert decode(found[0]["image_primary"]["bytes"]).shape == (64, 64, 3)
    tokens = ActionTokens.read(tmp_path / "out/action_tokens.parquet")
    action = np.float32([r["action"][0] for r in found])
    # OpenVLA's ActionTokenizer: clip, digitize against 256 edges, vocabulary size minus the digit
    digits = np.digitize(np.clip(action, -1, 1), np.linspace(-1, 1, 256))
    ids = tokens.ids(np.uint8([r["bins"][0] for r in found]))
    assert np.array_equal(ids, 32000 - digits)
    assert (ids.min(), ids.max()) == (31744, 31999)
    # its normalisation, written out
    raw = np.float32(
        [a for r in pq.read_table(next((tmp_path / "index").rglob("*.parquet"))).to_pylist() for a in r["action"]]
    )
    low, high = (np.quantile(raw, np.float64(q), axis=0) for q in (0.01, 0.99))
    assert np.allclose(entry["action"]["q01"], low, rtol=1e-6, atol=1e-9)
    scaled = np.clip(2 * (raw[:, :6] - low[:6]) / (high[:6] - low[:6] + 1e-8) - 1, -1, 1)
    assert np.allclose(np.sort(scaled, axis=0), np.sort(action[:, :6], axis=0), atol=1e-5)


def test_rules_require_a_tokenizer_and_a_corpus(index: Path, tmp_path: Path, shared: Path) -> None:
    with pytest.raises(ConfigError, match="--rule reserved needs a tokenizer"):
        tokenize(index, tmp_path / "out", rule="reserved")
    llama = shared / "data/tokenizers/llama2/tokenizer.model"
    with pytest.raises(ConfigError, match="--corpus"):
        tokenize(index, tmp_path / "out", tokenizer=llama, rule="counts")
    (tmp_path / "text.txt").write_text("the robot picks up the red block and puts it into the drawer\n" * 50)
    result = tokenize(index, tmp_path / "out", tokenizer=llama, rule="counts", corpus=(tmp_path / "text.txt",))
    assert result.manifest["tokens"]["rule"] == "counts"
    assert len(result.tokens.report()) == 256


def test_other_action_tokens_need_overwrite(index: Path, tmp_path: Path, shared: Path) -> None:
    out = tmp_path / "out"
    tokenize(index, out)
    before = tree(out)
    llama3 = shared / "data/tokenizers/llama3"
    with pytest.raises(ConfigError, match=r"finished with other action tokens .*--overwrite"):
        tokenize(index, out, tokenizer=llama3)
    assert tree(out) == before
    result = tokenize(index, out, tokenizer=llama3, overwrite=True)
    assert (result.shards_done, result.manifest["tokens"]["vocabulary_size"]) == (0, 128000)
    after = tree(out)
    assert {name for name in before if before[name] != after[name]} == {"action_tokens.parquet", "manifest.json"}
    (out / "manifest.json").unlink()
    assert tokenize(index, out).manifest["tokens"]["vocabulary_size"] == 32000


def test_a_published_mixture_is_given_by_name(index: Path, tmp_path: Path) -> None:
    options = TokenizeOptions(workers=1, progress=False)
    result = run_tokenize("openvla_bridge", index, tmp_path / "out", options)
    assert result.manifest["mixture"] == "openvla_bridge"
    with pytest.raises(ConfigError, match="Did you mean 'openvla_bridge'"):
        run_tokenize("openvla_bridg", index, tmp_path / "out", options)
    with pytest.raises(
        ConfigError, match=r"openvla_rtx.yaml: datasets: 'fractal\w+' is not in the index .* Run filter"
    ):
        run_tokenize("openvla_rtx", index, tmp_path / "out", options)


def test_the_row_order_of_a_shard_is_the_same_in_every_release(index: Path, tmp_path: Path) -> None:
    text = (
        "name: m\ndatasets: [{name: bridge_orig, weight: 1.5}, {name: bridge_data_msr, weight: 0.25}]\nseed: 3\n"
        "validation: 0.2\nwindow: 4\nstride: 4\nimage: {size: 16}"
    )
    tokenize(index, tmp_path / "out", text, shard_bytes=20_000)
    found = {}
    for path in sorted((tmp_path / "out").glob("*-*-of-*.parquet")):
        ids = (name.split("/") for name in pq.read_table(path)["sample_id"].to_pylist())
        found[path.stem] = [f"{name[7:]} {shard[4:]}/{record[3:]} {step[3:]}" for name, *_, shard, record, step in ids]
    assert found == {
        "train-00000-of-00002": [
            "dataset 1/04 07#1", "dataset 0/02 03", "dataset 1/04 03", "dataset 1/05 00", "data_msr 0/01 01",
            "dataset 1/02 03#1", "dataset 1/05 04", "dataset 1/04 03#1", "dataset 0/00 03", "dataset 0/02 07",
            "dataset 0/02 03#1", "dataset 1/04 07", "dataset 0/00 03#1", "dataset 1/02 03",
        ],
        "train-00001-of-00002": [
            "dataset 0/01 01", "dataset 0/01 05", "dataset 1/01 02", "dataset 1/00 04", "dataset 1/00 00",
            "dataset 0/03 04", "dataset 0/03 00", "dataset 1/01 06#1", "dataset 0/05 03", "dataset 1/01 06",
            "dataset 1/00 00#1",
        ],
        "validation-00000-of-00001": [
            "dataset 0/04 06", "dataset 0/04 02", "dataset 1/03 01", "data_msr 0/00 05", "dataset 1/03 05",
        ],
    }  # fmt: skip
