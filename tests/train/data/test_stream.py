"""Shards in an object store: a deterministic order, and few reads per process."""

import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from oxe_curate.storage import Folder
from oxe_curate.train.data import stream
from oxe_curate.train.data.stream_order import StreamOrder, lanes
from tests import s3
from tests.train import mixtures

SIZES = np.array([256] * 60 + [100, 17, 256, 1, 256, 90])


@pytest.mark.parametrize("count", [1, 8, 16])
def test_an_epoch_has_every_row_once(count):
    order = StreamOrder(3, SIZES, count, 512)
    n = int(SIZES.sum())
    first, second = order.rows(np.arange(2 * n)).reshape(2, n)
    assert np.array_equal(np.sort(first), np.arange(n))
    assert np.array_equal(np.sort(second), np.arange(n))
    assert (first == second).mean() < 0.01
    assert (StreamOrder(4, SIZES, count, 512).rows(np.arange(n)) == first).mean() < 0.01


def test_positions_can_be_computed_in_any_order():
    whole = StreamOrder(3, SIZES, 16, 512).rows(np.arange(5000))
    assert np.array_equal(StreamOrder(3, SIZES, 16, 512).rows(np.array([4321, 7])), whole[[4321, 7]])


def test_samples_in_a_batch_come_from_many_row_groups():
    order = StreamOrder(0, SIZES, 16, 512)
    starts = np.cumsum(SIZES)
    for step in range(0, 300, 30):
        rows = order.rows(np.arange(step * 16, step * 16 + 16))
        assert len(set(np.searchsorted(starts, rows, side="right").tolist())) >= 12


def test_lanes_divide_the_global_batch():
    assert [lanes(n, 10_000) for n in (1, 16, 48, 97, 128, 96)] == [1, 16, 48, 1, 64, 48]
    assert lanes(16, 9) == 2
    assert lanes(16, 1) == 1


