"""filter and tokenize through a proxy that makes requests to the store fail."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oxe_curate.errors import CurateError, StorageError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.rlds.object_shard import RemoteShard
from oxe_curate.storage import Folder, StoreOptions, attempts, transfers
from oxe_curate.storage.link import Link
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import bridge, s3
from tests.faults import Fault, Proxy, Request

pytest.importorskip("moto.server")

QUIET = FilterOptions(progress=False, workers=1, frames="exact")
SLOW_DOWN = Fault("status")


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Folder, Proxy]]:
    with s3.faulty_bucket() as (address, proxy):
        yield Folder.of(f"{address}/data"), proxy


@pytest.fixture
def proxy(store: tuple[Folder, Proxy], monkeypatch: pytest.MonkeyPatch) -> Proxy:
    for field in ("RETRIES", "TIMEOUT", "REQUESTS"):
        monkeypatch.delenv(f"OXE_CURATE_STORE_{field}", raising=False)
    monkeypatch.setattr(attempts, "_FIRST_PAUSE", 0.001)
    store[1].reset()
    return store[1]


@pytest.fixture(scope="module")
def source(store: tuple[Folder, Proxy], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, here and in the bucket, with an index and a mixture made here."""
    folder = tmp_path_factory.mktemp("data")
    bridge.write(folder / "in")
    for path in (folder / "in").rglob("*"):
        if path.is_file():
            store[0].publish_bytes(str(path.relative_to(folder)), path.read_bytes())
    (folder / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]")
    run_filter(folder / "in", folder / "index", QUIET)
    run_tokenize(folder / "m.yaml", folder / "index", folder / "out", TokenizeOptions(progress=False, workers=1))
    return folder


def first_of_each(fault: Fault, times: int = 1) -> Callable[[Request], Fault | None]:
    """Each object's first requests fail, and so do those of each of its ranges."""
    return lambda request: fault if request.number < times else None


def first_read_of_each(fault: Fault) -> Callable[[Request], Fault | None]:
    return lambda request: fault if request.is_read and request.number == 0 else None


def _first_of_a_shard(request: Request) -> bool:
    return "00000-of-00002" in request.path and request.is_read and request.number == 0


RULES = {
    "503 SlowDown twice": first_of_each(SLOW_DOWN, 2),
    "500": first_of_each(Fault("status", 500, "InternalError")),
    "429": first_of_each(Fault("status", 429, "TooManyRequests")),
    "reset": first_of_each(Fault("reset"), 3),  # the client repeats one itself
    "cut": first_read_of_each(Fault("cut")),
    "short": first_read_of_each(Fault("short")),
    "stall": lambda request: Fault("stall") if _first_of_a_shard(request) else None,
}


