"""Flat images, missing cameras, and formats that change."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from oxe_curate.quality.pictures import Pictures
from tests.quality.seen import Change, Picture, drawn, encode, judged, marked, pixels

BAD = [3, 11]
RNG = np.random.default_rng(5)


def blurred(image: Picture) -> Picture:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(4)))


def covered(image: Picture) -> Picture:
    new = image.copy()
    new[:, :54] = (60, 45, 40)
    return new


def smaller(image: Picture) -> Picture:
    return np.asarray(Image.fromarray(image).resize((48, 48)))


@pytest.mark.parametrize("count", [8, 25])
def test_good_episodes_are_not_marked(count: int) -> None:
    for look in (True, False):
        for judgement in judged(Pictures(), drawn(count), look=look).values():
            assert marked(judgement) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: RNG.integers(0, 256, image.shape), "encoded|noise"),
        (lambda image: np.full(image.shape, (90, 120, 60)), "encoded|contrast"),
        (lambda image: image * 0.05, "encoded|contrast|brighter"),
        (lambda image: image * 2.5 + 120.0, "encoded|brighter"),
        (blurred, "encoded|sharp"),
        (covered, "encoded|contrast|sharp"),
    ],
    ids=["noise", "one colour", "dark", "bright", "blurred", "covered"],
)
@pytest.mark.parametrize("role", ["primary", "wrist"])
@pytest.mark.parametrize("look", [True, False])
def test_frames_without_information(change: Callable[[Picture], np.ndarray], words: str, role: str, look: bool) -> None:
    found = judged(Pictures(), drawn(20, BAD, pixels(change), role), look=look)["flat_image"]
    assert set(marked(found)) >= set(BAD) if look else True
    assert set(marked(found)) <= set(BAD)
    for episode in marked(found):
        assert found.detail(episode).startswith(role)
        assert any(word in found.detail(episode) for word in words.split("|"))


def test_a_single_frame_is_found_without_a_look() -> None:
    def flash(frames: list[bytes], role: str) -> list[bytes]:
        return [*frames[:6], encode(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)), *frames[7:]]

    found = judged(Pictures(), drawn(20, [7], flash), look=False)["flat_image"]
    assert marked(found) == [7]
    assert found.step[7] == 6


def missing(steps: Sequence[int], data: bytes) -> Change:
    return lambda frames, role: [data if t in steps else frame for t, frame in enumerate(frames)]


BLACK = encode(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("steps", "data", "words"),
    [
        (range(16), b"", "wrist: off"),
        (range(16), BLACK, "wrist: off"),
        (range(8, 16), BLACK, "wrist: off or without frames at some steps"),
        (range(4, 6), b"", "wrist: off or without frames at some steps"),
        (range(4, 9), b"broken" * 300, "wrist: frames that cannot be decoded"),
    ],
    ids=["no frames", "black", "black later", "gaps", "broken"],
)
def test_a_camera_that_is_off_or_broken_in_some_episodes(steps: Sequence[int], data: bytes, words: str) -> None:
    found = judged(Pictures(), drawn(20, BAD, missing(steps, data), "wrist"))["missing_camera"]
    assert marked(found) == BAD
    assert found.detail(3) == words


def test_a_camera_that_is_off_in_most_episodes_is_how_the_data_set_is() -> None:
    batch = drawn(20, range(2, 18), missing(range(16), BLACK), "wrist")
    for judgement in judged(Pictures(), batch).values():
        assert marked(judgement) == []


@pytest.mark.parametrize(
    ("change", "first", "words"),
    [
        (smaller, 0, "primary: another size or number of channels"),
        (smaller, 8, "primary: another size or number of channels"),
        (lambda image: image[..., ::-1], 0, "primary: red and blue swapped"),
        (lambda image: image[..., ::-1], 8, "primary: red and blue swapped"),
        (lambda image: image.mean(axis=2, keepdims=True).repeat(3, axis=2), 0, "primary: grey instead of colour"),
    ],
    ids=["size", "size changes", "swapped", "swapped later", "grey"],
)
def test_formats_that_change(change: Callable[[Picture], np.ndarray], first: int, words: str) -> None:
    found = judged(Pictures(), drawn(20, BAD, pixels(change, first)))["image_format"]
    assert marked(found) == BAD
    assert found.detail(3) == words


def test_sizes_that_are_mixed_in_the_data_set_count_only_within_an_episode() -> None:
    batch = drawn(20, range(0, 20, 2), pixels(smaller))
    mixed = drawn(20, [5], pixels(smaller, 8)).take(np.array([5]))
    assert marked(judged(Pictures(), batch)["image_format"]) == []
    looks = {role: batch.looks[role].take(np.arange(19)) for role in batch.looks}
    from oxe_curate.quality.episodes import join

    again = join([replace(batch.take(np.arange(19)), looks=looks), mixed])
    found = judged(Pictures(), again)["image_format"]
    assert marked(found) == [19]
    assert found.detail(19) == "primary: the size changes"
