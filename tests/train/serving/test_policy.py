import io
import json

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from PIL import Image

from oxe_curate.errors import ConfigError, DataError
from oxe_curate.train import Policy
from oxe_curate.train.data.assemble import decode_into
from oxe_curate.train.data.augment import crop_middle
from oxe_curate.train.loop.memory import MemoryFullError
from oxe_curate.train.models import base as family
from oxe_curate.train.serving.observe import as_images, as_proprio
from tests.train import toy_policy as toy
from tests.train.toy_policy import red


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(family._FAMILIES, "openvla", "tests.train.toy_policy:ToyFamily")


def make(tmp_path, name="run", **change):
    base = tmp_path / "base"
    if not base.exists():
        toy.write_base(base, gain=2.0)
    return toy.write_run(tmp_path / name, base, scale=0.25, **change)


def test_an_action_is_in_real_units(tmp_path):
    policy = Policy.load(make(tmp_path))
    action = policy(red(255), "lift the cup")
    # normalised 2 * 0.25 * 1 = 0.5; bounds -0.1 .. 0.1; the gripper passes through
    np.testing.assert_allclose(action, [0.05] * 6 + [0.5], rtol=1e-6)
    assert action.dtype == np.float64
    assert policy.unnorm_keys == ("bridge_dataset",)


def test_each_data_set_has_its_own_bounds(tmp_path):
    run = make(tmp_path, names=("bridge_orig", "kuka"))
    policy = Policy.load(run)
    with pytest.raises(ConfigError, match="bridge_orig, kuka"):
        policy(red(255), "lift")
    assert policy(red(255), "lift", unnorm_key="kuka")[0] == pytest.approx(0.1)
    assert Policy.load(run, "bridge_orig")(red(255), "lift")[0] == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="Did you mean 'kuka'"):
        Policy.load(run, "kukka")


def test_a_call_returns_the_first_action_of_the_chunk(tmp_path):
    policy = Policy.load(make(tmp_path, chunk=3))
    chunk = policy.chunk(red(255), "lift")
    np.testing.assert_allclose(chunk[:, 6], [0.5, 0.505, 0.51], rtol=1e-6)
    np.testing.assert_array_equal(policy(red(255), "lift"), chunk[0])


def test_a_checkpoint_can_be_loaded(tmp_path):
    run = make(tmp_path, checkpoints=(2,))
    assert Policy.load(run, checkpoint=2)(red(255), "lift")[6] == pytest.approx(1.0)


def test_state_is_kept_until_reset(tmp_path):
    policy = Policy.load(make(tmp_path, window=2))
    first = policy(red(255), "lift")[6]
    assert policy(red(0), "lift")[6] == pytest.approx(first / 2)
    assert policy(red(0), "lift")[6] == 0  # the first frame has left the window
    policy(red(255), "lift")
    policy.reset()
    assert policy(red(0), "lift")[6] == 0


def test_proprio_is_normalized_and_padded(tmp_path):
    policy = Policy.load(make(tmp_path, proprio=2))
    still = policy(red(0), "lift", [0.0, 0.0])
    assert still[6] == pytest.approx(0, abs=1e-6)
    assert policy(red(0), "lift", np.array([0.5, 0]))[6] == pytest.approx(0.5)
    assert policy(red(0), "lift", [7.0, 0])[6] == pytest.approx(1.0)  # clipped
    with pytest.raises(ConfigError, match="expected 2 numbers"):
        policy(red(0), "lift")
    with pytest.raises(ConfigError, match=r"shape \(3,\)"):
        policy(red(0), "lift", [0, 0, 0])
    with pytest.raises(ConfigError, match="finite"):
        policy(red(0), "lift", [0, float("nan")])
    with pytest.raises(ConfigError, match="trained without"):
        Policy.load(make(tmp_path, "without"))(red(0), "lift", [0.0])


def test_narrower_proprio_is_padded(tmp_path):
    from oxe_curate.actions.bounds import Bounds

    bounds = Bounds.from_json(toy.statistics("a", proprio=2)["a"])
    np.testing.assert_allclose(as_proprio([1.0, -2.0], bounds, 4), [1, -1, 0, 0], atol=1e-6)
    without = Bounds.from_json(toy.statistics("a")["a"])
    np.testing.assert_array_equal(as_proprio(None, without, 4), [0, 0, 0, 0])
    with pytest.raises(ConfigError, match="has no proprio"):
        as_proprio([1.0], without, 4)


