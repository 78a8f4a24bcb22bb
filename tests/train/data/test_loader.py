"""The loader: the same samples for any division, exact resume, errors raised once, no threads left running."""

import functools
import threading
import time

import numpy as np
import pytest

from oxe_curate.errors import ConfigError, DataError
from tests.train import mixtures

torch = pytest.importorskip("torch")

from oxe_curate.train.data.episodes import EpisodeReader
from oxe_curate.train.data.loader import Loader, ValidationLoader, batches_ahead, prefetched


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return mixtures.index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def mixture(index, tmp_path_factory):
    return mixtures.build(index, tmp_path_factory.mktemp("loader") / "out", "validation: 0.2")


def collate(rows):
    return {
        "position": torch.from_numpy(rows.position), "images": torch.from_numpy(rows.images),
        "random": torch.from_numpy(rows.random), "ids": list(rows.sample_id), "text": list(rows.instruction),
    }  # fmt: skip


def load(mixture, **options):
    return Loader(mixture, collate, **{"image_size": 16, "batch_size": 4, "workers": 2, "seed": 5, **options})


def ids(batches):
    return [name for batch in batches for name in batch["ids"]]


def test_epochs_have_every_sample_once_in_different_orders(mixture):
    n = load(mixture).samples
    assert n == sum(mixture.manifest["rows"]["train"].values())
    loader = load(mixture, steps=2 * n // 4)
    assert len(loader) == 2 * n // 4
    seen = ids(loader)
    assert len(set(seen[:n])) == n
    assert set(seen[n:]) <= set(seen[:n])
    assert seen[n:] != seen[: len(seen) - n]
    assert len(load(mixture)) == -(-n // 4)


def test_threads_do_not_change_the_order(mixture):
    assert ids(load(mixture, workers=1)) == ids(load(mixture, workers=4))


@pytest.mark.parametrize(("world", "batch", "accumulation"), [(2, 4, 1), (1, 4, 2), (4, 1, 2)])
def test_a_run_resumes_with_another_division(mixture, world, batch, accumulation):
    whole = [ids([b]) for b in load(mixture, batch_size=8, steps=7)]
    parts = [
        list(load(mixture, batch_size=batch, accumulation=accumulation, world=world, rank=rank, start=8 * 3, steps=4))
        for rank in range(world)
    ]
    for step in range(4):
        found = [name for part in parts for name in ids(part[step * accumulation : (step + 1) * accumulation])]
        assert sorted(found) == sorted(whole[3 + step])


def test_random_numbers_belong_to_the_position(mixture):
    once = {p: r for b in load(mixture) for p, r in zip(b["position"].tolist(), b["random"], strict=True)}
    again = next(iter(load(mixture, start=10, batch_size=3)))
    for position, numbers in zip(again["position"].tolist(), again["random"], strict=True):
        assert torch.equal(once[position], numbers)


def test_an_error_in_a_thread_is_raised_once_at_its_turn(mixture):
    calls = []

    def fail(rows):
        calls.append(rows.position[0])
        if rows.position[0] >= 8:
            raise DataError("train-00000: row 3")
        return {"p": rows.position}

    batches = iter(Loader(mixture, fail, image_size=16, batch_size=4, workers=2))
    assert [next(batches)["p"][0], next(batches)["p"][0]] == [0, 4]
    with pytest.raises(DataError, match="row 3"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert not loader_threads()


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("oxe-")]


def test_leaving_the_loop_stops_the_threads(mixture):
    loader = load(mixture, steps=10_000)
    for number, _ in enumerate(loader):
        assert loader_threads()
        if number == 2:
            break
    deadline = time.monotonic() + 60
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loader_threads()


def test_fewer_large_batches_are_prepared_ahead():
    image = 224 * 224 * 3
    assert [batches_ahead(8, n) for n in (0, 16 * image, 16 * 12 * 2 * image)] == [24, 24, 9]
    for each, expected in ((1, 7), (1 << 29, 4)):  # bytes of a batch -> started once the first one is taken
        started = []

        def job(number, each=each, started=started):
            started.append(number)
            return {"images": torch.zeros(1, dtype=torch.uint8).expand(each), "number": number}

        batches = prefetched((functools.partial(job, number) for number in range(20)), 2)
        assert next(batches)["number"] == 0
        deadline = time.monotonic() + 60
        while len(started) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # no more than that
        assert len(started) == expected
        assert [batch["number"] for batch in batches] == list(range(1, 20))


def test_text_rows_are_mixed_with_robot_rows(index, tmp_path):
    mixtures.texts(tmp_path / "vqa", 30)
    mixture = mixtures.build(index, tmp_path / "out", f"texts: [{{name: vqa, path: {tmp_path / 'vqa'}, weight: 1}}]")
    batches = list(Loader(mixture, lambda rows: {"rows": rows}, image_size=8, batch_size=8, text_factor=0.5, workers=1))
    questions, robots = [], 0
    for batch in batches:
        rows = batch["rows"]
        robots += len(rows.position)
        if rows.texts is None:
            assert len(rows.position) == 8
            continue
        texts = rows.texts
        assert len(texts.place) + len(rows.position) == 8
        assert (texts.factor == 0.5).all()
        for image, question, answer in zip(texts.images, texts.question, texts.answer, strict=True):
            assert (image == int(question[1:])).all()
            assert answer == "a" + question[1:]
            questions.append(question)
    assert set(questions) == {f"q{i}" for i in range(30)}
    assert robots > 60


def test_validation_covers_each_sample_once_in_equal_parts(mixture):
    held = {r["sample_id"] for r in mixtures.shard_rows(mixture, "validation")}

    def read(**options):
        return ValidationLoader(mixture, collate, image_size=16, batch_size=3, workers=2, **options)

    whole = ids(read())
    assert len(whole) == len(held)
    assert set(whole) == held
    assert ids(read(count=5)) == whole[:5]
    parts = [read(rank=rank, world=3) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    found = [ids(part) for part in parts]
    assert len({len(part) for part in found}) == 1
    together = [name for part in found for name in part]
    assert sorted(together) == sorted(whole[: len(whole) // 3 * 3])
    with pytest.raises(ConfigError, match=r"too few for 1000 processes.*eval_samples: 0"):
        read(rank=0, world=1000)


def test_episodes_are_complete_and_in_step_order(index, tmp_path):
    mixture = mixtures.build(
        index, tmp_path / "out", "name: m\ndatasets: [{name: bridge_orig, weight: 2.5}]\nvalidation: 0.3"
    )
    for split, steps_drawn in (("train", 2), ("validation", 1)):
        reader = EpisodeReader(mixture, image_size=16, split=split)
        expected = {}
        for row in mixtures.shard_rows(mixture, split):
            expected.setdefault(row["episode_id"], set()).add(row["step"])
        assert len(mixtures.shard_rows(mixture, split)) >= steps_drawn * sum(map(len, expected.values()))
        assert list(reader.ids) == sorted(expected) == reader.by_dataset["bridge_orig"]
        for name, rows in reader:
            assert reader.steps(name).tolist() == sorted(expected[name]) == list(range(len(rows.position)))
            found = [sample.partition("#")[0] for sample in rows.sample_id]
            assert found == [f"{name}/{step:05d}" for step in reader.steps(name)]
        part = reader.read(name, 1, 3)
        assert np.array_equal(part.images, rows.images[1:3])
    with pytest.raises(ConfigError, match="no episode"):
        reader.read("bridge")


def test_real_bridge_data(shared, tmp_path):
    mixture = mixtures.build(mixtures.real_index(tmp_path, shared), tmp_path / "out", shard_bytes=300_000)
    loader = Loader(mixture, collate, image_size=64, batch_size=16, proprio=True)
    rows = loader.rows(0)
    assert rows.images.shape == (16, 1, 1, 64, 64, 3)
    assert rows.images.std() > 30
    assert rows.proprio.shape == (16, 7 if mixture.statistics["bridge_orig"].proprio.width == 7 else 8)
    assert len(set(ids(loader))) == sum(mixture.manifest["rows"]["train"].values())


def test_the_order_is_the_same_in_every_release(mixture):
    train = [row["sample_id"] for row in mixtures.shard_rows(mixture, "train")]
    assert len(train) == 69
    assert [train.index(name) for name in ids(load(mixture, steps=3))] == [
        38, 19, 54, 47, 17, 58, 46, 11, 6, 63, 29, 48,
    ]  # fmt: skip


def test_the_samples_that_validation_takes_are_the_same_in_every_release(mixture):
    """Losses of two runs are compared on them, and curves go on where a run is resumed."""
    held = [row["sample_id"] for row in mixtures.shard_rows(mixture, "validation")]
    assert len(held) == 13

    def places(**options):
        batches = ValidationLoader(mixture, collate, image_size=16, batch_size=3, workers=1, **options)
        return [held.index(name) for name in ids(batches)]

    assert places() == [0, 5, 6, 10, 1, 11, 12, 2, 7, 4, 9, 8, 3]
    assert places(count=5) == [0, 5, 6, 10, 1]
    assert [places(count=7, rank=rank, world=3) for rank in range(3)] == [[0, 10], [5, 1], [6, 11]]
