"""filter, from shards on disk to the index."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from oxe_curate import config, registry
from oxe_curate.errors import ConfigError, CorruptError, CurateError, DataError, StorageError
from oxe_curate.filter import across
from oxe_curate.filter.criteria import Criteria
from oxe_curate.filter.pipeline import FilterOptions, FilterResult, run_filter
from oxe_curate.index import store
from oxe_curate.index.store import Index
from oxe_curate.mixture.members import members
from oxe_curate.mixture.spec import Mixture, resolve
from oxe_curate.rlds import tfrecord
from tests import bridge

MIXTURE = {"name": "m", "datasets": [{"name": "our_robot", "weight": 1.0}]}


def run(source: Path, out: Path, **options: Any) -> FilterResult:
    return run_filter(source, out, FilterOptions(progress=False, workers=options.pop("workers", 1), **options))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but index.json, which holds a duration."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "index.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    bridge.write(root)
    return root


def test_a_row_describes_the_episode_and_locates_its_frames(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path)
    assert result.summaries["bridge_dataset"].seen == result.summaries["bridge_dataset"].kept == 10
    table = pq.read_table(tmp_path / "bridge_dataset/1.0.0/train-00001-of-00002.parquet")
    row = table.to_pylist()[0]
    raw = bridge.episode(1, 7)  # episode 1 is the first of shard 1
    assert row["episode_id"] == "bridge_dataset/1.0.0/train/00001/00000"
    assert (row["num_steps"], row["source_steps"], row["kept"], row["reason"]) == (5, 7, True, None)
    assert (row["instruction"], row["frame_index"]) == ("lift the cup", [1, 2, 3, 4, 5])
    state = raw["steps"]["observation"]["state"]
    assert np.array_equal(np.float32(row["action"])[:, :6], (state[2:7] - state[1:6])[:, :6])
    data = (source / row["shard"]).read_bytes()
    for role, camera in (("primary", 0), ("secondary", 1)):
        frames = dict(row["cameras"])[role]
        assert len(frames) == 5
        for t, frame in zip(row["frame_index"], frames, strict=True):
            jpeg = data[frame["offset"] : frame["offset"] + frame["length"]]
            from oxe_curate.index.images import decode

            assert np.abs(decode(jpeg).astype(int) - bridge.colour(1, t, camera)).max() <= 3
    assert row["metrics"]["seconds"] == pytest.approx(5 / registry.load("bridge_dataset").control_hz)


def test_spans_lead_to_the_same_frames(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "exact", frames="exact")
    run(source, tmp_path / "span", frames="span")
    from oxe_curate.index.frame_pool import locate
    from oxe_curate.storage import Folder

    path = "bridge_dataset/1.0.0/train-00000-of-00002.parquet"
    exact, span = (pq.read_table(tmp_path / kind / path).to_pylist() for kind in ("exact", "span"))
    buffer = memoryview(Folder.of(source).read_bytes(exact[0]["shard"]))
    for one, other in zip(exact, span, strict=True):
        assert other["cameras"] == []
        for role, where in other["camera_spans"]:
            frames = locate(buffer, (where["offset"], where["length"]), other["source_steps"], role)
            assert dict(one["cameras"])[role] == [
                {"offset": o, "length": n} for o, n in frames[other["frame_index"]].tolist()
            ]


def test_dropped_episodes_keep_their_row_and_their_reason(tmp_path: Path) -> None:
    nan = bridge.episode(3)["steps"]["observation"]
    nan["state"][4, 2] = np.nan
    episodes = [
        bridge.episode(0), bridge.episode(1, text=""), bridge.episode(2, steps=2), bridge.episode(3, observation=nan),
    ]  # fmt: skip
    bridge.write(tmp_path / "in", episodes={"train": episodes}, shards=1)
    summary = run(tmp_path / "in", tmp_path / "out").summaries["bridge_dataset"]
    assert summary.dropped == {"no_language": [1, 6], "too_short": [1, 0], "not_finite": [1, 6]}
    rows = pq.read_table(next((tmp_path / "out").rglob("*.parquet"))).to_pylist()
    assert [r["reason"] for r in rows] == [None, "no_language", "too_short", "not_finite"]
    assert [len(r["action"]) for r in rows] == [6, 6, 0, 6]
    everything = Criteria(no_language=False, not_finite=False)
    kept = run(tmp_path / "in", tmp_path / "out2", criteria=everything).summaries["bridge_dataset"].kept
    assert kept == 3


def test_sub_splits_and_versions(source: Path, tmp_path: Path) -> None:
    summary = run(source, tmp_path, datasets=("bridge_dataset:1.0.0",), splits=("train[:50%]",)).summaries[
        "bridge_dataset"
    ]
    assert summary.seen == 4
    assert json.loads((tmp_path / "index.json").read_text())["datasets"]["bridge_dataset"]["splits"] == ["train[:50%]"]


def test_a_second_run_does_nothing_unless_the_options_change(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path).shards_done == 4
    before = tree(tmp_path) | {"index.json": (tmp_path / "index.json").read_bytes()}
    again = run(source, tmp_path)
    assert (again.shards_done, again.shards_kept) == (0, 4)
    assert tree(tmp_path) | {"index.json": (tmp_path / "index.json").read_bytes()} == before
    shorter = run(source, tmp_path, criteria=Criteria(too_short=5))
    assert (shorter.shards_done, shorter.summaries["bridge_dataset"].dropped["too_short"]) == (0, [2, 8])
    assert run(source, tmp_path, criteria=Criteria(black_level=3)).shards_done == 4


def test_missing_or_damaged_files_are_rewritten_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path)
    before = tree(tmp_path)
    files = sorted(tmp_path.rglob("*.parquet"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])
    (tmp_path / "index.json").unlink()
    assert run(source, tmp_path).shards_done == 2
    assert tree(tmp_path) == before


def test_the_files_do_not_depend_on_the_number_of_workers(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one", workers=1)
    run(source, tmp_path / "three", workers=3)
    assert tree(tmp_path / "one") == tree(tmp_path / "three")


def test_one_process_does_not_read_what_it_has_just_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def seen(*args: Any, real: Any = store.read_table) -> Any:
        read.append(args[1])
        return real(*args)

    monkeypatch.setattr(store, "read_table", seen)
    run(source, tmp_path / "one")
    assert read == []
    run(source, tmp_path / "two", workers=2)
    assert len(read) == len(set(read)) == 4  # each file once, though several columns are needed several times
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_first_damaged_record_is_named_whatever_its_damage(tmp_path: Path) -> None:
    strange = [bridge.episode(0), bridge.episode(1), bridge.episode(2, text="\u00fc" * 9), bridge.episode(3)]
    folder = bridge.write(tmp_path / "in", episodes={"train": strange}, shards=1)
    (shard,) = folder.glob("*tfrecord*")
    data = bytearray(shard.read_bytes())
    at = data.index(("\u00fc" * 9).encode())
    text = bytes(data[at : at + 18])
    while (found := data.find(text)) >= 0:  # not UTF-8, which only standardising notices
        data[found : found + 18] = b"\xff" * 18
    offsets = [offset for offset, _ in tfrecord.records(memoryview(bytes(data)))]
    data[offsets[3]] = 0x0B  # not an Example, which reading notices
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"record 2 at byte .* UTF-8"):
        run(tmp_path / "in", tmp_path / "out")
    summary = run(tmp_path / "in", tmp_path / "out", skip_corrupt=True).summaries["bridge_dataset"]
    assert (summary.seen, [line.split(" at byte")[0].split(": ")[1] for line in summary.corrupt]) == (
        2, ["record 2", "record 3"],
    )  # fmt: skip


def test_data_sets_can_be_added_one_by_one(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    bridge.write(tmp_path / "in", name="bridge_data_msr")
    run(tmp_path / "in", tmp_path / "out", datasets=("bridge_dataset",))
    result = run(tmp_path / "in", tmp_path / "out", datasets=("bridge_data_msr",))
    assert list(result.summaries) == ["bridge_data_msr", "bridge_dataset"]
    index = Index.open(tmp_path / "out")
    assert list(index.datasets) == ["bridge_data_msr", "bridge_dataset"]
    with pytest.raises(ConfigError, match="filtered with other criteria"):
        run(tmp_path / "in", tmp_path / "out", datasets=("bridge_dataset",), criteria=Criteria(too_short=9))


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda data: data[:-100], CorruptError, r"record \d at byte \d+: \d+ bytes announced"),
        (lambda data: data[:4] + bytes([data[4] ^ 1]) + data[5:], CorruptError, "record 0 at byte 0: its length fails"),
        (lambda data: b"", CorruptError, "lists 4 records, the file has 0"),
    ],
)
def test_a_damaged_shard_is_named_and_the_others_are_kept(
    tmp_path: Path, damage: Any, kind: type[CurateError], message: str
) -> None:
    folder = bridge.write(tmp_path / "in")
    shard = folder / "bridge_dataset-train.tfrecord-00000-of-00002"
    whole = shard.read_bytes()
    shard.write_bytes(damage(whole))
    with pytest.raises(kind, match=message) as caught:
        run(tmp_path / "in", tmp_path / "out")
    assert str(shard) in str(caught.value)
    assert "--skip-corrupt" in str(caught.value)
    assert not (tmp_path / "out/index.json").exists()
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 3
    skipped = run(tmp_path / "in", tmp_path / "out", skip_corrupt=True).summaries["bridge_dataset"]
    assert 6 <= skipped.seen < 10
    assert shard.name in skipped.corrupt[0]
    shard.write_bytes(whole)
    assert run(tmp_path / "in", tmp_path / "out").summaries["bridge_dataset"].corrupt == []


def test_a_failed_run_leaves_the_other_data_sets_in_the_index(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    folder = bridge.write(tmp_path / "in", name="bridge_data_msr")
    run(tmp_path / "in", tmp_path / "out", datasets=("bridge_dataset",))
    before = Index.open(tmp_path / "out").datasets
    next(folder.glob("*train*00000*")).write_bytes(b"damaged")
    with pytest.raises(CorruptError):
        run(tmp_path / "in", tmp_path / "out", datasets=("bridge_data_msr",))
    assert Index.open(tmp_path / "out").datasets == before
    assert not (tmp_path / "out/unfinished.json").exists()


def test_a_flipped_bit_in_the_data_is_found_with_verify(tmp_path: Path) -> None:
    folder = bridge.write(tmp_path / "in")
    shard = folder / "bridge_dataset-train.tfrecord-00000-of-00002"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 40] ^= 4  # inside an image
    shard.write_bytes(data)
    assert run(tmp_path / "in", tmp_path / "out").summaries["bridge_dataset"].seen == 10
    with pytest.raises(CorruptError, match="record 0 at byte 12: its data fails the checksum"):
        run(tmp_path / "in", tmp_path / "out", verify=True)
    summary = run(tmp_path / "in", tmp_path / "out", verify=True, skip_corrupt=True).summaries["bridge_dataset"]
    assert (summary.seen, len(summary.corrupt)) == (9, 1)


def test_a_missing_shard_is_named_before_any_work(tmp_path: Path) -> None:
    folder = bridge.write(tmp_path / "in")
    (folder / "bridge_dataset-val.tfrecord-00001-of-00002").unlink()
    with pytest.raises(DataError, match=r"val.tfrecord-00001-of-00002: the shard is missing"):
        run(tmp_path / "in", tmp_path / "out")


def test_a_data_set_without_a_card_is_an_error(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in", name="bridge_datast")
    message = r"no card for data set 'bridge_datast'. Did you mean 'bridge_dataset'.*--cards"
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "in", tmp_path / "out")


def test_a_users_card_is_used(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in", name="our_robot")
    card = (registry.CARDS_DIR / "bridge_orig.yaml").read_text()
    card = "\n".join(line for line in card.splitlines() if not line.startswith("aliases"))
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/our_robot.yaml").write_text(card.replace("name: bridge_orig", "name: our_robot"))
    assert run(tmp_path / "in", tmp_path / "out", cards=tmp_path / "cards").summaries["our_robot"].kept == 10
    # every later command finds the cards again
    assert run(tmp_path / "in", tmp_path / "out").shards_done == 0
    index = Index.open(tmp_path / "out")
    assert index.cards == tmp_path / "cards"
    (member,) = members(config.build(Mixture, MIXTURE, "m"), index)
    assert (member.card.name, member.dataset) == ("our_robot", "our_robot")
    (source,) = resolve(config.build(Mixture, MIXTURE, "m"), index, "m")
    assert source.dataset == "our_robot"
    (tmp_path / "cards").rename(tmp_path / "moved")
    for use in (members, lambda m, i: resolve(m, i, "m"), lambda m, i: run(tmp_path / "in", tmp_path / "out")):
        with pytest.raises(ConfigError, match="no longer exists; give its new place with --cards"):
            use(config.build(Mixture, MIXTURE, "m"), index)


def test_a_missing_source_or_output(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere: folder not found"):
        run(tmp_path / "nowhere", tmp_path / "out")
    bridge.write(tmp_path / "in")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        run(tmp_path / "in", tmp_path / "file")


def test_a_data_set_without_kept_episodes_is_still_indexed(tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    out = tmp_path / "out"
    summary = run(tmp_path / "in", out, criteria=Criteria(too_short=99)).summaries["bridge_dataset"]
    assert (summary.kept, summary.dropped["too_short"][0]) == (0, 10)
    assert Index.open(out).datasets["bridge_dataset"].summary.kept == 0


def test_an_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index\.json not found in .*; run `oxe-curate filter"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="index format 99 is not supported"):
        Index.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ConfigError, match="not a valid index file"):
        Index.open(tmp_path)


def test_the_real_bridge_shard(shared: Path, tmp_path: Path) -> None:
    result = run(shared / "data/rlds", tmp_path, datasets=("bridge_dataset",), verify=True)
    summary = result.summaries["bridge_dataset"]
    assert (summary.seen, summary.kept, summary.steps_kept, summary.dropped) == (50, 50, 400, {})
    rows = pq.read_table(tmp_path / "bridge_dataset/1.0.0/train-00000-of-00001.parquet").to_pylist()
    assert [r["num_steps"] for r in rows] == [8] * 25
    data = (shared / "data/rlds" / rows[0]["shard"]).read_bytes()
    for row in rows:
        for frame in dict(row["cameras"])["primary"]:
            assert data[frame["offset"] :][:3] == b"\xff\xd8\xff"
            assert data[frame["offset"] : frame["offset"] + frame["length"]][-2:] == b"\xff\xd9"


def test_episodes_are_compared_again_only_if_files_or_criteria_changed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    decide = across.decide
    monkeypatch.setattr(across, "decide", lambda *given: compared.append(1) or decide(*given))
    run(source, tmp_path)
    written = tree(tmp_path)
    run(source, tmp_path)
    assert len(compared) == 1
    assert tree(tmp_path) == written
    run(source, tmp_path, criteria=Criteria(duplicate=True))
    assert len(compared) == 2
    (tmp_path / "index.json").rename(tmp_path / "unfinished.json")  # as a killed run leaves it
    run(source, tmp_path, criteria=Criteria(duplicate=True))
    assert len(compared) == 3