@pytest.mark.parametrize("name", RULES)
def test_faults_that_pass_change_nothing(
    name: str, source: Path, store: tuple[Folder, Proxy], proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = store[0], store[0].sub(f"through/{name.split()[0]}")
    if name == "stall":
        monkeypatch.setenv("OXE_CURATE_STORE_TIMEOUT", "0.7")
    proxy.reset(RULES[name])
    result = run_filter(f"{folder}/in", f"{out}/index", QUIET)
    assert result.summaries["bridge_dataset"].kept == 10
    run_tokenize(source / "m.yaml", f"{out}/index", f"{out}/out", TokenizeOptions(progress=False, workers=1))
    assert any(request.number for request in proxy.requests)
    proxy.reset()
    for path in (source / "index/bridge_dataset").rglob("*.parquet"):
        assert out.read_bytes(str(path.relative_to(source))) == path.read_bytes()
    for path in (source / "out").glob("*.parquet"):
        assert out.read_bytes(f"out/{path.name}") == path.read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (SLOW_DOWN, r"the store failed: .*(?i:SLOW_?DOWN|HTTP 503) to \w+ \(2 tries in \d+ s\).*--store-retries"),
        (Fault("cut"), r"the store failed: .*end of response with \d+ bytes missing \(2 tries"),
        (Fault("short"), r"the store failed: the answer ended early, at \d+ of \d+ bytes \(2 tries"),
        (Fault("reset"), r"the store failed: .*reset.* \(2 tries"),
        (Fault("stall"), r"the store failed: no answer within 0\.5\d* s \(2 tries"),
        (Fault("status", 403, "AccessDenied"), r"access denied\. Check the credentials.*AccessDenied to GetObject"),
        (Fault("status", 404, "NoSuchKey"), r"not found\. .*NoSuchKey to GetObject"),
        (Fault("status", 400, "ExpiredToken"), r"the credentials have expired\. Renew them"),
    ],
    ids=lambda value: f"{value.kind} {value.status}" if isinstance(value, Fault) else "",
)
def test_faults_that_stay_name_the_object_the_answer_and_the_tries(
    fault: Fault, message: str, source: Path, store: tuple[Folder, Proxy], proxy: Proxy, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OXE_CURATE_STORE_RETRIES", "1")
    monkeypatch.setenv("OXE_CURATE_STORE_TIMEOUT", "0.5" if fault.kind == "stall" else "30")
    folder = store[0]
    broken = "train.tfrecord-00001"
    proxy.reset(lambda request: fault if broken in request.path and request.is_read else None)
    out = f"{folder}/stays/{fault.kind}{fault.status}"
    with pytest.raises(StorageError, match=rf"{folder}/in/\S*{broken}\S*: {message}"):
        run_filter(f"{folder}/in", out, QUIET)
    proxy.released.set()
    proxy.released.clear()
    proxy.reset()
    monkeypatch.delenv("OXE_CURATE_STORE_TIMEOUT")
    assert run_filter(f"{folder}/in", out, QUIET).shards_done == 1  # resumed


@pytest.mark.parametrize("kind", ["index", "source", "list", "write"])
def test_a_store_that_is_down_is_a_storage_error_everywhere(
    kind: str, source: Path, store: tuple[Folder, Proxy], proxy: Proxy, monkeypatch: Any
) -> None:
    folder = store[0]
    run_filter(f"{folder}/in", f"{folder}/down/index", QUIET)
    monkeypatch.setenv("OXE_CURATE_STORE_RETRIES", "0")
    down = {
        "index": lambda request: request.is_read and "down/index/bridge" in request.path,
        "source": lambda request: request.is_read and ".tfrecord" in request.path,
        "list": lambda request: "list-type" in request.query,
        "write": lambda request: request.method in ("PUT", "POST"),
    }[kind]
    proxy.reset(lambda request: SLOW_DOWN if down(request) else None)
    with pytest.raises(CurateError, match=r"s3://bucket/data\S*: .*(?i:SLOW_?DOWN|503)") as caught:
        run_tokenize(
            source / "m.yaml", f"{folder}/down/index", f"{folder}/down/out", TokenizeOptions(progress=False, workers=1)
        )
    assert type(caught.value) is StorageError


def test_an_object_that_is_replaced_between_two_reads_is_noticed(
    source: Path, store: tuple[Folder, Proxy], proxy: Proxy
) -> None:
    folder = store[0]
    folder.publish_bytes("replaced", b"a" * 100_000)
    shard = RemoteShard(folder, "replaced")
    assert bytes(shard.read(0, 10)) == b"a" * 10
    folder.publish_bytes("replaced", b"b" * 100_000)
    assert bytes(shard.read(90_000, 10)) == b"b" * 10
    with pytest.raises(StorageError, match=r"data/replaced: was replaced while being read"), shard:
        pass
    folder.publish_bytes("replaced", b"c" * 100_000)
    shard = RemoteShard(folder, "replaced")
    folder.publish_bytes("replaced", b"c" * 80_000)
    with pytest.raises(StorageError, match=r"data/replaced: was replaced.*100000:.*now 80000:"):
        shard.read(70_000, 20_000)


def test_an_answer_that_ends_early_is_noticed_whatever_its_last_byte_is(
    store: tuple[Folder, Proxy], proxy: Proxy, monkeypatch: Any
) -> None:
    folder = store[0]
    folder.publish_bytes("aaa", b"a" * 50_000)
    opened = folder.open_object("aaa")
    monkeypatch.setattr("oxe_curate.storage.objects.os.urandom", lambda n: b"a" * n)
    assert opened.read_at(50_000, 0) == b"a" * 50_000
    proxy.reset(lambda request: Fault("short") if request.range == "bytes=30000-49999" and request.number < 3 else None)
    assert opened.read_at(20_000, 30_000) == b"a" * 20_000
    assert len([request for request in proxy.requests if request.is_read]) == 4


def test_requests_in_flight_are_bounded_and_many(store: tuple[Folder, Proxy], proxy: Proxy, monkeypatch: Any) -> None:
    import threading

    folder = store[0]
    monkeypatch.setenv("OXE_CURATE_STORE_REQUESTS", "8")
    monkeypatch.setattr(Link, "gap", 64 << 10)
    folder.publish_bytes("many", bytes(8 << 20))
    at_once, most, gate = 0, 0, threading.Condition()

    def wait_for_eight(request: Request) -> None:
        nonlocal at_once, most
        with gate:
            at_once += 1
            most = max(most, at_once)
            gate.notify_all()
            gate.wait_for(lambda: most >= 8, timeout=60)
            at_once -= 1

    shard = RemoteShard(folder, "many")
    proxy.reset(lambda request: wait_for_eight(request) if request.is_read else None)
    monkeypatch.setattr(transfers, "_workers", transfers._Workers())
    shard.prefetch_many([(start, 100) for start in range(0, 8 << 20, 512 << 10)])
    shard.wait()
    assert most == 8
    ranges = {request.range for request in proxy.requests if request.is_read}
    assert len({r for r in ranges if r}) == 16
    assert shard.bytes_fetched == 16 * 4096


def test_framing_is_compared_where_an_object_looks_different(
    source: Path, store: tuple[Folder, Proxy], proxy: Proxy, tmp_path: Path, monkeypatch: Any
) -> None:
    """Far from the frames it costs requests of its own, so not where the object still looks as when it was filtered."""
    monkeypatch.setattr(Link, "gap", 8192)
    options = TokenizeOptions(progress=False, workers=1, check_records=False)
    run_filter(f"{store[0]}/in", tmp_path / "index", QUIET)
    shutil.copytree(tmp_path / "index", tmp_path / "other")
    text = (tmp_path / "other" / "sources.json").read_text()
    (tmp_path / "other" / "sources.json").write_text(re.sub(r'": "\d+:', '": "1:', text))
    reads = {}
    for name in ("index", "other"):
        proxy.reset()
        run_tokenize(source / "m.yaml", tmp_path / name, tmp_path / f"out-{name}", options)
        reads[name] = [request.range for request in proxy.requests if request.is_read and "tfrecord" in request.path]
    assert 0 < len(reads["index"]) < len(reads["other"])
    for path in (tmp_path / "out-index").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "out-other" / path.name).read_bytes()


