"""Image-text sources: from Parquet files to text shards, and the messages for errors in them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.images import decode
from oxe_curate.mixture import sampling as samples
from oxe_curate.mixture.spec import TextEntry, read_mixture
from oxe_curate.mixture.texts import open_text
from oxe_curate.tokenize import show
from oxe_curate.tokenize.pipeline import TokenizeOptions, TokenizeResult, run_tokenize
from oxe_curate.ui.tables import console
from tests import bridge

MIXTURE = "name: m\ndatasets: [{name: bridge_dataset, weight: 1}]\n"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index")
    bridge.write(root / "in", episodes={"train": [bridge.episode(i) for i in range(4)]})
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1))
    return root / "index"


def image_bytes(seed: int, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), (seed * 7 % 256, 30, 60)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def write(path: Path, count: int = 10, first: int = 0, **columns: Any) -> Path:
    """A file of `count` rows; a column given as None is omitted."""
    data = {
        "image": [{"bytes": image_bytes(first + i), "path": None} for i in range(count)],
        "question": [f"what is {first + i}?" for i in range(count)],
        "answer": [f"number {first + i}" for i in range(count)],
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: v for k, v in data.items() if v is not None}), path, row_group_size=4)
    return path


def tokenize(index: Path, folder: Path, text: str, out: str = "out", **options: Any) -> TokenizeResult:
    (folder / "m.yaml").write_text(MIXTURE + text)
    options = {"progress": False, "workers": 1, **options}
    return run_tokenize(folder / "m.yaml", index, folder / out, TokenizeOptions(**options))


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("text-*-of-*.parquet")) for row in pq.read_table(path).to_pylist()]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_folder_of_questions_is_added_with_one_line(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa/a.parquet", 10)
    write(tmp_path / "vqa/more/b.parquet", 5, first=10)
    result = tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa, weight: 1}]")
    found = rows(tmp_path / "out")
    assert sorted(r["sample_id"] for r in found) == [
        *(f"vqa/a.parquet/{i:08d}" for i in range(10)),
        *(f"vqa/more/b.parquet/{i:08d}" for i in range(5)),
    ]
    assert [r["sample_id"] for r in found] != sorted(r["sample_id"] for r in found)
    for row in found:
        number = int(row["answer"].removeprefix("number "))
        assert (row["dataset"], row["question"]) == ("vqa", f"what is {number}?")
        assert row["image"] == {"bytes": image_bytes(number), "path": None}
    assert result.manifest["rows"]["text"] == {"vqa": 15}
    assert "text-00000-of-00001.parquet" in result.manifest["outputs"]
    assert json.loads((tmp_path / "out/manifest.json").read_text())["texts"]["vqa"]["rows"] == 15


def test_a_source_is_a_path_a_uri_or_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "vqa/a.parquet")
    for path in (
        "vqa",
        "vqa/a.parquet",
        str(tmp_path / "vqa"),
        f"file://{tmp_path}/vqa",
        f"file://{tmp_path}/vqa/a.parquet",
    ):
        source = open_text(TextEntry(name="vqa", path=path, weight=1), tmp_path, "m")
        assert (source.folder.uri, [file.path for file in source.files]) == (str(tmp_path / "vqa"), ["a.parquet"])


def test_without_texts_nothing_is_added(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa.parquet")
    tokenize(index, tmp_path, "", "plain")
    tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parquet, weight: 1}]")
    plain, mixed = tree(tmp_path / "plain"), tree(tmp_path / "out")
    assert set(mixed) - set(plain) == {"text-00000-of-00001.parquet"}
    assert {n for n in plain if plain[n] != mixed[n]} == {"mixture.yaml", "manifest.json"}
    manifest = json.loads(plain["manifest.json"])
    assert set(manifest["rows"]) == {"train", "validation"}
    assert "texts" not in manifest
    assert "texts" not in manifest["inputs"]


def test_captions_and_columns_of_other_names(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "caption.parquet", question=None, answer=None, caption=[f"an image of {i}" for i in range(10)])
    write(
        tmp_path / "other.parquet", image=None, question=None, answer=None,
        jpg=pa.array([image_bytes(i, "JPEG") for i in range(10)], pa.large_binary()),
        q=pa.array(["what?"] * 10).dictionary_encode(), a=[str(i) for i in range(10)],
    )  # fmt: skip
    tokenize(
        index, tmp_path, "texts:\n- {name: captions, path: caption.parquet, weight: 1}\n"
        "- {name: other, path: other.parquet, weight: 1, columns: {image: jpg, question: q, answer: a}}\n",
    )  # fmt: skip
    found = rows(tmp_path / "out")
    texts = {(r["dataset"], r["question"], r["answer"]) for r in found}
    assert texts == {("captions", "", f"an image of {i}") for i in range(10)} | {
        ("other", "what?", str(i)) for i in range(10)
    }
    for row in found:
        if row["dataset"] == "other":
            assert row["image"]["bytes"] == image_bytes(int(row["answer"]), "JPEG")


def test_a_weight_is_the_expected_copies_of_a_row(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa.parquet", 200)
    manifest = tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parquet, weight: 1.5}]\nseed: 3").manifest
    found = rows(tmp_path / "out")
    expected = samples.copies(1.5, 3, "vqa/vqa.parquet", 200)
    assert len({r["sample_id"] for r in found}) == len(found) == expected.sum()
    assert abs(len(found) - 300) < 30
    for i, times in enumerate(expected.tolist()):
        ids = {r["sample_id"] for r in found if r["answer"] == f"number {i}"}
        assert ids == {f"vqa/vqa.parquet/{i:08d}" + (f"#{c}" if c else "") for c in range(times)}
    entry = manifest["texts"]["vqa"]
    robot = sum(manifest["rows"]["train"].values())
    assert entry == {"weight": 1.5, "rows": 200, "drawn": len(found), "share": len(found) / (len(found) + robot)}
    tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parquet, weight: 0.1}]\nseed: 3", "less")
    assert 0 < len(rows(tmp_path / "less")) < 50


def test_images_are_resized_as_robot_frames_are(index: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees
    lying = Image.fromarray(np.repeat(np.uint8([[[250, 0, 0]], [[0, 0, 250]]]), 64, 1).repeat(32, 0))
    turned = io.BytesIO()
    lying.save(turned, "JPEG", exif=exif, quality=95)
    encoded = [
        image_bytes(1, "JPEG", "CMYK"),
        image_bytes(1, "PNG", "P"),
        image_bytes(1, "JPEG", "L"),
        turned.getvalue(),
    ]
    write(tmp_path / "vqa.parquet", 4, image=[{"bytes": data, "path": "x"} for data in encoded])
    tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parquet, weight: 1}]\nimage: {size: 32}")
    found = {r["answer"]: decode(r["image"]["bytes"]) for r in rows(tmp_path / "out")}
    assert {image.shape for image in found.values()} == {(32, 32, 3)}
    assert np.abs(found["number 0"][16, 16].astype(int) - [7, 30, 60]).max() <= 6
    upright = found["number 3"][16].astype(int)  # blue left, red right: turned by 90 degrees clockwise
    assert upright[2, 2] > 200 > upright[2, 0] + 150
    assert upright[29, 0] > 200 > upright[29, 2] + 150


def test_shards_are_bounded_and_two_runs_are_identical(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa/a.parquet", 60)
    write(tmp_path / "vqa/b.parquet", 3, first=60)
    text = "texts: [{name: vqa, path: vqa, weight: 1}]"
    tokenize(index, tmp_path, text, "one", shard_bytes=1000)
    shards = sorted((tmp_path / "one").glob("text-*"))
    counts = [pq.read_metadata(path).num_rows for path in shards]
    assert sum(counts) == 63
    assert 4 < len(counts) <= 12
    assert max(counts) < 2.5 * min(counts)
    tokenize(index, tmp_path, text, "two", shard_bytes=1000, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len({r["sample_id"] for r in rows(tmp_path / "one")}) == 63


def test_a_row_group_larger_than_a_shard_is_split(index: Path, tmp_path: Path) -> None:
    data = pa.table({"image": [image_bytes(i) for i in range(50)], "caption": [str(i) for i in range(50)]})
    pq.write_table(data, tmp_path / "one.parquet")
    tokenize(index, tmp_path, "texts: [{name: c, path: one.parquet, weight: 1}]", shard_bytes=1000)
    assert len(list((tmp_path / "out").glob("text-*"))) > 3
    assert sorted(int(r["answer"]) for r in rows(tmp_path / "out")) == list(range(50))
    for row in rows(tmp_path / "out"):
        assert row["image"]["bytes"] == image_bytes(int(row["answer"]))
        assert row["sample_id"] == f"c/one.parquet/{int(row['answer']):08d}"


def test_texts_can_be_added_later_and_an_interrupted_run_resumes(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa.parquet", 40)
    text = "texts: [{name: vqa, path: vqa.parquet, weight: 1}]"
    first = tokenize(index, tmp_path, "", shard_bytes=1000)
    result = tokenize(index, tmp_path, text, shard_bytes=1000)
    assert result.shards_kept == first.shards_done
    assert result.shards_done == len(list((tmp_path / "out").glob("text-*"))) > 1
    before = tree(tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out" / min(n for n in before if n.startswith("text-"))).unlink()
    assert tokenize(index, tmp_path, text, shard_bytes=1000).shards_done == 1
    assert tree(tmp_path / "out") == before
    write(tmp_path / "vqa.parquet", 40, first=1)
    with pytest.raises(ConfigError, match="another finished mixture"):
        tokenize(index, tmp_path, text, shard_bytes=1000)
    tokenize(index, tmp_path, text, shard_bytes=1000, overwrite=True)
    assert {r["answer"] for r in rows(tmp_path / "out")} == {f"number {i}" for i in range(1, 41)}


def test_the_format_of_a_text_shard(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "vqa.parquet", 300)
    tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parquet, weight: 1}]")
    path = tmp_path / "out/text-00000-of-00001.parquet"
    footer = pq.read_metadata(path)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [256, 44]
    columns = {c.path_in_schema: c for c in map(footer.row_group(0).column, range(footer.num_columns))}
    assert columns["image.bytes"].compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in columns["image.bytes"].encodings
    assert pq.read_schema(path).field("image").type.field("bytes").type == pa.binary()
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["image"].size == (24, 16)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"answer": None, "anwser": ["x"] * 10}, ConfigError,
         r"vqa.parquet has a column 'question' but no 'answer'. Did you mean 'anwser'?"),
        ({"question": None, "answer": None, "captoin": ["x"] * 10}, ConfigError, "Did you mean 'captoin'?"),
        ({"image": None, "imgae": [b"x"] * 10}, ConfigError, "has no column 'image'. Did you mean 'imgae'?"),
        ({"caption": ["x"] * 10}, ConfigError, "has questions and captions. Choose with"),
        ({"answer": [["a", "b"]] * 10}, DataError,
         "column 'answer': expected text, got list<element: string>; make one row per text"),
        ({"image": ["x.jpg"] * 10}, DataError,
         "column 'image': expected images (struct<bytes, path> or binary), got string"),
        ({"answer": [*["x"] * 6, " ", *["x"] * 3]}, DataError, "vqa.parquet: row 6: 'answer' is empty; remove the row"),
        ({"question": [*["x"] * 7, None, *["x"] * 2]}, DataError, "row 7: 'question' is null"),
        ({"image": [*[image_bytes(1)] * 3, b"no image_bytes", *[image_bytes(1)] * 6]}, DataError,
         "row 3: cannot decode the image"),
        ({"image": [{"bytes": None, "path": "x"}, *[{"bytes": image_bytes(1), "path": None}] * 9]}, DataError,
         "row 0: no image bytes; images given by a path must be embedded"),
    ],
)  # fmt: skip
def test_an_error_in_a_source_names_it(
    index: Path, tmp_path: Path, columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    write(tmp_path / "vqa.parquet", **columns)
    with pytest.raises(error) as caught:
        tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parquet, weight: 1}]")
    assert message in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_missing_source_is_reported(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa.parquet")
    with pytest.raises(
        ConfigError, match=r"m\.yaml: texts: 'vqa': .*no such file or folder. Did you mean 'vqa.parquet'"
    ):
        tokenize(index, tmp_path, "texts: [{name: vqa, path: vqa.parqet, weight: 1}]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: no \.parquet file found"):
        tokenize(index, tmp_path, "texts: [{name: vqa, path: empty, weight: 1}]")
    (tmp_path / "empty/x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"x\.parquet: not a Parquet file"):
        tokenize(index, tmp_path, "texts: [{name: vqa, path: empty, weight: 1}]")
    write(
        tmp_path / "empty/x.parquet",
        0,
        image=pa.array([], pa.binary()),
        question=None,
        answer=pa.array([], pa.string()),
    )
    with pytest.raises(DataError, match="empty has no rows"):
        tokenize(index, tmp_path, "texts: [{name: vqa, path: empty, weight: 1, columns: {caption: answer}}]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("texts: [{name: a, path: x, wieght: 1}]", "unknown key 'texts.0.wieght'. Did you mean 'weight'?"),
        ("texts: [{name: a, path: x, weight: 0}]", "texts.0.weight: input should be greater than 0"),
        ("texts: [{name: a, path: x, weight: 1, columns: {capton: c}}]", "Did you mean 'caption'?"),
        ("texts: [{name: a, path: x, weight: 1, columns: {caption: c, answer: a}}]", "either a caption, or"),
        ("texts: [{name: bridge_dataset, path: x, weight: 1}]", "texts: duplicate name 'bridge_dataset'"),
    ],
)
def test_an_error_in_the_mixture_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(MIXTURE + text)
    with pytest.raises(ConfigError) as caught:
        read_mixture(tmp_path / "m.yaml")
    assert message in str(caught.value)


def test_the_hash_of_a_source_comes_from_its_footers(tmp_path: Path) -> None:
    entry = TextEntry(name="vqa", path="vqa.parquet", weight=1)
    write(tmp_path / "vqa.parquet")
    before = open_text(entry, tmp_path, "m")
    assert (before.rows, before.columns.question) == (10, "question")
    assert before.sha256 == open_text(entry, tmp_path, "m").sha256
    write(tmp_path / "vqa.parquet", answer=["other"] * 10)
    assert before.sha256 != open_text(entry, tmp_path, "m").sha256


def test_the_output_shows_texts_and_stored_copies(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa.parquet")
    text = "texts: [{name: vqa, path: vqa.parquet, weight: 1}]\nwindow: 3\nvalidation: 0"
    manifest = tokenize(index, tmp_path, text).manifest
    screen = console()
    with screen.capture() as capture:
        screen.print(show.tokenized(manifest))
    shown = capture.get()
    assert "Image-text rows" in shown
    stored = manifest["frames"]["train"]["stored"]
    assert stored == int(samples.stored_frames(np.array([6] * 4), 3, 1).sum())
    assert f"{stored} frames stored for 24 distinct frames: {stored / 24:.2f} copies each" in shown.replace("\n", " ")


def test_the_row_order_of_a_shard_is_the_same_in_every_release(index: Path, tmp_path: Path) -> None:
    write(tmp_path / "vqa/a.parquet", 12)
    write(tmp_path / "vqa/b.parquet", 5, first=12)
    write(tmp_path / "cap.parquet", 6, question=None, answer=None, caption=[f"c{i}" for i in range(6)])
    text = (
        "texts: [{name: vqa, path: vqa, weight: 1.5}, {name: cap, path: cap.parquet, weight: 0.5}]\nseed: 3\n"
        "image: {size: 16}"
    )
    tokenize(index, tmp_path, text, shard_bytes=2600)
    found = {}
    for path in sorted((tmp_path / "out").glob("text-*")):
        ids = pq.read_table(path)["sample_id"].to_pylist()
        found[path.stem] = [name.replace("vqa/", "").replace(".parquet/000000", " ") for name in ids]
    assert found == {
        "text-00000-of-00003": ["a 10", "cap/cap 04", "a 02", "a 09", "a 02#1", "a 11", "b 04", "a 03"],
        "text-00001-of-00003": ["b 01", "a 08", "b 01#1", "b 02#1", "b 02", "cap/cap 03", "b 03", "b 03#1"],
        "text-00002-of-00003": [
            "b 00", "a 01", "a 01#1", "a 00#1", "a 06", "a 00", "a 05", "a 05#1", "a 04", "b 00#1", "a 07", "a 04#1",
        ],
    }  # fmt: skip