def test_the_instruction_is_required(tmp_path):
    policy = Policy.load(make(tmp_path))
    for text in ("", "  ", None, 3):
        with pytest.raises(ConfigError, match="instruction"):
            policy(red(0), text)


def test_a_diverged_model_is_reported(tmp_path):
    policy = Policy.load(make(tmp_path))
    with torch.no_grad():
        policy._model.net.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        policy(red(9), "lift")


@pytest.mark.parametrize(
    ("adapter", "quantize", "held"),
    [("lora", "nf4", "qlora"), ("lora", "int8", "int8"), ("qlora", "nf4", "qlora"), ("qlora", None, "qlora")],
)
def test_quantization_reaches_the_family(tmp_path, adapter, quantize, held):
    policy = Policy.load(make(tmp_path, adapter=adapter), quantize=quantize, dtype="bf16")
    assert policy._model.config.adapter == held
    assert policy._model.config.dtype == "bf16"


@pytest.mark.parametrize(("adapter", "quantize"), [("qlora", "int8"), ("int8", "nf4"), ("none", "nf4")])
def test_an_adapter_needs_the_base_it_was_trained_on(tmp_path, adapter, quantize):
    with pytest.raises(ConfigError, match="export --merge"):
        Policy.load(make(tmp_path, adapter=adapter), quantize=quantize)


def test_an_unknown_quantization_or_device_is_refused(tmp_path):
    run = make(tmp_path)
    with pytest.raises(ConfigError, match="unknown quantization 'fp8'"):
        Policy.load(run, quantize="fp8")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        Policy.load(run, device="gpu")
    with pytest.raises(ConfigError, match="not found"):
        Policy.load(run, device="cuda:99")


def test_warm_up_has_no_side_effects(tmp_path):
    for form in ({"window": 2}, {"proprio": 2}):
        policy = Policy.load(make(tmp_path, str(form), names=("a", "b"), **form))
        policy.warm_up()
        state = [0.0, 0.0] if "proprio" in form else None
        assert policy(red(255), "lift", state, unnorm_key="b")[6] == pytest.approx(0.5)


def test_a_gpu_that_is_too_small_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(toy.ToyFamily, "restore", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 8 * 2**30))
    run = make(tmp_path)
    with pytest.raises(MemoryFullError, match=r"\(1.0 of 8.0 GiB free\).*--quantize nf4 .* or --device cpu"):
        Policy.load(run)
    with pytest.raises(MemoryFullError, match=r"free\)\. Use --device cpu"):
        Policy.load(run, quantize="nf4")


