"""Images at their own sizes on the way to the device: the same batch as if the loader had resized them."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from oxe_curate.errors import DataError
from oxe_curate.train.data import assemble as assembling
from oxe_curate.train.data.assemble import assemble
from oxe_curate.train.data.mixed import MixedImages, crop_images, packed, pixels_of
from oxe_curate.train.data.rows import SampleFormat
from oxe_curate.train.loop.validate import HeldOut, to_device

CPU = torch.device("cpu")
SHAPES = [(16, 16), (48, 20), (30, 30)]
FORM = SampleFormat(("primary", "wrist"), 3, 1, 3, 1, 0, ("a",), (None,))


def picture(number, kind="JPEG"):
    height, width = SHAPES[number % 3]
    pixels = np.random.default_rng(number).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels.repeat(2, 0).repeat(2, 1)).save(sink, kind, quality=95)
    return sink.getvalue()


@dataclasses.dataclass
class Block:
    """Rows of a window of three, of which row i has i % 3 observations of padding."""

    count: int = 5
    text: bool = False
    swap: bool = False
    reads: list = dataclasses.field(default_factory=list)

    @property
    def records(self):
        records = np.zeros(self.count, FORM.record)
        records["observation_mask"] = np.arange(3) >= np.arange(self.count)[:, None] % 3
        return records

    @property
    def texts(self):
        return (["q"] * self.count, ["a"] * self.count) if self.text else (["do"] * self.count,)

    def frame(self, row, observation, camera):
        self.reads.append((row, observation, camera))
        number = row * 7 + observation * 2 + camera
        return picture(number, "PNG" if row == 3 else "JPEG")

    def swapped(self, row, camera):
        return self.swap and camera == 1

    def damaged(self, row, observation, camera, reason):
        return DataError(f"row {row}: {reason}")

    def where(self, row):
        return f"row {row}"

    def sample_id(self, row):
        return str(row)


def make(blocks, **options):
    samples = [(block, row) for row in range(5) for block in blocks]
    return assemble(np.arange(len(samples)), samples, FORM, 16, 0, **options)


def assert_close(found, expected, levels):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= levels


@pytest.mark.parametrize(("kind", "levels"), [("bicubic", 0), ("lanczos3", 1)])
@pytest.mark.parametrize("swap", [False, True])
def test_the_device_gets_what_the_loader_would_have_resized(kind, levels, swap):
    block, texts = Block(swap=swap), Block(text=True)
    before = make([block, texts], resize=kind)
    assert sorted(set(block.reads)) == sorted(block.reads)  # padding is not read again
    stored = make([Block()], resize=kind).images[:, :, 1]
    assert np.array_equal(before.images[:, :, 1], stored[..., ::-1] if swap else stored)
    block.reads.clear()
    after = make([block, texts], resize=kind, mixed=True)
    assert sorted(set(block.reads)) == sorted(block.reads)
    assert len(block.reads) == 2 * before.observation_mask.sum()
    images = after.images
    assert isinstance(images, MixedImages)
    assert images.shape == before.images.shape == (5, 3, 2, 16, 16, 3)
    assert sorted(tuple(group.shape[1:3]) for group in images.groups) == sorted(SHAPES)
    assert sum(map(len, images.groups)) == len(block.reads)
    for crop in (False, True):
        given = (crop_images(x) if crop else x for x in (before.images, images))
        one, two = (to_device({"images": packed(x)}, CPU)["images"].numpy() for x in given)
        assert_close(two, one, 2 * levels)  # cropping resizes again
    assert_close(pixels_of(after.texts.images, CPU), before.texts.images, levels)
    seen = before.observation_mask
    assert_close(pixels_of(images[seen], CPU), before.images[seen], levels)
    part = images[2:4, -1]
    assert part.nbytes < images.nbytes
    assert_close(pixels_of(part, CPU), before.images[2:4, -1], levels)
    assert [image.shape[:2] for image in part.sources()] == [
        Image.open(io.BytesIO(block.frame(row, 2, camera))).size[::-1] for row in (2, 3) for camera in (0, 1)
    ]


def test_images_of_the_models_size_are_passed_on(monkeypatch):
    monkeypatch.setattr(Block, "frame", lambda self, row, observation, camera: picture(3 * (row + observation)))
    images = make([Block()], mixed=True).images
    assert [tuple(group.shape[1:3]) for group in images.groups] == [(16, 16)]
    last = images[:, -1]
    assert packed(last).data_ptr() == last.groups[0].data_ptr()  # no copy
    assert packed(images) is images  # padding is shown again
    assert isinstance(packed(crop_images(last)), MixedImages)
    assert packed(images[:0]).shape == pixels_of(images[:0], CPU).shape == (0, 3, 2, 16, 16, 3)


def test_very_large_images_are_resized_where_they_are_decoded(monkeypatch):
    expected = make([Block()]).images
    monkeypatch.setattr(assembling, "_BYTES", 30 * 30 * 3 * 22)  # 22 frames; others have 48 x 20 pixels
    images = make([Block()], mixed=True).images
    assert {tuple(group.shape[1:3]) for group in images.groups} == {(16, 16), (30, 30)}
    assert np.array_equal(pixels_of(images, CPU), expected)


def test_rare_sizes_are_resized_where_they_are_decoded(monkeypatch):
    expected = make([Block()]).images
    for count in (1, 2):
        monkeypatch.setattr(assembling, "_GROUPS", count)
        images = make([Block()], mixed=True).images
        assert {tuple(group.shape[1:3]) for group in images.groups} == {(16, 16), *[(48, 20), (30, 30)][:count]}
        assert np.array_equal(pixels_of(images, CPU), expected)


@pytest.mark.parametrize("mixed", [False, True], ids=["here", "on the device"])
@pytest.mark.parametrize("data", [b"no image", b"", picture(2)[:9], picture(2)[:-99], picture(2, "PNG")[:20]])
def test_a_damaged_image_names_its_row(mixed, data, monkeypatch):
    monkeypatch.setattr(Block, "frame", lambda self, row, *_: data if row == 2 else picture(row))
    with pytest.raises(DataError, match=r"^row 2: "):
        make([Block()], mixed=mixed)


def test_held_out_images_are_cropped_after_resizing():
    def collate(rows):
        return {"images": packed(rows.images[:, -1])}

    found = [to_device(HeldOut(collate, crop=True)(make([Block()], mixed=m)), CPU)["images"] for m in (False, True)]
    assert torch.equal(*found)
    assert not torch.equal(found[0], to_device(HeldOut(collate)(make([Block()])), CPU)["images"])