@pytest.mark.parametrize(("world", "batch", "accumulation"), [(1, 16, 1), (2, 8, 1), (4, 2, 2), (8, 2, 1)])
def test_a_step_has_the_same_samples_for_any_division(world, batch, accumulation):
    order = StreamOrder(0, SIZES, 16, 512)
    n = order.n
    for step in (0, 1, n // 16, n // 16 + 1):  # the third crosses into the next epoch
        parts = [
            order.positions(32, step * accumulation + a, rank, world, batch, accumulation)
            for rank in range(world)
            for a in range(accumulation)
        ]
        assert np.array_equal(np.sort(np.concatenate(parts)), 32 + step * 16 + np.arange(16))


def test_processes_read_few_shared_row_groups():
    """Four processes together read hardly more row groups than there are."""
    order = StreamOrder(0, np.full(400, 256), 16, 512)
    touched = []
    for rank in range(4):
        rows = np.concatenate([order.rows(order.positions(0, s, rank, 4, 4, 1)) for s in range(order.n // 16)])
        touched.append(len(np.unique(rows // 256)))
    assert sum(touched) <= 400 + 4 * 4 + 16


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("torch")
    with s3.bucket() as address:
        yield Folder.of(f"{address}/mixtures")


@pytest.fixture(scope="module")
def both(store, tmp_path_factory):
    """The same mixture, with windows and texts, on disk and in the store."""
    from oxe_curate.tokenize.folder import MixtureFolder

    root = tmp_path_factory.mktemp("both")
    index = mixtures.index(root)
    mixtures.texts(root / "vqa", 20)
    text = f"window: 3\nchunk: 2\nvalidation: 0.2\ntexts: [{{name: vqa, path: {root / 'vqa'}, weight: 1}}]"
    local = mixtures.build(index, root / "out", text, shard_bytes=12_000)
    for path in local.folder.path().iterdir():
        store.publish_bytes(path.name, path.read_bytes())
    return local, MixtureFolder.open(str(store))


def load(mixture, **options):
    from oxe_curate.train.data.loader import Loader

    return Loader(
        mixture,
        lambda rows: {"rows": rows},
        **{"image_size": 16, "batch_size": 4, "workers": 2, "proprio": True, **options},
    )


def rows_by_id(loader):
    found, questions = {}, {}
    for batch in loader:
        rows = batch["rows"]
        for i, name in enumerate(rows.sample_id):
            found[name] = [
                getattr(rows, field)[i]
                for field in ("images", "actions", "bins", "action_mask", "observation_mask", "proprio", "instruction")
            ]
        if rows.texts is not None:
            questions |= dict(
                zip(rows.texts.question, zip(rows.texts.images, rows.texts.answer, strict=True), strict=True)
            )
    return found, questions


def test_store_and_disk_give_the_same_rows(both):
    local, remote = (rows_by_id(load(mixture)) for mixture in both)
    for ours, theirs in zip(local, remote, strict=True):
        assert set(ours) == set(theirs)
        for name, values in ours.items():
            for a, b in zip(values, theirs[name], strict=True):
                assert np.array_equal(a, b)
    assert len(local[1]) == 20


def positions(batches):
    return sorted(p for b in batches for p in b["rows"].position.tolist())


def ids(batches):
    return sorted(name for b in batches for name in b["rows"].sample_id)


@pytest.mark.parametrize(("world", "batch"), [(2, 2), (1, 4), (4, 1)])
def test_a_run_resumes_with_another_division(both, world, batch):
    _, remote = both
    whole = [ids([b]) for b in load(remote, steps=9)]
    parts = [list(load(remote, world=world, rank=rank, batch_size=batch, start=12, steps=6)) for rank in range(world)]
    for step in range(6):
        assert ids([part[step] for part in parts]) == whole[3 + step]


def test_a_row_group_is_read_once_and_dropped_after_use(both, monkeypatch):
    _, remote = both
    fetched = []
    fetch = stream.RemoteRows._fetch

    def watched(self, group):
        block = fetch(self, group)
        fetched.append((group, weakref.ref(block)))
        return block

    monkeypatch.setattr(stream.RemoteRows, "_fetch", watched)
    loader = load(remote)
    for _ in loader:
        pass
    del _
    assert sorted(group for group, _ in fetched) == list(range(len(loader._rows.sizes)))
    assert all(block() is None for _, block in fetched)


def test_the_last_batches_wait_for_slow_reads(both, monkeypatch):
    """The end of the plan must not cancel reads of batches that were not used yet."""
    _, remote = both
    rows = load(remote)._rows
    fetch = stream.RemoteRows._fetch

    def slow(self, group):
        time.sleep(0.05)
        return fetch(self, group)

    monkeypatch.setattr(stream, "_READERS", 1)
    monkeypatch.setattr(stream.RemoteRows, "_fetch", slow)
    claims = list(rows.batches(iter(np.arange(len(rows)).reshape(-1, 1))))
    assert len([claim()[0] for claim in claims]) == len(rows)


def test_failed_reads_are_retried(both, monkeypatch):
    from oxe_curate.errors import StorageError

    _, remote = both
    whole = ids(load(remote))
    monkeypatch.setattr(stream, "_PAUSES", (0.0, 0.0))
    failures = []
    read = stream.pq.ParquetFile.read_row_group

    def failing(self, group, *args, **options):
        if len(failures) < limit:
            failures.append(group)
            raise OSError("AWS Error NETWORK_CONNECTION")
        return read(self, group, *args, **options)

    monkeypatch.setattr(stream.pq.ParquetFile, "read_row_group", failing)
    limit = 2
    assert ids(load(remote)) == whole
    limit = 10**6
    with pytest.raises(StorageError, match=r"s3://.*cannot be read: AWS Error"):
        ids(load(remote))


def test_validation_and_episodes_from_the_store(both):
    from oxe_curate.train.data.episodes import EpisodeReader
    from oxe_curate.train.data.loader import ValidationLoader

    local, remote = both
    for mixture in both:
        batches = ValidationLoader(mixture, lambda rows: {"rows": rows}, image_size=16, batch_size=4, workers=1)
        assert ids(batches) == sorted(r["sample_id"] for r in mixtures.shard_rows(local, "validation"))
    some = ValidationLoader(remote, lambda rows: {"rows": rows}, image_size=16, batch_size=4, count=6, workers=1)
    first = [r["sample_id"] for r in mixtures.shard_rows(local, "validation")][:6]
    assert [name for batch in some for name in batch["rows"].sample_id] == first  # in the shards' order, in any release
    ours, theirs = EpisodeReader(local, image_size=16), EpisodeReader(remote, image_size=16)
    assert ours.ids == theirs.ids
    for name, rows in ours:
        assert np.array_equal(rows.images, theirs.read(name).images)
        assert list(theirs.read(name).sample_id) == list(rows.sample_id)


def test_a_damaged_shard_is_reported(both, store):
    from oxe_curate.errors import DataError, StorageError

    _, remote = both
    name = next(n for n in remote.shards("train") if remote.manifest["outputs"][n]["rows"] > 2)
    good = store.read_bytes(name)
    try:
        store.publish_bytes(name, good[:-30] + bytes(30))
        with pytest.raises(DataError, match=f"{name}: its footer is damaged"):
            load(remote)
        store.publish_bytes(name, good + b"x")
        with pytest.raises(DataError, match=f"{name}: .* bytes, but the manifest lists"):
            load(remote)
        start = good.index(b"\xff\xd8\xff")
        store.publish_bytes(name, good[: start + 100] + bytes(300) + good[start + 400 :])
        with pytest.raises(DataError, match=name):
            list(load(remote))
        store.remove(name)
        with pytest.raises(StorageError, match=name):
            load(remote)
    finally:
        store.publish_bytes(name, good)


SMALL = np.array([3, 5, 2, 4, 6, 1, 3, 4])


@pytest.mark.parametrize(
    ("seed", "count", "pool", "expected"),
    [
        (
            0, 2, 6, "24 17 25 16 26 6 23 15 27 7 0 14 21 18 22 10 20 9 2 8 5 11 4 19 1 12 3 13 "
            "0 6 2 7 1 21 13 22 25 23 24 20",
        ),
        (3, 2, 6, "24 11 26 5 25 6 0 10 20 4 21 7 1 14 2 17"),
        (3, 3, 4, "24 23 12 25 8 11 27 22 10 0 4 13 1 9 16 26 5 14 20 3 17 21 6 15 2 7 18 19"),
    ],
)  # fmt: skip
def test_the_order_is_the_same_in_every_release(seed, count, pool, expected):
    """A run that resumes with a later release continues with the rows that it has not seen."""
    rows = [int(row) for row in expected.split()]
    assert StreamOrder(seed, SMALL, count, pool).rows(np.arange(len(rows))).tolist() == rows


def test_the_division_of_a_step_is_the_same_in_every_release():
    order = StreamOrder(0, SMALL, 2, 6)
    assert [order.positions(4, step, rank, 2, 2, 2).tolist() for step in (0, 1, 2) for rank in (0, 1)] == [
        [4, 6], [5, 7], [8, 10], [9, 11], [12, 14], [13, 15],
    ]  # fmt: skip
    odd = StreamOrder(0, SMALL, 3, 6)  # 28 rows: one is left over, and the step crosses into the next epoch
    assert [odd.positions(26, 0, rank, 2, 3, 1).tolist() for rank in (0, 1)] == [[27, 28, 31], [29, 26, 30]]


@pytest.mark.parametrize(
    ("window", "cameras", "batch", "world", "groups", "expected"),
    [(1, 1, 96, 1, 500, (48, 171, 8192)), (12, 2, 96, 4, 500, (48, 8, 86)), (3, 1, 16, 1, 9, (2, 1365, 2730))],
)
def test_lanes_and_pools_are_the_same_in_every_release(window, cameras, batch, world, groups, expected):
    pytest.importorskip("torch")
    sample_format = SimpleNamespace(window=window, cameras=("primary", "wrist")[:cameras])
    source = SimpleNamespace(sample_format=sample_format, sizes=np.full(groups, 7))
    order = stream.RemoteRows.order(source, 3, batch, world)
    assert (order.seed, order.n) == (3, groups * 7)
    assert (order.lanes, order.pool, source.ahead) == expected
