"""LoRA layers compute what PEFT's own do."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from oxe_curate.train.models.fast_lora import fuse

peft = pytest.importorskip("peft")


def adapted(quantize: str | None = None, **options: object) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64, bias=False))
    if quantize == "nf4":
        bnb = pytest.importorskip("bitsandbytes")
        for i in (0, 2):
            old = net[i]
            new = bnb.nn.Linear4bit(
                old.in_features, old.out_features, old.bias is not None, quant_type="nf4", compute_dtype=torch.float32
            )
            new.load_state_dict(old.state_dict())
            net[i] = new
        net.is_loaded_in_4bit = True
        net.to("cpu")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False, **options)
    return peft.get_peft_model(net, config)


def step(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    y = net(x)
    y.square().mean().backward()
    return y.detach(), {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_output_and_gradients_equal_peft(quantize: str | None) -> None:
    slow = adapted(quantize)
    fast = copy.deepcopy(slow)
    assert fuse(fast) == 2
    x = torch.randn(3, 5, 64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (y, grads), (expected, expected_grads) = step(fast, ours), step(slow, theirs)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert set(grads) == set(expected_grads)
    assert len(grads) == 4
    for name in grads:
        torch.testing.assert_close(grads[name], expected_grads[name], rtol=1e-4, atol=1e-6)


def test_autocast_type_and_float32_gradients() -> None:
    net = adapted()
    fuse(net)
    with torch.autocast("cpu", torch.bfloat16):
        y, grads = step(net, torch.randn(2, 64))
    assert y.dtype == torch.bfloat16
    assert {g.dtype for g in grads.values()} == {torch.float32}


def test_dropout_stays_with_peft() -> None:
    assert fuse(adapted(lora_dropout=0.1)) == 0


def test_a_disabled_adapter_stays_disabled() -> None:
    net = adapted()
    x = torch.randn(2, 64)
    with net.disable_adapter():
        expected = net(x)
    fuse(net)
    with net.disable_adapter():
        torch.testing.assert_close(net(x), expected)
    assert not torch.allclose(net(x), expected)


def test_names_of_the_state_are_unchanged() -> None:
    slow, fast = adapted(), adapted()
    fuse(fast)
    assert list(fast.state_dict()) == list(slow.state_dict())


@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")  # Dynamo's own
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_compiles_without_graph_breaks(quantize: str | None) -> None:
    net = adapted(quantize)
    fuse(net)
    x = torch.randn(4, 64)
    expected, grads = step(net, x)
    grads = {name: grad.clone() for name, grad in grads.items()}
    net.zero_grad()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    y, compiled_grads = step(compiled, x)
    torch.testing.assert_close(y, expected)
    for name, grad in grads.items():
        torch.testing.assert_close(compiled_grads[f"_orig_mod.{name}"], grad)
