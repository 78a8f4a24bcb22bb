"""Mixtures by reference: the same batches as from copies, and one clear error when a source has changed."""

import dataclasses
import os
import random
import re
import shutil
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from oxe_curate.errors import ConfigError, CurateError, DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.images import is_complete
from oxe_curate.rlds import tfrecord
from oxe_curate.storage import Folder
from oxe_curate.tokenize import references
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data import source_frames
from oxe_curate.train.data.episodes import EpisodeReader
from oxe_curate.train.data.loader import Loader, ValidationLoader
from oxe_curate.train.data.mixed import pixels_of
from oxe_curate.train.data.references import ReferenceRows
from oxe_curate.train.data.row_source import open_rows
from oxe_curate.train.data.rows import SampleFormat
from oxe_curate.train.data.shards import split_shards
from oxe_curate.train.data.source_frames import SourceFrames, _joined
from oxe_curate.train.data.stream import RemoteRows
from tests import bridge, s3
from tests.train import mixtures

torch = pytest.importorskip("torch")
CPU = torch.device("cpu")
FIELDS = (
    "position", "dataset", "images", "actions", "bins", "action_mask", "observation_mask", "proprio", "random",
)  # fmt: skip
TEXTS = {
    "single": "validation: 0.2",
    "windows": "window: 4\nchunk: 2\nstride: 3\nvalidation: 0.2\nimage: {cameras: [primary, secondary]}",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("references")
    mixtures.index(place)
    mixtures.texts(place / "vqa", 20)
    return place


@pytest.fixture(scope="module", params=list(TEXTS))
def both(request, place):
    """The same rows, with texts, as copies and by reference."""
    out = place / request.param
    text = f"{TEXTS[request.param]}\ntexts: [{{name: vqa, path: {place / 'vqa'}, weight: 1}}]"
    copied = mixtures.build(place / "index", out, text, shard_bytes=12_000)
    return copied, by_reference(place / "index", place / f"{request.param}-reference", text)


def by_reference(index, out, text):
    """The mixture without copies, in row groups of few rows."""
    without = (
        text.replace("image: {", "image: {copy: false, ") if "image: " in text else f"{text}\nimage: {{copy: false}}"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(references, "_ROW_GROUP", 7)
        return mixtures.build(index, out, without, shard_bytes=12_000)


@pytest.fixture
def moving(place, tmp_path):
    """A mixture by reference, and its source below tmp_path/in, which a test may damage."""
    shutil.copytree(place / "in", tmp_path / "in")
    by_reference(place / "index", tmp_path / "out", TEXTS["single"])
    return MixtureFolder.open(str(tmp_path / "out"), source=tmp_path / "in"), tmp_path / "in"


def load(mixture, **options):
    options = {"image_size": 16, "batch_size": 4, "workers": 2, "seed": 5, "proprio": True, **options}
    return Loader(mixture, lambda rows: {"rows": rows}, **options)


def same(ours, theirs):
    for field in FIELDS:
        a, b = getattr(ours, field), getattr(theirs, field)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b), field
    assert list(ours.instruction) == list(theirs.instruction)
    assert list(ours.sample_id) == list(theirs.sample_id)
    assert (ours.texts is None) == (theirs.texts is None)
    if ours.texts is not None:
        assert np.array_equal(ours.texts.images, theirs.texts.images)
        assert np.array_equal(ours.texts.place, theirs.texts.place)
        assert list(ours.texts.question) == list(theirs.texts.question)
        assert list(ours.texts.answer) == list(theirs.texts.answer)


def all_same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        same(a["rows"], b["rows"])


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 40},
        {"start": 12, "world": 2, "rank": 1, "batch_size": 2},
        {"start": 12, "accumulation": 2, "batch_size": 2, "image_size": 24},
        {"workers": 1, "memory": 1},
    ],
    ids=str,
)
def test_batches_equal_those_of_copies(both, options):
    copied, reference = both
    assert not reference.copies
    all_same(load(copied, **options), load(reference, **options))


