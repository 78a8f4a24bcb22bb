"""Policy heads on features of any shape."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from oxe_curate.train.models.roboflamingo.heads import GPTHead, Head, LSTMHead, MLPHead
from oxe_curate.train.models.roboflamingo.policy_loss import policy_losses

WIDTH = 16
HEADS = {
    "mlp": lambda window, chunk: MLPHead(WIDTH, window, chunk),
    "mlp, history": lambda window, chunk: MLPHead(WIDTH, window, chunk, history=True),
    "gpt": lambda window, chunk: GPTHead(WIDTH, window, chunk, layers=2, heads=4, dropout=0.0),
    "gpt, another width": lambda window, chunk: GPTHead(WIDTH, window, chunk, hidden=24, layers=2, dropout=0.0),
    "lstm": lambda window, chunk: LSTMHead(WIDTH, window, chunk, hidden=20, layers=2, dropout=0.0),
}


@pytest.fixture(params=HEADS)
def make(request: pytest.FixtureRequest):
    def build(window: int, chunk: int = 1) -> Head:
        torch.manual_seed(0)
        return HEADS[request.param](window, chunk).eval()

    return build


def features(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("samples", "window", "tokens", "chunk"), [(1, 1, 1, 1), (3, 5, 7, 1), (2, 4, 3, 4)])
def test_any_batch_window_and_tokens(make, samples: int, window: int, tokens: int, chunk: int) -> None:
    pose, gripper = make(window, chunk)(features(samples, window, tokens))
    assert pose.shape == (samples, window, 6 * chunk)
    assert gripper.shape == (samples, window, chunk)
    assert pose.abs().max() < 1
    assert gripper.min() > 0
    assert gripper.max() < 1


def test_step_by_step_equals_the_last_window(make) -> None:
    """Released inference: history grows to `window` steps; then the oldest is dropped and the window is rerun."""
    window, steps = 4, 11
    head, episode = make(window), features(2, steps, 3)
    head.reset()
    for t in range(steps):
        pose, gripper = head.step(episode[:, t : t + 1])
        whole = head(episode[:, max(0, t - window + 1) : t + 1])
        torch.testing.assert_close(pose, whole[0][:, -1:], atol=1e-6, rtol=0)
        torch.testing.assert_close(gripper, whole[1][:, -1:], atol=1e-6, rtol=0)


def test_reset_forgets_the_episode(make) -> None:
    head, episode = make(3), features(1, 2, 3)
    first = head.step(episode[:, :1])[0]
    head.step(episode[:, 1:])
    head.reset()
    torch.testing.assert_close(head.step(episode[:, :1])[0], first)


def test_lstm_state_over_an_episode_is_one_pass_until_the_window_is_full() -> None:
    torch.manual_seed(0)
    head, episode = LSTMHead(WIDTH, window=6, hidden=20, layers=2).eval(), features(1, 9, 2)
    whole = head(episode)[0]  # one state from the first step to the last
    steps = torch.cat([head.step(episode[:, t : t + 1])[0] for t in range(9)], 1)
    torch.testing.assert_close(steps[:, :6], whole[:, :6], atol=1e-6, rtol=0)
    assert not torch.allclose(steps[:, 6:], whole[:, 6:], atol=1e-6), "the state restarts after `window` steps"


def test_steps_do_not_depend_on_later_ones(make) -> None:
    head, episode = make(5), features(2, 5, 3)
    changed = episode.clone()
    changed[:, 3:] *= -1
    torch.testing.assert_close(head(changed)[0][:, :3], head(episode)[0][:, :3])


def test_padded_window_equals_the_start_of_an_episode(make) -> None:
    """A window with padding at the start equals control after the same number of steps."""
    head, episode = make(5), features(1, 3, 4)
    padded = torch.cat([episode[:, :1].expand(-1, 2, -1, -1), episode], 1)
    mask = torch.tensor([[False, False, True, True, True]])
    torch.testing.assert_close(head(padded, None, mask)[0][:, 2:], head(episode)[0], atol=1e-6, rtol=0)


def test_only_heads_with_history_depend_on_earlier_steps(make) -> None:
    head, episode = make(4), features(1, 4, 3)
    changed = episode.clone()
    changed[:, 0] *= -1
    differs = not torch.allclose(head(changed)[0][:, -1], head(episode)[0][:, -1])
    assert differs == (not isinstance(head, MLPHead) or head.history)


def test_padding_tokens_do_not_count_under_a_mask(make) -> None:
    head, episode = make(2), features(2, 2, 5)
    mask = torch.tensor([[True, True, True, False, False]] * 2)
    torch.testing.assert_close(head(episode, mask)[0], head(episode[:, :, :3])[0])
    assert not torch.allclose(head(episode)[0], head(episode, mask)[0])


def test_overfits_a_small_batch(make) -> None:
    head = make(4, 2).train()
    x, target = features(3, 4, 2), torch.rand(3, 4, 2, 7, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    target[..., 6] = (target[..., 6] > 0).float()
    if isinstance(head, MLPHead) and head.history:
        target, x = target[:, -1:], x[:, -1:]  # max-pooling over time does not distinguish early and late steps
    optimizer = torch.optim.Adam(head.parameters(), 2e-3)
    for _ in range(100):
        pose, gripper = head(x, logits=True)
        numbers, binary = policy_losses(pose.unflatten(-1, (2, 6)), gripper.unsqueeze(-1), target)
        loss = (numbers + 0.05 * binary).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert numbers.mean() < 4e-3  # initially 0.1
    assert ((gripper > 0).float() == target[..., 6]).all()


def test_parameter_names_equal_the_released_ones() -> None:
    lstm = {name.split(".")[0] for name, _ in LSTMHead(WIDTH, hidden=8, layers=2).named_parameters()}
    assert lstm == {"actions", "gripper", "rnn"}
    assert "actions.mlp.6.weight" in dict(LSTMHead(WIDTH, hidden=8).named_parameters())
    gpt = dict(GPTHead(WIDTH, window=5, layers=1).named_parameters())
    assert gpt["gpt.h.0.attn.c_attn.weight"].shape == (WIDTH, 3 * WIDTH)
    assert gpt["gpt.wpe.weight"].shape == (5, WIDTH)
    assert "gpt.wte.weight" not in gpt
    assert {"mlp.0.weight", "mlp.2.weight"} <= set(dict(MLPHead(WIDTH).named_parameters()))


def test_every_weight_of_a_head_gets_a_gradient(make) -> None:
    head = make(4, 2).train()
    pose, gripper = head(features(3, 4, 2))
    (pose.sum() + gripper.sum()).backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_loss_is_each_samples_mean_over_its_real_actions() -> None:
    pose, gripper = torch.zeros(2, 2, 1, 6), torch.zeros(2, 2, 1, 1)
    target = torch.zeros(2, 2, 1, 7)
    target[0, 0, 0, :6], target[0, 1, 0, :6] = 1.0, 100.0
    mask = torch.tensor([[[True], [False]], [[True], [True]]])
    numbers, binary = policy_losses(pose, gripper, target, mask)
    torch.testing.assert_close(numbers, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(binary, torch.full((2,), 0.5).log().neg())
    torch.testing.assert_close(policy_losses(pose, gripper, target, mask, "mse")[0], torch.tensor([1.0, 0.0]))


def test_saturated_gripper_still_gets_a_gradient() -> None:
    logit = torch.full((1, 1, 1, 1), 200.0, requires_grad=True)
    policy_losses(torch.zeros(1, 1, 1, 6), logit, torch.zeros(1, 1, 1, 7))[1].sum().backward()
    assert logit.grad.item() == 1  # with a probability of exactly 1 it would be 0


def test_indivisible_width_is_rejected() -> None:
    with pytest.raises(ValueError, match="not divisible by 8 attention heads"):
        GPTHead(18, heads=8)
