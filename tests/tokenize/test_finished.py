"""A finished shard counts only with the bytes that were written: flipped bits, lost parts, an object store."""

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from oxe_curate.errors import DataError
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.storage import Folder
from oxe_curate.tokenize.checksum import ChecksumSink, hash_file
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.tokenize.pipeline import TokenizeOptions, run_tokenize
from tests import bridge, s3
from tests.mixture.test_texts import write as write_texts
from tests.tokenize.test_pipeline import tokenize, tree


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index")
    bridge.write(root / "in", episodes={"train": [bridge.episode(i, 6 + i % 5) for i in range(12)]})
    run_filter(root / "in", root / "index", FilterOptions(progress=False, workers=1))
    return root / "index"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << place % 8
    path.write_bytes(data)


def regions(path: Path) -> dict[str, int]:
    """A byte in every part of a shard."""
    data, footer = path.read_bytes(), pq.read_metadata(path)
    length = int.from_bytes(data[-8:-4], "little")
    chunks = [footer.row_group(0).column(i) for i in range(footer.num_columns)]
    columns = {chunk.path_in_schema: chunk for chunk in chunks}
    image, action = columns["image_primary.bytes"], columns["action.list.element.list.element"]
    return {
        "magic number": 0,
        "image page header": image.data_page_offset + 1,
        "image page": image.data_page_offset + image.total_compressed_size // 2,
        "end of the image page": image.data_page_offset + image.total_compressed_size - 1,
        "other page header": action.data_page_offset + 1,
        "other page": action.data_page_offset + action.total_compressed_size - 5,
        "dictionary page": columns["instruction"].dictionary_page_offset + 25,
        "footer": len(data) - 8 - length + 5,
        "fingerprint": data.rindex(b'"fingerprint"') + 20,
        "counts": data.rindex(b'"counts"') + 15,
        "checksum": data.rindex(b"oxe_curate_crc32c") + 21,
        "checksum's key": data.rindex(b"oxe_curate_crc32c") + 3,
        "footer length": len(data) - 7,
        "end": len(data) - 1,
    }


REGIONS = (
    "magic number", "image page header", "image page", "end of the image page", "other page header", "other page",
    "dictionary page", "footer", "fingerprint", "counts", "checksum", "checksum's key", "footer length", "end",
)  # fmt: skip


