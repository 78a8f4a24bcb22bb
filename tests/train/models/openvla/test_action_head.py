import pytest

torch = pytest.importorskip("torch")

from oxe_curate.train.models.openvla.action_head import L1Head, l1_loss


def test_each_step_uses_its_own_seven_slots():
    torch.manual_seed(0)
    head, states = L1Head(hidden=8), torch.randn(2, 21, 8)
    actions = head(states)
    assert actions.shape == (2, 3, 7)
    changed = states.clone()
    changed[:, 7:14] += 1
    differs = (head(changed) != actions).any(-1)
    assert differs.tolist() == [[False, True, False]] * 2


def test_parameters_have_the_published_names():
    names = set(L1Head(hidden=8).state_dict())
    assert {"model.layer_norm1.weight", "model.fc1.weight", "model.mlp_resnet_blocks.1.ffn.1.weight"} <= names
    assert {"model.layer_norm2.bias", "model.fc2.bias"} <= names
    assert len(names) == 2 * (1 + 1 + 2 * 2 + 1 + 1)


def test_output_equals_openvla_oft():
    """Reference: norm, linear, ReLU, two residual blocks, norm, linear."""
    torch.manual_seed(0)
    head = L1Head(hidden=4, width=6).double()
    x = torch.randn(1, 7, 4, dtype=torch.float64)
    p = head.state_dict()

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    y = linear(norm(x.reshape(1, 1, 28), "model.layer_norm1"), "model.fc1").clamp(min=0)
    for block in ("model.mlp_resnet_blocks.0.ffn", "model.mlp_resnet_blocks.1.ffn"):
        y = y + linear(norm(y, f"{block}.0"), f"{block}.1").clamp(min=0)
    torch.testing.assert_close(head(x), linear(norm(y, "model.layer_norm2"), "model.fc2"))


def test_loss_is_the_mean_over_each_samples_real_actions():
    predicted = torch.tensor([1.0, 5.0])[None, :, None].expand(2, 2, 7)
    mask = torch.tensor([[True, False], [True, True]])
    assert l1_loss(predicted, torch.zeros(2, 2, 7), mask).tolist() == [1.0, 3.0]


def test_learns_actions_outside_the_bins():
    torch.manual_seed(0)
    head, states, expected = L1Head(hidden=8), torch.randn(4, 14, 8), torch.randn(4, 2, 7) * 2
    mask = torch.ones(4, 2, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(300):
        loss = l1_loss(head(states), expected, mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
