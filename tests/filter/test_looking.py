"""What `filter --look N` keeps of the frames it decodes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from oxe_curate.filter.frames import FrameLook
from oxe_curate.filter.looking import look_at_camera, spread
from oxe_curate.filter.pipeline import FilterOptions, run_filter
from oxe_curate.index.looks import LOOKS, looks_column, read_looked_frames
from oxe_curate.quality.looks import FRAME_FIELDS, LookedFrames, join_looks
from tests import bridge
from tests.filter.test_frames import encoded, image_of, listed


def look_at(frames: list[bytes], count: int = 8) -> LookedFrames:
    buffer, span = listed(*frames)
    look = FrameLook(buffer)
    return look_at_camera(look, look.ranges(span), count)


def test_frames_are_evenly_spread_with_the_first_and_the_last() -> None:
    assert spread(11, 3).tolist() == [0, 5, 10]
    assert spread(2, 8).tolist() == [0, 1]
    assert spread(9, 1).tolist() == [0]
    assert spread(0, 4).tolist() == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_frame_is_described(kind: str) -> None:
    half = np.zeros((96, 128, 3), np.uint8)
    half[:, 64:] = (200, 100, 50)
    found = look_at([encoded(half, kind, **({"quality": 95} if kind == "JPEG" else {}))])
    assert (found.step.tolist(), found.width.tolist(), found.height.tolist()) == ([0], [128], [96])
    assert found.channels.tolist() == [3]
    assert found.mean[0] == pytest.approx([100, 50, 25], abs=2)
    assert found.deviation[0] == pytest.approx([100, 50, 25], abs=3)
    assert found.grey[0, 3, 2] < 5
    assert found.grey[0, 3, 12] == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=3)
    assert found.colour[0, 1, 3] == pytest.approx([200, 100, 50], abs=4)
    assert 0.1 < found.detail[0] < 2


def test_detail_tells_noise_from_a_smooth_image_at_any_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    smooth = image_of(size=(256, 256))
    detail = look_at([encoded(noise, "PNG"), encoded(smooth), encoded(smooth.resize((64, 64)))]).detail
    assert detail[0] > 3 * detail[1]
    assert detail[1] == pytest.approx(detail[2], rel=0.3)


def test_other_kinds_of_images_are_read() -> None:
    image = image_of()
    deep = Image.fromarray(np.full((64, 64), 40000, np.uint16))
    kinds = [encoded(image.convert("L")), encoded(image.convert("RGBA"), "PNG"), encoded(image.convert("P"), "PNG")]
    found = look_at([*kinds, encoded(image.convert("CMYK")), encoded(deep, "PNG")])
    assert (found.width > 0).all()
    assert found.channels.tolist() == [1, 4, 3, 4, 1]
    assert found.mean[4, 0] == pytest.approx(40000 / 256, abs=1)


def test_a_frame_without_an_image_has_no_size() -> None:
    good = encoded(image_of())
    found = look_at([good, b"", b"no image", good[:-200], good])
    assert found.width.tolist() == [64, 0, 0, 0, 64]
    assert found.length.tolist() == [len(good), 0, 8, len(good) - 200, len(good)]
    assert found.checksum[0] == found.checksum[4] != found.checksum[2]


def test_the_column_gives_back_what_was_written(tmp_path: Path) -> None:
    looks = [look_at([encoded(image_of(seed)) for seed in range(n)], 3) for n in (2, 5, 1)]
    rows = [{"primary": looks[0], "wrist": looks[1]}, None, {}, {"wrist": looks[2]}]
    table = pa.table({"look": looks_column(rows)})
    assert table.schema.field("look").type == LOOKS
    pq.write_table(table, tmp_path / "look.parquet")
    column = pq.read_table(tmp_path / "look.parquet")["look"]
    assert column.is_null().to_pylist() == [False, True, False, False]
    found = read_looked_frames(column)
    assert {role: frames.counts.tolist() for role, frames in found.items()} == {
        "primary": [2, 0, 0, 0], "wrist": [3, 0, 0, 1],
    }  # fmt: skip
    for name in FRAME_FIELDS:
        expected = getattr(join_looks([looks[1], looks[2]]), name)
        assert np.array_equal(getattr(found["wrist"], name), expected), name
    assert read_looked_frames(column.slice(3))["wrist"].step.tolist() == [0]
    assert read_looked_frames(column.slice(1, 1)) == {}


def test_filter_looks_at_every_camera_that_it_locates(tmp_path: Path) -> None:
    bridge.write(tmp_path / "source")
    run_filter(tmp_path / "source", tmp_path / "plain", FilterOptions(progress=False, workers=1))
    for frames in ("exact", "span"):
        options = FilterOptions(progress=False, workers=1, look=3, frames=frames)  # type: ignore[arg-type]
        run_filter(tmp_path / "source", tmp_path / frames, options)
        path = "bridge_dataset/1.0.0/train-00001-of-00002.parquet"
        assert pq.read_table(tmp_path / "plain" / path)["look"].null_count == 4
        table = pq.read_table(tmp_path / frames / path)
        found = read_looked_frames(table["look"])
        assert sorted(found) == ["extra", "primary", "secondary"]
        assert found["primary"].counts.tolist() == [3] * 4
        first = found["secondary"].take(np.array([0]))
        steps = table["frame_index"][0].as_py()
        assert first.step.tolist() == [0, 2, 4]
        for step, mean in zip(first.step.tolist(), first.mean, strict=True):
            assert mean == pytest.approx(bridge.colour(1, steps[step], 1)[0, 0], abs=3)