@pytest.mark.parametrize("manifest", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_anywhere_is_found_and_the_shard_written_again(
    index: Path, tmp_path: Path, region: str, manifest: bool
) -> None:
    out = tmp_path / "out"
    tokenize(index, out, shard_bytes=20_000)
    before = tree(out)
    shard = sorted(out.glob("train-*"))[1]
    places = regions(shard)
    assert tuple(places) == REGIONS
    flip(shard, places[region])
    if not manifest:
        (out / "manifest.json").unlink()
    result = tokenize(index, out, shard_bytes=20_000)
    assert (result.shards_done, result.damaged) == (1, (shard.name,)) or (
        # without a manifest, a shard with another fingerprint may be that of another mixture
        region == "fingerprint" and not manifest and (result.shards_done, result.damaged) == (1, ())
    )
    assert tree(out) == before
    assert tokenize(index, out, shard_bytes=20_000).shards_done == 0


def test_a_flipped_bit_at_any_place_fails_the_checksum(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenize(index, out, "validation: 0")
    (shard,) = out.glob("train-*")
    data, folder = shard.read_bytes(), Folder.of(out)
    expected = hash_file(folder, shard.name)
    assert expected.sha256 == hashlib.sha256(data).hexdigest()
    assert expected.footer_sha256 == hash_file(folder, shard.name, whole=False).footer_sha256
    length = int.from_bytes(data[-8:-4], "little")
    places = {*random.Random(0).sample(range(len(data)), 300), *range(len(data) - 40 - length, len(data), 7)}
    for place in sorted(places):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged|no checksum"):
            hash_file(folder, shard.name)
    for size in (0, 7, 11, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"damaged|no checksum"):
            hash_file(folder, shard.name)


def test_the_checksum_may_be_split_over_two_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from oxe_curate.tokenize import checksum

    sink = io.BytesIO()
    summed = ChecksumSink(sink)
    summed.write(b"PAR1" + bytes(100))
    summed.begin_footer()
    footer = b"a footer" + checksum.CHECKSUM_KEY + b"\x18\x08" + checksum.PLACEHOLDER + b"more"
    summed.write(footer)
    summed.write(len(footer).to_bytes(4, "little") + b"PAR1")
    summed.finish()
    (tmp_path / "a").write_bytes(sink.getvalue())
    for piece in range(1, 150):
        monkeypatch.setattr(checksum, "_PIECE", piece)
        assert hash_file(Folder.of(tmp_path), "a").size == len(sink.getvalue())
    assert checksum.PLACEHOLDER not in sink.getvalue()


def test_pages_have_checksums_that_readers_verify(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_texts(tmp_path / "vqa/a.parquet", 20)
    tokenize(index, out, f"validation: 0\ntexts: [{{name: vqa, path: '{tmp_path}/vqa', weight: 1}}]")
    for shard, column in (("train", "image_primary.bytes"), ("text", "image.bytes")):
        (path,) = out.glob(f"{shard}-*")
        group = pq.read_metadata(path).row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        flip(path, columns[column].data_page_offset + columns[column].total_compressed_size // 2)
        assert len(pq.ParquetFile(path).read())
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            pq.ParquetFile(path, page_checksum_verification=True).read()
    result = tokenize(index, out, f"validation: 0\ntexts: [{{name: vqa, path: '{tmp_path}/vqa', weight: 1}}]")
    assert sorted(name.split("-")[0] for name in result.damaged) == ["text", "train"]


def test_a_shard_in_the_place_of_another_is_found(index: Path, tmp_path: Path) -> None:
    """It is undamaged, but not the one in the manifest."""
    out = tmp_path / "out"
    tokenize(index, out, shard_bytes=20_000)
    before = tree(out)
    first, second = sorted(out.glob("train-*"))[:2]
    second.write_bytes(first.read_bytes())
    assert tokenize(index, out, shard_bytes=20_000).damaged == (second.name,)
    assert tree(out) == before


def test_a_damaged_shard_of_another_mixture_is_not_replaced(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tokenize(index, out, "validation: 0")
    (shard,) = out.glob("train-*")
    flip(shard, 1000)
    before = tree(out)
    with pytest.raises(Exception, match="contains another finished mixture"):
        tokenize(index, out, "validation: 0\nseed: 1")
    assert tree(out) == before


def test_a_shard_damaged_after_it_was_written_is_not_in_a_manifest(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oxe_curate.tokenize import build

    real = build.build_shard

    def damaging(job: Any, task: Any) -> Any:
        built = real(job, task)
        flip(task.out.path(task.output), 1000)
        return built

    monkeypatch.setattr(build, "build_shard", damaging)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet: damaged"):
        tokenize(index, tmp_path / "out", "validation: 0")
    assert not (tmp_path / "out/manifest.json").exists()
    monkeypatch.undo()
    assert tokenize(index, tmp_path / "out", "validation: 0").damaged == ("train-00000-of-00001.parquet",)


def test_the_command_names_damaged_shards(index: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from oxe_curate.cli.main import app

    out = tmp_path / "out"
    tokenize(index, out, "validation: 0")
    (shard,) = out.glob("train-*")
    flip(shard, 1000)
    arguments = ["tokenize", str(tmp_path / "out.yaml"), "--index", str(index), "--out", str(out), "-q"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert f"damaged, written again: {shard}" in done.output
    assert "1 shard written" in done.output


def test_in_an_object_store_verify_reads_every_byte(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("moto.server")
    (tmp_path / "m.yaml").write_text("name: m\ndatasets: [{name: bridge_dataset, weight: 1}]\nvalidation: 0")
    with s3.bucket() as address:
        out = Folder.of(f"{address}/out")

        def run(verify: bool = False) -> Any:
            options = TokenizeOptions(workers=1, progress=False, shard_bytes=8000, verify=verify)
            return run_tokenize(tmp_path / "m.yaml", index, out.uri, options)

        names = sorted(name for name in run().manifest["outputs"] if name.startswith("train-"))
        assert len(names) > 3
        assert not [name for name, _, _ in out.list() if name.startswith(".oxe-tmp")]
        reads: list[str] = []
        with monkeypatch.context() as patch:
            real = Folder.read_bytes
            patch.setattr(Folder, "read_bytes", lambda self, path, *a: reads.append(path) or real(self, path, *a))
            assert run().shards_done == 0
        assert not [path for path in reads if path.startswith("train-")]  # one listing
        assert MixtureFolder.open(out.uri).shards("train") == names
        manifest = json.loads(out.read_bytes("manifest.json"))
        assert "sha256" not in manifest["outputs"][names[0]]
        data = bytearray(out.read_bytes(names[0]))
        data[500] ^= 1
        out.publish_bytes(names[0], data)
        assert run().shards_done == 0  # the size is as it was
        assert run(verify=True).damaged == (names[0],)
        assert run().shards_done == 0
        out.publish_bytes("dataset_statistics.json", b"{}")
        assert (run().shards_done, out.read_bytes("dataset_statistics.json") != b"{}") == (0, True)
        assert run(verify=True).shards_done == 0
        assert "sha256" in json.loads(out.read_bytes("manifest.json"))["outputs"][names[0]]
        out.publish_bytes(names[1], out.read_bytes(names[1])[:-3])
        assert run().damaged == (names[1],)
        out.remove(names[2])
        assert (run().damaged, run(verify=True).shards_done) == ((), 0)


def test_hashes_of_a_shard_are_those_of_the_file(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made while it is written; the file is not read again."""
    from oxe_curate.tokenize import manifest

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "hash_file", None)
        entries = tokenize(index, tmp_path / "out", "validation: 0").manifest["outputs"]
    (shard,) = (tmp_path / "out").glob("train-*")
    expected = hash_file(Folder.of(tmp_path / "out"), shard.name)
    assert entries[shard.name]["sha256"] == expected.sha256 == hashlib.sha256(shard.read_bytes()).hexdigest()
    assert entries[shard.name]["footer_sha256"] == expected.footer_sha256
    assert entries[shard.name]["bytes"] == expected.size
