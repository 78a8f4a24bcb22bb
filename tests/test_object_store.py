"""filter and tokenize from and to s3://, against a server on this machine."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.rlds.object_shard import RemoteShard
from oxe_curate.storage import Folder
from oxe_curate.storage.link import Link
from oxe_curate.tokenize.materialize import MaterializeOptions, run_materialize
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import bridge, s3

pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Folder]:
    with s3.bucket() as address:
        yield Folder.of(f"{address}/data")


def upload(folder: Path, target: Folder) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            target.publish_bytes(str(path.relative_to(folder)), path.read_bytes())


def test_from_the_bucket_as_from_the_disk(bucket: Folder, tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    upload(tmp_path / "in", bucket.sub("in"))
    (tmp_path / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]")
    quiet = FilterOptions(progress=False, workers=1, frames="span")
    run_filter(tmp_path / "in", tmp_path / "index", quiet)
    result = run_filter(f"{bucket}/in", f"{bucket}/index", quiet)
    assert result.summaries["bridge_dataset"].kept == 10
    assert run_filter(f"{bucket}/in", f"{bucket}/index", quiet).shards_done == 0
    for options in (TokenizeOptions(progress=False, workers=1), TokenizeOptions(progress=False, workers=2)):
        run_tokenize(tmp_path / "m.yaml", f"{bucket}/index", f"{bucket}/out{options.workers}", options)
    run_tokenize(tmp_path / "m.yaml", tmp_path / "index", tmp_path / "out", TokenizeOptions(progress=False, workers=1))
    import pyarrow.parquet as pq

    for path in (tmp_path / "out").glob("train-*.parquet"):
        for number in (1, 2):
            with bucket.open(f"out{number}/{path.name}") as file:
                assert pq.read_table(file).equals(pq.read_table(path))


def test_a_mixture_by_reference_in_the_bucket_is_materialized(bucket: Folder, tmp_path: Path) -> None:
    bridge.write(tmp_path / "in")
    upload(tmp_path / "in", bucket.sub("referred"))
    run_filter(f"{bucket}/referred", tmp_path / "index", FilterOptions(progress=False, workers=1, frames="exact"))
    options = TokenizeOptions(progress=False, workers=1, shard_bytes=40_000)
    text = "name: m\ndatasets: [{name: bridge_orig, weight: 1.5}]\nwindow: 2\nimage: {size: 32"
    (tmp_path / "m.yaml").write_text(f"{text}}}")
    run_tokenize(tmp_path / "m.yaml", tmp_path / "index", tmp_path / "out", options)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "m.yaml").write_text(f"{text}, copy: false}}")
    first = run_tokenize(tmp_path / "m.yaml", tmp_path / "index", f"{bucket}/reference", options)
    assert first.shards_done > 2
    assert not [line for line in first.warnings if "not found" in line]
    assert run_tokenize(tmp_path / "m.yaml", tmp_path / "index", f"{bucket}/reference", options).shards_done == 0
    shutil.rmtree(tmp_path / "out")
    quiet = MaterializeOptions(progress=False, workers=1)
    run_materialize(f"{bucket}/reference", tmp_path / "out", quiet)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected
    assert run_materialize(f"{bucket}/reference", f"{bucket}/copy", quiet).shards_done == first.shards_done
    assert run_materialize(f"{bucket}/reference", f"{bucket}/copy", quiet).shards_done == 0
    for name in expected.keys() - {"manifest.json"}:
        assert bucket.read_bytes(f"copy/{name}") == expected[name]


def test_texts_and_windows_from_the_bucket(bucket: Folder, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from oxe_curate.errors import ConfigError
    from tests.mixture.test_texts import write

    bridge.write(tmp_path / "in")
    run_filter(tmp_path / "in", tmp_path / "index", FilterOptions(progress=False, workers=1))
    write(tmp_path / "vqa/a.parquet", 20)
    upload(tmp_path / "vqa", bucket.sub("vqa"))
    mixture = "name: m\ndatasets: [{name: bridge_orig, weight: 1}]\nwindow: 3\nstride: 2\n"
    options = TokenizeOptions(progress=False, workers=1)
    for name, path in (("here", "vqa"), ("there", f"{bucket}/vqa"), ("one", f"{bucket}/vqa/a.parquet")):
        (tmp_path / "m.yaml").write_text(f"{mixture}texts: [{{name: vqa, path: '{path}', weight: 0.5}}]")
        run_tokenize(tmp_path / "m.yaml", tmp_path / "index", tmp_path / name, options)
    (shard,) = (tmp_path / "here").glob("text-*.parquet")
    assert 0 < len(pq.read_table(shard)) < 20
    assert shard.read_bytes() == (tmp_path / "there" / shard.name).read_bytes()
    assert shard.read_bytes() == (tmp_path / "one" / shard.name).read_bytes()
    (tmp_path / "m.yaml").write_text(f"{mixture}texts: [{{name: vqa, path: '{bucket}/vqq', weight: 0.5}}]")
    with pytest.raises(ConfigError, match=r"vqq: no \.parquet file found"):
        run_tokenize(tmp_path / "m.yaml", tmp_path / "index", tmp_path / "none", options)


def test_images_are_not_fetched(bucket: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "gap", 1 << 20)
    import numpy as np

    from oxe_curate.rlds import example, tfrecord
    from oxe_curate.rlds.encode import encode_example
    from oxe_curate.rlds.tfrecord import frame_record

    record = encode_example({"a": np.float32([1, 2]), "image": [bytes(4 << 20)], "z": np.float32([3])})
    bucket.publish_bytes("big", frame_record(record) * 2)
    shard = RemoteShard(bucket, "big")
    for offset, length in tfrecord.records(shard.buffer, shard.ensure):
        spans = example.scan(shard.buffer, offset, length, frozenset([b"a", b"z"]), shard.ensure)
        for span in spans.values():
            shard.ensure(span.offset, span.length)
        assert example.floats(shard.buffer, spans[b"a"]).tolist() == [1, 2]
        assert example.floats(shard.buffer, spans[b"z"]).tolist() == [3]
    assert shard.bytes_fetched < 2 << 20
    assert len(shard.buffer) > 8 << 20


def test_a_wrong_key_or_bucket_is_named(bucket: Folder) -> None:
    from oxe_curate.errors import StorageError

    with pytest.raises(StorageError, match="s3://bucket/data/nothing"):
        bucket.size("nothing")
    with pytest.raises(StorageError, match="s3://no-such-bucket"):
        Folder.of("s3://no-such-bucket/x").open("y")


def test_public_google_buckets_need_no_credentials() -> None:
    code = "from oxe_curate.storage import Folder; print(type(Folder.of('gs://gresearch/x')._full('')[0]).__name__)"
    env = {**os.environ, "HOME": "/nonexistent", "HTTPS_PROXY": "http://127.0.0.1:9"}  # nothing is connected to
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60, check=True)
    assert done.stdout.strip() == "GcsFileSystem"


def test_no_route_to_google_is_one_message_within_seconds() -> None:
    from oxe_curate.storage.systems import check_reachable

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_reachable("127.0.0.1", port)
    with pytest.raises(OSError, match=rf"cannot connect to 127\.0\.0\.1:{port} .*HTTPS_PROXY"):
        check_reachable("127.0.0.1", port)
    with pytest.raises(OSError, match=r"cannot connect to no-such-host\.invalid:443"):
        check_reachable("no-such-host.invalid", 443)


def test_odd_names_markers_and_slashes(bucket: Folder) -> None:
    folder = bucket.sub("odd")
    names = ["a b.bin", "50%20#1?.bin", "übung/ö.bin", "+&=.bin", "x" * 200]
    for name in names:
        folder.publish_bytes(name, name.encode())
    from pyarrow import fs

    system, full = folder._full("marker/")
    system.create_dir(full, recursive=False)  # an object named "…/marker/"
    assert system.get_file_info(full).type == fs.FileType.Directory
    assert [file.name for file in folder.list_files()] == sorted(names)
    for again in (Folder.of(f"{folder}/"), Folder.of(f"{folder}//")):
        assert [file.name for file in again.list_files()] == sorted(names)
    for file in folder.list_files():
        assert folder.read_bytes(file.name) == file.name.encode()
        assert folder.read_bytes(file.name, 1, 2) == file.name.encode()[1:3]
        assert folder.size(file.name) == file.size == len(file.name.encode())
        assert folder.identity(file.name).startswith(f"{file.identity}:")
        folder.remove(file.name)
        assert not folder.exists(file.name)
    assert folder.list_files() == []
    assert bucket.sub("never/was").list_files() == []


def test_the_identity_of_an_object_is_its_etag(bucket: Folder) -> None:
    bucket.publish_bytes("same", b"1" * 100)
    before = bucket.identity("same")
    assert bucket.identity("same") == before
    bucket.publish_bytes("same", b"2" * 100)
    assert bucket.identity("same") != before


def test_a_bucket_must_be_named() -> None:
    from oxe_curate.errors import StorageError

    for uri in ("s3://", "s3:///x", "gs://"):
        with pytest.raises(StorageError, match=r"no bucket is named|unknown scheme"):
            Folder.of(uri).exists("x")
