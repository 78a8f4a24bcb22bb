import pytest

torch = pytest.importorskip("torch")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")

from oxe_curate.train.models.norms import LayerNorm, fuse_rms_norms


@pytest.fixture
def x():
    return torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient(layer, x, dtype):
    x = x.to(dtype).requires_grad_()
    y = layer.to(dtype)(x)
    y.float().square().sum().backward()
    return y.detach(), x.grad


def rms_norm(x):
    layer = llama.LlamaRMSNorm(64, eps=1e-5)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 2, 64))
    return layer


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_fused_rms_norm_equals_transformers_in_value_and_gradient(x, dtype, tolerance):
    expected, expected_grad = gradient(rms_norm(x), x, dtype)
    layer = rms_norm(x)
    assert fuse_rms_norms(torch.nn.ModuleList([layer])) == 1
    found, found_grad = gradient(layer.train(), x, dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found_grad, expected_grad, rtol=tolerance, atol=20 * tolerance)
    # inference is bit-identical to transformers
    assert torch.equal(gradient(layer.eval(), x, dtype)[0], expected)


def test_layer_norm_stays_in_its_type_under_autocast(x):
    layer = LayerNorm(64, eps=1e-6)
    torch.testing.assert_close(layer(x.float()), torch.nn.functional.layer_norm(x.float(), (64,), eps=1e-6))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x.float()), rtol=0.02, atol=0.02)