def test_the_device_resizes_frames_of_the_source(both):
    copied, reference = both

    def resized(batches):
        for batch in batches:
            rows, texts = batch["rows"], batch["rows"].texts
            assert {tuple(group.shape[1:]) for group in rows.images.groups} <= {(16, 16, 3)}
            if texts is not None:
                texts = dataclasses.replace(texts, images=pixels_of(texts.images, CPU))
            yield {"rows": dataclasses.replace(rows, images=pixels_of(rows.images, CPU), texts=texts)}

    options = {"steps": 10, "image_size": 24}
    all_same(load(copied, **options), resized(load(reference, **options, mixed=True)))


def test_part_of_the_window_and_cameras(both):
    copied, reference = both
    if copied.mixture.window == 1:
        pytest.skip("one observation")
    options = {"window": 2, "chunk": 1, "cameras": ["secondary"]}
    all_same(load(copied, **options), load(reference, **options))


def test_validation_and_episodes_equal_those_of_copies(both):
    held = [
        ValidationLoader(m, lambda rows: {"rows": rows}, image_size=16, batch_size=3, workers=2, world=2, rank=1)
        for m in both
    ]
    all_same(*held)
    ours, theirs = (EpisodeReader(mixture, image_size=16, proprio=True) for mixture in both)
    assert ours.ids == theirs.ids
    for name, rows in ours:
        same(rows, theirs.read(name))


def test_frames_are_read_ahead_and_few_files_are_open(both, monkeypatch):
    """However many shards there are: the least recently used ones are closed."""
    monkeypatch.setattr(source_frames, "_OPEN_FILES", 1)
    opened = []
    init = source_frames.LocalFile.__init__
    monkeypatch.setattr(
        source_frames.LocalFile, "__init__", lambda self, name: (opened.append(name), init(self, name))[1]
    )
    copied, reference = both
    all_same(load(copied), load(reference))
    assert sum("tfrecord" in name for name in opened) > 10


def test_records_have_four_bytes_more(both):
    copied, reference = (SampleFormat.of(mixture) for mixture in both)
    assert reference.record.itemsize == copied.record.itemsize + 4


# moved, changed and missing sources


def test_a_moved_source_is_given_by_its_root(moving, both):
    mixture, source = moving
    all_same(load(mixture), load(MixtureFolder.open(mixture.folder.uri)))
    with pytest.raises(ConfigError, match="has copies of its frames, so it needs no --source"):
        MixtureFolder.open(both[0].folder.uri, source=source)


def shards(source):
    return sorted(source.rglob("*.tfrecord-*"))


def delete(path):
    path.unlink()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def replace(path):
    data = path.read_bytes()
    path.with_name("x").write_bytes(data[:1000] + bytes(len(data) - 1000))
    path.with_name("x").rename(path)


def overwrite(path):
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


