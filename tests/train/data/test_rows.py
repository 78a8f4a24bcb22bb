"""Rows of local shards, found by byte offset, equal those that pyarrow reads."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oxe_curate.actions.summary import ActionSummary, summarize
from oxe_curate.errors import ConfigError, DataError
from oxe_curate.index.images import decode
from oxe_curate.tokenize.folder import MixtureFolder
from oxe_curate.train.data import pages
from oxe_curate.train.data.assemble import assemble, decode_into
from oxe_curate.train.data.local import LocalRows
from oxe_curate.train.data.rows import SampleFormat, normalize_proprio
from oxe_curate.train.data.shards import split_shards
from tests.train import mixtures


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return mixtures.index(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def plain(index, tmp_path_factory):
    return mixtures.build(index, tmp_path_factory.mktemp("plain") / "out", "chunk: 3\nvalidation: 0")


def read_all(mixture, sample_format, size=16, split="train"):
    source = LocalRows(mixture, split_shards(mixture, split), sample_format)
    everything = np.arange(len(source))
    return assemble(everything, source.claim(everything)(), sample_format, size, 0)


def encode(data: list[bytes | None], page: int, version: str) -> tuple[bytes, int]:
    sink = io.BytesIO()
    image = pa.StructArray.from_arrays(
        [pa.array(data, pa.binary()), pa.nulls(len(data), pa.string())], ["bytes", "path"]
    )
    pq.write_table(
        pa.table({"other": pa.array(range(len(data))), "image": image}), sink, compression="none", use_dictionary=False,
        data_page_size=page, data_page_version=version, write_batch_size=3, row_group_size=max(len(data), 1),
        write_statistics=True,
    )  # fmt: skip
    return sink.getvalue(), sum(item is not None for item in data)


@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=40)), min_size=1, max_size=40),
    st.sampled_from([1, 64, 10_000]),
    st.sampled_from(["1.0", "2.0"]),
)
def test_all_values_are_found_in_any_page_layout(data, page, version):
    file, count = encode(data, page, version)
    chunk = pq.read_metadata(io.BytesIO(file)).row_group(0).column(1)
    offsets, lengths = pages.image_offsets(
        lambda offset, length: file[offset : offset + length],
        chunk.data_page_offset, chunk.total_compressed_size, count, (0, 2),
    )  # fmt: skip
    found = [file[o : o + n] for o, n in zip(offsets.tolist(), lengths.tolist(), strict=True)]
    assert found == [item for item in data if item is not None]


def test_damaged_pages_are_errors():
    file, count = encode([b"abc", b"defgh", b"ij"], 10_000, "1.0")
    chunk = pq.read_metadata(io.BytesIO(file)).row_group(0).column(1)
    start, size = chunk.data_page_offset, chunk.total_compressed_size

    def find(data, count=count, size=size):
        return pages.image_offsets(lambda o, n: data[o : o + n], start, size, count, (0, 2))

    place = file.index(b"\x03\0\0\0abc")
    with pytest.raises(DataError, match="do not add up"):
        find(file[:place] + b"\x04" + file[place + 1 :])
    with pytest.raises(DataError, match="expected 4 images in its pages, got 3"):
        find(file, count=4)
    with pytest.raises(DataError, match="past the end"):
        find(file, size=size - 1)
    with pytest.raises(DataError, match="header is damaged"):
        find(file[:start] + bytes(10) + file[start + 10 :])


def test_rows_equal_those_of_pyarrow(plain):
    rows = read_all(plain, SampleFormat.of(plain, proprio=True))
    expected = mixtures.shard_rows(plain, "train")
    assert len(plain.shards("train")) > 3
    assert list(rows.sample_id) == [r["sample_id"] for r in expected]
    assert list(rows.instruction) == [r["instruction"] for r in expected]
    assert np.array_equal(rows.images[:, 0, 0], [decode(r["image_primary"]["bytes"]) for r in expected])
    for name, found in (("action", rows.actions), ("bins", rows.bins), ("action_mask", rows.action_mask)):
        assert np.array_equal(found[:, 0], [r[name] for r in expected])
    assert rows.actions.shape == (len(expected), 1, 3, 7)
    assert (rows.actions.dtype, rows.bins.dtype, rows.action_mask.dtype) == (np.float32, np.uint8, np.bool_)
    assert rows.observation_mask.all()
    state = np.float32([r["proprio"] for r in expected])
    summary = plain.statistics["bridge_orig"].proprio
    assert summary is not None
    q01, q99 = summary.q01.astype(np.float32), summary.q99.astype(np.float32)
    moving = summary.min != summary.max
    expected_state = np.clip(2 * (state - q01)[:, moving] / (q99 - q01)[moving] - 1, -1, 1)
    assert np.allclose(rows.proprio[:, moving], expected_state, atol=1e-5)
    assert (rows.proprio[:, ~moving] == 0).all()


def test_a_shorter_chunk_is_the_start_of_a_longer_one(plain):
    long, short = read_all(plain, SampleFormat.of(plain)), read_all(plain, SampleFormat.of(plain, chunk=1))
    assert np.array_equal(short.actions, long.actions[:, :, :1])
    assert long.proprio.shape == (len(long.position), 0)


@pytest.fixture(scope="module")
def windows(index, tmp_path_factory):
    text = "window: 4\nchunk: 2\nstride: 3\nvalidation: 0\nimage: {cameras: [primary, secondary]}"
    return mixtures.build(index, tmp_path_factory.mktemp("windows") / "out", text)


def test_a_window_matches_single_steps(index, windows, tmp_path):
    """Frames, actions and masks of each observation are those of its own step, in both cameras."""
    single = mixtures.build(index, tmp_path / "out", "validation: 0\nimage: {cameras: [primary, secondary]}")
    steps = {r["sample_id"]: r for r in mixtures.shard_rows(single, "train")}
    sample_format = SampleFormat.of(windows, cameras=["secondary", "primary"])
    rows = read_all(windows, sample_format)
    assert rows.images.shape[1:3] == (4, 2)
    assert not rows.observation_mask.all()
    for i, name in enumerate(rows.sample_id):
        episode, _, text = name.rpartition("/")
        for w in range(4):
            step = int(text) - 3 + w
            assert rows.observation_mask[i, w] == (step >= 0)
            shown = steps[f"{episode}/{max(step, int(text) - 3, 0):05d}"]
            for c, role in enumerate(("secondary", "primary")):
                assert np.array_equal(rows.images[i, w, c], decode(shown[f"image_{role}"]["bytes"]))
            for k in range(2):
                there = steps.get(f"{episode}/{step + k:05d}")
                assert rows.action_mask[i, w, k] == (there is not None)
                if there is not None:
                    assert np.array_equal(rows.actions[i, w, k], np.float32(there["action"][0]))
                    assert np.array_equal(rows.bins[i, w, k], there["bins"][0])


def test_a_shorter_window_is_the_end_of_a_longer_one(windows):
    long, short = (
        read_all(windows, SampleFormat.of(windows)),
        read_all(windows, SampleFormat.of(windows, window=2, chunk=1)),
    )
    assert np.array_equal(short.images, long.images[:, 2:])
    assert np.array_equal(short.actions, long.actions[:, 2:, :1])
    assert np.array_equal(short.observation_mask, long.observation_mask[:, 2:])


def test_unavailable_cameras_windows_and_chunks_are_refused(plain):
    with pytest.raises(ConfigError, match=r"no 'wrist'.*primary"):
        SampleFormat.of(plain, cameras=["wrist"])
    with pytest.raises(ConfigError, match=r"chunk: expected 1 to 3, .* got 8"):
        SampleFormat.of(plain, chunk=8)
    with pytest.raises(ConfigError, match=r"window: expected 1 to 1, .* got 2"):
        SampleFormat.of(plain, window=2)


def test_a_row_has_the_documented_size(plain, windows):
    width = windows.statistics["bridge_orig"].proprio.width
    for sample_format, expected in (
        (SampleFormat.of(plain, chunk=1), 36 + 1 + 16 + 4),
        (
            SampleFormat.of(windows, proprio=True),
            36 * 5 + 4 + 4 * width + 16 * 8 + 4,
        ),
    ):
        assert sample_format.record.itemsize == expected  # plus 8 bytes for the reference to the instruction


def test_shards_with_another_chunk_are_refused(plain):
    sample_format = dataclasses.replace(SampleFormat.of(plain), stored_chunk=5)
    with pytest.raises(DataError, match=r"train-00\d+.*expected 5 entries of 'action' per row, got 3"):
        read_all(plain, sample_format)


def test_rows_dropped_from_memory_are_read_again(plain):
    sample_format = SampleFormat.of(plain)
    source = LocalRows(plain, split_shards(plain, "train"), sample_format, memory=1)
    everything = np.arange(len(source))
    for order in (everything, everything[::-1]):
        rows = assemble(order, source.claim(order)(), sample_format, 16, 0)
        assert np.array_equal(rows.actions, read_all(plain, sample_format).actions[order])


def copy(mixture: MixtureFolder, out: Path) -> MixtureFolder:
    out.mkdir()
    for path in mixture.folder.path().iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return MixtureFolder.open(str(out))


def test_a_shard_of_another_size_is_refused(plain, tmp_path):
    mixture = copy(plain, tmp_path / "out")
    name = mixture.shards("train")[1]
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match=rf"{name}: \d+ bytes, but the manifest lists \d+"):
        read_all(mixture, SampleFormat.of(mixture))
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}: file or folder not found"):
        read_all(mixture, SampleFormat.of(mixture))


def test_a_damaged_footer_or_image_is_reported(plain, tmp_path):
    mixture = copy(plain, tmp_path / "out")
    name = next(n for n in mixture.shards("train") if mixture.manifest["outputs"][n]["rows"] > 2)
    path = tmp_path / "out" / name
    good = path.read_bytes()
    path.write_bytes(good[:-20] + bytes(20))
    with pytest.raises(DataError, match=rf"{name}: its footer is damaged"):
        read_all(mixture, SampleFormat.of(mixture))
    row = pq.read_table(plain.folder.path(name)).to_pylist()[2]
    jpeg = row["image_primary"]["bytes"]
    assert good.count(jpeg) == 1
    path.write_bytes(good.replace(jpeg, jpeg[:-60] + bytes(60)))
    with pytest.raises(DataError, match=rf"{name}: row 2 \({row['sample_id']}\).*cannot decode"):
        read_all(mixture, SampleFormat.of(mixture))


def test_images_of_another_size_or_mode_are_converted():
    grey = Image.fromarray(np.arange(48 * 32, dtype=np.uint8).reshape(32, 48))
    expected = np.asarray(grey.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC))
    for kind, close in (("PNG", 0), ("JPEG", 30)):
        sink, out = io.BytesIO(), np.zeros((16, 16, 3), np.uint8)
        grey.save(sink, kind, quality=100)
        decode_into(memoryview(sink.getvalue()), out)
        assert np.abs(out.astype(int) - expected).max() <= close
    for broken in (b"", b"nonsense", b"\xff\xd8\xff\xe0"):
        with pytest.raises(ValueError):  # noqa: PT011 (messages of the decoders)
            decode_into(broken, np.zeros((16, 16, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [16, 24])
def test_a_frame_stored_as_bgr_is_decoded_as_rgb(kind, size):
    colours = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    sink, plain, swapped = io.BytesIO(), *np.zeros((2, size, size, 3), np.uint8)
    Image.fromarray(colours).save(sink, kind, quality=95)
    decode_into(sink.getvalue(), plain)
    decode_into(sink.getvalue(), swapped, swapped=True)
    assert np.array_equal(swapped, plain[:, :, ::-1])
    assert not np.array_equal(swapped, plain)


def test_proprio_is_normalized_and_padded():
    summary = summarize(np.float32([[0, 5, 1], [10, 5, 3]]), 0.0, 1.0)[0]
    assert isinstance(summary, ActionSummary)
    found = normalize_proprio([[0, 5, 2], [10, 5, 9], [-3, 6, 1]], summary, 5)
    assert np.allclose(found, [[-1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [-1, 0, -1, 0, 0]], atol=1e-6)
    with pytest.raises(DataError, match="got 2"):
        normalize_proprio([0, 1], summary, 5)
