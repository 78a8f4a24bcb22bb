"""Head for continuous actions on the hidden states of the action slots, as in OpenVLA-OFT."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from oxe_curate.train.data.rows import ACTION_WIDTH
from oxe_curate.train.models.openvla.parallel import masked_mean


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class _MLPResNet(nn.Module):
    def __init__(self, width_in: int, width: int, width_out: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width_in)
        self.fc1 = nn.Linear(width_in, width)
        self.mlp_resnet_blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, width_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1Head(nn.Module):
    """A residual MLP from the 7 slots of a step to its action (OpenVLA-OFT, Kim et al. 2025, app. A).

    Parameters have the names of OpenVLA-OFT's `L1RegressionActionHead`.

    Args:
        hidden: width of the language model. width: of the MLP (default: `hidden`). blocks: residual blocks.
    """

    def __init__(self, hidden: int, width: int | None = None, blocks: int = 2) -> None:
        super().__init__()
        self.model = _MLPResNet(hidden * ACTION_WIDTH, width or hidden, ACTION_WIDTH, blocks)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Predict actions.

        Args:
            states: (n, K * 7, hidden), at the slots.

        Returns:
            (n, K, 7), normalized actions, unbounded.
        """
        n, slots, hidden = states.shape
        steps: torch.Tensor = states.reshape(n, slots // ACTION_WIDTH, ACTION_WIDTH * hidden)
        return self.model(steps)


def l1_loss(predicted: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each sample.

    Args:
        predicted: (n, K, 7), normalized.
        actions: same shape, the targets.
        mask: bool (n, K), False for padding.

    Returns:
        float32 (n,): mean over the real actions; 0 if a sample has none.
    """
    return masked_mean((predicted.float() - actions.float()).abs(), mask)
