"""Policy heads: from a vision-language model's features over a window of steps to continuous actions.

The input is features (n, W, L, D) of n samples: W steps, oldest first, L tokens, width D. A head max-pools over the
tokens, mixes the steps, and predicts for each step six pose values in (-1, 1) and the probability of an open gripper,
for the next `chunk` actions. Parameters have the names of the released checkpoints.

    MLPHead   no state; with `history` it also max-pools over the steps so far
    GPTHead   a causal transformer over the steps
    LSTMHead  a recurrent network over the steps
"""

from __future__ import annotations

import abc
import itertools
from typing import Any

import torch
from torch import Tensor, nn

POSE = 6
"""Number of action dimensions without the gripper."""


class TanhMLP(nn.Module):
    """width -> 1024 -> 512 -> 256 -> outputs, ReLU between, then tanh."""

    def __init__(self, width: int, outputs: int, last: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        sizes = (width, 1024, 512, 256, outputs)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1], last())

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., outputs)."""
        return self.mlp(x)


class Head(nn.Module, abc.ABC):
    """Base class: pooling, alignment of padded windows, output networks, stepwise control.

    Args:
        in_features: width D of the features. hidden: input width of the output networks.
        window: steps of a training window; longest history during control.
        chunk: actions predicted at each step.
    """

    def __init__(self, in_features: int, hidden: int, window: int, chunk: int) -> None:
        super().__init__()
        self.in_features, self.hidden, self.window, self.chunk = in_features, hidden, window, chunk
        self.actions = TanhMLP(hidden, POSE * chunk)
        self.gripper = TanhMLP(hidden, chunk, nn.Sigmoid)
        self._history: list[Tensor] = []

    def forward(
        self,
        features: Tensor,
        token_mask: Tensor | None = None,
        observation_mask: Tensor | None = None,
        logits: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict the actions of every step of a window from the steps up to it.

        Args:
            features: (n, W, L, D), any float type; computed in float32 (float64 stays).
            token_mask: bool (n, L) or (n, W, L), True for real tokens; None pools over all tokens, padding
                included, as in the released code.
            observation_mask: bool (n, W), False for padding before the start of the episode. The head then skips padded
                steps, so that the n-th step of an episode is computed from n steps, as during control; their outputs
                are undefined. None uses every step, as in the released code.
            logits: return the gripper before its sigmoid, for the loss.

        Returns:
            pose (n, W, 6 * chunk) in (-1, 1), action by action, and gripper (n, W, chunk), the probability of "open".
        """
        with torch.autocast(features.device.type, enabled=False):
            pooled = self.pool(features, token_mask)
            if observation_mask is None:
                return self._decode(self.mix(pooled), logits)
            steps = torch.arange(pooled.shape[1], device=pooled.device)
            padding = (~observation_mask).sum(1, keepdim=True)
            pooled = _rolled(pooled, (steps + padding).clamp(max=pooled.shape[1] - 1))
            return self._decode(_rolled(self.mix(pooled), (steps - padding).clamp(min=0)), logits)

    def pool(self, features: Tensor, token_mask: Tensor | None) -> Tensor:
        """(n, W, L, D) -> float32 (n, W, D'): the maximum over the real tokens."""
        features = features.float() if features.dtype != torch.float64 else features
        if token_mask is not None:
            mask = token_mask if token_mask.dim() == 3 else token_mask[:, None]
            features = features.masked_fill(~mask.bool().unsqueeze(-1), torch.finfo(features.dtype).min)
        return features.amax(2)

    @abc.abstractmethod
    def mix(self, pooled: Tensor) -> Tensor:
        """(n, W, D') -> (n, W, hidden): combine each step with the steps before it."""

    def reset(self) -> None:
        """Start a new episode."""
        self._history = []

    def step(self, features: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One control step of n parallel episodes; keeps the state between steps.

        As in the released code, the head uses the last `window` steps and starts from a zero state at the first of
        them, so the result equals the last step of `forward` on these steps.

        Args:
            features: (n, 1, L, D).
            token_mask: as in `forward`.

        Returns:
            pose (n, 1, 6 * chunk), gripper (n, 1, chunk).
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._decode(self.mix_step(self.pool(features, token_mask)))

    def mix_step(self, pooled: Tensor) -> Tensor:
        """(n, 1, D') -> (n, 1, hidden), from this step and the stored ones."""
        self._history = [*self._history, pooled][-self.window :]
        return self.mix(torch.cat(self._history, 1))[:, -1:]

    def _decode(self, mixed: Tensor, logits: bool = False) -> tuple[Tensor, Tensor]:
        return self.actions(mixed), (self.gripper.mlp[:-1] if logits else self.gripper)(mixed)


def _rolled(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (n, W, D) by index (n, W)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class MLPHead(Head):
    """An MLP on each token, in -> in/2 -> hidden, then max-pooling over the tokens.

    Args:
        history: max-pool over the tokens of all steps so far instead of the current step only.
    """

    def __init__(
        self, in_features: int, window: int = 12, chunk: int = 1, history: bool = False, hidden: int = 1024
    ) -> None:
        super().__init__(in_features, hidden, window, chunk)
        self.history = history
        self.mlp = nn.Sequential(
            nn.Linear(in_features, in_features // 2), nn.ReLU(), nn.Linear(in_features // 2, hidden)
        )

    def pool(self, features: Tensor, token_mask: Tensor | None) -> Tensor:
        """(n, W, L, D) -> (n, W, hidden)."""
        return super().pool(self.mlp(features.float()), token_mask)

    def mix(self, pooled: Tensor) -> Tensor:
        """The steps unchanged, or their running maximum."""
        return pooled.cummax(1).values if self.history else pooled


class LSTMHead(Head):
    """An LSTM over the steps: 4 layers of 1024, dropout 0.1, as released.

    Args:
        hidden, layers, dropout: of the LSTM; dropout is between its layers.
    """

    def __init__(
        self,
        in_features: int,
        window: int = 12,
        chunk: int = 1,
        hidden: int = 1024,
        layers: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_features, hidden, window, chunk)
        self.rnn = nn.LSTM(in_features, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self._state: tuple[Tensor, Tensor] | None = None

    def mix(self, pooled: Tensor) -> Tensor:
        """Run the whole window from a zero state."""
        return self.rnn(pooled)[0]

    def reset(self) -> None:
        """Start a new episode: clear history and recurrent state."""
        super().reset()
        self._state = None

    def mix_step(self, pooled: Tensor) -> Tensor:
        """Continue the state for `window` steps; after that, rerun the window from a zero state."""
        if len(self._history) >= self.window:
            self._state = None
            return super().mix_step(pooled)
        self._history = [*self._history, pooled]
        mixed, self._state = self.rnn(pooled, self._state)
        return mixed


class GPTHead(Head):
    """A causal GPT-2 over the steps: 8 layers of 8 heads, learned positions, dropout 0.1, as released.

    Args:
        hidden: width of the transformer (default: width of the features); another width adds a linear layer `fc`.
        layers, heads, dropout: of the transformer.
    """

    def __init__(
        self,
        in_features: int,
        window: int = 12,
        chunk: int = 1,
        hidden: int | None = None,
        layers: int = 8,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        hidden = hidden or in_features
        super().__init__(in_features, hidden, window, chunk)
        if hidden % heads:
            raise ValueError(f"GPT head: width {hidden} is not divisible by {heads} attention heads")
        self.gpt = _gpt2(hidden, layers, heads, window, dropout)
        self.fc = nn.Linear(in_features, hidden) if hidden != in_features else nn.Identity()

    def pool(self, features: Tensor, token_mask: Tensor | None) -> Tensor:
        """(n, W, L, D) -> (n, W, hidden)."""
        return self.fc(super().pool(features, token_mask))

    def mix(self, pooled: Tensor) -> Tensor:
        """Causal attention; positions count from the window's first step."""
        mixed: Tensor = self.gpt(inputs_embeds=pooled, use_cache=False).last_hidden_state
        return mixed


def _gpt2(width: int, layers: int, heads: int, positions: int, dropout: float) -> Any:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=1,
        bos_token_id=None,
        eos_token_id=None,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=positions,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
    )
    model = GPT2Model(config)
    del model.wte  # inputs are vectors, and data-parallel training refuses a weight without a gradient
    return model