def test_requests_of_a_first_run_and_of_one_with_nothing_to_do(
    source: Path, store: tuple[Folder, Proxy], proxy: Proxy
) -> None:
    folder, shards = store[0], 4
    run_filter(f"{folder}/in", f"{folder}/counted/index", QUIET)
    first = len(proxy.requests)
    proxy.reset()
    assert run_filter(f"{folder}/in", f"{folder}/counted/index", QUIET).shards_done == 0
    assert [request for request in proxy.requests if ".tfrecord" in request.path] == []
    assert [request for request in proxy.requests if ".parquet" in request.path] == []
    assert len(proxy.requests) <= 55  # listings and the small files of the data set and the index
    assert first <= 60 + 11 * shards  # each index file is read whole once, to compare the episodes


def test_options_travel_with_the_pickled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    from oxe_curate.beam.fn import DoTask
    from oxe_curate.beam.task import Share

    StoreOptions(retries=9, timeout=1.5, requests=3).apply()
    sent = pickle.dumps(DoTask(len))
    for field in ("RETRIES", "TIMEOUT", "REQUESTS"):
        monkeypatch.delenv(f"OXE_CURATE_STORE_{field}")
    assert StoreOptions.current() == StoreOptions()
    pickle.loads(sent).process(Share([]))
    assert StoreOptions.current() == StoreOptions(9, 1.5, 3)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("many", "-1", "1e9", "nan"):
        monkeypatch.setenv("OXE_CURATE_STORE_TIMEOUT", value)
        with pytest.raises(CurateError, match="OXE_CURATE_STORE_TIMEOUT: expected a number"):
            StoreOptions.current()
