"""Sets that TFDS's own builders wrote, compared with what tfds reads from them: the same, or refused by name."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.core import features as tfds

from oxe_curate.errors import CurateError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.filter.screen import Criteria
from oxe_curate.index import images
from oxe_curate.inspection.draft import draft_card
from oxe_curate.inspection.report import inspect_dataset
from oxe_curate.rlds import example, tfrecord
from oxe_curate.rlds.dataset import RldsDataset, find
from oxe_curate.rlds.leaf import leaves
from oxe_curate.rlds.reader import RawEpisode, RecordReader
from oxe_curate.rlds.remote import ShardBytes
from oxe_curate.rlds.shards import open_shard
from oxe_curate.storage import Folder
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize

SETS = (
    "c_act2d", "c_array_record", "c_bfloat16", "c_bool_grip", "c_classlabel", "c_depth16", "c_empty_episode",
    "c_float16", "c_float64", "c_float64_bytes", "c_gray", "c_graypng", "c_int_act", "c_lang_empty", "c_lang_last",
    "c_meta", "c_nested", "c_no_flags", "c_none_dim", "c_none_img", "c_plain", "c_png", "c_ragged", "c_rgba",
    "c_seq_steps", "c_seqseq", "c_string_seq", "c_tensor_img_bytes", "c_tensor_string", "c_uint64", "c_uint8_act",
    "c_unicode", "d_few", "d_idle", "e_4d", "e_mixed_res", "e_scalars",
)  # fmt: skip
REFUSED = {("c_none_dim", "action"): r"the feature 'action' has the shape \(None,\)"}
"""Features that tfds itself cannot read."""


@pytest.fixture(scope="module")
def root(shared: Path) -> Path:
    folder = shared / "data/tfds"
    assert sorted(p.name for p in folder.iterdir()) == sorted(SETS)
    return folder


def dataset(root: Path, name: str) -> RldsDataset:
    return find(Folder.of(root), [name])[0]


def episodes(found: RldsDataset, reader: RecordReader) -> Iterator[tuple[str, ShardBytes, RawEpisode, bytes]]:
    """Key of the episode in expected.npz, its shard, what is read, and the record."""
    count: dict[str, int] = {}
    for shard in found.shards():
        opened = open_shard(found.source, shard.path)
        for offset, length in tfrecord.records(opened.buffer, opened.ensure):
            number = count[shard.split] = count.get(shard.split, -1) + 1
            read = reader.read(opened.buffer, offset, length, opened.ensure)
            opened.ensure(offset, length)
            yield f"{shard.split}|{number}", opened, read, bytes(opened.buffer[offset : offset + length])


def by_tfds(found: RldsDataset, record: bytes, key: str) -> list[Any]:
    """The values of a key by tfds's own numpy deserialiser, one per step; it returns a list of steps or arrays."""
    features = found.features
    if found.name == "c_none_dim":  # all but the feature that tfds cannot read
        below = {k: f for k, f in features["steps"].feature.items() if k != "action"}
        features = tfds.FeaturesDict({"steps": tfds.Dataset(below)})
    steps = features.deserialize_example_np(record)["steps"]
    parts = key.split("/")
    if isinstance(steps, dict):  # a Sequence of steps
        for part in parts:
            steps = steps[part]
        return list(steps)
    rows = list(steps)
    for part in parts:
        rows = [row[part] for row in rows]
    return rows


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def equal(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list | bytes) or (isinstance(theirs, np.ndarray) and theirs.dtype == object):
        return bool(plain(ours) == plain(theirs))
    a, b = np.asarray(ours), np.asarray(theirs)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", SETS)
def test_every_step_key_is_read_as_tfds_reads_it(root: Path, name: str) -> None:
    found = dataset(root, name)
    steps, _ = leaves(found.features)
    file = root / name / "expected.npz"
    expected = dict(np.load(file)) if file.exists() else {}
    compared = set()
    for key, leaf in steps.items():
        if leaf.kind == "image":
            continue
        if (name, key) in REFUSED:
            with pytest.raises(DataError, match=REFUSED[name, key]):
                RecordReader(found.features, [key])
            continue
        for at, _, episode, record in episodes(found, RecordReader(found.features, [key])):
            ours = episode.steps[key]
            theirs = expected.get(f"{at}|{key}")
            if theirs is None:
                rows = by_tfds(found, record, key)
                assert len(rows) == len(ours)
                assert all(equal(a, b) for a, b in zip(ours, rows, strict=True)), key
            elif theirs.dtype.kind == "S":
                assert ours.tolist() == theirs.tolist(), key
            else:
                assert equal(ours, theirs), key
            compared.add(f"{at}|{key}")
    pictures = {key for key, leaf in steps.items() if leaf.kind == "image"}
    assert {key for key in expected if key.split("|")[2] not in pictures} <= compared


