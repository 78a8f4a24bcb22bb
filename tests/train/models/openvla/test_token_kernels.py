"""On a machine without CUDA the kernels run in Triton's interpreter (conftest.py)."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("triton")

import torch.nn.functional as F  # noqa: N812

from oxe_curate.train.models.openvla import token_kernels
from oxe_curate.train.models.openvla.kv_cache import FusedDecoder

# Triton's interpreter converts one-element arrays to numbers
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize(("width", "rows"), [(96, 13), (2560, 5)])
def test_fused_products(width, rows):
    x, weight, bias = random(1, width), random(2 * rows, width), random(2 * rows)
    gain = random(width).abs() / width**0.5
    residual, normed = random(1, 2 * rows), F.rms_norm(x, (width,), gain, 1e-5)
    both = F.linear(normed, weight)

    def same(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())

    same(token_kernels.product(x, weight, bias), F.linear(x, weight, bias))
    same(token_kernels.product(x, weight, norm=(gain, 1e-5), residual=residual), both + residual)
    same(token_kernels.product(x, weight, norm=(gain, 1e-5), gated=True), F.silu(both[:, :rows]) * both[:, rows:])


@pytest.mark.parametrize(("kind", "groups"), [("llama", 4), ("qwen2", 2)])
@torch.no_grad()
def test_steps_equal_torch(kind, groups):
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": groups, "initializer_range": 0.3}
    config = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}[kind](**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(DEVICE).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    plain, quick = FusedDecoder(model, 96, kernels=False), FusedDecoder(model, 96, kernels=False)
    quick._kernels = token_kernels if all(map(token_kernels.supports, quick._layers)) else None
    assert quick._kernels
    start = random(70, 32)
    for decoder in (plain, quick):
        decoder.prefill(start)
    for position in (68, 70, 71):  # overwrite a prefilled position, then continue
        at = torch.tensor([position], device=DEVICE)
        found, expected = (d.step(random(1, 32, seed=position), at, visible=96) for d in (quick, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_unsupported_layers_are_detected():
    config = transformers.Qwen3Config(
        vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, head_dim=8
    )
    model = transformers.Qwen3ForCausalLM(config).to(DEVICE)
    assert not token_kernels.supports(FusedDecoder(model, 16)._layers[0])