CHANGES = {
    delete: "file or folder not found. Restore the files",
    truncate: "(is not the one that was filtered|ends before byte)",
    replace: "is not the one that was filtered",
    overwrite: "is not the one that was filtered",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("open_files", [1, 2048])
def test_a_change_during_a_run_is_one_error(moving, change, open_files, monkeypatch):
    monkeypatch.setattr(source_frames, "_OPEN_FILES", open_files)
    mixture, source = moving
    batches = iter(load(mixture, steps=10_000, workers=4))
    next(batches)
    for path in shards(source):
        change(path)
    with pytest.raises(DataError, match=CHANGES[change]) as caught:
        for _ in batches:
            pass
    text = str(caught.value)
    assert re.search(rf"^{source}/bridge_dataset/.*tfrecord-0000\d-of-0000\d: ", text), text
    assert re.search(r"needed for sample bridge_dataset/1.0.0/.*/\d{5}, .*train-0000\d-of-\d+.parquet: row \d+", text)
    assert "--source" in text
    assert not [t for t in threading.enumerate() if t.name.startswith("oxe-")]


def test_a_touched_source_is_compared_once_and_used(moving, monkeypatch):
    monkeypatch.setattr(source_frames, "_OPEN_FILES", 1)
    compared, compare = [], source_frames.matches_shard
    monkeypatch.setattr(
        source_frames, "matches_shard", lambda root, path, shard: (compared.append(path), compare(root, path, shard))[1]
    )
    mixture, source = moving
    mixture = dataclasses.replace(mixture, compared=mixture.sources.compare())
    batches = iter(load(mixture, steps=60))
    first = next(batches)
    assert compared == []
    for path in shards(source):
        os.utime(path)
    batches = [first, *batches]
    assert sorted(compared) == sorted({row.shard.path for row in mixture.sources})
    all_same(batches, load(MixtureFolder.open(mixture.folder.uri), steps=60))


def test_bytes_that_are_no_image_are_an_error_at_the_first_frame(moving):
    mixture, _ = moving
    sources = mixture.sources
    name = next(n for n in mixture.shards("train") if mixture.manifest["outputs"][n]["rows"] > 2)
    table = pq.read_table(mixture.folder.path(name))
    row = table.to_pylist()[2]
    frames = SourceFrames(sources)
    offset, length = row["image_primary"].values()
    whole = frames.read((row["source"], offset, length))
    assert is_complete(whole)
    for wrong in ((offset, length - 1), (offset + 1, length - 1), (0, 40)):
        with pytest.raises(DataError, match="are not a complete JPEG or PNG image"):
            frames.begin([]).read((row["source"], *wrong))
    for wrong in ((row["source"], -1, 4), (row["source"], 0, 0), (len(sources), 0, 4), (-1, 0, 4)):
        frames.begin([wrong])
        with pytest.raises(DataError, match="refers to no frame"):
            frames.begin([wrong]).read(wrong)
    with pytest.raises(DataError, match="ends before byte"):
        frames.read((row["source"], 0, 1 << 30))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bytes", "row group 0: expected offsets and lengths of frames, got struct<bytes"),
        ("null", r"row group 0: expected \d+ frames, got \d+"),
        ("length", r"refers to no frame.* \(needed for sample .*: row 0\)"),
    ],
)
def test_damaged_references_are_an_error_of_the_shard(moving, kind, message):
    mixture, _ = moving
    name = mixture.shards("train")[0]
    table = pq.read_table(mixture.folder.path(name))
    column = table["image_primary"].to_pylist()
    if kind == "bytes":
        changed = pa.array([{"bytes": b"", "path": ""} for _ in column])
    else:
        column[0] = None if kind == "null" else {"offset": 0, "length": None}
        changed = pa.array(column, table.schema.field("image_primary").type)
    table = table.set_column(table.column_names.index("image_primary"), "image_primary", changed)
    pq.write_table(table, mixture.folder.path(name))
    mixture.manifest["outputs"][name]["bytes"] = mixture.folder.size(name)
    with pytest.raises(DataError, match=message) as caught:
        list(load(mixture))
    assert name in str(caught.value)


def test_a_flipped_bit_of_a_shard_is_an_error_or_changes_nothing(moving):
    mixture, _ = moving
    good, rng = list(load(mixture)), random.Random(0)
    for number in range(60):
        name = rng.choice(mixture.shards("train"))
        path = mixture.folder.path(name)
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            found = list(load(mixture))
        except DataError:
            continue
        finally:
            path.write_bytes(whole)
        for a, b in zip(found, good, strict=True):
            assert np.array_equal(a["rows"].actions, b["rows"].actions), number
            assert np.array_equal(a["rows"].images, b["rows"].images), number


