"""index.json: what is read back, what is refused, and the user's cards that it remembers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.index_json import INDEX_JSON, UNFINISHED, DatasetEntry, IndexJson, Summary
from oxe_curate.index.store import Index
from oxe_curate.sealed import seal
from oxe_curate.storage import Folder

SUMMARY = Summary(seen=3, kept=2, steps_seen=30, steps_kept=20, dropped={"idle": [1, 10]}, leaks={"val": 1}, copies=1)
ENTRY = DatasetEntry(
    version="1.0.0", card="bridge_orig", recipe="openvla", verdict="pass", splits=("train[:50%]", "train[50%:]", "val"),
    frames="span", seconds=1.5, summary=SUMMARY,
)  # fmt: skip
INDEX = IndexJson(source="/data", criteria={"idle": 0.5}, datasets={"b": ENTRY, "a": ENTRY})


def test_the_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    INDEX.write(Folder.of(tmp_path))
    assert IndexJson.read(Folder.of(tmp_path)) == INDEX
    data = json.loads((tmp_path / INDEX_JSON).read_text())
    assert list(data) == ["format", "software", "source", "files_sha256", "criteria", "datasets", "checksum"]
    assert list(data["datasets"]) == ["a", "b"]
    assert list(data["datasets"]["a"]) == [
        "version", "card", "recipe", "verdict", "splits", "frames", "seconds", "seen", "kept", "steps_seen",
        "steps_kept", "dropped", "bytes_read", "corrupt", "copies", "leaks",
    ]  # fmt: skip
    assert ENTRY.split_names == ("train", "val")
    assert ENTRY.drop_reasons == "idle: 1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "index format 3 is not supported"),
        ({"format": 1}, "with the same options again, which converts"),
        ({"source": None}, "source"),
        ({"datasets": {"a": {}}}, "datasets.a.version"),
        ({"datasets": {"a": {"seen": "many"}}}, "datasets.a"),
        ({"datasets": ["a"]}, "not a valid index file"),
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    INDEX.write(Folder.of(tmp_path))
    data = json.loads((tmp_path / INDEX_JSON).read_text())
    del data["checksum"]
    (tmp_path / INDEX_JSON).write_text(json.dumps(seal(data | change, ["source", "cards"])))
    with pytest.raises(ConfigError, match=message) as caught:
        Index.open(tmp_path)
    assert INDEX_JSON in str(caught.value)


def test_an_edit_is_refused_except_of_the_folders(tmp_path: Path) -> None:
    INDEX.write(Folder.of(tmp_path))
    text = (tmp_path / INDEX_JSON).read_text()
    (tmp_path / INDEX_JSON).write_text(text.replace('"source": "/data"', '"source": "/elsewhere"'))
    assert Index.open(tmp_path).source_of("a") == Folder("/elsewhere")
    (tmp_path / INDEX_JSON).write_text(text.replace('"seen": 3', '"seen": 4'))
    with pytest.raises(DataError, match=r"index\.json: changed or damaged.*Run the same `oxe-curate filter`"):
        Index.open(tmp_path)
    data = json.loads(text)
    del data["checksum"]
    (tmp_path / INDEX_JSON).write_text(json.dumps(data))
    with pytest.raises(DataError, match="no checksum"):
        Index.open(tmp_path)


def test_a_data_set_may_have_its_own_source(tmp_path: Path) -> None:
    moved = replace(INDEX, datasets={"a": replace(ENTRY, source="/mirror"), "b": ENTRY})
    moved.write(Folder.of(tmp_path))
    index = Index.open(tmp_path)
    assert (index.source_of("a"), index.source_of("b")) == (Folder("/mirror"), Folder("/data"))
    assert Index.open(tmp_path, source="/new").source_of("a") == Folder("/new")


def test_retracting_and_finishing_leave_one_file(tmp_path: Path) -> None:
    folder = Folder.of(tmp_path)
    INDEX.finish(folder)
    INDEX.retract(folder)
    assert [path.name for path in tmp_path.iterdir()] == [UNFINISHED]
    IndexJson.read(folder, UNFINISHED).finish(folder)
    assert [path.name for path in tmp_path.iterdir()] == [INDEX_JSON]


def test_the_folder_of_cards_is_recorded(tmp_path: Path) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    IndexJson(source="/data", criteria={}, datasets={}, cards=str(cards)).write(Folder.of(tmp_path))
    index = Index.open(tmp_path)
    assert index.find_cards() == cards
    assert index.find_cards(tmp_path) == tmp_path
    cards.rmdir()
    assert index.find_cards(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="no longer exists; give its new place with --cards"):
        index.find_cards()