def test_a_published_checkpoint_acts(tmp_path):
    folder = tmp_path / "7b"
    folder.mkdir()
    config = {
        "model_type": "openvla", "norm_stats": toy.statistics("a", "b"), "image_sizes": [8, 8], "gain": 0.5,
        "pad_to_multiple_of": 64, "text_config": {"vocab_size": 32064},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    policy = Policy.load(folder, "b", quantize="nf4")
    assert policy(red(255), "lift")[0] == pytest.approx(0.1)
    assert policy._model.config.adapter == "qlora"
    assert policy.center_crop is False


def test_the_crop_is_as_trained_by_default(tmp_path):
    run = make(tmp_path, augment=True)
    assert Policy.load(run).center_crop is True
    assert Policy.load(run, center_crop=False).center_crop is False
    assert Policy.load(make(tmp_path, "plain")).center_crop is False


# ── images ──


def test_images_are_accepted_in_any_format():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    other = image[::-1]
    one = as_images(image, ["primary"], 8, False)
    assert one.shape == (1, 8, 8, 3)
    lists = image.tolist()
    for form in (Image.fromarray(image), [image], image[None], {"primary": image}, lists, [lists], {"primary": lists}):
        np.testing.assert_array_equal(as_images(form, ["primary"], 8, False), one)
    two = as_images({"wrist": other, "primary": Image.fromarray(image)}, ["primary", "wrist"], 8, False)
    np.testing.assert_array_equal(two, as_images([image, other], ["primary", "wrist"], 8, False))
    np.testing.assert_array_equal(two, np.stack([image, other]))
    assert as_images(Image.new("RGBA", (20, 10)), ["primary"], 8, False).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"wirst": red(0), "primary": red(0)}, r"unknown camera 'wirst'\. Did you mean 'wrist'"),
        ({"primary": red(0)}, "missing wrist; expected the cameras primary, wrist"),
        (red(0), r"expected 2 images \(primary, wrist\), got 1"),
        ([red(0)] * 3, "got 3"),
        ("frame.png", "got str"),
        ([[[1, 2, 3]], [[1, 2]]], "list of lists: expected an RGB image"),
        (None, "got NoneType"),
        ([red(0), red(0)[..., 0]], r"wrist: expected an RGB image .* \(8, 8\)"),
        ([red(0), red(0) / 255], "wrist: expected uint8 values from 0 to 255, got float64"),
        ([red(0), red(0).astype(int) + 300], "got int64"),
        ([red(0), np.zeros((0, 8, 3), np.uint8)], "expected an RGB image"),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(ConfigError, match=message):
        as_images(images, ["primary", "wrist"], 8, False)


def test_resizing_equals_the_loader():
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(as_images(image, ["primary"], 16, False)[0], expected)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    loaded = np.empty((16, 16, 3), np.uint8)
    decode_into(file.getvalue(), loaded)
    np.testing.assert_array_equal(loaded, expected)
    decode_into(file.getvalue(), loaded, resize="lanczos3")
    np.testing.assert_array_equal(as_images(image, ["primary"], 16, False, "lanczos3")[0], loaded)
    assert not np.array_equal(loaded, expected)


def test_a_policy_resizes_as_in_its_training(tmp_path):
    image = np.random.default_rng(1).integers(0, 2, (5, 4, 3)).astype(np.uint8) * 255
    actions = []
    for kind in ("bicubic", "lanczos3"):
        run = make(tmp_path, kind)
        toy.edit_record(run, resize=kind)
        actions.append(Policy.load(run)(image, "go")[0])
    assert actions[0] != actions[1]


def crop_slowly(image, area):
    """TensorFlow's crop_and_resize of the middle, one pixel after another, in float64."""
    size, side = len(image), np.sqrt(area)
    begin, pixels = (1 - side) / 2, image / 255
    found = np.zeros(image.shape)
    for i in range(size):
        for j in range(size):
            y, x = (begin * (size - 1) + k * side for k in (i, j))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, size - 1), min(left + 1, size - 1)
            above = pixels[top, left] * (1 - (x - left)) + pixels[top, right] * (x - left)
            below = pixels[bottom, left] * (1 - (x - left)) + pixels[bottom, right] * (x - left)
            found[i, j] = above * (1 - (y - top)) + below * (y - top)
    return np.minimum(np.floor(found * 255.5), 255)


def test_center_crop_equals_openvla():
    image = np.random.default_rng(2).integers(0, 256, (23, 23, 3)).astype(np.uint8)
    difference = crop_middle(image[None])[0].astype(int) - crop_slowly(image, 0.9)
    assert np.abs(difference).max() <= 1  # float32 against float64 at a rounding edge
    assert (difference != 0).mean() < 0.01
    shifted = crop_middle(np.roll(image, 1, 0)[None])[0].astype(int)
    assert np.abs(shifted - crop_slowly(image, 0.9)).max() > 20


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_center_crop_keeps_a_uniform_image(value):
    plain = np.full((1, 9, 9, 3), value, np.uint8)
    np.testing.assert_array_equal(crop_middle(plain), plain)


def test_compilation_can_be_switched_off(tmp_path, monkeypatch):
    given = []
    plain = toy.ToyFamily.controller
    monkeypatch.setattr(toy.ToyFamily, "controller", lambda model, compile: given.append(compile) or plain(model))
    run = make(tmp_path)
    Policy.load(run)
    Policy.load(run, compile=False)
    assert given == [True, False]