def test_a_frame_stored_as_bgr_is_shown_as_rgb(both):
    copied, reference = both
    reference.manifest["swap"] = {"bridge_orig": ["primary"]}
    try:
        rows, plain = load(reference).rows(0), load(copied).rows(0)
        assert np.array_equal(rows.images[:, :, 0], plain.images[:, :, 0, :, :, ::-1])
        assert np.array_equal(rows.images[:, :, 1:], plain.images[:, :, 1:])
    finally:
        reference.manifest["swap"] = {}


# array_record


def as_array_record(source):
    """Turn the TFRecord shards below a folder into array_record files."""
    module = pytest.importorskip("array_record.python.array_record_module")
    for path in shards(source):
        data = path.read_bytes()
        writer = module.ArrayRecordWriter(str(path).replace(".tfrecord-", ".array_record-"), "group_size:1")
        for offset, length in tfrecord.records(memoryview(data)):
            writer.write(data[offset : offset + length])
        writer.close()
        path.unlink()
    (info,) = source.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("tfrecord", "array_record"))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A mixture as copies and by reference, from array_record files."""
    place = tmp_path_factory.mktemp("compressed")
    bridge.write(place / "in", episodes={"train": [bridge.episode(i, 6 + i % 5) for i in range(14)]})
    as_array_record(place / "in")
    run_filter(place / "in", place / "index", FilterOptions(progress=False, workers=1))
    copied = mixtures.build(place / "index", place / "copied", TEXTS["single"], shard_bytes=12_000)
    return copied, by_reference(place / "index", place / "out", TEXTS["single"])


@pytest.mark.parametrize("kept", [1, 1 << 20])
def test_frames_of_array_record_files_equal_copies(compressed, kept, monkeypatch):
    monkeypatch.setattr(source_frames, "_ARRAY_RECORDS", kept)
    assert "array_record" in compressed[1].sources[0].name
    all_same(*(load(mixture, workers=4) for mixture in compressed))


def test_a_damaged_array_record_file_is_an_error(compressed, tmp_path):
    root = compressed[1].sources[0].root.path()
    shutil.copytree(root, tmp_path / "in")
    mixture = MixtureFolder.open(compressed[1].folder.uri, source=tmp_path / "in")
    assert list(load(mixture))
    for path in (tmp_path / "in").rglob("*.array_record-*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{tmp_path}/in/.*array_record-.*needed for sample"):
        list(load(mixture))


# object stores


@pytest.fixture(scope="module")
def store():
    with s3.bucket() as address:
        yield Folder.of(address)


def upload(folder, to):
    for path in folder.rglob("*"):
        if path.is_file():
            to.publish_bytes(str(path.relative_to(folder)), path.read_bytes())


@pytest.fixture(scope="module")
def far(both, place, store):
    """A mixture by reference whose sources, and in another folder the mixture itself, are in a store."""
    source, mixture = store.sub("in"), store.sub(f"mixture-{both[0].mixture.window}")
    upload(place / "in", source)
    upload(both[1].folder.path(), mixture)
    return source, mixture


def test_frames_in_a_store_equal_copies(both, far):
    copied, reference = both
    mixture = MixtureFolder.open(reference.folder.uri, source=far[0].uri)
    all_same(load(copied, steps=12), load(mixture, steps=12))
    all_same(load(copied, start=8, world=2, rank=1), load(mixture, start=8, world=2, rank=1))


def by_id(batches):
    found = {}
    for batch in batches:
        rows = batch["rows"]
        found |= {name: [getattr(rows, f)[i] for f in FIELDS[1:-1]] for i, name in enumerate(rows.sample_id)}
    return found


@pytest.mark.parametrize("local", [False, True])
def test_a_mixture_in_a_store_has_the_same_rows(both, far, local):
    mixture = MixtureFolder.open(far[1].uri, source=None if local else far[0].uri)
    ours, theirs = by_id(load(both[0])), by_id(load(mixture))
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        for a, b in zip(values, theirs[name], strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize(("world", "batch"), [(2, 2), (4, 1)])
def test_a_run_from_a_store_resumes_with_another_division(far, world, batch):
    mixture = MixtureFolder.open(far[1].uri, source=far[0].uri)
    whole = [sorted(by_id([b])) for b in load(mixture, steps=6)]
    parts = [list(load(mixture, world=world, rank=rank, batch_size=batch, start=12, steps=3)) for rank in range(world)]
    for step in range(3):
        assert sorted(name for part in parts for name in by_id([part[step]])) == whole[3 + step]


def test_a_replaced_object_is_an_error(both, place, store, tmp_path):
    source = store.sub("replaced")
    upload(place / "in", source)
    mixture = MixtureFolder.open(both[1].folder.uri, source=source.uri)
    path = mixture.sources[0].shard.path
    good = source.read_bytes(path)
    for bad, message in (
        (good[: len(good) // 2], "(is not the one that was filtered|ends before byte)"),
        (bytes(len(good)), "is not the one that was filtered"),
        (None, r"not found.*--source"),
    ):
        source.remove(path) if bad is None else source.publish_bytes(path, bad)
        with pytest.raises(CurateError, match=f"^{source}/{path}: .*{message}.*needed for sample"):
            list(load(mixture))
    source.publish_bytes(path, good)
    assert list(load(mixture))


def test_frames_of_several_batches_are_requested_ahead(both, far, monkeypatch):
    monkeypatch.setenv("OXE_CURATE_STORE_REQUESTS", "2")
    mixture = MixtureFolder.open(both[1].folder.uri, source=far[0].uri)
    sample_format = SampleFormat.of(mixture)
    rows = open_rows(mixture, split_shards(mixture, "train"), sample_format)
    begun, begin = [], rows._frames.begin
    monkeypatch.setattr(rows._frames, "begin", lambda places: (begun.append(places), begin(places))[1])
    claims = rows.batches(iter(np.arange(len(rows)).reshape(-1, 1)))
    claim = next(claims)
    assert claim()
    images = sample_format.window * len(sample_format.cameras)
    ahead = 32 // images
    deadline = time.monotonic() + 60
    while len(begun) <= ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(begun) == ahead + 1  # and no more
    claims.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("oxe-")]


def test_neighbouring_frames_are_requested_together():
    gap, piece = source_frames._GAP, source_frames.PIECE
    places = [(0, 10, 5), (0, 15, 5), (0, 20 + gap, 7), (0, 28 + 2 * gap, 9)]
    assert list(_joined(iter(places))) == [(10, 27 + gap, places[:3]), (28 + 2 * gap, 37 + 2 * gap, places[3:])]
    large = [(0, 0, piece - 10), (0, piece - 10, 20), (0, piece + 10, 3 * piece)]
    assert [(first, stop) for first, stop, _ in _joined(iter(large))] == [
        (0, piece - 10), (piece - 10, piece + 10), (piece + 10, 4 * piece + 10),
    ]  # fmt: skip
    assert list(_joined(iter(()))) == []


@pytest.mark.parametrize(
    ("window", "cameras", "groups", "size", "expected"),
    [(1, 1, 2000, 16384, (48, 21846)), (12, 2, 2000, 1366, (24, 1821)), (1, 1, 3, 1000, (1, 1 << 20))],
)
def test_few_row_groups_are_in_memory_however_large_they_are(window, cameras, groups, size, expected):
    """Of a mixture in a store: the rows that are mixed, and a row group more per lane. The same in every release."""
    rows = object.__new__(ReferenceRows)
    rows._rows = object.__new__(RemoteRows)
    rows._rows._starts = np.arange(groups + 1) * size
    rows._format = type("Format", (), {"window": window, "cameras": range(cameras)})
    order = rows.order(0, 96, 4)
    assert (order.lanes, order.pool) == expected
    held = min(order.lanes * (order.pool + 2 * size), groups * size)
    assert held * window * cameras <= 4 * (1 << 20)
    drawn = order.rows(np.arange(960))
    assert len(np.unique(drawn // size)) >= min(groups, order.lanes)
