"""A mixture folder is opened only if it is complete."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.sealed import seal
from oxe_curate.tokenize.folder import MixtureFolder
from tests.tokenize.test_finished import index  # noqa: F401 (a fixture)
from tests.tokenize.test_pipeline import tokenize


@pytest.fixture(scope="module")
def finished(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811 (the fixture)
    out = tmp_path_factory.mktemp("mixture") / "out"
    tokenize(index, out, shard_bytes=8000)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def rewrite(out: Path, change: Any, sealed: bool = True) -> None:
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("checksum", None) if sealed else None
    path.write_text(json.dumps(seal(manifest) if sealed else manifest))


def test_missing_and_resized_files_are_one_error(out: Path) -> None:
    assert MixtureFolder.open(str(out)).shards("train")
    shards = sorted(out.glob("train-*"))
    shards[1].write_bytes(shards[1].read_bytes() + b"x")
    message = rf"{shards[1].name}: has [\d,]+ bytes, expected [\d,]+\. Copy the folder again, or run tokenize"
    with pytest.raises(DataError, match=message):
        MixtureFolder.open(str(out))
    shards[0].unlink()
    with pytest.raises(DataError, match=rf"{shards[0].name}: is missing, and 1 of \d+ other files are missing or"):
        MixtureFolder.open(str(out))


@pytest.mark.parametrize("name", ["dataset_statistics.json", "action_tokens.parquet", "mixture.yaml"])
def test_every_small_file_is_compared_with_its_hash(out: Path, name: str) -> None:
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: changed after tokenize wrote it"):
        MixtureFolder.open(str(out))
    (out / name).unlink()
    with pytest.raises(DataError, match=f"{name}: is missing"):
        MixtureFolder.open(str(out))


def test_stray_files_are_not_read(out: Path) -> None:
    before = MixtureFolder.open(str(out))
    shard = next(out.glob("train-*"))
    shutil.copy(shard, out / f".oxe-tmp-1-{shard.name}")
    shutil.copy(shard, out / "train-00099-of-00100.parquet")
    after = MixtureFolder.open(str(out))
    assert after.shards("train") == before.shards("train")


def test_every_changed_byte_of_the_manifest_is_noticed(out: Path) -> None:
    path = out / "manifest.json"
    text = path.read_text()
    skipped = 0
    for place in range(0, len(text), 11):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        path.write_text(changed)
        try:
            same = json.loads(changed) == json.loads(text)
        except ValueError:
            same = False
        if same:  # white space
            skipped += 1
            continue
        with pytest.raises((DataError, ConfigError), match=r"manifest\.json"):
            MixtureFolder.open(str(out))
    assert skipped < len(text) / 11 / 2


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["rows"]["train"].update(bridge_dataset=1),
        lambda m: m["outputs"].pop(next(name for name in m["outputs"] if name.startswith("train-"))),
        lambda m: m.pop("rows"),
        lambda m: m["outputs"].update({"train-x.parquet": None}),
        lambda m: m.update(format=3),
        lambda m: m.update(outputs=[]),
        lambda m: m["outputs"]["mixture.yaml"].update(bytes="12"),
    ],
    ids=["rows", "a shard", "no rows", "null", "format", "list", "text"],
)
def test_a_manifest_that_contradicts_itself_is_damaged(out: Path, change: Any) -> None:
    rewrite(out, change)
    with pytest.raises(DataError, match=r"manifest\.json: (damaged|format 3 is not supported)"):
        MixtureFolder.open(str(out))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 3000, b'{"format": ' + b"9" * 5000 + b"}"])
def test_a_manifest_that_is_none_is_damaged(out: Path, data: bytes) -> None:
    (out / "manifest.json").write_bytes(data)
    with pytest.raises(DataError, match=r"manifest\.json:.*Delete it and run tokenize again") as caught:
        MixtureFolder.open(str(out))
    assert len(str(caught.value)) < 400


def test_the_format_before_is_read(out: Path) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["format"] = 1
        del manifest["plan"], manifest["checksum"]
        for entry in manifest["outputs"].values():
            entry.pop("footer_sha256", None)

    rewrite(out, older, sealed=False)
    assert MixtureFolder.open(str(out)).shards("train")


def test_a_damaged_manifest_is_written_again(index: Path, out: Path) -> None:  # noqa: F811 (the fixture)
    before = (out / "manifest.json").read_bytes()
    (out / "manifest.json").write_bytes(before.replace(b'"seed": 0', b'"seed": 7'))
    assert tokenize(index, out, shard_bytes=8000).shards_done == 0
    assert (out / "manifest.json").read_bytes() == before
