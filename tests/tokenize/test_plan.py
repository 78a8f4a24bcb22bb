"""Which episodes go to which shard, of an index of two data sets whose every number is known."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from oxe_curate.index.files import SourceShard
from oxe_curate.index.index_json import Summary
from oxe_curate.index.store import SCHEMA, IndexFiles, describe_file, write_table
from oxe_curate.mixture.spec import ImageSpec, IndexedDataset, Mixture, MixtureEntry
from oxe_curate.storage import Folder
from oxe_curate.tokenize.plan import plan_shards

SMALL = ImageSpec(size=16)
ENTRIES = (MixtureEntry("a", 2.0), MixtureEntry("b", 0.5))


def index_file(name: str, episodes: int, steps: int, copies: dict[int, str], dropped: int | None = None) -> pa.Table:
    """Episodes of equal length; a step's primary frame has 100 bytes, and one step of the source was dropped."""
    spans = [("primary", {"offset": 0, "length": 100 * (steps + 1)}), ("wrist", {"offset": 0, "length": 7})]
    columns: dict[str, list[Any]] = {
        "episode_id": [f"{name}/{i:05d}" for i in range(episodes)],
        "duplicate_of": [copies.get(i) for i in range(episodes)],
        "kept": [i != dropped for i in range(episodes)],
        "num_steps": [steps] * episodes,
        "source_steps": [steps + 1] * episodes,
        "camera_spans": [spans] * episodes,
    }
    return pa.table(
        [pa.array(columns.get(field.name, [None] * episodes), field.type) for field in SCHEMA], schema=SCHEMA
    )


FIRST = "a/1.0.0/train/00000/00000"  # held out with a share of 0.3, and so are its copies
INDEX = {
    "a/1.0.0/train-00000-of-00001.parquet": index_file("a/1.0.0/train/00000", 12, 5, {3: FIRST}, dropped=1),
    "a/1.0.0/val-00000-of-00001.parquet": index_file("a/1.0.0/val/00000", 3, 9, {}),
    "b/1.0.0/train-00000-of-00001.parquet": index_file("b/1.0.0/train/00000", 9, 8, {2: FIRST}),
}


@pytest.fixture
def index(tmp_path: Path) -> Any:
    folder = Folder.of(tmp_path)
    for path, table in INDEX.items():
        shard = SourceShard(path=f"{path}.tfrecord", bytes=1, records=len(table), digest="")
        write_table(folder, path, table, Summary(), "", shard)
    files = IndexFiles(folder, {path: describe_file(folder, path) for path in INDEX})
    return SimpleNamespace(
        files=lambda dataset: [path for path in INDEX if path.startswith(f"{dataset}/")],
        folder=folder,
        table=files.table,
        entry=files.entry,
        source_of=lambda dataset: Folder.of("in"),
        datasets=dict.fromkeys("ab", SimpleNamespace(frames="span")),
    )


def planned(index: Any, **settings: Any) -> dict[str, tuple[int, dict[str, tuple[int, ...]]]]:
    """Shard -> its size, and data set -> rows."""
    sources = [IndexedDataset(entry, entry.name, (), frozenset()) for entry in ENTRIES]
    plan = plan_shards(Mixture("m", ENTRIES, **settings), index, sources, {}, Folder.of("out"), 6000, {})
    assert all(task.validation == task.output.startswith("validation-") for task in plan.tasks)
    found: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {}
    for number, task in enumerate(plan.tasks):
        rows: dict[str, tuple[int, ...]] = {}
        for row in plan.part(number).to_pylist():
            assert row["shard"] == f"{row['path']}.tfrecord"
            assert row["path"].startswith(f"{ENTRIES[row['source']].name}/")
            name = ENTRIES[row["source"]].name
            rows[name] = (*rows.get(name, ()), row["row"])
        found[task.output.removesuffix(".parquet")] = task.size, rows
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"validation": 0.3, "image": SMALL},
            {
                "train-00000-of-00003": (1, {}),
                "train-00001-of-00003": (10752, {"a": (2, 4, 6), "b": (0, 6, 7)}),
                "train-00002-of-00003": (5120, {"a": (8, 11)}),
                "validation-00000-of-00004": (7680, {"a": (7, 9, 10)}),
                "validation-00001-of-00004": (3072, {"b": (3, 4, 8)}),
                "validation-00002-of-00004": (2560, {"a": (0,)}),
                "validation-00003-of-00004": (8192, {"a": (3, 5), "b": (1, 2, 5)}),
            },
        ),
        (
            {"validation": 0.3, "image": SMALL, "seed": 4},
            {
                "train-00000-of-00003": (5120, {"a": (4, 11)}),
                "train-00001-of-00003": (4608, {"a": (6,), "b": (6, 7)}),
                "train-00002-of-00003": (6144, {"a": (2, 8), "b": (0,)}),
                "validation-00000-of-00004": (1024, {"b": (5,)}),
                "validation-00001-of-00004": (9728, {"a": (5, 9, 10), "b": (1, 8)}),
                "validation-00002-of-00004": (7168, {"a": (3, 7), "b": (2, 3)}),
                "validation-00003-of-00004": (3584, {"a": (0,), "b": (4,)}),
            },
        ),
        (
            {"validation": 0.3, "window": 3, "stride": 2},
            {
                "train-00000-of-00002": (4200, {"a": (2, 6, 8)}),
                "train-00001-of-00002": (4450, {"a": (4, 11), "b": (0, 6, 7)}),
                "validation-00000-of-00002": (5600, {"a": (0, 7, 9, 10)}),
                "validation-00001-of-00002": (6100, {"a": (3, 5), "b": (1, 2, 3, 4, 5, 8)}),
            },
        ),
        (
            {"validation": 0},
            {
                "train-00000-of-00003": (3200, {"a": (0, 5), "b": (2, 3, 8)}),
                "train-00001-of-00003": (7000, {"a": (2, 3, 4, 6, 9), "b": (0, 4, 5, 6, 7)}),
                "train-00002-of-00003": (4400, {"a": (7, 8, 10, 11), "b": (1,)}),
            },
        ),
    ],
    ids=["resized", "another seed", "windows as stored", "nothing held out"],
)
def test_the_shards_are_the_same_in_every_release(
    index: Any, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert planned(index, **settings) == expected


def test_copies_are_held_out_with_their_original(index: Any) -> None:
    held = {name: rows for name, (_, rows) in planned(index, validation=0.3).items() if name.startswith("validation-")}
    assert sorted(n for rows in held.values() for n in rows.get("a", ())) == [0, 3, 5, 7, 9, 10]  # 1 was dropped
    assert sorted(n for rows in held.values() for n in rows.get("b", ())) == [1, 2, 3, 4, 5, 8]  # 2 by its original
