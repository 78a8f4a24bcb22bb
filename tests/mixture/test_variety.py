import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxe_curate.mixture import variety
from tests.mixture.sets import flat_image


def layout(image: np.ndarray) -> np.ndarray:
    return variety.embed(variety.thumbnail(image))


def test_effective_number() -> None:
    assert variety.effective_number([3, 3, 3]) == 3
    assert variety.effective_number([1000, 0, 0]) == 1
    assert variety.effective_number([]) == 0
    assert variety.effective_number([9, 1]) == pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_effective_number_is_between_one_and_the_count(counts: list[int]) -> None:
    assert 1 - 1e-9 <= variety.effective_number(counts) <= len(counts) + 1e-9


def test_spellings_of_a_task() -> None:
    assert variety.task("Put the Cup, on the plate!") == variety.task("put the cup on  the plate")
    assert variety.task("öffne Schublade 3") == "öffne schublade 3"


def test_distance_of_embeddings_is_the_rms_difference_of_flat_images() -> None:
    dark, light = (np.full((64, 48, 3), value, np.uint8) for value in (100, 151))
    distance = np.linalg.norm(layout(dark) - layout(light))
    assert distance == pytest.approx(51 / 255, abs=2e-3)  # only luma differs


def test_a_scaled_image_is_close_and_a_mirrored_one_far() -> None:
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, :32] = 255
    embedded = layout(half)
    assert np.linalg.norm(embedded - layout(half[::2, ::2])) < 0.01
    assert np.linalg.norm(embedded - layout(half[:, ::-1])) > 0.5


def test_scenes_are_counted() -> None:
    far = np.eye(4) * 5
    assert variety.effective_scenes(far) == pytest.approx(4)
    assert variety.effective_scenes(np.repeat(far[:2], 3, axis=0)) == pytest.approx(2)
    assert variety.effective_scenes(far[:1]) == 1
    assert variety.effective_scenes(far[:0]) == 0


def test_coverage_of_uniform_constant_and_one_sided_actions() -> None:
    even = np.zeros((1600, 7))
    even[:, :6] = np.linspace(-1, 1, 1600)[:, None]
    assert variety.action_coverage(even) == pytest.approx(1, abs=1e-3)
    assert variety.action_coverage(np.zeros((10, 7))) == 0
    half = even.copy()
    half[:, 3:6] = 0  # no rotation
    assert variety.action_coverage(half) == pytest.approx(0.5, abs=1e-3)
    assert variety.action_coverage(np.empty((0, 7))) == 0


def test_near_duplicates_match_in_task_frame_and_actions() -> None:
    frames = np.stack([layout(flat_image((200, 50, 50)))] * 4)
    still, moving = np.zeros((20, 7)), np.full((20, 7), 0.5)
    signatures = np.stack([variety.action_signature(a) for a in (still, still[:9], moving, still + 0.01)])
    assert variety.near_duplicates(["a"] * 4, frames, signatures) == 0.5  # the second and the fourth
    assert variety.near_duplicates(["a", "b", "c", "d"], frames, signatures) == 0
    frames[1:] += np.arange(1, 4)[:, None]
    assert variety.near_duplicates(["a"] * 4, frames, signatures) == 0
    assert variety.near_duplicates(["a"], frames[:1], signatures[:1]) == 0