@pytest.mark.parametrize("name", SETS)
def test_images_decode_to_rgb_of_the_upper_8_bits(root: Path, name: str) -> None:
    found = dataset(root, name)
    steps, _ = leaves(found.features)
    cameras = [key for key, leaf in steps.items() if leaf.kind == "image"]
    assert cameras or name == "c_tensor_img_bytes"
    for _, opened, episode, _ in episodes(found, RecordReader(found.features, [], cameras)):
        for key, span in episode.cameras.items():
            for offset, length in example.byte_ranges(opened.buffer, span, opened.ensure).tolist():
                data = opened.read(offset, length)
                ours = images.decode(data)
                stored = np.asarray(Image.open(io.BytesIO(data)))
                if stored.dtype.itemsize > 1:
                    stored = (stored >> 8).astype(np.uint8)
                if stored.ndim == 2:
                    stored = stored[..., None].repeat(3, axis=2)
                tolerance = 4 if bytes(data[:2]) == b"\xff\xd8" else 0  # two JPEG decoders
                assert np.abs(ours.astype(int) - stored[..., :3]).max() <= tolerance, key
                assert ours.shape[2] == 3


def card(folder: Path, found: RldsDataset) -> None:
    """A card with the set's first six action columns as pose and its last as gripper."""
    steps, _ = leaves(found.features)
    actions = sorted(key for key in steps if key.split("/")[0] == "action")
    wide = {"action/arm/pos": 3, "action/arm/rot": 3, "action/p": 6}
    wide["action"] = steps["action"].width or 7 if "action" in steps else 0
    columns = [(key, i) for key in actions for i in range(wide.get(key, 1))]

    def pieces(chosen: list[tuple[str, int]]) -> str:
        if not chosen:
            return "[{const: 0, width: 3}]"
        parts = [f"{{src: {k}, cols: [{i}, {i + 1}]}}" for k, i in chosen]
        return f"[{', '.join(parts)}]"

    rotation = columns[3:6] if len(columns) > 6 else []
    (folder / f"{found.name}.yaml").write_text(
        f"name: {found.name}\nrobot: x\narms: single\naction_encoding: EEF_POS\nwhy: test\n"
        "cameras:\n  observation/image: {role: primary}\n"
        "language: {keys: [language_instruction]}\n"
        f"recipes:\n  openvla:\n    xyz: {pieces(columns[:3])}\n    rpy: {pieces(rotation)}\n"
        f"    gripper: {pieces(columns[-1:])}\n"
    )


NOT_FILTERED = {
    "c_act2d": r"'action' has shape \(1, 7\) in .*, expected \(steps, columns\)",
    "c_none_dim": r"the feature 'action' has the shape \(None,\)",
    "c_tensor_img_bytes": r"camera 'observation/image' is not an image: features.json has uint8 of shape \(64, 64, 3\)",
}


def test_every_set_is_filtered_and_tokenized_or_refused_by_name(root: Path, tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    for name in SETS:
        card(cards, dataset(root, name))
    everything = Criteria(
        no_third_person_camera=False, no_language=False, duplicate=False, not_finite=False, too_short=1, bad_image=True
    )
    for name, why in NOT_FILTERED.items():
        with pytest.raises(CurateError, match=why) as caught:
            run_filter(root, tmp_path / name, FilterOptions((name,), criteria=everything, cards=cards, progress=False))
        assert "\n" not in str(caught.value)
    names = tuple(name for name in SETS if name not in NOT_FILTERED)
    options = FilterOptions(names, criteria=everything, cards=cards, progress=False, workers=1)
    summaries = run_filter(root, tmp_path / "index", options).summaries
    kept = {name: summary.kept for name, summary in summaries.items()}
    assert kept == {name: {"d_few": 1, "d_idle": 4}.get(name, 3) for name in names}
    mixture = {"name": "m", "datasets": [{"name": name, "weight": 1} for name in names], "validation": 0}
    (tmp_path / "m.yaml").write_text(json.dumps(mixture))
    result = run_tokenize(
        tmp_path / "m.yaml", tmp_path / "index", tmp_path / "out", TokenizeOptions(progress=False, workers=1)
    )
    assert {name for name, n in result.manifest["rows"]["train"].items() if n} == set(names)


@pytest.mark.parametrize("name", SETS)
def test_inspect_reads_every_set_and_drafts_a_card(root: Path, name: str) -> None:
    report = inspect_dataset(root / name)
    text = draft_card(report)
    if name == "c_none_dim":
        assert "no numeric action was found; not usable: action (has the shape (None,)" in text.replace("\n# ", " ")
    if name == "c_tensor_img_bytes":
        assert "observation/image: {role: none" in text
    if name == "c_string_seq":
        assert [t.key for t in report.texts if t.distinct] == ["language_instruction"]
