"""filter and tokenize from and to gs://, against an emulator's process, through a proxy that makes requests fail."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from oxe_curate.errors import StorageError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.rlds.object_shard import RemoteShard
from oxe_curate.storage import Folder, attempts
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import bridge, gcs
from tests.faults import Fault, ProxyProcess, Reads, no_faults

QUIET = FilterOptions(progress=False, workers=1, frames="exact")
ONE = TokenizeOptions(progress=False, workers=1)


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Folder, ProxyProcess]]:
    with gcs.faulty_bucket() as (address, proxy):
        yield Folder.of(f"{address}/data"), proxy


@pytest.fixture
def bucket(store: tuple[Folder, ProxyProcess], monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.001)
    store[1].reset()
    return store[0]


def test_from_and_to_the_bucket_as_from_and_to_the_disk(
    bucket: Folder, store: tuple[Folder, ProxyProcess], tmp_path: Path
) -> None:
    bridge.write(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*"):
        if path.is_file():
            bucket.publish_bytes(str(path.relative_to(tmp_path)), path.read_bytes())
    (tmp_path / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]")
    run_filter(tmp_path / "in", tmp_path / "index", QUIET)
    run_tokenize(tmp_path / "m.yaml", tmp_path / "index", tmp_path / "out", ONE)
    some = "train.tfrecord-00000"
    once = {"cut": Reads(Fault("cut"), 1, some), "down": Reads(Fault("status", 503, "backendError"), 1, some)}
    for name in ("fine", *once):
        store[1].reset(once.get(name, no_faults))
        there = bucket.sub(name)
        assert run_filter(f"{bucket}/in", f"{there}/index", QUIET).summaries["bridge_dataset"].kept == 10
        run_tokenize(tmp_path / "m.yaml", f"{there}/index", f"{there}/out", ONE)
        assert run_filter(f"{bucket}/in", f"{there}/index", QUIET).shards_done == 0
        assert run_tokenize(tmp_path / "m.yaml", f"{there}/index", f"{there}/out", ONE).shards_done == 0
        store[1].reset()
        for folder, pattern in (("index", "bridge_dataset/**/*.parquet"), ("out", "*.parquet")):
            paths = list((tmp_path / folder).glob(pattern))
            assert paths
            for path in paths:
                assert there.read_bytes(str(path.relative_to(tmp_path))) == path.read_bytes()


def test_identities_listings_and_odd_names(bucket: Folder) -> None:
    names = ["names/a b.bin", "names/50%20#1.bin", "names/übung/ö?.bin"]
    for name in names:
        bucket.publish_bytes(name, name.encode())
    found = bucket.list_files("names")
    assert [file.name for file in found] == sorted(names)
    for file in found:
        assert bucket.read_bytes(file.name) == file.name.encode()
        identity = bucket.identity(file.name)
        assert identity.startswith(f"{file.identity}:")
        bucket.publish_bytes(file.name, file.name.encode())
        assert bucket.identity(file.name) != identity  # another generation
        bucket.remove(file.name)
    assert bucket.list_files("names") == []


def test_a_replaced_object_is_noticed(bucket: Folder) -> None:
    bucket.publish_bytes("replaced", b"a" * 100_000)
    shard = RemoteShard(bucket, "replaced")
    shard.read(0, 10)
    bucket.publish_bytes("replaced", b"b" * 100_000)
    with pytest.raises(StorageError, match=r"gs://bucket/data/replaced: .*replaced"), shard:
        shard.read(90_000, 10)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", 503, "backendError"), r"the store failed: .* \(2 tries in \d+ s\)"),
        (Fault("stall"), r"the store failed: no answer within 1.* s \(2 tries in \d+ s\)"),
        (Fault("status", 403, "forbidden"), r"access denied\. Check the credentials"),
        (Fault("status", 404, "notFound"), r"not found\. Check the name"),
    ],
    ids=lambda value: f"{value.kind} {value.status}" if isinstance(value, Fault) else "",
)
def test_faults_that_stay_are_explained(
    fault: Fault, message: str, bucket: Folder, store: tuple[Folder, ProxyProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.publish_bytes("stays", bytes(100_000))
    monkeypatch.setenv("OXE_CURATE_STORE_RETRIES", "1")
    monkeypatch.setenv("OXE_CURATE_STORE_TIMEOUT", "1")
    # the first request of all is made by pyarrow while it holds the interpreter lock
    store[1].reset(Reads(fault, ranges_only=fault.kind == "stall"))
    with pytest.raises(StorageError, match=rf"gs://bucket/data/stays: {message}"):
        RemoteShard(bucket, "stays").read(0, 10)
    store[1].release()


def test_a_missing_bucket_is_named(bucket: Folder) -> None:
    with pytest.raises(StorageError, match="gs://no-such-bucket/x: not found"):
        Folder.of("gs://no-such-bucket").read_bytes("x")
